"""Climbing a ladder: the search, then the runs that count, several at a time, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError, nearest
from ..progress import Lines, how_far, say
from ..recipe import LAB, load_recipe
from .jobs import Job, chosen_settings, final_jobs, search_jobs, tuned_in
from .plan import Cell, Ladder, load_ladder, refuse
from .report import report


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
        RecipeError: with every fault of the ladder.
        UserError: naming the runs that failed, after all others have finished and been reported.
    """
    ladder = load_ladder(path, fast)
    output = Path(ladder.output)
    output.mkdir(parents=True, exist_ok=True)
    processes = processes or max(len(os.sched_getaffinity(0)), 1)
    began = time.monotonic()
    wanted = _selection(path, ladder, arms, regimes)
    searched = search_jobs(ladder)
    needed = {tuned_in(ladder, searched, cell) for cell in wanted} if ladder.search else set()
    trials = [job for cell, jobs in searched.items() if cell in needed for job in jobs]
    count = len(wanted) * len(ladder.seeds)
    _prepare_base((trials or final_jobs(ladder, {}))[0])
    say(f"{len({j.folder for j in trials})} runs search, then up to {count} count; {processes} at a time")
    with _terminated_like_interrupted():
        failed = _run_all("search", trials, processes)
        searched = {cell: jobs for cell, jobs in searched.items() if any(job.result() for job in jobs)}
        chosen = chosen_settings(ladder, searched)
        jobs = final_jobs(ladder, chosen)
        failed += _run_all("runs", [job for job in jobs if job.cell in wanted], processes)
    paths = report(ladder, searched, chosen, jobs, output)
    say(f"all of it took {(time.monotonic() - began) / 60:.1f} minutes; look at {paths['ladder.md']}")
    if failed:
        raise UserError(
            f"{len(failed)} runs failed and are missing in the table; the same command tries them again:", failed
        )
    return paths


def _selection(path: str | os.PathLike, ladder: Ladder, arms: Sequence[str], regimes: Sequence[str]) -> set[Cell]:
    """The cells that are to run."""
    refuse(path, [
        f"there is no {what} {name}{nearest(name, there)}; there are {', '.join(there)}"
        for what, names, there in (("arm", arms, ladder.arms), ("regime", regimes, ladder.regimes))
        for name in names if name not in there
    ])  # fmt: skip
    return {
        cell
        for cell in ladder.cells()
        if cell.arm in (arms or ladder.arms) and cell.regime in (regimes or ladder.regimes)
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
    from ..places import find

    recipe = load_recipe(job.recipe, job.overrides)
    if recipe.model.name_or_path == LAB:
        find(LAB, recipe.world)


def _run_all(what: str, jobs: Sequence[Job], processes: int) -> list[str]:
    """Runs what is not finished, ``processes`` at a time; returns what to say of the runs that failed."""
    from tqdm import tqdm

    waiting = {job.folder: job for job in jobs if job.result() is None}
    done = len({job.folder for job in jobs}) - len(waiting)
    # one collection for each store, however many runs learn from it
    collecting = {job.traces: job for job in waiting.values() if job.collect}
    failed: list[str] = []
    running: dict[Path, str] = {}
    lock, stop, lines, total = threading.Lock(), threading.Event(), Lines(), done + len(waiting)
    with tqdm(desc=what, total=total, initial=done, disable=None if jobs else True) as bar:

        def one(job: Job, command: str) -> None:
            nonlocal done
            if stop.is_set():
                return
            with lock:
                running[job.folder] = job.name
                bar.set_postfix_str(", ".join(running.values()))
            failure = _run(job, command, stop)
            with lock:
                running.pop(job.folder)
                if failure and not stop.is_set():
                    failed.append(failure)
                if command == "run":
                    bar.update()
                    done += 1
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
    """Runs one job in a process of its own; returns a sentence if it fails, else None."""
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / f"{command}.log"
    # runs share the cores: threads of each would wait for those of the others
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as file:
        # a session of its own: Ctrl-C reaches the ladder alone, which then stops its runs one by one
        process = subprocess.Popen(
            [sys.executable, "-m", "prefix_rl.ladders.one", command, job.described()],
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
