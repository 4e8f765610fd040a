"""The target of an evaluation: policy, recipe and engine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import preflight
from ..checkpoints import FINAL
from ..data import benchmarks
from ..engines.base import Engine, Sampling
from ..engines.choice import engine_for, known_of, require
from ..errors import RecipeError
from ..places import find, run_of
from ..policy import Policy
from ..recipe import LAB, Recipe, load_recipe
from .card import checkpoint_facts

INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
DEFAULTS: dict[str, Any] = {
    "data": {"train": "(nothing)", "prompt": "chat", "instruction": INSTRUCTION},
    "method": {"name": "dr_grpo"},
    "training": {"max_completion_length": 8192},
    "evaluation": {"temperature": 0.6},
    "output": {"dir": "(nowhere)"},
}
"""Settings for a model that belongs to no run and no recipe: as LUFFY and Prefix-RFT evaluate (arXiv 2504.14945,
2507.01679)."""


def find_target(name: str, config: str | None, overrides: Sequence[str]) -> tuple[Recipe, Path]:
    """The recipe to evaluate a policy by, and the folder that the results belong into."""
    folder, run = Path(name), run_of(name)
    names_data = any(o.startswith(("evaluation.on=", "evaluation.data=")) for o in overrides)
    if config:
        recipe = load_recipe(config, overrides)
    elif run:  # what it was trained with was saved with it: the file of the template may be another one by now
        recipe = load_recipe(run / "recipe.yaml", ["model.chat_template=null", *overrides])
    elif names_data:
        recipe = load_recipe({"model": {"name_or_path": name}, **DEFAULTS}, overrides)
    else:
        there = find(name).path if os.path.isdir(folder) else name
        newest = f"; the policy in it is {there}" if there != name else ""
        raise RecipeError(
            f"{name} is not the folder of a run{newest}. So it is not known what to evaluate it on; name benchmarks or "
            f"a file with --on ({', '.join(benchmarks.BENCHMARKS)}), or give a recipe with --config"
        )
    if run == folder:
        return recipe, run
    if run:
        return recipe, run if folder.name == FINAL else run / "evaluations" / folder.name
    parts = "--".join(part for part in folder.parts if part not in (".", "..", "/"))
    return recipe, Path("runs", "evaluations", LAB if name == LAB else parts)


class Target:
    """A policy with what generates; its weights are loaded when they are first needed.

    Raises:
        UserError: for every fault of the policy and its prompts, see :class:`~prefix_rl.policy.Policy`.
    """

    def __init__(self, name: str, recipe: Recipe, day: str | None = None):
        require(recipe)
        if day and recipe.model.date is None:  # the date of the evaluation that is gone on with
            recipe = replace(recipe, model=replace(recipe.model, date=day))
        self.policy = Policy(recipe, name)
        self.recipe, self.path, self.tokenizer = self.policy.recipe, self.policy.path, self.policy.tokenizer
        self.sampling = Sampling(recipe.evaluation.temperature, recipe.evaluation.top_p)
        self.length = recipe.evaluation_length
        self.longest_prompt = 0

    @cached_property
    def engine(self) -> Engine:
        """The engine that generates, with the weights loaded or the servers looked at."""
        return engine_for(self.policy, self.longest_prompt + self.length)

    def engine_facts(self) -> dict[str, Any]:
        """Name, version and settings of the engine, as far as they are known before it is loaded."""
        import torch

        device = self.policy.device
        here = {"torch": preflight.installed("torch"),
                "device": torch.cuda.get_device_name() if device == "cuda" else device}  # fmt: skip
        return known_of(self.policy) | ({} if self.recipe.engine.name == "server" else here)

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """Facts that tell this policy from another, see :func:`~prefix_rl.evaluation.card.checkpoint_facts`."""
        facts = checkpoint_facts(self.path, self.policy.revision)
        return facts | ({"base": self.policy.base} if self.policy.adapters else {})

    def settings(self) -> dict[str, Any]:
        """Settings that samples depend on, besides their prompts: with others there are other samples."""
        date = self.policy.date
        return {
            "checkpoint": {k: v for k, v in self.checkpoint.items() if k != "files"},
            "engine": known_of(self.policy),
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_completion_length": self.length,
            "seed": self.recipe.evaluation.seed,
            **({"date": date} if date else {}),
        }

    def prompt_facts(self) -> dict[str, Any]:
        """Facts of the prompts, and of the ids that ended the completions."""
        named = self.tokenizer.convert_ids_to_tokens
        return {
            **self.policy.facts(),
            "ended_by": [str(named(i)) for i in self.policy.stops],
            "notes": self.policy.notes,
        }
