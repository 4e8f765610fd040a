"""The runs of a ladder: which there are, by which settings, and what each has left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe import load_recipe
from .plan import Cell, Collect, Ladder

RESULT = "result.json"


@dataclass(frozen=True)
class Job:
    """One run of the ladder."""

    cell: Cell
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    folder: Path
    levels: Mapping[str, Mapping[str, Any]]
    trial: int | None = None  # which try of a search
    collect: Collect | None = None
    traces: str | None = None

    @property
    def name(self) -> str:
        """Name of the run, for people."""
        what = f"try {self.trial}" if self.trial is not None else f"seed {self.seed}"
        return f"{self.cell.arm}/{self.cell.regime} {what}"

    def described(self) -> str:
        """The job as JSON, for the process that does it."""
        return json.dumps({**dataclasses.asdict(self), "folder": str(self.folder)})

    @classmethod
    def of(cls, described: str) -> Job:
        """The job that :meth:`described` describes."""
        given = json.loads(described)
        collect = given["collect"] and Collect(**given["collect"])
        made = {"cell": Cell(*given["cell"]), "folder": Path(given["folder"]), "overrides": tuple(given["overrides"])}
        return cls(**{**given, **made, "collect": collect})

    def result(self) -> dict[str, Any] | None:
        """The result that the run left, None if it is not finished."""
        try:
            found = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None


def _job(ladder: Ladder, cell: Cell, seed: int, settings: Mapping[str, Any], trial: int | None = None) -> Job:
    if trial is not None:
        settings = {**settings, **ladder.search.set}
    overrides = ladder.overrides(cell, seed, settings)
    recipe = load_recipe(ladder.recipe(cell.arm), overrides)
    resolved = recipe.resolved()
    del resolved["output"], resolved["speed"], resolved["safety"]  # none changes what is learned
    identity = json.dumps([resolved, ladder.levels], sort_keys=True, default=str)
    asked = ladder.collect(cell) if recipe.data.traces else None
    if asked:
        identity += json.dumps(dataclasses.asdict(asked))
    short = hashlib.sha256(identity.encode()).hexdigest()[:10]
    folder = Path(ladder.output) / "runs" / f"{cell.arm}-seed{seed}-{short}"
    return Job(
        cell=cell,
        seed=seed,
        recipe=str(ladder.recipe(cell.arm)),
        overrides=(*overrides, f"output.dir={json.dumps(str(folder))}"),
        folder=folder,
        levels=ladder.levels,
        trial=trial,
        collect=asked,
        traces=recipe.data.traces,
    )


def search_jobs(ladder: Ladder) -> dict[Cell, list[Job]]:
    """The runs of the search, for each cell that it looks at."""
    if ladder.search is None:
        return {}
    seed, places = ladder.search.seed, (
        Cell(arm, regime) for regime in ladder.search.regimes for arm in ladder.search.tries
    )  # fmt: skip
    return {
        cell: [_job(ladder, cell, seed, settings, n) for n, settings in enumerate(ladder.search.tries[cell.arm])]
        for cell in places
        if ladder.has(cell)
    }


def chosen_settings(ladder: Ladder, searched: Mapping[Cell, Sequence[Job]]) -> dict[Cell, dict]:
    """The settings of the best try, for each cell that was searched. The first of equals wins."""
    best = {}
    for cell, jobs in searched.items():
        scores = [-1.0 if (result := job.result()) is None else result["accuracy"] for job in jobs]
        best[cell] = ladder.search.tries[cell.arm][max(range(len(jobs)), key=lambda i: (scores[i], -i))]
    return best


def settings_for(ladder: Ladder, chosen: Mapping[Cell, dict], cell: Cell) -> dict:
    """The settings that an arm runs with in a regime."""
    if ladder.search is None:
        return {}
    return chosen.get(tuned_in(ladder, chosen, cell), {})


def tuned_in(ladder: Ladder, searched: Mapping[Cell, Any], cell: Cell) -> Cell | None:
    """The cell of the search whose settings hold in a cell."""
    tuned = ladder.arms[cell.arm].tuned_as or cell.arm
    places = (ladder.regimes[cell.regime].tuned_in or cell.regime, *ladder.search.regimes)
    return next((found for place in places if (found := Cell(tuned, place)) in searched), None)


def final_jobs(ladder: Ladder, chosen: Mapping[Cell, dict]) -> list[Job]:
    """The runs that count: seed by seed, so that a ladder that is stopped has whole comparisons."""
    return [
        _job(ladder, cell, seed, settings_for(ladder, chosen, cell)) for seed in ladder.seeds for cell in ladder.cells()
    ]


def by_seed(jobs: Sequence[Job], seeds: Sequence[int], pick: Callable[[dict], list[float]]) -> list[list[float]] | None:
    """``pick`` of every seed's result, in the order of the seeds; None if a seed is missing."""
    found = {job.seed: job.result() for job in jobs}
    if any(found.get(seed) is None for seed in seeds):
        return None
    return [pick(found[seed]) for seed in seeds]
