import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.advantages import group_centered, group_std, to_tokens


def slow(rewards, size, without):
    out = []
    for i, reward in enumerate(rewards):
        group = range(i // size * size, i // size * size + size)
        counted = [rewards[j] for j in group if not without[j] and not math.isnan(rewards[j])]
        baseline = sum(counted) / len(counted) if counted else math.nan
        advantage = reward - baseline
        out.append(0.0 if math.isnan(advantage) else advantage)
    return out


@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_group_centering_equals_a_slow_loop(size, groups, data):
    n = size * groups
    rewards = data.draw(st.lists(st.sampled_from([0.0, 1.0, 0.5, math.nan]), min_size=n, max_size=n))
    without = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    fast = group_centered(torch.tensor(rewards), size, without=torch.tensor(without))
    assert fast.tolist() == pytest.approx(slow(rewards, size, without), abs=1e-6)


def test_pooled_means_run_over_prefixed_and_plain_rollouts():
    # r = 1 from the prefix, 1 of 3 plain ones right: mean 2/4; 1 - 0.5, 1 - 0.5, 0 - 0.5, 0 - 0.5
    assert group_centered(torch.tensor([1.0, 1.0, 0.0, 0.0]), 4).tolist() == [0.5, 0.5, -0.5, -0.5]


def test_pooled_and_unprefixed_credit_of_a_prefix_differ_by_seven_eighths():
    rewards = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0])
    prefixed = torch.arange(8) == 0
    pooled, against_plain = group_centered(rewards, 8), group_centered(rewards, 8, without=prefixed)
    assert pooled[0] == pytest.approx(1 - 2 / 8)
    assert against_plain[0] == pytest.approx(1 - 1 / 7)
    assert pooled[0] == pytest.approx(7 / 8 * against_plain[0])  # r - mu8 = 7/8 (r - mu7)


def test_unscored_rollouts_get_no_credit_and_do_not_move_the_mean():
    advantages = group_centered(torch.tensor([1.0, torch.nan, 0.0, 0.0]), 4)
    assert advantages.tolist() == pytest.approx([2 / 3, 0, -1 / 3, -1 / 3])


@pytest.mark.parametrize("reward", [0.1, 0.3, 0.7, 0.9, 2 / 3])
def test_equal_rewards_get_exactly_no_credit(reward):
    """In single precision the mean of eight such rewards is off by up to 6e-8, and a group would seem to differ."""
    rewards = torch.full((8,), reward)
    assert bool((rewards - rewards.nanmean() != 0).any())
    assert group_centered(rewards, 8).eq(0).all()
    assert group_std(rewards, 8).eq(0).all()
    without = torch.arange(8) < 1
    assert group_centered(torch.cat([torch.zeros(1), rewards[1:]]), 8, without)[1:].eq(0).all()


def test_groups_do_not_mix():
    assert group_centered(torch.tensor([1.0, 0.0, 5.0, 5.0]), 2).tolist() == [0.5, -0.5, 0, 0]


def test_broken_groups_are_refused():
    with pytest.raises(ValueError, match="5 rewards are not whole groups of 4"):
        group_centered(torch.zeros(5), 4)


def test_credit_reaches_the_tokens_of_its_rollout_only():
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert to_tokens(torch.tensor([0.5, -1.0]), mask).tolist() == [[0.5, 0.5, 0], [-1, 0, 0]]
