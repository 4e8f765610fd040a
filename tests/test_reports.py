import json

import pytest
from PIL import Image

from prefix_rl.errors import DataError
from prefix_rl.reports.report import markdown, read_run, report, row, text_table
from prefix_rl.reports.rollouts import read_rollouts, segments, write_rollouts


def made_run(folder, method="prefix_rft", steps=20):
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "reward": step / 40, "reward_without_prefix": step / 40, "entropy": 0.5, "num_tokens": 100 * step,
                "completions/mean_length": 20.0, "outcome/no_answer": 0.0}  # fmt: skip
        if method == "prefix_rft":
            line |= {"reward_with_prefix": 0.9, "prefix/length": 10.0, "prefix/kept_share": 0.2, "entropy_prefix": 0.4,
                     "entropy_continuation": 0.3}  # fmt: skip
        lines.append(line)
    lines.append({"step": steps, "train_runtime": 90.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 21, "rew')
    (folder / "recipe.yaml").write_text(f"method: {{name: {method}}}\n")
    found = {"mean": 0.5, "low": 0.4, "high": 0.6, "problems": 100, "samples": 1}
    (folder / "evaluation.json").write_text(json.dumps({"accuracy": found}))
    write_rollouts(folder / "rollouts" / "step_000010.parquet", [
        {"step": 10, "row": 0, "prompt": json.dumps("1 + 1 = ?"), "answer": "2", "prefix_tokens": 2 if i == 0 else 0,
         "demonstration_tokens": 5, "completion_ids": [1, 2, 3], "reward": float(i == 0), "outcome": "right" if i == 0 else "wrong",
         "advantage": 0.5, "segments": [{"kind": "prefix", "text": "<b>so "}, {"kind": "kept", "text": "it"},
                                        {"kind": "continuation", "text": " is & 2"}]}
        for i in range(4)
    ])  # fmt: skip
    return folder


def test_a_report_puts_runs_side_by_side(tmp_path):
    runs = [made_run(tmp_path / "plain", "dr_grpo"), made_run(tmp_path / "ours")]
    paths = report(runs, tmp_path / "out")
    rows = json.loads(paths["results.json"].read_text())
    assert [r["method"] for r in rows] == ["dr_grpo", "prefix_rft"]
    assert rows[0]["reward_without_prefix"] == pytest.approx((19 + 20) / 2 / 40)  # the last tenth of 20 values
    assert rows[0]["reward_with_prefix"] is None
    assert rows[1]["minutes"] == 1.5
    assert rows[1]["interval"] == [0.4, 0.6]
    table = paths["report.md"].read_text()
    assert "| ours | prefix_rft | 20 | 50.0 % | 40.0 to 60.0 % | 0.487 | 0.900 | 10.0 | 20.0 | 1.5 |" in table
    assert Image.open(paths["curves.png"]).size == (2100, 900)


def test_the_page_needs_no_network_and_escapes_what_the_policy_wrote(tmp_path):
    paths = report([made_run(tmp_path / "ours")], tmp_path / "out")
    page = paths["report.html"].read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "<b>so" not in page
    assert '<span class="prefix">&lt;b&gt;so </span><span class="kept">it</span>' in page
    assert " is &amp; 2</span>" in page
    assert "1 of 4 right; the answer is 2" in page


def test_a_run_that_was_only_evaluated_has_its_line(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "evaluation.json").write_text(
        '{"accuracy": {"mean": 0.0, "low": 0.0, "high": 0.01, "problems": 256}}'
    )
    found = row(read_run(tmp_path / "base"))
    assert (found["accuracy"], found["steps"], found["method"]) == (0.0, 0, "")
    assert "0.0 to 1.0 %" in markdown([found])


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(DataError, match="is not the folder of a run"):
        report([tmp_path], tmp_path / "out")


def test_the_terminal_table_leaves_out_empty_columns(tmp_path):
    lines = text_table([row(read_run(made_run(tmp_path / "plain", "dr_grpo")))]).splitlines()
    assert "with prefix" not in lines[0]
    assert lines[1].split() == [
        "plain",
        "dr_grpo",
        "20",
        "50.0",
        "%",
        "40.0",
        "to",
        "60.0",
        "%",
        "0.487",
        "20.0",
        "1.5",
    ]


def test_rollouts_are_read_back_by_step(tmp_path):
    for step in (0, 10, 20):
        write_rollouts(tmp_path / "rollouts" / f"step_{step:06d}.parquet", [{"step": step}])
    assert read_rollouts(tmp_path) == [{"step": 20}]
    assert read_rollouts(tmp_path, 15) == [{"step": 10}]
    assert read_rollouts(tmp_path / "none") == []


def test_segments_put_together_are_the_completion():
    words = ["so", "it", "is", "two", "and", "not", "three"]
    decode = lambda ids: " ".join(words[i] for i in ids)  # noqa: E731
    kinds = [(True, False), (True, True), (True, True), (True, False), (False, True), (False, True), (False, True)]
    found = segments(range(7), [p for p, _ in kinds], [m for _, m in kinds], decode)
    assert [s["kind"] for s in found] == ["prefix", "kept", "prefix", "continuation"]
    assert "".join(s["text"] for s in found) == decode(range(7))


def test_a_damaged_file_of_rollouts_is_explained(tmp_path):
    write_rollouts(tmp_path / "rollouts" / "step_000003.parquet", [{"step": 3}])
    (tmp_path / "rollouts" / "step_000003.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"step_000003.parquet is no readable file of rollouts"):
        read_rollouts(tmp_path)
