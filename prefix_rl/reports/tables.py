"""Tables for a terminal, and the same as plain text where nobody looks."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..errors import printable


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """A head and rows, aligned; columns that hold nothing are left out.

    On a terminal rich fits it to the width and sets the head apart; in a file or a pipe it is plain, one line a row.
    """
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [[printable(cell) for cell in row] for row in rows]
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])] or list(range(len(rows[0])))
    looked_at = sys.stdout is not None and sys.stdout.isatty()
    if not looked_at:
        widths = [max(len(row[i]) for row in rows) for i in kept]
        return "\n".join("  ".join(row[i].ljust(w) for i, w in zip(kept, widths, strict=True)).rstrip() for row in rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for i in kept:
        table.add_column(Text(rows[0][i]), justify="right" if i and _numbers(rows, i) else "left")
    for row in rows[1:]:
        table.add_row(*(Text(row[i]) for i in kept))
    width = os.get_terminal_size(sys.stdout.fileno()).columns
    console = Console(file=io.StringIO(), force_terminal="NO_COLOR" not in os.environ, width=max(width, 40))
    console.print(table)
    return console.file.getvalue().rstrip("\n")


def _numbers(rows: Sequence[Sequence[str]], column: int) -> bool:
    return all(not row[column] or row[column][:1].isdigit() or row[column][:1] in "-.+" for row in rows[1:])
