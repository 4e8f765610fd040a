"""Whether two checkouts train alike, bit for bit: the proof of a change that is to change nothing.

    git worktree add ../reference COMMIT
    python benchmarks/equal_checkouts.py ../reference [--steps 20] [--recipes dr_grpo uft] [--set training.beta=0.1]

Each recipe of recipes/lab is trained in both checkouts, each with its own package, recipe and, where the recipe learns
from own traces, its own collection of them. What is compared: the final parameters, the saved rollouts of every
generation batch, and every line of metrics.jsonl without what a clock measures. A row of the table says for each how
much there was to compare, or the first difference. Runs of a checkout stay in --folder and are not repeated.

Nothing here passes or fails; the exit status is the number of recipes that differ.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[1]
CLOCKS = re.compile(r"(^|/|_)(runtime|step_time|\w+_per_second|grading_share)$")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path, help="the other checkout")
    parser.add_argument("--checkout", type=Path, default=HERE, help="this one")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of a run")
    parser.add_argument("--recipes", nargs="*", help="names in recipes/lab; all that train, unless given")
    parser.add_argument("--set", nargs="*", default=[], metavar="block.key=value", help="further overrides for all")
    parser.add_argument("--folder", type=Path, default=Path("runs/equal_checkouts"), help="where the runs go")
    parser.add_argument("--again", action="store_true", help="train this checkout's runs anew, keep the reference's")
    given = parser.parse_args()
    names = given.recipes or trained_by(given.reference)
    print(f"| recipe, {given.steps} steps | parameters | rollouts | metrics |\n|---|---|---|---|", flush=True)
    different = 0
    for name in names:
        runs = []
        for checkout, again in ((given.reference, False), (given.checkout, given.again)):
            folder = given.folder.resolve() / label(checkout, given) / name
            train(checkout.resolve(), name, folder, given, again)
            runs.append(folder)
        found = [compare(*runs) for compare in (parameters, rollouts, metrics)]
        different += not all(found_one.startswith("equal") for found_one in found)
        print(f"| {name} | {' | '.join(found)} |", flush=True)
    return different


def trained_by(checkout: Path) -> list[str]:
    """The recipes of the lab that one run can follow: those that name a method."""
    return sorted(p.stem for p in (checkout / "recipes" / "lab").glob("*.yaml") if "\nmethod:" in p.read_text())


def label(checkout: Path, given: argparse.Namespace) -> str:
    """The folder of a checkout's runs: its name, the steps and the overrides."""
    return re.sub(r"[^\w.=-]+", "_", "-".join([checkout.resolve().name, str(given.steps), *given.set]))


def train(checkout: Path, name: str, folder: Path, given: argparse.Namespace, again: bool) -> None:
    """Trains a recipe with the package of ``checkout``, unless that has been done."""
    if (folder / "run" / "final").is_dir() and not again:
        return
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    folder.mkdir(parents=True)
    recipe = f"recipes/lab/{name}.yaml"
    overrides = [
        f"training.max_steps={given.steps}", f"training.eval_steps={max(given.steps // 4, 1)}",
        "training.logging_steps=1", f"training.save_steps={given.steps}", "output.rollouts_every=1",
        f"output.dir={folder / 'run'}",
    ]  # fmt: skip
    if "\n  traces:" in (checkout / recipe).read_text():
        overrides.append(f"data.traces={folder / 'traces'}")
        collect = "import sys; from prefix_rl.cli import main; sys.exit(main())"
        command(checkout, ["-c", collect, "collect", recipe, "--output", str(folder / "traces")], folder)
    command(checkout, ["-m", "prefix_rl.train", "--config", recipe, *overrides, *given.set], folder)


def command(checkout: Path, arguments: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = folder / "log"
    with log.open("a") as file:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=checkout, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed in {checkout}:\n{log.read_text()[-3000:]}")


def parameters(one: Path, other: Path) -> str:
    """Of the policy at the end, and of the supervised stage if there was one."""
    from safetensors.torch import load_file

    files = sorted(p.relative_to(one) for p in one.rglob("final/*.safetensors"))
    if files != sorted(p.relative_to(other) for p in other.rglob("final/*.safetensors")):
        return "not the same files"
    count = 0
    for file in files:
        left, right = load_file(one / file), load_file(other / file)
        if left.keys() != right.keys():
            return f"{file}: not the same tensors"
        for name in left:
            if left[name].dtype != right[name].dtype or not left[name].equal(right[name]):
                return f"{name}: differ by {float((left[name] - right[name]).abs().max()):.2g}"
            count += left[name].numel()
    return f"equal ({count:,})" if count else "none"


def rollouts(one: Path, other: Path) -> str:
    import pyarrow.parquet

    files = sorted(p.relative_to(one) for p in one.rglob("rollouts/*.parquet"))
    if files != sorted(p.relative_to(other) for p in other.rglob("rollouts/*.parquet")):
        return "not of the same steps"
    count = 0
    for file in files:
        left, right = (pyarrow.parquet.read_table(run / file).to_pylist() for run in (one, other))
        if repr(left) != repr(right):  # as written: NaN equals NaN
            return f"differ in {file.name}"
        count += len(left)
    return f"equal ({count:,})"


def metrics(one: Path, other: Path) -> str:
    count = 0
    names = sorted(p.relative_to(one) for p in one.rglob("metrics.jsonl"))
    if names != sorted(p.relative_to(other) for p in other.rglob("metrics.jsonl")):
        return "not the same files"
    for name in names:
        left, right = (lines(run / name) for run in (one, other))
        if len(left) != len(right):
            return f"{len(left)} and {len(right)} lines"
        for a, b in zip(left, right, strict=True):
            for key in sorted(a.keys() | b.keys()):
                if repr(a.get(key)) != repr(b.get(key)):
                    return f"step {a['step']}: {key} = {a.get(key)} and {b.get(key)}"
                count += 1
    return f"equal ({count:,})"


def lines(path: Path) -> list[dict]:
    """The logs of a run without what a clock measured."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in log.items() if not CLOCKS.search(key)} for log in found]


if __name__ == "__main__":
    sys.exit(main())
