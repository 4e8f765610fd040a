"""The quickstart, as the README promises it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1500)  # four minutes on two idle cores
def test_the_quickstart_shows_what_it_claims(tmp_path):
    """The README's command with its 200 steps: the accuracies that it promises are not there after fewer."""
    program = "from prefix_rl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "quickstart", "--seed", "7", "--output", str(tmp_path / "quickstart")],
        capture_output=True, text=True, cwd=ROOT, timeout=1400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {r["run"]: r for r in json.loads((tmp_path / "quickstart" / "report" / "results.json").read_text())}
    assert rows["base"]["accuracy"] < 0.02
    assert rows["dr_grpo"]["accuracy"] < 0.15
    assert all(rows[arm]["accuracy"] > 0.6 for arm in ("prefix_rft", "prefix_rl", "sft_then_rl"))
    assert rows["dr_grpo"]["steps"] == rows["prefix_rft"]["steps"] == 200
    assert "accuracy, unprefixed" in done.stdout
    assert (tmp_path / "quickstart" / "report" / "report.html").exists()
