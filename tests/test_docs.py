"""The pages of docs/: every method has its page, which tells its settings; the worked example is run."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prefix_rl import methods
from prefix_rl.recipe import load_recipe
from prefix_rl.train import train

DOCS = Path(__file__).parents[1] / "docs"
SECTIONS = ["Idea", "Equation", "Settings", "When to use it", "Measured"]


def settings(method, at=""):
    """The fields of a method with their defaults, blocks taken apart."""
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name == "of":
            continue
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{at}{field.name}.")
        else:
            yield f"{at}{field.name}", value


def value_of(text):
    try:
        return float(text)  # YAML 1.1 takes 5e-5 for a text
    except ValueError:
        return yaml.safe_load(text)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_page_of_one_screen(name):
    text = (DOCS / "methods" / f"{name}.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    assert re.match(r"# .*\(arXiv \d{4}\.\d{5}", text)
    assert len(text.splitlines()) <= 75
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (DOCS / "methods" / target).exists(), target


@pytest.mark.parametrize("name", [name for name in methods.names() if name != "sft_then_rl"])
def test_a_page_tells_every_setting_and_its_default(name):
    text = (DOCS / "methods" / f"{name}.md").read_text().split("## Settings")[1].split("\n## ")[0]
    told = {}
    for row in re.findall(r"^\| (`.*)$", text, re.MULTILINE):
        names, values = (re.findall(r"`([^`]*)`", cell) for cell in row.split(" | ")[:2])
        if names[0] in ("of", "supervised"):
            continue  # a block, told in words
        told |= dict(zip(names, values, strict=True))
    expected = {
        key: list(value) if isinstance(value, tuple) else value for key, value in settings(methods.find(name)())
    }
    if "supervised.epochs" not in told:
        assert "supervised" not in expected or "`supervised`" in text
        expected = {key: value for key, value in expected.items() if not key.startswith("supervised.")}
    if "instruction" in expected:
        expected["instruction"] = "..."  # too long for a table
    assert {key: value_of(text) for key, text in told.items()} == expected


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / "new-method.md").read_text(), re.DOTALL)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The files of the worked example in a folder of their own, which is the working directory."""
    (module, tests), (recipe,) = blocks("python"), blocks("yaml")
    (tmp_path / "my_methods").mkdir()
    (tmp_path / "my_methods" / "__init__.py").write_text("")
    (tmp_path / "my_methods" / "two_lengths.py").write_text(module)
    (tmp_path / "test_two_lengths.py").write_text(tests)
    (tmp_path / "two_lengths.yaml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_tests_of_the_worked_example_pass(example):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_two_lengths.py"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_the_worked_example_trains(example):
    small = ["training.max_steps=4", "method.switch=2", "training.per_device_train_batch_size=16", "training.eval_steps=4", "training.logging_steps=1",
             "data.lab.base_steps=50", "data.lab.problems=8", "data.lab.held_out=8", "training.report_to=none"]  # fmt: skip
    assert load_recipe("two_lengths.yaml").method == methods.find("my_methods.two_lengths")()
    run = train("two_lengths.yaml", small)
    lines = [yaml.safe_load(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    given = [line["prefix/rollouts"] for line in lines if "prefix/rollouts" in line]
    assert given == [16] * 4
    assert (run / "final" / "model.safetensors").is_file()


def test_the_commands_of_the_worked_example_exist():
    path, *commands = [line.split() for block in blocks("bash") for line in block.splitlines()]
    assert path == ["export", "PYTHONPATH=."]
    assert [words[1] for words in commands] == ["check", "train", "report"]
    assert all(words[0] == "prefix-rl" for words in commands)
