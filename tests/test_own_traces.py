"""Methods that live on the policy's own traces (UPFT, RFT): what is sampled, what is learned of it, and without answers."""

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from safetensors.torch import load_file
from small import byte_level_bpe, policy, with_chat_template, write
from test_collect import fails, files

from prefix_rl.collecting.collect import collect, import_file
from prefix_rl.collecting.summary import collect_main_table
from prefix_rl.data.attach import attach
from prefix_rl.data.difficulty import load_pass_rates
from prefix_rl.data.problems import Problem, load
from prefix_rl.data.traces import CUT, UNGRADED, Account, Trace, TraceStore, tokenizer_sha256
from prefix_rl.errors import DataError, RecipeError, UserError
from prefix_rl.methods.base import Method
from prefix_rl.methods.rft import RFT
from prefix_rl.methods.stage import Excerpt
from prefix_rl.methods.upft import UPFT
from prefix_rl.policy import Policy
from prefix_rl.prefixes import Demonstration
from prefix_rl.recipe import load_recipe, load_run, training_data
from prefix_rl.rewards.workers import Grader
from prefix_rl.supervised import rows
from prefix_rl.train import train

LAB = Path(__file__).parents[1] / "recipes" / "lab"
TOKENIZER = byte_level_bpe()
EOS = TOKENIZER.eos_token_id
DEMONSTRATIONS = [Demonstration((i, i), safe_length=1, stop=1) for i in range(4)]


# --- which traces, and how much of them -------------------------------------------------------------------------------


def test_of_a_tenth_of_the_problems_the_whole_trace_is_learned():
    method, ids = UPFT(tokens=8, instruction="!"), [f"p{i}" for i in range(4000)]
    whole = {i for i in ids if method.excerpt(i, seed=3) == Excerpt()}
    assert all(method.excerpt(i, seed=3) == Excerpt(8, "!") for i in ids if i not in whole)
    assert abs(len(whole) / 4000 - 0.1) < 4 * (0.1 * 0.9 / 4000) ** 0.5  # four standard deviations
    assert whole != {i for i in ids if method.excerpt(i, seed=4) == Excerpt()}
    assert whole < {
        i for i in ids if UPFT(full_share=0.3).excerpt(i, seed=3) == Excerpt()
    }  # more of them, the same ones
    assert not any(UPFT(full_share=0).excerpt(i, 3) == Excerpt() for i in ids)
    assert all(UPFT(full_share=1).excerpt(i, 3) == Excerpt() for i in ids)


def test_upft_learns_the_first_trace_and_the_others_all():
    assert list(UPFT().lessons("a", DEMONSTRATIONS, 0)) == DEMONSTRATIONS[:1]
    assert list(UPFT().lessons("a", (), 0)) == []
    assert (
        Method().stages.lessons("a", DEMONSTRATIONS, 0) == list(RFT().lessons("a", DEMONSTRATIONS, 0)) == DEMONSTRATIONS
    )
    assert Method().stages.excerpt("a", 0) == RFT().excerpt("a", 0) == Excerpt()


def test_rft_draws_at_most_so_many_traces_of_a_problem():
    drawn = [tuple(RFT(per_problem=2).lessons(f"p{i}", DEMONSTRATIONS, 0)) for i in range(3000)]
    for i, two in enumerate(drawn[:100]):
        three = list(RFT(per_problem=3).lessons(f"p{i}", DEMONSTRATIONS, 0))
        assert len(two) == 2
        assert [d for d in DEMONSTRATIONS if d in three] == three  # in the order of the store
        assert set(two) < set(three)
    for demonstration in DEMONSTRATIONS:  # each is among the two with probability 1/2; four standard deviations
        assert abs(sum(demonstration in two for two in drawn) / 3000 - 0.5) < 4 * 0.5 / 3000**0.5
    assert drawn != [tuple(RFT(per_problem=2).lessons(f"p{i}", DEMONSTRATIONS, 1)) for i in range(3000)]
    assert len(RFT(per_problem=9).lessons("a", DEMONSTRATIONS, 0)) == 4


def test_settings_that_leave_nothing_to_do_are_explained():
    training = {"max_completion_length": 8}
    assert "tokens = 8 is not below training.max_completion_length = 8" in UPFT(tokens=8).faults(training)[0]
    assert UPFT(tokens=7).faults(training) == RFT().faults(training) == []
    for name in ("upft", "rft"):
        with pytest.raises(RecipeError, match="epochs = 0 leaves nothing to do"):
            load_recipe(LAB / f"{name}.yaml", ["method.supervised.epochs=0"])


# --- rows -------------------------------------------------------------------------------------------------------------

TEXTS = ["so 1 + 1 is", "two", "I do not know what that is"]


def given(*changes):
    """Three problems with a trace each, as a store hands them out."""
    ids = [TOKENIZER(text)["input_ids"] for text in TEXTS]
    return [
        Problem(f"p{i}", f"{i} + {i} = ?", "", ({"text": TEXTS[i], "ids": ids[i], **more},))
        for i, more in enumerate(changes or ({}, {}, {}))
    ]


def made(method, problems, tokenizer=TOKENIZER, *overrides):
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        policy(tokenizer).save_pretrained(folder)
        recipe = load_recipe(LAB / "upft.yaml", [f"method={json.dumps(method)}", "training.max_completion_length=40",
                                                "data.train=x.jsonl", f"model.name_or_path={folder}",
                                                *overrides])  # fmt: skip
        found = rows(Policy(recipe), problems)
    return list(zip(found["input_ids"], found["labels"], strict=True))


def test_a_lesson_is_the_first_tokens_behind_the_prompt_with_its_instruction():
    long, short, _ = (TOKENIZER(text)["input_ids"] for text in TEXTS)
    tokens = len(short) + 1
    assert len(long) > tokens
    upft = {"name": "upft", "tokens": tokens, "full_share": 0, "instruction": " Begin."}
    found = made(upft, given({}, {}, {"ended": False}))
    for i, completion in enumerate([long[:tokens], [*short, EOS], TOKENIZER(TEXTS[2])["input_ids"][:tokens]]):
        prompt = TOKENIZER(f"{i} + {i} = ? Begin.")["input_ids"]
        assert found[i] == (prompt + completion, [-100] * len(prompt) + completion)
    # exactly as long as the lesson: its end lies beyond
    assert made({**upft, "tokens": len(short)}, given())[1][0][-len(short) :] == short
    # in full, with the normal prompt; what nothing ended has no end
    for i, (ids, labels) in enumerate(made({**upft, "full_share": 1}, given({}, {}, {"ended": False}))):
        prompt, whole = TOKENIZER(f"{i} + {i} = ?")["input_ids"], TOKENIZER(TEXTS[i])["input_ids"]
        whole = whole if i == 2 else [*whole, EOS]
        assert (ids, labels) == (prompt + whole, [-100] * len(prompt) + whole)


def test_the_instruction_stands_in_the_users_turn_behind_that_of_the_data():
    tokenizer = with_chat_template()
    upft = {"name": "upft", "tokens": 2, "full_share": 0, "instruction": " Begin."}
    ((ids, labels), *_) = made(upft, given(), tokenizer, "data.prompt=chat", "data.instruction=' Box it.'")
    assert tokenizer.decode([i for i, label in zip(ids, labels, strict=True) if label == -100]) == (
        "<|user|>0 + 0 = ? Box it. Begin.<|end|><|assistant|>"
    )
    ((plain, _), *_) = made({**upft, "instruction": ""}, given(), tokenizer, "data.prompt=chat")
    assert tokenizer.decode(plain[:-2]) == "<|user|>0 + 0 = ?<|end|><|assistant|>"


def test_rft_on_all_traces_is_sft_on_them_and_so_is_upft_in_full_with_labels():
    problems = [Problem("a", "1 + 1 = ?", "2", tuple({"text": text} for text in TEXTS)), *given()]
    assert made({"name": "rft"}, problems) == made({"name": "sft"}, problems)
    assert len(made({"name": "rft", "per_problem": 1}, problems)) == 4
    first = [Problem("a", "1 + 1 = ?", "2", ({"text": TEXTS[0]},)), *given()]
    assert made({"name": "upft", "full_share": 1, "label_filter": True}, problems) == made({"name": "sft"}, first)


# --- traces as lessons ------------------------------------------------------------------------------------------------


def trace(number, text="so it is 1", outcome=UNGRADED, **changes):
    problem = PROBLEMS[number]
    ids = TOKENIZER(text)["input_ids"]
    ended = outcome != CUT and not changes.get("truncated")
    fields = {"problem_id": problem.id, "problem": problem.text, "answer": problem.answer, "attempt": 0, "source": "policy",
              "text": text, "completion_ids": [*ids, EOS] if ended else ids, "prompt_tokens": 10, "outcome": outcome,
              "truncated": False, "flops": 1.0}  # fmt: skip
    return Trace(**{**fields, **changes})


PROBLEMS = [Problem("a", "6 * 7?", ""), Problem("b", "1 + 1?", ""), Problem("c", "2 + 1?", "")]


def store_of(folder, *traces):
    store = TraceStore.create(folder, {"tokenizer_sha256": tokenizer_sha256(TOKENIZER)})
    store.append(traces)
    return store


def test_a_method_without_answers_takes_traces_whatever_they_came_to(tmp_path):
    store = store_of(
        tmp_path / "s", trace(0, attempt=1, outcome="right"), trace(0, text="first", outcome="wrong"),
        trace(1, text="cut off", outcome=CUT), trace(2, text="too long", truncated=True),
    )  # fmt: skip
    a, b, c = attach(PROBLEMS, store, method=UPFT(tokens=1, full_share=0))
    assert [d["text"] for d in a.demonstrations] == ["first", "so it is 1"]
    assert b.demonstrations == ({"text": "cut off", "ids": TOKENIZER("cut off")["input_ids"], "ended": False},)
    assert c.demonstrations == ({"text": "too long", "ids": TOKENIZER("too long")["input_ids"], "ended": False},)
    # with labels the right ones only
    filtered = attach(PROBLEMS, store, method=UPFT(label_filter=True))
    assert [len(p.demonstrations) for p in filtered] == [1, 0, 0]
    sampled, _ = store.accounts()
    assert (sampled.ungraded, sampled.right, sampled.truncated) == (2, 1, 1)  # a trace that was cut is not truncated
    assert [t.reward for t in store] == [1.0, 0.0, None, None]


def test_answers_are_compared_only_where_they_are_needed(tmp_path):
    store = store_of(tmp_path / "s", trace(0, answer="42", outcome="right"))
    assert attach(PROBLEMS, store, method=UPFT())[0].demonstrations
    with pytest.raises(DataError, match="a: the answer is '42' in the store, '' in the data"):
        attach(PROBLEMS, store)
    with pytest.raises(DataError, match=r"the problem is '6 \* 7\?' in the store, '7 \* 6\?' in the data"):
        attach([Problem("a", "7 * 6?", "")], store, method=UPFT())


def test_traces_that_were_cut_too_short_or_not_graded_are_refused(tmp_path):
    text = "so 1 + 1 is two"
    count = len(TOKENIZER(text)["input_ids"])
    store = store_of(tmp_path / "s", trace(0, text=text, outcome=CUT))
    assert attach(PROBLEMS, store, method=UPFT(tokens=count, full_share=0))[0].demonstrations
    for method, wanted in ((UPFT(tokens=count + 1, full_share=0), count + 1), (UPFT(full_share=1), "whole")):
        with pytest.raises(DataError, match=f"shorter lessons.*\n.*a: cut after {count} tokens, wanted {wanted}"):
            attach(PROBLEMS, store, method=method)
    with pytest.raises(DataError, match="holds no right trace; its own were not graded"):
        attach(PROBLEMS, store)
    with pytest.raises(DataError, match="were not graded, so they say nothing of pass rates"):
        load_pass_rates(str(tmp_path / "s"))


# --- data without answers ---------------------------------------------------------------------------------------------


def test_a_file_without_answers_is_read_where_none_are_needed(tmp_path):
    path = write(
        tmp_path / "q.jsonl", [{"problem": "a"}, {"problem": "b", "answer": None}, {"problem": "c", "answer": 3}]
    )
    assert [p.answer for p in load(path, answers=False)] == ["", "", "3"]
    with pytest.raises(DataError) as error:
        load(path)
    assert [p.partition(": ")[2] for p in error.value.faults] == [
        "no column 'answer'; there are 'problem'", "answer is null, not a text"
    ]  # fmt: skip
    broken = write(tmp_path / "b.jsonl", [{"question": "a"}, {"problem": "b", "answer": [1]}])
    with pytest.raises(DataError) as error:
        load(broken, answers=False)
    assert len(error.value.faults) == 2


@pytest.mark.parametrize("name", ["rft", "sft", "dr_grpo", "prefix_rl"])
def test_for_every_other_method_answers_must_be_there(tmp_path, name):
    path = write(tmp_path / "q.jsonl", [{"problem": "a"}])
    with pytest.raises(RecipeError) as error:
        load_run(LAB / f"{name}.yaml", [f"data.train={path}", "data.traces=null"])
    assert "no column 'answer'" in str(error.value)
    with pytest.raises(UserError, match="no column 'answer'"):
        collect(LAB / f"{name}.yaml", [f"data.train={path}"], tmp_path / "s")


@pytest.mark.parametrize("name", ["rft", "upft"])
def test_demonstrations_from_elsewhere_are_refused(name):
    with pytest.raises(RecipeError) as error:
        load_run(LAB / f"{name}.yaml", ["data.traces=null"])
    (fault,) = error.value.faults
    assert fault.startswith(f"data.traces is missing: method {name} learns from traces of the policy's own")
    assert "prefix-rl collect RECIPE --output FOLDER" in fault


# --- from questions to a policy ---------------------------------------------------------------------------------------

# Three additions modulo 3: a solution has 3 totals, a box of 7 words and the end, so 11 tokens
SMALL = ["data.lab.slots=3", "data.lab.modulus=3", "data.lab.operations=1", "data.lab.slip_small=0.1",
         "data.lab.slip_large=0.9", "data.lab.base_steps=300", "data.lab.problems=24", "data.lab.held_out=8",
         "training.max_completion_length=12", "training.eval_strategy=no", "training.logging_steps=1",
         "evaluation.batch_size=10"]  # fmt: skip
# "+0 ?" are words of the lab: an instruction that can be told from none
UPFT_SMALL = [*SMALL, "method.tokens=4", "method.full_share=0.25", "method.instruction=' +0 ?'",
              "method.supervised={epochs: 2, batch_size: 4, per_device_batch_size: 2, learning_rate: 1e-3, min_lr: 1.0}"]  # fmt: skip


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """The lab's problems without answers."""
    found = training_data(load_recipe(LAB / "dr_grpo.yaml", SMALL))
    return write(tmp_path_factory.mktemp("q") / "q.jsonl", [{"id": p.id, "problem": p.text} for p in found])


@pytest.fixture(scope="module")
def collected(questions, tmp_path_factory):
    """A collection for UPFT that nothing interrupted, and its summary."""
    folder = tmp_path_factory.mktemp("collected") / "s"
    return folder, collect(LAB / "upft.yaml", [*UPFT_SMALL, f"data.train={questions}"], folder)


def test_no_more_is_sampled_than_is_learned_and_nothing_is_graded(questions, collected, monkeypatch, tmp_path):
    monkeypatch.setattr(Grader, "judge", lambda *args: pytest.fail("graded"))
    collect(LAB / "upft.yaml", [*UPFT_SMALL, f"data.train={questions}"], tmp_path / "s")
    folder, summary = collected
    assert files(tmp_path / "s") == files(folder)
    store, method = TraceStore.open(folder), load_recipe(LAB / "upft.yaml", UPFT_SMALL).method
    lengths = {True: [], False: []}
    for one in store:
        full = method.excerpt(one.problem_id, 42) == Excerpt()  # 42: the recipe's seed
        lengths[full].append(len(one.completion_ids))
        assert one.prompt_tokens == (5 if full else 7)  # start, three additions, "?"; and "+0 ?"
        assert (one.outcome, one.truncated) == (UNGRADED, False) if full else (CUT, False)
        assert one.answer == ""
    assert set(lengths[False]) == {4}
    assert set(lengths[True]) == {11}
    assert 2 <= len(lengths[True]) <= 12
    tokens = 4 * len(lengths[False]) + 11 * len(lengths[True])
    prompts = 7 * len(lengths[False]) + 5 * len(lengths[True])
    flops = 2.0 * summary["parameters"] * (tokens + prompts)
    assert store.accounts()[0] == Account(24, 0, 24, 0, prompts, tokens, flops)
    assert (summary["pass_at_k"], summary["hard"]) == (None, None)
    assert not (folder / "hard.jsonl").exists()
    assert collect_main_table(summary).splitlines() == [
        f"24 problems of {questions}", "24 traces sampled", "           24  not graded",
        f"  {tokens:>11,}  tokens generated", f"  {flops:>11.3g}  floating-point operations",
    ]  # fmt: skip


@pytest.mark.parametrize("after", [5, 7], ids=["the first part", "the second part"])
def test_a_collection_that_was_killed_goes_on_as_if_it_had_not(questions, collected, tmp_path, monkeypatch, after):
    def run():
        return collect(LAB / "upft.yaml", [*UPFT_SMALL, f"data.train={questions}"], tmp_path / "s")

    with monkeypatch.context() as patch:
        fails(patch, KeyboardInterrupt(), after - 1)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert len(list((tmp_path / "s").glob("part*"))) < 3
    assert run() == collected[1]
    assert files(tmp_path / "s") == files(collected[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("method.tokens=5", "traces of other lengths: the method's block or training.seed has changed"),
        ("method.full_share=0.5", "traces of other lengths"),
        ("training.seed=1", "traces of other lengths"),
        ("method.instruction=''", "other prompts: the instruction"),
        ("method.label_filter=true", "graded was False, now True"),
    ],
)
def test_a_collection_goes_on_with_the_same_method_only(collected, change, message):
    folder, _ = collected
    before = files(folder)
    train_on = TraceStore.open(folder).facts["data"]
    if "label_filter" in change:  # needs answers
        train_on = "lab"
    with pytest.raises(DataError, match="collected in another way") as error:
        collect(LAB / "upft.yaml", [*UPFT_SMALL, f"data.train={train_on}", change], folder)
    assert any(fault.startswith(message) for fault in error.value.faults)
    assert files(folder) == before


def test_each_method_samples_as_often_as_it_learns_from_and_no_further(tmp_path):
    upft = collect(LAB / "upft.yaml", [*SMALL, "data.limit=3", "method.tokens=4"], tmp_path / "upft")
    with_labels = "method={name: upft, tokens: 4, label_filter: true, instruction: ''}"
    filtered = collect(LAB / "upft.yaml", [*SMALL, "data.limit=3", with_labels], tmp_path / "filtered")
    rft = collect(LAB / "rft.yaml", [*SMALL, "data.limit=3"], tmp_path / "rft")
    assert [s["sampled"]["traces"] for s in (upft, filtered, rft)] == [3, 3, 48]
    assert [(s["settings"]["k"], s["settings"]["cap"]) for s in (upft, filtered, rft)] == [(1, 1), (1, 1), (16, 16)]
    assert filtered["sampled"]["ungraded"] == rft["sampled"]["ungraded"] == 0
    assert filtered["sampled"]["generated_tokens"] == 33  # whole, or they could not be graded
    with pytest.raises(UserError) as error:
        collect(LAB / "upft.yaml", SMALL, tmp_path / "more", cap=9)
    assert error.value.faults == ["cap = 9: method upft has nothing graded, so no problem gets more than k = 1"]


def test_imported_traces_are_not_graded_either(tmp_path, questions):
    file = write(tmp_path / "big.jsonl", [{"problem_id": "train/0", "text": "1 2 0"}])
    overrides = [*UPFT_SMALL, f"data.train={questions}"]
    summary = import_file(LAB / "upft.yaml", overrides, tmp_path / "s", file, source="big")
    assert summary["last_import"]["outcomes"] == {"ungraded": 1}
    assert summary["imported"]["big"]["ungraded"] == 1


def run(folder, recipe, *overrides):
    return train(str(LAB / f"{recipe}.yaml"), [*SMALL, f"output.dir={folder}", *overrides])


def weights(folder):
    return load_file(folder / "final" / "model.safetensors")


def same_weights(one, other):
    left, right = weights(one), weights(other)
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


@pytest.fixture(scope="module")
def trained(questions, collected, tmp_path_factory):
    """A policy from questions alone."""
    settings = [*UPFT_SMALL, f"data.train={questions}", f"data.traces={collected[0]}", "training.save_steps=4",
                "training.save_total_limit=4"]  # fmt: skip
    return run(tmp_path_factory.mktemp("trained") / "run", "upft", *settings), settings


def test_questions_alone_make_a_policy_whose_whole_cost_is_counted(trained, collected, monkeypatch):
    folder, _ = trained
    store = TraceStore.open(collected[0])
    found = json.loads((folder / "cost.json").read_text())
    sampled = sum(len(t.completion_ids) for t in store)
    assert found["generated_tokens"] == sampled
    assert found["trained_tokens"] == found["injected_tokens"] == 2 * sampled  # two epochs
    n = store.facts["parameters"]
    every = sum(t.prompt_tokens + len(t.completion_ids) for t in store)
    assert found["flops"] == 2 * n * every + 2 * 6 * n * every  # sampled once, learned twice
    # 12 steps, the first 10 % of them (1) to warm up, then constant: a cosine down to its whole peak
    lines = [json.loads(line) for line in (folder / "sft" / "metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines if "loss" in line] == [0.0] + [1e-3] * 11
    base = load_file(Path(store.facts["model"]) / "model.safetensors")
    assert any(not base[name].equal(tensor) for name, tensor in weights(folder).items())


def test_a_stage_that_was_cut_off_ends_with_the_same_policy(trained, tmp_path):
    folder, settings = trained
    cut = tmp_path / "run"
    shutil.copytree(folder, cut)
    for name in ("final", "sft/final", "sft/checkpoint-12", "sft/checkpoint-8"):
        shutil.rmtree(cut / name)
    (cut / "cost.json").unlink()
    run(cut, "upft", *settings)
    assert same_weights(folder, cut)
    assert (folder / "cost.json").read_text() == (cut / "cost.json").read_text()


STAGE = "{epochs: 1, batch_size: 4, per_device_batch_size: 4, learning_rate: 1e-3}"


def test_on_the_same_traces_rft_and_upft_in_full_are_sft(tmp_path):
    traces = tmp_path / "s"
    collect(LAB / "rft.yaml", SMALL, traces, k=1)
    found = {}
    for name, more in (("sft", ""), ("rft", ""), ("upft", ", tokens: 4, full_share: 1, label_filter: true")):
        method = f"method={{name: {name}, supervised: {STAGE}{more}}}"
        found[name] = run(tmp_path / name, "rft", f"data.traces={traces}", method)
    assert same_weights(found["sft"], found["rft"])
    assert same_weights(found["sft"], found["upft"])
    cut = run(tmp_path / "cut", "rft", f"data.traces={traces}",
              f"method={{name: upft, supervised: {STAGE}, tokens: 4, full_share: 0, label_filter: true}}")  # fmt: skip
    assert not same_weights(found["sft"], cut)
    right = TraceStore.open(traces).accounts()[0].right
    trained = {name: json.loads((folder / "cost.json").read_text())["trained_tokens"] for name, folder in found.items()}
    whole = 4 * max(round(right / 4), 1)  # places of whole steps, 11 tokens each
    assert set(trained.values()) == {11 * whole}
    assert json.loads((cut / "cost.json").read_text())["trained_tokens"] == 4 * whole


def test_adapters_learn_first_tokens_too(trained, tmp_path):
    _, settings = trained
    folder = run(tmp_path / "run", "upft", *settings, "model.use_peft=true", "model.lora_r=2")
    assert (folder / "final" / "adapter_model.safetensors").is_file()
    learned = load_file(folder / "final" / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in learned.items())
