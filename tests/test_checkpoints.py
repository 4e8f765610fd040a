import json

import pytest

from prefix_rl.checkpoints import (
    MARK,
    check_continues,
    checkpoints,
    facts_of,
    last_whole,
    mark_whole,
    set_aside_incomplete,
    tidy,
)
from prefix_rl.errors import CheckpointError

FACTS = {
    "step": 5,
    "world_size": 2,
    "data": "abc",
    "recipe": {"method": {"share": 0.2}, "training": {"seed": 1}, "output": {"dir": "x"}},
}


def checkpoint(run, step, whole=True):
    folder = run / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"m" * 100)
    (folder / "global_step" / "shard.pt").write_bytes(b"s" * 50)
    if whole:
        mark_whole(folder, FACTS | {"step": step})
    return folder


def test_the_last_whole_checkpoint_is_the_newest_by_number(tmp_path):
    for step in (5, 10, 100, 9):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 200, whole=False)
    (tmp_path / "checkpoint-final").mkdir()
    assert last_whole(tmp_path).name == "checkpoint-100"
    assert [p.name for p in checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in (5, 9, 10, 100, 200)]
    assert last_whole(tmp_path / "nothing") is None


@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "no mark", "half a mark"])
def test_any_damage_makes_a_checkpoint_incomplete(tmp_path, damage):
    folder = checkpoint(tmp_path, 5)
    assert facts_of(folder)["step"] == 5
    shard = folder / "global_step" / "shard.pt"
    {
        "missing": shard.unlink,
        "shorter": lambda: shard.write_bytes(b"s"),
        "longer": lambda: shard.write_bytes(b"s" * 51),
        "no mark": (folder / MARK).unlink,
        "half a mark": lambda: (folder / MARK).write_text((folder / MARK).read_text()[:40]),
    }[damage]()
    assert facts_of(folder) is None
    assert last_whole(tmp_path) is None


def test_incomplete_checkpoints_are_renamed_and_never_deleted(tmp_path):
    for attempt in range(3):
        checkpoint(tmp_path, 7, whole=False)
        (moved,) = set_aside_incomplete(tmp_path)
        assert moved.name == ["incomplete-7", "incomplete-7.1", "incomplete-7.2"][attempt]
        assert (moved / "model.safetensors").exists()
    assert set_aside_incomplete(tmp_path) == {}


def test_a_mark_lists_every_file_and_survives_being_written_again(tmp_path):
    folder = checkpoint(tmp_path, 5)
    mark_whole(folder, FACTS)
    assert json.loads((folder / MARK).read_text())["files"] == {"model.safetensors": 100, "global_step/shard.pt": 50}


def test_every_difference_to_the_run_is_named(tmp_path):
    folder = checkpoint(tmp_path, 5)
    check_continues(folder, FACTS)
    check_continues(
        folder, FACTS | {"recipe": FACTS["recipe"] | {"output": {"dir": "y"}}}
    )  # where it is written may change
    now = {"world_size": 1, "data": "xyz", "recipe": {"method": {"share": 0.5}, "training": {"seed": 1, "beta": 0.1}}}
    with pytest.raises(CheckpointError) as error:
        check_continues(folder, now)
    assert error.value.faults == [
        "it was written by 2 processes, now there are 1; the optimizer's shards and the sampling noise belong to that number",
        "the training data has changed since (another hash)",
        "method.share was 0.2, now 0.5",
        "training.beta was null, now 0.1",
    ]


def test_logging_and_saving_may_change_between_two_parts_of_a_run(tmp_path):
    folder = checkpoint(tmp_path, 5)
    recipe = FACTS["recipe"] | {
        "training": {"seed": 1, "save_steps": 7, "report_to": "wandb"},
        "evaluation": {"data": "x"},
    }
    check_continues(folder, FACTS | {"recipe": recipe})
    free = (
        "save_steps", "save_total_limit", "save_strategy", "logging_steps", "logging_strategy", "logging_first_step",
        "report_to", "run_name", "disable_tqdm", "eval_steps", "eval_strategy", "eval_on_start", "project", "log_level",
        "per_device_eval_batch_size", "num_generations_eval", "dataloader_num_workers", "dataloader_pin_memory",
    )  # fmt: skip
    blocks = ("reward", "budget", "speed", "engine", "evaluation", "output", "safety")
    changed = {"training": {"seed": 1, **dict.fromkeys(free, 7)}, **{block: {"x": 1} for block in blocks}}
    check_continues(folder, FACTS | {"recipe": FACTS["recipe"] | changed})
    for other in ({"training": {"seed": 1, "learning_rate": 7}}, {"data": {"x": 1}}, {"model": {"x": 1}}):
        with pytest.raises(CheckpointError):
            check_continues(folder, FACTS | {"recipe": FACTS["recipe"] | other})


def test_it_is_said_what_was_set_aside_and_whether_anything_is_left(tmp_path, capsys):
    tidy(tmp_path)  # nothing was there: a run that begins
    assert not capsys.readouterr().err
    checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 9, whole=False)
    tidy(tmp_path)
    said = capsys.readouterr().err
    assert "set aside a checkpoint that cannot be continued from: " in said
    assert "no whole checkpoint is left" not in said
    (tmp_path / "checkpoint-5" / MARK).unlink()
    tidy(tmp_path, " of the supervised stage")
    assert "training of the supervised stage starts from the beginning" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        ({"training": {"lr_scheduler_type": "constant"}, "method": {"name": "dr_grpo"}}, None),
        (
            {"training": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1}, "method": {"horizon": 9}},
            None,
        ),
        ({"training": {}, "method": {}}, "training.lr_scheduler_type = linear falls until the last step"),
        ({"training": {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}}, "a share of the steps"),
        (
            {"training": {"lr_scheduler_type": "constant"}, "method": {"of": {"horizon": None}}},
            "method.of.horizon = null",
        ),
    ],
)
def test_a_run_may_go_on_to_more_steps_where_no_schedule_hangs_on_their_number(tmp_path, recipe, why):
    def facts(steps):
        return FACTS | {"recipe": recipe | {"training": recipe["training"] | {"max_steps": steps}}}

    mark_whole(checkpoint(tmp_path, 5), facts(5))
    if why is None:
        check_continues(tmp_path / "checkpoint-5", facts(9))
    else:
        with pytest.raises(CheckpointError) as error:
            check_continues(tmp_path / "checkpoint-5", facts(9))
        (fault,) = error.value.faults
        assert fault.startswith("training.max_steps was 5, now 9; ")
        assert why in fault
