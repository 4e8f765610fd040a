"""``include``: a recipe that starts from others and says only what is different.

The files that a recipe includes are read first, in their order, each with what it includes itself; then come the values
of the recipe. Blocks are merged key by key; of two values for a key the later one holds, lists and texts whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import yaml12
from .errors import RecipeError, nearest

INCLUDE = "include"
"""The key beside the blocks under which a recipe names others."""
DEEPEST = 16
"""Number of files that may stand within one another."""


@dataclass
class Given:
    """Values of a recipe with those that it includes, and where each one stands."""

    values: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    """The file of each value, by the value's full name (``training.beta``)."""
    root: Path | None = None
    """The file that was asked for; None if the values stood in none."""

    def add(self, later: Given) -> None:
        """Puts other values on top of these."""
        _merge(self.values, later.values)
        self.files |= later.files

    def placed(self, faults: Sequence[str], overrides: Sequence[str] = ()) -> list[str]:
        """The faults, each with file and line of the value that it begins with, where a recipe includes others.

        Values that an override has set stand in no file.
        """
        if all(file == self.root for file in self.files.values()):
            return list(faults)
        set_later = tuple(text.partition("=")[0].strip().removeprefix("--") for text in overrides)
        return [f"{fault}{self._place(fault, set_later)}" for fault in faults]

    def _place(self, fault: str, set_later: Sequence[str]) -> str:
        name = re.match(r"\w*(?:\.\w+)*", fault)[0]
        if name not in self.files or any(f"{name}.".startswith(f"{key}.") for key in set_later):
            return ""
        file = self.files[name]
        line = yaml12.line_of(file, name.split("."))
        return f" (in {file}{f', line {line}' if line else ''})"


def read(path: str | os.PathLike, blocks: Collection[str]) -> Given:
    """The values in a recipe's file and in those that it includes.

    Raises:
        RecipeError: if a file is not there, is no YAML, or includes itself; with the lines that lead there.
    """
    found = _read(Path(path), blocks, [], {})
    return Given(found.values, found.files, Path(path))


def _read(path: Path, blocks: Collection[str], chain: list[str], known: dict[Path, Given]) -> Given:
    """``chain``: the places that led here; ``known``: files that were read whole, so that each is read once."""
    values = yaml12.read(path, blocks)
    found, wanted = Given(), values.pop(INCLUDE, ())
    names = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
        line = yaml12.line_of(path, [INCLUDE])
        raise RecipeError(f"{path}, line {line}: include must be the name of a file, or a list of such names", chain)
    known[path.resolve()] = None  # it is being read: who includes it now closes a circle
    for number, name in enumerate(names):
        keys = [INCLUDE] if isinstance(wanted, str) else [INCLUDE, number]
        file, line = path.parent / os.path.expanduser(name), yaml12.line_of(path, keys)
        place = f"{path}, line {line}: include {name}"
        _refuse(place, file, chain, known)
        if known.get(file.resolve()) is None:
            _read(file, blocks, [*chain, place], known)
        found.add(known[file.resolve()])
    found.add(Given(values, _files(values, path)))
    known[path.resolve()] = found
    return found


def _refuse(place: str, file: Path, chain: Sequence[str], known: Mapping[Path, Given | None]) -> None:
    """Refuses a file that cannot be included here, with the places that led to it."""
    led = [f"which {there} led to" for there in reversed(chain)]
    if not os.path.isfile(file):
        there = [p.name for p in file.parent.glob("*.y*ml")] if os.path.isdir(file.parent) else []
        what = "is a folder" if os.path.isdir(file) else f"there is no such file{nearest(file.name, there)}"
        raise RecipeError(f"{place}: {what}; names are relative to the file that includes ({file})", led)
    if file.resolve() in known and known[file.resolve()] is None:
        raise RecipeError(f"{place}: it is being included already, so that it includes itself", led)
    if len(chain) >= DEEPEST - 1:
        raise RecipeError(f"{place}: more than {DEEPEST} files stand within one another", led[:3])


def _files(values: Mapping[str, Any], path: Path, within: str = "") -> dict[str, Path]:
    """The file of every value, and of every block, by full name."""
    found = {}
    for key, value in values.items():
        name = f"{within}{key}"
        found[name] = path
        if isinstance(value, Mapping):
            found |= _files(value, path, f"{name}.")
    return found


def _merge(values: dict[str, Any], later: Mapping[str, Any]) -> None:
    for key, value in later.items():
        if isinstance(value, Mapping):
            mine = values.get(key)
            values[key] = dict(mine) if isinstance(mine, Mapping) else {}
            _merge(values[key], value)
        else:
            values[key] = value
