"""BREAD: the search within a step, its places and what it answers."""

from dataclasses import replace

import pytest
import torch
from flow import generated
from hypothesis import given
from hypothesis import strategies as st
from test_methods import step

from prefix_rl.methods.base import Earlier
from prefix_rl.methods.bread import BREAD, anchors, outcome, search
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.prefixes import Demonstration
from prefix_rl.rollouts import Row

GIVEN = Demonstration(ids=tuple(range(100, 120)), safe_length=20)  # 20 tokens, 10 episodes of 2


def tried(*rounds, demonstrations=(GIVEN,), size=4):
    """The rollouts of one group after these rounds, each ``(tokens of the prefix, rewards)``."""
    made = []
    for length, rewards in rounds:
        mask = torch.ones(size, 30, dtype=torch.bool)
        prefix = (torch.arange(30) < length).expand(size, 30)
        batch = generated(torch.ones(size, 30, dtype=torch.long), mask, prefix, torch.tensor(rewards), step(0), size)
        made.append(replace(batch, rows=[Row(i, size, 0, demonstrations) for i in range(size)]))
    return replace(made[-1], earlier=made[:-1])


def asked(method, rollouts):
    """The answer for the group: the tokens of the prefix that all its rows get, an Earlier, or nothing."""
    answers = method.help(rollouts, rollouts.step)
    if not answers:
        return None
    assert sorted(answers) == [0, 1, 2, 3]
    assert len({repr(answer) for answer in answers.values()}) == 1
    return answers[0] if isinstance(answers[0], Earlier) else len(answers[0].ids)


FAILED, SOME, ALL = [0.0] * 4, [0.0, 1.0, 0.0, 0.0], [1.0] * 4


def test_a_search_within_the_step_by_hand():
    method = BREAD(cut="tokens")
    # anchors are 2, 4, ..., 18 and 19 tokens: the last token is left to generate
    assert anchors(GIVEN, 10, longest=100) == [2, 4, 6, 8, 10, 12, 14, 16, 18, 19]
    short = replace(tried((0, FAILED)), step=step(0, budget=15))
    assert asked(BREAD(cut="tokens", episodes=1), short) == 14
    assert asked(method, tried((0, SOME))) is None
    assert asked(method, tried((0, ALL))) is None
    assert asked(method, tried((0, FAILED))) == 10  # (0 + 11) // 2 = 5 episodes
    assert asked(method, tried((0, FAILED), (10, FAILED))) == 16  # (5 + 11) // 2 = 8
    assert asked(method, tried((0, FAILED), (10, ALL))) == 4  # (0 + 5) // 2 = 2
    assert asked(method, tried((0, FAILED), (10, ALL), (4, FAILED))) == 6  # (2 + 5) // 2 = 3
    assert asked(method, tried((0, FAILED), (10, ALL), (4, SOME))) is None  # found
    # 3 is too little and 4 too much: back to the unaided rollouts, and there it ends
    ended = [(0, FAILED), (10, ALL), (4, FAILED), (6, FAILED), (8, ALL)]
    assert asked(method, tried(*ended)) == Earlier(0)
    assert asked(method, tried(*ended, (0, FAILED))) is None


@given(st.integers(1, 40), st.integers(0, 400), st.floats(0, 0.95))
def test_problems_with_a_demonstration_are_repeated_until_they_make_up_their_share(having, without, asked_for):
    copies = BREAD(demonstrated_share=asked_for).copies([True] * having + [False] * without)
    times = copies[0]
    assert copies == [times] * having + [1] * without
    assert times * having / (times * having + without) >= asked_for - 1e-9
    assert times == 1 or (times - 1) * having / ((times - 1) * having + without) < asked_for  # and not once more


def test_nothing_is_repeated_where_no_share_is_asked_for_or_nothing_has_a_demonstration():
    assert BREAD().copies([True, False, False]) == [1, 1, 1]
    assert BREAD(demonstrated_share=0.9).copies([False, False]) == [1, 1]
    assert BREAD(demonstrated_share=0.5).copies([True, False, False, False]) == [3, 1, 1, 1]  # 3 of 6
    assert BREAD(demonstrated_share=0.9, episodes=0).copies([True, False]) == [1, 1]  # Dr.GRPO
    (fault,) = BREAD(demonstrated_share=1.0).faults({})
    assert fault == "method.demonstrated_share = 1 leaves no place for problems without a demonstration"


def test_a_problem_without_a_demonstration_gets_no_help():
    assert asked(BREAD(cut="tokens"), tried((0, FAILED), demonstrations=())) is None


def test_without_episodes_nothing_is_needed_and_credit_is_dr_grpos():
    method, batch = BREAD(episodes=0), tried((0, [1.0, 0.0, 0.0, 1.0]))
    assert method.needs == DrGRPO().needs
    assert method.advantages(batch).equal(DrGRPO().advantages(batch))
    # the sample deviation of 1, 0, 0, 1 is sqrt(4 / 4 / 3)
    credit = BREAD(normalize=True).advantages(batch)[:, 0]
    assert credit.tolist() == pytest.approx(
        [0.5 / 0.57735, -0.5 / 0.57735] * 1 + [-0.5 / 0.57735, 0.5 / 0.57735], abs=1e-4
    )


def test_sentences_are_shared_out_evenly_and_the_guard_is_kept():
    # 7 sentences, 3 episodes: floor(7 / 3) = 2 and floor(14 / 3) = 4 sentences, and all but what the guard forbids
    given = Demonstration(ids=tuple(range(40)), safe_length=30, places=(5, 9, 14, 20, 26, 33))
    assert anchors(given, 3, longest=100) == [9, 20, 26]
    assert anchors(given, 10, longest=100) == [5, 9, 14, 20, 26]  # each sentence is an episode; 33 is behind the guard
    assert anchors(given, 10, longest=12) == [5, 9]  # the budget
    assert anchors(replace(given, places=()), 10, longest=100) == []


@given(st.integers(1, 40), st.lists(st.sampled_from(["none", "all"]), max_size=60))
def test_a_search_ends_within_its_rounds(candidates, outcomes):
    rounds = []
    while (trial := search(candidates, rounds)) is not None and len(rounds) < len(outcomes):
        assert 1 <= trial <= candidates
        rounds.append(outcomes[len(rounds)])
    assert len(rounds) <= candidates.bit_length()
    assert BREAD(episodes=candidates).needs.help_rounds == candidates.bit_length() + 1


@given(st.integers(1, 40), st.data())
def test_a_search_finds_the_border(candidates, data):
    """Success that rises with length: nothing is right below ``first``, everything from there on."""
    first, rounds, trials = data.draw(st.integers(1, candidates + 1)), [], []
    while (trial := search(candidates, rounds)) is not None:
        trials.append(trial)
        rounds.append("none" if trial < first else "all")
    right = [t for t in trials if t >= first]
    assert (min(right) if right else candidates + 1) == first


@pytest.mark.parametrize(
    ("rewards", "said"),
    [([0.0, 0.0], "none"), ([-1.0, 0.0], "none"), ([0.5, 0.5], "all"), ([0.5, 1.0], "some"), ([torch.nan] * 2, "none")],
)
def test_how_a_group_did(rewards, said):
    assert outcome(torch.tensor(rewards)) == said
