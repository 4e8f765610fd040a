r"""Second, independent checker of answers. It shares no code with :mod:`prefix_rl.rewards.grading`, and uses neither
math-verify nor sympy.

It brings LaTeX into one plain form, as the grader of the MATH benchmark does (arXiv 2103.03874), reads that with a
small parser, and compares values: exact fractions if possible, else 50 digits of mpmath, with one fixed number for each
letter. The verdict is True, False, or None for notation that its grammar lacks and for matters of convention (units,
percent, rounding, the order of a bare list). Its time and memory are bounded, so it needs no process of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

import mpmath

MAX_CHARACTERS = 300
_TAIL = 20_000  # number of characters at the end of a completion that are searched
_MAX_DEPTH = 30
_MAX_BITS = 4_000  # bits of the numerator or denominator of a fraction, and size of a binary exponent
_DIGITS = 50


class _Unknown(Exception):
    """Answer that this checker cannot decide."""


def find(text: str) -> str | None:
    r"""Final answer of a completion: the last box, else the last ``####`` line, else "answer is", after the thought.

    >>> find(r"<think>\boxed{1}</think> so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    text = text.rpartition("</think>")[2][-_TAIL:]
    for place in [*re.finditer(r"\\(?:boxed|fbox)\s*\{", text)][:-9:-1]:
        depth = 1
        for end in range(place.end(), min(place.end() + 10 * MAX_CHARACTERS, len(text))):
            depth += {"{": 1, "}": -1}.get(text[end], 0) if text[end - 1] != "\\" else 0
            if not depth:
                return text[place.end() : end].strip() or None
    for marker, ending in (("####", "\n"), ("answer is", r"\.(?:\s|$)|\n")):
        if places := [*re.finditer(marker, text, re.IGNORECASE)]:
            return re.split(ending, text[places[-1].end() :], maxsplit=1)[0].strip(" :*") or None
    return None


def same(answer: str, gold: str) -> bool | None:
    r"""True if two answers mean the same, False if not, None if this checker cannot decide.

    >>> same(r"\dfrac{1}{2}", "0.5"), same("x+1", "1 + x"), same(r"(1, \sqrt{2})", "(1,2)"), same("5 cm", "5")
    (True, True, False, None)
    """
    if max(len(answer), len(gold)) > MAX_CHARACTERS:
        return None
    ours, theirs = _plain(answer), _plain(gold)
    if ours == theirs:
        return True if ours else None
    if _words(ours) and _words(theirs):
        return _words(ours) == _words(theirs) or (None if sorted(ours) == sorted(theirs) else False)
    if _letters(ours) != _letters(theirs):
        return None  # a letter on one side only: it may be a unit, or the letter of a choice
    try:
        with mpmath.workdps(_DIGITS):
            verdict = _equal(_Parser(ours).whole(), _Parser(theirs).whole())
    except (_Unknown, ArithmeticError, ValueError):
        return None
    spaced = re.sub(r"[\s,]", "", ours) == re.sub(r"[\s,]", "", theirs)
    return None if spaced and not verdict else verdict  # 1,234 is one number, and 1, 234 may be two


# --- one plain form ---------------------------------------------------------------------------------------------------


def _rows(matrix: re.Match) -> str:
    return "(" + ",".join(f"[{row.replace('&', ',')}]" for row in re.split(r"\\\\", matrix[1])) + ")"


_REWRITES = [
    (re.compile(pattern), by)
    for pattern, by in [
        (r"\\boxed\s*\{(.*)\}$", r"\1"),
        (r"\\begin\{[bpv]?matrix\}(.*?)\\end\{[bpv]?matrix\}", _rows),
        (r",\\!\s*(?=\d{3})|(?<=\d)(?:\{,\}|\\,)(?=\d{3})", ""),
        (r"\\?\$|\\[()\[\]!,;:> ]|\\q?quad|~|\\displaystyle|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])", " "),
        (r"\\(?:text(?:bf|it|rm)?|mbox|math(?:rm|bf|it)|operatorname)\s*\{([^{}]*)\}", r' "\1" '),
        (r"\\[dtc]frac", r"\\frac"),
        (r"\\frac\s*(\d)\s*(?=[\d{])", r"\\frac{\1}"),  # \frac12
        (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\\(?:cdot|times|ast)(?![a-zA-Z])|\*(?!\*)(?<!\*\*)|·|×", "*"),
        (r"\*\*", "^"),
        (r"\\div(?![a-zA-Z])|÷", "/"),
        (r"−|–", "-"),
        (r"\\(?:lbrace(?![a-z])|\{)", "⦃"),
        (r"\\(?:rbrace(?![a-z])|\})", "⦄"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°", ""),
        (r"√", r"\\sqrt "),
        (r"π", r"\\pi "),
        (r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|ln|log)(?![a-zA-Z])", r"\\\1"),
        (r"^-?\s*\d{1,3}(?:,\d{3})+(?!\d|,)", lambda m: m[0].replace(",", "")),  # in brackets it is a list
        (r"\s+", " "),
        (r'[\s,;"]*(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])[\s"]*', ","),
        (r"^(?:\"?[a-zA-Z]\"?|\([a-z](?:, ?[a-z])+\)) ?(?:\([a-z]\) ?)?(?:=|\\in(?![a-zA-Z])) ?(?=[^=]+$)", ""),
        (r"[.,;]$", ""),
    ]
]


def _plain(answer: str) -> str:
    for pattern, by in _REWRITES:
        answer = pattern.sub(by, answer).strip()
    return answer


def _words(answer: str) -> list[str]:
    """Words of an answer that consists only of words, or its one letter; empty for any other answer."""
    words = re.findall(r"[a-z]+", answer.lower()) if re.fullmatch(r"[\sa-zA-Z\"().'-]+", answer) else []
    return words if "".join(words) in ("no", *"abcdefghijklmnopqrstuvwxyz") or all(len(w) > 2 for w in words) else []


def _letters(answer: str) -> set[str]:
    r"""Letters that may be a variable or a unit. The letters e and i are numbers, and ``\pi`` is a command."""
    return set(re.findall(r"[a-zA-Zα-ωΑ-Ω\"]", re.sub(r"\\[a-zA-Z]+", "", answer))) - {"e", "i"}


# --- values -----------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|\\[a-zA-Z]+|[a-zA-Zα-ωΑ-Ω]|[-+*/^!(){}\[\]⦃⦄|,])")
_CLOSING = {"(": (")", "]"), "[": (")", "]"), "⦃": ("⦄",), "{": ("}",), "|": ("|",)}
_FUNCTIONS = {
    **{rf"\{name}": getattr(mpmath, name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "exp")},
    **{rf"\arc{name}": getattr(mpmath, f"a{name}") for name in ("sin", "cos", "tan")},
    **{r"\ln": mpmath.log, r"\log": mpmath.log10},
}
_GREEK = re.compile(r"\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|varphi|omega|sigma|rho|tau)")


class _Group(list):
    """List of values; ``kind`` is the pair of brackets around them, "" for a bare list."""

    def __init__(self, items: Iterable, kind: str = ""):
        super().__init__(items)
        self.kind = kind


class _Parser:
    """Recursive-descent parser, one method for each level: list, sum, product, power, atom."""

    def __init__(self, text: str):
        self.tokens, at = [], 0
        while match := _TOKEN.match(text, at):
            self.tokens.append(match[1])
            at = match.end()
        if at < len(text) or not self.tokens:
            raise _Unknown
        self.tokens.append("")
        self.at = self.depth = 0

    def take(self, *wanted: str) -> str:
        """Next token, which is consumed, if it is one of ``wanted``; else ""."""
        token = self.tokens[self.at]
        self.at += token in wanted
        return token if token in wanted else ""

    def need(self, *wanted: str) -> str:
        if self.tokens[self.at] not in wanted:
            raise _Unknown
        return self.take(*wanted)

    def whole(self):
        items = self.items()
        self.need("")
        return items[0] if len(items) == 1 else _Group(items)

    def items(self) -> list:
        found = [self.sum()]
        while self.take(","):
            found.append(self.sum())
        return found

    def sum(self):
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Unknown
        total = self.product()
        while sign := self.take("+", "-"):
            total = _do(sign, total, self.product())
        self.depth -= 1
        return total

    def product(self):
        if sign := self.take("+", "-"):
            return _do(sign, Fraction(0), self.product())
        value = self.power()
        while self.tokens[self.at] not in ("", "+", "-", ",", ")", "]", "}", "⦄", "|"):
            operator = self.take("*", "/")
            if not operator:  # side by side: a product, but 2\frac{1}{3} is 7/3
                mixed = self.tokens[self.at - 1].isdigit() and self.tokens[self.at] == r"\frac"
                operator = "+" if mixed else "*"
            value = _do(operator, value, self.power())
        return value

    def power(self):
        if self.take("-"):
            return _do("-", Fraction(0), self.power())
        base = self.atom()
        while self.take("!"):
            if not isinstance(base, Fraction) or base.denominator > 1 or not 0 <= base <= 200:
                raise _Unknown
            base = Fraction(mpmath.libmp.ifac(int(base)))
        return _do("^", base, self.power()) if self.take("^") else base

    def atom(self):
        token = self.tokens[self.at]
        self.at += bool(token)
        if token in _CLOSING:
            items, closing = self.items(), self.need(*_CLOSING[token])
            if len(items) > 1 or token + closing not in ("()", "{}", "||"):
                return _Group(items, token + closing)
            return items[0] if token != "|" else abs(_number(items[0]))
        if token[:1].isdigit() or token[:1] == ".":
            return Fraction(token)
        if token == r"\frac":
            above = self.atom()
            return _do("/", above, self.atom())
        if token == r"\sqrt":
            degree = Fraction(2)
            if self.take("["):
                degree = self.sum()
                self.need("]")
            return _do("^", self.atom(), _do("/", Fraction(1), degree))
        if token in _FUNCTIONS:
            return _bounded(_FUNCTIONS[token](_float(self.power())))
        if token in (r"\pi", r"\infty", "e", "i"):
            return {r"\pi": +mpmath.pi, r"\infty": mpmath.inf, "e": +mpmath.e, "i": mpmath.mpc(0, 1)}[token]
        if token.isalpha() or _GREEK.fullmatch(token):
            return mpmath.sqrt(mpmath.pi + sum(ord(c) * 31**k for k, c in enumerate(token)))  # fixed for each letter
        raise _Unknown


def _number(value):
    if isinstance(value, _Group):
        raise _Unknown
    return value


def _float(value):
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


def _bounded(value):
    if isinstance(value, Fraction):
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    else:
        bits = 0 if value == 0 or mpmath.isinf(value) else abs(mpmath.mag(value))
    if not bits <= _MAX_BITS:
        raise _Unknown
    return value


def _do(operator: str, a, b):
    """Value of ``a operator b``, as an exact fraction if possible."""
    a, b = _number(a), _number(b)
    if operator == "^":
        if not abs(_float(b)) <= 1_000:
            raise _Unknown
        if isinstance(a, Fraction) and isinstance(b, Fraction) and b.denominator == 1:
            if max(a.numerator.bit_length(), a.denominator.bit_length()) * abs(b) > _MAX_BITS:
                raise _Unknown
            return a ** int(b)
        return _bounded(mpmath.power(_float(a), _float(b)))
    if not (isinstance(a, Fraction) and isinstance(b, Fraction)):
        a, b = _float(a), _float(b)
    return _bounded(a + b if operator == "+" else a - b if operator == "-" else a * b if operator == "*" else a / b)


def _equal(a, b) -> bool | None:
    if isinstance(a, _Group) and isinstance(b, _Group):
        if a.kind != b.kind:
            return None
        if a.kind == "⦃⦄":
            return _all(_any(_equal(x, y) for y in other) for one, other in ((a, b), (b, a)) for x in one)
        in_order = _all(_equal(x, y) for x, y in zip(a, b, strict=True)) if len(a) == len(b) else False
        unordered = not a.kind and not in_order and _equal(_Group(a, "⦃⦄"), _Group(b, "⦃⦄"))
        return None if unordered else in_order
    if isinstance(a, _Group) or isinstance(b, _Group):
        (group, other) = (a, b) if isinstance(a, _Group) else (b, a)
        return None if len(group) == 1 or _any(_equal(item, other) for item in group) is not False else False
    exact = isinstance(a, Fraction) and isinstance(b, Fraction)
    if exact and (a == b or a.denominator == b.denominator == 1):
        return a == b
    a, b = _float(a), _float(b)
    size = max(abs(a), abs(b))
    if a == b or mpmath.isinf(size):
        return bool(a == b)
    if not exact and abs(a - b) <= mpmath.mpf(10) ** (10 - _DIGITS) * max(size, 1):
        return True
    return None if abs(a - b) <= size / 50 else False  # close values, such as 0.33 and 1/3: a matter of convention


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    return True if True in found else None if None in found else False


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    return False if False in found else None if None in found else True
