r"""Whether a completion's final answer equals the gold answer.

This module decides one sample and may take forever on a hostile one; :mod:`prefix_rl.rewards.workers` runs it in
processes that can be killed. The order of decisions:

1. :mod:`~prefix_rl.rewards.extraction` finds the final answer; math-verify never searches a completion.
2. :mod:`~prefix_rl.rewards.notation` brings both answers into one notation. Rational numbers are compared as such.
3. Lists, tuples, intervals, unions and matrices are compared part by part, an equality by the value it gives.
4. math-verify (latex2sympy2) reads what is left, the expressions. Two expressions are equal if they agree at random
   points to 30 digits (Schwartz 1980); relations and sets go to ``math_verify.verify``.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from . import extraction, notation
from .notation import Chain, Group, Number, chain, clean, number, parse, words

if TYPE_CHECKING:
    from sympy import Expr

VERSION = "2"
"""Of the decisions of this package; it changes whenever a verdict may."""

MAX_ANSWER_CHARACTERS = 1_000
"""A longer answer is wrong unless it is the gold answer to the letter: no answer of a benchmark comes near, and
parsing time grows without bound."""


class Outcome(StrEnum):
    """How one sample ended. ``timeout`` and ``crash`` are set by the worker pool."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    BAD_GOLD = "bad_gold"
    TIMEOUT = "timeout"
    CRASH = "crash"


@dataclass(frozen=True)
class Rules:
    """What people differ on. Each default is the choice of most public graders.

    Attributes:
        fallback: ``last`` takes the last formula or number of a text that marks no answer; ``none`` wants a marker.
        tolerance: a decimal and another number are equal if they differ by at most ``tolerance * min(1, |gold|)``;
            two numbers without a decimal point are equal only exactly.
        percent: ``either`` takes 25 % for 25 and for 0.25; ``exact`` for 0.25 alone.
        units: ``ignore`` drops a unit at the end; ``same`` wants the gold answer's.
        order: ``ignore`` takes 1, 2 for 2, 1; ``same`` does not. Tuples have an order in any case.
        intervals: ``either`` takes -2 < x < 7 for (-2, 7); ``same`` wants the gold answer's notation.
        decimal_comma: whether 1,5 is 1.5 where the other answer is a decimal.
    """

    fallback: Literal["last", "none"] = "last"
    tolerance: Annotated[float, Ge(0)] = 1e-5
    percent: Literal["either", "exact"] = "either"
    units: Literal["ignore", "same"] = "ignore"
    order: Literal["ignore", "same"] = "ignore"
    intervals: Literal["either", "same"] = "either"
    decimal_comma: bool = True


DEFAULT_RULES = Rules()


@dataclass(frozen=True)
class Verdict:
    """What was decided of one completion, and of which answer in it."""

    outcome: Outcome
    answer: str | None = None
    found_by: extraction.FoundBy | None = None


def final_answer(text: str, fallback: bool = False) -> str | None:
    r"""The final answer that a completion states, or None: see :func:`prefix_rl.rewards.extraction.find`.

    >>> final_answer(r"first \boxed{3}, no: \boxed{\frac{1}{2}} it is")
    '\\frac{1}{2}'
    >>> final_answer("6 * 7 = 42\n#### 42")
    '42'
    >>> final_answer("so we get 12") is None
    True
    """
    found = extraction.find(text, fallback)
    return found.answer if found else None


def grade(text: str, gold: str, rules: Rules | None = None) -> Outcome:
    r"""The outcome of one completion: :func:`judge` without its reasons.

    >>> grade(r"The answer is \boxed{0.5}", r"\frac{1}{2}")
    <Outcome.RIGHT: 'right'>
    >>> grade("I do not know", "42")
    <Outcome.NO_ANSWER: 'no_answer'>
    >>> grade(r"\boxed{42}", "")
    <Outcome.BAD_GOLD: 'bad_gold'>
    """
    return judge(text, gold, rules).outcome


def judge(text: str, gold: str, rules: Rules | None = None, start: int = 0) -> Verdict:
    r"""The outcome of one completion, its final answer and what marked it.

    Args:
        rules: :class:`Rules`; the defaults unless given.
        start: the offset in ``text`` at which the policy's own text begins. An answer that ends before it was injected,
            not given, and counts as no answer.

    >>> judge("so it is 12.", "12")
    Verdict(outcome=<Outcome.RIGHT: 'right'>, answer='12', found_by='last')
    >>> judge(r"\boxed{12}, done", "12", start=10).outcome
    <Outcome.NO_ANSWER: 'no_answer'>
    """
    rules = rules or DEFAULT_RULES
    if not parse_gold(gold):
        return Verdict(Outcome.BAD_GOLD)
    found = extraction.find(text, rules.fallback == "last")
    if found is None or (start and found.end <= start):
        return Verdict(Outcome.NO_ANSWER)
    right = equal(found.answer, gold, rules)
    if not right and found.by == "last" and "," in found.answer:  # "so $n = T + 2$, and with $T = 17, n = 19$"
        right = equal(notation.split(found.answer.strip("$"), (",",))[-1], gold, rules)
    return Verdict(Outcome.RIGHT if right else Outcome.WRONG, found.answer, found.by)


@lru_cache(maxsize=65536)
def parse_gold(gold: str) -> str:
    """The gold answer itself, out of whatever stands around it; empty if it is no answer.

    It must hold a letter, a digit or a symbol with a name, and close its braces. Words are an answer too ("even").
    """
    found = extraction.find(gold, fallback=False) if len(gold) > 80 or re.search(r"\\boxed|\\fbox|####|<answer>|answer", gold) else None
    bare = found.answer if found and found.answer else gold.strip()
    if bare.count("{") - bare.count(r"\{") != bare.count("}") - bare.count(r"\}"):
        return ""
    return bare if any(c.isalnum() or c in "∞∅" for c in bare) else ""


# --- equality ---------------------------------------------------------------------------------------------------------


def equal(answer: str, gold: str, rules: Rules | None = None) -> bool:
    r"""Whether two answers denote the same thing.

    >>> equal("(0.6, 8/3]", r"\left(\frac{3}{5},\frac{8}{3}\right]"), equal("x = 5", "5"), equal("x = 5", "y = 5")
    (True, True, False)
    """
    gold = parse_gold(gold) or gold
    if "".join(answer.split()) == "".join(gold.split()):
        return True
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return False
    return _equal(answer, gold, rules or DEFAULT_RULES)


@lru_cache(maxsize=65536)
def _equal(answer: str, gold: str, rules: Rules) -> bool:
    if rules.units == "same" and _unit(answer) != _unit(gold):
        return False
    return any(_same(a, g, rules) for g in _readings(gold) for a in _readings(answer))


def _unit(answer: str) -> str:
    """What :func:`clean` drops from the end of an answer, in lower case without typesetting."""
    kept = re.sub(r"\W|\d", "", notation.untexted(clean(answer)))
    given = re.sub(r"\\[A-Za-z]+|\W|\d", "", notation.untexted(answer))
    return given[len(kept) :].lower() if given.startswith(kept) else ""


_EQUIVALENTLY = r"\s*,?\s*\(?\s*(?:\bequivalently|\bi\.e\.|\bthat is|\bwhich (?:is|equals))(?![A-Za-z]),?\s*"


def _readings(answer: str) -> list[str]:
    r"""The ways to read an answer: ``\textbf{(C)}\ 42`` is C or 42; ``\frac13 \approx 0.33`` is either of its ends."""
    text = clean(answer)
    readings = [text]
    plain = notation.untexted(text)
    if label := re.fullmatch(r"\(?([A-F])\)?\s*[.):]\s*(\S.*)", plain):
        readings += [label[1], clean(label[2])]
    if r"\approx" in text:
        ends = [part for part in notation.split(text, (r"\approx",)) if part]
        first, last = (number((chain(e) or Chain("", e, None)).value) for e in (ends[0], ends[-1])) if len(ends) > 1 else (None, None)
        rounds = first is None or last is None or abs(first.value - last.value) * 20 <= abs(first.value)
        readings += ends[:1] + (ends[-1:] if rounds else [])
    first, said, second = re.sub(_EQUIVALENTLY, "\0", text, count=1).partition("\0")
    if said and first.strip():
        readings += [clean(first), clean(second)] if _same(clean(first), clean(second), DEFAULT_RULES) else []
    return list(dict.fromkeys(readings))


def _same(a: str, g: str, rules: Rules) -> bool:
    if _key(a) == _key(g):
        return True
    if rules.decimal_comma:
        a, g = _point(a, g), _point(g, a)
    x, y = number(a), number(g)
    if x and y:
        return _same_number(x, y, rules)
    return _same_group(parse(a), parse(g), rules)


def _key(text: str) -> str:
    """Letters that only typesetting tells apart are the same key."""
    return re.sub(r"\s+|(?<=[_^])\{(?=\w\})|(?<=[_^]\{\w)\}", "", notation.untexted(text))


def _point(text: str, other: str) -> str:
    """``1,5`` as ``1.5`` where the other answer is a decimal."""
    if re.fullmatch(r"-?\d+,\d+", text) and (n := number(other)) and n.decimal and not number(text):
        return text.replace(",", ".")
    return text


def _same_number(x: Number, y: Number, rules: Rules) -> bool:
    if rules.percent == "either" and x.percent != y.percent:
        percent, plain = (x, y) if x.percent else (y, x)
        whole = Number(percent.value * 100, percent.decimal)
        return _close(percent, plain, rules) or _close(whole, plain, rules)
    return _close(x, y, rules)


def _close(x: Number, y: Number, rules: Rules) -> bool:
    if x.value == y.value:
        return True
    if not (x.decimal or y.decimal):
        return False
    return abs(x.value - y.value) <= Fraction(rules.tolerance) * min(Fraction(1), abs(y.value))


def _same_group(a: Group, g: Group, rules: Rules) -> bool:
    if a.kind == "text" and g.kind in ("tuple", "list"):
        a = _as_group(a, g)
    elif g.kind == "text" and a.kind in ("tuple", "list"):
        g = _as_group(g, a)
    if a.kind == g.kind == "text":
        return _same_text(a.text, g.text, rules)
    if a.kind == g.kind == "matrix" or a.kind == g.kind == "row":
        return len(a.parts) == len(g.parts) and all(
            _same_group(_row(r), _row(s), rules) for r, s in zip(a.parts, g.parts, strict=True)
        )
    if a.kind == g.kind == "tuple" or {a.kind, g.kind} == {"tuple", "list"}:
        return _same_tuple(a, g, rules)
    if a.kind == g.kind and a.kind in ("list", "union"):
        return _same_parts(_named(a), _named(g), rules) or (_nested(a) != _nested(g) and _same_parts(_flat(a), _flat(g), rules))
    if "list" in (a.kind, g.kind):  # a set of one, or an element that is repeated
        several, one = (a, g) if a.kind == "list" else (g, a)
        return all(_same_group(part, one, rules) if several is a else _same_group(one, part, rules) for part in several.parts)
    return bool(a.text and g.text) and _same_expression(_member(a.text), _member(g.text), rules)


def _as_group(text: Group, other: Group) -> Group:
    """``1,234`` read as two numbers where the other answer is two numbers; ``(p, q) = (1, 2)`` as its value."""
    if "," in text.text and number(text.text):
        return parse(re.sub(r",\s*", ", ", text.text))
    named = chain(text.text)
    return parse(named.value) if named and named.name is not None else parse(_member(text.text))


def _row(group: Group) -> Group:
    return Group("row", group.parts) if group.kind == "list" else group


def _same_tuple(a: Group, g: Group, rules: Rules) -> bool:
    """An order counts. A bare list may stand for a tuple in round brackets; a set may not."""
    if len(a.parts) != len(g.parts):
        return False
    brackets = {group.brackets or "()" for group in (a, g)}
    if len(brackets) > 1 and (len(a.parts) == 2 or not brackets <= {"()", "[]"}):
        return False
    return all(_same_group(x, y, rules) for x, y in zip(a.parts, g.parts, strict=True))


def _named(group: Group) -> Group:
    """``a = 4, -8`` -> ``4, -8``, and ``p=5, q=2; p=7, q=2`` as tuples."""
    parts = group.parts
    if _nested(group):
        return Group("list", tuple(_assigned(part) for part in parts))
    named = [part.kind == "text" and (c := chain(part.text)) and c.name for part in parts]
    if named and named[0] and not any(named[1:]):
        return Group(group.kind, (parse(chain(parts[0].text).value), *parts[1:]))
    return group


def _assigned(group: Group) -> Group:
    """``p = 5, q = 2`` as the tuple of its values."""
    chains = [chain(part.text) if part.kind == "text" else None for part in group.parts]
    if chains and all(c and c.name for c in chains):
        return Group("tuple", tuple(parse(c.value) for c in chains), "()")
    return group


def _nested(group: Group) -> bool:
    return group.kind == "list" and all(part.kind == "list" for part in group.parts)


def _flat(group: Group) -> Group:
    """``p=5, q=2; p=7, q=2`` as four equalities."""
    return Group("list", tuple(p for part in group.parts for p in part.parts)) if _nested(group) else group


def _same_parts(a: Group, g: Group, rules: Rules) -> bool:
    """Two collections without an order; an element that is repeated counts once."""
    if rules.order == "same" and a.kind == "list":
        return len(a.parts) == len(g.parts) and all(_same_group(x, y, rules) for x, y in zip(a.parts, g.parts, strict=True))
    if max(len(a.parts), len(g.parts)) > 100:
        return False
    return all(any(_same_group(x, y, rules) for y in g.parts) for x in a.parts) and all(
        any(_same_group(x, y, rules) for x in a.parts) for y in g.parts
    )


# --- one expression ---------------------------------------------------------------------------------------------------


def _same_text(a: str, g: str, rules: Rules) -> bool:
    if _key(a) == _key(g):
        return True
    x, y = number(a), number(g)
    if x and y:
        return _same_number(x, y, rules)
    v, w = words(a), words(g)
    if (v and max(map(len, v.split())) > 2) or (w and max(map(len, w.split())) > 2):
        return v == w if v and w else _same_phrase(a, g)
    if v and w and len(v) == len(w) == 1:
        return v == w  # x and X, or two choices
    one, other = chain(a), chain(g)
    if one or other:
        return _same_chain(a, g, one, other, rules)
    if ":" in a and ":" in g:  # times and ratios are as they are written
        return False
    return _same_expression(_member(a), _member(g), rules)


def _same_phrase(a: str, g: str) -> bool:
    def bare(text: str) -> str:
        return re.sub(r"[^\w]+", " ", notation.untexted(text)).strip().casefold()

    return bool(bare(a)) and bare(a) == bare(g)


def _member(text: str) -> str:
    r"""``x \in S`` -> ``S``."""
    return re.sub(r"^\(?\s*[A-Za-z](?:_\{?\w+\}?)?\s*\)?\s*\\in(?![A-Za-z])\s*", "", text)


def _same_chain(a: str, g: str, one: Chain | None, other: Chain | None, rules: Rules) -> bool:
    """Equalities. A name (``x =``, ``f(x) =``) may be left out on one side; two names must be one name."""
    if one and other:
        if one.name is not None and other.name is not None:
            named = one.name and other.name and _key(one.name) != _key(other.name)
            return not named and _same(one.value, other.value, rules)
        return _same_relation(a, g)
    if one:  # the gold answer is no equality: what the chain ends in
        return _same(one.value, g, rules)
    return other.name is not None and _same(a, other.value, rules)


def _same_expression(a: str, g: str, rules: Rules) -> bool:
    from sympy import Expr

    ours, theirs = expression(a), expression(g)
    if ours is None or theirs is None:
        return False
    if isinstance(ours, Expr) and isinstance(theirs, Expr):
        if rules.percent == "either" and (a.endswith(r"\%")) != (g.endswith(r"\%")):
            bare = expression(a.removesuffix(r"\%")), expression(g.removesuffix(r"\%"))
            if None not in bare and _identical(*bare, rules.tolerance):
                return True
        decided = _identical(ours, theirs, rules.tolerance)
        if decided is not None:
            return decided
    elif rules.intervals == "same" and type(ours) is not type(theirs):
        return False
    return _verify(ours, theirs)


def _same_relation(a: str, g: str) -> bool:
    ours, theirs = expression(a), expression(g)
    return ours is not None and theirs is not None and _verify(ours, theirs)


def _verify(ours: object, theirs: object) -> bool:
    from math_verify import verify

    return any(
        verify([gold], [answer], timeout_seconds=None, allow_set_relation_comp=True)
        for gold, answer in ((theirs, ours), (ours, theirs))
    )


# latex2sympy 1.11 adds where a product of two numbers is meant: it reads 2(4) as 6.
_IMPLICIT = re.compile(r"(?:(?<![_^\d.])\d+(?:\.\d+)?|\))\s*(?=\()")


@lru_cache(maxsize=8192)
def expression(text: str):
    """What math-verify makes of a cleaned expression: a sympy object, or None."""
    from math_verify import LatexExtractionConfig, parse
    from sympy.core.basic import Basic
    from sympy.matrices.matrixbase import MatrixBase

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that we own the deadline
    text = _IMPLICIT.sub(r"\g<0>\\cdot ", text)
    found = parse(
        rf"\boxed{{{text}}}",
        extraction_config=(LatexExtractionConfig(boxed_match_priority=0),),
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return next((f for f in found if isinstance(f, Basic | MatrixBase)), None)


_POINTS = ("1.3719", "-0.8371", "2.6173", "0.4519", "-1.9241", "3.1873", "-2.2917", "0.7331")


def _identical(a: Expr, b: Expr, tolerance: float) -> bool | None:
    """Whether two expressions agree at random points, to 30 digits (``tolerance`` where one holds a decimal).

    None if they cannot be evaluated: unknown functions, sums without end.
    """
    from sympy import Float, Function, I, Integral, Product, Rational, Sum
    from sympy.core.function import AppliedUndef

    if a == b:
        return True
    if any(e.has(AppliedUndef, Sum, Product, Integral) or not hasattr(e, "free_symbols") for e in (a, b)):
        a, b = _done(a), _done(b)
        if any(e.has(AppliedUndef, Sum, Product, Integral, Function("f").func) for e in (a, b)):
            return None
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    inexact = a.has(Float) or b.has(Float)
    agreed = 0
    for k in range(4 if symbols else 1):
        at = {s: Rational(_POINTS[(i + 3 * k) % len(_POINTS)]) + Rational(i, 97) for i, s in enumerate(symbols)}
        x, y = _value(a, at), _value(b, at)
        if x is None or y is None:
            continue
        allowed = tolerance * min(1.0, abs(y)) if inexact else 10**-20 * max(1, abs(x), abs(y))
        if abs(x - y) > allowed:
            unit = next((s for s in symbols if s.name == "i"), None)
            return bool(unit) and _identical(a.subs(unit, I), b.subs(unit, I), tolerance)
        agreed += 1
    return True if agreed else None


def _done(e: Expr) -> Expr:
    try:
        return e.doit()
    except (ValueError, TypeError, NotImplementedError, AttributeError):
        return e


def _value(e: Expr, at: dict):
    """The value at a point as an mpmath number, None if there is none."""
    try:
        value = e.evalf(30, subs=at) if at else e.evalf(30)
        if not value.is_number or value.has_nan if hasattr(value, "has_nan") else not value.is_number:
            return None
        if not value.is_finite:
            return None
        return value
    except (ValueError, TypeError, ArithmeticError, AttributeError, NotImplementedError):
        return None
