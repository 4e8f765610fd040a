"""Damaged files of runs, evaluations and trace stores are explained: no traceback, no hang, nothing lost silently."""

import shutil
from pathlib import Path

from hostile_files import LAB, SMALL, STAGE, marked_again, run, spoil

from prefix_rl.collecting.collect import collect, import_file
from prefix_rl.evaluation.compare import compare_folders, rows_of
from prefix_rl.evaluation.evaluate import evaluate, grade_again
from prefix_rl.grade import grade
from prefix_rl.recipe import load_run
from prefix_rl.reports.report import report
from prefix_rl.reports.watch import Watched
from prefix_rl.rewards.workers import Grader


def _files(folder, *patterns):
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def checkpoint_case(made, work, rng):
    """A run whose newest checkpoint, or what lies beside it, is damaged."""
    shutil.copytree(made / "run", work / "run", symlinks=True)
    shutil.rmtree(work / "run" / "final")
    shutil.rmtree(work / "run" / "checkpoint-4")
    folder = work / "run" / "checkpoint-2"
    files = _files(work / "run", "checkpoint-2/*", "checkpoint-2/trainer_state.json", "checkpoint-2/prefix_rl.json", "run.json",
                   "metrics.jsonl", "status.training.json", "recipe.yaml", "cost.json")  # fmt: skip
    others = _files(made, "run/checkpoint-*/*", "stage/checkpoint-*/*", "stage/sft/checkpoint-*/*")
    path = rng.choice(files)
    told = spoil(path, rng, others)
    if rng.random() < 0.6 and path.parent == folder and path.name != "prefix_rl.json":
        marked_again(folder)
        told += ", marked"
    return told, {"train": lambda: run(work / "run")}


def stage_case(made, work, rng):
    """A run whose supervised stage is damaged."""
    shutil.copytree(made / "stage", work / "run", symlinks=True)
    for gone in (*(work / "run").glob("checkpoint-*"), work / "run" / "final"):
        shutil.rmtree(gone)
    stage = work / "run" / "sft"
    begun = rng.random() < 0.5
    if begun:
        shutil.rmtree(stage / "final")
        shutil.rmtree(stage / "checkpoint-4")
    folder = stage / ("checkpoint-2" if begun else "final")
    path = rng.choice(_files(stage, f"{folder.name}/*", "metrics.jsonl"))
    told = f"{folder.name}/" + spoil(path, rng, _files(made, "run/checkpoint-*/*", "stage/sft/checkpoint-*/*"))
    if rng.random() < 0.6 and path.name != "prefix_rl.json":
        marked_again(folder)
        told += ", marked"
    return told, {"train": lambda: run(work / "run", "sft_then_rl", *STAGE, "training.max_steps=1", "training.save_steps=1")}


def run_case(made, work, rng):
    """A finished run and its evaluation, damaged: read by all that shows, compares or grades it again."""
    folder = work / "run"
    shutil.copytree(made / "run", folder, symlinks=True, ignore=shutil.ignore_patterns("checkpoint-*"))
    files = _files(folder, "*.json", "*.json", "*.jsonl", "*.yaml", "samples/*.json", "samples/lab/*.parquet", "samples/lab/*.parquet",
                   "rollouts/*.parquet", "final/*")  # fmt: skip
    told = spoil(rng.choice(files), rng, _files(made, "stage/*", "store/*", "run/rollouts/*", "run/samples/*/*"))
    part = folder / "samples" / "lab" / "00000.parquet"

    def seen():
        watched = Watched([folder])
        watched.index(), watched.curves(0), watched.generation(0, 1)

    return told, {
        "report": lambda: report([folder], work / "report"),
        "watch": seen,
        "compare": lambda: rows_of(compare_folders(folder, made / "run")),
        "compared": lambda: rows_of(compare_folders(made / "run", folder)),
        "regrade": lambda: grade_again(folder),
        "evaluate": lambda: evaluate(str(folder), overrides=["evaluation.samples=2"]),
        "grade": lambda: grade(str(part), Grader(1, 5.0, 2048), second_opinion=False) if part.is_file() else None,
    }


def store_case(made, work, rng):
    """A trace store, damaged: gone on with, trained on, imported from and into."""
    store = work / "store"
    shutil.copytree(made / "store", store, symlinks=True)
    files = _files(store, "*.json", "*.jsonl", "*.parquet", "*.parquet")
    told = spoil(rng.choice(files), rng, _files(made, "run/*", "store/*", "run/rollouts/*", "run/samples/*/*"))
    recipe = LAB / "prefix_rl.yaml"
    return told, {
        "attach": lambda: load_run(recipe, [*SMALL, f"data.traces={store}", f"output.dir={work / 'run'}"]),
        "train": lambda: run(work / "run", "prefix_rl", f"data.traces={store}", "training.max_steps=1", "training.save_steps=1"),
        "upft": lambda: run(work / "upft", "rft", f"data.traces={store}", "training.max_steps=1", "training.save_steps=1"),
        "import": lambda: import_file(recipe, SMALL, work / "copy", store),
        "collect": lambda: collect(recipe, SMALL, store, k=2, cap=4),
        "report": lambda: report([store], work / "report"),
    }


CASES_OF = {"checkpoint": checkpoint_case, "stage": stage_case, "run": run_case, "store": store_case}
