"""Every recipe of the repository loads, says what it claims, and holds its paper's values."""

from pathlib import Path

import pytest
import yaml

from prefix_rl import includes
from prefix_rl.lab.world import World
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.tempo import TEMPO
from prefix_rl.recipe import BLOCKS, batches, load_recipe, read_yaml
from prefix_rl.rollouts import Step

RECIPES = Path(__file__).parents[1] / "recipes"
ALL = sorted(p for p in RECIPES.rglob("*.yaml") if p.parent.name != "accelerate" and p.stem != "ladder")
LAB = [p for p in ALL if p.parent.name == "lab"]
SMALL = [p for p in ALL if p.parent.name == "smollm2-135m"]
PAPERS = [p for p in ALL if p.parent.name not in ("lab", "parities", "smoke", "smollm2-135m")]
ARMS = {
    "dr_grpo", "prefix_rft", "prefix_rl", "luffy", "sft_loss", "chord", "sft", "sft_then_rl", "pppo", "relift", "tempo",
    "uft", "adaptive", "bread", "arg", "questa", "upft", "rft",
}  # fmt: skip
OWN = {"upft", "rft"}  # learn from traces of the policy's own


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(RECIPES.parent)  # recipes name their files from there


def name(path):
    return str(path.relative_to(RECIPES))


@pytest.mark.parametrize("path", ALL, ids=name)
def test_it_loads(path):
    recipe = load_recipe(path)
    assert recipe.method_name == {"chord": "sft_loss"}.get(path.stem, path.stem)
    assert recipe.output.dir == f"runs/{path.parent.name}/{path.stem}"


ARMS_OF_MODELS = [p for p in ALL if p.parent.name not in ("parities", "smoke")]


def own_values(path):
    """Each value that stands in the file itself, by its full name."""

    def leaves(block, at):
        for key, value in block.items():
            yield from leaves(value, f"{at}{key}.") if isinstance(value, dict) else [(f"{at}{key}", value)]

    return {key: value for key, value in leaves(read_yaml(path), "") if key != includes.INCLUDE}


@pytest.mark.parametrize("path", [p for p in ARMS_OF_MODELS if includes.INCLUDE in read_yaml(p)], ids=name)
def test_a_recipe_that_includes_another_says_only_what_differs(path):
    included = own_values(path.parent / read_yaml(path)[includes.INCLUDE])
    own = own_values(path)
    assert [key for key, value in own.items() if included.get(key, ...) == value] == []


def test_the_recipes_of_a_model_share_what_they_share():
    alone = [p for p in ARMS_OF_MODELS if includes.INCLUDE not in read_yaml(p)]
    assert {p.stem for p in alone} == {"dr_grpo", "sft", "rft"}
    assert len(alone) == 3 * 3 + 2 + 1  # the papers' models; SmolLM2, whose rft is its sft's; the lab, all as dr_grpo
    written = sum(len(own_values(p)) for p in ARMS_OF_MODELS)
    said = sum(len(includes.read(p, BLOCKS).files.keys() - BLOCKS.keys()) for p in ARMS_OF_MODELS)
    assert len(ARMS_OF_MODELS) == 90
    assert written < said / 2  # more than half of the values stand once


@pytest.mark.parametrize("path", ALL, ids=name)
def test_its_header_is_a_small_report(path):
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Claim", "Command", "Hardware", "Expected"):
        assert any(line.startswith(f"# {word} ") for line in header), word
    assert any(f"{path.parent.name}/{path.name}" in line or "run.sh" in line for line in header)


@pytest.mark.parametrize("path", [p for p in PAPERS if p.stem not in {"sft", *OWN}], ids=name)
def test_its_training_is_the_papers(path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    recipe = load_recipe(path)
    value = recipe.training_value
    arm = path.stem
    assert value("num_generations") == (16 if arm == "questa" else 8)
    updates = 2 if arm in ("luffy", "sft_loss", "sft_then_rl") else 1
    assert (batches(recipe, 8).prompts, batches(recipe, 8).steps) == (64 if arm == "questa" else 128, updates)
    assert value("max_steps") / updates == {"prefix_rl": 400, "relift": 1080, "questa": 2000}.get(arm, 500)
    assert value("groups_without_signal") == ("resample" if arm == "questa" else "keep")
    assert value("learning_rate") == 1e-6
    assert value("lr_scheduler_type") == "constant"
    assert value("max_completion_length") == 8192
    assert value("temperature") == 1.0
    assert value("beta") == (0.001 if arm == "uft" else 0.0)
    clip = {"luffy": (1.0, 1e6), "relift": (1.0, 1e6), "sft_then_rl": (0.2, 0.28), "pppo": (0.2, 0.28)}
    assert (value("epsilon"), value("epsilon_high")) == clip.get(arm, (0.2, None))
    assert value("entropy_coef") == (0.001 if arm in ("luffy", "sft_loss") else 0.0)
    assert value("max_grad_norm") == (0.7 if arm == "relift" else 1.0)
    assert recipe.data.traces == (f"runs/{path.parent.name}/traces" if arm == "prefix_rl" else None)


METHODS = {
    "dr_grpo": {},
    "prefix_rft": {
        "prefixed": 1, "start": 0.95, "end": 0.05, "high": 0.95, "horizon": 500, "share": 0.2, "schedule": "cosine_low",
        "tokens": "top_entropy", "credit": "pooled",
    },
    "prefix_rl": {"cuts": 3, "plain": 1, "low": 0.4, "high": 0.8, "redraw": False, "balance": "problem"},
    "luffy": {"demonstrations": 1, "gamma": 0.1},
    "sft_loss": {"demonstrations": 1, "weight": 0.1, "schedule": "constant", "tokens": "all"},
    "chord": {
        "demonstrations": 1, "weight": 0.9, "schedule": "chord", "end": 0.05, "warmup": 0, "horizon": 200, "tokens": "all",
    },
    "pppo": {
        "share": 0.15, "progressive": True, "step": 0.05, "most": 0.35, "compare": "previous", "patience": 1, "continuations": 8,
        "normalize": True, "normalizer": "tokens",
    },
    "relift": {"supervise": True, "buffer": 128},
    "sft": {},
    "sft_then_rl": {},
    "tempo": {"of": DrGRPO(), "weight": 1, "normalize": True},
    "uft": {"count": 5, "pieces": "binomial", "start": 0.95, "end": 0.05, "horizon": 300, "weight": 0.001},
    "adaptive": {"of": PrefixRL(cuts=1, plain=0), "rule": "interval", "target": 0.5},
    "bread": {"episodes": 10, "cut": "sentences"},
    "arg": {"shares": (0.25, 0.5, 1.0), "cut": "surprisal"},
    "questa": {"first": 0.5, "then": 0.25, "switch": None},  # null: 0.05 of the run
    "upft": {"full_share": 0.1, "label_filter": False},
    "rft": {"per_problem": None},
}  # fmt: skip


@pytest.mark.parametrize("path", PAPERS, ids=name)
def test_its_method_is_the_papers(path):
    method = load_recipe(path).method
    expected = METHODS[path.stem]
    assert {key: getattr(method, key) for key in expected} == expected
    if path.stem in OWN:
        stage = method.stages.supervised
        assert (stage.epochs, stage.learning_rate, stage.batch_size) == (1, 1e-6, 64)
        assert (stage.warmup, stage.min_lr) == (0.03, 1.0)
    elif path.stem in ("sft", "sft_then_rl"):
        stage = method.stages.supervised
        assert (stage.epochs, stage.learning_rate, stage.batch_size) == (3, 5e-5, 64)
        assert (stage.warmup, stage.min_lr) == (0.1, 0.1)
    else:
        assert method.stages.supervised is None


@pytest.mark.parametrize("model", sorted({p.parent.name for p in PAPERS}))
def test_the_hints_of_questa_change_after_100_steps_and_half_of_any_demonstration_fits_into_its_prompts(model):
    recipe = load_recipe(RECIPES / model / "questa.yaml")
    steps = [Step(index, recipe.training_value("max_steps"), 0, 8192) for index in (0, 99, 100, 1999)]
    shares = [recipe.method.share(step) for step in steps]
    assert shares == [0.5, 0.5, 0.25, 0.25]
    assert recipe.method.max_hint_tokens == 4096  # of demonstrations of 8,192 tokens
    assert recipe.training_value("vllm_max_model_length") == 9216 + 4096


@pytest.mark.parametrize("model", sorted({p.parent.name for p in PAPERS}))
def test_upft_and_its_opponent_differ_in_what_they_learn_alone(model):
    upft, rft = (load_recipe(RECIPES / model / f"{arm}.yaml") for arm in ("upft", "rft"))
    assert upft.method.tokens == (8 if model.startswith("llama") else 32)
    assert upft.method.stages.supervised == rft.method.stages.supervised
    assert (upft.method.stages.own_traces, rft.method.stages.own_traces) == (1, 16)
    one, other = upft.resolved(), rft.resolved()
    for arm, blocks in (("upft", one), ("rft", other)):
        assert blocks["data"].pop("traces") == f"runs/{model}/traces-{arm}"
        assert f"--output runs/{model}/traces-{arm}" in (RECIPES / model / f"{arm}.yaml").read_text()
    assert all(one[block] == other[block] for block in one.keys() - {"method", "output"})


@pytest.mark.parametrize("model", sorted({p.parent.name for p in PAPERS}))
def test_both_supervised_stages_of_a_model_are_the_same(model):
    alone, before = (load_recipe(RECIPES / model / f"{arm}.yaml") for arm in ("sft", "sft_then_rl"))
    assert alone.method.stages.supervised == before.method.stages.supervised
    assert (alone.model, alone.data) == (before.model, before.data)
    for key in ("max_completion_length", "weight_decay", "max_grad_norm", "bf16"):
        assert alone.training_value(key) == before.training_value(key)


def test_the_models_of_the_papers_have_all_methods():
    assert {name(p) for p in PAPERS} == {
        f"{model}/{arm}.yaml" for model in ("qwen2.5-math-1.5b", "qwen2.5-math-7b", "llama-3.1-8b") for arm in ARMS
    }


def test_a_small_real_model_has_all_methods():
    assert {p.stem for p in SMALL} == ARMS
    assert {load_recipe(p).model.name_or_path for p in SMALL} == {"HuggingFaceTB/SmolLM2-135M-Instruct"}


@pytest.mark.parametrize("path", SMALL, ids=name)
def test_the_small_models_arms_differ_in_their_method_and_what_belongs_to_it(path):
    one, other = load_recipe(RECIPES / "smollm2-135m" / "dr_grpo.yaml").resolved(), load_recipe(path).resolved()
    assert path.stem not in OWN or other["data"].pop("traces") == f"runs/smollm2-135m/traces-{path.stem}"
    own = {  # the papers' clips, penalties and evaluations
        "epsilon", "epsilon_high", "entropy_coef", "beta", "max_grad_norm", "eval_strategy", "eval_steps",
        "per_device_eval_batch_size", "num_generations_eval",
    }  # fmt: skip
    for block in one.keys() - {"method", "output", "training", "evaluation"}:
        assert {key: value for key, value in one[block].items() if key in other[block]} == other[block]
    for key, value in other["training"].items():
        assert key in own or one["training"][key] == value, key


@pytest.mark.parametrize("path", SMALL, ids=name)
def test_the_small_models_methods_are_those_of_the_papers_but_for_their_length(path):
    method, shorter = load_recipe(path).method, {"horizon": (200, 100, 120), "buffer": (4,)}
    for key, value in METHODS[path.stem].items():
        assert getattr(method, key) == value or getattr(method, key) in shorter[key], key


def test_the_lab_has_all_methods():
    assert {p.stem for p in LAB} == ARMS


@pytest.mark.parametrize("path", LAB, ids=name)
def test_the_labs_arms_differ_in_their_method_only(path):
    one, other = load_recipe(RECIPES / "lab" / "dr_grpo.yaml").resolved(), load_recipe(path).resolved()
    if path.stem in OWN:  # it is to be right now and then by itself: four additions
        assert other["data"].pop("traces") == f"runs/lab/traces-{path.stem}"
        assert load_recipe(path).world == World(operations=4, problems=400)
        other["data"] |= {"lab": None, "traces": None}
    for block in one.keys() - {"method", "output"}:
        assert one[block] == other[block]


def test_no_two_arms_of_the_lab_are_the_same_method():
    blocks = [load_recipe(path).resolved()["method"] for path in LAB]
    assert all(blocks.count(block) == 1 for block in blocks)


def test_the_labs_methods():
    method = {path.stem: load_recipe(path).method for path in LAB}
    for arm in ("sft", "sft_then_rl", "upft", "rft"):
        stage = method[arm].stages.supervised
        assert (stage.epochs, stage.learning_rate) == (4, 1e-3)
        assert (stage.batch_size, stage.per_device_batch_size) == (16, 16)
    chord = method["chord"]
    assert (chord.schedule, chord.weight, chord.end, chord.horizon) == ("chord", 0.9, 0.05, 100)
    assert method["tempo"] == TEMPO(PrefixRL())
    for arm in ("prefix_rl", "luffy", "sft_loss", "pppo", "relift", "uft", "adaptive", "arg"):
        assert method[arm] == type(method[arm])()  # the papers' settings are the defaults


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=name)
def test_accelerate_files_shard_as_they_say_and_offload_nothing(path):
    content = yaml.safe_load(path.read_text())
    stage = content.get("deepspeed_config", {}).get("zero_stage")
    assert stage == {"zero2": 2, "zero3": 3}.get(path.stem)
    if stage:
        assert content["deepspeed_config"]["offload_optimizer_device"] == "none"
        assert content["deepspeed_config"]["offload_param_device"] == "none"
