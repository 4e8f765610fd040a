import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl import methods
from prefix_rl.methods.base import Method
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.prefixes import NO_PREFIX, Demonstration
from prefix_rl.rollouts import Rollouts, Row, Step

TRAINING = {"num_generations": 8, "max_completion_length": 100}


def step(index=0, total=500, seed=0, budget=10_000):
    return Step(index, total, seed, budget)


def rows(groups, size, length=1000, count=1):
    demonstrations = tuple(Demonstration(tuple(range(n, n + length)), length) for n in range(count))
    return [Row(i, i // size, demonstrations) for i in range(groups * size)]


def rollouts(rewards, prefix_lengths, width=6, size=4, index=0):
    n = len(rewards)
    positions = torch.arange(width)
    return Rollouts(
        completion_ids=torch.arange(n * width).view(n, width),
        completion_mask=torch.ones(n, width, dtype=torch.bool),
        prefix_mask=positions < torch.tensor(prefix_lengths).unsqueeze(1),
        rewards=torch.tensor(rewards),
        group_size=size,
        step=step(index),
    )


# --- finding methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.names())
def test_every_module_is_a_method_of_its_name(name):
    made = methods.find(name)()
    assert isinstance(made, Method)
    assert made.problems(TRAINING) == []


def test_an_unknown_method_is_named_with_those_there_are():
    with pytest.raises(LookupError, match=r"no method 'prefix_rtf'; there are dr_grpo, prefix_rft"):
        methods.find("prefix_rtf")


def test_a_method_may_live_in_another_package(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom prefix_rl.methods.base import Method\n"
        "@dataclass(frozen=True)\nclass Mine(Method):\n    weight: float = 0.5\n"
    )
    (tmp_path / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "mine.py").rename(tmp_path / "pack" / "mine.py")
    (tmp_path / "empty.py").rename(tmp_path / "pack" / "empty.py")
    assert methods.find("pack.mine")().weight == 0.5
    with pytest.raises(LookupError, match="one subclass of Method, it defines none"):
        methods.find("pack.empty")
    with pytest.raises(LookupError, match="no module"):
        methods.find("pack.missing")


# --- Dr.GRPO ----------------------------------------------------------------------------------------------------------


def test_dr_grpo_gives_the_plain_answers():
    method, batch = DrGRPO(), rollouts([1.0, 0, 0, 0], [0, 0, 0, 0])
    assert method.prefixes(rows(1, 4), 4, step()) == [NO_PREFIX] * 4
    assert method.advantages(batch)[:, 0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert method.update_mask(batch, None).all()
    assert method.extra_loss(batch, torch.zeros(4, 6), torch.zeros(4, 6)) is None
    assert not method.injects
    assert not method.needs_entropies


# --- Prefix-RFT: what is injected -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefixed", [0, 1, 3, 8])
def test_so_many_rollouts_of_each_group_are_prefixed(prefixed):
    found = PrefixRFT(prefixed=prefixed).prefixes(rows(5, 8), 8, step(100))
    assert [bool(p.ids) for p in found] == [i % 8 < prefixed for i in range(40)]


def test_a_rank_plans_its_own_rows_as_one_process_would():
    method, all_rows = PrefixRFT(prefixed=3), rows(6, 8)
    together = method.prefixes(all_rows, 8, step(123))
    apart = [p for start in (0, 12, 24, 36) for p in method.prefixes(all_rows[start : start + 12], 8, step(123))]
    assert together == apart


def test_a_question_without_a_demonstration_is_rolled_out_plainly():
    assert PrefixRFT().prefixes([Row(0, 0, ())], 8, step()) == [NO_PREFIX]


@pytest.mark.parametrize(
    ("schedule", "at", "low", "high"),
    [
        ("cosine_low", 0, 0.95, 0.95), ("cosine_low", 250, 0.50, 0.95), ("cosine_low", 500, 0.05, 0.95),
        ("cosine_length", 0, 0.95, 0.95), ("cosine_length", 250, 0.50, 0.50), ("cosine_length", 500, 0.05, 0.05),
        ("uniform", 0, 0.05, 0.95), ("uniform", 499, 0.05, 0.95),
    ],
)  # fmt: skip
def test_bounds_of_the_draw(schedule, at, low, high):
    assert PrefixRFT(schedule=schedule).bounds(step(at)) == pytest.approx((low, high))


def test_the_horizon_is_the_run_unless_given():
    assert PrefixRFT().bounds(step(50, total=100))[0] == pytest.approx(0.5)
    assert PrefixRFT(horizon=500).bounds(step(250, total=10_000))[0] == pytest.approx(0.5)


@given(at=st.integers(0, 600), seed=st.integers(0, 5))
def test_drawn_fractions_stay_within_their_bounds(at, seed):
    method = PrefixRFT(prefixed=8)
    low, high = method.bounds(step(at))
    for p in method.prefixes(rows(2, 8), 8, step(at, seed=seed)):
        assert int(low * 1000) - 1 <= len(p.ids) <= int(high * 1000)


def test_drawn_fractions_are_uniform_between_the_bounds():
    fractions = [len(p.ids) / 1000 for p in PrefixRFT(prefixed=8).prefixes(rows(500, 8), 8, step(250)) if p.ids]
    assert statistics.fmean(fractions) == pytest.approx(0.725, abs=0.007)  # (0.5 + 0.95) / 2; 0.13 / sqrt(4000) = 0.002
    assert statistics.pstdev(fractions) == pytest.approx(0.45 / 12**0.5, abs=0.005)


def test_several_demonstrations_are_drawn_uniformly():
    found = PrefixRFT(prefixed=8).prefixes(rows(100, 8, count=4), 8, step(10))
    counts = [sum(p.ids[0] == n for p in found) for n in range(4)]
    assert all(abs(count - 200) < 50 for count in counts)  # 800 draws of 4: 200 +- 4 standard deviations of 12


def test_draws_differ_between_steps_and_seeds():
    method = PrefixRFT(schedule="uniform")  # the bounds do not move, only the draw does
    assert len({len(method.prefixes(rows(1, 8), 8, step(400, seed=s))[0].ids) for s in range(10)}) > 8
    assert len({len(method.prefixes(rows(1, 8), 8, step(400 + t))[0].ids) for t in range(10)}) > 8
    assert len({len(p.ids) for p in PrefixRFT(prefixed=8, schedule="uniform").prefixes(rows(2, 8), 8, step(3))}) > 12


def test_the_budget_leaves_a_token_to_generate():
    assert {len(p.ids) for p in PrefixRFT(prefixed=8).prefixes(rows(1, 8), 8, step(0, budget=50))} == {49}
    limited = PrefixRFT(prefixed=8, max_prefix_tokens=20)
    assert {len(p.ids) for p in limited.prefixes(rows(1, 8), 8, step(0, budget=50))} == {20}


# --- Prefix-RFT: credit -----------------------------------------------------------------------------------------------

REWARDS = [1.0, 0.0, 0.0, 1.0]  # the first is prefixed: mu4 = 1/2, mu3 = 1/3


@pytest.mark.parametrize(
    ("credit", "on_prefix", "on_continuation", "plain"),
    [
        ("pooled", 1 - 1 / 2, 1 - 1 / 2, [-1 / 2, -1 / 2, 1 / 2]),
        ("unprefixed", 1 - 1 / 3, 1 - 1 / 3, [-1 / 3, -1 / 3, 2 / 3]),
        ("released", 1 - 1 / 3, 1.0, [-1 / 3, -1 / 3, 2 / 3]),
    ],
)
def test_the_three_estimators(credit, on_prefix, on_continuation, plain):
    advantages = PrefixRFT(credit=credit).advantages(rollouts(REWARDS, [2, 0, 0, 0]))
    assert advantages[0].tolist() == pytest.approx([on_prefix] * 2 + [on_continuation] * 4)
    assert advantages[1:, 0].tolist() == pytest.approx(plain)


# --- Prefix-RFT: which tokens move ------------------------------------------------------------------------------------

ENTROPIES = torch.tensor([[0.1, 0.9, 0.3, 0.5, 0.2, torch.nan], [torch.nan] * 6, [torch.nan] * 6, [torch.nan] * 6])


@pytest.mark.parametrize(
    ("settings", "moving"),
    [
        ({"tokens": "all"}, [True] * 5),
        ({"tokens": "none"}, [False] * 5),
        ({"tokens": "top_entropy"}, [False, True, False, False, False]),  # 5 - floor(0.8 * 5) = 1
        ({"tokens": "top_entropy", "share": 0.4}, [False, True, False, True, False]),
        ({"tokens": "low_entropy"}, [True, False, False, False, False]),
        ({"tokens": "top_entropy", "share": 1.0}, [True] * 5),
        ({"tokens": "top_entropy", "share": 0.0}, [False] * 5),
    ],
)
def test_which_prefix_tokens_move(settings, moving):
    batch = rollouts(REWARDS, [5, 0, 0, 0])
    mask = PrefixRFT(**settings).update_mask(batch, ENTROPIES)
    assert mask[0].tolist() == [*moving, True]  # what the policy wrote always moves
    assert mask[1:].all()


def test_the_share_is_taken_over_the_whole_batch_or_by_row():
    entropies = torch.full((4, 6), torch.nan)
    entropies[0, :5], entropies[1, :5] = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([6.0, 7, 8, 9, 10])
    batch = rollouts(REWARDS, [5, 5, 0, 0])
    kept = PrefixRFT().update_mask(batch, entropies) & batch.prefix_mask
    assert kept.sum(dim=1).tolist() == [0, 2, 0, 0]  # 2 of 10, both from the second row
    kept = PrefixRFT(scope="row").update_mask(batch, entropies) & batch.prefix_mask
    assert kept.sum(dim=1).tolist() == [1, 1, 0, 0]


def test_random_tokens_are_exactly_the_share_and_change_with_the_step():
    method = PrefixRFT(tokens="random", share=0.5)
    masks = []
    for index in range(5):
        batch = rollouts(REWARDS, [4, 4, 4, 0], index=index)
        kept = method.update_mask(batch, None) & batch.prefix_mask
        assert int(kept.sum()) == 6
        masks.append(kept)
    assert len({tuple(m.flatten().tolist()) for m in masks}) > 1
    again = rollouts(REWARDS, [4, 4, 4, 0], index=0)
    assert masks[0].equal(method.update_mask(again, None) & again.prefix_mask)


def test_only_entropy_selectors_ask_for_entropies():
    needs = {
        tokens: PrefixRFT(tokens=tokens).needs_entropies for tokens in ("top_entropy", "low_entropy", "random", "all")
    }
    assert needs == {"top_entropy": True, "low_entropy": True, "random": False, "all": False}
    assert not PrefixRFT(prefixed=0).needs_entropies


def test_without_prefixes_prefix_rft_answers_as_dr_grpo():
    neutral, plain = PrefixRFT(prefixed=0), DrGRPO()
    batch = rollouts(REWARDS, [0, 0, 0, 0])
    assert neutral.prefixes(rows(2, 4), 4, step()) == plain.prefixes(rows(2, 4), 4, step())
    assert neutral.advantages(batch).equal(plain.advantages(batch))
    assert neutral.update_mask(batch, torch.full((4, 6), torch.nan)).equal(plain.update_mask(batch, None))
    assert not neutral.injects


# --- Prefix-RFT: what cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefixed": 9}, "more than training.num_generations = 8"),
        ({"prefixed": 8, "credit": "unprefixed"}, "leaves none of 8"),
        ({"max_prefix_tokens": 100}, "not below training.max_completion_length = 100"),
        ({"min_prefix_tokens": 30, "max_prefix_tokens": 20}, "more than the longest prefix allowed, 20 tokens"),
        ({"min_prefix_tokens": 100}, "longest prefix allowed, 99 tokens"),
    ],
)
def test_contradictions_are_explained(settings, message):
    (problem,) = PrefixRFT(**settings).problems(TRAINING)
    assert message in problem
