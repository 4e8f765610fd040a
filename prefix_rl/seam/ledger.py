"""The records of a run: metrics, costs, times, and the rollouts themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from ..costs import Cost, inference_flops, update_flops
from ..data.mixing import SOURCE
from ..methods.base import Method
from ..reports.rollouts import segments, write_rollouts
from ..reports.tokens import token_columns
from ..rollouts import Memory, Rollouts
from .batch import ROW, GenerationBatch, Planned
from .credit import Credit
from .ranks import Ranks


@contextmanager
def off_the_record(metrics: MutableMapping[str, list], *pending: MutableMapping) -> Iterator[None]:
    """A block whose work leaves nothing in TRL's metrics, nor in what is ``pending`` for them."""
    before = {name: list(values) for name, values in metrics.items()}
    try:
        yield
    finally:
        metrics.clear()
        metrics.update(before)
        for one in pending:
            one.clear()


@contextmanager
def uncounted(state) -> Iterator[None]:
    """A block whose tokens TRL's own count of them leaves out."""
    before = state.num_input_tokens_seen
    yield
    state.num_input_tokens_seen = before


class Clock:
    """Adds up the seconds of what is timed, until they are taken."""

    def __init__(self):
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts what happens within."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def taken(self) -> float:
        """Seconds since they were last taken."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def time_metrics(grading: float, step: float, tokens: Mapping[str, int]) -> dict[str, float]:
    """Share of a step's seconds that grading took, and share of the padded ``tokens`` encoded where rows are packed."""
    packed = {"speed/encoded_share": tokens["encoded"] / tokens["padded"]} if tokens["padded"] else {}
    return {"speed/grading_share": grading / step, **packed}


def totals(method: Method, memory: Memory, cost: Cost) -> dict[str, float]:
    """Metrics of the method's memory (a name without slash becomes ``method/name``), and the cost of the run so far."""
    shown = {name if "/" in name else f"method/{name}": value for name, value in method.metrics(memory).items()}
    return shown | {f"cost/{name}": value for name, value in asdict(cost).items()}


def reward_metrics(rewards: torch.Tensor, batch: GenerationBatch, ranks: Ranks) -> dict[str, float]:
    """The mean reward with and without a prefix, how many could not be scored, and what each file of a mixture has."""
    prefixed = batch.planned.prefixed
    from_files = ranks.objects([given[SOURCE] for given in batch.inputs]) if SOURCE in batch.inputs[0] else []
    return source_metrics(rewards, from_files) | {
        "reward_unscored_share": float(rewards.isnan().float().mean()),
        "reward_with_prefix": float(torch.nanmean(rewards[prefixed])),
        "reward_without_prefix": float(torch.nanmean(rewards[~prefixed])),
    }


def source_metrics(rewards: torch.Tensor, sources: Sequence[str]) -> dict[str, float]:
    """The share of the rollouts and the mean reward by the file that their problems are from.

    >>> source_metrics(torch.tensor([1.0, 0.0, 1.0, 1.0]), ["a", "a", "a", "b"])["source/a/share"]
    0.75
    """
    found = {}
    for source in sorted(set(sources)):
        own = torch.tensor([other == source for other in sources], device=rewards.device)
        found |= {f"source/{source}/share": float(own.float().mean()),
                  f"source/{source}/reward": float(torch.nanmean(rewards[own]))}  # fmt: skip
    return found


def prefix_metrics(rollouts: Rollouts, planned: Planned, credit: Credit) -> dict[str, float]:
    """Number of prefixes in a generation batch, their lengths, and the share of their tokens that moves."""
    here, tokens = rollouts.prefixed, rollouts.prefix_mask.sum()
    # drawn is the length before limits and the answer guard
    shortened = planned.lengths < planned.drawn
    found = {
        "prefix/rollouts": here.sum(),
        "prefix/shortened_share": shortened[here].float().mean() if here.any() else torch.nan,
        "prefix/token_share": tokens / rollouts.completion_mask.sum().clamp(min=1),
    }
    if here.any():
        found["prefix/length"] = planned.lengths[here].float().mean()
        found["prefix/fraction"] = rollouts.fractions[here].mean()
        moved = credit.moving | (credit.weights != 0)  # by the surrogate, or by an extra objective
        found["prefix/kept_share"] = (moved & rollouts.prefix_mask).sum() / tokens.clamp(min=1)
        continuation = rollouts.continuation_mask & here.unsqueeze(1)
        if continuation.any():
            found["prefix/continuation_advantage"] = credit.advantages[continuation].mean()
    return {name: float(value) for name, value in found.items()}


def hint_metrics(hints: Planned) -> dict[str, float]:
    """Number of rollouts whose prompt has a hint, and the hints' length and share of their demonstrations."""
    here = hints.prefixed
    found = {"hint/rollouts": float(here.sum())}
    if here.any():
        found |= {"hint/length": float(hints.lengths[here].float().mean()),
                  "hint/fraction": float(hints.fractions[here].mean())}  # fmt: skip
    return found


def cost_of(
    rollouts: Rollouts,
    credit: Credit,
    planned: Planned,
    output: Mapping[str, torch.Tensor],
    ranks: Ranks,
    parameters: int,
    passes: int,
    entropies: bool,
    whole: Rollouts | None = None,
) -> Cost:
    """Cost of a generation batch, in tokens and operations, its updates included.

    A whole demonstration that several rows of a group hold is encoded once, and counts once.

    Args:
        output: TRL's batch on this rank.
        passes: updates of each row.
        entropies: True if prompts and prefixes were encoded once more, for the entropies of the prefixes.
        whole: the rollouts with those that the loss leaves out: they are generated, and not trained.
    """
    complete, prompts = planned.complete, ranks.all(output["prompt_mask"].sum(dim=1))
    counts = ~_repeated(rollouts, complete)
    prompts = prompts * counts
    prefixes, completions = rollouts.prefix_mask.sum(dim=1) * counts, rollouts.completion_mask.sum(dim=1) * counts
    everything = float((prompts + completions).sum())
    generated = rollouts if whole is None else whole
    # rollouts that the loss leaves out were generated all the same
    read = prompts + generated.completion_mask.sum(dim=1) * counts
    flops = inference_flops(parameters, float(read[~complete].sum()))
    if entropies:
        # the pass of `prefix_entropies`: prefixed rows alone, without their continuation
        flops += inference_flops(parameters, float((prompts + prefixes)[prefixes > 0].sum()))
    # each is a forward pass of its own, which TRL makes under some settings only
    for key in ("old_per_token_logps", "ref_per_token_logps"):
        if output.get(key) is not None:
            flops += inference_flops(parameters, everything)
    flops += passes * update_flops(parameters, everything)
    return Cost(
        generated_tokens=float(generated.continuation_mask.sum()),
        injected_tokens=float((generated.prefix_mask.sum(dim=1) * counts).sum()),
        trained_tokens=float(credit.trained[counts].sum()) * passes,
        flops=flops,
    )


def _repeated(rollouts: Rollouts, complete: torch.Tensor) -> torch.Tensor:
    """True for the ``complete`` rows ``(B,)`` that are the same as an earlier one of their group."""
    seen, repeated = set(), torch.zeros_like(complete)
    for row in complete.nonzero().flatten().tolist():
        key = (row // rollouts.group_size, *rollouts.completion_ids[row][rollouts.completion_mask[row]].tolist())
        repeated[row] = key in seen
        seen.add(key)
    return repeated


def records(
    batch: GenerationBatch,
    output: Mapping[str, torch.Tensor],
    tokenizer,
    entropies: torch.Tensor | None = None,
    own: slice = slice(None),
) -> list[dict]:
    """The rollouts of this rank as they are saved, with prefix, kept prefix tokens and continuation told apart.

    ``entropies (B, T)`` of all ranks are those that were measured, NaN elsewhere; ``own`` are the rows of this one.
    ``advantage`` is what the last token is weighed by: its credit, or in an extra objective its weight.
    """

    def number(value: torch.Tensor) -> float | None:
        return None if value.isnan() else float(value)

    found = []
    unknown = [None] * len(batch.inputs)
    outcomes, answers = batch.outcomes or unknown, batch.answers or unknown
    for i, (given, prefix) in enumerate(zip(batch.inputs, batch.plan, strict=True)):
        ids, n = list(batch.completions[i]), len(batch.completions[i])
        moving, begun = output["update_mask"][i][:n].tolist(), [t < len(prefix.ids) for t in range(n)]
        weighed = torch.where(output["weights"][i] != 0, output["weights"][i], output["advantages"][i])[:n]
        pieces = segments(ids, begun, moving, tokenizer.decode)
        text = "".join(piece["text"] for piece in pieces)
        measured = None if entropies is None else entropies[own][i, :n].tolist()
        found.append(
            {
                "step": batch.step.index,
                "row": given[ROW],
                "prompt": json.dumps(given["prompt"], ensure_ascii=False),
                "answer": str(given.get("answer", "")),
                "prefix_tokens": len(prefix.ids),
                "demonstration_tokens": prefix.of,
                "completion_ids": ids,
                "segments": pieces,
                "reward": float(output["rewards"][i]),
                **({"rewards": {name: number(of[own][i]) for name, of in batch.apart.items()}} if batch.apart else {}),
                "outcome": outcomes[i],
                "advantage": float(weighed[-1]) if ids else 0.0,
                "found": answers[i],
                **token_columns(ids, text, tokenizer.batch_decode, weighed.tolist(), measured),
            }
        )
    return found


def save(folder: str, records: Sequence[dict], ranks: Ranks) -> None:
    """Saves the rollouts of all ranks under ``folder``, in the order of the ranks."""
    everything = ranks.objects(records)
    if ranks.writes:
        write_rollouts(Path(folder, "rollouts", f"step_{everything[0]['step']:06d}.parquet"), everything)
