"""Tokens a second and CPU seconds of each engine, on the same requests: prompts of GSM8K, a seed each.

    python benchmarks/engines.py MODEL --problems gsm8k-test.jsonl [--count 240] [--tokens 128] [--dtype float32]
        [--engines transformers,vllm,llm,server] [--servers 1]

MODEL is a folder; ``random:30`` makes one of about 30 million parameters, with random weights and the tokenizer of the
folder given by ``--tokenizer``. ``llm`` is vLLM's own ``LLM.generate`` with all requests in one call, which is what
``vllm bench throughput`` times: the peer. ``server`` starts ``--servers`` of ``vllm serve`` on this machine and asks
all of them through this package.

Each engine is loaded first and makes a few completions; then the clock starts. CPU seconds are those of this process
and of all that it has started, servers included; on a machine with other work they say more than seconds do. Nothing
here passes or fails.
"""

import argparse
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

import psutil

from prefix_rl.data.tokenizer import encode_prompt, load_tokenizer
from prefix_rl.engines.base import Sampling, seed_of
from prefix_rl.engines.settings import EngineSettings


def random_model(millions: int, tokenizer: str, folder: Path) -> Path:
    """A Llama with heads of 64 and about so many parameters, half of them in the embedding."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    words = load_tokenizer(tokenizer)
    hidden = 64 * max(round(millions * 1e6 / 2 / len(words) / 64), 1)
    layer = 2 * hidden * hidden + 2 * hidden * hidden // 2 + 3 * hidden * 3 * hidden
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(words), hidden_size=hidden, intermediate_size=3 * hidden, num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64, num_hidden_layers=max(round(millions * 1e6 / 2 / layer), 1),
        max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None, eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    ))  # fmt: skip
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters")
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def cpu_seconds() -> float:
    """Of this process and all that it has started."""
    me = psutil.Process()
    spent = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
            spent += times.user + times.system + times.children_user + times.children_system
        except psutil.NoSuchProcess:
            continue
    return spent


def serve(model: Path, dtype: str, length: int, count: int) -> tuple[list[subprocess.Popen], list[str]]:
    """Servers that are up."""
    import httpx

    started, urls = [], []
    for _ in range(count):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        command = [
            Path(sys.executable).with_name("vllm"), "serve", model, "--host", "127.0.0.1", "--port", port,
            "--dtype", dtype, "--max-model-len", length, "--enforce-eager", "--no-enable-chunked-prefill",
        ]  # fmt: skip
        started.append(subprocess.Popen(
            list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_end_with_parent
        ))  # fmt: skip
        urls.append(f"http://127.0.0.1:{port}")
    for url in urls:
        while True:
            try:
                httpx.get(f"{url}/health", timeout=2).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(1)
    return started, urls


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokenizer")
    parser.add_argument("--problems", required=True)
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--engines", default="transformers,vllm,llm,server")
    parser.add_argument("--servers", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        model = given.model
        if model.startswith("random:"):
            model = random_model(int(model.partition(":")[2]), given.tokenizer, Path(made))
        measure(Path(model), given)


def measure(model: Path, given: argparse.Namespace) -> None:
    """Prints a line for each engine."""
    tokenizer = load_tokenizer(str(model))
    problems = [json.loads(line)["problem"] for line in Path(given.problems).read_text().split("\n") if line]
    prompts = [encode_prompt(problems[i % len(problems)], tokenizer) for i in range(given.count)]
    rows = (prompts, [given.tokens] * given.count, [seed_of("bench", i) for i in range(given.count)])
    length, stops = max(map(len, prompts)) + given.tokens, [tokenizer.eos_token_id]
    eager = EngineSettings("vllm", enforce_eager=True)
    for name in given.engines.split(","):
        servers = []
        if name == "transformers":
            from transformers import AutoModelForCausalLM

            from prefix_rl.engines.transformers import TransformersEngine

            loaded = AutoModelForCausalLM.from_pretrained(model, dtype=given.dtype).eval()
            engine = TransformersEngine(loaded, tokenizer, stops)
        elif name == "server":
            from prefix_rl.engines.server import ServerEngine

            servers, urls = serve(model, given.dtype, length, given.servers)
            settings = EngineSettings("server", endpoints=tuple(urls))
            engine = ServerEngine(settings, str(model), stops, tokenizer, length)
            name = f"server x {given.servers}"
        else:
            from prefix_rl.engines.vllm import VllmEngine

            engine = VllmEngine(str(model), stops, length, eager, dtype=given.dtype)
        engine.generate([[5, 6, 7]] * 4, [4] * 4, [1, 2, 3, 4], Sampling())
        began, before = time.perf_counter(), cpu_seconds()
        if name == "llm":
            import vllm

            asked = [vllm.SamplingParams(n=1, temperature=1.0, max_tokens=n, seed=seed, detokenize=False)
                     for _, n, seed in zip(*rows, strict=True)]  # fmt: skip
            found = engine._llm.generate([{"prompt_token_ids": ids} for ids in rows[0]], asked, use_tqdm=False)
            tokens = sum(len(output.outputs[0].token_ids) for output in found)
        else:
            tokens = sum(map(len, engine.generate(*rows, Sampling())))
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - before
        print(f"{name:14} {given.dtype:9} {tokens:7} tokens  {seconds:7.1f} s  {tokens / seconds:7.0f} tokens/s  "
              f"{cpu:7.1f} CPU s  {tokens / cpu:7.0f} tokens/CPU s", flush=True)  # fmt: skip
        engine.close()
        for server in servers:
            for child in psutil.Process(server.pid).children(recursive=True):
                child.terminate()
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
