"""Damaged files of runs, evaluations and trace stores are explained: no traceback, no hang, nothing lost silently.

``PREFIX_RL_HOSTILE=1500`` damages ten times as many files.
"""

import json
import os
import random
import shutil

import hostile_files as files
import pytest
import vanishing
from hostile import CASES, COMPLETED_ROWS, GOOD_ROWS, SEED, Outcomes, cpu_budget

from prefix_rl import checkpoints
from prefix_rl.cli import app
from prefix_rl.collecting.collect import collect, import_file
from prefix_rl.data.traces import TraceStore
from prefix_rl.errors import CheckpointError, DataError
from prefix_rl.evaluation.compare import compare_folders, rows_of
from prefix_rl.evaluation.evaluate import evaluate, grade_again
from prefix_rl.progress import run_or_explain
from prefix_rl.recipe import load_run
from prefix_rl.reports.report import report
from prefix_rl.reports.watch import Watched

pytestmark = pytest.mark.slow
MANY = CASES // 10
LAB = files.LAB


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    files.make(folder)
    return folder


def _copy(made, work, name, *without):
    """A genuine folder, to be damaged."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(made / name, work / name, symlinks=True)
    for gone in without:
        shutil.rmtree(work / name / gone)
    return work / name


def _tried(number, readers, outcomes, told):
    for name, reader in readers.items():
        outcomes.setdefault(name, Outcomes()).run((number, name, told), reader)


def _checked(outcomes):
    for one in outcomes.values():
        one.check()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_told_from_a_whole_one(made, tmp_path):
    rng, foreign = random.Random(SEED), files.found(made, "stage/checkpoint-*/*", "stage/sft/checkpoint-*/*")
    for number in range(MANY * 10):
        run = _copy(made, tmp_path / "work", "run")
        folder = run / "checkpoint-4"
        path = rng.choice(files.found(folder, "*", "*.json"))
        before = path.read_bytes()
        told = files.spoil(path, rng, foreign)
        with cpu_budget():
            moved = checkpoints.set_aside_incomplete(run)
            last = checkpoints.last_whole(run)
        if path.name == checkpoints.MARK:  # what its facts say is compared with the run by check_continues
            assert moved or checkpoints.facts_of(folder), told
        elif path.is_file() and not path.is_symlink() and path.read_bytes() == before:
            assert not moved, told
        else:
            assert [p.name for p in moved] == ["incomplete-4"], (number, told)
            assert path.name in moved[run / "incomplete-4"], (number, told)
            assert last.name == "checkpoint-2", (number, told)


def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one_and_says_so(made, tmp_path, capsys):
    run = _copy(made, tmp_path, "run", "final")
    weights = run / "checkpoint-4" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    files.run(run)
    said = capsys.readouterr().err
    assert f"{run / 'incomplete-4'}: model.safetensors: not the content that was saved" in said
    assert f"continuing from {run / 'checkpoint-2'}" in said
    assert (run / "incomplete-4" / "model.safetensors").read_bytes() == raw
    assert (run / "final" / "model.safetensors").is_file()


def test_a_run_none_of_whose_checkpoints_is_whole_says_that_it_begins_anew(made, tmp_path, capsys):
    run = _copy(made, tmp_path, "run", "final", "checkpoint-4")
    (run / "checkpoint-2" / "trainer_state.json").write_text("{}")
    files.run(run, "prefix_rft", "training.max_steps=2")
    said = capsys.readouterr().err
    assert "trainer_state.json has 2 bytes, not" in said
    assert f"no whole checkpoint is left in {run}: training starts from the beginning" in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("model.safetensors", b"x" * 100, "cannot be continued from, so nothing was trained (SafetensorError"),
        ("optimizer.pt", b"PK" * 50, "cannot be continued from, so nothing was trained ("),
        ("rng_state.pth", b"", "cannot be continued from, so nothing was trained (EOFError"),
        ("optimizer.pt", None, "it holds no state of the optimizer"),
        ("rng_state.pth", None, "it holds no random numbers"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_only_its_mark_calls_whole_is_explained(made, tmp_path, name, content, said):
    run = _copy(made, tmp_path, "run", "final", "checkpoint-4")
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-1")
    mark = run / "checkpoint-1" / checkpoints.MARK
    mark.write_text(mark.read_text().replace('"step": 2', '"step": 1'))
    path = run / "checkpoint-2" / name
    path.unlink() if content is None else path.write_bytes(content)
    files.marked_again(run / "checkpoint-2")
    with pytest.raises(CheckpointError) as raised:
        files.run(run)
    assert said in str(raised.value)
    assert content is None or f"To go on from {run / 'checkpoint-1'}, rename it" in str(raised.value)
    assert (run / "checkpoint-2").is_dir()


def test_a_checkpoint_whose_state_is_of_another_step_is_set_aside(made, tmp_path):
    run = _copy(made, tmp_path, "run")
    for content, said in (
        ("{", "trainer_state.json is damaged: not JSON"),
        ('{"global_step": 3}', "trainer_state.json is of step 3"),
    ):
        (run / "checkpoint-4" / "trainer_state.json").write_text(content)
        files.marked_again(run / "checkpoint-4")
        assert said in checkpoints.fault_of(run / "checkpoint-4")
    assert checkpoints.fault_of(run / "checkpoint-2") is None


def test_training_goes_on_or_explains_whatever_lies_in_its_folder(made, tmp_path):
    rng, outcomes = random.Random(SEED), {}
    foreign = files.found(made, "run/checkpoint-*/*", "stage/checkpoint-*/*")
    for number in range(MANY):
        run = _copy(made, tmp_path / "work", "run", "final", "checkpoint-4")
        path = rng.choice(files.found(run, "*.json", "*.jsonl", "recipe.yaml", "checkpoint-2/*"))
        told = files.spoil(path, rng, foreign)
        if path.parent != run and path.name != checkpoints.MARK and rng.random() < 0.7:
            files.marked_again(path.parent)
            told += ", marked"
        _tried(number, {"train": lambda run=run: files.run(run)}, outcomes, told)
    _checked(outcomes)


def test_a_damaged_supervised_stage_is_made_again_or_explained(made, tmp_path):
    rng, outcomes = random.Random(SEED), {}
    foreign = files.found(made, "run/checkpoint-*/*", "stage/sft/checkpoint-*/*")
    for number in range(MANY // 2):
        run = _copy(made, tmp_path / "work", "stage", "final", "checkpoint-2", "checkpoint-4")
        folder = run / "sft" / rng.choice(["checkpoint-2", "final"])
        if folder.name != "final":
            shutil.rmtree(run / "sft" / "final")
            shutil.rmtree(run / "sft" / "checkpoint-4")
        path = rng.choice(files.found(folder, "*"))
        told = files.spoil(path, rng, foreign)
        if path.name != checkpoints.MARK and rng.random() < 0.7:
            files.marked_again(folder)
            told += ", marked"
        steps = "training.max_steps=1", "training.save_steps=1"
        _tried(number, {"train": lambda run=run: files.run(run, "sft_then_rl", *files.STAGE, *steps)}, outcomes, told)
    _checked(outcomes)


def test_what_lies_in_the_place_of_a_stages_policy_is_set_aside_and_not_written_through(made, tmp_path):
    run = _copy(made, tmp_path, "stage", "final", "checkpoint-2", "checkpoint-4")
    final = run / "sft" / "final"
    for name, make in (("tokenizer_config.json", os.mkfifo), ("training_args.bin", os.mkdir)):
        (final / name).unlink()
        make(final / name)
    files.run(run, "sft_then_rl", *files.STAGE, "training.max_steps=1", "training.save_steps=1")
    assert checkpoints.fault_of(final) is None
    assert (run / "sft" / "incomplete-final" / "training_args.bin").is_dir()


# --- runs and evaluations ---------------------------------------------------------------------------------------------


def _seen(folder):
    watched = Watched([folder])
    watched.index(), watched.curves(0), watched.generation(0, 1)


def test_runs_and_evaluations_are_shown_compared_and_graded_again_or_explained(made, tmp_path):
    rng, outcomes = random.Random(SEED), {}
    foreign = files.found(made, "stage/*", "store/*", "run/rollouts/*", "run/samples/*/*")
    for number in range(MANY * 2):
        folder = _copy(made, tmp_path / "work", "run", "checkpoint-2", "checkpoint-4")
        kinds = ("evaluation.json", "evaluation.json", "*.json", "*.jsonl", "*.yaml", "samples/*.json", "samples/lab/*.parquet",
                 "samples/lab/*.parquet", "rollouts/*.parquet", "final/*")  # fmt: skip
        path = rng.choice(files.found(folder, rng.choice(kinds)))
        told = files.spoil(path, rng, foreign)
        readers = {"watch": lambda folder=folder: _seen(folder)}
        if path.parent == folder:
            readers["compare"] = lambda folder=folder: rows_of(compare_folders(folder, made / "run"))
            readers["report"] = lambda folder=folder: report([folder], tmp_path / "report")
        if "rollouts" not in path.parts:
            readers["regrade"] = lambda folder=folder: grade_again(folder)
            readers["evaluate"] = lambda folder=folder: evaluate(str(folder), overrides=["evaluation.samples=2"])
        _tried(number, readers, outcomes, told)
    _checked(outcomes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": 0}, "benchmarks.lab.samples is 0, not an integer of at least 1"),
        (
            {"samples": 2, "right_by_problem": {"a": 3}},
            "benchmarks.lab: right_by_problem does not go with 2 samples of a problem",
        ),
        ({"accuracy": {"mean": "all"}}, 'benchmarks.lab.accuracy.mean is "all", not a number in [0, 1]'),
        ({"right_by_problem": None}, "benchmarks.lab.right_by_problem is missing"),
    ],
)
def test_a_card_that_says_what_cannot_be_is_explained_by_its_place(made, tmp_path, change, said):
    folder = _copy(made, tmp_path, "run")
    card = json.loads((folder / "evaluation.json").read_text())
    card["benchmarks"]["lab"] |= change
    card["benchmarks"]["lab"] = {k: v for k, v in card["benchmarks"]["lab"].items() if v is not None}
    (folder / "evaluation.json").write_text(json.dumps(card))
    for reader in (lambda: compare_folders(folder, made / "run"), lambda: grade_again(folder)):
        with pytest.raises(DataError) as raised:
            reader()
        assert f"{folder / 'evaluation.json'} is damaged: {said}" in str(raised.value)


def test_samples_that_are_there_twice_or_not_at_all_are_never_counted(made, tmp_path):
    folder = _copy(made, tmp_path, "run")
    part = folder / "samples" / "lab" / "00000.parquet"
    assert grade_again(folder)[0]["accuracy"]["samples"] == 2  # the control
    shutil.copyfile(part, part.with_name("00001.parquet"))
    with pytest.raises(
        DataError, match=r"sample 0 of problem held-out/0 twice, and 7 more: one of its files was copied"
    ):
        grade_again(folder)
    part.unlink(), part.with_name("00001.parquet").unlink()
    with pytest.raises(DataError, match="lacks 8 of 8 samples"):
        grade_again(folder)


def test_samples_of_which_nothing_says_how_they_were_drawn_are_set_aside(made, tmp_path, capsys):
    folder = _copy(made, tmp_path, "run")
    (folder / "samples" / "settings.json").unlink()
    evaluate(str(folder), overrides=["evaluation.samples=2"])
    assert f"no settings.json says how they were drawn; they go to {folder / 'earlier-1'}" in capsys.readouterr().err
    assert (folder / "earlier-1" / "samples" / "lab" / "00000.parquet").is_file()


# --- folders that go away ---------------------------------------------------------------------------------------------


def _commands(made, work, out):
    """Commands that write into a folder, by name."""
    for name, rows in (("rows", GOOD_ROWS), ("completed", COMPLETED_ROWS)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, small = str(made / "run"), files.SMALL
    return {
        "prepare": ["prepare", str(work / "rows.jsonl"), "--output", str(out / "x.jsonl"), "--workers", "1"],
        "grade": ["grade", str(work / "completed.jsonl"), "--output", str(out / "g.jsonl"), "--workers", "1"],
        "train": ["train", str(LAB / "prefix_rft.yaml"), *small, f"output.dir={out}", "training.max_steps=2"],
        "evaluate": ["evaluate", run, "evaluation.samples=2", "--output", str(out)],
        "collect": ["collect", str(LAB / "prefix_rl.yaml"), *small, "--output", str(out), "--k", "2", "--cap", "4"],
        "report": ["report", run, "--output", str(out)],
        "compare": ["compare", run, run, "--output", str(out / "c.json")],
        "schedule": ["schedule", str(LAB / "prefix_rft.yaml"), *small, "--plot", str(out / "s.png")],
        "tiny": ["tiny", str(out)],
    }


@pytest.mark.parametrize(
    "name", ["prepare", "grade", "train", "evaluate", "collect", "report", "compare", "schedule", "tiny"]
)
def test_a_folder_that_goes_away_while_a_command_writes_into_it_is_told(made, tmp_path, capsys, name):
    rng, ways = random.Random(f"{SEED} {name}"), (vanishing.removed, vanishing.replaced, vanishing.parent_replaced)
    for how, at in [*zip(ways, (rng.randrange(40), 0, 1), strict=True)] + [
        (rng.choice(ways), rng.randrange(80)) for _ in range(MANY // 30)
    ]:
        work = tmp_path / f"{how.__name__}{at}"
        out = work / "inside" / "out"
        out.mkdir(parents=True)
        arguments = _commands(made, work, out)[name]
        with vanishing.vanishing(out, at, how) as folder, cpu_budget():
            status = run_or_explain(lambda arguments=arguments: app(arguments, standalone_mode=False))
        said = capsys.readouterr().err
        if folder.happened and how is not vanishing.removed:  # one that is only removed may be made again
            assert status == 2
        assert status == 0 or (status == 2 and str(out.parent) in said.partition("error: ")[2]), said
        assert "Traceback" not in said


def test_an_error_of_no_file_stays_one_with_its_traceback():
    for error in (ValueError("No"), OSError("of no kind"), ConnectionResetError(104, "reset"), KeyError("x")):
        with pytest.raises(type(error)):
            run_or_explain(lambda error=error: _raise(error))


def _raise(error):
    raise error


def test_a_fault_of_the_code_stays_one_though_a_file_was_missing_before():
    def careless():
        try:
            _raise(FileNotFoundError(2, "No such file or directory", "runs/a"))
        except OSError:
            len(3)

    with pytest.raises(TypeError):
        run_or_explain(careless)


def test_who_asks_for_the_traceback_gets_it(monkeypatch):
    error = FileNotFoundError(2, "No such file or directory", "runs/a")
    assert run_or_explain(lambda: _raise(error)) == 2
    monkeypatch.setenv("PREFIX_RL_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        run_or_explain(lambda: _raise(error))


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory", "runs/a"), PermissionError(13, "Permission denied", "runs/a"),
        RuntimeError("Parent directory runs/a does not exist."), OSError(5, "Input/output error", "runs/a"),
        ValueError("Error while serializing: I/O error: No such file or directory (os error 2) runs/a"),
        OSError(30, "Read-only file system", "runs/a"), OSError("Unable to open runs/a: Stale file handle"),
    ],
    ids=str,
)  # fmt: skip
def test_errors_of_the_system_are_told_whichever_library_met_them(error, capsys):
    assert run_or_explain(lambda: _raise(error)) == 2
    said = capsys.readouterr().err
    assert "runs/a" in said
    assert "give the same command again: what is whole is kept" in said


# --- trace stores -----------------------------------------------------------------------------------------------------


def test_trace_stores_are_gone_on_with_attached_and_imported_or_explained(made, tmp_path):
    rng, outcomes, recipe = random.Random(SEED), {}, LAB / "prefix_rl.yaml"
    foreign = files.found(made, "run/*", "store/*", "run/rollouts/*", "run/samples/*/*")
    for number in range(MANY * 2):
        store = _copy(made, tmp_path / "work", "store")
        told = files.spoil(
            rng.choice(files.found(store, rng.choice(["*.json", "*.parquet", "*.parquet"]))), rng, foreign
        )
        used = [*files.SMALL, f"data.traces={store}", f"output.dir={tmp_path / 'work' / 'run'}"]
        readers = {
            "attach": lambda used=used: load_run(recipe, used),
            "lessons": lambda used=used: load_run(LAB / "rft.yaml", used),
            "cost": lambda store=store: TraceStore.open(store).cost(),
            "report": lambda store=store: _seen(store),
            "collect": lambda store=store: collect(recipe, files.SMALL, store, k=2, cap=4),
        }
        if number % 5 == 0:
            copy = tmp_path / "work" / "copy"
            readers["import"] = lambda store=store, copy=copy: import_file(recipe, files.SMALL, copy, store)
            readers["train"] = lambda store=store: files.run(
                tmp_path / "work" / "run",
                "rft",
                f"data.traces={store}",
                "training.max_steps=1",
                "training.save_steps=1",
            )
        _tried(number, readers, outcomes, told)
    _checked(outcomes)


def test_a_part_that_was_copied_is_not_counted_twice(made, tmp_path):
    store = _copy(made, tmp_path, "store")
    assert TraceStore.open(store).attempts()  # the control
    shutil.copyfile(store / "part-000000.parquet", store / "part-000003.parquet")
    with pytest.raises(DataError, match=r"holds attempt 0 at problem .* twice: one of its parts is there twice"):
        TraceStore.open(store).attempts()


def test_a_pipe_or_a_number_without_end_in_the_place_of_a_part_is_no_hang(made, tmp_path):
    store = _copy(made, tmp_path, "store")
    (store / "part-000002.parquet").unlink()
    os.mkfifo(store / "part-000002.parquet")
    with cpu_budget(), pytest.raises(DataError, match=r"part-000002.parquet is damaged: it is a pipe"):
        len(TraceStore.open(store))
    (store / "part-000002.parquet").rename(store / "part-999999999999.parquet")
    with cpu_budget(), pytest.raises(DataError, match=r"are missing(.|\n)*part-000002.parquet(.|\n)*and 980 more"):
        TraceStore.open(store)
