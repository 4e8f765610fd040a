"""What a recipe takes before it is started: memory on each device, tokens and operations of a step, hours.

No weights are loaded: the model is built from its configuration on torch's meta device, which allocates nothing. The
equations are in :mod:`prefix_rl.memory` and :mod:`prefix_rl.costs`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import adapters
from .accelerate_file import Launch, launch_for
from .batches import Batches, batches
from .costs import inference_flops, update_flops
from .errors import RecipeError, UnreachableError, UserError, unavailable
from .memory import Estimate, Setting, Shape, estimate
from .methods.stage import ROLLOUTS, SUPERVISED
from .places import find
from .policy import positions_of
from .recipe import LAB, Recipe, load_recipe
from .stand_ins import on_meta
from .supervised import micro_batches

if TYPE_CHECKING:
    from transformers import PretrainedConfig

GIB = 2**30
PROMPT = 512
"""Tokens of a prompt, where nothing else is said."""
RESERVE = 2 * GIB
"""Memory of a GPU for its driver, for communication, and for what lies between tensors; an assumption."""
_BLOCK_LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
_STATES = {"sgd": 0, "adafactor": 0, "lion": 4, "rmsprop": 4, "adagrad": 4}
"""Bytes of optimizer states for a parameter, by the beginning of the optimizer's name; others have AdamW's 8."""


@dataclass(frozen=True)
class Machine:
    """Devices and what is known of them."""

    devices: int = 1
    memory: float = 80 * GIB
    """Bytes of each."""
    tflops: float = 989
    """Operations of each in a second, times 1e12; 989 are those of an H100 in bfloat16."""
    mfu: float = 0.4
    """Share of them that a training pass reaches."""
    generation_mfu: float = 0.05
    """Share that generation reaches, which waits for memory rather than for arithmetic."""


@dataclass(frozen=True)
class Plan:
    """The answer."""

    recipe: Recipe
    shape: Shape
    launch: Launch
    machine: Machine
    stages: dict[str, Estimate]
    """By stage: supervised, rollouts."""
    vllm: float
    """Bytes that vLLM takes of each device while training."""
    batches: Batches
    generated: int
    """Tokens generated in an optimizer step, at most, over all devices."""
    trained: int
    """Tokens encoded for the update of a step, at most."""
    flops: float
    """Operations of a step."""
    seconds: float
    """Of a step, at the assumed utilization."""
    steps: int
    """Optimizer steps of the rollouts; 0: it depends on the data."""
    advice: list[tuple[str, float]] = field(default_factory=list)
    """Changes to make it fit: overrides, and bytes on a device with them."""
    wider: tuple[str, float] | None = None
    """The largest micro-batch that fits, with as many rollouts a step, likewise; None: no larger one does."""
    notes: list[str] = field(default_factory=list)

    @property
    def peak(self) -> float:
        """Bytes on a device, vLLM's and a reserve included."""
        return max(e.peak for e in self.stages.values()) + self.vllm + RESERVE

    @property
    def fits(self) -> bool:
        """True if a device has room for it."""
        return self.peak <= self.machine.memory


def plan(
    path: str | os.PathLike, overrides: Sequence[str] = (), machine: Machine | None = None,
    accelerate: str | None = None, prompt: int | None = None,
) -> Plan:  # fmt: skip
    """The plan of a recipe.

    Args:
        machine: None: one device of 80 GiB, or as many as the accelerate file has processes.
        accelerate: file of ``accelerate launch``; None: the one that the comment at the head of the recipe names.
        prompt: tokens of a prompt.

    Raises:
        UserError: if the recipe, the file or the model's configuration cannot be read.
    """
    recipe, launch = load_recipe(path, overrides), launch_for(path, accelerate)
    machine = machine or Machine(launch.processes)
    config = config_of(recipe)
    shape = shape_of(recipe, config)
    found = _planned(recipe, shape, launch, machine, config, prompt)
    if accelerate is None and launch.file:
        found.notes.append(
            f"launched as the head of the recipe says, with {launch.file}; --accelerate FILE for another"
        )
    if found.fits:
        return replace(found, wider=_wider(path, overrides, found, config, prompt))
    found.advice.extend(_advice(path, overrides, found, config, prompt))
    return found


def _planned(
    recipe: Recipe, shape: Shape, launch: Launch, machine: Machine, config: PretrainedConfig, prompt: int | None
) -> Plan:
    value, notes = recipe.training_value, []
    length = prompt or _prompt_length(recipe, config)
    made, stages = setting_of(recipe, shape, launch, machine.devices, length, notes), {}
    order = recipe.method.stages.order
    if SUPERVISED in order and recipe.uses_supervision:
        rows, accumulation = micro_batches(recipe.method.stages.supervised, machine.devices)
        alone = replace(made, rows=rows, group=1, accumulation=accumulation, packed=False, generated=0, reference=False)
        stages[SUPERVISED] = estimate(shape, alone)
    if ROLLOUTS in order:
        stages[ROLLOUTS] = estimate(shape, made)
    colocated = value("use_vllm") and value("vllm_mode") == "colocate" and ROLLOUTS in order
    share = value("vllm_gpu_memory_utilization") * machine.memory if colocated else 0.0
    if share and share < (least := 2 * shape.parameters / value("vllm_tensor_parallel_size")):
        notes.append(f"vLLM's share, {_gib(share)}, does not hold the weights alone, {_gib(least)}: raise "
                     "training.vllm_gpu_memory_utilization")  # fmt: skip
    sizes = batches(recipe, machine.devices)
    rollouts = sizes.rollouts / max(sizes.steps, 1e-9) if ROLLOUTS in order else 0
    times = _generations(recipe)
    if times > 1 and rollouts:
        notes.append(f"counted is a step that generates {times} times, as often as it can; most generate less often")
    generated = int(rollouts * value("max_completion_length") * times)
    seen = int(rollouts * (length + value("max_completion_length")))
    further = inference_flops(shape.parameters, seen) * (bool(value("beta")) + _asks_twice(recipe))
    sampling = inference_flops(shape.parameters, seen * times)
    training = update_flops(shape.parameters, seen * value("num_iterations")) + further
    if not rollouts:
        stage = recipe.method.stages.supervised
        seen = stage.batch_size * (length + value("max_completion_length")) if stage else 0
        sampling, training = 0, update_flops(shape.parameters, seen)
    speed = machine.devices * machine.tflops * 1e12
    return Plan(
        recipe, shape, launch, machine, stages, 0.0 if value("vllm_enable_sleep_mode") else share, sizes, generated,
        seen, sampling + training,
        sampling / speed / machine.generation_mfu + training / speed / machine.mfu, max(value("max_steps"), 0),
        notes=notes,
    )  # fmt: skip


def _generations(recipe: Recipe) -> int:
    """Number of generations of a step, at most: rounds of help and of other problems, and further continuations."""
    needs = recipe.method.needs
    value = recipe.training_value
    rounds = value("resample_rounds") if value("groups_without_signal") == "resample" else 0
    return (1 + needs.help_rounds) * (1 + rounds) + (needs.further.count if needs.further else 0)


def _asks_twice(recipe: Recipe) -> bool:
    """True if log-probabilities are computed again before the update."""
    value = recipe.training_value
    corrects = value("use_vllm") and value("vllm_importance_sampling_correction")
    return bool(corrects or batches(recipe, 1).steps > 1 or recipe.method.needs.entropies)


def _prompt_length(recipe: Recipe, config: PretrainedConfig) -> int:
    """What vLLM's context or the model's positions leave beside a completion, and at most :data:`PROMPT`."""
    whole = recipe.training_value("vllm_max_model_length") if recipe.training_value("use_vllm") else None
    whole = whole or positions_of(config) or 2**31
    return max(min(PROMPT, whole - recipe.training_value("max_completion_length")), 1)


# --- what it is made of -----------------------------------------------------------------------------------------------


def setting_of(
    recipe: Recipe, shape: Shape, launch: Launch, devices: int, prompt: int, notes: list[str] | None = None
) -> Setting:
    """The numbers of a recipe's rollouts on one of ``devices``; what cannot be told is said in ``notes``."""
    value, notes = recipe.training_value, notes if notes is not None else []
    half = value("fp16") or value("bf16") is not False
    own = 2 if recipe.model.dtype in ("bfloat16", "float16") else 4
    weights, autocast = (2, False) if launch.deepspeed and half else (own, half and own == 4)
    name = str(value("optim") or "adamw_torch_fused").lower()
    states = next((size for start, size in _STATES.items() if start in name), 8)
    states = states / 4 if "8bit" in name else states * (weights / 4 if shape.whole and not launch.deepspeed else 1)
    if launch.deepspeed and half:
        states += 4  # its float32 copy of the weights
    packed = recipe.speed.shared_prefix and not shape.dropout
    if recipe.speed.shared_prefix and shape.dropout:
        notes.append("adapters with dropout take the plain path: model.lora_dropout=0.0 would pack the rows")
    accumulation = value("gradient_accumulation_steps")
    own_rollouts = value("per_device_train_batch_size") * (
        value("steps_per_generation")
        or (value("generation_batch_size") or 0) // (value("per_device_train_batch_size") * devices)
        or accumulation
    )
    return Setting(
        rows=value("per_device_train_batch_size"), group=value("num_generations"), prompt=prompt,
        completion=value("max_completion_length"), accumulation=accumulation,
        generated=0 if value("use_vllm") else own_rollouts,
        weights=_bytes_of_weights(recipe, shape, weights), compute=2 if half or own == 2 else 4, autocast=autocast,
        packed=packed, checkpointing=bool(value("gradient_checkpointing")), states=states,
        reference=bool(value("beta")) and shape.whole, devices=devices,
        stage=launch.stage if devices > 1 else 0, offload_states=launch.offload_states,
        offload_parameters=launch.offload_parameters,
    )  # fmt: skip


def _bytes_of_weights(recipe: Recipe, shape: Shape, plain: float) -> float:
    """Bytes of a parameter; quantized those of the blocks, 4 bits and a float32 scale for each 64 of them, or 8."""
    peft = recipe.model.peft
    if not adapters.quantized(peft):
        return plain
    inside = 0.5 + 4 / 64 if peft.get("load_in_4bit") else 1.0
    outside = 2 * shape.vocabulary * shape.hidden
    return (inside * max(shape.parameters - outside, 0) + 2 * outside) / shape.parameters


def config_of(recipe: Recipe) -> PretrainedConfig:
    """The configuration of the recipe's model, without its weights.

    Raises:
        UserError: if there is none of that name, or the hub cannot be asked.
    """
    from transformers import AutoConfig

    if recipe.model.name_or_path == LAB:
        from .lab.base import model

        return model(recipe.world, 0).config
    place = find(recipe.model.name_or_path, revision=recipe.model.revision)
    try:
        return AutoConfig.from_pretrained(place.base, revision=place.revision)
    except Exception as error:  # whatever transformers raises at what stands in the file
        found = unavailable(f"the configuration of {place.base} could not be read", error)
        if isinstance(found, UnreachableError):
            found = UnreachableError(
                f"the configuration of {place.base} is not on this machine, and the hub does not answer. A plan needs "
                "nothing but that file: fetch it where there is a network (`hf download NAME config.json`), and give "
                "its folder as model.name_or_path=FOLDER"
            )
        raise found from error


def shape_of(recipe: Recipe, config: PretrainedConfig) -> Shape:
    """The model with its adapters, in numbers.

    Raises:
        RecipeError: if it is no decoder of the kind that can be estimated.
    """
    import torch

    text = config.get_text_config()
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    lacking = [name for name in names if not isinstance(getattr(text, name, None), int)]
    if lacking or getattr(config, "is_encoder_decoder", False):
        why = f"its configuration has no {', '.join(lacking)}" if lacking else "it has an encoder"
        raise RecipeError(f"{recipe.model.name_or_path} ({config.model_type}) cannot be estimated: {why}; a plan "
                          "knows decoders with a gated feed-forward block (Llama, Qwen, Mistral, SmolLM)")  # fmt: skip
    try:
        with torch.device("meta"):
            adapted = _with_adapters(recipe, on_meta(config))
    except UserError:
        raise
    except Exception as error:  # of values that no model can have, the libraries raise whatever their parts do
        raise unavailable(f"no model can be built as {recipe.model.name_or_path} describes it", error) from error
    parameters = list(adapted.parameters())
    modules = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    peft = getattr(adapted, "peft_config", {}).get("default")
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return Shape(
        text.num_hidden_layers, text.hidden_size, text.intermediate_size, text.num_attention_heads,
        getattr(text, "num_key_value_heads", None) or text.num_attention_heads, width, text.vocab_size,
        sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad),
        frozenset(name.rpartition(".")[2] for name in modules), getattr(peft, "r", 0) if peft else 0,
        bool(getattr(peft, "lora_dropout", 0)),
    )  # fmt: skip


def _with_adapters(recipe: Recipe, model):
    """The model on the meta device with the adapters that would be trained, if any."""
    name = recipe.model.name_or_path
    folder = find(name).adapters if name != LAB else None
    if folder:
        from peft import PeftConfig, get_peft_model

        return get_peft_model(model, PeftConfig.from_pretrained(folder))
    plain = {key: value for key, value in recipe.model.peft.items() if "load_in" not in key and "bnb" not in key}
    found = adapters.new(replace(recipe.model, peft=plain))
    if not found:
        return model
    from peft import get_peft_model

    return get_peft_model(model, found["peft_config"])


# --- what to change ---------------------------------------------------------------------------------------------------


def _advice(
    path, overrides: Sequence[str], found: Plan, config: PretrainedConfig, prompt: int | None
) -> list[tuple[str, float]]:
    """Changes one at a time, and then as many of them together as it takes, with the bytes that are left."""
    tried = []

    def peak(changes: Sequence[str], launch: Launch) -> Plan | None:
        return _changed(path, [*overrides, *changes], launch, found.machine, config, prompt)

    for changes in _changes(found.recipe):
        if (one := peak(changes, found.launch)) and one.peak < 0.99 * found.peak:
            tried.append((changes, found.launch, one.peak))
    stage3 = replace(found.launch, deepspeed=True, stage=3)
    if found.machine.devices > 1 and found.launch.stage < 3 and (one := peak([], stage3)) and one.peak < found.peak:
        tried.append((["--accelerate recipes/accelerate/zero3.yaml"], stage3, one.peak))
    tried.sort(key=lambda each: each[2])
    together: list[str] = []
    launch, last = found.launch, found.peak
    for changes, its, _ in tried:
        if its is stage3:
            launch = stage3
        own = [c for c in (*together, *changes) if not c.startswith("--")]
        one = peak(own, launch)
        if one and one.peak < last:
            together, last = [*together, *changes], one.peak
        if last <= found.machine.memory:
            break
    alone = [(" ".join(changes), size) for changes, _, size in tried]
    whole = (" ".join(together), last)
    return alone + ([whole] if len(together) > 1 and whole not in alone else [])


def _changed(path, overrides: Sequence[str], launch: Launch, machine: Machine, config, prompt) -> Plan | None:
    """The plan with other overrides; None if the recipe does not take them."""
    try:
        recipe = load_recipe(path, overrides)
        return _planned(recipe, shape_of(recipe, config), launch, machine, config, prompt)
    except UserError:
        return None


def _wider(path, overrides: Sequence[str], found: Plan, config, prompt) -> tuple[str, float] | None:
    """The overrides of the largest micro-batch that fits, of those twice as large as the one before."""
    value, best, factor = found.recipe.training_value, None, 2
    parts = {"gradient_accumulation_steps": value("gradient_accumulation_steps")}
    if ROLLOUTS not in found.stages:
        return None
    if steps := value("steps_per_generation"):
        parts["steps_per_generation"] = steps
    while all(count % factor == 0 for count in parts.values()):
        changes = [f"training.per_device_train_batch_size={value('per_device_train_batch_size') * factor}",
                   *(f"training.{name}={count // factor}" for name, count in parts.items())]  # fmt: skip
        one = _changed(path, [*overrides, *changes], found.launch, found.machine, config, prompt)
        if not (one and one.fits and one.batches == found.batches):
            break
        best, factor = (" ".join(changes), one.peak), factor * 2
    return best


def _changes(recipe: Recipe) -> list[list[str]]:
    """Overrides that take less memory."""
    value = recipe.training_value
    found: list[list[str]] = []
    if not value("gradient_checkpointing"):
        found.append(["training.gradient_checkpointing=true"])
    rows, factor = value("per_device_train_batch_size"), 1
    while rows % 2 == 0:
        rows, factor = rows // 2, factor * 2
    if factor > 1:
        changes = [f"training.per_device_train_batch_size={rows}",
                   f"training.gradient_accumulation_steps={value('gradient_accumulation_steps') * factor}"]  # fmt: skip
        if steps := value("steps_per_generation"):
            changes.append(f"training.steps_per_generation={steps * factor}")
        found.append(changes)
    stage = recipe.method.stages.supervised
    if stage and stage.per_device_batch_size > 1:
        found.append(["method.supervised.per_device_batch_size=1"])
    if value("use_vllm") and value("vllm_mode") == "colocate" and not value("vllm_enable_sleep_mode"):
        found.append(["training.vllm_enable_sleep_mode=true"])
    if not recipe.model.peft.get("use_peft"):
        found.append(["model.use_peft=true", "model.lora_dropout=0.0"])
    if value("max_completion_length") >= 256:
        found.append([f"training.max_completion_length={value('max_completion_length') // 2}"])
    return found


# --- in words ---------------------------------------------------------------------------------------------------------


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def report(found: Plan, table: Callable[[Sequence[Sequence[str]]], str]) -> str:
    """The plan as text; ``table`` lays out rows."""
    shape, machine, launch = found.shape, found.machine, found.launch
    how = f"ZeRO-{launch.stage}" if launch.deepspeed else "DDP" if machine.devices > 1 else "one process"
    trained = "" if shape.whole else f", {shape.trained:,} of them trained"
    lines = [
        f"{found.recipe.model.name_or_path}: {shape.parameters:,} parameters{trained}; {how} on {machine.devices} "
        f"device{'s' * (machine.devices > 1)} of {_gib(machine.memory)}",
        "",
    ]
    names = ("parameters", "gradients", "optimizer", "activations", "layer", "work", "casts", "head", "generation")
    words = {
        "layer": "one layer, computed again", "work": "gradients inside a layer", "casts": "weights cast by autocast",
        "head": "head (tiles of logits)", "optimizer": "optimizer states",
        "generation": "generation: keys, values, logits",
    }  # fmt: skip
    rows = [("on each device", *found.stages)]
    rows += [
        (words.get(name, name), *(_gib(size) if (size := getattr(e, name)) else "" for e in found.stages.values()))
        for name in names if any(getattr(e, name) for e in found.stages.values())
    ]  # fmt: skip
    rows.append(("the most at a time", *(_gib(e.peak) for e in found.stages.values())))
    lines += [table(rows), ""]
    beside = f" and vLLM's share, {_gib(found.vllm)}" if found.vllm else ""
    verdict = "it fits" if found.fits else "it does NOT fit"
    lines.append(f"with {_gib(RESERVE)} in reserve{beside}: {_gib(found.peak)} of {_gib(machine.memory)}; {verdict}")
    lines.append(
        f"a step, at most: {found.generated:,} tokens generated, {found.trained:,} encoded for the update, "
        f"{found.flops:.3g} operations"
    )
    hours = f"{found.seconds * found.steps / 3600:,.1f} hours for {found.steps:,} steps" if found.steps else (
        "the number of steps depends on the data")  # fmt: skip
    lines.append(
        f"at {machine.mfu:.0%} of {machine.tflops:g} TFLOPS in training and {machine.generation_mfu:.0%} in "
        f"generation: {found.seconds:,.1f} s a step, {hours}"
    )
    if found.advice:
        lines += ["", "what to change:", *(f"  {_gib(size):>10}  {change}" for change, size in found.advice)]
    elif found.wider:
        change, size = found.wider
        lines += ["", "room for larger micro-batches; small ones leave a GPU waiting (docs/speed.md):",
                  f"  {_gib(size):>10}  {change}"]  # fmt: skip
    elif not found.fits:
        lines += ["", "nothing that was tried takes less: give it more devices, or a smaller model"]
    return "\n".join(lines)


def as_json(found: Plan) -> dict[str, Any]:
    """The plan as JSON holds it; sizes in bytes."""
    stages = {
        name: {key: getattr(e, key) for key in e.__dataclass_fields__} | {"phases": e.phases, "peak": e.peak}
        for name, e in found.stages.items()
    }
    return {
        "model": found.recipe.model.name_or_path, "parameters": found.shape.parameters,
        "trained_parameters": found.shape.trained, "devices": found.machine.devices, "zero_stage": found.launch.stage,
        "stages": stages, "vllm": found.vllm, "reserve": RESERVE, "peak": found.peak, "memory": found.machine.memory,
        "fits": found.fits, "tokens_generated": found.generated, "tokens_trained": found.trained, "flops": found.flops,
        "seconds": found.seconds, "steps": found.steps, "advice": [list(a) for a in found.advice],
        "wider": found.wider and list(found.wider), "notes": found.notes,
    }  # fmt: skip
