"""Worker processes that grade samples, each sample under a deadline.

A worker is a new ``python`` process that imports only the grader. So the caller needs no ``__main__`` guard, and no
process with CUDA or threads is forked. A worker receives batches of samples through a pipe and sends each verdict at
once, so it is always working on the first sample that it has not answered:

- If it has not answered at the deadline of that sample, it is killed, and the outcome of the sample is ``timeout``.
- If the sample raises an error (no memory left under the limit, recursion too deep), or the worker dies (stack
  overflow, no memory in the system), the outcome of the sample is ``crash``.

The later samples of the batch have only waited. They go to another worker, each with the full deadline.
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

Sample = tuple[str, str, int | tuple]  # (text, gold, start); for the guard (text, answer, (problem, computed))
Timed = tuple[Verdict | dict[str, int], float]  # the result, and the seconds of work inside the worker

_START_SECONDS = 120  # importing sympy takes far less; a worker that is slower is broken
_BATCH = 64  # samples
_BATCH_CHARACTERS = 2**20  # a batch whose texts are longer costs more in memory than its round trips


class GraderError(UserError):
    """Error of workers that cannot be started. A bad sample never raises this."""


class Grader:
    """Pool of worker processes that grade completions.

    Args:
        workers: number of processes for this rank.
        deadline: seconds that one sample may take.
        memory_mb: MiB of address space of one worker. The outcome of a sample that needs more is ``crash``.
        rules: rules of :func:`~prefix_rl.rewards.grading.judge`.

    Workers start at the first call and stop with the process. Calls from several threads are served one after another.
    """

    def __init__(self, workers: int = 2, deadline: float = 5.0, memory_mb: int = 2048, rules: Rules = DEFAULT_RULES):
        self.workers, self.deadline, self.memory_mb, self.rules = workers, deadline, memory_mb, rules
        self._pool: list[_Worker] = []
        self._owner = os.getpid()
        self._lock = threading.Lock()
        atexit.register(self.close)

    def grade(self, samples: Sequence[tuple], progress: Callable[[int], object] | None = None) -> list[Outcome]:
        """Outcomes, one for each sample, in order; see :meth:`timed`."""
        return [verdict.outcome for verdict in self.judge(samples, progress)]

    def judge(self, samples: Sequence[tuple], progress: Callable[[int], object] | None = None) -> list[Verdict]:
        """Verdicts, one for each sample, in order; see :meth:`timed`."""
        return [verdict for verdict, _ in self.timed(samples, progress)]

    def timed(self, samples: Sequence[tuple], progress: Callable[[int], object] | None = None) -> list[Timed]:
        """Verdicts with their seconds of work, one for each ``(text, gold)`` or ``(text, gold, start)``, in order.

        Equal samples are graded once. ``progress(n)`` is called when n more samples are done.

        Raises:
            TypeError: if the text or gold of a sample is not a ``str``; then no sample is graded.
            GraderError: if no worker can be started.
        """
        return self._all([_checked(sample, place) for place, sample in enumerate(samples)], progress)

    def readable(
        self,
        samples: Sequence[tuple[str, str, str]],
        progress: Callable[[int], object] | None = None,
        computed: bool = False,
    ) -> list[dict[str, int]]:
        """Results of :func:`prefix_rl.rewards.guard.readable`, one for each ``(demonstration, answer, problem)``.

        If a worker times out or dies on one, its result is computed here without the computer algebra system.
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
        """Starts all workers and waits until they are ready, so that later calls need not wait for them."""
        with self._mine():
            self._replace(self.workers)
            while not all(worker.ready for worker in self._pool):
                for _ in self._listen(deque()):
                    pass

    @contextlib.contextmanager
    def _mine(self) -> Iterator[None]:
        """Context in which one thread at a time uses the pool; an error in it stops all workers."""
        with self._lock:
            if self._owner != os.getpid():  # a forked child must not talk over its parent's pipes
                self._pool, self._owner = [], os.getpid()
            with contextlib.ExitStack() as otherwise:
                # a worker that still holds samples would answer the next call with the verdicts of this one
                otherwise.callback(self._stop)
                yield
                otherwise.pop_all()

    def _decide(self, todo: deque[Sample]) -> Iterator[tuple[Sample, Timed]]:
        """Pairs of a sample of ``todo`` and its timed verdict, in the order in which they arrive."""
        while todo or any(worker.batch for worker in self._pool):
            self._replace(len(todo) + sum(bool(worker.batch) for worker in self._pool))
            for worker in self._pool:
                if todo and worker.ready and not worker.batch:
                    worker.send(_take(todo, len(todo) // (2 * self.workers)))
            yield from self._listen(todo)

    def _replace(self, wanted: int) -> None:
        """Drops idle workers that have ended, and starts new ones up to ``wanted`` or the size of the pool."""
        for worker in [worker for worker in self._pool if not worker.batch and not worker.lives()]:
            worker.kill()
            self._pool.remove(worker)
        while len(self._pool) < min(self.workers, wanted):
            self._pool.append(_Worker(self.deadline, self.memory_mb, self.rules))

    def _listen(self, todo: deque[Sample]) -> Iterator[tuple[Sample, Timed]]:
        """Verdicts that arrive next, or after the next deadline; samples of a lost worker go back to ``todo``."""
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
    """Next samples for a worker: one to a whole batch. Shares get smaller, so that all workers end together."""
    batch = [todo.popleft()]
    characters = len(batch[0][0])
    while todo and len(batch) < min(share, _BATCH) and characters + len(todo[0][0]) <= _BATCH_CHARACTERS:
        batch.append(todo.popleft())
        characters += len(batch[-1][0])
    return batch


class _Worker:
    """Handle of a worker. ``batch`` holds the samples that it has not answered; it is working on the first."""

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
        """Pairs of a sample and its timed verdict that arrived since the last call; the worker may be ``gone`` then."""
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
        """Starts the deadline of the sample that the worker begins now; without a sample there is no deadline."""
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
    """Main loop of a worker: grades the samples from the pipe until the pipe closes."""
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
            except Exception:  # of any kind: the outcome of this sample alone
                verdict = Verdict(Outcome.CRASH)
            seconds = time.monotonic() - began
            signal.setitimer(signal.ITIMER_REAL, 0)
            last = _address_space() > memory_mb * 2**19
            connection.send((verdict, seconds, last))
            if last:
                return


def _address_space() -> int:
    """Bytes of address space in use. A worker ends beyond half its limit, so that each sample has at least the rest."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
