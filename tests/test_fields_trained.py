"""Values of the training block, each trained with for two steps: they do what they say, or are refused.

Every field of TRL's that a recipe may set is trained with here, tested where it is named, or listed as not tried.
"""

import json

import pytest
from hostile_files import LAB, SMALL

from prefix_rl.grpo_fields import BOUNDED, FREE
from prefix_rl.train import train

pytestmark = pytest.mark.slow
EVALUATED = ["eval_strategy=steps", "eval_steps=1"]
TRAINED = {
    "machine": [
        "ddp_find_unused_parameters=true", "ddp_bucket_cap_mb=1", "ddp_timeout=60",  "ddp_static_graph=true",
        "ddp_broadcast_buffers=true", "log_on_each_node=false", "average_tokens_across_devices=false", "log_level=error",
        "log_level_replica=error", "logging_first_step=true", "run_name=x", "project=y", "save_on_each_node=true",
        "torch_empty_cache_steps=1", "ds3_gather_for_generation=false", "dataloader_pin_memory=false", "use_cache=false",
        "dataloader_drop_last=true", "shuffle_dataset=false", "tf32=false", "debug=underflow_overflow", "skip_memory_metrics=false",
        "include_num_input_tokens_seen=all", "full_determinism=false",
    ],
    "best": ["load_best_model_at_end=true", "metric_for_best_model=reward", "save_strategy=steps", "save_steps=1",
             "save_total_limit=1", "eval_on_start=true", "eval_accumulation_steps=1", "num_generations_eval=2",
             "per_device_eval_batch_size=4", *EVALUATED],
    "follows the reward": ["lr_scheduler_type=reduce_lr_on_plateau", "lr_scheduler_kwargs={mode: max}", "metric_for_best_model=reward",
                           "eval_delay=1", *EVALUATED],
    "workers": ["dataloader_num_workers=1", "dataloader_prefetch_factor=2", "dataloader_persistent_workers=true",
                "dataloader_multiprocessing_context=fork", "dataloader_in_order=false"],
    "entropy": ["use_adaptive_entropy=true", "entropy_coef=0.1", "entropy_coef_delta=0.05", "entropy_target=0.5",
                "entropy_coef_min=0.05", "entropy_coef_max=0.2"],
    "reference": ["beta=0.1", "sync_ref_model=true", "ref_model_sync_steps=1", "ref_model_mixup_alpha=0.9",
                  "use_bias_correction_kl=true"],
    "objective": ["delta=1.5", "off_policy_mask_threshold=0.1", "epsilon=0", "epsilon_high=0.5", "neftune_noise_alpha=5",
                  "mask_truncated_completions=true", "cast_lm_head_to_fp32=true", "disable_dropout=true"],
    "sampling": ["temperature=1000", "top_k=3", "min_p=1.0", "repetition_penalty=1000", "top_p=0.001", "pad_to_multiple_of=8",
                 "generation_kwargs={no_repeat_ngram_size: 2}"],
    "optimizer": ["optim=sgd", "optim_args=momentum=0.9", "warmup_steps=0.5", "max_grad_norm=0.000000001", "weight_decay=1.0"],
}  # fmt: skip
"""Settings that are trained with together."""


@pytest.mark.parametrize("name", TRAINED)
def test_two_steps_are_trained_with(name, tmp_path):
    given = [f"training.{one}" for one in TRAINED[name]]
    small = [
        "training.max_steps=2",
        "training.save_strategy=no",
        "data.lab.problems=4",
        "training.per_device_train_batch_size=8",
    ]
    train(LAB / "prefix_rft.yaml", [*SMALL, *small, *given, f"output.dir={tmp_path / 'run'}"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "reward_without_prefix" in line] == [1, 2]
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()
    if name == "best":
        # the reward is 0 at every evaluation, so the first is the best; transformers removes all others at the end
        assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-1"]
    if name == "entropy":
        assert any("entropy_coef" in key for line in lines for key in line)


ELSEWHERE = {
    # lengths, batches, the objective: a step of TRL's by tests/oracle.py, and every run of the lab
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "num_iterations",
    "num_generations", "generation_batch_size", "steps_per_generation", "max_completion_length", "learning_rate",
    "adam_beta1", "adam_beta2", "adam_epsilon", "importance_sampling_level", "multi_objective_aggregation",
    "top_entropy_quantile", "loss_type", "scale_rewards", "reward_weights", "seed", "use_cpu", "bf16", "fp16", "report_to",
    "logging_strategy", "logging_steps", "disable_tqdm", "gradient_checkpointing", "gradient_checkpointing_kwargs",
    "chat_template_kwargs", "cache_implementation", "router_aux_loss_coef", "greater_is_better",
    "use_transformers_continuous_batching", "transformers_continuous_batching_config",
    "push_to_hub", "save_only_model",  # refused when true
}  # fmt: skip
"""Fields that other tests train with, or see refused."""
NOT_TRIED = {
    "torch_compile",
    "torch_compile_backend",
    "ddp_backend",
    "optim_target_modules",
    "torch_compile_mode",  # the first needs galore-torch
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",  # what they name is on the hub
    *(name for name in (*BOUNDED, *FREE) if "vllm" in name),  # tests/real_vllm trains with vLLM on a CPU
}
"""Fields that nothing here trains with."""


def test_every_field_that_a_recipe_may_set_was_decided_about():
    trained = {one.partition("=")[0] for values in TRAINED.values() for one in values}
    assert sorted((BOUNDED.keys() | FREE) - trained - ELSEWHERE - NOT_TRIED) == []
