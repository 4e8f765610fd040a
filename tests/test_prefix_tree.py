"""Prefix-tree values (TEMPO) against a loop over dictionaries of prefixes."""

import math
import time
from itertools import pairwise

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.advantages import group_std, prefix_tree


def slow(completions, rewards, size):
    """For each completion of a group its terms, from a dictionary: prefix -> rewards of those that begin with it."""
    found = []
    for start in range(0, len(completions), size):
        group, given = completions[start : start + size], rewards[start : start + size]
        beginning = {}
        for ids, reward in zip(group, given, strict=True):
            for d in range(len(ids) + 1):
                if not math.isnan(reward):
                    beginning.setdefault(tuple(ids[:d]), []).append(reward)
        for ids, reward in zip(group, given, strict=True):
            value = [sum(r) / len(r) for d in range(len(ids) + 1) if (r := beginning.get(tuple(ids[:d])))]
            alone = math.isnan(reward)
            found.append([0.0] * len(ids) if alone else [b - a for a, b in pairwise(value)])
    return found


def padded(completions, fill=0):
    width = max(map(len, completions))
    ids = torch.tensor([[*c, *[fill] * (width - len(c))] for c in completions])
    return ids.view(len(completions), width), torch.tensor([[i < len(c) for i in range(width)] for c in completions])


@st.composite
def batches(draw):
    size, groups = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    completion = st.lists(
        st.integers(0, 2), min_size=0, max_size=6
    )  # three words: much is shared; 0 is the padding too
    completions = draw(st.lists(completion, min_size=size * groups, max_size=size * groups))
    shared = draw(st.lists(st.integers(0, 2), max_size=4))  # what a PrefixRL group starts from
    completions = [[*shared, *c] for c in completions]
    if not any(completions):
        completions[0] = [1]
    reward = st.sampled_from([0.0, 1.0, 0.3, -2.0, math.nan])
    return completions, draw(st.lists(reward, min_size=size * groups, max_size=size * groups)), size, len(shared)


@examples(300)
@given(batches())
def test_the_tree_equals_a_slow_loop(batch):
    completions, rewards, size, shared = batch
    ids, mask = padded(completions)
    found = prefix_tree(ids, mask, torch.tensor(rewards), size)
    for row, wanted in zip(found.tolist(), slow(completions, rewards, size), strict=True):
        assert row == pytest.approx(wanted + [0.0] * (ids.size(1) - len(wanted)), abs=1e-6)
    assert (found[:, :shared] == 0).all()  # inside what the whole group shares nobody turns off: exactly 0


@given(batches())
def test_the_terms_of_a_completion_that_ends_alone_add_up_to_its_distance_from_the_mean(batch):
    completions, rewards, size, _ = batch
    ids, mask = padded(completions)
    found = prefix_tree(ids, mask, torch.tensor(rewards), size)
    for i, (ids_i, reward) in enumerate(zip(completions, rewards, strict=True)):
        others = range(i // size * size, i // size * size + size)
        alone = all(j == i or completions[j][: len(ids_i)] != ids_i for j in others)
        if alone and not math.isnan(reward):
            scored = [rewards[j] for j in others if not math.isnan(rewards[j])]
            assert float(found[i].sum()) == pytest.approx(reward - sum(scored) / len(scored), abs=1e-5)


def test_a_tree_by_hand():
    # V(root) = 2/4; V("a") = 2/3, V("b") = 0; V("a x") = 2/2, V("a y") = 0
    ids, mask = padded([[1, 3, 9], [1, 3, 8], [1, 4], [2, 3, 9, 9]])
    found = prefix_tree(ids, mask, torch.tensor([1.0, 1.0, 0.0, 0.0]), 4).tolist()
    assert (
        found[0] == found[1] == pytest.approx([2 / 3 - 1 / 2, 1 - 2 / 3, 0, 0])
    )  # then both are right: nothing to add
    assert found[2] == pytest.approx([2 / 3 - 1 / 2, 0 - 2 / 3, 0, 0])
    assert found[3] == pytest.approx([0 - 1 / 2, 0, 0, 0])


def test_a_completion_that_ended_differs_from_one_that_goes_on():
    eos = 0  # and the padding's id too
    ids, mask = padded([[5, 6, eos], [5, 6, 7, eos], [5, 6]], fill=eos)
    found = prefix_tree(ids, mask, torch.tensor([1.0, 0.0, 0.0]), 3)
    assert found[0].tolist() == pytest.approx([0, 0, 1 - 1 / 3, 0])
    assert found[1].tolist() == pytest.approx([0, 0, 0 - 1 / 3, 0])
    assert found[2].tolist() == [0, 0, 0, 0]  # cut off where the others part: its padding agrees with nobody's EOS


def test_broken_groups_are_refused():
    with pytest.raises(ValueError, match="5 completions are not whole groups of 4"):
        prefix_tree(torch.ones(5, 2, dtype=torch.long), torch.ones(5, 2, dtype=torch.bool), torch.zeros(5), 4)


def test_the_deviation_is_that_of_torch():
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.25, 2.0, 2.0, 2.0, 2.0])
    by_torch = rewards.view(2, 4).std(dim=1).repeat_interleave(4)  # unbiased
    assert group_std(rewards, 4).tolist() == pytest.approx(by_torch.tolist())


def test_the_deviation_of_two_that_have_a_reward():
    # mean 2, squares 1 + 1, over 2 - 1
    assert group_std(torch.tensor([3.0, 1.0, torch.nan, torch.nan]), 4).tolist() == pytest.approx([math.sqrt(2)] * 4)


def test_a_group_of_64_with_8192_tokens_each_takes_seconds():
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50_000, (64, 8192), generator=random)
    ids[:, :4000] = ids[0, :4000]
    mask = torch.ones_like(ids, dtype=torch.bool)
    began = time.process_time()
    found = prefix_tree(ids, mask, (torch.rand(64, generator=random) < 0.5).float(), 64)
    assert time.process_time() - began < 20  # 0.5 s of CPU; a loop over tokens would take minutes
    assert (found[:, :4000] == 0).all()
    assert found[:, 4000].abs().min() > 0
