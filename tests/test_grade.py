"""The command that grades a file: what it counts, what it writes, and what it says of bad input."""

import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
from command import prefix_rl

from prefix_rl.errors import DataError
from prefix_rl.grade import grade, parse_columns, shown, table
from prefix_rl.rewards.grading import Outcome
from prefix_rl.rewards.workers import Grader

ROWS = [
    {"id": "a", "completion": r"so \boxed{42}", "answer": "42"},
    {"id": "b", "completion": r"so \boxed{41}", "answer": "42"},
    {"id": "c", "completion": "I do not know", "answer": "42"},
    {"id": "d", "completion": r"\boxed{1}", "answer": ""},
    {"id": "e", "completion": r"\boxed{0.5}", "answer": r"\frac{1}{2}"},
]


@pytest.fixture(scope="module")
def grader():
    made = Grader(workers=1, deadline=2.0)
    yield made
    made.close()


def written(folder, rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_command_counts_shows_and_writes(tmp_path):
    done = prefix_rl("grade", written(tmp_path, ROWS), "--output", str(tmp_path / "out" / "graded.jsonl"))
    assert done.returncode == 0, done.stderr
    assert "5 completions" in done.stdout
    assert re.search(r"2 +40.0 %  right", done.stdout)
    for outcome in ("wrong", "no_answer", "bad_gold"):
        assert re.search(rf"1 +20.0 %  {outcome}", done.stdout)
    assert "rows.jsonl:4: " in done.stdout  # the gold answer that cannot be parsed
    assert re.search(r"second, independent checker decided 3 of them \(60.0 %\) and disagrees on 0", done.stdout)
    assert re.search(r"[\d,]+ completions a second; one takes [\d.]+ ms \(median\), [\d.]+ ms \(p99\)", done.stdout)
    lines = [json.loads(line) for line in (tmp_path / "out" / "graded.jsonl").open()]
    assert [line["outcome"] for line in lines] == ["right", "wrong", "no_answer", "bad_gold", "right"]
    assert [line["second"] for line in lines] == ["same", "different", None, None, "same"]
    assert [line["id"] for line in lines] == ["a", "b", "c", "d", "e"]
    assert lines[4] | {"found_by": ""} == {
        "place": lines[4]["place"], "id": "e", "outcome": "right", "answer": "0.5", "found_by": "", "gold": r"\frac{1}{2}",
        "second": "same", "second_answer": "0.5",
    }  # fmt: skip
    assert not list((tmp_path / "out").glob("*.partial"))


def test_disagreements_are_shown_side_by_side(tmp_path, grader, monkeypatch):
    monkeypatch.setattr("prefix_rl.rewards.second.same", lambda answer, gold: answer == "41")
    report = grade(written(tmp_path, ROWS), grader, show=2)
    # says different of a and e, which are right, and same of b, which is wrong; the first two are kept
    assert report.second == {"disagree": 3, "do not know": 1, "agree": 1}
    shown = table(report)
    assert "disagrees on 3, the first of which are" in shown
    assert shown.count("(second checker)") == 2
    assert re.search(r"right +42\n +different +42  \(second checker\)", shown)
    assert re.search(r"wrong +41\n +same +41  \(second checker\)", shown)


def test_without_a_second_checker_nothing_is_said_of_it(tmp_path):
    done = prefix_rl("grade", written(tmp_path, ROWS), "--no-second", "--output", str(tmp_path / "graded.jsonl"))
    assert "second, independent" not in done.stdout
    assert "second" not in json.loads((tmp_path / "graded.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize(
    "names", [("text", "gold"), ("prediction", "ground_truth"), ("output", "answer"), ("mine", "yours")]
)
def test_columns_are_known_by_name_or_named(tmp_path, grader, names):
    rows = [{names[0]: row["completion"], names[1]: row["answer"]} for row in ROWS]
    columns = parse_columns(["completion=mine", "answer=yours"]) if names[0] == "mine" else {}
    report = grade(written(tmp_path, rows), grader, columns=columns)
    assert report.outcomes[Outcome.RIGHT] == 2


def test_a_gold_answer_goes_before_the_answer_that_was_found(tmp_path, grader):
    rows = [
        {
            "text": r"\boxed{41}",
            "answer": "41",
            "gold": "42",
            "outcome": "wrong",
            "start": 0,
            "prompt": "p",
            "problem": "a",
        }
    ]
    report = grade(written(tmp_path, rows), grader)
    assert report.outcomes == {Outcome.WRONG: 1}
    assert not report.changed


def test_gz_parquet_numbers_and_conversations_are_read(tmp_path, grader):
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    said = [{"completion": [{"role": "assistant", "content": r"\boxed{42}"}], "answer": 42}]
    assert grade(str(tmp_path / "rows.jsonl.gz"), grader).outcomes[Outcome.RIGHT] == 2
    assert grade(str(tmp_path / "rows.parquet"), grader).outcomes[Outcome.RIGHT] == 2
    assert grade(written(tmp_path, said), grader).outcomes[Outcome.RIGHT] == 1


def test_saved_samples_are_graded_again_and_what_changed_is_shown(tmp_path, grader):
    samples = [{"problem": "p", "answer": "42", "outcome": before, "truncated": False, "text": text}
               for before, text in [("right", r"\boxed{42}"), ("wrong", r"\boxed{42}"), ("wrong", r"\boxed{42}"), ("right", r"\boxed{41}")]]  # fmt: skip
    shown = table(grade(written(tmp_path, samples), grader))
    assert re.search(
        r"other than the outcome that the file has\n +2 +50.0 %  wrong -> right\n +1 +25.0 %  right -> wrong", shown
    )
    assert "other than" not in table(grade(written(tmp_path, ROWS), grader))


def test_files_longer_than_a_block_are_graded_whole_and_in_order(tmp_path, grader, monkeypatch):
    monkeypatch.setattr("prefix_rl.grade._BLOCK", 7)
    rows = [{"completion": rf"\boxed{{{i}}}", "answer": str(i - i % 2)} for i in range(40)]
    report = grade(written(tmp_path, rows), grader, output=tmp_path / "graded.jsonl")
    assert report.outcomes == {Outcome.RIGHT: 20, Outcome.WRONG: 20}
    lines = [json.loads(line) for line in (tmp_path / "graded.jsonl").open()]
    assert [line["answer"] for line in lines] == [str(i) for i in range(40)]
    assert len(report.milliseconds) == 40


def test_the_start_reaches_the_grader(tmp_path, grader, monkeypatch):
    seen = []
    decide = grader.timed
    monkeypatch.setattr(grader, "timed", lambda samples, *a: (seen.extend(samples), decide(samples, *a))[1])
    rows = [{"completion": r"\boxed{42}, done", "answer": "42"}, {"completion": r"\boxed{42}, done", "answer": "42", "start": 10},
            {"completion": r"\boxed{42}, done", "answer": "42", "prefix": r"\boxed{42}"}]  # fmt: skip
    report = grade(written(tmp_path, rows), grader)
    assert grade(written(tmp_path, rows), grader, columns=parse_columns(["start=", "prefix="])).second["agree"] == 3
    seen = seen[: len(seen) // 2]
    assert [start for _, gold, start in (s for s in seen if len(s) == 3) if gold == "42"] == [0, 10, 10]
    assert report.second["do not know"] == 2  # behind the prefix it finds no answer either


def test_rules_are_named_and_reach_the_grader(tmp_path):
    path = written(tmp_path, [{"completion": "so we get 12.", "answer": "12"}])
    assert re.search("100.0 %  right", prefix_rl("grade", path).stdout)
    assert re.search("100.0 %  no_answer", prefix_rl("grade", path, "--rule", "fallback=none").stdout)
    done = prefix_rl("grade", path, "--rule", "fallback=sometimes")
    assert done.returncode == 2
    assert "must be one of last, none" in done.stderr


def test_lone_surrogates_are_written_as_json_and_shown(tmp_path, grader):
    rows = [{"completion": r"\boxed{\text{" + "\ud800" + "}}", "answer": "42"}]
    report = grade(written(tmp_path, rows), grader, output=tmp_path / "graded.jsonl")
    assert report.rows == 1
    assert "\ud800" in json.loads((tmp_path / "graded.jsonl").read_text())["answer"]
    table(report).encode()
    assert shown("a\ud800\nb") == r"a\ud800\nb"
    assert len(shown("x" * 1000)) == 70


@pytest.mark.parametrize(
    ("rows", "arguments", "said"),
    [
        ([{"solution": "x", "gold": "1"}], [], ["no column holds the completion", "'solution', 'gold'", "--column completion=solution"]),
        ([{"q": "x"}], [], ["no column holds the completion", "no column holds the answer"]),
        ([{"completion": "x", "answer": "1"}], ["--column", "completion=completoin"], ["no column 'completoin'", "did you mean completion?"]),
        ([{"completion": "x", "answer": "1"}], ["--column", "compleion=completion", "--column", "x"],
         ["compleion is not one of them (did you mean completion?)", "--column x: there is no ="]),
        ([{"completion": "x", "answer": "1"}, {"completion": None, "answer": "1"}, {"completion": "x", "answer": [1]}, {"completion": 5, "answer": True}],
         [], ["rows.jsonl:2: completion is null", "rows.jsonl:3: answer is a list", "rows.jsonl:4: completion is a int", "rows.jsonl:4: answer is a bool"]),
        ([{"completion": "x", "answer": "1"}, {"text": "x", "answer": "1"}], [], ["rows.jsonl:2: no column 'completion'; there are 'text', 'answer'"]),
        ([{"completion": "x", "answer": "1", "start": 2}, {"completion": "x", "answer": "1", "prefix": "y"}, {"completion": "x", "answer": "1", "start": "0"}],
         [], ["rows.jsonl:1: start = 2 is no offset", "rows.jsonl:2: the text does not begin with its prefix", "rows.jsonl:3: start = '0'"]),
        ([], [], ["holds no rows"]),
        ([{"completion": "x", "answer": "1"}], ["--rule", "no_such_rule=1", "--rule", "x", "--rule", "y=["], ["no_such_rule: no such key", "--rule x: give NAME=VALUE", "--rule y=[: give"]),
    ],
    ids=["missing column", "both missing", "wrong name", "wrong option", "mixed types", "column in some rows", "start and prefix", "empty", "rules"],
)  # fmt: skip
def test_bad_input_is_explained_all_at_once(tmp_path, rows, arguments, said):
    output = tmp_path / "graded.jsonl"
    done = prefix_rl("grade", written(tmp_path, rows), "--output", str(output), *arguments)
    assert done.returncode == 2
    for words in said:
        assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not output.exists()


@pytest.mark.parametrize("name", ["rows.csv", "nowhere.jsonl"])
def test_a_file_that_cannot_be_read_is_explained(tmp_path, name):
    (tmp_path / "rows.csv").write_text("a,b\n")
    done = prefix_rl("grade", str(tmp_path / name))
    assert done.returncode == 2
    assert ".jsonl" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_lines_are_named_and_nothing_is_written(tmp_path, grader):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"completion": "x", "answer": "1"}\n{"completion": \n\xff\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2") as raised:
        grade(str(path), grader, output=tmp_path / "graded.jsonl")
    assert any("rows.jsonl:3" in fault for fault in raised.value.faults)
    assert not (tmp_path / "graded.jsonl").exists()


def test_an_existing_output_survives_a_failure(tmp_path, grader, monkeypatch):
    output = tmp_path / "graded.jsonl"
    output.write_text("kept\n")
    monkeypatch.setattr("prefix_rl.rewards.second.find", lambda text: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        grade(written(tmp_path, ROWS), grader, output=output)
    assert output.read_text() == "kept\n"
    assert not list(tmp_path.glob("*.partial"))
