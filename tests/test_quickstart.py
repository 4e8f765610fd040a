"""The quickstart: what it claims of chains of twelve additions, and, where it is asked for, what the README promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prefix_rl.lab.quickstart import ARMS

ROOT = Path(__file__).parents[1]
SHORT = {  # a base policy that solves nothing, and arms that learn within 60 steps
    "data": {"lab": {"slots": 12, "operations": 12, "modulus": 10, "base_steps": 1200, "held_out": 64}},
    "training": {
        "per_device_train_batch_size": 64, "max_steps": 60, "learning_rate": 5e-4, "eval_steps": 30,
        "max_completion_length": 22,
    },
}  # fmt: skip


def quickstart(folder, *more):
    """What the command says, and the rows of its table by the name of the run."""
    program = "from prefix_rl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "quickstart", "--seed", "7", "--output", str(folder), *more],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "report" / "report.html").exists()
    return done.stdout, {row["run"]: row for row in json.loads((folder / "report" / "results.json").read_text())}


@pytest.mark.slow
@pytest.mark.usefixtures("quick_starts")
def test_a_quickstart_of_shorter_chains_shows_what_it_claims(tmp_path):
    """With fewer steps the arms that start from demonstrations could not be told from the one that does not."""
    for arm in ARMS:
        path = tmp_path / "recipes" / f"{arm}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({"include": str(ROOT / "recipes" / "lab" / f"{arm}.yaml"), **SHORT}))
    said, rows = quickstart(tmp_path / "quickstart", "--recipes", str(tmp_path / "recipes"))
    assert rows["base"]["accuracy"] < 0.02
    assert rows["dr_grpo"]["accuracy"] < 0.1
    assert all(rows[arm]["accuracy"] > 0.3 for arm in ("prefix_rft", "prefix_rl", "sft_then_rl"))
    assert all(rows[arm]["steps"] == 60 for arm in ARMS)
    assert "accuracy, unprefixed" in said


@pytest.mark.slow
@pytest.mark.full
def test_the_quickstart_shows_what_it_claims(tmp_path):
    """The README's command with its 200 steps: the accuracies that it promises are not there after fewer."""
    said, rows = quickstart(tmp_path / "quickstart")
    assert rows["base"]["accuracy"] < 0.02
    assert rows["dr_grpo"]["accuracy"] < 0.15
    assert all(rows[arm]["accuracy"] > 0.6 for arm in ("prefix_rft", "prefix_rl", "sft_then_rl"))
    assert rows["dr_grpo"]["steps"] == rows["prefix_rft"]["steps"] == 200
    assert "accuracy, unprefixed" in said
