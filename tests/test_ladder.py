"""The ladder: what it refuses, which runs it makes, what it computes from them, and that it goes on where it was."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from prefix_rl.data.traces import TraceStore
from prefix_rl.errors import RecipeError, UserError
from prefix_rl.evaluation.metrics import _crossed, over_seeds, paired_difference
from prefix_rl.ladders.climb import climb
from prefix_rl.ladders.jobs import Job, chosen_settings, final_jobs, search_jobs, settings_for
from prefix_rl.ladders.one import curve_of, run_one, steps_of
from prefix_rl.ladders.plan import Cell, Collect, load_ladder
from prefix_rl.ladders.report import _flops_to, report
from prefix_rl.recipe import read_yaml

LAB = Path(__file__).parents[1] / "recipes" / "lab"


def written(folder, **changes):
    """A small ladder of two arms and two regimes, with blocks replaced by ``changes``; None removes one."""
    content = {
        "output": str(folder / "ladder"),
        "seeds": [0, 1],
        "against": ["dr_grpo"],
        "set": {
            "data.lab.base_steps": 200, "data.lab.problems": 8, "data.lab.held_out": 8, "evaluation.samples": 1,
            "training.per_device_train_batch_size": 16, "training.num_generations": 4, "training.max_steps": 4,
            "training.eval_steps": 2, "training.logging_steps": 1, "training.save_steps": 2,
            "evaluation.prefix_fractions": [0, 0.5], "training.report_to": "none",
        },
        "levels": {"easier": {"data.lab.operations": 3}},
        "arms": {
            "dr_grpo": {"recipe": str(LAB / "dr_grpo.yaml")},
            "prefix_rft": {"recipe": str(LAB / "prefix_rft.yaml"), "set": {"method.horizon": 4}},
        },
        "regimes": {
            "clean": {"question": "clean?"},
            "garbled": {"question": "garbled?", "demonstrations": {"data.lab.demonstrations": "garbled"}},
        },
    }  # fmt: skip
    content |= changes
    path = folder / "ladder.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


SEARCH = {
    "seed": 9, "regimes": ["clean"], "set": {"data.lab.held_out_seed": 1},
    "tries": {"prefix_rft": [{"training.learning_rate": 1e-4}, {"training.learning_rate": 4e-4}]},
}  # fmt: skip


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(path):
    with pytest.raises(RecipeError) as caught:
        load_ladder(path)
    return "\n".join([caught.value.what, *caught.value.faults])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1, 0]}, "seeds: 0 stands twice"),
        ({"seeds": []}, "seeds: give at least one"),
        ({"fast": {"seeds": []}}, "fast.seeds: give at least one"),
        ({"fast": {"seeds": [3, 3]}}, "fast.seeds: 3 stands twice"),
        ({"fast": {"arms": []}}, "fast.arms: give at least one"),
        ({"search": {"tries": {}, "regimes": [[]]}}, "search.regimes: = [[]]: must be a list"),
        ({"against": ["sft_than_rl"]}, "against: no arm sft_than_rl"),
        ({"regimes": {"clean": {}}}, "regimes.clean.question: is missing"),
        ({"armz": {}}, "armz: no such key (did you mean arms?)"),
        ({"search": {**SEARCH, "seed": 1}}, "search.seed = 1 is one of seeds"),
        ({"search": {**SEARCH, "regimes": ["klean"]}}, "search.regimes: no regime klean (did you mean clean?)"),
        (
            {"search": {**SEARCH, "tries": {**SEARCH["tries"], "dr_grpo": [{}]}}},
            "every arm gets the same number of tries, given {'dr_grpo': 1, 'prefix_rft': 2}",
        ),
        ({"set": {"training.learning_rat": 1}}, "training.learning_rat: no such key (did you mean learning_rate"),
        (
            {"arms": {"a": {"recipe": str(LAB / "dr_grpo.yaml"), "set": {"method.share": 0.2}}}, "against": []},
            "method.share: is a setting of pppo, prefix_rft, not of dr_grpo",
        ),
        (
            {"arms": {"a": {"recipe": str(LAB / "dr_grpo.yaml"), "set": {"method.name": "dr_grop"}}}, "against": []},
            "did you mean dr_grpo?",
        ),
        ({"arms": {"a": {"recipe": "nowhere.yaml"}}, "against": []}, "cannot read the recipe"),
    ],
)  # fmt: skip
def test_a_ladder_that_cannot_run_is_refused(tmp_path, changes, message):
    assert message in refused(written(tmp_path, **changes))


def test_all_faults_are_told_at_once(tmp_path):
    said = refused(written(tmp_path, seeds=[0, 0], against=["x"], search={**SEARCH, "seed": 0}))
    assert "3 problems" in said
    assert "stands twice" in said
    assert "no arm x" in said
    assert "search.seed = 0" in said


@pytest.mark.parametrize(
    "setting",
    [
        {"data.lab.operations": 5}, {"data.limit": 4}, {"evaluation.temperature": 0.0}, {"evaluation.limit": 4},
        {"budget.flops": 1e9}, {"training.max_completion_length": 29}, {"model.name_or_path": "other"},
        {"data.lab.demonstrations": "garbled"},
    ],
    ids=str,
)  # fmt: skip
def test_arms_that_differ_in_data_evaluation_or_budget_are_refused(tmp_path, setting):
    arms = {name: {"recipe": str(LAB / "prefix_rft.yaml"), "set": extra} for name, extra in (("a", {}), ("b", setting))}
    ((key, value),) = setting.items()
    said = refused(written(tmp_path, arms=arms, against=[]))
    assert f"b in clean: {key} = {json.dumps(value)}, but a has" in said


def test_parts_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(RecipeError) as caught:
        climb(written(tmp_path), arms=["prefix_rtf"], regimes=["clean", "garbeld"])
    assert caught.value.faults == [
        "there is no arm prefix_rtf (did you mean prefix_rft?); there are dr_grpo, prefix_rft",
        "there is no regime garbeld (did you mean garbled?); there are clean, garbled",
    ]


def test_the_ladder_of_the_lab_can_run():
    found = load_ladder(LAB / "ladder.yaml")
    assert {
        "dr_grpo",
        "rft",
        "upft",
        "upft_filtered",
        "sft",
        "sft_then_rl",
        "luffy",
        "sft_loss",
        "chord",
        "prefix_rft",
        "prefix_rl",
    } <= set(found.arms)
    assert {"clean", "ten_percent", "one_percent", "eight", "garbled", "slipping", "restating", "own", "self"} == set(
        found.regimes
    )
    assert set(found.search.tries) == {name for name, arm in found.arms.items() if arm.tuned_as is None}
    fast = load_ladder(LAB / "ladder.yaml", fast=True)
    assert len(fast.seeds) == 1
    assert fast.search is None
    assert fast.output != found.output


# --- which runs -------------------------------------------------------------------------------------------------------


def test_an_arm_without_demonstrations_runs_once_for_all_regimes_that_differ_in_them(tmp_path):
    path = written(tmp_path)
    jobs = final_jobs(load_ladder(path), {})
    assert len(jobs) == 2 * 2 * 2  # arms x regimes x seeds
    folders = {(*j.cell, j.seed): j.folder for j in jobs}
    assert folders["dr_grpo", "clean", 0] == folders["dr_grpo", "garbled", 0] != folders["dr_grpo", "clean", 1]
    assert len({f for (arm, _, _), f in folders.items() if arm == "prefix_rft"}) == 4
    regimes = {"clean": {"question": "?"}, "short": {"question": "?", "set": {"training.max_completion_length": 29}}}
    path = written(tmp_path, regimes=regimes)
    folders = {(*j.cell, j.seed): j.folder for j in final_jobs(load_ladder(path), {})}
    assert folders["dr_grpo", "clean", 0] != folders["dr_grpo", "short", 0]


def test_a_changed_setting_is_another_run(tmp_path):
    path = written(tmp_path)
    before = {j.folder for j in final_jobs(load_ladder(path), {})}
    assert before == {j.folder for j in final_jobs(load_ladder(path), {})}
    changed = {**yaml.safe_load(path.read_text())["set"], "training.learning_rate": 1e-3}
    path = written(tmp_path, set=changed)
    assert before.isdisjoint(j.folder for j in final_jobs(load_ladder(path), {}))


def finish(job, accuracy, right=None, flops=100.0, **more):
    job.folder.mkdir(parents=True, exist_ok=True)
    right = right if right is not None else [accuracy] * 4
    cost = {"generated_tokens": 1e3, "injected_tokens": 2e3, "trained_tokens": 3e3, "flops": flops}
    curve = [
        {"step": 2, "flops": flops / 2, "accuracy": accuracy / 2},
        {"step": 4, "flops": flops, "accuracy": accuracy},
    ]
    result = {
        "right": right, "accuracy": accuracy, "levels": {"easier": [1.0] * 4}, "curve": curve, "cost": cost,
        "seconds": {"training": 60, "evaluation": 60}, "git_commit": "abc", "by_prefix_fraction": [], **more,
    }  # fmt: skip
    (job.folder / "result.json").write_text(json.dumps(result))


def test_the_best_try_is_chosen_and_used_where_it_was_found(tmp_path):
    path = written(tmp_path, search=SEARCH)
    found = load_ladder(path)
    searched = search_jobs(found)
    assert list(searched) == [("prefix_rft", "clean")]
    first, second = searched["prefix_rft", "clean"]
    assert first.seed == 9
    assert "data.lab.held_out_seed=1" in first.overrides
    finish(first, 0.25)
    finish(second, 0.75)
    chosen = chosen_settings(found, searched)
    assert chosen["prefix_rft", "clean"] == {"training.learning_rate": 4e-4}
    assert settings_for(found, chosen, Cell("prefix_rft", "garbled")) == {
        "training.learning_rate": 4e-4
    }  # not searched there
    assert settings_for(found, chosen, Cell("dr_grpo", "clean")) == {}
    finish(first, 0.75)  # of equals the first
    assert chosen_settings(found, searched)["prefix_rft", "clean"] == {"training.learning_rate": 1e-4}
    (job,) = [j for j in final_jobs(found, chosen) if (*j.cell, j.seed) == ("prefix_rft", "clean", 0)]
    assert "training.learning_rate=0.0004" in job.overrides
    assert "data.lab.held_out_seed=1" not in job.overrides


def arms_of_their_own(**more):
    hard = {"data.lab.operations": 20}  # as in the other recipes
    return {
        "dr_grpo": {"recipe": str(LAB / "dr_grpo.yaml")},
        "sft": {"recipe": str(LAB / "sft.yaml")},
        "rft": {"recipe": str(LAB / "rft.yaml"), "set": hard, "collect": {"k": 4}, **more},
        "upft": {"recipe": str(LAB / "upft.yaml"), "set": hard, "collect": {}},
        "own": {"recipe": str(LAB / "sft.yaml"), "collect": {"k": 2, "cap": 5}},
    }


def test_an_arm_may_collect_traces_of_its_own(tmp_path):
    path = written(tmp_path, arms=arms_of_their_own(), seeds=[0])
    jobs = {(j.cell.regime, j.cell.arm): j for j in final_jobs(load_ladder(path), {})}
    traces = {key: job.traces and Path(job.traces).name for key, job in jobs.items()}
    assert traces["clean", "dr_grpo"] is traces["garbled", "sft"] is None
    for regime in ("clean", "garbled"):
        for arm in ("rft", "upft", "own"):
            assert traces[regime, arm] == f"{regime}-{arm}-seed0"
    assert jobs["clean", "rft"].collect == Collect(k=4)
    assert jobs["clean", "upft"].collect == Collect()
    # the traces of a regime are shared, those of an arm take their place
    collecting = {"own": {"question": "?", "collect": {"k": 8}}}
    path = written(tmp_path, arms=arms_of_their_own(), regimes=collecting, seeds=[0])
    jobs = {j.cell.arm: j for j in final_jobs(load_ladder(path), {})}
    assert (Path(jobs["sft"].traces).name, jobs["sft"].collect) == ("own-seed0", Collect(k=8))
    assert (Path(jobs["rft"].traces).name, jobs["rft"].collect) == ("own-rft-seed0", Collect(k=4))
    assert (jobs["dr_grpo"].traces, jobs["dr_grpo"].collect) == (None, None)


def test_a_regime_may_name_its_arms(tmp_path):
    path = written(tmp_path, arms=arms_of_their_own(regimes=["clean"]), seeds=[0], regimes={
        "clean": {"question": "?"}, "self": {"question": "?", "arms": ["rft", "upft"]},
    })  # fmt: skip
    jobs = final_jobs(load_ladder(path), {})
    assert [j.cell.arm for j in jobs if j.cell.regime == "self"] == ["upft"]  # rft excludes it
    assert len([j for j in jobs if j.cell.regime == "clean"]) == 5
    regimes = {"self": {"question": "?", "arms": ["rtf"]}}
    assert "regimes.self.arms: no arm rtf (did you mean rft?)" in refused(
        written(tmp_path, arms=arms_of_their_own(), regimes=regimes)
    )


def test_an_arm_that_lives_on_own_traces_must_collect_them(tmp_path):
    arms = {"rft": {"recipe": str(LAB / "rft.yaml")}}
    assert "arms.rft: rft learns from own traces; give it `collect: {}`" in refused(
        written(tmp_path, arms=arms, against=[])
    )


# --- what is computed -------------------------------------------------------------------------------------------------


def test_the_table_pairs_arms_by_seed_and_problem(tmp_path):
    path = written(tmp_path)
    found = load_ladder(path)
    jobs = final_jobs(found, {})
    for job in jobs:
        ours = job.cell.arm == "prefix_rft"
        if not (ours and job.cell.regime == "garbled" and job.seed == 1):  # one run has not finished
            right = [1.0, 1.0, 1.0, 0.0] if ours else [0.0, 0.0, 1.0, 0.0]
            back = [{"step": 4 + job.seed, "accuracy": {"0": 0.5, "0.5": 0.75}}] if ours else []
            finish(job, 0.75 if ours else 0.25, right=right, by_prefix_fraction=back)
    paths = report(found, {}, {}, jobs, tmp_path)
    table = json.loads(paths["ladder.json"].read_text())["regimes"]
    row = table["clean"]["arms"]["prefix_rft"]
    assert row["by_seed"] == [0.75, 0.75]
    # differences by problem are 1, 1, 0, 0 in both seeds: mean 1/2
    assert row["against"]["dr_grpo"]["mean"] == 0.5
    assert row["flops_to_match"]["dr_grpo"] == 50  # 0.375 >= 0.25 at the first point of the curve
    assert row["cost"]["flops"] == 100
    assert table["garbled"]["arms"]["prefix_rft"] is None
    text = paths["ladder.md"].read_text()
    assert "Not finished: prefix_rft." in text
    assert "75.0 %" in text
    assert "+50.0" in text
    assert "Highest accuracy: prefix_rft." in text
    assert "final accuracy of dr_grpo, as a share of what it spent: prefix_rft 0.50." in text
    assert paths["curves.png"].stat().st_size > 10_000
    assert paths["back_generalization.png"].stat().st_size > 10_000


def test_flops_to_reach_an_accuracy(tmp_path):
    jobs = [Job(Cell("a", "r"), s, "", (), tmp_path / str(s), {}) for s in (0, 1)]
    finish(jobs[0], 0.8, flops=100)
    finish(jobs[1], 0.8, flops=300)
    assert _flops_to(jobs, 0.4) == (50 + 150) / 2
    assert _flops_to(jobs, 0.5) == (100 + 300) / 2
    assert _flops_to(jobs, 0.9) is None
    assert _flops_to(jobs, 0.0) is None  # nothing to reach


def test_a_paired_difference_by_hand():
    # one seed, differences 1, 1, 0, 0: mean 1/2, standard error sqrt(1/3)/2 = 0.2887, t(3) quantile 3.182
    found = paired_difference([[1, 1, 1, 0]], [[0, 0, 1, 0]])
    assert found.mean == 0.5
    assert found.high - found.mean == pytest.approx(3.18245 * (1 / 12) ** 0.5, rel=1e-4)
    # three seeds, the same difference on every problem of a seed: 0.2, 0.3, 0.4
    ours = [[0.2] * 5, [0.3] * 5, [0.4] * 5]
    found = paired_difference(ours, [[0.0] * 5] * 3)
    # by seed: sample variance 0.01, /3; by problem: 0; mean 0.3, error 0.0577, t(2) = 5.196, p = 0.0351
    assert found.p == pytest.approx(0.0351, abs=2e-4)
    assert paired_difference([[1, 0]] * 3, [[1, 0]] * 3).p == 1
    # nothing varies: an error of one cell, 1/30, so t(2) = 30 and p = 2 * (1 - F(30)) = 1 - 30/sqrt(902) = 0.00111
    assert paired_difference([[1] * 10] * 3, [[0] * 10] * 3).p == pytest.approx(0.00111, abs=1e-5)
    with pytest.raises(ValueError, match="same seeds and problems"):
        paired_difference([[1, 0]], [[1, 0], [1, 0]])


def simulated(seeds, problems, effect, rng):
    """Two arms whose runs and problems both vary."""
    hard = [rng.gauss(0, 0.25) for _ in range(problems)]
    arms = []
    for shift in (effect, 0.0):
        runs = [rng.gauss(0.4 + shift, 0.08) for _ in range(seeds)]
        arms.append([[float(rng.random() < min(max(run + h, 0), 1)) for h in hard] for run in runs])
    return arms


@pytest.mark.parametrize(("seeds", "most"), [(2, 0.08), (3, 0.07)])
def test_the_paired_test_keeps_its_level_and_its_intervals_cover(seeds, most):
    rng, wrong, covered, n = random.Random(0), 0, 0, 400
    for _ in range(n):
        null = paired_difference(*simulated(seeds, 60, 0.0, rng))
        wrong += null.p < 0.05
        covered += null.low <= 0 <= null.high
    # 0.05 and two standard errors of 400 trials; with two seeds Satterthwaite's test is known to reject more often. And
    # not never: a test that rejects no true null has no power either
    assert 0.01 <= wrong / n <= most
    assert covered / n >= 1 - most
    if seeds == 3:
        assert sum(paired_difference(*simulated(3, 60, 0.5, rng)).p < 0.05 for _ in range(100)) >= 75


def test_the_paired_test_finds_ten_points_where_runs_hardly_differ():
    rng, found, n = random.Random(1), 0, 60
    for _ in range(n):
        hard = [rng.gauss(0.45, 0.25) for _ in range(256)]
        arms = [
            [[(sum(rng.random() < h for _ in range(2))) / 2 for h in own] for _ in range(3)]
            for own in ([h + rng.gauss(shift, 0.15) for h in hard] for shift in (0.1, 0.0))
        ]
        found += paired_difference(*arms).p < 0.05
    assert found >= 0.75 * n  # with the degrees of freedom of the seeds alone: 28 of 60


def test_degrees_of_freedom_lie_between_those_of_seeds_and_those_of_problems():
    rng = random.Random(2)
    runs_differ = [[0.2 * s + rng.gauss(0, 0.01) for _ in range(50)] for s in range(3)]
    hard = [rng.gauss(0, 1) for _ in range(50)]
    problems_differ = [[h + rng.gauss(0, 0.01) for h in hard] for _ in range(3)]
    assert _crossed(runs_differ)[1] == pytest.approx(2, abs=0.1)
    assert _crossed(problems_differ)[1] == pytest.approx(49, abs=1)


def test_the_variance_of_a_mean_over_seeds_and_problems_has_no_bias():
    # seeds of variance 0.04, problems of 0.25, the rest of 1: 0.04 / 4 + 0.25 / 12 + 1 / 48 = 0.0516
    rng, found = random.Random(3), []
    for _ in range(1500):
        seeds, hard = [rng.gauss(0, 0.2) for _ in range(4)], [rng.gauss(0, 0.5) for _ in range(12)]
        found.append(_crossed([[s + h + rng.gauss(0, 1) for h in hard] for s in seeds])[0])
    assert 0.0516 <= sum(found) / len(found) <= 0.0516 * 1.25  # a little above: it is never less than either part


def test_an_accuracy_over_seeds_is_less_sure_than_one_over_samples():
    same = over_seeds([[1, 1, 0, 0] * 16] * 3)
    differing = over_seeds([[1, 1, 1, 1] * 16, [1, 1, 0, 0] * 16, [0, 0, 0, 0] * 16])
    assert same.mean == differing.mean == 0.5
    assert differing.high - differing.low > 1.5 * (same.high - same.low)
    assert 0 < over_seeds([[0] * 64] * 3).high < 0.2


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.slow
def test_a_ladder_runs_stops_and_goes_on(tmp_path, monkeypatch):
    """With fewer runs a search, a regime that shares an arm's run, or a run that is made again alone would not be seen."""
    path = written(tmp_path, seeds=[0], search={**SEARCH, "seed": 9})
    part = json.loads(climb(path, processes=2, arms=["dr_grpo"])["ladder.json"].read_text())["regimes"]["clean"]["arms"]
    assert part["dr_grpo"]
    assert part["prefix_rft"] is None
    assert len(list((tmp_path / "ladder" / "runs").glob("*/result.json"))) == 1  # and nothing was searched for
    paths = climb(path, processes=2)
    results = sorted((tmp_path / "ladder" / "runs").glob("*/result.json"))
    assert len(results) == 2 + 3  # two tries; dr_grpo once, prefix_rft in two regimes
    table = json.loads(paths["ladder.json"].read_text())["regimes"]
    assert all(row for regime in table.values() for row in regime["arms"].values())
    row = table["clean"]["arms"]["prefix_rft"]
    assert row["cost"]["flops"] > table["clean"]["arms"]["dr_grpo"]["cost"]["flops"] > 1e8  # entropies cost a pass
    (folder,) = [r.parent for r in results if json.loads(r.read_text())["by_prefix_fraction"]][:1]
    assert [set(p["accuracy"]) for p in json.loads((folder / "result.json").read_text())["by_prefix_fraction"]] == [
        {"0", "0.5"}, {"0", "0.5"}
    ]  # fmt: skip

    before = {r: (r.stat().st_mtime_ns, r.read_text()) for r in results}
    lost = results[0]
    lost.unlink()
    climb(path, processes=2)
    assert {r for r in results if r.stat().st_mtime_ns == before[r][0]} == set(results[1:])
    again, first = json.loads(lost.read_text()), json.loads(before[lost][1])
    assert again["right"] == first["right"]
    assert again["cost"] == first["cost"]


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.slow
def test_the_cost_of_an_arms_own_traces_is_charged_to_it(tmp_path):
    """Collecting and training are processes of their own; in one, that the cost travels in files would not be seen."""
    arms = {"upft": {"recipe": str(LAB / "upft.yaml"), "collect": {}}}
    path = written(tmp_path, arms=arms, seeds=[0], against=[], regimes={"clean": {"question": "?"}})
    climb(path, processes=1)
    row = json.loads((tmp_path / "ladder" / "ladder.json").read_text())["regimes"]["clean"]["arms"]["upft"]
    store = TraceStore.open(tmp_path / "ladder" / "traces" / "clean-upft-seed0")
    assert len(store) == 8
    assert row["cost"]["generated_tokens"] == sum(len(t.completion_ids) for t in store) > 0
    assert row["cost"]["trained_tokens"] == 4 * row["cost"]["generated_tokens"]  # four epochs
    assert row["cost"]["flops"] > store.cost().flops > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_ladder_that_is_stopped_stops_its_runs(tmp_path, number):
    """Two runs that train at once: a ladder that ended only one of them would pass with one."""
    path = written(tmp_path, seeds=[0])
    content = yaml.safe_load(path.read_text())
    content["set"] |= {"training.max_steps": 5000, "training.save_strategy": "no", "training.eval_strategy": "no"}
    path.write_text(yaml.safe_dump(content))
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # as in a terminal
    program += "from prefix_rl.cli import main; main()"
    ladder = subprocess.Popen([sys.executable, "-c", program, "ladder", str(path)], stderr=subprocess.PIPE, text=True)
    runs = tmp_path / "ladder" / "runs"
    wait_for(lambda: len(list(runs.glob("*/metrics.jsonl"))) == 2)  # both train
    ladder.send_signal(number)
    said = ladder.communicate()[1]
    assert ladder.returncode == 130
    assert "the same command goes on from there" in said
    sizes = {p: p.stat().st_size for p in runs.glob("*/metrics.jsonl")}
    time.sleep(1.5)
    assert {p: p.stat().st_size for p in runs.glob("*/metrics.jsonl")} == sizes  # nobody trains any more


def wait_for(condition):
    """Returns when it holds; what never comes is ended by the test's own limit."""
    while not condition():
        time.sleep(0.2)


def test_a_run_that_another_process_finishes_is_not_run_again(tmp_path, monkeypatch):
    job = Job(Cell("a", "r"), 0, "", (), tmp_path, {})
    finish(job, 0.5)
    monkeypatch.setattr("prefix_rl.ladders.one._train_and_measure", lambda job: pytest.fail("trained again"))
    run_one(job)


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.slow
def test_a_failing_run_is_told_and_the_others_finish(tmp_path, monkeypatch):
    """Two arms: that one fails must not keep the other from its end."""
    path = written(tmp_path, seeds=[0], regimes={"clean": {"question": "?"}})
    broken = final_jobs(load_ladder(path), {})[0]
    broken.folder.mkdir(parents=True)
    (broken.folder / "final").write_text("in the way")  # the policy cannot be saved there
    with pytest.raises(UserError) as caught:
        climb(path, processes=2)
    assert "1 runs failed" in caught.value.what
    assert broken.name in caught.value.faults[0]
    table = json.loads((tmp_path / "ladder" / "ladder.json").read_text())["regimes"]["clean"]["arms"]
    assert table["dr_grpo"] is None
    assert table["prefix_rft"]["steps"] == 4


@pytest.mark.usefixtures("quick_starts")
@pytest.mark.slow
def test_the_fast_form_of_the_lab_ladder_ends(tmp_path):
    """All arms of the published file: equal FLOPs can only be seen where training ends by its budget. One of two regimes."""
    content = read_yaml(LAB / "ladder.yaml")
    content["fast"]["regimes"] = ["garbled"]
    content["output"] = str(tmp_path / "ladder")
    for arm in content["arms"].values():
        arm["recipe"] = str(LAB / arm["recipe"])
    content["fast"]["set"] |= {"data.lab.base_steps": 400, "budget.flops": 4e10}
    path = tmp_path / "ladder.yaml"
    path.write_text(json.dumps(content))
    command = [sys.executable, "-c", "from prefix_rl.cli import main; main()", "ladder", str(path), "--fast"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    table = json.loads((tmp_path / "ladder-fast" / "ladder.json").read_text())["regimes"]
    assert set(table) == {"garbled"}
    for regime in table.values():
        spent = {arm: row["cost"]["flops"] for arm, row in regime["arms"].items()}
        assert set(spent) == {"dr_grpo", "sft_then_rl", "prefix_rft", "prefix_rl"}
        assert all(4e10 <= flops < 4e10 + 7e9 for flops in spent.values()), spent  # equal but for the last step
    assert "| sft_then_rl |" in done.stdout


def test_steps_are_counted_though_nothing_is_evaluated_on_the_way(tmp_path):
    lines = [{"step": 1, "loss": 0.1}, {"step": 2, "cost/flops": 1e9}, {"step": 3, "train_loss": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert steps_of(tmp_path) == 3
    assert steps_of(tmp_path / "nothing") == 0


def test_a_curve_is_that_of_the_first_reward_where_there_are_several(tmp_path):
    recipe = {"include": str(LAB / "prefix_rft.yaml"), "reward": {"functions": ["math", "code"]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    values = {"eval_reward": 1.5, "eval_rewards/math_reward/mean": 0.5, "eval_rewards/code_reward/mean": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "cost/flops": 1e9, **values}) + "\n")
    assert curve_of(tmp_path) == [{"step": 1, "flops": 1e9, "accuracy": 0.5}]
