"""Errors that a person can act on. The commands print them without a traceback and exit with status 2."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """Something that the person who runs the command can mend. Holds every fault of the input, not only the first."""

    def __init__(self, what: str, faults: Sequence[str] = ()):
        self.what, self.faults = _cut(what), [_cut(fault) for fault in faults]
        super().__init__("\n".join([what, *(f"  - {fault}" for fault in self.faults)]))

    @property
    def told(self) -> list[str]:
        """The faults, each with what it is about, for a list of more than this error's.

        >>> RecipeError("two settings:", ["a = 1", "b = 2"]).told, RecipeError("no file").told
        (['two settings: a = 1', 'two settings: b = 2'], ['no file'])
        """
        return [f"{self.what} {fault}" for fault in self.faults] or [self.what]


_LONGEST = 4000


def _cut(text: str) -> str:
    """A message without its middle, where what was given makes it too long to be read."""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class RecipeError(UserError):
    """A recipe that cannot run."""


class DataError(UserError):
    """Rows that cannot be trained on or evaluated."""


class UnreachableError(DataError):
    """Data that only the hub has, while the hub does not answer: nothing is known to be wrong with it."""


class CheckpointError(UserError):
    """A checkpoint that cannot be written, or not be continued from."""


class StackError(UserError):
    """Installed packages, or a device, with which the run would fail or train on the wrong thing."""


def nearest(name: str, names: Iterable[str]) -> str:
    """`` (did you mean ...?)`` with the closest of ``names``, or nothing if none is close.

    >>> nearest("learning_rat", ["learning_rate", "beta"])
    ' (did you mean learning_rate?)'
    """
    if len(str(name)) > 200:  # a likeness takes the square of the length
        return ""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""A text as a terminal may show it: control sequences, which would colour, move, rename or send something, and
    marks that turn the direction of the text stand there as their escapes. Line ends and tabs stay.

    Whatever a model, a file or another machine wrote goes through here on its way to a terminal.

    >>> printable("\x1b[31mred\x1b]0;title\x07 \u202e")
    '\\x1b[31mred\\x1b]0;title\\x07 \\u202e'
    """
    return _UNPRINTABLE.sub(lambda m: ascii(m[0])[1:-1], text)


def at_most(faults: Sequence[str], shown: int = 20) -> list[str]:
    """The first faults, and how many more there are."""
    more = len(faults) - shown
    return [*faults[:shown], f"... and {more} more"] if more > 0 else list(faults)


def chain_of(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from, and so on."""
    chain, at = [], error
    while at is not None and at not in chain:
        chain.append(at)
        at = at.__cause__ or at.__context__
    return chain


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")


def full_disk(error: BaseException) -> str | None:
    """What to say of an error if there was no room on the disk, whichever library met that; None if it was another one.

    >>> full_disk(OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl"))[:58]
    'runs/a/metrics.jsonl could not be written: No space left o'
    """
    for met in chain_of(error):
        words = next((words for words in _FULL_WORDS if words in str(met)), None)
        if words or getattr(met, "errno", None) in _FULL:
            where = getattr(met, "filename", None) or "a file"
            return (
                f"{where} could not be written: {words or met}. What was whole before is untouched; make room, and the "
                "same command goes on"
            )
    return None


_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ELOOP, errno.ENOTCONN}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EBUSY}
_OTHERS = {errno.EIO, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.EINVAL, errno.ETIMEDOUT, errno.EREMOTEIO}
_IN_WORDS = re.compile(
    r"No such file or directory|Not a directory|Permission denied|Read-only file system|Input/output error|"
    r"(?:Parent directory|File|file) (\S+) (?:does not exist|cannot be opened)|Stale file handle|Is a directory"
)
"""As libraries that are not written in Python say it, which raise errors of their own (torch, safetensors, Arrow)."""
_OF_THE_CODE = (AssertionError, AttributeError, NameError, TypeError)


def disk_error(error: BaseException) -> str | None:
    """What to say of an error that the system gave for a file or a folder, whichever library met it; None for another,
    and for a fault of the code, though it may have come up while such an error was handled.

    >>> disk_error(FileNotFoundError(errno.ENOENT, "No such file or directory", "runs/a/metrics.jsonl"))[:60]
    'runs/a/metrics.jsonl: No such file or directory. It, or the '
    """
    if told := full_disk(error):
        return told
    if isinstance(error, _OF_THE_CODE):
        return None
    for met in chain_of(error):
        code, where = getattr(met, "errno", None), getattr(met, "filename", None)
        words = _IN_WORDS.search(str(met)) if not isinstance(met, OSError) or code is None else None
        if isinstance(met, OSError) and code in _GONE | _REFUSED | _OTHERS:
            what = f"{'a file' if where is None else where}: {met.strerror}"
        elif words:
            code, what = errno.ENOENT if "exist" in words[0] or "No such" in words[0] else None, str(met).strip()[:300]
        else:
            continue
        if code in _GONE:
            return (
                f"{what}. It, or the folder that it stands in, is not there, or was taken away while the command used "
                "it. See that it is there and stays there, and give the same command again: what is whole is kept"
            )
        return (
            f"{what}. Give the right to read and write there, or name another place, and give the same command again: "
            "what is whole is kept"
        )
    return None


def unavailable(what: str, error: Exception) -> DataError:
    """The error of something that could not be loaded: :class:`UnreachableError` if the hub could not be asked for it.

    The hub's own answer (no such name, no such revision, no access) is not that.
    """
    chain = chain_of(error)
    names = {cls.__name__ for e in chain for cls in type(e).__mro__}
    answered = names & {"RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError", "DisabledRepoError"}
    silent = names & {"OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectionError", "ConnectError", "Timeout",
                      "TimeoutException", "TransportError", "NetworkError"}  # fmt: skip
    kind = UnreachableError if silent and not answered else DataError
    return kind(f"{what}: {' '.join(str(error).split())[:400]}")
