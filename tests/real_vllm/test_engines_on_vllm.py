import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import pytest
from on_vllm import LENGTH, ROOT
from small import characters, dataset, write

from prefix_rl.data.traces import TraceStore
from prefix_rl.engines.base import Sampling, seed_of
from prefix_rl.engines.settings import EngineSettings

COUNT = 96


def engine_of_servers(tokenizer, *urls, **changes):
    from prefix_rl.engines.server import ServerEngine

    settings = EngineSettings("server", endpoints=urls, retry_wait=0.1, retries=3, max_in_flight=8)
    settings = replace(settings, **changes)
    return ServerEngine(settings, settings.served_model, [tokenizer.eos_token_id], tokenizer, LENGTH)


@pytest.fixture(scope="module")
def rows(tokenizer):
    """Prompts of different lengths, every third with a piece of a solution behind it; limits and seeds."""
    given = dataset(12)
    prompts, limits = [], []
    for i in range(COUNT):
        row = given[i % 12]
        prompts.append(tokenizer(row["prompt"])["input_ids"])
        if i % 3 == 0:
            prompts[-1] += tokenizer(row["demonstrations"][0])["input_ids"][: 3 + i % 7]
        limits.append(4 + 5 * (i % 7))
    return prompts, limits, [seed_of("test", i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def sampled(in_process, rows):
    """What the engine in this process samples of them."""
    return in_process.generate(*rows, Sampling())


def test_greedy_completions_are_those_of_transformers(in_process, rows, folder, tokenizer):
    from transformers import AutoModelForCausalLM

    from prefix_rl.engines.transformers import TransformersEngine

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    theirs = TransformersEngine(model, tokenizer).generate(*rows, Sampling(0.0))
    assert in_process.generate(*rows, Sampling(0.0)) == theirs
    assert len({tuple(ids) for ids in theirs}) > 20
    assert in_process.facts() == {"name": "vllm", "version": "0.30.0", "dtype": "float32"}


def test_samples_are_drawn_from_the_models_distribution(in_process, folder, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    prompt = tokenizer("3 + 3 = ?")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    expected = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    draws = in_process.generate([prompt] * 4000, [1] * 4000, [seed_of(i) for i in range(4000)], Sampling())
    counts = Counter(ids[0] for ids in draws)
    likely = expected.topk(5)
    for share, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        assert counts[token] / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_samples_depend_on_their_seed_alone(in_process, rows, sampled):
    order = random.Random(1).sample(range(COUNT), COUNT)
    whole, in_process.at_once = in_process.at_once, 5
    try:
        shuffled = in_process.generate(*([column[i] for i in order] for column in rows), Sampling())
    finally:
        in_process.at_once = whole
    assert [shuffled[order.index(i)] for i in range(COUNT)] == sampled
    assert all(len(ids) <= limit for ids, limit in zip(sampled, rows[1], strict=True))
    prompts, limits, seeds = rows
    others = in_process.generate(prompts, limits, [s + 1 for s in seeds], Sampling())
    assert sum(a != b for a, b in zip(others, sampled, strict=True)) > COUNT // 2  # the seed does matter


def test_a_group_shares_its_prompt_in_the_cache(in_process, tokenizer):
    block = in_process._engine.vllm_config.cache_config.block_size
    prompt = tokenizer("A prompt that no other test has. " * 30)["input_ids"][: LENGTH - 20]
    assert len(prompt) > block
    before = in_process.counts.cached_tokens
    in_process.generate([prompt] * 8, [4] * 8, list(range(8)), Sampling())
    # whole blocks, and never the last token: its logits are needed
    assert in_process.counts.cached_tokens - before == 7 * ((len(prompt) - 1) // block) * block


def test_servers_sample_what_the_engine_in_this_process_samples(servers, rows, sampled, tokenizer, folder):
    server, _ = servers(2)
    one = engine_of_servers(tokenizer, server.url, served_model=str(folder))
    assert one.generate(*rows, Sampling()) == sampled
    assert one.facts()["version"] == "0.30.0"
    assert one.counts.cached_tokens is not None
    one.close()


def test_a_server_with_another_tokenizer_or_a_shorter_context_is_refused(servers, tokenizer, folder, in_process):
    from prefix_rl.engines.server import ServerEngine
    from prefix_rl.errors import DataError

    server, _ = servers(2)
    settings = EngineSettings("server", endpoints=(server.url,))
    with pytest.raises(DataError, match=f"takes {LENGTH} tokens.*have {LENGTH + 1}"):
        ServerEngine(settings, str(folder), [1], tokenizer, LENGTH + 1)
    with pytest.raises(DataError, match="another tokenizer"):
        ServerEngine(settings, str(folder), [1], characters(), LENGTH)
    with pytest.raises(DataError, match="not 'another'"):
        ServerEngine(settings, "another", [1], tokenizer, LENGTH)


def test_adapters_are_sampled_as_if_they_were_merged(folder, tokenizer, rows, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from prefix_rl.engines.transformers import TransformersEngine
    from prefix_rl.engines.vllm import VllmEngine

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapters")
    merged = TransformersEngine(adapted.merge_and_unload().eval(), tokenizer).generate(*rows, Sampling(0.0))
    settings = EngineSettings("vllm", enforce_eager=True)
    stops = [tokenizer.eos_token_id]
    one = VllmEngine(str(folder), stops, LENGTH, settings, dtype="float32", adapters=str(tmp_path / "adapters"))
    assert one.generate(*rows, Sampling(0.0)) == merged
    one.close()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    assert TransformersEngine(plain, tokenizer).generate(*rows, Sampling(0.0)) != merged  # the adapters do matter


# --- commands ---------------------------------------------------------------------------------------------------------

QUIET = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(*arguments):
    return [sys.executable, "-c", "from prefix_rl.cli import main; main()", *map(str, arguments)]


def evaluate(folder, tmp_path, output, *more):
    return command("evaluate", folder, "--on", f"set={tmp_path / 'rows.jsonl'}", "--samples", 24,
                   "--max-completion-length", 60, "--output", output, "engine.enforce_eager=true",
                   "model.dtype=float32", *more)  # fmt: skip


def samples(output):
    from prefix_rl.evaluation.samples import read

    return sorted((r["problem"], r["index"], r["text"], r["outcome"]) for r in read(output / "samples" / "set"))


@pytest.fixture
def problems(tmp_path):
    given = [{"id": str(i), "problem": r["prompt"], "answer": r["answer"]} for i, r in enumerate(dataset(12))]
    write(tmp_path / "rows.jsonl", given)
    return tmp_path


def test_a_killed_evaluation_ends_with_the_same_samples_and_leaves_no_process(folder, problems):
    import psutil

    whole, cut = problems / "whole", problems / "cut"
    run = evaluate(folder, problems, whole, "--engine", "vllm")
    done = subprocess.run(run, env=QUIET, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stderr.splitlines()) < 15, done.stderr  # vLLM alone would say forty lines
    card = json.loads((whole / "evaluation.json").read_text())
    assert (card["engine"]["name"], card["engine"]["version"], card["engine"]["dtype"]) == ("vllm", "0.30.0", "float32")
    assert card["engine"]["prompt_tokens"] > card["engine"]["cached_tokens"]

    again = evaluate(folder, problems, cut, "--engine", "vllm", "--batch-size", 16)
    running = subprocess.Popen(again, env=QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tree = _killed_once_it_has_saved(running, cut / "samples" / "set")
    assert not [pid for pid in tree if psutil.pid_exists(pid)]
    assert 0 < len(samples(cut)) < len(samples(whole))
    assert subprocess.run(again, env=QUIET, capture_output=True).returncode == 0
    assert samples(cut) == samples(whole)


def _killed_once_it_has_saved(running, folder, signal_number=signal.SIGKILL, patience=5.0):
    """Kills a process once a part is there; the ids of it and of what it had started, given some seconds to end."""
    import psutil

    while running.poll() is None and not any(folder.glob("*.parquet")):
        time.sleep(0.02)
    tree = [running.pid, *(c.pid for c in psutil.Process(running.pid).children(recursive=True))]
    running.send_signal(signal_number)
    running.wait()
    until = time.monotonic() + patience
    while time.monotonic() < until and any(psutil.pid_exists(pid) for pid in tree):
        time.sleep(0.1)
    return tree


def test_collect_through_two_servers_gives_the_traces_of_one_process(servers, folder, problems):
    first, second = servers(2)
    recipe = [
        "collect", ROOT / "recipes" / "smoke" / "prefix_rft.yaml", f"model.name_or_path={folder}", "model.dtype=float32",
        f"data.train={problems / 'rows.jsonl'}", "data.prompt=plain", "training.max_completion_length=40",
        "engine.enforce_eager=true", "training.use_cpu=true", "training.bf16=false",
    ]  # fmt: skip
    stage = ["--k", 12, "--cap", 20]
    alone, together = problems / "alone", problems / "together"
    done = subprocess.run(
        command(*recipe, *stage, "--output", alone, "engine.name=vllm"), env=QUIET, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    through = command(*recipe, *stage, "--output", together, "engine.name=server",
                      f"engine.endpoints=[{first.url},{second.url}]")  # fmt: skip
    done = subprocess.run(through, env=QUIET, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

    def traces(store):
        found = [(t.problem_id, t.attempt, tuple(t.completion_ids), t.outcome) for t in TraceStore.open(store)]
        assert len(set(found)) == len(found) >= 12 * 12
        return sorted(found)

    assert traces(together) == traces(alone)
    facts = TraceStore.open(together).facts
    assert facts["engine"]["served_model"] == str(folder)
    assert "not its weights" in facts["engine"]["checked"]


def test_processes_share_an_evaluation_out(folder, problems):
    whole, shared = problems / "one", problems / "shared"
    done = subprocess.run(evaluate(folder, problems, whole, "--engine", "vllm"), env=QUIET, capture_output=True)
    assert done.returncode == 0
    launched = evaluate(folder, problems, shared, "--engine", "vllm")[3:]  # without python -c ...
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes/accelerate/cpu.yaml"),
              "--num_processes", "2", "--main_process_port", "0", "-m", "prefix_rl.evaluate", *launched[1:]]  # fmt: skip
    done = subprocess.run(launch, env=QUIET, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert samples(shared) == samples(whole)
    assert len(list((shared / "samples" / "set").glob("*.parquet"))) >= 2  # both have written


def test_trls_client_of_a_server_asks_for_each_row_on_its_own(servers, rows, sampled, tokenizer):
    from types import SimpleNamespace

    from test_seam_vllm import Alone
    from trl.generation.vllm_client import VLLMClient

    from prefix_rl.seam.vllm import Rows, each_row

    server, _ = servers(2)
    prompts, limits, seeds = rows
    limits = [limit * (i % 4 > 0) for i, limit in enumerate(limits)]  # every fourth is complete
    generation = SimpleNamespace(mode="server", vllm_client=VLLMClient(server.url, connection_timeout=10))
    with each_row(generation, Rows(limits, seeds), Alone()):
        found = generation.vllm_client.generate(
            prompts=prompts, n=1, max_tokens=LENGTH, generation_kwargs={"stop_token_ids": [tokenizer.eos_token_id]}
        )
    assert found["completion_ids"] == [ids * (i % 4 > 0) for i, ids in enumerate(sampled)]
    assert [len(logps) for logps in found["logprobs"]] == [len(ids) for ids in found["completion_ids"]]
    assert found["prompt_ids"] == prompts


def test_of_two_servers_one_is_killed_and_nothing_is_lost_or_twice(servers, rows, sampled, tokenizer, folder, capsys):
    prompts, limits, seeds = ([*column] * 4 for column in rows)
    first, second = servers(2)
    # left out at its first failure, so that the others may be done before or after the waits between tries; of few
    # requests at once both servers get some
    one = engine_of_servers(tokenizer, first.url, second.url, served_model=str(folder), retries=0, max_in_flight=8)
    complete = one._complete

    async def killing(endpoint, request):  # the moment is an event of the run, not a time of the clock
        found = await complete(endpoint, request)
        if endpoint.url == second.url and second.process.poll() is None:
            second.kill()  # with the other requests to it in flight, or answered: a fast machine answers them together
            found = await complete(endpoint, request)  # the first answer is lost with it, so that one request does fail
        return found

    one._complete = killing
    assert one.generate(prompts, limits, seeds, Sampling()) == sampled * 4
    one.close()
    assert second.process.poll() is not None
    assert "is left out" in capsys.readouterr().err
