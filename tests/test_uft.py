import math
import statistics
from collections import Counter
from pathlib import Path

import pytest
import torch
from flow import asks, plan, trained_on
from hypothesis import given
from hypothesis import strategies as st
from small import dataset
from test_methods import REWARDS, TRAINING, random_batch, rollouts, rows, step
from test_trainer import generation, gradient_of, loss_gradient, parameters, reference_logps, trainer

from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.uft import UFT, binomial
from prefix_rl.prefixes import NO_PREFIX, Demonstration
from prefix_rl.recipe import load_recipe
from prefix_rl.reports.schedule import preview
from prefix_rl.rollouts import Row

R3 = UFT(pieces="uniform", weight=0)

# --- what is injected -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "p"),
    [(0, 0.95), (75, 0.05 + 0.45 * (1 + 2**-0.5)), (150, 0.5), (225, 0.05 + 0.45 * (1 - 2**-0.5)), (300, 0), (499, 0)],
)
def test_the_share_of_the_pieces_at_the_papers_steps(at, p):
    assert UFT(horizon=300).probability(step(at)) == pytest.approx(p)
    assert UFT().probability(step(at, total=500)) == pytest.approx(p)  # 0.6 of 500
    assert UFT().probability(step(at * 2, total=1000)) == pytest.approx(p)


def test_just_before_the_horizon_there_still_are_hints():
    assert UFT(horizon=300).probability(step(299)) == pytest.approx(0.05, abs=1e-4)


@given(count=st.integers(1, 8), p=st.floats(0, 1), u=st.floats(0, 1, exclude_max=True))
def test_inversion_gives_the_binomial(count, p, u):
    n = binomial(count, p, u)
    below = sum(math.comb(count, k) * p**k * (1 - p) ** (count - k) for k in range(n))
    assert 0 <= n <= count
    assert below <= u + 1e-9
    assert u < below + math.comb(count, n) * p**n * (1 - p) ** (count - n) + 1e-9


@pytest.mark.parametrize(("at", "p"), [(0, 0.95), (150, 0.5), (290, 0.0512)])
def test_pieces_are_binomial(at, p):
    counts = Counter(UFT(horizon=300).shown(group, step(at)) for group in range(800))
    for n in range(6):
        expected = math.comb(5, n) * p**n * (1 - p) ** (5 - n)
        # 4 standard deviations of a share of 800 draws
        assert counts[n] / 800 == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 800) + 1e-3)


def test_r3s_pieces_are_uniform_and_never_annealed():
    for at in (0, 499):
        counts = Counter(R3.shown(group, step(at)) for group in range(1200))
        assert all(abs(counts[n] - 200) < 52 for n in range(6))  # 1,200 draws of 6: 200 +- 4 deviations of 12.9


def test_a_whole_group_has_the_same_hint_of_whole_pieces():
    given = rows(60, 8, length=103, count=3)
    found = plan(R3, given, step(150))
    for start in range(0, 480, 8):
        assert found[start : start + 8] == [found[start]] * 8
    lengths = {len(p.ids) for p in found}
    assert lengths == {0, 20, 41, 61, 82, 102}  # floor(n / 5 * 103), and one token is left to generate
    assert len({p.ids[0] for p in found if p.ids}) == 3  # a demonstration is drawn for each group
    assert plan(R3, given[300:], step(150)) == found[300:]  # a rank plans its own


def test_a_hint_respects_the_answer_guard_and_the_budget():
    guarded = [Row(0, 8, 0, (Demonstration(tuple(range(100)), safe_length=30),))]
    always = UFT(start=1, end=1)
    assert len(plan(always, guarded, step(0))[0].ids) == 30
    assert len(plan(always, rows(1, 1), step(0, budget=50))[0].ids) == 49


def test_nothing_is_asked_for_where_there_is_nothing_to_show():
    method, given = UFT(horizon=300), rows(10, 8)
    for at in (0, 290, 300):
        asked = [asks(method, row, step(at)) for row in given]
        assert asked == [bool(p.ids) for p in plan(method, given, step(at))]
    assert not any(asks(method, row, step(300)) for row in given)
    assert all(asks(UFT(start=1, end=1), row, step(0)) for row in given)
    assert not asks(UFT(start=1, end=1), Row(0, 8, 0, ()), step())


def test_the_preview_shows_where_the_hints_end():
    lab = Path(__file__).parents[1] / "recipes" / "lab" / "uft.yaml"
    recipe = load_recipe(lab, ["data.lab.problems=8"])
    table = [(Demonstration(tuple(range(100)), 100),)] * 8
    found = {at.step: max(at.tokens) for at in preview(recipe, table, points=5)}
    assert found.keys() == {0, 50, 100, 149, 199}  # 0.6 of 200 steps are 120
    assert found[0] == 29  # of 30 that a completion may have
    assert found[50] > 0
    assert found[149] == found[199] == 0


# --- credit and the supervised term -----------------------------------------------------------------------------------


def test_credit_in_numbers():
    batch = rollouts(REWARDS, [2, 2, 2, 2])
    found, weights = UFT().advantages(batch), UFT(weight=0.001).weights(batch)
    assert found[:, 2].tolist() == [0.5, -0.5, -0.5, 0.5]  # rewards 1, 0, 0, 1
    assert weights[:, 0].tolist() == pytest.approx([0.001 * 4 * 10_000 / 8] * 4)  # weight * B * L / hint tokens
    assert not weights[:, 2:].any()
    assert UFT().update_mask(batch, None).tolist() == [[False] * 2 + [True] * 4] * 4
    assert R3.advantages(batch)[:, 0].tolist() == [0.5, -0.5, -0.5, 0.5]  # context: it does not move
    assert not R3.weights(batch).any()
    assert R3.extra_loss(trained_on(batch, R3.weights(batch)), torch.zeros(4, 6), torch.zeros(4, 6)) is None


@given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 2, 4, 8]))
def test_micro_batches_sum_to_the_weighed_mean_over_all_hint_tokens(seed, size):
    method = UFT(weight=0.3)
    batch, logps = random_batch(seed, rows=8)
    weights = method.weights(batch)
    terms = [-float(logps[i, t]) for i in range(8) for t in range(6) if batch.prefix_mask[i, t]]
    found = 0.0
    for chosen in torch.randperm(8, generator=torch.Generator().manual_seed(seed)).split(size):
        part = trained_on(batch, weights, chosen)
        found += float(method.extra_loss(part, logps[chosen], torch.zeros(len(chosen), 6))) / (8 / size)
    assert found == pytest.approx(0.3 * statistics.fmean(terms), abs=1e-5)


def test_without_pieces_it_answers_as_dr_grpo():
    neutral, plain, batch = UFT(count=0), DrGRPO(), rollouts(REWARDS, [0, 0, 0, 0], index=250)
    assert plan(neutral, rows(2, 4), step()) == [NO_PREFIX] * 8
    assert neutral.advantages(batch).equal(plain.advantages(batch))
    assert neutral.update_mask(batch, None).equal(plain.update_mask(batch, None))
    assert not neutral.weights(batch).any()
    assert neutral.extra_loss(trained_on(batch, neutral.weights(batch)), torch.zeros(4, 6), torch.zeros(4, 6)) is None
    assert not neutral.needs.prefixes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pieces": "uniform"}, "method.weight = 0.001: method.pieces = uniform is R3, which has no supervised term"),
    ],
)
def test_contradictions_are_explained(settings, message):
    (fault,) = UFT(**settings).faults(TRAINING)
    assert message in fault
    assert R3.faults(TRAINING) == UFT(horizon=3).faults(TRAINING) == []


# --- in the trainer ---------------------------------------------------------------------------------------------------


def test_the_gradient_equals_one_written_by_hand(tmp_path):
    # Demonstrations have 32 to 35 tokens and 24 are allowed: a hint needs not fit whole, as a demonstration would
    made = trainer(tmp_path, UFT(weight=0.5, horizon=4, start=0.6, end=0.6))
    batch = generation(made)
    logps, rewards = reference_logps(made, batch), batch["rewards"]
    prefix, written = batch["prefix_mask"], batch["completion_mask"].bool()
    assert prefix.any()
    surrogate = imitated = 0.0
    for i in range(8):
        advantage = rewards[i] - rewards[i // 4 * 4 : i // 4 * 4 + 4].mean()
        for t in range(int(written[i].sum())):
            if prefix[i, t]:
                imitated = imitated - logps[i, t]
            else:
                surrogate = surrogate - advantage * logps[i, t]
    theirs = gradient_of(made, surrogate / (8 * 24) + 0.5 * imitated / int(prefix.sum()))
    ours = loss_gradient(made, batch)
    assert (ours - theirs).abs().max() < 1e-5 * max(1, float(theirs.abs().max()))
    assert (ours - gradient_of(made, reference_logps(made, batch).sum() * 0)).abs().max() > 1e-3
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for size in (4, 1):
        made.current_gradient_accumulation_steps = 8 // size
        parts = sum(loss_gradient(made, batch, chosen) for chosen in shuffled.split(size))
        assert (parts - ours).abs().max() < 1e-5 * max(1, float(theirs.abs().max()))


def test_a_run_goes_on_behind_the_horizon_and_resumes_exactly(tmp_path):
    method, data = UFT(horizon=3, weight=0.5, start=0.9, end=0.9), dataset(12)
    whole = trainer(tmp_path / "run", method, data=data, max_steps=6, save_strategy="steps", save_steps=2)
    whole.train()
    hinted = [m["prefix/rollouts"] for m in whole.state.log_history if "prefix/rollouts" in m]
    assert hinted == [8.0, 8.0, 8.0, 0.0, 0.0, 0.0]
    again = trainer(tmp_path / "again", method, data=data, max_steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert parameters(again).equal(parameters(whole))
