"""What generates: prompt ids in, completion ids out. transformers for small evaluations, vLLM for large ones."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from ..data.tokenizer import stop_ids
from ..errors import StackError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn."""

    temperature: float = 1.0  # 0: the most likely one
    top_p: float = 1.0


class Engine(Protocol):
    """Generates one completion for each prompt."""

    stops: list[int]  # the ids that end a completion

    def generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], seeds: Sequence[int], sampling: Sampling
    ) -> list[list[int]]:
        """The ids behind each prompt, its stop id included, at most ``limits[i]`` of them.

        A completion depends on its prompt and its seed, not on what else is in the batch (up to rounding, which
        differs with the width of a batch).
        """


def seed_of(*key: int | str) -> int:
    """A seed of 48 bits that depends on ``key`` alone.

    >>> seed_of(0, "aime/2024-I-1", 3) == seed_of(0, "aime/2024-I-1", 3) != seed_of(0, "aime/2024-I-1", 4)
    True
    """
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:6], "big")


def until_stop(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """The ids up to and including the first stop.

    >>> until_stop([5, 6, 1, 0, 0], stops=[1])
    [5, 6, 1]
    """
    end = next((i + 1 for i, token in enumerate(ids) if token in stops), len(ids))
    return list(ids[:end])


# --- transformers -----------------------------------------------------------------------------------------------------


class TransformersEngine:
    """``model.generate``, with each distinct prompt encoded once (:mod:`prefix_rl.speed.generation`).

    Each row draws from uniform numbers of its own, one for each position: token t is the first whose cumulative
    probability exceeds ``u_t``. So the seed of a row says everything, whatever else is in the batch.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int] | None = None):
        self.model = model
        self.stops = stop_ids(model.generation_config, tokenizer) if stops is None else list(stops)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stops[0]

    def generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], seeds: Sequence[int], sampling: Sampling
    ) -> list[list[int]]:
        """See :class:`Engine`."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        from ..speed.generation import shared_prefill

        made: list[list[int]] = [[] for _ in prompts]
        asked = [i for i, limit in enumerate(limits) if limit > 0]
        if not asked:
            return made
        device = next(self.model.parameters()).device
        width, longest = max(len(prompts[i]) for i in asked), max(limits)
        padding = [width - len(prompts[i]) for i in asked]
        rows = [[self.pad] * n + list(prompts[i]) for i, n in zip(asked, padding, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        config = GenerationConfig(
            max_new_tokens=longest,
            pad_token_id=self.pad,
            eos_token_id=self.stops,
            do_sample=False,  # the draw is _Draw's
            repetition_penalty=1.0,  # a model's own generation_config may say otherwise
            disable_compile=True,
        )
        uniforms = [_uniforms(seeds[i], limits[i], longest) for i in asked]
        noise = [_Draw(torch.stack(uniforms).to(device), sampling)] if sampling.temperature else []
        limit = _Limit(torch.tensor([width + limits[i] for i in asked], device=device))
        with shared_prefill(self.model):
            found = self.model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=config,
                logits_processor=LogitsProcessorList(noise),
                stopping_criteria=StoppingCriteriaList([limit]),
            )
        for i, ids in zip(asked, found[:, width:].tolist(), strict=True):
            made[i] = until_stop(ids, self.stops)[: limits[i]]
        return made


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


# --- vLLM -------------------------------------------------------------------------------------------------------------


def require_vllm() -> None:
    """Says what to do where vLLM is not installed.

    Raises:
        StackError: if it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise StackError(
            "evaluation.engine = vllm, but vLLM is not installed: pip install 'prefix_rl[vllm]', or take "
            "--engine transformers"
        )


class VllmEngine:
    """vLLM's ``LLM.generate`` with a seed for each request.

    Written against the public interface of vLLM 0.22 to 0.31 and tested with a stand-in for the package: it has not
    been run with vLLM itself.

    Raises:
        StackError: if vLLM is not installed.
    """

    def __init__(self, path: str, stops: Sequence[int], max_length: int, seed: int = 0, **loading: object):
        require_vllm()
        import vllm

        self.stops = list(stops)
        self._vllm = vllm
        self._llm = vllm.LLM(
            model=path, max_model_len=max_length, seed=seed, enable_prefix_caching=True,
            **{key: value for key, value in loading.items() if value is not None},
        )  # fmt: skip

    def generate(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], seeds: Sequence[int], sampling: Sampling
    ) -> list[list[int]]:
        """See :class:`Engine`."""
        from vllm.inputs import TokensPrompt

        parameters = [
            self._vllm.SamplingParams(
                n=1, temperature=sampling.temperature, top_p=sampling.top_p, top_k=-1, max_tokens=limit, seed=seed,
                stop_token_ids=self.stops, detokenize=False,
            )
            for limit, seed in zip(limits, seeds, strict=True)
        ]  # fmt: skip
        given = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        found = self._llm.generate(given, parameters, use_tqdm=False)
        return [until_stop(list(request.outputs[0].token_ids), self.stops) for request in found]
