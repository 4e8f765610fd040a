"""Columns of the saved rollouts for each token: its end in the text, its advantage, its entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

_HALF = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of a part of a character
_BLANK = 2  # characters that a decoder may put between two tokens, at most


def token_columns(
    ids: Sequence[int],
    text: str,
    decode_each: Callable[[list[list[int]]], list[str]],
    advantages: Sequence[float],
    entropies: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Columns ``token_ends``, ``advantages`` and ``entropies`` of one saved rollout.

    An advantage that is the same for all tokens is written once, and places are written where there is something to
    tell tokens apart. None stands for what is not known, as the entropy of a token that nobody measured.

    Args:
        ids: the completion's ids.
        text: the completion's text, its segments put together.
        decode_each: a tokenizer's ``batch_decode``.
        advantages: of each token.
        entropies: of each token, in nats; NaN where it was not measured.

    >>> words = {1: "so", 2: " it", 3: " is"}
    >>> decode_each = lambda rows: ["".join(words[i] for i in row) for row in rows]
    >>> token_columns([1, 2, 3], "so it is", decode_each, [0.5, 0.5, 0.5])
    {'token_ends': None, 'advantages': [0.5], 'entropies': None}
    >>> token_columns([1, 2, 3], "so it is", decode_each, [0.5, 0.0, 0.5], [1.25, float("nan"), float("nan")])
    {'token_ends': [2, 5, 8], 'advantages': [0.5, 0.0, 0.5], 'entropies': [1.25, None, None]}
    """
    credit = [_short(a) for a in advantages]
    measured = [_short(e) for e in entropies] if entropies is not None else None
    if measured is not None and all(e is None for e in measured):
        measured = None
    if len(set(credit)) <= 1:
        credit = credit[:1]
    differ = len(credit) > 1 or measured is not None
    return {
        "token_ends": token_ends(text, decode_each([[i] for i in ids])) if differ else None,
        "advantages": credit,
        "entropies": measured,
    }


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def token_ends(text: str, pieces: Sequence[str]) -> list[int]:
    """The offset in ``text`` at which each token ends, from the tokens decoded one by one.

    Offsets never fall, and the last one is the end of the text. A token that is a part of a character ends where the
    character begins, the last of its parts where it ends. Blanks that a decoder puts between tokens belong to the
    token behind them.

    >>> token_ends("so it is", ["so", "it", "is"])
    [2, 5, 8]
    >>> token_ends("x²!", ["x", "\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}", "!"])
    [1, 1, 2, 3]
    """
    ends, at, parts = [], 0, 0
    for piece in pieces:
        if _HALF in piece and not text.startswith(piece, at):
            parts += 1
            continue
        reach = at + (parts if parts else _BLANK)  # the last place where it may begin
        found = text.find(piece, at, reach + len(piece)) if piece else at
        if found < 0 and piece.strip():
            piece = piece.strip()
            found = text.find(piece, at, reach + len(piece))
        found = max(found, at)
        ends += _shared(text[at:found], parts, at)
        at, parts = min(found + len(piece), len(text)), 0
        ends.append(at)
    ends += _shared(text[at:], parts, at)
    if ends:
        ends[-1] = len(text)
    return ends


def _shared(characters: str, parts: int, start: int) -> list[int]:
    """Ends of ``parts`` tokens that hold these characters together: they share the bytes equally."""
    sizes = list(accumulate(len(c.encode(errors="replace")) for c in characters))
    total = sizes[-1] if sizes else 0
    return [start + sum(size <= total * part / parts + 1e-9 for size in sizes) for part in range(1, parts + 1)]
