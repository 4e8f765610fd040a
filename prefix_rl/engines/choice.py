"""The engine that a recipe asks for, and what is known of it before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import preflight
from ..safety.finite import check_saved_weights
from .base import Engine
from .vllm import require_vllm

if TYPE_CHECKING:
    from ..policy import Policy
    from ..recipe import Recipe


def require(recipe: Recipe) -> None:
    """Sees that the recipe's engine is installed.

    Raises:
        StackError: if it is not.
    """
    if recipe.engine.name == "vllm":
        require_vllm()


def engine_for(policy: Policy, max_length: int, at_once: int | None = None) -> Engine:
    """The engine that the policy's recipe asks for, with the weights loaded or the servers looked at.

    Args:
        max_length: tokens of the longest prompt and completion together.
        at_once: completions in the making at a time, of an engine in this process; None: the recipe's.

    Raises:
        UserError: if it cannot generate from this policy.
    """
    recipe, settings = policy.recipe, policy.recipe.engine
    at_once = at_once or recipe.at_once
    if settings.name == "server":
        from .server import ServerEngine

        return ServerEngine(settings, policy.path, policy.stops, policy.tokenizer, max_length)
    if settings.name == "vllm":
        from .vllm import VllmEngine

        for place in dict.fromkeys((policy.base, policy.path)):
            check_saved_weights(Path(place))  # vLLM loads them in processes of its own
        return VllmEngine(
            policy.base, policy.stops, max_length, settings, at_once=at_once, dtype=dtype_of(policy),
            revision=policy.revision, adapters=policy.adapters,
        )  # fmt: skip
    from .transformers import TransformersEngine

    return TransformersEngine(policy.load(), policy.tokenizer, policy.stops, at_once)


def dtype_of(policy: Policy) -> str | None:
    """The dtype of weights and computation; None where only the engine will know it.

    Where the recipe leaves it open, transformers takes the one that the model was saved in. So does vLLM, except that
    it would rather compute in bfloat16 than in float32.
    """
    settings, model = policy.recipe.engine, policy.recipe.model
    if settings.name == "server":
        return None
    if model.dtype is not None:
        return model.dtype
    saved = getattr(policy.config.get_text_config(), "dtype", None)
    saved = None if saved is None else str(saved).removeprefix("torch.")
    return "bfloat16" if settings.name == "vllm" and saved == "float32" else saved


def known_of(policy: Policy) -> dict[str, Any]:
    """Facts of the engine that samples depend on, as far as they are known before it is loaded."""
    settings, model = policy.recipe.engine, policy.recipe.model
    if settings.name == "server":
        return {"name": "server", "served_model": settings.served_model or policy.path}
    known = {"name": settings.name, "version": preflight.installed(settings.name), "dtype": dtype_of(policy)}
    if settings.name == "transformers":
        known["attn_implementation"] = model.attn_implementation
    return known
