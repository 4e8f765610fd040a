"""ReLIFT (arXiv 2506.07527): Dr.GRPO, and now and then a supervised batch on the questions that it fails.

``L = L_RL`` on a batch of rollouts, ``L = 1 / sum_k |d_k| * sum_k sum_t -log pi(d_kt)`` on one of demonstrations

- *Remembered.* A question all of whose rollouts earn nothing, and which has a demonstration, goes to a buffer. When
  that holds ``buffer`` questions, the oldest fill one generation batch, a supervised one, and leave; then come rollouts
  again.
- *Injected.* In a supervised batch every rollout of a group is the same whole demonstration (the fast path encodes it
  once, and it counts once in the costs); nothing is generated. In all others nothing is injected.
- *Credit.* ``r - mean(group)`` on what the policy wrote.
- *Extra objective.* In a supervised batch the NLL, as a mean over its demonstration tokens, over ranks and
  micro-batches.

The questions of a supervised batch take the place of those that were due, which come again in the next epoch. A
question stands in the buffer once, and may come back after its batch if it fails again. Optimizer and learning rate are
the same for both kinds of batches, as in the released code. That clips no ratio (``training.epsilon: 1``), has an
entropy bonus of .001, and clips gradients at .7. Our reading: a question has failed when no reward is above 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from jaxtyping import Bool, Float
from torch import Tensor

from ..prefixes import Prefix, whole
from ..rollouts import DUE, Memory, MicroBatch, Rollouts, Row, Step
from .base import Method, Needs
from .imitation import credit_among_unprefixed, imitation_loss, imitation_weights


@dataclass(frozen=True)
class ReLIFT(Method):
    """ReLIFT with the paper's settings as defaults. ``supervise: false`` is Dr.GRPO."""

    supervise: bool = True
    """Train on supervised batches in between. false: never."""
    buffer: Annotated[int, Ge(1)] | None = None
    """Failed questions that start a supervised batch; null, or fewer than such a batch holds: as many as a generation
    batch has questions (the paper: 128, which is its batch)."""

    @property
    def needs(self) -> Needs:
        return Needs(prefixes=self.supervise, whole=True)

    def prefix(self, row: Row, step: Step) -> Prefix | None:
        """A prefix, the same for all rows of a group: it depends on the step and the problem."""
        if row.problem not in step.due or not row.demonstrations:
            return None
        return whole(row.drawn("demonstration", step.seed, step.index, row.problem), step.max_completion_length)

    def advantages(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return credit_among_unprefixed(rollouts)

    def weights(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        return imitation_weights(rollouts, 1.0)

    def extra_loss(
        self, batch: MicroBatch, logps: Float[Tensor, "B T"], entropies: Float[Tensor, "B T"]
    ) -> Float[Tensor, ""] | None:
        if not batch.prefix_mask.any():
            return None
        return imitation_loss(batch, logps)

    def remember(self, memory: Memory, rollouts: Rollouts) -> Memory:
        """``waiting``: the buffer. ``due``: the questions of the next batch, if that is a supervised one. The counts of
        ``demonstrated`` questions that were rolled out and of ``supervised`` ones are there for the log.
        """
        if not self.supervise:
            return memory
        asked, due = memory.get("demonstrated", 0), memory.get(DUE, [])
        counts = {"demonstrated": asked, "supervised": memory.get("supervised", 0) + len(due)}
        # a supervised batch holds demonstrations: nothing of it failed
        if due:
            return {**counts, "waiting": memory["waiting"], DUE: []}
        first = slice(None, None, rollouts.group_size)
        demonstrated = rollouts.demonstrated[first]
        failed = rollouts.problems[first][demonstrated & _failed(rollouts)].tolist()
        # each question once, the longest waiting first
        waiting = list(dict.fromkeys([*memory.get("waiting", []), *failed]))
        batch = len(demonstrated)
        taken = batch if len(waiting) >= max(self.buffer or 0, batch) else 0
        counts["demonstrated"] += int(demonstrated.sum())
        return {**counts, "waiting": waiting[taken:], DUE: waiting[:taken]}

    def metrics(self, memory: Memory) -> dict[str, float]:
        if not self.supervise:
            return {}
        return {
            "buffer": len(memory["waiting"]) + len(memory[DUE]),
            "demonstrations_used": memory["supervised"] / max(memory["demonstrated"], 1),
        }


def _failed(rollouts: Rollouts) -> Bool[Tensor, " P"]:
    """True for groups that earned nothing; False for those that could not be scored at all."""
    rewards_PG = rollouts.rewards.view(-1, rollouts.group_size)
    return ~(rewards_PG > 0).any(dim=1) & ~rewards_PG.isnan().all(dim=1)
