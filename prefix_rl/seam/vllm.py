"""Generation by vLLM while training: a limit and a seed for each row.

TRL gives all rows of a call one limit, so that behind a prefix more tokens are generated than the budget has, and one
seed, or none, so that no rollout can be repeated. Here each row is a request of its own: as many tokens as are left
of the budget, none at all behind a demonstration that is complete, and a seed that follows from the run's seed, the
step and the row.

TRL's own ``VLLMGeneration.generate`` is called as it is. What it calls, the engine in this process or the client of the
server, has a stand-in meanwhile that hands each row its own parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from ..engines.base import seed_of
from ..prefixes import Prefix
from ..speed.generation import as_asked, shared_prefill
from .ranks import Ranks

IN_FLIGHT = 64  # requests at a time; the connections that TRL's client keeps


@dataclass(frozen=True)
class Rows:
    """Parameters of each row of a call."""

    limits: Sequence[int]
    """Numbers of tokens; 0: nothing is generated."""
    seeds: Sequence[int]


def generating(trainer: Any, ranks: Ranks) -> Callable[[Sequence[Prefix] | None, int], AbstractContextManager]:
    """Context for a call of TRL's generation, by the prefixes of this rank's rows (None: none is injected) and
    their number: with vLLM each row's own limit and seed, with transformers each prompt encoded once."""
    if trainer.use_vllm:
        return EachRow(trainer, ranks)
    if trainer.use_transformers_continuous_batching:
        return lambda plan, count: nullcontext()
    return lambda plan, count: _by_transformers(trainer)


@contextmanager
def _by_transformers(trainer: Any) -> Iterator[None]:
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    with as_asked(model), shared_prefill(model) if trainer.speed.shared_prefill else nullcontext():
        yield


class EachRow:
    """The limits and seeds of the rows of each call. All ranks make the same calls."""

    def __init__(self, trainer: Any, ranks: Ranks):
        self._trainer, self._ranks = trainer, ranks
        self._call = (-1, False, 0)  # step, whether it trains, calls of this kind in this step before

    def __call__(self, plan: Sequence[Prefix] | None, count: int) -> AbstractContextManager:
        trainer, budget = self._trainer, self._trainer.max_completion_length
        now = (trainer.state.global_step, trainer.model.training)
        self._call = (*now, self._call[2] + 1 if self._call[:2] == now else 0)
        left = [budget] * count if plan is None else [0 if p.complete else budget - len(p.ids) for p in plan]
        first = self._ranks.own(count).start
        seeds = [seed_of("rollout", trainer.args.seed, *map(int, self._call), first + i) for i in range(count)]
        return each_row(trainer.vllm_generation, Rows(left, seeds), self._ranks)


@contextmanager
def each_row(generation: Any, rows: Rows, ranks: Ranks) -> Iterator[None]:
    """While it lasts, ``generation.generate`` (TRL's ``VLLMGeneration``) gives each row of this rank its own limit and
    seed. All ranks enter it together."""
    name, stand_in = "llm", None
    if getattr(generation, "llm", None) is not None:
        stand_in = _Colocated(generation.llm, rows, getattr(generation, "tp_group", None))
    elif generation.mode == "server":
        everyone = Rows(ranks.objects(rows.limits), ranks.objects(rows.seeds))
        if client := getattr(generation, "vllm_client", None):  # the main process has one
            name, stand_in = "vllm_client", _Client(client, everyone)
    whole = getattr(generation, name, None)
    try:
        if stand_in is not None:
            setattr(generation, name, stand_in)
        yield
    finally:
        if stand_in is not None:
            setattr(generation, name, whole)


class _StandIn:
    """Everything of the thing that it stands for."""

    def __init__(self, whole: Any, rows: Rows, group: Any = None):
        self._whole, self._rows, self._group = whole, rows, group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


class _Colocated(_StandIn):
    """``vllm.LLM`` in this process."""

    def generate(self, prompts: Sequence[Mapping[str, Any]], sampling_params: Any, **kwargs: Any) -> list[Any]:
        """One output for each prompt; one without tokens where the row's limit is 0."""
        rows = self._of_the_group()
        asked = [i for i, limit in enumerate(rows.limits) if limit > 0]
        given = []
        for i in asked:
            own = sampling_params.clone()
            own.max_tokens, own.seed = rows.limits[i], rows.seeds[i]
            given.append(own)
        found = self._whole.generate([prompts[i] for i in asked], sampling_params=given, **kwargs) if asked else []
        made = dict(zip(asked, found, strict=True))
        return [made.get(i) or _nothing(prompt["prompt_token_ids"]) for i, prompt in enumerate(prompts)]

    def _of_the_group(self) -> Rows:
        """The rows of all ranks that hold one engine together: each of them asks for all."""
        if self._group is None:
            return self._rows
        found: list[Any] = [None] * torch.distributed.get_world_size(self._group)
        own = (list(self._rows.limits), list(self._rows.seeds))
        torch.distributed.all_gather_object(found, own, group=self._group)
        return Rows([n for limits, _ in found for n in limits], [s for _, seeds in found for s in seeds])


def _nothing(prompt_ids: Sequence[int]) -> Any:
    return SimpleNamespace(prompt_token_ids=prompt_ids, outputs=[SimpleNamespace(token_ids=[], logprobs=[])])


class _Client(_StandIn):
    """TRL's client of a server."""

    def generate(self, prompts: Sequence[Sequence[int]], n: int = 1, **given: Any) -> dict[str, list]:
        """TRL's answer, one completion for each prompt; one without tokens where the row's limit is 0."""
        common = {name: value for name, value in given.items() if name not in ("max_tokens", "generation_kwargs")}

        def one(i: int) -> dict[str, list]:
            if self._rows.limits[i] < 1:
                return {"prompt_ids": [prompts[i]], "completion_ids": [[]], "logprobs": [[]],
                        "logprob_token_ids": [[]]}  # fmt: skip
            own = {**(given.get("generation_kwargs") or {}), "seed": self._rows.seeds[i]}
            return self._whole.generate(
                [prompts[i]], n=1, max_tokens=self._rows.limits[i], generation_kwargs=own, **common
            )

        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            found = list(pool.map(one, range(len(prompts))))
        return {name: [row for answer in found for row in answer[name]] for name in
                ("prompt_ids", "completion_ids", "logprobs", "logprob_token_ids")}  # fmt: skip


def difference(output: Mapping[str, torch.Tensor], prefixes: torch.Tensor, ranks: Ranks) -> dict[str, float]:
    """Distance of the trainer's log-probabilities from the sampler's: the mean absolute difference, in nats, over the
    sampled tokens of the rollouts that start with a prefix, and of those that do not. Empty where they are not known.

    Args:
        output: TRL's batch of this rank.
        prefixes: bool ``(B, T)``, True on the tokens that nobody sampled.
    """
    sampled, trained = output.get("sampling_per_token_logps"), output.get("old_per_token_logps")
    if sampled is None or trained is None:
        return {}
    apart = (trained - sampled).abs()
    counts = output["completion_mask"].bool() & ~prefixes & ~apart.isnan()
    prefixed = prefixes.any(dim=1, keepdim=True)
    parts = [counts & prefixed, counts & ~prefixed]
    sums = ranks.sums(torch.stack([x for p in parts for x in (apart.masked_fill(~p, 0.0).sum(), p.sum().to(apart))]))
    names = ("sampler/difference_with_prefix", "sampler/difference_without_prefix")
    return {name: sums[2 * i] / sums[2 * i + 1] for i, name in enumerate(names) if sums[2 * i + 1]}
