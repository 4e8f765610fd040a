"""Adapters and the model that they stand on, merged into one whole model (``prefix-rl merge``)."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import preflight
from .errors import CheckpointError, DataError
from .places import run_of
from .policy import Policy
from .recipe import Recipe, load_recipe


def merge(target: str | Path, output: Path | None = None) -> Path:
    """Writes adapters merged into their model as one whole model, with its tokenizer; returns its folder.

    The folder appears when it is whole. Weights have the type of the model's own.

    Args:
        target: a run's folder, a checkpoint inside one, or a folder of adapters.
        output: None: ``merged`` in the run's folder; for adapters of no run, beside them.

    Raises:
        DataError: if there are no adapters, or the model that they stand on is not there.
        CheckpointError: if the folder is there, or cannot be written.
    """
    preflight.quiet()
    policy = Policy(_bare_recipe(target))
    if not policy.adapters:
        raise DataError(f"{policy.path} is a whole model; there is nothing to merge")
    if output is None:
        run, folder = run_of(policy.adapters), Path(policy.adapters)
        output = run / "merged" if run else folder.with_name(f"{folder.name}-merged")
    if output.exists():
        raise CheckpointError(f"{output} is there already; give another --output, or remove it")
    beside = output.with_name(f"{output.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    model = policy.load()
    try:
        beside.mkdir(parents=True)
        model.save_pretrained(beside)
        policy.tokenizer.save_pretrained(beside)
        policy.generation_config.save_pretrained(beside)
        beside.rename(output)
    except OSError as error:
        raise CheckpointError(f"{output} cannot be written: {error.strerror or error}") from error
    return output


def _bare_recipe(target: str | Path) -> Recipe:
    """A recipe for a policy that nothing is asked of."""
    return load_recipe(
        {
            "model": {"name_or_path": str(target)},
            "data": {"train": "(nothing)", "prompt": "plain"},
            "method": {"name": "dr_grpo"},
            "training": {"use_cpu": True},
            "output": {"dir": "(nowhere)"},
        }
    )
