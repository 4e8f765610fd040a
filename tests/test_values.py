"""The grammar of expressions and their values, against literal arithmetic."""

from fractions import Fraction
from itertools import pairwise

import pytest

from prefix_rl.rewards.characters import ascii_
from prefix_rl.rewards.reading import Malformed, Unread, read
from prefix_rl.rewards.values import polynomial, proportional, same, size, within
from prefix_rl.rewards.wording import conflict, droppable, one_unit, singular, spoken

TOLERANCE = Fraction(1, 10**5)


@pytest.mark.parametrize(
    "text", ["42 41", "2 3", "1.5.2", "42'", "42_{x}", "42 ? 41", "5 +", "* 5", ")", "5!!", "3 (4 5)"]
)
def test_what_is_no_expression_is_told_apart(text):
    with pytest.raises(Malformed):
        read(text)


@pytest.mark.parametrize(
    "text", ["f(x)", r"\sum_{i=1}^n i", r"\foo{4}", "x < 3", "x'", "(1, 2)", r"\ln 2/2", r"\sin^{-1}"]
)
def test_what_the_grammar_does_not_hold_is_left_to_others(text):
    with pytest.raises(Unread):
        read(text)


@pytest.mark.parametrize(
    ("a", "b", "alike"),
    [
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}", False), ("2024!", "2024!-1", False), (r"\sqrt{2}+10^{-100}", r"\sqrt{2}", False),
        (r"\sqrt2+\sqrt3-\sqrt{5+2\sqrt6}", "0", True), ("-2^2", "-4", True), ("2^3^2", "512", True), ("10^23", "10^{23}", True), ("a/bc", r"\frac{a}{bc}", True),
        (r"2\frac{1}{3}", r"\frac73", True), (r"x\frac12", r"\frac x2", True), (r"\sin 2x \cos x", r"\sin(2x)\cos(x)", True), (r"\sin(x)^2", r"\sin^2 x", True),
        (r"\sqrt[3]{-8}", "-2", True), (r"\sqrt{-4}", "2i", True), (r"e^{i\pi}", "-1", True), ("(-1)^{2n}", "1", True), (r"\cos(n\pi)", "(-1)^n", True),
        (r"\sqrt{x^2}", "x", False), (r"\sqrt{x^2}", "|x|", True), (r"\log_2 x^2", r"2\log_2 x", True), (r"\sqrt{x-10}^2", "x-10", True), ("9^{9^{9^9}}", "1", False),
        # 1 + 10^-80 needs 266 bits: with 200 the logarithm is 0, and nothing can be divided by it
        (r"\ln(1+10^{-80})", r"\ln(1+2\cdot 10^{-80})", False), (r"\ln(1+10^{-80})^2", r"\ln(1+2\cdot 10^{-80})^2", False),
        (r"\frac{1}{\ln(1+10^{-80})}", r"\frac{2}{\ln((1+10^{-80})^2)}", True), (r"\log_{1+10^{-80}} 2", r"\frac{\ln 2}{\ln(1+10^{-80})}", True),
        (r"\frac{1}{\ln(1+10^{-80})}", r"\frac{1}{\ln(1+2\cdot 10^{-80})}", False), (r"\frac{\ln(1+10^{-900})}{\ln(10^{-900}+1)}", "1", True),
        (r"\ln 1", "0", True), (r"\frac{1}{\ln 1}", "1", None), (r"\log_1 5", "1", None), (r"\ln(1+0.1^{80})", "0", True),
        ("0.3333333", r"\frac13", True), ("0.333", r"\frac13", False), (r"\binom{n}{k}", r"\frac{n!}{k!(n-k)!}", True), (r"\lfloor 3.7 \rfloor", "3", True),
        (r"\tan^{-1} x", r"\arctan x", True), ("2|x|", "|2x|", True), ("|x||y|", "|xy|", True), ("||x|-1|-1", "|1-|x||-1", True),
        ("3.0", r"\frac{300001}{100000}", False), ("1^{10^{13}}", "1", True), ("(-1)^{10^{13}+1}", "-1", True), (r"\binom00", "1", True), (r"\binom{5000}{2500}", r"\binom{5000}{2500}-1", False),
    ],
)  # fmt: skip
def test_values_are_compared_where_both_are_real(a, b, alike):
    assert same(read(a), read(b), TOLERANCE) is alike
    assert same(read(b), read(a), TOLERANCE) is alike


GREEK = (  # noqa: SIM905
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega ell hbar"
).split()


def test_greek_letters_are_letters():
    assert all(same(read(rf"\{letter}+1"), read(rf"1+\{letter}"), TOLERANCE) for letter in GREEK)
    assert not any(same(read(rf"\{one}"), read(rf"\{other}"), TOLERANCE) for one, other in pairwise(GREEK))


def test_what_never_has_a_value_is_not_decided():
    assert same(read("1/0"), read("5"), TOLERANCE) is None
    assert same(read(r"\sqrt{x}"), read(r"\sqrt{-x}"), TOLERANCE) is None


def test_equations_are_the_same_up_to_a_factor():
    assert proportional(read("2x+4y-3"), read(r"\frac{3}{4}-\frac{1}{2}x-y"))  # -4 times the second
    assert not proportional(read("2x+4y-3"), read("2x+4y-2"))
    assert polynomial(read("x^2+3y"))
    for text in (r"\frac{1}{x}", "|x|", r"\sqrt{x}+1"):
        assert not polynomial(read(text)), text


def test_a_distance_is_between_values():
    assert within(read(r"\pi"), Fraction("3.14"), Fraction("0.002"))  # 0.00159 away
    assert not within(read(r"\pi"), Fraction("3.14"), Fraction("0.001"))
    assert not within(read("-3"), Fraction(3), Fraction(1))
    assert not within(read("x"), Fraction(3), Fraction(1))
    assert not within(read("1/0"), Fraction(3), Fraction(1))


def test_the_size_is_the_number_of_operations():
    assert [size(read(text)) for text in ("-5", r"\frac12", r"\pi/2", r"2\sqrt3", "48/2+48")] == [0, 0, 1, 2, 2]


@pytest.mark.parametrize(
    ("text", "plain"),
    [("2¹⁰", "2^{10}"), ("10⁻³", "10^{-3}"), ("x²", "x^2"), ("a₁₂", "a_{12}"), ("½", r"\frac{1}{2}"), ("‑3", "-3"), ("∆x", r"\Delta x"), ("µ", r"\mu "), ("𝟓", "5"),
     ("٤٢", "42"), ("3\u200b5", "35"), ("х", "x"), ("Ответ", "Ответ"), ("∣x∣", "|x|"), ("0.3\u0305", r"0.\overline{3}")],
)  # fmt: skip
def test_unicode_becomes_plain_mathematics(text, plain):
    assert ascii_(text) == plain


SIGNS = {
    "…⋯": r"\ldots ", "‥": "..", "´′’": "'", "″": "''", "‴": "'''", "∬": r"\iint ", "º˚°": r"^\circ ", "\u2061": "", "\u2062·•⋅": r"\cdot ", "\u2063、،": ",",
    "\u2064➕": "+", "−–—➖": "-", "±": r"\pm ", "∓": r"\mp ", "¬": r"\neg ", "×✖": r"\times ", "÷➗": r"\div ", "∕⧸": "/", "∣": "|", "⧵": r"\setminus ",
    "。": ".", "【⟦": "[", "】⟧": "]", "⟨〈": r"\langle ", "⟩〉": r"\rangle ", "≤⩽≦": r"\le ", "≥⩾≧": r"\ge ", "≈≅": r"\approx ", "∅": r"\emptyset ",
    "√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "¢": " cents", "ℝ": r"\mathbb{R}", "℃": r"^\circ C",
    "≠": r"\ne ", "≡": r"\equiv ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∠": r"\angle ", "⊥": r"\perp ", "Ω": r"\Omega ", "ϵ": r"\epsilon ",
    "ʰ": "^h", "ⱼ": "_{j}", "ⱽ": "^V", "\u3000": " ", "\u200b\ufe0f": "",
}  # fmt: skip


def test_each_sign_has_its_command():
    assert ascii_("¹⁄₂") == ascii_("¹/₂") == r"\frac{1}{2}"
    signs = {sign: command for group, command in SIGNS.items() for sign in group}
    assert {sign: ascii_(f"x{sign}y") for sign in signs} == {sign: f"x{command}y" for sign, command in signs.items()}


def test_units_and_counted_nouns_go_and_what_says_something_stays():
    for phrase in (
        r"\text{ cm}",
        "square units",
        "different ways",
        "apples",
        "even numbers",
        "miles per hour",
        "years old",
        "times",
    ):
        assert droppable(phrase, after_number=True), phrase
    for phrase in ("hundred", "remainder", "is even", "if x", "below zero", "dozen", "or more", "thirds", "squared"):
        assert not droppable(phrase, after_number=True), phrase
    assert droppable(r"\text{ units}", after_number=False)
    assert not droppable(r"\text{ even}", after_number=False)
    for phrase in ("only", "cm squared", "cm cubed", "个", "千克", "万克"):
        assert droppable(phrase, after_number=True), phrase
    for phrase in ("only positive", "apples only", "万", "倍"):
        assert not droppable(phrase, after_number=True), phrase
    assert not droppable("个", after_number=False)
    assert conflict("cm", "m")
    assert not conflict("m", "meters")


UNITS = (  # noqa: SIM905
    "mm cm dm m km in ft yd mi mg g kg oz lb l ml s min h day week month year dollar cent euro degree radian mph kph gallon "
    "ton n j w v hz pa mol k ev kj kw khz mhz nm acre pint quart cup"
).split()


def test_different_units_and_opposites_conflict():
    assert [pair for pair in pairwise(UNITS) if not conflict(*pair)] == []
    assert [one for one in UNITS if conflict(one, "units") or conflict("units", one)] == []
    assert conflict("boys", "girls")
    assert conflict("girls", "boys")
    assert not conflict("boys", "men")
    assert not conflict("", "cm")
    assert [one_unit(phrase) for phrase in ("cm", "square feet", "apples", "cm per second", "")] == [
        "cm",
        "ft",
        None,
        None,
        None,
    ]


def test_plurals():
    assert [singular(word) for word in ("flies", "pies", "glasses", "gas", "hrs", "degrees")] == [
        "fly", "pie", "glass", "gas", "hr", "degree"
    ]  # fmt: skip


def test_words_beside_mathematics_are_told_apart():
    assert spoken("x+1") == ((), "x+1")
    assert spoken(r"n \text{ if } x") == (("if",), "n x")
    assert spoken(r"n\text{ if }x") == (("if",), "n x")
    assert spoken(r"\text{A}") == ((), r"\text{A}")
    assert spoken(r"\text{x+1}") == ((), r"\text{x+1}")
