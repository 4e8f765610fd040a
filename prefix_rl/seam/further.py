"""Further continuations of what rollouts began with: sampled and graded, and never trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from ..costs import Cost, inference_flops
from ..methods.base import Further
from ..prefixes import Prefix
from ..rollouts import Rollouts
from .batch import GenerationBatch, Sample
from .ranks import Ranks


def beginnings(kept: Sequence[int], plan: Sequence[Prefix], completions: Sequence[Sequence[int]]) -> list[Prefix]:
    """The beginning of each completion in the place of a prefix: its first ``kept`` tokens, its prefix in any case.

    >>> found = beginnings([1, 3], [Prefix([7, 8]), Prefix([])], [[7, 8, 9], [4, 5, 6]])
    >>> [(begun.ids, begun.complete) for begun in found]
    [([7, 8], False), ([4, 5, 6], True)]
    """
    found = []
    for length, planned, ids in zip(kept, plan, completions, strict=True):
        length = max(length, len(planned.ids))
        found.append(Prefix(list(ids[:length]), complete=bool(ids) and length >= len(ids)))
    return found


def continued(
    further: Further,
    batch: GenerationBatch,
    rollouts: Rollouts,
    output: Mapping[str, torch.Tensor],
    ranks: Ranks,
    sample: Sample,
    total: Callable[[torch.Tensor], torch.Tensor],
    parameters: int,
) -> tuple[Rollouts, Cost]:
    """The rollouts with the rewards ``(B, C)`` of C further continuations of each one's beginning, and what those cost.

    The continuations of a beginning stand side by side, so that it is encoded once, in as many passes of the batch's
    size as there are continuations of each.
    """
    count, own = further.count, len(batch.inputs)
    kept = further.beginnings(rollouts)[ranks.own(own)].tolist()
    begun = beginnings(kept, batch.plan, batch.completions)
    prompts = output["prompt_mask"].sum(dim=1).tolist()
    rows = [row for row in range(own) for _ in range(count)]
    rewards, generated, encoded = [], 0, 0
    for some in (rows[start : start + own] for start in range(0, len(rows), own)):
        inputs, plan = [batch.inputs[row] for row in some], [batch.plan[row] for row in some]
        found = sample(inputs, [begun[row] for row in some], plan, range(len(some)))
        rewards.append(total(found.rewards)[ranks.own(len(some))])
        for row, whole in zip(some, found.ids, strict=True):
            generated += len(whole) - len(begun[row].ids)
            encoded += 0 if begun[row].complete else prompts[row] + len(whole)
    device = rollouts.rewards.device
    complete = ranks.all(torch.tensor([one.complete for one in begun], dtype=torch.long, device=device)).bool()
    found = ranks.all(torch.cat(rewards).view(own, count))
    found = torch.where(complete.unsqueeze(1), rollouts.rewards.unsqueeze(1), found)
    generated, encoded = ranks.all(torch.tensor([[generated, encoded]], device=device)).sum(dim=0).tolist()
    flops = inference_flops(parameters, float(encoded))
    return replace(rollouts, continued=found), Cost(generated_tokens=float(generated), flops=float(flops))
