r"""Translation of answers into one notation, and reading of rational numbers.

:func:`clean` removes parts without meaning (typesetting, delimiters, separators of thousands, units) and replaces
different spellings of one thing by one spelling. :func:`number` reads a rational number. The regular expressions must
not take quadratic time, because hostile texts are graded too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from .characters import ascii_
from .wording import TEXT, droppable

# --- one notation -----------------------------------------------------------------------------------------------------


def _command(*names: str) -> str:
    r"""Pattern of LaTeX commands with these names. The name must end there: ``\le`` does not match in ``\left``."""
    return rf"\\(?:{'|'.join(names)})(?![A-Za-z])"


def _word(*names: str) -> str:
    return rf"(?<![A-Za-z\\])(?:{'|'.join(names)})(?![A-Za-z])"


def _digits_in_text(m: re.Match) -> str:
    r"""Digits without their text command: ``\mathbf{1 0 2 4}`` -> ``1024``; ``\text{5 is odd}`` stays."""
    words = [w for w in re.findall(r"[A-Za-z]{2,}", m[1])]
    if words and not droppable(m[1], True):
        return m[0]
    return re.sub(r"(?<=[\d.,]) +(?=[\d.,])", "", m[1]) if "b" in m[0].split("{")[0] else f" {m[1]} "


def _subscript(m: re.Match) -> str:
    return f"_{{{(m[1] or m[2] or '').strip()}}}"


_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8}


_SCALE = r"((?:hundred|thousand|million|billion|trillion)s?\b|dozen\b|[万亿])"


def _scale(m: re.Match) -> str:
    """Factor for a word of scale: ``5 \\text{ million dollars}`` -> ``5 \\times 10^{ 6 } \\text{ dollars}``."""
    name = (m[1] or m[3]).removesuffix("s")
    factor = "12" if name == "dozen" else rf"10^{{ {_SCALES[name]} }}"
    return rf" \times {factor}" + (rf" \text{{{m[2]}}}" if m[2] and m[2].strip() else "")


def _operator(m: re.Match) -> str:
    """Sign of an operator in words; the text unchanged if it contains only one of two braces."""
    if m[0].count("{") != m[0].count("}"):
        return m[0]
    for name, sign in (("minus", "-"), ("plus", "+"), ("times", r" \times "), ("divided", "/"), ("over", "/")):
        if name in m[0]:
            return sign
    return m[0]


_PERCENT = r"(?:percent(?:age)?|per cent|pct)"
_FUNCTIONS = "sqrt|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi|infty"
_DEGREE = r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?(?:\s*[CF]\b)?(?=\s*(?:$|[,;)\]}]))"
_FACES = ("small", "medium", "[lL]arge", "LARGE", "[hH]uge", "tiny", "normalsize", "footnotesize", "bf", "rm", "it", "m?strut",  # noqa: E501
          "(?:script){1,2}style", "(?:no)?limits", "displaylimits", "hline", "no(?:number|tag|indent|break)", "cal",
          "bfseries", "itshape", "allowbreak", "newline", "linebreak", "centering", "relax", "protect")  # fmt: skip
_WRAPPERS = ("boxed", "fbox", "framebox", "underline", "underbrace", "overbrace", "ensuremath", "smash", "mathlarger", "mathsmaller",  # noqa: E501
             "math(?:op|rel|bin|ord|inner|close|open|punct|strut)", "bold", "uline", "uwave", "hl", "mark", "displaymath", "fbox")  # fmt: skip  # noqa: E501
_COLOURS = r"\\(?:text|math)?color\s*(?:\[[^\[\]{}]{0,40}\])?\s*\{[^{}]{0,40}\}|\\colorbox\s*\{[^{}]{0,40}\}|\\fcolorbox\s*\{[^{}]{0,40}\}\s*\{[^{}]{0,40}\}"  # noqa: E501
_ATTRIBUTES = r"\\(?:style|class|cssId|href|label|tag\*?|[hv]space\*?|[hv]?phantom|rule|kern|mspace|hyperref|id)\s*\{[^{}]{0,80}\}|\\bbox\s*\[[^\[\]]{0,60}\]|\\(?:[hm]?skip|kern)\s*-?[\d.]+\s*(?:pt|em|ex|mu)"  # noqa: E501
_ENVIRONMENT = r"\\(?:begin|end)\{(?:align(?:ed|at)?\*?|gathered|gather\*?|equation\*?|split|multline\*?|center|math|displaymath)\}(?:\{\d\})?"  # noqa: E501
_SYSTEM = r"\\begin\{(?:array|align(?:ed)?\*?|matrix|gathered|split|cases)\}(?:\s*\{[lcr| ]{0,9}\})?"
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # marks of HTML and Markdown
        (r"<sup>([^<>]{1,20})</sup>", r"^{\1}"),
        (r"<sub>([^<>]{1,20})</sub>", r"_{\1}"),
        (r"</?(?:b|i|strong|em|span|p|br|u|code|math|mi|mn|mo)\s*/?>", " "),
        (r"&(?:nbsp|thinsp|ensp);", " "),
        (r"&lt;", "<"),
        (r"&gt;", ">"),
        (r"&amp;", "&"),
        # sizes, colours, spaces and separators
        (_COLOURS + "|" + _ATTRIBUTES, " "),
        (rf"(?:\\left\s*)?\\(?:\{{|lbrace)\s*{_SYSTEM}", r"\\begin{cases}"),
        (r"\\end\{(?:array|align(?:ed)?\*?|matrix|gathered|split|cases)\}\s*\\right\s*\.", r"\\end{cases}"),
        (_command("left", "right", "middle", "[bB]igg?[lrm]?", "(?:display|text)style") + r"\.?", ""),
        (r"(?<=\d)(?:\s?\{\s*,\s*\}|,?\\!|,?\\,|\\[;: ]|~)\s*(?=\d{3}(?!\d))", ""),  # 10{,}000  15,\!000  1\,234
        (r"(?<=\d)'(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)\{\s*,\s*\}(?=\d)", "."),  # a decimal comma
        (r"\\q?quad\s{0,9}(?=\\?[A-Za-z]{1,8}\s{0,9}=)", " , "),  # x = 1 \quad y = 2
        (r"(?<!\\)\\[,;:!> /]|~|" + _command("q?quad", "thinspace", "enspace", "enskip", "hfill", "nobreakspace"), " "),
        (_command(*_FACES), " "),
        (rf"{TEXT}(?=\{{[^{{}}]{{0,80}}\{{)", " "),  # a type face around a formula
        (_ENVIRONMENT + "|" + _command(*_WRAPPERS), " "),
        # one name for one thing
        (_command("[dtc]frac"), r"\\frac"),
        (_command("[dt]binom"), r"\\binom"),
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
        (r"\\var(phi|epsilon|theta|rho|sigma|kappa)(?![A-Za-z])", r"\\\1 "),
        (_command("land", "wedge"), " , "),
        (rf"{TEXT}\{{\s*mod\s*\}}", "mod "),
        (rf"\(\s*(?:{_command('p?mod', 'bmod')}|mod)\b\s*([^()]{{1,40}})\)", r"\\bmod \1"),  # (mod 7)
        (_command("p?mod", "pod") + "|" + _word("mod"), r"\\bmod "),
        (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"),
        (r"\\mathbb\s+(\w)", r"\\mathbb{\1}"),
        (r"\\operatorname\*?\s*\{(\w+)\}", r"\\\1 "),
        (_word("infinity", "inf", "oo"), r"\\infty "),
        (_word("np", "math", "numpy", "sympy") + r"\.(?=[a-z])", ""),
        (rf"(?<![A-Za-z\\])({_FUNCTIONS})(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])(sin|cos|tan|cot|ln|log)(?=[xyztn](?![A-Za-z]))", r"\\\1 "),  # sinx
        (r"(?<![\d,.])(\d{1,3}),(\d{3})(?=\s*\\(?:pi|sqrt)(?![A-Za-z]))", r"\1\2"),  # 1,000\pi
        (r"\\sqrt\s*(\d{2,}(?:\.\d+)?|\d\.\d+)", r"\\sqrt{\1}"),
        (r"\\(?:mathrm|text)\{e\}", "e"),
        (r"(?<=[\w)\]}])\s*\*\*\s*(?=[\w(\-{\\])", "^"),  # a power as programs write it
        (r"\*\*|^\*{1,2}(?=\S)|\*$", ""),
        # delimiters and currencies, percent, and, degrees
        (r"(?<![A-Za-z])(?:US|CA|AU|HK|NZ) ?\\?\$", " "),
        (r"\\?\$|[€£¥₹]|" + _command("pounds", "euro"), " "),
        (r"\\[()]|\\\[(?!\s*\d+(?:pt|em|ex))|\\\]|(?<!\\)[\"`]", " "),
        (rf"{TEXT}\{{\s*{_PERCENT}\.?\s*\}}|\\?%|(?<![A-Za-z\\]){_PERCENT}\b(?!\s*point)", r"\\% "),
        (rf"{TEXT}\{{\s*,?\s*(?:and|or)\s*\}}|{_word('and', 'or')}|{_command('lor', 'vee')}", " , "),
        (_DEGREE + "|" + _command("degrees?"), " "),
        # scales, ordinals, {x : x > 2}
        (rf"(?<=[\d}}])\s*(?:{TEXT}\{{\s*{_SCALE}([^{{}}]*)\}}|{_SCALE})", _scale),
        (rf"(?<=\d)\s*\^?\s*\{{?\s*(?:{TEXT}\{{)?\s*(?:st|nd|rd|th)\b\s*\}}?\s*\}}?", ""),
        (r"\\\{\s*[A-Za-z]\s*(?:\\mid|\\colon|:|\|)\s*([^{}|:]*)\\\}", r"\1"),
        # operators in words
        (
            rf"(?:{TEXT}\{{\s*)?(?<![A-Za-z\\])(?:minus|plus|times|divided by|over)(?![A-Za-z])(?:\s*\}})?(?=\s*[\w\\({{-])",  # noqa: E501
            _operator,
        ),
        (r"(?:^|(?<=[,;(]))\s*negative\s+(?=[\d\\])", "-"),
        (r"(?<=[\dA-Za-z)}]) (squared|cubed)$", lambda m: "^2" if m[1] == "squared" else "^3"),
        (
            rf"(?<=[A-Za-z)}}])\s{{0,9}}(?:{TEXT}\{{\s{{0,9}})?(?<![A-Za-z\\])(?:is|equals)(?![A-Za-z])\s{{0,9}}(?:\}}\s{{0,9}})?"
            r"(?=-?\s?(?:[\d(]|\\(?:frac|sqrt|pi)(?![A-Za-z])))",
            " = ",
        ),
        # text: names in subscripts, bold numbers, a.m. and p.m.
        (r"_\s*\{?\s*\\([A-Za-z]+)(?![A-Za-z{])\s*\}?", r"_{\1}"),
        (rf"_\s*(?:\{{\s*{TEXT}\{{([^{{}}]*)\}}\s*\}}|{TEXT}\{{([^{{}}]*)\}})", _subscript),
        (r"\{\s*\\(?:rm|bf|it|sf|tt)\s+([^{}]*)\}", r"\\mathrm{\1}"),
        (rf"{TEXT}\{{([^{{}}]*\d[^{{}}]*)\}}", _digits_in_text),
        (rf"{TEXT}\{{([^{{}}]*\s,\s[^{{}}]*)\}}", r"\1"),  # red and blue
        (rf"(?:{TEXT}\{{\s*|(?<=\d)\s*)([ap])\.?\s?m\.?\s*(?:\}}|$)", r" \1m"),
        (
            r"(?:^|(?<=[,;(]))\s*(?:exactly|precisely|approximately|about|roughly|around|simply|a total of|in total)\s+(?=\S)",  # noqa: E501
            "",
        ),
    )
)

# Units at the end: abbreviations wherever a number ends, and longer words that a blank parts from it.
_ABBREVIATIONS = (
    r"[cmkdn]m|k?g|mg|m?l|km/h|m/s|mph|kph|ft|in|yd|mi|oz|lbs?|hrs?|min|sec|rad|deg|cents?|degrees?|feet|inch(?:es)?|"
    r"units?|dollars?|¢|m(?=\s*\^)|[\u4e00-\u9fff]{1,4}"
)
_POWER_OF_UNIT = r"(?:\s*\^\s*\{?\s*-?\d\s*\}?)?"
_PHRASE = r"\s+[A-Za-z]{2,20}\.?(?:\s+[A-Za-z/]{1,20}\.?){0,5}"
_UNITS = (
    re.compile(rf"(?<=[\d)}}\]%a-zA-Z])\s*(?:{TEXT}\{{[^{{}}]*\}}{_POWER_OF_UNIT}\s*/?\s*){{1,4}}$"),
    re.compile(
        rf"(?<=[\d)}}])\s*\\frac\s*\{{\s*{TEXT}\{{[^{{}}]*\}}\s*\}}\s*\{{\s*{TEXT}\{{[^{{}}]*\}}{_POWER_OF_UNIT}\s*\}}\s*$"
    ),
    re.compile(
        rf"(?:(?<=[\d)}}\]])|(?<=\\pi)|(?<=\\pi\s))(?:\s*(?:{_ABBREVIATIONS})|{_PHRASE}){_POWER_OF_UNIT}\s*$",
        re.IGNORECASE,
    ),
)


@lru_cache(maxsize=65536)
def cleaned(answer: str) -> tuple[str, str]:
    """Answer in one notation, and the words that were removed from its end: a unit, or the noun that is counted."""
    text = ascii_(answer.strip())
    if text.isascii() and text.isdigit():
        return text, ""
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z]{2})", r"\\", text)  # \\\\frac, escaped once too often
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text, dropped = _edges(_group_arguments(_edges(text))), []
    for _ in range(2):  # twice: another unit may stand before the one that was removed
        for units in _UNITS:
            found = units.search(text, max(len(text) - 200, 0))
            if not found or not any(c.isalnum() for c in text[: found.start()]):
                continue
            if droppable(found[0], bool(re.search(r"[\d)}\]%]\s*$", text[: found.start()]))):
                dropped.append(found[0].strip())
                text = _edges(text[: found.start()].rstrip())
    return _edges(re.sub(r"\s+", " ", text)), " ".join(reversed(dropped))


def clean(answer: str) -> str:
    r"""Answer in one notation.

    >>> clean(r"$\left(\dfrac{3}{5},\ 14{,}916\right]$"), clean("2**(1/4)"), clean(r"15\mbox{ cm}^2.")
    ('(\\frac{3}{5}, 14916]', '2^{1/4}', '15')
    """
    return cleaned(answer)[0]


def _edges(text: str) -> str:
    """Text without punctuation, line breaks and backslashes at its end, = at its start, and braces around all of it."""
    text = text.strip()
    end = len(text)
    while end:
        if text[end - 1] in ".,;: \t\n" and not text.endswith("\\,", 0, end):
            end -= 1
        elif text.endswith("\\\\", 0, end):
            end -= 2
        elif text[end - 1] == "\\" or text[end - 1] in ".,;:":
            end -= 1
        else:
            break
    text = re.sub(r"^(?:\\\\|[=:\s])+", "", text[:end].rstrip())
    if text.startswith("{") and text.endswith("}"):
        pairs = matching(text)
        inner, outer = 0, len(text) - 1
        while inner < outer and text[inner] == "{" and pairs.get(inner) == outer:
            inner, outer = inner + 1, outer - 1
        text = text[inner : outer + 1].strip() or text
    return text


def _group_arguments(text: str) -> str:
    r"""Text with braces in the place of round brackets around arguments: ``\sqrt(x)`` -> ``\sqrt{x}``, also after ^."""
    if not (found := list(_ROUND.finditer(text))):
        return text
    pairs, characters = matching(text), list(text)
    for m in found:
        if (closing := pairs.get(m.end())) is not None:
            characters[m.end()], characters[closing] = "{", "}"
            characters[m.start() : m.end()] = [m[0].strip(), *[""] * (len(m[0]) - 1)]
    return "".join(characters)


_ROUND = re.compile(r"\\sqrt\s*(?=\()|\^\s*(?=\()")


def matching(text: str) -> dict[int, int]:
    """Mapping from the offset of each opening bracket to that of its closing one. ``(0, 1]`` is a pair too."""
    pairs, opened = {}, []
    for m in _BRACKET.finditer(text):
        if m[0] in "([{":
            opened.append(m.start())
        elif opened:
            pairs[opened.pop()] = m.start()
    return pairs


_BRACKET = re.compile(r"[()\[\]{}]")


def words(text: str) -> str | None:
    r"""Words of an answer that consists only of words, in lower case; else None. A single letter keeps its case.

    >>> words(r"\text{(C)}"), words(r"\text{Evelyn}"), words("x + 1")
    ('C', 'evelyn', None)
    """
    bare = re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r" \1 ", text)
    bare = re.sub(r"(?<=[a-z])-(?=[a-z])|[(){}.,;:!'\"\s_*]+", " ", bare).strip()
    if not bare or not re.fullmatch(r"[^\W\d_]+(?: [^\W\d_]+)*", bare):
        return None
    return bare if len(bare) == 1 else bare.casefold()


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
    r"(?P<sign>-?)\s*(?P<whole>\d{0,50})\.(?P<fixed>\d{0,50})\s*(?:\\(?:overline|bar|dot)\s*\{?|\()(?P<again>\d{1,50})[})]?"
)
_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+")


@dataclass(frozen=True)
class Number:
    """Rational number. ``decimal``: it has a decimal point and is no integer; ``percent``: it has a percent sign."""

    value: Fraction
    decimal: bool = False
    percent: bool = False


@lru_cache(maxsize=65536)
def number(text: str) -> Number | None:
    r"""Rational number that a cleaned answer consists of, or None.

    >>> [str(number(t).value) for t in ("1,234", "-0.5", r"1\frac{4}{5}", "(13)/(4)", r"1.5 \times 10^3", r"33.5\%")]
    ['1234', '-1/2', '9/5', '13/4', '1500', '67/200']
    >>> number("12, 345") is None
    True
    """
    if len(text) > 3 * _MANY:
        return None
    while text[:1] in "({" and text[-1:] in ")}" and text[1:-1].strip() and matching(text).get(0) == len(text) - 1:
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
