"""What TRL asks of vLLM while training: a limit and a seed for each row.

TRL gives all rows of a call one limit, so that behind a prefix more tokens are generated than the budget has, and one
seed, or none, so that no rollout can be made again. Here each row is a request of its own: as many tokens as are left of
the budget, none at all behind a demonstration that is complete, and a seed that follows from the run's seed, the step
and the row.

TRL's own ``VLLMGeneration.generate`` is called as it is; what it calls (the engine in this process, or the client of the
server) is given by a stand-in that hands each row its own parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from .ranks import Ranks

IN_FLIGHT = 64  # requests at a time; the connections that TRL's client keeps


@dataclass(frozen=True)
class Rows:
    """What each row of a call may have."""

    limits: Sequence[int]
    """Tokens; 0: nothing is generated."""
    seeds: Sequence[int]


@contextmanager
def each_row(generation: Any, rows: Rows, ranks: Ranks) -> Iterator[None]:
    """While it lasts, ``generation.generate`` (TRL's ``VLLMGeneration``) gives each row of this rank its own limit and
    seed. All ranks enter it together."""
    if getattr(generation, "llm", None) is not None:
        whole, generation.llm = generation.llm, _Colocated(generation.llm, rows, getattr(generation, "tp_group", None))
        try:
            yield
        finally:
            generation.llm = whole
    elif generation.mode == "server":
        everyone = Rows(
            [limit for rank in ranks.objects(list(rows.limits)) for limit in rank],
            [seed for rank in ranks.objects(list(rows.seeds)) for seed in rank],
        )
        client = getattr(generation, "vllm_client", None)  # the main process has one
        if client is not None:
            generation.vllm_client = _Client(client, everyone)
        try:
            yield
        finally:
            if client is not None:
                generation.vllm_client = client
    else:
        yield


class _StandIn:
    """Everything of the thing that it stands for."""

    def __init__(self, whole: Any, rows: Rows):
        self._whole, self._rows = whole, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


class _Colocated(_StandIn):
    """``vllm.LLM`` in this process."""

    def __init__(self, llm: Any, rows: Rows, group: Any):
        super().__init__(llm, rows)
        self._group = group

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


def difference(
    sampled: torch.Tensor, trained: torch.Tensor, mask: torch.Tensor, prefixed: torch.Tensor
) -> dict[str, tuple[float, int]]:
    """How far the sampler's and the trainer's log-probabilities lie apart, ``(B, T)``, ``(B, T)``, ``(B, T)``, ``(B,)``.

    Returns:
        The sum of the absolute differences in nats over the tokens of ``mask``, and their number, for the rows that
        start ``with_prefix`` and for those ``without_prefix``. Tokens that nobody sampled (NaN) are left out.

    >>> sampled = torch.tensor([[float("nan"), -1.0], [-2.0, -3.0]])
    >>> trained = torch.tensor([[-5.0, -1.5], [-2.0, -2.75]])
    >>> difference(sampled, trained, torch.ones(2, 2, dtype=torch.bool), torch.tensor([True, False]))
    {'with_prefix': (0.5, 1), 'without_prefix': (0.25, 2)}
    """
    apart = (trained - sampled).abs()
    counts = mask & ~apart.isnan()
    found = {}
    for name, rows in (("with_prefix", prefixed), ("without_prefix", ~prefixed)):
        chosen = counts & rows.unsqueeze(1)
        found[name] = (float(apart[chosen].sum()), int(chosen.sum()))
    return found
