"""How a run is launched: a file for ``accelerate launch --config_file``, as far as a plan depends on it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from . import yaml12
from .errors import RecipeError, UserError


@dataclass(frozen=True)
class Launch:
    """A file for ``accelerate launch --config_file``, as far as memory depends on it."""

    file: str | None = None
    processes: int = 1
    stage: int = 0
    deepspeed: bool = False
    offload_states: bool = False
    offload_parameters: bool = False


def launch_for(path: str | os.PathLike, accelerate: str | None = None) -> Launch:
    """How a recipe is launched: with this file, or the one that its head names, or in one process.

    Raises:
        UserError: as of :func:`read_launch`.
    """
    named = accelerate or _named_in(path)
    return read_launch(named) if named else Launch()


def _named_in(path: str | os.PathLike) -> str | None:
    """The accelerate file that the comment at the head of a recipe launches it with, if it is there."""
    try:
        text = yaml12.text_of(path, "the recipe")
    except (RecipeError, TypeError):  # the recipe's own reader says what is wrong with it
        return None
    head = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    found = re.search(r"--config_file[ =](\S+)", head)
    return found[1] if found and Path(found[1]).is_file() else None


def read_launch(file: str) -> Launch:
    """A file for ``accelerate launch --config_file``.

    Raises:
        UserError: if it cannot be read, or says what cannot be estimated.
    """
    try:
        given = yaml12.load(yaml12.text_of(file, "the file"))
        given = given if isinstance(given, Mapping) else {}
        kind, inside = str(given.get("distributed_type", "NO")), given.get("deepspeed_config") or {}
        if other := inside.get("deepspeed_config_file"):
            zero = json.loads(yaml12.text_of(Path(file).parent / other, "the file")).get("zero_optimization", {})
            inside = {"zero_stage": zero.get("stage", 0)} | {
                f"offload_{what}_device": (zero.get(f"offload_{what}") or {}).get("device", "none")
                for what in ("optimizer", "param")
            }
        offloads = {what: inside.get(f"offload_{what}_device", "none") != "none" for what in ("optimizer", "param")}
        processes, stage = int(given.get("num_processes", 1)), int(inside.get("zero_stage", 0))
    except (RecipeError, yaml.YAMLError, ValueError, OverflowError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"--accelerate {file} cannot be read: {' '.join(str(error).split())[:200]}") from error
    if kind == "FSDP" or stage > 3 or processes < 1:
        raise UserError(f"--accelerate {file}: {kind}, stage {stage}, {processes} processes cannot be estimated; a "
                        "plan knows one process, DDP (MULTI_GPU) and DeepSpeed's ZeRO stages")  # fmt: skip
    deepspeed = kind == "DEEPSPEED"
    return Launch(file, processes, stage if deepspeed else 0, deepspeed, offloads["optimizer"], offloads["param"])
