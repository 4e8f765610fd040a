"""Measured pass rates."""

import json

import pytest
from small import byte_level_bpe, write

from prefix_rl.data.difficulty import PassRates, load_pass_rates
from prefix_rl.data.traces import Trace, TraceStore, tokenizer_sha256
from prefix_rl.errors import DataError


def test_rates_are_found_by_id():
    rates = PassRates((str(i), i / 1000) for i in range(1000))
    assert [rates.of(str(i)) for i in range(1000)] == [i / 1000 for i in range(1000)]
    assert rates.of("x") is None
    assert PassRates(()).of("x") is None
    assert rates.met == 1000


def test_rates_are_read_from_rows(tmp_path):
    rows = [{"id": 7, "pass_rate": 1}, {"problem_id": "b", "right": 1, "attempts": 4}]
    rates = load_pass_rates(write(tmp_path / "r.jsonl", rows))
    assert (rates.of("7"), rates.of("b"), len(rates)) == (1.0, 0.25, 2)
    edges = [{"id": "none", "right": 0, "attempts": 4}, {"id": "all", "right": 3, "attempts": 3},
             {"id": "one", "right": 1, "attempts": 1}, {"id": "zero", "pass_rate": 0}]  # fmt: skip
    rates = load_pass_rates(write(tmp_path / "edges.jsonl", edges))
    assert [rates.of(row["id"]) for row in edges] == [0, 1, 1, 0]


def test_every_row_that_is_no_rate_is_named(tmp_path):
    rows = [{"pass_rate": 0.5}, {"id": "a", "pass_rate": 1.5}, {"id": "b", "right": 3, "attempts": 2}, {"id": "c", "pass_rate": True},
            {"id": "d", "right": 0, "attempts": 0}, {"id": "e", "pass_rate": 0.5}]  # fmt: skip
    with pytest.raises(DataError) as error:
        load_pass_rates(write(tmp_path / "r.jsonl", rows))
    assert [p.split(": ")[0].rsplit(":", 1)[1] for p in error.value.faults] == ["1", "2", "3", "4", "5"]
    assert "neither id nor problem_id; there are 'pass_rate'" in error.value.faults[0]
    (tmp_path / "twice.jsonl").write_text((json.dumps({"id": "a", "pass_rate": 0.5}) + "\n") * 2)
    with pytest.raises(DataError, match="twice"):
        load_pass_rates(str(tmp_path / "twice.jsonl"))


def test_a_trace_store_gives_the_rates_of_the_policy(tmp_path):
    store = TraceStore.create(tmp_path / "store", {"tokenizer_sha256": tokenizer_sha256(byte_level_bpe())})

    def trace(problem, attempt, outcome, imported=False):
        return Trace(problem, "p", "1", attempt, "s", "t", [1], 3, outcome, False, 1.0, imported)

    store.append([trace("a", 0, "right"), trace("a", 1, "wrong"), trace("b", 0, "right", imported=True)])
    rates = load_pass_rates(str(tmp_path / "store"))
    assert (rates.of("a"), rates.of("b")) == (0.5, None)
