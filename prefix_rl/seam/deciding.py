"""All that is decided once on a generation batch: credit, tokens that move, memory, cost and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..costs import Cost
from ..rollouts import Memory
from . import credit, further, ledger, signal, vllm
from .batch import GenerationBatch, Sample
from .checks import WithoutSignal
from .planning import Planner


@dataclass(frozen=True)
class Decided:
    """What was decided on a generation batch."""

    output: dict[str, torch.Tensor]  # TRL's batch with the keys that the loss reads
    memory: Memory
    cost: Cost
    metrics: dict[str, float]
    entropies: torch.Tensor | None  # (B, T) of all ranks, if they were measured


@dataclass(frozen=True)
class Deciding:
    """Decides on generation batches."""

    planner: Planner
    args: object  # TRL's
    without_signal: WithoutSignal
    resample_rounds: int
    parameters: int  # N of the policy
    sample: Sample
    total: Callable[[torch.Tensor], torch.Tensor]  # from rewards (B, F) of each function to their sum (B,)
    encode: Callable[..., tuple]  # see credit.prefix_entropies
    stops: set[int] | None  # ids at whose end the loss takes a rollout; None: it takes all

    @property
    def exchanges(self) -> int:
        """Times that groups without signal are dropped and other problems take their place, at most."""
        return self.resample_rounds if self.without_signal == "resample" else 0

    @property
    def spares(self) -> bool:
        """True if groups without signal keep their part in the method's means and in the normalizer."""
        return self.without_signal == "spare"

    def on(self, batch: GenerationBatch, output: dict[str, torch.Tensor], passes: int) -> Decided:
        """What is decided on TRL's ``output`` for ``batch``, which is trained on in so many ``passes``."""
        method, ranks = self.planner.method, self.planner.ranks
        needs, own, prefixes = method.needs, ranks.own(len(batch.inputs)), credit.prefix_mask(batch.plan, output)
        entropies, kept, cost, metrics = None, None, Cost(), {}
        if needs.entropies:
            at_once = self.args.per_device_train_batch_size
            entropies = credit.prefix_entropies(self.encode, output, prefixes, at_once, ranks)
        rollouts = credit.gathered(ranks, batch, output, prefixes, self.planner.demonstrations)
        whole, remembered = credit.whole(ranks, batch, rollouts), None
        if batch.settled:
            whole = replace(whole, earlier=batch.settled.earlier)
            remembered, cost, metrics = batch.settled.own, batch.settled.cost, dict(batch.settled.metrics)
        if needs.further:
            whole, more = further.continued(
                needs.further, batch, whole, output, ranks, self.sample, self.total, self.parameters
            )
            cost, metrics = cost + more, {**metrics, "reward_continued": float(torch.nanmean(whole.continued))}
        judged = rollouts
        if self.without_signal != "keep":
            kept = signal.with_signal(method, rollouts, whole)
            rollouts = signal.skipped(output, rollouts, kept, None if self.spares else self.args.loss_type, own)
            prefixes = rollouts.prefix_mask[own, : prefixes.size(1)]
            metrics["signal/missing_share"] = float((~kept).float().mean())
        decided = (
            credit.Credit.by(method, judged, entropies, whole).within(rollouts.completion_mask)
            if self.spares
            else credit.Credit.by(method, rollouts, entropies, whole, kept)
        )
        # problems that took the place of others were drawn for want of signal: what they show is no fair sample
        memory = method.remember(batch.step.memory, remembered or whole)
        cost += ledger.cost_of(
            rollouts, decided, batch.planned, output, ranks, self.parameters, passes, needs.entropies, whole
        )
        metrics |= ledger.prefix_metrics(rollouts, batch.planned, decided) if needs.prefixes else {}
        metrics |= ledger.hint_metrics(batch.hints) if batch.hints else {}
        metrics |= vllm.difference(output, prefixes, ranks)
        output |= {**decided.keys(own, prefixes.size(1)), "prefix_mask": prefixes, "rewards": batch.rewards[own]}
        output |= credit.only_moving(output, output["update_mask"], ranks)
        output[signal.SCALE] = output.get(signal.SCALE, batch.rewards.new_ones(())) * decided.scale
        return Decided(output, memory, cost, metrics, entropies)
