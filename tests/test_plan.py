"""``prefix-rl plan``: what a recipe's keys and an accelerate file change, and what is advised."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from prefix_rl import plan as plans
from prefix_rl.accelerate_file import Launch, read_launch
from prefix_rl.cli import app
from prefix_rl.errors import UnreachableError, UserError
from prefix_rl.plan import GIB, Machine, plan, report
from prefix_rl.reports.tables import text_table

ROOT = Path(__file__).parents[1]
NUMBERS = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 16384, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *a, **k: pytest.fail("loads weights"))


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """A folder with the configuration of a model of 7 billion parameters, and no weights."""
    folder = tmp_path_factory.mktemp("seven")
    (folder / "config.json").write_text(json.dumps(NUMBERS))
    return f"model.name_or_path={folder}"


def of(recipe, *overrides, **how):
    return plan(f"recipes/{recipe}.yaml", overrides, **how)


def test_the_head_of_a_recipe_says_how_it_is_launched(seven):
    found = of("qwen2.5-math-7b/prefix_rft", seven)
    assert (found.launch.stage, found.launch.deepspeed, found.machine.devices) == (3, True, 8)
    assert any("recipes/accelerate/zero3.yaml" in note for note in found.notes)
    assert found.fits
    # 8 devices share 12 bytes for each of the parameters: float32 copy and two moments
    assert found.stages["rollouts"].optimizer == 12 * 7_615_616_512 / 8
    assert found.vllm == 0.3 * 80 * GIB


def test_tokens_operations_and_hours_in_numbers(seven):
    machine = Machine(8, 80 * GIB, tflops=1000, mfu=0.5, generation_mfu=0.1)
    found = of("qwen2.5-math-7b/dr_grpo", seven, machine=machine, prompt=1000)
    # 8 devices x 4 rollouts x 32 micro-batches = 1,024 rollouts of 8,192 tokens
    assert found.generated == 1024 * 8192
    assert found.trained == 1024 * 9192
    n = 7_615_616_512
    assert found.flops == pytest.approx((2 + 6) * n * 1024 * 9192)
    assert found.seconds == pytest.approx(n * 1024 * 9192 * (2 / 0.1 + 6 / 0.5) / 8e15)
    assert found.steps == 500


def test_a_frozen_copy_and_a_second_pass_count(seven):
    one = of("qwen2.5-math-7b/dr_grpo", seven)
    more = of("qwen2.5-math-7b/dr_grpo", seven, "training.beta=0.1")
    assert more.flops / one.flops == pytest.approx(10 / 8)  # 2 N D more
    assert more.stages["rollouts"].parameters - one.stages["rollouts"].parameters == 2 * 7_615_616_512 / 8


def test_both_stages_of_a_method_are_told(seven):
    found = of("qwen2.5-math-7b/sft_then_rl", seven)
    assert list(found.stages) == ["supervised", "rollouts"]
    assert list(of("qwen2.5-math-7b/sft", seven).stages) == ["supervised"]
    assert of("qwen2.5-math-7b/sft", seven).generated == 0


def test_what_does_not_fit_gets_keys_that_make_it_fit(seven):
    found = of("smollm2-135m/dr_grpo", seven, machine=Machine(2, 80 * GIB))
    assert not found.fits
    advice = dict(found.advice)
    assert "training.gradient_checkpointing=true" in advice
    assert "--accelerate recipes/accelerate/zero3.yaml" in advice
    lora = "model.use_peft=true model.lora_dropout=0.0"
    assert advice[lora] < found.machine.memory
    again = of("smollm2-135m/dr_grpo", seven, *lora.split(), machine=found.machine)
    assert again.peak == advice[lora]  # the advice holds when it is taken
    assert again.fits
    text = report(found, text_table)
    assert "it does NOT fit" in text
    assert lora in text


def test_what_fits_is_told_the_largest_micro_batch_that_fits(seven):
    run, lora = "smollm2-135m/dr_grpo", ["model.use_peft=true", "model.lora_dropout=0.0"]
    found = of(run, seven, *lora, machine=Machine(1, 400 * GIB))
    change, size = found.wider
    assert change.split() == [
        "training.per_device_train_batch_size=32",
        "training.gradient_accumulation_steps=1",
    ]  # 8 * 4
    again = of(run, seven, *lora, *change.split(), machine=found.machine)
    assert (again.peak, again.batches, again.wider) == (size, found.batches, None)
    assert found.peak < size <= found.machine.memory
    assert change in report(found, text_table)
    smaller = of(run, seven, *lora, machine=Machine(1, size - 1))  # 32 rows do not fit there, 16 do
    assert smaller.wider[0].split()[0] == "training.per_device_train_batch_size=16"
    full = of(run, seven, *lora, machine=Machine(1, found.peak))
    assert full.fits
    assert full.wider is None
    assert "larger micro-batches" not in report(full, text_table)


def test_the_advice_keeps_the_size_of_a_step(seven):
    found = of("qwen2.5-math-7b/sft_then_rl", seven, machine=Machine(1, 24 * GIB))
    (change,) = [c for c, _ in found.advice if c.startswith("training.per_device_train_batch_size")]
    again = of("qwen2.5-math-7b/sft_then_rl", seven, *change.split(), machine=found.machine)
    assert again.batches == found.batches


def test_adapters_are_counted_and_quantized_weights_are_small(seven):
    plain = of("smollm2-135m/dr_grpo", seven, "model.use_peft=true", "model.lora_dropout=0.0", "model.lora_r=16")
    # q_proj 3584 -> 3584 and v_proj 3584 -> 512 in each of 28 layers, 16 (in + out) each
    assert plain.shape.trained == 28 * 16 * (3584 + 3584 + 3584 + 512)
    assert plain.stages["rollouts"].optimizer == 8 * plain.shape.trained
    small = of("smollm2-135m/dr_grpo", seven, "model.use_peft=true", "model.load_in_4bit=true")
    assert small.stages["rollouts"].parameters < 0.25 * plain.stages["rollouts"].parameters
    assert any("lora_dropout=0.0" in note for note in small.notes)


def test_quantized_weights_in_numbers(seven):
    # embeddings and head, 152,064 x 3,584 each, have 2 bytes; the others 4 bits and a float32 scale for each 64 of them
    outside = 2 * 152_064 * 3_584
    for key, inside in (("load_in_4bit", 0.5 + 4 / 64), ("load_in_8bit", 1.0)):
        found = of("smollm2-135m/dr_grpo", seven, "model.use_peft=true", f"model.{key}=true")
        expected = inside * (found.shape.parameters - outside) + 2 * outside
        assert found.stages["rollouts"].parameters == pytest.approx(expected)


def test_the_bytes_of_each_optimizers_states():
    names = ("sgd", "adafactor", "lion_32bit", "rmsprop", "adagrad", "adamw_8bit", "adamw_torch")
    found = [of("lab/dr_grpo", f"training.optim={name}") for name in names]
    sizes = [one.stages["rollouts"].optimizer / one.shape.trained for one in found]
    assert sizes == [0, 0, 4, 4, 4, 2, 8]


def test_several_steps_of_a_generation_ask_twice_and_generate_as_much():
    one, two = of("lab/dr_grpo"), of("lab/dr_grpo", "training.steps_per_generation=2")
    assert (one.batches.rollouts, one.batches.steps) == (128, 1)
    assert (two.batches.rollouts, two.batches.steps) == (256, 2)
    assert one.generated == two.generated == 128 * 30
    assert two.flops / one.flops == pytest.approx(10 / 8)  # 2 N D more
    again = of("lab/dr_grpo", "training.num_iterations=2")
    assert again.generated == 64 * 30  # 128 rollouts are there for two steps
    assert again.flops / one.flops == pytest.approx((1 + 1 + 6) / 8)  # half of 2, half of 2, and two halves of 6


def test_steps_are_unknown_where_epochs_are_counted():
    assert (of("lab/dr_grpo").steps, of("lab/dr_grpo", "training.max_steps=-1").steps) == (200, 0)


def test_autocast_keeps_a_copy_of_float32_weights_in_half_precision():
    casts = [of("lab/dr_grpo", f"training.bf16={half}").stages["rollouts"].casts for half in ("false", "true")]
    assert casts == [0, 2 * 113_088]


def test_adapters_of_a_folder_are_those_that_it_names(seven, tmp_path):
    from peft import LoraConfig

    model = seven.partition("=")[2]
    LoraConfig(r=4, target_modules=["v_proj"], base_model_name_or_path=model, task_type="CAUSAL_LM").save_pretrained(
        tmp_path
    )
    found = of("smollm2-135m/dr_grpo", f"model.name_or_path={tmp_path}")
    assert found.shape.trained == 28 * 4 * (3584 + 512)


def test_the_plan_is_told_in_words_and_in_json():
    found = of("lab/dr_grpo", "training.gradient_checkpointing=true", "training.bf16=true", "training.max_steps=-1")
    lines = report(found, text_table).splitlines()
    assert [line.split("  ")[0] for line in lines[2:12]] == [
        "on each device", "parameters", "gradients", "optimizer states", "activations", "one layer, computed again",
        "gradients inside a layer", "weights cast by autocast", "head (tiles of logits)", "generation: keys, values, logits",
    ]  # fmt: skip
    assert lines[-1].endswith("the number of steps depends on the data")
    made = plans.as_json(found)
    stage = made.pop("stages")["rollouts"]
    assert stage["optimizer"] == 8 * 113_088
    assert stage["peak"] == max(stage["phases"].values()) == made["peak"] - 2 * GIB
    assert made.pop("seconds") == found.seconds > 0
    assert made == {
        "model": "lab", "parameters": 113_088, "trained_parameters": 113_088, "devices": 1, "zero_stage": 0, "vllm": 0.0,
        "reserve": 2 * GIB, "peak": found.peak, "memory": 80 * GIB, "fits": True, "tokens_generated": 128 * 30,
        "tokens_trained": found.trained, "flops": found.flops, "steps": 0, "advice": [], "wider": None, "notes": found.notes,
    }  # fmt: skip


def test_offloading_and_deepspeeds_own_file(tmp_path):
    (tmp_path / "ds.json").write_text(json.dumps(
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    ))  # fmt: skip
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(
        {"distributed_type": "DEEPSPEED", "num_processes": 4, "deepspeed_config": {"deepspeed_config_file": "ds.json"}}
    ))  # fmt: skip
    assert read_launch(str(file)) == Launch(str(file), 4, 2, True, True, False)
    found = of("lab/dr_grpo", accelerate=str(file))
    assert found.machine.devices == 4
    assert found.stages["rollouts"].optimizer == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed_type: FSDP", "FSDP, stage 0, 1 processes cannot be estimated"),
        ("a: [", "cannot be read"),
        ("num_processes: many", "cannot be read"),
        ("num_processes: 0", "0 processes cannot be estimated"),
        ("{distributed_type: DEEPSPEED, deepspeed_config: 3}", "cannot be read"),
        ("{distributed_type: DEEPSPEED, deepspeed_config: {deepspeed_config_file: no.json}}", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_estimated_is_explained(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        read_launch(str(tmp_path / "x.yaml"))
    assert message in str(error.value)


def test_a_model_that_is_not_here_is_explained(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UnreachableError, match=r"is not on this machine, and the hub does not answer.*model.name_or_path"
    ):
        of("qwen2.5-math-7b/prefix_rft", "model.name_or_path=nobody/has-this")


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1}))
    with pytest.raises(UserError, match=r"\(gpt2\) cannot be estimated: its configuration has no intermediate_size"):
        of("lab/dr_grpo", f"model.name_or_path={tmp_path}")


def test_the_command(seven):
    done = CliRunner().invoke(app, ["plan", "recipes/lab/prefix_rft.yaml", "--json", "--memory", "2"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["parameters"], told["fits"], told["memory"]) == (113088, False, 2 * GIB)
    done = CliRunner().invoke(app, ["plan", "recipes/qwen2.5-math-7b/uft.yaml", seven, "--gpus", "8", "--memory", "80"])
    assert "ZeRO-3 on 8 devices of 80.0 GiB" in done.output
    assert "it fits" in done.output


@pytest.mark.parametrize(
    ("overrides", "times"),
    [
        (["method={name: bread, episodes: 10, cut: tokens}"], 6),  # 4 trials of 10 parts by halves, and one to go back
        (["training.groups_without_signal=resample", "training.resample_rounds=3"], 4),
        (["method={name: pppo, continuations: 8, progressive: false}"], 9),
    ],
)
def test_a_step_is_counted_as_often_as_it_can_generate(overrides, times):
    once, often = of("lab/dr_grpo"), of("lab/dr_grpo", *overrides)
    assert often.generated == times * once.generated
    assert often.trained == once.trained
    assert any(f"generates {times} times" in note for note in often.notes)
    assert not any("generates" in note for note in once.notes)
