import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from prefix_rl.cli import app

ROOT = Path(__file__).parents[1]
LAB = str(ROOT / "recipes" / "lab" / "prefix_rft.yaml")
COMMANDS = ["train", "prepare", "schedule", "evaluate", "report", "quickstart", "tiny", "check"]


def prefix_rl(*arguments, cwd=ROOT):
    program = "from prefix_rl.cli import main; main()"
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=cwd)


def test_every_command_is_listed_and_has_an_example():
    listing = CliRunner().invoke(app, ["--help"]).output
    for command in COMMANDS:
        assert command in listing
        shown = " ".join(CliRunner().invoke(app, [command, "--help"], terminal_width=200).output.split())
        assert f"Example: prefix-rl {command} " in shown, command


def test_examples_name_options_that_exist():
    for name, command in get_command(app).commands.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", command.epilog)) <= options, name


def test_check_prints_the_resolved_recipe(tmp_path):
    done = prefix_rl("check", LAB, "method.share=0.3")
    assert done.returncode == 0, done.stderr
    assert "share: 0.3" in done.stdout
    assert "good: 64 problems to train on, 256 to evaluate on" in done.stderr


def test_problems_end_in_status_2_without_a_traceback():
    done = prefix_rl("check", LAB, "method.shar=0.3")
    assert done.returncode == 2
    assert "did you mean share?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["train"], ["prepare", "x.jsonl"], ["nonsense"], ["evaluate", "nowhere"], ["report", "nowhere"]],
    ids=str,
)
def test_wrong_use_is_explained(arguments, tmp_path):
    done = prefix_rl(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_prepare_shows_its_funnel(tmp_path):
    raw = tmp_path / "raw.jsonl"
    raw.write_text(
        json.dumps({"question": "6 * 7?", "answer": "#### 42"}) + "\n" + json.dumps({"question": "?"}) + "\n"
    )
    done = prefix_rl("prepare", str(raw), "--output", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"1  kept, with a demonstration", done.stdout)
    assert re.search(r"1  no column 'answer'", done.stdout)
    assert (tmp_path / "rows.jsonl.manifest.json").exists()


def test_schedule_shows_lengths_in_tokens(tmp_path):
    done = prefix_rl("schedule", LAB, "data.lab.base_steps=3", "--plot", str(tmp_path / "plot.png"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "64 of 64 problems have a demonstration; drawn for 64 of them"
    first, last = lines[2].split(), lines[-1].split()
    # 28 words; the guard stops before the 20th total, so 19 of 25 words at most; the last step draws from [0.05, 0.95]
    assert first[0] == "0"
    assert first[4] == "19"
    assert last[0] == "199"
    assert float(last[5]) < 0.6
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_schedule_of_a_method_without_prefixes_is_refused(tmp_path):
    done = prefix_rl("schedule", str(ROOT / "recipes" / "lab" / "dr_grpo.yaml"), "data.lab.base_steps=3")
    assert done.returncode == 2
    assert "starts no rollout from a prefix" in done.stderr
