"""A reward that gives nothing, and does to a run what it may meet: signals, an error, the end, a stall."""

import os
import signal
import threading


def asking(completions, trainer_state, **columns):
    """No reward; in the step and on the rank that ``ASK`` names it does what stands there."""
    step, rank, what = os.environ.get("ASK", "-1 0 nothing").split()
    if trainer_state.global_step == int(step) and os.environ.get("RANK", "0") == rank:
        if what == "raise":
            raise ValueError("the first one's message")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "stall":
            threading.Event().wait()
        name, whom = what.split("-")
        os.kill(os.getpid() if whom == "self" else os.getppid(), getattr(signal, name))
    return [0.0] * len(completions)


asking.in_process = True
