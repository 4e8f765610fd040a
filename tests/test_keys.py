"""``prefix-rl keys`` and the schema for editors: the declarations, and nothing beside them."""

import json

import pytest
from test_settings import valid
from typer.testing import CliRunner

from prefix_rl import methods, schema
from prefix_rl.cli import app
from prefix_rl.errors import RecipeError
from prefix_rl.fields import fields_of
from prefix_rl.keys import keys
from prefix_rl.recipe import BLOCKS, Data, model_fields, training_fields


def listed(wanted=None):
    return {row[0]: row[1:] for row in keys(wanted)[1:]}


def test_without_a_name_the_blocks_and_methods_are_listed():
    assert set(listed()) == {*BLOCKS, "include", *(f"method.{name}" for name in methods.names())}
    assert all(meaning for (meaning,) in listed().values())
    assert set(listed("method")) == set(methods.names())


def test_a_block_is_its_declaration():
    assert listed("data")["answer_guard"][:2] == ("one of mention, statement, computed, none", "mention")
    assert listed("data")["train"][1] == "required"
    assert set(fields_of(Data)) <= set(listed("data"))
    assert "lab.operations" in listed("data")
    assert set(listed("training")) == set(training_fields())
    assert set(listed("model")) == set(model_fields())


@pytest.mark.parametrize("name", methods.names())
def test_a_method_is_found_by_its_name_with_and_without_the_block(name):
    assert listed(name) == listed(f"method.{name}")
    assert set(fields_of(methods.find(name))) <= set(listed(name))


def test_one_key_and_a_block_within():
    assert list(listed("training.beta")) == ["beta"]
    assert {"lab", "lab.world"} <= set(listed("data.lab"))
    takes, default, _ = listed("method.sft.supervised.epochs")["supervised.epochs"]
    assert takes.startswith("a number of at least 0")
    assert default == "3"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("dta", "no such block (did you mean data?)"),
        ("prefix_rtf", "no such block (did you mean prefix_rft?)"),
        ("training.learning_rat", "no such key (did you mean learning_rate?)"),
        ("data.lab.operation", "no such key (did you mean lab.operations?)"),
        ("", "no such block"),
        ("..", "no such block"),
    ],
)
def test_an_unknown_name_gets_the_nearest(wanted, message):
    with pytest.raises(RecipeError) as error:
        keys(wanted)
    assert message in str(error.value)


def test_the_command_prints_the_table_and_the_schema():
    assert "answer_guard" in CliRunner().invoke(app, ["keys", "data"]).output
    one, other = (CliRunner().invoke(app, given).output for given in (["keys", "--schema"], ["schema"]))
    assert json.loads(one) == json.loads(other) == json.loads(json.dumps(schema.schema()))


def test_a_recipe_that_includes_another_is_checked_too_but_need_not_be_whole():
    whole = schema.schema()
    assert valid({"include": "a.yaml"}, whole)
    assert valid({"include": ["a.yaml", "b.yaml"], "method": {"share": 0.3}, "output": {}}, whole)
    assert valid({"include": "a.yaml", "method": {"name": "dr_grpo"}}, whole)
    assert not valid({"include": 3}, whole)
    assert not valid({"include": "a.yaml", "method": {"shar": 0.3}}, whole)
    assert not valid({"include": "a.yaml", "method": {"name": "prefix_rft", "share": 3}}, whole)
    assert not valid({"include": "a.yaml", "training": {"learning_rat": 1e-6}}, whole)
    assert not valid({"method": {"name": "dr_grpo"}}, whole)  # alone it lacks model, data and output
    assert not valid(
        {"model": {}, "data": {"train": "lab"}, "method": {"name": "dr_grpo"}, "output": {"dir": "x"}}, whole
    )


def test_a_setting_of_methods_leads_to_them():
    with pytest.raises(RecipeError, match=r"method\.cut is a setting of arg, bread, .*: `prefix-rl keys arg\.cut`"):
        keys("method.cut")
