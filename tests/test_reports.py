import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prefix_rl.errors import DataError
from prefix_rl.reports.report import cells, markdown, report, row, text_table
from prefix_rl.reports.rollouts import read_rollouts, segments, write_rollouts
from prefix_rl.reports.runs import find_runs, flat, read_run, read_runs, short_names
from prefix_rl.reports.tokens import token_columns, token_ends


def rollout(i, row=0, right=None, **more):
    right = i == 0 if right is None else right
    return {"step": 10, "row": row, "prompt": json.dumps(f"{row} + 1 = ?"), "answer": str(row + 1), "prefix_tokens": 2 if i == 0 else 0,
            "demonstration_tokens": 5, "completion_ids": [1, 2, 3], "reward": float(right), "outcome": "right" if right else "wrong",
            "advantage": 0.5, "segments": [{"kind": "prefix", "text": "<b>so "}, {"kind": "kept", "text": "it"},
                                           {"kind": "continuation", "text": " is & 2"}], **more}  # fmt: skip


def made_run(folder, method="prefix_rft", steps=20, evaluation=None):
    folder.mkdir(parents=True)
    lines = []
    for step in range(1, steps + 1):
        line = {"step": step, "reward": step / 40, "reward_without_prefix": step / 40, "entropy": 0.5, "num_tokens": 100 * step,
                "completions/mean_length": 20.0, "outcome/no_answer": 0.0, "step_time": 6.0, "cost/flops": 1e9 * step}  # fmt: skip
        if method == "prefix_rft":
            line |= {"reward_with_prefix": 0.9, "prefix/length": 10.0, "prefix/kept_share": 0.2, "entropy_prefix": 0.4,
                     "entropy_continuation": 0.3}  # fmt: skip
        lines.append(line)
    lines.append({"step": steps, "train_runtime": 90.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 21, "rew')
    (folder / "recipe.yaml").write_text(
        f"method: {{name: {method}}}\ntraining: {{num_generations: 4, max_steps: {steps}}}\n"
    )
    found = {"mean": 0.5, "low": 0.4, "high": 0.6, "problems": 100, "samples": 1}
    (folder / "evaluation.json").write_text(json.dumps(evaluation or {"accuracy": found}))
    write_rollouts(folder / "rollouts" / "step_000010.parquet", [rollout(i) for i in range(4)])
    return folder


def estimate(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "problems": 30, "samples": 4}


TWO = {
    "accuracy": estimate(0.4),
    "benchmarks": {
        "aime24": {
            "accuracy": estimate(0.2),
            "problems": 30,
            "samples": 4,
            "pass": {"2": estimate(0.3), "4": estimate(0.35)},
        },
        "math500": {"accuracy": estimate(0.6), "problems": 500, "samples": 1, "pass": {}},
    },
}


def test_a_report_puts_runs_side_by_side(tmp_path):
    runs = [made_run(tmp_path / "plain", "dr_grpo"), made_run(tmp_path / "ours")]
    paths = report(runs, tmp_path / "out")
    rows = json.loads(paths["results.json"].read_text())
    assert [r["method"] for r in rows] == ["dr_grpo", "prefix_rft"]
    assert rows[0]["reward_without_prefix"] == pytest.approx((19 + 20) / 2 / 40)  # the last tenth of 20 values
    assert rows[0]["reward_with_prefix"] is None
    assert rows[1]["minutes"] == 1.5
    assert rows[1]["interval"] == [0.4, 0.6]
    assert rows[1]["flops"] == 20e9
    table = paths["report.md"].read_text()
    assert (
        "| ours | ended | prefix_rft | 20 | 50.0 % | 40.0 to 60.0 % | 0.487 | 0.900 | 10.0 | 20.0 | 2.00e+10 | 1.5 |"
        in table
    )
    assert Image.open(paths["curves.png"]).size == (2100, 900)


def test_each_benchmark_has_a_column_with_its_interval_and_one_for_each_k(tmp_path):
    rows = [row(read_run(made_run(tmp_path / "a", evaluation=TWO))), row(read_run(made_run(tmp_path / "b")))]
    head, both, plain = cells(rows)
    found = dict(zip(head, both, strict=True))
    assert found["aime24"] == "20.0 % [10.0, 30.0]"
    assert found["aime24 pass@2"] == "30.0 % [20.0, 40.0]"
    assert found["aime24 pass@4"] == "35.0 % [25.0, 45.0]"
    assert found["math500"] == "60.0 % [50.0, 70.0]"
    assert "math500 pass@1" not in found
    assert dict(zip(head, plain, strict=True))["aime24"] == ""


def test_a_run_that_was_only_evaluated_has_its_line(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "evaluation.json").write_text(
        '{"accuracy": {"mean": 0.0, "low": 0.0, "high": 0.01, "problems": 256}}'
    )
    found = row(read_run(tmp_path / "base"))
    assert (found["accuracy"], found["steps"], found["method"], found["state"]) == (0.0, 0, "", "ended")
    assert "0.0 to 1.0 %" in markdown([found])


def test_a_folder_without_a_run_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="empty is not the folder of a run"):
        report([tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(DataError) as caught:
        report([tmp_path / "empty", tmp_path / "nowhere", tmp_path / "file"], tmp_path / "out")
    assert len(caught.value.faults) == 3
    assert "does not exist" in caught.value.faults[1]
    assert "is a file" in caught.value.faults[2]
    assert not (tmp_path / "out").exists()


def test_a_parent_folder_stands_for_the_runs_below_it(tmp_path):
    for place in ("lab/seed0/prefix_rft", "lab/seed1/prefix_rft", "lab/dr_grpo"):
        made_run(tmp_path / place)
    made_run(tmp_path / "lab" / "dr_grpo" / "sft")  # a stage of a run is no run
    (tmp_path / "lab" / "notes").mkdir()
    found = read_runs([tmp_path / "lab"])
    assert [run.name for run in found] == ["dr_grpo", "seed0/prefix_rft", "seed1/prefix_rft"]
    again = find_runs([tmp_path / "lab", tmp_path / "lab" / "dr_grpo" / ".." / "dr_grpo"])
    assert len(again) == 3  # the same folder given twice is one run


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=6, unique_by=tuple))
def test_short_names_differ_and_are_no_longer_than_needed(paths):
    names = short_names([Path("/", *parts) for parts in paths])
    assert len(set(names)) == len(names)
    for parts, name in zip(paths, names, strict=True):
        assert f"/{'/'.join(parts)}".endswith(name)
        shorter = name.split("/")[1:]
        others = [other for other in paths if other is not parts]
        if len(shorter) and name.strip("/") == name:  # one part less would be another one's name as well
            assert any(other[-len(shorter) :] == shorter for other in others)


def test_files_that_cannot_be_read_are_noted_and_end_nothing(tmp_path):
    run = made_run(tmp_path / "run")
    (run / "recipe.yaml").write_text("method: [unclosed")
    (run / "evaluation.json").write_text("{")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('ard": 1}\n[1, 2]\nnonsense\n{"step": 22, "reward": 0.1}\n')
    (run / "rollouts" / "step_000020.parquet").write_bytes(b"PAR1 no")
    (run / "rollouts" / "step_x.parquet").write_bytes(b"")
    found = read_run(run)
    assert found.step == 22
    assert len(found.notes) == 3
    assert "metrics.jsonl: 2 lines cannot be read" in found.notes
    assert report([run], tmp_path / "out")["report.html"].stat().st_size > 10_000


def test_metrics_that_are_no_numbers_do_not_end_the_report(tmp_path):
    run = made_run(tmp_path / "run")
    odd = {"step": 21, "reward": float("nan"), "loss": float("inf"), "epoch": "one", "flag": True, "step_time": None}
    (run / "metrics.jsonl").write_text(json.dumps(odd) + "\n" + json.dumps({"step": 22}) + "\n")
    report([run], tmp_path / "out")


def test_an_output_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        report([made_run(tmp_path / "run")], tmp_path / "out")


def test_the_terminal_table_leaves_out_empty_columns(tmp_path):
    lines = text_table([row(read_run(made_run(tmp_path / "plain", "dr_grpo")))]).splitlines()
    assert "with prefix" not in lines[0]
    assert lines[1].split() == [
        "plain", "ended", "dr_grpo", "20", "50.0", "%", "40.0", "to", "60.0", "%", "0.487", "20.0", "2.00e+10", "1.5",
    ]  # fmt: skip


def test_curves_stay_inside_their_axes_and_have_one_legend(tmp_path, monkeypatch):
    from matplotlib import pyplot

    from prefix_rl.reports import report as module

    kept = []
    monkeypatch.setattr(module, "save", lambda fig, path: kept.append(fig))
    runs = [read_run(made_run(tmp_path / name)) for name in "abc"]
    for run in runs:
        run.metrics[5]["reward_without_prefix"] = 7.5  # a bonus takes a reward beyond 1
    module.curves(runs, tmp_path / "x.png")
    (fig,) = kept
    fig.canvas.draw()
    top = fig.axes[0]
    assert top.get_ylim()[1] > 7.5
    assert all(line.get_clip_on() for line in top.lines)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a", "b", "c"]
    assert top.get_legend() is None
    pyplot.close(fig)


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


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_ends_of_tokens_of_a_byte_level_tokenizer_are_exact():
    from small import byte_level_bpe

    tokenizer = byte_level_bpe()
    text = "so 3² + 4² is 25, and — voilà — \\boxed{5} 你好!"
    ids = tokenizer.encode(text, add_special_tokens=False)
    ends = token_ends(text, tokenizer.batch_decode([[i] for i in ids]))
    # the oracle: what the first n ids decode to, up to a character of which only a part is there
    for n, end in enumerate(ends, 1):
        whole = tokenizer.decode(ids[:n]).rstrip("\ufffd")
        assert text.startswith(whole)
        assert end == len(whole), (n, whole)


@given(st.text(max_size=30), st.integers(0, 2**32))
def test_ends_never_fall_and_the_last_is_the_end(text, seed):
    draw, pieces, at = random.Random(seed), [], 0
    data = text.encode()
    while at < len(data):
        width = draw.randint(1, 5)
        pieces.append(data[at : at + width].decode(errors="replace"))
        at += width
    ends = token_ends(text, pieces)
    assert ends == sorted(ends)
    assert all(0 <= end <= len(text) for end in ends)
    assert not ends or ends[-1] == len(text)


def test_what_is_the_same_for_all_tokens_is_written_once():
    decode_each = lambda rows: ["ab"[row[0]] for row in rows]  # noqa: E731
    assert token_columns([0, 1], "ab", decode_each, [0.25, 0.25]) == {
        "token_ends": None,
        "advantages": [0.25],
        "entropies": None,
    }
    nan = float("nan")
    assert token_columns([0, 1], "ab", decode_each, [0.25, 0.25], [nan, nan])["entropies"] is None
    found = token_columns([0, 1], "ab", decode_each, [0.25, 0.25], [nan, 0.123456])
    assert found == {"token_ends": [1, 2], "advantages": [0.25], "entropies": [None, 0.1235]}


def test_settings_have_dotted_names():
    assert flat({"a": {"b": {"c": 1}, "d": None}, "e": "x"}) == {"a.b.c": "1", "a.d": "null", "e": "x"}
