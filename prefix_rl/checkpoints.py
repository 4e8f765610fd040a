"""Checkpoints: marked when they are whole, with the facts of the run that they belong to.

A checkpoint is many files, written by several processes. Only when all of them are there does rank 0 add a last one,
``prefix_rl.json``, with size and hash of every file and the facts of the run. A folder without it was cut off, and one
with a file of another size or content is damaged; it is set aside and never continued from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import documents
from .costs import Cost
from .errors import CheckpointError
from .parts import PARTIAL, Damaged, places_of, write_text
from .progress import say

MARK = "prefix_rl.json"
_STATE = "trainer_state.json"
REFERENCE = "reference.safetensors"
"""The reference model of a run that moves it, in a checkpoint."""
FINAL = "final"
"""The folder of a finished policy, inside a run's."""
_FOLDER = re.compile(r"checkpoint-(\d+)")
_FREE_TO_CHANGE = ("reward", "budget", "speed", "engine", "evaluation", "output", "safety")
_FREE_TRAINING_KEYS = {
    "save_steps", "save_total_limit", "save_strategy", "logging_steps", "logging_strategy", "logging_first_step",
    "report_to", "run_name", "disable_tqdm", "eval_steps", "eval_strategy", "eval_on_start", "project", "log_level",
    "per_device_eval_batch_size", "num_generations_eval", "dataloader_num_workers", "dataloader_pin_memory",
}  # fmt: skip


_SHAPE = {
    "files": dict[str, int], "sha256": dict[str, str] | None, "step": int | None, "world_size": int, "data": str | None,
    "recipe": dict[str, Any] | None, "cost": dict[str, float] | None,
}  # fmt: skip


def mark_whole(folder: Path, facts: Mapping[str, Any]) -> None:
    """Declares a checkpoint whole. The mark appears whole."""
    files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
    files = {name: p for name, p in files.items() if name not in (MARK, MARK + PARTIAL)}
    sizes = {name: p.stat().st_size for name, p in files.items()}
    write_text(folder / MARK, json.dumps({**facts, "files": sizes, "sha256": _hashes(files)}, indent=1))


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """A hash of each file; of a large one of 16 places of 1 MiB: the weights of another step or run differ there."""
    found = {}
    for name, path in files.items():
        digest = hashlib.sha256()
        for part in places_of(path):
            digest.update(part)
        found[name] = digest.hexdigest()
    return found


def _read(folder: Path) -> dict[str, Any]:
    """The mark of a checkpoint all of whose files are there, with their sizes.

    Raises:
        Damaged: saying what is not.
    """
    mark = folder / MARK
    if not os.path.lexists(mark):
        raise Damaged(mark, f"it was cut off: it has no {MARK}, which is written last")
    try:
        facts = documents.read(mark, _SHAPE)
    except Damaged as error:
        raise Damaged(mark, f"{MARK} is damaged: {error}") from error
    named = _FOLDER.fullmatch(folder.name)
    if named and facts.get("step") is not None and facts["step"] != int(named[1]):
        raise Damaged(mark, f"it was saved at step {facts['step']}")
    if other := sorted((facts.get("cost") or {}).keys() - Cost.__dataclass_fields__.keys()):
        raise Damaged(mark, f"{MARK} is damaged: no cost is called {other[0]}")
    for name, size in facts["files"].items():
        try:
            found = (folder / name).stat().st_size if (folder / name).is_file() else None
        except (OSError, ValueError):  # a name that no file can have
            found = None
        if found != size:
            raise Damaged(
                folder / name, f"{name} {'is missing' if found is None else f'has {found:,} bytes, not {size:,}'}"
            )
    return facts


def facts_of(folder: Path) -> dict[str, Any] | None:
    """The facts of a whole checkpoint, None if it is not whole: a file is missing, or has another size."""
    try:
        return _read(folder)
    except Damaged:
        return None


def _step_in(folder: Path, facts: Mapping[str, Any]) -> int | None:
    """The step that the trainer would go on from; that of the mark, if there is no state of a trainer."""
    if _STATE not in facts["files"] or facts.get("step") is None:
        return facts.get("step")
    try:
        return documents.read(folder / _STATE, {"global_step": int})["global_step"]
    except Damaged as error:
        raise Damaged(error.path, f"{_STATE} is damaged: {error}") from error


def fault_of(folder: Path) -> str | None:
    """Why a checkpoint is not what was saved, in words; None if it is. Unlike :func:`facts_of` this reads the files."""
    try:
        facts = _read(folder)
        found = _hashes({name: folder / name for name in facts.get("sha256") or ()})
        step = _step_in(folder, facts)
    except (Damaged, OSError, ValueError) as error:
        return str(error)
    if step != facts.get("step"):
        return f"{_STATE} is of step {step}"
    changed = [name for name, digest in found.items() if digest != facts["sha256"][name]]
    return f"{', '.join(changed)}: not the content that was saved" if changed else None


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, whole or not, oldest first."""
    found = [p for p in run.glob("checkpoint-*") if p.is_dir() and _FOLDER.fullmatch(p.name)]
    return sorted(found, key=lambda p: int(_FOLDER.fullmatch(p.name)[1]))


def last_whole(run: Path) -> Path | None:
    """The newest whole checkpoint of a run, None if there is none."""
    return next((p for p in reversed(checkpoints(run)) if facts_of(p)), None)


def set_aside_incomplete(run: Path) -> dict[Path, str]:
    """Renames the checkpoints that were cut off to ``incomplete-N``, and the newest ones that are not what was saved;
    returns their new names, each with the reason."""
    moved, newer = {}, True
    for folder in reversed(checkpoints(run)):
        if newer or facts_of(folder) is None:
            if why := fault_of(folder):
                moved[_set_aside(folder)] = why
            else:
                newer = False  # it is gone on with; older ones are read when they are
    return moved


def _set_aside(folder: Path) -> Path:
    name = folder.name.replace("checkpoint", "incomplete")
    free = (folder.with_name(f"{name}.{n}" if n else name) for n in range(1000))
    return folder.rename(next(path for path in free if not path.exists()))


def tidy(run: Path, stage: str = "") -> None:
    """Sets aside what cannot be gone on with, and says so.

    Args:
        run: the folder of the checkpoints.
        stage: words behind "training" that say of what.
    """
    moved = set_aside_incomplete(run)
    for folder, why in moved.items():
        say(f"set aside a checkpoint that cannot be continued from: {folder}: {why}")
    if moved and last_whole(run) is None:
        say(f"no whole checkpoint is left in {run}: training{stage} starts from the beginning")


def best_before(checkpoint: Path) -> Path:
    """The checkpoint that training.load_best_model_at_end would take, of a run that got as far as this one.

    Raises:
        CheckpointError: if its state cannot be read.
    """
    try:
        state = documents.read(checkpoint / _STATE, {"best_model_checkpoint": str | None})
    except Damaged as error:
        raise CheckpointError(f"{error.path} does not say which checkpoint was the best: {error}") from error
    best = checkpoint.with_name(Path(state.get("best_model_checkpoint") or checkpoint).name)
    return best if facts_of(best) else checkpoint


def check_continues(folder: Path, now: Mapping[str, Any]) -> None:
    """Checks that a run with the facts ``now`` would go on exactly as the one that wrote the checkpoint.

    The number of steps may change if no schedule hangs on it.

    Raises:
        CheckpointError: naming every difference.
    """
    then = facts_of(folder)
    if then is None:
        raise CheckpointError(f"{folder} is not a whole checkpoint of prefix-rl")
    faults = [f"it holds no {what}: {why}" for what, why in _lacking(then["files"]).items()]
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


def _lacking(files: Iterable[str]) -> dict[str, str]:
    """What a checkpoint does not hold and a trainer would go on without, silently; why that may be."""
    names = set(files)
    if _STATE not in names:  # a finished policy, which nothing goes on from
        return {}
    wanted = {"state of the optimizer": ("optimizer", "global_step"), "random numbers": ("rng_state",)}
    why = "it was saved with training.save_only_model, or somebody removed it; it can be evaluated"
    return {what: why for what, begin in wanted.items() if not any(name.startswith(begin) for name in names)}


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
