"""The files that runs left in their folders: looked for and read, whatever became of the runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from .. import documents, yaml12
from ..errors import DataError
from ..evaluation.shape import shown_fault
from ..parts import Damaged
from ..status import DOING, State, read_status, state_of
from . import health

METRICS, CARD, RECIPE, FINAL, STORE, COLLECTED = (
    "metrics.jsonl", "evaluation.json", "recipe.yaml", "final", "store.json", "summary.json",
)  # fmt: skip
_MARKS = (METRICS, CARD, STORE, *(f"status.{doing}.json" for doing in DOING))
_DEPTH = 6


@dataclass(frozen=True)
class Run:
    """The files that a run left in its folder, read."""

    folder: Path
    name: str
    recipe: dict
    metrics: list[dict]
    evaluation: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Files, or parts of them, that could not be read, in words."""

    @cached_property
    def curves(self) -> dict[str, list[tuple[int, float]]]:
        """The points of every metric."""
        return health.curves_of(self.metrics)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, where it was logged."""
        points = [(m["step"], m[key]) for m in self.metrics if _is_number(m.get(key))]
        return [p[0] for p in points], [p[1] for p in points]

    def last(self, key: str, share: float = 0.1) -> float | None:
        """The mean of the last tenth of a metric's values, None if it was never logged."""
        values = self.series(key)[1]
        return fmean(values[-max(1, round(share * len(values))) :]) if values else None

    @property
    def step(self) -> int:
        """The last step that was logged."""
        return self.metrics[-1]["step"] if self.metrics else 0

    @property
    def method(self) -> str:
        """The name of its method; empty where no recipe says it."""
        return str(_block(self.recipe, "method").get("name", ""))

    @property
    def group_size(self) -> int | None:
        """Rollouts of one prompt; None where no recipe says it."""
        size = _block(self.recipe, "training").get("num_generations")
        return size if isinstance(size, int) and size > 0 else None

    @property
    def minutes(self) -> list[tuple[int, float]]:
        """``(step, minutes so far)``: what steps and evaluations took, added up over the log."""
        found, spent, before = [], 0.0, 0
        for line in self.metrics:
            if isinstance(took := line.get("step_time"), int | float) and took == took:
                spent += took * max(line["step"] - before, 0)
                before = line["step"]
            if isinstance(took := line.get("eval_runtime"), int | float) and took == took:
                spent += took
            found.append((line["step"], spent / 60))
        return found

    def findings(self) -> list[health.Finding]:
        """Warnings about its curves."""
        return health.check(self.curves, health.schedule_end(self.recipe))

    def state(self, now: float | None = None, unheard: Callable[[Path, float, float], float] | None = None) -> State:
        """State of its process; of a run that recorded none, the state that its files show.

        Args:
            now: seconds since the epoch; None: by the clock.
            unheard: the seconds since a sign of life, from a status's path, its ``beat`` and ``now``, where somebody
                has watched; None: by the clocks of both machines.
        """
        now = time.time() if now is None else now
        states = {}
        for doing in DOING:
            if (status := read_status(self.folder, doing)) is not None:
                heard = unheard and unheard(self.folder / doing, status.get("beat", now), now)
                states[status.get("beat", 0.0)] = state_of(status, now, heard)
        lives = [state for state in states.values() if state.name in ("running", "hangs")]
        unfinished = [state for state in states.values() if state.name != "ended"]
        if states:  # what goes on before what went wrong, and that before what is done
            return (lives or unfinished or [states[max(states)]])[0]
        if (self.folder / FINAL).is_dir() or self.evaluation or (self.folder / COLLECTED).is_file():
            return State("ended", "ended")
        return state_of(None, now)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _block(recipe: dict, name: str) -> dict:
    block = recipe.get(name)
    return block if isinstance(block, dict) else {}


def read_run(folder: Path, name: str | None = None) -> Run:
    """The run in a folder. What cannot be read is noted in it.

    Raises:
        DataError: if the folder holds none.
    """
    if not is_run(folder):
        raise DataError(f"{folder} is not the folder of a run: {_missing(folder)}")
    notes: list[str] = []
    recipe, card = _recipe(folder / RECIPE, notes), _card(folder / CARD, notes)
    lines, bad = [], 0
    text = _text(folder / METRICS, notes)
    for line in text.splitlines():
        found = documents.metrics_line(line)
        if found is None:
            bad += 1
        else:
            lines.append(found)
    if bad - (not text.endswith("\n")) > 0:  # the last line may just be being written
        notes.append(f"{METRICS}: {bad} lines cannot be read")
    return Run(folder, name or folder.resolve().name, recipe, lines, card, notes)


def _missing(folder: Path) -> str:
    if not folder.exists():
        return "it does not exist"
    return f"it has neither {METRICS} nor {CARD}" if folder.is_dir() else "it is a file"


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError as error:
        notes.append(f"{path.name}: {error.strerror or error}")
        return ""


def _recipe(path: Path, notes: list[str]) -> dict:
    text = _text(path, notes)
    try:
        found = yaml12.load(text) if text else {}
    except yaml.YAMLError as wrong:
        notes.append(f"{path.name}: {(str(wrong).splitlines() or ['cannot be read'])[0]}")
        return {}
    if not isinstance(found, dict):
        notes.append(f"{path.name} holds no mapping")
        return {}
    return found


def _card(path: Path, notes: list[str]) -> dict:
    if not os.path.lexists(path):
        return {}
    try:
        found = documents.read(path, dict[str, Any])
        wrong = shown_fault(found)
    except Damaged as error:
        wrong = str(error)
    if wrong:
        notes.append(f"{path.name}: {wrong}")
    return {} if wrong else found


def is_run(folder: Path) -> bool:
    """True if a folder holds a run, an evaluation or a collection."""
    return folder.is_dir() and any((folder / name).is_file() for name in _MARKS)


def find_runs(folders: Sequence[Path], or_none: bool = False) -> list[Path]:
    """The folders of runs among ``folders``, and of those that are no run themselves, the runs below them.

    A run's own parts (checkpoints, a supervised stage) are not runs.

    Args:
        folders: where to look.
        or_none: whether a folder may hold none yet.

    Raises:
        DataError: naming every folder in which there is none.
    """
    found: list[Path] = []
    empty = []
    for folder in folders:
        below = [folder] if is_run(folder) else _below(folder, _DEPTH) if folder.is_dir() else []
        if not below:
            empty.append(f"{folder} is not the folder of a run, nor of runs: {_missing(folder)}")
        found += below
    if empty and not or_none:
        raise DataError(empty[0] if len(empty) == 1 else "there are no runs here:", empty[1:] and empty)
    return list({path.resolve(): path for path in found}.values())


def _below(folder: Path, depth: int) -> list[Path]:
    found = []
    for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if is_run(inner):
            found.append(inner)
        elif depth > 1:
            found += _below(inner, depth - 1)
    return found


def short_names(folders: Sequence[Path]) -> list[str]:
    """Names of the folders: for each the shortest end of its path that no other one has.

    >>> short_names([Path("/a/prefix_rft"), Path("/b/prefix_rft"), Path("/b/dr_grpo")])
    ['a/prefix_rft', 'b/prefix_rft', 'dr_grpo']
    """
    parts = [path.resolve().parts for path in folders]
    names = []
    for i, own in enumerate(parts):
        others = [other for j, other in enumerate(parts) if j != i]
        length = 1
        while length < len(own) and any(other[-length:] == own[-length:] for other in others):
            length += 1
        names.append("/".join(own[-length:]).replace("//", "/"))
    return names


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders or below them, under names that tell them apart.

    Raises:
        DataError: naming every folder in which there is none.
    """
    found = find_runs(folders)
    return [read_run(folder, name) for folder, name in zip(found, short_names(found), strict=True)]


def flat(recipe: dict[str, Any], before: str = "") -> dict[str, str]:
    """A recipe's settings by their dotted names.

    >>> flat({"method": {"name": "dr_grpo"}, "training": {"beta": 0.0, "report_to": []}})
    {'method.name': 'dr_grpo', 'training.beta': '0.0', 'training.report_to': '[]'}
    """
    found = {}
    for key, value in recipe.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found
