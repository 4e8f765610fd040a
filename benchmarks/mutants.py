"""How many small faults the tests of a module find: each is put into a copy of the module, and its tests run on that.

    python benchmarks/mutants.py schedules=test_schedules masks=test_masks,test_prefixes [--most 40] [--seconds 600]

A module of ``prefix_rl`` (its path with dots) and the files of tests/ that are about it. A fault is one of: another
comparison, another operator, ``and`` for ``or``, a condition turned around, a number one larger, ``return None``.
Annotations, decorators, imports and errors are left alone. Of the faults of a module ``--most`` are drawn (``--seed``).
The module's own examples count as tests. Prints for each module how many were found, and the others with their line.

Everything heavy is imported once; a fault is tried in a fork of this process, so it costs the tests alone.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}  # fmt: skip
COMPUTED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
            ast.Mod: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Pow: ast.Mult}  # fmt: skip


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, ...]]:
    """Nodes that may be changed."""

    def visit(node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, (ast.Raise, ast.Import, ast.ImportFrom, ast.JoinedStr)):
            return
        if isinstance(node, (ast.Compare, ast.BinOp, ast.BoolOp, ast.If, ast.IfExp, ast.Return)) or (
            isinstance(node, ast.Constant) and type(node.value) in (int, float, bool)
        ):
            yield node
        left = {id(getattr(node, name, None)) for name in ("annotation", "returns")}
        left |= {id(decorator) for decorator in getattr(node, "decorator_list", ())}
        for child in ast.iter_child_nodes(node):
            if id(child) not in left:
                yield from visit(child)

    return visit(tree)


def change(node: ast.AST) -> str | None:
    """Changes this node in place; says how, or None if it cannot be changed."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARED:
        node.ops[0] = COMPARED[type(node.ops[0])]()
        return "another comparison"
    if isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        node.op = COMPUTED[type(node.op)]()
        return "another operator"
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


def faults(source: str) -> Iterator[tuple[int, str, str]]:
    """(line, what was changed, source with the fault) of every fault of a module."""
    whole = ast.parse(source)
    for number, _ in enumerate(places(whole)):
        tree = copy.deepcopy(whole)
        node = next(node for i, node in enumerate(places(tree)) if i == number)
        if how := change(node):
            yield node.lineno, how, ast.unparse(ast.fix_missing_locations(tree))


def run(folder: Path, tests: list[str], limit: int) -> str:
    """What the tests say of the package in this folder: ``found``, ``lived``, or ``found (time)``, its limit."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        signal.alarm(60 * limit)  # for what waits instead
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.chdir(folder)
        sys.path[:0] = [str(folder), str(folder / "tests")]
        import pytest

        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist",
                            "-m", "not slow and not multirank and not real and not browser", *tests])  # fmt: skip
        os._exit(min(int(code), 100))
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    return "lived" if ended == 0 else "found" if ended > 0 else "found (time)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="+", metavar="MODULE=TEST[,TEST]", help="schedules=test_schedules")
    parser.add_argument("--most", type=int, default=40, help="faults of a module that are tried")
    parser.add_argument("--seconds", type=float, default=3600, help="after which no further fault is tried")
    parser.add_argument("--limit", type=int, default=60, help="CPU seconds of one fault; one that hangs is found")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    given = parser.parse_args()
    end = time.monotonic() + given.seconds
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    sys.dont_write_bytecode = True
    import datasets  # noqa: F401  once, before the forks
    import hypothesis  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    folder = Path(tempfile.mkdtemp())
    for name in ("prefix_rl", "tests", "recipes", "setup.cfg"):
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    total = {"found": 0, "lived": 0}
    for part in given.modules:
        module, _, files = part.partition("=")
        path = folder / "prefix_rl" / Path(*module.split(".")).with_suffix(".py")
        tests = [*(f"tests/{name}.py" for name in files.split(",")), str(path)]
        source = path.read_text(encoding="utf-8")
        if run(folder, tests, given.limit) != "lived":
            sys.exit(f"{module}: the tests fail without any fault")
        every = list(faults(source))
        drawn = sorted(random.Random(given.seed).sample(every, min(given.most, len(every))), key=lambda fault: fault[0])
        outcomes = {"found": 0, "lived": 0}
        for line, how, changed in drawn:
            if time.monotonic() > end:
                break
            path.write_text(changed, encoding="utf-8")
            outcome = run(folder, tests, given.limit)
            outcomes[outcome.split()[0]] += 1
            if outcome == "lived":
                print(f"  {module}:{line}: {how}: {source.splitlines()[line - 1].strip()}", flush=True)
        path.write_text(source, encoding="utf-8")
        tried = sum(outcomes.values())
        print(f"{module}: {outcomes['found']} of {tried} found ({len(every)} there are)", flush=True)
        total = {key: total[key] + outcomes[key] for key in total}
    print(f"all: {total['found']} of {sum(total.values())} found")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
