import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import prefix_rl
from typer.main import get_command
from typer.testing import CliRunner

from prefix_rl.cli import app

ROOT = Path(__file__).parents[1]
LAB = str(ROOT / "recipes" / "lab" / "prefix_rft.yaml")
COMMANDS = [
    "train",
    "prepare",
    "schedule",
    "evaluate",
    "compare",
    "report",
    "watch",
    "quickstart",
    "tiny",
    "check",
    "collect",
    "ladder",
    "grade",
    "schema",
    "plan",
    "preview",
    "keys",
]


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


def test_faults_end_in_status_2_without_a_traceback():
    """In a process of its own, as a shell sees it."""
    program = "from prefix_rl.cli import main; main()"
    command = [sys.executable, "-c", program, "check", LAB, "method.shar=0.3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "did you mean share?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["prepare", "x.jsonl"],
        ["nonsense"],
        ["evaluate", "nowhere"],
        ["report", "nowhere"],
        ["watch", "nowhere"],
        ["ladder", "nowhere.yaml"],
        ["collect", "nowhere.yaml"],
        ["grade", "nowhere.jsonl"],
    ],
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
    assert re.search(r"^check +1 +1   1 row: no column 'answer'$", done.stdout, re.MULTILINE)
    assert "1 problem, 1 with a demonstration" in done.stdout
    assert (tmp_path / "rows.jsonl.manifest.json").exists()


def test_prepare_takes_its_options(tmp_path):
    def file(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    raw = file("raw.jsonl", [{"id": str(i), "q": f"What is the {i} th prime number?", "answer": "1"} for i in range(6)])
    held_out = file("e.jsonl", [{"problem": "What is the 5 th prime number?"}])
    rates = file("rates.jsonl", [{"id": str(i), "pass_rate": i / 10} for i in range(6)])
    arguments = [raw, "--output", str(tmp_path / "out.jsonl"), "--column", "problem=q", "--against", held_out, "--pass-rates", rates,
                 "--pass-rate", "0.1", "0.3", "--no-near-duplicates"]  # fmt: skip
    done = prefix_rl("prepare", *arguments)
    assert done.returncode == 2
    assert "1 of its 1 problems" in done.stderr
    done = prefix_rl("prepare", *arguments, "--force")
    assert done.returncode == 0, done.stderr
    assert "1 problems, 1 found whole, 1 rows dropped, 0 with 13 words or more" in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["pass_rate"]) for row in rows] == [("1", 0.1), ("2", 0.2), ("3", 0.3)]
    assert len((tmp_path / "out.jsonl.dropped.jsonl").read_text().splitlines()) == 3


def test_what_is_given_goes_before_the_preset(tmp_path):
    from small import byte_level_bpe

    byte_level_bpe().save_pretrained(tmp_path / "model")
    raw = tmp_path / "raw.jsonl"
    raw.write_text(
        json.dumps({"problem": "p", "answer": "1", "generations": [rf"{i} \boxed{{1}}" for i in range(3)]}) + "\n"
    )
    arguments = [
        str(raw),
        "--output",
        str(tmp_path / "out.jsonl"),
        "--tokenizer",
        str(tmp_path / "model"),
        "--preset",
        "openr1-46k",
    ]
    done = prefix_rl("prepare", *arguments, "--demonstrations", "2")
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())["settings"]
    assert (settings["max_completion_length"], settings["demonstrations"], settings["require_demonstration"]) == (
        8192,
        2,
        True,
    )


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


def test_schedule_of_fixed_cuts_is_the_same_at_every_step(tmp_path):
    recipe = str(ROOT / "recipes" / "lab" / "prefix_rl.yaml")
    options = ["data.lab.base_steps=3", "data.answer_guard=none", "--plot", str(tmp_path / "plot.png")]
    done = prefix_rl("schedule", recipe, *options)
    assert done.returncode == 0, done.stderr
    rows = [line.split()[1:] for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 11
    assert all(row == rows[0] for row in rows)
    assert float(rows[0][4]) == pytest.approx(0.6, abs=0.03)  # the middle of 0.4 and 0.8
    assert rows[0][3] == "21"  # at most floor(0.8 * 27) of the 27 words


def test_collect_fills_a_store_that_train_takes(tmp_path):
    recipe, lab = str(ROOT / "recipes" / "lab" / "prefix_rl.yaml"), ["data.lab.base_steps=3", "data.lab.problems=4"]
    store = tmp_path / "traces"
    done = prefix_rl("collect", recipe, *lab, "--output", str(store), "--k", "2", "--cap", "4", "--batch-size", "8")
    assert done.returncode == 0, done.stderr
    assert "4 problems of lab" in done.stdout
    assert "4  never solved" in done.stdout
    done = prefix_rl("check", recipe, *lab, f"data.traces={store}")
    assert done.returncode == 2
    assert "no right trace" in done.stderr  # an untrained policy solves nothing

    rows = tmp_path / "other.jsonl"
    from prefix_rl.lab.world import World, training_problems

    problems = training_problems(World(problems=4))
    rows.write_text(
        "".join(json.dumps({"problem_id": p.id, "text": p.demonstrations[0]["text"]}) + "\n" for p in problems)
    )
    done = prefix_rl("collect", recipe, *lab, "--output", str(store), "--import", str(rows), "--source", "expert")
    assert done.returncode == 0, done.stderr
    done = prefix_rl("check", recipe, *lab, f"data.traces={store}", "training.per_device_train_batch_size=16")
    assert done.returncode == 0, done.stderr
