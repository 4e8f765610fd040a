"""The page of runs that go on, served to this machine's browser: ``prefix-rl watch``.

The server reads files and nothing else, so it may watch runs of other machines in a shared folder, and no run notices.
Whoever wants to see the page needs the token in its address, and a page of another site can neither read it nor guess.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..progress import say
from . import payload
from .page import index_of, shell
from .report import cells, row
from .runs import CARD, METRICS, RECIPE, Run, find_runs, is_run, read_run, short_names

LOCAL = "127.0.0.1"
PORT = 8765
"""Taken if it is free; another one if it is not."""


class Watched:
    """Runs in folders, read again where something changed.

    Args:
        folders: of runs, or folders below which there are some, or will be.

    Raises:
        DataError: naming the folders that do not exist.
    """

    def __init__(self, folders: Sequence[Path]):
        if missing := [f"{folder} is no folder" for folder in folders if not folder.is_dir()]:
            raise DataError(missing[0] if len(missing) == 1 else "these cannot be watched:", missing[1:] and missing)
        self.folders = list(folders)
        self.places: list[Path] = []  # a run keeps its number as long as the server lives
        self._runs: dict[Path, tuple[Any, Run]] = {}
        self._summaries: dict[Path, tuple[Any, dict[str, Any] | None]] = {}
        self._heard: dict[Path, tuple[Any, float, bool]] = {}
        self._lock = threading.Lock()

    def index(self) -> bytes:
        """The first chunk, as of now."""
        with self._lock:
            runs, facts = self._look(), []
            states = [run.state(unheard=self._unheard) for run in runs]
            for run, state in zip(runs, states, strict=True):
                saved, notes = self._generations(run)
                found = payload.run_facts(run, state)
                found |= {"notes": found["notes"] + notes, "generations": saved, "limit": None}
                facts.append({**found, "curves_version": str(_stamp(run.folder / METRICS))})
            rows = [row(run, state) for run, state in zip(runs, states, strict=True)]
            return payload.packed(index_of(facts, cells(rows) if rows else [["run"]]))

    def curves(self, number: int) -> bytes | None:
        """The curves of a run; None if there is no such run."""
        with self._lock:
            runs = self._look()
            return payload.packed(payload.curves_of(runs[number])) if number < len(runs) else None

    def generation(self, number: int, step: int) -> bytes | None:
        """A saved generation; None if there is none that can be read."""
        with self._lock:
            runs = self._look()
        if number >= len(runs):
            return None
        run = runs[number]
        path = dict(payload.generations(run.folder)).get(step)
        records = payload.read_generation(path) if path else None
        return None if records is None else payload.packed(payload.chunk_of(payload.groups_of(records, run.group_size)))

    def _look(self) -> list[Run]:
        for folder in self.folders:
            found = [folder] if is_run(folder) else find_runs([folder], or_none=True)
            self.places += [place for place in found if place.resolve() not in {p.resolve() for p in self.places}]
        self.places = [place for place in self.places if place in self._runs or is_run(place)]
        runs = []
        for place, name in zip(self.places, short_names(self.places), strict=True):
            stamp = tuple(_stamp(place / part) for part in (METRICS, CARD, RECIPE))
            if place not in self._runs or self._runs[place][0] != stamp:
                try:
                    self._runs[place] = stamp, read_run(place)
                except DataError:  # it was removed; what was seen of it stays on the page
                    if place not in self._runs:
                        continue
            runs.append(replace(self._runs[place][1], name=name))
        return runs

    def _generations(self, run: Run) -> tuple[list[dict[str, Any]], list[str]]:
        found, notes = [], []
        for step, path in payload.generations(run.folder):
            stamp = _stamp(path)
            if path not in self._summaries or self._summaries[path][0] != stamp:
                records = payload.read_generation(path, texts=False)
                groups = None if records is None else payload.groups_of(records, run.group_size)
                self._summaries[path] = stamp, None if groups is None else payload.summary_of(groups)
            summary = self._summaries[path][1]
            if summary is None:
                notes.append(f"rollouts/{path.name} cannot be read")
            else:
                found.append({"step": step, "version": str(stamp), **summary})
        return found, notes

    def _unheard(self, path: Path, beat: float, now: float) -> float:
        """Seconds since a sign of life, by this machine's clock as soon as one has been seen to come."""
        seen, moment = self._heard.get(path), time.monotonic()
        if seen is None or seen[0] != beat:
            self._heard[path] = seen = (beat, moment, seen is not None)
        since = moment - seen[1]
        return since if seen[2] else max(since, now - beat)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        answer = self._answer()
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        kind, body = answer
        self.send_response(HTTPStatus.OK)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _answer(self) -> tuple[str, bytes] | None:
        """The type and content asked for; None without the token, under another host's name, or if there is none."""
        watched, parts = self.server.watched, self.path.partition("?")[0].split("/")
        if len(parts) != 3 or not secrets.compare_digest(parts[1].encode(), self.server.token.encode()):
            return None
        if not self._for_us():
            return None
        name = parts[2]
        if name == "":
            before, script, end = shell(live=True)
            return "text/html; charset=utf-8", (before + script + end).encode()
        body = None
        if name == "index":
            body = watched.index()
        elif found := re.fullmatch(r"curves-(\d{1,6})", name):
            body = watched.curves(int(found[1]))
        elif found := re.fullmatch(r"(\d{1,6})-(\d{1,12})", name):
            body = watched.generation(int(found[1]), int(found[2]))
        return None if body is None else ("application/octet-stream", body)

    def _for_us(self) -> bool:
        """True if the browser means to speak to us: another name that resolves to this address is not ours."""
        asked = self.headers.get("Host", "").rpartition(":")[0]
        return self.server.anywhere or asked in (LOCAL, "localhost", self.server.host)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, watched: Watched, host: str, port: int):
        self.watched, self.host, self.token = watched, host, secrets.token_urlsafe(16)
        self.anywhere = host in ("0.0.0.0", "::", "")
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> str:
        """Address of the page, its token included."""
        host = LOCAL if self.anywhere else self.host
        return f"http://{host}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request, client_address) -> None:
        import sys

        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):  # a browser that goes away is no error
            say(f"watch: {type(error).__name__}: {error}")


def serve(folders: Sequence[Path], host: str = LOCAL, port: int | None = None) -> _Server:
    """A server of the page of these runs, listening; ``serve_forever`` makes it answer.

    Args:
        folders: see :class:`Watched`.
        host: the address to listen on.
        port: the port; None: 8765, or any if it is taken.

    Raises:
        DataError: if a folder does not exist, or nothing can listen there.
    """
    watched = Watched(folders)
    for tried in (PORT, 0) if port is None else (port,):
        try:
            return _Server(watched, host, tried)
        except OSError as error:
            why = error.strerror or error
    raise DataError(f"nothing can listen on {host}, port {port or PORT}: {why}")


def watch(folders: Sequence[Path], host: str = LOCAL, port: int | None = None) -> None:
    """Serves the page until Ctrl-C; prints its address.

    Raises:
        DataError: as :func:`serve`.
    """
    server = serve(folders, host, port)
    count = len(server.watched._look())
    say(f"{count} run{'s' * (count != 1)} now; open this address, and stop with Ctrl-C" if count else
        "no run there yet; open this address, which shows runs as they come, and stop with Ctrl-C")  # fmt: skip
    print(server.address, flush=True)
    if server.anywhere or host not in (LOCAL, "localhost", "::1"):
        say("other machines can reach it, and whoever has the address sees every rollout; nothing is encrypted")
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        server.server_close()
