"""Sources, problems and tokenizers."""

import gzip
import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from small import byte_level_bpe, policy, word_piece, write
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig

from prefix_rl.data import sources
from prefix_rl.data.mixing import Source, mixed
from prefix_rl.data.problems import Problem, further, load, row_faults, verify, with_demonstrations_for
from prefix_rl.data.tokenizer import encode, load_tokenizer, stop_ids
from prefix_rl.data.turns import turn_faults
from prefix_rl.errors import DataError
from prefix_rl.rewards.grading import Outcome
from prefix_rl.rewards.workers import Grader


@pytest.fixture(scope="module")
def grader():
    made = Grader(workers=1)
    yield made
    made.close()


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
    [("r.jsonl", b"", "holds no rows"), ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:-9], "broken gzip file after"),
     ("r.jsonl.gz", b"plain", "broken gzip"), ("r.parquet", b"PAR1", "not a readable Parquet"), ("r.csv", b"a", "must end in")],
)  # fmt: skip
def test_unreadable_files_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(sources.read(str(tmp_path / name)))


def test_a_parquet_file_is_read_in_pieces_and_its_damage_is_explained(tmp_path):
    path = tmp_path / "r.parquet"
    rows = [{"problem": f"{i:06}" * 50, "answer": str(i)} for i in range(3000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="none", write_page_checksum=True)
    assert [row for _, row in sources.read(str(path))] == rows
    content = bytearray(path.read_bytes())
    content[len(content) // 2] = 0xFF  # a page of the first column
    content[len(content) // 2 - 1000 : len(content) // 2] = b"\xff" * 1000
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged after row"):
        list(sources.read(str(path)))


def test_a_configuration_on_the_hub_is_named_behind_a_colon(monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: asked.append((names, split)) or [{"a": 1}])
    assert list(sources.read("owner/name:metadata", "test")) == [("owner/name:metadata (test), row 1", {"a": 1})]
    list(sources.read("owner/name"))
    assert asked == [(("owner/name", "metadata"), "test"), (("owner/name",), "train")]


def test_a_misspelt_file_is_met_with_the_nearest_name(tmp_path):
    write(tmp_path / "rows.jsonl", [{}])
    with pytest.raises(DataError, match=r"did you mean rows\.jsonl\?"):
        list(sources.read(str(tmp_path / "row.jsonl")))


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


def test_an_id_stands_once(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"id": i, "problem": "p", "answer": "1"} for i in ("a", 1, "a", "1", None)])
    with pytest.raises(DataError) as error:
        load(path)
    assert error.value.faults[0].startswith(f"{path}:3: the id 'a' stands at {path}:1 already")
    assert error.value.faults[1].startswith(f"{path}:4: the id '1' stands at {path}:2 already")
    assert len(error.value.faults) == 2


def test_what_is_no_text_is_named(tmp_path):
    rows = [{"problem": "p", "answer": float("inf")}, {"problem": "\ud800", "answer": "1"}, {"problem": "p", "answer": 10**9 * 7.0},
            {"id": [1], "problem": "p", "answer": "1"}]  # fmt: skip
    with pytest.raises(DataError) as error:
        load(write(tmp_path / "r.jsonl", rows))
    assert [p.partition(": ")[2] for p in error.value.faults] == [
        "answer is inf, not a text", "problem is broken Unicode (half of a surrogate pair)", "id is a list, not a text or an integer",
    ]  # fmt: skip


def test_demonstrations_are_graded_by_the_reward(grader):
    right, wrong, nothing = ({"text": t} for t in (r"\boxed{42}", r"\boxed{41}", "I do not know"))
    problems = [Problem("a", "p", "42", (right, wrong)), Problem("b", "p", "42", (nothing,)), Problem("c", "p", "", (right,)),
                Problem("d", "p", "7")]  # fmt: skip
    kept, bad_gold, counts = verify(problems, grader)
    assert [(p.id, p.demonstrations) for p in kept] == [("a", (right,)), ("b", ()), ("d", ())]
    failures, *rest = verify(problems, grader, wanted=Outcome.WRONG)
    assert [(p.id, p.demonstrations) for p in failures] == [("a", (wrong,)), ("b", ()), ("d", ())]
    assert rest == [bad_gold, counts]
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


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_a_custom_tokenizer_beside_a_qwen2_model_keeps_its_ids(tmp_path):
    tokenizer = byte_level_bpe()
    tokenizer.save_pretrained(tmp_path)
    policy(tokenizer).save_pretrained(tmp_path)
    text = "Natalia sold 48/2 = 24 clips, naïve 数学 🙂"
    wanted = tokenizer(text)["input_ids"]
    assert load_tokenizer(str(tmp_path))(text)["input_ids"] == wanted


def test_a_tokenizer_that_puts_an_id_in_front_of_a_text_is_loaded_as_it_is(tmp_path):
    tokenizer = byte_level_bpe()
    front = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = front
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    alone = loaded("twice 1000", add_special_tokens=False)["input_ids"]
    assert loaded("twice 1000")["input_ids"] == [tokenizer.eos_token_id, *alone]


def test_ids_that_a_model_declares_to_end_with_are_ids(tmp_path):
    tokenizer = byte_level_bpe()
    own = tokenizer.eos_token_id
    assert stop_ids(GenerationConfig(eos_token_id=[0, 151645, own]), tokenizer, 3) == [0, 151645, own, 3]
    assert stop_ids(GenerationConfig(eos_token_id=151645), tokenizer) == [151645, own]
    for wrong in ([-1], 2**31, [5, "6"], [5.5]):
        config = GenerationConfig()
        config.eos_token_id = wrong  # as a file says it
        with pytest.raises(DataError, match="give ids, whole numbers"):
            stop_ids(config, tokenizer)


def test_a_continuation_has_the_offsets_of_its_own_text_where_the_decoder_drops_blanks():
    ids, ends = encode(" We have", word_piece(), "x")
    assert (len(ids), ends) == (2, [3, 8])


def test_a_folder_without_a_tokenizer_is_explained(tmp_path):
    with pytest.raises(DataError, match="no tokenizer could be loaded"):
        load_tokenizer(str(tmp_path))


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_a_problem_of_several_files_is_the_first_ones(capsys):
    sold = "Tim sold 12 apples at 3 dollars each and 5 pears. How much did he get for the apples in the end of {}?"
    first = [
        Problem("1", "6 * 7?", "42", ({"text": "a"},)),
        Problem("2", sold.format("all"), "36"),
        Problem("3", "2?", "2"),
    ]
    other = [
        Problem("1", "$6 * 7$?", "42", ({"text": "a"}, {"text": "b"})),  # the same but for typesetting
        Problem("2", sold.format("it"), "36"),  # nearly
        Problem("3", "2?", "3"),
        Problem("4", "3?", "3", place="other:4"),
        Problem("5", "3?", "3"),  # within a file nothing is looked for
    ]
    made = mixed([Source("a.jsonl"), Source("b.jsonl")], [first, other], 0)
    assert [(p.source, p.text) for p in made] == [*(("a", p.text) for p in first), ("b", "3?"), ("b", "3?")]
    assert [d["text"] for d in made[0].demonstrations] == ["a", "b"]
    assert sum(p.repeats for p in made if p.source == "a") == sum(p.repeats for p in made if p.source == "b") == 3
    told = capsys.readouterr().err
    assert (
        "left out 1 of the 5 problems of b.jsonl, which stand in a.jsonl: the same problem with the same answer" in told
    )
    assert "the same problem WITH ANOTHER ANSWER; for example 3 and 3" in told
    assert "nearly the same problem" in told
    with pytest.raises(DataError, match=r"every problem of b\.jsonl stands in an earlier file"):
        mixed([Source("a.jsonl"), Source("b.jsonl")], [first, other[:3]], 0)


def test_turns_that_nobody_could_answer_are_faults():
    user, answer = {"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": "42"}
    assert turn_faults([user]) == turn_faults([user, answer, user]) == []
    assert turn_faults([user, answer]) == ["its last turn is not the user's"]
    assert turn_faults([{"role": "user", "content": " "}]) == ["its last turn is empty"]


def test_a_source_has_the_nearest_number_of_rows_to_its_weight():
    a, b = ([Problem(f"{name}{i}", f"{name * 30} {i}", "") for i in range(n)] for name, n in (("a", 5), ("b", 2)))
    rows = Counter()
    for problem in mixed([Source("a.jsonl", 2), Source("b.jsonl", 1)], [a, b], seed=0):
        rows[problem.source] += problem.repeats
    assert rows == {"a": 5, "b": 3}  # 2.5 is 3


def test_a_mixture_has_its_weights_and_every_problem():
    def rows(name, count):
        return [Problem(f"{name}{i}", f"{name}{i}", "1") for i in range(count)]

    files = [Source("a.jsonl", 3), Source("b.jsonl", 1), Source("c.jsonl", 0.5)]
    made = mixed(files, [rows("a", 30), rows("b", 4), rows("c", 3)], 0)
    counts = {name: sum(p.repeats for p in made if p.source == name) for name in "abc"}
    assert counts == {"a": 30, "b": 10, "c": 5}  # a stands there once: 30 / 3 = 10 for a weight of 1
    assert sorted(p.repeats for p in made if p.source == "b") == [2, 2, 3, 3]
    assert min(p.repeats for p in made) == 1
    assert made == mixed(files, [rows("a", 30), rows("b", 4), rows("c", 3)], 0)
    assert made != mixed(files, [rows("a", 30), rows("b", 4), rows("c", 3)], 1)
    with pytest.raises(DataError, match=r"names a.jsonl twice"):
        mixed([Source("a.jsonl"), Source("a.jsonl")], [rows("a", 1)] * 2, 0)


@pytest.mark.parametrize(
    ("beside", "fault"),
    [
        ({"ids": [0, 2**31 - 1], "readable_from": 0, "readable": {"string": 2**31 - 1, "none": None}, "ended": False}, None),
        ({"readable_from": None}, None), ({"ids": [2**31]}, "ids must be"), ({"ids": [-1]}, "ids must be"), ({"ids": [True]}, "ids must be"),
        ({"ids": [None]}, "ids must be"), ({"ids": 5}, "ids must be"), ({"readable_from": 2**31}, "readable_from must be"),
        ({"readable_from": -1}, "readable_from must be"), ({"readable_from": False}, "readable_from must be"),
        ({"readable": {"string": 0.5}}, "readable must be"), ({"readable": [1]}, "readable must be"), ({"ended": None}, "ended must be"),
    ],
)  # fmt: skip
def test_what_stands_beside_a_demonstrations_text(beside, fault):
    found = row_faults({"problem": "p", "answer": "1", "demonstrations": [{"text": "t", **beside}]})
    assert found == [] if fault is None else found[0].startswith(f"demonstration 1: {fault}")


def test_an_answer_may_be_missing_and_is_checked_where_it_is_not():
    assert (
        row_faults({"problem": "p"}, answers=False) == row_faults({"problem": "p", "answer": ""}, answers=False) == []
    )
    assert row_faults({"problem": "p", "answer": True}, answers=False) == ["answer is a bool, not a text"]
    assert row_faults({"problem": "p", "answer": ""}) == ["answer is empty"]
    assert row_faults({"problem": "p"}) == ["no column 'answer'; there are 'problem'"]


def test_reward_functions_get_the_other_columns():
    own = (
        "id",
        "problem",
        "answer",
        "demonstrations",
        "solution",
        "prompt",
        "completion",
        "completion_ids",
        "messages",
    )
    assert further({**dict.fromkeys(own, "x"), "level": 3}) == {"level": 3}
