"""The style of our plots."""

from __future__ import annotations

from pathlib import Path

COLORS = ("#0b6e99", "#d1495b", "#66a182", "#edae49", "#5f4b8b", "#8d99ae")
"""Told apart in print and by colour-blind readers, in the order of use."""


def figure(rows: int, columns: int, width: float, height: float):
    """A figure and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "legend.frameon": False,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
        }
    )
    return pyplot.subplots(rows, columns, figsize=(width, height), layout="constrained")


def save(fig, path: Path) -> None:
    """Writes the figure as PNG and forgets it."""
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)
    pyplot.close(fig)
