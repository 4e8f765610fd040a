"""What each test costs in CPU seconds, its own and those of the processes it starts: they count the same on a busy machine.

    pytest --costs FILE                     adds a line for each test to FILE
    python tests/costs.py FILE [FILE ...]   prints the most expensive tests; with --write, renews tests/costs.txt

``pytest --fast`` (`make test-fast`) leaves out what is marked ``slow``, ``multirank``, ``real`` or ``browser``, and the tests that
stand in tests/costs.txt: those that cost more than :data:`BUDGET`, over all their parameters. A test that is not measured
yet is run.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

BUDGET = 1.5
"""CPU seconds that a test may cost, over all its parameters, to be run by `make test-fast`."""
LEFT_OUT = ("slow", "multirank", "real", "browser")
TABLE = Path(__file__).with_name("costs.txt")
ELSEWHERE: list[Path] = []
"""Files that hold CPU seconds of processes that are no children of this one (tests/preloaded.py)."""


def now() -> float:
    """CPU seconds of this process so far, of those of its children that have ended, and of what counts elsewhere."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    elsewhere = sum(float(path.read_text(encoding="utf-8")) for path in ELSEWHERE if path.exists())
    return sum(each.ru_utime + each.ru_stime for each in used) + elsewhere


def add(file: str, test: str, seconds: float) -> None:
    """Adds a line in one write: several processes of one run add to the same file."""
    line = json.dumps({"id": test, "seconds": round(seconds, 2)}) + "\n"
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def function_of(test: str) -> str:
    """The test without its parameters.

    >>> function_of("tests/test_a.py::test_b[1-x::y]")
    'tests/test_a.py::test_b'
    """
    return test.partition("[")[0]


def measured(lines: Iterable[str]) -> dict[str, float]:
    """CPU seconds of each test; the last measurement counts."""
    return {row["id"]: row["seconds"] for row in map(json.loads, lines)}


def over_budget(costs: dict[str, float], budget: float = BUDGET) -> dict[str, float]:
    """The tests that cost more than the budget over all their parameters, the dearest first.

    >>> over_budget({"t::a[1]": 1.0, "t::a[2]": 1.0, "t::b": 1.5, "t::c": 3.0})
    {'t::c': 3.0, 't::a': 2.0}
    """
    sums: Counter[str] = Counter()
    for test, seconds in costs.items():
        sums[function_of(test)] += seconds
    return {test: seconds for test, seconds in sums.most_common() if seconds > budget}


def listed() -> dict[str, float]:
    """CPU seconds of the tests of tests/costs.txt; a ``?`` there is a test that trains and is not measured yet."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return {test: BUDGET if seconds == "?" else float(seconds) for seconds, test in rows}


def of_files(costs: dict[str, float]) -> Counter[str]:
    """CPU seconds of each file.

    >>> of_files({"t/a.py::x": 1.0, "t/a.py::y": 2.5})
    Counter({'t/a.py': 3.5})
    """
    sums: Counter[str] = Counter()
    for test, seconds in costs.items():
        sums[test.partition("::")[0]] += seconds
    return sums


def main(arguments: list[str]) -> None:
    files = [name for name in arguments if name != "--write"]
    costs = measured(line for name in files for line in Path(name).read_text(encoding="utf-8").splitlines())
    print(f"{len(costs)} tests, {sum(costs.values()):.0f} CPU seconds")
    for test, seconds in sorted(costs.items(), key=lambda item: -item[1])[:30]:
        print(f"{seconds:7.1f}  {test}")
    if "--write" in arguments:
        head = f"# CPU seconds of the tests that cost more than {BUDGET} (python tests/costs.py FILE --write)\n"
        rows = [f"{seconds:7.1f}  {test}\n" for test, seconds in over_budget(costs).items()]
        TABLE.write_text(head + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
