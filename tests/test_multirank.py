"""The same training on two processes, with DDP, ZeRO-2 and ZeRO-3, through `accelerate launch` on the CPU."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_train import PREFIX_RFT, SMALL

from prefix_rl import checkpoints
from prefix_rl.data.tokenizer import load_tokenizer
from prefix_rl.reports.rollouts import read_rollouts

pytestmark = pytest.mark.multirank
ROOT = Path(__file__).parents[1]
ACCELERATE = ROOT / "recipes" / "accelerate"
PARALLEL = ["cpu", "zero2", "zero3"]
# Greedy, so that one process and two write the same continuations. Three groups of 8 on two processes: the second group
# straddles them. Half of the problems have no demonstration, so a process may hold no prefix at all while the other does.
GREEDY = [*SMALL, "training.generation_kwargs={do_sample: false}", "data.demonstration_share=0.5", "method.horizon=1",
          "method.prefixed=2", "training.num_generations=8", "training.per_device_train_batch_size=24",
          "training.max_steps=4", "training.save_strategy=no", "training.learning_rate=1e-3"]  # fmt: skip


def launch(parallel, folder, *overrides, processes=2, recipe=PREFIX_RFT):
    config = str(ACCELERATE / f"{parallel}.yaml")
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", str(processes),
        "--mixed_precision", "no", "--main_process_port", "0",
        "-m", "prefix_rl.train", "--config", recipe, *overrides, f"output.dir={folder}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=540, env={**os.environ})
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def one_process(folder, *overrides):
    command = [sys.executable, "-m", "prefix_rl.train", "--config", PREFIX_RFT, *overrides, f"output.dir={folder}"]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Four greedy steps on one process."""
    return one_process(tmp_path_factory.mktemp("alone") / "run", *GREEDY)


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "reward" in line]


@pytest.mark.parametrize("parallel", PARALLEL)
def test_two_processes_train_as_one(alone, tmp_path, parallel):
    folder = tmp_path / "run"
    said = launch(parallel, folder, *GREEDY, "training.per_device_train_batch_size=12")
    assert f"2 process(es), {'MULTI_CPU' if parallel == 'cpu' else 'DEEPSPEED'}" in said
    for step in range(4):
        together, apart = read_rollouts(alone, step), read_rollouts(folder, step)
        for one, two in zip(together, apart, strict=True):
            assert one["prompt"] == two["prompt"]
            assert one["prefix_tokens"] == two["prefix_tokens"]
            assert one["completion_ids"] == two["completion_ids"]
            assert one["segments"] == two["segments"]  # the same tokens kept
            assert one["advantage"] == pytest.approx(two["advantage"], abs=1e-6)
    for one, two in zip(metrics(alone), metrics(folder), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
        for key in ("reward", "reward_with_prefix", "prefix/length", "prefix/kept_share", "prefix/rollouts"):
            assert one.get(key) == pytest.approx(two.get(key), abs=1e-6)
    assert any(m["grad_norm"] > 1e-4 for m in metrics(alone))
    lengths = {r["prefix_tokens"] for step in range(4) for r in read_rollouts(alone, step)}
    assert len(lengths) >= 5  # prefixes of several lengths, and none
    left, right = (load_file(f / "final" / "model.safetensors") for f in (alone, folder))
    assert left.keys() == right.keys()
    for name in left:
        assert (left[name] - right[name]).abs().max() < 1e-4, name


@pytest.mark.parametrize("parallel", ["zero2"])
def test_two_sharded_processes_resume_exactly(tmp_path, parallel):
    overrides = [*SMALL, "training.per_device_train_batch_size=8", "training.save_steps=3"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    launch(parallel, whole, *overrides)
    assert checkpoints.facts_of(whole / "checkpoint-3")["world_size"] == 2
    assert list((whole / "checkpoint-3").glob("global_step*"))  # DeepSpeed's own shards
    shutil.copytree(whole, cut)
    for folder in (cut / "checkpoint-6", cut / "final"):
        shutil.rmtree(folder)
    said = launch(parallel, cut, *overrides)
    assert "continuing from" in said
    for step in range(6):
        assert read_rollouts(whole, step) == read_rollouts(cut, step), f"step {step}"
    left, right = (load_file(f / "final" / "model.safetensors") for f in (whole, cut))
    assert all(left[name].equal(right[name]) for name in left)


def test_ten_steps_on_real_rows_alone_and_under_zero2(tmp_path, shared_data):
    rows = shared_data / "gsm8k-train.jsonl.gz"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(ROOT / "recipes" / "smoke" / "run.sh"), str(rows), str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, timeout=540, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    prepared = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    for folder in (tmp_path / "one", tmp_path / "two"):
        assert metrics(folder)[-1]["step"] == 10
        records = [r for step in range(10) for r in read_rollouts(folder, step)]
        prefixed = [r for r in records if r["prefix_tokens"]]
        assert len(prefixed) == 20  # 2 prompts a step
        for record in records:
            assert record["outcome"] in ("wrong", "no_answer", "right")
        for record in prefixed:
            (demonstration,) = prepared[record["row"]]["demonstrations"]
            tokens = tokenizer(demonstration["text"], add_special_tokens=False)["input_ids"]
            prefix = record["completion_ids"][: record["prefix_tokens"]]
            assert prefix == tokens[: record["prefix_tokens"]]
            begun = tokenizer.decode(prefix)
            assert "boxed" not in begun
            numbers = "".join(c if c.isdigit() or c == "." else " " for c in begun.replace(",", "")).split()
            assert record["answer"] not in [n.strip(".") for n in numbers]
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
