"""Evaluating a policy: unprefixed accuracy, and accuracy from given parts of a demonstration."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .. import preflight
from ..checkpoints import last_whole
from ..data.tokenizer import load_tokenizer
from ..errors import DataError, RecipeError
from ..progress import bar
from ..recipe import Recipe, evaluation_data, load_recipe, prompt_of
from ..rewards.workers import Grader
from .metrics import accuracy
from .sampling import Sample, by_problem, mean_length, sample


def find_policy(target: str, config: str | None, overrides: Sequence[str]) -> tuple[str, Recipe, Path | None]:
    """The policy's folder or name, the recipe to evaluate it by, and the run it belongs to (None for a bare model).

    ``target`` is a run's folder (its final policy, or else its last whole checkpoint), a checkpoint inside one, a
    model's folder or hub name, or ``lab``.
    """
    folder = Path(target)
    run = next((f for f in (folder, folder.parent) if (f / "recipe.yaml").is_file()), None)
    recipe_path = config or (run / "recipe.yaml" if run else None)
    if recipe_path is None:
        raise RecipeError(
            f"{target} is not the folder of a run, so it is not known how to evaluate it; give a recipe with --config "
            "(its blocks data, evaluation and training.max_completion_length are used)"
        )
    recipe = load_recipe(recipe_path, overrides)
    if run == folder:
        policy = run / "final" if (run / "final").is_dir() else last_whole(run)
        if policy is None:
            raise DataError(f"{run} has no policy yet: neither final nor a whole checkpoint")
        return str(policy), recipe, run
    if target == "lab":
        from ..train import model_path

        model = dataclasses.replace(recipe.model, name_or_path="lab")
        return model_path(dataclasses.replace(recipe, model=model)), recipe, None
    return target, recipe, run


def evaluate(target: str, config: str | None = None, overrides: Sequence[str] = (), output: Path | None = None) -> dict:
    """Evaluates and writes ``evaluation.json`` and ``samples.jsonl`` into ``output``; returns what the former holds.

    ``output`` is the run's folder unless given; for a model that belongs to no run nothing is written without it.
    """
    preflight.quiet()
    import torch
    from transformers import AutoModelForCausalLM

    path, recipe, run = find_policy(target, config, overrides)
    problems, evaluation = evaluation_data(recipe), recipe.evaluation
    if not problems:
        raise RecipeError("evaluation.data names nothing to evaluate on; set evaluation.data=FILE")
    tokenizer = load_tokenizer(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=recipe.model.dtype or "auto")
    except (OSError, ValueError) as error:
        raise DataError(f"no model could be loaded from {path}: {error}") from error
    cuda = torch.cuda.is_available() and not recipe.training_value("use_cpu")
    model = model.to("cuda" if cuda else "cpu").eval()
    grader = Grader(recipe.reward.workers, recipe.reward.deadline, recipe.reward.memory_mb)
    prompts = [prompt_of(problem, recipe.data) for problem in problems]

    def run_at(fraction: float) -> list[Sample]:
        what = f"prefix {fraction:.0%}" if fraction else "sampling"
        with bar(what, len(problems) * evaluation.samples) as advance:
            return sample(
                model,
                tokenizer,
                problems,
                prompts,
                grader,
                samples=evaluation.samples,
                max_completion_length=recipe.training_value("max_completion_length"),
                temperature=evaluation.temperature,
                batch_size=evaluation.batch_size,
                seed=evaluation.seed,
                prefix_fraction=fraction,
                guard=recipe.data.answer_guard,
                progress=advance,
            )

    plain = run_at(0.0)
    result = {
        "policy": path,
        "data": evaluation.data,
        "problems": len(problems),
        "samples": evaluation.samples,
        "temperature": evaluation.temperature,
        "max_completion_length": recipe.training_value("max_completion_length"),
        "seed": evaluation.seed,
        "accuracy": dataclasses.asdict(accuracy(by_problem(plain))),
        "outcomes": dict(sorted(Counter(str(s.outcome) for s in plain).items())),
        "truncated_share": sum(s.truncated for s in plain) / len(plain),
        "mean_completion_length": mean_length(plain),
        "accuracy_by_prefix_fraction": {},
        "versions": preflight.versions(),
    }
    for fraction in evaluation.prefix_fractions:
        samples = plain if fraction == 0 else run_at(fraction)
        if not samples:
            raise DataError("evaluation.prefix_fractions needs demonstrations, and no problem to evaluate on has any")
        result["accuracy_by_prefix_fraction"][f"{fraction:g}"] = dataclasses.asdict(accuracy(by_problem(samples)))
    grader.close()
    if output := output or run:
        output.mkdir(parents=True, exist_ok=True)
        (output / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        with (output / "samples.jsonl").open("w", encoding="utf-8") as file:
            for s in plain:
                line = {"problem": problems[s.problem].id, "answer": problems[s.problem].answer, "outcome": s.outcome}
                file.write(json.dumps({**line, "truncated": s.truncated, "text": s.text}, ensure_ascii=False) + "\n")
    return result
