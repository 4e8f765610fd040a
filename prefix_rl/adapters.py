"""Adapters: TRL's keys for training them, and folders that hold them.

A folder of adapters is a policy wherever a folder of a model is one (:func:`prefix_rl.places.find`). It holds
``adapter_config.json``, which names the model that the adapters stand on, and their weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, RecipeError
from .fields import Field, fields_from_source

if TYPE_CHECKING:
    from .policy import Policy
    from .recipe import Model

CONFIG = "adapter_config.json"
"""The file that makes a folder one of adapters."""
_OURS = {"model_name_or_path", "model_revision", "dtype", "attn_implementation", "lora_task_type"}
_SAVED = {  # the keys of a recipe, and what peft calls them in a folder of adapters
    "lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters", "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora", "use_dora": "use_dora",
}  # fmt: skip
_MOST_RANKS = 8192  # models are hardly wider, and a matrix of more ranks than that fills the memory
_QUANTIZED = ("load_in_8bit", "load_in_4bit")
OTHER_KEYS = {
    "lora": "is gone; TRL's own names stand in the model block: use_peft: true, and lora_r for r, lora_alpha, "
    "lora_dropout, lora_target_modules for target_modules",
    "model_name_or_path": "is called name_or_path here",
    "model_revision": "is called revision here",
    "torch_dtype": "is called dtype here",
    "lora_task_type": "is always CAUSAL_LM; leave it out",
}
"""Hints for keys that people write in the model block and that it does not take, by key."""


# --- the keys of a recipe ---------------------------------------------------------------------------------------------


@cache
def fields() -> dict[str, Field]:
    """The keys of TRL's ``ModelConfig`` that adapters and quantization have, read from its source."""
    found = {k: f for k, f in fields_from_source("trl.trainer.model_config", "ModelConfig").items() if k not in _OURS}
    for key in ("lora_target_modules", "lora_target_parameters"):  # declared as lists, and documented as texts too
        found[key] = replace(found[key], type=str | list[str] | None)
    return found


def faults(peft: Mapping[str, Any]) -> list[str]:
    """Faults of keys that cannot stand together, in words; empty if there are none.

    >>> faults({"lora_r": 8})
    ['model.lora_r does nothing without model.use_peft = true: all parameters would be trained']
    """
    value = {key: field.default for key, field in fields().items()} | dict(peft)
    found = []
    if not value["use_peft"]:
        if idle := [key for key in peft if key in _SAVED]:
            names, verb = ", ".join(f"model.{key}" for key in idle), "do" if len(idle) > 1 else "does"
            found.append(f"{names} {verb} nothing without model.use_peft = true: all parameters would be trained")
        found += [
            f"model.{key} = true needs model.use_peft = true: quantized weights cannot be trained themselves"
            for key in _QUANTIZED
            if value[key]
        ]
    if all(value[key] for key in _QUANTIZED):
        found.append("model.load_in_8bit and model.load_in_4bit: give only one of them")
    if idle := [key for key in peft if "bnb_" in key and not value["load_in_4bit"]]:
        found.append(f"{', '.join(f'model.{key}' for key in idle)}: of no use without model.load_in_4bit = true")
    if not 1 <= value["lora_r"] <= _MOST_RANKS:
        found.append(f"model.lora_r = {value['lora_r']}: must be at least 1 and at most {_MOST_RANKS}")
    if value["lora_alpha"] <= 0:
        found.append(f"model.lora_alpha = {value['lora_alpha']}: must be above 0")
    if not 0 <= value["lora_dropout"] < 1:
        found.append(f"model.lora_dropout = {value['lora_dropout']:g}: must be in [0, 1)")
    if value["bnb_4bit_quant_type"] not in ("fp4", "nf4"):
        found.append(f"model.bnb_4bit_quant_type = {value['bnb_4bit_quant_type']}: must be fp4 or nf4")
    return found


def quantized(peft: Mapping[str, Any]) -> bool:
    """True if the weights beside the adapters are loaded in 4 or 8 bits."""
    return any(peft.get(key) for key in _QUANTIZED)


def new(model: Model) -> dict[str, Any]:
    """Keyword arguments by which a trainer of TRL trains new adapters (``peft_config``); empty if all parameters train.

    Raises:
        RecipeError: if peft does not take the settings.
    """
    from trl import get_peft_config

    try:
        config = get_peft_config(_as_trl_has_it(model))
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"peft does not accept the model block: {error}") from error
    if config is None:
        return {}
    targets = model.peft.get("lora_target_modules")
    if isinstance(targets, list) and targets not in ([], ["all-linear"]):
        config.target_modules = set(targets)  # TRL makes a text of a list of one, which peft takes for a pattern
    config.revision = model.revision
    return {"peft_config": config}


def to_train(policy: Policy) -> dict[str, Any]:
    """Keyword arguments by which a trainer of TRL trains a policy's adapters; empty if the policy already has some.

    Raises:
        RecipeError: if there are adapters and the recipe asks for others, or for what peft does not take.
    """
    model = policy.recipe.model
    if policy.adapters:
        check_continues(policy.adapters, model.peft)
    return {} if policy.adapters else new(model)


def quantization(model: Model) -> dict[str, Any]:
    """Keyword arguments of ``from_pretrained`` that load the weights in 4 or 8 bits; empty if they are not quantized.

    Raises:
        RecipeError: if bitsandbytes is not there, or does not take the settings.
    """
    if not quantized(model.peft):
        return {}
    from trl import get_kbit_device_map, get_quantization_config

    try:
        return {
            "quantization_config": get_quantization_config(_as_trl_has_it(model)),
            "device_map": get_kbit_device_map(),
        }
    except (ValueError, TypeError, ImportError) as error:
        raise RecipeError(f"model.load_in_4bit, model.load_in_8bit: {error}") from error


def _as_trl_has_it(model: Model):
    from trl import ModelConfig

    targets = model.peft.get("lora_target_modules")
    peft = {**model.peft, **({"lora_target_modules": [targets]} if isinstance(targets, str) else {})}
    return ModelConfig(model_name_or_path=model.name_or_path, dtype=model.dtype or "float32", **peft)


# --- folders of adapters ----------------------------------------------------------------------------------------------


def check_continues(folder: str | Path, peft: Mapping[str, Any]) -> None:
    """Sees that adapters that are trained on are what a recipe asks for.

    Raises:
        RecipeError: naming each setting that differs from the one the adapters were trained with.
    """
    saved = _saved(folder)
    found = []
    for key, name in _SAVED.items():
        if key not in peft or peft[key] == "all-linear":  # peft saves the names of the layers instead
            continue
        old, asked = (_plain(value) for value in (saved.get(name), peft[key]))
        if old != asked:
            found.append(f"model.{key} = {json.dumps(peft[key])}: these adapters have {json.dumps(saved.get(name))}")
    if found:
        raise RecipeError(
            f"{folder} holds adapters, which are trained on as they are. Leave these keys out, or start from the whole "
            f"model that `prefix-rl merge {folder}` writes, with new adapters:",
            found,
        )


def _saved(folder: str | Path) -> dict[str, Any]:
    """What the configuration of a folder of adapters holds."""
    path = Path(folder, CONFIG)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: it holds a {type(found).__name__}, not an object")
    return found


def _plain(value: Any) -> Any:
    """A setting as it compares: names have no order, and nothing chosen is nothing."""
    return (
        sorted([value] if isinstance(value, str) else map(str, value))
        if isinstance(value, (str, list))
        else value or None
    )


def why_not_in_vllm(folder: str | Path) -> str | None:
    """Reason why vLLM cannot load these adapters beside their model, None if it can. Merged adapters always load."""
    saved = _saved(folder)
    if saved.get("peft_type", "LORA") != "LORA":
        return f"they are of the kind {saved['peft_type']}, not LORA"
    if saved.get("use_dora"):
        return "they have magnitudes (use_dora)"
    if saved.get("modules_to_save"):
        return f"they hold whole modules ({', '.join(map(str, saved['modules_to_save']))})"
    return None
