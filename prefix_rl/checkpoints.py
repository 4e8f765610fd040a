"""Checkpoints: marked when they are whole, with the facts of the run that they belong to.

A checkpoint is many files, written by several processes. Only when all of them are there does rank 0 add a last one,
``prefix_rl.json``, with the size of every file and the facts of the run. A folder without it, or with a file of another
size, was cut off; it is set aside and never continued from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .parts import PARTIAL, write_text

MARK = "prefix_rl.json"
FINAL = "final"
"""The folder of a finished policy, inside a run's."""
_FOLDER = re.compile(r"checkpoint-(\d+)")
_FREE_TO_CHANGE = ("reward", "budget", "speed", "engine", "evaluation", "output", "safety")
_FREE_TRAINING_KEYS = {
    "save_steps", "save_total_limit", "save_strategy", "logging_steps", "logging_strategy", "logging_first_step",
    "report_to", "run_name", "disable_tqdm", "eval_steps", "eval_strategy", "eval_on_start", "project", "log_level",
    "per_device_eval_batch_size", "num_generations_eval", "dataloader_num_workers", "dataloader_pin_memory",
}  # fmt: skip


def mark_whole(folder: Path, facts: Mapping[str, Any]) -> None:
    """Declares a checkpoint whole. The mark appears whole."""
    sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    sizes.pop(MARK, None)
    sizes.pop(MARK + PARTIAL, None)
    write_text(folder / MARK, json.dumps({**facts, "files": sizes}, indent=1))


def facts_of(folder: Path) -> dict[str, Any] | None:
    """The facts of a whole checkpoint, None if it is not whole."""
    try:
        facts = json.loads((folder / MARK).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in facts["files"].items())
    except (OSError, ValueError, KeyError):
        return None
    return facts if whole else None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, oldest first."""
    found = [p for p in run.glob("checkpoint-*") if p.is_dir() and _FOLDER.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(_FOLDER.fullmatch(p.name)[1]))


def last_whole(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, None if there is none."""
    return next((p for p in reversed(checkpoints(run)) if facts_of(p)), None)


def set_aside_incomplete(run: Path) -> list[Path]:
    """Renames the checkpoints that were cut off to ``incomplete-N``; returns their new names."""
    moved = []
    for folder in checkpoints(run):
        if facts_of(folder) is None:
            target = run / folder.name.replace("checkpoint", "incomplete")
            for n in range(1, 1000):
                if not target.exists():
                    break
                target = run / f"{folder.name.replace('checkpoint', 'incomplete')}.{n}"
            moved.append(folder.rename(target))
    return moved


def check_continues(folder: Path, now: Mapping[str, Any]) -> None:
    """Checks that a run with the facts ``now`` would go on exactly as the one that wrote the checkpoint.

    The number of steps may change if no schedule hangs on it.

    Raises:
        CheckpointError: naming every difference.
    """
    then = facts_of(folder)
    if then is None:
        raise CheckpointError(f"{folder} is not a whole checkpoint of prefix-rl")
    faults = []
    if then["world_size"] != now["world_size"]:
        faults.append(
            f"it was written by {then['world_size']} processes, now there are {now['world_size']}; the optimizer's "
            "shards and the sampling noise belong to that number"
        )
    if then.get("data") != now.get("data"):
        faults.append("the training data has changed since (another hash)")
    for key, old, new in _differences(_relevant(then.get("recipe")), _relevant(now.get("recipe"))):
        why = _span_the_run(now["recipe"]) if key == "training.max_steps" else []
        if key != "training.max_steps" or why:
            faults.append("; ".join([f"{key} was {json.dumps(old)}, now {json.dumps(new)}", *why]))
    if faults:
        raise CheckpointError(
            f"{folder} cannot be continued by this run. Undo the changes, or start anew in another output.dir:",
            faults,
        )


_CONSTANT = ("constant", "constant_with_warmup")


def _span_the_run(recipe: Mapping[str, Any]) -> list[str]:
    """The schedules of a recipe that end with the run, in words: its steps so far would have been others."""
    training, found = recipe.get("training", {}), []
    kind = training.get("lr_scheduler_type", "linear")
    if kind not in _CONSTANT:
        found.append(
            f"training.lr_scheduler_type = {kind} falls until the last step ({' and '.join(_CONSTANT)} do not)"
        )
    if training.get("warmup_ratio") or 0 < (training.get("warmup_steps") or 0) < 1:
        found.append("the warm-up is a share of the steps")
    at, block = "method", recipe.get("method")
    while isinstance(block, Mapping):
        if block.get("horizon", 0) is None:
            found.append(f"{at}.horizon = null is a schedule over all steps (a number is not)")
        at, block = f"{at}.of", block.get("of")
    return found


def _relevant(recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    kept = {block: value for block, value in (recipe or {}).items() if block not in _FREE_TO_CHANGE}
    kept["training"] = {k: v for k, v in kept.get("training", {}).items() if k not in _FREE_TRAINING_KEYS}
    return json.loads(json.dumps(kept))  # as it reads back: tuples are lists


def _differences(old: Any, new: Any, at: str = ""):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield at, old, new
