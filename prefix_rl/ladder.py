"""The ladder: many methods from the same data, policy, reward and budget, in one table.

A ladder is a YAML file. Its ``arms`` are recipes; its ``regimes`` are settings that decide a question each, such as how
many demonstrations there are. Every arm runs in every regime with every seed, and all of them may spend the same:
``budget.flops``, collected traces and supervised stages included. An arm that uses no demonstrations is the same run in
all regimes that differ in demonstrations alone, and is trained once.

Before the runs that count, ``search`` gives each arm the same number of tries at its own settings, with another seed
and on other held-out problems; the best try's settings are the arm's from then on. All tries are shown.

Runs are folders named after their resolved recipe. A ladder that was stopped goes on where it was, and a changed ladder
trains only what changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from annotated_types import Ge

from . import parts, preflight
from .errors import RecipeError, UserError, nearest
from .fields import check, fields_of
from .progress import Lines, how_far, say
from .recipe import LAB, Recipe, load_recipe, read_yaml

RESULT = "result.json"


@dataclass(frozen=True)
class Collect:
    """Traces that the policy collects itself before it is trained (``prefix-rl collect``)."""

    k: Annotated[int, Ge(1)] | None = None
    """Attempts at every problem; null: as `prefix-rl collect` without --k."""
    wanted: Annotated[int, Ge(1)] = 1
    """Right traces wanted for a problem that is rarely solved."""
    cap: Annotated[int, Ge(1)] | None = None
    """Attempts at most; null: as `prefix-rl collect` without --cap."""


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    recipe: str
    """The recipe, relative to the ladder's file."""
    set: dict = field(default_factory=dict)
    """``block.key: value`` on top of it."""
    tuned_as: str | None = None
    """Take the settings that the search found for this other arm."""
    regimes: tuple[str, ...] | None = None
    """The regimes to run in; null: all."""
    collect: Collect | None = None
    """This arm learns from traces of the policy's own, in whatever regime; their cost is charged to it."""


@dataclass(frozen=True)
class Regime:
    """A question, and the settings in which it is asked."""

    question: str
    """What this regime decides."""
    set: dict = field(default_factory=dict)
    """``block.key: value`` for all arms."""
    demonstrations: dict = field(default_factory=dict)
    """``block.key: value`` for the arms that use demonstrations."""
    collect: Collect | None = None
    """The demonstrations are the policy's own traces, and their cost is charged."""
    arms: tuple[str, ...] | None = None
    """The arms that run in it; null: all."""
    tuned_in: str | None = None
    """The regime of the search whose settings hold here; null: this one if it is searched, else the first."""


@dataclass(frozen=True)
class Search:
    """How settings are chosen."""

    tries: dict
    """For each arm a list of settings to try (``block.key: value``); as many for each."""
    regimes: tuple[str, ...]
    """Where they are tried. In other regimes the settings found in the first of these hold."""
    seed: int = 1000
    """Seed of the runs that search; none of ``seeds``."""
    set: dict = field(default_factory=dict)
    """``block.key: value`` for the runs that search, such as other held-out problems."""


@dataclass(frozen=True)
class Fast:
    """A small form of the ladder, without a search."""

    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] | None = None
    regimes: tuple[str, ...] | None = None
    set: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Ladder:
    """A ladder whose every value has been checked."""

    output: str
    """The folder of the runs and of the tables."""
    seeds: tuple[int, ...]
    """Each arm runs once with each."""
    arms: dict
    """By name."""
    regimes: dict
    """By name."""
    set: dict = field(default_factory=dict)
    """``block.key: value`` for every run."""
    levels: dict = field(default_factory=dict)
    """Further held-out problems by name, each ``block.key: value`` that leads to them."""
    against: tuple[str, ...] = ()
    """Arms that all others are compared with."""
    search: Search | None = None
    fast: Fast | None = None


@dataclass(frozen=True)
class Job:
    """One run of the ladder."""

    arm: str
    regime: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    folder: Path
    levels: Mapping[str, Mapping[str, Any]]
    trial: int | None = None  # which try of a search
    collect: Collect | None = None
    traces: str | None = None

    @property
    def name(self) -> str:
        """For people."""
        what = f"try {self.trial}" if self.trial is not None else f"seed {self.seed}"
        return f"{self.arm}/{self.regime} {what}"

    def result(self) -> dict[str, Any] | None:
        """What the run left, None if it is not finished."""
        try:
            return json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None


# --- reading ----------------------------------------------------------------------------------------------------------


def load_ladder(path: str | os.PathLike, fast: bool = False) -> Ladder:
    """The ladder in a YAML file.

    Raises:
        RecipeError: with every problem of the file, and of every recipe that it makes.
    """
    given = read_yaml(path)
    values, found = check("ladder", given, fields_of(Ladder))
    problems = [f"{name.removeprefix('ladder.')}: {what}" for name, what in found.items()]
    blocks = {"arms": Arm, "regimes": Regime}
    for block, cls in blocks.items():
        made = {}
        for name, content in (values.get(block) or {}).items():
            inner, found = check(f"{block}.{name}", content, fields_of(cls))
            problems += [f"{key}: {what}" for key, what in found.items()]
            if not found:
                made[str(name)] = cls(**inner)
        values[block] = made
    if not problems:
        problems = _contradictions(values)
    _raise_if(path, problems)
    ladder = Ladder(**values)
    if fast:
        ladder = _fast(path, ladder)
    _raise_if(path, _problems_of_runs(path, ladder))
    return ladder


def _raise_if(path: str | os.PathLike, problems: Sequence[str]) -> None:
    if problems:
        problems = list(dict.fromkeys(problems))
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise RecipeError(f"{os.fspath(path)}: {count}, nothing was started", problems)


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    problems, arms, regimes, search = [], values["arms"], values["regimes"], values.get("search")
    for what in ("arms", "regimes", "seeds"):
        if not values[what]:
            problems.append(f"{what}: give at least one")
    seeds = list(values["seeds"])
    problems += [f"seeds: {seed} stands twice; a run is counted once" for seed in set(seeds) if seeds.count(seed) > 1]

    def known(where: str, names: Sequence[str], there: Mapping[str, Any], what: str) -> None:
        for name in names:
            if name not in there:
                problems.append(f"{where}: no {what} {name}{nearest(name, there)}; there are {', '.join(there)}")

    known("against", values["against"], arms, "arm")
    for name, arm in arms.items():
        known(f"arms.{name}.tuned_as", [arm.tuned_as] if arm.tuned_as else [], arms, "arm")
        known(f"arms.{name}.regimes", arm.regimes or (), regimes, "regime")
    if fast := values.get("fast"):
        known("fast.arms", fast.arms or (), arms, "arm")
        known("fast.regimes", fast.regimes or (), regimes, "regime")
    for name, regime in regimes.items():
        known(f"regimes.{name}.arms", regime.arms or (), arms, "arm")
        if regime.tuned_in and search:
            known(f"regimes.{name}.tuned_in", [regime.tuned_in], dict.fromkeys(search.regimes), "searched regime")
    if search:
        known("search.tries", list(search.tries), arms, "arm")
        known("search.regimes", search.regimes, regimes, "regime")
        if search.seed in seeds:
            problems.append(
                f"search.seed = {search.seed} is one of seeds; settings would be chosen on a run that counts"
            )
        counts = {name: len(tries) if isinstance(tries, list) else 0 for name, tries in search.tries.items()}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            problems.append(f"search.tries: every arm gets the same number of tries, given {counts}")
    return problems


def _fast(path: str | os.PathLike, ladder: Ladder) -> Ladder:
    if ladder.fast is None:
        raise RecipeError(f"{os.fspath(path)} has no block fast")
    fast = ladder.fast
    arms = {name: arm for name, arm in ladder.arms.items() if fast.arms is None or name in fast.arms}
    regimes = {name: r for name, r in ladder.regimes.items() if fast.regimes is None or name in fast.regimes}
    return dataclasses.replace(
        ladder,
        output=f"{ladder.output}-fast",
        seeds=fast.seeds,
        arms=arms,
        regimes=regimes,
        set={**ladder.set, **fast.set},
        against=tuple(a for a in ladder.against if a in arms),
        search=None,
    )


def _problems_of_runs(path: str | os.PathLike, ladder: Ladder) -> list[str]:
    """What is wrong with the recipes, and where two arms of a regime would not be comparable."""
    problems: list[str] = []
    searched = [(name, i) for name, tries in (ladder.search.tries if ladder.search else {}).items()
                for i in range(len(tries))]  # fmt: skip
    for regime in ladder.regimes:
        reference: tuple[str, dict] | None = None
        for arm in ladder.arms:
            if not runs_in(ladder, arm, regime):
                continue
            chosen = [None, *(i for name, i in searched if name == arm and regime in ladder.search.regimes)]
            for trial in chosen:
                settings = ladder.search.tries[arm][trial] if trial is not None else {}
                try:
                    recipe = _load(path, ladder, arm, regime, ladder.seeds[0], settings)
                except UserError as error:
                    problems += [f"{arm} in {regime}: {what}" for what in error.problems or [error.what]]
                    continue
                if recipe.method.stages.own_traces and not _collect(ladder, arm, regime):
                    problems.append(f"arms.{arm}: {recipe.method_name} learns from own traces; give it `collect: {{}}`")
                shared = _shared(recipe, own=ladder.arms[arm].collect is not None)
                reference = reference or (arm, shared)
                problems += [
                    f"{arm} in {regime}: {key} = {json.dumps(mine)}, but {reference[0]} has {json.dumps(theirs)}; arms "
                    "are compared on the same data, evaluation and budget"
                    for key, mine, theirs in _differences(shared, reference[1])
                ]
    return problems


_OF_DEMONSTRATIONS = ("data.traces", "data.demonstration_share", "data.answer_guard", "data.lab.demonstrations",
                      "data.lab.garbled", "data.lab.demonstrated")  # fmt: skip


def _shared(recipe: Recipe, own: bool) -> dict[str, Any]:
    """What must be the same for all arms of a regime, by full name; ``own``: the arm has traces of its own."""
    blocks = recipe.resolved()
    blocks["data"]["lab"] = dataclasses.asdict(recipe.world)
    flat = dict(_flat({name: blocks[name] for name in ("model", "data", "reward", "budget", "evaluation")}))
    flat["training.max_completion_length"] = recipe.training_value("max_completion_length")
    if own or not recipe.uses_demonstrations:
        flat = {key: value for key, value in flat.items() if key not in _OF_DEMONSTRATIONS}
    return flat


def _flat(value: Any, at: str = ""):
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{at}.{key}" if at else str(key))
    else:
        yield at, value


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]):
    for key in mine:
        if key in theirs and mine[key] != theirs[key]:
            yield key, mine[key], theirs[key]


# --- which runs -------------------------------------------------------------------------------------------------------


def runs_in(ladder: Ladder, arm: str, regime: str) -> bool:
    """Whether an arm takes part in a regime."""
    regimes, arms = ladder.arms[arm].regimes, ladder.regimes[regime].arms
    return (regimes is None or regime in regimes) and (arms is None or arm in arms)


def _load(
    path: str | os.PathLike, ladder: Ladder, arm: str, regime: str, seed: int, settings: Mapping[str, Any]
) -> Recipe:
    return load_recipe(_recipe(path, ladder, arm), _overrides(path, ladder, arm, regime, seed, settings))


def _recipe(path: str | os.PathLike, ladder: Ladder, arm: str) -> Path:
    return Path(path).parent / ladder.arms[arm].recipe


def _overrides(
    path: str | os.PathLike, ladder: Ladder, arm: str, regime: str, seed: int, settings: Mapping[str, Any]
) -> list[str]:
    """The overrides of one run, the later ones first in rank."""
    asked = ladder.regimes[regime]
    common = {**ladder.set, **asked.set, **ladder.arms[arm].set, **settings}
    lab = load_recipe(_recipe(path, ladder, arm), _as_overrides(common))
    if lab.uses_demonstrations:
        common = {**ladder.set, **asked.set, **asked.demonstrations, **ladder.arms[arm].set, **settings}
        if _collect(ladder, arm, regime):
            common["data.traces"] = str(_store(ladder, arm, regime, seed))
    common["training.seed"] = seed
    if lab.data.train == LAB:
        common["data.lab.seed"] = seed
    return _as_overrides(common)


def _as_overrides(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


def _collect(ladder: Ladder, arm: str, regime: str) -> Collect | None:
    return ladder.arms[arm].collect or ladder.regimes[regime].collect


def _store(ladder: Ladder, arm: str, regime: str, seed: int) -> Path:
    """The arms of a regime share its traces; an arm's own are its own."""
    of = f"{regime}-{arm}" if ladder.arms[arm].collect else regime
    return Path(ladder.output) / "traces" / f"{of}-seed{seed}"


def _job(
    path: str | os.PathLike,
    ladder: Ladder,
    arm: str,
    regime: str,
    seed: int,
    settings: Mapping[str, Any],
    trial: int | None = None,
) -> Job:
    if trial is not None:
        settings = {**settings, **ladder.search.set}
    overrides = _overrides(path, ladder, arm, regime, seed, settings)
    recipe = load_recipe(_recipe(path, ladder, arm), overrides)
    resolved = recipe.resolved()
    del resolved["output"], resolved["speed"]  # neither changes what is learned
    identity = json.dumps([resolved, ladder.levels], sort_keys=True, default=str)
    asked = _collect(ladder, arm, regime) if recipe.data.traces else None
    if asked:
        identity += json.dumps(dataclasses.asdict(asked))
    short = hashlib.sha256(identity.encode()).hexdigest()[:10]
    folder = Path(ladder.output) / "runs" / f"{arm}-seed{seed}-{short}"
    return Job(
        arm=arm,
        regime=regime,
        seed=seed,
        recipe=str(_recipe(path, ladder, arm)),
        overrides=(*overrides, f"output.dir={json.dumps(str(folder))}"),
        folder=folder,
        levels=ladder.levels,
        trial=trial,
        collect=asked,
        traces=recipe.data.traces,
    )


def search_jobs(path: str | os.PathLike, ladder: Ladder) -> dict[tuple[str, str], list[Job]]:
    """The runs of the search, for each (arm, regime) that it looks at."""
    if ladder.search is None:
        return {}
    return {
        (arm, regime): [
            _job(path, ladder, arm, regime, ladder.search.seed, settings, trial) for trial, settings in enumerate(tries)
        ]
        for regime in ladder.search.regimes
        for arm, tries in ladder.search.tries.items()
        if runs_in(ladder, arm, regime)
    }


def chosen_settings(ladder: Ladder, searched: Mapping[tuple[str, str], Sequence[Job]]) -> dict[tuple[str, str], dict]:
    """The settings of the best try, for each (arm, regime) that was searched. The first of equals wins."""
    best = {}
    for (arm, regime), jobs in searched.items():
        scores = [_score(job) for job in jobs]
        best[arm, regime] = ladder.search.tries[arm][max(range(len(jobs)), key=lambda i: (scores[i], -i))]
    return best


def _score(job: Job) -> float:
    found = job.result()
    return -1.0 if found is None else found["accuracy"]


def settings_for(ladder: Ladder, chosen: Mapping[tuple[str, str], dict], arm: str, regime: str) -> dict:
    """The settings that an arm runs with in a regime."""
    if ladder.search is None:
        return {}
    return chosen.get(_tuned_in(ladder, chosen, arm, regime), {})


def _tuned_in(ladder: Ladder, searched: Mapping[tuple[str, str], Any], arm: str, regime: str) -> tuple[str, str] | None:
    """The arm and regime of the search whose settings hold for an arm in a regime."""
    tuned = ladder.arms[arm].tuned_as or arm
    places = (ladder.regimes[regime].tuned_in or regime, *ladder.search.regimes)
    return next(((tuned, place) for place in places if (tuned, place) in searched), None)


def final_jobs(path: str | os.PathLike, ladder: Ladder, chosen: Mapping[tuple[str, str], dict]) -> list[Job]:
    """The runs that count: seed by seed, so that a ladder that is stopped has whole comparisons."""
    return [
        _job(path, ladder, arm, regime, seed, settings_for(ladder, chosen, arm, regime))
        for seed in ladder.seeds
        for regime in ladder.regimes
        for arm in ladder.arms
        if runs_in(ladder, arm, regime)
    ]


# --- running ----------------------------------------------------------------------------------------------------------


def climb(
    path: str | os.PathLike,
    fast: bool = False,
    processes: int | None = None,
    arms: Sequence[str] = (),
    regimes: Sequence[str] = (),
) -> dict[str, Path]:
    """Runs a ladder, or what is left of it; returns the files of its report.

    Args:
        path: the ladder's file.
        fast: its small form.
        processes: runs at a time; None: as many as there are cores.
        arms, regimes: run these alone, with the search that they need; empty: all. The report has what is there.

    Raises:
        RecipeError: with every problem of the ladder.
        UserError: naming the runs that failed, after all others have finished and been reported.
    """
    from .reports.ladder import report

    ladder = load_ladder(path, fast)
    output = Path(ladder.output)
    output.mkdir(parents=True, exist_ok=True)
    processes = processes or max(len(os.sched_getaffinity(0)), 1)
    began = time.monotonic()
    wanted = _selection(path, ladder, arms, regimes)
    searched = search_jobs(path, ladder)
    needed = {_tuned_in(ladder, searched, *pair) for pair in wanted} if ladder.search else set()
    trials = [job for key, jobs in searched.items() if key in needed for job in jobs]
    count = len(wanted) * len(ladder.seeds)
    _prepare_base((trials or final_jobs(path, ladder, {}))[0])
    say(f"{len({j.folder for j in trials})} runs search, then up to {count} count; {processes} at a time")
    with _terminated_like_interrupted():
        failed = _run_all("search", trials, processes)
        searched = {key: jobs for key, jobs in searched.items() if any(job.result() for job in jobs)}
        chosen = chosen_settings(ladder, searched)
        jobs = final_jobs(path, ladder, chosen)
        failed += _run_all("runs", [job for job in jobs if (job.arm, job.regime) in wanted], processes)
    paths = report(ladder, searched, chosen, jobs, output)
    say(f"all of it took {(time.monotonic() - began) / 60:.1f} minutes; look at {paths['ladder.md']}")
    if failed:
        raise UserError(
            f"{len(failed)} runs failed and are missing in the table; the same command tries them again:", failed
        )
    return paths


def _selection(
    path: str | os.PathLike, ladder: Ladder, arms: Sequence[str], regimes: Sequence[str]
) -> set[tuple[str, str]]:
    """The (arm, regime) pairs that are to run."""
    _raise_if(path, [
        f"there is no {what} {name}{nearest(name, there)}; there are {', '.join(there)}"
        for what, names, there in (("arm", arms, ladder.arms), ("regime", regimes, ladder.regimes))
        for name in names if name not in there
    ])  # fmt: skip
    return {
        (arm, regime)
        for arm in arms or ladder.arms
        for regime in regimes or ladder.regimes
        if runs_in(ladder, arm, regime)
    }


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """A ladder that is terminated stops its runs, as one that is interrupted does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _prepare_base(job: Job) -> None:
    """The lab's base policy, before several runs ask for it at once."""
    from .policy import find

    recipe = load_recipe(job.recipe, job.overrides)
    if recipe.model.name_or_path == LAB:
        find(LAB, recipe.world)


def _run_all(what: str, jobs: Sequence[Job], processes: int) -> list[str]:
    """Runs what is not finished, ``processes`` at a time; returns what to say of the runs that failed."""
    from tqdm import tqdm

    waiting = {job.folder: job for job in jobs if job.result() is None}
    done = len({job.folder for job in jobs}) - len(waiting)
    collecting = {job.traces: job for job in waiting.values() if job.collect}
    failed: list[str] = []
    running: dict[Path, str] = {}
    lock, stop, lines = threading.Lock(), threading.Event(), Lines()
    total = done + len(waiting)
    with tqdm(desc=what, total=total, initial=done, disable=None if jobs else True) as bar:

        def one(job: Job, command: str) -> None:
            nonlocal done
            if stop.is_set():
                return
            with lock:
                running[job.folder] = job.name
                bar.set_postfix_str(", ".join(running.values()))
            problem = _run(job, command, stop)
            with lock:
                running.pop(job.folder)
                if problem and not stop.is_set():
                    failed.append(problem)
                if command == "run":
                    done += 1
                    bar.update()
                    lines.now_and_then(lambda: f"{what}: {how_far(done, total)} runs")
                bar.set_postfix_str(", ".join(running.values()))

        try:
            for command, these in (("collect", collecting), ("run", waiting)):
                with ThreadPoolExecutor(processes) as pool:
                    try:
                        list(pool.map(lambda job, command=command: one(job, command), these.values()))
                    except KeyboardInterrupt:
                        stop.set()
                        raise
        except KeyboardInterrupt:
            say("stopped; the same command goes on from there")
            raise
    return failed


def _run(job: Job, command: str, stop: threading.Event) -> str | None:
    """One run in a process of its own; what to say if it fails."""
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / f"{command}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    described = json.dumps({**dataclasses.asdict(job), "folder": str(job.folder)})
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefix_rl.ladder", command, described],
            stdout=file, stderr=file, env=environment, start_new_session=True,
        )  # fmt: skip
        while process.poll() is None:
            if stop.wait(0.2):
                process.terminate()
                process.wait()
    if process.returncode == 0:
        return None
    tail = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-3:]
    return f"{job.name} ({log}): {' | '.join(tail)}"


# --- one run, in its own process --------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """``python -m prefix_rl.ladder run|collect JOB``: what the ladder starts."""
    from .progress import run_or_explain

    command, described = arguments
    given = json.loads(described)
    if given["collect"]:
        given["collect"] = Collect(**given["collect"])
    job = Job(**{**given, "folder": Path(given["folder"]), "overrides": tuple(given["overrides"])})
    return run_or_explain(lambda: {"run": run_one, "collect": collect_one}[command](job))


def collect_one(job: Job) -> None:
    """Collects the traces that a run trains on, if they are not there."""
    from .collect import collect

    overrides = [override for override in job.overrides if not override.startswith("data.traces=")]
    collect(job.recipe, overrides, job.traces, **dataclasses.asdict(job.collect), seed=job.seed)


def run_one(job: Job) -> None:
    """Trains, measures, and leaves ``result.json``. Waits for a process that an earlier ladder may have left behind."""
    with parts.Lock(job.folder / ".lock").held(lambda who: say(f"waiting for another process{who} to end {job.name}")):
        if job.result() is None:
            _train_and_measure(job)


def _train_and_measure(job: Job) -> None:
    from .train import train

    began = time.monotonic()
    run = train(job.recipe, job.overrides)
    trained = time.monotonic()
    found = {
        "arm": job.arm,
        "seed": job.seed,
        "overrides": list(job.overrides),
        "cost": json.loads((run / "cost.json").read_text(encoding="utf-8")),
        "curve": curve_of(run),
        **measure(job, run),
        "seconds": {"training": trained - began, "evaluation": time.monotonic() - trained},
        "git_commit": preflight.git_commit(),
        "versions": preflight.versions(),
    }
    parts.write_text(run / RESULT, json.dumps(found) + "\n")


def curve_of(run: Path) -> list[dict[str, float]]:
    """Unprefixed held-out accuracy while training, with what had been spent by then."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    flops = {m["step"]: m["cost/flops"] for m in lines if "cost/flops" in m}
    return [
        {"step": m["step"], "flops": flops[m["step"]], "accuracy": m["eval_reward"]}
        for m in lines if "eval_reward" in m and m["step"] in flops
    ]  # fmt: skip


def measure(job: Job, run: Path) -> dict[str, Any]:
    """Accuracy of the final policy on every level, and of every checkpoint from parts of a demonstration."""
    from .checkpoints import checkpoints
    from .evaluation.engines import TransformersEngine
    from .evaluation.sampling import by_problem, sample
    from .policy import Policy
    from .recipe import evaluation_data

    preflight.quiet()
    recipe = load_recipe(job.recipe, job.overrides)
    grader = recipe.reward.grader()

    def shares(policy: Path, of: Recipe, fraction: float, samples: int, limit: int | None = None) -> list[float]:
        problems, asked = evaluation_data(of)[:limit], Policy(of, policy)
        made = sample(
            TransformersEngine(asked.load(), asked.tokenizer, asked.stops),
            asked.tokenizer,
            asked.turn,
            problems,
            [asked.prompt_ids(problem) for problem in problems],
            grader,
            samples=samples,
            max_completion_length=of.evaluation_length,
            temperature=of.evaluation.temperature,
            top_p=of.evaluation.top_p,
            batch_size=of.evaluation.at_once,
            seed=of.evaluation.seed,
            prefix_fraction=fraction,
            guard=of.data.answer_guard,
        )
        return [fmean(right) for right in by_problem(made)]

    final, samples = run / "final", recipe.evaluation.samples or 1
    right = shares(final, recipe, 0.0, samples)
    levels = {}
    for name, settings in job.levels.items():
        level = load_recipe(job.recipe, [*job.overrides, *_as_overrides(settings)])
        levels[name] = shares(final, level, 0.0, samples)
    by_fraction = []
    if recipe.method.needs.prefixes and job.trial is None and recipe.evaluation.prefix_fractions:
        for folder in checkpoints(run):
            step = int(folder.name.rpartition("-")[2])
            found = {f"{f:g}": fmean(shares(folder, recipe, f, 1, 128)) for f in recipe.evaluation.prefix_fractions}
            by_fraction.append({"step": step, "accuracy": found})
    grader.close()
    return {"right": right, "accuracy": fmean(right), "levels": levels, "by_prefix_fraction": by_fraction}


def by_seed(jobs: Sequence[Job], seeds: Sequence[int], pick: Callable[[dict], list[float]]) -> list[list[float]] | None:
    """``pick`` of every seed's result, in the order of the seeds; None if a seed is missing."""
    found = {job.seed: job.result() for job in jobs}
    if any(found.get(seed) is None for seed in seeds):
        return None
    return [pick(found[seed]) for seed in seeds]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
