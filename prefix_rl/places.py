"""Places of policies: a run, a checkpoint, adapters, a model's folder, a name on the hub, or the lab's own."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from . import adapters
from .checkpoints import FINAL, checkpoints, last_whole
from .data.tokenizer import looks_like_a_path
from .errors import DataError, nearest
from .lab.world import World
from .progress import bar
from .recipe import LAB, read_yaml

_CONFIG = "config.json"


@dataclass(frozen=True)
class Place:
    """Location of a policy's weights."""

    path: str
    """A folder, or a name on the hub."""
    base: str
    """The model that adapters belong to; without adapters ``path``."""
    revision: str | None = None
    """Revision of ``base`` on the hub."""

    @property
    def adapters(self) -> str | None:
        """The folder of the adapters, None if it is a whole model."""
        return self.path if self.path != self.base else None


def find(name: str | Path, world: World | None = None, revision: str | None = None) -> Place:
    """Location of the policy of this name: ``lab``, the folder of a run, a checkpoint, a model or adapters, or a
    name on the hub.

    Of a run it is the final policy, or else that of its last whole checkpoint. The lab's base policy is trained if it
    is not there.

    Raises:
        DataError: if there is nothing of that name, naming what is there instead.
    """
    if name == LAB:
        path = base_policy(world or World())
        return Place(path, path)
    folder = Path(name).expanduser()
    if not os.path.isdir(folder):  # which says no of a name that is too long, where Path's raises
        parent = Path(name).parent
        if looks_like_a_path(str(name)) or (str(parent) != "." and os.path.isdir(parent)):
            there = [str(p) for p in folder.parent.glob("*") if p.is_dir()] if os.path.isdir(folder.parent) else []
            raise DataError(
                f"there is no folder {name} (from {Path.cwd()}), and no model on the hub has a name like that"
                f"{nearest(str(folder), there)}"
            )
        return Place(str(name), str(name), revision)
    inside = _policy_in(folder)
    if _is_adapters(inside):
        return _adapted(inside)
    return Place(str(inside), str(inside), revision if inside == folder else None)


def _is_adapters(folder: Path) -> bool:
    return (folder / adapters.CONFIG).is_file() and not (folder / _CONFIG).is_file()


def base_policy(world: World) -> str:
    """The folder of the lab's base policy, which is trained first if it is not there."""
    from .lab.base import base_policy as made

    with bar("training the lab's base policy", world.base_steps) as advance:
        return str(made(world, advance))


def run_of(folder: str | Path) -> Path | None:
    """The run that a folder is, or that it is a checkpoint or the final policy of; None if it is none of these."""
    folder = Path(folder)
    return next((f for f in (folder, folder.parent) if (f / "recipe.yaml").is_file()), None)


def date_of(run: Path | None) -> str | None:
    """The date that the prompts of a run showed, None if they showed none."""
    model = read_yaml(run / "recipe.yaml").get("model") if run else None
    return model.get("date") if isinstance(model, dict) else None


def _policy_in(folder: Path) -> Path:
    """The folder with the weights: itself, or of a run its policy."""
    holds = [(folder / name).is_file() for name in (_CONFIG, adapters.CONFIG)]
    if any(holds):
        return folder
    if (folder / FINAL).is_dir():
        return folder / FINAL
    if whole := last_whole(folder):
        return whole
    if run_of(folder) == folder:
        raise DataError(f"{folder} has no policy yet: neither {FINAL} nor a whole checkpoint")
    there = [str(p) for p in checkpoints(folder)]
    hint = f"; it holds {', '.join(there)}: give one of these" if there else ""
    raise DataError(
        f"no model could be loaded from {folder}: the folder has neither {_CONFIG} nor {adapters.CONFIG}, and it is "
        f"not the folder of a run{hint}"
    )


def _adapted(folder: Path) -> Place:
    """Adapters and the model that they belong to."""
    file = folder / adapters.CONFIG
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        base, revision = given["base_model_name_or_path"], given.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{file} does not say which model the adapters belong to: {error}") from error
    if not isinstance(base, str) or not base:
        what = f"base_model_name_or_path = {base!r}; write its name or folder there"
        raise DataError(f"{file} does not say which model the adapters belong to: {what}")
    if not os.path.isdir(base) and looks_like_a_path(base):
        raise DataError(
            f"{folder} holds adapters of the model {base}, and there is no such folder (from {Path.cwd()}); bring it "
            f"back, or set base_model_name_or_path in {file} to where it is now"
        )
    if os.path.isdir(base):
        revision, inner = None, _policy_in(Path(base))
        if _is_adapters(inner):  # its own folder, it may be: whose adapters those are is not asked
            raise DataError(f"{folder} holds adapters of {base}, which are adapters themselves; merge those first")
        base = str(inner)
    return Place(str(folder), base, revision)
