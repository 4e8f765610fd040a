"""The command ``prefix-rl``, run in the test's process: a start of its own spends 1 to 4 s of CPU on imports alone.

What only a process of its own shows (what is imported, signals, a terminal) is tested with one.
"""

import contextlib
import io
import sys
from dataclasses import dataclass

from prefix_rl.cli import main


@dataclass(frozen=True)
class Done:
    """What a command has left, named as :class:`subprocess.CompletedProcess` names it."""

    returncode: int
    stdout: str
    stderr: str


def prefix_rl(*arguments, cwd=None):
    """Runs the command with these arguments, in the folder ``cwd`` if one is given.

    An error that a person would see as a traceback is raised here as it is.
    """
    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["prefix-rl", *arguments]
    folder = contextlib.chdir(cwd) if cwd else contextlib.nullcontext()
    try:
        with folder, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before
    return Done(code or 0, out.getvalue(), err.getvalue())
