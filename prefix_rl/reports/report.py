"""Runs to one table, one figure and one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import yaml

from ..errors import DataError
from ..parts import write_text
from .page import page
from .plots import COLORS, figure, save


@dataclass(frozen=True)
class Run:
    """What a run left in its folder."""

    folder: Path
    name: str
    recipe: dict
    metrics: list[dict]
    evaluation: dict = field(default_factory=dict)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric, where it was logged."""
        points = [(m["step"], m[key]) for m in self.metrics if m.get(key) is not None]
        return [p[0] for p in points], [p[1] for p in points]

    def last(self, key: str, share: float = 0.1) -> float | None:
        """The mean of the last tenth of a metric's values, None if it was never logged."""
        values = self.series(key)[1]
        return fmean(values[-max(1, round(share * len(values))) :]) if values else None


def read_run(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        DataError: if it holds none.
    """

    def text(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8") if (folder / name).is_file() else ""

    metrics, evaluation = text("metrics.jsonl"), text("evaluation.json")
    if not metrics and not evaluation:
        raise DataError(f"{folder} is not the folder of a run: it has neither metrics.jsonl nor evaluation.json")
    lines = [json.loads(line) for line in metrics.splitlines() if line.endswith("}")]
    return Run(folder, folder.name, yaml.safe_load(text("recipe.yaml")) or {}, lines, json.loads(evaluation or "{}"))


def report(folders: Sequence[Path], output: Path) -> dict[str, Path]:
    """Writes ``report.md``, ``report.html``, ``curves.png`` and ``results.json``; returns where they are.

    Raises:
        DataError: naming the folders that hold no run.
    """
    runs = [read_run(folder) for folder in folders]
    if not runs:
        raise DataError("no run to report on")
    output.mkdir(parents=True, exist_ok=True)
    paths = {name: output / name for name in ("report.md", "report.html", "curves.png", "results.json")}
    curves(runs, paths["curves.png"])
    rows = [row(run) for run in runs]
    write_text(paths["results.json"], json.dumps(rows, indent=2) + "\n")
    write_text(paths["report.md"], f"# Runs\n\n{markdown(rows)}\n\n![curves](curves.png)\n")
    titles = [title for title, _ in _COLUMNS.values()]
    made = page([(run.name, run.folder) for run in runs], titles, [_cells(r) for r in rows], paths["curves.png"])
    write_text(paths["report.html"], made)
    return paths


# --- the table --------------------------------------------------------------------------------------------------------


def row(run: Run) -> dict[str, object]:
    """One line of the table. Rewards are means over the last tenth of the training logs."""
    found = run.evaluation.get("accuracy")
    runtime = run.series("train_runtime")[1]
    return {
        "run": run.name,
        "method": run.recipe.get("method", {}).get("name", ""),
        "steps": run.metrics[-1]["step"] if run.metrics else 0,
        "accuracy": found and found["mean"],
        "interval": found and [found["low"], found["high"]],
        "problems": found and found["problems"],
        "reward_without_prefix": run.last("reward_without_prefix"),
        "reward_with_prefix": run.last("reward_with_prefix"),
        "prefix_length": run.last("prefix/length"),
        "completion_length": run.last("completions/mean_length"),
        "tokens": run.last("num_tokens", share=0),
        "minutes": runtime[-1] / 60 if runtime else None,
    }


_COLUMNS = {
    "run": ("run", str),
    "method": ("method", str),
    "steps": ("steps", str),
    "accuracy": ("accuracy, unprefixed", lambda value: f"{100 * value:.1f} %"),
    "interval": ("95 % interval", lambda value: f"{100 * value[0]:.1f} to {100 * value[1]:.1f} %"),
    "reward_without_prefix": ("reward without prefix", "{:.3f}".format),
    "reward_with_prefix": ("with prefix", "{:.3f}".format),
    "prefix_length": ("prefix tokens", "{:.1f}".format),
    "completion_length": ("completion tokens", "{:.1f}".format),
    "minutes": ("minutes", "{:.1f}".format),
}


def _cells(row: dict[str, object]) -> list[str]:
    return ["" if row[key] is None else shown(row[key]) for key, (_, shown) in _COLUMNS.items()]


def markdown(rows: Sequence[dict[str, object]]) -> str:
    """The table in Markdown."""
    lines = [" | ".join(title for title, _ in _COLUMNS.values()), " | ".join("---" for _ in _COLUMNS)]
    return "\n".join(f"| {line} |" for line in [*lines, *(" | ".join(_cells(r)) for r in rows)])


def text_table(rows: Sequence[dict[str, object]]) -> str:
    """The table for a terminal: the columns that hold something, aligned."""
    titles = [title for title, _ in _COLUMNS.values()]
    lines = [titles, *map(_cells, rows)]
    kept = [i for i in range(len(titles)) if any(line[i] for line in lines[1:])]
    widths = [max(len(line[i]) for line in lines) for i in kept]
    return "\n".join("  ".join(line[i].ljust(w) for i, w in zip(kept, widths, strict=True)).rstrip() for line in lines)


# --- the figure -------------------------------------------------------------------------------------------------------

_PANELS = (  # title, upper limit, (metric, line style, what it is)
    ("training reward, rollouts without a prefix", 1, [("reward_without_prefix", "-", "")]),
    ("training reward, rollouts from a prefix", 1, [("reward_with_prefix", "-", "")]),
    ("held-out accuracy, never with a prefix", 1, [("eval_reward", "-", "")]),
    ("mean prefix length (tokens)", None, [("prefix/length", "-", "")]),
    ("share of prefix tokens with gradient", 1, [("prefix/kept_share", "-", "")]),
    (
        "policy entropy (nats)",
        None,
        [("entropy_prefix", "--", "prefix"), ("entropy_continuation", "-", "continuation"), ("entropy", ":", "all")],
    ),
    ("mean completion length (tokens)", None, [("completions/mean_length", "-", "")]),
    (
        "outcomes other than right or wrong",
        None,
        [
            ("outcome/no_answer", "-", "no answer"),
            ("outcome/timeout", "--", "timeout"),
            ("outcome/crash", ":", "crash"),
        ],
    ),
)


def curves(runs: Sequence[Run], path: Path) -> None:
    """The metrics of all runs over their steps, a color for each run."""
    trained = [run for run in runs if run.metrics]
    fig, axes = figure(2, 4, width=14, height=6)
    for ax, (title, top, lines) in zip(axes.flat, _PANELS, strict=True):
        ax.set(title=title, xlabel="step")
        for color, run in zip(COLORS * len(trained), trained, strict=False):
            drawn = [line for line in lines if line[0] != "entropy" or not run.series("entropy_continuation")[0]]
            for key, style, what in drawn:
                steps, values = run.series(key)
                if steps:
                    ax.plot(steps, values, style, color=color, label=f"{run.name} {what}".strip(), linewidth=1.4)
        if ax.lines:
            ax.legend(fontsize=7)
        else:
            ax.text(0.5, 0.5, "not logged", ha="center", va="center", transform=ax.transAxes, color="#888888")
        ax.set_ylim(bottom=0, top=top)
        for line in ax.lines:
            line.set_clip_on(False)  # a line along the axis is to be seen too
    save(fig, path)
