from dataclasses import replace

import pytest
import torch
from flow import asks, plan
from small import dataset
from test_methods import TRAINING, groups, rollouts, rows, step
from test_trainer import parameters, trainer

from prefix_rl.controllers import Interval, Search, Setpoint
from prefix_rl.methods.adaptive import Adaptive, observations
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.tempo import TEMPO
from prefix_rl.methods.uft import UFT
from prefix_rl.prefixes import Demonstration
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.rollouts import Row

NAN = torch.nan


def seen(rewards, fractions, problems, size=4, memory=None, index=0):
    """A generation batch in which problem ``problems[p]`` stands in group p."""
    batch = rollouts([float(r) for r in rewards], [0] * len(rewards), size=size)
    return replace(
        batch,
        fractions=torch.tensor(fractions),
        problems=torch.tensor(problems).repeat_interleave(size),
        step=replace(step(index), memory=memory or {}),
    )


def remembered(problems, common=(0.0, 1.0)):
    return {"adaptive": {"common": list(common), "problems": problems}}


# --- what is injected -------------------------------------------------------------------------------------------------


def test_each_problem_gets_the_length_that_its_controller_says():
    memory = remembered({"0": [0.4, 0.4], "1": [0.9, 0.9], "2": [0.0, 0.0]})
    at = replace(step(5), memory=memory)
    given = groups((0, 0), (1, 0), (2, 0), (0, 0))
    method = Adaptive()
    found = plan(method, given, at)
    assert [len(p.ids) for p in found] == [400] * 4 + [900] * 4 + [0] * 4 + [400] * 4
    assert [asks(method, row, at) for row in given] == [True] * 8 + [False] * 4 + [True] * 4
    assert [p.of for p in found[8:12]] == [1000] * 4  # of no length, and yet planned: so its success will be counted
    assert plan(method, given[6:], at) == found[6:]  # a rank plans its own


def test_lengths_are_drawn_anew_for_each_group_and_step_and_are_the_same_in_a_group():
    method, given = Adaptive(), groups(*[(3, copy) for copy in range(20)])
    found = plan(method, given, step(0))
    for i in range(0, 80, 4):
        assert found[i : i + 4] == [found[i]] * 4
    lengths = [len(p.ids) for p in found[::4]]
    assert len(set(lengths)) > 15
    assert min(lengths) < 200 < 800 < max(lengths)  # from [0, 1]
    assert [len(p.ids) for p in plan(method, given, step(1))[::4]] != lengths
    assert [len(p.ids) for p in plan(method, given, step(0, seed=1))[::4]] != lengths


def test_rows_that_the_method_within_leaves_alone_are_left_alone():
    method = Adaptive(PrefixRFT(prefixed=2))
    found = plan(method, rows(3, 8), step())
    assert [p.of > 0 for p in found] == ([True] * 2 + [False] * 6) * 3
    plain = Adaptive(PrefixRL(cuts=1, plain=1))
    assert [p.of > 0 for p in plan(plain, groups((0, 0), (0, 1)), step())] == [False] * 4 + [True] * 4
    assert not any(asks(Adaptive(), Row(0, 4, 0, ()), step()) for _ in range(4))


def test_a_setpoint_is_annealed_over_the_last_fifth_and_the_others_are_not():
    method = Adaptive(rule="setpoint", start=0.8)
    found = {at: len(plan(method, groups((0, 0)), step(at, total=100))[0].ids) for at in (0, 80, 90, 99, 100)}
    assert found == {0: 800, 80: 800, 90: 400, 99: 40, 100: 0}
    assert not asks(method, groups((0, 0))[0], step(100, total=100))
    assert replace(method, horizon=100).annealed(step(90, total=2000)) == 0.5
    assert replace(method, horizon=100).annealed(step(500, total=2000)) == 0
    assert [method.annealed(step(at, total=5)) for at in (3, 4, 5)] == [1, 1, 0]  # a fifth of 5 is one step
    assert Adaptive(rule="setpoint", anneal=0).annealed(step(99, total=100)) == 1
    assert Adaptive(rule="interval").annealed(step(99, total=100)) == 1


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_what_a_group_says():
    batch = seen(
        [1, 0, 0, NAN, 1, 1, 1, 1, 0, 1, 1, 1, NAN, NAN, NAN, 0],
        [0.5, 0.5, NAN, 0.5, NAN, NAN, NAN, NAN, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, NAN, NAN],
        problems=[7, 8, 9, 6],
    )
    # The first: 1 and 0 at 0.5; the third row had no prefix planned, the fourth no reward. The second: no prefix planned.
    # The third: without any help. The fourth: nobody with a prefix was scored
    assert observations(batch) == [(7, 0.5, 0.5), (9, 0.0, 0.75)]


def test_memory_in_numbers():
    method = Adaptive(target=0.5, average=1, unaided=0)
    first = method.remember({}, seen([1, 1, 0, 0] + [0] * 4, [0.5] * 4 + [0.25] * 4, problems=[7, 9]))
    assert first == remembered({"7": [0.0, 0.5], "9": [0.25, 1.0]})
    twice = seen([0] * 4 + [1] * 4, [0.25] * 4 + [0.5] * 4, problems=[7, 7], memory=first)
    assert method.remember(first, twice) == remembered(
        {"7": [0.0, 0.5], "9": [0.25, 1.0]}
    )  # [0.25, 0.5], then [0, 0.5]
    assert first == remembered({"7": [0.0, 0.5], "9": [0.25, 1.0]})  # as it was
    assert method.metrics(first) == pytest.approx(
        {"adaptive/problems": 2, "adaptive/fraction": (0.25 + 0.625) / 2, "adaptive/unaided_share": 0}
    )
    assert method.metrics({}) == {}


def test_a_batch_without_prefixes_teaches_nothing():
    assert Adaptive().remember({}, seen([1] * 4, [NAN] * 4, problems=[3])) == {}
    assert Adaptive().remember({}, seen([NAN] * 4, [0.5] * 4, problems=[3])) == {}


def test_the_common_part_moves_once_a_batch_and_nothing_while_lengths_are_annealed():
    method = Adaptive(rule="setpoint")
    batch = seen([1, 1, 1, 1, 1, 0, 0, 0], [0.5] * 8, problems=[0, 1])
    found = method.remember({}, batch)["adaptive"]
    # Success 1 and 0.25: the average moves from 0.5 to 0.5 + 0.5 * 0.125, the length by 0.1 * (0.5 - 0.5625)
    assert found["common"] == pytest.approx([0.5625, 0.5 - 0.00625])
    assert found["problems"] == {"0": pytest.approx([-0.05]), "1": pytest.approx([0.025])}
    late = replace(batch, step=step(450, total=500))
    assert method.remember({}, late) == {}


def test_the_rules_take_their_settings():
    assert Adaptive(target=0.3).controller == Interval(0.3, average=0.8, unaided=0.1, longest=1.0)
    assert Adaptive(average=1, unaided=0, longest=0.9).controller == Interval(0.5, longest=0.9)
    assert Adaptive(rule="setpoint", target=0.6, gain=0.2, smoothing=1, start=0.1).controller == Setpoint(
        0.6, 0.2, 1, 0.1
    )
    assert Adaptive(rule="search", episodes=5, least=0.1, most=0.6).controller == Search(5, 0.1, 0.6)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Adaptive(UFT()), "method.of.name = uft: its hints have a schedule of their own, in pieces"),
        (Adaptive(TEMPO()), "method.of.name = tempo: write it the other way round, tempo with of: adaptive"),
        (Adaptive(LUFFY()), "method.of.name = luffy: its demonstrations are injected whole"),
        (Adaptive(DrGRPO()), "method.of.name = dr_grpo: it starts no rollout from a prefix"),
        (Adaptive(least=0.8), "method.least = 0.8 is above method.most = 0.75"),
        (Adaptive(PrefixRL(low=0.2)), "method.of.low = 0.2 says nothing here: adaptive decides the lengths"),
        (Adaptive(PrefixRFT(horizon=100)), "method.of.horizon = 100 says nothing here"),
        (Adaptive(PrefixRL(traces="wrong")), "behind a failure it is harder; take prefix_rl by itself"),
        (Adaptive(PrefixRFT(prefixed=9)), "method.of.prefixed = 9 is more than training.num_generations = 8"),
    ],
)
def test_contradictions_are_explained(method, message):
    (fault,) = method.faults(TRAINING)
    assert message in fault


def test_what_combines():
    for method in (Adaptive(), Adaptive(PrefixRL()), Adaptive(PrefixRFT()), TEMPO(Adaptive(PrefixRFT()))):
        assert method.faults(TRAINING) == []


# --- in the trainer ---------------------------------------------------------------------------------------------------


def short_ones_win(completions, completion_ids, **kwargs):
    """Right with few odd ids: some groups fail, some do not."""
    return [float(sum(i % 2 for i in ids) % 3 == 0) for ids in completion_ids]


@pytest.mark.parametrize("rule", ["interval", "setpoint", "search"])
def test_a_resumed_run_has_the_same_controllers_lengths_and_parameters(tmp_path, rule):
    method = TEMPO(Adaptive(rule=rule, **({"start": 0.3, "anneal": 0.2} if rule == "setpoint" else {})))
    options = {"data": dataset(4), "max_steps": 6, "reward": short_ones_win, "options": {"rollouts_every": 1}}
    whole = trainer(tmp_path / "run", method, **options, save_strategy="steps", save_steps=4)
    whole.train()
    again = trainer(tmp_path / "again", method, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert again._saved.memory == whole._saved.memory
    assert set(whole._saved.memory["adaptive"]["problems"]) == {"0", "1", "2", "3"}
    assert parameters(again).equal(parameters(whole))
    assert read_rollouts(tmp_path / "run", 5) == read_rollouts(tmp_path / "again", 5)


def test_controllers_see_what_happened_and_the_next_lengths_follow(tmp_path):
    made = trainer(
        tmp_path, Adaptive(rule="search"), data=dataset(2), max_steps=4, options={"rollouts_every": 1},
        reward=lambda completions, **kwargs: [0.0] * len(completions),
    )  # fmt: skip
    made.train()
    # Alone, then with 5, 8 and 9 of 10 parts of 32 to 35 tokens, of which 24 with the continuation fit: 23 are given,
    # and these are 7 parts to the controller
    lengths = [{r["prefix_tokens"] for r in read_rollouts(tmp_path, at)} for at in range(4)]
    assert lengths[0] == {0}
    assert lengths[1] <= {16, 17}
    assert lengths[2] == lengths[3] == {23}
    assert made._saved.memory["adaptive"]["problems"] == {"0": [7, 10], "1": [7, 10]}


def test_a_run_in_which_no_length_is_left_goes_on(tmp_path):
    made = trainer(
        tmp_path, Adaptive(), max_steps=2, data=dataset(2),
        reward=lambda completions, **kwargs: [1.0] * len(completions),
    )  # fmt: skip
    made._saved.remember(remembered({"0": [0.0, 0.0], "1": [0.0, 0.0]}))
    made.train()
    assert [m["prefix/rollouts"] for m in made.state.log_history if "prefix/rollouts" in m] == [0, 0]


@pytest.mark.parametrize("method", [TEMPO(Adaptive()), TEMPO(UFT(weight=0.5))], ids=["tempo adaptive", "tempo uft"])
def test_they_train_adapters(tmp_path, method):
    from peft import LoraConfig

    peft = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    made = trainer(tmp_path, method, options=peft, max_steps=2)
    before = parameters(made).clone()
    made.train()
    assert not parameters(made).equal(before)
    assert any(m.get("prefix/rollouts") for m in made.state.log_history)


def test_demonstrations_of_which_nothing_may_be_shown_are_left_out():
    assert not Adaptive().needs.usable(Demonstration((1, 2, 3), safe_length=0))
