"""Training that is watched: it stops when asked, says where it stands still, and where it goes on."""

from __future__ import annotations

from pathlib import Path

from ..checkpoints import last_whole
from ..progress import say
from .settings import Safety
from .stall import StallWatch
from .stopping import StopWhenAsked


def train_watched(trainer, folder: Path, safety: Safety, resume: Path | None, stage: str = "") -> None:
    """Trains, from the checkpoint ``resume`` on if there is one.

    Args:
        trainer: one of transformers' trainers.
        folder: its checkpoints'.
        safety: the settings.
        stage: words behind a step that say of what, such as " of the supervised stage".

    Raises:
        Stopped: if it was asked to stop, after a whole checkpoint was saved.
        KeyboardInterrupt: after saying where the last whole checkpoint lies.
    """
    stop = StopWhenAsked(trainer.accelerator)
    watch = StallWatch(folder, safety, trainer.accelerator.process_index)
    trainer.add_callback(stop)
    trainer.add_callback(watch)
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except KeyboardInterrupt:
        whole = last_whole(folder)
        place = f"the last whole checkpoint is {whole}" if whole else "no checkpoint has been written yet"
        say(f"stopped at step {trainer.state.global_step}{stage}; {place}. The same command goes on from there.")
        raise
    finally:
        watch.close()
    stop.end_if_stopped(trainer.state.global_step)
