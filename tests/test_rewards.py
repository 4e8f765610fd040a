"""Reward functions of one's own: found and checked by name, called apart, weighed, and the verdict of the first."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from flow import together
from small import byte_level_bpe, write
from typer.testing import CliRunner

from prefix_rl.check import check
from prefix_rl.cli import app
from prefix_rl.data.imports import import_traces
from prefix_rl.data.prepare import Settings, is_verified, prepare
from prefix_rl.data.problems import Problem, load, verify
from prefix_rl.data.traces import TraceStore, tokenizer_sha256
from prefix_rl.errors import DataError, RecipeError
from prefix_rl.evaluation.evaluate import evaluate, grade_again
from prefix_rl.lab.world import held_out_problems
from prefix_rl.recipe import load_recipe, load_run
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.rewards.functions import COLUMNS, Function, columns_of, find, row_of, verdicts
from prefix_rl.rewards.grading import Outcome
from prefix_rl.rewards.process import Lost, Process, RewardError
from prefix_rl.rewards.workers import Grader
from prefix_rl.train import train

TOKENIZER = byte_level_bpe()
LAB = Path(__file__).parents[1] / "recipes" / "lab" / "prefix_rft.yaml"
MODULE = """
import asyncio, os, signal, time

def length(completions, **columns):
    return [float(len(c)) for c in completions]

def even(completions, answer):
    return [1.0 if int(a.strip("()").split(",")[-1]) % 2 == 0 else 0.5 for a in answer]

def columns(prompts, completions, tests, source=None, continuation_start=None):
    return [len(t) + 10 * s for t, s in zip(tests, continuation_start)]

def place(completions, **columns):
    return [os.getpid()] * len(completions)

def here(completions, **columns):
    return [os.getpid()] * len(completions)
here.in_process = True

def none(completions, **columns):
    return [None, float("nan"), 1][: len(completions)]

def tells(completions, log_extra, log_metric, trainer_state, **columns):
    log_extra("length", [len(c) for c in completions])
    for name in ("global_step", "max_steps", "epoch"):
        log_metric(name, getattr(trainer_state, name))
    return [0] * len(completions)

async def later(completions, **columns):
    await asyncio.sleep(0)
    return [3] * len(completions)

def raises(completions, **columns):
    raise ValueError("no such thing: " + completions[0])

def raises_here(completions, **columns):
    raise ValueError("no such thing: " + completions[0])
raises_here.in_process = True

def hangs(completions, **columns):
    while True:
        time.sleep(0.01)

def dies(completions, **columns):
    os._exit(3)

def some(completions, log_extra=None, log_metric=None, **columns):
    if "die" in completions:
        os._exit(3)
    if log_extra:
        log_extra("length", [len(c) for c in completions])
        log_metric("letters", len("".join(completions)))
    if "raise" in completions:
        raise ValueError("no such thing")
    return [float(len(c)) for c in completions]

def first_word(completions, level, **columns):
    return [float(text.startswith(word)) if word else None for text, word in zip(completions, level)]

def hungry(completions, **columns):
    return [len(bytearray(2**30))]

def short(completions, **columns):
    return [1.0]

def text(completions, **columns):
    return ["1"] * len(completions)

def infinite(completions, **columns):
    return [float("inf")] * len(completions)

def seconds_left(completions, **columns):
    return [signal.getitimer(signal.ITIMER_REAL)[0]] * len(completions)

def takes_nothing(answer):
    return []

def by_place(completions, /, **columns):
    return []

NUMBER = 3

class Reward:
    def __call__(self, completions, **columns):
        return [7.0] * len(completions)

an_object = Reward()
"""


@pytest.fixture(scope="module", autouse=True)
def module(tmp_path_factory):
    """``my_rewards.own``, which can be imported here and in processes that start here."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_rewards").mkdir()
    (folder / "my_rewards" / "__init__.py").write_text("")
    (folder / "my_rewards" / "own.py").write_text(MODULE)
    (folder / "my_rewards" / "broken.py").write_text("1 / 0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture
def late(monkeypatch):
    """A call with the completion ``hang`` is late, however long the deadline: no other is, on a machine that is slow."""
    true = Process.call

    def call(self, given, seconds):
        if "hang" in given["completions"]:
            raise Lost(Outcome.TIMEOUT, f"did not answer within {seconds:g} s")
        return true(self, given, seconds)

    monkeypatch.setattr(Process, "call", call)


@pytest.fixture
def own():
    """Makes functions of ``my_rewards.own``, and closes them."""
    made = []

    def make(name, **limits):
        path = f"my_rewards.own.{name}"
        made.append(Function(path, find(path), **{"deadline": 5.0, "memory_mb": 2048, **limits}))
        return made[-1]

    yield make
    for function in made:
        function.close()


def call(function, *completions, **given):
    return function(prompts=["?"] * len(completions), completions=list(completions), **given)


# --- calling ----------------------------------------------------------------------------------------------------------


def test_a_function_gets_columns_and_returns_numbers(own):
    assert call(own("length"), "a", "bcd") == [1.0, 3.0]
    assert call(own("none"), "a", "b", "c") == [None, None, 1.0]
    assert call(own("later"), "a") == [3.0]
    assert call(own("an_object"), "a", "b") == [7.0, 7.0]
    rows = [json.dumps({"tests": [1, 2], "source": "x"}), json.dumps({"tests": [{"in": 1}]})]
    assert call(own("columns"), "a", "b", **{COLUMNS: rows, "continuation_start": [0, 4]}) == [2.0, 41.0]
    assert call(own("columns"), "a", "b", **{COLUMNS: rows}) == [2.0, 1.0]  # a method without prefixes: all at 0


def test_it_runs_in_a_process_of_its_own_unless_it_says_otherwise(own):
    apart = own("place")
    assert call(apart, "a") == call(apart, "b") != [os.getpid()]
    assert call(own("here"), "a") == [os.getpid()]


def test_what_it_logs_in_its_process_is_logged_here(own):
    found = {}
    state = SimpleNamespace(global_step=7, max_steps=9, epoch=0.5)
    made = call(own("tells"), "a", "bc", log_extra=found.__setitem__, log_metric=found.__setitem__, trainer_state=state)
    assert made == [0.0, 0.0]
    assert found == {"length": [1, 2], "global_step": 7, "max_steps": 9, "epoch": 0.5}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "my_rewards.own.raises failed: ValueError: no such thing: a"),
        ("raises_here", "my_rewards.own.raises_here failed: ValueError: no such thing: a"),
        ("dies", "ended (status 3)"), ("hungry", "failed: MemoryError"),
        ("short", "failed: TypeError: returned 1 values for 2 completions"), ("text", "returned '1' for completion 0"),
        ("infinite", "returned inf for completion 0"),
    ],
)  # fmt: skip
def test_what_goes_wrong_in_it_is_kept_and_told(own, name, message):
    function = own(name, memory_mb=600)
    assert call(function, "a", "b") == [0.0, 0.0]
    assert message in function.fault.what


def test_a_function_that_hangs_is_ended_at_its_deadline(own):
    function = own("hangs", deadline=0.2)
    call(function, "a")
    assert "did not answer within 0.2 s" in function.fault.what
    began = time.monotonic()
    call(function, "a", "b")  # the process has started anew; two completions have twice the time
    assert "did not answer within 0.4 s" in function.fault.what
    assert time.monotonic() - began < 60


def test_the_completions_that_a_function_is_late_or_dies_on_are_found_and_get_nothing(own, late):
    function, extra, metrics = own("some", deadline=60), {}, {}
    given = {"log_extra": extra.__setitem__, "log_metric": metrics.__setitem__}
    assert call(function, "abc", "hang", "a", "die", **given) == [3.0, 0.0, 1.0, 0.0]
    assert function.fault is None
    assert extra == {"length": [3, None, 1, None]}
    name = "rewards/my_rewards.own.some"
    assert metrics == {"letters": 2.0, f"{name}/timeout": 0.25, f"{name}/crash": 0.25}
    assert call(function, "abc", "a", **given) == [3.0, 1.0]  # and the next call is whole again
    assert metrics["letters"] == 4


def test_one_that_raises_when_called_alone_stops_all_the_same(own):
    function = own("some", deadline=60)
    assert call(function, "die", "raise") == [0.0, 0.0]
    assert "my_rewards.own.some failed: ValueError: no such thing" in function.fault.what


def test_a_function_that_loses_every_completion_is_explained(own, late):
    function = own("some", deadline=60)
    call(function, "die", "hang")
    assert "gave no reward: its process did not answer within 120 s" in function.fault.what
    assert "called for each of the 2 completions alone, it was late on 1 and died on 1" in function.fault.what
    first, second, _ = function.fault.faults
    assert "reward.deadline = 60 s is for one completion" in first
    assert second == "reward.memory_mb = 2048 MiB is what its process may take"
    call(function, "die")
    assert "its process ended (status 3): it was late on 0 and died on 1." in function.fault.what


def test_a_lost_completion_is_a_verdict_of_its_own(late):
    by = verdicts(["my_rewards.own.some"], Grader(workers=1, deadline=60))
    samples = [(text, by.gold_of(Problem("1", "?", ""))) for text in ("ab", "hang", "die", "")]
    assert [verdict.outcome for verdict in by.judge(samples)] == ["right", "timeout", "crash", "wrong"]
    with pytest.raises(RewardError, match="gave no reward"):
        by.judge(samples[1:3])
    assert by.grade(samples[2:3]) == ["crash"]  # of one alone nobody can say that the function loses all
    by.close()


def test_its_process_ends_by_itself_after_twice_the_deadline_and_a_second(own):
    first, second = call(own("seconds_left", deadline=100), "a", "b")
    assert first == second
    assert 300 < first <= 401  # a call for two has twice the time; it runs out late, so that the trainer is first


def test_memory_that_is_allowed_is_there(own):
    assert call(own("hungry", memory_mb=2048, deadline=60), "a") == [2.0**30]  # control of the cap above


# --- on several ranks -------------------------------------------------------------------------------------------------


def test_one_that_raises_on_one_rank_raises_the_same_on_all(own):
    def work(ranks):
        function = made[ranks.index]
        with pytest.raises(RewardError) as error, ranks.agreed([function]):
            call(function, "a")
        return error.value.what, error.value.faults

    made = [own("here"), own("raises_here")]
    first, second = together(2, work)
    assert first == second
    assert first[0] == "the reward function my_rewards.own.raises_here failed: ValueError: no such thing: a (on rank 1)"
    assert 'raise ValueError("no such thing: " + completions[0])' in "".join(first[1])


def test_what_one_rank_lost_wholly_stops_nothing_but_what_all_lost_does(own):
    def work(ranks):
        with ranks.agreed([made[ranks.index]]):
            return call(made[ranks.index], *texts[ranks.index])

    def fails(ranks):
        with pytest.raises(RewardError) as error:  # here: an error that leaves the rank would break the other's wait
            work(ranks)
        return error.value.what

    made, texts = [own("some", deadline=60), own("some", deadline=60)], [("die", "die"), ("ab", "die")]
    assert together(2, work) == [[0.0, 0.0], [2.0, 0.0]]
    texts = [("die",), ("die",)]
    first, second = together(2, fails)
    assert first == second
    assert first.endswith("and died on 1. Nothing can be learned from that (on rank 0)")


def test_where_none_raises_all_ranks_go_on(own):
    def work(ranks):
        with ranks.agreed([made[ranks.index]]):
            return call(made[ranks.index], "a")

    made = [own("here"), own("here")]
    assert together(2, work) == [[os.getpid()]] * 2


# --- in a recipe ------------------------------------------------------------------------------------------------------


def test_columns_that_a_function_cannot_do_without():
    assert columns_of(find("my_rewards.own.columns")) == ["tests"]
    assert columns_of(find("my_rewards.own.length")) == []
    assert columns_of(find("math")) == ["answer"]


def faults_of(*overrides):
    with pytest.raises(RecipeError) as error:
        load_recipe(LAB, overrides)
    return error.value.faults


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "reward.functions: maths: no such reward (did you mean math?)"),
        ("my_rewards.own.lenght", "has no 'lenght' (did you mean length?)"),
        ("my_rewards.none.length", "'my_rewards.none' cannot be imported (ModuleNotFoundError"),
        ("my_rewards.broken.length", "'my_rewards.broken' cannot be imported (ZeroDivisionError: division by zero)"),
        ("my_rewards.own.NUMBER", "'NUMBER' is a int, not a function"), ("my_rewards.own.Reward", "is a type, not a"),
        ("my_rewards.own.takes_nothing", "takes answer, and not completions"),
        ("my_rewards.own.by_place", "takes arguments by position"),
    ],
)  # fmt: skip
def test_a_function_that_cannot_be_used_is_a_fault_of_the_recipe(name, message):
    (fault,) = faults_of(f"reward.functions=[math, {name}]")
    assert message in fault


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("[1]", "reward.weights has 1 numbers, and reward.functions 2"), ("[1, .inf]", "infinity is no value of a setting"),
        ("[0, 0]", "nothing is rewarded"), ("[1, a]", "must be a list, each a number"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_a_fault(weights, message):
    (fault,) = faults_of("reward.functions=[math, my_rewards.own.length]", f"reward.weights={weights}")
    assert message in fault


def test_all_faults_at_once():
    names = "reward.functions=[math, math, my_rewards.own.nope]"
    found = faults_of(names, "reward.weights=[1, 2]", "training.reward_weights=[1]")
    assert len(found) == 4
    for what in (
        "math stands 2 times",
        "has no 'nope'",
        "has 2 numbers",
        "training.reward_weights = [1]: set reward.weights",
    ):
        assert any(what in fault for fault in found), what
    assert "reward.functions is empty" in faults_of("reward.functions=[]")[0]


def test_the_default_is_mathematics_alone_and_a_resolved_recipe_loads_again():
    recipe = load_recipe(LAB)
    assert (recipe.reward.functions, recipe.reward.weights) == (("math",), None)
    assert "reward_weights" not in recipe.arguments
    two = load_recipe(LAB, ["reward.functions=[math, my_rewards.own.length]", "reward.weights=[1, -0.5]"])
    assert two.arguments["reward_weights"] == [1, -0.5]
    assert load_recipe(yaml.safe_load(two.dump())).reward == two.reward


# --- rows -------------------------------------------------------------------------------------------------------------

FILE = ["data.train=rows.jsonl", "data.lab={}", "evaluation.data=null", "training.eval_strategy=no", "method={name: dr_grpo}",
        "training.per_device_train_batch_size=8", "training.num_generations=8"]  # fmt: skip


def rows(folder, monkeypatch, made, *overrides):
    monkeypatch.chdir(folder)
    write(folder / "rows.jsonl", made)
    return load_run(LAB, [*FILE, *overrides])


def test_rows_without_an_answer_are_fine_where_no_reward_needs_one(tmp_path, monkeypatch):
    made = [{"problem": "say a", "tests": ["a"], "level": 1}, {"problem": "say b", "tests": [{"in": 1}]}]
    _, problems, _ = rows(tmp_path, monkeypatch, made, "reward.functions=[my_rewards.own.columns]")
    assert [p.answer for p in problems] == ["", ""]
    assert [row_of(p) for p in problems] == [
        {"tests": ["a"], "level": 1, "problem": "say a", "answer": "", "problem_id": "0"},
        {"tests": [{"in": 1}], "problem": "say b", "answer": "", "problem_id": "1"},
    ]
    with pytest.raises(RecipeError, match="no column 'answer'"):  # control: mathematics needs it
        rows(tmp_path, monkeypatch, made, "reward.functions=[my_rewards.own.columns, math]")


def test_rows_without_a_column_that_a_function_needs_are_a_fault(tmp_path, monkeypatch):
    made = [{"problem": "a", "answer": "1", "tests": ["a"]}, {"problem": "b", "answer": "2", "test": ["b"]}]
    with pytest.raises(RecipeError, match=r"needs the column 'tests', and 1 of the 2 rows of data.train have none"):
        rows(tmp_path, monkeypatch, made, "reward.functions=[math, my_rewards.own.columns]")
    assert rows(tmp_path, monkeypatch, made)  # control: mathematics does not


# --- the first decides what is right ----------------------------------------------------------------------------------


def test_the_first_reward_is_the_verdict():
    problems = [Problem(str(n), "?", str(n), ({"text": "x"},), columns={"tests": []}) for n in (2, 3)]
    grader = Grader(workers=1)
    by = verdicts(["my_rewards.own.even", "math"], grader)
    kept, bad, counts = verify(problems, by)
    by.close()
    assert [len(p.demonstrations) for p in kept] == [1, 0]  # 1.0 is right, 0.5 is not
    assert (bad, dict(counts)) == ([], {"right": 1, "wrong": 1})
    assert verdicts(["math", "my_rewards.own.even"], grader) is grader


def test_traces_of_other_models_are_imported_by_the_reward_that_is_named(tmp_path):
    problems = [Problem(str(n), f"{n}?", "", columns={"level": "Well"}) for n in range(2)]
    store = TraceStore.create(tmp_path / "s", {"tokenizer_sha256": tokenizer_sha256(TOKENIZER)})
    rows = [{"problem_id": "0", "text": "Well, no."}, {"problem_id": "1", "text": "Oh, no."}]
    write(tmp_path / "rows.jsonl", rows)
    by = verdicts(["my_rewards.own.first_word"], Grader(workers=1))
    done = import_traces(tmp_path / "rows.jsonl", store, TOKENIZER, by, problems)
    by.close()
    assert done["outcomes"] == {"right": 1, "wrong": 1}


ADD = {"problem": "Write add.", "tests": ["assert add(1, 2) == 3"], "level": "easy"}


def test_prepare_keeps_what_earns_the_named_reward_with_the_columns_that_it_reads(tmp_path):
    right, wrong = (f"```python\ndef add(a, b):\n    return a {sign} b\n```" for sign in "+-")
    rows = [
        {**ADD, "demonstrations": [right, wrong]},
        {"problem": "Without tests.", "demonstrations": [right]},
        {"problem": "Without a demonstration.", "tests": ["assert True"]},
    ]
    write(tmp_path / "raw.jsonl", rows)
    out = tmp_path / "out.jsonl"
    manifest = prepare(str(tmp_path / "raw.jsonl"), out, Settings(reward="code"), grader=Grader(workers=1))
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["answer"], first["tests"], first["level"]) == ("", ADD["tests"], "easy")
    assert [d["text"] for d in first["demonstrations"]] == [right]
    assert (second["tests"], second["demonstrations"]) == (["assert True"], [])
    dropped = {step["step"]: step["dropped"] for step in manifest["funnel"]}
    assert dropped["check"]["rows"] == {"no column 'tests', which the reward code needs": 1}
    assert dropped["grading"]["demonstrations"] == {"it does not earn the reward code": 1}
    assert is_verified(str(out), "code")
    assert not is_verified(str(out), "math")  # which would grade them again
    assert [p.columns["tests"] for p in load(str(out), answers=False, columns=True)] == [ADD["tests"], ["assert True"]]


def test_prepare_drops_what_the_reward_cannot_grade_and_refuses_one_that_is_none(tmp_path):
    rows = [
        {"problem": f"{n}?", "level": level, "solution": "Well, so."} for n, level in enumerate(["Well", "Oh", None])
    ]
    write(tmp_path / "raw.jsonl", [*rows[:2], {**rows[2], "level": False}])
    settings = Settings(reward="my_rewards.own.first_word")
    manifest = prepare(str(tmp_path / "raw.jsonl"), tmp_path / "out.jsonl", settings, grader=Grader(workers=1))
    assert (manifest["rows"], manifest["demonstrations"]) == (2, 1)
    grading = next(step for step in manifest["funnel"] if step["step"] == "grading")
    name = "my_rewards.own.first_word"
    assert grading["dropped"]["rows"] == {f"the reward {name} cannot grade it (it returns None)": 1}
    with pytest.raises(DataError, match=r"prepare\.reward = cod: no such reward.*code"):
        prepare(str(tmp_path / "raw.jsonl"), tmp_path / "out.jsonl", Settings(reward="cod"))


def test_the_command_prepares_by_the_first_reward_of_a_recipe(tmp_path):
    write(tmp_path / "raw.jsonl", [{"problem": "1?", "level": "Well", "solution": "Well, so."}])
    recipe = {"include": str(LAB), "reward": {"functions": ["my_rewards.own.first_word"]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    given = [
        str(tmp_path / "raw.jsonl"),
        "--output",
        str(tmp_path / "out.jsonl"),
        "--recipe",
        str(tmp_path / "recipe.yaml"),
    ]
    result = CliRunner().invoke(app, ["prepare", *given])
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "out.jsonl").read_text())["demonstrations"]) == 1


# --- training ---------------------------------------------------------------------------------------------------------

SMALL = ["training.max_steps=2", "training.per_device_train_batch_size=16", "training.eval_steps=2", "training.logging_steps=1",
         "data.lab.base_steps=50", "data.lab.problems=8", "data.lab.held_out=8", "training.report_to=none",
         "output.rollouts_every=1"]  # fmt: skip


def test_two_rewards_train_and_their_values_stand_apart(tmp_path):
    run = train(LAB, [*SMALL, "reward.functions=[math, my_rewards.own.length]", "reward.weights=[1, 0.25]",
                      f"output.dir={tmp_path / 'run'}"])  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    assert len(steps) == 2
    for line in steps:
        apart = line["rewards/math_reward/mean"], line["rewards/my_rewards.own.length/mean"]
        assert line["reward"] == pytest.approx(apart[0] + 0.25 * apart[1])
        assert apart[1] > 1
    saved = read_rollouts(run)
    assert len(saved) == 16
    for row in saved:
        text = "".join(piece["text"] for piece in row["segments"])
        values = row["rewards"]
        assert set(values) == {"math_reward", "my_rewards.own.length"}
        assert row["reward"] == pytest.approx(values["math_reward"] + 0.25 * values["my_rewards.own.length"])
        assert row["outcome"] in ("right", "wrong", "no_answer")
        assert len(text) >= values["my_rewards.own.length"] > 0


def test_one_reward_is_saved_as_before(tmp_path):
    run = train(LAB, [*SMALL, f"output.dir={tmp_path / 'run'}"])
    assert all("rewards" not in row for row in read_rollouts(run))


def test_a_reward_that_fails_stops_the_run_with_its_message(tmp_path):
    with pytest.raises(RewardError, match=r"my_rewards.own.raises failed: ValueError: no such thing"):
        train(LAB, [*SMALL, "reward.functions=[math, my_rewards.own.raises]", f"output.dir={tmp_path / 'run'}"])


def test_check_knows_of_rewards():
    assert (
        check(LAB, [*SMALL, "reward.functions=[math, my_rewards.own.length]", "reward.weights=[1, 0.25]"]).problems == 8
    )
    with pytest.raises(RecipeError, match="has no 'nope'"):
        check(LAB, [*SMALL, "reward.functions=[math, my_rewards.own.nope]"])


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_an_evaluation_counts_by_the_first_reward_and_grades_again_by_it(tmp_path):
    given = ["evaluation.on=[lab]", "evaluation.samples=1", "data.lab.base_steps=50", "data.lab.held_out=8",
             "reward.functions=[my_rewards.own.even, math]"]  # fmt: skip
    card = evaluate("lab", str(LAB), given, tmp_path / "out")
    golds = [int(p.answer.strip("()").split(",")[-1]) for p in held_out_problems(load_recipe(LAB, given).world)]
    right = sum(gold % 2 == 0 for gold in golds)
    assert 0 < right < 8  # whatever the policy says: the function looks at the gold answers alone
    assert card["benchmarks"]["lab"]["accuracy"]["mean"] == right / 8
    assert card["grader"]["reward"] == "my_rewards.own.even"
    again, changes = grade_again(tmp_path / "out")
    assert again["benchmarks"]["lab"]["accuracy"]["mean"] == right / 8
    assert all(before == now for before, now in changes)


def test_an_evaluation_refuses_rows_without_the_column(tmp_path):
    write(tmp_path / "rows.jsonl", [{"problem": "a", "answer": "1"}])
    with pytest.raises(RecipeError, match=r"needs the column 'tests', and 1 of the 1 rows of rows have none"):
        evaluate(
            "lab", str(LAB), [f"evaluation.on=[{tmp_path / 'rows.jsonl'}]", "reward.functions=[code]"], tmp_path / "o"
        )
