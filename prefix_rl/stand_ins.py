"""What only the libraries can judge, asked of them with stand-ins, before a model is loaded.

TRL, transformers and torch refuse many values where they use them: after the model is loaded, at the first generation,
at the first backward pass. Here they use them on something small: an optimizer of a few parameters, a generation of two
tokens by a model of a few bytes, the policy's own architecture on the meta device, which holds no weights.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .errors import StackError, nearest
from .trials import tried

if TYPE_CHECKING:
    from transformers import PretrainedConfig, TrainingArguments

    from .recipe import Recipe


def of_training(args: TrainingArguments, tokens: int = 1000) -> tuple[list[str], list[str]]:
    """What packages are missing for a training block, and its faults, in words.

    Args:
        args: TRL's arguments made of it.
        tokens: size of the stand-in's vocabulary; ids beyond it are not refused, they are the model's.
    """
    trials: dict[str, Callable[[], object]] = {
        f"training.optim = {_value(args.optim)}, training.optim_args = {args.optim_args}": lambda: _optimizer(args),
        f"training.lr_scheduler_type = {_value(args.lr_scheduler_type)}, training.lr_scheduler_kwargs = "
        f"{args.lr_scheduler_kwargs}": lambda: _schedule(args),
        f"training.gradient_checkpointing_kwargs = {args.gradient_checkpointing_kwargs}": lambda: _checkpointing(args),
        "training.dataloader_*": lambda: _loader(args),
        f"training.torch_compile_backend = {args.torch_compile_backend}": lambda: _compiler(args),
        f"training.generation_kwargs = {args.generation_kwargs}, training.cache_implementation = "
        f"{args.cache_implementation}": lambda: None if args.use_vllm else _generation(args, tokens),
        "training.transformers_continuous_batching_config": lambda: _continuous(args),
    }  # fmt: skip
    return _tried(trials)


def of_model(recipe: Recipe, config: PretrainedConfig) -> tuple[list[str], list[str]]:
    """What packages are missing for a model block, and its faults: the attention, the adapters, and what the training
    block says of the model's kind."""
    model: list[Any] = []

    def build() -> None:
        model.append(on_meta(config, recipe.model.attn_implementation))

    lacking, faults = _tried({f"model.attn_implementation = {recipe.model.attn_implementation}": build})
    coefficient = recipe.training_value("router_aux_loss_coef")
    if coefficient and not hasattr(config.get_text_config(), "output_router_logits"):
        faults.append(
            f"training.router_aux_loss_coef = {coefficient}: {config.model_type} has no experts whose load it balances"
        )
    if model and recipe.model.peft.get("use_peft"):
        trials = {"model.use_peft = true with these lora_* keys": lambda: _adapters(recipe, model[0])}
        more = _tried(trials)
        lacking, faults = lacking + more[0], faults + more[1]
    return lacking, faults


def _tried(trials: Mapping[str, Callable[[], object]]) -> tuple[list[str], list[str]]:
    lacking, faults = [], []
    for what, trial in trials.items():
        try:
            with _silent():
                trial()
        except ImportError as error:
            lacking.append(f"{what}: {_short(error)}")
        except Exception as error:  # whatever a library raises at a value that it does not take
            faults.append(f"{what}: {_short(error)}")
    return lacking, faults


def check(recipe: Recipe, args: TrainingArguments, config: PretrainedConfig) -> None:
    """:func:`of_training` and :func:`of_model`, before a model is loaded.

    Raises:
        StackError: with every fault.
    """
    found = [what for both in (of_training(args), of_model(recipe, config)) for part in both for what in part]
    if found:
        raise StackError("this run would fail, or train on the wrong thing:", found)


def _value(of: object) -> object:
    return getattr(of, "value", of)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No warning about a stand-in."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


# --- the training block -----------------------------------------------------------------------------------------------


def _optimizer(args: TrainingArguments):
    import torch
    from transformers import Trainer

    model = torch.nn.Linear(2, 2)
    cls, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    plain = copy.copy(args)
    plain.optim_args = None
    if args.optim_args and (cls, options) == Trainer.get_optimizer_cls_and_kwargs(plain, model):
        raise ValueError("this optimizer reads none of these arguments")
    if any(name in options for name in ("params", "model", "optimizer_dict")):  # of the true model's layers, by name
        return None
    return cls(model.parameters(), **options)


def _schedule(args: TrainingArguments) -> None:
    import torch
    from transformers import get_scheduler
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    known = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[args.lr_scheduler_type]).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in known.values())  # handed on to a class, which is asked below
    for name in dict(args.lr_scheduler_kwargs or {}):
        if (name not in known and not anything) or name in ("optimizer", "num_warmup_steps", "num_training_steps"):
            raise ValueError(f"this schedule has no setting {name}{nearest(name, known)}")
    steps = args.max_steps if args.max_steps > 0 else 1000
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=copy.deepcopy(args.lr_scheduler_kwargs),
    )


def _checkpointing(args: TrainingArguments) -> None:
    import torch
    from torch.utils.checkpoint import checkpoint

    if args.activation_checkpointing_kwargs:
        options = {"use_reentrant": False, **args.activation_checkpointing_kwargs}
        checkpoint(torch.square, torch.ones(1, requires_grad=True), **options).backward()


def _loader(args: TrainingArguments) -> None:
    from torch.utils.data import DataLoader

    DataLoader(
        [0],
        num_workers=args.dataloader_num_workers,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        multiprocessing_context=args.dataloader_multiprocessing_context,
    )


def _compiler(args: TrainingArguments) -> None:
    if args.torch_compile:
        from accelerate.utils import DynamoBackend

        known = [backend.value.lower() for backend in DynamoBackend]
        if args.torch_compile_backend not in known:
            name = args.torch_compile_backend
            raise ValueError(f"accelerate knows no such backend{nearest(name, known)}; there are {', '.join(known)}")


_OWN = {
    "max_new_tokens": "each rollout may have training.max_completion_length tokens, its prefix included",
    "max_length": "each rollout may have training.max_completion_length tokens, its prefix included",
    "max_time": "a rollout ends where its tokens end, not after a time",
    "num_return_sequences": "each rollout is a row of its own; set training.num_generations",
    "num_beams": "rollouts are sampled, each alone",
    "return_dict_in_generate": "the trainer takes the ids",
    "temperature": "the log-probabilities are taken at training.temperature; set that",
    "eos_token_id": "a completion ends with the ids of the model, its tokenizer and its chat template",
    "pad_token_id": "the tokenizer has one",
    "bos_token_id": "the tokenizer has one",
}
"""Keys of ``generation_kwargs`` that are the trainer's own."""
_NEUTRAL = {"num_return_sequences": 1, "num_beams": 1, "return_dict_in_generate": False}
"""The values of these keys that change nothing, besides null."""
_OTHER_WAYS = ("assistant_", "num_assistant_", "prompt_lookup_", "output_", "stop_strings")
"""Beginnings of keys that generate in another way, or return something else, than the trainer reads."""


def _generation(args: TrainingArguments, tokens: int) -> None:
    """Two tokens, generated by these settings."""
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    given = dict(args.generation_kwargs or {})
    known = vars(GenerationConfig())
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"there is no setting {name} of generation{nearest(name, known)}")
        if name.startswith(_OTHER_WAYS):
            raise ValueError(f"{name}: rollouts are not generated so; leave it out")
        if name in _OWN and value is not None and value is not _NEUTRAL.get(name):
            raise ValueError(f"{name} = {value}: {_OWN[name]}; leave it out")
    settings = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k,
                "min_p": args.min_p, "repetition_penalty": args.repetition_penalty,
                "cache_implementation": args.cache_implementation, "pad_token_id": 0, "eos_token_id": None,
                "max_new_tokens": 2, **given}  # fmt: skip
    shape = {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1,
             "num_key_value_heads": 1, "vocab_size": max(tokens, 2)}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**shape)).eval()
        config = GenerationConfig(**settings, disable_compile=True)
        model.generate(input_ids=torch.ones((1, 2), dtype=torch.long), generation_config=config)


def _continuous(args: TrainingArguments) -> None:
    if args.use_transformers_continuous_batching:
        from transformers.generation import ContinuousBatchingConfig

        ContinuousBatchingConfig(**(args.transformers_continuous_batching_config or {}))


# --- the model block --------------------------------------------------------------------------------------------------


def on_meta(config: PretrainedConfig, attention: str | None = None):
    """A model of this architecture on the meta device: shapes without weights."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_utils import set_zero3_state

    # Under ZeRO-3 transformers would share its parameters out among the ranks, and it has none: told that it is done
    with torch.device("meta"), set_zero3_state():
        options = {} if attention is None else {"attn_implementation": attention}
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), **options)


def _adapters(recipe: Recipe, model) -> None:
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    from .adapters import new

    names = [name for name, _ in model.named_modules()]
    targets = recipe.model.peft.get("lora_target_modules")
    if isinstance(targets, str):
        _refuse_endless(targets, names)
    for given in recipe.model.peft.get("lora_modules_to_save") or ():
        if not any(name == given or name.endswith(f".{given}") for name in names):
            there = {name.rpartition(".")[2] for name in names}
            raise ValueError(f"lora_modules_to_save: the model has no module {given}{nearest(given, there)}")
    adapted = get_peft_model(model, new(recipe.model)["peft_config"])
    if isinstance(adapted.get_output_embeddings(), BaseTunerLayer):
        raise ValueError(
            "TRL computes log-probabilities from the weights of lm_head alone; leave it out of the targets"
        )


_MATCHING = """
import re
pattern, names = given
for name in names:
    re.fullmatch(pattern, name)
"""


def _refuse_endless(pattern: str, names: list[str], seconds: float = 10) -> None:
    """Refuses a regular expression that takes very long on a module's name: tried where it can be ended."""
    if how := tried(_MATCHING, [pattern, names], seconds, mib=1024):
        raise ValueError(f"the pattern {pattern} {how} on the names of the modules")
