"""Collecting traces: what PrefixRL (arXiv 2601.18795) does before training.

The policy samples every problem ``k`` times (stage 1), which says how hard it is. A problem of which at most
``max_pass_rate`` of these are right is hard; the paper's rule is none of 512. Hard problems are sampled further until
they have ``wanted`` right traces, or ``cap`` attempts in all (stage 2; the paper: one trace, about 650 attempts in the
mean, at most 2,500). Every trace is kept with what it cost.

A method that learns from the policy's own traces alone (:attr:`~prefix_rl.methods.stage.Stages.own_traces`: UPFT, RFT)
says how often each problem is sampled, and there is no stage 2. Of a trace no more is sampled than the method's
:meth:`~prefix_rl.methods.stage.Stages.excerpt`, with the prompt that it will be learned behind; but where answers are
needed the trace is sampled to its end, or it could not be graded. Where none are needed nothing is graded.

What is sampled follows from what the store holds (:mod:`prefix_rl.data.attempts`), and the random numbers of an
attempt from the seed, the problem and the attempt's number. So a collection that was cut off goes on as if nothing had
happened, and any number of processes and endpoints end with the same traces.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import preflight
from ..costs import inference_flops
from ..data import attempts
from ..data.attempts import MAY_GROW, Collection, Plan
from ..data.imports import import_traces
from ..data.problems import Problem
from ..data.traces import CUT, UNGRADED, Trace, TraceStore, tokenizer_sha256
from ..engines.base import SAVE_EVERY, Sampling, completions, seed_of
from ..engines.choice import engine_for, known_of, require
from ..errors import DataError, UserError
from ..evaluation.card import checkpoint_facts, parameters_of
from ..evaluation.sampling import Job, Sample, graded, request_of
from ..policy import Policy
from ..processes import Processes, end_with_launcher, take_own_gpus
from ..progress import Lines, Speedometer, bar, how_far, say
from ..recipe import Recipe, load_recipe, training_data
from ..rewards.functions import MATH
from ..status import progress, recorded
from .summary import summarize

SUMMARY = "summary.json"
"""Name of the file in the store's folder that holds the totals of a collection."""
_PART = 1024  # traces of one part at most
HARD = "hard.jsonl"
"""The hard problems as training rows, in the store's folder: what PrefixRL trains on."""


def collect(
    config: str | Path,
    overrides: Sequence[str] = (),
    output: str | Path = "traces",
    *,
    k: int | None = None,
    max_pass_rate: float = 0.0,
    wanted: int = 1,
    cap: int | None = None,
    batch_size: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
    policy: str | Path | None = None,
) -> dict[str, Any]:
    """Samples the recipe's problems without any prefix into the trace store ``output``; returns its summary.

    The same command goes on with what the store holds, and the result is that of an uninterrupted one. ``k``,
    ``wanted`` and ``cap`` may have grown since.

    Args:
        config, overrides: the recipe; its blocks model, data, method and reward are used, and of training
            ``max_completion_length``, ``temperature`` and ``seed`` (which decides which traces are cut).
        output: the store's folder.
        k, max_pass_rate, wanted, cap: see :class:`Plan`. None: of a method that lives on own traces its number of
            traces, for both; else those of the plan.
        batch_size: attempts in the making at a time in one process; None: ``evaluation.batch_size``.
        temperature: above 0; None: ``training.temperature``.
        seed: of all sampling.
        policy: a folder or a name that takes the place of the recipe's model.

    Raises:
        UserError: for numbers that make no sense, a recipe, data or a model that cannot be used.
        DataError: if the store was collected in another way, naming every difference; if it cannot be written.
        KeyboardInterrupt: after saying that the same command goes on.
    """
    preflight.quiet()
    processes = Processes.launched()
    end_with_launcher()
    recipe, problems = _recipe_and_problems(config, overrides, policy)
    require(recipe)
    take_own_gpus(recipe.engine.tensor_parallel_size if recipe.engine.name == "vllm" else 1)
    plan, settings = _plan_and_settings(recipe, k, max_pass_rate, wanted, cap, batch_size, temperature, seed)
    asked = _policy(recipe, Path(output))
    prompts = _prompts(asked, problems)
    asked.check_context(
        {p.place or p.id: ids for p, ids in zip(problems, prompts, strict=True)},
        settings["max_completion_length"], "training.max_completion_length", droppable=True,
    )  # fmt: skip
    for note in asked.notes:
        say(f"note: {note}")
    settings["engine"] = {name: value for name, value in known_of(asked).items() if name != "version"}
    jobs = _jobs(recipe, problems, prompts)
    about = {
        "model": asked.path,
        "policy_sha256": _policy_sha256(asked),
        "parameters": parameters_of(asked.config),
        "limits_sha256": _sha256([job.max_tokens for job in jobs]),
        "settings": settings,
    }
    if processes.main:
        store = _open_or_create(Path(output), {**_data_facts(asked, problems, prompts), **about})
        with store.writing(), recorded(store.folder, "collecting", keep=False):
            processes.meet("opened")
            _sample(store, asked, problems, jobs, plan, settings, batch_size, processes)
            processes.meet("sampled")
            summary = summarize(store, problems)
            store.write_json(SUMMARY, summary)
            if hard := summary["hard"]:
                store.write_rows(HARD, [p.as_row() for p in problems if p.id in set(hard["ids"])])
        return summary
    processes.meet("opened")
    with TraceStore.open(Path(output)).joined() as store:
        _sample(store, asked, problems, jobs, plan, settings, batch_size, processes)
    processes.meet("sampled")
    return {}


def _plan_and_settings(
    recipe: Recipe, k: int | None, max_pass_rate: float, wanted: int, cap: int | None, batch_size: int | None,
    temperature: float | None, seed: int,
) -> tuple[Plan, dict[str, Any]]:  # fmt: skip
    """The plan and the settings of a collection.

    Raises:
        UserError: with everything that makes no sense.
    """
    method = recipe.method
    k = (method.stages.own_traces or Plan.k) if k is None else k
    cap = (k if method.stages.own_traces else Plan.cap) if cap is None else cap
    plan = Plan(k, max_pass_rate, wanted, cap)
    settings = {
        **asdict(plan),
        "graded": method.stages.needs_answers,
        **({} if recipe.reward.functions[0] == MATH else {"reward": recipe.reward.functions[0]}),
        "temperature": recipe.training_value("temperature") if temperature is None else temperature,
        "max_completion_length": recipe.training_value("max_completion_length"),
        "seed": seed,
    }
    faults = plan.faults()
    if cap > k and not method.stages.needs_answers:
        faults.append(
            f"cap = {cap}: method {recipe.method_name} has nothing graded, so no problem gets more than k = {k}"
        )
    if batch_size is not None and batch_size < 1:
        faults.append(f"batch_size = {batch_size}: must be at least 1")
    if not settings["temperature"] > 0:
        faults.append(f"temperature = {settings['temperature']:g}: must be above 0, or all attempts would be the same")
    if faults:
        raise UserError("nothing can be collected with these settings:", faults)
    return plan, settings


def _policy(recipe: Recipe, store: Path) -> Policy:
    """The policy; its prompts show the date of the store that is gone on with, if they show one."""
    if recipe.model.date is None and (store / "store.json").is_file():
        day = TraceStore.open(store).facts.get("date")
        recipe = replace(recipe, model=replace(recipe.model, date=day))
    return Policy(recipe)


def _prompts(policy: Policy, problems: Sequence[Problem]) -> list[list[int]]:
    """The ids of what the policy is asked, each problem as its trace will be learned."""
    method, seed = policy.recipe.method, policy.recipe.training_value("seed")
    return [policy.prompt_ids(p, method.stages.excerpt(p.id, seed).instruction) for p in problems]


def _jobs(recipe: Recipe, problems: Sequence[Problem], prompts: Sequence[Sequence[int]]) -> list[Job]:
    """One job for each problem, the same for all its attempts but for their number."""
    method, seed = recipe.method, recipe.training_value("seed")
    limits = [None if method.stages.needs_answers else method.stages.excerpt(p.id, seed).tokens for p in problems]
    return [Job(i, 0, prompt, max_tokens=limit) for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))]


def import_file(
    config: str | Path,
    overrides: Sequence[str],
    output: str | Path,
    given: str | Path,
    *,
    source: str | None = None,
    policy: str | Path | None = None,
) -> dict[str, Any]:
    """Imports the traces of another model into the trace store ``output``; returns the store's summary.

    They are graded by the training reward and tokenized for the recipe's model; no model is loaded. What was imported
    stands under ``last_import`` of the summary. See :func:`~prefix_rl.data.imports.import_traces`.

    Raises:
        UserError: for a recipe, data, a file or a store that cannot be used.
    """
    preflight.quiet()
    recipe, problems = _recipe_and_problems(config, overrides, policy)
    asked = _policy(recipe, Path(output))
    store = _open_or_create(Path(output), _data_facts(asked, problems, _prompts(asked, problems)))
    grader = recipe.grader() if recipe.method.stages.needs_answers else None
    try:
        with store.writing(), bar("importing", None) as advance:
            done = import_traces(given, store, asked.tokenizer, grader, problems, source, advance, asked.turn)
            summary = {**summarize(store, problems), "last_import": {"from": str(given), **done}}
            store.write_json(SUMMARY, summary)
    finally:
        if grader:
            grader.close()
    return summary


def _recipe_and_problems(
    config: str | Path, overrides: Sequence[str], policy: str | Path | None
) -> tuple[Recipe, list[Problem]]:
    recipe = load_recipe(config, overrides)
    if policy is not None:
        recipe = replace(recipe, model=replace(recipe.model, name_or_path=str(policy), revision=None))
    recipe = replace(recipe, data=replace(recipe.data, traces=None))  # it may name the store collected here
    return recipe, training_data(recipe)


# --- what a store belongs to ------------------------------------------------------------------------------------------


def _data_facts(policy: Policy, problems: Sequence[Problem], prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {
        "tokenizer_sha256": tokenizer_sha256(policy.tokenizer),
        "data": policy.recipe.data.named,
        "problems_sha256": _sha256([(p.id, list(p.turns) or p.text, p.answer) for p in problems]),
        "prompts_sha256": _sha256(prompts),
        **({"date": policy.date} if policy.date else {}),
    }


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _policy_sha256(policy: Policy) -> str | None:
    """The hash of its weights' files (of a name on the hub: of the commit); None if they are not on this machine."""
    found = [checkpoint_facts(place, policy.revision) for place in dict.fromkeys((policy.base, policy.path))]
    known = [facts.get("sha256_of_places") or facts.get("commit") for facts in found]
    return _sha256(known) if all(known) else None


_COMPARED = {
    "tokenizer_sha256": "another tokenizer",
    "problems_sha256": "other problems: an id, a text, an answer or their number has changed",
    "prompts_sha256": "other prompts: the instruction, the system prompt or the chat template has changed",
    "limits_sha256": "traces of other lengths: the method's block or training.seed has changed",
    "policy_sha256": "another model: its parameters differ",
}


def _open_or_create(folder: Path, facts: Mapping[str, Any]) -> TraceStore:
    """The store to go on with, or a new one.

    Raises:
        DataError: naming every difference, if the store in the folder came about in another way.
    """
    if not (folder / "store.json").exists():
        return TraceStore.create(folder, facts)
    store = TraceStore.open(folder)
    then = store.facts
    old, new = then.get("settings") or {}, facts.get("settings") or {}
    differences = [
        what for name, what in _COMPARED.items() if name in then and name in facts and then[name] != facts[name]
    ]
    for name in old.keys() & new:
        if name in MAY_GROW and new[name] < old[name]:
            differences.append(f"{name} was {old[name]}, now {new[name]}; it may grow, not shrink")
        elif name not in MAY_GROW and new[name] != old[name]:
            differences.append(f"{name} was {old[name]}, now {new[name]}")
    if "settings" in facts and "settings" in then and "policy_sha256" not in then:
        differences.append(
            "an older version sampled it, in which an attempt depended on those made with it; it can be trained on as "
            "it is"
        )
    if differences:
        raise DataError(
            f"the trace store {folder} was collected in another way. Undo the changes, or collect into another folder:",
            sorted(differences),
        )
    kept = {name: then[name] for name in ("model",) if name in then}  # the same parameters under another name
    if {**then, **facts, **kept} != then:
        store.update({**facts, **kept})
    return store


# --- sampling ---------------------------------------------------------------------------------------------------------


def _sample(
    store: TraceStore, policy: Policy, problems: Sequence[Problem], jobs: Sequence[Job], plan: Plan,
    settings: Mapping[str, Any], batch_size: int | None, processes: Processes,
) -> None:  # fmt: skip
    """Samples and stores this process's attempts until the plan is done."""
    own = processes.share(range(len(problems)))
    collection = Collection(plan, attempts.read(store.outcomes(), [p.id for p in problems], plan.k), own)
    if collection.is_done():
        return
    length, sampling = settings["max_completion_length"], Sampling(settings["temperature"])
    seed = seed_of("collect", settings["seed"])
    grader = policy.recipe.grader() if settings["graded"] else None
    engine = None
    try:
        engine = engine_for(policy, max(len(job.prompt_ids) for job in jobs) + length, batch_size)
        if processes.main:
            store.update({"engine": engine.facts()})
        facts = store.facts
        requests = (
            at and request_of(replace(jobs[at[0]], index=at[1]), problems, sampling, length, seed)
            for at in collection.ahead()
        )
        seconds = 0.0 if policy.recipe.engine.name == "transformers" else SAVE_EVERY  # what it hands over is a batch
        with _attempts_bar(collection, settings["graded"]) as show, _saved(store, seconds) as save:
            for done in completions(engine, requests):
                made = graded(done, engine.stops, policy.tokenizer, grader, problems)
                traces = [
                    _trace(one, request.about, problems[one.problem], facts)
                    for one, (request, _) in zip(made, done, strict=True)
                ]
                save(traces)
                for one, trace in zip(made, traces, strict=True):
                    collection.back(one.problem, trace.attempt, trace.outcome, trace.truncated)
                show(engine.counts.generated_tokens)
    except KeyboardInterrupt:
        say(f"stopped; what was sampled is in {store.folder}. The same command goes on from there.")
        raise
    finally:
        if engine is not None:
            engine.close()
        if grader:
            grader.close()


def _trace(made: Sample, job: Job, problem: Problem, facts: Mapping[str, Any]) -> Trace:
    cut = made.truncated and job.max_tokens is not None and len(made.completion_ids) == job.max_tokens
    return Trace(
        problem_id=problem.id,
        problem=problem.text,
        answer=problem.answer,
        attempt=job.index,
        source=facts["model"],
        text=made.text,
        completion_ids=made.completion_ids,
        prompt_tokens=len(job.prompt_ids),
        outcome=str(made.outcome or (CUT if cut else UNGRADED)),
        truncated=made.truncated and not cut,
        flops=float(inference_flops(facts["parameters"], len(job.prompt_ids) + len(made.completion_ids))),
    )


@contextmanager
def _saved(store: TraceStore, seconds: float) -> Iterator[Callable[[Sequence[Trace]], None]]:
    """Yields what to call with traces that are done. They may come in ones and twos; a part takes those of some
    ``seconds``."""
    waiting: list[Trace] = []
    last = time.monotonic()

    def save(traces: Sequence[Trace]) -> None:
        nonlocal last, waiting
        waiting += traces
        if time.monotonic() - last >= seconds or len(waiting) >= _PART:
            part, waiting, last = waiting, [], time.monotonic()  # whatever interrupts it, nothing is added twice
            store.append(part)

    try:
        yield save
    finally:
        store.append(waiting)


@contextmanager
def _attempts_bar(collection: Collection, graded: bool) -> Iterator[Callable[[int], None]]:
    """A bar of attempts and how many were right; its end moves, as it depends on what is solved."""
    from tqdm import tqdm

    own = [collection.done[i] for i in collection.own]
    before, speed, lines = sum(one.every.attempts for one in own), Speedometer(), Lines()
    silent, shown_at = not Processes.launched().main, 0.0
    with tqdm(
        desc="sampling", unit=" attempts", initial=before, leave=False, delay=1, disable=True if silent else None
    ) as shown:

        def show(tokens: int) -> None:
            nonlocal shown_at
            if time.monotonic() - shown_at < 0.5:
                return
            shown_at = time.monotonic()
            done = sum(one.every.attempts for one in own)
            shown.n, shown.total = done, done + collection.remaining()
            right = f"{sum(one.every.right for one in own):,} right, " if graded else ""
            shown.set_postfix_str(right + speed.told(tokens))
            if not silent:
                progress("attempts", done, shown.total)
                lines.now_and_then(
                    lambda: f"sampling: {how_far(done, shown.total)} attempts, {right}{speed.told(tokens)}"
                )

        yield show
