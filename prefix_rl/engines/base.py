"""The interface of every engine: prompt ids in, completion ids out, each completion when it is done."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

SAVE_EVERY = 5.0  # seconds that a finished completion may wait for others to be saved with


@dataclass(frozen=True)
class Sampling:
    """Settings by which a token is drawn."""

    temperature: float = 1.0  # 0: the most likely one
    top_p: float = 1.0


@dataclass(frozen=True)
class Request:
    """One completion to be generated."""

    prompt: Sequence[int]  # with the prefix, where it is to go on from one
    limit: int  # tokens at most
    seed: int  # of 48 bits
    sampling: Sampling = Sampling()
    about: Any = None  # what the caller knows it by


@dataclass
class Counts:
    """Numbers of tokens that an engine has read and generated so far."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Number of prompt tokens not computed, as they stood in the engine's prefix cache."""
    generated_tokens: int = 0

    def plus(self, prompt: int, cached: int | None, generated: int) -> None:
        """Counts one more completion."""
        self.prompt_tokens += prompt
        self.cached_tokens += cached or 0
        self.generated_tokens += generated


class Engine(ABC):
    """Makes completions. Each depends on its :class:`Request` alone: on no other request, order or number of engines
    (up to rounding, which may differ with what is computed together)."""

    stops: Sequence[int]
    """The ids that end a completion."""
    at_once: int
    """Number of requests that it works on at a time."""

    def __init__(self) -> None:
        self.counts = Counts()

    @abstractmethod
    def submit(self, request: Request) -> None:
        """Takes a request with a limit of at least 1."""

    @abstractmethod
    def finished(self, timeout: float) -> list[tuple[Request, list[int]]]:
        """The requests that are done since the last call, each with the ids behind its prompt: the stop id included,
        at most ``limit`` of them. Waits for the first; empty if it takes more than ``timeout`` seconds.

        Raises:
            UserError: if the remaining completions cannot be generated.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Name, version, dtype and whatever else completions may depend on."""

    def close(self) -> None:  # noqa: B027 - not every engine holds something
        """Frees what it holds."""

    def generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], seeds: Sequence[int], sampling: Sampling
    ) -> list[list[int]]:
        """The ids behind each prompt, in the order of the prompts."""
        requests = [
            Request(prompt, limit, seed, sampling, about=i)
            for i, (prompt, limit, seed) in enumerate(zip(prompts, limits, seeds, strict=True))
        ]
        made = {request.about: ids for done in completions(self, requests) for request, ids in done}
        return [made[i] for i in range(len(requests))]


def completions(
    engine: Engine, requests: Iterable[Request | None], at_once: int | None = None, seconds: float = SAVE_EVERY
) -> Iterator[list[tuple[Request, list[int]]]]:
    """Lists of completions to be saved together, as they are done.

    Args:
        engine: receives the next request whenever it has room.
        requests: may depend on what has come back so far: None says that there is no request before more has. It is
            asked again each time.
        at_once: completions in the making at a time, and of one list; None: as many as the engine takes.
        seconds: a completion that is done waits no longer than this for others.
    """
    source, room, running, more = iter(requests), min(at_once or engine.at_once, engine.at_once), 0, True
    done: list[tuple[Request, list[int]]] = []
    handed_over = time.monotonic()
    while more or running:
        waits = False
        while more and not waits and running < room:
            request = next(source, _END)
            more, waits = request is not _END, request is None
            if isinstance(request, Request) and request.limit < 1:
                done.append((request, []))
            elif isinstance(request, Request):
                engine.submit(request)
                running += 1
        if running:
            found = engine.finished(seconds)
            running -= len(found)
            done += found
        elif waits and not done:
            raise RuntimeError("a request is to come, and nothing that it could wait for is in the making")
        if done and (waits or len(done) >= room or time.monotonic() - handed_over >= seconds):
            yield done
            done, handed_over = [], time.monotonic()
    if done:
        yield done


_END = object()


def seed_of(*key: int | str) -> int:
    """A seed of 48 bits that depends on ``key`` alone.

    >>> seed_of(0, "aime/2024-I-1", 3) == seed_of(0, "aime/2024-I-1", 3) != seed_of(0, "aime/2024-I-1", 4)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6], "big")


def until_stop(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The ids up to and including the first stop.

    >>> until_stop([5, 6, 1, 0, 0], stops=[1])
    [5, 6, 1]
    """
    end = next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])
