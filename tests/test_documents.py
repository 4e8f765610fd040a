"""Documents of our own that are read again: by their shape, or with what is wrong and where."""

import json
import os

import pytest
from hostile import cpu_budget

from prefix_rl import documents, status
from prefix_rl.parts import Damaged

SHAPE = {"step": int, "cost": dict[str, float] | None, "at": {"host": str}}
GOOD = '{"step": 3, "cost": {"flops": 1}, "at": {"host": "a"}, "further": [null]}'


def test_a_document_of_its_shape_is_read_and_further_keys_stay(tmp_path):
    (tmp_path / "a.json").write_text(GOOD)
    assert documents.read(tmp_path / "a.json", SHAPE)["further"] == [None]
    (tmp_path / "a.json").write_text('{"step": 3, "at": {"host": "a"}}')
    assert documents.read(tmp_path / "a.json", SHAPE).get("cost") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"), (b"{", "not JSON"), (b"\xff", "not JSON"), (b"[]", "it is [], not a block"), (b"null", "it is null, not a block"),
        (b"[" * 100_000, "nested too deeply"), (b'{"step": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b'{"at": {"host": "a"}}', "step is missing"), (b'{"step": true, "at": {"host": "a"}}', "step is true, not an integer"),
        (b'{"step": 3.5, "at": {"host": "a"}}', "step is 3.5, not an integer"), (b'{"step": 3}', "at is missing"),
        (b'{"step": 3, "at": "a"}', 'at is "a", not a block'), (b'{"step": 3, "at": {"host": 1}}', "at.host is 1, not a text"),
        (b'{"step": 3, "cost": {"flops": "1"}, "at": {"host": "a"}}', 'cost is {"flops": "1"}, not a block'),
        (b'{"step": 3, "at": {"host": "\\ud800"}}', "broken Unicode"), (b'{"step": 18446744073709551616, "at": {"host": "a"}}', "64 bits"),
    ],
    ids=lambda value: str(value[:30]),
)  # fmt: skip
def test_what_is_wrong_with_a_document_is_said_with_its_place(tmp_path, content, said):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(Damaged) as raised:
        documents.read(tmp_path / "a.json", SHAPE)
    assert said in str(raised.value)


def test_nothing_that_is_no_file_is_opened(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, said in (
        ("folder", "a folder"),
        ("pipe", "a pipe"),
        ("loop", "a link to nothing"),
        ("gone", "not there"),
    ):
        with cpu_budget(), pytest.raises(Damaged, match=said):
            documents.read(tmp_path / name, SHAPE)


@pytest.mark.parametrize(
    "changed", [{"pid": "x"}, {"beat": None}, {"state": 3}, {"progress": {"what": 1}}, {"progress": []}]
)
def test_a_status_of_another_shape_is_none(tmp_path, changed):
    with status.recorded(tmp_path, "training"):
        status.progress("steps", 1, 2)
    assert status.read_status(tmp_path)["progress"]["total"] == 2
    path = tmp_path / "status.training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    assert status.read_status(tmp_path) is None


def test_a_line_of_metrics_has_a_step():
    assert documents.metrics_line('{"step": 3, "loss": NaN}')["step"] == 3
    for line in ("", "{", "3", "null", "{}", '{"step": "3"}', '{"step": true}', '{"step": -1}', '{"step": 1, "n": 1' + "0" * 40 + "}",
                 "[" * 100_000, '{"step": ' + "9" * 5000 + "}"):  # fmt: skip
        assert documents.metrics_line(line) is None
