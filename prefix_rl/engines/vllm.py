"""vLLM as an engine, in this process."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Sequence
from itertools import count
from typing import Any

from ..errors import DataError, StackError
from ..progress import say
from .base import Engine, Request, until_stop
from .settings import EngineSettings

AT_ONCE = 1024


def require_vllm(setting: str = "engine.name = vllm", instead: str = "take --engine transformers") -> None:
    """Says what to do where vLLM is not installed.

    Raises:
        StackError: if it is not.
    """
    if importlib.util.find_spec("vllm") is None:
        raise StackError(f"{setting}, but vLLM is not installed: pip install 'prefix_rl[vllm]', or {instead}")


def end_with_this_process() -> None:
    """Keeps vLLM's engine inside this process, so that it ends with it, whatever ends it.

    In a process of its own it outlives one that is killed, and keeps the GPU's memory. The workers of tensor
    parallelism watch the engine's process and end with it by themselves.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


def be_quiet() -> None:
    """Keeps vLLM from telling how it starts, in forty lines; $VLLM_LOGGING_LEVEL = INFO brings them back."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


class VllmEngine(Engine):
    """vLLM's engine, with a limit and a seed for each request.

    Args:
        path: the model, a folder or a name.
        stops: the ids that end a completion.
        max_length: of the longest prompt and completion together.
        settings: the recipe's.
        at_once: requests handed in at a time.
        dtype: of weights and computation; None: vLLM's own choice (bfloat16 for a model saved in float32).
        adapters: a folder of LoRA adapters that completions are generated with.
        loading: further arguments of ``vllm.LLM``.

    Raises:
        StackError: if vLLM is not installed.
        DataError: if it does not load the model.
    """

    def __init__(
        self,
        path: str,
        stops: Sequence[int],
        max_length: int,
        settings: EngineSettings | None = None,
        *,
        at_once: int = AT_ONCE,
        dtype: str | None = None,
        revision: str | None = None,
        adapters: str | None = None,
        **loading: Any,
    ):
        super().__init__()
        require_vllm()
        be_quiet()
        end_with_this_process()
        import vllm
        from vllm.platforms import current_platform

        settings = settings or EngineSettings("vllm")
        self.stops, self.at_once, self._vllm = list(stops), at_once, vllm
        self._adapters, more = _adapters(adapters)
        if current_platform.is_cpu():  # seeds and chunked prefill do not go together there
            more |= {"enable_chunked_prefill": False}
        say(f"loading {path} into vLLM {vllm.__version__}")
        try:
            self._llm = vllm.LLM(
                model=path, max_model_len=max_length, dtype=dtype or "auto", revision=revision,
                tokenizer_revision=revision, enable_prefix_caching=True,
                tensor_parallel_size=settings.tensor_parallel_size,
                gpu_memory_utilization=settings.gpu_memory_utilization, enforce_eager=settings.enforce_eager,
                use_tqdm_on_load=False, **more, **loading,
            )  # fmt: skip
        except (ValueError, OSError, RuntimeError) as error:
            raise DataError(f"vLLM does not load {path}: {_first_line(error)}") from error
        self._engine = self._llm.llm_engine
        self._numbers, self._running = count(), {}

    def submit(self, request: Request) -> None:
        from vllm.sampling_params import RequestOutputKind

        name, sampling = str(next(self._numbers)), request.sampling
        parameters = self._vllm.SamplingParams(
            n=1, temperature=sampling.temperature, top_p=sampling.top_p, top_k=-1, max_tokens=request.limit,
            seed=request.seed, stop_token_ids=self.stops, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
        )  # fmt: skip
        self._running[name] = request
        self._engine.add_request(
            name, {"prompt_token_ids": list(request.prompt)}, parameters, lora_request=self._adapters
        )

    def finished(self, timeout: float) -> list[tuple[Request, list[int]]]:
        found, until = [], time.monotonic() + timeout
        while self._running and not found and time.monotonic() < until:
            for output in self._engine.step():
                if output.finished:
                    request, made = self._running.pop(output.request_id), output.outputs[0]
                    found.append((request, self._whole(request, list(made.token_ids), made.finish_reason)))
                    self.counts.plus(len(request.prompt), output.num_cached_tokens, len(made.token_ids))
        return found

    def _whole(self, request: Request, ids: list[int], reason: str | None) -> list[int]:
        ids = until_stop(ids, self.stops)
        if len(ids) < request.limit and not set(ids[-1:]) & set(self.stops):
            raise DataError(
                f"vLLM ended a completion after {len(ids)} of {request.limit} tokens (reason: {reason}), and no id "
                f"that ends one is its last; what is done is kept"
            )
        return ids

    def facts(self) -> dict[str, Any]:
        dtype = str(self._engine.vllm_config.model_config.dtype).removeprefix("torch.")
        return {"name": "vllm", "version": self._vllm.__version__, "dtype": dtype}

    def close(self) -> None:
        self._engine.abort_request(list(self._running))
        self._running.clear()
        self._engine.engine_core.shutdown()


def _adapters(folder: str | None) -> tuple[Any, dict[str, Any]]:
    """vLLM's request for the adapters, and the arguments by which it loads them.

    Raises:
        DataError: if vLLM cannot take adapters of this kind beside their model.
    """
    if folder is None:
        return None, {}
    from ..adapters import why_not_in_vllm

    if why := why_not_in_vllm(folder):
        raise DataError(
            f"vLLM cannot take the adapters in {folder} beside their model: {why}. Give it the whole model that "
            f"`prefix-rl merge {folder}` writes"
        )
    import json
    from pathlib import Path

    from vllm.lora.request import LoRARequest

    given = json.loads(Path(folder, "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([given["r"], *(given.get("rank_pattern") or {}).values()])
    room = next((known for known in _RANKS if known >= rank), rank)
    return LoRARequest("policy", 1, folder), {"enable_lora": True, "max_lora_rank": room}


_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # for which vLLM makes room


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
