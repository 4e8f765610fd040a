"""Signs of life of a run: what its process leaves in the run's folder, and what others read from it.

``status.training.json`` (``.evaluating``, ``.collecting``) says how far the process is, when it was last heard of, and
when it last got further. A
thread writes it every few seconds, whatever the run does meanwhile, so that a run that hangs (heard of, but no further)
is told from one that died (not heard of). It is a file because a run may be on another machine, in a shared folder.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from . import documents
from .documents import misfit
from .parts import Damaged

DOING = ("training", "evaluating", "collecting")
"""Activities that are recorded, each in a file of its own: a checkpoint may be evaluated while its run trains on."""
BEAT_SECONDS = 5.0
"""Seconds between two signs of life."""
SILENT_SECONDS = 60.0
"""Seconds without a sign of life after which a process on another machine has died or cannot be reached."""
PATIENCE, PATIENCE_SECONDS, FIRST_SECONDS = 10, 120.0, 1800.0
"""A run hangs once it is no further after 10 times its usual pace and 2 minutes; before its first step, 30 minutes."""


class _Record:
    """The status of one run, written by its own process."""

    def __init__(self, folder: Path, doing: str):
        self.path, self.began = _path(folder, doing), time.time()
        self.moved, self.paces = self.began, deque(maxlen=101)
        self.content: dict[str, Any] = {"state": "running", "doing": doing, **_self(), "started": self.began}
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._beat, name="status", daemon=True)

    def start(self) -> None:
        self.write()
        self._thread.start()

    def progress(self, what: str, done: float, total: float | None) -> None:
        """Records the present work, how far it is, and its end, if that is known."""
        now = time.time()
        before = self.content.get("progress") or {}
        if before.get("what") == what and done > before["done"]:
            self.paces.append(now - self.moved)
        elif before.get("what") != what:
            # another kind of work has another pace
            self.paces.clear()
        self.moved = now
        self.content["progress"] = {"what": what, "done": done, "total": total}

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self.write()

    def write(self, **more: Any) -> None:
        with self._lock:
            self.content |= more
            content = {
                **self.content, "beat": time.time(), "moved": self.moved,
                "pace": median(self.paces) if self.paces else None, "where": where(self._main),
            }  # fmt: skip
            # by process: of two that write at once neither renames the other's half
            beside = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
            try:
                beside.write_text(json.dumps(content) + "\n", encoding="utf-8")
                beside.replace(self.path)
            except OSError:
                pass  # a full disk or a folder that was removed: the run itself says so where it matters

    def end(self, state: str, error: str | None = None) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.write(state=state, error=error)


_records: list[_Record] = []


@contextmanager
def recorded(folder: str | os.PathLike, doing: str, keep: bool = True) -> Iterator[None]:
    """While the block runs, ``folder/status.DOING.json`` says so; then it says how it ended. On the first rank only.

    Args:
        folder: is created if it is absent.
        doing: what the command does, one of :data:`DOING`.
        keep: True: the file stays when all went well. It does not in a folder whose content is to be the same
            whatever process made it.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    record = _Record(Path(folder), doing)
    if _is_another_that_lives(read_status(Path(folder), doing)):
        yield  # it keeps its file; the command itself says if two cannot share the folder
        return
    try:
        record.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        yield  # the command itself says that its folder cannot be written
        return
    _records.append(record)
    record.start()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        record.end("stopped")
        raise
    except BaseException as error:
        first = (str(error).splitlines() or [""])[0]
        record.end("failed", f"{type(error).__name__}: {first}"[:500])
        raise
    else:
        record.end("ended")
        if not keep:
            record.path.unlink(missing_ok=True)
    finally:
        _records.remove(record)


def _is_another_that_lives(status: Mapping[str, Any] | None) -> bool:
    """True if a status is that of another process of this machine, which is still there."""
    if status is None or status["state"] != "running" or status.get("space") != _space():
        return False
    return status["pid"] != os.getpid() and _born(status["pid"]) == status.get("born") is not None


def progress(what: str, done: float, total: float | None = None) -> None:
    """Notes how far the recorded run is; does nothing where none is recorded."""
    if _records:
        _records[-1].progress(what, done, total)


def failed(error: str) -> None:
    """Notes that the recorded run ends now with an error; for a process that ends without another word."""
    for record in _records:
        record.end("failed", error)


def _self() -> dict[str, Any]:
    return {"host": socket.gethostname(), "space": _space(), "pid": os.getpid(), "born": _born(os.getpid())}


def _space() -> str:
    """The process numbers that ours is one of: the machine's, or those of a container on it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return platform.node()


def _born(pid: int) -> str | None:
    """Start of a process, in ticks since the machine's; None where it is not there. Process numbers are used again."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    # fields 3 (Z, X: ended, not yet reaped) and 22 (start) of proc(5), counted behind the name, which may hold blanks
    return None if fields[0] in "ZX" else fields[19]


def where(thread: int) -> list[str]:
    """The places at which a thread stands, the innermost first."""
    frame, places = sys._current_frames().get(thread), []
    while frame is not None and len(places) < 4:
        path = Path(frame.f_code.co_filename)
        if "importlib" not in str(path) and path.name != "status.py":
            places.append(f"{'/'.join(path.parts[-2:])}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return places


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """State of a run, with a sentence for people."""

    name: str
    """``running``, ``hangs``, ``died``, ``ended``, ``stopped``, ``failed``, or ``unknown``."""
    says: str
    """The state as a sentence for a person, with what is known of it."""
    progress: Mapping[str, Any] | None = None


_SHAPE = {
    "state": str, "doing": str, "host": str | None, "space": str | None, "pid": int, "born": str | None, "beat": float,
    "moved": float, "pace": float | None, "where": list[str] | None, "error": str | None,
}  # fmt: skip
_PROGRESS = {"what": str, "done": float, "total": float | None}


def _path(folder: Path, doing: str) -> Path:
    return folder / f"status.{doing}.json"


def read_status(folder: Path, doing: str = "training") -> dict[str, Any] | None:
    """The status that the run's process wrote last; None if there is none that can be read."""
    try:
        found = documents.read(_path(folder, doing), _SHAPE)
    except Damaged:
        return None
    return found if found.get("progress") is None or not misfit(found["progress"], _PROGRESS) else None


def lives_elsewhere(folder: Path, doing: str, waiting: Callable[[str], object]) -> str | None:
    """A process on another machine that does the same in this folder, in words; None if there is none.

    It is alive if its status changes while we look; clocks are not compared but to look no longer than needed. It has
    died once nothing changed for :data:`SILENT_SECONDS`, or for two beats where its last sign is that old by our clock.

    Args:
        waiting: called with what is waited for, if that is needed.
    """
    first = read_status(folder, doing)
    if first is None or first["state"] != "running" or first.get("space") == _space():
        return None
    who = f"process {first.get('pid')} on {first.get('host')}"
    old = abs(time.time() - first.get("beat", 0.0)) > SILENT_SECONDS
    seconds = 2.2 * BEAT_SECONDS if old else SILENT_SECONDS
    waiting(f"looking for {span(seconds)} whether {who} is still {doing}")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(BEAT_SECONDS / 5, 1.0))
        now = read_status(folder, doing)
        if now is None or now["state"] != "running":
            return None
        if now.get("beat") != first.get("beat"):
            return who
    return None


def state_of(status: Mapping[str, Any] | None, now: float, unheard: float | None = None) -> State:
    """State of a run, from its status.

    Args:
        status: as :func:`read_status` returns it.
        now: seconds since the epoch.
        unheard: seconds since the reader last saw the file change, where it has been watching: that needs no two
            machines whose clocks agree.

    >>> beat = {"state": "running", "doing": "training", "host": "far", "beat": 100.0, "moved": 90.0, "pace": 2.0}
    >>> state_of(beat, now=103.0).name, state_of(beat, now=190.0).name
    ('running', 'died')
    >>> state_of(beat | {"beat": 300.0}, now=301.0).says
    'hangs: heard of, but no further for 4 min (usually 2.0 s)'
    """
    if status is None:
        return State("unknown", "nothing is known of its process")
    doing, progress = status.get("doing", "running"), status.get("progress")
    if status["state"] != "running":
        error = f": {status['error']}" if status.get("error") else ""
        return State(status["state"], f"{status['state']}{error}", progress)
    age = max(now - status.get("beat", now), 0.0) if unheard is None else unheard
    here = status.get("space") == _space()
    if here and _born(status["pid"]) != status.get("born"):
        return State("died", f"died while {doing}: process {status['pid']} is gone and said no end", progress)
    if age > SILENT_SECONDS and not here:
        host = status.get("host", "its machine")
        return State("died", f"died while {doing}, or {host} cannot be reached: no sign for {span(age)}", progress)
    if age > SILENT_SECONDS:
        return State("hangs", f"hangs: process {status['pid']} is there and gave no sign for {span(age)}", progress)
    still = age + status.get("beat", now) - status.get("moved", now)
    pace = status.get("pace")
    if still > (max(PATIENCE * pace, PATIENCE_SECONDS) if pace else FIRST_SECONDS):
        usually = f" (usually {span(pace)})" if pace else ""
        places = status.get("where") or []
        where = f", in {' < '.join(places[:2])}" if places else ""
        return State("hangs", f"hangs: heard of, but no further for {span(still)}{usually}{where}", progress)
    return State("running", doing, progress)


def span(seconds: float) -> str:
    """A time for a person.

    >>> span(2.13), span(59), span(360), span(9000), span(260000)
    ('2.1 s', '59 s', '6 min', '2.5 h', '3.0 days')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
