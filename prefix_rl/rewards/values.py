r"""Equality of two expressions by their values at a few points. Rational values are compared exactly.

Sympy's ``simplify(a - b)`` may take minutes and may fail. Two expressions that agree at points chosen once at random
are almost certainly equal (Schwartz 1980), and most unequal ones differ at the first point. A rational value is an
exact fraction of up to :data:`MAX_BITS` bits. Any other value is computed twice, the second time with four times the
digits: the difference of two equal values is rounding noise and shrinks with the precision; a true difference stays.
What is rounded to nothing, as ln(1 + 10^-80) is with 60 digits, is computed with more.

A point at which one of the two expressions is not real is skipped, unless ``i`` occurs. All work is bounded: an
expression with too large a value is equal only to an identical one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import mpmath

from .reading import Tree

MAX_BITS = 2**16
"""Bits of the numerator or denominator of a fraction; for other values, size of the binary exponent."""
_WORK = 2**23  # bits of all fractions that one evaluation may compute, intermediate values included
_PRECISIONS = (200, 800, 3_200, 12_800)  # bits; two are compared, the first two at which there is anything left


class _TooLarge(Exception):
    pass


class _NoValue(Exception):
    """Expression without a value at this point: not real, or divided by zero."""


class _RoundedAway(_NoValue):
    """Divided by what was rounded to zero, and is zero only if it is so at every precision."""


def _nothing(value: Fraction | mpmath.mpf | mpmath.mpc) -> _NoValue:
    """The reason why there is no value behind a zero."""
    return _NoValue() if isinstance(value, Fraction) else _RoundedAway()


def _real(value: Fraction | mpmath.mpf | mpmath.mpc):
    """Value as a number of mpmath."""
    return mpmath.mpf(value.numerator) / value.denominator if isinstance(value, Fraction) else value


class _Values:
    """Evaluator of trees at one point: exact fractions if rational, else rounded to mpmath's working precision."""

    def __init__(self, at: dict[str, Fraction], imaginary: bool):
        self.at, self.imaginary, self.work = at, imaginary, 0

    def of(self, tree: Tree):
        kind = tree[0]
        if kind == "n":
            return tree[1]
        if kind == "x":
            return self.at[tree[1]]
        if kind == "c":
            return {"pi": mpmath.pi, "e": mpmath.e}[tree[1]] + 0 if tree[1] != "i" else mpmath.mpc(0, 1)
        if kind == "f":
            return self.checked(self.function(tree[1], self.of(tree[2])))
        a = self.of(tree[1])
        if len(tree) == 2:
            return self.checked(self.unary(kind, a))
        return self.checked(self.binary(kind, a, self.of(tree[2])))

    def checked(self, value):
        if isinstance(value, Fraction):
            bits = max(value.numerator.bit_length(), value.denominator.bit_length())
            self.work += bits
            if bits > MAX_BITS or self.work > _WORK:
                raise _TooLarge
            return value
        if not mpmath.isfinite(value):
            raise _NoValue
        if value and abs(mpmath.mag(value)) > MAX_BITS:
            raise _TooLarge
        if not self.imaginary and isinstance(value, mpmath.mpc):
            raise _NoValue
        return value

    def unary(self, kind: str, a):
        if kind == "neg":
            return -a
        if kind == "abs":
            return abs(a)
        if isinstance(a, mpmath.mpc):
            raise _NoValue
        if kind == "!":
            if abs(a) > 6_000:
                raise _TooLarge
            if isinstance(a, Fraction) and a.denominator == 1:
                if a < 0:
                    raise _NoValue
                return Fraction(math.factorial(int(a)))
            return mpmath.gamma(_real(a) + 1)
        return Fraction(getattr(math, kind)(a)) if isinstance(a, Fraction) else getattr(mpmath, kind)(a)

    def binary(self, kind: str, a, b):
        if kind in ("^", "root"):
            if kind == "root" and not (isinstance(b, Fraction) and b):
                raise _NoValue
            return self.power(a, 1 / b if kind == "root" else b)
        if kind == "log":
            return self.logarithm(a, b)
        if kind == "binom":
            return self.binomial(a, b)
        if kind == "/" and not b:
            raise _nothing(b)
        if not (isinstance(a, Fraction) and isinstance(b, Fraction)):
            a, b = _real(a), _real(b)
        return a + b if kind == "+" else a - b if kind == "-" else a * b if kind == "*" else a / b

    def power(self, a, b):
        exact = isinstance(b, Fraction)
        if not a:
            if isinstance(b, mpmath.mpc) or b <= 0:
                raise _nothing(a)  # 0^0 and 1/0
            return a
        bits = abs(mpmath.mag(_real(a))) if not isinstance(a, Fraction) or abs(a) != 1 else 0
        if isinstance(b, Fraction) and isinstance(a, Fraction) and bits:
            bits = max(a.numerator.bit_length(), a.denominator.bit_length()) - 1
        if bits * abs(b) > MAX_BITS or (exact and abs(b) > 2**40 and abs(a) != 1):
            raise _TooLarge
        if exact and isinstance(a, Fraction):
            root = a if b.denominator == 1 else _root(a, b.denominator)
            if root is not None:
                return Fraction(1 if b.numerator % 2 == 0 else root) if abs(root) == 1 else root**b.numerator
        if not self.imaginary and a < 0 and not (exact and b.denominator % 2 and b.denominator < 100):
            raise _NoValue
        if not self.imaginary and a < 0:  # an odd root of a negative number is a real one
            return (-1) ** (b.numerator % 2) * mpmath.power(-_real(a), _real(b))
        return mpmath.power(_real(a), b.numerator if exact and b.denominator == 1 else _real(b))

    def logarithm(self, a, base):
        if isinstance(a, Fraction) and isinstance(base, Fraction) and a > 0 and base > 0 and base != 1:
            power = Fraction(round(_log2(a) / _log2(base)))
            if abs(power) < 4_096 and self.power(base, power) == a:
                return power
        below = self.function("ln", base)
        if not below:
            raise _nothing(base if base == 1 else below)
        return self.function("ln", a) / below

    def binomial(self, a, b):
        if not (isinstance(a, Fraction) and isinstance(b, Fraction) and a.denominator == b.denominator == 1):
            return mpmath.binomial(_real(a), _real(b))
        if abs(a) > 6_000:
            raise _TooLarge
        if a < 0:
            raise _NoValue
        return Fraction(math.comb(int(a), int(b))) if b >= 0 else Fraction(0)

    def function(self, name: str, a):
        if name == "ln" and not a:
            raise _nothing(a)
        a = _real(a)
        size = mpmath.mag(a) if a else 0
        if name == "ln":
            if not self.imaginary and a <= 0:
                raise _NoValue
            return mpmath.log(a)
        if name in ("arcsin", "arccos") and not self.imaginary and abs(a) > 1:
            raise _NoValue
        if size > (16 if name == "exp" or name.endswith("h") else 64):
            raise _TooLarge
        return getattr(mpmath, "a" + name[3:] if name.startswith("arc") else name)(a)


def _log2(value: Fraction) -> float:
    def of(n: int) -> float:
        shift = max(n.bit_length() - 60, 0)
        return math.log2(n >> shift) + shift

    return of(value.numerator) - of(value.denominator) or 1e-20


def _root(value: Fraction, degree: int) -> Fraction | None:
    """Real root of a fraction, if that is a fraction again; else None."""
    if degree > 64:
        return None
    above, below = _whole_root(abs(value.numerator), degree), _whole_root(value.denominator, degree)
    if above is None or below is None or (value < 0 and degree % 2 == 0):
        return None
    return Fraction(above if value > 0 else -above, below)


def _whole_root(n: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(n)
    else:
        root, high = 0, 1 << (n.bit_length() // degree + 1)
        while root < high:
            middle = (root + high + 1) // 2
            root, high = (middle, high) if middle**degree <= n else (root, middle - 1)
    return root if root**degree == n else None


# --- comparing --------------------------------------------------------------------------------------------------------

_REALS = tuple(
    Fraction(n, 997)
    for n in (
        1368,
        -835,
        2609,
        451,
        -1919,
        3178,
        719,
        -2285,
        12871,
        173,
        23451,
        -407,
        5003,
        91,
        -11003,
        7919,
        101,
        40013,
    )
)
_INTEGERS = (3, 4, 2, 5, 7, 6, 1, 9, 8, 11)
_ENOUGH = 3  # points at which two expressions with letters must agree


def _points(names: list[str]) -> Iterator[dict[str, Fraction]]:
    """Points as values of the letters: fractions of several sizes and signs, then integers (for ``(-1)^n``)."""
    for k in range(14):
        yield {n: _REALS[(5 * i + k) % len(_REALS)] + Fraction(i, 101) for i, n in enumerate(names)}
    for k in range(6):
        yield {n: Fraction(_INTEGERS[(3 * i + k) % len(_INTEGERS)]) for i, n in enumerate(names)}


def same(a: Tree, b: Tree, tolerance: Fraction) -> bool | None:
    """True if two trees are equal at all points at which both have a value; None if there is no such point.

    Args:
        tolerance: largest difference, relative to ``min(1, |value|)``, if one tree contains a decimal number.
    """
    if a == b:
        return True
    names, constants = set(), set()
    inexact = [_survey(tree, names, constants) for tree in (a, b)]
    allowed = tolerance if any(inexact) else None
    for imaginary in (False, True) if "i" not in constants and not names else ("i" in constants,):
        agreed = 0
        for at in _points(sorted(names)) if names else ({},):
            verdict = _agree(a, b, at, imaginary, allowed)
            if verdict is False:
                return False
            agreed += verdict is True
            if agreed == _ENOUGH:
                break
        if agreed:
            return True
    return None


def _survey(tree: Tree, names: set, constants: set) -> bool:
    """True if a tree contains a decimal number. Its letters and constants are added to ``names`` and ``constants``."""
    if tree[0] == "n":
        return tree[2]
    if tree[0] in ("x", "c"):
        (names if tree[0] == "x" else constants).add(tree[1])
        return False
    return any([_survey(part, names, constants) for part in tree[1:] if isinstance(part, tuple)])


def _agree(a: Tree, b: Tree, at: dict, imaginary: bool, tolerance: Fraction | None) -> bool | None:
    """True if two trees have the same value at a point; None if one of them has no value there."""
    seen: list[tuple[int, mpmath.mpf, mpmath.mpf]] = []  # precision, distance, size: where there is anything left
    nothing = False
    try:
        for precision in _PRECISIONS:
            with mpmath.workprec(precision):
                try:
                    x, y = (_Values(at, imaginary).of(tree) for tree in (a, b))
                except _RoundedAway:
                    continue
                exact = isinstance(x, Fraction) and isinstance(y, Fraction)
                if not exact:
                    x, y = _real(x), _real(y)
                apart, size = abs(x - y), max(abs(x), abs(y))
                if tolerance is not None:
                    part = tolerance if exact else _real(tolerance)
                    return bool(apart <= part * min(1, size))
                if exact:
                    return not apart
                if not size:
                    nothing = True
                    continue
                seen.append((precision, apart, size))
                if len(seen) == 2:
                    break
    except (_NoValue, ZeroDivisionError, ValueError, OverflowError, NotImplementedError):
        return None
    except _TooLarge:
        return False
    if len(seen) < 2:
        return True if nothing and not seen else None
    (low, before, size), (high, after, _) = seen
    # Noise shrinks by 2^-(high - low) from the first precision to the second, a true difference far less
    before = before or mpmath.ldexp(size, -low)
    return not after or bool(after < mpmath.ldexp(before, -(high - low) // 2))


def within(tree: Tree, value: Fraction, distance: Fraction) -> bool:
    """True if a tree without letters differs from ``value`` by at most ``distance``."""
    names: set = set()
    _survey(tree, names, set())
    try:
        with mpmath.workprec(_PRECISIONS[0]):
            return not names and bool(abs(_real(_Values({}, False).of(tree)) - _real(value)) <= _real(distance))
    except (_NoValue, _TooLarge, ZeroDivisionError, ValueError, OverflowError, NotImplementedError):
        return False


def polynomial(tree: Tree) -> bool:
    """True if a tree is a polynomial in its letters."""
    kind = tree[0]
    if kind in ("n", "x"):
        return True
    if kind in ("^", "/"):
        whole = tree[2][0] == "n" and (kind == "/" or (tree[2][1].denominator == 1 and 0 <= tree[2][1] < 20))
        return whole and polynomial(tree[1])
    return kind in ("+", "-", "*", "neg") and all(polynomial(part) for part in tree[1:])


def proportional(a: Tree, b: Tree) -> bool:
    """True if one tree is a constant times the other, so that both are zero at the same points."""
    names: set = set()
    _survey(a, names, constants := set())
    _survey(b, names, constants)
    ratios = []
    for at in _points(sorted(names)) if names else ():
        try:
            with mpmath.workprec(_PRECISIONS[0]):
                x, y = (_real(_Values(at, "i" in constants).of(tree)) for tree in (a, b))
                if x and y:
                    ratios.append(x / y)
        except (_NoValue, _TooLarge, ZeroDivisionError, ValueError, OverflowError, NotImplementedError):
            continue
        if len(ratios) == _ENOUGH:
            break
    return len(ratios) == _ENOUGH and all(abs(r - ratios[0]) <= abs(ratios[0]) * mpmath.mpf(2) ** -150 for r in ratios)


def rational(tree: Tree) -> Fraction | None:
    """Exact value of a tree without letters and constants; None if it is not rational.

    >>> two, ten = ("n", Fraction(2), False), ("n", Fraction(10), False)
    >>> rational(("^", two, ten)), rational(("root", ten, two))
    (Fraction(1024, 1), None)
    """
    names: set = set()
    if _survey(tree, names, constants := set()) or names or constants:
        return None
    try:
        with mpmath.workprec(_PRECISIONS[0]):
            value = _Values({}, False).of(tree)
    except (_NoValue, _TooLarge, ZeroDivisionError, ValueError, OverflowError, NotImplementedError):
        return None
    return value if isinstance(value, Fraction) else None


def size(tree: Tree) -> int:
    """Number of operations in a tree; a sign does not count.

    >>> size(("/", ("c", "pi"), ("n", Fraction(2), False)))
    1
    """
    if tree[0] in ("n", "x", "c"):
        return 0
    return (tree[0] != "neg") + sum(size(part) for part in tree[1:] if isinstance(part, tuple))
