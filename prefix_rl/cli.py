"""The command ``prefix-rl``. Heavy packages are imported inside the commands that need them."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .data.attempts import Plan
from .data.settings import PRESETS
from .data.settings import Settings as PrepareSettings
from .engines.settings import EngineSettings
from .evaluation.settings import Evaluation
from .options import options
from .progress import bar, say, show

app = typer.Typer(
    name="prefix-rl",
    help="Post-train a language model with reinforcement learning and demonstrations.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
ENGINE = options(EngineSettings, names={"name": "engine"}, commas=("endpoints",), defaults=False, into="engine")
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="block.key=value", help="Values that replace the recipe's.")
]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        show(f"prefix-rl {__version__}")
        raise typer.Exit


@app.callback()
def _general(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: prefix-rl train recipes/lab/prefix_rft.yaml training.max_steps=50")
def train(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Train as a recipe says, in one process. For several, see `accelerate launch` in the README."""
    from .train import train as run

    run(recipe, overrides or [])


@app.command(
    epilog="Example: prefix-rl prepare gsm8k-train.jsonl.gz --output data/gsm8k.jsonl --against gsm8k-test.jsonl"
)
@options(PrepareSettings, names={"columns": "column"})
def prepare(
    sources: Annotated[
        list[str], typer.Argument(help="Files (.jsonl, .jsonl.gz, .parquet), or owner/name[:configuration] on the hub.")
    ],
    output: Annotated[Path, typer.Option(help="The training file to write, .jsonl.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="A model; its tokenizer measures prompts and demonstrations.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="openr1-46k: one right demonstration of at most 8192 tokens for each problem, or what else is given."
        ),
    ] = None,
    near_duplicates: Annotated[bool, typer.Option(help="Whether to look for problems that are only similar.")] = True,
    workers: Annotated[int, typer.Option(min=1, help="Grading processes.")] = 2,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe: demonstrations are graded by its reward block (its first function).")
    ] = None,
    **given: Any,
) -> None:
    """Turn raw rows into training rows. Every demonstration is graded by the training reward.

    GSM8K, MATH, OpenR1-Math and its 46k subset, DAPO-Math and OpenThoughts are known by their columns. What is dropped
    is counted in a table and in a manifest beside the file, and listed with its reason. The same command goes on where
    it was.
    """
    from .data.columns import parse_columns
    from .data.funnel import table
    from .data.prepare import dropped_path, manifest_path, without_demonstrations
    from .data.prepare import prepare as run
    from .errors import DataError, nearest
    from .recipe import load_recipe
    from .rewards.settings import Reward

    if preset is not None and preset not in PRESETS:
        raise DataError(f"--preset {preset}: no such preset{nearest(preset, PRESETS)}; there are {', '.join(PRESETS)}")
    given["columns"] = parse_columns(given.get("columns", []))
    given["against"] = tuple(given.get("against", ()))
    if not near_duplicates:
        given["similarity"] = None
    reward = load_recipe(recipe).reward if recipe else Reward(workers=workers)
    settings = PrepareSettings(**{"reward": reward.functions[0]} | PRESETS.get(preset, {}) | given)
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

    grader = dataclasses.replace(reward, workers=workers).grader()
    manifest = run(sources, output, settings, tokenizer=loaded, grader=grader, progress=progress)
    while bars:
        bars.pop().__exit__(None, None, None)
    show(table(manifest["funnel"]))
    for known in manifest["evaluation_sets"]:
        show(
            f"against {known['set']}: " + ", ".join(f"{n:,} {what}" for what, n in known.items() if isinstance(n, int))
        )
    count = manifest["rows"]
    show(f"{count:,} problem{'s' * (count != 1)}, {manifest['rows_with_demonstration']:,} with a demonstration")
    if "answers_appended" in manifest:
        say(f"appended the answer to {manifest['answers_appended']:,} demonstrations that state none (--append-answer)")
    if not manifest["rows_with_demonstration"]:
        say(without_demonstrations(manifest))
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
    from .data.problems import guarded
    from .data.tokenizer import DemonstrationTable
    from .policy import Policy
    from .recipe import load_run
    from .reports import schedule as reports

    preflight.quiet()
    found, train_problems, _ = load_run(recipe, overrides or [])
    having = [p for p in train_problems if p.demonstrations]
    chosen = having[:problems] if problems else having
    policy = Policy(found)
    with bar("looking where the answers stand", sum(len(p.demonstrations) for p in chosen)) as advance:
        chosen = guarded(chosen, found.data.answer_guard, found.reward.grader(), advance)
    table = DemonstrationTable(
        [p.demonstrations for p in chosen], [p.answer for p in chosen], policy.tokenizer,
        found.data.answer_guard, usable=found.method.needs.usable, turn=policy.turn, problems=[p.text for p in chosen],
        cut=found.method.needs.cut,
    )  # fmt: skip
    lengths = reports.preview(found, table, repeats=[p.repeats for p in chosen])
    show(f"{len(having)} of {len(train_problems)} problems have a demonstration; drawn for {len(chosen)} of them")
    show(reports.table_of(lengths))
    reports.plot(lengths, f"{found.method_name}: prefixes of {found.data.named}", plot)
    say(f"wrote {plot}")


@app.command(epilog="Example: prefix-rl evaluate Qwen/Qwen2.5-Math-7B-Instruct --on aime24,math500 --engine vllm")
@options(Evaluation, omit=("data", "allow_overlap"), commas=("on", "k", "prefix_fractions"), defaults=False)
@ENGINE
def evaluate(
    target: Annotated[str, typer.Argument(help="A run's folder, a checkpoint, a model, or lab (its base policy).")],
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option(help="A recipe, where the target is no run.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where the results go; the run's folder unless given.")] = None,
    regrade: Annotated[bool, typer.Option(help="TARGET is an evaluation's folder: grade its samples again.")] = False,
    engine: dict[str, Any] | None = None,
    **given: Any,
) -> None:
    """Measure accuracy (avg@k, pass@k, maj@k), without any prefix, and leave a card that says how.

    The options are the keys of a recipe's evaluation and engine blocks. The same command goes on where it was stopped.
    """
    from .evaluation.card import rows_of, text_table
    from .evaluation.evaluate import evaluate as run
    from .evaluation.evaluate import grade_again

    if regrade:
        if useless := sorted([*given.keys() - {"k"}, *(engine or {})]):
            raise typer.BadParameter(f"--regrade samples nothing, so it takes no {', '.join(useless)}")
        card, changes = grade_again(Path(target), given.get("k", ()))
        changed = {pair: n for pair, n in changes.items() if pair[0] != pair[1]}
        show(f"{sum(changed.values())} of {changes.total()} verdicts changed")
        for (before, now), n in sorted(changed.items()):
            show(f"  {n:>6}  {before} -> {now}")
    else:
        options = [f"evaluation.{name}={json.dumps(value)}" for name, value in given.items()]
        card = run(target, config, [*(overrides or []), *options, *_of_engine(engine)], output)
        if not card:  # one of several processes, and not the one that tells
            return
        show(f"{card['policy']}, without a prefix")
    print(text_table(rows_of(card)))


def _of_engine(given: dict[str, Any] | None) -> list[str]:
    return [f"engine.{name}={json.dumps(value)}" for name, value in (given or {}).items()]


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
    from .parts import write_text

    found = compare_folders(ours, theirs, on.split(",") if on else ())
    for warning in found["warnings"]:
        say(f"warning: {warning}; the difference may be due to that")
    show(f"first: {found['ours']['policy']}\nsecond: {found['theirs']['policy']}")
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
    shown: Annotated[int, typer.Option("--show", min=0, help="Disagreements to show.")] = 5,
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
    report = run(file, grader, columns=columns, output=output, second_opinion=second, show=shown)
    show(table(report, second))
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
@options(Plan)
@ENGINE
def collect(
    recipe: RecipeFile,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="The trace store, a folder.")] = Path("runs/traces"),
    batch_size: Annotated[int | None, typer.Option(help="Attempts in the making at a time in one process.")] = None,
    seed: Annotated[int, typer.Option(help="Of all sampling.")] = 0,
    policy: Annotated[str | None, typer.Option(help="A policy in place of the recipe's model.")] = None,
    import_from: Annotated[
        str | None, typer.Option("--import", help="Import the traces of this file or store instead of sampling.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="What wrote the imported traces.")] = None,
    engine: dict[str, Any] | None = None,
    **given: Any,
) -> None:
    """Collect traces with the policy itself, for `data.traces` of a recipe: right ones of hard problems, or what the
    recipe's method learns from.

    Every trace is kept with its outcome and its cost. The same command goes on where it was.
    """
    from .collecting.collect import collect as run
    from .collecting.collect import import_file
    from .collecting.summary import collect_main_table

    if import_from:
        summary = import_file(recipe, overrides or [], output, import_from, source=source, policy=policy)
    else:
        options = [*(overrides or []), *_of_engine(engine)]
        summary = run(recipe, options, output, batch_size=batch_size, seed=seed, policy=policy, **given)
        if not summary:  # one of several processes, and not the one that tells
            return
    show(collect_main_table(summary))
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
    from .ladders.climb import climb

    paths = climb(file, fast, processes, arm or (), regime or ())
    show(paths["ladder.md"].read_text(encoding="utf-8"))


@app.command(epilog="Example: prefix-rl merge runs/lora --output models/merged")
def merge(
    target: Annotated[str, typer.Argument(metavar="RUN", help="A run, a checkpoint, or a folder of adapters.")],
    output: Annotated[
        Path | None, typer.Option(help="Where the whole model goes; the folder merged of the run unless given.")
    ] = None,
) -> None:
    """Merge trained adapters into the model that they stand on: a whole model, for programs that take no adapters."""
    from .merge import merge as run

    say(f"wrote {run(target, output)}")


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
    """Check a recipe, its data, its policy and the installed packages without training. Prints the resolved recipe.

    What only this machine lacks (a GPU, vLLM, the hub) is listed apart, and is no fault of the recipe.
    """
    from .check import check as run

    found = run(recipe, overrides or [])
    show(found.recipe.dump(), end="")
    for note in found.notes:
        say(f"note: {note}")
    if found.missing:
        say("\n".join(["this machine cannot train it as it is:", *(f"  - {what}" for what in found.missing)]))
    say(f"good: {found.problems} problems to train on, {found.held_out} to evaluate on")


@app.command(epilog="Example: prefix-rl plan recipes/qwen2.5-math-7b/prefix_rft.yaml --gpus 8 --memory 80")
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Devices; the processes of the accelerate file.")] = None,
    memory: Annotated[float, typer.Option(min=0.1, help="GiB of each.")] = 80.0,
    accelerate: Annotated[
        str | None, typer.Option(help="File of `accelerate launch`; the one that the recipe's head names.")
    ] = None,
    prompt: Annotated[int | None, typer.Option(min=1, help="Tokens of a prompt; 512, or what fits.")] = None,
    tflops: Annotated[float, typer.Option(min=0.001, help="1e12 operations a second of each; an H100's.")] = 989.0,
    mfu: Annotated[float, typer.Option(min=0.001, max=1, help="Share of them that training reaches.")] = 0.4,
    generation_mfu: Annotated[float, typer.Option(min=0.001, max=1, help="Share that generation reaches.")] = 0.05,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes.")] = False,
) -> None:
    """Estimate memory, tokens, operations and hours of a recipe, and what to change if it does not fit."""
    from . import plan as plans
    from . import preflight
    from .reports.tables import text_table

    preflight.quiet()
    devices = gpus or (plans.launch_for(recipe, accelerate).processes)
    machine = plans.Machine(devices, memory * plans.GIB, tflops, mfu, generation_mfu)
    found = plans.plan(recipe, overrides or [], machine, accelerate, prompt)
    show(json.dumps(plans.as_json(found), indent=2) if as_json else plans.report(found, text_table))
    for note in found.notes:
        say(f"note: {note}")


@app.command(epilog="Example: prefix-rl preview recipes/lab/prefix_rft.yaml --rows 3 --step 100")
def preview(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="Problems to show.")] = 3,
    step: Annotated[int, typer.Option(min=0, help="Optimizer step whose prefixes are shown.")] = 0,
    characters: Annotated[int, typer.Option(min=0, help="Of each part of a text; 0: all of it.")] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show prompts as the policy sees them, with prefixes, the guard's place, gold answers, verdicts and tokens."""
    from . import preflight
    from . import preview as previews

    preflight.quiet()
    found = previews.preview(recipe, overrides or [], rows, step)
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(json.dumps(previews.as_json(found), indent=2) if as_json else previews.report(found, characters, color))
    for note in found.notes:
        say(f"note: {note}")


@app.command(epilog="Example: prefix-rl keys training.beta")
def keys(
    block: Annotated[
        str | None, typer.Argument(metavar="[BLOCK | METHOD | BLOCK.KEY]", help="data, prefix_rft, training.beta, ...")
    ] = None,
    as_schema: Annotated[bool, typer.Option("--schema", help="Print a JSON Schema of recipes, for editors.")] = False,
) -> None:
    """List the keys of a recipe: what each takes, its default, what it means."""
    if as_schema:
        return schema()
    from .keys import keys as rows
    from .reports.tables import text_table

    print(text_table(rows(block)))


@app.command(epilog="Example: prefix-rl schema > recipe.schema.json")
def schema() -> None:
    """Print a JSON Schema of recipes, by which an editor completes and checks them; also `keys --schema`."""
    from .schema import schema as made

    show(json.dumps(made(), indent=2, ensure_ascii=False))


def main() -> None:
    """The console script."""
    from .progress import run_or_explain

    sys.exit(run_or_explain(lambda: app(standalone_mode=True)))
