"""PPPO: which tokens move, when the share grows, and credit from further continuations."""

import dataclasses
from fractions import Fraction

import pytest
import torch
from flow import watched
from hypothesis import given
from hypothesis import strategies as st
from small import dataset, lora, policy, token_reward, trains_adapters_alone, with_chat_template
from test_methods import rollouts
from test_trainer import TOKENIZER, FakeEngine, generation, gradient_of, loss_gradient, parameters, reference_logps
from test_trainer import trainer as make
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from prefix_rl.costs import Cost
from prefix_rl.errors import RecipeError
from prefix_rl.methods.base import Further
from prefix_rl.methods.pppo import PPPO
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.recipe import load_recipe
from prefix_rl.rollouts import Step

CONSTANT = PPPO(progressive=False, share=0.4, continuations=2)
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "eval_data": dataset(2, demonstrations=False)}


def trainer(folder, method=CONSTANT, **options):
    return make(folder, method, **options)


def step(memory=None, budget=10):
    return Step(0, 100, 0, budget, memory or {})


def shares(method, rewards):
    """The share after each evaluation."""
    memory, found = {}, [method.share_now({})]
    for reward in rewards:
        memory = method.remember_evaluation(memory, reward)
        found.append(method.share_now(memory))
    return found


# --- which tokens move ------------------------------------------------------------------------------------------------


def test_the_first_share_of_each_rollout_moves():
    batch = rollouts([1.0, 0, 0, 1], [0] * 4, width=10)
    batch.completion_mask[1, 4:] = False
    batch = dataclasses.replace(batch, step=step())
    for share, first, second in ((0.15, 1, 0), (0.35, 3, 1), (0.5, 5, 2), (1.0, 10, 4)):  # floor of 10 and of 4 shares
        mask = PPPO(share=share, progressive=False).update_mask(batch, None)
        assert mask[0].tolist() == [True] * first + [False] * (10 - first)
        assert mask[1].tolist() == [True] * second + [False] * (10 - second)
        assert PPPO(share=share, progressive=False).beginnings(batch).tolist() == [first, second, first, first]


def test_the_share_in_memory_decides():
    batch = dataclasses.replace(rollouts([1.0, 0, 0, 1], [0] * 4, width=20), step=step({"rises": 3}))
    assert PPPO().update_mask(batch, None).sum(dim=1).tolist() == [6] * 4  # 0.15 + 3 * 0.05 = 0.3 of 20, exactly
    assert PPPO().metrics({"rises": 3}) == {"share": 0.3}
    assert PPPO(progressive=False).update_mask(batch, None).sum(dim=1).tolist() == [3] * 4


# --- when it grows ----------------------------------------------------------------------------------------------------


def test_the_share_grows_when_evaluations_stall_and_stops_at_the_most():
    rewards = [0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.0]
    #          best best  1    2^   best  1    2^   1    2^   1    2^   1    2 (at the most)
    assert shares(PPPO(compare="best", patience=2), rewards) == [
        0.15, 0.15, 0.15, 0.15, 0.2, 0.2, 0.2, 0.25, 0.25, 0.3, 0.3, 0.35, 0.35, 0.35
    ]  # fmt: skip
    rewards = [0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.25, 0.26]
    #          gain gain  ^    ^   gain  ^     ^ (the most) gain over the one before, though not over the best
    assert shares(PPPO(), rewards) == [0.15, 0.15, 0.15, 0.2, 0.25, 0.25, 0.3, 0.35, 0.35]
    assert shares(PPPO(most=0.5), rewards)[-2:] == [0.35, 0.35]
    assert shares(PPPO(most=0.5, compare="best", patience=1), rewards)[-2:] == [0.35, 0.4]
    assert shares(PPPO(), [0.0] * 7) == [0.15, 0.15, 0.2, 0.25, 0.3, 0.35, 0.35, 0.35]
    assert shares(PPPO(progressive=False), [0.0] * 7) == [0.15] * 8


@given(
    rewards=st.lists(st.integers(0, 6).map(lambda n: n / 8), max_size=30), patience=st.integers(1, 4),
    share=st.sampled_from([0.05, 0.15, 0.3]), compare=st.sampled_from(["previous", "best"]),
)  # fmt: skip
def test_the_share_equals_a_slow_count(rewards, patience, share, compare):
    now, waited, expected = Fraction(str(share)), 0, [share]
    for i, reward in enumerate(rewards):
        earlier = rewards[:i][-1:] if compare == "previous" else rewards[:i]
        if not earlier or reward > max(earlier):
            waited = 0
        else:
            waited += 1
            if waited == patience:
                now, waited = min(now + Fraction("0.05"), Fraction("0.35")), 0
        expected.append(float(now))
    assert shares(PPPO(share=share, patience=patience, compare=compare), rewards) == expected


# --- who gets credit --------------------------------------------------------------------------------------------------

REWARDS = [1.0, 0.0, 0.0, 1.0]
CONTINUED = [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, torch.nan]]
# R = 3, 1, 0 and (1 + 1) * 3 / 2 = 3; mean 1.75; squares 1.5625 + 0.5625 + 3.0625 + 1.5625 = 6.75, / 3 = 2.25: std 1.5


def credit(method, rewards=REWARDS, continued=CONTINUED):
    batch = dataclasses.replace(rollouts(rewards, [0] * 4), step=step())
    batch.completion_mask[1, 4:] = False
    if continued is not None:
        batch = dataclasses.replace(batch, continued=torch.tensor(continued))
    return method.advantages(batch)


def test_credit_accumulates_over_continuations():
    found = credit(PPPO(normalize=False, normalizer="constant"))
    assert found[:, 0].tolist() == [1.25, -0.75, -1.75, 1.25]
    assert found[1].tolist() == [-0.75] * 4 + [0.0] * 2
    found = credit(PPPO(normalizer="constant"))
    assert found[:, 0].tolist() == pytest.approx([1.25 / 1.5, -0.75 / 1.5, -1.75 / 1.5, 1.25 / 1.5], abs=1e-5)


def test_the_loss_is_a_mean_over_all_tokens_or_over_the_budget():
    batch = dataclasses.replace(rollouts(REWARDS, [0] * 4), step=step())
    batch.completion_mask[1, 4:] = False
    # 4 rows * 10 tokens of budget, 6 + 4 + 6 + 6 = 22 tokens: 1 / 40 becomes 1 / 22
    assert PPPO().scale(batch) == 40 / 22
    assert PPPO(normalizer="constant").scale(batch) == 1


def test_credit_without_continuations_is_the_groups():
    assert credit(PPPO(normalize=False, normalizer="constant"), continued=None)[:, 0].tolist() == [0.5, -0.5, -0.5, 0.5]
    # std of 1, 0, 0, 1: sqrt(4 * 0.25 / 3) = 0.57735
    found = credit(PPPO(normalizer="constant"), continued=None)[:, 0].tolist()
    assert found == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-4)


def test_a_group_of_equal_rewards_and_what_could_not_be_scored_get_no_credit():
    assert not credit(PPPO(), [1.0] * 4, [[1.0, 0.0]] * 4).any()
    found = credit(PPPO(normalize=False, normalizer="constant"), [torch.nan, 0, 0, 1], [[torch.nan] * 2, [0.0] * 2, [0.0] * 2,
                                                                                        [1.0] * 2])  # fmt: skip
    assert found[:, 0].tolist() == [0, -1, -1, 2]  # 0, 0, 3: mean 1


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "training", "message"),
    [
        (PPPO(), {"eval_strategy": "no"}, "training.eval_strategy = no: set training.eval_strategy = steps"),
        (PPPO(share=0.5), {}, "method.share = 0.5 is above method.most = 0.35"),
        (PPPO(), {"loss_type": "dapo"}, "loss_type = dapo has a normalizer of its own"),
        (PPPO(), {"entropy_coef": 0.1}, "an entropy bonus is one already"),
        (PPPO(), {"use_adaptive_entropy": True}, "an entropy bonus is one already"),
    ],
)
def test_contradictions_are_explained(method, training, message):
    (fault,) = method.faults(training)
    assert message in fault


def test_what_works_is_not_refused():
    assert PPPO(progressive=False, share=0.5).faults({"eval_strategy": "no"}) == []
    given = {"loss_type": "dapo", "eval_strategy": "epoch", "entropy_coef": 0.1}
    assert PPPO(normalizer="constant").faults(given) == []


def test_the_recipe_and_the_trainer_refuse_alike(tmp_path):
    with pytest.raises(RecipeError, match=r"training.eval_strategy = no") as told:
        load_recipe("recipes/lab/pppo.yaml", ["training.eval_strategy=no", "method.share=0.5", "method.patience=0"])
    assert "method.patience" in str(told.value)
    assert "method.share = 0.5" in str(told.value)
    with pytest.raises(RecipeError, match=r"training.eval_strategy = no"):
        trainer(tmp_path, PPPO())
    with pytest.raises(RecipeError, match="generate past the place"):
        trainer(tmp_path, options={"rollout_func": lambda prompts, trainer: {}})


# --- the gradient -----------------------------------------------------------------------------------------------------


def test_the_gradient_is_the_token_mean_written_by_hand(tmp_path):
    made = trainer(tmp_path)
    batch = generation(made)
    written = batch["completion_mask"].bool()
    credit, total = batch["advantages"], 0.0
    assert credit.abs().max() > 0.1
    logps = reference_logps(made, batch)
    for i in range(8):
        for j in range(int(0.4 * int(written[i].sum()))):
            total = total - credit[i, 0] * logps[i, j]
    theirs = gradient_of(made, total / written.sum())
    assert theirs.abs().max() > 1e-3
    assert (loss_gradient(made, batch) - theirs).abs().max() < 1e-5 * max(1, float(theirs.abs().max()))


def test_accumulated_micro_batches_give_the_gradient_of_one_batch(tmp_path):
    made = trainer(tmp_path)
    batch = generation(made)
    whole = loss_gradient(made, batch)
    made.current_gradient_accumulation_steps = 4
    parts = [loss_gradient(made, batch, rows) for rows in torch.tensor([5, 0, 3, 7, 1, 2, 6, 4]).split(2)]
    assert (sum(parts) - whole).abs().max() < 1e-5 * max(1, float(whole.abs().max()))


def test_training_does_not_depend_on_the_micro_batches(tmp_path):
    runs = []
    for size in (8, 2):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        runs.append(trainer(tmp_path / str(size), optim="sgd", **sizes))
        runs[-1].train()
    assert (parameters(runs[0]) - parameters(runs[1])).abs().max() < 1e-5
    untrained = torch.cat([p.detach().flatten() for p in policy(TOKENIZER).parameters()])
    assert (parameters(runs[0]) - untrained).abs().max() > 1e-3


# --- further continuations --------------------------------------------------------------------------------------------


class Engine:
    """In the place of TRL's generation: what it was asked, and answers that tell the calls apart."""

    def __init__(self, monkeypatch, lengths=(9, 5)):
        self.asked = []

        def generate(trainer, ids, images, fields, num_generations, *args):
            first = not self.asked
            self.asked.append([list(row) for row in ids])
            length = lengths[0] if first else lengths[1]
            return [[40 + len(self.asked), *range(50, 48 + length), TOKENIZER.eos_token_id] for _ in ids], None

        monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)


def noted(reward=token_reward):
    """A reward that notes what it was given."""
    calls = []

    def note(completions, completion_ids, **columns):
        calls.append({"completions": completions, "completion_ids": completion_ids, **columns})
        return reward(completions, completion_ids)

    return note, calls


def test_beginnings_are_continued_side_by_side_and_graded_whole(tmp_path, monkeypatch):
    note, calls = noted()
    made = trainer(tmp_path, reward=note)
    engine = Engine(monkeypatch)
    seen = []
    monkeypatch.setattr(PPPO, "advantages", lambda self, r: seen.append(r) or torch.zeros(r.completion_mask.shape))
    generation(made)
    prompts = [TOKENIZER(row["prompt"])["input_ids"] for row in dataset(2)]
    begun = [41, 50, 51]  # floor(0.4 * 9) = 3 tokens
    assert engine.asked == [
        [prompts[0]] * 4 + [prompts[1]] * 4, [[*prompts[0], *begun]] * 8, [[*prompts[1], *begun]] * 8,
    ]  # fmt: skip
    assert [len(call["completions"]) for call in calls] == [8, 8, 8]
    for call, answer, first in ((calls[1], 42, 0), (calls[2], 43, 4)):
        assert call["completion_ids"] == [[*begun, answer, *range(50, 53), TOKENIZER.eos_token_id]] * 8
        assert call["completions"] == TOKENIZER.batch_decode(call["completion_ids"], skip_special_tokens=True)
        assert call["prompts"] == [dataset()["prompt"][first // 4]] * 8
        assert call["answer"] == [dataset()["answer"][first // 4]] * 8
    own = token_reward(None, [[41, *range(50, 57), TOKENIZER.eos_token_id]])
    first, second = (token_reward(None, [call["completion_ids"][0]])[0] for call in calls[1:])
    assert seen[0].rewards.tolist() == own * 8
    assert seen[0].continued.tolist() == [[first] * 2] * 4 + [[second] * 2] * 4


def test_rewards_of_continuations_come_back_to_their_rollout(tmp_path, monkeypatch):
    numbers = iter(range(100))
    made = trainer(tmp_path, dataclasses.replace(CONSTANT, continuations=3),
                   reward=lambda completions, **k: [float(next(numbers)) for _ in completions])  # fmt: skip
    seen = []
    monkeypatch.setattr(PPPO, "advantages", lambda self, r: seen.append(r) or torch.zeros(r.completion_mask.shape))
    opened = watched(made)
    generation(made)
    assert seen[0].rewards.tolist() == list(range(8))
    assert seen[0].continued.tolist() == [[8.0 + 3 * row + c for c in range(3)] for row in range(8)]
    assert opened.last.rewards.tolist() == list(range(8))


def test_continuations_differ_from_each_other(tmp_path):
    note, calls = noted()
    made = trainer(tmp_path, dataclasses.replace(CONSTANT, continuations=4), reward=note)
    batch = generation(made)
    kept = [int(0.4 * int(mask.sum())) for mask in batch["completion_mask"]]
    continued = [ids for call in calls[1:] for ids in call["completion_ids"]]
    assert len(continued) == 32
    for row in range(8):
        of_row = continued[4 * row : 4 * row + 4]
        begun = batch["completion_ids"][row, : kept[row]].tolist()
        assert all(ids[: kept[row]] == begun and len(ids) <= 24 for ids in of_row)
        assert len(set(map(tuple, of_row))) == 4


def test_a_whole_completion_is_not_continued_and_its_rewards_are_its_own(tmp_path, monkeypatch):
    numbers = iter(range(100))
    made = trainer(tmp_path, dataclasses.replace(CONSTANT, share=1.0),
                   reward=lambda completions, **k: [float(next(numbers)) for _ in completions])  # fmt: skip
    engine, seen = Engine(monkeypatch), []
    monkeypatch.setattr(PPPO, "advantages", lambda self, r: seen.append(r) or torch.zeros(r.completion_mask.shape))
    generation(made)
    assert [len(asked) for asked in engine.asked] == [8, 1, 1]  # a row for whoever shards the parameters
    assert seen[0].continued.tolist() == [[float(row)] * 2 for row in range(8)]


@dataclasses.dataclass(frozen=True)
class FromThePrefix(PrefixRFT):
    """Continues every rollout from its beginning, or from the prefix that was injected."""

    @property
    def needs(self):
        return dataclasses.replace(super().needs, further=Further(2, self.beginnings))

    def beginnings(self, rollouts):
        return torch.zeros(len(rollouts.rewards), dtype=torch.long)


def test_an_injected_prefix_is_kept_and_the_reward_knows_where_it_ends(tmp_path):
    note, calls = noted()
    made = trainer(tmp_path, FromThePrefix(horizon=1, end=0.4, high=0.4), reward=note)
    batch = generation(made)
    first, starts = calls[0]["continuation_start"], []
    assert [start > 0 for start in first] == [True, False, False, False] * 2
    for call in calls[1:]:
        starts += call["continuation_start"]
    assert starts == [start for start in first for _ in range(2)]
    continued = [ids for call in calls[1:] for ids in call["completion_ids"]]
    for row in range(8):
        prefix = batch["completion_ids"][row][batch["prefix_mask"][row]].tolist()
        assert all(ids[: len(prefix)] == prefix and len(ids) > len(prefix) for ids in continued[2 * row : 2 * row + 2])


def test_conversational_rollouts_are_continued_behind_the_open_turn(tmp_path):
    note, calls = noted()
    tokenizer = with_chat_template()
    data = dataset().map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    made = trainer(tmp_path, data=data, tokenizer=tokenizer, reward=note)
    generation(made)
    for call in calls:
        texts = tokenizer.batch_decode(call["completion_ids"], skip_special_tokens=True)
        assert call["completions"] == [[{"role": "assistant", "content": text}] for text in texts]
    assert len(calls) == 3


def test_continuations_leave_no_trace_in_the_metrics(tmp_path):
    def reward(completions, completion_ids, log_metric, log_extra, **columns):
        log_metric("outcome/right", len(completion_ids[0]))
        log_extra("outcome", ["right" if len(ids) > 5 else "wrong" for ids in completion_ids])
        return token_reward(completions, completion_ids)

    runs = [trainer(tmp_path / str(count), dataclasses.replace(CONSTANT, continuations=count), reward=reward)
            for count in (0, 3)]  # fmt: skip
    opened = [watched(made) for made in runs]
    for made in runs:
        torch.manual_seed(5)
        generation(made)
    plain, further = ({k: v for k, v in made._metrics["train"].items() if "cost/" not in k} for made in runs)
    assert list(further.pop("reward_continued"))
    assert {k: pytest.approx(v, nan_ok=True) for k, v in plain.items()} == further
    assert {"outcome/right", "reward", "completions/mean_length", "method/share"} <= plain.keys()
    assert opened[0].last.outcomes == opened[1].last.outcomes
    assert not runs[1]._pending_extra_logs
    assert not runs[1]._pending_metrics
    assert runs[0]._logs == runs[1]._logs


def test_what_continuations_cost(tmp_path, monkeypatch):
    made = trainer(tmp_path, reward=lambda completions, **k: [float(i % 2) for i in range(len(completions))])
    Engine(monkeypatch)
    generation(made)
    parameters = sum(p.numel() for p in made.model.parameters())
    # 8 rows of 7 + 9 tokens sampled and trained: 8 * 128; 16 continuations of 7 + 3 + 5 tokens sampled: 2 * 240
    assert made.cost == Cost(8 * 9 + 16 * 5, 0, 8 * 3, (8 * 128 + 2 * 240) * parameters)


def test_what_is_whole_is_not_continued_and_costs_nothing_more(tmp_path, monkeypatch):
    method = dataclasses.replace(CONSTANT, share=1.0)
    made = trainer(tmp_path, method, reward=lambda completions, **k: [float(i % 2) for i in range(len(completions))])
    Engine(monkeypatch)
    generation(made)
    parameters = sum(p.numel() for p in made.model.parameters())
    assert made.cost == Cost(8 * 9, 0, 8 * 9, 8 * 128 * parameters)


def test_vllm_is_asked_for_one_continuation_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", FakeEngine)
    for share, kept in ((0.4, 1), (1.0, 0)):  # answers of 3 tokens; a whole one is asked for all the same
        made = trainer(tmp_path, dataclasses.replace(CONSTANT, share=share), use_vllm=True, vllm_mode="colocate")
        batch = generation(made)
        assert [len(prompts) for prompts, _ in FakeEngine.calls] == [8, 8, 8]
        assert [count for _, count in FakeEngine.calls[1:]] == [1, 1]
        first, then = FakeEngine.calls[0][0], FakeEngine.calls[1][0]
        assert [len(p) for p in then] == [len(first[row // 2]) + kept for row in range(8)]
        assert batch["sampling_per_token_logps"].shape == batch["completion_ids"].shape
        assert torch.isfinite(made.compute_loss(made.model, batch))


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_with_its_share(tmp_path):
    options = {**EVALUATED, "max_steps": 6, "method": PPPO(continuations=2, patience=1)}
    whole = trainer(tmp_path / "run", **options, save_strategy="steps", save_steps=3)
    whole.train()
    seen = [log["method/share"] for log in whole.state.log_history if "method/share" in log]
    assert seen[0] == 0.15
    assert seen[-1] > seen[0]
    again = trainer(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert again._saved.memory == whole._saved.memory
    assert parameters(again).equal(parameters(whole))
    assert [log["method/share"] for log in again.state.log_history if "method/share" in log] == seen


def test_pppo_trains_with_lora(tmp_path):
    trains_adapters_alone(trainer(tmp_path, options=lora()))


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_truncated_completions": True},
        {"num_iterations": 2},
        {"steps_per_generation": 4},
        {"pad_to_multiple_of": 8},
    ],
    ids=str,
)
def test_pppo_trains_with_other_settings_of_trl(tmp_path, changes):
    made = trainer(tmp_path, **changes, max_steps=2)
    made.train()
    assert torch.isfinite(parameters(made)).all()
