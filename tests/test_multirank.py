"""The same training on two processes, with DDP, ZeRO-2 and ZeRO-3, through `accelerate launch` on the CPU.

All trainings of one kind of two processes happen in one launch (tests/several.py), and all of one process in one process: a
start costs more than a training. What would be lost if the models or the steps were fewer stands beside each.
"""

import gzip
import json
import os
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import preloaded
import pytest
import torch
from safetensors.torch import load_file
from several import said_by_each
from test_train import PREFIX_RFT, SMALL

from prefix_rl import checkpoints
from prefix_rl.data.tokenizer import load_tokenizer
from prefix_rl.lab.base import base_folder
from prefix_rl.lab.world import World
from prefix_rl.reports.rollouts import read_rollouts

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(1800)]  # a start holds a dozen trainings
ROOT = Path(__file__).parents[1]
ACCELERATE = ROOT / "recipes" / "accelerate"
PARALLEL = ["cpu", "zero2", "zero3"]
# Greedy, so that one process and two write the same continuations. Three groups of 8 on two processes: the second group
# straddles them. Half of the problems have no demonstration, so a process may hold no prefix at all while the other does.
# Four steps: the budget falls from step to step, and only later steps have parameters that the first ones moved.
GREEDY = [*SMALL, "training.generation_kwargs={do_sample: false}", "data.demonstration_share=0.5", "method.horizon=1",
          "method.prefixed=2", "training.num_generations=8", "training.per_device_train_batch_size=24",
          "training.max_steps=4", "training.save_strategy=no", "training.learning_rate=1e-3"]  # fmt: skip
# Three micro-batches of 4 on each process where one process has a single one of 24
CUT = ["training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=3"]
OFF = "speed={shared_prefix: false, trim: false, order: false}"
RESUMED = [*SMALL, "training.per_device_train_batch_size=8", "training.save_steps=3"]

# Demonstrations of very unequal lengths: 1 to 20 totals before the answer. Every second problem has none.
TOTALS = [1, 9, 20, 9, 2, 9, 15, 9]
OTHERS = {
    "luffy": "method={name: luffy}",
    "sft_loss": "method={name: sft_loss, weight: 0.5, tokens: uncertain}",
    "skewed": "method={name: tests.skewed_credit, supervised: {epochs: 3, batch_size: 4, per_device_batch_size: %d, "
    "learning_rate: 1e-3, warmup: 0}}",
    "uft": "method={name: uft, cut: surprisal, weight: 0.5, start: 0.6, end: 0.6, horizon: 100}",
    "adaptive": "method={name: tempo, normalize: false, of: {name: adaptive, rule: setpoint, anneal: 0, of: {name: "
    "tests.skewed_credit, cuts: 1, plain: 0, supervised: {epochs: 0}}}}",
}
PARTIAL = ("uft", "adaptive")  # the others inject whole demonstrations
FURTHER = {  # methods that change what comes next: how their two processes are parallel, and what they are told
    "pppo": ("zero3", ["method={name: tests.skewed_beginnings, progressive: false, share: 0.4, continuations: 2}"]),
    "relift": ("zero3", ["method={name: relift}"]),
    # a problem that teaches nothing gives way to another one, once
    "help": ("zero3", ["method={name: tests.skewed_help}", "training.groups_without_signal=resample",
                       "training.resample_rounds=1"]),
}  # fmt: skip
# Rollouts that serve two optimizer steps of three micro-batches each, twice over. The four gradients have the one of a
# single step on all rows as their mean, if each is divided by what its rows are a share of. Plain gradient descent in small
# steps adds them up; the larger the steps, the more the later gradients are those of other parameters.
AT_ONCE = ["training.optim=sgd", "training.max_grad_norm=1000", "training.max_steps=1", "training.learning_rate=2e-4"]
BY_PARTS = [*AT_ONCE, "training.max_steps=4", "training.learning_rate=5e-5", "training.per_device_train_batch_size=2",
            "training.gradient_accumulation_steps=3", "training.steps_per_generation=6", "training.num_iterations=2"]  # fmt: skip
REUSED = {
    "reused_pppo": "method={name: tests.skewed_beginnings, progressive: false, share: 0.4, continuations: 0}",
    "reused_sft_loss": OTHERS["sft_loss"],
}


def settings(name, rows, at_once):
    """Overrides of one of the methods; ``at_once`` is the number of demonstrations of a supervised micro-batch."""
    own = FURTHER[name][1] if name in FURTHER else [(OTHERS | REUSED)[name], "training.max_steps=3"]
    own = [value % at_once if "%d" in value else value for value in own]
    return [*GREEDY, f"data.train={rows}", "data.demonstration_share=1", "data.answer_guard=none", *own,
            "training.warmup_steps=0"]  # fmt: skip


def on_one(rows):
    """What is trained on one process, in one micro-batch."""
    methods = {name: settings(name, rows, at_once=4) for name in (*OTHERS, *FURTHER)}
    reused = {name: [*settings(name, rows, at_once=4), *AT_ONCE] for name in REUSED}
    return {"greedy": GREEDY, "padded": [*GREEDY, OFF], **methods, **reused}


def on_two(parallel, rows):
    """What is trained on two processes of this kind."""
    greedy = [*GREEDY, "training.per_device_train_batch_size=12"]
    further = [name for name, (kind, _) in FURTHER.items() if kind == parallel]
    methods = {name: [*settings(name, rows, at_once=1), *CUT] for name in (*OTHERS, *further)}
    if parallel == "cpu":
        reused = {name: [*settings(name, rows, at_once=1), *BY_PARTS] for name in REUSED}
        return {"greedy": greedy, "skewed": methods["skewed"], **reused}
    fast = [*GREEDY, *CUT, "speed.verify=always", "training.gradient_checkpointing=true"]
    return {"greedy": greedy, "fast": fast, **methods, **({"whole": RESUMED} if parallel == "zero2" else {})}


def launcher(parallel, processes=2, precision="no"):
    """The beginning of a command that starts so many processes."""
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ACCELERATE / f"{parallel}.yaml"),
        "--num_processes", str(processes), "--mixed_precision", precision, "--main_process_port", "0",
    ]  # fmt: skip


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


class Trained:
    """The trainings of one start: their folders, and what they said."""

    def __init__(self, command, runs, folder):
        listed = folder / "runs.json"
        listed.write_text(json.dumps({n: [PREFIX_RFT, *o, f"output.dir={folder / n}"] for n, o in runs.items()}))
        self._folder = folder
        self._done = subprocess.run(
            [*command, str(ROOT / "tests" / "several.py"), str(listed)], capture_output=True, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        )  # fmt: skip

    def folder(self, name):
        """The folder of a training; the test fails here if any of the start has failed."""
        assert self._done.returncode == 0, self._done.stderr[-4000:]
        return self._folder / name

    def said(self, name):
        return said_by_each(self._done.stderr)[name]


@pytest.fixture(scope="module")
def one(tmp_path_factory, unequal):
    """All of them on one process."""
    return Trained([sys.executable], on_one(unequal), tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory, unequal):
    """All that is trained on two processes of a kind, by the kind: started when it is first asked for."""
    started = {}

    def of(parallel):
        if parallel not in started:
            folder = tmp_path_factory.mktemp(parallel)
            started[parallel] = Trained(launcher(parallel), on_two(parallel, unequal), folder)
        return started[parallel]

    return of


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "reward" in line]


def same_entropies(left, right):
    """Of rows that were cut into other micro-batches on other processes."""
    for key in ("entropy_prefix", "entropy_continuation"):
        assert (key in left) == (key in right)
        assert left.get(key, 0.0) == pytest.approx(right.get(key, 0.0), rel=1e-3)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_two_processes_train_as_one(one, two, parallel):
    alone, folder = one.folder("greedy"), two(parallel).folder("greedy")
    said = two(parallel).said("greedy")
    assert f"2 process(es), {'MULTI_CPU' if parallel == 'cpu' else 'DEEPSPEED'}" in said
    for step in range(4):
        pairs = zip(read_rollouts(alone, step), read_rollouts(folder, step), strict=True)
        for left, right in pairs:
            assert left["prompt"] == right["prompt"]
            assert left["prefix_tokens"] == right["prefix_tokens"]
            assert left["completion_ids"] == right["completion_ids"]
            assert left["segments"] == right["segments"]  # the same tokens kept
            assert left["advantage"] == pytest.approx(right["advantage"], abs=1e-6)
    for left, right in zip(metrics(alone), metrics(folder), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
        for key in ("reward", "reward_with_prefix", "prefix/length", "prefix/kept_share", "prefix/rollouts"):
            assert left.get(key) == pytest.approx(right.get(key), abs=1e-6)
        same_entropies(left, right)
    assert any(m["grad_norm"] > 1e-4 for m in metrics(alone))
    lengths = {r["prefix_tokens"] for step in range(4) for r in read_rollouts(alone, step)}
    assert len(lengths) >= 5  # prefixes of several lengths, and none
    left, right = (load_file(f / "final" / "model.safetensors") for f in (alone, folder))
    assert left.keys() == right.keys()
    for name in left:
        assert (left[name] - right[name]).abs().max() < 1e-4, name


# --- the fast path ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", ["zero2", "zero3"])
def test_two_sharded_processes_on_the_fast_path_train_as_one_on_the_plain_path(one, two, parallel):
    # Every micro-batch is compared with the plain path
    padded, folder = one.folder("padded"), two(parallel).folder("fast")
    assert "takes the plain path" not in two(parallel).said("fast")
    for step in range(4):
        for left, right in zip(read_rollouts(padded, step), read_rollouts(folder, step), strict=True):
            assert left["completion_ids"] == right["completion_ids"]
            assert left["segments"] == right["segments"]
    for left, right in zip(metrics(padded), metrics(folder), strict=True):
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)
    same_parameters(padded / "final", folder / "final", 5e-4)


def test_two_sharded_processes_resume_exactly(two, tmp_path):
    """Of the documented command, in a start of its own: what a process still holds in memory must not be what is resumed."""
    whole, cut = two("zero2").folder("whole"), tmp_path / "cut"
    assert checkpoints.facts_of(whole / "checkpoint-3")["world_size"] == 2
    assert list((whole / "checkpoint-3").glob("global_step*"))  # DeepSpeed's own shards
    shutil.copytree(whole, cut)
    for folder in (cut / "checkpoint-6", cut / "final"):
        shutil.rmtree(folder)
    again = [PREFIX_RFT, *RESUMED, f"output.dir={cut}"]
    done = subprocess.run([*launcher("zero2"), "-m", "prefix_rl.train", "--config", *again], capture_output=True, text=True,
                          cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "continuing from" in done.stderr
    for step in range(6):
        assert read_rollouts(whole, step) == read_rollouts(cut, step), f"step {step}"
    left, right = (load_file(f / "final" / "model.safetensors") for f in (whole, cut))
    assert all(left[name].equal(right[name]) for name in left)


# --- the other methods ------------------------------------------------------------------------------------------------


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
def test_two_processes_train_the_other_methods_as_one(one, two, name, parallel):
    # In the supervised stage two micro-batches of 1 where one process has one of 4. So a stage that kept the other's sizes
    # would be found out
    one, two = one.folder(name), two(parallel).folder(name)
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
        same_entropies(left, right)
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


@pytest.mark.parametrize("name", REUSED)
def test_steps_on_parts_of_the_rollouts_add_up_to_a_step_on_all(one, two, name):
    begun = load_file(base_folder(World(base_steps=800)) / "model.safetensors")
    moved = []
    for folder in (one.folder(name), two("cpu").folder(name)):
        final = load_file(folder / "final" / "model.safetensors")
        moved.append(torch.cat([(final[key] - begun[key]).flatten() for key in begun]))
    assert (moved[0] - moved[1]).norm() < 0.1 * moved[0].norm()


# --- methods that change what comes next ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FURTHER)
def test_two_processes_continue_and_supervise_as_one(one, two, name):
    one, two = one.folder(name), two(FURTHER[name][0]).folder(name)
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
    """The script of recipes/smoke as it is documented. Fewer than 300 rows would leave no answer guard at work."""
    rows = tmp_path / "gsm8k.jsonl"
    with gzip.open(shared_data / "gsm8k-train.jsonl.gz", "rt") as whole:
        rows.write_text("".join(islice(whole, 300)))
    environment = {**os.environ, "PATH": f"{preloaded.commands(tmp_path / 'bin')}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(ROOT / "recipes" / "smoke" / "run.sh"), str(rows), str(tmp_path)],
        capture_output=True, text=True, cwd=ROOT, env=environment,
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
