"""What only TRL, transformers, torch and peft can judge is asked of them before a model is loaded."""

import pytest
import transformers
from hostile import ROOT

from prefix_rl import stand_ins
from prefix_rl.errors import RecipeError, StackError
from prefix_rl.lab.base import model
from prefix_rl.recipe import load_recipe
from prefix_rl.train import arguments

LAB = ROOT / "recipes" / "lab" / "prefix_rft.yaml"
LORA = "model.use_peft=true"


def found(*overrides):
    recipe = load_recipe(LAB, overrides)
    try:
        stand_ins.check(recipe, arguments(recipe), model(recipe.world, 0).config)
    except (RecipeError, StackError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.optim=nope"], "nope is not a valid OptimizerNames"),
        (["training.optim_args=x"], "training.optim_args = x: not enough values"),
        (["training.optim_args=a=1"], "this optimizer reads none of these arguments"),
        (["training.lr_scheduler_type=cosine_with_min_lr"], "One of min_lr or min_lr_rate should be set"),
        (["training.lr_scheduler_kwargs={nope: 1}"], "this schedule has no setting nope"),
        (["training.gradient_checkpointing_kwargs={nope: 1}"], "nope"),
        (["training.torch_compile_backend=nope"], "accelerate knows no such backend"),
        (["training.generation_kwargs={nope: 1}"], "there is no setting nope of generation"),
        (["training.generation_kwargs={top_k: -5}"], "has to be a strictly positive integer"),
        (["training.generation_kwargs={max_new_tokens: 5}"], "max_new_tokens = 5: each rollout may have"),
        (["training.generation_kwargs={output_scores: true}"], "output_scores: rollouts are not generated so"),
        (["training.cache_implementation=nope"], "Invalid `cache_implementation` (nope)"),
        (["training.dataloader_persistent_workers=true"], "needs num_workers > 0"),
        (["training.router_aux_loss_coef=1"], "qwen2 has no experts whose load it balances"),
        (
            ["training.use_transformers_continuous_batching=true", "training.transformers_continuous_batching_config={nope: 1}"],
            "unexpected keyword argument 'nope'",
        ),
        (["model.attn_implementation=nope"], 'Specified `attn_implementation="nope"` is not supported'),
        (["model.attn_implementation=flash_attention_2"], "model.attn_implementation = flash_attention_2: "),
        ([LORA, "model.lora_target_modules=[nope]"], "Target modules"),
        ([LORA, "model.lora_target_modules=[lm_head]"], "leave it out of the targets"),
        ([LORA, "model.lora_modules_to_save=[nope]"], "the model has no module nope"),
    ],
    ids=lambda value: value[-1][:50] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_the_libraries_would_refuse_late_is_said(overrides, said):
    assert said in found(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [], ["training.optim=adafactor"],
        ["training.lr_scheduler_type=cosine_with_min_lr", "training.lr_scheduler_kwargs={min_lr_rate: 0.1}"],
        ["training.gradient_checkpointing=true", "training.gradient_checkpointing_kwargs={use_reentrant: true}"],
        ["training.generation_kwargs={do_sample: false}"], ["training.generation_kwargs={min_new_tokens: 3}"],
        ["model.attn_implementation=eager"], [LORA, "model.lora_target_modules=all-linear"],
        [LORA, "model.lora_target_modules=[q_proj]"], [LORA, "model.lora_target_modules=[q_proj, v_proj]"],
        [LORA, "model.lora_modules_to_save=[lm_head]"],
    ],
    ids=str,
)  # fmt: skip
def test_what_they_take_is_taken(overrides):
    assert found(*overrides) == ""


def test_a_stand_in_of_a_sharded_policy_is_whole():
    """Under ZeRO-3 transformers makes models in pieces, of parameters that a stand-in has none of."""
    from transformers.integrations import deepspeed

    from prefix_rl.stand_ins import on_meta

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    stage = deepspeed.HfDeepSpeedConfig(
        {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1}
    )  # held: transformers knows it for as long as somebody does
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        model = on_meta(transformers.Qwen2Config(vocab_size=30, num_key_value_heads=1, **small), None)
    finally:
        deepspeed.unset_hf_deepspeed_config()
        del stage
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.get_input_embeddings().weight.shape == (30, 16)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.kl_on=all"], "kl_on = all says nothing with beta = 0"),
        (
            ["training.groups_without_signal=skip", "training.entropy_coef=0.1"],
            "leaves groups out would raise the bonus",
        ),
    ],
)
def test_what_the_trainer_refuses_is_refused_before_a_model_is_loaded(overrides, said):
    assert said in found(*overrides)
