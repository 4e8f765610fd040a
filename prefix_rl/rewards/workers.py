"""Worker processes that grade, each sample under a deadline.

A worker is a plain ``python`` process that imports the grader and nothing of the caller: no ``__main__`` guard is
needed, nothing is forked from a process that holds CUDA or threads. It gets samples in batches over a pipe and says
every verdict as soon as it has it, so the sample in hand is always the first that it has not answered:

- a worker that has not answered at the deadline of that sample is killed; the outcome is ``timeout``;
- an error in a sample (no memory left under the cap, a recursion too deep) is its outcome ``crash``, and so is the
  death of the worker (a stack that overflows, a system short of memory).

The samples behind it in the batch have only waited. They are given to another worker, with a deadline of their own.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait

from ..errors import UserError
from .equality import DEFAULT_RULES, Rules
from .grading import Outcome, Verdict, judge
from .guard import readable

Sample = tuple[str, str, int | tuple]  # text, gold, start; for the guard a text, its answer, (its problem, computed)
Timed = tuple[Verdict | dict[str, int], float]  # what was decided, and the seconds that it took inside the worker

_START_SECONDS = 120  # a worker that has not imported sympy by then never will
_BATCH = 64
_BATCH_CHARACTERS = 2**20  # a batch whose texts are longer costs more in memory than its round trips


class GraderError(UserError):
    """The workers cannot be started at all. A single bad sample never raises this."""


class Grader:
    """Grades completions in worker processes.

    Args:
        workers: processes for this rank.
        deadline: seconds that one sample may take.
        memory_mb: address space of one worker, in MiB. A sample that needs more ends as ``crash``.
        rules: what :func:`~prefix_rl.rewards.grading.judge` decides by.

    Workers start at the first call and stop with the process. Calls from several threads are served one after another.
    """

    def __init__(self, workers: int = 2, deadline: float = 5.0, memory_mb: int = 2048, rules: Rules = DEFAULT_RULES):
        self.workers, self.deadline, self.memory_mb, self.rules = workers, deadline, memory_mb, rules
        self._pool: list[_Worker] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()
        atexit.register(self.close)

    def grade(self, samples: Sequence[tuple], progress: Callable[[int], object] | None = None) -> list[Outcome]:
        """The outcomes of :meth:`judge`."""
        return [verdict.outcome for verdict in self.judge(samples, progress)]

    def judge(self, samples: Sequence[tuple], progress: Callable[[int], object] | None = None) -> list[Verdict]:
        """The verdicts of :meth:`timed`."""
        return [verdict for verdict, _ in self.timed(samples, progress)]

    def timed(self, samples: Sequence[tuple], progress: Callable[[int], object] | None = None) -> list[Timed]:
        """One verdict for each ``(text, gold)`` or ``(text, gold, start)``, in order, with the seconds that it took.

        Equal samples are decided once. ``progress(n)`` is called when n more are done.

        Raises:
            TypeError: if a sample is not made of texts; nothing is graded then.
            GraderError: if no worker can be started.
        """
        return self._all([_checked(sample, place) for place, sample in enumerate(samples)], progress)

    def readable(
        self,
        samples: Sequence[tuple[str, str, str]],
        progress: Callable[[int], object] | None = None,
        computed: bool = False,
    ) -> list[dict[str, int]]:
        """For each ``(demonstration, answer, problem)`` what :func:`prefix_rl.rewards.guard.readable` finds.

        Where a worker did not come to an end, what the grammar alone can tell.
        """
        asked = [(text, answer, (str(problem), computed)) for text, answer, problem in samples]
        return [
            known if isinstance(known, dict) else readable(text, answer, problem, computed=computed)
            for (known, _), (text, answer, (problem, _)) in zip(self._all(asked, progress), asked, strict=True)
        ]

    def _all(self, samples: list[Sample], progress: Callable[[int], object] | None) -> list[Timed]:
        counts = Counter(samples)
        found: dict[Sample, Timed] = {}
        with self._mine():
            for sample, timed in self._decide(deque(counts)):
                found[sample] = timed
                if progress:
                    progress(counts[sample])
        return [found[sample] for sample in samples]

    def start(self) -> None:
        """Starts all workers and waits until they are ready, so that no later call has to."""
        with self._mine():
            self._replace(self.workers)
            while not all(worker.ready for worker in self._pool):
                for _ in self._listen(deque()):
                    pass

    @contextlib.contextmanager
    def _mine(self) -> Iterator[None]:
        """The pool, for one caller at a time."""
        with self._lock:
            if self._owner != os.getpid():  # a forked child must not talk over its parent's pipes
                self._pool, self._owner = [], os.getpid()
            try:
                yield
            except BaseException:
                self._stop()  # a worker that still holds samples would answer the next call with the verdicts of this
                raise

    def _decide(self, todo: deque[Sample]) -> Iterator[tuple[Sample, Timed]]:
        """Every sample of ``todo`` with its verdict, as they come."""
        while todo or any(worker.batch for worker in self._pool):
            self._replace(len(todo) + sum(bool(worker.batch) for worker in self._pool))
            for worker in self._pool:
                if todo and worker.ready and not worker.batch:
                    worker.send(_take(todo, len(todo) // (2 * self.workers)))
            yield from self._listen(todo)

    def _replace(self, wanted: int) -> None:
        """Drops idle workers that have ended, and starts as many as are wanted and allowed."""
        for worker in [worker for worker in self._pool if not worker.batch and not worker.lives()]:
            worker.kill()
            self._pool.remove(worker)
        while len(self._pool) < min(self.workers, wanted):
            self._pool.append(_Worker(self.deadline, self.memory_mb, self.rules))

    def _listen(self, todo: deque[Sample]) -> Iterator[tuple[Sample, Timed]]:
        """Waits until something happens; what has been decided. What a lost worker has not begun goes to ``todo``."""
        patience = min(worker.expires for worker in self._pool) - time.monotonic()
        wait([worker.connection for worker in self._pool], timeout=max(patience, 0))
        for worker in self._pool:
            yield from worker.receive()
            if worker.gone:
                todo.extendleft(reversed(worker.batch))
                worker.batch.clear()

    def _stop(self) -> None:
        pool, self._pool = self._pool, []
        for worker in pool:
            worker.kill()

    def close(self) -> None:
        """Stops the workers. The grader starts new ones when it is used again."""
        if self._owner == os.getpid():
            self._stop()


def _checked(sample: tuple, place: int | None = None) -> Sample:
    text, gold, start = (*sample, 0)[:3]
    if not isinstance(text, str) or not isinstance(gold, str):
        raise TypeError(f"sample {place} is {(type(text).__name__, type(gold).__name__)}, not a pair of texts")
    return text, gold, start


def _take(todo: deque[Sample], share: int) -> list[Sample]:
    """The next samples for a worker: at least one, at most a batch. Small shares at the end leave nobody waiting."""
    batch = [todo.popleft()]
    characters = len(batch[0][0])
    while todo and len(batch) < min(share, _BATCH) and characters + len(todo[0][0]) <= _BATCH_CHARACTERS:
        batch.append(todo.popleft())
        characters += len(batch[-1][0])
    return batch


class _Worker:
    """The caller's end of a worker. ``batch`` holds what it has not answered; the first of it is in hand."""

    def __init__(self, deadline: float, memory_mb: int, rules: Rules):
        self.deadline = deadline
        self.batch: deque[Sample] = deque()
        self.ready = self.gone = False
        self.connection, theirs = Pipe()
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from prefix_rl.rewards.workers import _serve; _serve({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self.began, self.expires = time.monotonic(), time.monotonic() + _START_SECONDS
        with contextlib.suppress(OSError):  # if it is gone already, receive() says why
            self.connection.send((deadline, memory_mb, rules))

    def lives(self) -> bool:
        return not self.gone and self.process.poll() is None

    def send(self, batch: Iterable[Sample]) -> None:
        self.batch.extend(batch)
        self._clock()
        try:
            self.connection.send(list(self.batch))
        except OSError:
            self.expires = 0  # it died while idle

    def receive(self) -> Iterator[tuple[Sample, Timed]]:
        """What has become of its samples since it was last asked; afterwards it may be ``gone``."""
        try:
            while not self.gone and self.connection.poll():
                said = self.connection.recv()
                if self.batch:
                    *timed, self.gone = said
                    yield self.batch.popleft(), tuple(timed)
                self.ready = True
                self._clock()
        except (EOFError, OSError):
            if not self.ready:
                raise GraderError(f"a grading worker could not start:\n{self._last_words()}") from None
            yield from self._lost(Outcome.CRASH)
        if time.monotonic() >= self.expires and not self.gone:
            if not self.ready:
                raise GraderError(f"a grading worker did not start within {_START_SECONDS} seconds")
            yield from self._lost(Outcome.TIMEOUT if self.process.poll() is None else Outcome.CRASH)

    def _clock(self) -> None:
        """A sample is taken in hand now, or none is."""
        self.began = time.monotonic()
        self.expires = self.began + self.deadline if self.batch else float("inf")

    def _lost(self, outcome: Outcome) -> Iterator[tuple[Sample, Timed]]:
        self.gone = True
        if self.batch:
            yield self.batch.popleft(), (Verdict(outcome), time.monotonic() - self.began)

    def _last_words(self) -> str:
        self.process.wait(timeout=5)
        self.errors.seek(0)
        return self.errors.read().decode(errors="replace").strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()
        self.connection.close()


def _serve(handle: int) -> None:
    """The life of a worker: judge what comes until the pipe closes."""
    import resource
    import signal

    from math_verify import parse

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer
    parse("$1$", parsing_timeout=None)  # builds the parser, which takes a moment
    connection = Connection(handle)
    deadline, memory_mb, rules = connection.recv()
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send("ready")
    while True:
        try:
            batch = connection.recv()
        except EOFError:
            return
        for text, gold, start in batch:
            # If the trainer is killed while this hangs, nobody is left to kill it but the kernel, by SIGALRM
            signal.setitimer(signal.ITIMER_REAL, 2 * deadline + 1)
            began = time.monotonic()
            try:
                if isinstance(start, tuple):
                    verdict = readable(text, gold, start[0], deep=True, computed=start[1])
                else:
                    verdict = judge(text, gold, rules, start)
            except Exception:  # whatever it is, it is this sample's
                verdict = Verdict(Outcome.CRASH)
            seconds = time.monotonic() - began
            signal.setitimer(signal.ITIMER_REAL, 0)
            last = _address_space() > memory_mb * 2**19
            connection.send((verdict, seconds, last))
            if last:
                return


def _address_space() -> int:
    """Bytes. A worker that has grown past half its cap ends: no sample pays for those before it."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
