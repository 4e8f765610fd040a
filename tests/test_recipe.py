import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small import write

from prefix_rl.data.problems import Problem
from prefix_rl.errors import RecipeError
from prefix_rl.fields import check, describe, fields_from_source, fields_of
from prefix_rl.recipe import Data, batches, load_recipe, load_run, prompt_of, read_yaml

ROOT = Path(__file__).parents[1]
LAB = ROOT / "recipes" / "lab" / "prefix_rft.yaml"


def faults_of(*overrides, path=LAB, load=load_recipe):
    with pytest.raises(RecipeError) as error:
        load(path, overrides)
    return error.value.faults


# --- reading YAML -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n\tname: x\n", "Line 2 is indented with a tab"), ("", "is empty"), ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "holds a list"), ("just words", "holds a str"), ("a: [1, 2\n", "is not YAML"),
        ("model:\n  dtype: a\n  dtype: b\n", "the key 'dtype' stands twice"), ("a: !!python/object:os.system {}\n", "is not YAML"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_explained(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)


def test_a_missing_or_binary_file_is_explained(tmp_path):
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path / "binary.yaml")


def test_numbers_and_words_mean_what_they_look_like(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "a: 1e-6\nb: 2.5E+3\nc: off\nd: yes\ne: 012\nf: 1_000\ng: true\nh: ~\ni: 0x10\nj: 2024-01-01\nk: -.5\n"
    )
    assert read_yaml(path) == {
        "a": 1e-6, "b": 2500.0, "c": "off", "d": "yes", "e": 12, "f": "1_000", "g": True, "h": None, "i": 16,
        "j": "2024-01-01", "k": -0.5,
    }  # fmt: skip


# --- checking ---------------------------------------------------------------------------------------------------------


def test_every_fault_is_reported_at_once():
    found = faults_of(
        "training.learning_rat=1e-6", "method.share=2", "method.tokens=most", "training.num_generations=7", "data.train=/no.jsonl",
        "training.loss_type=grpo", "training.scale_rewards=group", "outputs.dir=x", "training.max_prompt_length=512",
        "training.learning_rate=fast", "training.output_dir=x", "reward.deadline=0", "nonsense", "evaluation.samples=1.5",
        load=load_run,
    )  # fmt: skip
    expected = [
        "'nonsense': an override is block.key=value", "outputs: no such block (did you mean output?)",
        "method.share = 2: must be a number in [0, 1]", 'method.tokens = "most": must be one of top_entropy, low_entropy',
        "training.learning_rat: no such key (did you mean learning_rate?)", 'training.learning_rate = "fast": must be a number',
        "training.loss_type = grpo: every method here is built on Dr.GRPO", "training.scale_rewards = group: every method",
        "training.max_prompt_length: is gone", "training.output_dir: set output.dir instead",
        "reward.deadline = 0: must be a number of at least 0.1", "evaluation.samples = 1.5: must be an integer of at least 1",
        "not a multiple of training.num_generations = 7", "there is no file /no.jsonl",
    ]  # fmt: skip
    for part in expected:
        assert any(part in fault for fault in found), part
    assert len(found) == len(expected)


def test_nothing_heavy_is_imported_to_find_faults():
    program = (
        "import sys\nfrom prefix_rl.train import main\n"
        f"status = main(['--config', {str(LAB)!r}, 'training.learning_rat=1', 'data.train=/no.jsonl'])\n"
        "heavy = [m for m in ('trl', 'transformers', 'deepspeed', 'wandb', 'datasets', 'accelerate') if m in sys.modules]\n"
        "print(status, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "2 []", done.stderr
    assert "2 problems, nothing was started" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.per_device_train_batch_size=12"], "12 rollouts (training.per_device_train_batch_size x processes"),
        (["training.num_generations=1"], "at least 2"),
        (["method.max_prefix_tokens=30"], "not below training.max_completion_length = 30"),
        (["training.num_iterations=3"], "save_steps = 100 is not a multiple of the 3 steps"),
        (["training.steps_per_generation=4", "training.generation_batch_size=512"], "give only one of them"),
        (["training.gradient_accumulation_steps=0"], "must be an integer of at least 1"),
        (["evaluation.data=null"], "evaluation.data names nothing to use"),
        (["data.prompt=chat"], "the lab's policy knows no chat template"),
        (["data.system_prompt=x"], "needs data.prompt = chat"),
        (["model.chat_template=/no.jinja"], "there is no file /no.jinja"),
        (["data.lab.operations=30"], "data.lab.operations = 30 does not fit into data.lab.slots = 20"),
        (["data.lab.operation=3"], "data.lab.operation: no such key (did you mean operations?)"),
        (["method.name=prefix_rtf"], "did you mean prefix_rft?"),
        (["method.name=dr_grpo", "method.share=0.5"], "is a setting of pppo, prefix_rft, not of dr_grpo"),
        (["method=null"], "method.name: is missing"),
        (["model=null"], "model.name_or_path: is missing: give a text"),
        (["training=[1]"], "training: must be a block of keys and values"),
        (["training.evaluation_strategy=steps"], "is now called eval_strategy"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_impossible_combinations_are_explained(overrides, message):
    assert any(message in fault for fault in faults_of(*overrides)), faults_of(*overrides)


def test_the_number_of_processes_counts(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    (fault,) = faults_of("training.per_device_train_batch_size=4")
    assert "12 rollouts" in fault
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert batches(load_recipe(LAB, ["training.per_device_train_batch_size=4"]), 4).rollouts == 16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.limit=3"], "3 problems, fewer than the 16 prompts"),
        (["data.lab.demonstrated=0"], "no row of lab has any"),
        (["data.demonstration_share=0.0"], "no row of lab has any"),
    ],
    ids=str,
)
def test_data_that_cannot_be_trained_on_is_a_fault_of_the_recipe(overrides, message):
    assert any(message in fault for fault in faults_of(*overrides, load=load_run))


def test_a_wrong_value_does_not_cause_complaints_about_its_default():
    found = faults_of("training.num_generatons=6", "training.per_device_train_batch_size=12")
    assert found == ["training.num_generatons: no such key (did you mean num_generations?)"]


def test_dr_grpos_choices_may_be_written_down():
    assert (
        load_recipe(LAB, ["training.loss_type=dr_grpo", "training.scale_rewards=none"]).resolved()
        == load_recipe(LAB).resolved()
    )
    assert load_recipe(LAB, ["training.scale_rewards=false"]).training["scale_rewards"] == "none"


def test_the_resolved_recipe_is_the_same_recipe(tmp_path):
    adapters = "model={name_or_path: lab, use_peft: true, lora_r: 8, lora_target_modules: [q_proj, v_proj]}"
    recipe = load_recipe(LAB, ["evaluation.prefix_fractions=[0.25, 0.5]", adapters, "data.lab={seed: 3}"])
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dump())
    assert load_recipe(path) == recipe
    resolved = yaml.safe_load(recipe.dump())
    assert resolved["model"]["lora_target_modules"] == ["q_proj", "v_proj"]
    assert resolved["data"]["lab"]["slots"] == 20
    assert resolved["evaluation"]["prefix_fractions"] == [0.25, 0.5]


def test_overrides_replace_and_reach_inside_blocks():
    recipe = load_recipe(
        LAB, ["training.learning_rate=3e-5", "--method.share=0.5", "data.lab.seed=7", "training.report_to=[wandb]"]
    )
    assert recipe.training["learning_rate"] == 3e-5
    assert recipe.method.share == 0.5
    assert recipe.world.seed == 7
    assert recipe.training["report_to"] == ["wandb"]


def test_batch_arithmetic():
    recipe = load_recipe(
        LAB, ["training.gradient_accumulation_steps=2", "training.num_iterations=2", "training.save_steps=2"]
    )
    found = batches(recipe, world_size=3)
    # 128 rollouts x 3 processes x 2 micro-steps = 768; 768 / 8 = 96 prompts; 2 micro-steps x 2 iterations / 2 = 2 steps
    assert (found.rollouts, found.prompts, found.steps) == (768, 96, 2.0)


def test_prompts():
    problem, data = Problem("0", "6 * 7?", "42"), Data(train="x", instruction="\nThink.")
    assert prompt_of(problem, data) == [{"role": "user", "content": "6 * 7?\nThink."}]
    assert prompt_of(problem, dataclasses.replace(data, system_prompt="s"))[0] == {"role": "system", "content": "s"}
    assert prompt_of(problem, dataclasses.replace(data, prompt="plain")) == "6 * 7?\nThink."


# --- fields -----------------------------------------------------------------------------------------------------------


def test_trls_fields_are_read_without_importing_trl():
    from trl import GRPOConfig

    read = fields_from_source("trl.trainer.grpo_config", "GRPOConfig")
    real = {f.name: f for f in dataclasses.fields(GRPOConfig) if f.init and not f.name.startswith("_")}
    assert read.keys() == real.keys()
    for name, field in real.items():
        if field.default is not dataclasses.MISSING and name != "optim":  # optim's default is computed
            assert read[name].default == field.default, name


def test_every_field_of_every_block_is_documented():
    import ast

    for file in ("recipe.py", "evaluation/settings.py", "methods/prefix_rft.py", "lab/world.py"):
        tree = ast.parse((ROOT / "prefix_rl" / file).read_text())
        for cls in [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name in (
            "Model", "Data", "Reward", "Evaluation", "Output", "PrefixRFT", "World")]:  # fmt: skip
            for here, after in zip(cls.body, [*cls.body[1:], None], strict=True):
                if isinstance(here, ast.AnnAssign) and here.target.id not in ("split", "seed", "batch_size", "limit"):
                    assert isinstance(after, ast.Expr), f"{cls.name}.{here.target.id}"


def test_types_are_strict():
    @dataclasses.dataclass
    class Block:
        whole: int = 1
        part: float = 0.5
        flag: bool = False
        words: tuple[str, ...] = ()

    def wrong(**given):
        return set(check("b", given, fields_of(Block))[1])

    assert wrong(whole=2, part=1, flag=True, words=["a"]) == set()
    assert wrong(whole=True) == wrong(whole="2") == wrong(whole=2.0) == {"b.whole"}
    assert wrong(part="0.5") == wrong(part=True) == {"b.part"}
    assert wrong(flag="false") == wrong(flag=0) == {"b.flag"}
    assert wrong(words="a") == {"b.words"}
    assert describe(tuple[str, ...]) == "a list, each a text"


# --- evaluation problems among the training problems ------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["no", "steps"])
def test_evaluation_problems_among_the_training_problems_are_refused(tmp_path, strategy):
    rows = [{"id": str(i), "problem": f"What is ${i} + 1$?", "answer": str(i + 1)} for i in range(64)]
    train = write(tmp_path / "train.jsonl", rows)
    held_out = write(
        tmp_path / "e.jsonl", [{"problem": "what is \\( 7+1 \\)?", "answer": "8"}, {"problem": "new", "answer": "1"}]
    )
    values = ["model.name_or_path=x", "data.prompt=chat", f"data.train={train}", f"evaluation.data={held_out}", "method={name: dr_grpo}",
              f"training.eval_strategy={strategy}"]  # fmt: skip
    (found,) = faults_of(*values, load=load_run)
    assert found.startswith("evaluation.data: 1 of its 2 problems stand in data.train, for example 'what is")
    assert f"prefix-rl prepare --against {held_out}" in found
    _, problems, _ = load_run(LAB, [*values, "evaluation.allow_overlap=true"])
    assert len(problems) == 64
    load_run(LAB, [*values, "evaluation.data=null", "training.eval_strategy=no"])


def test_whole_numbers_of_sampling_reach_trl_as_floats_and_the_recipe_as_they_stand():
    recipe = load_recipe("recipes/lab/dr_grpo.yaml", ["training.temperature=2", "training.repetition_penalty=1"])
    assert [repr(recipe.arguments[key]) for key in ("temperature", "repetition_penalty")] == ["2.0", "1.0"]
    assert repr(recipe.resolved()["training"]["temperature"]) == "2"
