"""Collecting traces: what PrefixRL (arXiv 2601.18795) does before training.

The policy samples every problem ``k`` times (stage 1), which says how hard it is. A problem of which at most
``max_pass_rate`` of these are right is hard; the paper's rule is none of 512. Hard problems are sampled further until
they have ``wanted`` right traces, or ``cap`` attempts in all (stage 2; the paper: one trace, about 650 attempts in the
mean, at most 2,500). Every trace is kept with what it cost.

A method that learns from the policy's own traces alone (:attr:`~prefix_rl.methods.base.Method.own_traces`: UPFT, RFT)
says how often each problem is sampled, and there is no stage 2. Of a trace no more is sampled than the method's
:meth:`~prefix_rl.methods.base.Method.excerpt`, with the prompt that it will be learned behind; but where answers are
needed the trace is sampled to its end, or it could not be graded. Where none are needed nothing is graded.

What a batch samples follows from what the store holds, and its random numbers from the seed and the number of attempts
before it. So a collection that was cut off goes on as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import preflight
from .costs import inference_flops
from .data.attempts import MAY_GROW, Plan
from .data.imports import import_traces
from .data.problems import Problem
from .data.traces import CUT, UNGRADED, Account, Tally, Trace, TraceStore, tokenizer_sha256
from .errors import DataError, UserError
from .policy import Policy
from .progress import Lines, bar, how_far, say
from .recipe import Recipe, load_recipe, training_data
from .rewards.workers import Grader
from .status import progress, recorded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SUMMARY = "summary.json"
"""What a collection came to, in the store's folder."""
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
        batch_size: attempts generated together; None: ``evaluation.batch_size``. One part of the store is one batch.
        temperature: above 0; None: ``training.temperature``.
        seed: of all sampling.
        policy: a folder or a name that takes the place of the recipe's model.

    Raises:
        UserError: for numbers that make no sense, a recipe, data or a model that cannot be used.
        DataError: if the store was collected in another way, naming every difference; if it cannot be written.
        KeyboardInterrupt: after saying that the same command goes on.
    """
    preflight.quiet()
    recipe, problems = _recipe_and_problems(config, overrides, policy)
    method = recipe.method
    k = (method.own_traces or Plan.k) if k is None else k
    cap = (k if method.own_traces else Plan.cap) if cap is None else cap
    plan = Plan(k, max_pass_rate, wanted, cap)
    settings = {
        **asdict(plan),
        "graded": method.needs_answers,
        "batch_size": recipe.evaluation.at_once if batch_size is None else batch_size,
        "temperature": recipe.training_value("temperature") if temperature is None else temperature,
        "max_completion_length": recipe.training_value("max_completion_length"),
        "dtype": recipe.model.dtype or "auto",
        "seed": seed,
    }
    wrong = plan.problems_found()
    if cap > k and not method.needs_answers:
        wrong.append(
            f"cap = {cap}: method {recipe.method_name} has nothing graded, so no problem gets more than k = {k}"
        )
    if settings["batch_size"] < 1:
        wrong.append(f"batch_size = {settings['batch_size']}: must be at least 1")
    if not settings["temperature"] > 0:
        wrong.append(f"temperature = {settings['temperature']:g}: must be above 0, or all attempts would be the same")
    if wrong:
        raise UserError("nothing can be collected with these settings:", wrong)

    asked = _policy(recipe, Path(output))
    prompts = _prompts(asked, problems)
    asked.check_context(
        {p.place or p.id: ids for p, ids in zip(problems, prompts, strict=True)},
        settings["max_completion_length"], "training.max_completion_length", droppable=True,
    )  # fmt: skip
    for note in asked.notes:
        say(f"note: {note}")
    limits = _limits(recipe, problems)
    model = asked.load()
    about = {
        "model": asked.path,
        "model_sha256": _weights_sha256(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "limits_sha256": _sha256(limits),
        "settings": settings,
    }
    store = _open_or_create(Path(output), {**_data_facts(asked, problems, prompts), **about})
    grader = recipe.reward.grader() if method.needs_answers else None
    with store.writing(), recorded(store.folder, "collecting", keep=False):
        try:
            _sample(store, asked, model, problems, prompts, limits, grader, plan)
        except KeyboardInterrupt:
            say(f"stopped; what was sampled is in {store.folder}. The same command goes on from there.")
            raise
        finally:
            if grader:
                grader.close()
        summary = summarize(store, problems)
        store.write_json(SUMMARY, summary)
        if hard := summary["hard"]:
            store.write_rows(HARD, [p.as_row() for p in problems if p.id in set(hard["ids"])])
    return summary


def _policy(recipe: Recipe, store: Path) -> Policy:
    """The policy; its prompts show the date of the store that is gone on with, if they show one."""
    if recipe.model.date is None and (store / "store.json").is_file():
        day = TraceStore.open(store).facts.get("date")
        recipe = replace(recipe, model=replace(recipe.model, date=day))
    return Policy(recipe)


def _prompts(policy: Policy, problems: Sequence[Problem]) -> list[list[int]]:
    """The ids of what the policy is asked, each problem as its trace will be learned."""
    method, seed = policy.recipe.method, policy.recipe.training_value("seed")
    return [policy.prompt_ids(p, method.excerpt(p.id, seed).instruction) for p in problems]


def _limits(recipe: Recipe, problems: Sequence[Problem]) -> list[int | None]:
    """The tokens to sample of each problem's traces; None: as many as there are."""
    if recipe.method.needs_answers:
        return [None] * len(problems)
    return [recipe.method.excerpt(p.id, recipe.training_value("seed")).tokens for p in problems]


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
    grader = recipe.reward.grader() if recipe.method.needs_answers else None
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
    recipe = replace(recipe, data=replace(recipe.data, traces=None))  # it may name the very store to be made
    return recipe, training_data(recipe)


# --- what a store belongs to ------------------------------------------------------------------------------------------


def _data_facts(policy: Policy, problems: Sequence[Problem], prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    return {
        "tokenizer_sha256": tokenizer_sha256(policy.tokenizer),
        "data": policy.recipe.data.train,
        "problems_sha256": _sha256([(p.id, p.text, p.answer) for p in problems]),
        "prompts_sha256": _sha256(prompts),
        **({"date": policy.date} if policy.date else {}),
    }


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _weights_sha256(model: PreTrainedModel) -> str:
    """The hash of the parameters and their names."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


_COMPARED = {
    "tokenizer_sha256": "another tokenizer",
    "problems_sha256": "other problems: an id, a text, an answer or their number has changed",
    "prompts_sha256": "other prompts: the instruction, the system prompt or the chat template has changed",
    "limits_sha256": "traces of other lengths: the method's block or training.seed has changed",
    "model_sha256": "another model: its parameters differ",
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
    store: TraceStore,
    policy: Policy,
    model: PreTrainedModel,
    problems: Sequence[Problem],
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int | None],
    grader: Grader | None,
    plan: Plan,
) -> None:
    """Samples and stores batches until the plan is done."""
    from .evaluation.engines import TransformersEngine
    from .evaluation.sampling import sample

    facts, engine = store.facts, TransformersEngine(model, policy.tokenizer, policy.stops)
    settings, parameters = facts["settings"], facts["parameters"]
    lengths = [len(prompt) for prompt in prompts]
    counted = store.attempts(plan.k), store.attempts()
    first, every = ([tallies.get(p.id, Tally()) for p in problems] for tallies in counted)
    with _attempts_bar(sum(tally.attempts for tally in every), settings["graded"]) as show:
        show(plan, first, every)
        while batch := plan.next_batch(first, every, settings["batch_size"]):
            done = sum(tally.attempts for tally in every)
            samples = sample(
                engine,
                policy.tokenizer,
                policy.turn,
                [problems[i] for i in batch],
                [prompts[i] for i in batch],
                grader,
                max_completion_length=settings["max_completion_length"],
                temperature=settings["temperature"],
                batch_size=len(batch),
                seed=random.Random(repr(("collect", settings["seed"], done))).getrandbits(40),
                limits=[limits[i] for i in batch],
            )
            traces = []
            for i, made in zip(batch, samples, strict=True):
                cut = made.truncated and limits[i] is not None and len(made.completion_ids) == limits[i]
                outcome = str(made.outcome or (CUT if cut else UNGRADED))
                truncated = made.truncated and not cut
                traces.append(
                    Trace(
                        problem_id=problems[i].id,
                        problem=problems[i].text,
                        answer=problems[i].answer,
                        attempt=every[i].attempts,
                        source=facts["model"],
                        text=made.text,
                        completion_ids=made.completion_ids,
                        prompt_tokens=lengths[i],
                        outcome=outcome,
                        truncated=truncated,
                        flops=float(inference_flops(parameters, lengths[i] + len(made.completion_ids))),
                    )
                )
                every[i] = every[i].plus(outcome, truncated)
                if every[i].attempts <= plan.k:
                    first[i] = every[i]
            store.append(traces)
            show(plan, first, every)


@contextmanager
def _attempts_bar(before: int, graded: bool) -> Iterator[Callable[[Plan, Sequence[Tally], Sequence[Tally]], None]]:
    """A bar of attempts and how many were right; its end moves, as it depends on what is solved."""
    from tqdm import tqdm

    lines = Lines()
    with tqdm(desc="sampling", unit=" attempts", initial=before, leave=False, delay=1, disable=None) as shown:

        def show(plan: Plan, first: Sequence[Tally], every: Sequence[Tally]) -> None:
            done = sum(tally.attempts for tally in every)
            shown.n, shown.total = done, done + plan.remaining(first, every)
            right = f"{sum(tally.right for tally in every):,} right" if graded else ""
            shown.set_postfix_str(right)
            progress("attempts", done, shown.total)
            lines.now_and_then(lambda: f"sampling: {how_far(done, shown.total)} attempts {right}".rstrip())

        yield show


# --- the summary ------------------------------------------------------------------------------------------------------


def summarize(store: TraceStore, problems: Sequence[Problem]) -> dict[str, Any]:
    """What a store has come to: how hard the problems are, which have traces, and what it all cost.

    ``pass_at_k`` and ``hard`` are None before every problem has been sampled ``k`` times, and where nothing is graded.
    Operations are 2 N for each token of prompt and completion (PrefixRL, App. F.2); those of imported traces are known
    only if they came along.
    """
    facts = store.facts
    plan = Plan(**{name: facts["settings"][name] for name in asdict(Plan())}) if "settings" in facts else None
    tallies = store.attempts()
    every = [tallies.get(p.id, Tally()) for p in problems]
    sampled, imported = store.accounts()
    levels = hard = None
    if plan and facts["settings"].get("graded", True) and all(tally.attempts >= plan.k for tally in every):
        found = store.attempts(plan.k)
        first = [found[p.id] for p in problems]
        never = sum(tally.right == 0 for tally in first)
        rarely = sum(tally.right > 0 and plan.is_hard(tally) for tally in first)
        levels = {"k": plan.k, "never": never, "rarely": rarely, "solved": len(problems) - never - rarely,
                  "pass_at_k": 1 - never / len(problems)}  # fmt: skip
        at = [every[i] for i, tally in enumerate(first) if plan.is_hard(tally)]
        hard = {
            "problems": len(at),
            "with_all_wanted": sum(tally.usable >= plan.wanted for tally in at),
            "with_some": sum(0 < tally.usable < plan.wanted for tally in at),
            "with_none": sum(tally.usable == 0 for tally in at),
            "mean_attempts": sum(tally.attempts for tally in at) / len(at) if at else None,
            "ids": [p.id for p, tally in zip(problems, first, strict=True) if plan.is_hard(tally)],
        }
    return {
        "policy": facts.get("model"),
        "parameters": facts.get("parameters"),
        "data": facts.get("data"),
        "problems": len(problems),
        "problems_with_a_usable_trace": len({trace.problem_id for trace in store.usable()}),
        "settings": facts.get("settings"),
        "pass_at_k": levels,
        "hard": hard,
        "sampled": _described(sampled),
        "imported": {name: _described(account) for name, account in sorted(imported.items())},
        "versions": preflight.versions(),
    }


def _described(account: Account) -> dict[str, Any]:
    return {**asdict(account), "wrong": account.traces - account.right - account.ungraded}


def collect_main_table(summary: Mapping[str, Any]) -> str:
    """The summary as a few lines for a terminal."""
    lines = [f"{summary['problems']:,} problems of {summary['data']}"]

    def line(count: int, what: str) -> None:
        lines.append(f"  {count:>11,}  {what}")

    if levels := summary["pass_at_k"]:
        rate = summary["settings"]["max_pass_rate"]
        lines.append(f"{summary['policy']}, {levels['k']:,} attempts at every problem")
        line(levels["never"], "never solved")
        if rate > 0:
            line(levels["rarely"], f"solved rarely (at most {rate:.3g} of the attempts)")
        line(levels["solved"], "solved")
    if hard := summary["hard"]:
        attempts = f", {hard['mean_attempts']:,.0f} attempts each in the mean" if hard["problems"] else ""
        lines.append(f"{hard['problems']:,} hard problems{attempts}")
        wanted = summary["settings"]["wanted"]
        line(hard["with_all_wanted"], f"have {wanted} right traces" if wanted > 1 else "have a right trace")
        if hard["with_some"]:
            line(hard["with_some"], "have fewer")
        line(hard["with_none"], f"have none after {summary['settings']['cap']:,} attempts")
    kinds = {"sampled": summary["sampled"]} | {f"imported from {k}": v for k, v in summary["imported"].items()}
    for name, account in kinds.items():
        if account["traces"]:
            unknown = f", not known for {account['flops_unknown']:,}" if account["flops_unknown"] else ""
            lines.append(f"{account['traces']:,} traces {name}")
            if account["ungraded"]:
                line(account["ungraded"], "not graded")
            if account["ungraded"] < account["traces"]:
                line(account["right"], "right")
                line(account["wrong"], "not right")
            line(account["generated_tokens"], "tokens generated")
            lines.append(f"  {account['flops']:>11.3g}  floating-point operations{unknown}")
    return "\n".join(lines)
