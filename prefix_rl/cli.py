"""The command ``prefix-rl``. Heavy packages are imported inside the commands that need them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .progress import bar, say

app = typer.Typer(
    name="prefix-rl",
    help="Post-train a language model with reinforcement learning and demonstrations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="block.key=value", help="Values that replace the recipe's.")
]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")]


@app.command(epilog="Example: prefix-rl train recipes/lab/prefix_rft.yaml training.max_steps=50")
def train(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Train as a recipe says, in one process. For several, see `accelerate launch` in the README."""
    from .train import train as run

    run(recipe, overrides or [])


@app.command(
    epilog="Example: prefix-rl prepare gsm8k-train.jsonl.gz --output data/gsm8k.jsonl --against gsm8k-test.jsonl"
)
def prepare(
    sources: Annotated[
        list[str], typer.Argument(help="Files (.jsonl, .jsonl.gz, .parquet), or owner/name[:configuration] on the hub.")
    ],
    output: Annotated[Path, typer.Option(help="The training file to write, .jsonl.")],
    split: Annotated[str, typer.Option(help="The split, of a data set on the hub.")] = "train",
    limit: Annotated[int | None, typer.Option(help="Read the first rows only.")] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="OURS=THEIRS for a column not known by name; may be repeated.")
    ] = None,
    renumber: Annotated[bool, typer.Option(help="Give new ids: the number of the row in its source.")] = False,
    against: Annotated[
        list[str] | None, typer.Option(help="An evaluation set whose problems must not be trained on; may be repeated.")
    ] = None,
    ngram: Annotated[int, typer.Option(help="So many words in a row in common with it are too many (8; 13).")] = 8,
    spare_phrases: Annotated[
        bool, typer.Option(help="Drop no problem for turns of phrase, which 3 different evaluation problems share.")
    ] = False,
    force: Annotated[bool, typer.Option(help="Go on if a whole evaluation set stands in the sources.")] = False,
    similarity: Annotated[
        float,
        typer.Option(help="Drop problems with the same numbers and answer that are as similar to an earlier one."),
    ] = 0.8,
    near_duplicates: Annotated[bool, typer.Option(help="Whether to look for those.")] = True,
    pass_rates: Annotated[
        str | None,
        typer.Option(help="Measured pass rates: rows of id and pass_rate (or right, attempts), or a trace store."),
    ] = None,
    pass_rate: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Keep problems with a pass rate in [LOW, HIGH]."),
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A model; its tokenizer measures demonstrations.")] = None,
    max_completion_length: Annotated[int | None, typer.Option(help="Drop longer demonstrations (tokens).")] = None,
    demonstrations: Annotated[
        int | None, typer.Option(help="At most so many for a problem, the first right ones.")
    ] = None,
    require_demonstration: Annotated[bool, typer.Option(help="Drop problems without a demonstration.")] = False,
    demonstration_share: Annotated[
        float, typer.Option(help="The share of the problems that keep their demonstrations (0.1, 0.01).")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of that choice; the same as a recipe's makes the same choice.")] = 42,
    preset: Annotated[
        str | None,
        typer.Option(
            help="openr1-46k: one right demonstration of at most 8192 tokens for each problem, or what else is given."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Grading processes.")] = 2,
) -> None:
    """Turn raw rows into training rows. Every demonstration is graded by the training reward.

    GSM8K, MATH, OpenR1-Math and its 46k subset, DAPO-Math and OpenThoughts are known by their columns. What is dropped
    is counted in a table and in a manifest beside the file, and listed with its reason. The same command goes on where
    it was.
    """
    from .data.columns import parse_columns
    from .data.funnel import table
    from .data.prepare import PRESETS, Settings, dropped_path, manifest_path
    from .data.prepare import prepare as run
    from .errors import DataError, nearest
    from .rewards.equality import TRAINING_RULES
    from .rewards.workers import Grader

    if preset is not None and preset not in PRESETS:
        raise DataError(f"--preset {preset}: no such preset{nearest(preset, PRESETS)}; there are {', '.join(PRESETS)}")
    chosen = {"max_completion_length": max_completion_length, "demonstrations": demonstrations,
              "require_demonstration": require_demonstration or None}  # fmt: skip
    chosen = PRESETS.get(preset, {}) | {name: value for name, value in chosen.items() if value is not None}
    settings = Settings(**{
        "split": split, "limit": limit, "columns": parse_columns(column or []), "renumber": renumber,
        "against": tuple(against or ()), "ngram": ngram, "spare_phrases": spare_phrases, "force": force,
        "similarity": similarity if near_duplicates else None, "pass_rates": pass_rates, "pass_rate": pass_rate,
        "demonstration_share": demonstration_share, "seed": seed, **chosen,
    })  # fmt: skip
    loaded = None
    if tokenizer:
        from .data.tokenizer import load_tokenizer

        loaded = load_tokenizer(tokenizer)
    bars = []

    def progress(what: str, total: int | None):
        while bars:
            bars.pop().__exit__(None, None, None)
        bars.append(bar(what, total))
        return bars[-1].__enter__()

    manifest = run(
        sources, output, settings, tokenizer=loaded, grader=Grader(workers, rules=TRAINING_RULES), progress=progress
    )
    while bars:
        bars.pop().__exit__(None, None, None)
    print(table(manifest["funnel"]))
    for known in manifest["evaluation_sets"]:
        print(
            f"against {known['set']}: " + ", ".join(f"{n:,} {what}" for what, n in known.items() if isinstance(n, int))
        )
    count = manifest["rows"]
    print(f"{count:,} problem{'s' * (count != 1)}, {manifest['rows_with_demonstration']:,} with a demonstration")
    say(f"wrote {output}, {manifest_path(output)} and {dropped_path(output)}")


@app.command(epilog="Example: prefix-rl schedule recipes/lab/prefix_rft.yaml method.horizon=100")
def schedule(
    recipe: RecipeFile,
    overrides: Overrides = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("schedule.png"),
    problems: Annotated[int, typer.Option(help="Problems to draw for; 0: all.")] = 512,
) -> None:
    """Show the prefix lengths, in tokens, that a recipe will draw on its data."""
    from . import preflight
    from .data.tokenizer import DemonstrationTable, load_tokenizer
    from .recipe import load_run
    from .reports import schedule as reports
    from .train import model_path

    preflight.quiet()
    found, train_problems, _ = load_run(recipe, overrides or [])
    having = [p for p in train_problems if p.demonstrations]
    chosen = having[:problems] if problems else having
    tokenizer = load_tokenizer(model_path(found))
    table = DemonstrationTable(
        [p.demonstrations for p in chosen], [p.answer for p in chosen], tokenizer,
        found.data.answer_guard, usable=found.method.usable,
    )  # fmt: skip
    lengths = reports.preview(found, table)
    print(f"{len(having)} of {len(train_problems)} problems have a demonstration; drawn for {len(chosen)} of them")
    print(reports.table_of(lengths))
    reports.plot(lengths, f"{found.method_name}: prefixes of {found.data.train}", plot)
    say(f"wrote {plot}")


@app.command(epilog="Example: prefix-rl evaluate Qwen/Qwen2.5-Math-7B-Instruct --on aime24,math500 --engine vllm")
def evaluate(
    target: Annotated[str, typer.Argument(help="A run's folder, a checkpoint, a model, or lab (its base policy).")],
    overrides: Overrides = None,
    on: Annotated[
        str | None,
        typer.Option(help="Benchmarks (aime24,aime25,amc23,math500,minerva,olympiadbench,gsm8k), NAME=FILE, FILE."),
    ] = None,
    benchmarks: Annotated[str | None, typer.Option(help="A folder of their files, instead of the hub.")] = None,
    samples: Annotated[
        int | None, typer.Option(help="Completions for each problem; 32 for AIME and AMC, else 1.")
    ] = None,
    k: Annotated[
        str | None, typer.Option(help="Of pass@k and maj@k, as 4,16; the number of samples unless given.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="0.6 where no recipe says otherwise; 0: greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="1 where no recipe says otherwise.")] = None,
    max_completion_length: Annotated[
        int | None, typer.Option(help="Tokens; 8192 where no recipe says otherwise.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="transformers or vllm.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all sampling.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Completions generated and saved together; 64, with vLLM 1,024.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="The first problems of each benchmark only.")] = None,
    config: Annotated[str | None, typer.Option(help="A recipe, where the target is no run.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where the results go; the run's folder unless given.")] = None,
    regrade: Annotated[bool, typer.Option(help="TARGET is an evaluation's folder: grade its samples again.")] = False,
) -> None:
    """Measure accuracy (avg@k, pass@k, maj@k), without any prefix, and leave a card that says how.

    The options are the keys of a recipe's evaluation block. The same command goes on where it was stopped.
    """
    from .evaluation.card import rows_of, text_table
    from .evaluation.evaluate import evaluate as run
    from .evaluation.evaluate import grade_again

    given = {
        "on": on and on.split(","), "benchmarks": benchmarks, "samples": samples, "k": k and _numbers(k),
        "temperature": temperature, "top_p": top_p, "max_completion_length": max_completion_length, "engine": engine,
        "seed": seed, "batch_size": batch_size, "limit": limit,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if regrade:
        if useless := sorted(given.keys() - {"k"}):
            raise typer.BadParameter(f"--regrade samples nothing, so it takes no {', '.join(useless)}")
        card, changes = grade_again(Path(target), given.get("k", ()))
        changed = {pair: n for pair, n in changes.items() if pair[0] != pair[1]}
        print(f"{sum(changed.values())} of {changes.total()} verdicts changed")
        for (before, now), n in sorted(changed.items()):
            print(f"  {n:>6}  {before} -> {now}")
    else:
        options = [f"evaluation.{name}={json.dumps(value)}" for name, value in given.items()]
        card = run(target, config, [*(overrides or []), *options], output)
        print(f"{card['policy']}, without a prefix")
    print(text_table(rows_of(card)))


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise typer.BadParameter(f"--k {text}: give whole numbers above 0 with commas between them, as 4,16")
    return [int(part) for part in parts]


@app.command(epilog="Example: prefix-rl compare runs/prefix_rft runs/dr_grpo --on math500")
def compare(
    ours: Annotated[Path, typer.Argument(metavar="A", help="The folder of an evaluation.")],
    theirs: Annotated[Path, typer.Argument(metavar="B", help="The one to compare with.")],
    on: Annotated[str | None, typer.Option(help="Compare these benchmarks only, with commas between them.")] = None,
    output: Annotated[Path | None, typer.Option(help="A .json file for the result.")] = None,
) -> None:
    """Test whether A is better than B, paired by problem, and say what it would take to see the difference."""
    from .evaluation.card import text_table
    from .evaluation.compare import compare_folders, rows_of
    from .evaluation.samples import write_text

    found = compare_folders(ours, theirs, on.split(",") if on else ())
    for warning in found["warnings"]:
        say(f"warning: {warning}; the difference may be due to that")
    print(f"first: {found['ours']['policy']}\nsecond: {found['theirs']['policy']}")
    print(text_table(rows_of(found)))
    if output:
        write_text(output, json.dumps(found, indent=2) + "\n")
        say(f"wrote {output}")


@app.command(epilog="Example: prefix-rl grade completions.jsonl --output graded.jsonl")
def grade(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A .jsonl, .jsonl.gz or .parquet file with columns completion and answer."),
    ],
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="OURS=THEIRS for a column not known by name (completion, answer, start, prefix); may be repeated."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where the verdicts go, .jsonl.")] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE, a choice of prefix_rl.rewards.grading.Rules; may be repeated.")
    ] = None,
    second: Annotated[bool, typer.Option(help="Compare with a second, independent checker.")] = True,
    show: Annotated[int, typer.Option(min=0, help="Disagreements to show.")] = 5,
    workers: Annotated[int, typer.Option(min=1, help="Grading processes.")] = 2,
    deadline: Annotated[float, typer.Option(min=0.01, help="Seconds that one completion may take.")] = 5.0,
    memory_mb: Annotated[int, typer.Option(min=256, help="Address space of one grading process, MiB.")] = 2048,
) -> None:
    """Grade a file of completions: outcomes, disagreements with a second checker, speed.

    The samples that `prefix-rl evaluate` saves are such files. A column `start` (an offset) or `prefix` (a text) says
    where the policy's own text begins; an answer before it does not count.
    """
    from .grade import grade as run
    from .grade import parse_columns, parse_rules, table
    from .rewards.workers import Grader

    grader = Grader(workers, deadline, memory_mb, parse_rules(rule or []))
    columns = parse_columns(column or [])
    report = run(file, grader, columns=columns, output=output, second_opinion=second, show=show)
    print(table(report, second))
    if output:
        say(f"wrote {output}")


@app.command(epilog="Example: prefix-rl report runs/lab/dr_grpo runs/lab/prefix_rft --output runs/lab/report")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Folders of runs, or with runs in them.")],
    output: Annotated[Path, typer.Option(help="Where the report goes.")] = Path("report"),
    megabytes: Annotated[float, typer.Option(min=2, help="Of the page; long rollouts lose their middle.")] = 60,
) -> None:
    """Put runs side by side: a table, their curves, and one page with their health, curves and rollouts."""
    from .reports.report import report as run
    from .reports.report import text_table

    paths = run(runs, output, megabytes)
    print(text_table(json.loads(paths["results.json"].read_text(encoding="utf-8"))))
    say(f"wrote {paths['report.html']}")


@app.command(epilog="Example: prefix-rl watch runs/lab/prefix_rft")
def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Folders of runs, or with runs in them.")],
    host: Annotated[str, typer.Option(help="To listen on; other machines reach no 127.0.0.1.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="8765, or another if it is taken.")] = None,
) -> None:
    """Serve the report's page of runs while they train, evaluate or collect; stop with Ctrl-C."""
    from .reports.watch import watch as run

    run(runs, host, port)


@app.command(epilog="Example: prefix-rl quickstart --seed 1 --output runs/quickstart-1")
def quickstart(
    seed: Annotated[int, typer.Option(help="Of the training problems and of all sampling.")] = 0,
    output: Annotated[Path, typer.Option(help="Where the runs and the report go.")] = Path("runs/quickstart"),
    recipes: Annotated[Path, typer.Option(help="The folder of the lab's recipes.")] = Path("recipes/lab"),
    steps: Annotated[int | None, typer.Option(help="Training steps of each arm, instead of the recipes'.")] = None,
) -> None:
    """Train Dr.GRPO, Prefix-RFT, PrefixRL and SFT then Dr.GRPO on the CPU, evaluate them, and write the report."""
    from .lab.quickstart import quickstart as run

    run(seed, output, recipes, steps)


@app.command(epilog="Example: prefix-rl collect recipes/lab/prefix_rl.yaml --output runs/traces --k 64 --cap 512")
def collect(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The trace store, a folder.")] = Path("runs/traces"),
    k: Annotated[
        int | None,
        typer.Option(help="Attempts at every problem: 512, or as many as the method learns from (upft 1, rft 16)."),
    ] = None,
    max_pass_rate: Annotated[float, typer.Option(help="A problem is hard if at most this share is right.")] = 0.0,
    wanted: Annotated[int, typer.Option(help="Right traces wanted for a hard problem.")] = 1,
    cap: Annotated[
        int | None, typer.Option(help="Attempts at one problem at most: 2500, or k for a method of own traces.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Attempts generated together.")] = None,
    seed: Annotated[int, typer.Option(help="Of all sampling.")] = 0,
    policy: Annotated[str | None, typer.Option(help="A policy in place of the recipe's model.")] = None,
    import_from: Annotated[
        str | None, typer.Option("--import", help="Import the traces of this file or store instead of sampling.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="What wrote the imported traces.")] = None,
) -> None:
    """Collect traces with the policy itself, for `data.traces` of a recipe: right ones of hard problems, or what the
    recipe's method learns from.

    Every trace is kept with its outcome and its cost. The same command goes on where it was.
    """
    from .collect import collect as run
    from .collect import collect_main_table, import_file

    if import_from:
        summary = import_file(recipe, overrides or [], output, import_from, source=source, policy=policy)
    else:
        summary = run(
            recipe, overrides or [], output, k=k, max_pass_rate=max_pass_rate, wanted=wanted, cap=cap,
            batch_size=batch_size, seed=seed, policy=policy,
        )  # fmt: skip
    print(collect_main_table(summary))
    say(f"the traces are in {output}; train on them with data.traces={output}")


@app.command(epilog="Example: prefix-rl ladder recipes/lab/ladder.yaml --fast")
def ladder(
    file: Annotated[Path, typer.Argument(metavar="LADDER", help="A YAML file of arms, regimes and seeds.")],
    fast: Annotated[bool, typer.Option(help="The small form that the file describes.")] = False,
    processes: Annotated[int | None, typer.Option(help="Runs at a time; the number of cores unless given.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Run this arm alone; repeat it.")] = None,
    regime: Annotated[list[str] | None, typer.Option(help="Run in this regime alone; repeat it.")] = None,
) -> None:
    """Run many methods from the same data, policy, reward and budget, and put them into one table.

    The same command goes on where it was.
    """
    from .ladder import climb

    paths = climb(file, fast, processes, arm or (), regime or ())
    print(paths["ladder.md"].read_text(encoding="utf-8"))


@app.command(epilog="Example: prefix-rl tiny runs/tiny")
def tiny(
    folder: Annotated[Path, typer.Argument(help="Where the model goes.")],
    hidden: Annotated[int, typer.Option(help="Hidden size.")] = 64,
    layers: Annotated[int, typer.Option(help="Layers.")] = 2,
) -> None:
    """Make a small untrained model that reads any text, to try a recipe on real data without a GPU."""
    from .lab.tiny import make_tiny

    say(f"wrote {make_tiny(folder, hidden, layers)}")


@app.command(epilog="Example: prefix-rl check recipes/qwen2.5-math-7b/prefix_rft.yaml")
def check(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Check a recipe, its data and the installed packages without training. Prints the resolved recipe."""
    from . import preflight
    from .recipe import load_run

    found, train_problems, held_out = load_run(recipe, overrides or [])
    preflight.check(found)
    print(found.dump(), end="")
    say(f"good: {len(train_problems)} problems to train on, {len(held_out)} to evaluate on")


def main() -> None:
    """The console script."""
    from .train import run_or_explain

    sys.exit(run_or_explain(lambda: app(standalone_mode=True)))
