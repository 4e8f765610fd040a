"""What trackers of experiments get beside the metrics: the whole recipe, the rollouts, and the report page.

W&B: the resolved recipe in the config, the method as group, method, model and data as tags, a table of rollouts for
each saved generation, and the report as an artifact. TensorBoard: recipe and rollouts as texts. Which trackers there
are, ``training.report_to`` says. All of it works offline.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..errors import DataError
from ..progress import say
from .rollouts import KEPT, PREFIX, read_rollouts

ROWS = 64
"""Most rollouts of a generation that are shown."""
_COLUMNS = ("step", "problem", "rollout", "reward", "outcome", "advantage", "prefix_tokens")


def marked(pieces: Sequence[Mapping[str, str]]) -> str:
    """A saved rollout as one text, in which prefix and kept prefix tokens stand in brackets of their own.

    >>> marked([dict(kind="prefix", text="so"), dict(kind="kept", text=" it"), dict(kind="continuation", text="!")])
    '⟦so⟧⟪ it⟫!'
    """
    around = {PREFIX: "⟦{}⟧", KEPT: "⟪{}⟫"}
    return "".join(around.get(piece["kind"], "{}").format(piece["text"]) for piece in pieces)


def table(records: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """The first :data:`ROWS` saved rollouts as rows of a table: step, problem, text, reward, outcome, advantage,
    number of prefix tokens."""
    return [
        [
            record["step"], record["row"], marked(record["segments"]), record["reward"], record["outcome"],
            record["advantage"], record["prefix_tokens"],
        ]
        for record in records[:ROWS]
    ]  # fmt: skip


class Trackers(TrainerCallback):
    """Gives the trackers of ``report_to`` what they do not get from transformers.

    Args:
        trainer: its reporters are asked.
        recipe: the resolved one, by block.
        run: the run's folder.
    """

    def __init__(self, trainer, recipe: Mapping[str, Any], run: Path):
        self.trainer, self.recipe, self.run, self.shown = trainer, recipe, run, -1
        if "wandb" in trainer.args.report_to:  # read when the run is opened; what a person has set stays
            os.environ.setdefault("WANDB_RUN_GROUP", recipe["method"]["name"])
            os.environ.setdefault("WANDB_TAGS", ",".join(self._tags()))

    def _tags(self) -> list[str]:
        data = self.recipe["data"]["train"]
        names = (
            self.recipe["method"]["name"],
            self.recipe["model"]["name_or_path"],
            data if isinstance(data, str) else "",
        )
        return [Path(name).name[:60].replace(",", " ") for name in dict.fromkeys(names) if name]

    def _wandb(self):
        if "wandb" not in self.trainer.args.report_to:
            return None
        import wandb

        return wandb if wandb.run is not None else None

    def _board(self):
        writers = (getattr(callback, "tb_writer", None) for callback in self.trainer.callback_handler.callbacks)
        return next((writer for writer in writers if writer is not None), None)

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        if wandb := self._wandb():
            wandb.config.update({"recipe": dict(self.recipe)}, allow_val_change=True)
        if board := self._board():
            import yaml

            text = yaml.safe_dump(dict(self.recipe), sort_keys=False, allow_unicode=True)
            board.add_text("recipe", "\n".join(f"    {line}" for line in text.splitlines()))

    def on_step_end(self, args, state, control, **kwargs):
        wandb, board = (self._wandb(), self._board()) if state.is_world_process_zero else (None, None)
        if not (wandb or board):
            return
        records = read_rollouts(self.run)
        if not records or records[0]["step"] <= self.shown:
            return
        self.shown = records[0]["step"]
        if wandb:
            shown = wandb.Table(columns=list(_COLUMNS), data=table(records))
            wandb.log({"rollouts": shown, "train/global_step": state.global_step})
        if board:
            lines = [f"    {row[3]:g}  {row[2]}" for row in table(records)]
            board.add_text("rollouts", "\n\n".join(lines), state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        wandb = self._wandb() if state.is_world_process_zero else None
        if not wandb:
            return
        from .report import report

        with tempfile.TemporaryDirectory() as folder:
            try:
                report([self.run], Path(folder))
            except DataError as error:
                say(f"the report for W&B could not be written: {error.what}")
                return
            artifact = wandb.Artifact(f"report-{wandb.run.id}", type="report")
            artifact.add_dir(folder)
            wandb.run.log_artifact(artifact).wait() if not wandb.run.offline else wandb.run.log_artifact(artifact)
