"""The style of our plots."""

from __future__ import annotations

from pathlib import Path

from ..errors import DataError
from ..parts import whole

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
    """Writes the figure in the format that the name of the file ends in, PNG unless it names one, and forgets it.

    Raises:
        DataError: if there is no such format.
        OSError: if it cannot be written.
    """
    from matplotlib import pyplot

    kind, known = path.suffix.lower()[1:] or "png", fig.canvas.get_supported_filetypes()
    try:
        if kind not in known:
            raise DataError(f"{path}: no plot can be written as .{kind}; the name must end in .{', .'.join(known)}")
        with whole(path) as file:
            fig.savefig(file, dpi=150, format=kind)
    finally:
        pyplot.close(fig)
