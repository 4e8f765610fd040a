"""Whole steps of real runs against :mod:`oracle`: every method at its defaults, and every setting that changes the loss.

A run trains by plain gradient descent, so that each step's gradient is what its parameters moved by; the oracle's is
taken from the rollouts that the run saved, at the parameters that the step began with.
"""

import math
from dataclasses import dataclass

import oracle
import pytest
import torch
from datasets import Dataset
from small import arguments, byte_level_bpe, dataset, policy, token_reward
from transformers import Qwen2ForCausalLM, TrainerCallback
from trl import GRPOTrainer

from prefix_rl.errors import RecipeError
from prefix_rl.methods.adaptive import Adaptive
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.pppo import PPPO
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.relift import ReLIFT
from prefix_rl.methods.sft_loss import SFTLoss
from prefix_rl.methods.sft_then_rl import SFTThenRL
from prefix_rl.methods.tempo import TEMPO
from prefix_rl.methods.uft import UFT
from prefix_rl.recipe import load_recipe
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.seam.trainer import PrefixTrainer

TOKENIZER = byte_level_bpe()
RATE = 0.1  # of the gradient descent
GENTLE = 0.02  # where a step must not carry ratios out of their range
RFT = PrefixRFT(horizon=1, end=0.3, high=0.7)


class Steps(TrainerCallback):
    """The parameters before each optimizer step, and those after the last."""

    def __init__(self):
        self.parameters = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.parameters.append([p.detach().clone() for p in model.parameters()])

    def on_train_end(self, args, state, control, model=None, **kwargs):
        self.on_step_begin(args, state, control, model)


def some_end(monkeypatch, every=3):
    """Every third continuation ends; an untrained policy would run into the budget nearly always."""
    original = GRPOTrainer._generate_single_turn

    def generate(self, prompts, *args, **kwargs):
        found, logps = original(self, prompts, *args, **kwargs)
        eos = self._tokenizer.eos_token_id
        ended = [[*(t for t in ids if t != eos)][: 4 + i % 5] for i, ids in enumerate(found)]
        return [[*ids, eos] if i % every == 0 else ids for i, ids in enumerate(ended)], logps

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)


class Run:
    """A finished run: its folder, parameters by step, and the rewards that were asked for in each generation."""

    def __init__(
        self, folder, method, steps=2, reward=token_reward, options=None, rate=RATE, data=None, **changes
    ):  # fmt: skip
        policy(TOKENIZER).save_pretrained(folder / "base")
        self.method, self.folder, self.rate, self.rewards = method, folder, rate, []

        def noted(completions, completion_ids, **columns):
            found = reward(completions=completions, completion_ids=completion_ids, **columns)
            self.rewards.append(list(zip(map(list, completion_ids), found, strict=True)))
            return found

        changes = {"max_completion_length": 40, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
                   **changes}  # fmt: skip
        self.steps = Steps()
        self.made = PrefixTrainer(
            model=Qwen2ForCausalLM.from_pretrained(folder / "base"),
            reward_funcs=noted,
            args=arguments(
                folder, optim="sgd", learning_rate=rate, lr_scheduler_type="constant", max_grad_norm=0.0,
                max_steps=steps, **changes,
            ),
            train_dataset=data or dataset(),
            processing_class=TOKENIZER,
            method=method,
            callbacks=[self.steps],
            rollouts_every=1,
            **(options or {}),
        )  # fmt: skip
        self.made.train()
        self.args = self.made.args

    def settings(self, generated, **changes):
        args = self.args
        return oracle.Settings(
            **{
                "group_size": args.num_generations, "budget": args.max_completion_length, "step": generated,
                "total": args.max_steps, "loss_type": args.loss_type, "level": args.importance_sampling_level,
                "low": args.epsilon, "high": args.epsilon if args.epsilon_high is None else args.epsilon_high,
                "beta": args.beta, "entropy_coef": args.entropy_coef,
                "mask_truncated": args.mask_truncated_completions, "kl": self.made.kl_on,
                "without_signal": self.made._deciding.without_signal, "corrected": args.use_bias_correction_kl,
                **changes,
            }
        )  # fmt: skip

    def policy(self, step):
        """The policy with which a step began, in double precision."""
        made = Qwen2ForCausalLM.from_pretrained(self.folder / "base")
        for parameter, value in zip(made.parameters(), self.steps.parameters[step], strict=True):
            parameter.data.copy_(value)
        return made.double().eval()

    def measured(self, step):
        before, after = self.steps.parameters[step : step + 2]
        return torch.cat([((b - a) / self.rate).double().flatten() for b, a in zip(before, after, strict=True)])

    def expected(self, step, **changes):
        """The oracle's gradient, and the rollouts of the step."""
        generated = step // self.args.num_iterations * self.args.num_iterations
        rollouts = oracle.read(read_rollouts(self.folder, generated), TOKENIZER)
        before, first, now = self.policy(generated), self.policy(0), self.policy(step)
        with torch.no_grad():
            found = [oracle.scores(before, r) for r in rollouts]
            base = [oracle.scores(first, r)[0] for r in rollouts]
        oracle.loss(
            now, self.method, rollouts, self.settings(generated, **changes), old=[row for row, _ in found],
            entropies=[row for _, row in found], reference=base,
        ).backward()  # fmt: skip
        return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                          for p in now.parameters()]), rollouts  # fmt: skip


def off(measured, expected):
    """By how much one gradient is off, relative to the other."""
    return float((measured - expected).norm() / expected.norm())


def agrees(run, **changes):
    """Every step's gradient is the oracle's; returns the rollouts of all steps."""
    everything = []
    for step in range(run.args.max_steps):
        expected, rollouts = run.expected(step, **changes)
        assert expected.norm() > 1e-3
        # A parameter of 0.5 is rounded by 3e-8, and so is what it moved by; with 17,000 of them and a norm of 0.1 or more
        # that is 2e-5 over the rate
        error = float((run.measured(step) - expected).norm())
        assert error < 2e-5 / run.rate * max(float(expected.norm()), 0.1), f"step {step}: {error}"
        everything += rollouts
    return everything


# --- every method as it is shipped ------------------------------------------------------------------------------------

METHODS = [
    DrGRPO(), SFTThenRL(), PrefixRFT(), PrefixRFT(tokens="all"), PrefixRFT(tokens="none"),
    PrefixRFT(tokens="low_entropy", scope="row"), PrefixRFT(credit="unprefixed"), PrefixRFT(credit="released"),
    PrefixRL(), PrefixRL(plain=0), LUFFY(), SFTLoss(), SFTLoss(tokens="uncertain"),
    SFTLoss(weight=0.9, schedule="chord", warmup=1), UFT(), UFT(weight=0.5), UFT(pieces="uniform", weight=0.0),
    PrefixRFT(cut="entropy"), UFT(cut="surprisal", weight=0.5),
    Adaptive(), Adaptive(rule="setpoint"), Adaptive(of=PrefixRFT()), TEMPO(of=DrGRPO()), TEMPO(of=PrefixRL()), TEMPO(of=RFT),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_whole_step_of_every_method_is_the_oracles(tmp_path, method):
    rollouts = agrees(Run(tmp_path, method))
    assert any(r.prefix for r in rollouts) == method.needs.prefixes or isinstance(method, UFT | Adaptive | PrefixRL)


@pytest.mark.parametrize("method", [RFT, PrefixRL(plain=0), LUFFY(), SFTLoss(), UFT(weight=0.5)], ids=repr)
def test_accumulated_and_repeated_steps_are_the_oracles(tmp_path, method):
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_iterations": 2}
    agrees(Run(tmp_path, method, steps=4, **sizes))


def test_a_supervised_step_of_relift_is_the_oracles(tmp_path):
    failing = lambda completions, completion_ids, **k: [0.0] * len(completions)  # noqa: E731
    run = Run(tmp_path, ReLIFT(), steps=2, reward=failing)
    expected, rollouts = run.expected(1)
    assert all(r.whole for r in rollouts)
    assert off(run.measured(1), expected) < 2e-4
    agrees(Run(tmp_path / "plain", ReLIFT(), steps=1))  # a step of rollouts


@pytest.mark.parametrize(
    "method",
    [PPPO(progressive=False, share=0.35), PPPO(progressive=False, share=0.5, normalize=False, normalizer="constant")],
    ids=repr,
)
def test_a_whole_step_of_pppo_is_the_oracles(tmp_path, method):
    run = Run(tmp_path, method, steps=1)
    rollouts = oracle.read(read_rollouts(tmp_path, 0), TOKENIZER)
    graded, *passes = run.rewards
    assert [ids for ids, _ in graded] == [r.ids for r in rollouts]
    further = [pair for some in passes for pair in some]
    assert len(further) == 8 * len(rollouts)
    continued = []
    for i, rollout in enumerate(rollouts):
        mine = further[8 * i : 8 * i + 8]
        beginning = rollout.ids[: math.floor(method.share * len(rollout.ids) + 1e-9)]
        assert all(ids[: len(beginning)] == beginning for ids, _ in mine)
        continued.append([reward for _, reward in mine])
    agrees(run, continued=continued)


def test_the_oracle_tells_methods_apart(tmp_path):
    run = Run(tmp_path, RFT, steps=1)
    right, _ = run.expected(0)
    run.method = PrefixRFT(horizon=1, end=0.3, high=0.7, tokens="all")
    other, _ = run.expected(0)
    assert off(other, right) > 0.05


# --- off the defaults -------------------------------------------------------------------------------------------------

INJECTING = [PrefixRL(plain=0), RFT, UFT(weight=0.0, start=0.5), SFTLoss(), LUFFY()]


@pytest.mark.parametrize("method", [DrGRPO(), *INJECTING], ids=repr)
def test_the_kl_falls_where_the_surrogate_is(tmp_path, method):
    run = Run(tmp_path, method, steps=2, beta=0.5)
    agrees(run)
    without, _ = run.expected(1, beta=0.0)
    assert off(without, run.expected(1)[0]) > 1e-3  # the term is there


def test_the_kl_of_pppo_falls_on_the_beginning_alone(tmp_path):
    # both are a mean over all tokens, of which half move
    agrees(Run(tmp_path, PPPO(progressive=False, share=0.5, continuations=0), steps=2, beta=0.5))


CHORD = SFTLoss(schedule="chord", weight=0.9, end=0.3)


@pytest.mark.parametrize(
    ("method", "changes", "options"),
    [
        (CHORD, {"beta": 0.5}, {}), (CHORD, {"beta": 0.5, "loss_type": "dapo"}, {}), (CHORD, {"entropy_coef": 0.5}, {}),
        (CHORD, {"beta": 0.5, "num_iterations": 2}, {"kl_on": "all"}),
        (PPPO(progressive=False, share=0.5, continuations=0), {"beta": 0.5, "num_iterations": 2}, {"kl_on": "all"}),
    ],
    ids=repr,
)  # fmt: skip
def test_what_scales_the_surrogate_scales_its_kl_and_its_bonus(tmp_path, method, changes, options):
    agrees(Run(tmp_path, method, steps=2, options=options, rate=GENTLE, **changes))


@pytest.mark.parametrize("loss_type", ["dr_grpo", "dapo"])
def test_a_supervised_term_keeps_its_weight_where_groups_are_left_out(tmp_path, loss_type):
    """One of two problems has no demonstration and nothing to learn: the other's term is a mean over its own tokens."""
    data = Dataset.from_list([row if i % 2 else {**row, "demonstrations": []} for i, row in enumerate(dataset())])
    even = {row["prompt"] for row in data if not row["demonstrations"]}

    def reward(prompts, completions, completion_ids, **columns):
        found = token_reward(completions, completion_ids)
        return [1.0 if prompt in even else value for prompt, value in zip(prompts, found, strict=True)]

    run = Run(
        tmp_path, SFTLoss(weight=2.0), steps=2, reward=reward, data=data, loss_type=loss_type,
        per_device_train_batch_size=16, options={"groups_without_signal": "skip"},
    )  # fmt: skip
    agrees(run)
    missing = [entry["signal/missing_share"] for entry in run.made.state.log_history if "loss" in entry]
    assert any(0 < share < 1 for share in missing)


@pytest.mark.parametrize("method", [DrGRPO(), *INJECTING], ids=repr)
def test_the_ratio_of_a_sequence_runs_over_the_tokens_that_move(tmp_path, method):
    run = Run(tmp_path, method, steps=2, importance_sampling_level="sequence", num_iterations=2, rate=GENTLE)
    agrees(run)
    by_token, _ = run.expected(1, level="token")
    assert off(by_token, run.expected(1)[0]) > 1e-3


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "cispo", "sapo", "luspo", "vespo"])
@pytest.mark.parametrize("method", [DrGRPO(), PrefixRL(plain=0), RFT], ids=repr)
def test_other_losses_count_the_tokens_that_move(tmp_path, method, loss_type):
    changes = {"epsilon_high": 5.0} if loss_type == "cispo" else {}
    agrees(Run(tmp_path, method, steps=2, loss_type=loss_type, num_iterations=2, rate=GENTLE, **changes))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_other_losses_accumulate(tmp_path, loss_type):
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    agrees(Run(tmp_path, PrefixRL(plain=0), steps=1, loss_type=loss_type, **sizes))


def test_losses_in_which_the_extra_term_has_no_share_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="loss_type = grpo"):
        Run(tmp_path, LUFFY(), steps=1, loss_type="grpo")


@pytest.mark.parametrize("method", [DrGRPO(), *INJECTING], ids=repr)
def test_the_entropy_bonus_falls_on_what_the_policy_wrote(tmp_path, method):
    run = Run(tmp_path, method, steps=2, entropy_coef=0.5)
    agrees(run)
    without, _ = run.expected(1, entropy_coef=0.0)
    assert off(without, run.expected(1)[0]) > 1e-3


TRUNCATED = [
    DrGRPO(), RFT, PrefixRFT(horizon=1, end=0.3, high=0.7, credit="unprefixed"), PrefixRL(plain=0), UFT(weight=0.5),
    PrefixRFT(horizon=1, end=0.3, high=0.7, credit="released"), TEMPO(of=DrGRPO()), TEMPO(of=PrefixRL(plain=0)), LUFFY(),
    SFTLoss(), PrefixRFT(horizon=1, end=0.3, high=0.7, prefixed=2, credit="unprefixed"),
    PPPO(progressive=False, share=0.5, continuations=0),
]  # fmt: skip


@pytest.mark.parametrize("method", TRUNCATED, ids=repr)
def test_a_rollout_that_was_cut_off_moves_nothing_and_is_still_what_it_was(tmp_path, monkeypatch, method):
    some_end(monkeypatch)
    rollouts = agrees(Run(tmp_path, method, steps=2, mask_truncated_completions=True))
    assert {r.ended for r in rollouts} == {True, False}
    assert all(r.ids for r in rollouts)  # saved whole
    if method.needs.prefixes and not method.needs.whole:
        assert any(r.prefix and not r.ended for r in rollouts)  # one that started from a prefix was cut off


@pytest.mark.parametrize("corrected", [True, False])
def test_the_kl_can_be_had_on_the_context_too(tmp_path, corrected):
    changes = {"beta": 0.5, "use_bias_correction_kl": corrected, "num_iterations": 2}
    run = Run(tmp_path, PrefixRL(plain=0), steps=2, options={"kl_on": "all"}, **changes)
    agrees(run)
    alone, _ = run.expected(1, kl="moving")
    assert off(alone, run.expected(1)[0]) > 1e-3


@pytest.mark.parametrize(
    ("kl_on", "changes", "message"),
    [
        ("all", {}, "says nothing with beta = 0"),
        ("all", {"beta": 0.1, "loss_type": "grpo"}, "needs loss_type = dr_grpo"),
        ("all", {"beta": 0.1, "importance_sampling_level": "sequence"}, "importance_sampling_level = token"),
        ("prefix", {"beta": 0.1}, "there are moving and all"),
    ],
)
def test_a_kl_that_could_not_fall_there_is_refused(tmp_path, kl_on, changes, message):
    with pytest.raises(RecipeError, match=message):
        Run(tmp_path, PrefixRL(plain=0), options={"kl_on": kl_on}, **changes)


def test_a_recipe_says_where_the_kl_falls():
    options = ["training.beta=0.001", "training.kl_on=all"]
    recipe = load_recipe("recipes/lab/prefix_rl.yaml", options)
    assert recipe.training_value("kl_on") == "all"
    assert "kl_on" not in recipe.arguments
    assert load_recipe("recipes/lab/prefix_rl.yaml").training_value("kl_on") == "moving"
    assert load_recipe(recipe.resolved()) == recipe
    with pytest.raises(RecipeError, match="one of moving, all"):
        load_recipe("recipes/lab/prefix_rl.yaml", ["training.kl_on=prefix"])


# --- tokens that are context ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WeightOnContext(PrefixRL):
    """Credit on exactly those tokens that do not move."""

    def advantages(self, rollouts):
        return rollouts.prefix_mask.float()


@pytest.mark.parametrize("loss_type", ["dr_grpo", "grpo", "bnpo", "dapo", "cispo", "sapo", "luspo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_credit_on_the_context_alone_moves_nothing_at_all(tmp_path, loss_type, level):
    run = Run(tmp_path, WeightOnContext(plain=0), steps=2, loss_type=loss_type, importance_sampling_level=level)
    assert any(r.prefix for r in oracle.read(read_rollouts(tmp_path, 0), TOKENIZER))
    assert run.measured(0).abs().max() == 0
    assert run.measured(1).abs().max() == 0


def test_the_share_that_a_controller_is_told_is_exact(tmp_path):
    # In single precision the share of some lengths is just below k / n, and floor(share * n) a token less
    failing = lambda completions, completion_ids, **k: [0.0] * len(completions)  # noqa: E731
    run = Run(tmp_path, Adaptive(), steps=1, reward=failing)
    _, own = run.method._state(run.made._saved.memory)
    seen = {r["row"]: r["prefix_tokens"] / r["demonstration_tokens"] for r in read_rollouts(tmp_path, 0)}
    assert {int(problem): low for problem, (low, _) in own.items()} == seen
    assert any(share % 1 for share in seen.values())
