"""Every rule on made-up curves: one on which it speaks, and its neighbours on which it must not."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from prefix_rl.reports.health import ENOUGH, RULES, WINDOW, Thresholds, check, curves_of, schedule_end

DOCS = Path(__file__).parents[1] / "docs" / "health.md"


def line(value, steps=40):
    """A curve that stays where it is, or goes where a function says."""
    return [(step, value(step) if callable(value) else value) for step in range(1, steps + 1)]


HEALTHY = {
    "reward": line(lambda s: 0.3 + 0.005 * s),
    "reward_without_prefix": line(lambda s: 0.3 + 0.005 * s),
    "reward_with_prefix": line(0.7),
    "entropy": line(lambda s: 0.5 - 0.005 * s),
    "frac_reward_zero_std": line(0.4),
    "completions/mean_length": line(lambda s: 500 + 5 * s),
    "completions/clipped_ratio": line(0.05),
    "kl": line(0.01),
    "sampling/sampling_logp_difference/mean": line(0.012),
    "outcome/timeout": line(0.0),
    "outcome/crash": line(0.0),
    "outcome/bad_gold": line(0.0),
    "outcome/no_answer": line(0.1),
    "reward_unscored_share": line(0.0),
    "step_time": line(lambda s: 30 + s % 3),
    "loss": line(0.01),
    "grad_norm": line(0.2),
}


def found(total=None, **changes):
    curves = {**HEALTHY, **{key.replace("__", "/"): value for key, value in changes.items()}}
    return {finding.rule: finding for finding in check({k: v for k, v in curves.items() if v is not None}, total)}


STUCK = {"reward": line(0.3), "reward_without_prefix": line(0.3)}
SPEAKS = {
    "nan": [{"loss": line(lambda s: float("nan") if s == 7 else 0.1)}, {"grad_norm": line(lambda s: float("inf"))}],
    "entropy": [
        {**STUCK, "entropy": line(lambda s: 0.5 * 0.8**s)},
        {**STUCK, "entropy": line(0.01)},
        {**STUCK, "entropy_continuation": line(0.01)},
    ],
    "no_signal": [{"frac_reward_zero_std": line(0.95)}],
    "prefix_never_right": [{"reward_with_prefix": line(0.0)}],
    "prefix_always_right": [{"reward_with_prefix": line(1.0)}],
    "length": [{"completions__mean_length": line(lambda s: 200 + 20 * s)}],
    "clipped": [{"completions__clipped_ratio": line(0.4)}],
    "kl": [{"kl": line(2.0)}],
    "sampler": [{"sampling__sampling_logp_difference__mean": line(0.2)}],
    "ungraded": [
        {"outcome__timeout": line(0.05)},
        {"outcome__crash": line(0.05)},
        {"outcome__bad_gold": line(0.05)},
        {"reward_unscored_share": line(0.05)},
    ],
    "no_answer": [{"outcome__no_answer": line(0.8)}],
    "slow_step": [{"step_time": line(lambda s: 400.0 if s == 40 else 30.0)}],
}


def test_nothing_is_said_of_a_healthy_run():
    assert found(total=40) == {}


@pytest.mark.parametrize(("rule", "changes"), [(rule, c) for rule, some in SPEAKS.items() for c in some])
def test_each_rule_speaks_where_it_should_and_alone(rule, changes):
    assert set(found(**changes)) == {rule}


def test_the_gap_is_told_when_the_schedule_ends_only():
    gap = {"reward_with_prefix": line(0.9), "reward_without_prefix": line(0.1), "reward": line(0.2)}
    assert set(found(total=45, **gap)) == {"prefix_gap"}  # 40 of 45 steps
    assert found(total=45, **gap)["prefix_gap"].says == "0.90 with prefix and 0.10 without, at 89 % of the schedule"
    assert found(total=200, **gap) == {}  # there is time
    assert found(total=None, **gap) == {}  # nobody knows
    assert found(total=45, reward_with_prefix=line(0.9), reward_without_prefix=line(0.7)) == {}


def test_every_rule_is_tried_here():
    assert {rule.name for rule in RULES} == {*SPEAKS, "prefix_gap"}


@pytest.mark.parametrize(
    "changes",
    [
        # a policy that is nearly always right is sure of it, its groups are all right, and prefixes are no help
        {"reward": line(0.97), "reward_without_prefix": line(0.97), "entropy": line(0.005), "frac_reward_zero_std": line(0.95),
         "reward_with_prefix": line(1.0)},
        # one that still gets better becomes sure of what it learns
        {"reward": line(lambda s: 0.1 + 0.01 * s), "reward_without_prefix": line(lambda s: 0.1 + 0.01 * s),
         "entropy": line(lambda s: 0.5 * 0.8**s)},
        {"loss": line(0.0), "kl": None},  # TRL's loss is 0 where num_iterations is 1
        {"reward_with_prefix": line(float("nan"))},  # no rollout had a prefix in these steps
        {"reward_with_prefix": line(0.0, steps=ENOUGH - 1)},  # too early to say
        {"completions__mean_length": line(lambda s: 100 + 200 * (s == 40))},  # one long batch
        {"step_time": line(lambda s: 400.0 if s == 1 else 30.0)},  # the first step compiles
        {"step_time": line(200.0, steps=ENOUGH)},
        {"outcome__timeout": line(lambda s: 0.03 * (s == 5))},  # long ago
    ],
)  # fmt: skip
def test_what_is_no_harm_is_not_told(changes):
    assert found(**changes) == {}


def test_the_policy_alone_counts_where_prefixes_lift_the_reward():
    lifted = {"reward": line(0.95), "reward_without_prefix": line(0.2), "entropy": line(0.01)}
    assert "entropy" in found(**lifted)


def test_a_finding_is_one_line_with_reason_and_remedy():
    told = found(reward_with_prefix=line(0.0))["prefix_never_right"].line()
    assert told.startswith("health: step 40: rollouts from a prefix earn 0.00 in the mean; ")
    assert "Try: longer prefixes" in told
    assert "\n" not in told
    for rule in RULES:
        assert rule.why
        assert rule.remedy


@pytest.mark.parametrize("name", [f.name for f in fields(Thresholds)])
def test_every_threshold_decides_something(name):
    """Each is moved out of reach, and a finding goes; so none is read by nothing."""
    given = {
        "entropy_nats": {**STUCK, "entropy": line(0.01)},
        "entropy_of_start": {**STUCK, "entropy": line(lambda s: 5.0 if s <= 10 else 0.1)},
        "solved": {"frac_reward_zero_std": line(0.95)},
        "improves": {**STUCK, "entropy": line(0.01)},
        "gap": {"reward_with_prefix": line(0.9), "reward_without_prefix": line(0.1)},
        "gap_from": {"reward_with_prefix": line(0.9), "reward_without_prefix": line(0.1)},
        "never_right": {"reward_with_prefix": line(0.0)},
        "always_right": {"reward_with_prefix": line(1.0)},
        "no_signal": {"frac_reward_zero_std": line(0.95)},
        "length_growth": SPEAKS["length"][0],
        "clipped": SPEAKS["clipped"][0],
        "kl": SPEAKS["kl"][0],
        "sampler_nats": SPEAKS["sampler"][0],
        "ungraded": SPEAKS["ungraded"][0],
        "no_answer": SPEAKS["no_answer"][0],
        "slow_step": SPEAKS["slow_step"][0],
    }[name]
    curves = {**HEALTHY, **{key.replace("__", "/"): value for key, value in given.items()}}
    away = -1.0 if name in ("entropy_nats", "entropy_of_start", "solved", "never_right", "improves") else 99.0
    total = 45.0 if name.startswith("gap") else None
    assert check(curves, total)
    assert check(curves, total, Thresholds(**{name: away})) == []


def test_lines_of_a_log_become_curves():
    lines = [
        {"step": 1, "reward": 0.5, "epoch": 0.1},
        {"step": 2, "reward": 1, "flag": True, "note": "x", "gone": None},
    ]
    assert curves_of(lines) == {"reward": [(1, 0.5), (2, 1.0)], "epoch": [(1, 0.1)]}


def test_the_schedule_ends_at_the_horizon_or_else_with_the_run():
    assert schedule_end({"method": {"horizon": 100}, "training": {"max_steps": 300}}) == 100
    assert schedule_end({"method": {"horizon": None}, "training": {"max_steps": 300}}) == 300
    assert schedule_end({"training": {"max_steps": -1}}) is None
    assert schedule_end({}) is None


def test_the_docs_name_every_rule_and_every_threshold():
    text = DOCS.read_text()
    rows = re.findall(r"^\| `(\w+)` \|", text.partition("## Where")[0], re.MULTILINE)
    assert rows == [rule.name for rule in RULES]
    for rule in RULES:
        (told,) = re.findall(rf"^\| `{rule.name}` \|(.*)$", text, re.MULTILINE)
        assert rule.why in told
        assert rule.remedy in told
    for threshold in fields(Thresholds):
        assert re.search(rf"`{threshold.name}` {threshold.default:g}(?![\d.])", text), threshold.name
    assert f"{WINDOW} logged points" in text
