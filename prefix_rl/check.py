"""Checking all that training builds, short of weights: every fault at once, and apart what this machine lacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import contradictions, preflight, stand_ins
from .adapters import to_train
from .errors import RecipeError, UnreachableError, UserError
from .policy import Policy
from .progress import say
from .recipe import LAB, Reading, Recipe, raise_if, read_run


@dataclass
class Found:
    """Result of a check: the recipe, numbers of problems, notes, and what is missing."""

    recipe: Recipe
    problems: int
    held_out: int
    notes: list[str] = field(default_factory=list)
    """Remarks on what is right and worth knowing."""
    missing: list[str] = field(default_factory=list)
    """Things that training needs and this machine lacks."""


def check(path: str | os.PathLike, overrides: Sequence[str] = ()) -> Found:
    """Checks a recipe, its data, its policy and TRL's arguments, without training.

    Raises:
        RecipeError: with every fault; what the machine lacks is said before.
    """
    preflight.quiet()
    reading = read_run(path, overrides)
    raise_if(path, reading.faults if reading.recipe is None else [])
    found = Found(reading.recipe, len(reading.train), len(reading.held_out), missing=list(reading.missing))
    faults = [*reading.faults, *_of_policy(reading, found), *_of_arguments(found)]
    machine, recipe = preflight.findings(reading.recipe)
    found.missing += machine
    faults += recipe
    if faults and found.missing:
        say("\n".join(["besides, this machine cannot train it as it is:", *(f"  - {what}" for what in found.missing)]))
    raise_if(path, faults)
    return found


def _of_policy(reading: Reading, found: Found) -> list[str]:
    """Faults of model, tokenizer, chat template, prompts and context."""
    from .lab.base import base_folder
    from .lab.base import model as untrained

    recipe = reading.recipe
    if recipe.model.name_or_path == LAB and not base_folder(recipe.world).is_dir():
        found.notes.append("the lab's base policy is trained when it is first needed")
        lacking, faults = stand_ins.of_model(recipe, untrained(recipe.world, 0).config)
        found.missing += lacking
        return faults
    faults: list[str] = []
    try:
        policy = Policy(recipe)
    except UnreachableError as error:
        found.missing.append(f"{error}. Tokenizer, chat template, prompts and context were not looked at")
        return []
    except UserError as error:
        return error.told
    found.recipe = policy.recipe
    found.notes += policy.notes
    try:
        to_train(policy)
    except UserError as error:
        faults += error.told
    else:
        lacking, of_model = stand_ins.of_model(recipe, policy.config)
        found.missing += lacking
        faults += of_model
    for problems, length, setting in (
        (reading.train, recipe.training_value("max_completion_length"), "training.max_completion_length"),
        (reading.held_out, recipe.training_value("max_completion_length"), "training.max_completion_length"),
    ):
        try:
            policy.check_problems(problems, length, setting)
        except UserError as error:
            faults += error.told
    return faults + contradictions.vllm_context(recipe, policy, [*reading.train, *reading.held_out])


def _of_arguments(found: Found) -> list[str]:
    """Faults of the training block that only the libraries can judge. What TRL says of a missing GPU is the machine's
    matter."""
    import torch

    from .train import arguments

    recipe = found.recipe
    elsewhere = not torch.cuda.is_available() and not recipe.training_value("use_cpu")
    changes = {"use_cpu": True, "bf16": False, "fp16": False, "tf32": None} if elsewhere else {}
    try:
        args = arguments(recipe, **changes)
    except RecipeError as error:
        return error.told
    lacking, faults = stand_ins.of_training(args)
    found.missing += lacking
    return faults
