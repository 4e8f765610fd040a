import importlib.metadata
import json
import shutil
import signal
import subprocess
import sys
import types
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import command
import pyarrow.parquet
import pytest
import torch
from examples import examples
from hypothesis import assume, given
from hypothesis import strategies as st
from small import byte_level_bpe, characters, dataset, policy
from transformers import GenerationConfig, TopPLogitsWarper

from prefix_rl.data.problems import Problem
from prefix_rl.data.tokenizer import Turn, encode_prompt, turn_of
from prefix_rl.engines.base import Engine, Sampling, seed_of, until_stop
from prefix_rl.engines.settings import EngineSettings
from prefix_rl.engines.transformers import TransformersEngine, draw
from prefix_rl.engines.vllm import VllmEngine
from prefix_rl.errors import DataError, RecipeError, StackError
from prefix_rl.evaluation import samples
from prefix_rl.evaluation.evaluate import evaluate, grade_again
from prefix_rl.evaluation.sampling import by_problem, jobs_of, prefixes_of, sample
from prefix_rl.evaluation.target import Target, find_target
from prefix_rl.lab.tiny import make_tiny
from prefix_rl.places import find
from prefix_rl.rewards.grading import Outcome, Verdict
from prefix_rl.rewards.workers import Grader
from prefix_rl.speed import generation

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def grader():
    made = Grader(workers=1)
    yield made
    made.close()


# --- sampling ---------------------------------------------------------------------------------------------------------


def problems(count=6):
    return [Problem(str(i), row["prompt"], row["answer"], tuple({"text": t} for t in row["demonstrations"]))
            for i, row in enumerate(dataset(count))]  # fmt: skip


def sampled(model, tokenizer, given, prompts, grader, **options):
    """`sample` of plain prompts."""
    asked = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    turn = turn_of(asked[0], tokenizer)
    return sample(TransformersEngine(model, tokenizer), tokenizer, turn, given, asked, grader, **options)


def drawn(grader, **changes):
    tokenizer = byte_level_bpe()
    found = problems()
    options = {"max_completion_length": 12, "batch_size": 4, **changes}
    return tokenizer, found, sampled(policy(tokenizer), tokenizer, found, [p.text for p in found], grader, **options)


def test_sampling_never_starts_from_a_prefix_unless_asked(grader):
    _, _, found = drawn(grader)
    assert all(s.prefix_tokens == 0 for s in found)
    assert [s.problem for s in found] == list(range(6))


def test_sampling_from_a_fraction_starts_from_the_demonstrations_tokens(grader):
    tokenizer, given, found = drawn(grader, prefix_fraction=0.3, max_completion_length=40)
    for s in found:
        tokens = tokenizer(given[s.problem].demonstrations[0]["text"], add_special_tokens=False)["input_ids"]
        assert 0 < s.prefix_tokens <= int(0.3 * len(tokens))
        assert s.completion_ids[: s.prefix_tokens] == tokens[: s.prefix_tokens]
        assert len(s.completion_ids) <= 40


def test_a_prefix_leaves_a_token_of_the_budget_to_the_policy():
    tokenizer, given = byte_level_bpe(), problems()[:1]
    whole = tokenizer(given[0].demonstrations[0]["text"], add_special_tokens=False)["input_ids"]
    for budget in (4, 5):
        assert prefixes_of(given, tokenizer, Turn(), 1.0, "none", budget) == [whole[: budget - 1]]


def test_completions_of_a_problem_are_counted_on_where_it_stands_again():
    asked = [Problem(name, "?", "1") for name in ("a", "b", "a", "c")]
    jobs = jobs_of(asked, [[1]] * 4, [[], [], [], None], samples=2)
    assert [(job.problem, job.index) for job in jobs] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 2), (2, 3)]


def test_the_grader_is_told_where_the_policys_own_text_begins():
    asked = []

    class Judge:
        def judge(self, samples, progress=None):
            asked.extend(samples)
            return [Verdict(Outcome.WRONG, "7", "box")] * len(samples)

    tokenizer, given, found = drawn(Judge(), prefix_fraction=0.3, max_completion_length=40)
    for s, (text, gold, start) in zip(found, asked, strict=True):
        assert (text, gold, start) == (s.text, given[s.problem].answer, s.start)
        assert text[:start] == tokenizer.decode(s.completion_ids[: s.prefix_tokens])
        assert start > 0
    assert {(s.outcome, s.answer, s.found_by) for s in found} == {(Outcome.WRONG, "7", "box")}


def test_the_same_seed_gives_the_same_samples_whatever_was_drawn_before(grader):
    torch.manual_seed(5)
    _, _, first = drawn(grader, samples=2)
    torch.manual_seed(6)
    _, _, second = drawn(grader, samples=2)
    _, _, other = drawn(grader, samples=2, seed=1)
    assert first == second != other
    assert [len(group) for group in by_problem(first)] == [2] * 6


def test_greedy_sampling_is_the_most_likely_token(grader):
    tokenizer, given, found = drawn(grader, temperature=0.0)
    model = policy(tokenizer)
    ids = tokenizer(given[0].text)["input_ids"] + found[0].completion_ids[:3]
    assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == found[0].completion_ids[3]


def test_padding_does_not_change_what_is_generated(grader):
    tokenizer = characters()
    model, given = policy(tokenizer), problems()
    prompts = [p.text + " " * (7 * i) for i, p in enumerate(given)]
    options = {"max_completion_length": 8, "temperature": 0.0}
    together = sampled(model, tokenizer, given, prompts, grader, batch_size=6, **options)
    apart = sampled(model, tokenizer, given, prompts, grader, batch_size=1, **options)
    assert [s.completion_ids for s in together] == [s.completion_ids for s in apart]


def test_a_completion_ends_at_its_first_stop():
    assert until_stop([1, 2, 9, 3, 9], [9]) == [1, 2, 9]
    assert until_stop([1, 2], [9]) == [1, 2]


# --- engines ----------------------------------------------------------------------------------------------------------


def test_the_share_of_uniform_numbers_that_draw_a_token_is_its_probability():
    # softmax of log [1, 2, 5, 2] = [0.1, 0.2, 0.5, 0.2], so u < 0.1 draws 0, u < 0.3 draws 1, u < 0.8 draws 2
    logits = torch.tensor([[1.0, 2.0, 5.0, 2.0]]).log().expand(1000, 4)
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    counts = torch.bincount(draw(logits, uniforms, Sampling()), minlength=4)
    assert counts.tolist() == [100, 200, 500, 200]
    # at temperature 0.5 the probabilities are squared: [1, 4, 25, 4] / 34
    counts = torch.bincount(draw(logits, uniforms, Sampling(temperature=0.5)), minlength=4)
    assert counts.tolist() == pytest.approx([1000 * p / 34 for p in (1, 4, 25, 4)], abs=1)


@given(logits=st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=12), top_p=st.floats(0.05, 0.99))
@examples(50)
def test_top_p_keeps_the_tokens_that_transformers_keeps(logits, top_p):
    logits = torch.tensor([logits])
    assume(logits.sort().values.diff().min() > 1e-3)  # of two alike either may be kept
    uniforms = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    ours = draw(logits.expand(400, -1), uniforms, Sampling(1.0, top_p))
    theirs = TopPLogitsWarper(top_p)(None, logits.double()).softmax(-1)[0]
    assert torch.bincount(ours, minlength=len(theirs)).div(400).tolist() == pytest.approx(theirs.tolist(), abs=0.011)


def test_a_completion_depends_on_its_seed_alone_not_on_its_batch():
    tokenizer = byte_level_bpe()
    engine = TransformersEngine(policy(tokenizer), tokenizer)
    prompts = [tokenizer(p.text)["input_ids"] for p in problems()]
    seeds = [seed_of(0, i) for i in range(6)]
    together = engine.generate(prompts, [10] * 6, seeds, Sampling())
    for i in (5, 0, 3):
        assert engine.generate([prompts[i]], [10], [seeds[i]], Sampling()) == [together[i]]
    assert engine.generate([prompts[0]] * 2, [10, 10], seeds[:2], Sampling())[1] != together[0]


def test_a_row_ends_at_its_own_limit_and_rows_that_have_ended_leave(monkeypatch):
    tokenizer = characters()
    model = policy(tokenizer)
    engine = TransformersEngine(model, tokenizer)
    prompts = [tokenizer(p.text + " " * i)["input_ids"] for i, p in enumerate(problems())]
    arguments = (prompts, [20, 20, 5, 20, 0, 1], [seed_of(3, i) for i in range(6)], Sampling())
    rows = []
    counting = model.register_forward_pre_hook(
        lambda _, args, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    made = engine.generate(*arguments)
    counting.remove()
    assert [len(ids) for ids in made][4:] == [0, 1]
    assert len(made[2]) <= 5
    assert any(5 < len(ids) < 20 for ids in made) or max(len(ids) for ids in made) == 20
    assert rows[-1] < 5
    # the model's own loop, in which all rows stay, gives the same
    monkeypatch.setattr(generation, "shared_prefill", lambda model: nullcontext())
    assert engine.generate(*arguments) == made


def test_a_prompt_is_encoded_once_for_all_its_samples():
    tokenizer = characters()
    model = policy(tokenizer)
    prompt = tokenizer(problems()[0].text)["input_ids"]
    shapes = []
    model.register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    made = TransformersEngine(model, tokenizer).generate([prompt] * 8, [4] * 8, list(range(8)), Sampling())
    assert shapes[0] == (1, len(prompt))
    assert len({tuple(ids) for ids in made}) > 1


def test_what_a_models_own_generation_config_says_does_not_count():
    tokenizer = byte_level_bpe()
    plain, odd = policy(tokenizer), policy(tokenizer)
    odd.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, repetition_penalty=5.0, temperature=9.0, top_k=1, do_sample=True
    )
    prompts = [tokenizer(p.text)["input_ids"] for p in problems()]
    made = [
        TransformersEngine(m, tokenizer).generate(prompts, [12] * 6, list(range(6)), Sampling()) for m in (plain, odd)
    ]
    assert made[0] == made[1]


@pytest.fixture
def vllm(monkeypatch):
    """A stand-in for vLLM: it says the prompt's length, then its seed, then the stop id, and goes on after that."""
    made = types.SimpleNamespace(loaded=[], asked=[], waiting=[])

    class LLM:
        def __init__(self, **options):
            made.loaded.append(options)
            dtype = types.SimpleNamespace(model_config=types.SimpleNamespace(dtype="torch.bfloat16"))
            self.llm_engine = types.SimpleNamespace(
                add_request=self.add, step=self.step, vllm_config=dtype, abort_request=lambda names: None,
                engine_core=types.SimpleNamespace(shutdown=lambda: None),
            )  # fmt: skip

        def add(self, name, prompt, parameters, lora_request):
            made.asked.append(parameters)
            made.waiting.append((name, prompt["prompt_token_ids"], parameters))

        def step(self):
            name, prompt, given = made.waiting.pop()  # the newest first
            ids = [len(prompt), given["seed"] % 100, given["stop_token_ids"][0], 7][: given["max_tokens"]]
            output = types.SimpleNamespace(token_ids=tuple(ids), finish_reason="stop")
            return [types.SimpleNamespace(request_id=name, finished=True, outputs=[output], num_cached_tokens=1)]

    def module(name, **content):
        made = types.ModuleType(name)
        made.__spec__ = types.SimpleNamespace(name=name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)

    platform = types.SimpleNamespace(is_cpu=lambda: False)
    module("vllm", LLM=LLM, SamplingParams=dict, __version__="0.30.0")
    module("vllm.platforms", current_platform=platform)
    module("vllm.sampling_params", RequestOutputKind=types.SimpleNamespace(FINAL_ONLY=2))
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.setenv(name, "set here so that it is taken back")
        monkeypatch.delenv(name)
    return made


def test_vllm_gets_token_ids_a_limit_and_a_seed_for_each_completion(vllm, capsys):
    settings = EngineSettings("vllm", tensor_parallel_size=2, gpu_memory_utilization=0.5)
    engine = VllmEngine("model", [99], 4096, settings, dtype="bfloat16")
    assert vllm.loaded == [
        {"model": "model", "max_model_len": 4096, "enable_prefix_caching": True, "dtype": "bfloat16", "revision": None,
         "tokenizer_revision": None, "tensor_parallel_size": 2, "gpu_memory_utilization": 0.5, "enforce_eager": False,
         "use_tqdm_on_load": False}
    ]  # fmt: skip
    assert "loading model into vLLM 0.30.0" in capsys.readouterr().err
    made = engine.generate([[1, 2], [3, 4, 5], [6]], [10, 2, 0], [11, 12, 13], Sampling(0.6, 0.9))
    assert made == [[2, 11, 99], [3, 12], []]  # one up to its stop, one cut at two tokens, one not asked for
    shared = {"n": 1, "temperature": 0.6, "top_p": 0.9, "top_k": -1, "stop_token_ids": [99], "detokenize": False,
              "output_kind": 2}  # fmt: skip
    assert vllm.asked == [{**shared, "max_tokens": 10, "seed": 11}, {**shared, "max_tokens": 2, "seed": 12}]
    assert (engine.counts.prompt_tokens, engine.counts.cached_tokens) == (5, 2)
    assert engine.facts() == {"name": "vllm", "version": "0.30.0", "dtype": "bfloat16"}


def test_a_completion_of_vllm_that_is_not_whole_is_not_taken_for_one(vllm):
    engine = VllmEngine("model", [99], 4096)
    vllm_step = engine._engine.step

    def broken():
        (output,) = vllm_step()
        output.outputs[0].token_ids, output.outputs[0].finish_reason = (5,), "abort"
        return [output]

    engine._engine.step = broken
    with pytest.raises(DataError, match=r"after 1 of 10 tokens \(reason: abort\)"):
        engine.generate([[1, 2]], [10], [11], Sampling())


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (["engine.name=transformers"], "float32"),
        (["engine.name=vllm"], "bfloat16"),  # it would rather not compute in float32
        (["engine.name=vllm", "model.dtype=float32"], "float32"),
        (["engine.name=server", "engine.endpoints=[http://a:1]"], None),  # the server may say it
    ],
)
def test_the_dtype_is_the_one_that_is_computed_in(tiny, options, dtype):
    from prefix_rl.engines.choice import known_of
    from prefix_rl.evaluation.target import DEFAULTS
    from prefix_rl.policy import Policy
    from prefix_rl.recipe import load_recipe

    recipe = load_recipe({"model": {"name_or_path": str(tiny)}, **DEFAULTS}, options)  # saved in float32
    assert known_of(Policy(recipe)).get("dtype") == dtype


def test_vllm_that_is_not_installed_is_said_before_anything_starts(tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)  # not there, whatever is installed
    with pytest.raises(StackError, match="vLLM is not installed"):
        evaluate(str(tiny), None, [*on(tmp_path), "engine.name=vllm"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_recipe_of_an_older_run_says_its_engine_in_another_place():
    from prefix_rl.recipe import load_recipe

    given = {"model": {"name_or_path": "m"}, "data": {"train": "d"}, "method": {"name": "dr_grpo"}, "output": {"dir": "o"},
             "evaluation": {"engine": "vllm"}}  # fmt: skip
    assert load_recipe(given).engine.name == "vllm"
    with pytest.raises(RecipeError, match=r"evaluation.engine: no such key"):
        load_recipe({**given, "engine": {"name": "server", "endpoints": ["http://a:1"]}})


# --- the command's function -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def on(tmp_path, count=6):
    """The overrides that evaluate on `count` small problems, whose ids are 0, 1, ..."""
    return [f"evaluation.on=[{a_set(tmp_path, count)}]", "evaluation.max_completion_length=2000"]


def a_set(tmp_path, count=6):
    return f"set={write_rows(tmp_path / 'rows.jsonl', [p.as_row() for p in problems(count)])}"


SHORT = "evaluation.max_completion_length=12"


class Scripted(Engine):
    """Takes the place of an engine: what it says depends on its seed, and is right one time in three or so."""

    stops = (2,)

    def __init__(self, tokenizer, fail_after=None, at_once=64):
        super().__init__()
        self.tokenizer, self.fail_after, self.asked, self.at_once, self.waiting = tokenizer, fail_after, 0, at_once, []

    def submit(self, request):
        self.waiting.append(request)

    def finished(self, timeout):
        if self.fail_after is not None and self.asked >= self.fail_after:
            raise KeyboardInterrupt
        self.asked += len(self.waiting)
        done, self.waiting = [(request, self.said(request)) for request in self.waiting], []
        return done

    def said(self, request):
        if request.seed % 5 == 0:
            return self.tokenizer("\\boxed{1}")["input_ids"]  # wrong, and without an end
        number = int(self.tokenizer.decode(request.prompt).split("user\n")[1].split(" ")[0])
        said = ["so \\boxed{%d}", "Let me see. I cannot tell.", "\\boxed{%d.0}"][request.seed % 3] % (
            (2 * number,) if request.seed % 3 != 1 else ()
        )
        return [*self.tokenizer(said)["input_ids"], 2][: request.limit]

    def facts(self):
        return {"name": "transformers", "version": importlib.metadata.version("transformers"), "dtype": "float32"}


@pytest.fixture
def scripted(monkeypatch, tiny):
    """The engines that evaluations made, newest last; `limit` makes the next one stop after so many completions."""
    made = types.SimpleNamespace(engines=[], limit=None)

    def engine(self):
        if "scripted" not in self.__dict__:
            self.scripted = Scripted(self.tokenizer, made.limit, self.recipe.at_once)
            made.engines.append(self.scripted)
        return self.scripted

    monkeypatch.setattr(Target, "engine", property(engine))
    return made


def rows(folder, name="set"):
    found = list(samples.read(folder / "samples" / name))
    return sorted(found, key=lambda r: (r["problem"], r["index"]))


def test_an_evaluation_says_what_was_measured_and_how(tmp_path, tiny, scripted):
    options = [*on(tmp_path), "evaluation.samples=4", "evaluation.k=[2, 4]", "evaluation.prefix_fractions=[0, 0.5]",
               "evaluation.seed=7", "training.max_completion_length=2000"]  # fmt: skip
    card = evaluate(str(tiny), None, options, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(card))
    found, made = card["benchmarks"]["set"], rows(tmp_path / "out")
    assert (found["problems"], found["samples"], len(made)) == (6, 4, 24)
    assert sum(found["outcomes"].values()) == 24
    assert set(found["outcomes"]) == {"right", "wrong", "no_answer"}
    assert found["accuracy"]["mean"] == sum(r["outcome"] == "right" for r in made) / 24 == card["accuracy"]["mean"]
    assert found["truncated_share"] == sum(r["truncated"] for r in made) / 24 > 0
    assert found["no_answer_share"] == sum(r["answer"] is None for r in made) / 24 > 0
    assert found["mean_completion_length"] == sum(r["tokens"] for r in made) / 24
    assert found["pass"].keys() == found["maj"].keys() == {"2", "4"}
    assert found["pass"]["4"]["mean"] == sum(n > 0 for n in found["right_by_problem"].values()) / 6
    assert found["accuracy_by_prefix_fraction"].keys() == {"0.5"}
    assert card["sampling"] == {
        "temperature": 0.6,
        "top_p": 1.0,
        "max_completion_length": 2000,
        "seed": 7,
        "batch_size": 64,
    }
    assert card["prompt"]["example"] == (
        "<|im_start|>user\n3 + 3 = ?\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert card["engine"]["name"] == "transformers"
    assert card["engine"]["version"] == card["versions"]["transformers"]
    assert card["grader"]["version"]
    assert card["benchmarks"]["set"]["file_sha256"]
    page = (tmp_path / "out" / "evaluation.md").read_text()
    for part in (card["prompt"]["example"], found["sha256"], card["prompt"]["chat_template_sha256"],
                 card["checkpoint"]["sha256_of_places"], f"{100 * card['accuracy']['mean']:.1f} %", "pass@4"):  # fmt: skip
        assert part in page


def test_a_benchmark_without_demonstrations_is_measured_without_fractions(tmp_path, tiny, scripted):
    bare = write_rows(tmp_path / "bare.jsonl", [{"problem": "3 + 3 = ?", "answer": "6"}])
    (both, length), fractions = on(tmp_path), "evaluation.prefix_fractions=[0.5]"
    card = evaluate(str(tiny), None, [both.replace("]", f", {bare}]"), length, fractions], tmp_path / "out")
    assert [len(b["accuracy_by_prefix_fraction"]) for b in card["benchmarks"].values()] == [1, 0]
    with pytest.raises(DataError, match="no problem to evaluate on has any"):
        evaluate(str(tiny), None, [f"evaluation.on=[{bare}]", length, fractions], tmp_path / "none")


def test_every_sample_is_kept_as_it_was_graded(tmp_path, tiny, scripted):
    evaluate(str(tiny), None, [*on(tmp_path), "evaluation.samples=3"], tmp_path / "out")
    made = rows(tmp_path / "out")
    assert [(r["problem"], r["index"]) for r in made] == [(str(i), k) for i in range(6) for k in range(3)]
    for r in made:
        assert r["gold"] == str(2 * (int(r["problem"]) + 3))
        assert (r["answer"] is None) == (r["outcome"] == "no_answer") == ("boxed" not in r["text"])
        assert r["truncated"] == (r["text"] == "\\boxed{1}")


def test_an_evaluation_that_was_stopped_goes_on_where_it_was(tmp_path, tiny, scripted, capsys):
    options = [*on(tmp_path), "evaluation.samples=4", "evaluation.batch_size=5"]
    evaluate(str(tiny), None, options, tmp_path / "whole")
    scripted.limit = 10
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(tiny), None, options, tmp_path / "cut")
    assert "the same command goes on" in capsys.readouterr().err
    assert len(rows(tmp_path / "cut")) == 10
    (tmp_path / "cut" / "samples" / "set" / "00002.partial").write_bytes(b"half a file")
    scripted.limit = None
    card = evaluate(str(tiny), None, options, tmp_path / "cut")
    assert scripted.engines[-1].asked == 14
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert card["benchmarks"] == json.loads((tmp_path / "whole" / "evaluation.json").read_text())["benchmarks"]


def test_a_finished_evaluation_loads_nothing_and_more_samples_add_to_it(tmp_path, tiny, scripted):
    options = [*on(tmp_path), "evaluation.samples=2"]
    first = evaluate(str(tiny), None, options, tmp_path / "out")
    again = evaluate(str(tiny), None, options, tmp_path / "out")
    assert len(scripted.engines) == 1
    assert again["benchmarks"] == first["benchmarks"]
    evaluate(str(tiny), None, [*on(tmp_path), "evaluation.samples=5"], tmp_path / "out")
    assert scripted.engines[-1].asked == 18  # 3 more of 6 problems
    fewer = evaluate(str(tiny), None, options, tmp_path / "out")
    assert fewer["benchmarks"] == first["benchmarks"]


def test_samples_of_other_settings_are_set_aside_and_named(tmp_path, tiny, scripted, capsys):
    evaluate(str(tiny), None, [*on(tmp_path)], tmp_path / "out")
    before = rows(tmp_path / "out")
    evaluate(str(tiny), None, [*on(tmp_path), "evaluation.temperature=0.9"], tmp_path / "out")
    assert "temperature: 0.6 then, 0.9 now" in capsys.readouterr().err
    assert rows(tmp_path / "out" / "earlier-1") == before
    assert (tmp_path / "out" / "earlier-1" / "evaluation.json").exists()
    assert len(rows(tmp_path / "out")) == 6


def test_other_weights_of_the_same_size_are_another_policy(tmp_path, scripted, capsys):
    folder = make_tiny(tmp_path / "model", seed=0)
    evaluate(str(folder), None, [*on(tmp_path)], tmp_path / "out")
    make_tiny(folder, seed=1)
    evaluate(str(folder), None, [*on(tmp_path)], tmp_path / "out")
    assert "checkpoint: " in capsys.readouterr().err
    assert (tmp_path / "out" / "earlier-1").is_dir()


def test_samples_of_another_prompt_are_not_taken_for_samples_of_this_one(tmp_path, tiny, scripted):
    evaluate(str(tiny), None, [*on(tmp_path)], tmp_path / "out")
    evaluate(str(tiny), None, [*on(tmp_path), "data.instruction= Go!"], tmp_path / "out")
    assert scripted.engines[-1].asked == 6
    assert len(rows(tmp_path / "out")) == 12


def test_a_corrected_answer_is_graded_again_and_nothing_sampled(tmp_path, tiny, scripted, capsys):
    given_data = on(tmp_path)
    before = evaluate(str(tiny), None, [*given_data, "evaluation.samples=4"], tmp_path / "out")["benchmarks"]["set"]
    given = [p.as_row() for p in problems()]
    given[0]["answer"] = "1"  # what the truncated samples say
    write_rows(tmp_path / "rows.jsonl", given)
    after = evaluate(str(tiny), None, [*given_data, "evaluation.samples=4"], tmp_path / "out")["benchmarks"]["set"]
    assert len(scripted.engines) == 1
    assert "graded 4 samples of an earlier call again" in capsys.readouterr().err
    assert after["sha256"] != before["sha256"]
    ones = sum(r["text"] == "\\boxed{1}" for r in rows(tmp_path / "out") if r["problem"] == "0")
    assert after["right_by_problem"] == before["right_by_problem"] | {"0": ones}


def test_grading_again_needs_no_model_and_counts_what_changed(tmp_path, scripted):
    model = make_tiny(tmp_path / "model")
    folder = tmp_path / "out"
    before = evaluate(str(model), None, [*on(tmp_path), "evaluation.samples=4"], folder)["benchmarks"]["set"]
    shutil.rmtree(model)
    card, changes = grade_again(folder)
    assert card["benchmarks"]["set"] == json.loads(json.dumps(before))
    assert all(a == b for a, b in changes)
    assert changes.total() == 24
    path = folder / "samples" / "set" / "00000.parquet"  # what an older grader would have left
    older = [{**r, "outcome": "wrong", "grader": "0"} for r in pyarrow.parquet.read_table(path).to_pylist()]
    samples._write(path, older)
    right = sum(before["right_by_problem"].values())
    card, changes = grade_again(folder, [2])
    assert changes["wrong", "right"] == right > 0
    assert card["benchmarks"]["set"]["accuracy"] == json.loads(json.dumps(before["accuracy"]))
    assert card["benchmarks"]["set"]["pass"].keys() == {"2"}
    assert "graded_again" in json.loads((folder / "evaluation.json").read_text())


def test_an_evaluation_with_vllm_gives_it_the_context_that_it_needs(tmp_path, tiny, vllm):
    card = evaluate(str(tiny), None, [*on(tmp_path), "engine.name=vllm", "model.dtype=bfloat16"], tmp_path / "out")
    (loaded,) = vllm.loaded
    assert (loaded["model"], loaded["dtype"]) == (str(tiny), "bfloat16")
    assert loaded["revision"] is None
    assert loaded["max_model_len"] == 2000 + len(card["prompt"]["example"].encode()) - 2 * 11 - 9  # an id a byte
    assert len({s["seed"] for s in vllm.asked}) == 6
    assert all(s["stop_token_ids"] == [2] for s in vllm.asked)
    assert card["engine"]["name"] == "vllm"
    assert len(rows(tmp_path / "out")) == 6


def test_a_gpu_that_is_too_small_and_a_disk_that_is_full_are_explained(tmp_path, tiny, scripted, monkeypatch):
    def fails(*_, **__):
        raise torch.OutOfMemoryError

    tokenizer = byte_level_bpe()
    engine = TransformersEngine(policy(tokenizer), tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "generate", fails)
        with pytest.raises(
            DataError, match=r"not enough memory for 6 completions of up to 2000 tokens.*smaller --batch-size"
        ):
            engine.generate([[5]] * 6, [2000] * 6, [0] * 6, Sampling())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet, "write_table", full)
        with pytest.raises(DataError, match=r"No space left on device.*the same command goes on"):
            evaluate(str(tiny), None, on(tmp_path), tmp_path / "out")
    assert evaluate(str(tiny), None, on(tmp_path), tmp_path / "out")["accuracy"]["problems"] == 6


def test_two_processes_do_not_write_into_one_folder(tmp_path, tiny, scripted):
    with samples.opened(tmp_path / "out"), pytest.raises(DataError, match="another process is evaluating"):
        evaluate(str(tiny), None, [*on(tmp_path)], tmp_path / "out")


def test_a_sampling_that_is_killed_ends_with_the_samples_of_one_that_was_not(tmp_path, tiny):
    set_ = a_set(tmp_path, 8)
    # Killed when it has written the fourth file of four samples each
    program = """
import os, signal
from prefix_rl.cli import main
from prefix_rl.evaluation import samples
write = samples._write
def killed(path, rows):
    write(path, rows)
    if path.name == "00003.parquet":
        os.kill(os.getpid(), signal.SIGKILL)
samples._write = killed
main()
"""
    options = [
        "evaluate",
        str(tiny),
        "--on",
        set_,
        "--samples",
        "8",
        "--max-completion-length",
        "40",
        "--batch-size",
        "4",
    ]

    killed = subprocess.run([sys.executable, "-c", program, *options, "--output", str(tmp_path / "killed")], cwd=tmp_path,
                            capture_output=True, text=True)  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert len(rows(tmp_path / "killed")) == 16
    for folder in ("killed", "whole"):
        done = command.prefix_rl(*options, "--output", str(tmp_path / folder), cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")
    assert len({r["text"] for r in rows(tmp_path / "whole")}) > 32


def recipe_for(tmp_path, tiny, **evaluation):
    write_rows(tmp_path / "rows.jsonl", [p.as_row() for p in problems()])
    recipe = tmp_path / "eval.yaml"
    recipe.write_text(json.dumps({
        "model": {"name_or_path": str(tiny), "attn_implementation": "eager", "revision": "v1", "dtype": "float32"},
        "data": {"train": str(tmp_path / "rows.jsonl")}, "method": {"name": "dr_grpo"},
        "training": {"max_completion_length": 16, "use_cpu": True},
        "evaluation": {"data": str(tmp_path / "rows.jsonl"), **evaluation}, "output": {"dir": str(tmp_path / "run")},
    }))  # fmt: skip
    return recipe


def test_a_policy_is_not_evaluated_on_what_it_was_trained_on(tmp_path, tiny):
    recipe = recipe_for(tmp_path, tiny)
    run = tmp_path / "run"
    shutil.copytree(tiny, run / "final")
    shutil.copy(recipe, run / "recipe.yaml")
    with pytest.raises(DataError, match=r"was trained on problems of what(.|\n)*rows: 6 of its 6 problems"):
        evaluate(str(run), None, [], tmp_path / "out")
    assert evaluate(str(run), None, ["evaluation.allow_overlap=true"], tmp_path / "out")["benchmarks"]["rows"]


def test_a_recipe_and_options_say_the_same_thing_twice(tmp_path, tiny, scripted):
    recipe = str(recipe_for(tmp_path, tiny, samples=2, temperature=0.6))
    by_recipe = evaluate(str(tiny), recipe, [], tmp_path / "a")
    given = ["evaluation.samples=2", "evaluation.max_completion_length=16", "data.instruction=''", "model.dtype=float32",
             "model.attn_implementation=eager", f"evaluation.on=[rows={tmp_path / 'rows.jsonl'}]"]  # fmt: skip
    by_options = evaluate(str(tiny), None, given, tmp_path / "b")
    assert by_recipe["benchmarks"] == by_options["benchmarks"]
    assert by_recipe["sampling"] == by_options["sampling"]


def test_the_model_is_loaded_as_the_recipe_says(tmp_path, tiny, monkeypatch):
    import transformers

    asked = []
    load = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM, "from_pretrained", lambda path, **o: asked.append(o) or load(path, **o)
    )
    evaluate(str(tiny), str(recipe_for(tmp_path, tiny)), [], tmp_path / "out")
    assert asked == [{"revision": "v1", "dtype": "float32", "attn_implementation": "eager"}]


def test_results_go_where_they_belong(tmp_path, tiny, monkeypatch):
    run = tmp_path / "run"
    for name in ("final", "checkpoint-4"):
        shutil.copytree(tiny, run / name)
    shutil.copy(recipe_for(tmp_path, tiny), run / "recipe.yaml")
    assert find(run).path == str(run / "final")
    assert find_target(str(run), None, [])[1] == run
    assert find_target(str(run / "final"), None, [])[1] == run
    assert find_target(str(run / "checkpoint-4"), None, [])[1] == run / "evaluations" / "checkpoint-4"
    assert find_target("org/model", None, ["evaluation.on=[math500]"])[1] == Path("runs/evaluations/org--model")


@pytest.mark.parametrize(
    ("target", "overrides", "error", "message"),
    [
        ("tiny", ["evaluation.data=null"], RecipeError, "name nothing to evaluate on"),
        ("/nowhere", [], DataError, "there is no folder /nowhere"),
        ("tiny", ["evaluation.data=/no.jsonl"], DataError, "there is no file"),
        ("tiny", ["evaluation.on=[math50]"], DataError, "did you mean math500"),
        ("tiny", ["evaluation.k=[2]"], DataError, r"k = 2 is larger than .* \(1 of rows\); draw more with --samples 2"),
        (
            "tiny",
            ["evaluation.max_completion_length=4095"],
            RecipeError,
            "evaluation.max_completion_length = 40[0-9][0-9] fits for all",
        ),
        ("tiny", ["evaluation.samples=2", "evaluation.temperature=0"], RecipeError, "the same completion every time"),
        ("tiny", ["evaluation.top_p=0"], RecipeError, r"a number in \(0, 1\]"),
        ("tiny", ["evaluation.benchmarks=/no"], DataError, "there is no folder /no"),
    ],
)
def test_what_cannot_be_evaluated_is_explained(tmp_path, tiny, target, overrides, error, message):
    target = str(tiny) if target == "tiny" else target
    with pytest.raises(error, match=message):
        evaluate(target, str(recipe_for(tmp_path, tiny)), overrides, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bare_model_needs_to_be_told_what_to_be_measured_on(tiny):
    with pytest.raises(RecipeError, match=r"name benchmarks or a file with --on .* or give a recipe with --config"):
        evaluate(str(tiny))


def test_a_checkpoint_without_a_chat_template_is_told_what_to_pass(tmp_path, tiny):
    folder = tmp_path / "base"
    shutil.copytree(tiny, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(RecipeError, match=r"has no chat template.*data\.prompt=plain.*model\.chat_template=FILE"):
        evaluate(str(folder), None, [*on(tmp_path), SHORT], tmp_path / "out")
    card = evaluate(str(folder), None, [*on(tmp_path), SHORT, "data.prompt=plain"], tmp_path / "out")
    assert card["prompt"]["example"].startswith("3 + 3 = ?\nPlease reason")
    (tmp_path / "t.jinja").write_text("{% for m in messages %}Q: {{ m.content }}\nA:{% endfor %}")
    option = f"model.chat_template={tmp_path / 't.jinja'}"
    card = evaluate(str(folder), None, [*on(tmp_path), SHORT, option, "data.instruction=''"], tmp_path / "other")
    assert card["prompt"]["example"] == "Q: 3 + 3 = ?\nA:"


def test_a_checkpoint_without_a_tokenizer_is_named(tmp_path, tiny):
    (tmp_path / "weights").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny / name, tmp_path / "weights" / name)
    with pytest.raises(DataError, match="no tokenizer could be loaded from"):
        evaluate(str(tmp_path / "weights"), None, [*on(tmp_path), SHORT], tmp_path / "out")


def test_the_command_prints_a_table_and_compares(tmp_path, tiny):
    prefix_rl = partial(command.prefix_rl, cwd=tmp_path)
    set_ = a_set(tmp_path)
    options = [
        "--on",
        set_,
        "--samples",
        "2",
        "--k",
        "2",
        "--max-completion-length",
        "8",
        "--top-p",
        "0.9",
        "--seed",
        "3",
    ]
    done = prefix_rl("evaluate", str(tiny), *options, "--output", "a")
    assert done.returncode == 0, done.stderr
    head, line = (row.split("  ") for row in done.stdout.splitlines()[1:3])
    assert [h.strip() for h in head if h.strip()] == [
        "benchmark", "problems", "samples", "avg", "pass@2", "maj@2", "truncated", "no answer", "tokens"
    ]  # fmt: skip
    assert line[0] == "set"
    card = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert (card["sampling"]["top_p"], card["sampling"]["seed"]) == (0.9, 3)
    done = prefix_rl("evaluate", "a", "--regrade")
    assert "0 of 12 verdicts changed" in done.stdout
    assert prefix_rl("evaluate", "a", "--regrade", "--seed", "1", "--k", "0").returncode == 2
    done = prefix_rl("compare", "a", "a", "--output", "difference.json")
    assert done.returncode == 0, done.stderr
    assert "no difference measured" in done.stdout
    assert json.loads((tmp_path / "difference.json").read_text())["mean"]["mean"] == 0
    assert prefix_rl("compare", "a", "nowhere").returncode == 2
