"""Difficulty of problems for a policy: pass rates, the measured shares of right attempts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError, at_most
from .sources import read
from .texts import hash64


class PassRates:
    """Pass rates for problem ids, kept in sixteen bytes each.

    Args:
        rates: pairs ``(id, pass rate)``, one for each id.
    """

    def __init__(self, rates: Iterable[tuple[str, float]]):
        pairs = np.fromiter(((hash64(id), rate) for id, rate in rates), np.dtype([("id", "u8"), ("rate", "f8")]))
        pairs.sort(order="id")
        self._ids, self._rates = pairs["id"].copy(), pairs["rate"].copy()
        self.met = 0  # number of calls of ``of`` with a measured problem

    def __len__(self) -> int:
        return len(self._ids)

    def of(self, id: str) -> float | None:
        """Pass rate of a problem; None if it was not measured.

        >>> PassRates([("a", 0.25)]).of("a"), PassRates([("a", 0.25)]).of("b")
        (0.25, None)
        """
        key = np.uint64(hash64(id))
        place = int(np.searchsorted(self._ids, key))
        if place == len(self._ids) or self._ids[place] != key:
            return None
        self.met += 1
        return float(self._rates[place])

    @property
    def repeated(self) -> bool:
        """True if an id occurs twice."""
        return bool((self._ids[1:] == self._ids[:-1]).any())


def load_pass_rates(given: str) -> PassRates:
    """Pass rates from a file, or from a trace store of ``prefix-rl collect``.

    A row of a file has the problem's ``id`` (or ``problem_id``) and either ``pass_rate`` or ``right`` and ``attempts``.
    In a store only the attempts of the policy itself count, not imported traces.

    Raises:
        DataError: with every row that lacks these or has impossible values; if a store's traces were not graded.
    """
    if Path(given).is_dir():
        from .traces import TraceStore

        store = TraceStore.open(given)
        tallies = store.attempts()
        if store.accounts()[0].ungraded:
            raise DataError(f"the traces of {given} were not graded, so they say nothing of pass rates")
        return PassRates((id, t.right / t.attempts) for id, t in tallies.items() if t.attempts)
    faults: list[str] = []
    rates = PassRates(_rates(given, faults))
    if faults:
        raise DataError(f"{given} holds rows that are no pass rates; nothing was done:", at_most(faults))
    if rates.repeated:
        raise DataError(f"{given} gives the pass rate of a problem twice; give each id once")
    return rates


def _rates(given: str, faults: list[str]) -> Iterator[tuple[str, float]]:
    for place, row in read(given):
        id = row.get("id") if row.get("id") is not None else row.get("problem_id")
        right, attempts, rate = row.get("right"), row.get("attempts"), row.get("pass_rate")
        if rate is None and _is_number(right) and _is_number(attempts) and 0 <= right <= attempts and attempts > 0:
            rate = right / attempts
        if id is None:
            faults.append(f"{place}: neither id nor problem_id; there are {', '.join(map(repr, row)) or 'none'}")
        elif not is_rate(rate):
            what = "pass_rate in [0, 1], nor right <= attempts"
            faults.append(f"{place}: neither a {what}; there are {', '.join(map(repr, row))}")
        else:
            yield str(id), rate


def is_rate(value: object) -> bool:
    """True if a value can be a pass rate: a number from 0 to 1."""
    return _is_number(value) and 0 <= value <= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
