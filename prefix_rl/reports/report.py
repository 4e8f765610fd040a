"""Runs to one table, one figure and one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..parts import write_text
from ..progress import bar
from ..status import State
from .page import MEGABYTES, write_page
from .plots import COLORS, figure, save
from .runs import Run, read_run, read_runs
from .tables import text_table as _text_table

__all__ = ["Run", "columns", "curves", "markdown", "read_run", "report", "row", "text_table"]


def report(folders: Sequence[Path], output: Path, megabytes: float = MEGABYTES) -> dict[str, Path]:
    """Writes ``report.md``, ``report.html``, ``curves.png`` and ``results.json``; returns where they are.

    Args:
        folders: of runs, or folders with runs somewhere below them.
        output: the folder that is written.
        megabytes: what the page may be; long rollouts are cut in their middle to keep it.

    Raises:
        DataError: naming the folders that hold no run, or if ``output`` cannot be written.
    """
    runs = read_runs(folders)
    if not runs:
        raise DataError("no run to report on")
    paths = {name: output / name for name in ("report.md", "report.html", "curves.png", "results.json")}
    rows = [row(run) for run in runs]
    try:
        output.mkdir(parents=True, exist_ok=True)
        curves(runs, paths["curves.png"])
        write_text(paths["results.json"], json.dumps(rows, indent=2) + "\n")
        text = f"# Runs\n\n{markdown(rows)}\n\n![curves](curves.png)\n{_health(runs)}"
        write_text(paths["report.md"], text.encode("utf-8", errors="replace").decode())  # names may be no Unicode
        with bar("rollouts on the page", None) as advance:
            write_page(runs, cells(rows), paths["report.html"], megabytes, advance)
    except OSError as error:
        raise DataError(f"the report cannot be written to {output}: {error.strerror or error}") from error
    return paths


def _health(runs: Sequence[Run]) -> str:
    lines = [f"- {run.name}: {finding.line().removeprefix('health: ')}" for run in runs for finding in run.findings()]
    return "\n## Health\n\n" + "\n".join(lines) + "\n" if lines else ""


# --- the table --------------------------------------------------------------------------------------------------------


def row(run: Run, state: State | None = None) -> dict[str, Any]:
    """One line of the table. Rewards are means over the last tenth of the training logs."""
    found = _mapping(run.evaluation.get("accuracy"))
    runtime = run.series("train_runtime")[1]
    measured = run.minutes
    return {
        "run": run.name,
        "state": (state or run.state()).name,
        "method": run.method,
        "steps": run.step,
        "accuracy": found.get("mean"),
        "interval": [found["low"], found["high"]] if "low" in found and "high" in found else None,
        "problems": found.get("problems"),
        "benchmarks": {
            name: {
                "accuracy": _estimate(b.get("accuracy")),
                "samples": b.get("samples"),
                "problems": b.get("problems"),
                "pass": {k: _estimate(value) for k, value in _mapping(b.get("pass")).items()},
            }
            for name, b in _mapping(run.evaluation.get("benchmarks")).items()
            if isinstance(b, dict)
        },
        "reward_without_prefix": run.last("reward_without_prefix"),
        "reward_with_prefix": run.last("reward_with_prefix"),
        "prefix_length": run.last("prefix/length"),
        "completion_length": run.last("completions/mean_length"),
        "tokens": run.last("num_tokens", share=0),
        "flops": run.last("cost/flops", share=0),
        "minutes": runtime[-1] / 60 if runtime else measured[-1][1] if measured and measured[-1][1] else None,
    }


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _estimate(value: Any) -> dict | None:
    found = {key: value[key] for key in ("mean", "low", "high") if key in value} if isinstance(value, dict) else {}
    return found if "mean" in found else None


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _with_interval(found: dict | None) -> str:
    if found is None:
        return ""
    between = f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]" if "low" in found and "high" in found else ""
    return _percent(found["mean"]) + between


Column = tuple[str, Callable[[dict[str, Any]], str]]


def columns(rows: Sequence[dict[str, Any]]) -> list[Column]:
    """The titles of the table's columns, and what stands in the cell of a row.

    Each benchmark has a column where there are several, and one for each k of pass@k.
    """

    def plain(key: str, shown: Callable[[Any], str]) -> Callable[[dict[str, Any]], str]:
        return lambda row: "" if row.get(key) is None else shown(row[key])

    found: list[Column] = [
        ("run", plain("run", str)),
        ("state", plain("state", str)),
        ("method", plain("method", str)),
        ("steps", plain("steps", str)),
        ("accuracy, unprefixed", plain("accuracy", _percent)),
        ("95 % interval", plain("interval", lambda v: f"{100 * v[0]:.1f} to {100 * v[1]:.1f} %")),
    ]
    names = list(dict.fromkeys(name for row in rows for name in row["benchmarks"]))
    for name in names:
        measured = [row["benchmarks"][name] for row in rows if name in row["benchmarks"]]
        if len(names) > 1:
            found.append((name, _benchmark(name, "accuracy")))
        for k in sorted({int(k) for b in measured for k in b["pass"]}):
            found.append((f"{name} pass@{k}", _benchmark(name, "pass", str(k))))
    return [
        *found,
        ("reward without prefix", plain("reward_without_prefix", "{:.3f}".format)),
        ("with prefix", plain("reward_with_prefix", "{:.3f}".format)),
        ("prefix tokens", plain("prefix_length", "{:.1f}".format)),
        ("completion tokens", plain("completion_length", "{:.1f}".format)),
        ("FLOPs", plain("flops", "{:.2e}".format)),
        ("minutes", plain("minutes", "{:.1f}".format)),
    ]


def _benchmark(name: str, kind: str, k: str | None = None) -> Callable[[dict[str, Any]], str]:
    def shown(row: dict[str, Any]) -> str:
        found = row["benchmarks"].get(name, {}).get(kind)
        return _with_interval(found.get(k) if found and k else found)

    return shown


def cells(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A head, and a line for each row; columns that hold nothing are left out."""
    found = columns(rows)
    lines = [[shown(row) for _, shown in found] for row in rows]
    kept = [i for i in range(len(found)) if any(line[i] for line in lines)]
    return [[found[i][0] for i in kept], *([line[i] for i in kept] for line in lines)]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table in Markdown."""
    lines = cells(rows)
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """The table for a terminal."""
    return _text_table(cells(rows))


# --- the figure -------------------------------------------------------------------------------------------------------

_PANELS = (  # title, [(metric, line style, what it is)]
    ("training reward, rollouts without a prefix", [("reward_without_prefix", "-", "")]),
    ("training reward, rollouts from a prefix", [("reward_with_prefix", "-", "")]),
    ("held-out reward, never with a prefix", [("eval_reward", "-", "")]),
    ("mean prefix length (tokens)", [("prefix/length", "-", "")]),
    ("share of prefix tokens with gradient", [("prefix/kept_share", "-", "")]),
    (
        "policy entropy (nats)",
        [("entropy_prefix", "--", "prefix"), ("entropy_continuation", "-", "continuation"), ("entropy", ":", "all")],
    ),
    ("mean completion length (tokens)", [("completions/mean_length", "-", "")]),
    (
        "outcomes other than right or wrong",
        [
            ("outcome/no_answer", "-", "no answer"),
            ("outcome/timeout", "--", "timeout"),
            ("outcome/crash", ":", "crash"),
        ],
    ),
)


def curves(runs: Sequence[Run], path: Path) -> None:
    """The metrics of all runs over their steps: a color for each run, a line style for what a panel tells apart.

    Axes fit what was logged. The page shows every metric; this is for a paper or a message.
    """
    trained = [run for run in runs if run.metrics]
    colors = {run.name: COLORS[i % len(COLORS)] for i, run in enumerate(trained)}
    fig, axes = figure(2, 4, width=14, height=6)
    for ax, (title, lines) in zip(axes.flat, _PANELS, strict=True):
        ax.set(title=title, xlabel="step")
        styles = {}
        for run in trained:
            drawn = [line for line in lines if line[0] != "entropy" or not run.series("entropy_continuation")[0]]
            for key, style, what in drawn:
                steps, values = run.series(key)
                if steps:
                    styles[what] = ax.plot(steps, values, style, color=colors[run.name], linewidth=1.4)[0]
        if not styles:
            ax.text(0.5, 0.5, "not logged", ha="center", va="center", transform=ax.transAxes, color="#888888")
        named = {what: line for what, line in styles.items() if what}
        if named:
            shown = ax.legend(named.values(), named, fontsize=7)
            for handle in shown.legend_handles:
                handle.set_color("#666666")
        ax.margins(y=0.08)
    handles = [axes.flat[0].plot([], [], color=color)[0] for color in colors.values()]
    if handles:
        fig.legend(handles, list(colors), loc="outside upper center", ncols=min(len(colors), 6), fontsize=8)
    save(fig, path)
