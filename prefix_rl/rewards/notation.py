r"""Answers as people write them, brought into one notation and taken apart.

:func:`clean` removes what carries no meaning (typesetting, delimiters, separators of thousands) and writes what has one
meaning in one way. :func:`number` reads a rational number, :func:`parse` the structure around expressions: lists,
tuples, intervals, unions, matrices, assignments. What an expression means is left to a computer algebra system.

All regular expressions here are linear in the length of the text, since hostile text comes by.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

# --- one notation -----------------------------------------------------------------------------------------------------

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‒﹣－", "-"), **dict.fromkeys("×✕⨯", r"\times "), **dict.fromkeys("·⋅∙•∗", r"\cdot "),
        "÷": "/", "∕": "/", "⁄": "/", "√": r"\sqrt ", "∛": r"\sqrt[3]", "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ",
        "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≃": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm ",
        "∓": r"\mp ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "°": r"^\circ ", "º": r"^\circ ",
        "²": "^2", "³": "^3", "⁴": "^4", "⁵": "^5", "⁶": "^6", "⁷": "^7", "⁸": "^8", "⁹": "^9", "⁻": "^-", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "⅛": r"\frac{1}{8}", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ",
        "δ": r"\delta ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ", "φ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ",
        **dict.fromkeys("\u00a0\u2002\u2003\u2007\u2008\u2009\u200a\u202f\u3000\t\r\n", " "), **dict.fromkeys("\u200b\u2060\ufeff\u200c\u200d", ""),
        "（": "(", "）": ")", "［": "[", "］": "]", "｛": "{", "｝": "}", "，": ",", "、": ",", "；": ";", "：": ":", "．": ".", "。": ".",
        "％": "%", "＝": "=", "＋": "+", "／": "/", "＊": "*", "＜": "<", "＞": ">", "“": '"', "”": '"', "‘": "'", "’": "'", "′": "'", "|": "|", "∣": "|",
        **{chr(0xFF10 + d): str(d) for d in range(10)}, "⟨": r"\langle ", "⟩": r"\rangle ",
    }
)  # fmt: skip

_TEXT = r"\\(?:text(?:normal|rm|bf|it|sf|tt|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname\*?|boldsymbol|pmb|bm|emph|textsc)\s*"
_UNIT_WORDS = (
    "degrees?|deg|radians?|rad|dollars?|cents?|usd|euros?|pounds?|rupees?|yuan|talers?|percentage points?|"
    "(?:square|cubic|sq\\.?|cu\\.?)\\s*(?:units?|[a-z]{1,12})|units?|"
    "(?:milli|centi|kilo|deci|nano|micro)?(?:met(?:er|re)s?|grams?|lit(?:er|re)s?|joules?|watts?|volts?|seconds?|newtons?|pascals?)|"
    "[cmknd]m|kg|mg|km/h|m/s|mph|kph|ml|[cm]l|inch(?:es)?|in\\.?|feet|foot|ft\\.?|yards?|yd|miles?|mi|ounces?|oz|lbs?|gallons?|"
    "hours?|hrs?|minutes?|mins?|secs?|days?|weeks?|months?|years?|yrs?|"
    "people|persons?|students?|children|men|women|boys?|girls?|ways?|times?|points?|apples?|books?|pages?|coins?|marbles?|cups?|eggs?|"
    "terms?|digits?|numbers?|sides?|edges?|faces?|pieces?|cards?|balls?|tickets?|votes?|games?|steps?|cars?|trees?|triples?|pairs?|"
    "[\u4e00-\u9fff]{1,4}|solutions?|values?|integers?|sequences?|arrangements?|permutations?|combinations?|distinct [a-z]+"
)
_UNITS = re.compile(rf"(?<=[\d)}}])\s*(?:{_UNIT_WORDS})(?:\s*(?:per|/|of)\s*[a-z]+)?(?:\s*\^\s*\{{?\s*-?\d\s*\}}?)?\s*$", re.IGNORECASE)
_TEXT_AT_END = re.compile(rf"(?<=[\d)}}a-z])\s*(?:{_TEXT}\{{[^{{}}]*\}}\s*(?:\^\s*\{{?\s*-?\d\s*\}}?)?\s*/?\s*)+$")
_SQUARED = re.compile(r"(?<=\d)\s*(?:[cmkd]?m|ft|in|yd|mi)\s*[²³]\s*$")
_MANY = 400  # digits of a number, and the exponent of a power of ten, that are still read as a number

_RULES: tuple[tuple[re.Pattern, str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|middle|bigg?|Bigg?|bigl|bigr|Bigl|Bigr|biggl|biggr|displaystyle|textstyle|limits|nolimits|left\.|right\.)(?![A-Za-z])\.?", ""),
        (r"(?<=\d)(?:\{\s*,\s*\}|,?\\!|,\\!|,?\\,|\\;|\\:|\\ |~)\s*(?=\d{3}(?!\d))", ""),  # 10{,}000  15,\!000  1\,234
        (r"(?<=\d)\{\s*,\s*\}(?=\d)", "."),  # a decimal comma
        (r"(?<!\\)\\(?:[,;:!>]|(?:quad|qquad|hspace\{[^{}]*\}|phantom\{[^{}]*\}|thinspace|enspace|nobreak|hfill)(?![A-Za-z]))|(?<!\\)\\ |~", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"), (r"\\(?:leqslant|leq|leqq)(?![A-Za-z])|<=|=<", r"\\le "), (r"\\(?:geqslant|geq|geqq)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\neq(?![A-Za-z])|!=|\\not\s*=", r"\\ne "), (r"\\lt(?![A-Za-z])", "<"), (r"\\gt(?![A-Za-z])", ">"), (r"\\(?:approxeq|simeq|sim)(?![A-Za-z])|~=", r"\\approx "),
        (r"\\(?:lbrace|rbrace)(?![A-Za-z])", lambda m: r"\{" if m[0] == r"\lbrace" else r"\}"), (r"\\(?:lvert|rvert|vert)(?![A-Za-z])", "|"),
        (r"\\(?:lbrack)(?![A-Za-z])", "["), (r"\\(?:rbrack)(?![A-Za-z])", "]"), (r"\\(?:langle|rangle)(?![A-Za-z])", lambda m: "(" if "l" == m[0][1] else ")"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "), (r"\\(?:cdotp|ast)(?![A-Za-z])", r"\\cdot "), (r"\\dots[bcmio]?(?![A-Za-z])|\\[lc]dots(?![A-Za-z])", r"\\ldots "),
        (r"\\(?:small|medium|large|Large|bf|rm|it|tt|sf|mathstrut|strut)(?![A-Za-z])", " "),
        (r"\\begin\{(?:aligned|align\*?|gathered|equation\*?|split|cases)\}|\\end\{(?:aligned|align\*?|gathered|equation\*?|split|cases)\}", " "),
        (r"\\boxed(?![A-Za-z])|\\fbox(?![A-Za-z])", " "),
        (r"\\\$|\$|[€£¥₹]|\\pounds(?![A-Za-z])|\\euro(?![A-Za-z])|\\\(|\\\)|\\\[(?!\s*\d+(?:pt|em|ex))|\\\]|(?<!\\)[\"“”`]", " "),
        (rf"{_TEXT}\{{\s*(?:percent(?:age)?|per cent|pct)\.?\s*\}}|\\?%|(?<![A-Za-z\\])(?:percent(?:age)?|per cent|pct)\b(?!\s*point)", r"\\% "),
        (rf"{_TEXT}\{{\s*,?\s*(?:and|or)\s*\}}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:lor|vee)(?![A-Za-z])", " , "),
        (r"\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?(?:\s*[CF]\b)?\s*$|\\degrees?(?![A-Za-z])", " "),
        (r"\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?(?=\s*[,;)\]])", " "),
        (r"(?<=[\w)\]}])\s*\*\*\s*(?=[\w(\-{\\])", "^"), (r"\*\*", ""),
        (r"(?<![A-Za-z\\])(?:np|math|numpy|sympy)\.(?=[a-z])", ""),
        (r"(?<![A-Za-z\\])(sqrt|sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|ln|exp|pi|infty)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "), (r"\\mathrm\{e\}|\\text\{e\}", "e"),
        (r"_\s*(?:\{\s*)?\\([A-Za-z]+)(?![A-Za-z{])(?:\s*\})?", r"_{\1}"), (rf"_\s*\{{\s*{_TEXT}\{{\s*([^{{}}]*)\s*\}}\s*\}}|_\s*{_TEXT}\{{\s*([^{{}}]*?)\s*\}}", lambda m: "_{" + (m[1] or m[2] or "") + "}"),
        (rf"{_TEXT}\{{([^{{}}]*\d[^{{}}]*)\}}", lambda m: re.sub(r"(?<=[\d.,]) +(?=[\d.,])", "", m[1]) if "bf" in m[0] or "bm" in m[0] else f" {m[1]} "), (rf"(?:{_TEXT}\{{\s*|(?<=\d)\s*)([ap])\.?\s?m\.?\s*(?:\}}|$)", r" \1m"),
        (r"\{\s*(\w+)\s*\\choose\s*(\w+)\s*\}", r"\\binom{\1}{\2}"), (r"\\mathbb\s+(\w)", r"\\mathbb{\1}"),
        (r"\s*\\(?:mod|pmod)(?![A-Za-z])", r" \\bmod "), (r"\\operatorname\{(\w+)\}", r"\\\1 "),
    )
)  # fmt: skip


@lru_cache(maxsize=65536)
def clean(answer: str) -> str:
    r"""An answer in one notation.

    >>> clean(r"$\left(\dfrac{3}{5},\ 14{,}916\right]$"), clean("2**(1/4)"), clean(r"15\mbox{ cm}^2.")
    ('(\\frac{3}{5}, 14916]', '2^{1/4}', '15')
    """
    text = _SQUARED.sub("", answer.strip()).translate(_CHARACTERS)
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # \\\\frac, escaped once too often
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _edges(text)
    text = _group_arguments(text)
    for _ in range(2):
        shorter = _TEXT_AT_END.sub("", text).rstrip()
        shorter = _UNITS.sub("", shorter).rstrip()
        if any(c.isalnum() for c in shorter):
            text = _edges(shorter)
    return _edges(re.sub(r"\s+", " ", text))


def _edges(text: str) -> str:
    text = re.sub(r"(?:(?<!\\)\\(?=\s*$)|\\\\\s*$|[.,;:\s])+$", "", text.strip())
    return re.sub(r"^(?:\\\\|[=:\s])+", "", text)


def _group_arguments(text: str) -> str:
    r"""``\sqrt(x)`` -> ``\sqrt{x}`` and ``x^(1/2)`` -> ``x^{1/2}``: round brackets where LaTeX wants braces."""
    out, position = [], 0
    for m in re.finditer(r"\\sqrt\s*(?=\()|\^\s*(?=\()", text):
        if m.start() < position:
            continue
        closing = _closing(text, m.end())
        if closing is None or closing - m.end() > 2_000:
            continue
        inner = text[m.end() + 1 : closing]
        out += [text[position : m.start()], m[0].strip(), "{", _group_arguments(inner), "}"]
        position = closing + 1
    return "".join([*out, text[position:]])


def _closing(text: str, start: int) -> int | None:
    depth = 0
    for m in re.compile(r"[()]").finditer(text, start):
        depth += 1 if m[0] == "(" else -1
        if depth == 0:
            return m.start()
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

_DIGITS = rf"(?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d{{1,{_MANY}}})(?:\.\d{{0,{_MANY}}})?|\.\d{{1,{_MANY}}}"
_POWER = r"\s*(?:\\times|\\cdot|\*)\s*10\s*(?:\^\s*\{?\s*(?P<power>[-+]?\d{1,3})\s*\}?)|[eE](?P<exponent>[-+]?\d{1,3})"
_GROUPED = r"[({]?\s*(?P<%s>[-+]?\s*(?:" + _DIGITS + r"))\s*[)}]?"
_FRACTION = (
    r"\\frac\s*(?:\{\s*(?P<t1>[-+]?\s*(?:" + _DIGITS + r"))\s*\}|(?P<t2>\d))\s*(?:\{\s*(?P<b1>[-+]?\s*(?:" + _DIGITS + r"))\s*\}|(?P<b2>\d))"
)
_RATIONAL = re.compile(
    r"(?P<sign>(?:[-+]\s*)?)(?:"
    rf"(?P<whole>\d{{1,{_MANY}}})?\s*{_FRACTION}"
    rf"|(?P<mixed>\d{{1,20}})\s+(?P<mt>\d{{1,20}})\s*/\s*(?P<mb>\d{{1,20}})"
    rf"|{_GROUPED % 't3'}\s*/\s*{_GROUPED % 'b3'}"
    rf"|(?P<plain>{_DIGITS})(?:{_POWER})?"
    r")\s*(?P<percent>\\%)?"
)
_REPEATING = re.compile(r"(?P<sign>-?)\s*(?P<whole>\d{0,50})\.(?P<fixed>\d{0,50})\s*\\(?:overline|bar|dot)\s*\{?(?P<again>\d{1,50})\}?")
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
    while text[:1] in "({" and text[-1:] in ")}" and text[1:-1].strip() and _closes_last(text):
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


def _closes_last(text: str) -> bool:
    """Whether the bracket that opens the text closes at its end."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "({[") - (c in ")}]")
        if depth == 0:
            return i == len(text) - 1
    return False


# --- structure --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Several answers, or one that has parts.

    ``kind``: ``list`` (bare or in braces: no order), ``tuple`` (brackets: an order), ``union``, ``matrix`` (parts are
    rows), or ``text``: one expression. ``brackets`` are the delimiters of a tuple, ``text`` is the whole.
    """

    kind: str
    parts: tuple = ()
    brackets: str = ""
    text: str = ""


_OPEN, _CLOSE = "([{", ")]}"
_TOKEN = re.compile(r"\\begin\{[^{}]*\}|\\end\{[^{}]*\}|\\[{}]|\\[A-Za-z]+|\\\\|\\.|.", re.DOTALL)
_MATRIX = re.compile(
    r"(?:\[|\()?\s*\\begin\{(?P<name>[pbBvV]?matrix|smallmatrix|array)\}(?:\s*\{[^{}]*\})?(?P<body>.*)\\end\{(?P=name)\}\s*(?:\]|\))?", re.DOTALL
)
MAX_PARTS = 500


def split(text: str, separators: tuple[str, ...]) -> list[str]:
    r"""The parts between separators that stand outside of all brackets.

    >>> split(r"(1,2),\{3,4\}", (",",))
    ['(1,2)', '\\{3,4\\}']
    """
    parts, current, depth = [], [], 0
    for m in _TOKEN.finditer(text):
        token = m[0]
        if token in separators and depth == 0:
            parts.append("".join(current).strip())
            current = []
            continue
        if token in _OPEN or token == r"\{" or token.startswith(r"\begin"):
            depth += 1
        elif token in _CLOSE or token == r"\}" or token.startswith(r"\end"):
            depth = max(depth - 1, 0)
        current.append(token)
    return [*parts, "".join(current).strip()]


def parse(text: str) -> Group:
    r"""The structure of a cleaned answer.

    >>> parse("(1,2]").brackets, [p.text for p in parse("1, 2").parts], parse("1,234").kind
    ('(]', ['1', '2'], 'text')
    """
    return _parse(text.strip(), 0)


def _parse(text: str, depth: int) -> Group:
    def group(kind: str, parts: list[str], brackets: str = "") -> Group:
        return Group(kind, tuple(_parse(p, depth + 1) for p in parts[:MAX_PARTS]), brackets, text)

    whole = Group("text", text=text)
    if depth > 6 or number(text) or words(text):
        return whole
    for separators in ((";",), (",",)):
        parts = [p for p in split(text, separators) if p]
        if len(parts) > 1:
            return group("list", _spread(parts))
    if len(parts := [p for p in split(text, (r"\cup",)) if p]) > 1:
        return group("union", parts)
    if (matrix := _MATRIX.fullmatch(text)) and r"\begin" not in matrix["body"]:
        rows = [r for r in split(matrix["body"], (r"\\",)) if r and r != r"\hline"]
        cells = (tuple(_parse(c, depth + 1) for c in split(r, ("&",))) for r in rows[:MAX_PARTS])
        return Group("matrix", tuple(Group("list", row) for row in cells), text=text)
    inside, brackets = _inside(text)
    if brackets:
        parts = [p for p in split(inside, (",", ";")) if p]
        if brackets == "{}":
            return group("list", _spread(parts)) if parts and number(inside) is None else whole
        if len(parts) > 1 and not (number(inside) and brackets == "()"):
            return group("tuple", parts, brackets)
        if len(parts) == 1 and brackets == "()":
            return _parse(parts[0], depth + 1)
    if len(parts := _spread([text])) > 1:
        return group("list", parts)
    return whole


def _inside(text: str) -> tuple[str, str]:
    r"""What stands between the brackets that enclose the whole text, and the brackets: ``()``, ``[)``, ``{}``."""
    opening = next((o for o in (r"\{", "{", "(", "[", "]") if text.startswith(o)), None)
    closing = next((c for c in (r"\}", "}", ")", "]", "[") if text.endswith(c)), None)
    if not opening or not closing or len(text) < 2:
        return text, ""
    inner = text[len(opening) : len(text) - len(closing)]
    if opening == "]" or closing == "[":  # ]0,1[
        if not (opening in "][" and closing in "][") or any(c in inner for c in "[]"):
            return text, ""
        return inner, ("(" if opening == "]" else "[") + (")" if closing == "[" else "]")
    depth = 0
    for m in _TOKEN.finditer(text):
        if m[0] in _OPEN or m[0] == r"\{" or m[0].startswith(r"\begin"):
            depth += 1
        elif m[0] in _CLOSE or m[0] == r"\}" or m[0].startswith(r"\end"):
            depth -= 1
            if depth == 0 and m.end() < len(text):
                return text, ""
    if depth:
        return text, ""
    braces = {"\\{": "{", "\\}": "}"}
    kind = braces.get(opening, opening) + braces.get(closing, closing)
    return (inner, kind) if kind in ("()", "[]", "(]", "[)", "{}") else (text, "")


def _spread(parts: list[str]) -> list[str]:
    r"""``a \pm b`` as two parts."""
    out = []
    for part in parts:
        if part.count(r"\pm") == 1 and r"\mp" not in part:
            out += [part.replace(r"\pm", "+", 1), part.replace(r"\pm", "-", 1)]
        elif r"\pm" in part and r"\mp" in part:
            out += [part.replace(r"\pm", "+").replace(r"\mp", "-"), part.replace(r"\pm", "-").replace(r"\mp", "+")]
        else:
            out.append(part)
    return [re.sub(r"^(?:(?P<lhs>[^=]*=)\s*)?\+\s*", lambda m: m["lhs"] or "", p) for p in out]


_SUBSCRIPT = re.compile(r"_\s*(?:\{[^{}]*\}|\\[A-Za-z]+|\w)")
_NAME = re.compile(r"[|(]?(?:\\?[A-Za-z]+'*|[\s,:|()]|(?<=[(,])\s*\d+)+")
_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx)(?![A-Za-z])|[<>]")


@dataclass(frozen=True)
class Chain:
    """``lhs = ... = value``; ``name`` is the left side if it only names the value."""

    lhs: str
    value: str
    name: str | None


def chain(text: str) -> Chain | None:
    """An equality (or chain of them) as its ends; None for anything else.

    >>> chain("x_{1} = 5 + 6 = 11")
    Chain(lhs='x_{1}', value='11', name='x_{1}')
    >>> chain("x^2 + y^2 = 1").name is None
    True
    """
    parts = split(text, ("=",))
    if len(parts) < 2 or not parts[0] or not parts[-1] or _RELATION.search(text):
        return None
    lhs, value = parts[0], parts[-1]
    stem = _SUBSCRIPT.sub("", lhs)
    named = bool(_NAME.fullmatch(stem)) and any(c.isalpha() for c in stem)
    constant = not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+|(?<![A-Za-z])[ei](?![A-Za-z])", "", lhs))
    return Chain(lhs, value, re.sub(r"\s+", "", lhs) if named else ("" if constant else None))
