"""Training with the fast path ends at the parameters of training without it."""

import time
from functools import partial
from itertools import pairwise

import pytest
import torch
from small import arguments, byte_level_bpe, policy
from test_trainer import parameters, trainer
from transformers import TrainerCallback

from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.sft_loss import SFTLoss
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.speed.forward import Encoder
from prefix_rl.speed.order import may_reorder
from prefix_rl.speed.settings import OFF, Speed

START = torch.cat([p.detach().flatten() for p in policy(byte_level_bpe()).parameters()])
PREFIXES = PrefixRFT(horizon=1, start=0.3, end=0.3, high=0.9)  # from the first step on, in one rollout of a group


def trained(folder, method, speed, **changes):
    options = {"speed": speed, "rollouts_every": 1, **changes.pop("options", {})}
    made = trainer(
        folder, method, options=options, **{"max_steps": 2, "optim": "sgd", "max_completion_length": 40, **changes}
    )
    made.train()
    return made


def assert_same_training(tmp_path, method, start=None, **changes):
    """Trains twice; gives back the trainer with the fast path."""
    plain, fast = (
        trained(tmp_path / name, method, speed, **{k: v() if callable(v) else v for k, v in changes.items()})
        for name, speed in (("plain", OFF), ("fast", Speed(verify="always")))
    )
    for step in {int(path.stem[5:]) for path in (tmp_path / "plain" / "rollouts").iterdir()}:
        one, other = (read_rollouts(tmp_path / name, step) for name in ("plain", "fast"))
        assert [r["completion_ids"] for r in one] == [r["completion_ids"] for r in other]
        assert [r["segments"] for r in one] == [r["segments"] for r in other]  # the same tokens kept
    moved = (parameters(plain) - (START if start is None else start)).norm()
    assert moved > 1e-3
    assert (parameters(fast) - parameters(plain)).norm() < 1e-4 * moved
    assert fast._encoder.tokens["encoded"] > 0
    assert plain._encoder.tokens["encoded"] == 0
    for key in ("loss", "grad_norm"):
        logs = [[m[key] for m in t.state.log_history if key in m] for t in (plain, fast)]
        assert logs[0] == pytest.approx(logs[1], rel=1e-3, abs=1e-5)
    return fast


def test_noise_on_the_embeddings_takes_the_plain_path_and_says_so(tmp_path):
    with pytest.warns(
        UserWarning, match="takes the plain path, since its embeddings get noise .training.neftune_noise"
    ):
        noisy = trained(tmp_path / "fast", DrGRPO(), Speed(order=False, shared_prefill=False), neftune_noise_alpha=5.0)
    plain = trained(tmp_path / "plain", DrGRPO(), OFF, neftune_noise_alpha=5.0)
    assert noisy._encoder.tokens["encoded"] == 0
    assert parameters(noisy).equal(parameters(plain))  # the same noise, padding included


@pytest.mark.parametrize(
    "method", [PREFIXES, PrefixRL(), DrGRPO(), LUFFY(), SFTLoss(weight=0.7)], ids=lambda m: type(m).__name__
)
def test_two_steps_end_at_the_parameters_of_the_plain_path(tmp_path, method):
    made = assert_same_training(tmp_path, method)
    tokens = made._encoder.tokens
    assert tokens["encoded"] < (0.7 if isinstance(method, PrefixRL) else 1) * tokens["rows"] <= tokens["padded"]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_iterations": 2, "max_steps": 4},
        {"steps_per_generation": 4, "max_steps": 4},  # old log-probabilities, two optimizer steps a generation
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
        {"top_entropy_quantile": 0.5},
        {"entropy_coef": 0.01},
        {"importance_sampling_level": "sequence", "num_iterations": 2, "max_steps": 4},
        {"mask_truncated_completions": True},
    ],
    ids=str,
)
def test_settings_of_trl_keep_their_meaning(tmp_path, changes):
    assert_same_training(tmp_path, PREFIXES, **changes)


def test_lora_with_a_reference(tmp_path):
    peft = pytest.importorskip("peft")

    def adapters():
        torch.manual_seed(4)
        return {"peft_config": peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")}

    plain = trained(tmp_path / "start", PREFIXES, OFF, options=adapters(), beta=0.1, learning_rate=0.0)
    made = assert_same_training(
        tmp_path, PREFIXES, start=parameters(plain), options=adapters, beta=0.1, learning_rate=0.5
    )
    assert [m["kl"] for m in made.state.log_history if "kl" in m][-1] > 0


def test_a_reference_model_of_its_own(tmp_path):
    policy(byte_level_bpe()).save_pretrained(tmp_path / "model")
    made = assert_same_training(
        tmp_path, PREFIXES, model=str(tmp_path / "model"), beta=0.1, num_iterations=2, max_steps=4
    )
    assert made.ref_model is not None


def test_rows_that_share_meet_inside_their_optimizer_step(tmp_path):
    runs = []
    for order in (False, True):
        made = trainer(
            tmp_path / str(order), PrefixRL(), steps_per_generation=8, gradient_accumulation_steps=4,
            options={"speed": Speed(order=order, balance=False)},
        )  # fmt: skip
        made.model.train()
        made.state.max_steps, made.current_gradient_accumulation_steps = 4, 4
        torch.manual_seed(0)
        made._prepare_inputs([made.train_dataset[i // 4] for i in range(32)])
        runs.append(made._buffered_inputs)

    def rows(batches):
        return [
            (b["prompt_ids"][i].tolist(), b["completion_ids"][i].tolist(), b["advantages"][i].tolist(),
             b["prefix_mask"][i].tolist(), b["update_mask"][i].tolist(), float(b["rewards"][i]))
            for b in batches for i in range(len(b["prompt_ids"]))
        ]  # fmt: skip

    shuffled, ordered = runs
    assert [len(b["prompt_ids"]) for b in ordered] == [4] * 8
    for window in (slice(0, 4), slice(4, 8)):
        assert sorted(rows(shuffled[window])) == sorted(rows(ordered[window]))
        assert rows(shuffled[window]) != rows(ordered[window])

    def prompts(batches):
        return sum(len({tuple(p) for p in b["prompt_ids"].tolist()}) for b in batches)

    assert prompts(ordered) < prompts(shuffled)


@pytest.mark.parametrize("method", [PREFIXES, LUFFY(), SFTLoss(weight=0.7)], ids=lambda m: type(m).__name__)
def test_micro_batches_of_unequal_numbers_of_rows_train_the_same(tmp_path, monkeypatch, method):
    monkeypatch.setattr("prefix_rl.speed.forward.balanced", lambda ranks, parts: [1, 7, 3, 5])
    changes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 1}
    sizes, ends = [], []
    for balance in (False, True):
        made = trained(tmp_path / str(balance), method, Speed(balance=balance), **changes)
        sizes.append([len(batch["completion_ids"]) for batch in made._buffered_inputs])
        ends.append((parameters(made), made.state.log_history[0]))
    assert sizes == [[4, 4, 4, 4], [1, 7, 3, 5]]
    (equal, equal_log), (cut, cut_log) = ends
    assert (equal - START).norm() > 1e-3
    assert (cut - equal).norm() < 1e-6 * equal.norm()
    for key in ("loss", "grad_norm"):
        assert cut_log[key] == pytest.approx(equal_log[key], rel=1e-4, abs=1e-7)


def test_rows_that_are_not_packed_stay_in_equal_micro_batches(tmp_path):
    made = trainer(tmp_path, DrGRPO(), gradient_accumulation_steps=2)
    rows = [[1] * 30, [2], [3], [4]]
    sizes = partial(made._encoder.sizes, made.model, made.model, made._ranks.objects)
    assert sizes(rows, 2) == [1, 3]
    made.model.config.sliding_window, made.model.config.layer_types = 20, ["sliding_attention"] * 2
    assert sizes(rows, 2) is None


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"top_entropy_quantile": 0.5}, False),
        ({"entropy_coef": 0.01}, False),
        ({"use_adaptive_entropy": True}, False),
        ({"loss_type": "bnpo"}, False),
    ],
)
def test_rows_stay_where_the_loss_is_not_indifferent(tmp_path, changes, may):
    assert may_reorder(arguments(tmp_path, **changes), has_images=False) is may
    assert not may_reorder(arguments(tmp_path, **changes), has_images=True)


def test_the_share_of_the_tokens_that_were_encoded_and_that_of_grading_are_logged(tmp_path):
    took = []

    def slow_reward(completions, **kwargs):
        began = time.perf_counter()
        time.sleep(0.2)
        took.append(time.perf_counter() - began)
        return [float(i % 2) for i in range(len(completions))]

    class Tokens(TrainerCallback):
        seen = ({"encoded": 0, "padded": 0},)

        def on_step_end(self, *args, **kwargs):
            self.seen = (*self.seen, dict(made._encoder.tokens))

    made, tokens = trainer(tmp_path, PrefixRL(), max_steps=2, reward=slow_reward), Tokens()
    made.add_callback(tokens)
    made.train()
    logs = [log for log in made.state.log_history if "step_time" in log]
    for log, seconds in zip(logs, took, strict=True):  # what else is counted is little of the rest of the step
        graded = log["speed/grading_share"] * log["step_time"]
        assert seconds * 0.99 <= graded <= seconds + (log["step_time"] - seconds) / 2
    of_a_step = [{k: b[k] - a[k] for k in ("encoded", "padded")} for a, b in pairwise(tokens.seen)]
    assert [log["speed/encoded_share"] for log in logs] == [
        pytest.approx(step["encoded"] / step["padded"], abs=1e-4) for step in of_a_step
    ]
    assert of_a_step[0]["encoded"] * of_a_step[1]["padded"] != of_a_step[1]["encoded"] * of_a_step[0]["padded"]
    off = trainer(tmp_path, PrefixRL(), max_steps=1, options={"speed": OFF})
    off.train()
    assert not any("speed/encoded_share" in log for log in off.state.log_history)


def test_the_fast_path_is_what_a_trainer_takes_by_itself(tmp_path):
    made = trainer(tmp_path, DrGRPO())
    assert made.speed == Speed()
    assert isinstance(made._encoder, Encoder)
