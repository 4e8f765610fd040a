"""What a run says while it trains: to a log file, and to a terminal."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from prefix_rl import progress
from prefix_rl.reports.health import check
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.reports.tables import text_table
from prefix_rl.reports.terminal import TerminalLines, step_line

ROOT = Path(__file__).parents[1]
PROGRAM = "from prefix_rl.cli import main; main()"
SMALL = ["data.lab.base_steps=30", "data.lab.problems=8", "data.lab.held_out=8", "training.per_device_train_batch_size=16",
         "training.num_generations=4", "training.max_steps=6", "training.logging_steps=1", "training.eval_steps=3",
         "training.save_strategy=no", "training.report_to=none"]  # fmt: skip


def command(folder, recipe="prefix_rft", *more):
    path = ROOT / "recipes" / "lab" / f"{recipe}.yaml"
    return [sys.executable, "-c", PROGRAM, "train", str(path), *SMALL, f"output.dir={folder}", *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a small run through the command, and what it said to a file."""
    folder = tmp_path_factory.mktemp("log") / "run"
    done = subprocess.run(
        command(folder, "prefix_rft", "output.rollouts_every=1"), capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done.stdout + done.stderr


def test_a_log_has_one_line_a_step_and_no_bars(trained):
    folder, log = trained
    steps = re.findall(
        r"^step (\d+)/6  reward \S+ \| prefix \S+ at \d+ tokens \| len \d+ \| [\d.]+ s", log, re.MULTILINE
    )
    assert steps == ["1", "2", "3", "4", "5", "6"]
    assert re.findall(r"^step (\d+)/6  held-out reward", log, re.MULTILINE) == ["3", "6"]
    for noise in ("\r", "{'", "it/s", "0%|"):
        assert noise not in log, noise
    assert len(log) < 4000
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert len(first) > 40  # the whole dictionary is in the file
    status = json.loads((folder / "status.training.json").read_text())
    assert (status["state"], status["progress"]) == ("ended", {"what": "training", "done": 6, "total": 6})


def test_saved_rollouts_hold_what_the_page_shows_of_tokens(trained):
    folder, _ = trained
    rows = [row for step in range(6) for row in read_rollouts(folder, step)]
    assert any(row["found"] for row in rows)
    for row in rows:
        text, tokens = "".join(s["text"] for s in row["segments"]), len(row["completion_ids"])
        assert len(row["advantages"]) in (1, tokens)
        assert row["advantages"][-1] == pytest.approx(row["advantage"], rel=1e-3)
        if not row["prefix_tokens"]:
            assert row["entropies"] is None
            continue
        # entropies were measured on the prefix, to choose the tokens that get gradient: those with the highest
        assert row["token_ends"][-1] == len(text)
        assert [e is not None for e in row["entropies"]] == [i < row["prefix_tokens"] for i in range(tokens)]
    kept, left = [], []
    for row in (r for r in read_rollouts(folder, 0) if r["prefix_tokens"]):
        at, marks = 0, []
        for segment in row["segments"]:
            marks += [(at + len(segment["text"]), segment["kind"])]
            at += len(segment["text"])
        for end, entropy in zip(row["token_ends"], row["entropies"], strict=True):
            if entropy is not None:
                kind = next(kind for until, kind in marks if end <= until)
                (kept if kind == "kept" else left).append(entropy)
    assert kept
    assert min(kept) >= max(left) - 1e-3


@pytest.mark.usefixtures("quick_starts")
def test_a_supervised_stage_says_its_loss(tmp_path):
    stage = "method={name: sft_then_rl, supervised: {epochs: 2, batch_size: 4, per_device_batch_size: 2, learning_rate: 1e-3}}"
    done = subprocess.run(
        command(tmp_path / "run", "sft_then_rl", stage, "training.max_steps=1", "training.eval_strategy=no"),
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.findall(r"^step (\d)/4  loss \d", done.stderr, re.MULTILINE) == ["1", "2", "3", "4"]
    assert "{'" not in done.stdout + done.stderr


def on_a_terminal(arguments):
    """What a command shows on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        arguments, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, cwd=ROOT,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    parts = []

    def read():
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                return
            if not part:
                return
            parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    process.wait()
    reader.join(10)
    os.close(ours)
    return process.returncode, b"".join(parts).decode(errors="replace")


@pytest.mark.usefixtures("quick_starts")
def test_a_terminal_has_a_bar_below_the_lines(tmp_path):
    status, shown = on_a_terminal(command(tmp_path / "run"))
    assert status == 0, shown[-2000:]
    assert re.search(r"training: +\d+%\|", shown)
    assert "step 6/6  reward" in shown
    assert "{'" not in shown


def test_a_table_on_a_terminal_fits_it_and_in_a_pipe_is_plain():
    program = "from prefix_rl.reports.tables import text_table; print(text_table([['run', 'x'], ['[red]a' * 40, '1'], ['b', '2']]))"
    _, shown = on_a_terminal([sys.executable, "-c", program])
    assert "━" in shown or "─" in shown
    assert max(map(len, re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines())) <= 120
    assert "[red]a" in shown  # what a name holds is no markup
    assert text_table([["run", "x", "empty"], ["a", "1", ""]]) == "run  x\na    1"


# --- lines ------------------------------------------------------------------------------------------------------------


def test_what_was_not_logged_is_left_out():
    nan = float("nan")
    assert step_line({"reward": 1.0}, 3, 0, None, None) == "step 3  reward 1.00"
    assert step_line({"reward": 0.5, "reward_with_prefix": nan, "prefix/length": nan}, 3, 9, 61.0, 7200.0) == (
        "step 3/9  reward .50 | 61 s | eta 2.0 h"
    )
    assert step_line({"reward": -1.5}, 1, 2, None, None) == "step 1/2  reward -1.50"


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_where_nobody_looks_a_line_comes_every_thirty_seconds(monkeypatch):
    clock, said = Clock(monkeypatch), []
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr(progress, "somebody_looks", lambda: False)
    with progress.bar("sampling", 100) as advance:
        for _ in range(100):
            clock.now += 1.0
            advance(1)
    assert said == ["sampling: 30 of 100 (30 %)", "sampling: 60 of 100 (60 %)", "sampling: 90 of 100 (90 %)"]


def test_where_somebody_looks_no_line_comes_between(monkeypatch):
    clock, said = Clock(monkeypatch), []
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr(progress, "somebody_looks", lambda: True)
    lines = progress.Lines()
    clock.now += 1000
    lines.now_and_then(lambda: "x")
    assert said == []


ARGS = SimpleNamespace(disable_tqdm=False)


def at(step, total=40, main=True):
    return SimpleNamespace(global_step=step, max_steps=total, is_world_process_zero=main)


def log(callback, step, **logs):
    callback.on_log(ARGS, at(step), None, {"reward": 0.3, **logs})


@pytest.fixture
def said(monkeypatch):
    lines = []
    from prefix_rl.reports import terminal

    monkeypatch.setattr(terminal, "say", lines.append)
    return lines


def test_a_finding_is_told_once_and_again_when_it_comes_back(said):
    lines = TerminalLines()
    for step in range(1, 41):
        log(lines, step, frac_reward_zero_std=1.0 if step <= 10 or step > 25 else 0.0)
    told = [line for line in said if line.startswith("health:")]
    assert len([line for line in said if line.startswith("step ")]) == 40
    assert [re.match(r"health: step (\d+)", line)[1] for line in told] == ["5", "33"]
    # 33: the last 10 points are 24 to 33, of which 8 are without signal; at 5 there are 5 points for the first time
    assert check(lines.curves) != []


def test_a_long_time_without_a_log_has_a_line(said, monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setattr(progress, "say", said.append)
    monkeypatch.setattr(progress, "somebody_looks", lambda: False)
    lines = TerminalLines()
    lines.on_train_begin(ARGS, at(0), None)
    for step in range(1, 6):
        lines.on_step_begin(ARGS, at(step - 1), None)
        clock.now += 20
        lines.on_step_end(ARGS, at(step), None)
    assert said == ["step 2/40  20 s | eta 13 min", "step 4/40  20 s | eta 12 min"]  # 38 and 36 steps of 20 s


def test_other_ranks_say_nothing(said):
    lines = TerminalLines()
    lines.on_log(ARGS, at(1, main=False), None, {"reward": 0.3, "loss": float("nan")})
    lines.on_step_end(ARGS, at(1, main=False), None)
    assert said == []
