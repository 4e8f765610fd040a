"""How many small faults the tests of a module find: each is put into a copy of the module, and its tests run on that.

    python benchmarks/mutants.py schedules=test_schedules masks=test_masks,test_prefixes [--most 40] [--quick]

A module of ``prefix_rl`` (its path with dots) and the files of tests/ that are about it, or ``file::test``. A fault is
one of: another comparison, another operator, ``and`` for ``or``, ``min`` for ``max``, ``any`` for ``all``, a condition
turned around, a number one larger, ``return None``, one of at least three elements of a table of texts missing.
Annotations, decorators, imports, errors and what stands within patterns are left alone. Of the faults of a module
``--most`` are drawn (``--seed``). The module's own examples count as tests; hypothesis draws the same examples each
time. Prints for each module how many were found (hung: because the tests did not end), and the others with their line:
whether such a fault changes anything is for a reader to say.

Everything heavy is imported once; a fault is tried in a fork of this process, so it costs the tests alone: those of
``pytest --fast`` with few examples first; all that are not slow if they let it live, unless ``--quick`` is given. Tests
that take five times the work, or ten times the time, that they take without a fault hang. If they fail without a fault,
it all ends.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import gc
import importlib
import itertools
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]
COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}  # fmt: skip
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
            ast.Mod: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult}  # fmt: skip
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
TABLE = 3  # elements of a collection from which on one may be missing
HEAVY = (
    "_hypothesis_pytestplugin", "beartype", "datasets", "datasketch", "deepspeed", "doctest", "jaxtyping",
    "math_verify", "matplotlib.pyplot", "peft", "scipy.stats", "torch", "transformers.models.qwen2.modeling_qwen2",
    "transformers.trainer", "trl.trainer.grpo_trainer", "typer",
)  # fmt: skip
MOST_MEMORY = 4 * 2**30  # bytes of one process of the tests


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, int]]:
    """Nodes that may be changed, and which of their parts."""

    def visit(node: ast.AST) -> Iterator[tuple[ast.AST, int]]:
        if isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)):
            return
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", None) == "Literal":
            return
        if isinstance(node, ast.Compare):
            yield from ((node, i) for i in range(len(node.ops)))
        elif len(table := of_table(node)) >= TABLE:
            yield from ((node, i) for i in range(len(table)))
        elif isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp, ast.If, ast.IfExp, ast.Return, ast.Call)) or (
            isinstance(node, ast.Constant) and type(node.value) in (int, float, bool)
        ):
            yield node, 0
        left = {id(getattr(node, name, None)) for name in ("annotation", "returns")}
        left |= {id(decorator) for decorator in getattr(node, "decorator_list", ())}
        for child in ast.iter_child_nodes(node):
            if id(child) not in left:
                yield from visit(child)

    return visit(tree)


def of_table(node: ast.AST) -> list[ast.expr]:
    """Elements, or keys, of a collection that is written with texts in it; of any other node none."""
    elements = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
    texts = (inner for each in elements if each for inner in ast.walk(each))
    written = any(isinstance(getattr(inner, "value", None), str) for inner in texts)
    return elements if written and None not in elements else []


def change(node: ast.AST, i: int) -> str | None:
    """Changes this node in place, in its part ``i``; says how, or None if it cannot be changed."""
    if isinstance(node, ast.Compare):
        node.ops[i] = COMPARED[type(node.ops[i])]()
        return "another comparison"
    if table := of_table(node):
        if isinstance(node, ast.Dict):
            del node.values[i]
        return f"without {ast.unparse(table.pop(i))[:80]}"
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in COMPUTED:
        node.op = COMPUTED[type(node.op)]()
        return "another operator"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLED:
        node.func.id = CALLED[node.func.id]
        return f"now {node.func.id}"
    if isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return "and for or"
    if isinstance(node, (ast.If, ast.IfExp)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return "condition turned around"
    if isinstance(node, ast.Return) and node.value is not None:
        node.value = ast.Constant(None)
        return "returns None"
    if isinstance(node, ast.Constant):
        node.value = (not node.value) if isinstance(node.value, bool) else node.value + 1
        return f"now {node.value}"
    return None


def faults(source: str) -> Iterator[tuple[int, str, int]]:
    """(line, what is changed, number) of every fault of a module.

    >>> list(faults("x = 1 < y"))
    [(1, 'another comparison', 0), (1, 'now 2', 1)]
    """
    for number, (node, i) in enumerate(places(ast.parse(source))):
        line = table[i].lineno if (table := of_table(node)) else node.lineno
        if how := change(copy.deepcopy(node), i):
            yield line, how, number


def faulted(source: str, number: int) -> str:
    """The module with the fault of this number.

    >>> faulted("x = 1 < y", 0), faulted("x = 1 < y", 1)
    ('x = 1 <= y', 'x = 2 < y')
    """
    tree = ast.parse(source)
    change(*next(itertools.islice(places(tree), number, None)))
    return ast.unparse(ast.fix_missing_locations(tree))


@dataclass(frozen=True)
class Ran:
    """How the tests ended (``lived``, ``found``, ``hung``), and in which seconds of work and of waiting."""

    outcome: str
    work: float
    waited: float


def run(folder: Path, tests: list[str], work: float, wait: float, fast: bool) -> Ran:
    """What the tests say of the package in this folder. Past a limit, of its own work or of the clock, they hung."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()  # so that what the tests start can be ended with them
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(work),) * 2)
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY,) * 2)
        signal.alarm(math.ceil(wait))  # its default is to end the process
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.chdir(folder)
        sys.path[:0] = [str(folder), str(folder / "tests")]
        os.environ["PYTHONPATH"] = str(folder)  # the processes of the tests have the fault too
        some = ["--fast", "--hypothesis-profile=few"]
        every = ["-m", "not slow and not multirank and not real and not browser", "--hypothesis-profile=all"]
        code = pytest.main(
            ["-xq", "-pno:cacheprovider", "-p_hypothesis_pytestplugin", *(some if fast else every), *tests]
        )
        os._exit(0 if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) else 1)
    _, status, used = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(status)
    outcome = "lived" if ended == 0 else "found" if ended > 0 else "hung"
    return Ran(outcome, used.ru_utime + used.ru_stime, time.monotonic() - began)


class Tests:
    """The tests of a module: those that are quick first, and all of them on what these let live."""

    def __init__(self, folder: Path, tests: list[str], quick: bool):
        self.folder, self.tests = folder, tests
        self.rounds = [True] if quick else [True, False]
        self.sound = [run(folder, tests, 3600, 3600, fast) for fast in self.rounds]

    def of(self) -> str:
        """What they say of the module as it stands now."""
        for sound, fast in zip(self.sound, self.rounds, strict=True):
            ran = run(self.folder, self.tests, 5 * sound.work + 10, 10 * sound.waited + 60, fast)
            if ran.outcome != "lived":
                break
        return ran.outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="+", metavar="MODULE=TEST[,TEST]", help="schedules=test_schedules")
    parser.add_argument("--most", type=int, default=40, help="faults of a module that are tried")
    parser.add_argument("--seconds", type=float, default=3600, help="after which no further fault is tried")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--quick", action="store_true", help="ask the quick tests alone")
    parser.add_argument("--only", type=int, nargs="+", metavar="LINE", help="of the drawn faults those of these lines")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    os.environ.update(DS_ACCELERATOR="cpu", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    sys.dont_write_bytecode = True
    for name in HEAVY:
        importlib.import_module(name)  # once, before the forks
    for name, examples in (("few", 15), ("all", 100)):
        hypothesis.settings.register_profile(
            name,
            max_examples=examples,
            deadline=None,
            suppress_health_check=[hypothesis.HealthCheck.too_slow],
            derandomize=True,
            database=None,
            phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        )
    gc.freeze()  # pytest collects garbage several times a run: not all this

    folder = Path(tempfile.mkdtemp(prefix="mutants_"))
    for name in ("prefix_rl", "tests", "recipes", "benchmarks", "setup.cfg"):
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    total = Counter()
    for part in given.modules:
        module, _, files = part.partition("=")
        path = folder / "prefix_rl" / Path(*module.split(".")).with_suffix(".py")
        tests = Tests(folder, [*(of_tests(name) for name in files.split(",")), str(path)], given.quick)
        if any(ran.outcome != "lived" for ran in tests.sound):
            sys.exit(f"{module}: the tests fail without any fault")
        source = path.read_text(encoding="utf-8")
        every = list(faults(source))
        drawn = sorted(random.Random(given.seed).sample(every, min(given.most, len(every))), key=lambda fault: fault[0])
        outcomes = Counter()
        for line, how, number in drawn:
            if time.monotonic() > end or (given.only and line not in given.only):
                continue
            path.write_text(faulted(source, number), encoding="utf-8")
            outcome = tests.of()
            outcomes[outcome] += 1
            if outcome == "lived":
                print(f"  {module}:{line}: {how}: {source.splitlines()[line - 1].strip()}", flush=True)
        path.write_text(source, encoding="utf-8")
        print(f"{module}: {said(outcomes)} ({len(every)} there are)", flush=True)
        total += outcomes
    print(f"all: {said(total)}")
    shutil.rmtree(folder)


def of_tests(name: str) -> str:
    """Where pytest finds them.

    >>> of_tests("test_masks"), of_tests("test_trainer::test_costs")
    ('tests/test_masks.py', 'tests/test_trainer.py::test_costs')
    """
    file, colons, test = name.partition("::")
    return f"tests/{file}.py{colons}{test}"


def said(outcomes: Counter) -> str:
    found = outcomes["found"] + outcomes["hung"]
    return f"{found} of {outcomes.total()} found" + (f", {outcomes['hung']} hung" if outcomes["hung"] else "")


if __name__ == "__main__":
    main()
