"""ARG: which cuts are tried for a group that failed, which one stays, where the next search begins, what is trained."""

import dataclasses
import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_methods import TRAINING, rollouts
from test_oracle import Run, off
from test_trainer import parameters
from test_trainer import trainer as make

from prefix_rl.methods.arg import ARG, Ended, Try, search
from prefix_rl.methods.base import Earlier, Needs
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.prefixes import Demonstration
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.rollouts import Row, Step

IDS = tuple(range(100, 110))
# surprisal 1 1 1 1 4 4 4 2 1 1 = 20: a quarter is reached with 5 tokens (8), a half with 6 (12), the whole with 10 (9 at most)
SHARES = tuple(s / 20 for s in itertools.accumulate([1, 1, 1, 1, 4, 4, 4, 2, 1, 1]))
DEMONSTRATION = Demonstration(IDS, 10, shares=SHARES)
LENGTHS = [5, 6, 9]


def world(succeeds, groups=1, size=4, memory=None, unaided=0.0, demonstration=DEMONSTRATION, method=None):
    """The batch after all rounds, where a try of ``length`` tokens succeeds if ``succeeds(group, length)``; and the
    length of each try of the first group."""
    method = method or ARG()
    step = Step(0, 10, 0, 100, memory or {})
    rows = [Row(i, size, i // size, (demonstration,)) for i in range(groups * size)]
    rewards = [unaided if i % size == 1 else 0.0 for i in range(groups * size)]
    now = dataclasses.replace(rollouts(rewards, [0] * len(rows), width=12, size=size), step=step, rows=rows)
    history, tries = [now], []
    for _ in range(method.needs.help_rounds):
        answers = method.help(now, step)
        if not answers:
            break
        assert all(row % size == 0 for row in answers)
        scored, lengths = now.rewards.clone(), now.prefix_mask.sum(dim=1)
        for row, answer in answers.items():
            if isinstance(answer, Earlier):
                scored[row] = history[answer.round].rewards[row]
                lengths[row] = history[answer.round].prefix_mask[row].sum()
            else:
                assert answer.ids == list(IDS[: len(answer.ids)])
                scored[row], lengths[row] = float(succeeds(row // size, len(answer.ids))), len(answer.ids)
                tries += [len(answer.ids)] if row == 0 else []
        now = dataclasses.replace(
            rollouts(scored.tolist(), lengths.tolist(), width=12, size=size),
            step=step,
            rows=rows,
            earlier=tuple(history),
        )
        history.append(now)
    assert method.help(now, step) == {} or len(history) > method.needs.help_rounds
    return now, tries


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needed", "rates", "tries", "stays"),
    [
        (5, [1, 1, 1], [5], 5),  # the shortest is tried first, and does it
        (6, [1, 1, 1], [5, 6], 6),
        (9, [1, 1, 1], [5, 6, 9], 9),
        (99, [1, 1, 1], [5, 6, 9], 0),  # none: the unaided one again
        (5, [0.4, 0.5, 1], [6, 5], 5),  # begins with the half, and then shorter
        (6, [0.4, 0.5, 1], [6, 5], 6),  # the quarter fails: the half's rollout is put back
        (9, [0.4, 0.5, 1], [6, 9], 9),
        (5, [0, 0, 0], [9, 6, 5], 5),  # none is enough: the longest first
        (99, [0, 0, 0], [9], 0),
    ],
)
def test_the_shortest_that_succeeds_is_put_in(needed, rates, tries, stays):
    last, found = world(lambda group, length: length >= needed, memory={"arg": rates})
    assert found == tries
    assert int(last.prefix_mask[0].sum()) == stays
    assert last.rewards.tolist() == [float(stays > 0), 0, 0, 0]


@given(
    right=st.lists(st.booleans(), min_size=5, max_size=5), candidates=st.lists(st.integers(0, 4), unique=True).map(sorted),
    first=st.integers(0, 4),
)  # fmt: skip
def test_a_search_tries_nothing_twice_and_ends_with_the_shortest_it_saw_succeed(right, candidates, first):
    tries = []
    while isinstance(found := search(candidates, first, tries), Try):
        tries.append((found.share, right[found.share]))
    tried = [share for share, _ in tries]
    assert len(set(tried)) == len(tried) <= len(candidates)
    succeeded = [share for share, success in tries if success]
    assert found == Ended(tried.index(min(succeeded)) + 1 if succeeded else 0)
    if candidates and not succeeded:  # all that are longer than the first were tried
        assert {c for c in candidates if c >= first} <= set(tried)
    if succeeded:  # the next shorter one was tried and failed, or is shorter than a first one that failed
        shorter = [c for c in candidates if c < min(succeeded)]
        assert not shorter or shorter[-1] in tried


def test_groups_are_helped_apart_and_a_group_with_a_right_rollout_is_not():
    last, _ = world(lambda group, length: length >= (5, 9, 99)[group], groups=3)
    assert last.prefix_mask.sum(dim=1)[::4].tolist() == [5, 9, 0]
    last, tries = world(lambda group, length: True, unaided=1.0)
    assert (tries, last.earlier) == ([], ())
    row = Row(0, 4, 0, ())
    plain = dataclasses.replace(rollouts([0.0] * 4, [0] * 4), rows=[row] * 4)
    assert ARG().help(plain, plain.step) == {}
    unscored = dataclasses.replace(rollouts([torch.nan] * 4, [0] * 4), rows=[Row(0, 4, 0, (DEMONSTRATION,))] * 4)
    assert ARG().help(unscored, unscored.step) == {}


def test_cuts_behind_the_answer_are_one():
    guarded = dataclasses.replace(DEMONSTRATION, safe_length=6)
    assert world(lambda group, length: False, demonstration=guarded)[1] == [5, 6]
    assert world(lambda group, length: False, memory={"arg": [0, 0, 0]}, demonstration=guarded)[1] == [6]
    nothing = dataclasses.replace(DEMONSTRATION, safe_length=0)
    assert world(lambda group, length: True, demonstration=nothing)[1] == []


# --- the selector -----------------------------------------------------------------------------------------------------


def test_success_rates_are_moving_averages_over_problems():
    # two groups: the first needs the half, the second the quarter; tries of the quarter: 0 and 1, of the half: 1
    last, _ = world(lambda group, length: length >= (6, 5)[group], groups=2, memory={"arg": [0.8, 0.2, 0.6]})
    found = ARG(smoothing=0.25).remember(last.step.memory, last)["arg"]
    assert found == pytest.approx([0.8 + 0.25 * (0.5 - 0.8), 0.2 + 0.25 * (1 - 0.2), 0.6])
    assert ARG().metrics({"arg": found}) == dict(
        zip(("arg/rate_0.25", "arg/rate_0.5", "arg/rate_1"), found, strict=True)
    )
    assert ARG().rates({}) == [1, 1, 1]  # as if what was never tried had always succeeded
    assert ARG().remember({}, world(lambda group, length: True, unaided=1.0)[0]) == {}


def test_the_selector_learns_where_to_begin_and_unlearns_it():
    memory, begins = {}, []
    for needed in [9] * 40 + [5] * 40:
        last, tries = world(lambda group, length, needed=needed: length >= needed, memory=memory)
        begins.append(tries[0])
        memory = ARG().remember(last.step.memory, last)
    assert (begins[0], begins[39]) == (5, 9)
    assert begins[79] == 5


# --- credit and what is trained ---------------------------------------------------------------------------------------


def test_the_whole_trajectory_gets_its_credit():
    last, _ = world(lambda group, length: length >= 6)
    method = ARG()
    assert method.advantages(last)[:, 0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert method.update_mask(last, None).equal(last.completion_mask)
    assert (method.advantages(last)[0] == 0.75).all()  # prefix and continuation alike
    assert method.faults(TRAINING) == []
    assert "must ascend" in ARG(shares=(0.5, 0.25)).faults(TRAINING)[0]
    assert ARG(shares=()).needs == Needs()


def only_twice(completions, completion_ids, **columns):
    """Right is what has the word in it: no untrained policy writes it, and every demonstration does."""
    return [float("twice" in completion) for completion in completions]


def test_a_run_without_shares_is_dr_grpo_bit_for_bit(tmp_path):
    made = make(tmp_path / "arg", ARG(shares=()))
    made.train()
    plain = make(tmp_path / "plain", DrGRPO())
    plain.train()
    assert parameters(made).equal(parameters(plain))


@pytest.mark.parametrize("cut", ["surprisal", "tokens"])
def test_a_whole_step_is_the_one_written_by_hand(tmp_path, cut):
    run = Run(tmp_path, ARG(cut=cut, shares=(0.25, 0.5, 0.75, 1.0)), reward=only_twice, steps=2)
    helped = 0
    for step in range(2):
        records = read_rollouts(tmp_path, step)
        model, loss = run.policy(step), torch.zeros((), dtype=torch.double)
        for start in range(0, len(records), 4):
            group = records[start : start + 4]
            mean = sum(r["reward"] for r in group) / 4
            for member, record in enumerate(group):
                assert member == 0 or not record["prefix_tokens"]
                assert not record["prefix_tokens"] or (record["reward"] == 1 and sum(r["reward"] for r in group) == 1)
                helped += bool(record["prefix_tokens"])
                prompt, ids = (
                    run.made.processing_class(json.loads(record["prompt"]))["input_ids"],
                    list(record["completion_ids"]),
                )
                logps = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                loss = loss - (record["reward"] - mean) * logps.gather(1, torch.tensor(ids).unsqueeze(1)).sum()
        (loss / (len(records) * run.args.max_completion_length)).backward()
        expected = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                              for p in model.parameters()])  # fmt: skip
        assert expected.norm() > 1e-3
        assert off(run.measured(step), expected) < 1e-3
    assert helped > 1
