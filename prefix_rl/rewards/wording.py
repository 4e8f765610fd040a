r"""Words in answers: units of measure and counted nouns, which may be left out, and words that carry meaning.

``5 cm``, ``6 different ways`` and ``12 more apples`` are read as 5, 6 and 12. But ``5 hundred``, ``3 remainder 1``,
``n is even``, ``12 if x > 0`` and ``5 below zero`` are kept whole: a word that is a number, an operation, an assertion
or a restriction stays, and two answers with such words are equal only if the words are equal.
"""

from __future__ import annotations

import re

TEXT = r"\\(?:text(?:normal|rm|bf|it|sf|tt|up|sc)?|math(?:rm|bf|it|sf|tt|normal)|[mh]box|boldsymbol|pmb|bm|emph)\s*"
"""Pattern of the LaTeX commands that set text in a type face."""

_UNITS = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "dm": "dm decimeter decimetre", "m": "m meter metre",  # noqa: E501
    "km": "km kilometer kilometre", "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile", "mg": "mg milligram",  # noqa: E501
    "g": "g gram", "kg": "kg kilogram kilo", "oz": "oz ounce", "lb": "lb pound", "l": "l liter litre", "ml": "ml milliliter millilitre",  # noqa: E501
    "s": "s sec second", "min": "min minute", "h": "h hr hour", "day": "day", "week": "week", "month": "month", "year": "yr year",  # noqa: E501
    "dollar": "dollar usd buck", "cent": "cent", "euro": "euro eur", "degree": "degree deg", "radian": "radian rad", "mph": "mph",  # noqa: E501
    "kph": "kph kmh", "gallon": "gallon gal", "ton": "ton tonne", "n": "n newton", "j": "j joule", "w": "w watt", "v": "v volt",  # noqa: E501
    "hz": "hz hertz", "pa": "pa pascal", "mol": "mol mole", "k": "k kelvin", "ev": "ev", "kj": "kj", "kw": "kw", "khz": "khz", "mhz": "mhz",  # noqa: E501
    "nm": "nm nanometer nanometre", "acre": "acre", "pint": "pint", "quart": "quart", "cup": "cup", "unit": "unit",
}  # fmt: skip
UNITS = {name: unit for unit, names in _UNITS.items() for name in names.split()}
"""Mapping from the names of a unit of measure, in the singular, to the unit: ``centimeter`` -> ``cm``."""

_STAY = frozenset(
    # numbers
    "zero one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred hundreds "  # noqa: SIM905
    "thousand thousands million millions billion billions trillion dozen dozens half halves third thirds fourths quarter "  # noqa: E501
    "quarters fifths sixths sevenths eighths ninths tenths hundredth hundredths thousandth thousandths infinity infinite "  # noqa: E501
    "infinitely score lakh crore lakhs crores "
    # operations
    "plus minus times over mod modulo divided multiplied by squared cubed power root factorial base remainder raised "
    "choose negative positive percent percentage permille "
    # assertions and restrictions
    "is are was were be been being isn aren not no nor none never neither nothing if when whenever where unless while for "  # noqa: E501
    "all any every whose which that except excluding without but only than to between at least most up down below above "  # noqa: E501
    "under beyond before after until since ago or and either both approximately some does do cannot can exists exist "
    "undefined divides divisible multiple multiples equals equal congruent modulus north south east west northeast "
    "northwest southeast southwest bc ad less fewer greater fraction then am pm so because other others otherwise "
    "true false yes even odd prime composite rational irrational real imaginary complex undetermined impossible".split()
)
_ADJECTIVES = frozenset(
    "even odd prime composite positive negative real rational irrational imaginary complex other".split()  # noqa: SIM905
)
"""Words of :data:`_STAY` that may be dropped if they stand before a counted noun: ``5 even numbers``."""
_IDLE = frozenset(
    "a an the of in different distinct possible total more extra additional left remaining altogether each per unique such "  # noqa: E501, SIM905
    "them there it its their his her whole full single sq square squared cubic cu us and approximately about".split()
)
"""Words that are ignored when two counted nouns are compared."""
_ADVERBS = frozenset(
    "left remaining each total altogether apiece more extra away tall long wide high deep old together combined overall away "  # noqa: E501, SIM905
    "daily weekly monthly yearly hourly annually approximately exactly only".split()
)
MATHEMATICAL = frozenset(
    "sin cos tan cot sec csc log exp lim max min gcd lcm mod det dim ker deg arg sup inf abs sgn sqrt".split()  # noqa: SIM905
)

_BARE = re.compile(rf"{TEXT}\{{([^{{}}]*)\}}")
_WORD = re.compile(r"[^\W\d_]+")


def untexted(text: str) -> str:
    r"""Text without the commands of :data:`TEXT`: ``\text{odd}`` -> ``odd``."""
    return _BARE.sub(r" \1 ", text).strip()


def singular(word: str) -> str:
    """Singular of a word, by the common endings of the plural.

    >>> [singular(word) for word in ("cities", "boxes", "solutions", "class")]
    ['city', 'box', 'solution', 'class']
    """
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    return (
        word[:-1]
        if (word.endswith("s") and not word.endswith("ss") and len(word) > 3) or word in ("hrs", "lbs")
        else word
    )


def droppable(phrase: str, after_number: bool) -> bool:
    """True if a phrase at the end of an answer is a unit or a counted noun, so that it may be dropped.

    Args:
        after_number: True if a number stands before the phrase; after a letter only units of measure are dropped.
    """
    words = [w.lower() for w in _WORD.findall(untexted(phrase))]
    if not words:
        return "\\" not in phrase
    if words == ["times"]:
        return after_number
    if len(words) == 1 and not words[0].isascii():
        counts = words[0][0] in "万亿千百十" and words[0][1:2] not in ("克", "米", "瓦", "升", "卡")
        return after_number and not counts and not set(words[0]) & set("倍半不是或和")
    if not after_number:
        return all(singular(w) in UNITS or w in ("square", "sq", "cubic", "cu", "per", "units") for w in words)
    for place, word in enumerate(words):
        if word in _STAY and not (word in _ADJECTIVES and place < len(words) - 1 and words[-1].endswith("s")):
            return (word == "only" and len(words) == 1) or (
                word in ("squared", "cubed", "approximately") and singular(words[place - 1]) in UNITS
            )
    return len(words) <= 6


_OPPOSITES = [
    pair.split("/")
    for pair in "left/right noon/midnight heads/tails clockwise/counterclockwise clockwise/anticlockwise inside/outside boys/girls "  # noqa: E501, SIM905
    "men/women early/late older/younger taller/shorter heavier/lighter faster/slower first/last front/back male/female "
    "horizontal/vertical profit/loss gain/loss increase/decrease odd/even wins/losses inner/outer".split()
]


def conflict(ours: str, theirs: str) -> bool:
    """True if two dropped phrases contradict each other: two units of measure, or one noun of two kinds.

    >>> conflict("cm", "m"), conflict("even numbers", "odd numbers"), conflict("ways", "arrangements")
    (True, True, False)
    """
    said = [{w.lower() for w in _WORD.findall(phrase)} for phrase in (ours, theirs)]
    if any((a in said[0] and b in said[1]) or (b in said[0] and a in said[1]) for a, b in _OPPOSITES):
        return True
    a, b = (_kinds(phrase) for phrase in (ours, theirs))
    if not a or not b or a == b:
        return False
    units = [[UNITS[w] for w in kind if w in UNITS] for kind in (a, b)]
    if all(units) and all(len(u) == len(k) for u, k in zip(units, (a, b), strict=True)):
        return set(units[0]) != set(units[1]) and "unit" not in units[0] + units[1]
    return bool(a[-1] == b[-1] and set(a) - set(b) and set(b) - set(a))


def _kinds(phrase: str) -> list[str]:
    words = [w.lower() for w in _WORD.findall(re.sub(r"\\(?!text)[A-Za-z]+", " ", untexted(phrase)))]
    kinds = [s for w in words if w not in _IDLE and w not in _ADVERBS and (s := singular(w)) not in _IDLE]
    return [*kinds, "in"] if words[-1:] == ["in"] else kinds  # inches: the preposition does not stand last


def one_unit(phrase: str) -> str | None:
    """Unit of measure that a dropped phrase consists of, or None."""
    kinds = _kinds(phrase)
    return UNITS.get(kinds[0]) if len(kinds) == 1 else None


_COPULAS = frozenset("is are be a an the of that".split())  # noqa: SIM905


def spoken(text: str) -> tuple[tuple[str, ...], str]:
    r"""Words in an answer that also contains mathematics, in lower case, and the answer without them.

    >>> spoken(r"n \text{ is even}"), spoken("2xyz + 1")
    ((('even',), 'n'), ((), '2xyz + 1'))
    """
    if not re.search(r"[^\W\d_]{2}", text):
        return (), text
    found: list[str] = []

    def said(m: re.Match) -> str:
        inside = m[0] if m[1] is None else m[1]
        words = [w.lower() for w in _WORD.findall(inside)]
        if m[1] is None:
            if m[0].startswith("\\") or not _is_word(m[0]):
                return m[0]
        elif re.search(r"[\d\\^_=<>+*/]", inside) or (len(words) == 1 and len(words[0]) < 2) or not words:
            return m[0]
        found.extend(w for w in words if w not in _COPULAS)
        found.append("") if not set(words) - _COPULAS else None
        return " "

    rest = _SAID.sub(said, text)
    kept = tuple(w for w in found if w)
    return (kept or ("",) if found else ()), re.sub(r"\s+", " ", rest).strip(" ,.;:") if found else text


_SAID = re.compile(rf"{TEXT}\{{([^{{}}]*)\}}|(?<![A-Za-z_{{])\\[A-Za-z]+|(?<![\\A-Za-z_])[^\W\d_]{{2,}}(?![\w{{(])")
_SHORT = frozenset("is are if not all any odd even for the and prime real".split())  # noqa: SIM905


def _is_word(run: str) -> bool:
    """True if a run of letters is a word, not a product of variables."""
    low = run.lower()
    if low in _SHORT:
        return True
    letters = len(low) > 3 and low.isascii() and low not in MATHEMATICAL
    return (
        letters and any(c in "aeiou" for c in low) and "".join(sorted(low)) != low and (run.islower() or run.istitle())
    )
