"""The order of rows, by which alike ones meet in a micro-batch.

A row's loss does not depend on its micro-batch where the normalizer is a constant (Dr.GRPO, arXiv 2503.20783, section
3.2), so that rows may change places within the micro-batches of one optimizer step, and micro-batches may take unequal
numbers of rows: one of ``n`` rows weighs ``n`` times as much as one of a single row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from .tree import common

CONSTANT_NORMALIZER = frozenset({"dr_grpo"})
"""Losses with a constant normalizer, by TRL's names."""
SHARE = "row_share"
"""The key under which a micro-batch of unequal size says what its loss counts by, a mean over its rows."""
SLACK = 0.05
"""Share by which the largest micro-batch may exceed its least size, where such a cut encodes fewer tokens."""


def may_reorder(args, has_images: bool) -> bool:
    """True if the loss of a row is the same in every micro-batch of its step, by TRL's arguments."""
    constant = args.loss_type in CONSTANT_NORMALIZER and args.top_entropy_quantile == 1.0 and not has_images
    bonus = args.entropy_coef or args.use_adaptive_entropy  # a mean over the tokens of the micro-batch
    return constant and not bonus


def regrouped(
    micro_batches: Sequence[Mapping[str, Any]],
    accumulation: int,
    sizes_of: Callable[[list[list[int]], int], list[int] | None],
) -> list[dict[str, Any]]:
    """The micro-batches of one generation, with rows that begin alike together in one of the same optimizer step.

    Args:
        micro_batches: TRL's.
        accumulation: micro-batches of an optimizer step.
        sizes_of: from ordered rows and a number of micro-batches to the number of rows in each; None: equally many.
    """
    made = [dict(batch) for batch in micro_batches]
    for window in windows(len(made), accumulation):
        batches = [made[i] for i in window]
        rows = [row for batch in batches for row in rows_of(batch)]
        order = alike_together(rows)
        sizes = sizes_of([rows[i] for i in order], len(batches))
        made[window.start : window.stop] = rearranged(batches, order, sizes)
        for i, size in zip(window, sizes or [], strict=False):
            # TRL averages the losses of micro-batches as equals, each a mean over its rows
            made[i][SHARE] = size * len(batches) / len(rows)
    return made


def windows(micro_batches: int, accumulation: int) -> list[range]:
    """Indices of the micro-batches of each optimizer step, out of those of one generation.

    >>> windows(4, 2), windows(2, 4), windows(3, 2)
    ([range(0, 2), range(2, 4)], [range(0, 2)], [])
    """
    if accumulation % micro_batches == 0:
        return [range(micro_batches)]
    if micro_batches % accumulation == 0:
        return [range(i, i + accumulation) for i in range(0, micro_batches, accumulation)]
    return []  # an optimizer step that begins in one generation and ends in the next


def alike_together(rows: Sequence[Sequence[int]]) -> list[int]:
    """An order in which rows that begin alike are neighbours: that of the alphabet.

    >>> alike_together([[1, 2, 3], [7], [1, 2, 4], [7, 8]])
    [0, 2, 1, 3]
    """
    return sorted(range(len(rows)), key=lambda row: list(rows[row]))


def overlaps(rows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Numbers of tokens of each of these ordered rows: all of them, and those that it shares with the row before.

    >>> overlaps([[1, 2, 3], [1, 2, 4], [7, 8]])
    [(3, 0), (3, 2), (2, 0)]
    """
    return [(len(row), common(before, row)) for before, row in zip([[], *rows[:-1]], rows, strict=True)]


def balanced(ranks: Sequence[Sequence[tuple[int, int]]], parts: int) -> list[int]:
    """Number of rows of each micro-batch, so that the largest holds about as few distinct tokens as it can.

    A micro-batch of the rows ``i ... j`` encodes ``tokens_i + sum_{k=i+1..j} (tokens_k - shared_k)`` tokens: what row
    ``i`` shares with the row before it is encoded again. Of all cuts whose largest micro-batch is at most :data:`SLACK`
    above the least possible, this is the one that encodes fewest tokens, and has the smallest largest one among these.

    Args:
        ranks: the :func:`overlaps` of the rows of each process. All have as many rows, and cut them alike.
        parts: micro-batches; each takes at least one row.

    >>> balanced([[(90, 0), (10, 0), (10, 0), (10, 0), (10, 0), (10, 0)]], parts=2)
    [1, 5]
    >>> balanced([[(50, 0), (50, 40), (50, 40), (50, 0)]], parts=2)  # 50 + 10 + 10 and 50
    [3, 1]
    """
    rows = list(zip(*ranks, strict=True))
    limit = int(_least_largest(rows, parts) * (1 + SLACK))
    # By end of the cut so far: tokens that are encoded again, those of the largest micro-batch, and the sizes
    fewest: dict[int, tuple[int, int, list[int]]] = {0: (0, 0, [])}
    for part in range(parts):
        longer: dict[int, tuple[int, int, list[int]]] = {}
        for start, (again, largest, sizes) in fewest.items():
            again += sum(shared for _, shared in rows[start])
            held = [shared for _, shared in rows[start]]  # the first row stands whole
            for end in range(start + 1, len(rows) - (parts - part - 1) + 1):
                held = _with(held, rows[end - 1])
                if max(held) > limit:
                    break
                found = (again, max(largest, *held), [*sizes, end - start])
                longer[end] = min(found, longer.get(end, found))
        fewest = longer
    return fewest[len(rows)][2]


def _least_largest(rows: Sequence[Sequence[tuple[int, int]]], parts: int) -> int:
    """The least number of tokens that the largest micro-batch can hold.

    A micro-batch grows with every row, so that taking rows as long as a limit allows needs the fewest micro-batches.
    """

    def needed(limit: int) -> int:
        count, held = 0, [limit] * len(rows[0])
        for row in rows:
            held = _with(held, row)
            if max(held) > limit:
                count, held = count + 1, [length for length, _ in row]
        return count

    lowest, enough = max(length for row in rows for length, _ in row), sum(max(row)[0] for row in rows)
    return bisect_left(range(enough), True, lo=lowest, key=lambda limit: needed(limit) <= parts)


def _with(held: Sequence[int], row: Sequence[tuple[int, int]]) -> list[int]:
    """The tokens of a micro-batch on each rank once it has taken one more row."""
    return [tokens + length - shared for tokens, (length, shared) in zip(held, row, strict=True)]


def rearranged(
    micro_batches: Sequence[Mapping[str, Any]], order: Sequence[int], sizes: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """The same micro-batches with their rows in another order.

    Args:
        micro_batches: fields that are tensors or lists with a row for each rollout, tensors without dimensions (of the
            whole batch), or None.
        order: for each new place the number of the row that goes there, counted over all micro-batches.
        sizes: number of rows of each micro-batch; None: as many as it has.
    """
    sizes = sizes or [len(batch["completion_ids"]) for batch in micro_batches]
    cuts = [slice(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]
    found: list[dict[str, Any]] = [dict(batch) for batch in micro_batches]
    for key, value in micro_batches[0].items():
        values = [batch[key] for batch in micro_batches]
        if isinstance(value, torch.Tensor) and value.ndim:
            whole = torch.cat(values)[torch.tensor(order, device=value.device)]
        elif isinstance(value, list):
            rows = [row for part in values for row in part]
            whole = [rows[i] for i in order]
        else:
            continue
        for batch, cut in zip(found, cuts, strict=True):
            batch[key] = whole[cut]
    return found


def rows_of(batch: Mapping[str, Any]) -> list[list[int]]:
    """The token ids of each rollout, prompt and completion without padding."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1).cpu()
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1).bool().cpu()
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
