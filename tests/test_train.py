"""Runs through the real entry point: what is written, what is continued, what is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prefix_rl import checkpoints
from prefix_rl.errors import CheckpointError, DataError, RecipeError, StackError
from prefix_rl.recipe import load_recipe
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.train import main, train

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.lab.base_steps=800", "data.lab.problems=8", "data.lab.held_out=8", "training.per_device_train_batch_size=16",
    "training.num_generations=4", "training.logging_steps=1", "training.eval_strategy=no", "training.max_steps=6",
    "output.rollouts_every=1",
]  # fmt: skip
PREFIX_RFT = str(ROOT / "recipes" / "lab" / "prefix_rft.yaml")


def run(folder, *overrides, recipe=PREFIX_RFT):
    return train(recipe, [*SMALL, f"output.dir={folder}", *overrides])


def same_run(one, other, steps=6):
    """The same prompts, prefixes, completions, kept tokens and rewards at every step, and the same parameters."""
    for step in range(steps):
        assert read_rollouts(one, step) == read_rollouts(other, step), f"step {step}"
    left, right = (load_file(folder / "final" / "model.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    assert all(left[name].equal(right[name]) for name in left)


@pytest.mark.parametrize(("save_steps", "resumed_from"), [(3, 3), (2, 4)], ids=["within an epoch", "at its end"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, save_steps, resumed_from):
    # 8 problems, 4 prompts a step: an epoch has 2 steps, so step 3 lies in the second epoch and step 4 ends it
    whole = run(tmp_path / "whole", f"training.save_steps={save_steps}")
    assert checkpoints.last_whole(whole).name == "checkpoint-6"
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for folder in (cut / "checkpoint-6", cut / "final"):
        shutil.rmtree(folder)
    for file in (cut / "rollouts").glob("*"):
        if int(file.stem.removeprefix("step_")) >= resumed_from:
            file.unlink()
    run(cut, f"training.save_steps={save_steps}")
    same_run(whole, cut)
    assert any(r["reward"] for step in range(6) for r in read_rollouts(whole, step))  # there was something to learn
    steps = [json.loads(line)["step"] for line in (cut / "metrics.jsonl").read_text().splitlines() if "reward" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


MOVING = {
    "reference": ["beta=0.5", "sync_ref_model=true", "ref_model_sync_steps=1", "ref_model_mixup_alpha=0.5"],
    "entropy": ["use_adaptive_entropy=true", "entropy_coef=0.01", "entropy_coef_delta=0.005", "entropy_target=9.0"],
}


@pytest.mark.parametrize(
    ("kind", "file"), [("reference", checkpoints.REFERENCE), ("entropy", "entropy_ctrl_state.json")]
)
def test_what_training_moves_beside_the_policy_is_resumed(tmp_path, kind, file):
    settings = [
        *(f"training.{setting}" for setting in MOVING[kind]),
        "training.save_steps=2",
        "training.learning_rate=1e-2",
    ]
    whole = run(tmp_path / "whole", *settings)
    assert not (whole / "final" / file).exists()
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for folder in (cut / "checkpoint-6", cut / "final"):
        shutil.rmtree(folder)
    run(cut, *settings)
    same_run(whole, cut)


def test_a_reference_that_is_not_there_is_not_begun_anew(tmp_path):
    settings = [
        *(f"training.{setting}" for setting in MOVING["reference"]),
        "training.save_steps=2",
        "method.horizon=6",
    ]
    cut = run(tmp_path / "cut", *settings, "training.max_steps=2")
    facts = checkpoints.facts_of(cut / "checkpoint-2")
    (cut / "checkpoint-2" / checkpoints.REFERENCE).unlink()
    checkpoints.mark_whole(cut / "checkpoint-2", facts)  # as an older version did
    with pytest.raises(CheckpointError, match=r"reference.safetensors is not there: without the reference"):
        run(cut, *settings, "training.max_steps=4")


STAGE = "{epochs: 1, batch_size: 4, per_device_batch_size: 2, learning_rate: 1e-3}"
OTHERS = {
    "prefix_rl": "{name: prefix_rl}",
    "arg": "{name: arg}",  # help within the step, cuts by the first policy's surprisal, a memory
    "luffy": "{name: luffy}",
    "sft_loss": "{name: sft_loss, weight: 0.5, schedule: chord, warmup: 2}",
    "sft_then_rl": f"{{name: sft_then_rl, supervised: {STAGE}}}",
}

# Four hard additions: some rollouts are right, so there is something to learn from the first step on
EASY = ["data.lab.operations=4", "training.learning_rate=1e-3", "training.warmup_steps=0"]


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_methods_resume_exactly(tmp_path, capsys, name):
    # Two micro-batches a step, and two steps for each generation batch: rollouts at steps 0, 2 and 4
    settings = [
        f"method={OTHERS[name]}", "training.per_device_train_batch_size=8", "training.gradient_accumulation_steps=2",
        "training.num_iterations=2", "training.save_steps=2", "training.save_total_limit=3", *EASY,
    ]  # fmt: skip
    whole = run(tmp_path / "whole", *settings)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for folder in (cut / "checkpoint-4", cut / "checkpoint-6", cut / "final"):
        shutil.rmtree(folder)
    shutil.rmtree(cut / "rollouts")
    (cut / "cost.json").unlink()
    run(cut, *settings)
    assert f"continuing from {cut / 'checkpoint-2'}" in capsys.readouterr().err
    assert [p.name for p in sorted((cut / "rollouts").iterdir())] == ["step_000002.parquet", "step_000004.parquet"]
    for step in (2, 4):
        records = read_rollouts(whole, step)
        assert len(records) == 16
        assert records == read_rollouts(cut, step), f"step {step}"
        if name in ("luffy", "sft_loss"):  # one of four is a whole demonstration: 20 totals, seven words, and the end
            assert [r["prefix_tokens"] for r in records] == [28, 0, 0, 0] * 4
    left, right = (load_file(folder / "final" / "model.safetensors") for folder in (whole, cut))
    assert all(left[key].equal(right[key]) for key in left)
    resumed_from = load_file(whole / "checkpoint-2" / "model.safetensors")
    assert any(not left[key].equal(resumed_from[key]) for key in left)
    assert (whole / "cost.json").read_text() == (cut / "cost.json").read_text()
    assert (cut / "sft").exists() == (name == "sft_then_rl")


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_methods_train_adapters(tmp_path, name):
    folder = run(tmp_path / "run", f"method={OTHERS[name]}", "model.use_peft=true", "model.lora_r=4", "model.lora_dropout=0", "training.max_steps=2",
                 "training.save_strategy=no", *EASY)  # fmt: skip
    assert not (folder / "final" / "model.safetensors").exists()
    adapters = load_file(folder / "final" / "adapter_model.safetensors")
    assert {key.rpartition(".lora_")[2] for key in adapters} == {"A.weight", "B.weight"}
    assert any(value.any() for key, value in adapters.items() if "lora_B" in key)  # they start at 0
    if name == "sft_then_rl":
        stage = load_file(folder / "sft" / "final" / "adapter_model.safetensors")
        assert stage.keys() == adapters.keys()  # the same adapters, trained on
        assert any(value.any() for key, value in stage.items() if "lora_B" in key)
        assert any(not stage[key].equal(adapters[key]) for key in stage)


def test_the_stages_adapters_are_trained_on_and_resumed_exactly(tmp_path, capsys):
    settings = [f"method={OTHERS['sft_then_rl']}", "model.use_peft=true", "model.lora_r=4", "model.lora_dropout=0", "training.max_steps=2", "training.save_steps=1",
                *EASY]  # fmt: skip
    whole = run(tmp_path / "whole", *settings)
    still = run(tmp_path / "still", *settings, "training.learning_rate=1e-12")
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for folder in (cut / "checkpoint-2", cut / "final"):
        shutil.rmtree(folder)
    run(cut, *settings)
    assert f"continuing from {cut / 'checkpoint-1'}" in capsys.readouterr().err
    adapters = {f.name: load_file(f / "final" / "adapter_model.safetensors") for f in (whole, cut, still)}
    stage = load_file(still / "sft" / "final" / "adapter_model.safetensors")
    assert any(not value.equal(stage[key]) for key, value in adapters["whole"].items())
    for key, value in adapters["whole"].items():
        assert value.equal(adapters["cut"][key])
        assert (adapters["still"][key] - stage[key]).abs().max() < 1e-8  # where the RL stage started
    assert read_rollouts(whole, 1) == read_rollouts(cut, 1)


def test_a_run_that_was_cut_off_between_its_stages_goes_on(tmp_path, capsys):
    settings = [f"method={OTHERS['sft_then_rl']}", "training.max_steps=2", "training.save_strategy=no", *EASY]
    whole = run(tmp_path / "whole", *settings)
    cut = tmp_path / "cut"
    shutil.copytree(whole / "sft", cut / "sft")
    capsys.readouterr()
    run(cut, *settings)
    assert "the supervised stage is finished" in capsys.readouterr().err
    assert read_rollouts(whole, 0) == read_rollouts(cut, 0)  # the same noise, whether the stage has just run or not
    left, right = (load_file(folder / "final" / "model.safetensors") for folder in (whole, cut))
    assert all(left[key].equal(right[key]) for key in left)
    assert (whole / "cost.json").read_text() == (cut / "cost.json").read_text()


def test_a_run_that_was_killed_before_its_end_gets_its_policy(tmp_path, capsys):
    whole = run(tmp_path / "run", "training.max_steps=2", "training.save_steps=2")
    policy, cost = load_file(whole / "final" / "model.safetensors"), (whole / "cost.json").read_text()
    files = {p.name for p in (whole / "final").iterdir()}
    shutil.rmtree(whole / "final")
    (whole / "cost.json").unlink()
    (whole / "final.partial").mkdir()  # as a kill leaves it
    run(tmp_path / "run", "training.max_steps=2", "training.save_steps=2")
    assert "already finished its 2 steps" in capsys.readouterr().err
    again = load_file(whole / "final" / "model.safetensors")
    assert all(policy[key].equal(again[key]) for key in policy)
    assert (whole / "cost.json").read_text() == cost
    assert {p.name for p in (whole / "final").iterdir()} == files


def test_a_budget_that_the_supervised_stage_has_spent_leaves_no_rollouts(tmp_path, capsys):
    folder = run(tmp_path / "run", f"method={OTHERS['sft_then_rl']}", "budget.flops=1", "training.save_strategy=no")
    assert "of budget.flops = 1; the policy stays as it is" in capsys.readouterr().err
    assert not (folder / "rollouts").exists()
    assert json.loads((folder / "cost.json").read_text())["generated_tokens"] == 0
    left, right = (load_file(f / "model.safetensors") for f in (folder / "final", folder / "sft" / "final"))
    assert all(left[key].equal(right[key]) for key in left)


def test_a_run_that_has_spent_its_budget_says_so_and_trains_nothing(tmp_path, capsys):
    folder = run(tmp_path / "run", "budget.flops=1", "training.save_strategy=no")
    assert [p.name for p in checkpoints.checkpoints(folder)] == ["checkpoint-1"]
    assert (folder / "final").is_dir()
    spent = json.loads((folder / "cost.json").read_text())
    before = (folder / "metrics.jsonl").read_text()
    run(tmp_path / "run", "budget.flops=1", "training.save_strategy=no")
    assert "already spent its budget.flops = 1; nothing was trained" in capsys.readouterr().err
    assert (folder / "metrics.jsonl").read_text() == before
    run(tmp_path / "run", f"budget.flops={1.5 * spent['flops']}", "training.save_strategy=no")  # more to spend
    steps = [
        json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines() if "reward" in line
    ]
    assert steps == [1, 2]
    assert json.loads((folder / "cost.json").read_text())["flops"] >= 1.5 * spent["flops"]


def test_the_epochs_of_a_run_differ_in_their_order(tmp_path):
    whole = run(tmp_path / "run", "training.save_strategy=no")
    orders = [
        [r["row"] for step in (2 * epoch, 2 * epoch + 1) for r in read_rollouts(whole, step)] for epoch in range(3)
    ]
    assert all(set(order) == set(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_what_a_run_leaves_behind(tmp_path):
    folder = run(tmp_path / "run", "training.max_steps=2", "training.save_steps=2")
    resolved = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert resolved["method"]["share"] == 0.2  # a default, written out
    assert resolved["training"]["loss_type"] == "dr_grpo"
    assert (
        load_recipe(folder / "recipe.yaml").resolved()
        == load_recipe(
            PREFIX_RFT, [*SMALL, f"output.dir={folder}", "training.max_steps=2", "training.save_steps=2"]
        ).resolved()
    )
    facts = json.loads((folder / "run.json").read_text())
    assert facts["versions"]["trl"].startswith("1.16.")
    assert facts["world_size"] == 1
    commit = facts["git_commit"]
    assert len(commit) >= 40 if (ROOT / ".git").exists() else commit is None
    arguments = json.loads((folder / "training_arguments.json").read_text())
    assert arguments["scale_rewards"] == "none"
    assert arguments["max_completion_length"] == 30


def test_a_finished_run_says_so_and_trains_nothing(tmp_path, capsys):
    run(tmp_path / "run", "training.max_steps=2", "training.save_steps=2")
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    run(tmp_path / "run", "training.max_steps=2", "training.save_steps=2")
    assert "already finished its 2 steps; nothing was trained" in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_checkpoint_of_another_recipe_is_refused_with_the_differences(tmp_path):
    run(tmp_path / "run", "training.max_steps=2", "training.save_steps=2")
    with pytest.raises(CheckpointError) as error:
        run(tmp_path / "run", "training.save_steps=2", "method.share=0.5", "training.learning_rate=1e-3",
            "data.lab.seed=1", "training.logging_steps=2")  # fmt: skip
    text = str(error.value)
    for part in ("method.share was 0.2, now 0.5", "training.learning_rate was 0.0002, now 0.001", "data has changed",
                 "training.max_steps was 2, now 6"):  # fmt: skip
        assert part in text
    assert "logging_steps" not in text  # may change


def test_a_checkpoint_of_another_world_size_is_refused(tmp_path):
    folder = run(tmp_path / "run", "training.max_steps=2", "training.save_steps=2")
    mark = folder / "checkpoint-2" / checkpoints.MARK
    mark.write_text(mark.read_text().replace('"world_size": 1', '"world_size": 4'))
    with pytest.raises(CheckpointError, match="written by 4 processes, now there are 1"):
        run(folder, "training.max_steps=2", "training.save_steps=2")


def test_never_resuming_refuses_a_folder_that_holds_a_run(tmp_path):
    run(tmp_path / "run", "training.max_steps=1", "training.save_strategy=no")
    with pytest.raises(CheckpointError, match=r"output\.resume = never"):
        run(tmp_path / "run", "output.resume=never")


@pytest.mark.parametrize("damage", ["unmarked", "truncated"])
def test_a_checkpoint_that_was_cut_off_is_set_aside(tmp_path, damage, capsys):
    whole = run(tmp_path / "whole", "training.save_steps=2")
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "final")
    last = cut / "checkpoint-6"
    if damage == "unmarked":  # killed while the files were being written
        (last / checkpoints.MARK).unlink()
    else:  # the machine went down before the file reached the disk
        with (last / "optimizer.pt").open("r+b") as file:
            file.truncate(100)
    run(cut, "training.save_steps=2")
    assert "set aside" in capsys.readouterr().err
    assert (cut / "incomplete-6").is_dir()
    same_run(whole, cut)


def test_only_so_many_checkpoints_are_kept_and_all_are_whole(tmp_path):
    folder = run(tmp_path / "run", "training.save_steps=1", "training.save_total_limit=2")
    kept = checkpoints.checkpoints(folder)
    assert [p.name for p in kept] == ["checkpoint-5", "checkpoint-6"]
    assert all(checkpoints.facts_of(p) for p in kept)


def test_the_older_checkpoint_goes_only_when_the_newer_is_whole(tmp_path, monkeypatch):
    def cut_off(folder, facts):
        if facts["step"] == 2:
            raise KeyboardInterrupt  # as a kill between the last file and the mark
        checkpoints.mark_whole(folder, facts)

    monkeypatch.setattr("prefix_rl.seam.resume.mark_whole", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", "training.save_steps=1", "training.save_total_limit=1")
    assert checkpoints.last_whole(tmp_path / "run").name == "checkpoint-1"


# --- bad input --------------------------------------------------------------------------------------------------------


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        run(tmp_path / "file" / "run")


def test_a_full_disk_keeps_the_last_whole_checkpoint(tmp_path, monkeypatch):
    folder = run(tmp_path / "run", "training.max_steps=2", "training.save_steps=2")
    assert checkpoints.last_whole(folder).name == "checkpoint-2"
    program = (
        "import resource, sys; from prefix_rl.train import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"  # no file may grow beyond that, as if full
        f"sys.exit(main(['--config', {PREFIX_RFT!r}, *{SMALL!r}, 'output.dir={tmp_path / 'full'}', 'training.save_steps=2']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert "could not be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoints.last_whole(tmp_path / "full") is None


def rows_file(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


GOOD = {"problem": "1 +1 ?", "answer": "2", "solution": r"5 9 7 \boxed{ 2 }"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([GOOD, '{"problem": "1 +1 ?", "ans'], "rows.jsonl:2: not JSON"),
        ([GOOD, {"problem": "x"}], "rows.jsonl:2: no column 'answer'"),
        ([GOOD, {**GOOD, "answer": None}], "rows.jsonl:2: answer is null"),
        ([GOOD, {**GOOD, "problem": "  "}], "rows.jsonl:2: problem is empty"),
        ([GOOD, {**GOOD, "problem": "9" * 10_000_000}], "problem has 10,000,000 characters"),
        ([GOOD, {**GOOD, "answer": r"\frac{1"}], r"rows.jsonl:2: the gold answer '\\\\frac{1' cannot be parsed"),
        ([{**GOOD, "solution": "no answer at all"}] * 8, "earns the training reward"),
        ([{**GOOD, "solution": ""}] * 8, "method prefix_rft needs demonstrations"),
        ([GOOD], "fewer than the 4 prompts of one generation batch"),
    ],
    ids=[
        "truncated",
        "no answer",
        "null answer",
        "empty",
        "10 MB",
        "bad gold",
        "no final answer",
        "empty solution",
        "small",
    ],
)
def test_bad_rows_are_named_and_nothing_is_trained(tmp_path, rows, message):
    path = rows_file(tmp_path, rows if len(rows) != 2 else [GOOD] * 8 + rows[1:])
    message = message.replace("rows.jsonl:2", "rows.jsonl:9")
    with pytest.raises((RecipeError, DataError)) as error:
        run(tmp_path / "run", f"data.train={path}")
    assert message.replace("\\\\\\\\", "\\\\") in str(error.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("{name: luffy, cuts: 3}", "method.cuts: is a setting of prefix_rl, not of luffy"),
        ("{name: sft_loss, gamma: 0.1}", "method.gamma: is a setting of luffy, not of sft_loss"),
        ("{name: prefix_rl, prefixed: 1}", "method.prefixed: is a setting of prefix_rft, not of prefix_rl"),
        ("{name: dr_grpo, weight: 0.1}", "method.weight: is a setting of sft_loss, tempo, uft, not of dr_grpo"),
        ("{name: sft_then_rl, epochs: 3}", "method.epochs"),
        ("{name: sft_then_rl, supervised: {epoch: 3}}", "did you mean epochs?"),
        ("{name: sft_then_rl, supervised: {epochs: -1}}", "method.supervised.epochs"),
        ("{name: lufy}", "did you mean luffy?"),
        ("{name: prefix_lr}", "did you mean prefix_rl?"),
        ("{name: luffy, demonstrations: 4}", "leaves no rollout of training.num_generations = 4"),
        ("{name: prefix_rl, cuts: 0, plain: 0}", "leave no row to train on"),
        ("{name: luffy, gamma: 0}", "method.gamma = 0"),
    ],
)
def test_what_is_wrong_with_a_method_is_said(tmp_path, method, message):
    with pytest.raises(RecipeError) as error:
        run(tmp_path / "run", f"method={method}")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method={name: prefix_rl, plain: 0}", "data.lab.demonstrated=1"],
         "data.train has 8 problems (3 rows with the copies of prefix_rl), fewer than the 4 prompts"),
        (["method={name: sft_then_rl}", "data.lab.demonstrated=0"], "method sft_then_rl needs demonstrations"),
        (["method={name: luffy}", "data.demonstration_share=0"], "method luffy needs demonstrations"),
    ],
)  # fmt: skip
def test_data_that_a_method_cannot_train_on(tmp_path, overrides, message):
    with pytest.raises(RecipeError) as error:
        run(tmp_path / "run", *overrides)
    assert message in str(error.value)


def test_invalid_utf8_is_named_by_line(tmp_path):
    path = rows_file(tmp_path, [GOOD] * 3)
    path.write_bytes(path.read_bytes() + b'{"problem": "\xff", "answer": "2"}\n')
    with pytest.raises(RecipeError, match=r"rows.jsonl:4: not UTF-8 at byte 13"):
        run(tmp_path / "run", f"data.train={path}")


def test_demonstrations_that_fail_the_reward_are_dropped_and_counted(tmp_path, capsys):
    wrong = {**GOOD, "solution": r"5 9 7 \boxed{ 3 }"}
    path = rows_file(tmp_path, [GOOD, wrong] * 4)
    run(tmp_path / "run", f"data.train={path}", "training.max_steps=2", "training.save_strategy=no")
    assert "dropped 4 of 8 demonstrations that do not earn the reward: {'wrong': 4}" in capsys.readouterr().err
    for record in read_rollouts(tmp_path / "run"):
        assert record["row"] % 2 == 0 or record["prefix_tokens"] == 0


def test_no_gpu_is_said_before_anything_is_loaded(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(StackError, match=r"training\.use_cpu=true training\.bf16=false"):
        run(tmp_path / "run", "training.use_cpu=false")


def test_what_only_trl_can_judge_is_a_fault_of_the_recipe(tmp_path):
    with pytest.raises(RecipeError, match="TRL does not accept the training block"):
        run(tmp_path / "run", "training.lr_scheduler_type=cosinus")


def test_the_command_prints_faults_and_no_traceback(tmp_path, capsys):
    assert main(["--config", PREFIX_RFT, "training.learning_rat=1", f"output.dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert "did you mean learning_rate?" in error
    assert "Traceback" not in error


# --- interruptions ----------------------------------------------------------------------------------------------------


def start(folder, *overrides):
    command = [
        sys.executable,
        "-m",
        "prefix_rl.train",
        "--config",
        PREFIX_RFT,
        *SMALL,
        f"output.dir={folder}",
        *overrides,
    ]
    # SIGINT as in a terminal: a job in the background, as CI may be, ignores it, and its children inherit that
    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for(path, process):
    """Returns when the path is there; what never comes is ended by the test's own limit."""
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)


LONG = ("training.max_steps=400", "training.save_steps=2", "training.save_total_limit=3", "output.rollouts_every=0")


def test_ctrl_c_says_where_to_go_on(tmp_path):
    process = start(tmp_path / "run", *LONG)
    wait_for(tmp_path / "run" / "checkpoint-4" / checkpoints.MARK, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "stopped at step" in error
    assert "the last whole checkpoint is" in error
    assert "Traceback" not in error


def test_kill_9_during_steps_and_saves_always_leaves_a_whole_checkpoint(tmp_path):
    folder, last = tmp_path / "run", 0
    for attempt, moment in enumerate((0.0, 0.01, 0.03)):
        process = start(folder, *LONG)
        wait_for(folder / f"checkpoint-{last + 4}", process)  # the folder appears when the saving of it begins
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        whole = checkpoints.last_whole(folder)
        assert whole is not None
        reached = checkpoints.facts_of(whole)["step"]
        assert reached >= last + 2, f"attempt {attempt} lost a checkpoint"
        last = reached
