"""Every field of TRL's ``GRPOConfig``: what it may be here, or why it is refused.

TRL and transformers declare types alone, and of most wrong values they say nothing (``top_p: 2``), or something after
the model is loaded. So the bounds stand here, beside the types, each where the field's meaning sets it; what only the
libraries can judge is asked of them by :mod:`prefix_rl.preflight`. A test holds that each field stands in one of the
tables.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt

from .fields import Field, fields_from_source

Fraction = Annotated[float, Interval(ge=0, le=1)]
Above0 = Annotated[float, Gt(0)]
AtLeast0 = Annotated[float, Ge(0)]
Beta = Annotated[float, Ge(0), Lt(1)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""Seeds that numpy takes."""
Rows = Annotated[int, Ge(1), Le(2**20)]
"""Rows of a batch."""
Steps = Annotated[int, Ge(1), Le(10**9)]
Interval_ = Annotated[float, Gt(0), Le(10**9)]
"""Steps between two events; below 1 a share of all."""
Port = Annotated[int, Ge(1), Le(65535)]
Strategy = Literal["no", "steps", "epoch"]

BOUNDED: dict[str, Any] = {
    # length
    "num_train_epochs": Annotated[float, Gt(0), Le(10**6)], "max_steps": Literal[-1] | Steps,
    # batches
    "per_device_train_batch_size": Rows, "per_device_eval_batch_size": Rows,
    "gradient_accumulation_steps": Annotated[int, Ge(1), Le(2**20)], "num_iterations": Rows,
    "num_generations": Annotated[int, Ge(2), Le(2**16)],
    "num_generations_eval": Annotated[int, Ge(1), Le(2**16)] | None,
    "generation_batch_size": Annotated[int, Ge(1), Le(2**24)] | None, "steps_per_generation": Rows | None,
    "max_completion_length": Annotated[int, Ge(2), Le(2**24)],
    "pad_to_multiple_of": Annotated[int, Ge(1), Le(2**16)] | Literal["auto"] | None,
    "eval_accumulation_steps": Steps | None,
    # optimizer
    "learning_rate": AtLeast0, "lr_scheduler_type": str, "optim": str,
    "warmup_steps": Annotated[float, Ge(0), Le(10**9)], "weight_decay": AtLeast0, "max_grad_norm": AtLeast0,
    "adam_beta1": Beta, "adam_beta2": Beta, "adam_epsilon": AtLeast0,
    "neftune_noise_alpha": AtLeast0 | None, "torch_empty_cache_steps": Steps | None,
    "router_aux_loss_coef": AtLeast0 | None,
    # the objective
    "beta": AtLeast0, "epsilon": AtLeast0, "epsilon_high": AtLeast0 | None, "delta": Above0 | None,
    "importance_sampling_level": Literal["token", "sequence"],
    "multi_objective_aggregation": Literal["sum_then_normalize", "normalize_then_sum"],
    "ref_model_mixup_alpha": Fraction, "ref_model_sync_steps": Steps, "top_entropy_quantile": Fraction,
    "entropy_coef_delta": AtLeast0, "entropy_target": AtLeast0, "off_policy_mask_threshold": Above0 | None,
    "vllm_importance_sampling_mode": Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"],
    "vllm_importance_sampling_clip_max": Above0 | None, "vllm_importance_sampling_clip_min": AtLeast0 | None,
    "vllm_importance_sampling_cap": Above0 | None,
    # generation
    "temperature": Annotated[float, Ge(1e-3), Le(1000)], "top_p": Annotated[float, Interval(gt=0, le=1)],
    "top_k": Annotated[int, Ge(0), Le(2**31 - 1)], "min_p": Fraction | None,
    "repetition_penalty": Annotated[float, Gt(0), Le(1000)],
    "vllm_mode": Literal["colocate", "server"],
    "vllm_model_impl": Literal["auto", "vllm", "transformers", "terratorch"],
    "vllm_server_port": Port, "vllm_group_port": Port, "vllm_server_timeout": Annotated[float, Gt(0), Le(10**8)],
    "vllm_gpu_memory_utilization": Annotated[float, Interval(gt=0, le=1)],
    "vllm_max_model_length": Annotated[int, Ge(1), Le(2**31 - 1)] | None,
    "vllm_tensor_parallel_size": Annotated[int, Ge(1), Le(1024)],
    # logs, evaluation, checkpoints
    "logging_strategy": Strategy, "logging_steps": Interval_, "eval_strategy": Strategy, "eval_steps": Interval_ | None,
    "eval_delay": Annotated[float, Ge(0), Le(10**9)], "save_strategy": Literal["no", "steps", "epoch", "best"],
    "save_steps": Interval_, "save_total_limit": Annotated[int, Ge(1), Le(10**9)] | None,
    "log_level": Literal["debug", "info", "warning", "error", "critical", "passive"],
    "log_level_replica": Literal["debug", "info", "warning", "error", "critical", "passive"],
    "include_num_input_tokens_seen": bool | Literal["all", "non_padding", "no"],
    "metric_for_best_model": Literal["reward", "eval_reward"] | None, "greater_is_better": Literal[True] | None,
    "debug": Literal["", "underflow_overflow"],
    # machine
    "seed": Seed, "dataloader_num_workers": Annotated[int, Ge(0), Le(64)],
    "dataloader_prefetch_factor": Annotated[int, Ge(1), Le(1024)] | None,
    "dataloader_multiprocessing_context": Literal["fork", "spawn", "forkserver"] | None,
    "ddp_bucket_cap_mb": Annotated[int, Ge(1), Le(2**20)] | None, "ddp_timeout": Annotated[int, Ge(1), Le(10**8)],
    "ddp_backend": Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"] | None,
    "torch_compile_mode": Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None,
}  # fmt: skip
"""Fields whose values are narrower than TRL's type says."""

FREE = {
    # switches
    "average_tokens_across_devices", "bf16", "fp16", "tf32",
    "gradient_checkpointing", "torch_compile", "use_cache", "logging_first_step",
    "log_on_each_node", "disable_tqdm", "eval_on_start",
    "save_only_model", "save_on_each_node", "push_to_hub", "load_best_model_at_end",
    "full_determinism", "use_cpu",
    "dataloader_drop_last", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_in_order",
    "ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph", "skip_memory_metrics",
    "disable_dropout", "cast_lm_head_to_fp32", "ds3_gather_for_generation", "shuffle_dataset", "use_vllm",
    "vllm_enable_sleep_mode", "mask_truncated_completions", "sync_ref_model", "use_adaptive_entropy",
    "vllm_importance_sampling_correction", "use_bias_correction_kl",
    "use_transformers_continuous_batching",
    # names and numbers without a bound of their own
    "report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id",
    "vllm_server_base_url", "vllm_server_host", "vllm_structured_outputs_regex",
    "reward_weights", "entropy_coef", "entropy_coef_min", "entropy_coef_max",
    # what the libraries are asked about (preflight, policy)
    "lr_scheduler_kwargs", "optim_args", "optim_target_modules",
    "gradient_checkpointing_kwargs", "torch_compile_backend", "generation_kwargs", "chat_template_kwargs",
    "cache_implementation", "transformers_continuous_batching_config",
    # every method's own, see recipe.py
    "loss_type", "scale_rewards",
}  # fmt: skip
"""Fields that may be whatever TRL's type says, and what is asked further."""

_PUSHED = "is of use with push_to_hub alone, which is refused"
_NO_EFFECT = "has no effect here: no loss, batch or metric of GRPO reads it; leave it out"
_SHARDED = "is not supported: choose a file of recipes/accelerate with `accelerate launch --config_file` instead"
_OTHER_LOSS = "is of another loss_type, and would do nothing; leave it out"
REFUSED = {
    "output_dir": "set output.dir instead",
    "resume_from_checkpoint": "set output.resume instead",
    "model_init_kwargs": "set the keys of the model block instead",
    "logging_nan_inf_filter": "set safety.not_finite instead; the log shows NaN where there is NaN",
    "log_completions": "set output.rollouts_every instead; the rollouts are saved with prefix and continuation apart",
    "log_completions_hub_repo": "would publish the rollouts, with the gold answers; set output.rollouts_every instead",
    "remove_unused_columns": "is always false: the reward reads the data set's columns",
    "deepspeed": "choose a file of recipes/accelerate with `accelerate launch --config_file` instead",
    "fsdp": _SHARDED,
    "fsdp_config": _SHARDED,
    "parallelism_config": "is not supported: a completion is not cut over devices; use data parallelism or ZeRO",
    "accelerator_config": "is not supported: it cuts batches in another way than the groups of rollouts need",
    "use_liger_kernel": "is not supported: it replaces the forward that TRL's fused head needs",
    "liger_kernel_config": "is not supported: see use_liger_kernel",
    "auto_find_batch_size": "is not supported: a smaller batch would not hold whole groups; set the batch size",
    "trust_remote_code": "is not supported: it would run code that comes with a model (see docs/security.md)",
    "hub_token": "is a secret, and recipes are written down; log in with `hf auth login`",
    "ignore_data_skip": "is not supported: a run that was cut off would go on with rows that it has seen",
    "local_rank": "is set by the launcher",
    "data_seed": "has no effect: TRL draws the order of the data by training.seed; set that",
    "enable_jit_checkpoint": "is not needed: a run that is asked to stop saves a whole checkpoint, see safety.grace",
    "restore_callback_states_from_checkpoint": "is not needed: what a run remembers is always read back",
    "activation_checkpointing": "set gradient_checkpointing instead, TRL's name: plan and supervised stage read that",
    "activation_checkpointing_kwargs": "set gradient_checkpointing_kwargs instead, TRL's name for the same",
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "has no effect on evaluations while training"),
    **dict.fromkeys(("num_completions_to_print", "log_unique_prompts"), "belongs to log_completions, which is refused"),
    "use_transformers_paged": "is now called use_transformers_continuous_batching",
    "max_tool_calling_iterations": "is not supported: there are no tools",
    **dict.fromkeys(("hub_model_id", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision"), _PUSHED),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg",
                     "vespo_lambda_neg"), _OTHER_LOSS),
    **dict.fromkeys(("label_smoothing_factor", "label_names", "prediction_loss_only", "eval_do_concat_batches",
                     "include_for_metrics", "batch_eval_metrics", "train_sampling_strategy", "length_column_name",
                     "do_train", "do_eval", "do_predict", "eval_use_gather_object", "log_multimodal"), _NO_EFFECT),
}  # fmt: skip
"""Fields that no recipe sets to another value than TRL's own, with the reason."""

NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ref_model_mixup_alpha", "ref_model_sync_steps"), ("sync_ref_model",)),
    **dict.fromkeys(("entropy_target", "entropy_coef_delta", "entropy_coef_min", "entropy_coef_max"),
                    ("use_adaptive_entropy",)),
    "use_bias_correction_kl": ("beta",),
    "metric_for_best_model": ("load_best_model_at_end", "save_strategy = best",
                              "lr_scheduler_type = reduce_lr_on_plateau", "lr_scheduler_type = greedy"),
    "greater_is_better": ("metric_for_best_model",),
}  # fmt: skip
"""Keys that do nothing unless one of these is set, to anything or to the value named."""

OLD = {
    "torch_dtype": "is now model.dtype",
    "dtype": "belongs to the model block: model.dtype",
    "max_prompt_length": "is gone: TRL cuts no prompts. Filter the data with `prefix-rl prepare --max-prompt-length`",
    "evaluation_strategy": "is now called eval_strategy",
    "overwrite_output_dir": "is gone: a run's folder is continued or refused, see output.resume",
    "vllm_device": "is gone: see vllm_mode and vllm_gpu_memory_utilization",
    "no_cuda": "is now called use_cpu",
    "warmup_ratio": "is gone: warmup_steps below 1 is a share of all steps",
}
"""Hints for keys that people write and that TRL does not have any more."""


@cache
def grpo_fields() -> dict[str, Field]:
    """The fields of ``GRPOConfig``, read without importing it, within the bounds of :data:`BOUNDED`."""
    return {
        name: replace(field, type=BOUNDED.get(name, field.type))
        for name, field in fields_from_source("trl.trainer.grpo_config", "GRPOConfig").items()
    }


def idle(given: dict[str, Any]) -> dict[str, str]:
    """The keys of a training block that do nothing without another one, with what they need.

    >>> idle({"entropy_target": 0.3, "save_strategy": "best", "metric_for_best_model": "reward"})
    {'entropy_target': 'does nothing without training.use_adaptive_entropy; set that too, or leave it out'}
    """
    fields = grpo_fields()

    def there(what: str) -> bool:
        name, _, wanted = what.partition(" = ")
        value = given.get(name, fields[name].default)
        return value == wanted if wanted else bool(value)

    return {
        name: f"does nothing without training.{' or training.'.join(needed)}; set that too, or leave it out"
        for name, needed in NEEDED.items()
        if given.get(name, fields[name].default) != fields[name].default and not any(map(there, needed))
    }


_OTHER_DEFAULT = {"remove_unused_columns", "logging_nan_inf_filter"}
"""Keys that are set to something else than TRL's default, so that the default would be trained without."""


def refused(given: dict[str, Any]) -> dict[str, str]:
    """The keys of a training block that no recipe sets, with the reason. TRL's own value may stand there.

    >>> refused({"fsdp": None, "label_names": None, "do_eval": False})
    {}
    >>> list(refused({"output_dir": "runs/a", "ddp_timeout": 60}))
    ['output_dir']
    """
    fields = grpo_fields()
    return {
        name: reason
        for name, reason in REFUSED.items()
        if name in given and (given[name] != fields[name].default or name in _OTHER_DEFAULT)
    }
