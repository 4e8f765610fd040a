"""The estimate of memory against what small models really hold, and its parts in numbers.

Measured: the bytes of all tensors that are alive, at their highest, while the trainer trains (tests/memory.py). It
depends on no clock and no machine.
"""

import json
from dataclasses import replace

import pytest
from memory import LiveBytes

from prefix_rl.accelerate_file import Launch
from prefix_rl.data.problems import Problem
from prefix_rl.lab.tiny import make_tiny
from prefix_rl.memory import (
    Estimate,
    Setting,
    Shape,
    activations,
    casts,
    estimate,
    generation,
    gradients,
    head,
    layer,
    optimizer,
    parameters,
)
from prefix_rl.plan import config_of, setting_of, shape_of
from prefix_rl.policy import Policy
from prefix_rl.recipe import load_recipe
from prefix_rl.train import build

PROMPT, COMPLETION, ROWS, WITHIN = 40, 16, 32, 0.15
LORA = {"use_peft": True, "lora_dropout": 0.0}
RUNS = {
    "full": {},
    "full, two micro-batches": {
        "training": {"per_device_train_batch_size": ROWS // 2, "gradient_accumulation_steps": 2}
    },
    "full, gradient checkpointing": {"training": {"gradient_checkpointing": True}},
    "full, plain path": {"speed": {"shared_prefix": False}},
    "full, bfloat16 weights": {"model": {"dtype": "bfloat16"}},
    "full, autocast to bfloat16": {"training": {"bf16": True}},
    "LoRA on q and v": {"model": LORA},
    "LoRA on all linear layers": {"model": LORA | {"lora_target_modules": "all-linear", "lora_r": 8}},
    "LoRA, gradient checkpointing": {"model": LORA, "training": {"gradient_checkpointing": True}},
    "LoRA with dropout": {"model": LORA | {"lora_dropout": 0.1}},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"), hidden=192, layers=4)


def made(tiny, folder, changes):
    """The recipe, and its problems."""
    training = {
        "max_steps": 2, "per_device_train_batch_size": ROWS, "num_generations": 8, "max_completion_length": COMPLETION,
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none", "disable_tqdm": True,
        "save_strategy": "no", "generation_kwargs": {"min_new_tokens": COMPLETION},
    }  # fmt: skip
    given = {
        "model": {"name_or_path": str(tiny)}, "data": {"train": str(folder / "rows.jsonl"), "prompt": "plain"},
        "method": {"name": "dr_grpo"}, "output": {"dir": str(folder / "run"), "rollouts_every": 0},
        "reward": {"workers": 1}, "speed": {"verify": "never"},
    }  # fmt: skip
    given |= {block: given.get(block, {}) | values for block, values in changes.items() if block != "training"}
    given["training"] = training | changes.get("training", {})
    texts = [f"{i:03}".ljust(PROMPT, "x") for i in range(16)]
    return load_recipe(given), [Problem(text, text, "1") for text in texts]


def measured(recipe, problems, monkeypatch):
    """Bytes held before the last micro-batch's forward pass and behind it, and the most in a whole step."""
    from trl.trainer import utils

    monkeypatch.setattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 256)  # else one tile would hide all that is estimated
    live, seen = LiveBytes(), {}
    policy = Policy(recipe)
    with live:
        trainer = build(policy, problems)
        loss = trainer.compute_loss

        def compute_loss(*args, **kwargs):
            seen["before"] = live.now
            value = loss(*args, **kwargs)
            seen["behind"] = live.now
            return value

        trainer.compute_loss = compute_loss
        step = trainer.training_step

        def training_step(*args, **kwargs):
            live.peak = live.now  # so that it is the last micro-batch's, with the optimizer's states there
            return step(*args, **kwargs)

        trainer.training_step = training_step
        trainer.train()
        seen["peak"] = live.peak
    return seen


def estimated(recipe, monkeypatch):
    monkeypatch.setattr("prefix_rl.memory.HEAD_WORDS", 256)
    shape = shape_of(recipe, config_of(recipe))
    return estimate(shape, setting_of(recipe, shape, Launch(), 1, PROMPT))


QUICK = ("full", "full, gradient checkpointing", "LoRA on q and v")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in RUNS])
def test_a_run_holds_what_was_estimated(tiny, tmp_path, monkeypatch, name):
    recipe, problems = made(tiny, tmp_path, RUNS[name])
    seen, expected = measured(recipe, problems, monkeypatch), estimated(recipe, monkeypatch)
    print(
        json.dumps(
            {
                "name": name,
                "seen": seen,
                "activations": expected.activations + expected.casts,
                "peak": expected.peak,
                "phases": expected.phases,
            }
        )
    )
    assert expected.activations + expected.casts == pytest.approx(seen["behind"] - seen["before"], rel=WITHIN)
    assert expected.peak == pytest.approx(seen["peak"], rel=WITHIN)


SHAPE = Shape(2, 8, 32, 2, 1, 4, 100, parameters=2000, trained=2000)
ONE = Setting(rows=8, group=8, prompt=60, completion=128)
"""Of float32 parameters on one device."""


def test_zero_divides_more_at_each_stage():
    ranks = [replace(ONE, devices=4, stage=stage, weights=2, compute=2, states=12) for stage in (1, 2, 3)]
    # 12 bytes * 2000 / 4 from stage 1 on
    assert [optimizer(SHAPE, run) for run in ranks] == [6000] * 3
    # 2 * 2000, divided by 4 from stage 2 on, and a bucket of all of the 2000 that is smaller than 500 million
    assert [gradients(SHAPE, run) for run in ranks] == [8000, 5000, 5000]
    # 2 * 2000; in stage 3 a quarter, and at most a billion gathered, which are all
    assert [parameters(SHAPE, run) for run in ranks] == [4000, 4000, 5000]


def test_what_is_offloaded_is_not_on_the_device():
    run = replace(ONE, devices=4, stage=3, weights=2, states=12, offload_states=True, offload_parameters=True)
    assert optimizer(SHAPE, run) == 0
    assert parameters(SHAPE, run) == 4000  # what is gathered


def test_gradients_of_earlier_micro_batches_stand_beside_the_next_ones_activations():
    one, more = estimate(SHAPE, ONE), estimate(SHAPE, replace(ONE, accumulation=2))
    assert more.phases["at the head"] - one.phases["at the head"] == 8000  # 4 * 2000


def test_checkpointing_keeps_one_tensor_of_each_layer():
    less = activations(SHAPE, replace(ONE, checkpointing=True))
    # 1084 tokens * (2 layers * 4 * 8 + the last norm's 3 * 4 * 8), and 8 * 128 scored hidden states of 4 * 8 bytes
    assert less == 1084 * (64 + 96) + 1024 * 32
    assert estimate(SHAPE, replace(ONE, checkpointing=True)).layer > 0 == estimate(SHAPE, ONE).layer


WIDE = Shape(4, 128, 512, 4, 2, 32, 259, parameters=1000, trained=1000)
"""Queries are 4 * 32 = 128 wide, keys 2 * 32 = 64."""


def test_what_a_token_leaves_in_a_layer():
    half = replace(ONE, weights=2, compute=2)
    # 2 (4 + 4) 128 of the norms; 2 (2 * 128 + 2 * 64) + 4 * 4 and 2 * 128 of attention; 2 * 4 * 512 of the block
    assert layer(WIDE, half) == 2048 + 784 + 256 + 4096
    # under autocast the norms' outputs are cast for each of five: 2 (4 + 4) 128 + 5 * 2 * 128
    assert layer(WIDE, replace(ONE, compute=2, autocast=True)) == 2048 + 1280 + 784 + 256 + 4096
    # unpacked, keys are as wide as queries, and the output is kept once
    assert layer(WIDE, replace(half, packed=False)) == 2048 + 2 * 4 * 128 + 16 + 4096


def test_what_a_token_leaves_in_a_layer_with_adapters():
    # 8 * 128 of the norms, and 4 * 128 that q and v read; 4 (2 * 128 + 2 * 64) + 16; 4 * 3 * 512; 4 * 4 each
    some = replace(WIDE, adapted=frozenset({"q_proj", "v_proj"}), rank=4)
    assert layer(some, ONE) == 1024 + 512 + 1552 + 6144 + 2 * 16
    assert layer(replace(some, dropout=True), ONE) == 1024 + 512 + 1552 + 6144 + 2 * (16 + 5 * 128)
    # up reads a norm, o the output of attention, down the product: 4 * 128, 4 * 128 and 4 * 512 more
    others = replace(WIDE, adapted=frozenset({"up_proj", "o_proj", "down_proj"}), rank=4)
    assert layer(others, ONE) == 1024 + 512 + 1552 + 512 + 8192 + 3 * 16
    assert layer(replace(others, dropout=True), ONE) - layer(others, ONE) == 5 * (128 + 128 + 512)
    one_each = [replace(WIDE, adapted=frozenset({name}), rank=4) for name in ("k_proj", "gate_proj")]
    assert [layer(shape, ONE) for shape in one_each] == [1024 + 512 + 1552 + 6144 + 16] * 2


def test_the_last_norm_the_casts_and_the_head():
    scored = 8 * 128
    cast = replace(ONE, compute=2, autocast=True, checkpointing=True)
    # 1084 tokens * (4 layers * 4 * 128 + (4 + 2 * 4) 128), and 4 * 1024 * 128
    assert activations(WIDE, cast) == 1084 * (2048 + 1536) + 4 * scored * 128
    adapted = replace(WIDE, rank=4)
    assert activations(adapted, cast) == 1084 * (2048 + 512) + 4 * scored * 128
    assert (casts(WIDE, cast), casts(WIDE, ONE)) == (2 * 1000, 0)
    # logits of at most 4,096 tokens; the head's own gradient only where it is trained
    assert head(adapted, replace(ONE, rows=64, compute=2)) == 2 * 4096 * 32768 + 4 * 8192 * 128
    assert head(WIDE, ONE) - head(adapted, ONE) == 4 * 259 * 128


def test_what_generation_holds():
    # keys and values of 8 rows of 188 tokens, 4 layers of 2 * 32, and three copies of 259 logits
    numbers, logits = 2 * 8 * 188 * 4 * 64, 12 * 8 * 259
    half = replace(ONE, generated=8, compute=2, weights=2)
    assert generation(WIDE, half) == 2 * numbers + logits
    assert generation(WIDE, replace(half, autocast=True)) == 4 * numbers + logits
    assert generation(WIDE, replace(half, stage=3, devices=2)) == 2 * numbers + logits + 2 * 1000
    assert generation(WIDE, replace(half, stage=3, generated=0)) == 0


def test_a_reference_is_held_beside_and_gathered_once():
    # 4 * 2000 twice; in stage 3 a quarter of that, and 8000 gathered
    assert parameters(SHAPE, replace(ONE, reference=True)) == 16000
    assert parameters(SHAPE, replace(ONE, reference=True, stage=3, devices=4)) == 4000 + 8000


def test_gradients_of_adapters_are_float32_and_ddp_copies_them():
    adapted = replace(SHAPE, rank=4, trained=500)
    half = replace(ONE, weights=2, compute=2)
    assert [gradients(adapted, replace(half, devices=n)) for n in (1, 2)] == [2000, 4000]
    assert gradients(SHAPE, half) == 4000


def test_the_phases_of_a_step():
    parts = Estimate(parameters=1, gradients=2, optimizer=4, activations=8, layer=16, work=32, casts=64, head=128,
                     generation=256, accumulates=False)  # fmt: skip
    assert parts.phases == {
        "generating": 1 + 4 + 256,
        "at the head": 5 + 8 + 64 + 128,
        "in the layers": 5 + 64 + 8 + 48,
    }
    assert parts.peak == 261
    assert replace(parts, gradients=100).phases["in the layers"] == 5 + 64 + 100 + 48
    more = replace(parts, accumulates=True).phases
    assert (more["at the head"], more["in the layers"]) == (5 + 2 + 8 + 64 + 128, 5 + 64 + 2 + 8 + 48)


def test_the_models_of_the_papers_in_numbers(tmp_path):
    """Qwen2.5-Math-7B's configuration: 7,615,616,512 parameters, as its card says (7.62 B)."""
    numbers = {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "max_position_embeddings": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(numbers))
    recipe = load_recipe("recipes/qwen2.5-math-7b/prefix_rft.yaml", [f"model.name_or_path={tmp_path}"])
    shape = shape_of(recipe, config_of(recipe))
    assert shape.parameters == shape.trained == 7_615_616_512
    run = setting_of(recipe, shape, Launch("zero3.yaml", 8, 3, True), 8, 512)
    assert (run.weights, run.states, run.checkpointing, run.generated, run.stage) == (2, 12, True, 0, 3)
    assert optimizer(shape, run) == 12 * 7_615_616_512 / 8
