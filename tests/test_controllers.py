"""Controllers of prefix lengths, on simulated policies whose success curves are known."""

import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.controllers import Interval, Search, Setpoint

INTERVAL, SETPOINT, SEARCH = Interval(0.5), Setpoint(0.5, 0.1, 0.5, 0.5), Search(10, 0.25, 0.75)
THRESHOLDS = [0.1 + 0.8 * i / 31 for i in range(32)]  # where a problem's success is one half


def simulate(rule, visits, steep=20.0, improving=0.0, seed=0):
    """Lengths and successes ``[problem][visit]`` of 32 problems, groups of 8, batches of 16 in random order.

    Success with the share f is ``1 / (1 + exp(-steep * (f - threshold)))``; a group's is the mean of 8 such draws. With
    ``improving`` the thresholds fall by that much each time all problems have come round.
    """
    r, own, common = random.Random(seed), [rule.own] * 32, rule.common
    lengths, successes = [[] for _ in range(32)], [[] for _ in range(32)]
    for visit in range(visits):
        order = r.sample(range(32), 32)
        for batch in (order[:16], order[16:]):
            seen = []
            for p in batch:
                given = math.floor(rule.fraction(own[p], common, r.random()) * 200) / 200  # of 200 tokens
                right = 1 / (1 + math.exp(-steep * (given - THRESHOLDS[p] + improving * visit)))
                seen.append(sum(r.random() < right for _ in range(8)) / 8)
                own[p] = rule.seen(own[p], common, given, seen[-1])
                lengths[p].append(given)
                successes[p].append(seen[-1])
            common = rule.after(common, seen)
    return lengths, successes


def errors(lengths, last):
    """Mean length of the last visits minus the threshold, for each problem."""
    return [fmean(found[-last:]) - threshold for found, threshold in zip(lengths, THRESHOLDS, strict=True)]


@pytest.mark.parametrize("seed", range(3))
def test_the_setpoint_finds_every_problems_length_in_ten_visits_and_holds_it(seed):
    # At the threshold success changes by steep / 4 = 5 for a length of 1, so a visit removes gain * 5 = half of the
    # error; the noise of 8 draws, 0.18, moves it by 0.018, in all by 0.018 / sqrt(1 - 0.5^2) = 0.02
    lengths, successes = simulate(SETPOINT, 20, seed=seed)
    assert max(map(abs, errors(lengths, 10))) < 0.05
    assert math.sqrt(fmean(e * e for e in errors(lengths, 10))) < 0.025
    assert fmean(fmean(found[-10:]) for found in successes) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_every_problems_length_within_a_part_or_two(seed):
    # Between 25 and 75 % lie 0.11 of a length, so about one of 10 parts is in the band; a part beside it is probed too
    lengths, successes = simulate(SEARCH, 40, seed=seed)
    assert max(map(abs, errors(lengths, 20))) < 0.2
    assert math.sqrt(fmean(e * e for e in errors(lengths, 20))) < 0.1
    assert fmean(fmean(found[-20:]) for found in successes) == pytest.approx(0.5, abs=0.1)
    assert all(found[0] == 0 for found in lengths)  # nobody is helped who has not failed


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_closes_in_from_below(seed):
    # Its upper end is the least length at which a group was once lucky: with success p below the target still
    # likely in one of some visits. So it stays a little below the threshold, and does not come back
    lengths, successes = simulate(INTERVAL, 20, seed=seed)
    found = errors(lengths, 10)
    assert -0.16 < fmean(found) < -0.04
    assert max(found) < 0.05
    assert min(found) > -0.4
    assert 0.15 < fmean(fmean(s[-10:]) for s in successes) < 0.4


@pytest.mark.parametrize("rule", [INTERVAL, SETPOINT, SEARCH], ids=lambda rule: type(rule).__name__)
def test_lengths_fall_as_the_policy_improves(rule):
    lengths, _ = simulate(rule, 60, improving=0.01)  # at the last visit the thresholds are those of the first - 0.59
    at = {visit: fmean(found[visit] for found in lengths) for visit in (10, 30, 59)}
    needed = {visit: fmean(max(0.0, t - 0.01 * visit) for t in THRESHOLDS) for visit in at}  # 0.40, 0.24, 0.06
    for visit in at:
        assert at[visit] == pytest.approx(needed[visit], abs=0.14 if rule is INTERVAL else 0.06)
    assert sum(found[59] == 0 for found in lengths) >= 8 or rule is INTERVAL  # nothing is left of many


@given(
    rule=st.sampled_from([INTERVAL, SETPOINT, SEARCH]), u=st.floats(0, 1, exclude_max=True),
    history=st.lists(st.tuples(st.floats(0, 1), st.sampled_from([n / 8 for n in range(9)])), max_size=30),
)  # fmt: skip
def test_whatever_happens_a_length_is_a_share(rule, u, history):
    own, common = rule.own, rule.common
    for shortened, success in history:
        asked = rule.fraction(own, common, u)
        assert 0 <= asked <= 1
        own = rule.seen(own, common, min(asked, shortened), success)  # the answer guard gave less
        common = rule.after(common, [success])
        assert len(own) <= 2
        assert len(common) <= 2
    assert 0 <= rule.fraction(own, common, u) <= 1


def test_a_problem_that_was_never_seen_gets_the_length_of_all_the_range_of_all_or_nothing():
    assert SETPOINT.unseen((0.5, 0.3)) == SETPOINT.own == (0.0,)
    assert SETPOINT.fraction(SETPOINT.unseen((0.5, 0.3)), (0.5, 0.3), 0.9) == 0.3
    assert [INTERVAL.fraction(INTERVAL.unseen((0.25, 0.75)), (0.25, 0.75), u) for u in (0.0, 0.5)] == [0.25, 0.5]
    assert SEARCH.unseen(()) == SEARCH.own == (-1, 0)
    assert SEARCH.fraction(SEARCH.unseen(()), (), 0.9) == 0.0
    assert (INTERVAL.unaided, SETPOINT.unaided, SEARCH.unaided) == (0.0, 0.0, 0.0)  # none goes without by chance


def test_the_intervals_moves_in_numbers():
    assert INTERVAL.seen((0.0, 1.0), (), 0.6, success=0.375) == [0.6, 1.0]  # below 0.5: at least 0.6
    assert INTERVAL.seen([0.6, 1.0], (), 0.8, success=0.5) == [0.0, 0.8]  # at 0.5: at most 0.8, and from 0 again
    assert INTERVAL.seen([0.6, 1.0], (), 0.5, success=0.0) == [0.6, 1.0]  # less was given than asked: nothing learned


def test_the_searchs_moves_in_numbers():
    state, probes = SEARCH.own, []
    for parts, success in [(0, 0.0), (5, 0.0), (8, 1.0), (7, 0.125), (8, 0.5), (8, 0.875), (4, 0.0), (6, 0.0)]:
        probes.append(round(SEARCH.fraction(state, (), 0.0) * 10))
        assert probes[-1] == parts
        state = SEARCH.seen(state, (), parts / 10, success)
    # Alone and all wrong: [0, 10]. 5 are too few: [5, 10]. 8 are enough: [5, 8]. 7 are too few: [7, 8]. 8 lie in the
    # band: [8, 8]. Then they are more than needed: [-1, 8]. 4: [4, 8]. 6: [6, 8]
    assert state == [6, 8]
    assert SEARCH.fraction([6, 8], (), 0.0) == 0.7


def test_a_search_that_ended_begins_anew():
    assert SEARCH.seen([4, 5], (), 0.5, success=1.0) == [-1, 5]  # 4 were too few once, 5 are too many by now
    assert SEARCH.seen([5, 10], (), 0.5, success=1.0) == [-1, 5]  # 8 were asked for, 5 could be given, and are too many
    assert SEARCH.seen([5, 5], (), 0.5, success=0.0) == [5, 10]
    assert SEARCH.fraction([-1, 1], (), 0.0) == 0.0  # at last alone
    assert SEARCH.seen([10, 10], (), 1.0, success=0.0) == [10, 10]  # nothing helps


def test_a_length_does_not_run_away_from_what_can_be_given():
    own = SETPOINT.own
    for _ in range(20):  # the answer can be read from 0.3 on, and no group succeeds
        own = SETPOINT.seen(own, (0.5, 0.5), 0.3, success=0.0)
    assert SETPOINT.fraction(own, (0.5, 0.5), 0.0) == pytest.approx(0.3 + 0.1 + 0.05)
    own = SETPOINT.seen(own, (0.5, 0.5), 0.3, success=1.0)
    own = SETPOINT.seen(own, (0.5, 0.5), 0.3, success=1.0)
    assert SETPOINT.fraction(own, (0.5, 0.5), 0.0) < 0.4


# --- problems that are seen once --------------------------------------------------------------------------------------


def test_new_problems_move_the_average_and_known_ones_do_not():
    rule = Interval(0.5, average=0.8, longest=0.9)
    assert rule.unseen(rule.common) == (0.0, 0.9)
    # one failed at 0.4, one succeeded at 0.5: [0.4, 0.9] and [0, 0.5], their mean [0.2, 0.7]
    new = [rule.seen(rule.own, rule.common, 0.4, 0.25), rule.seen(rule.own, rule.common, 0.5, 1.0)]
    assert new == [[0.4, 0.9], [0.0, 0.5]]
    after = rule.after(rule.common, [0.25, 1.0], new)
    assert after == pytest.approx([0.2 * 0.2, 0.8 * 0.9 + 0.2 * 0.7])
    assert rule.unseen(after) == after
    assert rule.after(after, [0.25], []) == after
    assert Interval(0.5).after((0.0, 1.0), [0.25, 1.0], new) == [0.0, 1.0]  # a weight of 1 keeps what was


def test_nothing_is_given_as_often_as_was_said():
    rule = Interval(0.5, unaided=0.25)
    given = [rule.fraction([0.4, 0.8], [], i / 1000) for i in range(1000)]
    assert sum(share == 0 for share in given) == 250
    assert min(share for share in given if share) == pytest.approx(0.4)
    assert max(given) == pytest.approx(0.8, abs=1e-3)
    assert fmean(share for share in given if share) == pytest.approx(0.6, abs=1e-3)


def test_the_average_finds_where_success_begins_with_every_problem_seen_once():
    from importlib import util
    from pathlib import Path

    spec = util.spec_from_file_location("once", Path(__file__).parents[1] / "benchmarks" / "adaptive_once.py")
    once = util.module_from_spec(spec)
    spec.loader.exec_module(once)
    for mean, deviation in ((0.3, 0.05), (0.7, 0.2)):
        whole, average = (
            once.mixed(once.RULES[name], mean, deviation, steps=80, seed=0)
            for name in ("whole range", "moving average")
        )
        assert average > whole + 0.1
