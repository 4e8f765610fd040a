"""The quickstart: a few arms of the lab, as many at a time as there are cores, evaluated and reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import RecipeError, UserError
from ..places import find
from ..progress import Lines, say
from ..recipe import LAB, load_recipe
from ..status import read_status

ARMS = ("dr_grpo", "prefix_rft", "prefix_rl", "sft_then_rl")


def quickstart(seed: int, output: Path, recipes: Path, steps: int | None = None) -> Path:
    """Trains the arms with equal rollouts from the same base policy; returns the folder of the report.

    Called again with the same ``output``, it goes on where it was.

    Raises:
        UserError: if the recipes are not there or an arm fails; its log is named.
    """
    from ..reports.report import report, text_table

    missing = [arm for arm in ARMS if not (recipes / f"{arm}.yaml").is_file()]
    if missing:
        raise RecipeError(
            f"there is no {recipes / missing[0]}.yaml (from {Path.cwd()}); run this in the checkout, or give --recipes"
        )
    began = time.monotonic()
    overrides = [f"training.seed={seed}", f"data.lab.seed={seed}"]
    overrides += [f"training.max_steps={steps}"] if steps else []
    loaded = {arm: load_recipe(recipes / f"{arm}.yaml", overrides) for arm in ARMS}
    folders = {arm: output / arm for arm in ARMS}
    base = find(LAB, loaded["prefix_rft"].world).path
    say(f"the base policy is in {base}; training {', '.join(ARMS)}")

    trains = {
        arm: [
            "-m",
            "prefix_rl.train",
            "--config",
            str(recipes / f"{arm}.yaml"),
            f"output.dir={folders[arm]}",
            *overrides,
        ]
        for arm in ARMS
    }
    with _bars({arm: loaded[arm].training["max_steps"] for arm in ARMS}, folders) as look:
        _run(trains, folders, "train.log", look)

    say("evaluating the base policy and all arms, without any prefix, on the same held-out problems")
    common = ["evaluation.samples=2"]
    jobs = {arm: ["evaluate", str(folders[arm]), *common] for arm in ARMS}
    folders["base"] = output / "base"
    recipe = str(recipes / "dr_grpo.yaml")
    jobs["base"] = ["evaluate", "lab", "--config", recipe, "--output", str(folders["base"]), *common]
    run = "import sys; from prefix_rl.cli import main; sys.argv = ['prefix-rl', *sys.argv[1:]]; main()"
    _run({name: ["-c", run, *job] for name, job in jobs.items()}, folders, "evaluate.log")
    paths = report([folders["base"], *(folders[arm] for arm in ARMS)], output / "report")
    print(text_table(json.loads(paths["results.json"].read_text(encoding="utf-8"))))
    say(f"all of it took {(time.monotonic() - began) / 60:.1f} minutes; look at {paths['report.html']}")
    return output / "report"


@contextmanager
def _bars(steps: Mapping[str, int], folders: Mapping[str, Path]) -> Iterator[Callable[[], None]]:
    """A bar for each arm, or where nobody looks a line about all of them every 30 seconds; yields what moves them."""
    from tqdm import tqdm

    shown = {
        arm: tqdm(desc=f"{arm:<11}", total=total, position=i, leave=True, disable=None)
        for i, (arm, total) in enumerate(steps.items())
    }
    lines = Lines()

    def look() -> None:
        last = {arm: _last_metrics(folders[arm]) for arm in steps}
        at = {arm: _steps_made(folders[arm], last[arm]) for arm in steps}
        told = {arm: f"reward {m['reward']:.2f}" if "reward" in m else "" for arm, m in last.items()}
        for arm, bar in shown.items():
            bar.update(at[arm] - bar.n)
            bar.set_postfix_str(told[arm])
        lines.now_and_then(lambda: " | ".join(f"{arm} {at[arm]}/{steps[arm]} {told[arm]}".rstrip() for arm in steps))

    try:
        yield look
    finally:
        for bar in shown.values():
            bar.close()


def _run(
    jobs: dict[str, Sequence[str]], folders: dict[str, Path], log: str, watch: Callable[[], None] = lambda: None
) -> None:
    """Runs the jobs, as many at a time as there are cores."""
    waiting, running, failed = dict(jobs), {}, []
    at_once = len(os.sched_getaffinity(0))
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                name = next(iter(waiting))
                running[name] = _start(waiting.pop(name), folders[name] / log)
            time.sleep(0.5)
            watch()
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if running.pop(name).returncode:
                    failed.append(name)
                    waiting.clear()
    finally:  # none is left but after an error, or Ctrl-C
        for process in running.values():
            process.terminate()
    if failed:
        tail = (folders[failed[0]] / log).read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        raise UserError(f"{failed[0]} failed; the end of {folders[failed[0]] / log}:", tail)


def _start(arguments: Sequence[str], log: Path) -> subprocess.Popen:
    log.parent.mkdir(parents=True, exist_ok=True)
    # one thread each: the model is too small for more, and the arms share the cores
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as file:
        return subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=file, env=environment)


def _steps_made(folder: Path, last: Mapping) -> int:
    """The steps of an arm: what its process says, or what it logged last."""
    progress = (read_status(folder) or {}).get("progress") or {}
    return int(progress["done"]) if progress.get("what") == "training" else last.get("step", 0)


def _last_metrics(folder: Path) -> dict:
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    whole = [line for line in lines if line.endswith("}")]
    return next((m for m in map(json.loads, reversed(whole)) if "reward" in m), {})
