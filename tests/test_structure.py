import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.rewards.structure import chain, parse, split


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("1, 2", "list", ["1", "2"]), ("(1, 2)", "tuple", ["1", "2"]), ("[1,2)", "tuple", ["1", "2"]), (r"\{1, 2\}", "list", ["1", "2"]),
        (r"(1,2) \cup (3,4)", "union", ["(1,2)", "(3,4)"]), (r"1 \pm \sqrt{2}", "list", [r"1 + \sqrt{2}", r"1 - \sqrt{2}"]),
        (r"x = \pm 3", "list", ["x = 3", "x = -3"]), ("f(1, 2)", "text", []), ("1,234", "text", []), ("(5)", "text", []), ("x + 1", "text", []),
        (r"1 \pm \sqrt{2} \mp 3", "list", [r"1 + \sqrt{2} - 3", r"1 - \sqrt{2} + 3"]), (r"2 \mp 3", "text", []), ("(1,2)+(3,4)", "text", []),
        ("((x, y)", "text", []),
        ("(1,2), (3,4)", "list", ["(1,2)", "(3,4)"]), ("]0, 1[", "tuple", ["0", "1"]), (r"\frac{1,5}{2}", "text", []),
    ],
)  # fmt: skip
def test_answers_are_taken_apart_by_their_brackets_and_separators(text, kind, parts):
    found = parse(text)
    assert (found.kind, [part.text for part in found.parts]) == (kind, parts)


def test_round_brackets_around_one_thing_are_taken_off():
    assert parse("(2x)").text == "2x"
    assert parse("(x) + (y)").text == "(x) + (y)"


def test_the_brackets_of_an_interval_are_kept():
    assert [parse(text).brackets for text in ("(1,2)", "[1,2)", "(1,2]", "[1,2]", "]1,2]")] == [
        "()",
        "[)",
        "(]",
        "[]",
        "(]",
    ]


def test_a_matrix_has_rows_of_cells():
    found = parse(r"\begin{pmatrix}1 & 2 \\ 3 & x\end{pmatrix}")
    assert [[cell.text for cell in row.parts] for row in found.parts] == [["1", "2"], ["3", "x"]]
    assert parse(r"\begin{pmatrix}1\end{pmatrix} + \begin{pmatrix}2\end{pmatrix}").kind == "text"


def test_seven_levels_are_taken_apart_wherever_they_stand():
    def levels(group):
        return 0 if group.kind == "text" else 1 + levels(group.parts[0])

    nested = "1"
    for n in range(2, 11):
        nested = f"({nested},{n})"  # nine
    assert levels(parse(nested)) == 7
    assert levels(parse(rf"\begin{{cases}}{nested}\end{{cases}}")) == 7
    assert levels(parse(rf"\begin{{pmatrix}}{nested} & 2\end{{pmatrix}}")) == 8  # a row is no level of its own


def test_sets_united_are_one_list_and_with_an_interval_a_union():
    found = parse(r"\{1, 2\} \cup \{3\}")
    assert (found.kind, [part.text for part in found.parts]) == ("list", ["1", "2", "3"])
    assert parse(r"\{1\} \cup (2,3)").kind == "union"


@pytest.mark.parametrize(
    ("text", "value", "name"),
    [("x = 5", "5", "x"), ("x_{1} = 5 + 6 = 11", "11", "x_{1}"), ("f(x) = x^2", "x^2", "f(x)"), ("(p, q) = (1, 2)", "(1, 2)", "(p,q)"),
     ("2 + 2 = 4", "4", ""), (r"\sin(\pi) = 0", "0", ""), ("x^2 + y^2 = 1", "1", None), ("3x = 6", "6", None)],
)  # fmt: skip
def test_an_equality_ends_in_a_value_and_may_only_name_it(text, value, name):
    found = chain(text)
    assert (found.value, found.name) == (value, name)


@pytest.mark.parametrize("text", ["x", "x < 5", r"x \le 5 = y", "= 5", "x ="])
def test_what_is_no_equality_is_none(text):
    assert chain(text) is None


@given(st.lists(st.sampled_from(["1", "(2,3)", r"\{4,5\}", "[6,7)", r"\frac{8,9}{2}"]), min_size=1, max_size=6))
def test_separators_inside_of_brackets_do_not_separate(parts):
    assert split(",".join(parts), (",",)) == parts


@given(st.text(alphabet="()[]{}\\,;x1 =", max_size=60))
def test_any_text_has_a_structure(text):
    assert parse(text).kind in ("text", "list", "tuple", "union", "matrix")
