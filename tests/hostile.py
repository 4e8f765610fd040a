"""Hostile input, made from a seed: recipes, overrides, data files and stores as nobody should give them.

Each case ends in one of four outcomes: ``fine`` (it was taken), ``explained`` (a UserError), ``traceback`` (anything else
that is raised) or ``hang`` (more CPU time than :data:`CPU_SECONDS`; time that other processes take does not count).
"""

import contextlib
import gzip
import json
import os
import signal
import traceback
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from prefix_rl.errors import UserError, printable

ROOT = Path(__file__).parents[1]
CASES = int(os.environ.get("PREFIX_RL_HOSTILE", "150"))
SEED = int(os.environ.get("PREFIX_RL_HOSTILE_SEED", "0"))
CPU_SECONDS = 30  # a case takes milliseconds; what takes this long has no end in sight
WAITED_SECONDS = int(os.environ.get("PREFIX_RL_HOSTILE_WAITED", "600"))  # what waits without computing, as for a pipe


class Hang(BaseException):
    """The CPU time of a case is used up."""


@contextlib.contextmanager
def cpu_budget(seconds=CPU_SECONDS):
    def over(*_):
        raise Hang

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, WAITED_SECONDS)}
    before = {kind: signal.signal(kind, over) for kind in timers}
    for timer, budget in timers.values():
        signal.setitimer(timer, budget)
    try:
        yield
    finally:
        for kind, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(kind, before[kind])


@dataclass
class Outcomes:
    """What became of the cases, and those that should not have been."""

    counts: Counter = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    last: str = ""
    """The last explanation."""

    def run(self, case, what):
        """Runs one case. ``case`` says how to make it again."""
        try:
            with cpu_budget():
                what()
            outcome = "fine"
        except UserError as error:
            outcome = "explained"
            self.last = text = str(error)
            if not text.strip() or len(text) > 20_000 or "Traceback" in text:
                outcome = "traceback"
                self.bad.append(f"{case}: explained by {len(text)} characters: {text[:200]!r}")
            printable(text).encode()
        except Hang:
            outcome = "hang"
            self.bad.append(f"{case}: hangs at\n{''.join(traceback.format_exc().splitlines(keepends=True)[-8:])}")
        except (Exception, SystemExit) as error:
            outcome = "traceback"
            where = "".join(traceback.format_tb(error.__traceback__)[-3:])
            self.bad.append(f"{case}: {type(error).__name__}: {str(error)[:200]}\n{where}")
        self.counts[outcome] += 1
        return outcome

    def check(self):
        shown = "\n".join(one.encode("utf-8", "backslashreplace").decode() for one in self.bad[:5])
        assert not self.bad, f"seed {SEED}: {dict(self.counts)}, {len(self.bad)} bad:\n{shown}"


# --- recipes ----------------------------------------------------------------------------------------------------------

VALUES = [
    "", "null", "~", "true", "false", "0", "-1", "1", "2", "7", "1.5", "-0.0", ".nan", ".inf", "-.inf", "1e308", "1e-320",
    "1e400", "1000000", str(10**9), str(10**12), str(10**15), str(-(10**15)), str(2**63), str(10**30), "9" * 5000,
    "0x7fffffffffffffff", "[]", "{}", "[[]]", "[null]", "[.nan]", "[1, 2]", "[a, b]", "[[[[1]]]]", "{a: b}", "{1: 2}",
    "{nope: 1}", "{? [a] : 1}", "{null: null}", "{name: null}", '"\\ud800"', '"\\0"', '"\\U00110000"', '"\\x1b[31m"', '""',
    '" "', "../../../etc/passwd", "/dev/zero", "/dev/null", "/proc/self/mem", ".", "..", "..evil", "evil..", "a.b.c",
    "os.system", "os", "this", "antigravity.x", "NO", "Adam", "nope", "no", "steps", "epoch", "auto", "none", "all", "lab",
    "mention", "\u202eabc", "数学", "🙂" * 50, "x" * 10_000, "&a [*a]", "*nope", "&a {b: *a}", "!!python/object:os.system {}",
    "!!python/name:os.system", "!!binary aGk=", "!!set {a}", "!!omap [a: 1]", "!!int x", "!!float x", "!!bool x",
    "!!null x", "!!timestamp x", "2024-01-01", "012", "1_000", "[" * 40 + "]" * 40, "[" * 2000, "{a: " * 500,
    "{lr: 1}", "{use_reentrant: 3}", "{do_sample: false}", "{top_k: -5}", "{seed: 1}", "{min_lr: .nan}", "a=1", "a=1,b=2",
    "{file: x, weight: 1}", "[{file: x, weight: -1}]", "[{file: x}, {file: x}]", "['\\0']", "[\"\\0\"]",
]  # fmt: skip
"""Texts of YAML that stand where a value should."""


OVERRIDES = [
    "", "=", "a", "a=", "=1", ".=1", "..=1", "a.=1", ".a=1", "a." * 5000 + "a=1", "--=", "model", "training.=1", "x" * 100_000,
    "model=x", "\ud800=1", "a.b=\ud800", "output.dir=~/runs", "output.dir=' '", "training.delta=1", "training.temperature=1e-30",
    "reward.functions=[builtins.getattr]", "reward.functions=[numpy.add]", "reward.functions=[hostile_rewards.Unasked]",
    "reward.functions=[hostile_rewards.unasked]", "reward.functions=[hostile_exit.reward]", "reward.functions=[..a]",
    "reward.functions=[" + "a." * 5000 + "b]", "include=x", "training..beta=1", "method.prefix[0]=1", "a={b: [1, {c: *x}]}",
]  # fmt: skip
"""Overrides that stand together with a wrong value of theirs, or that are none."""


def shipped():
    """Every recipe of the project by its path, but for ladders."""
    from prefix_rl.recipe import BLOCKS, read_yaml

    found = {}
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        if path.parent.name != "accelerate" and not read_yaml(path).keys() - BLOCKS.keys():
            found[path] = read_yaml(path)
    return found


def keys():
    """Every key that a recipe may hold, as block.key."""
    from prefix_rl import methods
    from prefix_rl.fields import dataclass_in, fields_of
    from prefix_rl.recipe import BLOCKS, model_fields, training_fields

    def of(where, fields):
        for name, one in fields.items():
            yield f"{where}.{name}"
            if inner := dataclass_in(one.type):
                yield from of(f"{where}.{name}", fields_of(inner))

    for block, cls in BLOCKS.items():
        yield block
        if cls:
            yield from of(block, fields_of(cls))
    yield from of("model", model_fields())
    yield from of("training", training_fields())
    yield "method.name"
    for name in methods.names():
        yield from of("method", fields_of(methods.find(name)))


def mutated(text, rng):
    """A text of a recipe, damaged."""
    lines = text.splitlines(keepends=True)
    kind = rng.randrange(9)
    at = rng.randrange(len(lines))
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[rng.randrange(len(lines))])
    elif kind == 2:
        lines[at] = "\t" + lines[at]
    elif kind == 3:
        lines[at] = " " * rng.randrange(1, 9) + lines[at]
    elif kind == 4:
        lines.insert(at, rng.choice(VALUES) + "\n")
    elif kind == 5:
        key, colon, _ = lines[at].partition(":")
        lines[at] = f"{key}{colon} {rng.choice(VALUES)}\n"
    elif kind == 6:
        lines[at] = lines[at].upper()
    elif kind == 7:
        lines[at] = lines[at].replace(":", "", 1)
    else:
        raw = bytearray("".join(lines).encode())
        for _ in range(rng.randrange(1, 9)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(raw)
    return "".join(lines).encode("utf-8", "surrogatepass")


def recipe_case(rng, recipes, names, folder):
    """A recipe and its overrides."""
    path = rng.choice(list(recipes))
    kind = rng.randrange(4)
    if kind == 0:
        file = folder / "recipe.yaml"
        file.write_bytes(mutated(path.read_text(encoding="utf-8"), rng))
        return file, []
    overrides = [f"{rng.choice(names)}={rng.choice(VALUES)}" for _ in range(rng.choice((1, 1, 1, 2, 4)))]
    if kind == 1:
        overrides.append(rng.choice(OVERRIDES))
    return path, overrides


LADDER = {
    "output": "runs/ladder", "seeds": [0, 1], "against": ["dr_grpo"], "set": {"training.max_steps": 20},
    "levels": {"easier": {"data.lab.operations": 6}},
    "arms": {"dr_grpo": {"recipe": "dr_grpo.yaml"}, "sft": {"recipe": "sft.yaml", "regimes": ["clean"], "set": {"data.limit": 8}}},
    "regimes": {"clean": {"question": "?"}, "few": {"question": "?", "demonstrations": {"data.lab.demonstrated": 4}}},
    "search": {"tries": {"dr_grpo": [{"training.beta": 0}]}, "regimes": ["clean"]}, "fast": {"seeds": [0], "arms": ["sft"]},
}  # fmt: skip


def ladder_file(rng, folder):
    """A ladder in which a value is another one, is gone, or has another name; and what was done, in words."""
    made = json.loads(json.dumps(LADDER))
    for arm in made["arms"].values():
        arm["recipe"] = str(ROOT / "recipes" / "lab" / arm["recipe"])
    inside, way = made, []
    while isinstance(inside, dict | list) and inside and (not way or rng.random() < 0.75):
        way.append((inside, rng.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))))
        inside = inside[way[-1][1]]
    block, key = way[-1]
    kind, value = rng.randrange(6), rng.choice(JSON_VALUES)
    if kind == 0:
        del block[key]
    elif kind == 1 and isinstance(block, dict):
        block[rng.choice(["x", "", "a/b", "../x", "a\nb", "x" * 300, "\u202e", "."])] = block.pop(key)
    elif kind > 1:
        block[key] = rng.choice([value, [value], {"x": value}])
    return Path(_written(folder / "ladder.yaml", as_json(made).encode("utf-8", "surrogatepass"))), (
        key,
        str(value)[:30],
    )


def yaml_bombs():
    """Texts that make much of little."""
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))
    merges = "\n".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}], k{i}: 1}}" for i in range(1, 12))
    return {
        "laughs": f"a0: &a0 [x]\n{levels}\n",
        "merges": f"a0: &a0 {{x: 1}}\n{merges}\n",
        "itself": "model: &a {name_or_path: *a}\n",
        "itself in a list": "model: &a [*a]\n",
        "itself merged": "model: &a {<<: *a}\n",
        "levels of lists": "model: " + "[" * 1000 + "]" * 1000,
        "levels of blocks": "\n".join(" " * i + "a:" for i in range(1000)),
        "levels of dashes": "- " * 5000 + "a",
        "open brackets": "[" * 200_000,
        "open braces": "{a: " * 50_000,
        "keys": "\n".join(f"a{i}: 1" for i in range(9_000)),
        "pieces": "a: [" + "1," * 100_000 + "]",
        "one long key": "a" * 200_000 + ": 1",
        "one long number": "training: {max_steps: " + "9" * 200_000 + "}",
        "one long text": "model: '" + "x" * 10_000_000 + "'",
        "anchors": "\n".join(f"a{i}: &a{i} 1" for i in range(9_000)),
        "questions": "? " * 5000,
        "tags": "!a " * 50_000,
        "documents": "---\n" * 50_000,
        "directives": "%YAML 1.1\n" * 1000,
        "blanks": " " * 200_000,
        "comments": "#" * 200_000,
        "quotes": '"' * 200_000,
        "colons": ":" * 200_000,
        "anchors alone": "&" * 100_000,
    }


# --- data -------------------------------------------------------------------------------------------------------------

GOOD_ROWS = [
    {"id": f"p{i}", "problem": f"{i} + {i} = ?", "answer": str(2 * i),
     "demonstrations": [f"{i} twice is {2 * i}, so \\boxed{{{2 * i}}}"]} for i in range(1, 9)
]  # fmt: skip


COMPLETED_ROWS = [
    {"problem": r["problem"], "answer": r["answer"], "completion": r["demonstrations"][0]} for r in GOOD_ROWS
]


class Raw(str):
    """JSON as it is written, where Python has no value for it."""


JSON_VALUES = [
    None, True, 0, -1, 2**31, 2**63, 10**30, 1.5, -0.0, 1e308, Raw("1e400"), Raw("NaN"), Raw("-Infinity"), Raw("9" * 5000), "",
    " ", "x", "\ud800", "a\0b", "\x1b[31m", "\u202eabc", "数学🙂", "x" * 2000, [], {}, [[]], [None], [1], ["a", 1], {"a": 1},
    {"text": None}, {"text": "a", "ids": [1, 2]}, [{"text": "a"}], [{"role": "user", "content": "a"}], [{"role": "user"}],
    [{"role": 3, "content": "a"}], [{"role": "tool", "content": "a"}], [{"from": "human", "value": "a"}, None],
    Raw("[" * 900 + "]" * 900), Raw('{"a":' * 900 + "1" + "}" * 900), Raw("[" * 100_000 + "]" * 100_000),
    "\\boxed{" * 300, "$" * 999, "\\text{" * 500, "9" * 3000, "####" * 500, "<<" * 999, "\\frac{1}{" * 200, "1e999999999",
    {"role": "user", "content": [{"type": "text", "text": None}]}, [{"role": "user", "content": [{"type": "text", "text": 3}]}],
    "\u200b\u2060", "10^10^10^10", "9!!!!!!", "\\begin{pmatrix}" * 100, {"role": "user", "content": "a"}, {"role": "assistant", "content": {}},
]  # fmt: skip
TOGETHER = [
    ("deepseek_reasoning", "deepseek_solution"),
    ("reward_model", "extra_info"),
    ("generations", "is_reasoning_complete"),
]
"""Columns that are read together."""
COLUMNS = [
    "id", "problem", "answer", "demonstrations", "solution", "completion", "prompt", "messages", "conversations", "question",
    "generations", "is_reasoning_complete", "target", "reward_model", "extra_info", "deepseek_reasoning", "deepseek_solution",
    "ground_truth_solution", "pass_rate", "uuid", "final_answer", "turns", "faults", "last", "named", "system", "place",
    "columns", "source", "further", "response", "gold", "completion_ids",
]  # fmt: skip
BESIDE_TEXTS = ["ids", "readable", "readable_from", "ended", "complete", "unread", "text", "content", "thought"]
BESIDE_VALUES = [
    None, True, "x", -1, 0, 3, 10**6, 2**31, 2**63, 10**30, 1.5, Raw("NaN"), Raw("9" * 5000), [], [1], [-1], [1.5], ["a"], [None],
    [10**6], [2**31], [2**63], [[1]], [True], {}, {"mention": -1}, {"mention": "x"}, {"mention": 2**70}, {"mention": None},
    {"nope": 3}, {"mention": [1]}, {"mention": 1.5}, {"statement": 10**9},
]  # fmt: skip


def as_json(value):
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {as_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_json, value)) + "]"
    return json.dumps(value)


def hostile_row(rng, good):
    row = dict(rng.choice(good))
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.randrange(4)
        if kind == 0:
            row.pop(rng.choice(list(row)), None)
        elif kind == 1 and "demonstrations" in row:
            given = {"text": "1 + 1 is 2, so \\boxed{2}", rng.choice(BESIDE_TEXTS): rng.choice(BESIDE_VALUES)}
            row["demonstrations"] = [given, *GOOD_ROWS[0]["demonstrations"]][: rng.randrange(1, 3)]
        elif rng.random() < 0.1:
            row |= {name: rng.choice(JSON_VALUES) for name in rng.choice(TOGETHER)}
        else:
            row[rng.choice(COLUMNS)] = rng.choice(JSON_VALUES)
        row = row or {"id": 1}
    return row


def data_file(rng, folder, good=GOOD_ROWS):
    """A file of rows, one of them hostile or the file itself damaged."""
    rows = [*good[: rng.randrange(1, 8)]]
    rows.insert(rng.randrange(len(rows) + 1), hostile_row(rng, good))
    raw = "".join(as_json(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    kind = rng.randrange(8)
    if kind < 4:
        return _written(folder / "rows.jsonl", raw)
    if kind == 4:
        return _written(folder / "rows.jsonl", damaged(raw, rng))
    if kind == 5:
        return _written(folder / "rows.jsonl.gz", damaged(gzip.compress(raw, mtime=0), rng))
    if kind == 6 and rng.random() < 0.5:
        return _odd_parquet(rng, folder / "rows.parquet")
    if kind == 6:
        return _written(folder / "rows.parquet", damaged(_parquet(folder), rng))
    name = rng.choice(["rows.jsonl", "rows.jsonl.gz", "rows.parquet", "rows.csv", "rows.json", "rows.txt", "rows"])
    return _written(folder / name, rng.choice([b"", b"\n", b"\0" * 99, b"\xff\xfe{}", raw, raw[: len(raw) // 2], b"PAR1",
                                               b"\x1f\x8b", b"[" + raw + b"]", b"\xef\xbb\xbf" + raw, raw * 2, raw + b"{}\n" * 20_000,
                                               raw.replace(b"{", b'{"id": 1, "id": 2, ', 1), gzip.compress(b"\n" * 10**7),
                                               gzip.compress(raw) + b"x", gzip.compress(raw) * 2]))  # fmt: skip


def damaged(raw, rng):
    """Bytes of which a few are flipped, cut off, repeated or put in."""
    made = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(made) or 1)
        kind = rng.randrange(5)
        if kind < 2 and made:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del made[at:]
        elif kind == 3:
            made[at:at] = made[: rng.randrange(100)]
        else:
            made[at:at] = rng.choice([b"\0", b"\xff", b"\xed\xa0\x80", b"\n", b"{", b'"', b"\\u", b"\\ud83d"])
    return bytes(made)


def _odd_parquet(rng, path):
    """A whole Parquet file with a column of another type, of another name, or with nothing in it."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(GOOD_ROWS)
    count, name = len(GOOD_ROWS), rng.choice([*table.column_names, "further"])
    bytes_of = pyarrow.array([b"\xff\xfe"] * count)
    column = rng.choice([
        pyarrow.nulls(count), bytes_of, pyarrow.array([1] * count, pyarrow.timestamp("ns")), pyarrow.array([True] * count),
        pyarrow.array([2**62] * count, pyarrow.timestamp("ms")), pyarrow.array([1] * count, pyarrow.timestamp("us", tz="No/Where")),
        pyarrow.array([2**62] * count, pyarrow.duration("s")), pyarrow.array([2**64 - 1] * count, pyarrow.uint64()),
        pyarrow.array([float("nan")] * count), pyarrow.array([Decimal("1.50")] * count), pyarrow.array([{"a": 1}] * count),
        pyarrow.array([[("text", "a"), ("text", "b")]] * count, pyarrow.map_(pyarrow.string(), pyarrow.string())),
        pyarrow.array(["a", "b"] * (count // 2)).dictionary_encode(), pyarrow.array(["a"] * count, pyarrow.large_string()),
        pyarrow.array([[[["a"]]]] * count), pyarrow.array([0.1] * count).cast(pyarrow.float16()),
        pyarrow.array([[0.1, None]] * count, pyarrow.list_(pyarrow.float32())), pyarrow.array([None] * count, pyarrow.decimal256(60, 9)),
        pyarrow.array([0.1] * count, pyarrow.float32()).dictionary_encode(), pyarrow.array(["a"] * count, pyarrow.string_view()),
        pyarrow.array([{"ground_truth": float("nan")}] * count, pyarrow.struct({"ground_truth": pyarrow.float32()})), pyarrow.StringArray.from_buffers(count, *bytes_of.cast(pyarrow.binary()).buffers()[1:]),
    ])  # fmt: skip
    kind = rng.randrange(6)
    if kind == 0:
        table = pyarrow.table([*table.columns, column], names=[*table.column_names, name])  # there twice, but for one
    elif kind == 1:
        table = table.slice(0, 0) if rng.random() < 0.5 else table.select([])
    elif kind == 2:
        table = pyarrow.table({n: pyarrow.nulls(50_000) for n in table.column_names})
    elif name in table.column_names:
        table = table.set_column(table.column_names.index(name), name, column)
    else:
        table = table.append_column(name, column)
    pyarrow.parquet.write_table(table, path)
    return str(path)


def _parquet(folder):
    import pyarrow
    import pyarrow.parquet

    path = folder / "good.parquet"
    if not path.exists():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD_ROWS * 20), path)
    return path.read_bytes()


def _written(path, raw):
    path.write_bytes(raw)
    return str(path)
