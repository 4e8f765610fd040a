"""Health: what in the curves of a run says that something goes wrong, with a threshold, a reason and a remedy each.

A rule looks at the logged metrics alone, so it speaks of a run that trains and of one that ended, of ours and of any
other that logs TRL's names. ``docs/health.md`` has the same rules for reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""The points ``(step, value)`` of each metric, in the order of the steps."""

WINDOW = 10
"""Logged points of which a mean is taken: the first ones are "the start", the last ones "now"."""
ENOUGH = 5
"""Logged points below which nothing is said of a mean."""


@dataclass(frozen=True)
class Thresholds:
    """Values beyond which a rule speaks."""

    entropy_nats: float = 0.02
    """The policy's entropy now, nats a token, ..."""
    entropy_of_start: float = 0.1
    """... or as a share of its entropy at the start, at most."""
    solved: float = 0.9
    """A reward without prefix from which on a low entropy, or groups that are all right, are success."""
    improves: float = 0.02
    """Rise of the mean reward from one window to the next at which a low entropy is no harm yet."""
    no_signal: float = 0.8
    """Share of the groups whose rollouts all got the same reward."""
    never_right: float = 0.02
    """Reward of the rollouts from a prefix, at most."""
    always_right: float = 0.98
    """The same, at least."""
    gap: float = 0.3
    """Reward with prefix minus reward without, ..."""
    gap_from: float = 0.75
    """... from this share of the schedule on."""
    length_growth: float = 2.0
    """Mean completion length now, as a multiple of its start."""
    clipped: float = 0.25
    """Share of the completions that ran into their limit."""
    kl: float = 0.5
    """KL from the reference policy, nats a token."""
    sampler_nats: float = 0.05
    """Mean difference of a token's log-probability between the engine that sampled it and the trainer, nats."""
    ungraded: float = 0.01
    """Share of the rollouts whose grading timed out or crashed, whose gold answer is bad, or that got no reward."""
    no_answer: float = 0.5
    """Share of the rollouts without a final answer that the grader can read."""
    slow_step: float = 10.0
    """Seconds of the last step, as a multiple of the median before."""


@dataclass(frozen=True)
class Finding:
    """A warning of one rule: what it measured, why that matters, and what to try."""

    rule: str
    step: int
    says: str
    """The measured value, in words."""
    why: str
    """Reason why it matters."""
    remedy: str
    """Changes to try."""

    def line(self) -> str:
        """One line for a log."""
        return f"health: step {self.step}: {self.says}; {self.why}. Try: {self.remedy}"


@dataclass(frozen=True)
class Rule:
    """One rule: metrics, a look at them, and advice."""

    name: str
    metrics: tuple[str, ...]
    """Names of the metrics that it reads; it says nothing where the first is not logged."""
    look: Callable[[_Look], str | None]
    """The measured value in words, None if that is not beyond the threshold."""
    why: str
    remedy: str


class _Look:
    """The curves, asked for what rules want to know."""

    def __init__(self, curves: Curves, thresholds: Thresholds, total: float | None):
        self.curves, self.at, self.total = curves, thresholds, total

    def values(self, key: str) -> list[float]:
        return [value for _, value in self.curves.get(key, ()) if math.isfinite(value)]

    def now(self, key: str) -> float | None:
        """The mean of the last points."""
        found = self.values(key)
        return fmean(found[-WINDOW:]) if len(found) >= ENOUGH else None

    def start(self, key: str) -> float | None:
        """The mean of the first points, where there are later ones."""
        found = self.values(key)
        return fmean(found[:WINDOW]) if len(found) >= WINDOW + ENOUGH else None

    def step(self, *keys: str) -> int:
        return max((self.curves[key][-1][0] for key in keys if self.curves.get(key)), default=0)

    @property
    def solved(self) -> bool:
        """True if the policy alone is nearly always right, as far as it was measured."""
        # the first that is logged: evaluations have no prefixes, `reward` may have some
        for key in ("eval_reward", "reward_without_prefix", "reward"):
            if found := self.values(key):
                return fmean(found[-WINDOW:]) >= self.at.solved
        return False

    @property
    def improves(self) -> bool:
        """True if the policy alone still gets better: a policy that learns becomes sure."""
        for key in ("reward_without_prefix", "reward"):
            if found := self.values(key):
                before, now = found[-2 * WINDOW : -WINDOW], found[-WINDOW:]
                return bool(before) and fmean(now) - fmean(before) >= self.at.improves
        return False


def _entropy(look: _Look) -> str | None:
    key = "entropy_continuation" if look.values("entropy_continuation") else "entropy"
    now, start = look.now(key), look.start(key)
    # a policy that is right, or still gets better, may be sure of itself
    if now is None or look.solved or look.improves:
        return None
    if now <= look.at.entropy_nats:
        return f"the policy's entropy is {now:.3g} nats a token"
    if start and now <= look.at.entropy_of_start * start:
        return f"the policy's entropy fell from {start:.3g} to {now:.3g} nats a token"
    return None


def _no_signal(look: _Look) -> str | None:
    now = look.now("frac_reward_zero_std")
    if now is None or now < look.at.no_signal or look.solved:
        return None
    return f"in {_percent(now)} of the groups all rollouts got the same reward"


def _never_right(look: _Look) -> str | None:
    now = look.now("reward_with_prefix")
    if now is None or now > look.at.never_right:
        return None
    return f"rollouts from a prefix earn {now:.2f} in the mean"


def _always_right(look: _Look) -> str | None:
    now = look.now("reward_with_prefix")
    if now is None or now < look.at.always_right or look.solved:
        return None
    return f"rollouts from a prefix earn {now:.2f} in the mean, and the policy alone does not"


def _gap(look: _Look) -> str | None:
    with_prefix, alone = look.now("reward_with_prefix"), look.now("reward_without_prefix")
    if with_prefix is None or alone is None or with_prefix - alone < look.at.gap:
        return None
    share = look.step("reward_with_prefix") / look.total if look.total else 0.0
    # early in the schedule prefixes are meant to help
    if share < look.at.gap_from:
        return None
    return f"{with_prefix:.2f} with prefix and {alone:.2f} without, at {_percent(min(share, 1.0))} of the schedule"


def _length(look: _Look) -> str | None:
    key = "completions/mean_length"
    now, start = look.now(key), look.start(key)
    if now is None or not start or now < look.at.length_growth * start:
        return None
    return f"completions grew from {start:.0f} to {now:.0f} tokens"


def _clipped(look: _Look) -> str | None:
    now = look.now("completions/clipped_ratio")
    if now is None or now < look.at.clipped:
        return None
    return f"{_percent(now)} of the completions ran into max_completion_length"


def _kl(look: _Look) -> str | None:
    now = look.now("kl")
    return None if now is None or now < look.at.kl else f"KL from the reference is {now:.3g} nats a token"


def _sampler(look: _Look) -> str | None:
    now = look.now("sampling/sampling_logp_difference/mean")
    if now is None or now < look.at.sampler_nats:
        return None
    return f"sampler and trainer differ by {now:.3g} nats a token"


def _ungraded(look: _Look) -> str | None:
    keys = {"outcome/timeout": "timed out", "outcome/crash": "crashed", "outcome/bad_gold": "have a gold answer that "
            "cannot be parsed", "reward_unscored_share": "got no reward"}  # fmt: skip
    found = [
        f"{_percent(now)} {what}" for key, what in keys.items() if (now := look.now(key) or 0.0) > look.at.ungraded
    ]
    return f"of the rollouts {', '.join(found)}" if found else None


def _no_answer(look: _Look) -> str | None:
    now = look.now("outcome/no_answer")
    if now is None or now < look.at.no_answer:
        return None
    return f"no final answer was found in {_percent(now)} of the rollouts"


def _slow(look: _Look) -> str | None:
    found = look.values("step_time")
    if len(found) <= ENOUGH:
        return None
    # without the last step itself, and of the recent ones alone: lengths change over a run
    usual = median(found[-201:-1])
    return f"the last step took {found[-1]:.1f} s, the median before is {usual:.1f} s" if (
        found[-1] > look.at.slow_step * usual > 0
    ) else None  # fmt: skip


_MUST_BE_FINITE = ("loss", "grad_norm", "policy_loss", "reward", "entropy", "kl")


def _nan(look: _Look) -> str | None:
    bad = {k: [s for s, v in look.curves.get(k, ()) if not math.isfinite(v)] for k in _MUST_BE_FINITE}
    told = [f"{key} (from step {steps[0]})" for key, steps in bad.items() if steps]
    return f"not a finite number: {', '.join(told)}" if told else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


RULES: tuple[Rule, ...] = (
    Rule("nan", _MUST_BE_FINITE, _nan, "the weights may be lost already",
         "go back to the checkpoint before; lower learning_rate, set max_grad_norm, use bf16 instead of fp16"),
    Rule("entropy", ("entropy", "entropy_continuation"), _entropy,
         "a policy that always writes the same explores no more, and its groups teach nothing",
         "a lower learning_rate, a higher epsilon_high or temperature, an entropy bonus (entropy_coef)"),
    Rule("no_signal", ("frac_reward_zero_std",), _no_signal,
         "a group without differences has no advantage, so it moves nothing",
         "problems that are neither hopeless nor solved (prepare --pass-rate), larger groups, more or longer prefixes"),
    Rule("prefix_never_right", ("reward_with_prefix",), _never_right,
         "the policy cannot go on from these prefixes, so they teach nothing but imitation",
         "longer prefixes, demonstrations nearer to the policy's own style, a look at the rollouts for cut answers"),
    Rule("prefix_always_right", ("reward_with_prefix",), _always_right,
         "prefixes that leave nothing to do teach nothing of what comes before them",
         "shorter prefixes; see whether they give the answer away (data.answer_guard)"),
    Rule("prefix_gap", ("reward_with_prefix", "reward_without_prefix"), _gap,
         "the help ends before the policy can do without it",
         "a longer schedule (method.horizon, max_steps), a slower decay, or prefixes that adapt (method: adaptive)"),
    Rule("length", ("completions/mean_length",), _length,
         "it costs time and memory, and often is repetition rather than thought",
         "a look at long rollouts for loops; loss_type dr_grpo (others favour length), mask_truncated_completions"),
    Rule("clipped", ("completions/clipped_ratio",), _clipped,
         "what is cut off cannot be right, so the policy is punished for its length",
         "a larger max_completion_length, mask_truncated_completions, a stop token that the model knows"),
    Rule("kl", ("kl",), _kl, "the policy has moved far from where it started, and may have lost what it could",
         "a higher beta, a lower learning_rate, fewer num_iterations"),
    Rule("sampler", ("sampling/sampling_logp_difference/mean",), _sampler,
         "the gradient is that of another policy than the one that sampled",
         "the same dtype in engine and trainer, weights synchronised every step, vllm_importance_sampling_correction"),
    Rule("ungraded", ("outcome/timeout",), _ungraded,
         "what is not graded counts as wrong or drops out, and neither says anything of the policy",
         "prefix-rl grade on saved completions; reward.deadline, reward.workers; prefix-rl prepare drops bad golds"),
    Rule("no_answer", ("outcome/no_answer",), _no_answer,
         "what is not found cannot be right: often the prompt does not ask for the form that the grader reads",
         "a prompt that asks for a boxed answer, a larger max_completion_length, a look at the rollouts"),
    Rule("slow_step", ("step_time",), _slow,
         "something besides training happened: grading, another process, a machine that throttles",
         "speed/grading_share, the load of the machine, longest completions of that step"),
)  # fmt: skip


def curves_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The curves in the lines of a ``metrics.jsonl``.

    >>> curves_of([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4, "note": "text"}])
    {'loss': [(1, 0.5), (2, 0.4)]}
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for line in metrics:
        for key, value in line.items():
            if key != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(key, []).append((line.get("step", 0), float(value)))
    return found


def check(curves: Curves, total: float | None = None, thresholds: Thresholds | None = None) -> list[Finding]:
    """Warnings that hold now, the gravest first; empty if all is well.

    Args:
        curves: see :func:`curves_of`.
        total: the optimizer steps over which prefixes are scheduled; None: not known, and then a run is never late.
        thresholds: where rules begin to speak.

    >>> falling = {"entropy": [(step, 0.8 * 0.7**step) for step in range(20)]}
    >>> [(f.rule, f.says) for f in check(falling)]
    [('entropy', "the policy's entropy is 0.00732 nats a token")]
    """
    look = _Look(curves, thresholds or Thresholds(), total)
    return [
        Finding(rule.name, look.step(*rule.metrics), says, rule.why, rule.remedy)
        for rule in RULES
        if any(curves.get(key) for key in rule.metrics) and (says := rule.look(look))
    ]


def schedule_end(recipe: Mapping[str, Any]) -> float | None:
    """The step at which a recipe's prefixes are scheduled to end: its horizon, or else its last step."""
    horizon = (recipe.get("method") or {}).get("horizon")
    steps = (recipe.get("training") or {}).get("max_steps")
    found = [n for n in (horizon, steps) if isinstance(n, int | float) and not isinstance(n, bool) and n > 0]
    return float(found[0]) if found else None
