"""The ``engine`` block of a recipe: what generates, outside training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Interval, Le

API_KEY = "PREFIX_RL_API_KEY"
"""The environment variable that holds the key of the endpoints, if they want one."""


@dataclass(frozen=True)
class EngineSettings:
    """The engine of `evaluate`, `collect` and the ladder; training has TRL's own settings (training.use_vllm)."""

    name: Literal["transformers", "vllm", "server"] = "transformers"
    """transformers; vllm: in this process; server: OpenAI-compatible endpoints that take and return token ids (`vllm
    serve`, SGLang)."""
    endpoints: tuple[str, ...] = ()
    """server: addresses, http://HOST:PORT; requests are shared out among them."""
    served_model: str | None = None
    """server: the name under which the endpoints serve the policy; null: the policy's own name or folder."""
    max_in_flight: Annotated[int, Ge(1), Le(2**16)] = 64
    """server: number of requests in the making at each endpoint."""
    timeout: Annotated[float, Gt(0), Le(10**8)] = 1800.0
    """server: seconds until a completion must be there."""
    retries: Annotated[int, Ge(0), Le(10**6)] = 6
    """server: failures in a row that an endpoint may have before it is left out, and one request before all stops."""
    retry_wait: Annotated[float, Gt(0), Le(3600)] = 1.0
    """server: seconds to wait after a failure; twice as long after each further one, at most a minute."""
    tensor_parallel_size: Annotated[int, Ge(1), Le(1024)] = 1
    """vllm: number of GPUs that hold one copy of the model."""
    gpu_memory_utilization: Annotated[float, Interval(gt=0, le=1)] = 0.9
    """vllm: the share of a GPU's memory that it takes."""
    enforce_eager: bool = False
    """vllm: no CUDA graphs; it starts sooner and generates more slowly."""

    def faults(self) -> list[str]:
        """Faults of these settings, in words.

        >>> EngineSettings("server").faults()
        ['engine.endpoints is empty: engine.name = server needs addresses, as [http://localhost:8000]']
        """
        faults = []
        if self.name == "server" and not self.endpoints:
            faults.append("engine.endpoints is empty: engine.name = server needs addresses, as [http://localhost:8000]")
        if self.name != "server" and self.endpoints:
            faults.append(f"engine.endpoints are of engine.name = server; it is {self.name}")
        for url in self.endpoints:
            try:
                parts = urlsplit(url)
                good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
            except ValueError:
                parts, good = None, False
            if not good:
                faults.append(f"engine.endpoints: {url!r} is no address; give http://HOST:PORT")
            elif parts.username is not None or parts.query:
                faults.append(
                    f"engine.endpoints: the address at {parts.hostname} holds a user, a password or a query, and "
                    f"recipes are written down; give the key in the environment variable {API_KEY}"
                )
        if len(set(map(base_url, self.endpoints))) < len(self.endpoints):
            faults.append("engine.endpoints: an address stands there twice")
        return faults


def base_url(endpoint: str) -> str:
    """The address without what people add to it.

    >>> base_url("http://localhost:8000/v1/")
    'http://localhost:8000'
    """
    return endpoint.rstrip("/").removesuffix("/v1").rstrip("/")
