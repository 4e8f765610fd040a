"""A run that is asked to stop saves a whole checkpoint first, and its exit status says that it can be started again.

Schedulers ask with SIGTERM or SIGUSR1 some time before they kill. The step that is being made is ended, all ranks agree
on the same one, a checkpoint is saved, and the process exits with :data:`STOPPED`. The same command goes on from there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from transformers import TrainerCallback

from ..progress import say

STOPPED = 75
"""Exit status of a run that was asked to stop and can be gone on with: EX_TEMPFAIL of sysexits.h, "try again"."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(SystemExit):
    """The end of a run that was asked to stop."""

    def __init__(self):
        super().__init__(STOPPED)


class _Asked:
    """Whether this process was asked to stop, and what it is doing."""

    def __init__(self, grace: float | None):
        self.grace, self.by, self.training = grace, None, False

    def handle(self, number: int, frame: FrameType | None) -> None:
        first, self.by = self.by is None, signal.Signals(number).name
        if not self.training:  # nothing is there yet that is worth saving
            raise Stopped
        if first and self.grace is not None:
            timer = threading.Timer(self.grace, self._give_up)
            timer.daemon = True
            timer.start()

    def _give_up(self) -> None:
        say(
            f"{self.by}: the step did not end within safety.grace = {self.grace:g} s; the same command goes on from "
            "the last whole checkpoint"
        )
        os._exit(STOPPED)


_asked: list[_Asked] = []


@contextmanager
def stops_when_asked(grace: float | None) -> Iterator[None]:
    """Within the block SIGTERM and SIGUSR1 end the process with :data:`STOPPED`, and what trains saves before.

    Args:
        grace: seconds that the saving may take, from the signal on; None: any time.
    """
    if threading.current_thread() is not threading.main_thread():  # Python gives signals to the main thread only
        yield
        return
    asked = _Asked(grace)
    before = {number: signal.signal(number, asked.handle) for number in SIGNALS}
    _asked.append(asked)
    try:
        yield
    finally:
        _asked.remove(asked)
        for number, handler in before.items():
            signal.signal(number, handler)


class StopWhenAsked(TrainerCallback):
    """Saves and ends the training of all ranks once any of them was asked to stop.

    A generation batch that serves several optimizer steps is used up first: checkpoints hold no rollouts.

    Args:
        accelerator: accelerate's.
    """

    def __init__(self, accelerator):
        self.accelerator, self.stopped = accelerator, False

    def on_train_begin(self, args, state, control, **kwargs):
        self._train(True)

    def on_step_end(self, args, state, control, **kwargs):
        here = torch.tensor([bool(_asked and _asked[-1].by)], dtype=torch.long, device=args.device)
        uses = getattr(args, "steps_per_generation", 1) * getattr(args, "num_iterations", 1)
        between = state.global_step * args.gradient_accumulation_steps % uses == 0
        if int(self.accelerator.gather(here).sum()) and between and state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self._train(False)

    @staticmethod
    def _train(now: bool) -> None:
        if _asked:
            _asked[-1].training = now

    def end_if_stopped(self, step: int) -> None:
        """Ends the process if it was asked to stop.

        Raises:
            Stopped: then.
        """
        if self.stopped:
            by = _asked[-1].by if _asked and _asked[-1].by else "another process"
            if self.accelerator.is_main_process:
                say(f"asked to stop ({by}): saved checkpoint-{step}; the same command goes on from there")
            self.accelerator.wait_for_everyone()
            raise Stopped
