"""Worker processes that grade, each under a deadline.

A worker is a plain ``python`` process that imports the grader and nothing of the caller: no ``__main__`` guard is
needed, nothing is forked from a process that holds CUDA or threads. It gets one sample at a time over a pipe. A worker
that has not answered at the deadline is killed and replaced; the sample's outcome is ``timeout``. A worker that dies
(out of memory, recursion) is replaced; the outcome is ``crash``. The other samples do not notice.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe, wait

from ..errors import UserError
from .grading import Outcome

_START_SECONDS = 120  # a worker that has not imported sympy by then never will


class GraderError(UserError):
    """The workers cannot be started at all. A single bad sample never raises this."""


class Grader:
    """Grades completions in worker processes.

    Args:
        workers: processes for this rank.
        deadline: seconds that one sample may take.
        memory_mb: address space of one worker, in MiB. A sample that needs more ends as ``crash``.

    Workers start at the first call and stop with the process. Calls from several threads are served one after another.
    """

    def __init__(self, workers: int = 2, deadline: float = 5.0, memory_mb: int = 2048):
        self.workers, self.deadline, self.memory_mb = workers, deadline, memory_mb
        self._pool: list[_Worker] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()
        atexit.register(self.close)

    def grade(
        self, samples: Sequence[tuple[str, str]], progress: Callable[[int], object] | None = None
    ) -> list[Outcome]:
        """One outcome for each ``(text, gold)``, in order. ``progress(n)`` is called when n more are done."""
        outcomes: list[Outcome | None] = [None] * len(samples)
        todo, busy = deque(range(len(samples))), {}
        with self._lock:
            if self._owner != os.getpid():  # a forked child must not talk over its parent's pipes
                self._pool, self._owner = [], os.getpid()
            while todo or busy:
                while len(self._pool) < min(self.workers, len(todo) + len(busy)):
                    self._pool.append(_Worker(self.deadline, self.memory_mb))
                for worker in self._pool:
                    if todo and worker.ready and worker not in busy:
                        index = todo.popleft()
                        busy[worker] = index
                        worker.send(samples[index])
                before = len(busy)
                for worker, outcome in self._collect():
                    if worker in busy:
                        outcomes[busy.pop(worker)] = outcome
                if progress and len(busy) < before:
                    progress(before - len(busy))
        return outcomes

    def _collect(self) -> list[tuple[_Worker, Outcome]]:
        """Waits until something happens; what the workers that finished, died or ran out of time say."""
        patience = min(worker.expires for worker in self._pool) - time.monotonic()
        wait([worker.connection for worker in self._pool], timeout=max(patience, 0))
        said = []
        for worker in list(self._pool):
            outcome = worker.receive()
            if outcome in (Outcome.TIMEOUT, Outcome.CRASH):
                worker.kill()
                self._pool.remove(worker)
            if outcome is not None:
                said.append((worker, outcome))
        return said

    def close(self) -> None:
        """Stops the workers. The grader starts new ones when it is used again."""
        if self._owner == os.getpid():
            for worker in self._pool:
                worker.kill()
            self._pool = []


class _Worker:
    def __init__(self, deadline: float, memory_mb: int):
        self.deadline = deadline
        self.connection, theirs = Pipe()
        code = f"from prefix_rl.rewards.workers import _serve; _serve({theirs.fileno()}, {deadline}, {memory_mb})"
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  a pipe that nobody reads would fill up and block
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self.ready = False
        self.expires = time.monotonic() + _START_SECONDS

    def send(self, sample: tuple[str, str]) -> None:
        self.expires = time.monotonic() + self.deadline
        try:
            self.connection.send(sample)
        except OSError:
            self.expires = 0  # it died while idle: the sample ends as a crash

    def receive(self) -> Outcome | None:
        """What has happened to the sample in hand: an outcome, or None if nothing has."""
        try:
            if self.connection.poll():
                said = self.connection.recv()
                idle = said == "ready"
                self.ready, self.expires = True, float("inf")
                return None if idle else said
        except (EOFError, OSError):
            if not self.ready:
                raise GraderError(f"a grading worker could not start:\n{self._last_words()}") from None
            return Outcome.CRASH
        if time.monotonic() < self.expires:
            return None
        if not self.ready:
            raise GraderError(f"a grading worker did not start within {_START_SECONDS} seconds")
        return Outcome.TIMEOUT if self.process.poll() is None else Outcome.CRASH

    def _last_words(self) -> str:
        self.process.wait(timeout=5)
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()
        self.connection.close()


def _serve(handle: int, deadline: float, memory_mb: int) -> None:
    """The life of a worker: grade what comes until the pipe closes."""
    import resource
    import signal

    from math_verify import parse

    from .grading import grade

    parse("$1$", parsing_timeout=None)  # builds the parser, which takes a moment
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    connection = Connection(handle)
    connection.send("ready")
    while True:
        try:
            text, gold = connection.recv()
        except EOFError:
            return
        # If the trainer is killed while this hangs, nobody is left to kill it but the kernel: SIGALRM's default does.
        signal.setitimer(signal.ITIMER_REAL, 2 * deadline + 1)
        outcome = grade(text, gold)  # whatever it raises ends this process: the outcome is a crash
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send(outcome)
