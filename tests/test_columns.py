"""The columns of the usual data sets."""

import pytest

from prefix_rl.data.columns import check_columns, normalize, parse_columns
from prefix_rl.errors import DataError

GSM8K = {"question": "6 * 7?", "answer": "6 * 7 = <<6*7=42>>42 clips\n#### 42"}
MATH = {"problem": "What is $6 \\cdot 7$?", "solution": r"It is $\boxed{42}$.", "level": "Level 1"}
OPEN_R1 = {
    "problem": "6 * 7?", "answer": "42", "solution": "See above. 42", "uuid": "u7", "correctness_math_verify": [True, False],
    "generations": [r"<think>6*7</think> \boxed{42}", r"<think>6*7"], "is_reasoning_complete": [True, False],
}  # fmt: skip
LUFFY = {
    "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "6 * 7?"}],
    "target": [{"role": "assistant", "content": r"\boxed{42}"}],
    "reward_model": {"ground_truth": "42", "style": "rule"},
}
DAPO = {
    "prompt": [{"role": "user", "content": "Solve the following math problem step by step. The last line of your response "
        "should be of the form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n6 * 7?\n\n"
        'Remember to put your answer on its own line after "Answer:".'}],
    "reward_model": {"ground_truth": "42", "style": "rule-lighteval/MATH_v2"}, "extra_info": {"index": "d9"}, "ability": "MATH",
}  # fmt: skip
DAPO_PROCESSED = {
    "prompt": "6 * 7?",
    "solution": "42",
    "reward_model": {"ground_truth": "42"},
    "extra_info": {"index": "d9"},
}
THOUGHT = (
    "<|begin_of_thought|>\n\n6*7\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n\\boxed{42}\n\n<|end_of_solution|>"
)
OPEN_THOUGHTS = {
    "system": "s", "problem": "6 * 7?", "solution": r"It is $\boxed{42}$.",
    "conversations": [{"from": "user", "value": r"Return your final response within \boxed{}. 6 * 7?"}, {"from": "assistant", "value": THOUGHT}],
}  # fmt: skip
OPEN_THOUGHTS_METADATA = {
    "problem": "6 * 7?", "deepseek_reasoning": "6*7", "deepseek_solution": r"\boxed{42}", "ground_truth_solution": r"$\boxed{42}$",
}  # fmt: skip
ANSWERED = "<think>\n6*7\n</think>\n\n\\boxed{42}"


@pytest.mark.parametrize(
    ("row", "demonstrations", "name"),
    [
        (GSM8K, ["6 * 7 = 42 clips\n\\boxed{42}"], None), (MATH, [r"It is $\boxed{42}$."], None),
        (OPEN_R1, [OPEN_R1["generations"][0], {"text": "<think>6*7", "complete": False}], "u7"), (LUFFY, [r"\boxed{42}"], None),
        (DAPO, [], "d9"), (DAPO_PROCESSED, [], "d9"), (OPEN_THOUGHTS, [ANSWERED], None), (OPEN_THOUGHTS_METADATA, [ANSWERED], None),
    ],
    ids=["GSM8K", "MATH", "OpenR1", "LUFFY 46k", "DAPO", "DAPO processed", "OpenThoughts", "OpenThoughts metadata"],
)  # fmt: skip
def test_the_usual_columns_are_known(row, demonstrations, name):
    made = normalize(row, {})
    assert made["answer"] == "42"
    assert made["demonstrations"] == demonstrations
    assert made.get("id") == name
    assert made["problem"] in ("6 * 7?", "What is $6 \\cdot 7$?")


def test_a_models_own_text_gives_no_gold_answer():
    made = normalize({"conversations": OPEN_THOUGHTS["conversations"]}, {})
    assert made == {"problem": "6 * 7?", "demonstrations": [ANSWERED]}
    assert "answer" not in normalize({"problem": "p", "generations": [r"\boxed{42}"]}, {})


def test_other_columns_are_given_by_name_and_go_first():
    columns = parse_columns(["problem=q", "answer=final", "solution=how", "pass_rate=solve_rate"])
    row = {
        "q": "p",
        "final": "1",
        "how": "s",
        "solve_rate": 0.5,
        "problem": "no",
        "generations": ["no"],
        "answer": "no",
    }
    assert normalize(row, columns) == {"problem": "p", "answer": "1", "demonstrations": ["s"], "pass_rate": 0.5}
    with pytest.raises(DataError, match="OURS is one of id, problem, answer, solution, pass_rate"):
        parse_columns(["prompt=q"])


def test_a_named_column_that_is_not_there_is_explained():
    with pytest.raises(
        DataError, match=r"--column problem=questoin: no such column \(did you mean question\?\); there are"
    ):
        check_columns({"problem": "questoin"}, "f.jsonl", [{"question": "p"}, {"answer": "1"}])
    check_columns({"answer": "answer"}, "f.jsonl", [{"question": "p"}, {"answer": "1"}])


def test_texts_are_cleaned_but_not_where_offsets_belong_to_them():
    row = {
        "problem": " p\r\nq\u200b ",
        "answer": r" $\frac{1}{2}$ ",
        "demonstrations": [" a\r\nb ", {"text": " a\r\n", "readable_from": 2}],
    }
    assert normalize(row, {}) == {
        "problem": "p\nq", "answer": r"\frac{1}{2}", "demonstrations": ["a\nb", {"text": " a\r\n", "readable_from": 2}],
    }  # fmt: skip
