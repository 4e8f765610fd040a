import json

import pytest

from prefix_rl.errors import DataError
from prefix_rl.evaluation.compare import compare_folders, rows_of
from prefix_rl.evaluation.metrics import estimate


def evaluation(folder, right, samples=4, **changes):
    """The card of an evaluation on benchmarks with these numbers of right samples by problem."""
    card = {
        "policy": f"models/{folder.name}",
        "sampling": {"temperature": 0.6, "top_p": 1.0, "max_completion_length": 100},
        "grader": {"version": "2", "rules": {}},
        "engine": {"name": "transformers", "version": "5", "dtype": "float32"},
        "prompt": {"prompt": "chat", "system_prompt": None, "instruction": "", "chat_template_sha256": "a"},
        "benchmarks": {
            name: {
                "sha256": f"{name} {sorted(counts)}",
                "samples": samples,
                "right_by_problem": counts,
                "accuracy": vars(estimate([c / samples for c in counts.values()], samples=samples)),
            }
            for name, counts in right.items()
        },
    }
    for path, value in changes.items():
        block, key = path.split("__")
        card[block][key] = value
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps(card))
    return folder


def counts(*values):
    return {str(i): value for i, value in enumerate(values)}


def test_two_evaluations_are_compared_by_problem(tmp_path):
    a = evaluation(tmp_path / "a", {"x": counts(4, 4, 2, 4), "y": counts(4, 0)})
    b = evaluation(tmp_path / "b", {"x": counts(0, 2, 2, 2), "y": counts(0, 0)})
    found = compare_folders(a, b)
    # x: differences 1, 0.5, 0, 0.5; y: 1, 0; the mean of 0.5 and 0.5
    assert found["benchmarks"]["x"]["difference"]["mean"] == 0.5
    assert found["mean"]["mean"] == 0.5
    assert found["warnings"] == []
    assert compare_folders(b, a)["mean"]["mean"] == -0.5
    assert compare_folders(b, a)["mean"]["p"] == found["mean"]["p"]
    rows = rows_of(found)
    assert rows[0] == [
        "benchmark", "problems", "samples", "first", "second", "difference [95 %]", "p", "to find one as large (80 % power)"
    ]  # fmt: skip
    assert [row[:3] for row in rows[1:]] == [["x", "4", "4"], ["y", "2", "4"], ["mean", "6", ""]]
    assert {len(row) for row in rows} == {8}
    assert rows[3][-1] == "17 problems; no number of samples of these is enough"
    assert rows[1][3:6] == ["87.5 %", "37.5 %", "+50.0 [-15.0, +115.0]"]
    assert rows[3][3:5] == ["68.8 %", "18.8 %"]  # (87.5 + 50) / 2 and (37.5 + 0) / 2
    assert list(compare_folders(a, b, ["y"])["benchmarks"]) == ["y"]


def test_other_numbers_of_samples_may_be_compared(tmp_path):
    a = evaluation(tmp_path / "a", {"x": counts(4, 2)})
    b = evaluation(tmp_path / "b", {"x": counts(1, 1)}, samples=2)
    found = compare_folders(a, b)
    assert found["benchmarks"]["x"]["difference"]["mean"] == 0.25
    assert rows_of(found)[1][2] == "4, 2"


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"x": {"0": 1, "7": 1}}, r"x: 2 and 2 problems; 1 problems only in the first \(1, ...\), 1 problems only in the second \(7"),
        ({"y": counts(1, 1)}, "x: .*/b was not evaluated on it"),
        ({"x": counts(1, 1), "y": counts(1)}, "y: .*/a was not evaluated on it"),
    ],
)  # fmt: skip
def test_evaluations_on_different_problems_are_refused(tmp_path, theirs, message):
    a, b = evaluation(tmp_path / "a", {"x": counts(1, 1)}), evaluation(tmp_path / "b", theirs)
    with pytest.raises(DataError, match=rf"are about different problems(.|\n)*{message}"):
        compare_folders(a, b)


def test_the_same_ids_with_other_texts_are_different_problems(tmp_path):
    a, b = evaluation(tmp_path / "a", {"x": counts(1, 1)}), evaluation(tmp_path / "b", {"x": counts(1, 1)})
    card = json.loads((b / "evaluation.json").read_text())
    card["benchmarks"]["x"]["sha256"] = "other"
    (b / "evaluation.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match="the same 2 ids, but other problems or answers under them"):
        compare_folders(a, b)


def test_what_they_share_is_offered(tmp_path):
    a = evaluation(tmp_path / "a", {"x": counts(1, 1), "y": counts(1)})
    b = evaluation(tmp_path / "b", {"x": counts(1, 1)})
    with pytest.raises(DataError, match="compare on what they share with --on x"):
        compare_folders(a, b)
    assert compare_folders(a, b, ["x"])["mean"]["mean"] == 0
    with pytest.raises(
        DataError, match=r"neither evaluation has xx \(did you mean x\?\)|neither evaluation has xx; there"
    ):
        compare_folders(a, b, ["xx"])


WARNED = {
    "sampling": ("temperature", "top_p", "max_completion_length"),
    "grader": ("version", "rules", "reward"),
    "engine": ("name", "version", "dtype"),
    "prompt": ("prompt", "system_prompt", "instruction", "chat_template_sha256", "chat_template_kwargs", "date"),
}


def test_what_else_differs_is_said(tmp_path):
    a = evaluation(tmp_path / "a", {"x": counts(1, 1)})
    other = {f"{block}__{key}": "other" for block, keys in WARNED.items() for key in keys}
    b = evaluation(tmp_path / "b", {"x": counts(1, 1)}, engine__folder="elsewhere", **other)
    found = compare_folders(a, b)["warnings"]
    assert [w.split(" is ")[0] for w in found] == [f"{block}: {key}" for block, keys in WARNED.items() for key in keys]
    assert found[0] == "sampling: temperature is 0.6 in the first and 'other' in the second"


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "it has no evaluation.json"), ('{"accuracy": {"mean": 1}}', "written by an older version")],
)
def test_a_folder_that_holds_no_evaluation_is_named(tmp_path, content, message):
    a = evaluation(tmp_path / "a", {"x": counts(1, 1)})
    (tmp_path / "b").mkdir()
    if content:
        (tmp_path / "b" / "evaluation.json").write_text(content)
    with pytest.raises(DataError, match=message):
        compare_folders(a, tmp_path / "b")


def test_an_unfinished_evaluation_is_told_from_none(tmp_path):
    a = evaluation(tmp_path / "a", {"x": counts(1, 1)})
    (tmp_path / "b" / "samples").mkdir(parents=True)
    with pytest.raises(DataError, match="an unfinished evaluation: the command that began it goes on"):
        compare_folders(a, tmp_path / "b")
