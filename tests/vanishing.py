"""Folders that go away, or can no longer be written, while a command writes into them."""

import os
import shutil
import sys
from contextlib import contextmanager

_watched = []


def _seen(event, given):
    """Called at every file that Python opens or makes, whoever asks for it."""
    if _watched and event in ("open", "os.mkdir", "os.rename"):
        path = given[1] if event == "os.rename" else given[0]
        if isinstance(path, str | bytes | os.PathLike):
            _watched[-1].met(os.fsdecode(path))


sys.addaudithook(_seen)  # which cannot be taken away again; with nothing watched it does nothing


class _Vanishing:
    def __init__(self, folder, at, how):
        self.folder, self.left, self.how = os.path.realpath(folder), at, how
        self.happened = False

    def met(self, path):
        if self.happened or not os.path.realpath(path).startswith(self.folder + os.sep):
            return
        if self.left == 0:
            self.happened = True
            self.how(self.folder)
        self.left -= 1


@contextmanager
def vanishing(folder, at, how):
    """Within it a folder goes away at the ``at``-th file that is opened in it; yields what says whether it has."""
    one = _Vanishing(folder, at, how)
    _watched.append(one)
    try:
        yield one
    finally:
        _watched.remove(one)


def removed(folder):
    shutil.rmtree(folder, ignore_errors=True)


def replaced(folder):
    """No folder can be made in its place."""
    shutil.rmtree(folder, ignore_errors=True)
    with open(folder, "w"):
        pass


def parent_replaced(folder):
    """A file stands where its parent stood."""
    replaced(os.path.dirname(folder))
