"""Intervals, pass@k, maj@k and the paired test: against brute force, and by simulation."""

import itertools
import math
import random
from statistics import fmean

import numpy as np
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from prefix_rl.errors import DataError
from prefix_rl.evaluation.metrics import accuracy, bootstrap, estimate, majority_at_k, over_seeds, pass_at_k, wilson
from prefix_rl.evaluation.pairs import Measured, compare, sign_flip
from prefix_rl.evaluation.summary import ks_of, summarize, votes_of
from prefix_rl.rewards.workers import Grader

# --- intervals --------------------------------------------------------------------------------------------------------


def test_wilson_gives_its_textbook_values():
    # p = 0.8, n = 10, z = 1.96: (0.8 + 0.192 -+ 1.96 sqrt(0.016 + 0.0096)) / 1.384 = 0.490, 0.943
    assert wilson(0.8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0.0, 100)[0] == 0.0
    assert wilson(1.0, 100)[1] == 1.0


def test_one_sample_a_problem_is_wilsons_interval_of_the_problems():
    found = accuracy([[True]] * 8 + [[False]] * 2)
    assert (found.low, found.high) == wilson(0.8, 10)


def test_the_effective_number_of_problems_is_the_documented_one():
    # shares 0, 0.5, 1: mean 0.5, squares 0.5; variance (0.5 + 15 * 0.25) / (2 + 15) = 0.25, of the mean 0.25 / 3;
    # effective 0.25 / (0.25 / 3) = 3
    found = estimate([0.0, 0.5, 1.0], samples=2)
    assert (found.low, found.high) == pytest.approx(wilson(0.5, 3))
    # two benchmarks: 0 and 1 (variance (0.5 + 3.75) / 16 = 0.2656, of the mean 0.1328) and the three: the mean's
    # variance is (0.1328125 + 1/12) / 4 = 0.0540365; effective 0.25 / 0.0540365 = 4.6265
    found = estimate([0.0, 1.0], [0.0, 0.5, 1.0], samples=2)
    assert (found.low, found.high) == pytest.approx(wilson(0.5, 4.6265), abs=1e-5)
    assert (found.mean, found.problems, found.samples) == (0.5, 5, 2)


def simulated(generator, problems, samples, mean, alike, runs):
    """Shares of right samples of `runs` evaluations; each problem's chance is drawn from a Beta distribution with this
    mean; the smaller `alike` is, the more chances are near 0 and 1."""
    chances = generator.beta(alike * mean, alike * (1 - mean), (runs, problems))
    return generator.binomial(samples, chances) / samples


@pytest.mark.parametrize(
    ("problems", "samples", "mean", "alike"),
    [
        (30, 32, 0.05, 0.5), (30, 32, 0.1, 0.5), (30, 32, 0.3, 0.5), (30, 32, 0.3, 2), (30, 32, 0.95, 0.5), (40, 32, 0.02, 0.3),
        (30, 1, 0.3, 1), (500, 1, 0.02, 1), (500, 1, 0.5, 1), (500, 1, 0.98, 1), (500, 4, 0.02, 0.5), (500, 4, 0.8, 1),
    ],
)  # fmt: skip
def test_intervals_cover_the_truth_at_their_rate(problems, samples, mean, alike):
    runs = simulated(np.random.default_rng(0), problems, samples, mean, alike, 1000 if problems < 100 else 400)
    found = [estimate(shares, samples=samples) for shares in runs.tolist()]
    assert 0.93 <= fmean(e.low <= mean <= e.high for e in found) <= 0.995


def test_a_bootstrap_over_thirty_problems_covers_too_seldom():
    # the reason for the prior in `estimate`; at 400 simulated evaluations
    runs = simulated(np.random.default_rng(0), 30, 32, 0.05, 0.5, 400).tolist()
    resampled = [bootstrap(shares) or (0.0, 0.0) for shares in runs]
    assert fmean(low <= 0.05 <= high for low, high in resampled) < 0.91
    assert fmean(e.low <= 0.05 <= e.high for e in (estimate(s, samples=32) for s in runs)) > 0.93


def test_the_interval_of_a_mean_over_benchmarks_covers_at_its_rate():
    generator = np.random.default_rng(1)
    parts = [simulated(generator, *settings, 600).tolist() for settings in
             ((30, 32, 0.15, 0.5), (40, 32, 0.5, 1), (500, 1, 0.8, 1))]  # fmt: skip
    truth = (0.15 + 0.5 + 0.8) / 3
    found = [estimate(*shares, samples=1) for shares in zip(*parts, strict=True)]
    assert 0.93 <= fmean(e.low <= truth <= e.high for e in found) <= 0.99


def test_more_samples_of_the_same_problems_do_not_pretend_to_be_more_problems():
    alike = accuracy([[True] * 8] * 50 + [[False] * 8] * 50)
    once = accuracy([[True]] * 50 + [[False]] * 50)
    assert alike.high - alike.low == pytest.approx(once.high - once.low, rel=0.02)


def test_nothing_collapses_where_all_are_right_or_wrong():
    # all of 30 wrong: z^2 / (30 + z^2) = 3.84 / 33.84 = 0.1135
    assert estimate([0.0] * 30, samples=32).high == pytest.approx(0.1135, abs=1e-4)
    assert estimate([1.0] * 30, samples=32).low == pytest.approx(1 - 0.1135, abs=1e-4)
    assert bootstrap([0.0] * 30) is None


@pytest.mark.parametrize("nothing", [lambda: accuracy([]), lambda: estimate(), lambda: estimate([])])
def test_an_accuracy_of_nothing_is_refused(nothing):
    with pytest.raises(ValueError, match="at least one"):
        nothing()


# --- pass@k and maj@k -------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_all_subsets_that_hold_a_right_one(right, data):
    k = data.draw(st.integers(1, len(right)))
    subsets = list(itertools.combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_has_no_bias():
    # k = 4 samples of chance 0.2 hold a right one with 1 - 0.8^4 = 0.5904, measured from 6 samples each
    drawn = np.random.default_rng(0).binomial(6, 0.2, 20_000)
    assert fmean(pass_at_k(6, int(c), 4) for c in drawn) == pytest.approx(0.5904, abs=0.01)


def test_pass_at_1_is_the_share_and_large_numbers_do_not_overflow():
    assert pass_at_k(32, 8, 1) == 0.25
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "at_k", [lambda: pass_at_k(4, 2, 5), lambda: majority_at_k(2, [1], 1, 5), lambda: pass_at_k(4, 2, 0)]
)
def test_k_larger_than_the_samples_is_refused(at_k):
    with pytest.raises(ValueError, match="needs at least"):
        at_k()


def by_force(right, others, silent, k):
    """maj@k over all subsets, ties shared out."""
    votes = ["right"] * right + [None] * silent + [f"other {i}" for i, n in enumerate(others) for _ in range(n)]
    total = 0.0
    subsets = list(itertools.combinations(votes, k))
    for subset in subsets:
        counts = {answer: subset.count(answer) for answer in set(subset) - {None}}
        most = max(counts.values(), default=0)
        if most and counts.get("right") == most:
            total += 1 / sum(n == most for n in counts.values())
    return total / len(subsets)


@given(st.integers(0, 4), st.lists(st.integers(1, 3), max_size=3), st.integers(0, 2), st.data())
@examples(60)
def test_the_majority_is_that_of_all_subsets(right, others, silent, data):
    n = right + sum(others) + silent
    if n:
        k = data.draw(st.integers(1, n))
        found = majority_at_k(right, others, silent, k)
        assert found == pytest.approx(by_force(right, others, silent, k), abs=1e-12)


def test_the_majority_of_one_is_the_share():
    assert majority_at_k(3, [4], 1, 1) == pytest.approx(3 / 8, abs=1e-12)
    assert majority_at_k(300, [400, 123], 177, 1) == pytest.approx(0.3, abs=1e-12)


def test_the_majority_of_many_samples_does_not_overflow_and_agrees_with_a_draw():
    votes = np.random.default_rng(1).multivariate_hypergeometric([900, 800, 300], 1000, size=20_000, method="marginals")
    drawn = np.mean((votes[:, 0] > votes[:, 1]) + 0.5 * (votes[:, 0] == votes[:, 1]))
    assert majority_at_k(900, [800, 300], 0, 1000) == pytest.approx(drawn, abs=0.01)  # 0.0035 is one standard error


def test_what_is_drawn_for_one_problem_says_nothing_of_another():
    # One stream of random subsets for all problems shifts all of them together: the mean of 200 alike would be as far
    # off as one. By symmetry two answers of equal frequency win equally often, so the mean is 0.5 exactly.
    assert fmean(majority_at_k(4, [4], 0, 3) for _ in range(200)) == pytest.approx(0.5, abs=1e-12)


def test_samples_without_an_answer_do_not_vote():
    assert majority_at_k(1, [], 7, 8) == 1.0
    assert majority_at_k(0, [], 8, 8) == 0.0
    assert votes_of([True, None, "3", "3", "4", True]) == (2, [2, 1], 1)


def test_wrong_answers_that_are_equal_vote_together():
    def row(answer, outcome="wrong"):
        return {"problem": "a", "outcome": outcome, "answer": answer, "truncated": False, "tokens": 10}

    grader = Grader(workers=1)
    # right twice, 1/2 three times in three notations, 7 once, silent twice: the majority is 1/2
    rows = [row("3", "right"), row("3.0", "right"), row(r"\frac{1}{2}"), row("0.5"), row(r"\frac12"), row("7"),
            row(None, "no_answer"), row(None, "no_answer")]  # fmt: skip
    found = summarize(["a"], rows, [8], grader)
    assert found["maj"]["8"]["mean"] == 0.0
    # with one of them less it is a tie of two answers
    found = summarize(["a"], rows[:4] + rows[5:], [7], grader)
    assert found["maj"]["7"]["mean"] == 0.5
    assert found["no_answer_share"] == 2 / 7
    assert found["outcomes"] == {"no_answer": 2, "right": 2, "wrong": 3}
    grader.close()


def test_a_k_that_no_benchmark_has_samples_for_is_refused():
    with pytest.raises(
        DataError, match=r"k = 64 is larger .* \(32 of aime24, 1 of math500\); draw more with --samples 64"
    ):
        ks_of([8, 64], {"aime24": 32, "math500": 1})


def test_an_accuracy_over_two_seeds_by_hand():
    # means squares: seeds 4 (2 * 0.125^2) = 0.125, problems 2 (2 * 0.375^2 + 0.125^2 + 0.625^2) / 3 = 0.4583, the rest
    # (6 * 0.125^2 + 2 * 0.375^2) / 3 = 0.125; variance 0.4583 / 8; freedom
    # 0.4583^2 / (0.125^2 + 0.4583^2 / 3 + 0.125^2 / 3) = 2.312; 0.625 * 0.375 / 0.05729 = 4.09 trials; t_0.975 = 3.80
    found = over_seeds([[1, 1, 0, 0], [1, 1, 1, 0]])
    assert (found.mean, found.problems, found.samples) == (0.625, 4, 2)
    quantile = float(t.ppf(0.975, 2.3121))
    assert quantile == pytest.approx(3.80, abs=0.01)
    assert (found.low, found.high) == pytest.approx(wilson(0.625, 4.0909, quantile=quantile), abs=1e-4)


# --- differences ------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=9))
def test_the_sign_flip_test_is_the_share_of_signs_with_a_mean_as_far_from_zero(differences):
    moved = [d for d in differences if d]
    means = [abs(sum(s * d for s, d in zip(signs, moved, strict=True))) for signs in
             itertools.product((-1, 1), repeat=len(moved))]  # fmt: skip
    expected = fmean(m >= abs(sum(moved)) - 1e-12 for m in means) if len(moved) > 1 else 1.0
    assert sign_flip(differences) == pytest.approx(min(expected, 1.0))


def test_a_difference_by_hand():
    # differences 1, 0.5, 0, 0.5: mean 0.5, variance (0.25 + 0 + 0.25 + 0) / 3 = 1/6, error sqrt(1/24) = 0.2041;
    # t_0.975 with 3 degrees of freedom is 3.182, so +- 0.6496
    found = compare(Measured([1, 1, 0.5, 1], [0, 0.5, 0.5, 0.5], 2, 2))
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - 0.6496, 0.5 + 0.6496), abs=1e-3)
    assert found.p == 0.25  # 2 of the 2^3 signs of the three that differ
    # within: mean of a (1 - a) / (k - 1) + b (1 - b) / (k - 1) = (0 + 0.25 + 0.5 + 0.25) / 4 = 0.25, more than all of
    # 1/6: nothing is left between the problems. (3.182 + 0.978)^2 = 17.31; of the mean 0.25 / 4 = 0.0625;
    # factor 17.31 * 0.0625 / 0.5^2 = 4.33
    assert found.samples_factor == pytest.approx(4.33, abs=1e-2)
    assert found.detectable == pytest.approx(math.sqrt(17.31 * 0.0625), abs=2e-3)


def test_a_difference_over_two_benchmarks_by_hand():
    # differences 1, 0.5, 0, 0.5 and 1, 0: variances 1/6 of 4 and 1/2 of 2; half of each mean counts, so a quarter of
    # (1/24 + 1/4) = 0.0729; freedom 0.0729^2 / ((1/96)^2 / 3 + (1/16)^2 / 1) = 1.3486
    found = compare(Measured([1, 1, 0.5, 1], [0, 0.5, 0.5, 0.5], 2, 2), Measured([1, 0], [0, 0], 2, 2))
    assert (found.mean, found.problems) == (0.5, 6)
    assert found.high - 0.5 == pytest.approx(float(t.ppf(0.975, 1.3486)) * math.sqrt(0.072917), rel=1e-3)


def test_two_problems_leave_one_degree_of_freedom():
    # differences 1 and 0: a variance of 1/2, of which (0 + 0.25 + 0.25) / 2 is within; of the mean 1/4;
    # t_0.975 + t_0.8 = 12.706 + 1.376
    found = compare(Measured([1, 0.5], [0, 0.5], 2, 2))
    assert found.detectable == pytest.approx((12.706 + 1.376) / 2, abs=2e-3)


def test_benchmarks_weigh_the_same_whatever_their_size():
    found = compare(Measured([1.0] * 30, [0.0] * 30, 4, 4), Measured([0.5] * 300, [0.5] * 300, 4, 4))
    assert found.mean == 0.5


def test_nothing_that_differs_is_no_proof_of_equality():
    found = compare(Measured([1, 0] * 50, [1, 0] * 50, 1, 1))
    assert (found.mean, found.p, found.problems_factor) == (0.0, 1.0, None)
    assert found.high == -found.low == wilson(0, 100)[1]


def test_one_sample_a_problem_says_nothing_about_more_samples():
    assert compare(Measured([1, 0, 1, 1], [0, 0, 1, 0], 1, 1)).samples_factor is None


def pair(generator, problems, samples, mean, alike, moved, shift=0.0):
    """Two policies of the same mean accuracy; on a share `moved` of the problems their chances are unrelated."""
    ours = generator.beta(alike * mean, alike * (1 - mean), problems)
    theirs = np.where(
        generator.random(problems) < moved, generator.beta(alike * mean, alike * (1 - mean), problems), ours
    )
    ours = np.clip(ours + shift, 0, 1)
    a, b = (generator.binomial(samples, chances) / samples for chances in (ours, theirs))
    return Measured(a.tolist(), b.tolist(), samples, samples)


@pytest.mark.parametrize(
    ("problems", "samples", "mean", "alike", "moved", "runs"),
    [(30, 32, 0.1, 0.5, 0.3, 300), (30, 32, 0.3, 1, 1, 300), (40, 4, 0.5, 1, 0.5, 300), (500, 1, 0.8, 1, 0.2, 100)],
)
def test_the_paired_test_keeps_its_level_and_the_interval_covers(problems, samples, mean, alike, moved, runs):
    generator = np.random.default_rng(2)
    found = [compare(pair(generator, problems, samples, mean, alike, moved)) for _ in range(runs)]
    # of 300 runs at 5 %: 15 expected, 27 with a chance below 0.2 %
    assert sum(f.p <= 0.05 for f in found) <= runs * 0.09
    assert fmean(f.low <= 0 <= f.high for f in found) >= 0.91


def test_the_number_of_samples_that_is_said_to_be_needed_gives_the_power():
    # Truth: chances uniform in [0.2, 0.7], ours 0.03 higher on every problem. What one large measurement recommends
    # is tried out 300 times.
    generator = np.random.default_rng(3)
    theirs = generator.uniform(0.2, 0.7, 40)
    ours = theirs + 0.03

    def measured(k):
        a, b = (generator.binomial(k, chances) / k for chances in (ours, theirs))
        return Measured(a.tolist(), b.tolist(), k, k)

    k = math.ceil(compare(measured(20_000)).samples_factor * 20_000)
    # by hand: within about 2 * 0.228, none between, (2.02 + 0.85)^2 = 8.26: k = 8.26 * 0.456 / (40 * 0.03^2) = 105
    assert 90 < k < 125
    power = fmean(compare(measured(k)).p <= 0.05 for _ in range(300))
    assert 0.72 <= power <= 0.88


def test_the_number_of_problems_that_is_said_to_be_needed_gives_the_power():
    generator = np.random.default_rng(4)

    def measured(n):
        theirs = generator.uniform(0.1, 0.9, n)
        ours = np.clip(theirs + 0.05 + 0.2 * generator.standard_normal(n), 0, 1)
        a, b = (generator.binomial(4, chances) / 4 for chances in (ours, theirs))
        return Measured(a.tolist(), b.tolist(), 4, 4)

    found = compare(measured(3_000))
    n = math.ceil(found.problems_factor * 3_000)
    power = fmean(compare(measured(n)).p <= 0.05 for _ in range(120))
    assert 0.70 <= power <= 0.90


def test_problems_that_differ_too_much_are_not_cured_by_samples():
    generator = random.Random(0)
    differences = [generator.gauss(0.02, 0.3) for _ in range(30)]
    found = compare(Measured([0.5 + d for d in differences], [0.5] * 30, 10**6, 10**6))
    assert math.isinf(found.samples_factor)
    assert found.problems_factor > 1
