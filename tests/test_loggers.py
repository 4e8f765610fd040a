"""The loggers that a recipe may name."""

import time
from pathlib import Path

from test_train import run

ONE_STEP = ("data.lab.base_steps=3", "training.max_steps=2", "training.save_strategy=no", "output.rollouts_every=0")


def test_wandb_offline_gets_our_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tmp_path / "run", *ONE_STEP, "training.report_to=wandb")
    import wandb

    wandb.finish()
    (log,) = tmp_path.rglob("run-*.wandb")
    names = (b"reward_with_prefix", b"prefix/kept_share", b"entropy_continuation")
    for _ in range(1000):  # another process of wandb writes the file
        content = log.read_bytes()
        if all(name in content for name in names):
            break
        time.sleep(0.2)
    assert [name for name in names if name not in content] == []


def test_tensorboard_gets_our_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run(tmp_path / "run", *ONE_STEP, "training.report_to=tensorboard")
    (log,) = Path(tmp_path).rglob("events.out.tfevents*")
    assert b"train/reward_with_prefix" in log.read_bytes()


def test_none_logs_to_the_file_only(tmp_path):
    folder = run(tmp_path / "run", *ONE_STEP, "training.report_to=none")
    assert (folder / "metrics.jsonl").exists()
    assert not list(folder.rglob("*tfevents*"))
