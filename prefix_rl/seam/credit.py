"""Credit and the tokens that move, decided once on the whole generation batch over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import DataError
from ..losses import divergence
from ..methods.base import Method
from ..prefixes import Demonstration, Prefix
from ..rollouts import MicroBatch, Rollouts, Row, Step
from .batch import COPY, ROW, GenerationBatch
from .planning import check_tokens
from .ranks import Ranks


@dataclass(frozen=True)
class Credit:
    """Decisions of a method on a generation batch, ``(B, T)`` each but for the scale."""

    advantages: torch.Tensor
    weights: torch.Tensor
    moving: torch.Tensor  # bool: True on the tokens that get gradient through the surrogate
    scale: float = 1.0  # factor on TRL's loss

    @classmethod
    def by(
        cls, method: Method, rollouts: Rollouts, entropies: torch.Tensor | None, whole: Rollouts | None = None,
        kept: torch.Tensor | None = None,
    ) -> Credit:  # fmt: skip
        """The method's answers: advantages from the ``whole`` rollouts; tokens, weights and scale from those in the
        loss.

        Where not all groups are ``kept (P,)``, it answers as if the others were not there, and nothing of those moves.
        """
        if kept is not None and not bool(kept.all()):
            rows = kept.repeat_interleave(rollouts.group_size)
            spread = [
                torch.zeros_like(rollouts.completion_mask, dtype=of) for of in (torch.float, torch.float, torch.bool)
            ]
            scale = 1.0
            if bool(kept.any()):
                given = rollouts.of_groups(kept), None if entropies is None else entropies[rows]
                found = cls.by(method, *given, whole.of_groups(kept))
                for all_rows, own in zip(spread, (found.advantages, found.weights, found.moving), strict=True):
                    all_rows[rows] = own.to(all_rows.dtype)
                scale = found.scale
            return cls(*spread, scale)
        moving = method.update_mask(rollouts, entropies) & rollouts.completion_mask
        return cls(method.advantages(whole or rollouts), method.weights(rollouts), moving, method.scale(rollouts))

    def within(self, mask: torch.Tensor) -> Credit:
        """The same decisions, of which those outside of the mask ``(B, T)`` move nothing."""
        return replace(self, moving=self.moving & mask)

    @property
    def trained(self) -> torch.Tensor:
        """True on the tokens that get gradient, from the surrogate or from the extra objective."""
        return (self.moving & (self.advantages * self.scale != 0)) | (self.weights != 0)

    def keys(self, rows: slice, width: int) -> dict[str, torch.Tensor]:
        """The keys that are added to TRL's batch of these rows."""
        return {
            "advantages": self.advantages[rows, :width],
            "weights": self.weights[rows, :width],
            "update_mask": self.moving[rows, :width],
        }


def told(logs: Mapping[str, Sequence], names: Sequence[str], rewards_per_func: torch.Tensor) -> dict[str, Any]:
    """What the generation batch keeps beside the sum of its rewards: outcomes and answers, if a function has logged
    them, and the rewards ``(B,)`` of each function by its name, where there is more than one."""
    apart = dict(zip(names, rewards_per_func.unbind(dim=1), strict=True)) if len(names) > 1 else {}
    return {
        "outcomes": list(logs.get("outcome", ())) or None,
        "answers": list(logs.get("found", ())) or None,
        "apart": apart,
    }


def total(rewards_per_func: torch.Tensor, weights: torch.Tensor, step: int) -> torch.Tensor:
    """The weighted sum ``(B,)`` of each row's rewards ``(B, F)``, NaN where there is none.

    Raises:
        DataError: if a reward is infinite.
    """
    weighted = rewards_per_func * weights.to(rewards_per_func.device)
    # nansum of a row that no function scored is 0, which would count as a wrong answer
    found = weighted.nansum(dim=1).masked_fill(torch.isnan(rewards_per_func).all(dim=1), torch.nan)
    if bool(torch.isinf(found).any()):
        raise DataError(f"step {step}: a reward function returned an infinite reward")
    return found


def check_scored(rewards: torch.Tensor, step: int) -> None:
    """Some rollout has a reward.

    Raises:
        DataError: if none has.
    """
    if bool(rewards.isnan().all()):
        raise DataError(
            f"step {step}: no rollout could be scored, every reward is None or NaN. Look at the "
            "gold answers (`prefix-rl prepare` drops those that cannot be parsed) and at the reward function"
        )


def prefix_mask(plan: Sequence[Prefix], output: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``(B, T)``, True on the prefixes in TRL's ``output``, but for what TRL has masked.

    Raises:
        RuntimeError: if they do not stand there token by token as they were planned.
    """
    ids, mask = output["completion_ids"], output["completion_mask"].bool()
    check_tokens(plan, [row[: len(prefix.ids)].tolist() for row, prefix in zip(ids, plan, strict=True)])
    lengths = torch.tensor([len(prefix.ids) for prefix in plan], device=ids.device)
    return (torch.arange(ids.size(1), device=ids.device) < lengths.unsqueeze(1)) & mask


def gathered(
    ranks: Ranks,
    batch: GenerationBatch,
    output: Mapping[str, torch.Tensor],
    prefixes: torch.Tensor,
    demonstrations: Sequence[Sequence[Demonstration]],
) -> Rollouts:
    """The rollouts of all ranks, out of TRL's ``output`` and the mask of the ``prefixes`` on this one.

    Args:
        demonstrations: the usable ones of each problem.
    """
    own = torch.stack([output["completion_ids"], output["completion_mask"].long(), prefixes.long()], dim=2)
    ids, completion, prefix = ranks.rows(own, fill=0).unbind(dim=2)
    own = torch.tensor([[given[ROW], given[COPY]] for given in batch.inputs], device=ids.device)
    problems, copies = ranks.all(own).unbind(dim=1)
    size = batch.rows[0].group_size
    return Rollouts(
        completion_ids=ids,
        completion_mask=completion.bool(),
        prefix_mask=prefix.bool(),
        prefixed=batch.planned.prefixed,
        rewards=batch.rewards,
        group_size=size,
        step=batch.step,
        problems=problems,
        demonstrated=torch.tensor([bool(demonstrations[row]) for row in problems.tolist()], device=ids.device),
        fractions=batch.planned.fractions,
        continued=batch.rewards.new_zeros(len(batch.rewards), 0),
        rows=[
            Row(i, size, problem, demonstrations[problem], copy)
            for i, (problem, copy) in enumerate(zip(problems.tolist(), copies.tolist(), strict=True))
        ],
    )


def micro_batch(inputs: Mapping[str, torch.Tensor], step: Step) -> MicroBatch:
    """TRL's micro-batch with the keys that :class:`Credit` added to it."""
    return MicroBatch(
        completion_ids=inputs["completion_ids"],
        completion_mask=inputs["completion_mask"].bool(),
        prefix_mask=inputs["prefix_mask"],
        rewards=inputs["rewards"],
        step=step,
        advantages=inputs["advantages"],
        weights=inputs["weights"],
    )


def whole(ranks: Ranks, batch: GenerationBatch, rollouts: Rollouts) -> Rollouts:
    """The rollouts with the tokens of those that the loss leaves out (``mask_truncated_completions``).

    Such a rollout is still what it was: its reward counts in every mean, and it begins as others do.
    """
    # the lengths are enough: TRL has zeroed the mask of such a row, and left its ids
    own = torch.tensor([[len(ids), len(prefix.ids)] for ids, prefix in zip(batch.completions, batch.plan, strict=True)])
    positions = torch.arange(rollouts.completion_ids.size(1), device=rollouts.completion_ids.device)
    written, prefix = (positions < n.unsqueeze(1) for n in ranks.all(own.to(positions.device)).unbind(dim=1))
    return replace(rollouts, completion_mask=written, prefix_mask=prefix & written)


def only_moving(output: Mapping[str, torch.Tensor], moving: torch.Tensor, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Keys that restrict TRL's loss to the tokens that move, on this rank.

    TRL's name for "the policy's doing or not" is ``tool_mask``. What is not is in no term of its loss, neither
    surrogate nor KL nor bonus, in no ratio of a sequence, and in no number of tokens that a loss type divides by.
    """
    counted = moving.long() * output.get("tool_mask", 1)
    # counted again: TRL's own number holds the tokens of the context too
    return {"tool_mask": counted, "num_items_in_batch": ranks.all(counted.sum().view(1)).sum()}


def kl_on_context(inputs: Mapping[str, torch.Tensor], logps: torch.Tensor, arguments) -> torch.Tensor:
    """``beta`` times the KL on the tokens that do not move, where TRL's falls on none; the normalizer is ``dr_grpo``'s.

    Args:
        logps: ``(B, T)``, the policy's log-probabilities.
        arguments: TRL's. With ``use_bias_correction_kl`` the KL is weighed by ``pi / pi_old``, as TRL's own.
    """
    context = inputs["completion_mask"].bool() & ~inputs["update_mask"]
    kl, old = divergence(logps, inputs["ref_per_token_logps"]), inputs.get("old_per_token_logps")
    if arguments.use_bias_correction_kl:
        # without old log-probabilities pi_old is pi: the ratio is 1, and still has a gradient
        kl = kl * (logps - (logps.detach() if old is None else old)).exp()
    mean = torch.where(context, kl, 0.0).sum() / (len(logps) * arguments.max_completion_length)
    return arguments.beta * mean


def entropies_of_the_policy(entropies: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``(B, T)`` entropies whose mean over the tokens that move is that over those of them that the policy wrote.

    TRL's entropy bonus is that mean. It is for exploring, and nobody explores what somebody else wrote: a prefix token
    stands for the mean of the others.
    """
    own = inputs["update_mask"] & ~inputs["prefix_mask"]
    mean = torch.where(own, entropies, 0.0).sum() / own.sum().clamp(min=1)
    return torch.where(inputs["prefix_mask"], mean, entropies)


@torch.no_grad()
def prefix_entropies(
    encode: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]],
    output: Mapping[str, torch.Tensor],
    prefixes: torch.Tensor,
    at_once: int,
    ranks: Ranks,
) -> torch.Tensor:
    """The policy's entropy at each prefix token ``(B, T)`` of all ranks, NaN elsewhere.

    A causal model gives them from prompt and prefix alone, so only the prefixed rows are encoded, without their
    continuation. All ranks make the same number of passes: sharded parameters are gathered in each.

    Args:
        encode: ``encode(input_ids, attention_mask, width)`` gives, second, the entropies of the last ``width`` tokens.
        prefixes: the mask of prefix tokens ``(B, T)``.
        at_once: rows of a pass.
    """
    entropies = torch.full(prefixes.shape, torch.nan, device=prefixes.device)
    rows = prefixes.any(dim=1).nonzero().flatten()
    width = max(int(prefixes.sum(dim=1).max()), 1)
    for start in range(0, ranks.largest(len(rows)), at_once):
        chunk = rows[start : start + at_once]
        given = chunk if len(chunk) else torch.zeros(1, dtype=torch.long, device=rows.device)  # a pass for the others
        mask = prefixes[given, :width]
        _, found, _ = encode(
            torch.cat([output["prompt_ids"][given], output["completion_ids"][given, :width]], dim=1),
            torch.cat([output["prompt_mask"][given], mask.long()], dim=1),
            width,
        )
        for row, values, chosen in zip(chunk.tolist(), found.float(), mask, strict=False):
            entropies[row, : int(chosen.sum())] = values[chosen]
    return ranks.rows(entropies, fill=torch.nan)
