"""Post-train a language model with reinforcement learning and demonstrations.

The public names are loaded when they are first used: ``import prefix_rl`` itself loads neither torch nor TRL.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {
    "PrefixTrainer": "seam.trainer",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "Method": "methods.base",
    "DrGRPO": "methods.dr_grpo",
    "PrefixRFT": "methods.prefix_rft",
    "Rollouts": "rollouts",
    "math_reward": "rewards",
    "MathReward": "rewards",
}

__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'prefix_rl' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
