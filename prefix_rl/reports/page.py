"""The page: one HTML file with the data inside, that needs no server and no network.

A content security policy names the hashes of the page's own script and style, so that nothing else runs, whatever a
completion, a name or a recipe holds; and the script makes every text a text node.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from . import payload
from .runs import Run

MEGABYTES = 60.0
"""Largest size of a page in megabytes, unless the caller asks for another."""
_ASSETS = Path(__file__).with_name("assets")
_SCRIPTS = ("data.js", "tables.js", "curves.js", "filters.js", "rollouts.js", "main.js")
_SAMPLED = 8  # generations that are packed to see how far texts can be compressed


@cache
def shell(live: bool = False) -> tuple[str, str, str]:
    """The page in three parts: what stands before the index, the script behind it, and the end.

    Args:
        live: whether the data comes from ``prefix-rl watch`` instead of from the page.
    """
    style = (_ASSETS / "page.css").read_text(encoding="utf-8")
    script = "\n".join((_ASSETS / name).read_text(encoding="utf-8") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();'
    allowed = {
        "default-src": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "script-src": f"'{_hash(script)}'",
        "style-src": f"'{_hash(style)}'",
        "connect-src": "'self'" if live else "'none'",
    }
    policy = "; ".join(f"{name} {value}" for name, value in allowed.items())
    html = (_ASSETS / "page.html").read_text(encoding="utf-8")
    html = html.replace("{{policy}}", policy).replace("{{source}}", "live" if live else "page")
    before, _, end = html.replace("{{style}}", style).partition("{{data}}\n")
    return before, f"<script>{script}</script>\n", end


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def block(name: str, packed: bytes) -> str:
    """A chunk as a data block; the browser runs nothing of it."""
    return f'<script type="application/octet-stream" id="chunk-{name}">{base64.b64encode(packed).decode()}</script>\n'


def index_of(runs: Sequence[dict[str, Any]], table: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The first chunk: the table (a head, a row for each run) and the facts of each run."""
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "kinds": payload.KINDS,
        "table": [list(line) for line in table],
        "runs": list(runs),
    }


def write_page(
    runs: Sequence[Run],
    table: Sequence[Sequence[str]],
    path: Path,
    megabytes: float = MEGABYTES,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Writes the page of these runs; it appears when it is whole.

    Args:
        runs: what it shows.
        table: a head, and a row for each run.
        path: the file.
        megabytes: what the file may be; completions are cut in their middle, all at the same length, to keep it.
        advance: is called with the number of generations just packed.
    """
    files = [payload.generations(run.folder) for run in runs]
    curves = [block(f"curves-{i}", payload.packed(payload.curves_of(run))) for i, run in enumerate(runs)]
    room = megabytes * 1e6 - sum(map(len, curves)) - sum(map(len, shell())) - 20_000 * len(runs)
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    limit = _first_limit(runs, files, room)
    try:
        while True:
            facts, size = [], 0.0
            with beside.with_suffix(".chunks").open("w", encoding="utf-8") as chunks:
                for number, run in enumerate(runs):
                    saved, notes = [], []
                    for step, file in files[number]:
                        made = _generation(run, number, step, file, limit)
                        advance(1)
                        if made is None:
                            notes.append(f"rollouts/{file.name} cannot be read")
                            continue
                        summary, text = made
                        saved.append(summary)
                        size += len(text) + 10 * sum(summary["sizes"])  # its line of the index is packed too
                        chunks.write(text)
                    found = payload.run_facts(run, run.state())
                    facts.append({**found, "notes": found["notes"] + notes, "generations": saved, "limit": limit})
            if size <= room or (limit is not None and limit <= _SHORTEST):
                break
            limit = max(int((limit or _longest(runs, files)) * 0.9 * room / size), _SHORTEST)
        before, script, end = shell()
        with beside.open("w", encoding="utf-8") as out:
            out.write(before + block("index", payload.packed(index_of(facts, table))) + script)
            out.writelines(curves)
            with beside.with_suffix(".chunks").open(encoding="utf-8") as chunks:
                shutil.copyfileobj(chunks, out, 1 << 20)
            out.write(end)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
        beside.with_suffix(".chunks").unlink(missing_ok=True)


_SHORTEST = 200  # characters of a completion that are always left


def _generation(run: Run, number: int, step: int, file: Path, limit: int | None) -> tuple[dict[str, Any], str] | None:
    records = payload.read_generation(file)
    if records is None:
        return None
    groups = payload.groups_of(records, run.group_size)
    text = block(f"{number}-{step}", payload.packed(payload.chunk_of(groups, limit)))
    return {"step": step, **payload.summary_of(groups)}, text


def _lengths(groups: Sequence[Sequence[dict[str, Any]]]) -> list[int]:
    return [sum(len(s["text"]) for s in record.get("segments") or ()) for group in groups for record in group]


def _sample(runs: Sequence[Run], files: Sequence[Sequence[tuple[int, Path]]]) -> list[list[list[dict[str, Any]]]]:
    """The groups of some generations, spread over all of them."""
    every = [(run, file) for run, saved in zip(runs, files, strict=True) for _, file in saved]
    chosen = every[:: max(len(every) // _SAMPLED, 1)]
    return [
        payload.groups_of(records, run.group_size) for run, file in chosen if (records := payload.read_generation(file))
    ]


def _longest(runs: Sequence[Run], files: Sequence[Sequence[tuple[int, Path]]]) -> int:
    return max((n for groups in _sample(runs, files) for n in _lengths(groups)), default=_SHORTEST)


def _first_limit(runs: Sequence[Run], files: Sequence[Sequence[tuple[int, Path]]], room: float) -> int | None:
    """The characters that a completion may have so that all of them fit, judged by a sample; None: all fit whole."""
    sample = _sample(runs, files)
    if not sample:
        return None
    share = sum(map(len, files)) / len(sample)
    packed = sum(len(payload.packed(payload.chunk_of(groups))) * 4 / 3 for groups in sample) * share
    if packed <= 0.9 * room:
        return None
    lengths = [n for groups in sample for n in _lengths(groups)]
    wanted = sum(lengths) * 0.9 * room / packed
    low, high = _SHORTEST, max(lengths)
    while low < high:  # the longest limit under which the characters that are left are no more than wanted
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(n, middle) for n in lengths) <= wanted else (low, middle - 1)
    return low
