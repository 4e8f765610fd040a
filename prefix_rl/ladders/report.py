"""The report of a ladder: a table for each regime, the search, and curves."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from .. import preflight
from ..evaluation.metrics import Accuracy, Difference, over_seeds, paired_difference
from ..parts import write_text
from ..reports.plots import COLORS, figure, save
from .jobs import Job, by_seed, settings_for
from .plan import Cell, Ladder

_STYLES = ("-", "--", ":", "-.")


def report(
    ladder: Ladder,
    searched: Mapping[Cell, Sequence[Job]],
    chosen: Mapping[Cell, dict],
    jobs: Sequence[Job],
    output: Path,
) -> dict[str, Path]:
    """Writes ``ladder.json``, ``ladder.md``, ``curves.png`` and ``back_generalization.png``; returns their paths.

    An arm is in the table of a regime once all of its seeds have finished there; what is missing is said.
    """
    cells: dict[Cell, list[Job]] = defaultdict(list)
    for job in jobs:
        cells[job.cell].append(job)
    results = {
        "seeds": list(ladder.seeds),
        "versions": preflight.versions(),
        "git_commits": sorted({r["git_commit"] or "unknown" for job in jobs if (r := job.result())}),
        "minutes": _minutes(jobs, searched),
        "search": search_table(ladder, searched, chosen),
        "regimes": {regime: regime_table(ladder, regime, cells, chosen) for regime in ladder.regimes},
    }
    paths = {name: output / name for name in ("ladder.json", "ladder.md", "curves.png", "back_generalization.png")}
    write_text(paths["ladder.json"], json.dumps(results, indent=1) + "\n")
    drawn = [_curves(ladder, cells, paths["curves.png"]), _back(ladder, cells, paths["back_generalization.png"])]
    write_text(paths["ladder.md"], markdown(ladder, results, drawn))
    return paths


def _minutes(jobs: Sequence[Job], searched: Mapping[Cell, Sequence[Job]]) -> float:
    """Minutes of one core that all runs took."""
    every = {job.folder: job for job in [*jobs, *(job for tried in searched.values() for job in tried)]}
    return sum(sum(r["seconds"].values()) for job in every.values() if (r := job.result())) / 60


# --- numbers ----------------------------------------------------------------------------------------------------------


def regime_table(
    ladder: Ladder, regime: str, cells: Mapping[Cell, Sequence[Job]], chosen: Mapping[Cell, dict]
) -> dict[str, Any]:
    """One row for each arm of a regime, by arm; None for an arm with a seed that is missing."""
    right = {
        cell.arm: by_seed(cells[cell], ladder.seeds, lambda r: r["right"])
        for cell in ladder.cells()
        if cell.regime == regime
    }
    rows: dict[str, Any] = {}
    for arm, values in right.items():
        if values is None:
            rows[arm] = None
            continue
        found = [job.result() for job in sorted(cells[Cell(arm, regime)], key=lambda j: ladder.seeds.index(j.seed))]
        rows[arm] = {
            "accuracy": asdict(over_seeds(values)),
            "by_seed": [r["accuracy"] for r in found],
            "levels": {name: asdict(over_seeds([r["levels"][name] for r in found])) for name in ladder.levels},
            "against": {
                other: asdict(paired_difference(values, right[other]))
                for other in ladder.against
                if other != arm and right.get(other) is not None
            },
            "cost": {key: fmean(r["cost"][key] for r in found) for key in found[0]["cost"]},
            # results of earlier versions have no steps of their own
            "steps": fmean(r.get("steps", r["curve"][-1]["step"] if r["curve"] else 0) for r in found),
            "settings": settings_for(ladder, chosen, Cell(arm, regime)),
        }
    for arm, row in rows.items():
        if row:
            row["flops_to_match"] = {
                other: _flops_to(cells[Cell(arm, regime)], rows[other]["accuracy"]["mean"])
                for other in ladder.against
                if other != arm and rows.get(other)
            }
    return {"question": ladder.regimes[regime].question, "arms": rows}


def _flops_to(jobs: Sequence[Job], accuracy: float) -> float | None:
    """The mean over seeds of what was spent when the held-out accuracy first reached ``accuracy``; None if a seed never
    did, or if there is nothing to reach."""
    firsts = [
        next((point["flops"] for point in job.result()["curve"] if point["accuracy"] >= accuracy), None) for job in jobs
    ]
    return None if accuracy <= 0 or any(f is None for f in firsts) else fmean(firsts)


def search_table(
    ladder: Ladder, searched: Mapping[Cell, Sequence[Job]], chosen: Mapping[Cell, dict]
) -> list[dict[str, Any]]:
    """Every try of the search, with its accuracy on the held-out problems of the search."""
    return [
        {
            "arm": cell.arm,
            "regime": cell.regime,
            "settings": ladder.search.tries[cell.arm][job.trial],
            "accuracy": r["accuracy"] if (r := job.result()) else None,
            "chosen": ladder.search.tries[cell.arm][job.trial] is chosen.get(cell),
        }
        for cell, jobs in searched.items()
        for job in jobs
    ]


# --- Markdown ---------------------------------------------------------------------------------------------------------


def markdown(ladder: Ladder, results: Mapping[str, Any], drawn: Sequence[Path | None]) -> str:
    """All tables as Markdown."""
    seeds = ", ".join(map(str, ladder.seeds))
    lines = [
        "# Ladder",
        "",
        f"Seeds {seeds}. Accuracy is unprefixed, on held-out problems; its interval is over seeds and problems, the "
        "numbers in parentheses are the seeds. A difference is paired by seed and problem, in points, with its 95 % "
        "interval and p value. Tokens are in thousands, FLOPs as 2ND + 6ND with collected traces and the supervised "
        "stage included.",
        "",
        f"Commit {', '.join(results['git_commits'])}; {results['minutes']:.0f} minutes of one core in all.",
    ]
    for regime, table in results["regimes"].items():
        lines += ["", f"## {regime}", "", table["question"], "", *_rows(ladder, table["arms"]), *_notes(table["arms"])]
        missing = [arm for arm, row in table["arms"].items() if row is None]
        if missing:
            lines += ["", f"Not finished: {', '.join(missing)}."]
    if results["search"]:
        lines += ["", "## Search", "", "Every arm had the same number of tries, on a seed and held-out problems of "
                  "their own. The chosen settings are marked.", "",
                  "| arm | regime | settings | accuracy | |", "|---|---|---|---:|---|"]  # fmt: skip
        for row in results["search"]:
            settings = ", ".join(f"{key} = {value}" for key, value in row["settings"].items()) or "as in the recipe"
            accuracy = "failed" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f} %"
            mark = "chosen" if row["chosen"] else ""
            lines.append(f"| {row['arm']} | {row['regime']} | {settings} | {accuracy} | {mark} |")
    for path in drawn:
        if path:
            lines += ["", f"![{path.stem}]({path.name})"]
    return "\n".join(lines) + "\n"


def _rows(ladder: Ladder, arms: Mapping[str, Any]) -> list[str]:
    titles = ["arm", "accuracy", *ladder.levels, *(f"against {other}" for other in ladder.against),
              "steps", "generated", "injected", "trained", "FLOPs"]  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1)]
    for arm, row in arms.items():
        if row is None:
            continue
        by_seed = "/".join(f"{100 * a:.0f}" for a in row["by_seed"])
        cost = row["cost"]
        cells = [
            arm,
            f"{Accuracy(**row['accuracy'])} ({by_seed})",
            *(f"{100 * row['levels'][name]['mean']:.1f} %" for name in ladder.levels),
            *(str(Difference(**row["against"][o])) if o in row["against"] else "" for o in ladder.against),
            f"{row['steps']:.0f}",
            *(f"{cost[key] / 1000:,.0f}" for key in ("generated_tokens", "injected_tokens", "trained_tokens")),
            f"{cost['flops']:.2e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _notes(arms: Mapping[str, Any]) -> list[str]:
    """Sentences on the best arm, and on the cost at which others came as far as those they are compared with."""
    rows = {arm: row for arm, row in arms.items() if row}
    if not rows:
        return []
    best = max(rows, key=lambda arm: rows[arm]["accuracy"]["mean"])
    lines = ["", f"Highest accuracy: {best}."]
    for other in dict.fromkeys(o for row in rows.values() for o in row["flops_to_match"]):
        spent = {arm: flops for arm, row in rows.items() if (flops := row["flops_to_match"].get(other)) is not None}
        if spent:
            whole = rows[other]["cost"]["flops"]
            told = ", ".join(f"{arm} {flops / whole:.2f}" for arm, flops in sorted(spent.items(), key=lambda s: s[1]))
            lines += ["", f"FLOPs to reach the final accuracy of {other}, as a share of what it spent: {told}."]
    return lines


# --- figures ----------------------------------------------------------------------------------------------------------


def _curves(ladder: Ladder, cells: Mapping[Cell, Sequence[Job]], path: Path) -> Path | None:
    """Held-out accuracy against FLOPs: the mean over seeds and, shaded, their range."""
    panels = list(ladder.regimes)
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    fig, axes = figure(rows, columns, width=5 * columns, height=3.4 * rows)
    flat = [axes] if len(panels) == 1 else list(axes.flat)
    styles = {
        arm: (COLORS[i % len(COLORS)], _STYLES[i // len(COLORS) % len(_STYLES)]) for i, arm in enumerate(ladder.arms)
    }
    some = False
    for ax, regime in zip(flat, panels, strict=False):
        ax.set(title=regime, xlabel="FLOPs", ylabel="held-out accuracy, unprefixed")
        for arm, (color, style) in styles.items():
            found = [r["curve"] for job in cells.get(Cell(arm, regime), ()) if (r := job.result()) and r["curve"]]
            if len(found) < len(ladder.seeds):
                continue
            points = [list(p) for p in zip(*found, strict=False)]
            x = [fmean(p["flops"] for p in at) for at in points]
            ax.plot(x, [fmean(p["accuracy"] for p in at) for at in points], style, color=color, label=arm, lw=1.4)
            low, high = ([f(p["accuracy"] for p in at) for at in points] for f in (min, max))
            ax.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
            some = True
        ax.set_ylim(0, 1)
        for line in ax.lines:
            line.set_clip_on(False)  # a line along the axis is to be seen too
        if ax.lines:
            ax.legend(fontsize=7)
    for ax in flat[len(panels) :]:
        ax.remove()
    save(fig, path)
    return path if some else None


def _back(ladder: Ladder, cells: Mapping[Cell, Sequence[Job]], path: Path) -> Path | None:
    """Accuracy from parts of a demonstration over training, for each arm that starts rollouts from prefixes."""
    found = {}
    for cell, jobs in cells.items():
        seeds = [points for job in jobs if (points := (job.result() or {}).get("by_prefix_fraction"))]
        if seeds:  # a budget ends the seeds at slightly different steps: their checkpoints are matched in order
            found[cell] = list(zip(*seeds, strict=False))
    if not found:
        return None
    columns = min(len(found), 4)
    rows = -(-len(found) // columns)
    fig, axes = figure(rows, columns, width=3.4 * columns, height=2.6 * rows)
    flat = [axes] if len(found) == 1 else list(axes.flat)
    for ax, (cell, checkpoints) in zip(flat, found.items(), strict=False):
        for color, fraction in zip(COLORS, sorted(checkpoints[0][0]["accuracy"], key=float), strict=False):
            points = [(fmean(p["step"] for p in at), fmean(p["accuracy"][fraction] for p in at)) for at in checkpoints]
            ax.plot(*zip(*points, strict=True), "-o", color=color, markersize=3, lw=1.3, label=f"{float(fraction):.0%}")
        ax.set(title=f"{cell.arm}, {cell.regime}", xlabel="step", ylabel="accuracy")
        ax.set_ylim(0, 1)
        ax.legend(fontsize=7, title="prefix", title_fontsize=7)
    for ax in flat[len(found) :]:
        ax.remove()
    save(fig, path)
    return path
