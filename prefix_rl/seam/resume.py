"""Going on after a run was cut off: order of the data, cost and memory, whole checkpoints, metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints

from ..checkpoints import REFERENCE, mark_whole
from ..costs import Cost
from ..documents import metrics_line
from ..errors import CheckpointError
from ..methods.base import Method
from ..parts import write_text
from ..progress import say
from ..rollouts import Memory


class OrderOfEpoch(Sampler):
    """TRL's sampler, in the order that an uninterrupted run would see in this epoch.

    The sampler shuffles with a generator that is seeded once. A resumed run builds it anew and would see epoch 0 again;
    here the generator is moved to where the epoch begins. (``set_epoch`` would not do: accelerate does not pass it on
    to a sampler behind its shards.)
    """

    def __init__(self, sampler, epoch: Callable[[], float]):
        self.sampler, self.epoch = sampler, epoch

    def __iter__(self):
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(int(self.epoch() + 1e-6)):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class Spending(TrainerCallback, ExportableState):
    """Cost of the run so far. It is saved with every checkpoint, so a resumed run goes on counting."""

    def __init__(self, **spent: float):
        self.cost = Cost(**spent)

    def state(self) -> dict:
        return {"args": asdict(self.cost), "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.cost = Cost(**state.stateful_callbacks[type(self).__name__]["args"])  # a resumed run has read them back


class Remembered(TrainerCallback, ExportableState):
    """The method's memory of the run, saved with every checkpoint and read back."""

    def __init__(self, method: Method):
        self.method, self.memory = method, {}

    def state(self) -> dict:
        return {"args": {}, "attributes": {"memory": self.memory}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.memory = state.stateful_callbacks[type(self).__name__]["attributes"]["memory"]  # a resumed run's

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "eval_reward" in logs:  # every rank has the mean over all of them
            self.memory = self.method.remember_evaluation(self.memory, logs["eval_reward"])


class Saved:
    """The state that changes in a run and is saved with every checkpoint: its cost, and the method's memory."""

    def __init__(self, method: Method, spent: Cost):
        self._spending, self._remembered = Spending(**asdict(spent)), Remembered(method)

    def attach(self, trainer, budget: float | None) -> None:
        """Adds callbacks to a trainer: they save and read all of it, stop at its ``budget``, and write its log."""
        found = [self._spending, self._remembered, Budget(self, budget), MetricsFile(Path(trainer.args.output_dir))]
        if trainer.args.sync_ref_model:
            found.append(MovedReference(trainer))
        for callback in found:
            trainer.add_callback(callback)

    @property
    def cost(self) -> Cost:
        """Cost of the run so far, in tokens and operations."""
        return self._spending.cost

    @property
    def memory(self) -> Memory:
        """The method's memory of the run."""
        return self._remembered.memory

    def spend(self, cost: Cost) -> None:
        """Adds to what the run has cost."""
        self._spending.cost += cost

    def remember(self, memory: Memory) -> None:
        """Puts ``memory`` in the place of what was remembered."""
        self._remembered.memory = memory


class Budget(TrainerCallback):
    """Stops a run once it has spent its floating-point operations."""

    def __init__(self, saved: Saved, flops: float | None):
        self.saved, self.flops = saved, flops

    def on_step_end(self, args, state, control, **kwargs):
        if self.flops is not None and self.saved.cost.flops >= self.flops:
            control.should_training_stop = control.should_save = control.should_log = True


class MetricsFile(TrainerCallback):
    """Every log as a line of ``metrics.jsonl`` in the run's folder. A resumed run rewrites what it repeats."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.path.exists():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
            found = [(line, metrics_line(line)) for line in lines]
            if bad := sum(log is None for _, log in found[:-1]):  # the last one may have been cut off
                aside = self.path.with_name("metrics.damaged.jsonl")
                shutil.copyfile(self.path, aside)
                say(f"{self.path}: {bad} lines cannot be read and are left out; the file as it was is {aside}")
            # the summary is of the whole run, and comes again at its end
            kept = [
                line for line, log in found if log and log["step"] <= state.global_step and "train_runtime" not in log
            ]
            write_text(self.path, "".join(line + "\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class MovedReference(TrainerCallback):
    """The reference model that ``sync_ref_model`` moves, read from the checkpoint that a run goes on from.

    TRL saves the policy alone, and a resumed run would measure the KL from the first model again.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def save(self, checkpoint: Path) -> None:
        """Writes it beside the policy; every rank calls this."""
        with _whole(self.trainer.ref_model) as model:
            if self.trainer.args.should_save:
                save_model(model, checkpoint / REFERENCE)

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.global_step:
            return
        saved = Path(args.output_dir, f"checkpoint-{state.global_step}", REFERENCE)
        if not saved.is_file():
            raise CheckpointError(f"{saved} is not there: without the reference that training.sync_ref_model moves the "
                                  "run cannot go on as it would have; give another output.dir")  # fmt: skip
        with _whole(self.trainer.ref_model) as model:
            load_model(model, saved)


@contextmanager
def _whole(model: nn.Module) -> Iterator[nn.Module]:
    """The model with whole parameters, where ZeRO-3 has shared them out; what the first rank writes goes to all."""
    parameters = [p for p in model.parameters() if hasattr(p, "ds_id")]
    if parameters:
        import deepspeed
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0) if parameters else nullcontext():
        yield getattr(model, "module", model)


def complete(trainer, checkpoint: str) -> None:
    """Adds to a checkpoint what TRL does not save; every rank calls this."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, MovedReference):
            callback.save(Path(checkpoint))


@contextmanager
def older_kept(arguments, state: TrainerState) -> Iterator[int | None]:
    """While a checkpoint is written, older ones stay whatever TRL's ``save_total_limit`` is, which is yielded.

    Raises:
        CheckpointError: if it could not be written.
    """
    limit, arguments.save_total_limit = arguments.save_total_limit, None
    try:
        yield limit
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint of step {state.global_step} could not be written under {arguments.output_dir}: {error}\n"
            "  The last whole checkpoint is untouched; make room, and the same command goes on from it."
        ) from error
    finally:
        arguments.save_total_limit = limit


def keep_whole(
    run: str, arguments, state: TrainerState, facts: Mapping[str, Any], cost: Cost, limit: int | None
) -> None:
    """Declares the checkpoint of this step whole, then drops the oldest of more than ``limit``, if this rank saves; but
    not the best one, if that is loaded at the end."""
    if not arguments.should_save:
        return
    now = {"step": state.global_step, "world_size": arguments.world_size, "cost": asdict(cost)}
    mark_whole(Path(run, f"checkpoint-{state.global_step}"), {**facts, **now})
    rotate_checkpoints(run, limit, state.best_model_checkpoint if arguments.load_best_model_at_end else None)
