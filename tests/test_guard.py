"""Where demonstrations give their answers away, in every notation that the grader takes."""

import json
import time

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.data.problems import Problem, guarded
from prefix_rl.rewards.guard import readable, readable_from, safe_cuts
from prefix_rl.rewards.workers import Grader


@pytest.mark.parametrize(
    ("text", "answer", "kept"),
    [
        (r"so x = \frac{-1}{2} here", r"-\frac12", "so x = "), (r"it is 1\frac{1}{2}", r"\frac32", "it is "), ("it is 1 1/2 now", "3/2", "it is "),
        ("we get 3/2 now", r"1\frac12", "we get "), ("we get 1.5 now", r"1\frac12", "we get "), ("total 1{,}250 now", "1250", "total "),
        (r"it is 1\,250", "1250", "it is "), ("total 1250 now", "1{,}250", "total "), (r"so 25\% of", "0.25", "so "), ("so 0.25 of", r"25\%", "so "),
        ("so 25% of", r"\frac14", "so "), (r"volume 12\text{ m}^3", "12", "volume "), ("volume 12 m", r"12\text{ m}^3", "volume "),
        ("then x is 5.", "x=5", "then x is "), ("roots 2 and 5.", "2, 5", "roots 2 and "), ("x = 2 or x = 5", "2,5", "x = 2 or x = "),
        (r"area $\pi/2$ is", r"\frac{\pi}{2}", "area $"), (r"area $\frac{1}{2}\pi$", r"\frac{\pi}{2}", "area $"), ("area π/2 is", r"\frac{\pi}{2}", "area "),
        (r"is $\sqrt{12}$", r"2\sqrt3", "is $"), (r"is \frac{10}{20}", "1/2", "is "), ("x = 1 and y = -2, so", "(1,-2)", "x = 1 and y = -"),
        (r"in $[0,\frac{1}{2})$", "[0,0.5)", "in $"), ("f is $(x+1)^2$", "x^2+2x+1", "f is $"), (r"gives $3 - \sqrt{2}$", r"-\sqrt2+3", "gives $"),
        ("matrix \\begin{pmatrix} 1 \\\\ 0.5 \\end{pmatrix}", r"\begin{pmatrix}1\\\frac12\end{pmatrix}", "matrix "), ("we get ½ now", "0.5", "we get "),
        (r"at $4:30 \text{ p.m.}$", r"\text{4:30 p.m.}", "at $"), ("1, 2, then 3 and 4", "3, 4", "1, 2, then 3 and "), (r"\frac{50}{5} of them", "10", ""),
        ("it is 2⅓", r"\frac73", "it is "), ("it is 1½ now", "1.5", "it is "), ("total 1 250 now", "1250", "total "), ("so (-1)/2 of", r"-\frac12", "so "),
        ("so it is 1,024", "2^{10}", "so it is "), ("so it is 2¹⁰", "2^{10}", "so it is "), ("f is x²+1 here", "x^2+1", "f is "),
        ("it is ∛4", r"\sqrt[3]{4}", "it is "), ("it is $720$", "6!", "it is $"),
        ("CAB, then AB.", "AB", "CAB, then "), ("roots 2, 5.", "2, 5", "roots 2, "), ("f(x) has it at (1,2)", "(1,2)", "f(x) has it at "),
        ("at (1;2)", "(1,2)", "at "), ("at $(1+x,2)$", "(x+1,2)", "at $"), (r"so (0.5, x<1)", r"(\frac12, x<1)", "so "),
        (r"so a 2\cdot \sqrt{3} is", r"2\sqrt3", "so a "), (r"so $x + \sqrt{12}$", r"2\sqrt3", "so $x +"),
        (r"so $\sqrt{12} + x$", r"2\sqrt3", "so $"), (r"so \{x+1, 1\} is", r"\{1, 1+x\}", "so "),
        ("it is ∞ then", r"\infty", "it is "), ("so x<∞ here", r"x<\infty", "so "),
    ],
)  # fmt: skip
def test_a_mention_is_what_the_grader_takes_for_the_answer(text, answer, kept):
    assert text[: readable_from(text, answer)] == kept


@pytest.mark.parametrize(
    ("text", "answer"),
    [("720 and 7.2", "72"), (r"\frac{1}{3} of it", r"\frac{1}{2}"), ("2 but then 7", "2, 5"), (r"\pi/3", r"\frac{\pi}{2}"), ("(1,2)", "(2,3)"), ("x+2", "x+1"), ("1 025 of them", "2^{10}"),
     ("2⅔ of it", r"\frac73"), ("we let x be 3", "x"), ("so (x, 1)", "(1, x)")],
)  # fmt: skip
def test_what_is_another_answer_is_no_mention(text, answer):
    assert readable_from(text, answer) == len(text)


def test_what_is_worth_the_answer_is_computed_and_no_mention():
    text = r"We add $48/2 + 48$, so the sum is 72."
    assert text[: readable_from(text, "72")] == r"We add $48/2 + 48$, so the sum is "
    assert text[: readable_from(text, "72", "computed")] == "We add $"
    assert readable_from("We add 48/2 + 49.", "72", "computed") == len("We add 48/2 + 49.")
    text = r"It is $\sqrt{2}$."
    assert text[: readable_from(text, "1.41421", "computed")] == "It is $"
    assert readable_from(text, "1.4142", "computed") == len(text)  # that is rounded: another number


def test_a_number_that_the_problem_gives_is_no_secret_until_something_is_said_to_be_it():
    text, problem = "She has 5 apples and gives 3 away twice: 11 - 6 = 5 are left", "Ann has 5 apples ..."
    assert text[: readable_from(text, "5")] == "She has "
    assert text[: readable_from(text, "5", problem=problem)] == "She has 5 apples and gives 3 away twice: 11 - 6 = "
    text = "She has 5 - 3 and then 11 - 6 = 5"
    assert text[: readable_from(text, "5", "computed", problem)] == "She has 5 - 3 and then "


def test_the_computer_algebra_system_knows_equations_that_our_grammar_lacks():
    text = "so $y^2+x^2=1$ holds"
    assert readable(text, "x^2+y^2=1", deep=True)["mention"] == len("so $")
    assert readable(text, "x^2+y^2=1")["mention"] == len(text)
    assert readable(text, "x^2+y^2=2", deep=True)["mention"] == len(text)


def test_a_cut_inside_a_longer_number_shows_no_answer():
    text = "first 42 and 4 more"
    ends = [6, 7, 8, *range(9, len(text) + 1)]  # "first ", "4", "2", ...
    assert safe_cuts(text, "4", ends) == (len("first 42 and ") - 6 + 1, frozenset({2}))


@examples(60)
@given(
    st.integers(2, 5000), st.integers(2, 60), st.sampled_from(["{}", "{:,}", "${}$", r"\({}\)", "{}.0", r"\text{{{}}}"])
)
def test_no_prefix_of_a_generated_solution_shows_its_answer(a, b, form):
    text = f"There are {b} rows of {a} seats. Together that makes {form.format(a * b)} seats."
    kept = text[: readable_from(text, str(a * b), problem=f"{b} rows of {a}")]
    assert str(a * b) not in kept.replace(",", "")
    assert kept.startswith(f"There are {b} rows of {a} seats. Together that makes")


@examples(100)
@given(
    st.text(alphabet="0123456789,. =/abx^+-()$\\{}frac sqrtpi", max_size=80),
    st.sampled_from(["42", r"\frac{1}{2}", "2, 5", "x+1", r"\pi/2", "(1,2)", "even"]),
)
def test_any_text_has_offsets_in_their_order(text, answer):
    found = readable(text, answer)
    assert 0 <= found["computed"] <= found["mention"] <= found["statement"] <= len(text)


@pytest.mark.parametrize("piece", ["1+", "5 = ", "(", r"\frac{", "$x$ ", "1,", "x ", r"\sqrt", "[1,2", "2^", "1 and "])
def test_long_demonstrations_are_read_in_linear_time(piece):
    spent = []
    for length in (100_000, 200_000):
        began = time.process_time()
        for answer in ("7919", r"2\sqrt{3}", "(7919, 2)"):
            readable(piece * (length // len(piece)), answer)
        spent.append(time.process_time() - began)
    assert spent[1] < 3.5 * spent[0] + 0.2


def test_workers_find_the_same_places_and_training_looks_for_what_is_missing():
    grader = Grader(1)
    known = {"text": "6 * 7 = 42", "readable": {"mention": 3, "statement": 10}}
    own = {"text": "6 * 7 = 42", "readable_from": 2}
    problems = [Problem("a", "6 times 7?", "42", ({"text": "6 * 7 = 42"}, known, own))]
    first, second, third = guarded(problems, "mention", grader)[0].demonstrations
    assert first["readable"]["mention"] == readable_from("6 * 7 = 42", "42") == 8
    assert (second, third) == (known, own)
    assert guarded(problems, "mention", grader, trusted=False)[0].demonstrations[1]["readable"]["mention"] == 8
    assert guarded(problems, "computed", grader)[0].demonstrations[0]["readable"]["computed"] == 0
    assert guarded(problems, "none", grader) == problems
    grader.close()


def test_no_real_demonstration_shows_the_value_of_its_answer(shared_data):
    """Every digit run of the prefix is read slowly; numbers that the problem gives are no secret."""
    import re

    for name in ("demonstrations-qwen2.5-math", "gsm8k-test"):
        with (shared_data / f"{name}.jsonl").open(encoding="utf-8") as file:
            rows = [row for row in map(json.loads, file) if re.fullmatch(r"\d{2,}", row["answer"])]
        assert len(rows) > 200
        for row in rows:
            kept = row["solution"][: readable_from(row["solution"], row["answer"], problem=row["problem"])]
            shown = {
                n.replace(",", "").replace("{", "").replace("}", "")
                for n in re.findall(r"\d+(?:(?:,|\{,\})\d{3})*(?![.\d])", kept)
            }
            given = set(re.findall(r"\d+", row["problem"].replace(",", "")))
            assert (
                row["answer"] not in shown or row["answer"] in given | {n for m in given for n in (m,)} or "." in kept
            ), row["id"]
