import json

import datasets
import pytest

from prefix_rl.data.benchmarks import BENCHMARKS, check_answers, load
from prefix_rl.errors import DataError
from prefix_rl.rewards.workers import Grader


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [{"id": "a", "problem": "1 + 1 = ?", "answer": "2"}, {"id": "b", "problem": "6 * 7 = ?", "answer": 42}]

# --- the real files ---------------------------------------------------------------------------------------------------

COUNTS = {"aime24": 30, "aime25": 30, "amc23": 40, "math500": 500, "minerva": 272, "olympiadbench": 674, "gsm8k": 1119}


def test_the_real_files_give_the_right_rows(shared_data, capsys):
    tasks = load(list(COUNTS), folder=str(shared_data))
    assert {t.name: len(t.problems) for t in tasks} == COUNTS
    assert {t.name: t.samples for t in tasks} == {n: 32 if n in ("aime24", "aime25", "amc23") else 1 for n in COUNTS}
    said = capsys.readouterr().err
    assert said.startswith("gsm8k: 1,119 problems in ")  # 200 of the published ones are withheld there
    assert said.rstrip().endswith("the benchmark has 1,319")
    assert said.count("\n") == 1
    by_name = {t.name: t for t in tasks}
    first = by_name["aime24"].problems[0]
    assert (first.id, first.answer) == ("aime/2024-I-1", "204")
    assert first.text.startswith("Every morning Aya goes for a $9$-kilometer-long walk")
    assert by_name["math500"].problems[0].answer == r"\left( 3, \frac{\pi}{2} \right)"
    assert by_name["minerva"].problems[0].answer == "1.6"
    assert by_name["gsm8k"].problems[0].answer == "18"
    assert "#### 18" in by_name["gsm8k"].problems[0].demonstrations[0]["text"]
    for task in tasks:
        assert len({p.id for p in task.problems}) == len(task.problems)
        assert len(task.sha256) == len(task.file_sha256) == 64
        raw = {}
        with open(task.source, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                raw[row["id"]] = (row["problem"], row["answer"])
        assert {p.id: (p.text, p.answer) for p in task.problems} == raw


def test_every_real_answer_can_be_graded_against_and_equals_itself(shared_data):
    tasks = load(list(COUNTS), folder=str(shared_data))
    grader = Grader(workers=2)
    check_answers(tasks, grader)
    for task in tasks:
        outcomes = grader.grade([(rf"\boxed{{{p.answer}}}", p.answer) for p in task.problems])
        wrong = {p.answer: str(o) for p, o in zip(task.problems, outcomes, strict=True) if o != "right"}
        assert not wrong, task.name
    grader.close()


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_named_after_itself_or_as_it_is_told(tmp_path):
    path = write(tmp_path / "mine.jsonl", ROWS)
    first, second = load([path, f"other={path}"], samples=4)
    assert (first.name, second.name, first.samples) == ("mine", "other", 4)
    assert [(p.id, p.text, p.answer) for p in first.problems] == [("a", "1 + 1 = ?", "2"), ("b", "6 * 7 = ?", "42")]
    assert first.sha256 == second.sha256
    assert load([path], limit=1)[0].sha256 != first.sha256
    assert load([path])[0].samples == 1


def test_a_folder_and_a_variable_give_the_named_benchmarks(tmp_path, monkeypatch, capsys):
    write(tmp_path / "aime24.jsonl", ROWS)
    (task,) = load(["aime24"], folder=str(tmp_path))
    assert (task.name, task.samples, task.source) == ("aime24", 32, str(tmp_path / "aime24.jsonl"))
    assert "aime24: 2 problems" in capsys.readouterr().err
    monkeypatch.setenv("PREFIX_RL_BENCHMARKS", str(tmp_path))
    assert load(["aime24"])[0].sha256 == task.sha256


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "?", "answer": "1"}] * 3, r"rows.jsonl:1: no column 'problem'; there are 'question', 'answer', and 2 more rows"),
        ([*ROWS, {"id": "a", "problem": "x", "answer": "1"}], "rows.jsonl:3: the id 'a' stands at .*rows.jsonl:1 too"),
        ([{"problem": "x", "answer": None}], "answer is null"),
        ([{"problem": ["x"], "answer": "1"}], "problem is a list, not a text"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_evaluated_on_are_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load([write(tmp_path / "rows.jsonl", rows)])


def test_every_benchmark_that_cannot_be_had_is_named_at_once(tmp_path):
    with pytest.raises(DataError, match="3 of 4 benchmarks cannot be had") as found:
        load(["math50", "x=/no.jsonl", write(tmp_path / "mine.jsonl", ROWS), "../a=b"])
    assert "did you mean math500?" in str(found.value)
    assert "there is no file /no.jsonl" in str(found.value)
    assert "a benchmark's name is made of letters" in str(found.value)


def test_two_benchmarks_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "mine.jsonl", ROWS)
    with pytest.raises(DataError, match="two benchmarks are called mine"):
        load([path, path])


def test_answers_that_cannot_be_parsed_are_named(tmp_path):
    path = write(tmp_path / "mine.jsonl", [*ROWS, {"problem": "?", "answer": r"\frac{"}])
    grader = Grader(workers=1)
    with pytest.raises(DataError, match=r"mine has answers that cannot be parsed(.|\n)*mine.jsonl:3: '\\\\frac\{'"):
        check_answers(load([path]), grader)
    grader.close()


# --- the hub ----------------------------------------------------------------------------------------------------------

HUB = {  # a row as each has it on the hub, and what is to become of it
    "aime24": ({"id": 60, "problem": "p", "solution": "s", "answer": "204", "url": "u", "year": "2024"}, ("60", "204")),
    "aime25": ({"problem": "p", "answer": "70", "id": "0"}, ("0", "70")),
    "amc23": ({"id": 0, "answer": "27.0", "url": "u", "question": "p"}, ("0", "27.0")),
    "math500": (
        {"problem": "p", "solution": "s", "answer": "3", "subject": "Algebra", "level": 2, "unique_id": "test/1.json"},
        ("test/1.json", "3"),
    ),
    "minerva": ({"question": "p", "answer": "1.6"}, ("0", "1.6")),
    "olympiadbench": (
        {"id": 1606, "question": "p", "solution": ["one", "two"], "final_answer": ["$2$", "$3$"], "unit": None},
        ("1606", "2, 3"),
    ),
    "gsm8k": ({"question": "p", "answer": "so 2 * 600 = <<2*600=1200>>1200\n#### 1,200"}, ("0", "1200")),
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_rows_of_the_hub_get_our_columns(name, monkeypatch, capsys):
    row, expected = HUB[name]
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **o: asked.append((*a, o["split"])) or [row])
    (task,) = load([name])
    benchmark = BENCHMARKS[name]
    assert asked == [(benchmark.hub, "main" if name == "gsm8k" else None, benchmark.split)]
    (problem,) = task.problems
    assert (problem.text, problem.id, problem.answer) == ("p", *expected)
    assert f"{name}: 1 problems in {benchmark.hub}" in capsys.readouterr().err


def test_a_hub_that_cannot_be_reached_says_how_to_give_a_file(monkeypatch):
    monkeypatch.delenv("PREFIX_RL_BENCHMARKS", raising=False)
    with pytest.raises(DataError, match=r"HuggingFaceH4/aime_2024(.|\n)*--on aime24=FILE, or --benchmarks FOLDER"):
        load(["aime24"])
