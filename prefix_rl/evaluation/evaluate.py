"""Evaluating a policy: find it, load the problems, sample what is not there yet, grade, and write the result card."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import contradictions, documents, parts, preflight
from ..data import benchmarks, contamination
from ..data.benchmarks import Task
from ..data.sources import read
from ..engines.base import completions
from ..errors import DataError, RecipeError
from ..places import run_of
from ..processes import Processes, end_with_launcher, take_own_gpus
from ..progress import Speedometer, bar, say
from ..recipe import LAB, Recipe, raise_if, training_data
from ..rewards.equality import Rules
from ..rewards.functions import MATH, FunctionGrader, gold_of, needed, verdicts
from ..rewards.grading import VERSION, Outcome
from ..rewards.workers import Grader
from ..status import recorded
from . import samples
from .card import markdown, read_card, versions
from .metrics import estimate
from .sampling import Job, graded, jobs_of, prefixes_of, request_of
from .summary import ks_of, summarize
from .target import Target, find_target


def evaluate(target: str, config: str | None = None, overrides: Sequence[str] = (), output: Path | None = None) -> dict:
    """Evaluates a policy; writes its samples as they come, ``evaluation.json`` and ``evaluation.md``.

    The same call goes on where it was stopped; more samples or more problems add to those that are there. Samples that
    were drawn with other settings are set aside.

    Args:
        target: a run's folder (its final policy, or else its last whole checkpoint), a checkpoint inside one, a model's
            folder or hub name, or ``lab``.
        config: a recipe; None: the run's own. Neither is needed where ``evaluation.on`` is among the overrides.
        overrides: ``block.key=value``.
        output: the folder that is written; None: the run's folder, for a checkpoint ``evaluations/NAME`` in it,
            and ``runs/evaluations/NAME`` for a model that belongs to no run.

    Returns:
        Content of ``evaluation.json``. Of several processes (``accelerate launch -m prefix_rl.evaluate``) each samples
        its share, and the first one returns the content; the others return an empty dictionary.

    Raises:
        UserError: for whatever a person can mend, before a model is loaded.
    """
    preflight.quiet()
    processes = Processes.launched()
    end_with_launcher()
    recipe, folder = find_target(target, config, overrides)
    take_own_gpus(recipe.engine.tensor_parallel_size if recipe.engine.name == "vllm" else 1)
    folder = output or folder
    tasks = tasks_of(recipe)
    if run_of(target):
        _refuse_overlap(recipe, tasks)
    ks = ks_of(recipe.evaluation.k, {task.name: task.samples for task in tasks})
    grader = recipe.grader()
    first = recipe.reward.functions[:1]
    raise_if(target, contradictions.with_columns(first, {task.name: task.problems for task in tasks}))
    benchmarks.check_answers(tasks, grader)
    policy = Target(target, recipe, day=samples.date_of(folder))  # last: the lab's base policy is trained for it
    plans = plans_of(tasks, policy)
    with samples.opened(folder) if processes.main else nullcontext(), recorded(folder, "evaluating"):
        if processes.main:
            samples.continue_with(folder, policy.settings())
            for note in policy.policy.notes:
                say(f"note: {note}")
            announced = ", ".join(_announced(task) for task in tasks)
            say(f"{policy.path}: {announced}; samples go to {folder / samples.SAMPLES}")
        processes.meet("opened")
        try:
            for plan in plans:
                _sample(plan, policy, grader, folder, processes)
        except KeyboardInterrupt:
            say(f"stopped; what was finished is in {folder / samples.SAMPLES}, and the same command goes on from there")
            raise
        finally:
            if "engine" in vars(policy):
                samples.note_engine(folder, policy.engine.facts(), policy.engine.counts)
                policy.engine.close()
        processes.meet("sampled")
        card = _conclude(policy, tasks, plans, ks, grader, folder) if processes.main else {}
    grader.close()
    return card


def _conclude(
    policy: Target, tasks: Sequence[Task], plans: Sequence[Plan], ks: Mapping[str, Sequence[int]], grader: Grader,
    folder: Path,
) -> dict:  # fmt: skip
    """The card, all samples being there."""
    measured = {task.name: _measure(task, plans, ks[task.name], grader, folder) for task in tasks}
    for name, found in measured.items():
        if lost := sum(found["outcomes"].get(outcome, 0) for outcome in (Outcome.TIMEOUT, Outcome.CRASH)):
            say(f"{name}: grading {lost} samples took too long or too much memory; they count as not right")
    card = _card(policy, tasks, measured, grader, folder)
    problems = [{"benchmark": t.name, "id": p.id, "problem": p.text, "answer": gold_of(grader, p)} for t in tasks
                for p in t.problems]  # fmt: skip
    lines = "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in problems)
    _write(folder / samples.PROBLEMS, lines)
    _write_card(folder, card)
    return card


def grade_again(folder: Path, ks: Sequence[int] = ()) -> tuple[dict, Counter[tuple[str, str]]]:
    """Grades the samples of a finished evaluation by the grader as it is now; loads no model.

    Returns:
        The new card, which is written, and how often each ``(outcome before, outcome now)`` occurred.

    Raises:
        DataError: if the folder holds no finished evaluation, or k is larger than the samples.
    """
    card = read_card(folder, whole=True)
    golds = _golds(folder / samples.PROBLEMS, card)
    found = ks_of(ks, {name: b["samples"] for name, b in card["benchmarks"].items()})
    given = card["grader"]
    mathematics = Grader(given["workers"], given["deadline"], given["memory_mb"], Rules(**given["rules"]))
    grader = verdicts([given.get("reward", MATH)], mathematics)
    changes: Counter[tuple[str, str]] = Counter()
    with samples.opened(folder):
        folders = {name: _folders_of(folder, name, b) for name, b in card["benchmarks"].items()}
        total = sum(samples.count(place) for places in folders.values() for place in places.values())
        with bar("grading", total) as advance:
            for name, places in folders.items():
                for place in places.values():
                    changes += samples.grade_again(place, golds[name], grader, advance, every=True)
        for name, b in card["benchmarks"].items():
            asked = [int(k) for k in b["pass"]] if not ks else found[name]
            b |= _numbers(list(golds[name]), b["samples"], folders[name], asked, grader, b["prompts"])
        _with_mean(card)
        card |= {"grader": _grader_facts(grader), "graded_again": _now()}
        _write_card(folder, card)
    grader.close()
    return card, changes


def _golds(path: Path, card: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The gold answers of each benchmark of a card.

    Raises:
        DataError: if the file that has them is not there, is damaged, or is that of another evaluation.
    """
    if not os.path.lexists(path):
        raise DataError(f"{path.parent} has no {path.name}, so its samples cannot be graded again")
    golds: dict[str, dict[str, str]] = {}
    for place, row in read(str(path)):
        if wrong := documents.misfit(row, {"benchmark": str, "id": str, "answer": str}):
            raise DataError(f"{place} is damaged: {wrong}; evaluate again with `prefix-rl evaluate`, or bring it back")
        golds.setdefault(row["benchmark"], {})[row["id"]] = row["answer"]
    for name, measured in card["benchmarks"].items():
        if golds.get(name, {}).keys() != measured["right_by_problem"].keys():
            raise DataError(
                f"{path} has other problems of {name} than {samples.CARD} beside it, so the samples cannot be graded "
                "again; evaluate again with `prefix-rl evaluate`, or bring back the file that belongs there"
            )
    return golds


# --- what is evaluated ------------------------------------------------------------------------------------------------


def _refuse_overlap(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """Nothing is evaluated on problems that the policy was trained on, unless that is wanted.

    Raises:
        DataError: naming the benchmarks and how many of their problems are concerned.
    """
    train, sources = recipe.data.named, recipe.data.sources
    if recipe.evaluation.allow_overlap or not sources or not all(Path(source.file).is_file() for source in sources):
        return
    texts = [problem.text for problem in training_data(recipe)]
    found = {task.name: contamination.overlap(texts, [p.text for p in task.problems]) for task in tasks}
    inside = [f"{task.name}: {len(found[task.name])} of its {len(task.problems)} problems" for task in tasks
              if found[task.name]]  # fmt: skip
    if inside:
        raise DataError(
            f"this policy was trained on problems of what it is to be evaluated on ({train}); leave these out, or set "
            "evaluation.allow_overlap=true:",
            inside,
        )


def tasks_of(recipe: Recipe) -> list[Task]:
    """The benchmarks that a recipe names, in their order."""
    from ..lab.world import held_out_problems

    evaluation = recipe.evaluation
    names = evaluation.on or ((evaluation.data,) if evaluation.data else ())
    if not names:
        raise RecipeError(
            "evaluation.on and evaluation.data name nothing to evaluate on; give --on NAME or FILE "
            f"({', '.join(benchmarks.BENCHMARKS)})"
        )
    greedy = 1 if evaluation.temperature == 0 else None
    options = {"samples": evaluation.samples or greedy, "limit": evaluation.limit}
    tasks = []
    for name in names:
        if name == LAB:
            problems = held_out_problems(recipe.world)[: evaluation.limit]
            tasks.append(Task(LAB, problems, options["samples"] or 1, "the lab's held-out problems"))
    others = [name for name in names if name != LAB]
    own = recipe.reward.functions[0] != MATH
    options |= {"answers": "answer" in needed(recipe.reward.functions[0]), "columns": own}
    tasks += benchmarks.load(others, folder=evaluation.benchmarks, split=evaluation.split, **options)
    return tasks


@dataclass(frozen=True)
class Plan:
    """The completions wanted of one benchmark, from nothing or from one fraction of the demonstrations."""

    task: Task
    fraction: float
    jobs: Sequence[Job]

    @property
    def folder(self) -> str:
        """Name of the folder that holds its samples."""
        return folder_name(self.task.name, self.fraction)


def folder_name(task: str, fraction: float) -> str:
    """``math500``, or ``math500@0.25`` for a quarter of the demonstrations."""
    return f"{task}@{fraction:g}" if fraction else task


def plans_of(tasks: Sequence[Task], policy: Target) -> list[Plan]:
    """Plans of samples, one for each benchmark and each fraction of the demonstrations that it has any for.

    Raises:
        DataError: if a fraction of the demonstrations is wanted and no benchmark has any.
        RecipeError: naming the problems for which the model has too few positions.
    """
    turn, guard, plans, prompts = policy.policy.turn, policy.recipe.data.answer_guard, [], {}
    fractions = [f for f in dict.fromkeys(policy.recipe.evaluation.prefix_fractions) if f]
    for task in tasks:
        asked = [policy.policy.prompt_ids(problem) for problem in task.problems]
        prompts |= {f"{task.name} {problem.id}": ids for problem, ids in zip(task.problems, asked, strict=True)}
        for fraction in (0.0, *fractions):
            prefixes = prefixes_of(task.problems, policy.tokenizer, turn, fraction, guard, policy.length)
            if jobs := jobs_of(task.problems, asked, prefixes, task.samples):
                plans.append(Plan(task, fraction, jobs))
    if fractions and not any(plan.fraction for plan in plans):
        raise DataError("evaluation.prefix_fractions needs demonstrations, and no problem to evaluate on has any")
    policy.policy.check_context(prompts, policy.length, "evaluation.max_completion_length")
    policy.longest_prompt = max(map(len, prompts.values()))
    return plans


# --- sampling and measuring -------------------------------------------------------------------------------------------


def _announced(task: Task) -> str:
    return f"{task.name} ({len(task.problems)} problems, {task.samples} sample{'s' if task.samples > 1 else ''} each)"


def _sample(plan: Plan, policy: Target, grader: Grader, folder: Path, processes: Processes) -> None:
    """Samples this process's share of what is not there, and saves it as it is done."""
    place, problems = folder / samples.SAMPLES / plan.folder, plan.task.problems
    there = {(r["problem"], r["index"], r["prompt"]) for r in samples.read(place, ("problem", "index", "prompt"))}
    hashes = {job.problem: samples.prompt_hash(job) for job in plan.jobs}
    own = processes.share(plan.jobs)
    todo = [job for job in own if (problems[job.problem].id, job.index, hashes[job.problem]) not in there]
    if not todo:
        return
    seed, engine = policy.recipe.evaluation.seed, policy.engine  # loads the weights, before the bar begins
    requests = [request_of(job, problems, policy.sampling, policy.length, seed) for job in todo]
    with bar(plan.folder, len(own)) as advance:
        advance(len(own) - len(todo))
        speed = Speedometer(engine.counts.generated_tokens)
        for done in completions(engine, requests):
            made = graded(done, engine.stops, policy.tokenizer, grader, problems)
            rows = [
                samples.row_of(s, problems[s.problem].id, gold_of(grader, problems[s.problem]), hashes[s.problem])
                for s in made
            ]
            samples.append(place, rows)
            advance(len(made), speed.told(engine.counts.generated_tokens))


def _measure(task: Task, plans: Sequence[Plan], ks: Sequence[int], grader: Grader, folder: Path) -> dict[str, Any]:
    """The numbers of one benchmark, all its samples being there."""
    golds = {p.id: gold_of(grader, p) for p in task.problems}
    places, prompts = {}, {}
    for plan in plans:
        if plan.task is task:
            place = folder / samples.SAMPLES / plan.folder
            places[f"{plan.fraction:g}"] = place
            prompts[f"{plan.fraction:g}"] = {task.problems[j.problem].id: samples.prompt_hash(j) for j in plan.jobs}
            with bar("grading", None) as advance:
                changes = samples.grade_again(place, golds, grader, advance, every=False)
            if changes:
                say(f"{plan.folder}: graded {changes.total()} samples of an earlier call again")
    facts = {"source": task.source, "file_sha256": task.file_sha256, "sha256": task.sha256, "prompts": prompts}
    return facts | _numbers(list(golds), task.samples, places, ks, grader, prompts)


def _numbers(
    ids: Sequence[str],
    count: int,
    places: Mapping[str, Path],
    ks: Sequence[int],
    grader: Grader,
    prompts: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """The numbers of one benchmark from its samples in ``places``, by fraction."""
    columns = ("problem", "index", "outcome", "answer", "tokens", "truncated", "prompt")

    def rows(fraction: str) -> list[dict]:
        wanted = prompts[fraction]
        found = [
            r for r in samples.read(places[fraction], columns)
            if r["index"] < count and r["prompt"] == wanted.get(r["problem"])
        ]  # fmt: skip
        samples.check_complete(places[fraction], found, [name for name in ids if name in wanted], count)
        return found

    found = summarize(ids, rows("0"), ks, grader)
    by_fraction = {}
    for fraction in prompts:
        if fraction != "0":
            having = [name for name in ids if name in prompts[fraction]]
            by_fraction[fraction] = summarize(having, rows(fraction), (), grader)["accuracy"]
    return found | {"accuracy_by_prefix_fraction": by_fraction}


def _folders_of(folder: Path, name: str, measured: Mapping[str, Any]) -> dict[str, Path]:
    return {f: folder / samples.SAMPLES / folder_name(name, float(f)) for f in measured["prompts"]}


# --- the card ---------------------------------------------------------------------------------------------------------


def _card(
    policy: Target, tasks: Sequence[Task], measured: Mapping[str, dict], grader: Grader, folder: Path
) -> dict[str, Any]:
    first = policy.tokenizer.decode(policy.policy.prompt_ids(tasks[0].problems[0]), skip_special_tokens=False)
    return _with_mean(
        {
            "policy": policy.path,
            "accuracy": None,
            "benchmarks": dict(measured),
            "checkpoint": policy.checkpoint,
            "engine": policy.engine_facts() | samples.engine_of(folder),
            "sampling": {
                "temperature": policy.sampling.temperature,
                "top_p": policy.sampling.top_p,
                "max_completion_length": policy.length,
                "seed": policy.recipe.evaluation.seed,
                "batch_size": policy.recipe.at_once,
            },
            "prompt": {**policy.prompt_facts(), "example": first},
            "grader": _grader_facts(grader),
            "recipe": policy.recipe.resolved(),
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "date": _now(),
            "git_commit": preflight.git_commit(),
            "versions": versions(),
        }
    )


def _with_mean(card: dict[str, Any]) -> dict[str, Any]:
    """Puts the mean over benchmarks into a card, in place."""
    shares = [[c / b["samples"] for c in b["right_by_problem"].values()] for b in card["benchmarks"].values()]
    count = min(b["samples"] for b in card["benchmarks"].values())
    card["accuracy"] = asdict(estimate(*shares, samples=count))
    return card


def _grader_facts(grader: Grader) -> dict[str, Any]:
    return {
        "version": VERSION,
        "rules": asdict(grader.rules),
        "workers": grader.workers,
        "deadline": grader.deadline,
        "memory_mb": grader.memory_mb,
        **({"reward": grader.function.name} if isinstance(grader, FunctionGrader) else {}),
    }


def _write_card(folder: Path, card: Mapping[str, Any]) -> None:
    for name, text in ((samples.CARD, json.dumps(card, indent=2, ensure_ascii=False) + "\n"),
                       (samples.CARD_TEXT, markdown(card))):  # fmt: skip
        _write(folder / name, text)


def _write(path: Path, text: str) -> None:
    """Writes a file of results.

    Raises:
        DataError: if it cannot be written; the samples are whole.
    """
    try:
        parts.write_text(path, text)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}. The samples are whole, and the same command makes "
            "it of them"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
