"""ReLIFT: a buffer of failed questions, and supervised batches on their demonstrations."""

import dataclasses

import pytest
import torch
from flow import plan, trained_on
from hypothesis import given
from hypothesis import strategies as st
from small import lora, policy, token_reward, trains_adapters_alone
from test_methods import rollouts
from test_trainer import (
    LONG,
    TOKENIZER,
    asked_of_the_engine,
    generation,
    gradient_of,
    loss_gradient,
    parameters,
    reference_logps,
)
from test_trainer import trainer as make

from prefix_rl.costs import Cost
from prefix_rl.errors import RecipeError
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.relift import ReLIFT
from prefix_rl.prefixes import NO_PREFIX, Demonstration
from prefix_rl.recipe import load_recipe
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.reports.schedule import preview
from prefix_rl.rollouts import Row, Step


def trainer(folder, method=None, **options):
    return make(folder, method or ReLIFT(), **{**LONG, **options})


def failing(completions, **columns):
    return [0.0] * len(completions)


def rolled_out(problems, rewards, demonstrated=None, memory=None):
    """A rollout batch of groups of two."""
    flat = [float(reward) for group in rewards for reward in group]
    return dataclasses.replace(
        rollouts(flat, [0] * len(flat), size=2),
        problems=torch.tensor([p for p in problems for _ in range(2)]),
        demonstrated=torch.tensor([d for d in demonstrated or [True] * len(problems) for _ in range(2)]),
        step=Step(0, 100, 0, 10, memory or {}),
    )


def remembered(method, batches):
    memory, found = {}, []
    for problems, rewards, *demonstrated in batches:
        memory = method.remember(memory, rolled_out(problems, rewards, *demonstrated, memory=memory))
        found.append((memory["waiting"], memory["due"]))
    return found, memory


FAILED, SOLVED, UNSCORED = (0, 0), (0, 1), (torch.nan, torch.nan)


# --- the buffer -------------------------------------------------------------------------------------------------------


def test_failed_questions_wait_until_there_are_enough_for_a_batch():
    found, memory = remembered(
        ReLIFT(),
        [
            ((7, 3), (SOLVED, FAILED)),
            ((5, 3), (SOLVED, FAILED)),  # waits already
            ((8, 1), (UNSCORED, FAILED)),  # nothing is known of 8
            ((3, 1), (FAILED, FAILED)),  # the supervised batch itself: what it earned says nothing
            ((4, 6), (FAILED, FAILED), [False, True]),  # there is nothing to imitate for 4
        ],
    )
    assert found == [([3], []), ([3], []), ([], [3, 1]), ([], []), ([6], [])]
    assert memory["demonstrated"] == 7  # of 8 questions that were rolled out
    assert memory["supervised"] == 2
    assert ReLIFT().metrics(memory) == {"buffer": 1, "demonstrations_used": 2 / 7}


def test_a_larger_buffer_gives_several_batches_with_rollouts_between_them():
    some = [((2 * n, 2 * n + 1), (FAILED, FAILED)) for n in range(3)]
    found, _ = remembered(ReLIFT(buffer=5), [*some, ((0, 1), (FAILED, FAILED)), ((8, 9), (SOLVED, FAILED))])
    assert found[1] == ([0, 1, 2, 3], [])
    assert found[2:] == [([2, 3, 4, 5], [0, 1]), ([2, 3, 4, 5], []), ([4, 5, 9], [2, 3])]  # five: 2, 3, 4, 5 and 9
    assert remembered(ReLIFT(buffer=1), some[:1])[0] == [([], [0, 1])]  # raised to the questions of a batch


@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), min_size=3, max_size=3, unique_by=lambda t: t[0]),
        max_size=20,
    ),
    buffer=st.integers(1, 7),
)  # fmt: skip
def test_the_buffer_equals_a_slow_queue(batches, buffer):
    method, memory, queue, due = ReLIFT(buffer=buffer), {}, [], []
    for batch in batches:
        problems = due or [p for p, *_ in batch]
        assert list(Step(0, 100, 0, 10, memory).due) == due
        made = rolled_out(
            problems, [SOLVED if solved else FAILED for _, solved, _ in batch], [d for *_, d in batch], memory
        )
        memory = method.remember(memory, made)
        if due:
            due = []
        else:
            for problem, solved, demonstrated in batch:
                if demonstrated and not solved and problem not in queue:
                    queue.append(problem)
            if len(queue) >= max(buffer, 3):
                due, queue = queue[:3], queue[3:]
        assert (memory["waiting"], memory["due"]) == (queue, due)


def test_without_supervision_nothing_is_remembered():
    method = ReLIFT(supervise=False)
    assert method.remember({}, rolled_out((1, 2), (FAILED, FAILED))) == {}
    assert method.metrics({}) == {}
    assert not method.needs.prefixes


# --- what is injected -------------------------------------------------------------------------------------------------


def test_a_supervised_batch_holds_one_whole_demonstration_for_each_group():
    demonstrations = tuple(Demonstration((n, n + 1, n + 2), 1, stop=99) for n in (10, 20, 30))
    rows = [Row(i, 4, (4, 6, 8)[i // 4], demonstrations) for i in range(12)]
    memory = {"waiting": [], "due": [4, 6, 8]}
    found = plan(ReLIFT(), rows, Step(3, 100, 0, 10, memory))
    assert all(prefix.complete and prefix.ids[-1] == 99 for prefix in found)
    assert [found[i] == found[i - i % 4] for i in range(12)] == [True] * 12
    drawn = {tuple(plan(ReLIFT(), rows, Step(t, 100, 0, 10, memory))[0].ids) for t in range(20)}
    assert len(drawn) == 3  # of several one is drawn, anew in each step
    assert plan(ReLIFT(), rows, Step(3, 100, 0, 10)) == [NO_PREFIX] * 12


# --- credit and loss --------------------------------------------------------------------------------------------------


def test_rollout_batches_are_dr_grpos_and_supervised_ones_a_mean_over_tokens():
    plain = dataclasses.replace(rollouts([1.0, 0, 0, 0], [0] * 4), step=Step(0, 100, 0, 10))
    assert ReLIFT().advantages(plain).equal(DrGRPO().advantages(plain))
    assert ReLIFT().update_mask(plain, None).equal(DrGRPO().update_mask(plain, None))
    assert not ReLIFT().weights(plain).any()
    assert ReLIFT().extra_loss(trained_on(plain, ReLIFT().weights(plain)), torch.zeros(4, 6), torch.zeros(4, 6)) is None
    batch = dataclasses.replace(rollouts([1.0] * 4, [2, 2, 6, 6]), step=Step(0, 100, 0, 10))
    batch = dataclasses.replace(batch, completion_mask=batch.prefix_mask)
    weights = ReLIFT().weights(batch)
    assert not ReLIFT().advantages(batch).any()
    assert weights[0].tolist() == [2.5, 2.5, 0, 0, 0, 0]  # 4 rows * 10 tokens / 16 tokens of demonstrations
    assert not ReLIFT().update_mask(batch, None).any()
    logps = -torch.arange(24.0).view(4, 6)
    loss = ReLIFT().extra_loss(trained_on(batch, weights), logps, logps)
    # (0 + 1) + (6 + 7) + (12 + ... + 17) + (18 + ... + 23) = 1 + 13 + 87 + 123 = 224, over 16 tokens
    assert float(loss) == 14.0


def supervised(made):
    """The batch after one in which both groups failed."""
    generation(made)
    return generation(made)


def test_the_gradient_of_a_supervised_batch_is_the_mean_nll_written_by_hand(tmp_path):
    made = trainer(tmp_path, reward=failing)
    batch = supervised(made)
    written = batch["completion_mask"].bool()
    assert batch["prefix_mask"].equal(written)
    theirs = gradient_of(made, -(reference_logps(made, batch) * written).sum() / written.sum())
    ours = loss_gradient(made, batch)
    assert theirs.abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-5 * max(1, float(theirs.abs().max()))
    made.current_gradient_accumulation_steps = 4
    parts = [loss_gradient(made, batch, rows) for rows in torch.tensor([5, 0, 3, 7, 1, 2, 6, 4]).split(2)]
    assert (sum(parts) - ours).abs().max() < 1e-5 * max(1, float(ours.abs().max()))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_supervised_batches_take_turns_with_rollouts_and_keep_the_policys_metrics_clean(tmp_path):
    made = trainer(tmp_path, reward=failing, max_steps=5, options={"rollouts_every": 1})
    made.train()
    shown = [{(r["row"], r["prefix_tokens"] > 0) for r in read_rollouts(tmp_path, step)} for step in range(5)]
    for step in (1, 3):
        assert shown[step] == {(row, True) for row, _ in shown[step - 1]}  # what has just failed
        tokens = [r["completion_ids"] for r in read_rollouts(tmp_path, step)]
        assert [tokens[i] == tokens[i - i % 4] for i in range(8)] == [True] * 8
    assert not any(prefixed for step in (0, 2, 4) for _, prefixed in shown[step])
    logs = [log for log in made.state.log_history if "loss" in log]
    misleading = ("reward", "reward_std", "frac_reward_zero_std", "rewards/failing/mean", "reward_with_prefix",
                  "reward_without_prefix", "completions/mean_length", "completions/clipped_ratio", "entropy",
                  "entropy_continuation", "clip_ratio/low_mean", "clip_ratio/low_min")  # fmt: skip
    for step, log in enumerate(logs):
        assert [key in log for key in misleading] == [step % 2 == 0] * len(misleading)
        assert log["prefix/rollouts"] == 8 * (step % 2)
        assert ("entropy_prefix" in log) == (step % 2 == 1)
        assert log.get("prefix/kept_share") == (1.0 if step % 2 else None)
    assert [log["method/buffer"] for log in logs] == [2, 0, 2, 0, 2]
    assert [log["method/demonstrations_used"] for log in logs] == [0, 1, 0.5, 1, 4 / 6]


def test_nothing_is_generated_for_a_supervised_batch_and_each_demonstration_costs_once(tmp_path, monkeypatch):
    made = trainer(tmp_path, reward=failing)
    asked = asked_of_the_engine(monkeypatch, answer=[5, 6, TOKENIZER.eos_token_id])
    batch = supervised(made)
    assert [len(rows) for rows in asked] == [8, 1]
    parameters = sum(p.numel() for p in made.model.parameters())
    lengths = batch["completion_mask"].sum(dim=1).tolist()
    assert lengths == [34] * 8
    # 8 rollouts of 7 + 3 tokens, sampled and trained, without credit; 2 demonstrations of 7 + 34 trained: 8 * 80 + 6 * 82
    assert made.cost == Cost(24, 68, 68, (640 + 492) * parameters)


def test_a_run_in_which_nothing_fails_is_dr_grpo(tmp_path):
    def solving(completions, completion_ids, **columns):
        return [1.0 + r for r in token_reward(completions, completion_ids)]

    runs = []
    for name, method in (("ours", ReLIFT()), ("plain", DrGRPO())):
        runs.append(trainer(tmp_path / name, method, reward=solving))  # seeds what is sampled
        runs[-1].train()
    assert parameters(runs[0]).equal(parameters(runs[1]))
    assert runs[0]._saved.memory["supervised"] == 0
    assert not parameters(runs[0]).equal(torch.cat([p.detach().flatten() for p in policy(TOKENIZER).parameters()]))


def test_a_run_resumed_with_a_buffer_half_full_goes_on_exactly(tmp_path):
    options = {"method": ReLIFT(buffer=3), "reward": failing, "max_steps": 6}
    whole = trainer(tmp_path / "run", **options, save_strategy="steps", save_steps=1)
    whole.train()
    for stop in (1, 2, 3):  # two questions wait; a supervised batch is due; one question waits
        again = trainer(tmp_path / f"again{stop}", **options)
        again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{stop}"))
        assert again._saved.memory == whole._saved.memory
        assert parameters(again).equal(parameters(whole))
    assert whole._saved.memory["supervised"] >= 4


def test_relift_trains_with_lora(tmp_path):
    trains_adapters_alone(trainer(tmp_path, reward=failing, options=lora()))


@pytest.mark.parametrize(
    "changes",
    [{"num_iterations": 2}, {"steps_per_generation": 4}, {"entropy_coef": 0.01}, {"logging_steps": 2}],
    ids=str,
)
def test_relift_trains_with_other_settings_of_trl(tmp_path, changes):
    made = trainer(tmp_path, reward=failing, **changes, max_steps=4)
    made.train()
    assert torch.isfinite(parameters(made)).all()
    assert made._saved.memory["supervised"]


def test_a_preview_says_that_the_run_decides():
    table = [(Demonstration((5, 6, 7), 1),)] * 4
    with pytest.raises(
        RecipeError,
        match="method relift starts no rollout from a prefix at any of the steps looked at, or decides it by how",
    ):
        preview(load_recipe("recipes/lab/relift.yaml"), table)


def test_a_buffer_of_nothing_is_refused():
    with pytest.raises(RecipeError, match=r"method.buffer = 0"):
        load_recipe("recipes/lab/relift.yaml", ["method.buffer=0"])
