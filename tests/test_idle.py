"""Settings of a method that nothing reads beside others are refused, with what would read them."""

from dataclasses import fields
from typing import get_args, get_type_hints

import pytest

from prefix_rl.errors import RecipeError
from prefix_rl.methods import names
from prefix_rl.methods.adaptive import Adaptive
from prefix_rl.methods.idle import idle
from prefix_rl.methods.pppo import PPPO
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.sft_loss import SFTLoss
from prefix_rl.methods.tempo import TEMPO
from prefix_rl.methods.uft import UFT
from prefix_rl.recipe import load_recipe
from prefix_rl.rollouts import Step


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (PrefixRFT(schedule="uniform", horizon=9, start=0.5), ["start", "horizon"]),
        (PrefixRFT(schedule="cosine_length", high=0.5), ["high"]),
        (PrefixRFT(tokens="none", share=0.5, scope="row"), ["share", "scope"]),
        (SFTLoss(end=0.01, warmup=3, horizon=5), ["end", "warmup", "horizon"]),
        (UFT(pieces="uniform", weight=0, horizon=300), ["horizon"]),
        (PPPO(progressive=False, patience=7), ["patience"]),
        (Adaptive(rule="search", gain=0.5), ["gain"]),
        (Adaptive(rule="interval", episodes=5, least=0.1, most=0.9), ["episodes", "least", "most"]),
        (PrefixRFT(), []),
        (PrefixRFT(horizon=9, start=0.5, high=0.8, share=0.3), []),
        (PrefixRFT(schedule="uniform", horizon=None, start=0.95), []),  # the defaults may stand there
    ],
    ids=repr,
)
def test_a_setting_that_nothing_reads_is_named(method, settings):
    found = idle(method)
    assert [fault.split(" ")[0] for fault in found] == [f"method.{name}" for name in settings]
    assert all(" says nothing with method." in fault and "leave it out, or set " in fault for fault in found)


def test_of_a_combined_method_the_inner_one_is_told():
    (fault,) = idle(TEMPO(of=PrefixRFT(schedule="uniform", start=0.5)))
    assert fault == (
        "method.of.start = 0.5 says nothing with method.of.schedule = uniform: leave it out, or set schedule = cosine_low, "
        "cosine_length"
    )


def test_a_recipe_is_told_all_of_them():
    changes = [
        "method.schedule=uniform",
        "method.start=0.5",
        "method.tokens=all",
        "method.share=0.5",
        "training.resample_rounds=2",
    ]
    with pytest.raises(RecipeError) as error:
        load_recipe("recipes/lab/prefix_rft.yaml", changes)
    said = " ".join(error.value.told)
    for name in ("method.start = 0.5", "method.share = 0.5", "training.resample_rounds = 2 does nothing without"):
        assert name in said


def test_what_is_said_to_be_unread_is_unread():
    """Lengths and tokens are the same whatever stands there; of what is read they are not."""

    def drawn(**settings):
        method = PrefixRFT(**settings)
        return [method.bounds(Step(at, 10, 0, 100)) for at in range(10)]

    assert drawn(schedule="uniform") == drawn(schedule="uniform", start=0.5, horizon=3)
    assert drawn(schedule="cosine_length") == drawn(schedule="cosine_length", high=0.5)
    assert drawn() != drawn(start=0.5)
    assert drawn() != drawn(high=0.5)


def test_every_table_names_settings_and_values_that_there_are():
    tables = 0
    for cls in (PrefixRFT, SFTLoss, UFT, PPPO, Adaptive):
        hints, own = get_type_hints(cls), {field.name for field in fields(cls)}
        for name, (other, values) in cls._read_with.items():
            assert {name, other} <= own
            assert set(values) < ({True, False} if hints[other] is bool else set(get_args(hints[other])))
            tables += 1
    assert tables > 20
    assert {"prefix_rft", "sft_loss", "uft", "pppo", "adaptive"} <= set(names())
