"""The plan of a ladder: its file, checked; its arms, regimes and search; the recipe of each run."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge

from ..errors import RecipeError, UserError, nearest
from ..fields import check, fields_of
from ..recipe import LAB, Recipe, load_recipe, read_yaml


class Cell(NamedTuple):
    """A place in the tables: one arm in one regime."""

    arm: str
    regime: str


@dataclass(frozen=True)
class Collect:
    """Traces that the policy collects itself before it is trained (``prefix-rl collect``)."""

    k: Annotated[int, Ge(1)] | None = None
    """Attempts at every problem; null: as `prefix-rl collect` without --k."""
    wanted: Annotated[int, Ge(1)] = 1
    """Right traces wanted for a problem that is rarely solved."""
    cap: Annotated[int, Ge(1)] | None = None
    """Attempts at most; null: as `prefix-rl collect` without --cap."""


@dataclass(frozen=True)
class Arm:
    """One way to train: a recipe and its settings."""

    recipe: str
    """The recipe, relative to the ladder's file."""
    set: dict = field(default_factory=dict)
    """``block.key: value`` on top of it."""
    tuned_as: str | None = None
    """Take the settings that the search chose for this other arm."""
    regimes: tuple[str, ...] | None = None
    """The regimes to run in; null: all."""
    collect: Collect | None = None
    """This arm learns from traces of the policy's own, in whatever regime; their cost is charged to it."""


@dataclass(frozen=True)
class Regime:
    """A question, and the settings in which it is asked."""

    question: str
    """The question that this regime decides."""
    set: dict = field(default_factory=dict)
    """``block.key: value`` for all arms."""
    demonstrations: dict = field(default_factory=dict)
    """``block.key: value`` for the arms that use demonstrations."""
    collect: Collect | None = None
    """The demonstrations are the policy's own traces, and their cost is charged."""
    arms: tuple[str, ...] | None = None
    """The arms that run in it; null: all."""
    tuned_in: str | None = None
    """The regime of the search whose settings hold here; null: this one if it is searched, else the first."""


@dataclass(frozen=True)
class Search:
    """The search by which settings are chosen."""

    tries: dict
    """Lists of settings to try (``block.key: value``), by arm; equally many for each."""
    regimes: tuple[str, ...]
    """Regimes in which they are tried. In other regimes the settings chosen in the first of these hold."""
    seed: int = 1000
    """Seed of the runs that search; none of ``seeds``."""
    set: dict = field(default_factory=dict)
    """``block.key: value`` for the runs that search, such as other held-out problems."""


@dataclass(frozen=True)
class Fast:
    """A small form of the ladder, without a search."""

    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] | None = None
    regimes: tuple[str, ...] | None = None
    set: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Ladder:
    """A ladder whose every value has been checked."""

    output: str
    """The folder of the runs and of the tables."""
    seeds: tuple[int, ...]
    """Seeds; each arm runs once with each."""
    arms: dict
    """Arms, by their names."""
    regimes: dict
    """Regimes, by their names."""
    set: dict = field(default_factory=dict)
    """``block.key: value`` for every run."""
    levels: dict = field(default_factory=dict)
    """Further held-out problems by name, each ``block.key: value`` that leads to them."""
    against: tuple[str, ...] = ()
    """Arms that all others are compared with."""
    search: Search | None = None
    fast: Fast | None = None
    home: Path = Path()
    """The folder of the ladder's file, which its recipes are relative to; no key of the file."""

    def cells(self) -> list[Cell]:
        """The arms in the regimes that they take part in, regime by regime."""
        return [Cell(arm, regime) for regime in self.regimes for arm in self.arms if self.has(Cell(arm, regime))]

    def has(self, cell: Cell) -> bool:
        """True if the arm takes part in the regime."""
        regimes, arms = self.arms[cell.arm].regimes, self.regimes[cell.regime].arms
        return (regimes is None or cell.regime in regimes) and (arms is None or cell.arm in arms)

    def recipe(self, arm: str) -> Path:
        """The file of an arm's recipe."""
        return self.home / self.arms[arm].recipe

    def collect(self, cell: Cell) -> Collect | None:
        """The traces that an arm collects for a regime: its own, or those of the regime."""
        return self.arms[cell.arm].collect or self.regimes[cell.regime].collect

    def overrides(self, cell: Cell, seed: int, settings: Mapping[str, Any]) -> list[str]:
        """Overrides of one run to its recipe; of two values for a key the later one holds.

        Raises:
            RecipeError: if the recipe with these values is none.
        """
        arm, regime = self.arms[cell.arm], self.regimes[cell.regime]
        common = {**self.set, **regime.set, **arm.set, **settings}
        recipe = load_recipe(self.recipe(cell.arm), as_overrides(common))
        if recipe.uses_demonstrations:
            common = {**self.set, **regime.set, **regime.demonstrations, **arm.set, **settings}
            if self.collect(cell):
                # the arms of a regime share its traces, an arm's own are its own
                store = f"{cell.regime}-{cell.arm}" if arm.collect else cell.regime
                common["data.traces"] = str(Path(self.output) / "traces" / f"{store}-seed{seed}")
        common["training.seed"] = seed
        if recipe.data.train == LAB:
            common["data.lab.seed"] = seed
        return as_overrides(common)


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """``block.key: value`` as the commands take it, ``block.key=value``."""
    return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


# --- reading ----------------------------------------------------------------------------------------------------------


def load_ladder(path: str | os.PathLike, fast: bool = False) -> Ladder:
    """The ladder in a YAML file.

    Raises:
        RecipeError: with every fault of the file, and of every recipe that it makes.
    """
    keys = {name: field for name, field in fields_of(Ladder).items() if name != "home"}
    values, wrong = check("ladder", read_yaml(path), keys)
    faults = [f"{name.removeprefix('ladder.')}: {what}" for name, what in wrong.items()]
    blocks = {"arms": Arm, "regimes": Regime}
    for block, cls in blocks.items():
        made = {}
        for name, content in (values.get(block) or {}).items():
            inner, wrong = check(f"{block}.{name}", content, fields_of(cls))
            faults += [f"{key}: {what}" for key, what in wrong.items()]
            if not wrong:
                made[str(name)] = cls(**inner)
        values[block] = made
    refuse(path, faults or _contradictions(values))
    ladder = Ladder(**values, home=Path(path).parent)
    if fast:
        ladder = _fast(path, ladder)
    refuse(path, _faults_of_runs(ladder))
    return ladder


def refuse(path: str | os.PathLike, faults: Sequence[str]) -> None:
    """Refuses a ladder's file.

    Raises:
        RecipeError: with these faults, each once, if there are any.
    """
    if faults:
        faults = list(dict.fromkeys(faults))
        count = f"{len(faults)} problem{'s' if len(faults) > 1 else ''}"
        raise RecipeError(f"{os.fspath(path)}: {count}, nothing was started", faults)


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    faults, arms, regimes, search = [], values["arms"], values["regimes"], values.get("search")
    seeds, fast = list(values["seeds"]), values.get("fast")
    chosen = {"arms": arms, "regimes": regimes, "seeds": seeds}
    if fast:
        chosen |= {"fast.seeds": list(fast.seeds), "fast.arms": fast.arms, "fast.regimes": fast.regimes}
    faults += [f"{what}: give at least one" for what, given in chosen.items() if given is not None and not given]
    faults += [
        f"{what}: {seed} stands twice; a run is counted once"
        for what in ("seeds", "fast.seeds")
        for seed in set(chosen.get(what, ()))
        if chosen[what].count(seed) > 1
    ]

    def known(where: str, names: Sequence[str], there: Mapping[str, Any], what: str) -> None:
        for name in names:
            if name not in there:
                faults.append(f"{where}: no {what} {name}{nearest(name, there)}; there are {', '.join(there)}")

    known("against", values["against"], arms, "arm")
    for name, arm in arms.items():
        known(f"arms.{name}.tuned_as", [arm.tuned_as] if arm.tuned_as else [], arms, "arm")
        known(f"arms.{name}.regimes", arm.regimes or (), regimes, "regime")
    if fast:
        known("fast.arms", fast.arms or (), arms, "arm")
        known("fast.regimes", fast.regimes or (), regimes, "regime")
    for name, regime in regimes.items():
        known(f"regimes.{name}.arms", regime.arms or (), arms, "arm")
        if regime.tuned_in and search:
            known(f"regimes.{name}.tuned_in", [regime.tuned_in], dict.fromkeys(search.regimes), "searched regime")
    if search:
        known("search.tries", list(search.tries), arms, "arm")
        known("search.regimes", search.regimes, regimes, "regime")
        if search.seed in seeds:
            faults.append(f"search.seed = {search.seed} is one of seeds; settings would be chosen on a run that counts")
        counts = {name: len(tries) if isinstance(tries, list) else 0 for name, tries in search.tries.items()}
        if len(set(counts.values())) > 1 or 0 in counts.values():
            faults.append(f"search.tries: every arm gets the same number of tries, given {counts}")
    return faults


def _fast(path: str | os.PathLike, ladder: Ladder) -> Ladder:
    if ladder.fast is None:
        raise RecipeError(f"{os.fspath(path)} has no block fast")
    fast = ladder.fast
    arms = {name: arm for name, arm in ladder.arms.items() if fast.arms is None or name in fast.arms}
    regimes = {name: r for name, r in ladder.regimes.items() if fast.regimes is None or name in fast.regimes}
    return dataclasses.replace(
        ladder,
        output=f"{ladder.output}-fast",
        seeds=fast.seeds,
        arms=arms,
        regimes=regimes,
        set={**ladder.set, **fast.set},
        against=tuple(a for a in ladder.against if a in arms),
        search=None,
    )


def _faults_of_runs(ladder: Ladder) -> list[str]:
    """Faults of the recipes, and settings by which two arms of a regime would not be comparable, in words."""
    faults: list[str] = []
    references: dict[str, tuple[str, dict]] = {}
    for cell in ladder.cells():
        searched = ladder.search is not None and cell.regime in ladder.search.regimes
        for settings in [{}, *(ladder.search.tries.get(cell.arm, ()) if searched else ())]:
            try:
                overrides = ladder.overrides(cell, ladder.seeds[0], settings)
                recipe = load_recipe(ladder.recipe(cell.arm), overrides)
            except UserError as error:
                faults += [f"{cell.arm} in {cell.regime}: {what}" for what in error.faults or [error.what]]
                continue
            if recipe.method.stages.own_traces and not ladder.collect(cell):
                faults.append(f"arms.{cell.arm}: {recipe.method_name} learns from own traces; give it `collect: {{}}`")
            shared = _shared(recipe, own=ladder.arms[cell.arm].collect is not None)
            other, theirs = references.setdefault(cell.regime, (cell.arm, shared))
            faults += [
                f"{cell.arm} in {cell.regime}: {key} = {json.dumps(shared[key])}, but {other} has "
                f"{json.dumps(theirs[key])}; arms are compared on the same data, evaluation and budget"
                for key in shared
                if key in theirs and shared[key] != theirs[key]
            ]
    return faults


_OF_DEMONSTRATIONS = ("data.traces", "data.demonstration_share", "data.answer_guard", "data.lab.demonstrations",
                      "data.lab.garbled", "data.lab.demonstrated")  # fmt: skip


def _shared(recipe: Recipe, own: bool) -> dict[str, Any]:
    """Settings that all arms of a regime must share, by full name; ``own``: the arm has traces of its own."""
    blocks = recipe.resolved()
    blocks["data"]["lab"] = dataclasses.asdict(recipe.world)
    flat = dict(_flat({name: blocks[name] for name in ("model", "data", "reward", "budget", "evaluation")}))
    flat["training.max_completion_length"] = recipe.training_value("max_completion_length")
    if own or not recipe.uses_demonstrations:
        flat = {key: value for key, value in flat.items() if key not in _OF_DEMONSTRATIONS}
    return flat


def _flat(value: Any, at: str = ""):
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{at}.{key}" if at else str(key))
    else:
        yield at, value
