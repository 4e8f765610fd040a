"""Training that is watched: it stops when asked, says where it stands still, and where it goes on."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import TrainerCallback

from ..checkpoints import checkpoints, facts_of, last_whole
from ..errors import CheckpointError, UserError, full_disk
from ..progress import say
from .settings import Safety
from .stall import StallWatch
from .stopping import StopWhenAsked


class _Began(TrainerCallback):
    """Notes that the first step has begun: by then all of a checkpoint has been read."""

    step = False

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = True


def _cannot_be_read(checkpoint: Path, error: Exception) -> str:
    earlier = [path for path in checkpoints(checkpoint.parent) if path != checkpoint and facts_of(path)]
    return (
        f"{checkpoint} cannot be continued from, so nothing was trained ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:300]}). It is damaged, or other versions of the packages wrote it. To go on "
        f"from {earlier[-1] if earlier else 'the beginning'}, rename it, and give the same command"
    )


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
    began = _Began()
    trainer.add_callback(watch)
    trainer.add_callback(began)
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except KeyboardInterrupt:
        whole = last_whole(folder)
        place = f"the last whole checkpoint is {whole}" if whole else "no checkpoint has been written yet"
        say(f"stopped at step {trainer.state.global_step}{stage}; {place}. The same command goes on from there.")
        raise
    except UserError:
        raise
    except Exception as error:  # whatever the parts that read a checkpoint do with what stands in it
        if resume is None or began.step or full_disk(error) or isinstance(error, torch.OutOfMemoryError):
            raise
        raise CheckpointError(_cannot_be_read(resume, error)) from error
    finally:
        watch.close()
    stop.end_if_stopped(trainer.state.global_step)
