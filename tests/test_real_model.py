"""A real language model, SmolLM2-135M-Instruct, through every command: what a user types, in the order in which he does.

Its numbers say nothing about a method; that all of it works on a real model, and is what it says it is, they do. A smaller
model would have neither its tokenizer, its chat template, its generation config nor its weights' format.
"""

import json
from pathlib import Path

import pytest
import real
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from prefix_rl.cli import app
from prefix_rl.data.traces import TraceStore
from prefix_rl.reports.rollouts import read_rollouts

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(3000)]
RECIPES = Path(__file__).parents[1] / "recipes" / "smollm2-135m"
MODEL = real.folder("smollm2")
NUMBERS = [  # of problems in the manner of GSM8K, with its marks
    (3, 12, 7),
    (5, 9, 11),
    (4, 15, 23),
    (6, 8, 19),
    (7, 13, 30),
    (2, 26, 14),
    (9, 11, 45),
    (8, 14, 51),
]
NAMES = ["baker", "gardener", "printer", "farmer", "potter", "tailor", "grocer", "miller", "weaver", "cooper"]
TINY = [
    "training.use_cpu=true", "training.bf16=false", "training.max_steps=2", "training.save_strategy=no",
    "training.num_generations=4", "training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1",
    "training.max_completion_length=40", "training.disable_tqdm=true", "output.rollouts_every=1",
    f"model.name_or_path={MODEL}",
]  # fmt: skip


def run(*words, code=0):
    found = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert found.exit_code == code, found.output
    return found.output


def rows(path, numbers, question):
    with path.open("w") as file:
        for (a, b, c), name in zip(numbers, NAMES, strict=False):
            p, r = a * b, a * b - c
            solution = (
                f"There are {a} * {b} = <<{a}*{b}={p}>>{p} of them.\n{p} - {c} = <<{p}-{c}={r}>>{r} are left.\n#### {r}"
            )
            asked = question.format(name=name, a=a, b=b, c=c)
            file.write(json.dumps({"question": asked, "answer": solution}) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows as `prefix-rl prepare` makes them of GSM8K's columns: (to train on, to evaluate on)."""
    folder = tmp_path_factory.mktemp("data")
    train = rows(
        folder / "train.raw.jsonl", NUMBERS, "A {name} fills {a} trays with {b} pieces and sells {c}. What is left?"
    )
    test = rows(
        folder / "test.raw.jsonl",
        NUMBERS[:2],
        "In {a} rows stand {b} chairs each; {c} break. How many does the {name} keep?",
    )
    run("prepare", train, "--output", folder / "train.jsonl", "--against", test, "--no-near-duplicates",
        "--tokenizer", MODEL, "--max-completion-length", 60)  # fmt: skip
    run("prepare", test, "--output", folder / "test.jsonl")
    return folder / "train.jsonl", folder / "test.jsonl"


def settings(data, folder, *more):
    return [*TINY, f"data.train={data[0]}", f"evaluation.data={data[1]}", f"output.dir={folder}", *more]


def logged(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


METHODS = {
    "dr_grpo": [],
    "prefix_rft": [],
    "prefix_rl": ["method.cuts=1", "method.plain=0"],
    "sft_then_rl": ["method.supervised.epochs=0.5", "method.supervised.batch_size=2", "training.max_steps=1"],
}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Trains with a method once, when first asked for, and gives the run's folder."""
    folder = tmp_path_factory.mktemp("runs")

    def run_of(arm):
        if not (folder / arm).is_dir():
            run("train", RECIPES / f"{arm}.yaml", *settings(data, folder / arm, *METHODS[arm]))
        return folder / arm

    return run_of


def test_prepared_rows_have_the_solutions_without_their_marks(data):
    made = [json.loads(line) for line in data[0].read_text().splitlines()]
    assert len(made) == 8
    assert made[0]["answer"] == "29"  # 3 * 12 - 7
    assert made[0]["demonstrations"][0]["text"] == "There are 3 * 12 = 36 of them.\n36 - 7 = 29 are left.\n\\boxed{29}"


@pytest.mark.parametrize("arm", METHODS)
def test_check_says_what_training_would_do(arm, data, tmp_path):
    shown = run("check", RECIPES / f"{arm}.yaml", *settings(data, tmp_path / arm, *METHODS[arm]))
    assert "8 problems to train on" in shown


@pytest.mark.parametrize("arm", METHODS)
def test_training_moves_the_policy(arm, trained):
    steps = [row for row in logged(trained(arm)) if "loss" in row and "reward" in row]
    assert len(steps) == (1 if arm == "sft_then_rl" else 2)
    weights = load_file(trained(arm) / "final" / "model.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())
    before = load_file(MODEL / "model.safetensors")
    if arm != "dr_grpo":  # its groups may have no right answer, and then nothing moves
        assert any(not weights[name].float().equal(before[name].float()) for name in before)


@pytest.mark.parametrize(("arm", "count"), [("dr_grpo", 0), ("prefix_rft", 1), ("prefix_rl", 4), ("sft_then_rl", 0)])
def test_rollouts_start_from_the_demonstrations_as_the_method_says(arm, count, trained, data):
    texts = [json.loads(line)["demonstrations"][0]["text"] for line in data[0].read_text().splitlines()]
    found = read_rollouts(trained(arm))
    starts = []
    for rollout in found:
        start = "".join(s["text"] for s in rollout["segments"] if s["kind"] != "continuation")
        if start:
            assert any(text.startswith(start) for text in texts)
            assert "boxed" not in start
            starts.append(start)
    assert (len(found), len(starts)) == (4, count)


def test_evaluation_is_what_transformers_generates_by_itself(trained, data, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = trained("prefix_rft")
    run(
        "evaluate",
        policy,
        "evaluation.temperature=0",
        "--on",
        data[1],
        "--max-completion-length",
        "24",
        "--output",
        tmp_path,
    )
    texts = texts_of(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(policy / "final", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(policy / "final")
    expected = []
    for line in data[1].read_text().splitlines():
        asked = json.loads(line)["problem"] + (
            "\nPlease reason step by step, and put your final answer within \\boxed{}."
        )
        ids = tokenizer.apply_chat_template([{"role": "user", "content": asked}], add_generation_prompt=True,
                                            return_tensors="pt", return_dict=True)["input_ids"]  # fmt: skip
        made = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
        expected.append(tokenizer.decode(made, skip_special_tokens=True))
    assert sorted(texts) == sorted(expected)


def test_runs_are_compared_and_reported(trained, data, tmp_path):
    for arm in ("dr_grpo", "prefix_rl"):
        run("evaluate", trained(arm), "--on", data[1], "--samples", "2", "--max-completion-length", "16",
            "--output", tmp_path / arm)  # fmt: skip
        card = json.loads((tmp_path / arm / "evaluation.json").read_text())
        (measured,) = card["benchmarks"].values()
        assert sum(measured["outcomes"].values()) == 4  # 2 problems x 2 samples
    shown = run("compare", tmp_path / "prefix_rl", tmp_path / "dr_grpo")
    assert "first:" in shown
    run("report", *(trained(arm) for arm in METHODS), "--output", tmp_path / "report")
    assert (tmp_path / "report" / "report.html").is_file()
    table = (tmp_path / "report" / "report.md").read_text()  # the page holds its data compressed
    assert all(f"| {arm} |" in table for arm in METHODS)


def test_traces_are_collected_and_can_be_trained_on(data, tmp_path):
    from transformers import AutoTokenizer

    run(
        "collect",
        RECIPES / "upft.yaml",
        *settings(data, tmp_path / "run", "data.limit=2"),
        "--output",
        tmp_path / "traces",
    )
    traces = list(TraceStore.open(tmp_path / "traces"))
    assert len(traces) == 2  # one for each problem
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for trace in traces:
        assert 0 < len(trace.completion_ids) <= 40
        assert tokenizer.decode(trace.completion_ids, skip_special_tokens=True) == trace.text
    run("train", RECIPES / "upft.yaml", *[s for s in settings(data, tmp_path / "run", "data.limit=2") if "max_steps" not in s],
        f"data.traces={tmp_path / 'traces'}", "method.supervised.batch_size=2", "method.supervised.per_device_batch_size=2")  # fmt: skip
    assert (tmp_path / "run" / "final" / "model.safetensors").is_file()


def test_adapters_are_trained_evaluated_and_merged(data, tmp_path):
    lora = ["model.use_peft=true", "model.lora_r=4", "model.lora_dropout=0", "model.lora_target_modules=all-linear",
            "training.learning_rate=1e-3"]  # fmt: skip
    run("train", RECIPES / "prefix_rft.yaml", *settings(data, tmp_path / "run", *lora))
    assert not (tmp_path / "run" / "final" / "model.safetensors").exists()
    greedy = ["evaluation.temperature=0", "--on", data[1], "--max-completion-length", "16"]
    run("evaluate", tmp_path / "run", *greedy, "--output", tmp_path / "adapters")
    run("merge", tmp_path / "run")
    run("evaluate", tmp_path / "run" / "merged", *greedy, "--output", tmp_path / "merged")
    assert texts_of(tmp_path / "adapters") == texts_of(tmp_path / "merged")


def texts_of(folder):
    import pyarrow.parquet

    files = sorted((folder / "samples").rglob("*.parquet"))
    return sorted(row["text"] for file in files for row in pyarrow.parquet.read_table(file).to_pylist())
