"""A folder of adapters is a policy everywhere: trained, trained on, sampled, measured and merged."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small import policy, with_chat_template, write
from typer.testing import CliRunner

from prefix_rl import adapters
from prefix_rl.cli import app
from prefix_rl.collecting.collect import collect
from prefix_rl.errors import CheckpointError, DataError, RecipeError
from prefix_rl.evaluation.evaluate import evaluate
from prefix_rl.merge import merge
from prefix_rl.places import find
from prefix_rl.policy import Policy
from prefix_rl.recipe import Model, load_recipe
from prefix_rl.train import train

ROWS = [
    {"id": f"p{i}", "problem": f"{i} + {i} = ?", "answer": str(2 * i),
     "demonstrations": [f"{i} + {i} is {i} twice, and that makes {2 * i}, so \\boxed{{{2 * i}}}"]}
    for i in range(3, 9)
]  # fmt: skip
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 16, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model with its tokenizer, in a folder; beside it rows to train and to evaluate on."""
    folder = tmp_path_factory.mktemp("adapters")
    policy(with_chat_template()).save_pretrained(folder / "model")
    with_chat_template().save_pretrained(folder / "model")
    write(folder / "train.jsonl", ROWS)
    write(folder / "test.jsonl", [{"id": "t", "problem": "21 + 21 = ?", "answer": "42"}])
    return folder


def recipe(base, output, model=None, start=None, method="prefix_rft", **training):
    return {
        "model": {"name_or_path": str(start or base / "model"), **(LORA if model is None else model)},
        "data": {"train": str(base / "train.jsonl")},
        "method": {"name": method},
        "training": {
            "max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 4, "max_completion_length": 48,
            "learning_rate": 3e-2, "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none",
            "save_strategy": "no", "disable_tqdm": True, "beta": 0.5, **training,
        },
        "evaluation": {"data": str(base / "test.jsonl"), "temperature": 0, "max_completion_length": 24},
        "output": {"dir": str(output), "rollouts_every": 0},
    }  # fmt: skip


@pytest.fixture(scope="module")
def lora(base):
    """A run whose policy is adapters. SFT moves them surely: a demonstration is right, a rollout of this model is not."""
    given = recipe(base, base / "lora", method="sft")
    given["method"]["supervised"] = {"epochs": 4, "batch_size": 2, "per_device_batch_size": 2, "learning_rate": 3e-2}
    return train(given)


def weights(folder):
    return load_file(folder / "final" / "adapter_model.safetensors")


def samples(folder):
    import pyarrow.parquet

    files = sorted((folder / "samples").rglob("*.parquet"))
    return [row["text"] for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]


# --- the keys ---------------------------------------------------------------------------------------------------------


def model_faults(base, **model):
    with pytest.raises(RecipeError) as raised:
        load_recipe(recipe(base, "x", model=model))
    return "\n".join(raised.value.faults)


def test_the_keys_of_trls_model_config_are_taken_by_their_names(base):
    given = {
        **LORA,
        "use_rslora": True,
        "lora_modules_to_save": ["lm_head"],
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    found = adapters.new(load_recipe(recipe(base, "x", model=given)).model)["peft_config"]
    assert (found.r, found.lora_alpha, found.lora_dropout) == (4, 16, 0.0)
    assert (found.use_rslora, found.use_dora, found.modules_to_save) == (True, False, ["lm_head"])
    assert set(found.target_modules) == {"q_proj", "v_proj"}
    assert found.task_type == "CAUSAL_LM"
    assert adapters.new(replace(load_recipe(recipe(base, "x")).model, revision="v2"))["peft_config"].revision == "v2"
    assert adapters.new(Model("x")) == adapters.new(Model("x", peft={"use_peft": False})) == {}


def test_a_text_or_a_list_names_the_modules(base):
    for given, expected in (("all-linear", "all-linear"), (["q_proj"], "q_proj"), ("q_proj", "q_proj")):
        found = adapters.new(load_recipe(recipe(base, "x", model={**LORA, "lora_target_modules": given})).model)
        assert found["peft_config"].target_modules in (expected, {expected})


def test_every_fault_of_these_keys_is_said_in_words(base):
    assert "model.lora: is gone; TRL's own names stand in the model block" in model_faults(base, lora={"r": 8})
    assert "model.lora_rr: no such key (did you mean lora_r?)" in model_faults(base, use_peft=True, lora_rr=8)
    assert "lora_r, model.use_dora do nothing without model.use_peft" in model_faults(base, lora_r=8, use_dora=True)
    assert "model.load_in_4bit = true needs model.use_peft" in model_faults(base, load_in_4bit=True)
    both = model_faults(
        base, use_peft=True, load_in_4bit=True, load_in_8bit=True, lora_r=0, lora_alpha=0, lora_dropout=1.0
    )
    for said in ("give only one of them", "lora_r = 0: must", "lora_alpha = 0: must", "lora_dropout = 1: must"):
        assert said in both
    assert "bnb_4bit_quant_type: of no use" in model_faults(base, use_peft=True, bnb_4bit_quant_type="fp4")
    quantized = {"use_peft": True, "load_in_4bit": True, "bnb_4bit_quant_type": "int4"}
    assert "bnb_4bit_quant_type = int4: must be fp4 or nf4" in model_faults(base, **quantized)
    assert "model.model_name_or_path: is called name_or_path here" in model_faults(base, model_name_or_path="x")
    assert 'model.lora_r = "x": must be an integer' in model_faults(base, use_peft=True, lora_r="x")
    assert load_recipe(recipe(base, "x", model={"lora": None})).model.peft == {}  # as earlier versions wrote it


@pytest.mark.parametrize("more", [{"use_rslora": True}, {"use_dora": True}, {"lora_modules_to_save": ["lm_head"]}])
def test_their_kinds_train_and_are_measured(base, tmp_path, more):
    made = train(recipe(base, tmp_path / "run", model={**LORA, **more}, max_steps=1))
    assert find(made).adapters == str(made / "final")
    saved = json.loads((made / "final" / "adapter_config.json").read_text())
    for key, value in more.items():
        assert saved[key.removeprefix("lora_")] == value
    card = evaluate(str(made))
    assert sum(card["benchmarks"]["test"]["outcomes"].values()) == 1


# --- a policy everywhere ----------------------------------------------------------------------------------------------


def by_hand(base, run):
    """The base's weights with ``lora_alpha / r * B @ A`` on them."""
    found = load_file(base / "model" / "model.safetensors")
    moved = weights(run)
    for key in moved:
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
            found[name] = found[name] + 16 / 4 * moved[key.replace("lora_A", "lora_B")] @ moved[key]
    return found


def test_merged_it_is_the_base_with_the_product_of_the_adapters_on_it(base, lora):
    expected, before = by_hand(base, lora), load_file(base / "model" / "model.safetensors")
    target = base / "merged-by-name"
    shown = CliRunner().invoke(app, ["merge", str(lora), "--output", str(target)], catch_exceptions=False)
    assert shown.exit_code == 0
    found = load_file(target / "model.safetensors")
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-6), name
    assert any(not found[name].equal(before[name]) for name in before)
    assert find(target).adapters is None
    assert (
        Policy(load_recipe(recipe(base, "x", start=target, model={}))).example
        == Policy(load_recipe(recipe(base, "x"))).example
    )


def test_merging_says_what_it_cannot_do(base, lora, tmp_path):
    with pytest.raises(DataError, match="is a whole model; there is nothing to merge"):
        merge(base / "model")
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="is there already"):
        merge(lora, tmp_path / "there")
    assert merge(lora) == lora / "merged"  # unless a place is given, in the run's folder
    assert not (lora / "merged.partial").exists()


def test_an_evaluation_of_adapters_is_that_of_the_whole_model(base, lora, tmp_path):
    whole = merge(lora, tmp_path / "merged")
    on = [f"evaluation.on=[{base / 'test.jsonl'}]", "evaluation.temperature=0", "training.max_completion_length=24"]
    for name, target in (("adapters", lora), ("merged", whole), ("base", base / "model")):
        evaluate(str(target), overrides=on, output=tmp_path / name, config=str(lora / "recipe.yaml"))
    assert samples(tmp_path / "adapters") == samples(tmp_path / "merged") != samples(tmp_path / "base")
    card = json.loads((tmp_path / "adapters" / "evaluation.json").read_text())
    assert card["checkpoint"]["base"] == str(base / "model")


def test_traces_are_collected_with_adapters(base, lora, tmp_path):
    given = recipe(base, tmp_path / "run", max_completion_length=16)
    made = [
        collect(given, [], tmp_path / name, k=1, cap=1, wanted=1, policy=place, seed=0)
        for name, place in (("adapters", lora), ("base", base / "model"))
    ]
    facts = [json.loads((tmp_path / name / "store.json").read_text()) for name in ("adapters", "base")]
    assert facts[0]["policy_sha256"] != facts[1]["policy_sha256"]
    assert len(made) == 2


def test_training_goes_on_with_the_adapters_that_it_starts_from(base, lora, tmp_path):
    before = weights(lora)
    still = weights(train(recipe(base, tmp_path / "still", model={}, start=lora / "final", learning_rate=1e-12)))
    assert before.keys() == still.keys()
    assert all((still[key] - before[key]).abs().max() < 1e-8 for key in before)
    given = recipe(base, tmp_path / "stage", model={"use_peft": True, "lora_r": 4}, start=lora, method="sft")
    given["method"]["supervised"] = {"epochs": 1, "batch_size": 2, "per_device_batch_size": 2, "learning_rate": 1e-2}
    moved = weights(train(given))
    assert before.keys() == moved.keys()
    assert any((moved[key] - before[key]).abs().max() > 1e-4 for key in before)


def test_adapters_of_other_settings_are_not_trained_on_silently(base, lora, tmp_path):
    given = recipe(base, tmp_path / "run", model={"use_peft": True, "lora_r": 8, "lora_alpha": 16}, start=lora)
    with pytest.raises(RecipeError, match=r"prefix-rl merge(.|\n)*model.lora_r = 8: these adapters have 4") as raised:
        train(given)
    assert len(raised.value.faults) == 1
    write_recipe = tmp_path / "recipe.json"
    write_recipe.write_text(json.dumps(given))
    shown = CliRunner().invoke(app, ["check", str(write_recipe)])
    assert "these adapters have 4" in str(shown.exception) + shown.output


def test_what_vllm_cannot_take_beside_the_model_has_a_reason(tmp_path):
    def why(**saved):
        (tmp_path / adapters.CONFIG).write_text(json.dumps({"peft_type": "LORA", **saved}))
        return adapters.why_not_in_vllm(tmp_path)

    assert why(r=8) is None
    assert "use_dora" in why(use_dora=True)
    assert "lm_head" in why(modules_to_save=["lm_head"])
    assert "PREFIX_TUNING" in why(peft_type="PREFIX_TUNING")


def test_the_engine_of_vllm_refuses_them_with_that_reason(tmp_path):
    from prefix_rl.engines.vllm import _adapters

    (tmp_path / adapters.CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 8, "use_dora": True}))
    with pytest.raises(DataError, match=r"use_dora.*prefix-rl merge"):
        _adapters(str(tmp_path))
