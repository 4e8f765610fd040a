"""Numbers of rollouts, prompts and optimizer steps that belong together, by ``training`` block and processes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .recipe import Recipe


@dataclass(frozen=True)
class Batches:
    """Numbers of rollouts, updates and steps that belong together, over all ranks."""

    rollouts: int  # of one generation batch
    prompts: int  # distinct ones in it
    steps: float  # optimizer steps that one generation batch serves


def batches(recipe: Recipe, world_size: int) -> Batches:
    """The batch arithmetic of TRL, from the ``training`` block."""
    value = recipe.training_value
    accumulation = value("gradient_accumulation_steps")
    per_micro_step = value("per_device_train_batch_size") * world_size
    generation = value("generation_batch_size")
    micro_steps = value("steps_per_generation") or (generation // per_micro_step if generation else accumulation)
    rollouts = generation or per_micro_step * micro_steps
    return Batches(
        rollouts=rollouts,
        prompts=rollouts // value("num_generations"),
        steps=micro_steps * value("num_iterations") / accumulation,
    )


def world_size() -> int:
    """Number of processes that train together, as ``accelerate launch`` sets it."""
    return int(os.environ.get("WORLD_SIZE", "1"))
