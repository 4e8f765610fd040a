"""The page as a file: what it holds, what it leaves out, and that nothing of what others wrote can run."""

import base64
import json
import random
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_reports import made_run, rollout

from prefix_rl.reports import page as module
from prefix_rl.reports import payload
from prefix_rl.reports.page import shell, write_page
from prefix_rl.reports.report import cells, report, row
from prefix_rl.reports.rollouts import write_rollouts
from prefix_rl.reports.runs import read_run, read_runs


def chunks(text):
    """The chunks of a page, by name, as the browser opens them."""
    found = re.findall(r'<script type="application/octet-stream" id="chunk-([\w-]+)">([\w+/=]*)</script>', text)
    return {name: json.loads(zlib.decompress(base64.b64decode(data))) for name, data in found}


def page_of(*folders, megabytes=60.0):
    path = folders[0].parent / "page.html"
    runs = read_runs(folders)
    write_page(runs, cells([row(run) for run in runs]), path, megabytes)
    return path.read_text()


def many(folder, generations=3, rollouts=16, characters=4000, seed=0):
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefgh", k=6)) for _ in range(3000)]
    run = made_run(folder)
    for g in range(generations):
        write_rollouts(run / "rollouts" / f"step_{10 * g:06d}.parquet", [
            rollout(i, row=i // 4, segments=[{"kind": "continuation", "text": " ".join(draw.choices(words, k=characters // 7))}])
            for i in range(rollouts)
        ])  # fmt: skip
    return run


def test_the_page_holds_every_saved_generation_and_every_metric(tmp_path):
    held = chunks(page_of(many(tmp_path / "a", 3), made_run(tmp_path / "b", "dr_grpo")))
    assert set(held) == {"index", "curves-0", "curves-1", "0-0", "0-10", "0-20", "1-10"}
    index = held["index"]
    assert [run["name"] for run in index["runs"]] == ["a", "b"]
    assert [g["step"] for g in index["runs"][0]["generations"]] == [0, 10, 20]
    assert index["runs"][1]["recipe"]["method.name"] == "dr_grpo"
    logged = {key for line in read_run(tmp_path / "a").metrics for key in line} - {"step"}
    assert set(held["curves-0"]["metrics"]) == logged
    curve = held["curves-0"]["metrics"]["reward"]
    steps = [held["curves-0"]["step"][at] for at in curve["at"]]
    assert list(zip(steps, curve["values"], strict=True)) == [(s, s / 40) for s in range(1, 21)]
    assert held["curves-0"]["minutes"][9] == 1.0  # ten steps of 6 seconds
    assert held["curves-0"]["flops"][9] == 10e9
    (group,) = held["1-10"]
    assert (group["prompt"], group["answer"], len(group["rollouts"])) == ("0 + 1 = ?", "1", 4)
    assert group["rollouts"][0]["segments"] == [0, "<b>so ", 1, "it", 2, " is & 2"]
    assert index["runs"][1]["generations"][0]["outcomes"] == ["right", "wrong", "wrong", "wrong"]


def test_the_values_of_several_reward_functions_stand_apart(tmp_path):
    run, apart = made_run(tmp_path / "a"), {"math_reward": 1.0, "my.brief": None}
    write_rollouts(run / "rollouts" / "step_000010.parquet", [rollout(0, rewards=apart), rollout(1, rewards=apart)])
    (group,) = chunks(page_of(run))["0-10"]
    assert [r["rewards"] for r in group["rollouts"]] == [apart, apart]


def test_metrics_without_a_number_are_told_as_none(tmp_path):
    run = made_run(tmp_path / "a")
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": NaN, "reward": Infinity, "flag": true, "cost/flops": NaN}\n'
    )
    held = chunks(page_of(run))["curves-0"]
    assert held["metrics"] == {
        "loss": {"at": [0], "values": [None]},
        "reward": {"at": [0], "values": [None]},
        "cost/flops": {"at": [0], "values": [None]},
    }
    assert held["flops"] == [None]


def test_the_page_needs_no_network_and_lets_nothing_else_run(tmp_path):
    text = page_of(made_run(tmp_path / "a"))
    shown = text.replace('"http://www.w3.org/2000/svg"', "")  # a name of SVG, not an address
    assert "http://" not in shown
    assert "https://" not in shown
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert f"script-src '{module._hash(script)}'" in policy
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert f"style-src '{module._hash(style)}'" in policy


def test_the_script_never_reads_a_text_as_html():
    script = shell()[1]
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "DOMParser",
        ".srcdoc",
    ):
        assert way not in script, way


HOSTILE = "</script><script>document.title = 'ran'</script><img src=x onerror=\"document.title='ran'\">"


def test_no_hostile_text_stands_in_the_file(tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    run = made_run(folder)
    (run / "recipe.yaml").write_text(json.dumps({"method": {"name": HOSTILE}, HOSTILE: HOSTILE}))
    write_rollouts(run / "rollouts" / "step_000010.parquet", [
        rollout(0, prompt=HOSTILE, answer=HOSTILE, found=HOSTILE, outcome=HOSTILE, segments=[{"kind": "continuation", "text": HOSTILE}])
    ])  # fmt: skip
    text = page_of(run)
    assert "onerror" not in text
    assert text.count("<script>") == 1
    assert chunks(text)["0-10"][0]["rollouts"][0]["segments"] == [2, HOSTILE]


# --- size -------------------------------------------------------------------------------------------------------------


def test_a_page_keeps_its_size_by_cutting_long_rollouts_in_their_middle(tmp_path):
    run = many(tmp_path / "a", generations=8, rollouts=32, characters=20_000)
    whole = page_of(run)
    assert 2e6 < len(whole) < 60e6
    assert chunks(whole)["index"]["runs"][0]["limit"] is None
    small = page_of(run, megabytes=1.0)
    assert 0.6e6 < len(small) <= 1.0e6
    held = chunks(small)
    limit = held["index"]["runs"][0]["limit"]
    segments = held["0-0"][0]["rollouts"][0]["segments"]
    assert segments[0::2] == [2, payload.CUT, 2]
    assert len(segments[1]) + len(segments[5]) == limit
    before = chunks(whole)["0-0"][0]["rollouts"][0]["segments"][1]
    assert before.startswith(segments[1])
    assert before.endswith(segments[5])
    assert int(segments[3]) == len(before) - limit


@pytest.mark.parametrize("guess", [None, 15_000])
def test_a_page_keeps_its_size_where_its_first_guess_was_too_long(tmp_path, monkeypatch, guess):
    run = many(tmp_path / "a", generations=8, rollouts=32, characters=20_000)
    monkeypatch.setattr(module, "_first_limit", lambda runs, files, room: guess)
    text = page_of(run, megabytes=1.0)
    assert 0.5e6 < len(text) <= 1.0e6
    assert chunks(text)["index"]["runs"][0]["limit"] < 15_000


def test_a_page_is_honest_where_even_the_shortest_is_too_long(tmp_path):
    run = many(tmp_path / "a", generations=3)
    text = page_of(run, megabytes=0.01)
    assert chunks(text)["index"]["runs"][0]["limit"] == module._SHORTEST


@given(
    st.lists(st.tuples(st.integers(0, 2), st.text(min_size=1, max_size=20)), max_size=6),
    st.one_of(st.none(), st.integers(3, 60)),
)
def test_what_is_cut_keeps_beginning_and_end(segments, limit):
    whole = "".join(text for _, text in segments)
    found = payload.cut(segments, limit)
    if limit is None or len(whole) <= limit:
        assert found is segments
        return
    place = next(i for i, (kind, _) in enumerate(found) if kind == payload.CUT)
    before, after = ("".join(text for _, text in part) for part in (found[:place], found[place + 1 :]))
    assert whole.startswith(before)
    assert whole.endswith(after)
    assert len(before) + len(after) == limit
    assert int(found[place][1]) + limit == len(whole)


# --- groups and tokens ------------------------------------------------------------------------------------------------


def test_groups_of_the_same_problem_stay_apart_where_their_size_is_known():
    records = [{"row": 3, "prompt": "p", "n": i} for i in range(8)]
    assert [[r["n"] for r in g] for g in payload.groups_of(records, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(payload.groups_of(records)) == 1
    mixed = [{"row": i % 2, "prompt": str(i % 2)} for i in range(8)]
    assert [len(g) for g in payload.groups_of(mixed, 4)] == [4, 4]  # a size that does not fit: by problem


def test_the_same_problem_has_the_same_key_in_another_run():
    one = payload.problem_key({"prompt": '"1 + 1"', "answer": "2", "row": 0})
    assert one == payload.problem_key({"prompt": '"1 + 1"', "answer": "2", "row": 7})
    assert one != payload.problem_key({"prompt": '"1 + 1"', "answer": "3"})


def test_values_of_tokens_travel_with_their_widths(tmp_path):
    run = made_run(tmp_path / "a")
    write_rollouts(run / "rollouts" / "step_000010.parquet", [
        rollout(0, token_ends=[3, 6, 8, 15], advantages=[0.0, 0.0, 0.5, -0.25], entropies=[1.5, 0.1234, None, None], found="2"),
        rollout(1, token_ends=None, advantages=[0.5], entropies=None, found=None),
    ])  # fmt: skip
    first, second = chunks(page_of(run))["0-10"][0]["rollouts"]
    assert first["widths"] == [3, 3, 2, 7]
    assert first["advantages"] == [0, 0, 0.5, -0.25]
    assert first["entropies"] == [1.5, 0.123, None, None]
    assert first["found"] == "2"
    assert not {"widths", "advantages", "entropies"} & set(second)


def test_rollouts_of_an_older_version_are_shown(tmp_path):
    run = made_run(tmp_path / "a")  # without the columns found, token_ends, advantages, entropies
    found = payload.read_generation(run / "rollouts" / "step_000010.parquet")
    assert "found" not in found[0]
    assert found[0]["tokens"] == 3
    assert "completion_ids" not in found[0]


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ('"plain"', "plain"),
        ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]', "user: a\nassistant: b"),
        ("not json", "not json"),
        (None, ""),
        ("{}", "{}"),
        ("[1]", "[1]"),
    ],
)
def test_prompts_are_for_reading(prompt, shown):
    assert payload.prompt_text(prompt) == shown


def test_a_report_leaves_nothing_half_written(tmp_path, monkeypatch):
    run = made_run(tmp_path / "a")
    report([run], tmp_path / "out")
    before = (tmp_path / "out" / "report.html").read_bytes()

    def fail(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(payload, "chunk_of", fail)
    with pytest.raises(KeyboardInterrupt):
        report([run], tmp_path / "out")
    assert (tmp_path / "out" / "report.html").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "curves.png",
        "report.html",
        "report.md",
        "results.json",
    ]
