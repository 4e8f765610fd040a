"""What is planned, on lists alone and over several ranks, without a trainer."""

from dataclasses import dataclass

import pytest
from datasets import Dataset
from flow import together
from hypothesis import given
from hypothesis import strategies as st
from small import byte_level_bpe
from test_methods import step

from prefix_rl.data.mixing import REPEATS
from prefix_rl.errors import DataError
from prefix_rl.methods.base import Method, Needs
from prefix_rl.methods.bread import BREAD
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.questa import QuestA
from prefix_rl.prefixes import NO_PREFIX, Demonstration, Prefix
from prefix_rl.rollouts import Row
from prefix_rl.seam import planning
from prefix_rl.seam.batch import COPY, ROW

TABLE = [(Demonstration(tuple(range(10 * n, 10 * n + 8)), 8),) if n % 2 == 0 else () for n in range(6)]
LATE = PrefixRFT(horizon=1, end=0.5, high=0.5)  # from the second step on half of a demonstration: 4 of 8 tokens


def planner(ranks, method=LATE, size=4, problems=range(6), copies=None):
    rows = {ROW: list(problems), COPY: copies or [0] * len(problems)}
    return planning.Planner(method, TABLE, Dataset.from_dict(rows), size, ranks, byte_level_bpe())


def batch_on(ranks, problems, method=LATE, size=4, at=None):
    """The batch of one rank, where the rows of all answer these problems in turn."""
    made, own = planner(ranks, method, size), len(problems) * size // ranks.count
    rows = [{ROW: problems[i // size], COPY: 0} for i in range(len(problems) * size)]
    return made.planned(rows[ranks.own(own)], at or step(5))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_plan_their_own_rows_and_know_of_all(ranks):
    # 3 groups of 4: with 2 and 4 ranks a group straddles them, and a rank may hold no prefixed row at all
    found = together(ranks, lambda own: batch_on(own, [0, 1, 2]))
    plan = [prefix for batch in found for prefix in batch.plan]
    assert [len(prefix.ids) for prefix in plan] == [
        4,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        4,
        0,
        0,
        0,
    ]  # problem 1 has no demonstration
    assert plan[8].ids == [20, 21, 22, 23]
    assert [row.index for batch in found for row in batch.rows] == list(range(12))
    for batch in found:
        assert batch.planned.lengths.tolist() == [4] + [0] * 7 + [4] + [0] * 3
        assert batch.planned.prefixed.tolist() == [True] + [False] * 7 + [True] + [False] * 3
        assert batch.planned.fractions.nan_to_num(-1).tolist() == [0.5] + [-1] * 7 + [0.5] + [-1] * 3


def test_problems_that_are_due_take_the_place_of_the_batchs_on_every_rank():
    at = step(5)
    at = type(at)(at.index, at.total, at.seed, at.max_completion_length, {"due": [5, 2]})
    found = together(2, lambda own: batch_on(own, [0, 1], at=at))
    assert [given[ROW] for batch in found for given in batch.inputs] == [5] * 4 + [2] * 4
    assert [row.problem for batch in found for row in batch.rows] == [5] * 4 + [2] * 4


@dataclass(frozen=True)
class Answers(Method):
    """The same prefix for every row."""

    given: Prefix | None = None

    @property
    def needs(self):
        return Needs(prefixes=True)

    def prefix(self, row, step):
        return self.given


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (None, False),  # by design from nothing
        (Prefix([1, 2], 2, 9), True),
        (Prefix([], 2, 9), True),  # the guard has left nothing of it
        (NO_PREFIX, True),  # it was to get one, and there was none
        (Prefix([], 0, 9), False),  # a length of 0 was what it was to get
    ],
)
def test_which_rows_ask_for_a_prefix(given, asked):
    plan, found = planning.plan_of(Answers(given), [Row(0, 4, 0, TABLE[0])], step())
    assert found == [asked]
    assert plan == [given or NO_PREFIX]


@dataclass(frozen=True)
class OnOneRow(Answers):
    """A prefix for one row of all, of which the guard leaves something or nothing."""

    def prefix(self, row, step):
        return self.given if row.index == 5 else None


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_batch_stops_on_all_ranks_if_some_row_asks_and_none_gets_a_prefix(ranks):
    def failed(own):
        try:
            batch_on(own, [0, 2], OnOneRow(Prefix([], 3, 8)))
        except DataError as error:
            return str(error)
        return None

    found = together(ranks, failed)
    assert all("OnOneRow injected no prefix although rows of the batch ask for one" in said for said in found)
    together(ranks, lambda own: batch_on(own, [0, 2], OnOneRow(Prefix([1], 3, 8))))
    together(ranks, lambda own: batch_on(own, [0, 2], OnOneRow(None)))
    together(ranks, lambda own: batch_on(own, [1, 3], LATE))  # no demonstration: nobody asks


def test_an_epoch_asks_for_demonstrations_only_where_they_make_a_difference():
    class Asked(list):
        def __getitem__(self, row):
            raise AssertionError("was asked")

    assert planning.epoch(DrGRPO(), Asked([[], []])) == ([0, 1], [0, 0])
    assert planning.epoch(PrefixRL(cuts=2), [["a"], []]) == ([0, 0, 0, 1], [0, 1, 2, 0])
    with pytest.raises(AssertionError):
        planning.epoch(PrefixRL(cuts=2), Asked([[], []]))


@given(
    plan=st.lists(st.tuples(st.lists(st.integers(3, 9), max_size=4), st.booleans()), min_size=1, max_size=6),
    budget=st.integers(1, 8), all_rows=st.booleans(),
)  # fmt: skip
def test_prefix_and_continuation_are_joined_as_in_a_slow_loop(plan, budget, all_rows):
    plan = [Prefix(ids, complete=complete and bool(ids)) for ids, complete in plan]
    prompts = [[100 + i] for i in range(len(plan))]
    rows = planning.to_generate(plan, all_rows)
    asked = planning.begun(prompts, plan, rows)
    written = {row: [len(ids), 1, 2] for row, ids in zip(rows, asked, strict=True)}  # depends on what was asked for
    completions = planning.joined(plan, written, budget)
    logps = planning.joined(plan, {row: [-0.5] * 3 for row in rows}, budget, ids=False)
    for i, prefix in enumerate(plan):
        expected = list(prefix.ids) + ([] if prefix.complete else [1 + len(prefix.ids), 1, 2])
        assert completions[i] == expected[:budget]
        assert logps[i] == ([None] * len(prefix.ids) + [-0.5] * 3 * (not prefix.complete))[:budget]
    assert rows == list(range(len(plan))) if all_rows else bool(rows)


def test_the_engine_is_asked_for_what_is_not_complete_and_for_one_row_at_least():
    complete = Prefix([5], complete=True)
    assert planning.to_generate([complete, complete], all_rows=False) == [0]
    assert planning.to_generate([complete, NO_PREFIX, complete], all_rows=False) == [1]
    assert planning.to_generate([complete, NO_PREFIX, complete], all_rows=True) == [0, 1, 2]


def test_a_prefix_that_was_dropped_is_found_out():
    plan = [NO_PREFIX, Prefix([5, 6])]
    planning.check_tokens(plan, [[1], [5, 6, 7]])
    with pytest.raises(RuntimeError, match="row 1 should start with a prefix of 2 tokens and does not"):
        planning.check_tokens(plan, [[1], [5, 7, 6]])


def test_demonstrations_that_do_not_fit_whole_are_named():
    tokenizer = byte_level_bpe()
    with pytest.raises(DataError, match="longer than max_completion_length = 3 with its end"):
        planning.usable_demonstrations(LUFFY(), [["long enough to be too long"]], [""], tokenizer, 3)
    assert not any(planning.usable_demonstrations(DrGRPO(), [[]], [""], tokenizer, 3))


# --- hints, and what reward functions are told ------------------------------------------------------------------------


WITH_HINTS = QuestA(switch=99, first=0.5, instruction=" <{}>")  # 4 of 8 tokens


class Emptied(QuestA):
    """The guard has left nothing of any hint."""

    def prefix(self, row, step):
        return Prefix([], 3, 8)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_hint_stands_in_the_prompt_and_nothing_in_the_rollout(ranks):
    tokenizer = byte_level_bpe()

    def on(own):
        made, rows = planner(own, WITH_HINTS), [{ROW: i // 4, COPY: 0, "prompt": "?"} for i in range(8)]
        return made.planned(rows[own.own(8 // ranks)], step(5))

    found = together(ranks, on)
    asked = [given["prompt"] for batch in found for given in batch.inputs]
    assert asked == [f"? <{tokenizer.decode([0, 1, 2, 3], skip_special_tokens=True)}>"] * 4 + ["?"] * 4
    for batch in found:
        assert list(batch.plan) == [NO_PREFIX] * (8 // ranks)
        assert not batch.planned.asked.any()
        assert not batch.planned.prefixed.any()
        assert batch.hints.lengths.tolist() == [4] * 4 + [0] * 4
    with pytest.raises(DataError, match="Emptied injected no prefix"):
        together(1, lambda own: batch_on(own, [0], Emptied()))


def test_a_hint_ends_the_last_turn_of_a_conversation():
    (made,) = together(1, lambda own: planner(own, WITH_HINTS))
    turns = [{"role": role, "content": role} for role in ("system", "assistant", "user")]
    ids = made.tokenizer("12")["input_ids"]
    found = made.hinted({"prompt": turns, "answer": "3"}, Prefix(ids, len(ids), 8))
    assert found == {"prompt": [*turns[:2], {"role": "user", "content": "user <12>"}], "answer": "3"}
    assert turns[-1]["content"] == "user"


def test_one_row_is_planned_as_it_would_be_in_a_batch():
    row = Row(0, 4, 0, TABLE[0])
    (made,) = together(1, lambda own: planner(own))
    assert made.planned_row({"prompt": "?"}, row, step(5)) == ({"prompt": "?"}, row, LATE.prefix(row, step(5)))
    (made,) = together(1, lambda own: planner(own, WITH_HINTS))
    given, same, prefix = made.planned_row({"prompt": "?"}, row, step(5))
    assert given["prompt"].startswith("? <")
    assert (same, prefix) == (row, NO_PREFIX)


def test_reward_functions_are_told_where_a_prefix_ends_that_is_not_the_whole_demonstration():
    (made,) = together(1, lambda own: planner(own))
    start, end = made.tokenizer("12 + ")["input_ids"], made.tokenizer("34 is")["input_ids"]
    plan = [Prefix(start, 5, 9), NO_PREFIX, Prefix([*start, *end], 9, 9, complete=True)]
    for written in (["12 + 34 is"] * 3, [[{"content": "tool"}, {"content": "12 + 34 is"}]] * 3):
        found = made.for_grading(plan, [{"answer": "46"}] * 3, written, [[*start, *end]] * 3)
        assert found == [{"answer": "46", "continuation_start": at} for at in (5, 0, 0)]
    [nothing] = made.for_grading([NO_PREFIX], [{}], [[{"content": None}]], [[]])
    assert nothing == {"continuation_start": 0}
    (plain,) = together(1, lambda own: planner(own, DrGRPO()))
    rows = [{"answer": "46"}]
    assert plain.for_grading([NO_PREFIX], rows, ["46"], [[1]]) is rows


def test_a_mixture_repeats_rows_as_often_as_its_data_says():
    repeated = Dataset.from_dict({REPEATS: [1, 3]})
    assert planning.epoch(DrGRPO(), [[], []], repeated) == ([0, 1, 1, 1], [0, 0, 0, 0])
    assert planning.epoch(DrGRPO(), [[], []], Dataset.from_dict({"prompt": ["a", "b"]})) == ([0, 1], [0, 0])


def test_an_epoch_repeats_what_only_a_small_share_of_it_would_have():
    # one of two problems is half of an epoch as it is, so that two problems do not tell; one of four is repeated to 3 of 6
    assert planning.epoch(BREAD(demonstrated_share=0.5), [["d"], [], [], []]) == (
        [0, 0, 0, 1, 2, 3],
        [0, 1, 2, 0, 0, 0],
    )
    assert planning.epoch(PrefixRL(cuts=1, plain=0), [[]]) == ([], [])
    assert planning.epoch(PrefixRL(cuts=1, plain=0), [["d"], []]) == ([0], [0])
