import random
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefix_rl.rewards.equality import Rules, same


@pytest.mark.parametrize(
    ("answer", "gold", "alike"),
    [
        ("0.5", "1/2", True), (".5", "0.5", True), ("1/2", r"\frac{2}{4}", True),
        (r"-\frac{1}{2}", r"\frac{-1}{2}", True), (r"\frac{1}{-2}", "-0.5", True), ("1 1/2", r"\frac{3}{2}", True),
        (r"1\frac12", "1.5", True), (r"2\dfrac{3}{4}", "11/4", True), ("3.0", "3", True), ("3.00", "3", True),
        ("03", "3", True), ("1e3", "1000", True), ("1.2e-3", "0.0012", True), (r"1.2 \times 10^{-3}", "0.0012", True),
        (r"2\cdot10^5", "200000", True), ("10^6", "1000000", True), ("2^{10}", "1024", True),
        ("1,000,000", "1000000", True), ("1 000 000", "1000000", True), (r"100\%", "1", True),
        (r"25\%", "0.25", True), (r"25\%", "1/4", True), ("12.5%", "1/8", True), ("0.25", r"25\%", True),
        (r"0.25\%", r"25\%", False), ("2.5", r"25\%", False), (r"\$1,000", "1000", True),
        ("1000 dollars", "1000", True), (r"\text{1000 dollars}", "1000", True), (r"5 \text{ cm}^2", "5", True),
        (r"5\,\mathrm{cm}", "5", True), ("5 cm", r"5\text{ cm}", True), (r"60^\circ", "60", True),
        ("60 degrees", r"60^{\circ}", True), ("60°", "60", True), (r"\frac{\pi}{3} \text{ radians}", r"\pi/3", True),
        (r"\sqrt{12}", r"2\sqrt{3}", True), (r"\sqrt{8}/2", r"\sqrt2", True),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", True), ("3^{1/2}", r"\sqrt{3}", True),
        (r"\sqrt[3]{8}", "2", True), ("sqrt(3)/2", r"\frac{\sqrt{3}}{2}", True), ("√3", r"\sqrt{3}", True),
        ("2√3", r"2\sqrt{3}", True), (r"\pi/2", r"0.5\pi", True), ("π", r"\pi", True), ("3.14", r"\pi", False),
        ("3.14159265", r"\pi", True), ("e^2", "e^{2}", True), (r"\ln 4", r"2\ln 2", True), (r"\log_2 8", "3", True),
        (r"\log_{10}(100)", "2", True), ("(1, 2)", "(1,2)", True), ("(2,1)", "(1,2)", False),
        (r"\left(1,2\right)", "(1,2)", True), ("(1,2,3)", "(1,2)", False), ("[1,2]", "(1,2)", False),
        ("[1,2)", "[1,2]", False), (r"\{1,2\}", r"\{2,1\}", True), ("1, 2", "2, 1", True), ("1 and 2", "2,1", True),
        ("1 or 2", "1,2", True), (r"x=1 \text{ or } x=2", "1,2", True), ("x=1,2", "1,2", True),
        ("x_1=1, x_2=2", "1,2", True), ("1,2,3", "1,2", False), ("1,2", "1,2,3", False), (r"\pm 3", "3,-3", True),
        (r"x=\pm3", "-3, 3", True), (r"1\pm\sqrt{2}", r"1+\sqrt2, 1-\sqrt2", True),
        (r"\frac{1 \pm \sqrt{5}}{2}", r"\frac{1+\sqrt5}{2},\frac{1-\sqrt5}{2}", True), ("3", r"\pm 3", False),
        ("x=5", "5", True), ("5", "x=5", True), ("x = 5", "y = 5", False), ("f(x)=x+1", "x+1", True),
        ("y=x+1", "y=1+x", True), ("y=x+1", "y=x+2", False), (r"S = 4\pi", r"4\pi", True),
        (r"x \in [1,2]", "[1,2]", True), ("n=2k", "2k", True), ("x^2+2x+1", "(x+1)^2", True),
        ("x^2-1", "(x-1)(x+1)", True), ("x^2+1", "x^2-1", False), ("2x", "x+x", True), (r"\frac{x}{2}", "0.5x", True),
        ("2(x+y)", "2x+2y", True), ("a b", "b a", True), ("ab", "ba", True), ("xy", "x y", True), ("x", "X", False),
        (r"\sin^2 x", r"1-\cos^2 x", True), (r"\sin(2x)", r"2\sin x\cos x", True), ("|x|", "x", False),
        (r"\sqrt{x^2}", "x", False), (r"(-\infty, 3)", r"(-\infty,3)", True), (r"(-\infty,3]", r"(-\infty,3)", False),
        (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)", True), ("(-inf, 3)", r"(-\infty,3)", True),
        ("x<3", r"(-\infty,3)", True), ("x > 3", "3 < x", True), (r"x \ge 3", r"x \geq 3", True),
        (r"x \ge 3", "x > 3", False), ("1<x<3", "(1,3)", True), (r"1 \le x < 3", "[1,3)", True),
        (r"x\leq 1", "x<=1", True), (r"\text{A}", "A", True), ("(A)", "A", True), ("A", "B", False),
        (r"\textbf{(B)}\ 12", "12", True), (r"\textbf{(B)}\ 12", "B", True), (r"\mathrm{(D)}", "D", True),
        ("B. 12", "B", True), ("B) 12", "12", True), ("a", "A", False), ("yes", "Yes", True),
        (r"\text{Yes}", "yes", True), ("yes", "no", False), ("True", "true", True), ("even", r"\text{even}", True),
        ("Monday", "monday", True), ("isosceles triangle", r"\text{isosceles triangle}", True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}", True),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}", False),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 2/2 \\ 2 \end{pmatrix}", True),
        (r"\begin{pmatrix} -1/2 \\ \sqrt{4} \end{pmatrix}", r"\begin{pmatrix} -\frac{1}{2} \\ 2 \end{pmatrix}", True),
        ("2+3i", "3i+2", True), ("2+3i", "2-3i", False), ("i^2", "-1", True), (r"e^{i\pi}", "-1", True),
        ("1+i", "1 + i", True), (r"\frac{1}{1+i}", r"\frac{1-i}{2}", True), ("5!", "120", True),
        (r"\binom{5}{2}", "10", True), ("C(5,2)", "10", False), (r"{5 \choose 2}", "10", True),
        (r"\frac{5!}{2!3!}", "10", True), (r"0.\overline{3}", "1/3", True), ("0.333", "1/3", False),
        ("0.3333333", "1/3", True), ("1.41421356", r"\sqrt{2}", True), (r"0.1\overline{6}", "1/6", True),
        (r"0.3\dot{3}", "1/3", True), ("1010_2", "1010_{2}", True), ("1010_2", "1010", True),
        ("1011_2", "1010_2", False), ("12_{10}", "12", True), ("10:30", "10:30", True),
        (r"10:30 \text{ a.m.}", "10:30 a.m.", True), ("10:30 a.m.", "10:30 p.m.", False), ("3:4", "3:4", True),
        ("3 : 4", "3:4", True), ("3:4", "4:3", False), (r"\emptyset", r"\varnothing", True),
        (r"\{\}", r"\emptyset", True), (r"\infty", "∞", True), (r"-\infty", r"\infty", False),
        (r"\mathbb{R}", r"\mathbb R", True), (r"(-\infty,\infty)", r"\mathbb{R}", True), ("x^{2}", "x^2", True),
        ("x_{1}", "x_1", True), (r"\frac{a}{b}", "a/b", True), ("a^{-1}", "1/a", True),
        (r"\frac{2}{3}x", r"\frac{2x}{3}", True), ("n(n+1)/2", r"\frac{n(n+1)}{2}", True), ("n!", "n!", True),
        ("2^n", "2^{n}", True), ("2^{n+1}", r"2\cdot2^n", True), ("(n-1)!", "(n-1)!", True),
        ("x^2+y^2=1", "y^2+x^2=1", True), ("x+y=1", "y=1-x", True), ("2x+2y=2", "x+y=1", True),
        ("x+y=1", "x+y=2", False), ("y = 3x - 2", "y=-2+3x", True), ("3x-y=2", "y=3x-2", True),
        (r"\frac{3}{4} \approx 0.75", "0.75", True), (r"\sqrt{2} \approx 1.414", r"\sqrt{2}", True),
        ("7 = 7.0", "7", True), ("2+2=4", "4", True), ("1+1=3", "2", False), ("-0", "0", True), ("+5", "5", True),
        ("- 5", "-5", True), ("(5)", "5", True), ("{5}", "5", True), ("5.", "5", True), ("5,", "5", True),
        ("$5$", "5", True), (r"\(5\)", "5", True), (r"\[5\]", "5", True), ("**5**", "5", True), ("5\\\\", "5", True),
        (r"\boxed{5}", "5", True), (r"5 \qquad", "5", True), ("12", "21", False), ("1.5", "1.05", False),
        ("100", "1000", False), ("99", "100", False), ("0.1", "0.01", False), ("10001", "10000", False),
        ("123456789", "123456788", False), ("0.000001", "0.000002", False), ("1e-10", "2e-10", False),
        ("100,200", "100, 200", True), ("(100,200)", "(100, 200)", True), ("1,2,3,4", "(1,2,3,4)", True),
        ("2,1,3,4", "(1,2,3,4)", False), ("p - q", "-q+p", True), ("p-q", "q-p", False),
        (r"\frac{p-q}{2}", r"\frac{q-p}{-2}", True), (r"\cos\frac{\pi}{3}", "1/2", True),
        (r"\tan 45^\circ", "1", False), (r"\lfloor 3.7 \rfloor", "3", True), (r"\max(2,3)", "3", True),
        ("3x^2", "3x^{2}", True), ("3 x ^ 2", "3x^2", True), ("3*x**2", "3x^2", True), ("x(x+1)", "x^2+x", True),
        ("f(x)=2x, g(x)=3x", "g(x)=3x, f(x)=2x", True), ("a=1,b=2", "b=2,a=1", True), ("a=1,b=2", "a=2,b=1", False),
        ("a=1, b=2", "(1,2)", True), ("(a,b)=(1,2)", "(1,2)", True), ("(a,b)=(1,2)", "(2,1)", False),
        (r"\frac{1}{2}+\frac{1}{3}", r"\frac{5}{6}", True), ("7/3", r"2\frac{1}{3}", True),
        (r"\frac{22}{7}", r"\pi", False), ("six", "6", False), ("1, 1, 2", "1,2", True),
        (r"\text{no solution}", "no solution", True),
        (r"\text{No real solutions}", r"\text{no real solutions}", True), (r"\text{none}", "None", True),
        (r"\left\{1,2,3\right\}", "1,2,3", True), (r"\{x | x > 2\}", r"(2,\infty)", True),
        (r"2 \text{ or } 3", "3,2", True), (r"8 \text{ and } 12", "8,12", True), ("12 (dollars)", "12", False),
        (r"-\frac{\sqrt{3}}{2}", r"-\sqrt{3}/2", True), (r"\frac{-\sqrt{3}}{2}", r"-\frac{\sqrt{3}}{2}", True),
        (r"\frac{\sqrt{3}}{2}", r"-\frac{\sqrt{3}}{2}", False), (r"\sqrt{3}+\sqrt{2}", r"\sqrt{2}+\sqrt{3}", True),
        (r"\sqrt{5}", r"\sqrt{6}", False), (r"6\sqrt{2}", r"2\sqrt{18}", True),
        (r"\dfrac{x^2+1}{x}", r"x+\frac1x", True), (r"x^{\frac12}", r"\sqrt{x}", True),
        (r"\frac{1}{x^2}", "x^{-2}", True), ("e^x", r"\exp(x)", True), (r"4 \times 5", "20", True),
        (r"4 \cdot 5", "20", True), ("4*5", "20", True), (r"20 \div 4", "5", True), ("20/4", "5", True),
        ("4×5", "20", True), (r"\frac{9}{4}\pi", r"\frac{9\pi}{4}", True), (r"2.25\pi", r"\frac{9\pi}{4}", True),
        ("9π/4", r"\frac{9\pi}{4}", True), ("y=2x+1, y=-2x+1", r"y=\pm 2x+1", True), (r"k \geq 2", r"k \ge 2", True),
        ("m=1, n=2", r"n = 2 \text{ and } m=1", True), (r"\{1\}\cup\{2,3\}", r"\{1,2,3\}", True),
        (r"x \le 1 \text{ or } x \ge 2", r"(-\infty,1]\cup[2,\infty)", True), ("|x|<3", "(-3,3)", True),
        (r"x=\frac{\pi}{4}+k\pi", r"\frac{\pi}{4}+\pi k", True), ("10^{-3}", "0.001", True),
        (r"\log_{2}{8}", "3", True), (r"\sum_{i=1}^{n} i", r"\frac{n(n+1)}{2}", True), (r"\sqrt[3]{27}", "3", True),
        (r"\frac{1}{3}, \frac{2}{3}", "2/3, 1/3", True), (r"5^{\text{th}}", "5", True), ("5th", "5", True),
        (r"5 \frac{1}{2}\%", "5.5%", True), (r"3.5\text{ million}", "3500000", True), ("2 thousand", "2000", True),
        ("1.5e+3", "1500", True), (r"\approx 3.14", "3.14", True), (r"\angle A = 60^\circ", "60", True),
        ("x = -2, y = 3", "(-2,3)", True), ("(1; 2)", "(1,2)", True), (r"\{(1,2),(3,4)\}", "(3,4),(1,2)", True),
        (r"\mathbb{R}\setminus\{0\}", r"(-\infty,0)\cup(0,\infty)", True),
        (r"x \neq 1", r"(-\infty,1)\cup(1,\infty)", True), ("3 > x", "x < 3", True), ("1 234 567", "1234567", True),
        (r"2\sqrt{3}+\frac{1}{2}i", r"\frac{i}{2}+2\sqrt{3}", True), (r"\frac{3\pi}{2}", r"\dfrac{3\pi}{2}", True),
        (r"\frac{\sqrt{2}+\sqrt{6}}{4}", r"\cos 15^\circ", False), (r"\boxed{\frac12}", r"\frac{1}{2}", True),
        (r"\left[\frac{1}{2},\infty\right)", r"[0.5,\infty)", True), (r"[0.5,+\infty)", r"[\frac12,\infty)", True),
        (r"y = -\frac{1}{2}x + 3", "x + 2y = 6", True), ("y=mx+b", "y=mx + b", True),
        ("x^2+y^2-4x=0", "(x-2)^2+y^2=4", True), (r"\frac{x^2}{9}+\frac{y^2}{4}=1", "4x^2+9y^2=36", True),
        ("2:3", "2:3", True), ("no", "No.", True), (r"\text{(A)}, \text{(B)}", "A, B", True), ("A,B", "B,A", True),
        ("AC", "A,C", False), ("B and C", "B, C", True), (r"6\text{ ways}", "6", True),
        ("6 different ways", "6", True), (r"\text{6 and 8}", "6,8", True), (r"3\text{ or }4", "3,4", True),
        (r"3\;\text{or}\;4", "4,3", True), (r"2^3 \cdot 3^2", "72", True), (r"2^3 \times 3^2", "72", True),
        ("7!", "5040", True), (r"\binom{10}{3}", "120", True), ("{}_{10}C_3", "120", False), ("P(5,2)", "20", False),
        (r"\frac{2+\sqrt{3}}{1}", r"2+\sqrt3", True), (r"\sqrt{2}\cdot\sqrt{3}", r"\sqrt{6}", True),
        (r"\sqrt{7+4\sqrt{3}}", r"2+\sqrt{3}", True), (r"\tan^{-1}(1)", r"\frac{\pi}{4}", True),
        (r"\arctan 1", r"\pi/4", True), (r"\ln e", "1", True), (r"e^{\ln 2}", "2", True), (r"\log_3 81", "4", True),
        ("4n+1", "4k+1", False), ("a_n=2n+1", "2n+1", True), ("S_n = n^2", "n^2", True),
        ("f^{-1}(x)=x+1", "x+1", True), ("f'(x)=2x", "2x", True), ("P(A)=0.5", "1/2", True),
        (r"\sin x = \frac12", "1/2", True), (r"\overline{AB}=5", "5", True), (r"m\angle A=5", "5", True),
        ("[ABC]=12", "12", True), ("|z|=5", "5", True), (r"\lambda=3", "3", True), (r"v_{\text{max}}=3", "3", True),
        (r"1.0 \times 10^{-5}", "0.00001", True), ("6.02×10^23", r"6.02\times10^{23}", True),
        ("6.02e23", r"6.02 \cdot 10^{23}", True), ("-1/3", r"-\frac{1}{3}", True), ("−1/3", "-1/3", True),
        ("1/-3", "-1/3", True), ("(−1, 2)", "(-1,2)", True), (r"\frac{1}{2}\times\frac{1}{3}", "1/6", True),
        ("0", "0.0", True), ("0.10", "0.1", True), ("00", "0", True), ("1/1", "1", True), ("4/2", "2", True),
        ("2/4", "1/2", True), (r"\$5", "5 dollars", True), (r"\text{\$}5", "5", True),
        (r"5\ \text{dollars}", "5", True), ("5 USD", "5", True), ("€5", "5", True), ("5¢", "5", True),
        (r"5\text{¢}", "5", True), ("50 cents", "0.50", False), (r"72\,\text{km/h}", "72", True),
        ("9.8 m/s^2", "9.8", True), (r"9.8\ \mathrm{m/s^2}", "9.8", True),
        (r"3\text{ hr } 20\text{ min}", "3", False), (r"100\pi \text{ cm}^3", r"100\pi", True),
        (r"\sqrt{2}\text{ units}", r"\sqrt{2}", True), (r"2\sqrt{2} units", r"2\sqrt2", True),
        (r"x\text{ units}", "x", True),
        (r"\begin{bmatrix}1\\2\\3\end{bmatrix}", r"\begin{pmatrix}1\\2\\3\end{pmatrix}", True),
        (r"\begin{bmatrix}1\\2\\3\end{bmatrix}", r"\begin{pmatrix}1&2&3\end{pmatrix}", False),
        (r"\begin{vmatrix}1&2\\3&4\end{vmatrix}", "-2", True), (r"\langle 1,2 \rangle", "(1,2)", True),
        ("(1,2)^T", "(1,2)", False), (r"\vec{v}=(1,2)", "(1,2)", True), (r"\mathbf{v} = (1,2)", "(1,2)", True),
        ("1i+2j", "1i+2j", True), (r"\text{True}", "True", True), ("T", "F", False), (r"\infty", r"\infty", True),
        ("undefined", r"\text{undefined}", True), ("DNE", "DNE", True), ("2x^2-3x+1=0", "(2x-1)(x-1)=0", True),
        ("x=1 or x=1/2", "1, 0.5", True), (r"\{x: x>2\}", r"\{x \mid x > 2\}", True),
        (r"\frac{n!}{k!(n-k)!}", r"\binom{n}{k}", True), (r"2\cos^2\theta-1", r"\cos 2\theta", True),
        (r"\frac{1-r^n}{1-r}", r"\frac{r^n-1}{r-1}", True), ("x^3-y^3", "(x-y)(x^2+xy+y^2)", True),
        (r"\sqrt{x}\sqrt{x}", "x", True), ("3 + 4 = 7", "7", True), (r"\frac{12}{30}=\frac{2}{5}", "2/5", True),
        ("25% = 1/4", "1/4", True), ("10,000", "10000", True), ("10.000", "10", True), ("1'000", "1000", True),
        ("$1,234.56", "1234.56", True),
    ],
)  # fmt: skip
def test_answers_are_compared_by_what_they_denote(answer, gold, alike):
    assert same(answer, gold) is alike
    assert same(gold, answer) is alike  # neither side is special


@pytest.mark.parametrize(
    ("answer", "gold"),
    # a name or a chain in the answer is allowed where the gold answer is a value; the other way round it is an equation
    [(r"\sqrt{16} = 4", "4"), ("x^2 + y^2 = 25", "25")],
)
def test_a_chain_ends_in_its_value(answer, gold):
    assert same(answer, gold)
    assert not same("0", "a + 3z = 0")


@pytest.mark.parametrize(
    ("answer", "gold", "rules", "alike"),
    [
        ("25", r"25\%", Rules(), True), ("25", r"25\%", Rules(percent="exact"), False),
        ("0.25", r"25\%", Rules(percent="exact"), True),
        ("5 cm", "5", Rules(), True), ("5 cm", "5", Rules(units="same"), False),
        (r"5\text{ cm}", "5 cm", Rules(units="same"), True), ("5 m", "5 cm", Rules(units="same"), False),
        ("2, 1", "1, 2", Rules(), True), ("2, 1", "1, 2", Rules(order="same"), False),
        ("-2 < x < 7", "(-2, 7)", Rules(), True), ("-2 < x < 7", "(-2, 7)", Rules(intervals="same"), False),
        ("0.3333", r"\frac{1}{3}", Rules(), False), ("0.3333", r"\frac{1}{3}", Rules(tolerance=1e-3), True),
        ("3.1416", "3.14159", Rules(tolerance=0), False), ("1.50", "1.5", Rules(tolerance=0), True),
        ("1,5", "1.5", Rules(), True), ("1,5", "1.5", Rules(decimal_comma=False), False),
    ],
)  # fmt: skip
def test_each_rule_decides_what_people_differ_on(answer, gold, rules, alike):
    assert same(answer, gold, rules) is alike


def test_numbers_without_a_decimal_point_are_equal_only_exactly():
    # 1 / 100001 of the value apart, less than the tolerance of decimals
    assert not same("100000", "100001")
    assert not same(r"\frac{100000}{100001}", "1")


def test_a_tolerance_is_of_the_value_below_one_and_absolute_above():
    assert same("0.123456", "0.1234565")  # 5e-7 <= 1e-5 * 0.12
    assert not same("0.0000010", "0.0000011")  # 1e-7 > 1e-5 * 1e-6
    assert not same("12345.67", "12345.6")  # 0.07 > 1e-5


# --- properties: what is written anew is equal, what is changed is not ------------------------------------------------

_integers = st.integers(-(10**12), 10**12)
_fractions = st.fractions(min_value=-1000, max_value=1000, max_denominator=999)


@given(_integers, _integers)
def test_integers_are_equal_when_they_are_and_only_then(a, b):
    assert same(str(a), str(b)) is (a == b)
    assert same(f"{a:,}", str(a))
    assert same(f"{a:,}".replace(",", r"{,}"), f"${a}$")


@given(_fractions, st.integers(2, 50))
def test_a_fraction_is_equal_to_itself_however_it_is_written(value, factor):
    top, bottom = value.numerator, value.denominator
    ways = [f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{top * factor}}}{{{bottom * factor}}}",
            rf"-\frac{{{-top}}}{{{bottom}}}" if top < 0 else rf"\frac{{{-top}}}{{{-bottom}}}"]  # fmt: skip
    assert all(same(one, other) for one in ways for other in ways)
    assert not same(ways[0], f"{top + 1}/{bottom}")
    if abs(top) > bottom > 1:
        whole, rest = divmod(abs(top), bottom)
        assert same(rf"{'-' * (top < 0)}{whole}\frac{{{rest}}}{{{bottom}}}", ways[0])


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_tuples_have_an_order_and_sets_have_none(numbers, shuffle):
    shuffled = numbers[:]
    shuffle.shuffle(shuffled)
    plain, other = ", ".join(map(str, numbers)), " , ".join(map(str, shuffled))
    assert same(f"( {other} )", f"({plain})") is (shuffled == numbers)
    assert same(rf"\{{{other}\}}", rf"\{{{plain}\}}")
    assert same(other, plain)
    assert not same(f"{plain}, 100", plain)


def _expression(draw: random.Random, depth: int) -> str:
    if depth == 0 or draw.random() < 0.2:
        return draw.choice([str(draw.randint(1, 30)), rf"\frac{{{draw.randint(1, 9)}}}{{{draw.randint(2, 9)}}}",
                            rf"\sqrt{{{draw.randint(2, 15)}}}", r"\pi", "x", "y"])  # fmt: skip
    a, b = _expression(draw, depth - 1), _expression(draw, depth - 1)
    return draw.choice([f"{a}+{b}", f"{a}-({b})", f"({a})({b})", f"{draw.randint(2, 9)}({b})", rf"\frac{{{a}}}{{7+({b})^2}}",
                        f"({a})^{{{draw.randint(2, 3)}}}", rf"\sqrt{{{draw.randint(2, 9)}+({b})^2}}"])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_an_expression_written_anew_is_equal_and_a_changed_one_is_not(draw):
    e = _expression(draw, draw.randint(1, 3))
    anew = draw.choice(
        [f"{e}+0", rf"1\cdot({e})", rf"\frac{{2({e})}}{{2}}", f"({e})+7-7", f"-(-({e}))", rf"\left({e}\right)"]
    )
    changed = f"({e})+" + draw.choice(["1", "x", r"\frac{1}{7}", r"\pi"])
    assert same(e, e)
    assert same(anew, e)
    assert same(e, anew)
    assert not same(changed, e)
    assert not same(e, changed)


@settings(max_examples=60, deadline=None)
@given(_fractions, st.sampled_from([2, 3, 5, 6, 7]), _fractions, st.booleans())
def test_surds_are_compared_by_value(a, n, b, swap):
    assume(b)

    def tex(q: Fraction) -> str:
        return rf"{'-' * (q < 0)}\frac{{{abs(q.numerator)}}}{{{q.denominator}}}"

    one = rf"{tex(a)}+({tex(b)})\sqrt{{{n}}}"
    other = rf"({tex(b / 2)})\sqrt{{{4 * n}}}+{tex(a)}"  # sqrt(4n) / 2 = sqrt(n)
    assert same(other, one) if swap else same(one, other)
    assert not same(one, rf"{tex(a)}+({tex(b)})\sqrt{{{n + 1}}}")


def test_an_endless_answer_is_wrong_unless_it_is_the_gold_answer_to_the_letter():
    long = "1+" * 600 + "1"
    assert same(long, long)
    assert not same(long, "601")
