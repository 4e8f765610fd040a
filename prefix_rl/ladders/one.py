"""One run of a ladder, in a process of its own: collect, train, measure, and leave ``result.json``."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .. import preflight
from ..checkpoints import FINAL, checkpoints
from ..evaluation.sampling import by_problem, sample
from ..parts import Lock, write_text
from ..progress import run_or_explain, say
from ..recipe import evaluation_data, load_recipe
from ..rewards.functions import logged_as
from .jobs import RESULT, Job
from .plan import as_overrides


def main(arguments: Sequence[str]) -> int:
    """``python -m prefix_rl.ladders.one run|collect JOB``: what the ladder starts."""
    command, described = arguments
    return run_or_explain(lambda: {"run": run_one, "collect": collect_one}[command](Job.of(described)))


def collect_one(job: Job) -> None:
    """Collects the traces that a run trains on, if they are not there."""
    from ..collecting.collect import collect

    overrides = [override for override in job.overrides if not override.startswith("data.traces=")]
    collect(job.recipe, overrides, job.traces, **dataclasses.asdict(job.collect), seed=job.seed)


def run_one(job: Job) -> None:
    """Trains, measures, and leaves ``result.json``. Waits for a process that an earlier ladder may have left behind."""
    with Lock(job.folder / ".lock").held(lambda who: say(f"waiting for another process{who} to end {job.name}")):
        if job.result() is None:
            _train_and_measure(job)


def _train_and_measure(job: Job) -> None:
    from ..train import train

    began = time.monotonic()
    run = train(job.recipe, job.overrides)
    trained = time.monotonic()
    found = {
        "arm": job.cell.arm,
        "seed": job.seed,
        "overrides": list(job.overrides),
        "cost": json.loads((run / "cost.json").read_text(encoding="utf-8")),
        "steps": steps_of(run),
        "curve": curve_of(run),
        **measure(job, run),
        "seconds": {"training": trained - began, "evaluation": time.monotonic() - trained},
        "git_commit": preflight.git_commit(),
        "versions": preflight.versions(),
    }
    write_text(run / RESULT, json.dumps(found) + "\n")


def _metrics_of(run: Path) -> list[dict[str, float]]:
    """The lines of the run's log."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def steps_of(run: Path) -> int:
    """Number of optimizer steps with rollouts, whether or not the run was evaluated on its way."""
    return max((line["step"] for line in _metrics_of(run)), default=0)


def curve_of(run: Path) -> list[dict[str, float]]:
    """Unprefixed held-out accuracy while training, with what had been spent by then."""
    lines = _metrics_of(run)
    reward = load_recipe(run / "recipe.yaml").reward.functions[0]
    first = f"eval_rewards/{logged_as(reward)}/mean"  # a function alone is eval_reward
    flops = {m["step"]: m["cost/flops"] for m in lines if "cost/flops" in m}
    return [
        {"step": m["step"], "flops": flops[m["step"]], "accuracy": m.get(first, m["eval_reward"])}
        for m in lines if "eval_reward" in m and m["step"] in flops
    ]  # fmt: skip


def measure(job: Job, run: Path) -> dict[str, Any]:
    """Accuracy of the final policy on every level, and of every checkpoint from parts of a demonstration."""
    from ..evaluation.target import Target

    preflight.quiet()
    recipe = load_recipe(job.recipe, job.overrides)
    grader = recipe.grader()

    def shares(target: Target, fraction: float, samples: int, limit: int | None = None) -> list[float]:
        """The share of right samples, by problem."""
        problems = evaluation_data(target.recipe)[:limit]
        prompts = [target.policy.prompt_ids(problem) for problem in problems]
        target.longest_prompt = max(map(len, prompts))
        made = sample(
            target.engine,
            target.tokenizer,
            target.policy.turn,
            problems,
            prompts,
            grader,
            samples=samples,
            max_completion_length=target.length,
            temperature=target.sampling.temperature,
            top_p=target.sampling.top_p,
            batch_size=target.engine.at_once,
            seed=target.recipe.evaluation.seed,
            prefix_fraction=fraction,
            guard=target.recipe.data.answer_guard,
        )
        return [fmean(right) for right in by_problem(made)]

    final, samples = str(run / FINAL), recipe.evaluation.samples or 1
    right = shares(Target(final, recipe), 0.0, samples)
    levels = {}
    for name, settings in job.levels.items():
        level = load_recipe(job.recipe, [*job.overrides, *as_overrides(settings)])
        levels[name] = shares(Target(final, level), 0.0, samples)
    by_fraction = []
    if recipe.method.needs.prefixes and job.trial is None and recipe.evaluation.prefix_fractions:
        for folder in checkpoints(run):
            step, target = int(folder.name.rpartition("-")[2]), Target(str(folder), recipe)
            accuracy = {f"{f:g}": fmean(shares(target, f, 1, 128)) for f in recipe.evaluation.prefix_fractions}
            by_fraction.append({"step": step, "accuracy": accuracy})
    grader.close()
    return {"right": right, "accuracy": fmean(right), "levels": levels, "by_prefix_fraction": by_fraction}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
