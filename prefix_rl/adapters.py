"""Adapters: TRL's keys for training them, and folders that hold them.

A folder of adapters is a policy wherever a folder of a model is one. It holds ``adapter_config.json``, which names the
model that the adapters stand on, and the adapters' weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from .fields import Field, fields_from_source

_OURS = {"model_name_or_path", "model_revision", "dtype", "attn_implementation", "lora_task_type"}
_NAMES = {
    "r": "lora_r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "target_modules": "lora_target_modules",
}  # fmt: skip
OTHER_KEYS = {
    "lora": "is gone; TRL's own names stand in the model block: use_peft: true, and "
    + ", ".join(f"{new} for {old}" if old != new else new for old, new in _NAMES.items()),
    "model_name_or_path": "is called name_or_path here",
    "model_revision": "is called revision here",
    "torch_dtype": "is called dtype here",
    "lora_task_type": "is always CAUSAL_LM; leave it out",
}
"""What to say of keys of the model block that people write and that it does not take."""
_LORA = ("lora_", "use_rslora", "use_dora")
_QUANTIZED = ("load_in_8bit", "load_in_4bit")


@cache
def fields() -> dict[str, Field]:
    """The keys of TRL's ``ModelConfig`` that adapters and quantization have, read from its source."""
    found = {k: f for k, f in fields_from_source("trl.trainer.model_config", "ModelConfig").items() if k not in _OURS}
    for key in ("lora_target_modules", "lora_target_parameters"):  # declared as lists, and documented as texts too
        found[key] = replace(found[key], type=str | list[str] | None)
    return found


def faults(peft: Mapping[str, Any]) -> list[str]:
    """What cannot be together among these keys, in words.

    >>> faults({"lora_r": 8})
    ['model.lora_r does nothing without model.use_peft = true: all parameters would be trained']
    """
    value = {key: field.default for key, field in fields().items()} | dict(peft)
    found = []
    if not value["use_peft"]:
        if idle := [key for key in peft if key.startswith(_LORA)]:
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
    if value["lora_r"] < 1:
        found.append(f"model.lora_r = {value['lora_r']}: must be at least 1")
    if value["lora_alpha"] <= 0:
        found.append(f"model.lora_alpha = {value['lora_alpha']}: must be above 0")
    if not 0 <= value["lora_dropout"] < 1:
        found.append(f"model.lora_dropout = {value['lora_dropout']:g}: must be in [0, 1)")
    if value["bnb_4bit_quant_type"] not in ("fp4", "nf4"):
        found.append(f"model.bnb_4bit_quant_type = {value['bnb_4bit_quant_type']}: must be fp4 or nf4")
    return found
