"""The columns of the usual data sets."""

import pytest

from prefix_rl.data.columns import check_columns, further_columns, normalize, parse_columns, with_chat
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


# --- messages ---------------------------------------------------------------------------------------------------------

SYSTEM, ASKS = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}
HINTS, AGAIN = {"role": "assistant", "content": "Try sums."}, {"role": "user", "content": "How?"}
SAYS = {"role": "assistant", "content": r"So \boxed{42}"}
SAID = [r"So \boxed{42}"]


@pytest.mark.parametrize(
    ("row", "turns", "demonstrations"),
    [
        ({"messages": [ASKS, SAYS]}, None, SAID),
        ({"conversations": [{"from": "human", "value": "6 * 7?"}, {"from": "gpt", "value": SAID[0]}]}, None, SAID),
        ({"prompt": "6 * 7?", "completion": SAID[0]}, None, SAID),
        ({"prompt": [ASKS], "completion": [SAYS]}, None, SAID),
        ({"prompt": [ASKS], "completion": SAYS}, None, SAID),
        ({"prompt": [ASKS, SAYS]}, None, SAID),
        ({"prompt": [SYSTEM, ASKS], "completion": [SAYS]}, [SYSTEM, ASKS], SAID),
        ({"messages": [SYSTEM, ASKS, HINTS, AGAIN, SAYS]}, [SYSTEM, ASKS, HINTS, AGAIN], SAID),
        ({"prompt": [ASKS, HINTS, AGAIN], "completion": [SAYS]}, [ASKS, HINTS, AGAIN], SAID),
        ({"messages": [ASKS, HINTS, AGAIN]}, [ASKS, HINTS, AGAIN], []),
        # the column holds the first turn alone: what answers the last one belongs behind all of them
        ({"prompt": "6 * 7?", "messages": [ASKS, HINTS, AGAIN, SAYS]}, [ASKS, HINTS, AGAIN], SAID),
        ({"problem": "6 * 7?", "solution": "42", "prompt": [ASKS], "completion": [SAYS]}, None, SAID),
        ({"messages": [{"role": "developer", "content": "Be brief."}, ASKS, SAYS]}, [SYSTEM, ASKS], SAID),
        ({"messages": [ASKS, {**SAYS, "reasoning_content": "6*7"}]}, None, ["<think>\n6*7\n</think>\n\n" + SAID[0]]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "6 * 7?"}]}, SAYS]}, None, SAID),
    ],
)  # fmt: skip
def test_messages_are_a_prompt_of_all_their_turns_and_a_demonstration(row, turns, demonstrations):
    made = normalize({**row, "answer": "42"}, {})
    assert (made.get("turns"), made["demonstrations"]) == (turns, demonstrations)
    assert made["problem"] == "\n\n".join(t["content"] for t in turns or [ASKS] if t["role"] != "system")


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"messages": [ASKS, {"role": "tool", "content": "42"}, SAYS]}, "turn 2 has the role 'tool'"),
        ({"messages": [ASKS, {"role": "assistant", "content": None}]}, "turn 2 has a content that is no text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, SAYS]}, "turn 1 has a content that is no text"),
        ({"messages": [ASKS, SYSTEM, SAYS]}, "turn 2 is a system turn behind others"),
        ({"messages": [SYSTEM, SAYS]}, "its messages ask nothing"),
        ({"prompt": [ASKS, HINTS], "completion": [SAYS]}, "its prompt ends with a turn of the assistant"),
        ({"prompt": ["6 * 7?"], "completion": "x"}, "turn 1 is a str"),
        ({"messages": [ASKS, {**SAYS, "tool_calls": [{}]}]}, "turn 2 calls tools"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_read_say_why(row, fault):
    assert normalize({**row, "answer": "42"}, {})["faults"][0].startswith(fault)


def test_a_demonstration_that_cannot_be_read_says_why():
    for row, why in (
        ({"prompt": [ASKS], "completion": [SAYS, AGAIN, SAYS]}, "it is not one turn of the assistant"),
        ({"prompt": [ASKS], "completion": [{"role": "tool", "content": "x"}]}, "turn 1 has the role 'tool'; read are"),
        ({"prompt": [ASKS], "completion": "42"}, "it is nothing but the answer"),
        ({"messages": [ASKS, {"role": "assistant", "content": "42"}]}, "it is nothing but the answer"),
    ):
        (made,) = normalize({**row, "answer": "42"}, {})["demonstrations"]
        assert made["unread"].startswith(why)


def test_every_field_can_be_named():
    columns = parse_columns(["messages=dialog", "answer=extra.gold", "id=n", "complete=whole"])
    row = {"dialog": [ASKS, SAYS], "extra": {"gold": "42"}, "n": 3, "whole": True, "prompt": "no", "completion": "no"}
    assert normalize(row, columns) == {"id": 3, "problem": "6 * 7?", "answer": "42", "demonstrations": SAID}
    made = normalize({"q": "6 * 7?", "s": "Be brief.", "traces": ["a", "b"], "ok": [True, False], "ref": r"\boxed{42}"},
        parse_columns(["problem=q", "system=s", "demonstrations=traces", "complete=ok", "solution=ref"]))  # fmt: skip
    assert made == {"problem": "6 * 7?", "turns": [SYSTEM, ASKS], "answer": "42",
        "demonstrations": ["a", {"text": "b", "complete": False}]}  # fmt: skip
    assert normalize({"problem": "p", "answer": "1", "response": "r"}, {"completion": "response"})[
        "demonstrations"
    ] == ["r"]
    with pytest.raises(DataError, match=r"--column answer=extra.gld: no such column"):
        check_columns({"answer": "extra.gld"}, "f", [row])


def test_a_row_that_was_not_prepared_is_read_from_its_messages():
    turns = [{"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": "It is 42."}]
    made, faults = with_chat({"messages": turns, "answer": "42"})
    assert (made["problem"], made["demonstrations"], made["answer"], faults) == ("6 * 7?", ["It is 42."], "42", [])
    for row in (
        {"problem": "p", "demonstrations": ["d"], "messages": turns},
        {"problem": "p", "solution": "s", "messages": turns},
        {"problem": "p", "answer": "42"},
    ):
        assert with_chat(row) == (row, [])
    assert with_chat({"problem": "p", "messages": turns})[0]["demonstrations"] == ["It is 42."]
    assert with_chat({"messages": [*turns, turns[1]]})[1] != []  # two answers in a row


def test_what_reward_functions_get_is_what_is_not_read_yet():
    read = dict.fromkeys(
        (
            "id",
            "uuid",
            "unique_id",
            "answer",
            "pass_rate",
            "system",
            "problem",
            "question",
            "prompt",
            "solution",
            "target",
        ),
        "x",
    )
    assert further_columns({**read, "level": 3, "none": None}, {}) == {"level": 3}
    assert further_columns({**read, "gold": "42", "level": 3}, {"answer": "gold"}) == {"gold": "42", "level": 3}


@pytest.mark.parametrize(
    ("given", "demonstrations"),
    [
        ([{"text": " a "}], ["a"]), ([{"content": " a "}], ["a"]), ([{"text": "a", "token_ids": [5]}], [{"text": "a", "token_ids": [5]}]),
        ([{"token_ids": [5]}], [{"token_ids": [5]}]), (["a", ""], ["a"]), ("a", ["a"]),
    ],
)  # fmt: skip
def test_a_demonstration_is_a_text_or_an_object(given, demonstrations):
    assert normalize({"problem": "p", "answer": "42", "demonstrations": given}, {})["demonstrations"] == demonstrations
