"""A setting is declared once: options, tables and the schema are made of the same declaration as the check."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from annotated_types import Ge, Interval
from typer.main import get_command
from typer.testing import CliRunner

from prefix_rl import __version__, reference, schema
from prefix_rl.cli import app
from prefix_rl.data.attempts import Plan
from prefix_rl.data.settings import Settings
from prefix_rl.errors import RecipeError
from prefix_rl.evaluation.settings import Evaluation
from prefix_rl.fields import check, fields_of
from prefix_rl.options import options
from prefix_rl.recipe import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if p.parent.name != "accelerate" and p.stem != "ladder")


@dataclass(frozen=True)
class Example:
    """Settings of every kind."""

    count: Annotated[int, Ge(1)] | None = None
    """How many."""
    share: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """The share that ``count`` leaves."""
    loud: bool = False
    """Whether to say it."""
    kind: Literal["a", "b"] = "a"
    """Of what kind."""
    files: tuple[str, ...] = ()
    """A file."""
    between: tuple[float, float] | None = None
    """From LOW to HIGH."""
    ks: tuple[Annotated[int, Ge(1)], ...] = ()
    """Numbers."""
    parts: tuple[float, ...] = ()
    """Parts."""
    columns: dict[str, str] = field(default_factory=dict)
    """A column."""
    hidden: int = 3
    """Not for the command line."""


def called(*arguments, **how):
    """What a command of these options gets, or what it prints."""
    made, got = typer.Typer(), {}

    @made.command()
    @options(Example, **{"omit": ("hidden",), "names": {"columns": "column"}, "commas": ("ks", "parts"), **how})
    def command(name: str, **given):
        got.update(given, name=name)

    result = CliRunner().invoke(made, ["x", *arguments], terminal_width=200)
    return got if result.exit_code == 0 and got else (result.exit_code, result.output)


def test_only_what_stands_on_the_command_line_is_handed_on():
    assert called() == {"name": "x"}
    assert called("--share", "0.5") == {"name": "x", "share": 0.5}  # given, though it is the default


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["--count", "3"], {"count": 3}),
        (["--loud"], {"loud": True}),
        (["--no-loud"], {"loud": False}),
        (["--kind", "b"], {"kind": "b"}),
        (["--kind", "c"], {"kind": "c"}),  # refused where the settings are, with all that is wrong
        (["--files", "a,b", "--files", "c"], {"files": ["a,b", "c"]}),
        (["--between", "0.1", "0.3"], {"between": (0.1, 0.3)}),
        (["--ks", "4, 16"], {"ks": [4, 16]}),
        (["--parts", "0.25,0.5"], {"parts": [0.25, 0.5]}),
        (["--column", "a=b", "--column", "c=d"], {"columns": ["a=b", "c=d"]}),
    ],
    ids=str,
)
def test_a_field_of_every_kind_is_an_option(arguments, given):
    assert called(*arguments) == {"name": "x", **given}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ks", "4,x"], "--ks 4,x: give whole numbers above 0 with commas between them, as 4,16"),
        (["--ks", "4,0"], "--ks 4,0: give whole numbers above 0"),
        (["--ks", ""], "give whole numbers above 0"),
        (["--parts", "half"], "--parts half: give numbers with commas between them, as 0.25,0.5"),
        (["--count", "many"], "unable to parse string as an integer"),
        (["--hidden", "3"], "No such option"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_explained(arguments, message):
    code, output = called(*arguments)
    assert code == 2
    assert message in " ".join(output.replace("│", " ").split())


def test_the_help_is_the_declaration():
    code, output = called("--help")
    shown = " ".join(output.replace("│", " ").split())
    assert code == 0
    for part in ("How many.", "The share that count leaves. [default: 0.5]", "Of what kind. [default: a]", "A file. May be repeated.",
                 "LOW HIGH", "a|b", "OURS=THEIRS", "NUMBER,...", "[default: no-loud]"):  # fmt: skip
        assert part in shown, part
    _, output = called("--help", defaults=False)
    assert "default" not in output


@pytest.mark.parametrize(
    ("command", "cls", "names", "without"),
    [
        ("prepare", Settings, {"columns": "column"}, set()),
        ("evaluate", Evaluation, {}, {"data", "allow_overlap"}),
        ("collect", Plan, {}, set()),
    ],
)
def test_every_setting_is_an_option_with_its_text(command, cls, names, without):
    made = {option: p for p in get_command(app).commands[command].params for option in p.opts}
    for name, declared in fields_of(cls, docs=True).items():
        option = f"--{names.get(name, name).replace('_', '-')}"
        assert (option in made) == (name not in without), option
        if option in made:
            assert declared.doc
            assert made[option].help.startswith(declared.doc.replace("``", ""))


def test_the_page_of_settings_is_made_of_the_declarations():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == reference.page(), "run: python -m prefix_rl.reference > docs/settings.md"
    for name in fields_of(Evaluation):
        assert f"| `{name}` |" in page


def valid(value, schema):
    """Whether a JSON value is what a schema wants: those words of JSON Schema that ours uses, and no others."""
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    known = {"type", "properties", "additionalProperties", "required", "items", "prefixItems", "minItems", "maxItems", "enum", "const",
             "anyOf", "oneOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "description", "default", "title", "$schema"}  # fmt: skip
    assert schema.keys() <= known, schema.keys() - known
    kind, number = schema.get("type"), isinstance(value, int | float) and not isinstance(value, bool)
    if kind in kinds and not isinstance(value, kinds[kind]):
        return False
    if kind in ("number", "integer") and not (number and (kind == "number" or value == int(value))):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    for word, how in (("anyOf", any), ("oneOf", lambda each: sum(each) == 1)):
        if word in schema and not how(valid(value, one) for one in schema[word]):
            return False
    if number and not (
        value >= schema.get("minimum", value)
        and value <= schema.get("maximum", value)
        and value > schema.get("exclusiveMinimum", value - 1)
        and value < schema.get("exclusiveMaximum", value + 1)
    ):
        return False
    if isinstance(value, list):
        fixed = schema.get("prefixItems", [])
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return False
        each = [*zip(value, fixed, strict=False), *((item, schema.get("items", {})) for item in value[len(fixed) :])]
        return all(valid(item, of) for item, of in each)
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        if not set(schema.get("required", [])) <= value.keys() or (
            others is False and value.keys() - properties.keys()
        ):
            return False
        others = others if isinstance(others, dict) else {}
        return all(valid(item, properties.get(key, others)) for key, item in value.items())
    return True


def as_json(recipe):
    plain = json.loads(json.dumps(recipe.resolved()))
    return plain | {"training": {key: v for key, v in plain["training"].items() if v != "none" and v != "dr_grpo"}}


def test_the_schema_takes_every_recipe():
    whole = schema.schema()
    assert len(RECIPES) > 30
    for path in RECIPES:
        assert valid(as_json(load_recipe(path)), whole), path


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [
        ("model", "lorra", None), ("model", "lora", {"r": 0}), ("training", "learning_rat", 1.0), ("training", "learning_rate", "fast"),
        ("method", "share", 2), ("method", "name", "prefix_rtf"), ("evaluation", "samples", 0), ("evaluation", "k", [0]),
        ("data", "prompt", "chatty"), ("data", "lab", {"operation": 3}), ("reward", "deadline", 0), ("outputs", "dir", "x"),
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_check_refuses(block, key, value):
    path, whole = ROOT / "recipes" / "lab" / "prefix_rft.yaml", schema.schema()
    good = as_json(load_recipe(path))
    assert valid(good, whole)
    assert not valid({**good, block: {**good.get(block, {}), key: value}}, whole)
    with pytest.raises(RecipeError):
        load_recipe(path, [f"{block}.{key}={json.dumps(value)}"])


def test_the_check_and_the_schema_agree_on_every_kind():
    example = schema.block_schema(fields_of(Example, docs=True))
    cases = [("count", 1), ("count", 0), ("count", None), ("count", "1"), ("count", True), ("share", 1), ("share", 1.5), ("share", None),
             ("loud", True), ("loud", 1), ("kind", "b"), ("kind", "c"), ("files", ["a"]), ("files", "a"), ("between", [0, 1]),
             ("between", [0]), ("ks", [1, 2]), ("ks", [0]), ("columns", {"a": "b"}), ("columns", {"a": 1}), ("nothing", 1)]  # fmt: skip
    answers = {(key, str(value)): valid({key: value}, example) for key, value in cases}
    assert answers == {(key, str(value)): not check("b", {key: value}, fields_of(Example))[1] for key, value in cases}
    assert 8 <= sum(answers.values()) <= 13


def test_schema_prints_json():
    result = CliRunner().invoke(app, ["schema"])
    assert json.loads(result.output)["properties"].keys() == {
        "model", "data", "method", "reward", "training", "safety", "budget", "speed", "engine", "evaluation", "output",
        "include",
    }  # fmt: skip


def test_texts_below_attributes_and_in_attributes_lists_are_read():
    from prefix_rl.recipe import Reward

    docs = {name: f.doc for name, f in fields_of(Reward, docs=True).items()}
    assert (
        docs["order"]
        == "order of a bare list: ``ignore`` for 1, 2 equal to 2, 1; ``same`` to require it. Tuples always have one."
    )
    assert docs["workers"] == "Number of grading processes on each rank."
    assert all(docs.values())


# --- the command line as a whole --------------------------------------------------------------------------------------


def test_version_help_and_module():
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "prefix_rl", *arguments], capture_output=True, text=True, cwd=ROOT)

    assert run("--version").stdout == f"prefix-rl {__version__}\n"
    assert "quickstart" in run("-h").stdout
    assert "--pass-rates" in run("prepare", "-h").stdout


def test_the_help_loads_nothing_heavy():
    program = (
        "import sys\nfrom typer.testing import CliRunner\nfrom prefix_rl.cli import app\n"
        "for arguments in (['--help'], ['prepare', '--help'], ['evaluate', '--help'], ['collect', '--help']):\n"
        "    assert CliRunner().invoke(app, arguments).exit_code == 0\n"
        "print([m for m in ('torch', 'numpy', 'sympy', 'jinja2', 'transformers', 'pyarrow', 'trl') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_explicit_no_goes_before_a_preset(tmp_path):
    (tmp_path / "raw.jsonl").write_text(json.dumps({"problem": "p", "answer": "1"}) + "\n")
    from small import byte_level_bpe

    byte_level_bpe().save_pretrained(tmp_path / "model")
    result = CliRunner().invoke(
        app,
        ["prepare", str(tmp_path / "raw.jsonl"), "--output", str(tmp_path / "o.jsonl"), "--tokenizer", str(tmp_path / "model"), "--preset",
         "openr1-46k", "--no-require-demonstration"],
    )  # fmt: skip
    assert result.exit_code == 0, result.exception
    settings = json.loads((tmp_path / "o.jsonl.manifest.json").read_text())["settings"]
    assert (settings["require_demonstration"], settings["max_completion_length"]) == (False, 8192)
