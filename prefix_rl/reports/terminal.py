"""The terminal while a run trains: one line for each log, and a bar below where a person looks.

The whole dictionary of metrics goes to ``metrics.jsonl`` and to the loggers of ``report_to`` only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

from transformers import TrainerCallback

from .. import status
from ..progress import Lines, how_far, say, somebody_looks
from . import health


def step_line(logs: Mapping[str, Any], step: int, total: int, seconds: float | None, left: float | None) -> str:
    """A log of TRL as one line; what was not logged is left out.

    Args:
        logs: metrics by name.
        step, total: numbers of optimizer steps so far, and of the whole run (0: not known).
        seconds: of one step.
        left: seconds to the end of the run.

    >>> logs = {"reward": 0.31, "reward_with_prefix": 0.86, "prefix/length": 412.3, "completions/mean_length": 812.0}
    >>> step_line(logs, 40, 200, 2.1, 360)
    'step 40/200  reward .31 | prefix .86 at 412 tokens | len 812 | 2.1 s | eta 6 min'
    >>> step_line({"loss": 1.234}, 5, 50, 0.4, 18)
    'step 5/50  loss 1.234 | 0.4 s | eta 18 s'
    """
    parts = []
    if _number(logs, "reward"):
        parts.append(f"reward {short(logs['reward'])}")
        if _number(logs, "reward_with_prefix"):
            length = f" at {logs['prefix/length']:.0f} tokens" if _number(logs, "prefix/length") else ""
            parts.append(f"prefix {short(logs['reward_with_prefix'])}{length}")
        if _number(logs, "completions/mean_length"):
            parts.append(f"len {logs['completions/mean_length']:.0f}")
    elif "loss" in logs:
        parts.append(f"loss {logs['loss']:.4g}")
    if seconds is not None:
        parts.append(status.span(seconds))
    if left is not None:
        parts.append(f"eta {status.span(left)}")
    return f"{_step(step, total)}  {' | '.join(parts)}"


def short(value: float) -> str:
    """Two places, without the 0 before the point.

    >>> short(0.314), short(1.0), short(-0.05)
    ('.31', '1.00', '-.05')
    """
    return f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.2f}"


def _number(logs: Mapping[str, Any], key: str) -> bool:
    return logs.get(key) is not None and logs[key] == logs[key]


def _step(step: int, total: int) -> str:
    return f"step {step}/{total}" if total > 0 else f"step {step}"


class TerminalLines(TrainerCallback):
    """Says how training goes: a line for each log, new findings of :mod:`~prefix_rl.reports.health`, and in between,
    where nobody sees the bar, a line every 30 seconds.

    Args:
        what: the name of what is trained, for the status.
        schedule_end: see :func:`prefix_rl.reports.health.check`.
    """

    def __init__(self, what: str = "training", schedule_end: float | None = None):
        self.what, self.schedule_end = what, schedule_end
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.told: set[str] = set()
        self.times: deque[float] = deque(maxlen=50)
        self.lines, self.began, self.bar = Lines(), time.monotonic(), None
        self.evaluated = 0

    # --- the run ---

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()
        if not state.is_world_process_zero:
            return
        status.progress(self.what, state.global_step, state.max_steps)
        if somebody_looks() and not args.disable_tqdm:
            from tqdm import tqdm

            self.bar = tqdm(desc=self.what, total=state.max_steps, initial=state.global_step, leave=False)

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()

    def on_substep_end(self, args, state, control, **kwargs):
        self._alive(state)

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.monotonic() - self.began)
        if state.is_world_process_zero:
            status.progress(self.what, state.global_step, state.max_steps)
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        self._alive(state)

    def _alive(self, state) -> None:
        if state.is_world_process_zero:
            self.lines.now_and_then(lambda: step_line({}, state.global_step, state.max_steps, *self._pace(state)))

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _pace(self, state) -> tuple[float | None, float | None]:
        """Seconds of a step, and to the end of the run."""
        if not self.times:
            return None, None
        usual = median(self.times)
        return usual, usual * (state.max_steps - state.global_step) if state.max_steps > 0 else None

    # --- logs ---

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or not state.is_world_process_zero:
            return
        for key, points in health.curves_of([{"step": state.global_step, **logs}]).items():
            self.curves.setdefault(key, []).extend(points)
        if "reward" in logs or "loss" in logs:
            seconds, left = self._pace(state)
            self._say(step_line(logs, state.global_step, state.max_steps, logs.get("step_time", seconds), left))
            self._health()
        elif _number(logs, "eval_reward"):
            took = f" | {status.span(logs['eval_runtime'])}" if _number(logs, "eval_runtime") else ""
            accuracy = f"held-out reward {short(logs['eval_reward'])}, never with a prefix"
            self._say(f"{_step(state.global_step, state.max_steps)}  {accuracy}{took}")

    def _say(self, line: str) -> None:
        self.lines.said()
        say(line)

    def _health(self) -> None:
        found = health.check(self.curves, self.schedule_end)
        for finding in found:
            if finding.rule not in self.told:
                say(finding.line())
        self.told = {finding.rule for finding in found}  # what went away may come back, and is told again

    # --- evaluation during training ---

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if not state.is_world_process_zero:
            return
        self.evaluated += 1
        total = len(eval_dataloader) if eval_dataloader is not None and hasattr(eval_dataloader, "__len__") else None
        status.progress("held-out problems", self.evaluated, total)
        where = _step(state.global_step, state.max_steps)
        self.lines.now_and_then(lambda: f"{where}  held-out problems: batch {how_far(self.evaluated, total)}")

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated = 0
        if state.is_world_process_zero:
            status.progress(self.what, state.global_step, state.max_steps)


def show_lines(trainer, what: str = "training", schedule_end: float | None = None) -> None:
    """Puts our lines in the place of the dictionaries and bars of transformers."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(TerminalLines(what, schedule_end))
