"""Expressions that our own grammar does not hold, as objects of sympy: compared at points, without a parser."""

from fractions import Fraction

import sympy
from sympy import Float, Integer, Rational, Sum, oo, pi, sin, sqrt, symbols

from prefix_rl.rewards import expressions
from prefix_rl.rewards.expressions import _depth, expression, identical, same, same_relation, tree, within

x, y, n, k, i = symbols("x y n k i")


def test_expressions_are_compared_at_points():
    assert identical(sin(2 * x), 2 * sin(x) * sympy.cos(x), 0) is True
    assert identical(sin(2 * x), 2 * sin(x), 1e-3) is False
    assert identical(x + 2 * y, 2 * x + y, 0) is False  # the letters have values of their own
    assert identical(sqrt(x) ** 2 + y, x + y, 0) is True
    assert identical(sqrt(x**2), x, 0) is False  # they agree at the first point, which is positive
    assert identical(pi / 10**30, pi / 10**30 + pi / 10**40, 0) is False  # 10 digits of a small number
    assert identical(Rational(1, 3), Rational(333, 1000), 0.01) is False  # no decimal number, so no tolerance
    assert identical(pi, pi + Rational(1, 10**25), 0) is True  # 20 digits are asked
    assert identical(pi, pi + Rational(1, 10**15), 0) is False
    assert identical(i**2 + x, x - 1, 0) is True  # an i is the imaginary one if that makes them equal


def test_a_decimal_number_on_either_side_brings_the_tolerance():
    for one, other in ((Float("3.14"), pi), (pi, Float("3.14"))):  # 0.0016 apart
        assert identical(one, other, 0.002) is True
        assert identical(one, other, 0.001) is False
    assert identical(Float("1000.5"), Integer(1000), 0.01) is False  # 0.5: absolute above 1
    assert identical(Float("0.001"), Rational(11, 10000), 0.01) is False  # 0.0001: of the value below 1, 0.0011 * 0.01


def test_sums_are_done_before_they_are_compared():
    assert identical(Sum(k, (k, 1, n)), n * (n + 1) / 2, 0) is True
    assert identical(Sum(k, (k, 1, n)), n * (n - 1) / 2, 0) is False


def test_what_has_no_value_is_not_decided():
    assert identical(sympy.Function("f")(x), x, 0) is None
    assert identical(oo, x, 0) is None


def test_depth_is_of_brackets_that_are_open_at_once():
    assert [_depth(text) for text in ("1", "(a)[b]{c}", "((a)+[b])", r"\frac{1}{(2)}")] == [0, 1, 2, 2]


def test_texts_are_compared_by_our_own_grammar_first():
    assert same(r"\frac12", "0.5", 0) is True
    assert same("1", "2", 0) is False
    assert same("42 41", "42", 1) is False  # nobody could read that
    assert tree("f(x)") is None
    assert within("2.5", Fraction(2), Fraction(1, 2)) is True
    assert within("f(x)", Fraction(2), Fraction(1)) is within("42 41", Fraction(42), Fraction(1)) is False


def test_what_only_sympy_can_tell_is_asked_of_sympy(monkeypatch):
    made = {
        r"\foo{1}": sympy.Interval(1, 2),
        r"\foo{2}": sympy.FiniteSet(1, 2),
        r"\foo{3}": x + 1,
        r"\foo{4}": sympy.Gt(x, 1),
    }
    asked = []
    monkeypatch.setattr(expressions, "expression", made.get)
    monkeypatch.setattr(expressions, "_verify", lambda *pair: bool(asked.append(pair)) or True)
    one, _, three, four = made
    assert same(one, one, 0) is True  # of one kind
    assert same(one, three, 0) is same(three, one, 0) is True
    assert same(one, four, 0, across=True) is True
    assert same_relation(f"{one}=1", "x=1") is False  # the whole of it is nothing that sympy could read
    assert len(asked) == 4
    assert same(one, three, 0, across=False) is same(one, four, 0, across=False) is same(one, r"\foo{5}", 0) is False
    assert len(asked) == 4


def test_a_number_needs_no_parser():
    assert expression("0.5") == Float("0.5", 30)
    assert expression(r"\frac{1}{2}") == Rational(1, 2)


def test_equations_have_the_same_solutions_if_they_are_proportional():
    assert same_relation("x+y=2", "2x+2y=4")
    assert not same_relation("x=0", "x^2=0")
