"""Values of a recipe that cannot stand together, though each is well-formed: a list of faults in words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

from . import adapters
from .batches import batches, world_size
from .data import contamination
from .data.problems import Problem
from .data.turns import plain_fault
from .grpo_fields import idle
from .methods.idle import idle as idle_settings
from .methods.stage import ROLLOUTS
from .rewards import functions

if TYPE_CHECKING:
    from .policy import Policy
    from .recipe import Recipe


def between_blocks(recipe: Recipe) -> list[str]:
    """Faults of blocks that cannot be together, though each is well-formed."""
    value, faults = recipe.training_value, []
    group_size = value("num_generations")
    if group_size < 2:
        faults.append(f"training.num_generations = {group_size}: credit is relative to a group, so at least 2")
    if value("generation_batch_size") and value("steps_per_generation"):
        faults.append("training.generation_batch_size and training.steps_per_generation: give only one of them")
    sizes = ("per_device_train_batch_size", "gradient_accumulation_steps", "num_iterations")
    for name in sizes:
        if value(name) < 1:
            faults.append(f"training.{name} = {value(name)}: must be an integer of at least 1")
    if faults:
        return faults
    batch = batches(recipe, world_size())
    if batch.rollouts % group_size or batch.rollouts < group_size:
        faults.append(
            f"one generation batch has {batch.rollouts} rollouts (training.per_device_train_batch_size x processes x "
            f"steps), which is not a multiple of training.num_generations = {group_size}"
        )
    save_steps = value("save_steps")
    if value("save_strategy") == "steps" and save_steps >= 1 and save_steps % max(batch.steps, 1):
        faults.append(
            f"training.save_steps = {save_steps} is not a multiple of the {batch.steps:g} steps that one generation "
            "batch serves; a checkpoint inside that window could not be resumed exactly"
        )
    faults += recipe.method.faults(recipe.whole_training) + idle_settings(recipe.method)
    faults += recipe.world.faults() + recipe.engine.faults() + _vllm(recipe)
    faults += adapters.faults(recipe.model.peft)
    if recipe.evaluation.data is None and value("eval_strategy") not in ("no", None):
        faults.append(f"training.eval_strategy = {value('eval_strategy')}, but evaluation.data names nothing to use")
    if recipe.evaluation.data is None and value("eval_on_start"):
        faults.append("training.eval_on_start = true, but evaluation.data names nothing to use")
    if recipe.evaluation.temperature == 0 and (recipe.evaluation.samples or 1) > 1:
        faults.append(
            f"evaluation.samples = {recipe.evaluation.samples} with evaluation.temperature = 0: greedy decoding gives "
            "the same completion every time; set evaluation.samples = 1, or a temperature"
        )
    if recipe.uses_lab and recipe.data.prompt != "plain":
        faults.append("data.prompt = chat: the lab's policy knows no chat template; set data.prompt = plain")
    if recipe.data.prompt == "plain" and recipe.data.system_prompt is not None:
        faults.append("data.system_prompt needs data.prompt = chat")
    if recipe.model.chat_template and not os.path.isfile(recipe.model.chat_template):
        faults.append(f"model.chat_template: there is no file {recipe.model.chat_template}")
    if recipe.model.chat_template and recipe.data.prompt == "plain":
        faults.append("model.chat_template needs data.prompt = chat: a plain prompt goes through no template")
    if value("chat_template_kwargs") and recipe.data.prompt == "plain":
        faults.append("training.chat_template_kwargs needs data.prompt = chat: a plain prompt goes through no template")
    if recipe.model.date is not None and not _is_date(recipe.model.date):
        faults.append(f"model.date = {recipe.model.date}: must be a date, as 2026-11-25")
    faults += functions.faults(recipe.reward.functions, recipe.reward.weights)
    if value("reward_weights") and (len(value("reward_weights")) != 1 or recipe.reward.takes_columns):
        faults.append(f"training.reward_weights = {value('reward_weights')}: set reward.weights, one for each function")
    return faults + _of_training(recipe)


def _of_training(recipe: Recipe) -> list[str]:
    """Faults of what TRL and transformers would do on their own, by the ``training`` block."""
    value, faults = recipe.training_value, []
    if value("push_to_hub"):
        faults.append(
            "training.push_to_hub = true would publish the whole folder of the run: optimizers, and rollouts with the "
            f"gold answers. Publish the policy alone when it is trained: hf upload NAME {recipe.output.dir}/final"
        )
    if value("save_only_model"):
        faults.append(
            "training.save_only_model = true: a checkpoint without optimizer cannot be continued from, and a run that "
            "was cut off would go on with a fresh one; leave it out, and use training.save_total_limit to save space"
        )
    if recipe.output.dir.startswith("~") or not recipe.output.dir.strip():
        faults.append(
            f"output.dir = {recipe.output.dir!r}: is taken as it stands, and behind a '=' no shell puts the home "
            "folder there; write the whole path, as $HOME/runs/mine in a shell"
        )
    elif os.path.lexists(recipe.output.dir) and not os.path.isdir(recipe.output.dir):
        faults.append(f"output.dir = {recipe.output.dir}: something stands there already, and it is no folder")
    if value("fp16") and value("use_cpu"):
        faults.append("training.fp16 = true needs a GPU, and training.use_cpu = true takes none; leave fp16 out")
    if value("entropy_coef_min") > value("entropy_coef_max"):
        faults.append(
            f"training.entropy_coef_min = {value('entropy_coef_min')} is above training.entropy_coef_max = "
            f"{value('entropy_coef_max')}"
        )
    faults += [f"training.{name} = {value(name)} {why}" for name, why in idle(recipe.training).items()]
    if "resample_rounds" in recipe.training and value("groups_without_signal") != "resample":
        faults.append(
            f"training.resample_rounds = {value('resample_rounds')} does nothing without "
            "training.groups_without_signal = resample; set that too, or leave it out"
        )
    faults += _best(recipe)
    if value("ddp_backend") and value("use_cpu") and world_size() == 1:
        faults.append(
            f"training.ddp_backend = {value('ddp_backend')} is of several processes, and torch fails where there is "
            "one; leave it out, or start them with `accelerate launch`"
        )
    if value("torch_compile") and recipe.speed.shared_prefix:
        faults.append(
            "training.torch_compile = true: the shared prefixes of the fast path cannot be compiled; set "
            "speed.shared_prefix = false, or leave it out"
        )
    if value("delta") is not None and value("delta") <= 1 + value("epsilon"):
        faults.append(
            f"training.delta = {value('delta')}: must be above 1 + training.epsilon = {1 + value('epsilon'):g}, or "
            "tokens of right completions are cut off before they have moved"
        )
    if value("sync_ref_model") and not value("beta"):
        faults.append("training.sync_ref_model = true needs training.beta above 0: without it no reference is used")
    return faults


def _best(recipe: Recipe) -> list[str]:
    """Faults of what goes by the best evaluation."""
    value, faults = recipe.training_value, []
    follows = value("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy")
    wanted = {
        "load_best_model_at_end": value("load_best_model_at_end"),
        "save_strategy": value("save_strategy") == "best",
        "lr_scheduler_type": follows,
    }
    by = [f"training.{name} = {value(name)}" for name, is_so in wanted.items() if is_so]
    if by and value("metric_for_best_model") is None:
        faults.append(
            f"{by[0]} needs training.metric_for_best_model = reward: without it the loss would decide, which says "
            "nothing of a policy that learns from rewards"
        )
    if by and value("eval_strategy") == "no":
        faults.append(f"{by[0]} needs evaluations while training: set training.eval_strategy and training.eval_steps")
    if follows and (value("lr_scheduler_kwargs") or {}).get("mode") != "max":
        faults.append(
            f"{by[-1]} needs training.lr_scheduler_kwargs = {{mode: max}}: by default the learning rate would fall "
            "while the reward rises"
        )
    return faults


_EACH_ROWS_OWN = {
    "seed": "all rollouts of a group would be the same; each has a seed of its own, from training.seed",
    "max_tokens": "each rollout may have training.max_completion_length tokens, its prefix included",
    "n": "each rollout is a request of its own; set training.num_generations",
    "logprobs": "the trainer asks for those of the sampled tokens",
    "temperature": "the log-probabilities are taken at training.temperature; set that",
}


def _vllm(recipe: Recipe) -> list[str]:
    """Faults of generating with vLLM while training."""
    value, faults = recipe.training_value, []
    if not value("use_vllm"):
        return faults
    given = value("generation_kwargs")
    for name in _EACH_ROWS_OWN.keys() & given.keys() if isinstance(given, dict) else ():
        faults.append(f"training.generation_kwargs.{name} = {given[name]}: {_EACH_ROWS_OWN[name]}; leave it out")
    length, completion = value("vllm_max_model_length"), value("max_completion_length")
    if length is not None and length <= completion:
        faults.append(
            f"training.vllm_max_model_length = {length} leaves no room for a prompt and "
            f"training.max_completion_length = {completion} tokens; raise it to the longest prompt and that"
        )
    return sorted(faults)


def vllm_context(recipe: Recipe, policy: Policy, problems: Sequence[Problem]) -> list[str]:
    """Faults of generating with vLLM behind these problems' prompts."""
    length, completion = recipe.training_value("vllm_max_model_length"), recipe.training_value("max_completion_length")
    if not recipe.training_value("use_vllm") or length is None or length <= completion:
        return []
    hint = recipe.method.needs.hint
    completion += hint.longest if hint else 0  # it makes the prompt longer
    room = length - completion
    may_be_longer = [
        p for p in problems if p.turns or len(p.text.encode()) > (room - len(policy.example)) / 2
    ]  # a token: 1/2 byte
    longest = max((len(policy.prompt_ids(p)) for p in may_be_longer), default=0)
    if longest <= room:
        return []
    return [
        f"training.vllm_max_model_length = {length}, but the longest prompt has {longest} tokens and a completion may "
        f"have {completion}: set it to {longest + completion} or more"
    ]


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def with_data(recipe: Recipe, train: Sequence[Problem]) -> list[str]:
    """Faults of training this recipe on these problems."""
    faults = []
    prompts = batches(recipe, world_size()).prompts
    demonstrated = [bool(p.demonstrations) for p in train]
    copied = recipe.method.copies(demonstrated)
    rows = sum(n * p.repeats for n, p in zip(copied, train, strict=True))
    if ROLLOUTS in recipe.method.stages.order and rows < prompts:
        copies = "" if rows == len(train) else f" ({rows} rows with the copies of {recipe.method_name})"
        faults.append(
            f"data.train has {len(train)} problems{copies}, fewer than the {prompts} prompts of one generation batch: "
            "training would end before its first step"
        )
    if recipe.data.prompt == "plain" and (chats := [p for p in train if p.turns]):
        faults.append(plain_fault(chats))
    if recipe.method.stages.own_traces and recipe.data.traces is None:
        faults.append(
            f"data.traces is missing: method {recipe.method_name} learns from traces of the policy's own, and from no "
            "other demonstrations. Sample them: `prefix-rl collect RECIPE --output FOLDER`; set data.traces = FOLDER"
        )
    elif recipe.method.needs.wrong and recipe.data.traces is None:
        faults.append(
            "data.traces is missing: method.traces = wrong starts from wrong traces of the policy's own, and what a "
            "data set brings are solutions. A store keeps failures: `prefix-rl collect RECIPE --output FOLDER --k 32 "
            "--cap 32`; set data.traces = FOLDER"
        )
    elif recipe.uses_demonstrations and not any(demonstrated):
        faults.append(
            f"method {recipe.method_name} needs demonstrations, but no row of {recipe.data.named} has any (column "
            "demonstrations or solution, or data.traces)"
        )
    return faults


def with_columns(names: Sequence[str], sources: Mapping[str, Sequence[Problem]]) -> list[str]:
    """Faults of rows that lack a column which a reward function cannot do without."""
    faults = []
    for name in names:
        for column in functions.needed(name):
            for source, problems in sources.items():
                lacking = [p for p in problems if functions.row_of(p).get(column) in (None, "")]
                if lacking:
                    have = ", ".join(functions.row_of(lacking[0]))
                    faults.append(
                        f"reward.functions: {name} needs the column {column!r}, and {len(lacking)} of the "
                        f"{len(problems)} rows of {source} have none (the first: {lacking[0].place or lacking[0].id}, "
                        f"which has {have})"
                    )
    return faults


def overlap(recipe: Recipe, train: Sequence[Problem], held_out: Sequence[Problem]) -> list[str]:
    """Faults of evaluating on problems that are trained on."""
    shared = contamination.overlap([p.text for p in train], [p.text for p in held_out])
    if not shared:
        return []
    shown = shared[0] if len(shared[0]) <= 60 else shared[0][:57] + "..."
    return [
        f"evaluation.data: {len(shared)} of its {len(held_out)} problems stand in data.train, for example {shown!r}. "
        f"Take them out (prefix-rl prepare --against {recipe.evaluation.data}), or set evaluation.allow_overlap = true"
    ]
