"""Runs that are asked to stop, that meet another in their folder, or whose process dies or stands still."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_multirank import ACCELERATE
from test_train import PREFIX_RFT, SMALL, run, same_run

from prefix_rl import checkpoints, status
from prefix_rl.errors import CheckpointError
from prefix_rl.parts import Lock
from prefix_rl.processes import alone_in
from prefix_rl.safety.stall import STALLED
from prefix_rl.safety.stopping import STOPPED
from prefix_rl.train import main

ROOT = Path(__file__).parents[1]
REWARD = "reward.functions=[math, tests.asking.asking]"


def command(folder, *overrides):
    return ["prefix_rl.train", "--config", PREFIX_RFT, *SMALL, REWARD, f"output.dir={folder}", *overrides]


def alone(folder, *overrides, ask=""):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"ASK": ask} if ask else {})}
    return subprocess.run([sys.executable, "-m", *command(folder, *overrides)], capture_output=True, text=True,
                          cwd=ROOT, env=environment)  # fmt: skip


def two(folder, *overrides, ask="", parallel="cpu"):
    launch = [sys.executable, "-m", "prefix_rl.launch", "--config_file", str(ACCELERATE / f"{parallel}.yaml"),
              "--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0", "-m"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"ASK": ask} if ask else {})}
    halves = ("training.per_device_train_batch_size=8",)
    return subprocess.run([*launch, *command(folder, *halves, *overrides)], capture_output=True, text=True, cwd=ROOT,
                          env=environment)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody asked to stop."""
    return run(tmp_path_factory.mktemp("whole") / "run", REWARD, "training.save_strategy=no")


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_exactly(whole, tmp_path, name):
    folder = tmp_path / "run"
    done = alone(folder, "training.save_strategy=no", ask=f"2 0 {name}-self")
    assert done.returncode == STOPPED == 75, done.stderr
    assert f"asked to stop ({name}): saved checkpoint-3" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in checkpoints.checkpoints(folder)] == ["checkpoint-3"]
    assert checkpoints.facts_of(folder / "checkpoint-3")
    assert status.read_status(folder)["state"] == "stopped"
    assert not (folder / "final").exists()
    run(folder, REWARD, "training.save_strategy=no")
    same_run(whole, folder)


@pytest.mark.usefixtures("quick_starts")
def test_a_generation_batch_is_used_up_before_it_stops(tmp_path):
    # two steps for each generation batch: asked in the first of the second batch (step 2), it stops after step 4
    done = alone(tmp_path / "run", "training.num_iterations=2", "training.save_strategy=no", ask="2 0 SIGTERM-self")
    assert done.returncode == STOPPED, done.stderr
    assert [p.name for p in checkpoints.checkpoints(tmp_path / "run")] == ["checkpoint-4"]


# --- two processes ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.multirank
def test_two_processes_stop_together_if_one_is_asked_and_go_on_exactly(tmp_path):
    settings = ("training.save_strategy=no", "training.max_steps=4")
    first = two(tmp_path / "run", *settings, ask="2 1 SIGUSR1-self")
    assert first.returncode == STOPPED, first.stderr[-3000:]
    assert "saved checkpoint-3" in first.stderr
    assert "Traceback" not in first.stderr
    facts = checkpoints.facts_of(tmp_path / "run" / "checkpoint-3")
    assert (facts["step"], facts["world_size"]) == (3, 2)
    second = two(tmp_path / "run", *settings)
    assert second.returncode == 0, second.stderr[-3000:]
    assert two(tmp_path / "whole", *settings).returncode == 0
    same_run(tmp_path / "whole", tmp_path / "run", steps=4)


@pytest.mark.multirank
def test_two_processes_stop_together_if_the_launcher_alone_is_asked(tmp_path):
    done = two(tmp_path / "run", "training.save_strategy=no", ask="2 1 SIGTERM-parent")
    assert done.returncode == STOPPED, done.stderr[-3000:]
    assert "asked to stop (SIGTERM): saved checkpoint-" in done.stderr
    assert checkpoints.last_whole(tmp_path / "run") is not None


@pytest.mark.multirank
@pytest.mark.parametrize(
    ("what", "returned", "said"),
    [("raise", 2, "the first one's message"), ("die", 137, "rank 1 ended first, with status -9")],
)
def test_what_happens_to_one_process_ends_the_other_too(tmp_path, what, returned, said):
    done = two(tmp_path / "run", "training.save_strategy=no", ask=f"1 1 {what}")
    assert done.returncode == returned, done.stderr[-3000:]
    assert said in done.stderr


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.multirank
def test_a_process_that_stands_still_ends_both_and_says_what_waits_for_what(tmp_path):
    patient = "safety={slow_seconds: 8, slow_step: 1.1, end_after: 8}"
    done = two(tmp_path / "run", "training.save_strategy=no", patient, ask="2 1 stall")
    assert done.returncode == STALLED, done.stderr[-3000:]
    assert "slow: step 3 has given no sign for" in done.stderr
    assert "rank 0 waits for the other processes (" in done.stderr
    assert re.search(r"rank 1 waits for a reward function \([^)]* tests/asking\.py:\d+ asking < ", done.stderr)
    assert "asking" in (tmp_path / "run" / "stacks" / "rank-1.txt").read_text()
    assert (tmp_path / "run" / "stacks" / "rank-0.txt").exists()
    assert "longer than safety.end_after allows" in done.stderr


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.multirank
def test_sharded_processes_leave_out_what_is_not_finite_and_stop_together(tmp_path):
    # DeepSpeed makes the update within backward; weights of 1e9 give NaN from the second step on
    done = two(tmp_path / "run", "method={name: luffy}", "training.learning_rate=1e9", "training.warmup_steps=0",
               "training.save_steps=1", "safety={not_finite: skip, skips_in_a_row: 1}", parallel="zero2")  # fmt: skip
    assert done.returncode == 2, done.stderr[-3000:]
    assert (
        "step 2: NaN or infinity in the log-probabilities, the loss, the gradient's norm; this update is left out"
        in (done.stderr)
    )
    assert "error: step 3: NaN or infinity in " in done.stderr
    assert "error on rank 1: step 3: " in done.stderr
    last = checkpoints.last_whole(tmp_path / "run")
    assert last.name == "checkpoint-2"
    assert all(value.isfinite().all() for value in load_file(last / "model.safetensors").values())


# --- a full disk --------------------------------------------------------------------------------------------------------


def full(monkeypatch, name):
    """The disk is full for files of this name."""
    fsync, opened = os.fsync, Path.open

    def of_whole_files(handle):
        if Path(f"/proc/self/fd/{handle}").readlink().name.startswith(name):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    def of_lines(path, mode="r", *args, **kwargs):
        if path.name.startswith(name) and mode == "a" and path.exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(os, "fsync", of_whole_files)
    monkeypatch.setattr(Path, "open", of_lines)


@pytest.mark.parametrize("name", ["step_000003.parquet", "metrics.jsonl", "prefix_rl.json"])
def test_a_full_disk_is_said_and_the_same_command_goes_on(whole, tmp_path, monkeypatch, capsys, name):
    folder = tmp_path / "run"
    given = ["--config", PREFIX_RFT, *SMALL, REWARD, f"output.dir={folder}", "training.save_steps=2"]
    with monkeypatch.context() as patched:
        full(patched, name)
        assert main(given) == 2
    said = capsys.readouterr().err
    assert f"{name}" in said
    assert "could not be written: " in said
    assert "No space left on device" in said
    assert "the same command goes on" in said
    assert all(checkpoints.facts_of(p) for p in checkpoints.checkpoints(folder) if p.name != "checkpoint-2")
    assert main(given) == 0
    same_run(whole, folder)


# --- two runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_starts")
def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    with Lock(tmp_path / "run" / "training.lock").held():
        done = alone(tmp_path / "run")
    assert done.returncode == 2
    assert f"another process is training in {tmp_path / 'run'} (process {os.getpid()} on " in done.stderr
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert not (tmp_path / "run" / "status.training.json").exists()
    with alone_in(tmp_path / "run", "training"):  # nobody holds it now
        pass


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The status of a run that another machine has left here."""
    monkeypatch.setattr(status, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(status, "SILENT_SECONDS", 0.5)

    def write(beat=None, state="running"):
        content = {"state": state, "doing": "training", "host": "node7", "pid": 17, "space": "another machine",
                   "born": "1", "moved": 1.0, "beat": time.time() if beat is None else beat}  # fmt: skip
        (tmp_path / "status.training.json").write_text(json.dumps(content))

    return write


def test_a_run_of_another_machine_that_gives_signs_is_refused_and_says_how_to_take_over(
    tmp_path, elsewhere, monkeypatch
):
    elsewhere()
    looked = []

    def sleep(seconds):  # it gives its next sign while we look
        looked.append(seconds)
        elsewhere(beat=time.time() + 1)

    monkeypatch.setattr(status.time, "sleep", sleep)
    with pytest.raises(CheckpointError, match=r"process 17 on node7.*take over with `rm .*status\.training\.json`"):
        alone_in(tmp_path, "training").__enter__()
    assert len(looked) == 1


@pytest.mark.parametrize("beat", [None, 1000.0], ids=["heard of just now", "long ago"])
def test_a_run_of_another_machine_that_gives_no_more_signs_is_taken_over(tmp_path, elsewhere, beat):
    elsewhere(beat)
    with alone_in(tmp_path, "training"):
        pass
    elsewhere(state="ended")
    with alone_in(tmp_path, "training"):
        pass
