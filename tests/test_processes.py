"""Several processes of one launch that share an evaluation or a collection out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import dataset, write

from prefix_rl.data.traces import TraceStore
from prefix_rl.evaluation.samples import read
from prefix_rl.lab.tiny import make_tiny
from prefix_rl.processes import Processes, take_own_gpus

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes/accelerate/cpu.yaml"),
          "--num_processes", "2", "--main_process_port", "0", "-m"]  # fmt: skip


@given(count=st.integers(0, 50), processes=st.integers(1, 9))
def test_the_shares_together_are_all(count, processes):
    things = list(range(count))
    shares = [Processes(i, processes).share(things) for i in range(processes)]
    assert sorted(thing for share in shares for thing in share) == things
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("rank", "each", "visible", "own"),
    [("1", 1, None, "1"), ("1", 2, None, "2,3"), ("1", 1, "4,6", "6"), ("0", 2, "4,6,7,8", "4,6")],
)
def test_each_process_takes_its_own_gpus(monkeypatch, rank, each, visible, own):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    take_own_gpus(each)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


@pytest.fixture(scope="module")
def given_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    make_tiny(folder / "tiny")
    rows = [{"id": str(i), "problem": r["prompt"], "answer": r["answer"]} for i, r in enumerate(dataset(7))]
    write(folder / "rows.jsonl", rows)
    return folder


def evaluate(folder, output, length=12):
    return ["prefix_rl.evaluate", str(folder / "tiny"), "--on", f"set={folder / 'rows.jsonl'}", "--samples", "5",
            "--max-completion-length", str(length), "--output", str(output)]  # fmt: skip


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.multirank
def test_an_evaluation_of_two_processes_is_that_of_one(given_files, tmp_path):
    def samples(output):
        return sorted((r["problem"], r["index"], r["text"]) for r in read(output / "samples" / "set"))

    one = subprocess.run([sys.executable, "-m", *evaluate(given_files, tmp_path / "one")], env=ENVIRONMENT, cwd=ROOT,
                         capture_output=True, text=True)  # fmt: skip
    assert one.returncode == 0, one.stderr
    two = subprocess.run([sys.executable, *LAUNCH, *evaluate(given_files, tmp_path / "two")], env=ENVIRONMENT, cwd=ROOT,
                         capture_output=True, text=True)  # fmt: skip
    assert two.returncode == 0, two.stderr[-3000:]
    assert samples(tmp_path / "one") == samples(tmp_path / "two")
    assert len(samples(tmp_path / "two")) == 35
    assert len(list((tmp_path / "two" / "samples" / "set").glob("*.parquet"))) >= 2  # both have written
    cards = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")]
    assert cards[0]["benchmarks"] == cards[1]["benchmarks"]
    assert two.stdout == one.stdout  # one of them tells


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.multirank
def test_a_collection_of_two_processes_is_that_of_one(given_files, tmp_path):
    def collect(output):
        return ["prefix_rl.collect", str(ROOT / "recipes" / "smoke" / "prefix_rft.yaml"), "--output", str(output), "--k", "6",
                "--cap", "9", f"model.name_or_path={given_files / 'tiny'}", f"data.train={given_files / 'rows.jsonl'}",
                "data.prompt=plain", "training.max_completion_length=12"]  # fmt: skip

    for command, name in ((["-m"], "one"), (LAUNCH, "two")):
        done = subprocess.run([sys.executable, *command, *collect(tmp_path / name)], env=ENVIRONMENT, cwd=ROOT, capture_output=True,
                              text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (sorted((t.problem_id, t.attempt, t.completion_ids) for t in TraceStore.open(tmp_path / name))
                for name in ("one", "two"))  # fmt: skip
    assert one == two
    assert len(one) == 7 * 9  # a random model is never right


@pytest.mark.multirank
def test_no_process_outlives_a_launcher_that_is_killed(given_files, tmp_path):
    command = [sys.executable, *LAUNCH, *evaluate(given_files, tmp_path / "cut", length=3000)]
    launcher = subprocess.Popen(
        command, env=ENVIRONMENT, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "cut" / "samples" / "settings.json").exists():  # the test's own limit ends it
        assert launcher.poll() is None
        time.sleep(0.2)
    workers = psutil.Process(launcher.pid).children(recursive=True)
    assert len(workers) >= 2
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    _, alive = psutil.wait_procs(workers, timeout=120)
    for process in alive:
        process.kill()
    assert not alive
