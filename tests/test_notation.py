from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.rewards.notation import clean, number, words


@pytest.mark.parametrize(
    ("answer", "cleaned"),
    [
        (r"$\left( \dfrac{3}{5},\ 8 \right]$", r"( \frac{3}{5}, 8 ]"), (r"10{,}000", "10000"), (r"15,\!000", "15000"), (r"12\,345\,678", "12345678"),
        (r"3{,}14", "3.14"), ("32, 349", "32, 349"), (r"\$18.90", "18.90"), ("−5", "-5"), ("2×3", r"2\times 3"), ("x²", "x^2"),
        ("sqrt(2)/2", r"\sqrt{2}/2"), ("2**(1/4)", "2^{1/4}"), ("288pi", r"288\pi"), ("np.sqrt(3)", r"\sqrt{3}"), ("x >= 2", r"x \le 2".replace("le", "ge")),
        (r"\text{5 cm}", "5"), (r"5\text{ cm}^2", "5"), ("5 square feet", "5"), ("5.4cents", "5.4"), ("90^\\circ", "90"), ("60 degrees", "60"),
        (r"\mathbf{1 0 2 4}", "1024"), (r"\mathbf{9 4} / \mathbf{5}", "94 / 5"), ("4:30 p.m.", "4:30 pm"), (r"\text{4:30 p.m.}", "4:30 pm"),
        (r"x_{\text{max}}", "x_{max}"), (r"k_{\mathrm{B}}", "k_{B}"), (r"R_{\odot}", "R_{odot}"), (r"\\frac{1}{2}", r"\frac{1}{2}"),
        (r"1 \text{ and } 2", "1 , 2"), ("28 percent", r"28 \%"), (r"\{\}", r"\emptyset"), (r"{5 \choose 2}", r"\binom{5}{2}"), ("= 5.", "5"),
        (r"3x", "3x"), ("3xyz", "3xyz"), (r"12\%", r"12\%"),
        ("5 trillion", r"5 \times 10^{ 12 }"), ("3 hundred", r"3 \times 10^{ 2 }"), (r"3\text{ billion}", r"3 \times 10^{ 9 }"),
        (r"2\text{ million dollars}", r"2 \times 10^{ 6 }"), (r"x \text{ plus } 1", "x + 1"), ("x minus 1", "x - 1"),
        ("2 times 3", r"2 \times 3"), ("6 divided by 3", "6 / 3"), ("6 over 3", "6 / 3"), (r"\sum\limits_{i} i", r"\sum _{i} i"),
        (r"{\cal A}", "A"), (r"x \simeq 3", r"x \approx 3"), (r"\lbrack 0, 1 \rbrack", "[ 0, 1 ]"), ("**42**", "42"), ("*42*", "42"),
        (r"\(5\)", "5"), (r"\[5\]", "5"), ('"5"', "5"), (r"5\frac{\text{m}}{\text{s}^2}", "5"), ("{{5}}", "5"),
        (r"\left\{ \begin{array}{l} x=1 \\ y=2 \end{array} \right.", r"\begin{cases} x=1 \\ y=2 \end{cases}"),
    ],
)  # fmt: skip
def test_what_means_the_same_is_written_the_same(answer, cleaned):
    assert clean(answer) == cleaned
    assert clean(cleaned) == cleaned  # and stays so


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", Fraction(12)), ("-3", Fraction(-3)), ("+5", Fraction(5)), ("1,234", Fraction(1234)), ("1,234.5", Fraction(2469, 2)),
        (".5", Fraction(1, 2)), ("5.", Fraction(5)), ("1/2", Fraction(1, 2)), ("(13)/(4)", Fraction(13, 4)), ("1,234/2", Fraction(617)),
        (r"\frac12", Fraction(1, 2)), (r"\frac{-1}{2}", Fraction(-1, 2)), (r"1\frac{4}{5}", Fraction(9, 5)), (r"-1\frac{1}{2}", Fraction(-3, 2)),
        ("1 1/2", Fraction(3, 2)), (r"1.5 \times 10^3", Fraction(1500)), (r"2 \cdot 10^{-2}", Fraction(1, 50)), ("1e3", Fraction(1000)),
        (r"25\%", Fraction(1, 4)), (r"0.\overline{3}", Fraction(1, 3)), (r"0.1\overline{6}", Fraction(1, 6)), ("{5}", Fraction(5)),
    ],
)  # fmt: skip
def test_rational_numbers_are_read_exactly(text, value):
    assert number(text).value == value


@pytest.mark.parametrize(
    "text", ["", "x", "1,2", "12, 345", "1/0", r"\frac{1}{0}", "1e9999", "1.2.3", "--1", "1" * 5000, "(1)(2)", "1 2"]
)
def test_what_is_no_rational_number_is_none(text):
    assert number(text) is None


@given(st.text(max_size=80))
def test_cleaning_twice_changes_nothing_more_than_once_would(text):
    once = clean(text)
    assert clean(clean(once)) == clean(once)


def test_words_are_words_and_a_letter_keeps_its_case():
    assert words(r"\text{(C)}") == "C"
    assert words(r"\text{No real solutions.}") == "no real solutions"
    assert words("x + 1") is words("p - q") is words("2x") is None
