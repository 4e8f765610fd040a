import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.rewards.grading import Outcome, equal, final_answer, grade, parse_gold


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1} and then \boxed{2", "1"),
        ("x\n#### 1,000", "1,000"),
        ("The answer is $12$.", "12"),
        ("The final answer is: 3.5. I hope so.", "3.5"),
        (r"the answer is \(x^2\).", "x^2"),
        (r"<think>\boxed{1}</think> it is \boxed{2}", "2"),
        (r"<think>\boxed{1}</think> no idea", None),
        ("so we get 12", None),
        ("", None),
        (r"\boxed{}", None),
        (r"\boxed{42", None),
    ],
)
def test_the_final_answer_is_found_as_people_write_it(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("42", "42", True), ("42", "43", False), ("-3", "3", False), ("1,000", "1000", True), ("0.5", r"\frac{1}{2}", True),
        (r"\dfrac12", "1/2", True), ("x+1", "1+x", True), ("x+1", "x+2", False), ("(1, 2)", "(1,2)", True),
        ("(2, 1)", "(1,2)", False), ("( 8 , 6 , 1 )", "(8, 6, 1)", True), ("2x", "x*2", True), (r"\sqrt{4}", "2", True),
        (r"\$36", "36", True), ("36", r"\$36", True), ("even", r"\text{even}", True), ("99999999999", "100000000000", False),
        (r"2^{10}", "1024", True), ("yes", "no", False),
    ],
)  # fmt: skip
def test_answers_are_compared_by_value(answer, gold, same):
    assert equal(answer, gold) is same


@pytest.mark.parametrize(
    ("text", "gold", "outcome"),
    [
        (r"\boxed{42}", "42", Outcome.RIGHT), (r"\boxed{41}", "42", Outcome.WRONG), ("42", "42", Outcome.NO_ANSWER),
        (r"\boxed{42}", "", Outcome.BAD_GOLD), (r"\boxed{42}", r"\frac{1", Outcome.BAD_GOLD), ("", "42", Outcome.NO_ANSWER),
        (r"\boxed{42}", "???", Outcome.BAD_GOLD), (r"\boxed{" + "1" * 100_000 + "}", "42", Outcome.WRONG),
    ],
)  # fmt: skip
def test_each_sample_has_one_outcome(text, gold, outcome):
    assert grade(text, gold) is outcome


@given(st.integers(-(10**12), 10**12), st.integers(-(10**12), 10**12))
def test_integers_are_equal_when_they_are_and_only_then(a, b):
    assert equal(str(a), str(b)) is (a == b)
    assert equal(f"{a:,}", str(a)) is True


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_tuples_have_an_order(numbers, random):
    shuffled = numbers[:]
    random.shuffle(shuffled)
    text = "(" + ", ".join(map(str, numbers)) + ")"
    assert equal("( " + " , ".join(map(str, shuffled)) + " )", text) is (shuffled == numbers)


def test_a_gold_answer_is_parsed_once():
    parse_gold.cache_clear()
    for i in range(5):
        grade(rf"\boxed{{{i}/7}}", r"\frac{3}{7}")
    assert parse_gold.cache_info().misses == 1


def test_every_gold_answer_of_the_benchmarks_equals_itself(shared_data):
    for name in ("math500", "aime24", "aime25", "amc23", "gsm8k-test"):
        for line in (shared_data / f"{name}.jsonl").open():
            row = json.loads(line)
            assert parse_gold(row["answer"]), row["answer"]
            assert grade(rf"\boxed{{{row['answer']}}}", row["answer"]) is Outcome.RIGHT


def test_published_solutions_of_math500_grade_right(shared_data):
    rows = [json.loads(line) for line in (shared_data / "math500.jsonl").open()]
    wrong = [row["id"] for row in rows if grade(row["solution"], row["answer"]) is not Outcome.RIGHT]
    assert wrong == []
