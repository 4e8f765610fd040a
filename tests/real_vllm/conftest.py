"""What the tests with real vLLM on a CPU share: a model, servers, and the environment that a CPU needs.

They need an environment of their own, see environment.sh; elsewhere they are skipped, unless ``PREFIX_RL_DEMANDS``
names vllm.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from on_vllm import LENGTH, ROOT

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    demanded = "vllm" in os.environ.get("PREFIX_RL_DEMANDS", "").split(",")
    there = demanded or importlib.util.find_spec("vllm") is not None
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if not there:
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed (tests/real_vllm/environment.sh)"))


@pytest.fixture(scope="session")
def tokenizer():
    from small import with_chat_template

    return with_chat_template()


@pytest.fixture(scope="session")
def folder(tmp_path_factory, tokenizer):
    """A random model with heads of 32, saved in float32. Its tokens are far from equally likely."""
    from small import policy

    made = tmp_path_factory.mktemp("model")
    policy(tokenizer, hidden=128).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """``vllm serve``, until it is killed."""

    def __init__(self, folder, log, *options):
        port = free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", log
        command = [
            Path(sys.executable).with_name("vllm"), "serve", folder, "--host", "127.0.0.1", "--port", str(port),
            "--dtype", "float32", "--max-model-len", str(LENGTH), "--enforce-eager", "--no-enable-chunked-prefill",
            "--enable-prompt-tokens-details", *options,
        ]  # fmt: skip
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=log.open("w"), stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def wait(self):
        import httpx

        until = time.monotonic() + 240
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return self
            except httpx.HTTPError:
                time.sleep(0.5)
        raise RuntimeError(f"no server: {self.log.read_text()[-3000:]}")

    def kill(self):
        import psutil

        tree = [self.process.pid, *(c.pid for c in psutil.Process(self.process.pid).children(recursive=True))]
        for pid in tree:
            if psutil.pid_exists(pid):
                os.kill(pid, 9)
        self.process.wait()


@pytest.fixture(scope="session")
def servers(folder, tmp_path_factory):
    """Makes servers of the model: ``servers(2)`` are two, of which those that live are used again."""
    logs, made = tmp_path_factory.mktemp("servers"), []

    def give(count, *options):
        alive = [s for s in made if s.process.poll() is None]
        new = [Server(folder, logs / f"{len(made) + i}.log", *options) for i in range(count - len(alive))]
        made.extend(new)
        return [s.wait() for s in [*alive, *new]][:count]

    yield give
    for server in made:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="session")
def in_process(folder, tokenizer):
    """The engine in this process; one for all tests, as it takes seconds to load."""
    from prefix_rl.engines.settings import EngineSettings
    from prefix_rl.engines.vllm import VllmEngine

    settings = EngineSettings("vllm", enforce_eager=True)
    made = VllmEngine(str(folder), [tokenizer.eos_token_id], LENGTH, settings, dtype="float32")
    yield made
    made.close()
