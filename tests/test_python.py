"""The example of docs/python.md runs as it is printed, but for the model, which is a small one here."""

import json
import re
from pathlib import Path

import pytest
from small import policy, with_chat_template
from typer.testing import CliRunner

from prefix_rl.cli import app
from prefix_rl.places import find

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The folder in which the example has run."""
    policy(with_chat_template()).save_pretrained(tmp_path / "model")
    with_chat_template().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    assert MODEL in EXAMPLE
    found = {}
    exec(EXAMPLE.replace(MODEL, str(tmp_path / "model")), found)
    assert found["trainer"].state.global_step == 4
    return tmp_path


def test_the_example_runs_and_is_evaluated_from_its_checkpoint(ran):
    assert find("runs/mine").path == str(Path("runs/mine/checkpoint-4"))
    shown = CliRunner().invoke(app, ["evaluate", "runs/mine"])
    assert "runs/mine/checkpoint-4" in str(shown.exception)
    assert "--on" in str(shown.exception)
    Path("test.jsonl").write_text(json.dumps({"id": "t", "problem": "What is 6 * 7?", "answer": "42"}) + "\n")
    options = ["--on", "test.jsonl", "--max-completion-length", "8", "--output", "out"]
    shown = CliRunner().invoke(app, ["evaluate", "runs/mine", *options], catch_exceptions=False)
    assert shown.exit_code == 0
    card = json.loads(Path("out", "evaluation.json").read_text())
    assert sum(card["benchmarks"]["test"]["outcomes"].values()) == 1
