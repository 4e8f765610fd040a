"""Methods that answer some questions themselves and hand on the others: the ``of`` of a recipe."""

from pathlib import Path

import pytest

from prefix_rl.errors import RecipeError
from prefix_rl.methods import names
from prefix_rl.methods.adaptive import Adaptive
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.tempo import TEMPO
from prefix_rl.recipe import load_recipe

LAB = str(Path(__file__).parents[1] / "recipes" / "lab" / "prefix_rl.yaml")


def method(*overrides):
    recipe = load_recipe(LAB, overrides)
    assert load_recipe(recipe.resolved()) == recipe  # what is written out is the same recipe again
    return recipe.method


def faults_of(*overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(LAB, overrides)
    return caught.value.faults


def test_a_block_within_the_block():
    assert method("method={name: tempo, of: {name: prefix_rl, cuts: 2}}") == TEMPO(PrefixRL(cuts=2))
    assert method("method={name: tempo, of: {name: prefix_rl}}", "method.of.cuts=2") == TEMPO(PrefixRL(cuts=2))
    deep = "method={name: tempo, weight: 2, of: {name: adaptive, rule: search, of: {name: prefix_rft}}}"
    assert method(deep, "method.of.of.prefixed=2") == TEMPO(Adaptive(PrefixRFT(prefixed=2), "search"), weight=2)


@pytest.mark.parametrize("combined", [TEMPO, Adaptive])
def test_of_every_method_it_is_said_whether_it_can_stand_there_and_why_not(combined):
    assert not set(combined.takes) & set(combined.refuses)
    silent = set(names()) - set(combined.takes) - set(combined.refuses)
    assert silent == {"arg", "bread", "questa"}  # "not tried together"


def test_without_one_the_default_stands_there():
    assert method("method={name: tempo}") == TEMPO(DrGRPO())
    assert method("method={name: adaptive}") == Adaptive(PrefixRL(cuts=1, plain=0))


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (
            ["method={name: tempo, of: {name: prefix_rl, cutss: 2}}"],
            ["method.of.cutss: no such key (did you mean cuts?); there are cut, cuts, "],
        ),
        (
            ["method={name: tempo, of: {name: prefix_rl, gamma: 1}, wieght: 2}"],
            ["method.wieght: no such key (did you mean weight?)", "method.of.gamma: is a setting of luffy"],
        ),
        (
            ["method={name: tempo}", "method.of.cuts=2"],
            ["method.of.name: is missing: give one of dr_grpo, prefix_rl, prefix_rft, uft, adaptive, sft_then_rl"],
        ),
        (["method={name: tempo, of: null}"], ["method.of.name: is missing"]),
        (["method={name: tempo, of: prefix_rl}"], ["method.of = prefix_rl: must be a block, method.of: {name: pref"]),
        (["method=tempo"], ["method = tempo: must be a block, method: {name: tempo}"]),
        (["method={name: tempo, of: {name: prefix_lr}}"], ["did you mean prefix_rl?"]),
        (["method={name: tempo, of: {name: prefix_rl, cuts: many}}"], ['method.of.cuts = "many": must be an integer']),
        (
            ["method={name: adaptive, of: {name: tempo, of: {name: prefix_rl, cutss: 2}}}"],
            ["method.of.of.cutss: no such key (did you mean cuts?)", "method.of.name = tempo: write it the other way"],
        ),
        (
            ["method={name: tempo, of: {name: adaptive, of: {name: uft}}}"],
            ["method.of.of.name = uft: its hints have a schedule of their own, in pieces. There can stand prefix_rl, pr"],
        ),
        (["method={name: prefix_rl, of: {name: uft}}"], ["method.of: is a setting of"]),
        (["method={name: tempo, off: 3}"], ["method.off: no such key (did you mean of?)"]),
    ],
    ids=lambda value: value[0][:60],
)  # fmt: skip
def test_what_is_wrong_within_is_explained(overrides, messages):
    found = faults_of(*overrides)
    assert len(found) == len(messages)
    for message in messages:
        assert any(message in fault for fault in found), message


OWN = """
from dataclasses import dataclass
from prefix_rl.methods.base import Method
from prefix_rl.methods.combined import Combined
from prefix_rl.methods.prefix_rl import PrefixRL
@dataclass(frozen=True)
class Own({base}):
    lot: int = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_methods").mkdir()
    (tmp_path / "own_methods" / "__init__.py").write_text("")
    for name, base in {"like_prefix_rl": "PrefixRL", "like_none": "Method"}.items():
        (tmp_path / "own_methods" / f"{name}.py").write_text(OWN.format(base=base))
    (tmp_path / "own_methods" / "around.py").write_text(
        OWN.format(base="Combined").replace("lot: int", "of: Method\n    lot: int").replace(" = 3", "")
        + '    takes = ("prefix_rl",)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_a_method_of_ones_own_can_stand_there_if_it_is_like_one_that_can(own):
    found = method("method={name: adaptive, of: {name: own_methods.like_prefix_rl, lot: 4, cuts: 2}}")
    assert (found.of.lot, found.of.cuts) == (4, 2)
    (fault,) = faults_of("method={name: adaptive, of: {name: own_methods.like_none}}")
    assert fault.startswith(
        "method.of.name = own_methods.like_none: a method of your own has to be a subclass of one of those"
    )


def test_a_combination_of_ones_own(own):
    found = method("method={name: own_methods.around, lot: 5, of: {name: prefix_rl, cuts: 2}}")
    assert (found.lot, found.of) == (5, PrefixRL(cuts=2))
    assert any("method.of: is missing" in fault for fault in faults_of("method={name: own_methods.around, lot: 5}"))
    assert any(
        "not tried together" in p for p in faults_of("method={name: own_methods.around, lot: 5, of: {name: uft}}")
    )
