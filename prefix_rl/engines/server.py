"""OpenAI-compatible servers as an engine: several endpoints at once, each request at whichever has room.

A completion is asked for as ids and must come back as ids, whole. What goes wrong for a while (an endpoint that is
busy, restarts, or answers nonsense) is waited for and asked again, at any endpoint; an endpoint that keeps failing is
left out. Which endpoint answers makes no difference to what is sampled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from ..errors import DataError, StackError, UserError, nearest
from ..progress import say
from .base import Engine, Request
from .settings import API_KEY, EngineSettings, base_url

if TYPE_CHECKING:
    import httpx
    from transformers import PreTrainedTokenizerBase

PROBE = "12 + 3 = \\boxed{15}\n\n  x^2, naïve 数学 🙂"
"""A text that other tokenizers split in other ways."""
_LONGEST_WAIT = 60.0  # seconds
_FOR_A_WHILE = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses after which the same request may succeed


class _Fault(Exception):
    """A failure that may pass, so that the request is worth another try."""

    def __init__(self, what: str, *, answered: bool, wait: float = 0.0):
        super().__init__(what)
        self.answered, self.wait = answered, wait  # whether the endpoint is there at all; seconds that it asked for


@dataclass
class Endpoint:
    """One server, and its state: whether it answers, its version and its failures."""

    url: str
    facts: dict[str, Any] = field(default_factory=dict)
    alive: bool = True
    failures: int = 0  # in a row
    until: float = 0.0  # nothing is asked before

    def failed(self, wait: float, at_least: float) -> None:
        """Doubles the wait. What was under way when it failed fails too, and counts once."""
        now = time.monotonic()
        if now >= self.until:
            self.failures += 1
            self.until = now + max(min(wait * 2 ** (self.failures - 1), _LONGEST_WAIT), min(at_least, _LONGEST_WAIT))


@dataclass
class _Asked:
    request: Request
    tries: int = 0
    last: str = ""


class ServerEngine(Engine):
    """Completions from servers.

    Args:
        settings: the recipe's: endpoints, requests in flight at each, retries, waits.
        model: the name under which they serve the policy.
        stops: the ids that end a completion.
        tokenizer: the policy's; each endpoint must have the same.
        max_length: of the longest prompt and completion together; each endpoint must take it.

    Raises:
        StackError: if no endpoint answers.
        DataError: if one of them serves something else, or does not return ids.
    """

    def __init__(
        self,
        settings: EngineSettings,
        model: str,
        stops: Sequence[int],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ):
        super().__init__()
        self.settings, self.model, self.stops = settings, settings.served_model or model, list(stops)
        self._endpoints = [Endpoint(base_url(url)) for url in settings.endpoints]
        # as many again wait here, so that an endpoint has something to do while others' answers are graded
        self.at_once = 2 * settings.max_in_flight * len(self._endpoints)
        self._done: queue.SimpleQueue[tuple[Request, list[int]] | BaseException] = queue.SimpleQueue()
        self._numbers = count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server engine", daemon=True)
        self._thread.start()
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(self.close)
            self._wait(self._open(tokenizer, max_length))
            otherwise.pop_all()

    # --- what the caller sees -----------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (next(self._numbers), _Asked(request)))

    def finished(self, timeout: float) -> list[tuple[Request, list[int]]]:
        found = []
        with contextlib.suppress(queue.Empty):
            found.append(self._done.get(timeout=timeout))
            while True:
                found.append(self._done.get_nowait())
        if error := next((one for one in found if isinstance(one, BaseException)), None):
            made = [one for one in found if not isinstance(one, BaseException)]
            if not made:
                raise error
            self._done.put(error)  # first what is done is handed over
            return made
        return found

    def facts(self) -> dict[str, Any]:
        alive = [endpoint.facts for endpoint in self._endpoints if endpoint.facts]
        versions = sorted({f["version"] for f in alive if f.get("version")})
        dtypes = sorted({f["dtype"] for f in alive if f.get("dtype")})
        return {
            "name": "server",
            "version": ", ".join(versions) or None,
            "dtype": ", ".join(dtypes) or None,
            "served_model": self.model,
            "endpoints": len(alive),
            "checked": "name, tokenizer and context of the served model; not its weights",
        }

    def close(self) -> None:
        if self._loop.is_running():
            with contextlib.suppress(Exception):
                self._wait(self._shut())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _wait(self, work: Coroutine) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    # --- opening ------------------------------------------------------------------------------------------------------

    async def _open(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        import httpx

        key = os.environ.get(API_KEY)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(self.settings.timeout, connect=10.0),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        self._queue: asyncio.PriorityQueue[tuple[int, _Asked]] = asyncio.PriorityQueue()
        self._workers: list[asyncio.Task] = []
        by_endpoint = await asyncio.gather(*(self._looked_at(e, tokenizer, max_length) for e in self._endpoints))
        faults = [fault for of_one in by_endpoint for fault in of_one]
        if faults:
            raise DataError("the endpoints do not serve the policy to be sampled; nothing was sampled:", faults)
        if not any(endpoint.alive for endpoint in self._endpoints):
            raise StackError(
                "no endpoint answers; nothing was sampled. Start the servers (vllm serve MODEL), or look at "
                "engine.endpoints:",
                [f"{endpoint.url}: {endpoint.facts['fault']}" for endpoint in self._endpoints],
            )
        for endpoint in self._endpoints:
            if not endpoint.alive:
                say(f"{endpoint.url} does not answer and is left out ({endpoint.facts.pop('fault')})")
            for _ in range(self.settings.max_in_flight if endpoint.alive else 0):
                self._workers.append(self._loop.create_task(self._work(endpoint)))

    async def _looked_at(self, endpoint: Endpoint, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[str]:
        """Faults of the model that an endpoint serves, in words. An endpoint that does not answer is marked so."""
        try:
            models = await self._answer(endpoint, "GET", "/v1/models")
            listed = models.get("data") if isinstance(models, dict) else None
            if not isinstance(listed, list) or not all(isinstance(m, dict) and "id" in m for m in listed):
                return [f"{endpoint.url}: /v1/models lists no models; it is no OpenAI-compatible server"]
            served = {m["id"]: m for m in listed}
            if self.model not in served:
                return [
                    f"{endpoint.url} serves {', '.join(map(repr, served)) or 'nothing'}, not {self.model!r}"
                    f"{nearest(self.model, served)}; if one of these is the policy under another name, give "
                    "engine.served_model=NAME"
                ]
            faults, context = [], served[self.model].get("max_model_len")
            if isinstance(context, int) and context < max_length:
                faults.append(
                    f"{endpoint.url} takes {context} tokens, but the longest prompt and completion have {max_length}: "
                    f"start it with --max-model-len {max_length}, or give a smaller --max-completion-length"
                )
            faults += await self._probed(endpoint, tokenizer)
            endpoint.facts = {"version": await self._version(endpoint), "dtype": await self._dtype(endpoint)}
        except _Fault as fault:
            if fault.answered:
                return [f"{endpoint.url}: {fault}"]
            endpoint.alive, endpoint.facts = False, {"fault": str(fault)}
            return []
        except UserError as error:
            return [f"{endpoint.url}: {error.what}"]
        return faults

    async def _probed(self, endpoint: Endpoint, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Faults of a server, in words: its answer lacks token ids, or its tokenizer gives others than the policy's."""
        asked = {"model": self.model, "prompt": PROBE, "add_special_tokens": False, "max_tokens": 1, "temperature": 0,
                 "return_token_ids": True}  # fmt: skip
        choice = _choice(await self._answer(endpoint, "POST", "/v1/completions", asked))
        theirs = choice.get("prompt_token_ids")
        if not _is_ids(theirs) or not _is_ids(choice.get("token_ids")):
            return [
                f"{endpoint.url} returns text and no token ids (return_token_ids); a text tokenized again is not what "
                "was sampled. vLLM returns them from 0.10.2 on; of SGLang take a release with return_token_ids"
            ]
        ours = [list(tokenizer(PROBE, add_special_tokens=add)["input_ids"]) for add in (False, True)]
        if theirs not in ours:
            same = next((i for i, (a, b) in enumerate(zip(theirs, ours[0], strict=False)) if a != b), 0)
            first = max(same - 1, 0)
            return [
                f"{endpoint.url} has another tokenizer: of {PROBE!r} the tokens from {first} on are "
                f"{theirs[first : first + 6]}... there, {ours[0][first : first + 6]}... for the policy"
            ]
        return []

    async def _version(self, endpoint: Endpoint) -> str | None:
        for path in ("/version", "/get_server_info"):
            with contextlib.suppress(_Fault, UserError):
                found = await self._answer(endpoint, "GET", path)
                if isinstance(found, dict) and isinstance(found.get("version"), str):
                    return found["version"]
        return None

    async def _dtype(self, endpoint: Endpoint) -> str | None:
        """Servers say it in their development mode only."""
        with contextlib.suppress(_Fault, UserError, KeyError, TypeError):
            found = await self._answer(endpoint, "GET", "/server_info?config_format=json")
            return str(found["vllm_config"]["model_config"]["dtype"]).removeprefix("torch.")
        return None

    # --- asking -------------------------------------------------------------------------------------------------------

    async def _work(self, endpoint: Endpoint) -> None:
        """Asks one endpoint for one completion after the other, as long as it is there."""
        while endpoint.alive:
            if (wait := endpoint.until - time.monotonic()) > 0:
                await asyncio.sleep(wait)
                continue
            number, asked = await self._queue.get()
            if not endpoint.alive or endpoint.until > time.monotonic():  # it failed while this one waited
                self._queue.put_nowait((number, asked))
                continue
            try:
                ids, cached = await self._complete(endpoint, asked.request)
            except _Fault as fault:
                asked.tries += fault.answered
                asked.last = f"{endpoint.url}: {fault}"
                self._queue.put_nowait((number, asked))  # before those that were asked for later
                self._failed(endpoint, asked, fault)
            except UserError as error:
                self._done.put(error)
                return
            else:
                endpoint.failures = 0
                self.counts.plus(len(asked.request.prompt), cached, len(ids))
                self._done.put((asked.request, ids))

    def _failed(self, endpoint: Endpoint, asked: _Asked, fault: _Fault) -> None:
        """Lets an endpoint rest, or leaves it out; ends all where nothing helps any more."""
        endpoint.failed(self.settings.retry_wait, fault.wait)
        kept = "what is done is kept, and the same command goes on from there"
        if asked.tries > self.settings.retries:
            self._done.put(DataError(f"one completion could not be made in {asked.tries} tries; {kept}. The last: "
                                     f"{asked.last}"))  # fmt: skip
        elif endpoint.alive and endpoint.failures > self.settings.retries:
            endpoint.alive = False
            if any(other.alive for other in self._endpoints):
                say(f"{endpoint.url} is left out after {endpoint.failures} failures ({fault}); the others go on")
            else:
                self._done.put(StackError(f"no endpoint answers any more; {kept}. The last: {asked.last}"))

    async def _complete(self, endpoint: Endpoint, request: Request) -> tuple[list[int], int | None]:
        """The ids of one completion, and how many of its prompt's were cached if the server says so."""
        asked = {
            "model": self.model, "prompt": list(request.prompt), "max_tokens": request.limit, "seed": request.seed,
            "temperature": request.sampling.temperature, "top_p": request.sampling.top_p,
            # a server takes whatever a request leaves out from the model's own generation_config
            "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1,
            "stop_token_ids": self.stops, "return_token_ids": True, "add_special_tokens": False,
        }  # fmt: skip
        answer = await self._answer(endpoint, "POST", "/v1/completions", asked)
        choice = _choice(answer)
        ids, reason = choice.get("token_ids"), choice.get("finish_reason")
        if not _is_ids(ids):
            raise _Fault("it returned text and no token ids", answered=True)
        ended = bool(set(ids[-1:]) & set(self.stops))
        if len(ids) > request.limit or not (ended or len(ids) == request.limit) or set(ids[:-1]) & set(self.stops):
            raise _Fault(
                f"it returned {len(ids)} of {request.limit} tokens that are no whole completion "
                f"(finish_reason = {reason!r})",
                answered=True,
            )
        details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
        return ids, details.get("cached_tokens")

    async def _answer(self, endpoint: Endpoint, method: str, path: str, content: dict | None = None) -> Any:
        """The JSON of an answer.

        Raises:
            _Fault: for what may go well another time.
            UserError: for what will not.
        """
        import httpx

        try:
            response = await self._client.request(method, endpoint.url + path, json=content)
        except httpx.TimeoutException as error:
            connecting = isinstance(error, httpx.ConnectTimeout)
            seconds = 10 if connecting else self.settings.timeout
            raise _Fault(f"no answer within {seconds:g} s", answered=not connecting) from error
        except httpx.RemoteProtocolError as error:
            raise _Fault(f"it broke off ({error})", answered=False) from error
        except httpx.HTTPError as error:
            raise _Fault(str(error) or type(error).__name__, answered=False) from error
        if response.status_code in (401, 403):
            raise DataError(
                f"it refuses the key (status {response.status_code}); give it in the environment variable {API_KEY}"
            )
        if response.status_code in _FOR_A_WHILE:
            raise _Fault(
                f"status {response.status_code}: {_said(response)}", answered=True, wait=_retry_after(response)
            )
        if response.status_code != 200:
            raise DataError(f"{endpoint.url} refuses {path}, status {response.status_code}: {_said(response)}")
        try:
            return response.json()
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            kind = response.headers.get("content-type", "something")
            raise _Fault(f"it answered {kind} instead of JSON: {_said(response)}", answered=True) from error

    async def _shut(self) -> None:
        workers = getattr(self, "_workers", [])
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        if hasattr(self, "_client"):
            await self._client.aclose()


def _choice(answer: Any) -> dict[str, Any]:
    """The one completion of an answer."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise _Fault(f"it answered without a completion: {json.dumps(answer)[:200]}", answered=True)
    return choices[0]


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(i) is int for i in value)


def _said(response: httpx.Response) -> str:
    """A server's own words about an error, shortened."""
    try:
        content = response.json()
        error = content.get("error", content) if isinstance(content, dict) else content
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (json.JSONDecodeError, UnicodeDecodeError):
        text = response.text
    text = " ".join(text.split())
    return (text[:200] + "..." if len(text) > 200 else text) or "nothing"


def _retry_after(response: httpx.Response) -> float:
    """The seconds that a server asks to be left alone for."""
    try:
        return max(float(response.headers.get("retry-after", 0)), 0.0)
    except ValueError:  # a date: the growing waits will do
        return 0.0
