"""transformers as an engine: the model in this process, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..data.tokenizer import stop_ids
from ..errors import DataError
from .base import Engine, Request, Sampling, until_stop

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TransformersEngine(Engine):
    """``model.generate``, with each distinct prompt encoded once (:mod:`prefix_rl.speed.generation`).

    Each row draws from uniform numbers of its own, one for each position: token t is the first whose cumulative
    probability exceeds ``u_t``. So the seed of a row says everything, whatever else is in the batch.

    Args:
        stops: the ids that end a completion; None: those that the model and the tokenizer declare.
        batch_size: the rows of a batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[int] | None = None,
        batch_size: int = 64,
    ):
        super().__init__()
        self.model, self.at_once = model, batch_size
        self.stops = stop_ids(model.generation_config, tokenizer) if stops is None else list(stops)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stops[0]
        self._waiting: list[Request] = []

    def submit(self, request: Request) -> None:
        self._waiting.append(request)

    def finished(self, timeout: float) -> list[tuple[Request, list[int]]]:
        if not self._waiting:
            return []
        sampling = self._waiting[0].sampling
        batch = [request for request in self._waiting if request.sampling == sampling][: self.at_once]
        taken = set(map(id, batch))
        self._waiting = [request for request in self._waiting if id(request) not in taken]
        try:
            made = self._batch(batch, sampling)
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"the GPU has not enough memory for {len(batch)} completions of up to {max(r.limit for r in batch)} "
                "tokens at a time; give a smaller --batch-size; the same command goes on where it was"
            ) from error
        for request, ids in zip(batch, made, strict=True):
            self.counts.plus(len(request.prompt), 0, len(ids))
        return list(zip(batch, made, strict=True))

    def facts(self) -> dict[str, Any]:
        import transformers

        dtype = str(next(self.model.parameters()).dtype).removeprefix("torch.")
        attention = self.model.config._attn_implementation
        return {"name": "transformers", "version": transformers.__version__, "dtype": dtype,
                "attn_implementation": attention}  # fmt: skip

    def _batch(self, asked: list[Request], sampling: Sampling) -> list[list[int]]:
        """The completions of one batch."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        from ..speed.generation import as_asked, shared_prefill

        device = next(self.model.parameters()).device
        width, longest = max(len(r.prompt) for r in asked), max(r.limit for r in asked)
        padding = [width - len(r.prompt) for r in asked]
        rows = [[self.pad] * n + list(r.prompt) for r, n in zip(asked, padding, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        config = GenerationConfig(
            max_new_tokens=longest,
            pad_token_id=self.pad,
            eos_token_id=self.stops,
            do_sample=False,  # the draw is _Draw's
            disable_compile=True,
        )
        uniforms = [_uniforms(r.seed, r.limit, longest) for r in asked]
        noise = [_Draw(torch.stack(uniforms).to(device), sampling)] if sampling.temperature else []
        limit = _Limit(torch.tensor([width + r.limit for r in asked], device=device))
        with as_asked(self.model), shared_prefill(self.model):
            found = self.model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=config,
                logits_processor=LogitsProcessorList(noise),
                stopping_criteria=StoppingCriteriaList([limit]),
            )
        return [until_stop(ids, self.stops)[: r.limit] for r, ids in zip(asked, found[:, width:].tolist(), strict=True)]


def _uniforms(seed: int, count: int, width: int) -> torch.Tensor:
    """``count`` numbers, and zeros behind them up to ``width``."""
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.pad(drawn, (0, width - count))


class _Draw:
    """Leaves of each row's logits the one token that its uniform number draws."""

    def __init__(self, draws: torch.Tensor, sampling: Sampling):
        self.draws, self.sampling, self.step = draws, sampling, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = draw(scores, self.draws[:, self.step], self.sampling)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    def keep(self, rows: torch.Tensor) -> None:
        self.draws = self.draws[rows]


class _Limit:
    """Ends each row at a length of its own."""

    def __init__(self, lengths: torch.Tensor):
        self.lengths = lengths

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return input_ids.size(1) >= self.lengths

    def keep(self, rows: torch.Tensor) -> None:
        self.lengths = self.lengths[rows]


def draw(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The token that each row's uniform number draws, ``(B, V), (B,) -> (B,)``.

    With top_p the least likely tokens are left out as long as the others keep at least that probability together.
    """
    probabilities = (logits.double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        descending, order = probabilities.sort(-1, descending=True)
        before = descending.cumsum(-1) - descending
        probabilities = probabilities.masked_fill(
            torch.zeros_like(probabilities, dtype=torch.bool).scatter(1, order, before >= sampling.top_p), 0.0
        )
    cumulative = probabilities.cumsum(-1)
    found = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)[:, 0]
    return found.clamp(max=logits.shape[1] - 1)
