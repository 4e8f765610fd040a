"""Mathematical equality of two expressions, decided by their values at a few points.

Our own small grammar (:mod:`~prefix_rl.rewards.reading`) is tried first, then math-verify (latex2sympy2). Sympy's
``simplify(a - b)`` may take minutes and may fail. Two expressions that agree to 30 digits at points chosen once at
random are almost certainly equal (Schwartz 1980), and most unequal ones differ at the first point. Expressions without
a value at a point (sets, relations, unknown functions) are compared by ``math_verify.verify``.
"""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from . import values
from .notation import number
from .reading import MAX_DEPTH, Malformed, Tree, Unread, read

if TYPE_CHECKING:
    from sympy import Expr


def same(a: str, g: str, tolerance: float, across: bool = True) -> bool:
    """True if two cleaned expressions are equal.

    Args:
        tolerance: largest difference, relative to ``min(1, |value|)``, if one expression contains a decimal number.
        across: True if a set (``(1, 2)``) may equal an inequality (``1 < x < 2``).
    """
    trees = tree(a), tree(g)
    if MALFORMED in trees:
        return False
    if all(trees) and (decided := values.same(*trees, Fraction(tolerance))) is not None:
        return decided
    from sympy import Expr

    ours, theirs = expression(a), expression(g)
    if ours is None or theirs is None:
        return False
    if isinstance(ours, Expr) and isinstance(theirs, Expr):
        decided = identical(ours, theirs, tolerance)
        if decided is not None:
            return decided
    elif not across and type(ours) is not type(theirs):
        return False
    return _verify(ours, theirs)


MALFORMED = ("malformed",)


@lru_cache(maxsize=65536)
def tree(text: str) -> Tree | None:
    """Tree of a cleaned expression; None if our grammar lacks it, :data:`MALFORMED` if no grammar could read it."""
    try:
        return read(text)
    except Malformed:
        return MALFORMED
    except Unread:
        return None


def within(text: str, value: Fraction, distance: Fraction) -> bool:
    """True if a cleaned expression without letters differs from ``value`` by at most ``distance``."""
    found = tree(text)
    return found not in (None, MALFORMED) and values.within(found, value, distance)


def same_relation(a: str, g: str) -> bool:
    """True if two equations or inequalities have the same solutions."""
    sides = [_difference(side) for side in (a, g)]
    if all(sides):
        if values.proportional(*sides):
            return True
        if all(map(values.polynomial, sides)):  # polynomials that are not proportional: x = 0 and x^2 = 0 differ
            return False
    ours, theirs = expression(a), expression(g)
    return ours is not None and theirs is not None and _verify(ours, theirs)


def _difference(equation: str) -> Tree | None:
    """Tree of ``L - R`` for the equation ``L = R``; None if a side cannot be read."""
    left, equals, right = equation.partition("=")
    sides = tree(left.strip()), tree(right.strip())
    return ("-", *sides) if equals and None not in sides and MALFORMED not in sides else None


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
    """Sympy object that math-verify reads from a cleaned expression, or None."""
    from math_verify import LatexExtractionConfig, parse
    from sympy import Float, Rational
    from sympy.core.basic import Basic
    from sympy.matrices.matrixbase import MatrixBase

    if n := number(text):
        exact = Rational(n.value.numerator, n.value.denominator)
        return Float(exact, 30) if n.decimal else exact
    if _depth(text) > MAX_DEPTH:
        return None
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # else it warns that it has no timeout
    text = _IMPLICIT.sub(r"\g<0>\\cdot ", text)
    found = parse(
        rf"\boxed{{{text}}}",
        extraction_config=(LatexExtractionConfig(boxed_match_priority=0),),
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return next((f for f in found if isinstance(f, Basic | MatrixBase)), None)


def _depth(text: str) -> int:
    depth = deepest = 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        deepest = max(deepest, depth)
    return deepest


_POINTS = ("1.3719", "-0.8371", "2.6173", "0.4519", "-1.9241", "3.1873", "-2.2917", "0.7331")


def identical(a: Expr, b: Expr, tolerance: float) -> bool | None:
    """True if two expressions agree at random points, to 30 digits (to ``tolerance`` if one contains a decimal).

    None if they cannot be evaluated: unknown functions, infinite sums.
    """
    from sympy import Float, I, Integral, Product, Rational, Sum
    from sympy.core.function import AppliedUndef

    if a == b:
        return True
    if any(e.has(AppliedUndef, Sum, Product, Integral) or not hasattr(e, "free_symbols") for e in (a, b)):
        a, b = _done(a), _done(b)
        if any(e.has(AppliedUndef, Sum, Product, Integral) for e in (a, b)):
            return None
    symbols = a.free_symbols | b.free_symbols
    names = sorted({s.name for s in symbols})  # the n of a sum and a real n are two symbols with one name
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    inexact = a.has(Float) or b.has(Float)
    agreed = 0
    for k in range(8 if symbols else 1):
        value = {n: Rational(_POINTS[(i + 3 * k) % len(_POINTS)]) + Rational(i, 97) for i, n in enumerate(names)}
        at = {s: value[s.name] for s in symbols}
        x, y = _value(a, at), _value(b, at)
        if x is None or y is None:
            continue
        allowed = tolerance * min(1, max(abs(x), abs(y))) if inexact else 10**-20 * max(abs(x), abs(y), 10**-60)
        if abs(x - y) > allowed:
            unit = next((s for s in symbols if s.name == "i"), None)
            return bool(unit) and identical(a.subs(unit, I), b.subs(unit, I), tolerance)
        agreed += 1
        if agreed == 4:
            break
    return True if agreed else None


def _done(e: Expr) -> Expr:
    try:
        return e.doit()
    except (ValueError, TypeError, NotImplementedError, AttributeError):
        return e


def _value(e: Expr, at: dict):
    """Value of an expression at a point; None if it has no finite one."""
    try:
        value = e.evalf(30, subs=at)
        return value if value.is_number and value.is_finite else None
    except (ValueError, TypeError, ArithmeticError, AttributeError, NotImplementedError):
        return None
