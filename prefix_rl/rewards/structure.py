r"""Structure of answers: lists, tuples, intervals, unions, matrices, equalities.

The parts of an answer are read here from its brackets and separators. The meaning of a single expression is decided in
:mod:`~prefix_rl.rewards.expressions`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .notation import number, words


@dataclass(frozen=True)
class Group:
    """Answer and its parts.

    Attributes:
        kind: ``list`` (without brackets or in braces, so without an order), ``tuple`` (in round or square brackets, so
            with an order; an interval is one too), ``union``, ``matrix`` (the parts are rows), or ``text`` for a single
            expression, which has no parts.
        brackets: delimiters of a tuple.
        text: the whole answer as text.
    """

    kind: str
    parts: tuple = ()
    brackets: str = ""
    text: str = ""


_OPEN, _CLOSE = "([{", ")]}"
_TOKEN = re.compile(r"\\begin\{[^{}]*\}|\\end\{[^{}]*\}|\\[{}]|\\[A-Za-z]+|\\\\|\\.|.", re.DOTALL)
_MATRIX = re.compile(
    r"(?:\[|\()?\s*\\begin\{(?P<name>[pbBvV]?matrix|smallmatrix|array)\}(?:\s*\{[^{}]*\})?(?P<body>.*)\\end\{(?P=name)\}\s*(?:\]|\))?",
    re.DOTALL,
)
MAX_PARTS = 500


def split(text: str, separators: tuple[str, ...]) -> list[str]:
    r"""Parts of a text between separators; separators inside brackets are ignored.

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
    r"""Structure of a cleaned answer.

    >>> parse("(1,2]").brackets, [p.text for p in parse("1, 2").parts], parse("1,234").kind
    ('(]', ['1', '2'], 'text')
    """
    return _parse(text.strip(), 0)


def _choices(text: str) -> bool:
    """True if a text of words is a list of answers (``A, B``), not a sentence with a comma.

    Each part is one word, or a product of letters, as ``(x)(y)``.
    """
    parts = [(words(part) or "").split() for part in re.split("[,;]", text)]
    return len(parts) > 1 and all(len(part) == 1 or (part and max(map(len, part)) == 1) for part in parts)


def _parse(text: str, depth: int) -> Group:
    def group(kind: str, parts: list[str], brackets: str = "") -> Group:
        return Group(kind, tuple(_parse(p, depth + 1) for p in parts[:MAX_PARTS]), brackets, text)

    whole = Group("text", text=text)
    if text.startswith("]") or text.endswith("["):
        inside, brackets = _inside(text)
        return group("tuple", split(inside, (",", ";")), brackets) if brackets else whole
    if depth > 6 or number(text) or (words(text) and not _choices(text)):
        return whole
    for separators in ((";",), (",",)):
        parts = [p for p in split(text, separators) if p]
        if len(parts) > 1:
            return group("list", _spread(parts))
    if (cases := _CASES.fullmatch(text)) and r"\begin" not in cases["body"]:
        text = cases["body"]
        rows = [r.strip(" ,;") for r in split(text, (r"\\",))]
        return Group("list", tuple(_case(r, depth + 1) for r in rows[:MAX_PARTS] if r), text=text)
    if len(rows := [p.strip(" ,;") for p in split(text, (r"\\",)) if p.strip(" ,;&")]) > 1:
        return Group("list", tuple(_case(r, depth + 1) for r in rows[:MAX_PARTS]), text=text)
    if len(parts := [p for p in split(text, (r"\cup",)) if p]) > 1:
        union = group("union", parts)
        if all(part.kind == "list" or part.text.startswith(("{", r"\{")) for part in union.parts):
            return Group("list", tuple(p for part in union.parts for p in part.parts or (part,)), text=text)
        return union
    if (matrix := _MATRIX.fullmatch(text)) and r"\begin" not in matrix["body"]:
        rows = [r for r in split(matrix["body"], (r"\\",)) if r and r != r"\hline"]
        cells = (tuple(_parse(c, depth + 1) for c in split(r, ("&",))) for r in rows[:MAX_PARTS])
        return Group("matrix", tuple(Group("list", row) for row in cells), text=text)
    inside, brackets = _inside(text)
    if brackets:
        parts = [p for p in split(inside, (",", ";")) if p]
        if brackets == "{}":
            return group("list", _spread(parts)) if parts else whole
        if len(parts) > 1 and not (number(inside) and brackets == "()"):
            return group("tuple", parts, brackets)
        if len(parts) == 1 and brackets == "()":
            return _parse(parts[0], depth + 1)
    if len(parts := _spread([text])) > 1:
        return group("list", parts)
    return whole


_CASES = re.compile(r"\\begin\{(?P<name>d?r?cases)\}(?P<body>.*)\\end\{(?P=name)\}", re.DOTALL)
_IF = re.compile(r"^(?:\\text\s*\{)?\s*(?:,\s*)?(?:if|when|for|where)\b\s*(?:\})?\s*")


def _case(row: str, depth: int) -> Group:
    """Structure of one row of ``cases``: an equation, or a tuple of a value and its condition."""
    cells = [c for c in split(row, ("&",)) if c]
    while len(cells) > 1 and re.match(r"=|<|>|\\(?:le|ge|ne|in|equiv|approx)(?![A-Za-z])", cells[1]):
        cells[:2] = [f"{cells[0]} {cells[1]}"]  # the & only aligns rows at the relation, as in "x &= 1"
    if len(cells) < 2:
        return _parse(cells[0] if cells else "", depth)
    value, condition = cells[0].strip(" ,"), _IF.sub("", " ".join(cells[1:])).strip(" ,.}")
    return Group("tuple", (_parse(value, depth), _parse(condition, depth)), "()", row)


def _inside(text: str) -> tuple[str, str]:
    r"""Text inside the brackets that enclose all of it, and these brackets (``()``, ``[)``, ``{}``); "" if none do."""
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
    r"""Parts, with two in the place of each that contains a sign of both: ``a \pm b`` -> ``a + b``, ``a - b``."""
    out = []
    for part in parts:
        if part.count(r"\pm") == 1 and r"\mp" not in part:
            out += [part.replace(r"\pm", "+", 1), part.replace(r"\pm", "-", 1)]
        elif r"\pm" in part and r"\mp" in part:
            out += [part.replace(r"\pm", "+").replace(r"\mp", "-"), part.replace(r"\pm", "-").replace(r"\mp", "+")]
        else:
            out.append(part)
    return [re.sub(r"^(?P<lhs>[^=]*=\s*)?(?P<sign>[+-])\s*", _leading_sign, p) for p in out]


def _leading_sign(m: re.Match) -> str:
    return (m["lhs"] or "") + m["sign"].replace("+", "")


_SUBSCRIPT = re.compile(r"_\s*(?:\{[^{}]*\}|\\[A-Za-z]+|\w)")
_DECORATION = re.compile(
    r"\\(?:overline|vec|hat|bar|widehat|overrightarrow|math(?:bf|rm|cal)|text)(?![A-Za-z])|[{}]|\^\s*\{?-1\}?"
)
_NAME = re.compile(r"[|([]?(?:\\?[A-Za-z]+'*|[\s,:|()\]]|(?<=[(,])\s*\d+)+")
_CONSTANTS = re.compile(
    r"\\(?:frac|sqrt|sin|cos|tan|cot|sec|csc|arc(?:sin|cos|tan)|log|ln|exp|pi|cdot|times|bmod|binom|infty|circ)(?![A-Za-z])"
    r"|(?<![A-Za-z\\])[ei](?![A-Za-z])"
)
_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx)(?![A-Za-z])|[<>]")


@dataclass(frozen=True)
class Chain:
    """Ends of the equality ``lhs = ... = value``.

    ``name`` is ``lhs`` if that is only a name of the value (``x``, ``f(x)``), "" if it is a constant, else None.
    """

    lhs: str
    value: str
    name: str | None


def chain(text: str) -> Chain | None:
    """Ends of an equality or of a chain of equalities; None for any other text.

    >>> chain("x_{1} = 5 + 6 = 11")
    Chain(lhs='x_{1}', value='11', name='x_{1}')
    >>> chain("x^2 + y^2 = 1").name is None
    True
    """
    parts = split(text, ("=",))
    if len(parts) < 2 or not parts[0] or not parts[-1] or _RELATION.search(text):
        return None
    lhs, value = parts[0], parts[-1]
    stem = _DECORATION.sub("", _SUBSCRIPT.sub("", lhs))
    named = bool(_NAME.fullmatch(stem)) and any(c.isalpha() for c in stem)
    constant = not re.search(r"[A-Za-z]", _CONSTANTS.sub("", lhs))
    return Chain(lhs, value, "" if constant else re.sub(r"\s+", "", lhs) if named else None)
