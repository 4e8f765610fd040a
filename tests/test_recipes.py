"""Every recipe of the repository loads, says what it claims, and holds its paper's values."""

from pathlib import Path

import pytest
import yaml

from prefix_rl.recipe import batches, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted(p for p in RECIPES.rglob("*.yaml") if p.parent.name != "accelerate")
PAPERS = [p for p in ALL if p.parent.name not in ("lab", "smoke")]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)  # recipes name their files from there


def name(path):
    return str(path.relative_to(RECIPES))


@pytest.mark.parametrize("path", ALL, ids=name)
def test_it_loads(path):
    recipe = load_recipe(path)
    assert recipe.method_name == path.stem


@pytest.mark.parametrize("path", ALL, ids=name)
def test_its_header_is_a_small_report(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Claim", "Command", "Hardware", "Expected"):
        assert any(line.startswith(f"# {word} ") for line in header), word
    assert any(f"{path.parent.name}/{path.name}" in line or "run.sh" in line for line in header)


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_its_values_are_the_papers(path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    recipe = load_recipe(path)
    value = recipe.training_value
    assert value("num_generations") == 8
    assert batches(recipe, 8).prompts == 128
    assert value("learning_rate") == 1e-6
    assert value("lr_scheduler_type") == "constant"
    assert value("max_steps") == 500
    assert value("temperature") == 1.0
    assert value("beta") == 0.0
    assert value("epsilon") == 0.2
    if recipe.method_name == "prefix_rft":
        method = recipe.method
        assert (method.prefixed, method.start, method.end, method.high, method.share) == (1, 0.95, 0.05, 0.95, 0.2)
        assert (method.schedule, method.tokens, method.credit) == ("cosine_low", "top_entropy", "pooled")


def test_the_models_of_the_papers_have_both_methods():
    assert {name(p) for p in PAPERS} == {
        f"{model}/{method}.yaml"
        for model in ("qwen2.5-math-1.5b", "qwen2.5-math-7b", "llama-3.1-8b") for method in ("dr_grpo", "prefix_rft")
    }  # fmt: skip


@pytest.mark.parametrize("arms", [("lab/dr_grpo.yaml", "lab/prefix_rft.yaml")], ids=str)
def test_the_quickstarts_arms_differ_in_their_method_only(arms):
    one, other = (load_recipe(RECIPES / arm).resolved() for arm in arms)
    assert one["method"] != other["method"]
    for block in one.keys() - {"method", "output"}:
        assert one[block] == other[block]


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=name)
def test_accelerate_files_shard_as_they_say_and_offload_nothing(path):
    content = yaml.safe_load(path.read_text())
    stage = content.get("deepspeed_config", {}).get("zero_stage")
    assert stage == {"zero2": 2, "zero3": 3}.get(path.stem)
    if stage:
        assert content["deepspeed_config"]["offload_optimizer_device"] == "none"
        assert content["deepspeed_config"]["offload_param_device"] == "none"
