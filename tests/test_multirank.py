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


# --- the fast path ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """Four greedy steps on one process, on TRL's own path."""
    off = "speed={shared_prefix: false, trim: false, order: false}"
    return one_process(tmp_path_factory.mktemp("padded") / "run", *GREEDY, off)


@pytest.mark.parametrize("parallel", ["zero2", "zero3"])
def test_two_sharded_processes_on_the_fast_path_train_as_one_on_the_plain_path(padded, tmp_path, parallel):
    folder = tmp_path / "run"
    # Three micro-batches of 4 on each process; every one is compared with the plain path
    said = launch(parallel, folder, *GREEDY, "speed.verify=always", "training.per_device_train_batch_size=4",
                  "training.gradient_accumulation_steps=3", "training.gradient_checkpointing=true")  # fmt: skip
    assert "takes the plain path" not in said
    for step in range(4):
        for one, two in zip(read_rollouts(padded, step), read_rollouts(folder, step), strict=True):
            assert one["completion_ids"] == two["completion_ids"]
            assert one["segments"] == two["segments"]
    for one, two in zip(metrics(padded), metrics(folder), strict=True):
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
    same_parameters(padded / "final", folder / "final", 5e-4)


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


# --- the other methods ------------------------------------------------------------------------------------------------

# Demonstrations of very unequal lengths: 1 to 20 totals before the answer. Every second problem has none.
TOTALS = [1, 9, 20, 9, 2, 9, 15, 9]
OTHERS = {
    "luffy": "method={name: luffy}",
    "sft_loss": "method={name: sft_loss, weight: 0.5, tokens: uncertain}",
    "skewed": "method={name: tests.skewed_credit, supervised: {epochs: 3, batch_size: 4, per_device_batch_size: %d, "
    "learning_rate: 1e-3, warmup: 0}}",
    "uft": "method={name: uft, weight: 0.5, start: 0.6, end: 0.6, horizon: 100}",
    "adaptive": "method={name: tempo, normalize: false, of: {name: adaptive, rule: setpoint, anneal: 0, of: {name: "
    "tests.skewed_credit, cuts: 1, plain: 0, supervised: {epochs: 0}}}}",
}
PARTIAL = ("uft", "adaptive")  # the others inject whole demonstrations


@pytest.fixture(scope="module")
def unequal(tmp_path_factory):
    """Training rows in the lab's words."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = []
    for i, count in enumerate(TOTALS):
        row = {"problem": f"{i} +1 +{i} -3 ?", "answer": f"({i}, {i}, {i + 1})"}
        if i % 2 == 0:
            row["solution"] = " ".join(str((i + n) % 20) for n in range(count)) + rf" \boxed{{( {i} , {i} , {i + 1} )}}"
        rows.append(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(name, rows, at_once):
    method = OTHERS[name] % at_once if "%d" in OTHERS[name] else OTHERS[name]
    return [*GREEDY, f"data.train={rows}", "data.demonstration_share=1", "data.answer_guard=none", method,
            "training.max_steps=3", "training.warmup_steps=0"]  # fmt: skip


@pytest.fixture(scope="module")
def apart(unequal, tmp_path_factory):
    """Each of them on one process, in one micro-batch."""
    folder = tmp_path_factory.mktemp("apart")
    return {name: one_process(folder / name, *settings(name, unequal, at_once=4)) for name in OTHERS}


def same_parameters(one, other, most):
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    for name in left:
        difference = (left[name] - right[name]).abs()
        assert difference.max() < most, name  # AdamW divides: a gradient of almost 0 may end up on either side of it
        # Adding one vector to all keys moves all scores of a query alike: the gradient of a key's bias is 0, and what
        # AdamW makes of it is rounding
        assert difference.mean() < 1e-6 or name.endswith("k_proj.bias"), name


@pytest.mark.parametrize(
    ("name", "parallel"),
    [("skewed", "cpu"), *[(name, parallel) for name in OTHERS for parallel in ("zero2", "zero3")]],
)
def test_two_processes_train_the_other_methods_as_one(unequal, apart, tmp_path, name, parallel):
    one, two = apart[name], tmp_path / "run"
    # Three micro-batches of 4 on each process where one process has a single one of 24; in the supervised stage two of 1
    # where it has one of 4. So a stage that kept the other's sizes would be found out
    launch(parallel, two, *settings(name, unequal, at_once=1), "training.per_device_train_batch_size=4",
           "training.gradient_accumulation_steps=3")  # fmt: skip
    for step in range(3):
        together, here = read_rollouts(one, step), read_rollouts(two, step)
        assert len(together) == len(here) == 24
        for left, right in zip(together, here, strict=True):
            assert left["prompt"] == right["prompt"]
            assert left["prefix_tokens"] == right["prefix_tokens"]
            assert left["completion_ids"] == right["completion_ids"]
            assert left["advantage"] == pytest.approx(right["advantage"], abs=1e-4)
    for left, right in zip(metrics(one), metrics(two), strict=True):
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
        assert left["grad_norm"] > 1e-3
    same_parameters(one / "final", two / "final", 5e-4)
    assert json.loads((one / "cost.json").read_text()) == json.loads((two / "cost.json").read_text())
    if name == "skewed":
        same_parameters(one / "sft" / "final", two / "sft" / "final", 1e-5)
    elif name in PARTIAL:
        lengths = [{r["prefix_tokens"] for r in read_rollouts(two, step)} for step in range(3)]
        assert len(set().union(*lengths)) > 3
        assert lengths[0] != lengths[2]
    else:
        # 1, 20, 2 or 15 totals, seven words, and the end, in the first of each group; none for every second problem
        found = [[r["prefix_tokens"] for r in read_rollouts(two, step)] for step in range(3)]
        lengths = {n for step in found for n in step[::8]}
        assert lengths <= {0, 9, 28, 10, 23}
        assert len(lengths) > 2
        assert all(step[i] == 0 for step in found for i in range(24) if i % 8)
        assert any(any(step[:12]) != any(step[12:]) for step in found)  # a process that holds none beside one that does


# --- methods that change what comes next ------------------------------------------------------------------------------

FURTHER = {
    "pppo": "method={name: tests.skewed_beginnings, progressive: false, share: 0.4, continuations: 2}",
    "relift": "method={name: relift}",
    "help": "method={name: tests.skewed_help}",
}


@pytest.mark.parametrize(("name", "parallel"), [("pppo", "zero3"), ("relift", "zero3"), ("help", "zero2")])
def test_two_processes_continue_and_supervise_as_one(unequal, tmp_path, name, parallel):
    overrides = [*GREEDY, f"data.train={unequal}", "data.demonstration_share=1", "data.answer_guard=none",
                 "training.warmup_steps=0", FURTHER[name]]  # fmt: skip
    # a problem that none or all of its rollouts solve gives way to another one, once
    overrides += ["training.groups_without_signal=resample", "training.resample_rounds=1"] if name == "help" else []
    one, two = one_process(tmp_path / "one", *overrides), tmp_path / "two"
    launch(
        parallel, two, *overrides, "training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=3"
    )
    shown = [read_rollouts(one, step) for step in range(4)]
    for step, together in enumerate(shown):
        for left, right in zip(together, read_rollouts(two, step), strict=True):
            for key in ("prompt", "prefix_tokens", "completion_ids"):
                assert left[key] == right[key]
            assert left["advantage"] == pytest.approx(right["advantage"], abs=1e-4)
    supervised = [all(r["prefix_tokens"] for r in together) for together in shown]
    assert any(supervised) == (name == "relift")
    assert not all(supervised)
    if name == "help":
        prefixed = [[i for i, r in enumerate(together) if r["prefix_tokens"]] for together in shown]
        assert all(set(rows) <= {3, 4, *range(6, 24, 3)} for rows in prefixed)  # row 0 was put back
        assert any(4 in rows for rows in prefixed)
        assert any(max(rows) >= 12 for rows in prefixed)  # of the second process too
        assert [line["help/rounds"] for line in metrics(two)] == [2.0] * 4
        assert any(line["signal/exchanged_share"] > 0 for line in metrics(two))
    assert json.loads((one / "cost.json").read_text()) == json.loads((two / "cost.json").read_text())
    same_parameters(one / "final", two / "final", 5e-4)


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
