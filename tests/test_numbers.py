"""Gold answers that a file holds as numbers, in whatever type, are the numbers that people wrote."""

import json
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet
import pytest

from prefix_rl.data.columns import normalize
from prefix_rl.data.prepare import prepare
from prefix_rl.data.problems import load
from prefix_rl.data.settings import Settings
from prefix_rl.data.sources import read
from prefix_rl.rewards.grading import Outcome, gold_text, judge
from prefix_rl.rewards.workers import Grader

FLOATS = [pa.float16(), pa.float32(), pa.float64()]
DECIMALS = {"1.500": "1.5", "7.00": "7", "-0.10": "-0.1", "0.12345678901234567890123": "0.12345678901234567890123"}


def _answer(folder, column):
    """The answer that training reads from a Parquet file with this one in its column."""
    table = pa.table({"problem": pa.array(["?"] * len(column)), "answer": column})
    pyarrow.parquet.write_table(table, folder / "rows.parquet")
    return [problem.answer for problem in load(str(folder / "rows.parquet"))]


@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_a_float_is_its_shortest_decimal_of_its_own_type(tmp_path, kind):
    values = pa.array([0.1, 7.0, 2.5, -0.0]).cast(kind)
    assert _answer(tmp_path, values) == ["0.1", "7", "2.5", "0"]


def test_other_types_of_arrow(tmp_path):
    values = pa.array(list(map(Decimal, DECIMALS)), pa.decimal128(38, 24))
    assert _answer(tmp_path, values) == list(DECIMALS.values())
    assert _answer(tmp_path, pa.array(list(map(Decimal, DECIMALS)), pa.decimal256(60, 24))) == list(DECIMALS.values())
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        assert _answer(tmp_path, pa.array(["1/2"], pa.string()).cast(kind)) == ["1/2"]
    assert _answer(tmp_path, pa.array([0.1], pa.float32()).dictionary_encode()) == ["0.1"]
    assert _answer(tmp_path, pa.array([2**64 - 1], pa.uint64())) == [str(2**64 - 1)]


def test_numbers_inside_of_objects_and_lists(tmp_path):
    inner = pa.struct({"ground_truth": pa.float32(), "index": pa.int64(), "wide": pa.float64()})
    rewards = pa.array([{"ground_truth": 0.1, "index": 3, "wide": 0.1}, None], inner)
    lists, maps = (
        pa.array([[0.1, None], []], pa.list_(pa.float32())),
        pa.array([[("a", 0.1)], []], pa.map_("string", "float")),
    )
    table = pa.table({"reward_model": rewards, "further": lists, "pairs": maps})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    rows = [row for _, row in read(str(tmp_path / "rows.parquet"))]
    assert rows[0]["reward_model"] == {"ground_truth": 0.1, "index": 3, "wide": 0.1}
    assert rows[0]["further"] == [0.1, None]
    assert rows[1]["reward_model"] is None
    assert normalize(rows[0], {})["answer"] == 0.1


@pytest.mark.parametrize(
    ("written", "answer"),
    [("7.0", "7"), ("7", "7"), ("1e21", "1" + "0" * 21), ("-0.0", "0"), ("1e-7", "0.0000001"), ("0.10", "0.1"),
     ("123456789012345678901234567890", "123456789012345678901234567890"), ("1e300", "1 \\times 10^{300}"),
     ("-2.5e-40", "-2.5 \\times 10^{-40}"), ('"7.0"', "7.0"), ("12345.678", "12345.678")],
)  # fmt: skip
def test_numbers_of_json(tmp_path, written, answer):
    (tmp_path / "rows.jsonl").write_text(f'{{"problem": "?", "answer": {written}}}\n')
    assert [problem.answer for problem in load(str(tmp_path / "rows.jsonl"))] == [answer]


def test_what_they_stand_for_is_right():
    for value, said in ((1e21, "10^{21}"), (1e-7, "10^{-7}"), (1e300, "10^{300}"), (7.0, "7"), (0.1, r"\frac{1}{10}")):
        assert judge(rf"so \boxed{{{said}}}", gold_text(value)).outcome is Outcome.RIGHT
    assert judge(r"so \boxed{10^{22}}", gold_text(1e21)).outcome is Outcome.WRONG


def test_preparing_writes_them_so_and_a_bare_answer_is_no_demonstration(tmp_path):
    rows = [
        {"problem": "1 + 6", "answer": 7.0, "solution": "7"},
        {"problem": "2 + 1", "answer": 3.0, "solution": "It is \\boxed{3}"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    grader = Grader(workers=1)
    try:
        prepare([str(tmp_path / "rows.jsonl")], tmp_path / "out.jsonl", Settings(), grader=grader)
    finally:
        grader.close()
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["answer"], len(row["demonstrations"])) for row in made] == [("7", 0), ("3", 1)]
