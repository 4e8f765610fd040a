"""The loggers that a recipe may name."""

import json
import time
from pathlib import Path

from test_train import run

from prefix_rl.reports.rollouts import read_rollouts

ONE_STEP = ("data.lab.base_steps=3", "training.max_steps=2", "training.save_strategy=no", "output.rollouts_every=0")
TWO_ROLLOUTS = ("data.lab.base_steps=3", "training.max_steps=2", "training.save_strategy=no")


def records(content, block=32768, header=7):
    """The records of a file of W&B: they are cut at the ends of blocks, and each piece has a header with its length."""
    at = header  # of the file
    while at + header <= len(content):
        if (left := block - at % block) < header:
            at += left
            continue
        size = int.from_bytes(content[at + 4 : at + 6], "little")
        yield content[at + header : at + header + size]
        at += header + size


def test_wandb_offline_gets_our_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_TAGS", raising=False)
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    run(tmp_path / "run", *TWO_ROLLOUTS, "training.report_to=wandb")
    import wandb

    assert wandb.run.group == "prefix_rft"
    assert set(wandb.run.tags) >= {"prefix_rft", "lab"}
    assert wandb.config["recipe"]["method"]["share"] == 0.2  # a default, written out
    wandb.finish()
    (log,) = tmp_path.rglob("run-*.wandb")
    tables = [json.loads(path.read_text()) for path in tmp_path.rglob("rollouts_*.table.json")]
    (rows,) = [table for table in tables if table["data"][0][0] == 1]
    assert rows["columns"][:3] == ["step", "problem", "rollout"]
    assert len(rows["data"]) == 16
    for row, record in zip(rows["data"], read_rollouts(tmp_path / "run", rows["data"][0][0]), strict=True):
        assert row[2].replace("⟦", "").replace("⟧", "").replace("⟪", "").replace("⟫", "") == "".join(
            piece["text"] for piece in record["segments"]
        )
        assert ("⟦" in row[2] or "⟪" in row[2]) == bool(record["prefix_tokens"])
    assert any("⟪" in row[2] for row in rows["data"])
    names = (b"reward_with_prefix", b"prefix/kept_share", b"entropy_continuation", b"report.html")
    for _ in range(1000):  # another process of wandb writes the file
        content = b"".join(records(log.read_bytes()))
        if all(name in content for name in names):
            break
        time.sleep(0.2)
    assert [name for name in names if name not in content] == []


def test_tensorboard_gets_our_metrics(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run(tmp_path / "run", *TWO_ROLLOUTS, "training.report_to=tensorboard")
    (log,) = Path(tmp_path).rglob("events.out.tfevents*")
    written = log.read_bytes()
    assert b"train/reward_with_prefix" in written
    assert b"horizon: null" in written  # the resolved recipe
    assert "⟪".encode() in written  # kept prefix tokens of a rollout


def test_none_logs_to_the_file_only(tmp_path):
    folder = run(tmp_path / "run", *ONE_STEP, "training.report_to=none")
    assert (folder / "metrics.jsonl").exists()
    assert not list(folder.rglob("*tfevents*"))


def test_the_card_of_a_policy_names_method_paper_data_base_model_and_version(tmp_path):
    folder = run(tmp_path / "run", "training.max_steps=1", "training.save_steps=1")
    for place in (folder / "final", folder / "checkpoint-1"):
        text = (place / "README.md").read_text()
        for part in ("from `lab` on lab with prefix_rl 0.1.0, method `prefix_rft`", "https://arxiv.org/abs/2507.01679",
                     f"prefix-rl evaluate {folder} --on "):  # fmt: skip
            assert part in text
        assert "GRPO" not in text
        assert "None" not in text
    assert not (folder / "README.md").exists()
