"""A watch of progress: a step that takes far too long leaves the stacks of all processes, and ends at last.

Every process has a thread that watches its own steps. One that hears nothing for too long writes what its threads do to
``stacks/rank-N.txt`` in the run's folder; all processes wait for one that does not come, so all of them write, and
the first says what each waits for. If nothing moves for long after that, the process ends with a message, and the
launcher ends the others: a run that stands still holds no GPUs for the half hour of a collective's timeout.
"""

from __future__ import annotations

import faulthandler
import json
import os
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from statistics import median

from transformers import TrainerCallback

from .. import status
from ..parts import write_text
from ..progress import is_main, say
from .settings import Safety

STALLED = 70
"""Exit status of a run that stood still for too long."""
_OTHERS = "waits for the other processes"
_REWARD = "waits for a reward function"
_WAITS = {
    "distributed_c10d.py": _OTHERS, "operations.py": _OTHERS, "autograd": "computes a gradient with the others",
    "workers.py": "waits for the grader", "rewards/functions.py": _REWARD, "rewards/process.py": _REWARD,
    "vllm": "waits for vLLM", "server.py": "waits for a server",
}  # fmt: skip
_LOOKS = 40
"""Looks at the clock in the time after which a step is slow."""


class StallWatch(TrainerCallback):
    """Watches the steps of this process while it trains.

    Args:
        folder: the run's.
        safety: the settings.
        rank: number of this process.
    """

    def __init__(self, folder: Path, safety: Safety, rank: int):
        self.folder, self.safety, self.rank = folder / "stacks", safety, rank
        self.steps: deque[float] = deque(maxlen=101)
        self.step, self.began, self.moved = 0, time.monotonic(), time.monotonic()
        self._stop, self._main = threading.Event(), threading.get_ident()
        self._thread: threading.Thread | None = None

    # --- what it hears ---

    def on_train_begin(self, args, state, control, **kwargs):
        self.step, self._main = state.global_step, threading.get_ident()
        self._stop.clear()
        self._move()
        self._thread = threading.Thread(target=self._watch, name="stall watch", daemon=True)
        self._thread.start()

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()
        self._move()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(time.monotonic() - self.began)
        self.step = state.global_step
        self._move()

    def _heard(self, args, state, control, **kwargs):
        self._move()

    on_substep_end = on_prediction_step = on_evaluate = on_save = on_log = _heard

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """Ends the watch."""
        self._stop.set()

    def _move(self) -> None:
        self.moved = time.monotonic()

    # --- what it does ---

    @property
    def patience(self) -> float:
        """Seconds without a sign after which a step is slow."""
        if not self.steps:
            return self.safety.first_seconds
        return max(self.safety.slow_step * median(self.steps), self.safety.slow_seconds)

    def _watch(self) -> None:
        told = None
        while not self._stop.wait(min(self.patience / _LOOKS, 5.0)):
            moved, still = self.moved, time.monotonic() - self.moved
            if still > self.patience and told != moved:
                told = moved
                with suppress(OSError):  # a full disk does not end a run that may only be slow
                    self._write(still)
                if is_main():
                    self._tell(still)
            if told == moved and self.safety.end_after and still > self.patience + self.safety.end_after:
                self._end(still)

    def _write(self, still: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        now = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        with (self.folder / f"rank-{self.rank}.txt").open("a", encoding="utf-8") as file:
            file.write(f"--- {now} step {self.step + 1} of process {os.getpid()}: no sign for {status.span(still)}\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)
        where = {"step": self.step + 1, "places": status.where(self._main)}
        write_text(self.folder / f"rank-{self.rank}.json", json.dumps(where))

    def _tell(self, still: float) -> None:
        self._stop.wait(min(self.patience / 4, 10.0))  # until the others have written too
        usual = f", usually {status.span(median(self.steps))}" if self.steps else ""
        say(
            f"slow: step {self.step + 1} has given no sign for {status.span(still)}{usual}. "
            f"{'; '.join(self.waiting())}. The stacks of all threads are in {self.folder}"
        )

    def waiting(self) -> list[str]:
        """What each process that has written its stacks at this step waits for, in words."""
        found = []
        for path in sorted(self.folder.glob("rank-*.json"), key=lambda p: int(p.stem.removeprefix("rank-"))):
            try:
                given = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                continue
            if given["step"] == self.step + 1:
                found.append(f"{path.stem.replace('-', ' ')} {doing(given['places'])}")
        return found

    def _end(self, still: float) -> None:
        what = f"step {self.step + 1} gave no sign for {status.span(still)}"
        end = (
            f"error: {what}, longer than safety.end_after allows; {doing(status.where(self._main))}. The stacks are in "
            f"{self.folder}. The same command goes on from the last whole checkpoint"
        )
        say(end if is_main() else f"error on rank {self.rank}: {end.removeprefix('error: ')}")
        status.failed(what)
        os._exit(STALLED)


def doing(places: list[str]) -> str:
    """What a thread does that stands at these places, innermost first, in words.

    >>> doing(["distributed/distributed_c10d.py:10 all_reduce", "utils/operations.py:3 gather"])
    'waits for the other processes (distributed/distributed_c10d.py:10 all_reduce < utils/operations.py:3 gather)'
    >>> doing(["mine/rewards.py:7 reward"])
    'computes (mine/rewards.py:7 reward)'
    """
    found = [what for place in places for part, what in _WAITS.items() if part in place]
    return f"{found[0] if found else 'computes'} ({' < '.join(places)})"
