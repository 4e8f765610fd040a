"""Sources, problems and `prepare`."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from small import byte_level_bpe, policy

from prefix_rl.data import sources
from prefix_rl.data.prepare import is_verified, manifest_path, normalize, parse_columns, prepare
from prefix_rl.data.problems import Problem, load, verify, with_demonstrations_for
from prefix_rl.data.tokenizer import load_tokenizer
from prefix_rl.errors import DataError
from prefix_rl.rewards.grading import Outcome
from prefix_rl.rewards.workers import Grader

GSM8K = {"question": "6 * 7?", "answer": "6 * 7 = <<6*7=42>>42 clips\n#### 42"}
MATH = {"problem": "What is $6 \\cdot 7$?", "solution": r"It is $\boxed{42}$.", "level": "Level 1"}
OPEN_R1 = {"problem": "6 * 7?", "answer": "42", "generations": [r"<think>6*7</think> \boxed{42}", r"\boxed{41}"]}
LUFFY = {
    "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "6 * 7?"}],
    "target": [{"role": "assistant", "content": r"\boxed{42}"}],
    "reward_model": {"ground_truth": "42", "style": "rule"},
}


@pytest.fixture(scope="module")
def grader():
    made = Grader(workers=1)
    yield made
    made.close()


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- sources ----------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    rows = [{"problem": "a", "answer": "1"}, {"problem": "ü🙂", "answer": "2"}]
    write(tmp_path / "r.jsonl", rows)
    with gzip.open(tmp_path / "r.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    for name in ("r.jsonl", "r.jsonl.gz", "r.parquet"):
        assert [row for _, row in sources.read(str(tmp_path / name))] == rows
    assert [place for place, _ in sources.read(str(tmp_path / "r.jsonl"))] == [
        f"{tmp_path}/r.jsonl:{n}" for n in (1, 2)
    ]


def test_line_separators_inside_a_text_do_not_split_a_row(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(
        json.dumps({"problem": "a\u2028b\x85c", "answer": "1"}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert len(list(sources.read(str(path)))) == 1


def test_every_broken_line_is_named(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n\xff\n[1]\n\n{"a": 2}\n' + b"[" * 100_000 + b"\n")
    with pytest.raises(DataError) as error:
        list(sources.read(str(path)))
    text = str(error.value)
    for part in (
        ":2: not JSON at character",
        ":3: not UTF-8 at byte 0",
        ":4: a JSON list, not an object",
        ":7: JSON nested",
    ):
        assert part in text
    assert ":1:" not in text
    assert ":6:" not in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("r.jsonl", b"", "holds no rows"), ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n')[:-9], "broken gzip file after"),
     ("r.jsonl.gz", b"plain", "broken gzip"), ("r.parquet", b"PAR1", "not a readable Parquet"), ("r.csv", b"a", "must end in")],
)  # fmt: skip
def test_unreadable_files_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(sources.read(str(tmp_path / name)))


def test_a_missing_file_and_an_unreachable_hub_are_explained():
    with pytest.raises(DataError, match=r"there is no file nowhere\.jsonl"):
        list(sources.read("nowhere.jsonl"))
    with pytest.raises(DataError, match="give the path of a local file"):
        list(sources.read("nobody/no-such-data-set"))


# --- problems ---------------------------------------------------------------------------------------------------------


def test_problems_are_read_with_a_solution_or_demonstrations(tmp_path):
    path = write(tmp_path / "r.jsonl", [
        {"id": "a", "problem": "p", "answer": 42, "solution": "s"}, {"problem": "p", "answer": "42", "solution": None},
        {"problem": "p", "answer": " 42 ", "demonstrations": ["x", {"text": "y", "readable_from": 1}, ""]},
    ])  # fmt: skip
    first, second, third = load(path)
    assert (first.id, first.answer, first.demonstrations) == ("a", "42", ({"text": "s"},))
    assert second.demonstrations == ()
    assert (third.id, third.answer) == ("2", "42")
    assert third.demonstrations == ({"text": "x"}, {"text": "y", "readable_from": 1})


def test_what_is_read_can_be_written_and_read_again(tmp_path):
    problem = Problem("a", "p", "42", ({"text": "x", "readable_from": 1},))
    (again,) = load(write(tmp_path / "r.jsonl", [problem.as_row()]))
    assert again.as_row() == problem.as_row()


def test_all_wrong_rows_are_named_up_to_a_limit(tmp_path):
    with pytest.raises(DataError) as error:
        load(write(tmp_path / "r.jsonl", [{"question": "p", "answer": "1"}] * 30))
    assert "r.jsonl:1: no column 'problem'; there are 'question', 'answer'" in str(error.value)
    assert "... and 10 more" in str(error.value)
    assert "prefix-rl prepare" in str(error.value)


def test_demonstrations_are_graded_by_the_reward(grader):
    right, wrong, nothing = ({"text": t} for t in (r"\boxed{42}", r"\boxed{41}", "no"))
    problems = [Problem("a", "p", "42", (right, wrong)), Problem("b", "p", "42", (nothing,)), Problem("c", "p", "", (right,)),
                Problem("d", "p", "7")]  # fmt: skip
    kept, bad_gold, counts = verify(problems, grader)
    assert [(p.id, p.demonstrations) for p in kept] == [("a", (right,)), ("b", ()), ("d", ())]
    assert [p.id for p in bad_gold] == ["c"]
    assert counts == {Outcome.RIGHT: 1, Outcome.WRONG: 1, Outcome.NO_ANSWER: 1}


@pytest.mark.parametrize(("share", "kept"), [(1.0, 200), (0.1, 20), (0.01, 2), (0.0, 0)])
def test_a_share_of_the_problems_keeps_its_demonstrations(share, kept):
    problems = [Problem(str(i), "p", "1", ({"text": "x"},)) for i in range(200)]
    chosen = with_demonstrations_for(problems, share, seed=0)
    having = {p.id for p in chosen if p.demonstrations}
    assert len(having) == kept
    assert [p.id for p in chosen] == [p.id for p in problems]
    more = {p.id for p in with_demonstrations_for(problems, min(2 * share, 1), seed=0) if p.demonstrations}
    assert having <= more


# --- prepare ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "demonstrations"),
    [
        (GSM8K, ["6 * 7 = 42 clips\n\\boxed{42}"]), (MATH, [r"It is $\boxed{42}$."]),
        (OPEN_R1, OPEN_R1["generations"]), (LUFFY, [r"\boxed{42}"]),
    ],
    ids=["GSM8K", "MATH", "OpenR1", "LUFFY 46k"],
)  # fmt: skip
def test_the_usual_columns_are_known(row, demonstrations):
    made = normalize(row, {})
    assert made["answer"] == "42"
    assert made["demonstrations"] == demonstrations
    assert "7" in made["problem"]


def test_other_columns_are_given_by_name():
    assert normalize({"q": "p", "final": "1", "how": "s"}, parse_columns(["problem=q", "answer=final", "solution=how"])) == {
        "problem": "p", "answer": "1", "demonstrations": ["s"],
    }  # fmt: skip
    with pytest.raises(DataError, match="OURS is one of id, problem, answer, solution"):
        parse_columns(["prompt=q"])


def test_everything_that_goes_in_is_counted(tmp_path, grader):
    tokenizer = byte_level_bpe()
    rows = [GSM8K, MATH, OPEN_R1, {"problem": "p"}, {"problem": "", "answer": "1"}, {"problem": "p", "answer": r"\frac{1"},
            {"problem": "p", "answer": "1", "solution": r"\boxed{1}" + " x" * 400},
            {"problem": "p", "answer": "1", "solution": "#"}, {"problem": "p", "answer": "1", "solution": None}]  # fmt: skip
    manifest = prepare(write(tmp_path / "raw.jsonl", rows), tmp_path / "out.jsonl", tokenizer=tokenizer,
                       max_completion_length=200, grader=grader)  # fmt: skip
    assert manifest["funnel"]["rows"] == {
        "kept": 6, "kept, with a demonstration": 3, "no column 'answer'": 1, "problem is empty": 1,
        "the gold answer cannot be parsed": 1,
    }  # fmt: skip
    assert manifest["funnel"]["demonstrations"] == {
        "kept": 3, "its final answer is not the gold answer": 1, "it is shorter than two tokens": 1,
        "it is longer than max_completion_length = 200 tokens": 1,
    }  # fmt: skip
    assert len(load(str(tmp_path / "out.jsonl"))) == 6
    assert is_verified(str(tmp_path / "out.jsonl"))


def test_the_same_input_gives_the_same_bytes(tmp_path, grader):
    raw = write(tmp_path / "raw.jsonl", [GSM8K, MATH, OPEN_R1])
    for name in ("one", "two"):
        prepare(raw, tmp_path / f"{name}.jsonl", grader=grader)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    one, two = (manifest_path(tmp_path / f"{name}.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_file_that_was_edited_is_no_longer_verified(tmp_path, grader):
    out = tmp_path / "out.jsonl"
    prepare(write(tmp_path / "raw.jsonl", [GSM8K]), out, grader=grader)
    assert is_verified(str(out))
    out.write_text(out.read_text().replace("42", "43"))
    assert not is_verified(str(out))


def test_a_broken_source_writes_nothing(tmp_path, grader):
    (tmp_path / "raw.jsonl").write_text(json.dumps(GSM8K) + '\n{"question": ')
    with pytest.raises(DataError, match=r"raw\.jsonl:2: not JSON"):
        prepare(str(tmp_path / "raw.jsonl"), tmp_path / "out.jsonl", grader=grader)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_source_of_which_nothing_is_left_is_explained(tmp_path, grader):
    with pytest.raises(DataError, match="2 rows: no column 'answer'"):
        prepare(write(tmp_path / "raw.jsonl", [{"problem": "p"}] * 2), tmp_path / "out.jsonl", grader=grader)


def test_problems_without_a_demonstration_can_be_left_out(tmp_path, grader):
    raw = write(tmp_path / "raw.jsonl", [GSM8K, {"problem": "p", "answer": "1"}])
    manifest = prepare(raw, tmp_path / "out.jsonl", require_demonstration=True, grader=grader)
    assert manifest["funnel"]["rows"]["no demonstration is left"] == 1
    assert len(load(str(tmp_path / "out.jsonl"))) == 1


def test_gsm8k_is_prepared_without_a_loss(tmp_path, shared_data):
    manifest = prepare(str(shared_data / "gsm8k-train.jsonl.gz"), tmp_path / "rows.jsonl")
    assert manifest["funnel"] == {
        "rows": {"kept": 7473, "kept, with a demonstration": 7473, "the gold answer cannot be parsed": 0},
        "demonstrations": {"kept": 7473},
    }
    assert "<<" not in (tmp_path / "rows.jsonl").read_text()


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_a_custom_tokenizer_beside_a_qwen2_model_keeps_its_ids(tmp_path):
    tokenizer = byte_level_bpe()
    tokenizer.save_pretrained(tmp_path)
    policy(tokenizer).save_pretrained(tmp_path)
    text = "Natalia sold 48/2 = 24 clips, naïve 数学 🙂"
    wanted = tokenizer(text)["input_ids"]
    assert load_tokenizer(str(tmp_path))(text)["input_ids"] == wanted


def test_a_folder_without_a_tokenizer_is_explained(tmp_path):
    with pytest.raises(DataError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))
