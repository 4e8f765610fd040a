"""What runs leave behind, damaged: checkpoints, evaluations, trace stores and logs, made once by the real commands.

A case is a copy of a genuine folder in which one file is no longer what it was; every command that reads the folder is
run on it. Outcomes are those of :mod:`hostile`.
"""

import json
import os
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
from hostile import JSON_VALUES, ROOT, as_json, damaged

from prefix_rl.checkpoints import MARK, mark_whole

SMALL = [
    "data.lab.base_steps=3", "data.lab.problems=8", "data.lab.held_out=4", "training.per_device_train_batch_size=16",
    "training.num_generations=4", "training.logging_steps=1", "training.eval_strategy=no", "training.max_steps=4",
    "training.save_steps=2", "output.rollouts_every=1", "reward.workers=1",
]  # fmt: skip
LAB = ROOT / "recipes" / "lab"
STAGE = ["method.supervised.epochs=2", "method.supervised.batch_size=4"]


def make(root):
    """The genuine folders: ``run`` (trained, evaluated), ``stage`` (with a supervised stage), ``store`` (traces)."""
    from prefix_rl.collecting.collect import collect
    from prefix_rl.evaluation.evaluate import evaluate

    run(root / "run")
    evaluate(str(root / "run"), overrides=["evaluation.samples=2"])
    run(root / "stage", "sft_then_rl", *STAGE)
    collect(LAB / "prefix_rl.yaml", SMALL, root / "store", k=2, cap=4)


def run(folder, name="prefix_rft", *overrides):
    from prefix_rl.train import train

    return train(LAB / f"{name}.yaml", [*SMALL, f"output.dir={folder}", *overrides])


def found(folder, *patterns):
    """The files in a folder, in order."""
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


# --- damage -----------------------------------------------------------------------------------------------------------


def spoil(path, rng, others):
    """Damages one file in place; what was done, in words.

    Args:
        path: the file.
        rng: draws.
        others: files that may stand in its place.
    """
    name = path.name
    kinds = ["bytes", "bytes", "bytes", "empty", "gone", "folder", "loop", "nowhere", "other", "cut", "zeros", "fifo"]
    if name.endswith(".json"):
        kinds += ["value"] * 12 + ["text"] * 3
    if name.endswith(".jsonl"):
        kinds += ["line"] * 8
    if name.endswith(".parquet"):
        kinds += ["cell"] * 10 + ["columns"] * 4 + ["copied"] * 2
    kind = rng.choice(kinds)
    return f"{name}: {kind}{_HOW[kind](path, rng, others) or ''}"


def _put(path, raw):
    path.write_bytes(raw)


def _instead(path, make):
    path.unlink()
    make(path)


def _other(path, rng, others):
    chosen = rng.choice(others)
    shutil.copyfile(chosen, path)
    return f" {chosen.parent.name}/{chosen.name}"


TEXTS = [
    b"null", b"[]", b"{}", b"3", b'"x"', b"{" * 50, b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"NaN", b"\xff\xfe",
    b'{"a": "\\ud800"}', b"\xef\xbb\xbf{}", b"{'a': 1}", b"\0" * 99,
]  # fmt: skip


def _text(path, rng, others):
    text = rng.choice(TEXTS)
    _put(path, text)
    return f" {text[:20]!r}"


def _places(value, at=()):
    """The places in a JSON document, from the outside in."""
    yield at
    if isinstance(value, dict | list) and len(at) < 6:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(inner, (*at, key))


def changed(document, rng):
    """A JSON document with one value changed, taken away or added, as text; and where."""
    at = rng.choice([place for place in _places(document) if place])
    made = json.loads(json.dumps(document))
    inside = made
    for key in at[:-1]:
        inside = inside[key]
    kind = rng.randrange(4)
    value = rng.choice(JSON_VALUES)
    if kind == 0:
        del inside[at[-1]]
        value = "gone"
    elif kind == 1 and isinstance(inside, dict):
        inside[rng.choice(["x", "", "\ud800", "../../x", "a\0b", str(at[-1]).upper()])] = inside.pop(at[-1])
        value = "renamed"
    else:
        inside[at[-1]] = value
    return as_json(made).encode("utf-8", "surrogatepass"), f" {'.'.join(map(str, at))} {str(value)[:20]!r}"


def _value(path, rng, others):
    raw, told = changed(json.loads(path.read_text()), rng)
    _put(path, raw)
    return told


def _line(path, rng, others):
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    raw, told = rng.choice([changed(json.loads(lines[at]), rng), (rng.choice(TEXTS), " text")])
    _put(
        path,
        b"".join(one + b"\n" for one in [*(x.encode() for x in lines[:at]), raw, *(x.encode() for x in lines[at:])]),
    )
    return told


CELLS = [
    None, "", "x", "\\boxed{3}", "x" * 5000, "数学🙂\0\x1b[31m", -1, 0, 1, 7, 10**6, 2**31 - 1, -(2**31), float("nan"), float("inf"),
    -0.5, 1e300, True, False, [], [-1], [10**6], [2**31 - 1], [None],
]  # fmt: skip


def _cell(path, rng, others):
    """One cell of a Parquet file gets another value, of the column's own type where that is possible."""
    table = pyarrow.parquet.read_table(path)
    column = rng.randrange(table.num_columns)
    name, kind = table.column_names[column], table.schema.field(column).type
    values = table.column(column).to_pylist()
    values[rng.randrange(len(values))] = value = rng.choice(CELLS)
    try:
        made = pyarrow.array(values, kind)
    except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
        try:
            made = pyarrow.array([None if v is None else str(v) for v in values])
        except (pyarrow.ArrowException, UnicodeError):
            made = pyarrow.nulls(len(values))
    table = table.set_column(column, pyarrow.field(name, made.type), made)
    pyarrow.parquet.write_table(table, path)
    return f" {name} {str(value)[:20]!r}"


def _columns(path, rng, others):
    table = pyarrow.parquet.read_table(path)
    kind = rng.randrange(5)
    if kind == 0:
        table = table.drop_columns([rng.choice(table.column_names)])
    elif kind == 1:
        table = table.rename_columns([n.upper() if rng.random() < 0.3 else n for n in table.column_names])
    elif kind == 2:
        table = table.slice(0, rng.randrange(table.num_rows))
    elif kind == 3:
        name = rng.choice(table.column_names)
        table = table.set_column(table.column_names.index(name), name, pyarrow.nulls(table.num_rows))
    else:
        table = pyarrow.concat_tables([table, table.slice(0, 1)])
    pyarrow.parquet.write_table(table, path)
    return f" {kind}"


def _copied(path, rng, others):
    digits = "".join(c for c in path.stem if c.isdigit())
    there = path.with_name(path.name.replace(digits, str(int(digits) + rng.choice([1, 2, 7])).zfill(len(digits))))
    shutil.copyfile(path, there)
    return f" to {there.name}"


_HOW = {
    "bytes": lambda path, rng, others: _put(path, damaged(path.read_bytes(), rng)),
    "empty": lambda path, rng, others: _put(path, b""),
    "gone": lambda path, rng, others: path.unlink(),
    "folder": lambda path, rng, others: _instead(path, Path.mkdir),
    "loop": lambda path, rng, others: _instead(path, lambda p: p.symlink_to(p.name)),
    "nowhere": lambda path, rng, others: _instead(path, lambda p: p.symlink_to("nothing/here")),
    "fifo": lambda path, rng, others: _instead(path, os.mkfifo),
    "cut": lambda path, rng, others: _put(path, path.read_bytes()[: rng.randrange(path.stat().st_size or 1)]),
    "zeros": lambda path, rng, others: _put(path, b"\0" * path.stat().st_size),
    "other": _other, "text": _text, "value": _value, "line": _line, "cell": _cell, "columns": _columns, "copied": _copied,
}  # fmt: skip


def marked_again(folder):
    """Marks a damaged checkpoint as whole: as one that an older version marked, or somebody by hand."""
    mark = folder / MARK
    if mark.is_file():
        try:
            facts = json.loads(mark.read_text())
            mark_whole(folder, {key: value for key, value in facts.items() if key != "files"})
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            pass
