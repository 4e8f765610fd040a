"""Updates that must be finite: what each is made of, and the weights before and after.

NaN and infinity spread: one in a log-probability is in the loss, in the gradient's norm and after the update in every
weight. So each update is looked at before it is made, at the one place where every trainer of transformers has the norm
of its gradient, the same on all ranks; and weights are looked at before the first step and before they are saved.
Looking costs one number from the device for each update, and one reading of the weights for each checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from ..errors import DataError
from ..progress import say
from .finite import NotFiniteError, first_not_finite, weights_fault
from .settings import Safety

SKIPPED = "skipped_updates"
"""Metric: number of updates of the run that were left out."""
_SCALING = 32
"""Updates in a row whose gradient may be infinite in float16: each halves the loss scale, from 2^16 to 2^-16."""
_IMPROBABLE = "probability tensor contains"
"""From the message of torch.multinomial where logits are NaN."""
_REMEDY = (
    "lower the learning rate, set training.max_grad_norm, use bf16 instead of fp16, look at the rows of that step; or "
    "leave such updates out with safety.not_finite = skip"
)


class _Seen:
    """What has been seen of the update that is being made."""

    def __init__(self, safety: Safety, stage: str):
        self.safety, self.stage = safety, stage
        self.in_a_row = self.skipped = 0
        self.loss: Tensor | float = 0.0
        self.pending: Tensor | float = 0.0
        self._flags: dict[str, Tensor] = {}

    def note(self, what: str, values: Tensor) -> None:
        """Looks at values, without waiting for the device."""
        bad = ~values.detach().isfinite().all()
        self._flags[what] = bad | self._flags[what] if what in self._flags else bad

    def taken(self) -> list[str]:
        """The names of what was not finite here since they were last taken."""
        flags, self._flags = self._flags, {}
        if not flags:
            return []
        found = torch.stack([flag.reshape(()) for flag in flags.values()]).tolist()
        return [what for what, bad in zip(flags, found, strict=True) if bad]

    def at(self, step: int) -> str:
        """The place in the run, in words."""
        return f"{self.stage}step {step}"


class RunTotals(TrainerCallback, ExportableState):
    """Looks at the weights that training starts from; keeps the loss and the seconds of the run for its last log.

    They are saved with every checkpoint: transformers' own totals are of the last part of a resumed run.
    """

    def __init__(self, trainer: FiniteUpdates):
        self.trainer, self.began = trainer, time.monotonic()
        self.loss, self.seconds = 0.0, 0.0

    def state(self) -> dict:
        seconds = self.seconds + time.monotonic() - self.began
        return {"args": {}, "attributes": {"loss": self.loss, "seconds": seconds}}

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.begin_finite()
        before = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.loss, self.seconds = (before.get(key, 0.0) * bool(state.global_step) for key in ("loss", "seconds"))
        self.began = time.monotonic()

    def gather(self) -> None:
        """Takes the losses of all ranks since the last time to the sum."""
        self.loss += self.trainer.taken_loss()

    def of_the_run(self, logs: Mapping[str, float], step: int) -> dict[str, float]:
        """The summary that is logged at the end, of this part of the run, as that of the run.

        Args:
            logs: transformers' summary.
            step: optimizer steps of the run.
        """
        self.gather()
        seconds, part = self.seconds + logs["train_runtime"], logs["train_steps_per_second"] * logs["train_runtime"]
        samples = logs["train_samples_per_second"] * logs["train_runtime"] / max(part, 1e-9) * step
        return {
            **logs, "train_runtime": round(seconds, 4), "train_steps_per_second": round(step / max(seconds, 1e-9), 3),
            "train_samples_per_second": round(samples / max(seconds, 1e-9), 3), "train_loss": self.loss / max(step, 1),
        }  # fmt: skip


class FiniteUpdates:
    """Mixed into a trainer of transformers: NaN and infinity end a run before they are in its weights or a checkpoint.

    All ranks end together. With ``safety.not_finite = skip`` an update that is not finite is left out instead, and
    counted in the log; the learning rate's schedule goes on.

    Args:
        safety: the settings; None: the defaults.
        stage: what is trained, for messages, where there is more than one stage; it ends with a blank.
        *args, **kwargs: of the trainer.
    """

    def __init__(self, *args: Any, safety: Safety | None = None, stage: str = "", **kwargs: Any):
        self._finite = _Seen(safety or Safety(), stage)
        super().__init__(*args, **kwargs)
        self._totals = RunTotals(self)
        self.add_callback(self._totals)

    def seen(self, what: str, values: Tensor) -> None:
        """Looks at values that belong to the next update. They are judged with its gradient."""
        self._finite.note(what, values)

    def begin_finite(self) -> None:
        """Looks at the weights, before the first step.

        Raises:
            DataError: on every rank, naming the first parameter that is not finite.
        """
        source = getattr(self.model.config, "_name_or_path", "") or "the model"
        if name := self._first_of_all_ranks():
            raise DataError(weights_fault(source if self.state.global_step == 0 else self.args.output_dir, name))
        logged = (line[SKIPPED] for line in reversed(self.state.log_history) if SKIPPED in line)
        self._finite.skipped = next(logged, 0)
        engine = getattr(self.accelerator, "deepspeed_engine_wrapped", None)
        if engine is not None and hasattr(engine.engine.optimizer, "check_grad_overflow"):
            # DeepSpeed updates within backward; so it must look by itself, which it does in float16 only unless asked
            engine.engine.optimizer.check_grad_overflow = True

    def _first_of_all_ranks(self) -> str | None:
        from accelerate.utils import gather_object

        names = gather_object([first_not_finite(self.model.named_parameters())])
        return next((name for name in names if name), None)

    def training_step(self, *args, **kwargs):
        try:
            loss = super().training_step(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            found = self._finite.taken() + ["the probabilities of the next token"] * (_IMPROBABLE in str(error))
            if found:  # whatever could not compute with them
                self._stop(found, error)
            raise
        self.seen("the loss", loss)
        self._finite.pending = self._finite.pending + loss
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        number = torch.as_tensor(norm, dtype=torch.float32, device=self.args.device)
        self.seen("the gradient's norm", torch.where(number < 0, torch.nan, number))  # -1 is DeepSpeed's word for it
        self._judge(model, self._finite.taken())
        return norm

    def _judge(self, model, found: list[str]) -> None:
        """Decides with all ranks whether the next update is made; ``found``: what is not finite on this one."""
        from accelerate.utils import gather_object

        here, seen = torch.tensor([len(found)], device=self.args.device), self._finite
        loss, seen.pending = seen.pending, 0.0
        if not int(self.accelerator.gather(here).sum()):
            seen.in_a_row, seen.loss = 0, seen.loss + loss
            return
        everywhere = list(dict.fromkeys(gather_object(found)))
        scaling = self.args.fp16 and everywhere == ["the gradient's norm"]
        seen.in_a_row += 1
        limit = _SCALING if scaling else seen.safety.skips_in_a_row if seen.safety.not_finite == "skip" else 0
        if seen.in_a_row <= limit:
            if not scaling:
                seen.skipped += 1
                if self.args.should_log:
                    at = seen.at(self.state.global_step + 1)
                    what = f"NaN or infinity in {', '.join(everywhere)}"
                    say(f"{at}: {what}; this update is left out ({seen.in_a_row} in a row)")
            # a gradient's scaler and DeepSpeed leave the update out by themselves
            if self.accelerator.scaler is None and not self.is_deepspeed_enabled:
                model.zero_grad(set_to_none=True)  # an optimizer does not touch what has no gradient
            return
        self._stop(everywhere)

    def _stop(self, found: list[str], cause: Exception | None = None) -> NoReturn:
        skipped = self._finite.in_a_row - 1
        tried = f", after {skipped} updates in a row that were left out" if skipped > 0 else ""
        raise NotFiniteError(
            f"{self._finite.at(self.state.global_step + 1)}: NaN or infinity in {', '.join(found)}{tried}. The update "
            f"was not made, and no checkpoint was written over. Go on from an earlier one, or start anew: {_REMEDY}"
        ) from cause

    def save_model(self, *args, **kwargs):
        if name := self._first_of_all_ranks():
            raise NotFiniteError(
                f"{self._finite.at(self.state.global_step)}: NaN or infinity in the parameter {name}; it was not "
                f"saved, and no checkpoint was written over. Go on from a checkpoint before, or start anew: {_REMEDY}"
            )
        self._totals.gather()
        super().save_model(*args, **kwargs)

    def taken_loss(self) -> float:
        """The sum of the losses since it was last taken, in the mean over the ranks."""
        own, self._finite.loss = torch.as_tensor(self._finite.loss, device=self.args.device), 0.0
        return float(self.accelerator.gather(own.reshape(1).float()).mean())

    def log(self, logs, *args, **kwargs):
        if "train_runtime" in logs and "train_loss" in logs:
            logs = self._totals.of_the_run(logs, self.state.global_step)
        if self._finite.skipped:
            logs[SKIPPED] = self._finite.skipped  # in place: TRL adds the metrics of an evaluation to this very one
        super().log(logs, *args, **kwargs)
