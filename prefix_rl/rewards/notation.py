r"""Answers as people write them, brought into one notation; and the rational numbers among them.

:func:`clean` removes what carries no meaning (typesetting, delimiters, separators of thousands, units) and writes what
has one meaning in one way. :func:`number` reads a rational number. All regular expressions are linear in the length of
the text, since hostile text comes by.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

# --- one notation -----------------------------------------------------------------------------------------------------


def _each(characters: str, names: str, form: str = r"\%s ") -> dict[str, str]:
    """Each character with the name at its place, as a command."""
    return {c: form % name for c, name in zip(characters, names.split(), strict=True)}


_CHARACTERS = str.maketrans(
    dict.fromkeys("\u2212\u2013\u2014\u2012\ufe63\uff0d", "-")
    | dict.fromkeys("\u00d7\u2715\u2a2f", r"\times ")
    | dict.fromkeys("\u00b7\u22c5\u2219\u2022\u2217", r"\cdot ")
    | dict.fromkeys("\u00f7\u2215\u2044\uff0f", "/")
    | dict.fromkeys("\u00a0\u2002\u2003\u2007\u2008\u2009\u200a\u202f\u3000\t\r\n", " ")
    | dict.fromkeys("\u200b\u2060\ufeff\u200c\u200d", "")
    | dict.fromkeys("\u201c\u201d", '"')
    | dict.fromkeys("\u2018\u2019\u2032", "'")
    | dict.fromkeys("\u00b0\u00ba", r"^\circ ")
    | _each("⁰¹²³⁴⁵⁶⁷⁸⁹", "0 1 2 3 4 5 6 7 8 9", "^%s")
    | _each("０１２３４５６７８９", "0 1 2 3 4 5 6 7 8 9", "%s")
    | _each("（）［］｛｝，、；：．。％＝＋＊＜＞∣", "( ) [ ] { } , , ; : . . % = + * < > |", "%s")
    | _each("½¼¾⅓⅔⅛", "1/2 1/4 3/4 1/3 2/3 1/8", " %s")
    | _each("π∞≤⩽≥⩾≠≈≃∪∩∈±∓∅⟨⟩√", "pi infty le le ge ge ne approx approx cup cap in pm mp emptyset langle rangle sqrt")
    | _each("αβγδθλμρσφωΔ", "alpha beta gamma delta theta lambda mu rho sigma phi omega Delta")
    | _each("ℝℤℕℚℂ", "R Z N Q C", r"\mathbb{%s}")
    | {"⁻": "^-", "∛": r"\sqrt[3]"}
)

_TEXT = r"\\(?:text(?:normal|rm|bf|it|sf|tt|up|sc)?|math(?:rm|bf|it|sf|tt|normal)|[mh]box|boldsymbol|pmb|bm|emph)\s*"
"""The commands that set text in a type face."""


def _command(*names: str) -> str:
    r"""The pattern of LaTeX commands: ``\le`` is no part of ``\left``."""
    return rf"\\(?:{'|'.join(names)})(?![A-Za-z])"


def _word(*names: str) -> str:
    return rf"(?<![A-Za-z\\])(?:{'|'.join(names)})(?![A-Za-z])"


def _digits_in_text(m: re.Match) -> str:
    r"""``\mathbf{1 0 2 4}`` -> ``1024``; ``\text{4:30 p.m.}`` keeps its blanks."""
    return re.sub(r"(?<=[\d.,]) +(?=[\d.,])", "", m[1]) if "b" in m[0].split("{")[0] else f" {m[1]} "


def _subscript(m: re.Match) -> str:
    return f"_{{{(m[1] or m[2] or '').strip()}}}"


def _scale(m: re.Match) -> str:
    return rf" \times 10^{{{ {'thousand': 3, 'million': 6, 'billion': 9, 'trillion': 12}[m[1]] }}}"


_PERCENT = r"(?:percent(?:age)?|per cent|pct)"
_FUNCTIONS = "sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi|infty"
_DEGREE = r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?(?:\s*[CF]\b)?(?=\s*(?:$|[,;)\]]))"
_FACES = ("small", "medium", "large", "Large", "bf", "rm", "it", "m?strut")
_ENVIRONMENT = r"\\(?:begin|end)\{(?:aligned|align\*?|gathered|equation\*?|split|cases)\}"
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # sizes, spaces and separators
        (_command("left", "right", "middle", "[bB]igg?[lr]?", "(?:display|text)style", "(?:no)?limits") + r"\.?", ""),
        (r"(?<=\d)(?:\{\s*,\s*\}|,?\\!|,?\\,|\\[;: ]|~)\s*(?=\d{3}(?!\d))", ""),  # 10{,}000  15,\!000  1\,234
        (r"(?<=\d)\{\s*,\s*\}(?=\d)", "."),  # a decimal comma
        (r"(?<!\\)\\[,;:!> ]|~|" + _command("q?quad", "thinspace", "enspace", "nobreak", "hfill"), " "),
        (r"\\[hv]?(?:space|phantom)\{[^{}]*\}|" + _command(*_FACES), " "),
        (_ENVIRONMENT + "|" + _command("boxed", "fbox"), " "),
        # one name for one thing
        (_command("[dtc]frac"), r"\\frac"),
        (_command("leqslant", "leqq?") + "|<=|=<", r"\\le "),
        (_command("geqslant", "geqq?") + "|>=", r"\\ge "),
        (_command("neq") + r"|!=|\\not\s*=", r"\\ne "),
        (_command("lt"), "<"),
        (_command("gt"), ">"),
        (_command("approxeq", "simeq", "sim") + "|~=", r"\\approx "),
        (_command("lbrace"), r"\\{"),
        (_command("rbrace"), r"\\}"),
        (_command("[lr]?vert"), "|"),
        (_command("lbrack"), "["),
        (_command("rbrack"), "]"),
        (_command("langle"), "("),
        (_command("rangle"), ")"),
        (_command("varnothing", "empty") + r"|\\\{\s*\\\}", r"\\emptyset "),
        (_command("cdotp", "ast"), r"\\cdot "),
        (_command("dots[bcmio]?", "[lc]dots"), r"\\ldots "),
        (_command("p?mod"), r"\\bmod "),
        (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"),
        (r"\\mathbb\s+(\w)", r"\\mathbb{\1}"),
        (r"\\operatorname\*?\s*\{(\w+)\}", r"\\\1 "),
        (_word("infinity", "inf", "oo"), r"\\infty "),
        (_word("np", "math", "numpy", "sympy") + r"\.(?=[a-z])", ""),
        (rf"(?<![A-Za-z\\])({_FUNCTIONS})(?![A-Za-z])", r"\\\1 "),
        (r"\\(?:mathrm|text)\{e\}", "e"),
        (r"(?<=[\w)\]}])\s*\*\*\s*(?=[\w(\-{\\])", "^"),  # a power as programs write it
        (r"\*\*", ""),
        # delimiters and currencies, percent, and, degrees
        (r"\\?\$|[€£¥₹]|" + _command("pounds", "euro"), " "),
        (r"\\[()]|\\\[(?!\s*\d+(?:pt|em|ex))|\\\]|(?<!\\)[\"`]", " "),
        (rf"{_TEXT}\{{\s*{_PERCENT}\.?\s*\}}|\\?%|(?<![A-Za-z\\]){_PERCENT}\b(?!\s*point)", r"\\% "),
        (rf"{_TEXT}\{{\s*,?\s*(?:and|or)\s*\}}|{_word('and', 'or')}|{_command('lor', 'vee')}", " , "),
        (_DEGREE + "|" + _command("degrees?"), " "),
        # scales, ordinals, {x : x > 2}
        (rf"(?<=\d)\s*(?:{_TEXT}\{{)?\s*(thousand|million|billion|trillion)\b\s*\}}?", _scale),
        (rf"(?<=\d)\s*\^?\s*\{{?\s*(?:{_TEXT}\{{)?\s*(?:st|nd|rd|th)\b\s*\}}?\s*\}}?", ""),
        (r"\\\{\s*[A-Za-z]\s*(?:\\mid|\\colon|:|\|)\s*([^{}|:]*)\\\}", r"\1"),
        # text: names in subscripts, bold numbers, a.m. and p.m.
        (r"_\s*\{?\s*\\([A-Za-z]+)(?![A-Za-z{])\s*\}?", r"_{\1}"),
        (rf"_\s*(?:\{{\s*{_TEXT}\{{([^{{}}]*)\}}\s*\}}|{_TEXT}\{{([^{{}}]*)\}})", _subscript),
        (rf"{_TEXT}\{{([^{{}}]*\d[^{{}}]*)\}}", _digits_in_text),
        (rf"(?:{_TEXT}\{{\s*|(?<=\d)\s*)([ap])\.?\s?m\.?\s*(?:\}}|$)", r" \1m"),
    )
)

# Units at the end: abbreviations wherever a number ends, and longer words that a blank parts from it.
_ABBREVIATIONS = (
    r"[cmkdn]m|k?g|mg|m?l|km/h|m/s|mph|kph|ft|in|yd|mi|oz|lbs?|hrs?|min|sec|rad|deg|cents?|degrees?|feet|inch(?:es)?|"
    r"units?|dollars?|¢|m(?=\s*\^)|[\u4e00-\u9fff]{1,4}"
)
_POWER_OF_UNIT = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_PHRASE = r"\s+[A-Za-z]{3,20}\.?(?:\s+[A-Za-z/]{1,20}\.?){0,4}"
_UNITS = (
    re.compile(rf"(?<=[\d)}}a-z])\s*(?:{_TEXT}\{{[^{{}}]*\}}{_POWER_OF_UNIT}\s*/?\s*)+$"),
    re.compile(rf"(?<=[\d)}}])(?:\s*(?:{_ABBREVIATIONS})|{_PHRASE}){_POWER_OF_UNIT}\s*$", re.IGNORECASE),
)


@lru_cache(maxsize=65536)
def clean(answer: str) -> str:
    r"""An answer in one notation.

    >>> clean(r"$\left(\dfrac{3}{5},\ 14{,}916\right]$"), clean("2**(1/4)"), clean(r"15\mbox{ cm}^2.")
    ('(\\frac{3}{5}, 14916]', '2^{1/4}', '15')
    """
    text = answer.strip().translate(_CHARACTERS)
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # \\\\frac, escaped once too often
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _group_arguments(_edges(text))
    for _ in range(2):
        for units in _UNITS:
            shorter = units.sub("", text).rstrip()
            if any(c.isalnum() for c in shorter):
                text = _edges(shorter)
    return _edges(re.sub(r"\s+", " ", text))


def _edges(text: str) -> str:
    """Without full stops, line breaks and a lone backslash at the end, and without an equals sign at the start."""
    text = re.sub(r"(?:(?<!\\)\\(?=\s*$)|\\\\\s*$|[.,;:\s])+$", "", text.strip())
    return re.sub(r"^(?:\\\\|[=:\s])+", "", text)


def _group_arguments(text: str) -> str:
    r"""``\sqrt(x)`` -> ``\sqrt{x}`` and ``x^(1/2)`` -> ``x^{1/2}``: round brackets where LaTeX wants braces."""
    out, position = [], 0
    for m in re.finditer(r"\\sqrt\s*(?=\()|\^\s*(?=\()", text):
        closing = closing_bracket(text, m.end())
        if m.start() < position or closing is None:
            continue
        inner = text[m.end() + 1 : closing]
        out += [text[position : m.start()], m[0].strip(), "{", _group_arguments(inner), "}"]
        position = closing + 1
    return "".join([*out, text[position:]])


def closing_bracket(text: str, start: int = 0) -> int | None:
    """The offset at which the bracket that opens at ``start`` closes, whatever its kind; None if it does not."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth == 0:
            return i
    return None


def words(text: str) -> str | None:
    r"""The words of an answer that is nothing but words, in lower case; a single letter keeps its case.

    >>> words(r"\text{(C)}"), words(r"\text{Evelyn}"), words("x + 1")
    ('C', 'evelyn', None)
    """
    bare = re.sub(rf"{_TEXT}\{{([^{{}}]*)\}}", r" \1 ", text)
    bare = re.sub(r"(?<=[a-z])-(?=[a-z])|[(){}.,;:!'\"\s_*]+", " ", bare).strip()
    if not bare or not re.fullmatch(r"[^\W\d_]+(?: [^\W\d_]+)*", bare):
        return None
    return bare if len(bare) == 1 else bare.casefold()


def untexted(text: str) -> str:
    r"""Without the text commands: ``\text{odd}`` -> ``odd``."""
    return re.sub(rf"{_TEXT}\{{([^{{}}]*)\}}", r" \1 ", text).strip()


# --- rational numbers -------------------------------------------------------------------------------------------------

_MANY = 400  # digits of a number, and the exponent of a power of ten, that are still read as a number
_DIGITS = rf"(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d{{1,{_MANY}}})(?:\.\d{{0,{_MANY}}})?|\.\d{{1,{_MANY}}}"
_POWER = r"\s*(?:\\times|\\cdot|\*)\s*10\s*(?:\^\s*\{?\s*(?P<power>[-+]?\d{1,3})\s*\}?)|[eE](?P<exponent>[-+]?\d{1,3})"
_GROUPED = r"[({]?\s*(?P<%s>[-+]?\s*(?:" + _DIGITS + r"))\s*[)}]?"
_FRACTION = (
    r"\\frac\s*(?:\{\s*(?P<t1>[-+]?\s*(?:"
    + _DIGITS
    + r"))\s*\}|(?P<t2>\d))\s*(?:\{\s*(?P<b1>[-+]?\s*(?:"
    + _DIGITS
    + r"))\s*\}|(?P<b2>\d))"
)
_RATIONAL = re.compile(
    r"(?P<sign>(?:[-+]\s*)?)(?:"
    rf"(?P<whole>\d{{1,{_MANY}}})?\s*{_FRACTION}"
    rf"|(?P<mixed>\d{{1,20}})\s+(?P<mt>\d{{1,20}})\s*/\s*(?P<mb>\d{{1,20}})"
    rf"|{_GROUPED % 't3'}\s*/\s*{_GROUPED % 'b3'}"
    rf"|(?P<plain>{_DIGITS})(?:{_POWER})?"
    r")\s*(?P<percent>\\%)?"
)
_REPEATING = re.compile(
    r"(?P<sign>-?)\s*(?P<whole>\d{0,50})\.(?P<fixed>\d{0,50})\s*\\(?:overline|bar|dot)\s*\{?(?P<again>\d{1,50})\}?"
)
_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+")


@dataclass(frozen=True)
class Number:
    """A rational number, and how it was written."""

    value: Fraction
    decimal: bool = False
    percent: bool = False


@lru_cache(maxsize=65536)
def number(text: str) -> Number | None:
    r"""The rational number that a cleaned answer is, or None.

    >>> [str(number(t).value) for t in ("1,234", "-0.5", r"1\frac{4}{5}", "(13)/(4)", r"1.5 \times 10^3", r"33.5\%")]
    ['1234', '-1/2', '9/5', '13/4', '1500', '67/200']
    >>> number("12, 345") is None
    True
    """
    if len(text) > 3 * _MANY:
        return None
    while text[:1] in "({" and text[-1:] in ")}" and text[1:-1].strip() and closing_bracket(text) == len(text) - 1:
        text = text[1:-1].strip()
    if m := _REPEATING.fullmatch(text):
        whole, fixed, again = m["whole"] or "0", m["fixed"], m["again"]
        value = Fraction(int(whole + fixed + again) - int(whole + fixed), (10 ** len(again) - 1) * 10 ** len(fixed))
        return Number(-value if m["sign"] else value)
    if _SPACED.fullmatch(text):
        text = text.replace(" ", "")
    m = _RATIONAL.fullmatch(text)
    if not m:
        return None
    top, bottom = m["t1"] or m["t2"] or m["t3"] or m["mt"], m["b1"] or m["b2"] or m["b3"] or m["mb"]
    if top is not None:
        below = _plain(bottom)
        if not below:
            return None
        value = _plain(top) / below
        if whole := m["whole"] or m["mixed"]:
            value += int(whole)
        decimal = "." in top + bottom
    else:
        power = int(m["power"] or m["exponent"] or 0)
        if abs(power) > _MANY:
            return None
        value, decimal = _plain(m["plain"]) * Fraction(10) ** power, "." in m["plain"]
    value = -value if m["sign"].strip() == "-" else value
    return Number(value / 100 if m["percent"] else value, decimal and value.denominator != 1, bool(m["percent"]))


def _plain(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", ""))
