"""Scores of demonstrations: what the policy that a run started from says of each of their tokens.

They are measured once, before the first step, and kept in the run's folder: a run that is resumed cuts as it would
have, although its policy has moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from .. import parts
from ..costs import Cost, inference_flops, parameters_of
from ..cuts import Cut, entropy_places, needs_scores, surprisal_shares
from ..errors import CheckpointError
from ..prefixes import Demonstration
from ..progress import bar
from .batch import ROW
from .ranks import Ranks

FILE = "scores.safetensors"
"""The file in a run's folder: one number for each token of each usable demonstration, in the order of the data."""

Encode = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]
"""``encode(input_ids, attention_mask, width)``: log-probabilities and entropies of the last ``width`` tokens."""


class Scores(Sequence):
    """The usable demonstrations of each problem, with the places or shares that their scores give.

    Cuts that need no scores leave the demonstrations as they are.

    Args:
        demonstrations: the usable ones of each problem.
        cut: what they are scored for.
        ranks: over which the policy is asked.
        folder: of the run.
    """

    def __init__(self, demonstrations: Sequence[Sequence[Demonstration]], cut: Cut, ranks: Ranks, folder: str):
        self.demonstrations, self.cut, self.ranks, self.path = demonstrations, cut, ranks, Path(folder, FILE)
        self.missing = needs_scores(cut)
        self._scores, self._starts = torch.empty(0), []
        self._of = lru_cache(maxsize=1024)(self._scored_of)  # the rows of a batch ask for the same ones again and again

    def __len__(self) -> int:
        return len(self.demonstrations)

    def __getitem__(self, problem: int) -> tuple[Demonstration, ...]:
        """The demonstrations of one problem; their scores must be there, if they are needed."""
        return self._of(problem) if needs_scores(self.cut) else self.demonstrations[problem]

    def _scored_of(self, problem: int) -> tuple[Demonstration, ...]:
        return tuple(map(self._scored, self.demonstrations[problem], self._starts[problem]))

    def _scored(self, demonstration: Demonstration, start: int) -> Demonstration:
        scores = self._scores[start : start + len(demonstration.ids)].tolist()
        if self.cut == "entropy":
            return replace(demonstration, places=entropy_places(scores))
        return replace(demonstration, shares=surprisal_shares(scores))

    def _laid_out(self) -> list[tuple[int, Demonstration, int]]:
        """Of each demonstration its problem, itself, and the place of its first score."""
        found, start = [], 0
        for problem, own in enumerate(self.demonstrations):
            self._starts.append([])
            for demonstration in own:
                found.append((problem, demonstration, start))
                self._starts[-1].append(start)
                start += len(demonstration.ids)
        self._scores = torch.zeros(start)
        return found

    def ready(self, trainer, encode: Encode, tokenize: Callable[[list], tuple]) -> Cost:
        """Before the first step measures the scores, if they are needed; where a resumed run goes on, reads them.

        Args:
            trainer: the run's :class:`~prefix_rl.seam.trainer.PrefixTrainer`.
            encode: of its model.
            tokenize: TRL's, of prompts.

        Returns:
            What that cost.
        """
        if not self.missing:
            return Cost()
        if trainer.state.global_step:
            self.read()
            return Cost()
        rows, dataset = trainer.args.per_device_train_batch_size, trainer.train_dataset
        place_of = {problem: place for place, problem in enumerate(dataset[ROW])}
        trainer.model.eval()  # nothing dropped out
        tokens = self.measure(
            encode,
            lambda problem: tokenize([dataset[place_of[problem]]["prompt"]])[0][0],
            rows,
            rows * trainer.max_completion_length,
        )
        trainer.model.train()
        return Cost(flops=inference_flops(parameters_of(trainer.model), tokens))

    def read(self) -> None:
        """Reads the scores that the run measured when it began.

        Raises:
            CheckpointError: if they are not there, or belong to other demonstrations.
        """
        self._laid_out()
        try:
            scores = safetensors.torch.load_file(self.path)["scores"]
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.path} cannot be read: {error}. It holds what the policy said of the demonstrations before the "
                f"first step, which method.cut = {self.cut} goes by, and that policy is no longer there to be asked: "
                "bring the file back, or begin the run anew in another output.dir"
            ) from error
        if scores.shape != self._scores.shape:
            raise CheckpointError(
                f"{self.path} holds the scores of {len(scores)} tokens, and the run's demonstrations have "
                f"{len(self._scores)}: it belongs to another run; bring this run's back"
            )
        self._scores, self.missing = scores, False

    def measure(self, encode: Encode, prompts: Callable[[int], Sequence[int]], rows: int, tokens: int) -> int:
        """Asks the policy of every demonstration, and keeps what it says; number of tokens read.

        The longest come first, so that too little memory shows at once. All ranks make the same number of passes:
        sharded parameters are gathered in each.

        Args:
            prompts: the prompt's ids, by problem.
            rows: of a pass, at most.
            tokens: of a pass with its padding, at most; a demonstration that is longer has a pass of its own.
        """
        ranks = self.ranks
        laid_out = sorted(self._laid_out(), key=lambda item: -len(item[1].ids))
        items = [(prompts(problem), list(demonstration.ids), start) for problem, demonstration, start in laid_out]
        passes = passes_of([len(prompt) + len(ids) for prompt, ids, _ in items], rows, tokens)
        with bar("asking the policy about the demonstrations", len(items)) as advance:
            for first in range(0, len(passes), ranks.count):
                turn = passes[first : first + ranks.count]
                own = turn[min(ranks.index, len(turn) - 1)]  # a rank without rows takes part all the same
                scores = _scores_of(encode, [items[i][:2] for i in own], self.cut, ranks.device)
                everyone = ranks.rows(torch.nn.functional.pad(scores, (0, 0, 0, rows - len(scores))), fill=0.0).cpu()
                for rank, some in enumerate(turn):
                    for row, i in enumerate(some):
                        _, ids, start = items[i]
                        self._scores[start : start + len(ids)] = everyone[rank * rows + row, : len(ids)]
                    advance(len(some))
        if ranks.writes:
            try:
                with parts.whole(self.path) as file:
                    file.write(safetensors.torch.save({"scores": self._scores}))
            except OSError as error:
                raise CheckpointError(f"{self.path} cannot be written: {error.strerror or error}") from error
        self.missing = False
        return sum(len(prompt) + len(ids) for prompt, ids, _ in items)


def passes_of(lengths: Sequence[int], rows: int, tokens: int) -> list[list[int]]:
    """Rows of these lengths, in order, in passes of at most so many rows and so many tokens with their padding.

    >>> passes_of([9, 5, 5, 2, 1], rows=3, tokens=10)
    [[0], [1, 2], [3, 4]]
    """
    found: list[list[int]] = []
    for i, length in enumerate(lengths):
        last = found[-1] if found else []
        longest = max((lengths[j] for j in last), default=0)
        if last and len(last) < rows and max(longest, length) * (len(last) + 1) <= tokens:
            last.append(i)
        else:
            found.append([i])
    return found


@torch.no_grad()
def _scores_of(
    encode: Encode, rows: Sequence[tuple[Sequence[int], Sequence[int]]], cut: Cut, device: torch.device
) -> torch.Tensor:
    """Scores ``(rows, width)`` of the second part of each row behind the first; what stands behind it means nothing."""
    before, width = (max(len(row[part]) for row in rows) for part in (0, 1))
    ids = [[0] * (before - len(p)) + [*p, *d] + [0] * (width - len(d)) for p, d in rows]
    mask = [[0] * (before - len(p)) + [1] * (len(p) + len(d)) + [0] * (width - len(d)) for p, d in rows]
    logps, entropies, _ = encode(torch.tensor(ids, device=device), torch.tensor(mask, device=device), width)
    return (entropies if cut == "entropy" else logps).float()
