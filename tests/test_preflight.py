from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from prefix_rl import preflight
from prefix_rl.recipe import load_recipe

LAB = Path(__file__).parents[1] / "recipes" / "lab" / "prefix_rft.yaml"
GOOD = {
    "trl": "1.16.0",
    "deepspeed": "0.19.8",
    "transformers": "5.23.0",
    "math-verify": "0.9.0",
    "peft": None,
    "vllm": None,
}


@pytest.mark.parametrize(
    ("package", "version", "message"),
    [
        ("trl", "1.15.0", "wraps members of TRL 1.16"), ("trl", "1.17.0", "wraps members of TRL 1.16"),
        ("deepspeed", "0.18.9", "loses the gradients of all micro-batches but the first"),
        ("transformers", "5.1.0", "tested here with 5.8"), ("math-verify", "0.8.0", "tested with 0.9"),
    ],
)  # fmt: skip
def test_known_bad_versions_are_refused_with_the_reason(package, version, message):
    (fault,) = preflight.stack_faults(GOOD | {package: version})
    assert f"{package} {version}" in fault
    assert message in fault


def test_the_tested_stack_is_good():
    assert preflight.stack_faults(GOOD) == []
    assert preflight.stack_faults(preflight.versions()) == []


@pytest.mark.parametrize(
    ("overrides", "found", "message"),
    [
        (["training.use_vllm=true"], {}, "vLLM is not installed: pip install 'prefix_rl[vllm]'"),
        (["training.use_vllm=true"], {"vllm": "0.33.0"}, "TRL 1.16 works with 0.22 to 0.31"),
        (["model.use_peft=true"], {}, "model.use_peft = true needs peft"),
        (["training.use_cpu=false"], {}, "no GPU was found"),
        (
            ["training.use_transformers_continuous_batching=true", "training.bf16=true"],
            {},
            "in place at the first generation",
        ),
    ],
    ids=str,
)
def test_what_the_machine_lacks_is_said(overrides, found, message):
    faults = preflight.recipe_faults(load_recipe(LAB, overrides), GOOD | found, cuda=False)
    assert any(message in fault for fault in faults)


def test_a_good_recipe_on_a_good_machine_has_no_faults():
    assert preflight.recipe_faults(load_recipe(LAB), GOOD, cuda=False) == []
    with_vllm = load_recipe(LAB, ["training.use_vllm=true", "model.use_peft=true"])
    assert preflight.recipe_faults(with_vllm, GOOD | {"vllm": "0.30.1", "peft": "0.21.2"}, cuda=True) == []


def test_the_constraints_pin_what_preflight_accepts():
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    assert (
        preflight.stack_faults({name: pinned[name] for name in ("trl", "deepspeed", "transformers", "math-verify")})
        == []
    )
    for name in ("torch", "trl", "transformers", "accelerate", "deepspeed", "math-verify", "datasets", "peft", "wandb"):
        installed = preflight.installed(name)
        assert installed is not None
        assert installed.split("+")[0] == pinned[name]


def required(package, extras):
    """What the package asks for here, and what that asks for in its turn."""
    found, seen, to_ask = set(), set(), [(package, extra) for extra in extras]
    while to_ask:
        name, extra = asked = to_ask.pop()
        if asked in seen or name in ("torch", "setuptools"):  # torch's differ with its build; setuptools builds
            continue
        seen.add(asked)
        try:
            lines = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:  # ruff, where one only tests
            continue
        for one in map(Requirement, lines):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                found.add(canonicalize_name(one.name))
                to_ask += [(canonicalize_name(one.name), more) for more in ("", *one.extras)]
    return found - {package, "setuptools"}


def test_the_constraints_pin_all_that_the_package_and_its_tests_ask_for():
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if not line.startswith("#")}
    found = required("prefix-rl", ("", "test", "dev"))
    assert found >= {"trl", "rich", "ruff", "tensorboard", "grpcio", "markupsafe"}
    assert found - pinned == set()
