"""`prepare`: raw rows to training rows."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small import byte_level_bpe, with_chat_template, write

from prefix_rl.data import prepare as module
from prefix_rl.data.prepare import PRESETS, Settings, dropped_path, is_verified, manifest_path, prepare
from prefix_rl.data.problems import load, with_demonstrations_for
from prefix_rl.data.tokenizer import DemonstrationTable, prompt_length
from prefix_rl.errors import DataError
from prefix_rl.rewards.workers import Grader

GSM8K = {"question": "6 * 7?", "answer": "6 * 7 = <<6*7=42>>42 clips\n#### 42"}
MATH = {"problem": "What is $6 \\cdot 7$?", "solution": r"It is $\boxed{42}$.", "level": "Level 1"}
OPEN_R1 = {
    "problem": "Six times seven?",
    "answer": "42",
    "generations": [r"<think>6*7</think> \boxed{42}", r"\boxed{41}"],
}


@pytest.fixture(scope="module")
def grader():
    made = Grader(workers=1)
    yield made
    made.close()


def step(manifest, name):
    return next(s for s in manifest["funnel"] if s["step"] == name)


def dropped(output):
    return [json.loads(line) for line in dropped_path(output).read_text().splitlines()]


def addition(count, seed=0, words=0):
    """Rows of sums, each with a right and a wrong demonstration; words make them longer."""
    draw = random.Random(seed)
    filler = " ".join(draw.choice(["so", "then", "thus"]) for _ in range(words))
    for i in range(count):
        a, b = draw.randrange(10**6), draw.randrange(10**6)
        yield {"id": f"s{i}", "problem": f"What is {a} + {b}?", "answer": str(a + b),
               "demonstrations": [f"{filler} \\boxed{{{a + b}}}", f"\\boxed{{{a + b + 1}}}"]}  # fmt: skip


# --- the steps --------------------------------------------------------------------------------------------------------


def test_everything_that_goes_in_is_counted(tmp_path, grader):
    rows = [
        GSM8K, MATH, OPEN_R1,
        {"problem": "p"}, {"problem": "", "answer": "1"}, {"problem": "a", "answer": r"\frac{1"},
        {"problem": "b", "answer": "1", "solution": r"\boxed{1}" + " x" * 400}, {"problem": "c", "answer": "1", "solution": "#"},
        {"problem": "d", "answer": "1", "solution": None}, {"problem": "e", "answer": "1", "generations": ["x"], "is_reasoning_complete": [False]},
        {"problem": "Every morning Aya goes for a 9-kilometer walk", "answer": "1", "solution": r"\boxed{1}"},
        {"problem": "d ", "answer": "1", "solution": r"\boxed{1}"}, {"problem": "$d$", "answer": "2", "solution": r"\boxed{2}"},
    ]  # fmt: skip
    evaluation = write(
        tmp_path / "e.jsonl", [{"problem": "Every morning Aya goes for a 9-kilometer walk, then rests."}]
    )
    out = tmp_path / "out.jsonl"
    manifest = prepare(
        write(tmp_path / "raw.jsonl", rows), out, Settings(max_completion_length=200, against=(evaluation,)),
        tokenizer=byte_level_bpe(), grader=grader,
    )  # fmt: skip
    assert [(s["step"], s["rows"], s["demonstrations"]) for s in manifest["funnel"]] == [
        # 13 rows: 2 have no demonstration, 1 empty, 1 none; OPEN_R1 has two
        ("read", 13, 10), ("check", 11, 9), ("contamination", 10, 8), ("duplicates", 8, 7), ("difficulty", 8, 7),
        ("budget", 8, 5), ("grading", 7, 4), ("choice", 7, 4),
    ]  # fmt: skip
    assert step(manifest, "check")["dropped"] == {
        "rows": {"no column 'answer'": 1, "problem is empty": 1}, "demonstrations": {"it is not complete": 1},
    }  # fmt: skip
    assert step(manifest, "contamination")["dropped"]["rows"] == {
        f"it shares 8 words in a row, or all, with a problem of {evaluation}": 1
    }
    assert step(manifest, "duplicates")["dropped"] == {
        "rows": {"the same problem as an earlier row, which got its demonstrations": 1,
                 "the same problem as an earlier row, with another answer": 1},
        "demonstrations": {"its problem was dropped": 1},
    }  # fmt: skip
    assert step(manifest, "budget")["dropped"]["demonstrations"] == {
        "it is longer than max_completion_length = 200 tokens": 1, "it is shorter than two tokens": 1,
    }  # fmt: skip
    assert step(manifest, "grading")["dropped"] == {
        "rows": {"the gold answer cannot be parsed": 1}, "demonstrations": {"its final answer is not the gold answer": 1},
    }  # fmt: skip
    kept = load(str(out))
    assert [(p.id, len(p.demonstrations)) for p in kept] == [
        ("0", 1), ("1", 1), ("2", 1), ("6", 0), ("7", 0), ("8", 1), ("9", 0),  # 8 got its copy's demonstration
    ]  # fmt: skip
    assert (manifest["rows"], manifest["rows_with_demonstration"], manifest["demonstrations"]) == (7, 4, 4)
    assert is_verified(str(out))
    listed = dropped(out)
    assert len(listed) == sum(n for s in manifest["funnel"] for k, c in s["dropped"].items() for r, n in c.items()
                              if r != "its problem was dropped")  # fmt: skip
    (aya,) = [row for row in listed if row["step"] == "contamination"]
    assert aya["place"].endswith("raw.jsonl:11")
    assert (aya["evaluation_id"], aya["words"], aya["shared"]) == (
        "0",
        9,
        "every morning aya goes for a 9 kilometer walk",
    )


def test_a_missing_column_is_named_with_those_that_exist(tmp_path, grader):
    raw = write(tmp_path / "raw.jsonl", [{"frage": "p", "loesung": "1"}] * 2)
    with pytest.raises(DataError) as error:
        prepare(raw, tmp_path / "out.jsonl", grader=grader)
    assert "2 rows: no column 'problem'; for example" in error.value.faults[0]
    told = "raw.jsonl:1: no column 'problem'; no column 'answer'; there are the columns frage, loesung"
    assert told in error.value.faults[0]
    assert "--column OURS=THEIRS" in str(error.value)
    with pytest.raises(DataError, match=r"did you mean frage\?"):
        prepare(raw, tmp_path / "out.jsonl", Settings(columns={"problem": "frag"}), grader=grader)
    prepare(raw, tmp_path / "out.jsonl", Settings(columns={"problem": "frage", "answer": "loesung"}), grader=grader)
    assert [p.text for p in load(str(tmp_path / "out.jsonl"))] == ["p"]


def test_wrong_types_are_dropped_with_their_reason(tmp_path, grader):
    odd = [{"answer": True}, {"answer": [1]}, {"answer": float("nan")}, {"problem": 7.5}, {"answer": 3, "id": {"a": 1}}, {"problem": "\ud800"},
           {"demonstrations": "text"}, {"demonstrations": [1]}, {"demonstrations": ["\udfff"]}, {"pass_rate": "high"}, {"answer": None, "\udc00": 1}]  # fmt: skip
    rows = [{"problem": f"p{i}", "answer": "1", **row} for i, row in enumerate(odd)]
    manifest = prepare(write(tmp_path / "raw.jsonl", rows), tmp_path / "out.jsonl", grader=grader)
    assert step(manifest, "check")["dropped"]["rows"] == {
        "no column 'answer'": 1, "answer is a bool, not a text": 1, "answer is a list, not a text": 1, "answer is nan, not a text": 1,
        "id is a dict, not a text or an integer": 1, "problem is broken Unicode (half of a surrogate pair)": 1,
        "demonstrations must be a list of texts, or of objects with a text": 1,
        "a demonstration is broken Unicode (half of a surrogate pair)": 1, "pass_rate is no number in [0, 1]": 1,
    }  # fmt: skip
    assert {p.text for p in load(str(tmp_path / "out.jsonl"))} == {"7.5", "p6"}  # a lone text is a demonstration


def test_ids_that_stand_for_two_problems_are_refused(tmp_path, grader):
    rows = [{"id": "a", "problem": "p", "answer": "1"}, {"id": "b", "problem": "q", "answer": "1"}, {"id": "a", "problem": "r", "answer": "1"},
            {"id": "b", "problem": " q", "answer": "1"}]  # fmt: skip
    raw, out = write(tmp_path / "raw.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(DataError) as error:
        prepare(raw, out, grader=grader)
    assert error.value.faults == [f"id 'a': {raw}:1 and {raw}:3"]  # b is one problem, twice
    assert not out.with_name("out.jsonl.partial").exists()
    prepare(raw, out, Settings(renumber=True), grader=grader)
    assert [p.id for p in load(str(out))] == ["0", "1", "2"]


def test_several_sources_are_one(tmp_path, grader):
    first = write(tmp_path / "first.jsonl", [{"problem": "p", "answer": "1"}, {"problem": "q", "answer": "2"}])
    second = write(
        tmp_path / "second.jsonl",
        [{"problem": "q", "answer": "2", "solution": r"\boxed{2}"}, {"problem": "r", "answer": "3"}],
    )
    manifest = prepare([first, second], tmp_path / "out.jsonl", Settings(limit=4), grader=grader)
    kept = load(str(tmp_path / "out.jsonl"))
    assert [(p.id, len(p.demonstrations)) for p in kept] == [("first/0", 0), ("first/1", 1), ("second/1", 0)]
    assert [s["source"] for s in manifest["sources"]] == [first, second]


def test_copies_bring_their_demonstrations_each_text_once(tmp_path, grader):
    rows = [{"problem": "p", "answer": "1", "generations": [r"a \boxed{1}", r"b \boxed{1}"]},
            {"problem": "P", "answer": "1", "generations": [r"b \boxed{1}", r"c \boxed{1}"]},
            {"problem": "p", "answer": "2", "generations": [r"d \boxed{2}"]}]  # fmt: skip
    raw, out = write(tmp_path / "raw.jsonl", rows), tmp_path / "out.jsonl"
    prepare(raw, out, grader=grader)
    assert [d["text"][0] for d in load(str(out))[0].demonstrations] == ["a", "b", "c"]
    manifest = prepare(raw, out, Settings(demonstrations=2), grader=grader)
    assert [d["text"][0] for d in load(str(out))[0].demonstrations] == ["a", "b"]
    assert step(manifest, "choice")["dropped"]["demonstrations"] == {"the problem has 2 already": 1}


def test_problems_of_a_pass_rate_can_be_chosen(tmp_path, grader):
    rows = [
        {"id": str(i), "problem": f"p {i}", "answer": "1", **({"pass_rate": 0.5} if i == 4 else {})} for i in range(6)
    ]
    rates = write(tmp_path / "rates.jsonl", [{"id": str(i), "right": i, "attempts": 4} for i in range(4)])
    raw, out = write(tmp_path / "raw.jsonl", rows), tmp_path / "out.jsonl"
    manifest = prepare(raw, out, Settings(pass_rates=rates, pass_rate=(0.25, 0.5)), grader=grader)
    assert [(json.loads(line)["id"], json.loads(line)["pass_rate"]) for line in out.read_text().splitlines()] == [
        ("1", 0.25), ("2", 0.5), ("4", 0.5)
    ]  # fmt: skip
    assert step(manifest, "difficulty")["dropped"]["rows"] == {
        "its pass rate is outside 0.25 to 0.5": 2,
        "its pass rate is not known": 1,
    }
    assert [p.id for p in load(str(out))] == ["1", "2", "4"]
    other = write(tmp_path / "other.jsonl", [{"id": "x", "pass_rate": 0.5}])
    with pytest.raises(DataError, match="none of the 1 ids of"):
        prepare(raw, out, Settings(pass_rates=other), grader=grader)


@pytest.mark.parametrize("share", [0.1, 0.01, 0.0])
def test_a_share_of_the_demonstrations_is_the_recipes_choice(tmp_path, grader, share):
    raw = write(tmp_path / "raw.jsonl", addition(200))
    prepare(raw, tmp_path / "all.jsonl", grader=grader)
    manifest = prepare(raw, tmp_path / "share.jsonl", Settings(demonstration_share=share, seed=3), grader=grader)
    wanted = with_demonstrations_for(load(str(tmp_path / "all.jsonl")), share, seed=3)
    assert [p.as_row() for p in load(str(tmp_path / "share.jsonl"))] == [p.as_row() for p in wanted]
    assert manifest["rows_with_demonstration"] == round(share * 200)
    assert step(manifest, "choice")["demonstrations"] == round(share * 200)


def test_the_46k_filter_is_made_of_the_options(tmp_path, grader):
    rows = [OPEN_R1, {"problem": "none", "answer": "1", "generations": [r"\boxed{2}"]},
            {"problem": "long", "answer": "1", "generations": [r"\boxed{1}" + " x" * 9000, r"so \boxed{1}", r"or \boxed{1}"]}]  # fmt: skip
    prepare(
        write(tmp_path / "raw.jsonl", rows),
        tmp_path / "out.jsonl",
        Settings(**PRESETS["openr1-46k"]),
        tokenizer=byte_level_bpe(),
        grader=grader,
    )
    texts = [[d["text"] for d in p.demonstrations] for p in load(str(tmp_path / "out.jsonl"))]
    assert texts == [[OPEN_R1["generations"][0]], [r"so \boxed{1}"]]


def test_settings_that_cannot_be_are_all_named():
    with pytest.raises(DataError) as error:
        Settings(ngram=1, similarity=1.5, demonstration_share=-1, limit=0, pass_rate=(0.1, 2.0))
    assert len(error.value.faults) == 5
    assert any(fault.startswith("prepare.ngram = 1: must be an integer of at least 2") for fault in error.value.faults)
    with pytest.raises(DataError, match=r"ngram[^$]*LOW <= HIGH"):
        Settings(pass_rate=(0.5, 0.1), ngram=0)


def test_an_evaluation_set_inside_the_sources_is_refused_unless_forced(tmp_path, grader):
    rows = [{"problem": f"What is the {i} th prime number?", "answer": "1"} for i in range(10)]
    evaluation = write(tmp_path / "e.jsonl", rows[:5])
    raw, out = write(tmp_path / "raw.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"e\.jsonl: 5 of its 5 problems"):
        prepare(raw, out, Settings(against=(evaluation,)), grader=grader)
    assert not out.exists()
    manifest = prepare(raw, out, Settings(against=(evaluation,), force=True), grader=grader)
    assert manifest["rows"] == 5
    assert manifest["evaluation_sets"][0] | {"set": "", "sha256": ""} == {
        "set": "", "sha256": "", "problems": 5, "found whole": 5, "rows dropped": 5, "with 13 words or more": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("output", "message"),
    [("raw.jsonl", "is a source, too"), ("out.json", "must end in .jsonl"), ("folder.jsonl", "is a folder")],
)
def test_an_output_that_cannot_be_is_refused(tmp_path, grader, output, message):
    (tmp_path / "folder.jsonl").mkdir()
    raw = write(tmp_path / "raw.jsonl", [GSM8K])
    with pytest.raises(DataError, match=message):
        prepare(raw, tmp_path / output, grader=grader)
    assert (tmp_path / "raw.jsonl").read_text() == json.dumps(GSM8K) + "\n"


# --- where the answer is readable -------------------------------------------------------------------------------------


def guarded_alike(prepared, guards=("mention", "statement", "none")):
    """Training cuts the demonstrations of a prepared file as it would cut their bare texts, and as ``readable`` says."""
    tokenizer, problems = byte_level_bpe(), load(prepared)
    count = 0
    for guard in guards:
        given = [p.demonstrations for p in problems]
        bare = [[d["text"] for d in demonstrations] for demonstrations in given]
        answers = [p.answer for p in problems]
        texts = [p.text for p in problems]
        ours, plain = (
            DemonstrationTable(d, answers, tokenizer, guard, usable=lambda d: True, problems=texts)
            for d in (given, bare)
        )
        for i, demonstrations in enumerate(given):
            assert ours[i] == plain[i]
            for made, d in zip(plain[i], demonstrations, strict=True):
                if guard != "none":
                    shown = len(tokenizer.decode(made.ids[: made.safe_length]))
                    further = len(tokenizer.decode(made.ids[: made.safe_length + 1]))
                    assert shown <= d["readable"][guard]
                    assert further > d["readable"][guard] or made.safe_length == len(made.ids)
                    count += 1
    return count


def test_what_is_stored_does_not_change_what_training_cuts(tmp_path, grader):
    rows = [{"problem": "p", "answer": "42", "generations": [r"6 * 7 = 42, so \boxed{42}", r"it is 4 and 2: \boxed{42}", r"\boxed{42}"]},
            {"problem": "q", "answer": r"\frac{1}{2}", "generations": [r"0.5 or $\frac{1}{2}$. The answer is $\frac12$."]}]  # fmt: skip
    out = tmp_path / "out.jsonl"
    prepare(write(tmp_path / "raw.jsonl", rows), out, grader=grader)
    first = load(str(out))[0].demonstrations[0]
    assert first["readable"] == {"mention": 8, "statement": 15}  # "6 * 7 = |42, so |\boxed"
    assert guarded_alike(str(out)) == 8


def test_real_demonstrations_are_cut_alike(tmp_path, shared_data, grader):
    out = tmp_path / "out.jsonl"
    names = ("demonstrations-qwen2.5-math.jsonl", "demonstrations-r1-sample.jsonl")
    manifest = prepare([str(shared_data / name) for name in names], out, grader=grader)
    assert manifest["rows"] == 98
    assert step(manifest, "duplicates")["demonstrations"] == 635
    tokenizer, problems = byte_level_bpe(), load(str(out))
    for guard in ("mention", "statement", "none"):
        given, answers = [p.demonstrations[:2] for p in problems], [p.answer for p in problems]
        bare = [[d["text"] for d in demonstrations] for demonstrations in given]
        texts = [p.text for p in problems]
        ours, plain = (DemonstrationTable(d, answers, tokenizer, guard, problems=texts) for d in (given, bare))
        assert all(ours[i] == plain[i] for i in range(len(given)))


def test_gsm8k_is_prepared_without_a_loss_but_one_rewording(tmp_path, shared_data):
    manifest = prepare(str(shared_data / "gsm8k-train.jsonl.gz"), tmp_path / "rows.jsonl")
    assert [(s["rows"], s["demonstrations"]) for s in manifest["funnel"]] == [(7473, 7473)] * 3 + [(7472, 7472)] * 5
    assert "<<" not in (tmp_path / "rows.jsonl").read_text()


# --- the same bytes, also after a kill --------------------------------------------------------------------------------


def test_the_same_input_gives_the_same_bytes_whatever_the_chunks(tmp_path, grader, monkeypatch):
    copies = [{**row, "id": f"c{i}"} for i, row in enumerate(addition(9))]
    raw = write(tmp_path / "raw.jsonl", [GSM8K, MATH, OPEN_R1, *addition(30), *copies, *[{"problem": "x"}] * 30])
    settings = Settings(demonstration_share=0.5, demonstrations=1)
    entered = []
    put = module.Chunks.put

    def counting(self, stage, number, lines, dropped, array, facts):
        entered.append(facts["funnel"]["entered"].get("rows", 0))
        put(self, stage, number, lines, dropped, array, facts)

    monkeypatch.setattr(module.Chunks, "put", counting)
    for name, rows, characters in (
        ("one", 1000, 10**6),
        ("rows", 7, 10**6),
        ("characters", 1000, 50),
        ("again", 1000, 10**6),
    ):
        monkeypatch.setattr(module.Chunks, "rows_at_once", rows)
        monkeypatch.setattr(module.Chunks, "characters_at_once", characters)
        (tmp_path / name).mkdir()
        entered.clear()
        prepare(raw, tmp_path / name / "out.jsonl", settings, grader=grader)
        assert max(entered) <= rows
        assert name in ("one", "again") or len(entered) > 12
    for path in (tmp_path / "one").iterdir():
        for other in ("rows", "characters", "again"):
            mine, theirs = path.read_bytes(), (tmp_path / other / path.name).read_bytes()
            if "dropped" in path.name:  # a chunk lists what each step dropped of it
                mine, theirs = sorted(mine.splitlines()), sorted(theirs.splitlines())
            elif "manifest" in path.name and other != "again":
                mine, theirs = ({**json.loads(m), "dropped_sha256": ""} for m in (mine, theirs))
            assert mine == theirs
    assert len(list((tmp_path / "one").iterdir())) == 3


def test_the_demonstrations_of_many_copies_are_not_in_memory_together(tmp_path, grader, monkeypatch):
    plain = [{"id": str(i), "problem": f"p {i}", "answer": "1"} for i in range(10)]
    copies = [
        {**row, "id": f"{row['id']}/{k}", "solution": f"{'x' * 900} {k} \\boxed{{1}}"}
        for row in plain
        for k in range(3)
    ]
    monkeypatch.setattr(module.Chunks, "characters_at_once", 4000)
    sizes = []
    put = module.Chunks.put

    def sizing(self, stage, number, lines, *rest):
        sizes.append(sum(map(len, lines)))
        put(self, stage, number, lines, *rest)

    monkeypatch.setattr(module.Chunks, "put", sizing)
    manifest = prepare(write(tmp_path / "raw.jsonl", [*plain, *copies]), tmp_path / "out.jsonl", grader=grader)
    assert (manifest["rows"], manifest["demonstrations"]) == (10, 30)
    assert max(sizes) < 4000 + 3 * 1100  # the ten first rows stand in one chunk, and get 30 kB of demonstrations


PROGRAM = """
import os, signal, sys
from prefix_rl.data import prepare as module
from prefix_rl.rewards.workers import Grader
module.Chunks.rows_at_once = 40
put = module.Chunks.put

def killed(chunks, stage, number, *rest):
    found = put(chunks, stage, number, *rest)
    if (stage, number) == (sys.argv[3], 3):
        os.kill(os.getpid(), signal.SIGKILL)
    return found

module.Chunks.put = killed
module.prepare(sys.argv[1], sys.argv[2], module.Settings(demonstration_share=0.5), grader=Grader(1))
"""


@pytest.mark.parametrize("stage", ["read", "made"])
def test_killed_work_goes_on_and_ends_in_the_same_bytes(tmp_path, stage, monkeypatch):
    raw, out, whole = (
        write(tmp_path / "raw.jsonl", addition(400)),
        tmp_path / "a" / "out.jsonl",
        tmp_path / "b" / "out.jsonl",
    )
    last = tmp_path / "a" / "out.jsonl.partial" / f"{stage}-000003.json"
    assert subprocess.run([sys.executable, "-c", PROGRAM, raw, str(out), stage]).returncode == -signal.SIGKILL
    assert last.exists()
    assert not out.exists()
    done = {path.name: path.stat().st_mtime_ns for path in last.parent.glob(f"{stage}-00000[0-3].*")}
    assert len(done) == 16
    written = []
    put = module.Chunks.put
    monkeypatch.setattr(
        module.Chunks, "put", lambda self, s, n, *rest: (written.append((s, n)), put(self, s, n, *rest))
    )
    monkeypatch.setattr(module.Chunks, "rows_at_once", 40)
    prepare(raw, out, Settings(demonstration_share=0.5), grader=Grader(1))
    assert not {(stage, n) for n in range(4)} & set(written)  # what was done is not done again
    prepare(raw, whole, Settings(demonstration_share=0.5), grader=Grader(1))
    assert {p.name: p.read_bytes() for p in out.parent.iterdir()} == {
        p.name: p.read_bytes() for p in whole.parent.iterdir()
    }


def test_unfinished_work_of_another_command_is_not_continued(tmp_path, grader):
    raw, out = write(tmp_path / "raw.jsonl", [GSM8K]), tmp_path / "out.jsonl"

    def stop(what, total):
        if what == "grading demonstrations":
            raise KeyboardInterrupt
        return lambda n: None

    with pytest.raises(KeyboardInterrupt):
        prepare(raw, out, grader=grader, progress=stop)
    assert (tmp_path / "out.jsonl.partial" / "read-000000.json").exists()
    write(tmp_path / "raw.jsonl", [MATH])
    prepare(raw, out, grader=grader)
    assert [p.text for p in load(str(out))] == [MATH["problem"]]
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_full_disk_keeps_what_is_done(tmp_path, grader, monkeypatch):
    raw, out = write(tmp_path / "raw.jsonl", addition(30)), tmp_path / "out.jsonl"
    monkeypatch.setattr(module.Chunks, "rows_at_once", 10)
    put = module.Chunks.put

    def full(self, stage, number, *rest):
        if (stage, number) == ("made", 1):
            raise OSError(28, "No space left on device", "there")
        put(self, stage, number, *rest)

    monkeypatch.setattr(module.Chunks, "put", full)
    with pytest.raises(
        DataError, match=r"there: No space left on device\. What is done so far stands in .*out\.jsonl\.partial"
    ):
        prepare(raw, out, grader=grader)
    assert (tmp_path / "out.jsonl.partial" / "made-000000.json").exists()
    monkeypatch.setattr(module.Chunks, "put", put)
    assert prepare(raw, out, grader=grader)["rows"] == 30


def test_two_processes_do_not_make_the_same_file(tmp_path, grader):
    from filelock import FileLock

    (tmp_path / "out.jsonl.partial").mkdir()
    with (
        FileLock(tmp_path / "out.jsonl.partial" / ".lock"),
        pytest.raises(DataError, match="another process is making"),
    ):
        prepare(write(tmp_path / "raw.jsonl", [GSM8K]), tmp_path / "out.jsonl", grader=grader)


def test_a_file_that_was_edited_is_no_longer_verified(tmp_path, grader):
    out = tmp_path / "out.jsonl"
    prepare(write(tmp_path / "raw.jsonl", [GSM8K]), out, grader=grader)
    assert is_verified(str(out))
    out.write_text(out.read_text().replace("42", "43"))
    assert not is_verified(str(out))


def test_a_file_of_another_grader_is_not_verified(tmp_path, grader, monkeypatch):
    out = tmp_path / "out.jsonl"
    prepare(write(tmp_path / "raw.jsonl", [GSM8K]), out, grader=grader)
    monkeypatch.setattr(module, "GRADER_VERSION", module.GRADER_VERSION + "+")
    assert not is_verified(str(out))


def test_a_broken_source_writes_nothing(tmp_path, grader):
    (tmp_path / "raw.jsonl").write_text(json.dumps(GSM8K) + '\n{"question": ')
    with pytest.raises(DataError, match=r"raw\.jsonl:2: not JSON"):
        prepare(str(tmp_path / "raw.jsonl"), tmp_path / "out.jsonl", grader=grader)
    assert [p.name for p in tmp_path.iterdir()] == ["raw.jsonl"]


def test_a_source_of_which_nothing_is_left_is_explained(tmp_path, grader):
    raw = write(tmp_path / "raw.jsonl", [{"problem": "p", "answer": "1"}] * 2)
    with pytest.raises(DataError, match="1 rows: no demonstration is left"):
        prepare(raw, tmp_path / "out.jsonl", Settings(require_demonstration=True), grader=grader)
    assert not manifest_path(tmp_path / "out.jsonl").exists()


# --- memory -----------------------------------------------------------------------------------------------------------

MEASURED = """
import re, sys
from prefix_rl.data.prepare import prepare
from prefix_rl.rewards.workers import Grader
prepare(sys.argv[1], sys.argv[2], grader=Grader(1))
print(int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024)  # ru_maxrss begins at the parent's
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured as Linux tells it")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """Of 20,000 rows of 10 kB: rows that were kept would be 180 MB, below a few thousand they hide in what Python takes."""
    peaks = []
    for count in (2_000, 20_000):
        with (tmp_path / f"{count}.jsonl").open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in addition(count, words=2_000))  # 10 kB each
        arguments = [
            sys.executable,
            "-c",
            MEASURED,
            str(tmp_path / f"{count}.jsonl"),
            str(tmp_path / f"{count}-out.jsonl"),
        ]
        peaks.append(int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout))
    # 18,000 rows of 232 bytes of hashes, of which a column of 8 is in memory at a time, are 1 MB or so; as rows 180 MB
    assert peaks[1] - peaks[0] < 30, peaks


def test_problems_with_too_long_a_prompt_are_dropped_and_counted(tmp_path, grader):
    tokenizer = with_chat_template()
    rows = [
        {"problem": f"{'1 + ' * n}1 = ?", "answer": str(n + 1), "solution": f"\\boxed{{{n + 1}}}"} for n in (1, 2, 30)
    ]
    raw = write(tmp_path / "raw.jsonl", rows)
    longest = prompt_length(rows[1]["problem"], tokenizer)
    # the turn of the user around it: <|user|>, <|end|>, and <|assistant|>
    assert longest == len(tokenizer(rows[1]["problem"])["input_ids"]) + 3
    for most, kept in ((longest, 2), (longest - 1, 1)):
        out = tmp_path / f"{most}.jsonl"
        manifest = prepare(
            raw, out, Settings(max_prompt_length=most, similarity=None), tokenizer=tokenizer, grader=grader
        )
        assert [p.text for p in load(str(out))] == [row["problem"] for row in rows[:kept]]
        reason = f"its prompt is longer than max_prompt_length = {most} tokens"
        assert step(manifest, "budget")["dropped"]["rows"] == {reason: 3 - kept}
    with pytest.raises(DataError, match="max_prompt_length needs a tokenizer"):
        prepare(raw, tmp_path / "none.jsonl", Settings(max_prompt_length=5), grader=grader)


# --- messages, appended answers ---------------------------------------------------------------------------------------

SYSTEM, ASKS = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}
HINTS, AGAIN = {"role": "assistant", "content": "Try sums."}, {"role": "user", "content": "How?"}
SAYS = {"role": "assistant", "content": r"So \boxed{42}"}


def test_messages_are_prepared_with_all_their_turns_and_prepared_again(tmp_path, grader):
    rows = [
        {"messages": [SYSTEM, ASKS, HINTS, AGAIN, SAYS], "answer": "42"},
        {"prompt": [SYSTEM, ASKS], "completion": [SAYS], "answer": "42"},
        {"prompt": "What is 6 times 7?", "completion": SAYS["content"], "answer": "42"},
        {"messages": [ASKS, {"role": "tool", "content": "42"}, SAYS], "answer": "42"},
        {"prompt": "And 6 + 36?", "completion": [SAYS, AGAIN, SAYS], "answer": "42"},
    ]
    raw, out = write(tmp_path / "raw.jsonl", rows), tmp_path / "out.jsonl"
    manifest = prepare(raw, out, grader=grader)
    first, second, third, last = load(str(out))
    assert first.turns == (SYSTEM, ASKS, HINTS, AGAIN)
    assert first.text == "6 * 7?\n\nTry sums.\n\nHow?"
    assert (second.turns, second.text) == ((SYSTEM, ASKS), "6 * 7?")
    assert (third.turns, third.text) == ((), "What is 6 times 7?")
    assert [len(p.demonstrations) for p in (first, second, third, last)] == [1, 1, 1, 0]
    assert step(manifest, "check")["dropped"] == {
        "rows": {"turn 2 has the role 'tool'; read are system, user, assistant": 1},
        "demonstrations": {"it cannot be read: it is not one turn of the assistant": 1, "its problem was dropped": 1},
    }
    prepare(str(out), tmp_path / "again.jsonl", grader=grader)
    assert (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()
    prepare(raw, out, Settings(system_turns=False), grader=grader)
    assert [p.turns for p in load(str(out))] == [(ASKS, HINTS, AGAIN), (), (), ()]
    # without prepare the same rows are read, and those that cannot be are named
    direct = load(write(tmp_path / "direct.jsonl", rows[:3]))
    assert [(p.turns, p.text, p.demonstrations[0]["text"]) for p in direct] == [
        (p.turns, p.text, SAYS["content"]) for p in (first, second, third)
    ]
    with pytest.raises(DataError) as error:
        load(raw)
    told = str(error.value)
    assert "raw.jsonl:4: turn 2 has the role 'tool'" in told
    assert "raw.jsonl:5: a demonstration cannot be used: it is not one turn of the assistant" in told
    assert "raw.jsonl:3" not in told


def test_the_same_question_under_another_system_turn_is_another_problem(tmp_path, grader):
    other = {"role": "system", "content": "Answer in German."}
    rows = [{"messages": [turn, ASKS, SAYS], "answer": "42"} for turn in (SYSTEM, other, SYSTEM)]
    out = tmp_path / "out.jsonl"
    prepare(write(tmp_path / "raw.jsonl", rows), out, Settings(similarity=None), grader=grader)
    assert [p.turns[0] for p in load(str(out))] == [SYSTEM, other]


def test_long_messages_are_measured_with_all_their_turns(tmp_path, grader):
    tokenizer = with_chat_template()
    rows = [{"messages": [ASKS, HINTS, AGAIN, SAYS], "answer": "42"}, {"messages": [ASKS, SAYS], "answer": "42"}]
    both, one = (prompt_length(turns, tokenizer) for turns in ([ASKS, HINTS, AGAIN], [ASKS]))
    assert one == prompt_length("6 * 7?", tokenizer) < both
    for longest, kept in ((both, 2), (both - 1, 1)):
        out = tmp_path / "out.jsonl"
        raw = write(tmp_path / "raw.jsonl", rows)
        prepare(raw, out, Settings(max_prompt_length=longest), tokenizer=tokenizer, grader=grader)
        assert len(load(str(out))) == kept


def test_a_file_in_which_nothing_has_a_demonstration_is_said_to_be_one(tmp_path, grader):
    told = []
    for row in ({"response": r"\boxed{42}"}, {"solution": r"It is \boxed{41}"}, {"solution": r"It is \boxed{42}"}):
        raw = write(tmp_path / "raw.jsonl", [{"problem": "6 * 7?", "answer": "42", **row}])
        manifest = prepare(raw, tmp_path / "out.jsonl", grader=grader)
        told.append(None if manifest["rows_with_demonstration"] else module.without_demonstrations(manifest))
    assert "nothing was read from the columns response" in told[0]
    assert "1 were read and all were dropped (1: its final answer is not the gold answer)" in told[1]
    assert told[2] is None


def test_an_answer_is_appended_where_none_is_stated(tmp_path, grader):
    rows = [
        {"problem": "a", "answer": "42", "solution": "Six times seven makes it."},
        {"problem": "b", "answer": "42", "solution": r"So \boxed{41}, it seems."},  # states a wrong one
        {"problem": "c", "answer": "42", "demonstrations": ["<think>six times"]},  # was cut off
        {"problem": "d", "answer": "42", "demonstrations": [{"text": "Six times seven.", "readable_from": 3}]},
        {"problem": "e", "answer": "42", "solution": r"So \boxed{42}."},
        {
            "problem": "f",
            "answer": "42",
            "solution": "It is six times seven, for 6 and 7.",
        },  # 7 is a guess of the grader
    ]
    raw, out = write(tmp_path / "raw.jsonl", rows), tmp_path / "out.jsonl"
    assert prepare(raw, out, grader=grader)["demonstrations"] == 1
    manifest = prepare(raw, out, Settings(append_answer=True), grader=grader)
    texts = [[d["text"] for d in p.demonstrations] for p in load(str(out))]
    assert texts == [["Six times seven makes it.\n\n\\boxed{42}"], [], [], [], [r"So \boxed{42}."], [texts[5][0]]]
    assert (manifest["answers_appended"], manifest["demonstrations"]) == (2, 3)
    assert texts[5][0].endswith("for 6 and 7.\n\n\\boxed{42}")
    # what has become longer is measured again
    tokenizer = byte_level_bpe()
    length = len(tokenizer(rows[0]["solution"])["input_ids"]) + 1
    settings = Settings(append_answer=True, max_completion_length=length)
    dropped_now = step(prepare(raw, out, settings, tokenizer=tokenizer, grader=grader), "budget")["dropped"]
    assert dropped_now["demonstrations"] == {
        f"it is longer than max_completion_length = {length} tokens": 2
    }  # the first, and the last as it is


def test_solutions_of_olympiadbench_are_kept_with_their_answers_appended(tmp_path, grader, shared_data):
    with (shared_data / "olympiadbench.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(60), strict=False)]
    raw, out = write(tmp_path / "raw.jsonl", rows), tmp_path / "out.jsonl"
    without = prepare(raw, out, grader=grader)["demonstrations"]
    manifest = prepare(raw, out, Settings(append_answer=True), grader=grader)
    assert manifest["answers_appended"] == manifest["demonstrations"] - without >= 20
