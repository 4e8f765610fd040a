"""The trace store, traces as demonstrations, imports, and the collect command's function."""

import errno
import json
import os
import random
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from examples import examples
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from small import byte_level_bpe, characters, word_piece

from prefix_rl.collecting import collect as collecting
from prefix_rl.collecting.collect import collect, import_file
from prefix_rl.collecting.summary import collect_main_table
from prefix_rl.costs import Cost
from prefix_rl.data.attach import attach
from prefix_rl.data.attempts import Attempts, Collection, Plan
from prefix_rl.data.imports import import_traces
from prefix_rl.data.problems import Problem, load
from prefix_rl.data.tokenizer import DemonstrationTable, load_tokenizer
from prefix_rl.data.traces import Account, Tally, Trace, TraceStore, tokenizer_sha256
from prefix_rl.engines.base import Engine
from prefix_rl.errors import DataError, UserError
from prefix_rl.evaluation.sampling import Sample
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.rewards.grading import Outcome
from prefix_rl.rewards.workers import Grader

TOKENIZER = byte_level_bpe()
EOS = TOKENIZER.eos_token_id
PROBLEMS = [
    Problem("a", "6 * 7?", "42", ({"text": "old"},)),
    Problem("b", "1 + 1?", "2", ({"text": "old"},)),
    Problem("c", "2 + 1?", "3", ({"text": "old"},)),
]


def trace(problem=PROBLEMS[0], text=r"\boxed{42}", outcome="right", **changes):
    ids = changes.pop("ids", [*TOKENIZER(text)["input_ids"], EOS])
    fields = {"problem_id": problem.id, "problem": problem.text, "answer": problem.answer, "attempt": 0, "source": "policy",
              "text": text, "completion_ids": ids, "prompt_tokens": 10, "outcome": outcome, "truncated": False, "flops": 1.0}  # fmt: skip
    return Trace(**{**fields, **changes})


def store_of(folder, *parts, tokenizer=TOKENIZER):
    store = TraceStore.create(folder, {"tokenizer_sha256": tokenizer_sha256(tokenizer)})
    for part in parts:
        store.append(part)
    return store


def files(folder):
    """The files of a store, but for locks and the notes on who has them."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if ".lock" not in path.name}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def grader():
    made = Grader(workers=1)
    yield made
    made.close()


# --- the store --------------------------------------------------------------------------------------------------------


def test_what_was_added_comes_back_in_order(tmp_path):
    first = [trace(attempt=0, text="ü🙂"), trace(PROBLEMS[1], outcome="wrong", truncated=True)]
    second = [trace(attempt=1, outcome="bad_gold", flops=None, imported=True)]
    store_of(tmp_path / "s", first, second)
    again = TraceStore.open(tmp_path / "s")
    assert list(again) == [*first, *second]
    assert len(again) == 3
    assert sorted(path.name for path in (tmp_path / "s").glob("part*")) == [
        "part-000000.parquet",
        "part-000001.parquet",
    ]
    columns = pyarrow.parquet.read_table(tmp_path / "s" / "part-000001.parquet").to_pylist()[0]
    assert columns["reward"] is None  # a gold answer that cannot be parsed says nothing
    assert columns["completion_tokens"] == len(second[0].completion_ids)


def test_attempts_are_tallied_by_problem_without_the_imported_ones(tmp_path):
    store = store_of(tmp_path / "s", [
        trace(attempt=0, outcome="wrong"), trace(attempt=1, truncated=True), trace(attempt=2),
        trace(PROBLEMS[1], imported=True), trace(attempt=0, imported=True),
    ])  # fmt: skip
    assert store.attempts() == {"a": Tally(attempts=3, right=2, usable=1), "b": Tally()}
    assert store.attempts(first=2) == {"a": Tally(attempts=2, right=1, usable=0), "b": Tally()}


def test_the_cost_is_that_of_every_trace_and_imported_ones_stand_apart(tmp_path):
    # a policy of 1,000 parameters: 2 * 1000 * (10 + 5) = 30,000 and 2 * 1000 * (10 + 3) = 26,000
    store = store_of(tmp_path / "s", [
        trace(ids=[7] * 5, flops=30_000.0), trace(ids=[7] * 3, flops=26_000.0, outcome="wrong", truncated=True),
        trace(ids=[7] * 4, flops=None, imported=True, source="big", prompt_tokens=0),
        trace(ids=[7] * 2, flops=500.0, imported=True, source="big", prompt_tokens=0, outcome="wrong"),
    ])  # fmt: skip
    sampled, imported = store.accounts()
    assert sampled == Account(traces=2, right=1, truncated=1, prompt_tokens=20, generated_tokens=8, flops=56_000.0)
    assert imported == {"big": Account(traces=2, right=1, generated_tokens=6, flops=500.0, flops_unknown=1)}
    assert store.cost() == Cost(generated_tokens=8.0, flops=56_500.0)


def fails(monkeypatch, error, after=0):
    """The ``after + 1``-th time that something is brought to the disk, this happens instead."""
    calls, real = [], os.fsync

    def fsync(handle):
        calls.append(handle)
        if len(calls) > after:
            raise error
        return real(handle)

    monkeypatch.setattr("prefix_rl.parts.os.fsync", fsync)


def test_a_kill_in_the_middle_of_a_part_loses_that_part_only(tmp_path, monkeypatch):
    store = store_of(tmp_path / "s", [trace()])
    before = files(tmp_path / "s")
    child = os.fork()
    if not child:
        monkeypatch.setattr("prefix_rl.parts.os.fsync", lambda handle: os.kill(os.getpid(), signal.SIGKILL))
        try:
            TraceStore.open(tmp_path / "s").append([trace(attempt=1)])
        finally:
            os._exit(3)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert files(tmp_path / "s").keys() - before == {"part-000001.parquet.partial"}
    assert list(store) == [trace()]  # it does not count as long as it lies there
    again = TraceStore.open(tmp_path / "s")
    assert files(tmp_path / "s") == before
    again.append([trace(attempt=1)])
    assert [t.attempt for t in again] == [0, 1]


def test_a_reader_does_not_disturb_a_writer(tmp_path):
    store_of(tmp_path / "s", [trace()])
    (tmp_path / "s" / "part-000001.parquet.partial").write_bytes(b"in the making")
    with FileLock(tmp_path / "s" / ".lock"):
        store = TraceStore.open(tmp_path / "s")
        assert len(store) == 1
        assert "part-000001.parquet.partial" in files(tmp_path / "s")
        with pytest.raises(DataError, match="another process is writing"):
            store.append([trace()])


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    store = store_of(tmp_path / "s", [trace()])
    before = files(tmp_path / "s")

    def full(table, file, **options):
        file.write(b"PAR1")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(DataError, match=r"part-000001.parquet could not be written: No space left.*untouched.*goes on"):
        store.append([trace(attempt=1)])
    assert files(tmp_path / "s") == before
    monkeypatch.undo()
    store.append([trace(attempt=1)])
    assert len(store) == 2


def test_a_part_that_the_system_refuses_to_write_is_explained(tmp_path):
    store = store_of(tmp_path / "s", [trace()])
    before = files(tmp_path / "s")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError, match="could not be written: File too large"):
            store.append([trace(attempt=1)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path / "s") == before


def damage(name, change):
    def spoil(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return spoil


def flipped(content):
    at = content.index(b"flip me")  # a text, which reads as well with another letter
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(damage("part-000001.parquet", lambda b: b[:-20]), r"part-000001.parquet is damaged"),
     (damage("part-000001.parquet", flipped), r"part-000001.parquet is damaged"),
     (damage("part-000001.parquet", lambda b: b""), r"part-000001.parquet is damaged"),
     (lambda f: pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), f / "part-000001.parquet"), "not a part of a trace store"),
     (lambda f: (f / "part-000001.parquet").unlink(), r"are missing[^$]*part-000001.parquet"),
     (damage("store.json", lambda b: b[:-9]), "store.json is damaged"), (damage("store.json", lambda b: b"[]"), "store.json is damaged"),
     (damage("store.json", lambda b: b.replace(b'"format": 1', b'"format": 7')), "of format 7, and this version reads format 1"),
     (lambda f: (f / "store.json").unlink(), "is not a trace store: it has no store.json")],
    ids=["truncated", "a flipped bit", "empty", "foreign", "missing", "half a json", "no object", "another format", "no store"],
)  # fmt: skip
def test_a_damaged_store_is_explained(tmp_path, spoil, message):
    store_of(tmp_path / "s", [trace()], [trace(attempt=1, text="flip me")], [trace(attempt=2)])
    spoil(tmp_path / "s")
    with pytest.raises(DataError, match=message):
        attach(PROBLEMS, TraceStore.open(tmp_path / "s"))


def test_a_store_is_not_overwritten_and_a_missing_one_is_explained(tmp_path):
    store_of(tmp_path / "s")
    with pytest.raises(DataError, match="holds a trace store already"):
        store_of(tmp_path / "s")
    with pytest.raises(DataError, match="there is no trace store"):
        TraceStore.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be made"):
        store_of(tmp_path / "file")


# --- the tokenizer's hash ---------------------------------------------------------------------------------------------


def test_the_hash_of_a_tokenizer_is_that_of_its_ids(tmp_path):
    wanted = tokenizer_sha256(byte_level_bpe())
    used = byte_level_bpe()
    used(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert tokenizer_sha256(used) == wanted
    right = byte_level_bpe()
    right.padding_side = "right"
    right(["a", "a longer text"], padding=True)
    assert tokenizer_sha256(right) == wanted
    used.save_pretrained(tmp_path)
    assert tokenizer_sha256(load_tokenizer(str(tmp_path))) == wanted
    more = byte_level_bpe()
    more.add_tokens(["<more>"])
    others = [tokenizer_sha256(t) for t in (more, characters(), word_piece())]
    assert len({wanted, *others}) == 4


def test_a_slow_tokenizer_is_hashed_by_its_vocabulary():
    class Slow:
        is_fast = False
        all_special_tokens = ("<eos>",)

        def __init__(self, **words):
            self.words = words

        def get_vocab(self):
            return self.words

    assert tokenizer_sha256(Slow(a=0, b=1)) == tokenizer_sha256(Slow(b=1, a=0)) != tokenizer_sha256(Slow(a=1, b=0))


# --- traces as demonstrations -----------------------------------------------------------------------------------------


def test_right_traces_take_the_place_of_the_demonstrations(tmp_path):
    store = store_of(tmp_path / "s", [
        trace(text="imported", imported=True), trace(attempt=2, text="third"), trace(attempt=0, text="no", outcome="wrong"),
        trace(attempt=1, text="second"), trace(attempt=3, text="cut off", truncated=True),
        trace(PROBLEMS[1], outcome="no_answer"), trace(Problem("z", "?", "1")),
    ])  # fmt: skip
    a, b, c = attach(PROBLEMS, store, TOKENIZER)
    assert [d["text"] for d in a.demonstrations] == ["second", "third", "imported"]
    assert (b.demonstrations, c.demonstrations) == ((), ())
    assert replace(a, demonstrations=PROBLEMS[0].demonstrations) == PROBLEMS[0]
    assert attach(PROBLEMS, store, tokenizer_sha256(TOKENIZER)) == [a, b, c]


def test_wrong_traces_of_the_policys_own_are_demonstrations_of_how_to_fail(tmp_path):
    store = store_of(tmp_path / "s", [
        trace(text="imported", outcome="wrong", imported=True), trace(attempt=1, text="no", outcome="wrong"),
        trace(attempt=0, text="right"), trace(attempt=2, text="cut off", outcome="wrong", truncated=True),
        trace(attempt=3, text="silent", outcome="no_answer"), trace(PROBLEMS[1]),
    ])  # fmt: skip
    a, b, _ = attach(PROBLEMS, store, TOKENIZER, method=PrefixRL(traces="wrong"))
    assert [d["text"] for d in a.demonstrations] == ["no"]
    assert b.demonstrations == ()
    with pytest.raises(DataError, match=r"no wrong trace of the data's problems .* or set method\.traces = right"):
        attach(PROBLEMS[1:], store, method=PrefixRL(traces="wrong"))
    with pytest.raises(DataError, match="no wrong trace "):
        attach(PROBLEMS, store_of(tmp_path / "t", [trace()]), method=PrefixRL(traces="wrong"))


def test_a_prefix_of_a_failure_states_neither_its_own_answer_nor_the_right_one():
    text = r"6 * 7 is 40, or 41. So \boxed{41}, though some say 42"
    for guard, before in (("mention", r"6 * 7 is 40, or 41. So "), ("statement", r"6 * 7 is 40, or 41. So ")):
        [failure] = DemonstrationTable([[text]], ["42"], TOKENIZER, guard)[0]
        assert text.startswith(TOKENIZER.decode(failure.ids[: failure.safe_length]))
        assert before.startswith(TOKENIZER.decode(failure.ids[: failure.safe_length]))
    [failure] = DemonstrationTable([["It is 42, no, 41: " + text]], ["42"], TOKENIZER)[0]
    assert "It is ".startswith(TOKENIZER.decode(failure.ids[: failure.safe_length]))


def test_the_ids_that_were_sampled_are_the_ids_that_are_injected(tmp_path):
    text = r"48 + 24 = 72, so \boxed{42}"
    sampled = [i for character in text for i in TOKENIZER(character)["input_ids"]]  # never what the tokenizer would do
    assert sampled != TOKENIZER(text)["input_ids"]
    store = store_of(tmp_path / "s", [trace(text=text, ids=[*sampled, EOS])])
    (problem, *_) = attach(PROBLEMS, store, TOKENIZER)
    assert problem.demonstrations == ({"text": text, "ids": sampled},)  # without EOS
    assert TOKENIZER.decode(problem.demonstrations[0]["ids"]) == text
    table = DemonstrationTable([problem.demonstrations], [problem.answer], TOKENIZER, "none")
    assert list(table[0][0].ids) == sampled


@pytest.mark.parametrize(
    ("traces", "problems", "message"),
    [
        ([], PROBLEMS, "is empty"),
        ([trace(outcome="wrong"), trace(attempt=1, truncated=True)], PROBLEMS, "holds no right trace .*--cap.*--import"),
        ([trace()], PROBLEMS[1:], "holds none of the 2 problems; it knows 'a', the data has 'b', 'c'"),
        ([trace(), trace(PROBLEMS[1], outcome="wrong")], PROBLEMS[1:], "no right trace of the data's problems"),
        ([trace(), trace(PROBLEMS[1])], [Problem("a", "6*7?", "42"), Problem("b", "1 + 1?", "3"), PROBLEMS[2]],
         r"a: the problem is '6 \* 7\?' in the store, '6\*7\?' in the data\n  - b: the answer is '2' in the store, '3' in the data"),
        ([trace()], [*PROBLEMS, Problem("a", "other", "42")], "a: "),
    ],
    ids=["empty", "nothing right", "other problems", "right ones of others", "other texts", "an id twice"],
)  # fmt: skip
def test_a_store_that_cannot_serve_is_explained(tmp_path, traces, problems, message):
    store = store_of(tmp_path / "s", traces)
    with pytest.raises(DataError, match=message):
        attach(problems, store)


def test_a_store_of_another_tokenizer_is_refused(tmp_path):
    store = store_of(tmp_path / "s", [trace()])
    with pytest.raises(
        DataError, match=r"another tokenizer .* prefix-rl collect RECIPE --output NEW_FOLDER --import .*/s"
    ):
        attach(PROBLEMS, store, characters())
    assert attach(PROBLEMS, store)[0].demonstrations  # not known, not checked


# --- importing --------------------------------------------------------------------------------------------------------

ROWS = [
    {"problem_id": "a", "text": r"6 * 7 = \boxed{42}"},
    {"problem": "1 + 1?", "completion": r"\boxed{3}", "source": "other", "flops": 8},
    {"problem_id": "a", "problem": "6 * 7?", "solution": "I have no idea", "truncated": True},
    {"problem_id": "x", "problem": "unknown", "text": r"\boxed{1}"},
]


def test_every_imported_trace_is_graded_and_kept(tmp_path, grader):
    store = store_of(tmp_path / "s")
    done = import_traces(write(tmp_path / "big.jsonl", ROWS), store, TOKENIZER, grader, PROBLEMS)
    assert done == {"rows": 4, "added": 3, "known": 0, "other_problems": 1,
                    "outcomes": {"no_answer": 1, "right": 1, "wrong": 1}}  # fmt: skip
    right, wrong, cut = store
    assert right == trace(text=r"6 * 7 = \boxed{42}", source="big.jsonl", prompt_tokens=0, flops=None, imported=True)
    assert right.completion_ids[-1] == EOS
    assert (wrong.problem_id, wrong.source, wrong.outcome, wrong.flops, wrong.reward) == (
        "b",
        "other",
        "wrong",
        8.0,
        0.0,
    )
    assert (cut.outcome, cut.truncated, cut.attempt) == ("no_answer", True, 1)
    assert cut.completion_ids[-1] != EOS
    assert [d["text"] for p in attach(PROBLEMS, store, TOKENIZER) for d in p.demonstrations] == [r"6 * 7 = \boxed{42}"]


def test_what_was_imported_already_is_not_added_twice(tmp_path, grader):
    store = store_of(tmp_path / "s", [trace(text=ROWS[0]["text"], source="big")])  # sampled, which is another matter
    file = write(tmp_path / "big.jsonl", [*ROWS, ROWS[0]])
    assert import_traces(file, store, TOKENIZER, grader, PROBLEMS, "big")["added"] == 3
    before = files(tmp_path / "s")
    again = import_traces(file, store, TOKENIZER, grader, PROBLEMS, "big")
    assert (again["added"], again["known"]) == (0, 4)
    assert files(tmp_path / "s") == before
    assert import_traces(file, store, TOKENIZER, grader, PROBLEMS, "bigger")["added"] == 3
    assert sorted({(t.source, t.imported) for t in store}) == [("big", False), ("big", True), ("bigger", True)]


def test_an_import_that_was_cut_off_goes_on(tmp_path, grader, monkeypatch):
    monkeypatch.setattr("prefix_rl.data.imports._IMPORTED_AT_ONCE", 2)
    file = write(tmp_path / "big.jsonl", [{"problem_id": "a", "text": rf"{n}: \boxed{{42}}"} for n in range(5)])
    whole, cut = store_of(tmp_path / "whole"), store_of(tmp_path / "cut")
    import_traces(file, whole, TOKENIZER, grader, PROBLEMS)
    with monkeypatch.context() as patch:
        fails(patch, KeyboardInterrupt(), after=2)  # the first part and its name are on the disk
        with pytest.raises(KeyboardInterrupt):
            import_traces(file, cut, TOKENIZER, grader, PROBLEMS)
    assert len(cut) == 2
    import_traces(file, TraceStore.open(tmp_path / "cut"), TOKENIZER, grader, PROBLEMS)
    assert list(cut) == list(whole)
    assert [t.attempt for t in cut] == [0, 1, 2, 3, 4]


def test_the_traces_of_another_tokenizer_are_tokenized_anew(tmp_path, grader):
    theirs = characters()
    text = r"6 * 7 = \boxed{42}"
    made = trace(text=text, ids=[*theirs(text)["input_ids"], theirs.eos_token_id], flops=70.0)
    other = store_of(tmp_path / "theirs", [made, trace(text="", ids=[theirs.eos_token_id])], tokenizer=theirs)
    store = store_of(tmp_path / "ours")
    assert import_traces(other.folder, store, TOKENIZER, grader, PROBLEMS)["added"] == 1
    (found,) = store
    assert found == trace(text=text, source="policy", prompt_tokens=0, flops=70.0, imported=True)
    assert store.cost() == Cost(flops=70.0)


def test_rows_that_cannot_be_imported_are_all_named_and_nothing_is_added(tmp_path, grader):
    rows = [ROWS[0], {"problem_id": "a"}, {"text": "t"}, {"problem_id": "a", "problem": "other", "text": "t"},
            {"problem_id": "a", "text": "t", "flops": "many", "truncated": "no"}, {"problem_id": "a", "text": "\ud800"}]  # fmt: skip
    store = store_of(tmp_path / "s")
    with pytest.raises(DataError) as error:
        import_traces(write(tmp_path / "big.jsonl", rows), store, TOKENIZER, grader, PROBLEMS)
    text = str(error.value)
    for part in (":2: no trace in text, completion, solution; there are 'problem_id'", ":3: neither problem_id nor",
                 ":4: problem a is '6 * 7?' in the data, here it is 'other'", ":5: flops = 'many'", ":5: truncated = 'no'",
                 ":6: the trace is broken Unicode"):  # fmt: skip
        assert part in text
    assert ":1:" not in text
    assert len(store) == 0


def test_an_import_that_makes_no_sense_is_refused(tmp_path, grader):
    store = store_of(tmp_path / "s", [trace()])
    with pytest.raises(DataError, match="none of the 1 rows"):
        import_traces(write(tmp_path / "other.jsonl", ROWS[3:]), store, TOKENIZER, grader, PROBLEMS)
    with pytest.raises(DataError, match="is the trace store itself"):
        import_traces(tmp_path / "s", store, TOKENIZER, grader, PROBLEMS)
    with pytest.raises(DataError, match="another tokenizer"):
        import_traces(write(tmp_path / "big.jsonl", ROWS), store, characters(), grader, PROBLEMS)
    with pytest.raises(DataError, match="there is no file"):
        import_traces(tmp_path / "nothing.jsonl", store, TOKENIZER, grader, PROBLEMS)
    assert len(store) == 1


# --- which problems are sampled ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"k": 0}, "k = 0: must be at least 1"), ({"wanted": 0}, "wanted = 0"), ({"cap": 4}, "cap = 4: fewer than the k = 8"),
     ({"max_pass_rate": 1.5}, "max_pass_rate = 1.5: a share"), ({"max_pass_rate": float("nan")}, "max_pass_rate = nan")],
)  # fmt: skip
def test_a_plan_that_makes_no_sense_is_refused(changes, message):
    (found,) = Plan(**{"k": 8, "cap": 20, **changes}).faults()
    assert message in found
    assert Plan(k=8, cap=8).faults() == []


@pytest.mark.parametrize(
    ("rate", "right", "hard"), [(0.0, 0, True), (0.0, 1, False), (0.29, 29, True), (0.29, 30, False)]
)
def test_a_problem_is_hard_up_to_the_given_pass_rate(rate, right, hard):
    # 0.29 * 100 is 28.999..., but 29 of 100 are 0.29
    assert Plan(k=100, max_pass_rate=rate, cap=100).is_hard(Tally(100, right, right)) == hard


def attempts(*numbers, k=4, right=()):
    made = Attempts()
    for n in numbers:
        made.add(n, k, "right" if n in right else "wrong", False)
    return made


def test_every_problem_gets_k_attempts_and_hard_ones_rounds_of_an_eighth_more():
    plan = Plan(k=16, cap=22)
    assert plan.next_attempts(attempts(k=16)) == list(range(16))
    assert plan.next_attempts(attempts(*range(16), k=16)) == [16, 17]
    assert plan.next_attempts(attempts(*range(18), k=16)) == [18, 19, 20]  # ceil(18 / 8) = 3
    assert plan.next_attempts(attempts(*range(21), k=16)) == [21]
    assert plan.next_attempts(attempts(*range(22), k=16)) == []
    assert plan.next_attempts(attempts(*range(16), k=16, right={3})) == []


def test_a_round_that_was_begun_is_completed_before_it_is_looked_at():
    plan = Plan(k=16, cap=22)
    assert plan.next_attempts(attempts(*range(16), 17, k=16, right={17})) == [16]
    assert plan.next_attempts(attempts(*range(18), k=16, right={17})) == []
    assert plan.next_attempts(attempts(0, 5, k=8)) == [1, 2, 3, 4, 6, 7, *range(8, 16)]


@given(seed=st.integers(0, 10**6), at_once=st.integers(1, 12), kills=st.lists(st.integers(1, 60), max_size=3))
@examples(40)
def test_the_attempts_do_not_depend_on_order_or_kills(seed, at_once, kills):
    plan, count = Plan(k=8, wanted=2, cap=30), 5

    def outcome(i, n):
        return "right" if random.Random(repr((seed, i, n))).random() < (0, 0.05, 0.1, 0.3, 0.9)[i] else "wrong"

    def run(done, at_once, order, stop=None):
        collection = Collection(plan, done, range(count))
        source, running, made = collection.ahead(), [], 0
        while True:
            while len(running) < at_once and (at := next(source, "end")) not in (None, "end"):
                running.append(at)
            if not running:
                return True
            i, n = running.pop(order.randrange(len(running)))
            collection.back(i, n, outcome(i, n), False)
            if (made := made + 1) == stop:
                return False

    def numbers(done):
        return [sorted([*range(a.upto), *a.beyond]) for a in done]

    plain = [Attempts() for _ in range(count)]
    assert run(plain, 1, random.Random(0))
    assert Collection(plan, plain, range(count)).is_done()
    done, order = [Attempts() for _ in range(count)], random.Random(seed)
    for stop in kills:
        run(done, at_once, order, stop)
        for one in done:
            one.running = 0
    assert run(done, at_once, order)
    assert numbers(done) == numbers(plain)
    assert all(8 <= len(n) <= 30 for n in numbers(plain))


# --- the command's function -------------------------------------------------------------------------------------------

RECIPE = str(Path(__file__).parents[1] / "recipes" / "lab" / "prefix_rft.yaml")
WORLD = ["data.lab.slots=3", "data.lab.modulus=3", "data.lab.operations=2", "data.lab.slip_small=0.1", "data.lab.slip_large=0.9",
         "training.max_completion_length=12"]  # fmt: skip
TRAINED = [*WORLD, "data.lab.base_steps=300", "data.lab.problems=6"]
UNTRAINED = [*WORLD, "data.lab.base_steps=1", "data.lab.problems=3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted collection: of its six problems some are easy and some are hard."""
    folder = tmp_path_factory.mktemp("collect") / "whole"
    return folder, collect(RECIPE, TRAINED, folder, k=8, cap=30, wanted=2, batch_size=10)


def traces(folder):
    """What was sampled, whatever the order and the parts."""
    return sorted((vars(t) for t in TraceStore.open(folder)), key=lambda t: (t["problem_id"], t["attempt"]))


def again(folder, *overrides, **changes):
    return collect(
        RECIPE, [*TRAINED, *overrides], folder, **{"k": 8, "cap": 30, "wanted": 2, "batch_size": 10, **changes}
    )


def test_the_lab_has_problems_of_every_kind(whole):
    folder, summary = whole
    tallies = TraceStore.open(folder).attempts().values()
    assert any(t.attempts == 8 and t.usable for t in tallies)
    assert any(t.attempts > 8 for t in tallies)
    assert summary["hard"]["problems"] == summary["pass_at_k"]["never"] > 0
    assert summary["pass_at_k"]["solved"] == 6 - summary["pass_at_k"]["never"] > 0


@pytest.mark.parametrize("after", [5, 7, 14], ids=["the first part", "the second part", "stage 2"])
def test_a_collection_that_was_killed_goes_on_as_if_it_had_not(tmp_path, monkeypatch, capsys, whole, after):
    # a file takes two calls (its content, then its name); store.json comes first, and again with the engine in it
    with monkeypatch.context() as patch:
        fails(patch, KeyboardInterrupt(), after - 1)
        with pytest.raises(KeyboardInterrupt):
            again(tmp_path / "cut")
    assert "The same command goes on from there" in capsys.readouterr().err
    left = files(tmp_path / "cut")
    assert "summary.json" not in left
    again(tmp_path / "cut")
    assert traces(tmp_path / "cut") == traces(whole[0])
    assert len(left) < len(files(whole[0]))


def test_a_full_disk_stops_a_collection_and_the_same_command_goes_on(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        fails(patch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), after=6)
        with pytest.raises(DataError, match=r"No space left on device.*the same command goes on"):
            again(tmp_path / "full")
    assert not [name for name in files(tmp_path / "full") if name.endswith(".partial")]
    again(tmp_path / "full")
    assert traces(tmp_path / "full") == traces(whole[0])


def test_a_finished_collection_samples_nothing_more(whole, monkeypatch):
    folder, summary = whole
    before = files(folder)
    monkeypatch.setattr(collecting, "engine_for", None)
    assert again(folder) == summary
    assert files(folder) == before


def test_what_was_sampled_is_what_its_text_says(whole, grader):
    folder, _ = whole
    store = TraceStore.open(folder)
    tokenizer = load_tokenizer(store.facts["model"])
    for made in store:
        assert tokenizer.decode(made.completion_ids, skip_special_tokens=True) == made.text
        assert (made.completion_ids[-1] == tokenizer.eos_token_id) is not made.truncated
        assert made.prompt_tokens == 5  # start, three additions, "?"
        assert made.flops == 2 * store.facts["parameters"] * (5 + len(made.completion_ids))
    assert grader.grade([(t.text, t.answer) for t in store]) == [t.outcome for t in store]


def test_another_seed_samples_other_traces(tmp_path, whole):
    again(tmp_path / "other", k=2, cap=2, seed=1)
    theirs = {(t.problem_id, t.attempt): t.completion_ids for t in TraceStore.open(whole[0])}
    assert any(t.completion_ids != theirs[t.problem_id, t.attempt] for t in TraceStore.open(tmp_path / "other"))


def test_a_recipe_may_name_the_store_that_it_is_to_be_trained_on(tmp_path, whole):
    again(tmp_path / "store", f"data.traces={tmp_path / 'store'}")
    assert files(tmp_path / "store") == files(whole[0])


# --- a policy that does as it is told ---------------------------------------------------------------------------------


class Idle(Engine):
    """Takes the place of an engine; what comes of a completion is the script's."""

    stops, at_once = (1,), 4

    def __init__(self, script):
        super().__init__()
        self.script, self.waiting = script, []

    def submit(self, request):
        self.script["seeds"].append(request.seed)
        self.waiting.append(request)

    def finished(self, timeout):
        done, self.waiting = [(request, [11]) for request in self.waiting], []
        return done

    def facts(self):
        return {"name": "idle"}


@pytest.fixture
def scripted(monkeypatch):
    """Takes the place of sampling: ``script[problem id]`` are the numbers of the attempts that are right."""
    script = {"seeds": []}

    def graded(done, stops, tokenizer, grader, problems):
        made = []
        for request, _ in done:
            job = request.about
            kind = script.get(problems[job.problem].id, {}).get(job.index, "wrong")
            right, cut = kind in ("right", "cut"), kind == "cut"
            ids = [11, 12] if cut else [11, 12, tokenizer.eos_token_id]
            outcome = Outcome.RIGHT if right else Outcome.WRONG
            made.append(Sample(job.problem, 0, ids, "text", outcome, cut, job.index))
        return made

    monkeypatch.setattr(collecting, "engine_for", lambda *given: Idle(script))
    monkeypatch.setattr(collecting, "graded", graded)
    return script


def scripted_run(folder, **changes):
    options = {"k": 4, "cap": 10, "batch_size": 4, **changes}
    overrides = options.pop("overrides", [])
    summary = collect(RECIPE, [*UNTRAINED, *overrides], folder, **options)
    return summary, {i: tuple(tally) for i, tally in TraceStore.open(folder).attempts().items()}


def test_easy_problems_are_left_and_hard_ones_sampled_until_solved_or_capped(tmp_path, scripted):
    scripted.update({"train/0": {1: "right"}, "train/1": {5: "right"}})
    summary, tallies = scripted_run(tmp_path / "s")
    # a round has one attempt, an eighth of 4 to 8; train/1 is right in its second
    assert tallies == {"train/0": (4, 1, 1), "train/1": (6, 1, 1), "train/2": (10, 0, 0)}
    assert summary["pass_at_k"] == {"k": 4, "never": 2, "rarely": 0, "solved": 1, "pass_at_k": pytest.approx(1 / 3)}
    assert summary["hard"] == {"problems": 2, "with_all_wanted": 1, "with_some": 0, "with_none": 1, "mean_attempts": 8.0,
                               "ids": ["train/1", "train/2"]}  # fmt: skip
    assert summary["problems_with_a_usable_trace"] == 2
    n = summary["parameters"]
    # 20 attempts, each 5 tokens of prompt and 3 of completion
    assert summary["sampled"] == {"traces": 20, "right": 2, "wrong": 18, "ungraded": 0, "truncated": 0,
                                  "prompt_tokens": 100, "generated_tokens": 60, "flops": 2.0 * n * 160, "flops_unknown": 0}  # fmt: skip
    assert summary["versions"]["torch"]
    assert json.loads((tmp_path / "s" / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_every_attempt_has_random_numbers_of_its_own(tmp_path, scripted):
    scripted_run(tmp_path / "one")
    scripted_run(tmp_path / "two", seed=1)
    assert len(set(scripted["seeds"])) == len(scripted["seeds"]) == 60  # 3 * 10 attempts, twice


def test_several_traces_may_be_wanted_and_truncated_ones_do_not_count(tmp_path, scripted):
    scripted.update({"train/0": {0: "right", 1: "right"}, "train/1": {0: "cut", 4: "cut", 5: "right", 7: "right"},
                     "train/2": {6: "right"}})  # fmt: skip
    summary, tallies = scripted_run(tmp_path / "s", wanted=2, max_pass_rate=0.25)
    # train/0 passes half the time; train/1 a quarter, which is rare here
    assert tallies == {"train/0": (4, 2, 2), "train/1": (8, 4, 2), "train/2": (10, 1, 1)}
    assert (summary["pass_at_k"]["never"], summary["pass_at_k"]["rarely"], summary["pass_at_k"]["solved"]) == (1, 1, 1)
    assert (summary["hard"]["with_all_wanted"], summary["hard"]["with_some"], summary["hard"]["with_none"]) == (1, 1, 0)


def test_a_problem_above_the_pass_rate_gets_no_more_attempts_though_more_traces_are_wanted(tmp_path, scripted):
    scripted.update({"train/0": {3: "right"}})
    _, tallies = scripted_run(tmp_path / "s", wanted=2)
    assert tallies == {"train/0": (4, 1, 1), "train/1": (10, 0, 0), "train/2": (10, 0, 0)}


def test_a_hard_problem_stays_hard_when_stage_2_solves_it(tmp_path, scripted):
    scripted.update({"train/0": {5: "right", 7: "right"}})
    _, tallies = scripted_run(tmp_path / "s", cap=6, wanted=2)
    assert tallies["train/0"] == (6, 1, 1)
    summary, tallies = scripted_run(tmp_path / "s", wanted=2)
    assert tallies["train/0"][1:] == (2, 2)
    assert summary["hard"]["ids"] == ["train/0", "train/1", "train/2"]
    rows = [json.loads(line) for line in (tmp_path / "s" / "hard.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == summary["hard"]["ids"]
    hard = load(str(tmp_path / "s" / "hard.jsonl"))  # training rows that match the store
    assert [p.id for p in attach(hard, TraceStore.open(tmp_path / "s")) if p.demonstrations] == ["train/0"]


def test_k_wanted_and_cap_may_grow(tmp_path, scripted):
    scripted.update({"train/0": {1: "right"}, "train/1": {5: "right"}})
    scripted_run(tmp_path / "s", cap=4)
    _, tallies = scripted_run(tmp_path / "s", cap=6)
    assert tallies == {"train/0": (4, 1, 1), "train/1": (6, 1, 1), "train/2": (6, 0, 0)}
    summary, tallies = scripted_run(tmp_path / "s", k=8, cap=8)
    assert tallies == {"train/0": (8, 1, 1), "train/1": (8, 1, 1), "train/2": (8, 0, 0)}
    assert (summary["pass_at_k"]["k"], summary["pass_at_k"]["never"]) == (8, 1)  # train/1 was right within eight
    assert [t.attempt for t in TraceStore.open(tmp_path / "s") if t.problem_id == "train/2"] == list(range(8))


def test_going_on_in_another_way_is_refused_with_every_difference(tmp_path, scripted):
    scripted_run(tmp_path / "s")
    with pytest.raises(DataError) as error:
        scripted_run(tmp_path / "s", k=3, cap=9, max_pass_rate=0.5, seed=1, temperature=0.7,
                     overrides=["data.lab.base_seed=1", "data.lab.seed=4", "data.lab.modulus=4"])  # fmt: skip
    text = str(error.value)
    for part in ("another tokenizer", "another model", "other problems", "other prompts", "k was 4, now 3; it may grow", "cap was 10, now 9",
                 "max_pass_rate was 0.0, now 0.5", "seed was 0, now 1", "temperature was 1.0, now 0.7"):  # fmt: skip
        assert part in text
    assert "wanted" not in text
    with pytest.raises(DataError, match="was collected in another way") as error:
        scripted_run(tmp_path / "s", overrides=["data.instruction=' +0'"])
    assert error.value.faults == ["other prompts: the instruction, the system prompt or the chat template has changed"]


def test_a_policy_may_be_given_by_its_folder(tmp_path, scripted):
    summary, _ = scripted_run(tmp_path / "lab")
    summary, _ = scripted_run(tmp_path / "same", policy=summary["policy"], overrides=["model.name_or_path=/nowhere"])
    assert files(tmp_path / "same") == files(tmp_path / "lab")
    with pytest.raises(DataError, match="there is no folder /nowhere"):
        scripted_run(tmp_path / "none", policy="/nowhere")


def test_settings_that_make_no_sense_are_all_named_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "Policy", None)
    with pytest.raises(UserError) as error:
        collect(RECIPE, UNTRAINED, tmp_path / "s", k=0, max_pass_rate=2, batch_size=0, temperature=0.0)
    assert [p.split(" ")[0] for p in error.value.faults] == ["k", "max_pass_rate", "batch_size", "temperature"]
    assert not (tmp_path / "s").exists()


def test_ids_that_stand_for_two_problems_are_refused(tmp_path):
    rows = write(tmp_path / "rows.jsonl", [{"id": "a", "problem": p, "answer": "1"} for p in ("x", "y")])
    with pytest.raises(DataError, match=r"the id 'a' stands at"):
        collect(RECIPE, [*UNTRAINED, f"data.train={rows}"], tmp_path / "s")


def test_traces_of_another_model_are_imported_by_the_recipe(tmp_path, scripted):
    from prefix_rl.recipe import load_recipe, training_data

    (first, second, _) = training_data(load_recipe(RECIPE, UNTRAINED))
    rows = [
        {"problem_id": first.id, "text": first.demonstrations[0]["text"]},
        {"problem": second.text, "text": r"\boxed{( 0 , 0 , 9 )}"},
    ]
    file = write(tmp_path / "big.jsonl", rows)
    summary = import_file(RECIPE, UNTRAINED, tmp_path / "s", file, source="big")
    assert summary["last_import"]["outcomes"] == {"right": 1, "wrong": 1}
    assert summary["pass_at_k"] is None  # nothing was sampled
    assert summary["imported"]["big"]["flops_unknown"] == 2
    # they do not count as attempts of the policy, and do not shift its random numbers
    summary, tallies = scripted_run(tmp_path / "s")
    assert tallies == {"train/0": (10, 0, 0), "train/1": (10, 0, 0), "train/2": (10, 0, 0)}
    assert (summary["sampled"]["traces"], summary["imported"]["big"]["traces"]) == (30, 2)
    assert summary["problems_with_a_usable_trace"] == 1
    import_file(RECIPE, UNTRAINED, tmp_path / "s", file, source="big")
    assert len(TraceStore.open(tmp_path / "s")) == 32


def test_the_table_says_what_was_found_and_what_it_cost(tmp_path, scripted):
    scripted.update({"train/0": {1: "right"}, "train/1": {5: "right"}})
    summary, _ = scripted_run(tmp_path / "s")
    summary = {
        **summary,
        "policy": "base",
        "imported": {"big": {**summary["sampled"], "flops": 0.0, "flops_unknown": 20}},
    }
    summary["sampled"]["flops"] = 35_573_760.0
    assert collect_main_table(summary).splitlines() == [
        "3 problems of lab",
        "base, 4 attempts at every problem",
        "            2  never solved",
        "            1  solved",
        "2 hard problems, 8 attempts each in the mean",
        "            1  have a right trace",
        "            1  have none after 10 attempts",
        "20 traces sampled",
        "            2  right",
        "           18  not right",
        "           60  tokens generated",
        "     3.56e+07  floating-point operations",
        "20 traces imported from big",
        "            2  right",
        "           18  not right",
        "           60  tokens generated",
        "            0  floating-point operations, not known for 20",
    ]
