"""Tokens that rows share, laid out once: a trie of token ids as one packed sequence.

Rows that begin alike hold the same hidden states where they are alike, since a causal model looks back only. The rows
of a micro-batch are therefore a trie, and each of its nodes is encoded once::

    rows              trie                 packed sequence
    a b c d           a b ── c d           a b c d e
    a b e                └── e             position 0 1 2 3 2

Nodes stand in depth-first order, so that all descendants of a node are one slice right behind it. Which tokens attend
to which is therefore a list of pairs of slices, and :attr:`Layout.waves` puts those into one wave that a kernel for
sequences of several lengths can compute in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby, pairwise

import torch
from torch import Tensor

MINIMUM_SAVING = 16
"""Tokens that a node must save: on a CPU a node costs two more attention calls in each layer."""


@dataclass(frozen=True)
class Node:
    """Tokens ``start ... end - 1`` of the packed sequence; those of its descendants are ``end ... until - 1``."""

    start: int
    end: int
    until: int
    path: tuple[tuple[int, int], ...]
    """Slices of its ancestors' tokens, from the root on."""


Bounds = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Wave:
    """Pairs of slices, queries and the keys that they see; no query is in two of them. ``Q`` queries and ``S`` keys are
    packed in the order of the ``P`` pairs."""

    pairs: tuple[tuple[Bounds, Bounds], ...]
    causal: bool
    """Whether a query sees the keys up to its own place, or all of them."""
    queries: slice | Tensor
    """Where they stand among all tokens: one slice where that is enough, or ``(Q,)``."""
    keys: slice | Tensor
    query_ends: Tensor
    """``(P + 1,)``, int32: where the slice of each pair begins and ends among the packed queries."""
    key_ends: Tensor

    @classmethod
    def of(cls, pairs: Iterable[tuple[Bounds, Bounds]], causal: bool, device: torch.device) -> Wave:
        """The wave of these pairs, with its tensors on a device."""
        pairs = tuple(pairs)
        queries, keys = zip(*pairs, strict=True)
        places, ends = ([of(side, device) for side in (queries, keys)] for of in (_place, _ends))
        return cls(pairs, causal, *places, *ends)

    @cached_property
    def longest(self) -> Bounds:
        """Numbers of queries and of keys of the longest slices."""
        return tuple(max(b - a for a, b in side) for side in zip(*self.pairs, strict=True))


def _place(side: Sequence[Bounds], device: torch.device) -> slice | Tensor:
    if all(a[1] == b[0] for a, b in pairwise(side)):
        return slice(side[0][0], side[-1][1])
    return torch.cat([torch.arange(*bounds) for bounds in side]).to(device)


def _ends(side: Sequence[Bounds], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(b - a for a, b in side)], dtype=torch.int32).to(device)


@dataclass(frozen=True, eq=False)
class Layout:
    """Rows as one packed sequence of ``L`` tokens."""

    ids: Tensor
    """``(L,)``"""
    positions: Tensor
    """``(L,)``: the place of each token in its rows."""
    previous: Tensor
    """``(L,)``: where the token before it stands; -1 where there is none."""
    nodes: tuple[Node, ...]
    places: tuple[Tensor, ...]
    """Places of the tokens of each row in the packed sequence."""
    longest: int
    """Tokens of the longest row."""

    def to(self, device: torch.device) -> Layout:
        """The same with its ids, their positions and those before them on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("ids", "positions", "previous")}
        return replace(self, **moved)

    @cached_property
    def waves(self) -> tuple[Wave, ...]:
        """All pairs, on the device of the ids: first every node with itself, then, by depth, its descendants with it.

        >>> layout = lay_out([[5, 6, 7, 8], [5, 6, 9]], minimum_saving=1)
        >>> for wave in layout.waves:
        ...     print(wave.pairs, wave.causal)
        (((0, 2), (0, 2)), ((2, 4), (2, 4)), ((4, 5), (4, 5))) True
        (((2, 5), (0, 2)),) False
        """
        device = self.ids.device
        waves = [Wave.of((((n.start, n.end),) * 2 for n in self.nodes), True, device)]
        inner = [node for node in self.nodes if node.until > node.end]
        for depth in sorted({len(node.path) for node in inner}):
            pairs = (((n.end, n.until), (n.start, n.end)) for n in inner if len(n.path) == depth)
            waves.append(Wave.of(pairs, False, device))
        return tuple(waves)


def lay_out(rows: Sequence[Sequence[int]], minimum_saving: int = MINIMUM_SAVING) -> Layout:
    """The packed sequence of ``rows``, in which each shared prefix stands once.

    A prefix that ``n`` rows share becomes a node if that saves at least ``minimum_saving`` tokens: its tokens, times
    ``n - 1``. Padding has no place in it: the rows hold real tokens only, at least one of them.

    >>> layout = lay_out([[5, 6, 7, 8], [5, 6, 9]], minimum_saving=1)
    >>> layout.ids.tolist(), layout.positions.tolist()
    ([5, 6, 7, 8, 9], [0, 1, 2, 3, 2])
    >>> layout.previous.tolist(), [place.tolist() for place in layout.places]
    ([-1, 0, 1, 2, 1], [[0, 1, 2, 3], [0, 1, 4]])
    """
    ids: list[int] = []
    positions: list[int] = []
    previous: list[int] = []
    nodes: list[Node | None] = []
    places: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(rows)

    def visit(members: list[int], first: int, path: tuple[tuple[int, int], ...]) -> None:
        """Lays out what these rows hold from position ``first`` on; before it they are alike, and stand at ``path``."""
        shared = common(rows[members[0]], rows[members[-1]])  # rows in order share what the first and the last do
        alone = len(members) == 1
        here, start = path, len(ids)
        if shared > first and (alone or (len(members) - 1) * (shared - first) >= minimum_saving):
            ids.extend(rows[members[0]][first:shared])
            positions.extend(range(first, shared))
            previous.extend([path[-1][1] - 1 if path else -1, *range(start, len(ids) - 1)])
            here, at = (*path, (start, len(ids))), len(nodes)
            nodes.append(None)
            first = shared
        for row in (row for row in members if len(rows[row]) == first):
            places[row] = torch.cat([torch.arange(*part) for part in here])
        longer = [row for row in members if len(rows[row]) > first]
        for following, alike in groupby(longer, key=lambda row: rows[row][shared : shared + 1]):
            alike = list(alike)
            for group in [alike] if following else [[row] for row in alike]:  # equal rows, too short for a node
                visit(group, first, here)
        if here is not path:
            nodes[at] = Node(start, here[-1][1], len(ids), path)

    if rows:
        visit(sorted(range(len(rows)), key=lambda row: list(rows[row])), 0, ())
    return Layout(
        torch.tensor(ids), torch.tensor(positions), torch.tensor(previous), tuple(nodes), tuple(places),
        max(map(len, rows), default=0),
    )  # fmt: skip


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens that they share, from the first on."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
