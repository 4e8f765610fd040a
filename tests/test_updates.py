"""NaN and infinity end a run before they are in its weights or in a checkpoint, or are left out and counted."""

import json
import math
import shutil
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from small import arguments, byte_level_bpe, dataset, policy, token_reward
from test_train import PREFIX_RFT, run

from prefix_rl import checkpoints, methods
from prefix_rl.engines.choice import engine_for
from prefix_rl.errors import DataError, RecipeError
from prefix_rl.methods.combined import Combined
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.stage import ROLLOUTS
from prefix_rl.policy import Policy
from prefix_rl.recipe import load_recipe
from prefix_rl.safety.finite import NotFiniteError, first_not_finite
from prefix_rl.safety.settings import Safety
from prefix_rl.seam.trainer import PrefixTrainer

TOKENIZER = byte_level_bpe()
HUGE = {"learning_rate": 1e9, "max_steps": 6, "save_strategy": "steps", "save_steps": 1, "max_completion_length": 100}


def trainer(folder, method=None, safety=None, reward=token_reward, model=None, **changes):
    return PrefixTrainer(
        model=model or policy(TOKENIZER), reward_funcs=reward, args=arguments(folder, **changes),
        train_dataset=dataset(), processing_class=TOKENIZER, method=method or DrGRPO(), safety=safety,
    )  # fmt: skip


def made(name):
    cls = methods.find(name)
    own = {"pppo": {"progressive": False}, "bread": {"cut": "tokens"}}.get(name, {})
    return cls(**({"of": PrefixRL()} if issubclass(cls, Combined) else own))


ROLLING = [name for name in methods.names() if ROLLOUTS in made(name).stages.order]


def finite(folder):
    return all(value.isfinite().all() for value in load_file(folder / "model.safetensors").values())


@pytest.mark.parametrize("name", ROLLING)
def test_a_step_that_is_not_finite_ends_the_run_and_no_checkpoint_holds_it(tmp_path, name):
    with pytest.raises(NotFiniteError, match=r"^step \d: NaN or infinity in ") as error:
        trainer(tmp_path, made(name), **HUGE).train()
    step = int(str(error.value)[5])
    assert step > 1  # the first update is finite: the policy before it is
    whole = checkpoints.last_whole(tmp_path)
    assert checkpoints.facts_of(whole)["step"] == step - 1
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == [f"checkpoint-{n}" for n in range(1, step)]
    assert all(finite(folder) for folder in checkpoints.checkpoints(tmp_path))


@pytest.mark.parametrize("name", [name for name in methods.names() if name not in ROLLING])
def test_a_supervised_stage_that_is_not_finite_ends(tmp_path, name):
    given = f"method={{name: {name}, supervised: {{epochs: 3, batch_size: 2, learning_rate: 1.0e+9, warmup: 0}}}}"
    if made(name).stages.own_traces:
        pytest.skip("needs collected traces; the stage is the same")
    with pytest.raises(NotFiniteError, match=r"^supervised stage, step [2-9]: NaN or infinity in "):
        run(tmp_path / "run", given, "training.save_steps=1")
    stage = tmp_path / "run" / "sft"
    assert all(finite(folder) for folder in checkpoints.checkpoints(stage))
    assert not (stage / "final").exists()
    assert not (tmp_path / "run" / "final").exists()


@dataclass(frozen=True)
class Bad(DrGRPO):
    """Dr.GRPO, but in the steps of these numbers the loss is not finite."""

    steps: tuple[int, ...] = (1,)
    value: float = math.nan

    def extra_loss(self, micro_batch, logps, entropies):
        return logps.sum() * self.value if micro_batch.step.index in self.steps else None


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_left_out_and_counted(tmp_path, capsys, value):
    trainer(tmp_path, Bad(value=value), Safety(not_finite="skip"), logging_nan_inf_filter=True, **SAVING).train()
    assert "step 2: NaN or infinity in the loss, the gradient's norm; this update is left out (1 in a row)" in (
        capsys.readouterr().err
    )
    saved = [load_file(tmp_path / f"checkpoint-{n}" / "model.safetensors") for n in range(1, 5)]
    same = [all(b[name].equal(a[name]) for name in a) for a, b in pairwise(saved)]
    assert same == [True, False, False]  # the second update alone moved nothing
    assert [line.get("skipped_updates") for line in lines(tmp_path) if "loss" in line] == [None, 1, 1, 1]
    shutil.rmtree(tmp_path / "checkpoint-4")
    again = trainer(tmp_path, Bad(value=value), Safety(not_finite="skip"), logging_nan_inf_filter=True, **SAVING)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert lines(tmp_path)[-2]["skipped_updates"] == 1  # of the run, not of its second part
    assert math.isfinite(lines(tmp_path)[-1]["train_loss"])


def test_the_last_log_of_a_resumed_run_is_of_the_run(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3}
    moving = Bad(steps=(0, 1, 2, 3), value=1e-3)
    trainer(tmp_path, moving, **settings).train()
    of_all = lines(tmp_path)[-1]
    again = trainer(tmp_path, moving, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    logs = lines(tmp_path)
    assert [("train_loss" in line) for line in logs] == [False] * (len(logs) - 1) + [True]  # one summary
    assert logs[-1]["train_loss"] == pytest.approx(of_all["train_loss"], abs=1e-7)
    assert abs(of_all["train_loss"]) > 1e-3
    part = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())["stateful_callbacks"]["RunTotals"]
    assert 0 < part["attributes"]["seconds"] < logs[-1]["train_runtime"]
    assert logs[-1]["train_steps_per_second"] == pytest.approx(
        4 / logs[-1]["train_runtime"], rel=0.02
    )  # both are rounded


def test_so_many_in_a_row_end_the_run_all_the_same(tmp_path):
    safety = Safety(not_finite="skip", skips_in_a_row=2)
    with pytest.raises(NotFiniteError, match=r"step 5: .* after 2 updates in a row that were left out"):
        trainer(tmp_path, Bad(steps=(0, 2, 3, 4)), safety, max_steps=6).train()


def test_the_log_shows_what_there_is(tmp_path):
    trainer(tmp_path, Bad(steps=(2, 3)), Safety(not_finite="skip"), logging_nan_inf_filter=False, max_steps=4).train()
    assert [math.isnan(line["loss"]) for line in lines(tmp_path) if "loss" in line] == [False, False, True, True]
    with pytest.raises(RecipeError, match=r"logging_nan_inf_filter.*safety\.not_finite"):
        run(tmp_path / "run", "training.logging_nan_inf_filter=true")


def test_parameters_are_looked_at_before_they_are_saved(tmp_path):
    made = trainer(tmp_path, **SAVING)
    made.save_model(tmp_path / "fine")
    name, weight = list(made.model.named_parameters())[3]
    with torch.no_grad():
        weight.view(-1)[5] = -math.inf
    with pytest.raises(NotFiniteError, match=f"NaN or infinity in the parameter {name}; it was not saved"):
        made.save_model(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def broken(folder, name="model.layers.1.mlp.up_proj.weight"):
    """A policy in a folder, of which one number is NaN."""
    model = policy(TOKENIZER)
    with torch.no_grad():
        dict(model.named_parameters())[name][1, 2] = math.nan
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


FAULT = r"not finite: model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity"


def test_weights_that_are_not_finite_are_refused_by_whoever_loads_them(tmp_path):
    path = broken(tmp_path / "model")
    with pytest.raises(DataError, match=FAULT):
        trainer(tmp_path / "run", model=path).train()


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_no_engine_samples_from_weights_that_are_not_finite(tmp_path, engine):
    """``evaluate`` and ``collect`` get their engine here."""
    recipe = load_recipe(PREFIX_RFT, [f"model.name_or_path={broken(tmp_path / 'model')}", "data.train=rows.jsonl",
                                      f"engine.name={engine}", "output.dir=x"])  # fmt: skip
    with pytest.raises(DataError, match=FAULT):
        engine_for(Policy(recipe), max_length=64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_first_of_several_is_named(dtype):
    good, bad = torch.zeros(3, 2, dtype=dtype), torch.full((2, 2), torch.nan, dtype=dtype)
    assert first_not_finite([("a", good), ("b", torch.ones(2, dtype=torch.int8)), ("c", torch.zeros(0))]) is None
    assert first_not_finite([("a", good), ("b", bad), ("c", bad)]) == "b"
    good[2, 1] = -torch.inf
    assert first_not_finite([("a", good)]) == "a"
    assert (
        first_not_finite([("a", torch.tensor([torch.finfo(dtype).max, -torch.finfo(dtype).max], dtype=dtype))]) is None
    )
