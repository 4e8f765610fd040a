"""The keys of a recipe for a terminal: what each takes, its default, what it means (``prefix-rl keys``)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import methods
from .errors import RecipeError, nearest
from .fields import REQUIRED, Field, dataclass_in, describe, fields_of, listed_in, said
from .includes import INCLUDE
from .methods.base import Method
from .recipe import BLOCKS, model_fields, training_fields

_METHODS = methods.names()


def shown(default: Any) -> str:
    """A default as a table has it."""
    if default is REQUIRED:
        return "required"
    if default is None or dataclasses.is_dataclass(default) or default in ((), {}, ""):
        return ""
    return f"`{default if isinstance(default, str | Path) else json.dumps(default)}`"


def keys(wanted: str | None = None) -> list[tuple[str, ...]]:
    """Rows for a table: the blocks and the methods; or the keys of a block or a method; or one key.

    Args:
        wanted: None, ``data``, ``training.beta``, ``prefix_rft`` (or ``method.prefix_rft``), ``data.lab.world``.

    Raises:
        RecipeError: if there is nothing of that name, with the nearest one.
    """
    if wanted is None:
        rows = [(block, _said_of(block)) for block in (*BLOCKS, INCLUDE)]
        return [("block", "meaning"), *rows, *((f"method.{name}", _first(methods.find(name))) for name in _METHODS)]
    if wanted == "method":
        return [("method", "meaning"), *((name, _first(methods.find(name))) for name in _METHODS)]
    every = {block: _keys_of(block) for block in BLOCKS if block != "method"}
    every |= {name: _flat(fields_of(methods.find(name), docs=True), "") for name in _METHODS}
    name = wanted.removeprefix("method.")
    block, _, key = name.partition(".")
    found = every.get(block)
    if found is None and (having := [method for method in _METHODS if name in every[method]]):
        raise RecipeError(f"{wanted} is a setting of {', '.join(having)}: `prefix-rl keys {having[0]}.{name}`")
    if found is None:
        there = [*every, *(f"{b}.{k}" for b, ks in every.items() for k in ks)]
        raise RecipeError(
            f"{wanted}: no such block{nearest(name, there)}; there are {', '.join(BLOCKS)}, and the methods "
            f"{', '.join(_METHODS)}"
        )
    chosen = {k: f for k, f in found.items() if not key or k == key or k.startswith(f"{key}.")}
    if key and not chosen:
        raise RecipeError(f"{wanted}: no such key{nearest(key, found)}; `prefix-rl keys {block}` lists all of them")
    rows = [(k, describe(f.type), shown(f.default).strip("`"), said(f.doc)) for k, f in chosen.items()]
    return [("key", "takes", "default", "meaning"), *rows]


def _keys_of(block: str) -> dict[str, Field]:
    if block == "model":
        return _flat(model_fields(docs=True), "")
    return training_fields() if block == "training" else _flat(fields_of(BLOCKS[block], docs=True), "")


def _flat(fields: Mapping[str, Field], at: str) -> dict[str, Field]:
    """The keys of a block and of the blocks inside, by their full names in it."""
    found: dict[str, Field] = {}
    for name, f in fields.items():
        found[f"{at}{name}"] = f
        if inner := dataclass_in(f.type) or listed_in(f.type):
            found |= _flat(fields_of(inner, docs=True), f"{at}{name}.") if inner is not Method else {}
    return found


def _said_of(block: str) -> str:
    others = {
        "model": "The policy to train: where it is, its adapters and quantization.",
        "method": "The method: `name`, and the settings of that method.",
        "training": "The fields of TRL's GRPOConfig by their own names, and kl_on.",
        INCLUDE: "A file, or a list of files, whose values hold where this recipe says nothing.",
    }
    return others.get(block) or _first(BLOCKS[block])


def _first(cls: type) -> str:
    """The first sentence of a class's docstring."""
    return said(" ".join((cls.__doc__ or "").split("\n\n")[0].split()))
