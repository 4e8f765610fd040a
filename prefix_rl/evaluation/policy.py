"""The policy that is evaluated: where it is, what it is asked, and what generates."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import preflight
from ..checkpoints import last_whole
from ..data import benchmarks
from ..data.tokenizer import load_tokenizer
from ..engines.base import Engine, Sampling, stop_ids
from ..engines.transformers import TransformersEngine
from ..engines.vllm import VllmEngine, require_vllm
from ..errors import DataError, RecipeError
from ..recipe import LAB, Recipe, load_recipe
from .card import checkpoint_facts

if TYPE_CHECKING:
    from .sampling import Job

INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
DEFAULTS: dict[str, Any] = {
    "data": {"train": "(nothing)", "prompt": "chat", "instruction": INSTRUCTION},
    "method": {"name": "dr_grpo"},
    "training": {"max_completion_length": 8192},
    "evaluation": {"temperature": 0.6},
    "output": {"dir": "(nowhere)"},
}
"""How a model that belongs to no run and no recipe is evaluated: as LUFFY and Prefix-RFT evaluate (arXiv 2504.14945,
2507.01679)."""


def find_policy(target: str, config: str | None, overrides: Sequence[str]) -> tuple[str, Recipe, Path]:
    """The policy's folder or name, the recipe to evaluate it by, and the folder that the results belong into."""
    folder = Path(target)
    run = next((f for f in (folder, folder.parent) if (f / "recipe.yaml").is_file()), None)
    names_data = any(o.startswith(("evaluation.on=", "evaluation.data=")) for o in overrides)
    if config or run:
        recipe = load_recipe(config or run / "recipe.yaml", overrides)
    elif names_data:
        recipe = load_recipe({"model": {"name_or_path": target}, **DEFAULTS}, overrides)
    else:
        raise RecipeError(
            f"{target} is not the folder of a run, so it is not known what to evaluate it on; name benchmarks or a "
            f"file with --on ({', '.join(benchmarks.BENCHMARKS)}), or give a recipe with --config"
        )
    if run == folder:
        policy = run / "final" if (run / "final").is_dir() else last_whole(run)
        if policy is None:
            raise DataError(f"{run} has no policy yet: neither final nor a whole checkpoint")
        return str(policy), recipe, run
    if run:
        return target, recipe, run if folder.name == "final" else run / "evaluations" / folder.name
    name = "--".join(part for part in folder.parts if part not in (".", "..", "/"))
    if target == LAB:
        from ..train import model_path

        model = dataclasses.replace(recipe.model, name_or_path=LAB)
        target = model_path(dataclasses.replace(recipe, model=model))
    return target, recipe, Path("runs", "evaluations", name)


class Policy:
    """A policy with what it is asked and how; its weights are loaded when they are first needed.

    Raises:
        UserError: if it has no tokenizer, or no chat template where one is needed.
    """

    def __init__(self, path: str, recipe: Recipe):
        self.path, self.recipe = path, recipe
        model = recipe.model
        if recipe.evaluation.engine == "vllm":
            require_vllm()
        self.revision = model.revision if path == model.name_or_path else None
        self.tokenizer = load_tokenizer(path, **({"revision": self.revision} if self.revision else {}))
        if model.chat_template:
            self.tokenizer.chat_template = Path(model.chat_template).read_text(encoding="utf-8")
        if recipe.data.prompt == "chat" and not self.tokenizer.chat_template:
            raise RecipeError(
                f"data.prompt = chat, but the tokenizer of {path} has no chat template. For a base model give "
                "data.prompt=plain (the policy then sees the problem and data.instruction, nothing else), or a Jinja "
                "file with model.chat_template=FILE"
            )
        self.sampling = Sampling(recipe.evaluation.temperature, recipe.evaluation.top_p)
        self.length = recipe.evaluation_length
        self._longest_prompt = 0

    @cached_property
    def config(self):
        """The model's configuration."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.path, revision=self.revision)
        except (OSError, ValueError) as error:
            raise DataError(f"no model could be loaded from {self.path}: {error}") from error

    @cached_property
    def stops(self) -> list[int]:
        """The ids that end a completion."""
        from transformers import GenerationConfig

        try:
            found = GenerationConfig.from_pretrained(self.path, revision=self.revision)
        except OSError:
            found = GenerationConfig(eos_token_id=getattr(self.config.get_text_config(), "eos_token_id", None))
        return stop_ids(found, self.tokenizer)

    def check_context(self, jobs: Sequence[Job]) -> None:
        """Sees that the model has positions for the longest prompt and completion.

        Raises:
            RecipeError: saying what would fit.
        """
        self._longest_prompt = max(len(job.prompt_ids) for job in jobs)
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and self._longest_prompt + self.length > positions:
            raise RecipeError(
                f"max_completion_length = {self.length}, and the longest prompt has {self._longest_prompt} tokens, but "
                f"{self.path} has positions for {positions}; give --max-completion-length "
                f"{max(positions - self._longest_prompt, 0)} or less"
            )

    @cached_property
    def engine(self) -> Engine:
        """What generates, with the weights loaded."""
        model, wanted = self.recipe.model, self.recipe.evaluation.engine
        if wanted == "vllm":
            return VllmEngine(
                self.path, self.stops, self._longest_prompt + self.length, self.recipe.evaluation.seed,
                dtype=model.dtype, revision=self.revision, tokenizer_revision=self.revision,
            )  # fmt: skip
        import torch
        from transformers import AutoModelForCausalLM

        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                self.path,
                revision=self.revision,
                dtype=model.dtype or "auto",
                attn_implementation=model.attn_implementation,
            )
        except (OSError, ValueError, ImportError) as error:
            raise DataError(f"no model could be loaded from {self.path}: {error}") from error
        return TransformersEngine(loaded.to(self._device(torch)).eval(), self.tokenizer)

    def _device(self, torch) -> str:
        return "cuda" if torch.cuda.is_available() and not self.recipe.training_value("use_cpu") else "cpu"

    def engine_facts(self) -> dict[str, Any]:
        """Which engine, which version, and how it was set."""
        import torch

        model, name = self.recipe.model, self.recipe.evaluation.engine
        device = self._device(torch)
        return {
            "name": name,
            "version": preflight.installed(name),
            "torch": preflight.installed("torch"),
            "dtype": model.dtype or "as saved",
            "attn_implementation": model.attn_implementation,
            "device": torch.cuda.get_device_name() if device == "cuda" else device,
        }

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """What tells this policy from another."""
        return checkpoint_facts(self.path, self.revision)

    def settings(self) -> dict[str, Any]:
        """What samples depend on, besides their prompts: with other settings there are other samples."""
        return {
            "checkpoint": {k: v for k, v in self.checkpoint.items() if k != "files"},
            "engine": {k: v for k, v in self.engine_facts().items() if k not in ("torch", "device")},
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_completion_length": self.length,
            "seed": self.recipe.evaluation.seed,
        }

    def prompt_facts(self, example: Sequence[int]) -> dict[str, Any]:
        """What the policy was asked, with one prompt as it saw it."""
        data, template = self.recipe.data, self.tokenizer.chat_template if self.recipe.data.prompt == "chat" else None
        return {
            "prompt": data.prompt,
            "system_prompt": data.system_prompt,
            "instruction": data.instruction,
            "chat_template": template,
            "chat_template_sha256": template and hashlib.sha256(str(template).encode()).hexdigest(),
            "example": self.tokenizer.decode(list(example), skip_special_tokens=False),
        }
