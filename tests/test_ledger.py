"""What is written down of a run, without a trainer."""

import time
from dataclasses import replace

import pytest
import torch
from flow import together
from test_credit import REWARDS, TOKENIZER, graded
from test_planning import TABLE

from prefix_rl.costs import Cost
from prefix_rl.data.mixing import SOURCE
from prefix_rl.methods.pppo import PPPO
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.sft_loss import SFTLoss
from prefix_rl.prefixes import NO_PREFIX, Prefix
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.seam import credit, ledger
from prefix_rl.seam.batch import ROW, Planned
from prefix_rl.seam.means import TokenMeans

NONE = PrefixRFT(horizon=1, end=0.5, high=0.5, tokens="none")


def booked(own, method=NONE, entropies=False, passes=1):
    batch, output = graded(own, method)
    rollouts = credit.gathered(own, batch, output, credit.prefix_mask(batch.plan, output), TABLE)
    decided = credit.Credit.by(method, rollouts, None)
    cost = ledger.cost_of(rollouts, decided, batch.planned, output, own, 10, passes, entropies)
    return cost, ledger.prefix_metrics(rollouts, batch.planned, decided)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_costs_in_numbers_on_every_rank(ranks):
    # 8 rows: 24 prompt tokens, 34 of completions, of which 8 injected; 2 N D sampled and 6 N D trained of 58
    for cost, _ in together(ranks, booked):
        # Trained: 3 + 3 + 5 + 2 and 2 + 6 + 1 tokens of the policy's have credit; the last row has no reward
        assert cost == Cost(generated_tokens=26, injected_tokens=8, trained_tokens=22, flops=10 * 8 * 58)
    # Entropies: 2 N D of 2 rows of 3 + 4 tokens
    for cost, _ in together(ranks, lambda own: booked(own, entropies=True, passes=2)):
        assert cost == Cost(26, 8, 2 * 22, 10 * ((2 + 2 * 6) * 58 + 2 * 14))


def test_what_has_weight_counts_as_trained():
    ((cost, _),) = together(1, lambda own: booked(own, SFTLoss(demonstrations=1, weight=0.0)))
    ((more, _),) = together(1, lambda own: booked(own, SFTLoss(demonstrations=1)))
    assert more.trained_tokens - cost.trained_tokens == more.injected_tokens > 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_demonstration_that_two_rows_of_a_group_hold_is_encoded_once(ranks):
    # of each group: 8 tokens of the demonstration, and rows of 5 + 2 and of 1 + 4 tokens behind 3 of the prompt
    for cost, _ in together(ranks, lambda own: booked(own, SFTLoss(demonstrations=2))):
        assert (cost.generated_tokens, cost.injected_tokens) == (12, 16)
        assert cost.flops == 10 * (2 * (4 * 3 + 12) + 6 * (6 * 3 + 12 + 16))


@pytest.mark.parametrize("ranks", [1, 2])
def test_prefixes_in_numbers(ranks):
    for _, metrics in together(ranks, booked):
        assert metrics == pytest.approx(
            {
                "prefix/rollouts": 2, "prefix/shortened_share": 0, "prefix/token_share": 8 / 34, "prefix/length": 4,
                "prefix/fraction": 0.5, "prefix/kept_share": 0,
                "prefix/continuation_advantage": (3 * (1 - 2 / 4) + 2 * (1 - 2 / 3)) / 5,
            }
        )  # fmt: skip
    half = replace(NONE, tokens="random", share=0.5)
    assert [metrics["prefix/kept_share"] for _, metrics in together(ranks, lambda own: booked(own, half))] == [
        0.5
    ] * ranks
    for _, metrics in together(ranks, lambda own: booked(own, PrefixRFT(prefixed=0))):
        assert metrics.pop("prefix/shortened_share") != 0  # NaN: of none
        assert metrics == {"prefix/rollouts": 0, "prefix/token_share": 0}


def micro_batch(prefixes, moving):
    """Completions of two tokens, of each of which the first so many are prefix; ``moving``: whether the others move."""
    prefix = torch.arange(2) < torch.tensor(prefixes).unsqueeze(1)
    return {"completion_mask": torch.ones_like(prefix).long(), "prefix_mask": prefix, "tool_mask": ~prefix & moving}


def test_entropies_are_those_of_all_ranks():
    def on(own):
        entropies, metrics = torch.tensor([[1.0, 3.0], [5.0, 7.0]]) + 8 * own.index, {}
        TokenMeans(metrics, prefixes=True).take(entropies, micro_batch([1, 1], True), own)
        return metrics

    assert together(1, on) == [{"entropy_prefix": [3.0], "entropy_continuation": [5.0]}]
    assert together(2, on) == [{"entropy_prefix": [7.0], "entropy_continuation": [9.0]}] * 2


def test_entropies_are_means_over_tokens_however_a_step_is_cut():
    def on(own):
        metrics = {}
        means = TokenMeans(metrics, prefixes=True)
        means.take(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), micro_batch([2, 1], True), own)
        means.take(torch.tensor([[9.0, 7.0]]), micro_batch([1], True), own)
        first = dict(metrics)
        metrics.clear()  # as TRL does when it has logged
        means.take(torch.tensor([[5.0, 6.0]]), micro_batch([1], True), own)
        return first, metrics

    ((first, then),) = together(1, on)
    assert first == {"entropy_prefix": [(1 + 2 + 3 + 9) / 4], "entropy_continuation": [(4 + 7) / 2]}
    assert then == {"entropy_prefix": [5.0], "entropy_continuation": [6.0]}


@pytest.mark.parametrize(("moving", "left"), [(True, [0.5, 0.0]), (False, [0.5])])
def test_a_micro_batch_of_which_nothing_moves_is_not_an_entropy_of_0(moving, left):
    def on(own):
        metrics = {"entropy": [0.5, 0.0], "clip_ratio/low_min": [0.0], "entropy_coef": [0.1], "reward": [1.0]}
        TokenMeans(metrics, prefixes=False).take(torch.zeros(1, 2), micro_batch([0], moving), own)
        return metrics

    kept = {"clip_ratio/low_min": [0.0]} if moving else {}  # of none there is no least one
    assert together(1, on) == [{"entropy": left, **kept, "entropy_coef": [0.1], "reward": [1.0]}]


def test_prefix_tokens_that_an_extra_objective_moves_are_kept():
    for name, weight in (("all", 0.5), ("none of them", 0.0)):
        ((_, metrics),) = together(1, lambda own, w=weight: booked(own, SFTLoss(demonstrations=1, weight=w)))
        assert metrics["prefix/kept_share"] == (weight > 0), name


def test_nothing_stays_of_what_is_off_the_record():
    metrics, pending = {"reward": [1.0]}, {"outcome": []}

    def failing():
        with ledger.off_the_record(metrics, pending):
            metrics["reward"].append(2.0)
            metrics["length"] = [3.0]
            pending["outcome"].append("right")
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert metrics == {"reward": [1.0]}
    assert pending == {}


def test_totals_and_times():
    assert ledger.totals(PPPO(), {"rises": 1}, Cost(flops=3.0))["method/share"] == 0.2
    assert ledger.totals(PPPO(), {}, Cost(flops=3.0))["cost/flops"] == 3.0
    assert ledger.time_metrics(1.0, 4.0, {"encoded": 0, "padded": 0}) == {"speed/grading_share": 0.25}
    assert ledger.time_metrics(1.0, 4.0, {"encoded": 3, "padded": 6})["speed/encoded_share"] == 0.5
    clock = ledger.Clock()
    for _ in range(2):
        with clock.running():
            time.sleep(0.02)
    assert 0.04 <= clock.taken() < 60
    assert clock.taken() == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_rewards_in_numbers_of_each_file_of_a_mixture_too(ranks):
    def on(own, sources):
        batch, _ = graded(own)
        here = [{**given, SOURCE: sources[given[ROW]]} if sources else given for given in batch.inputs]
        return ledger.reward_metrics(REWARDS, replace(batch, inputs=here), own)

    plain = {"reward_unscored_share": 1 / 8, "reward_with_prefix": 1.0, "reward_without_prefix": 2 / 5}
    assert together(ranks, lambda own: on(own, None)) == [pytest.approx(plain)] * ranks
    apart = {"source/a/share": 0.5, "source/a/reward": 2 / 4, "source/b/share": 0.5, "source/b/reward": 2 / 3}
    assert together(ranks, lambda own: on(own, {0: "a", 2: "b"})) == [pytest.approx(plain | apart)] * ranks


def test_hints_in_numbers():
    (hints,) = together(
        1, lambda own: Planned.over(own, [Prefix([1, 2, 3], 3, 6), NO_PREFIX, Prefix([1], 1, 4)], [1] * 3)
    )
    assert ledger.hint_metrics(hints) == {"hint/rollouts": 2, "hint/length": 2.0, "hint/fraction": 0.375}
    (hints,) = together(1, lambda own: Planned.over(own, [NO_PREFIX], [False]))
    assert ledger.hint_metrics(hints) == {"hint/rollouts": 0}


def test_each_further_pass_costs_and_what_the_loss_leaves_out_was_generated():
    def on(own, masked=(), *keys):
        batch, output = graded(own, NONE, masked)
        rollouts = credit.gathered(own, batch, output, credit.prefix_mask(batch.plan, output), TABLE)
        decided, whole = credit.Credit.by(NONE, rollouts, None), credit.whole(own, batch, rollouts)
        output |= {key: torch.zeros(1) for key in keys}
        return ledger.cost_of(rollouts, decided, batch.planned, output, own, 10, 1, False, whole)

    assert together(1, on)[0].flops == 10 * 8 * 58
    for keys in (["old_per_token_logps"], ["ref_per_token_logps"]):
        assert together(1, lambda own, keys=keys: on(own, (), *keys))[0].flops == 10 * (8 + 2) * 58
    (found,) = together(1, lambda own: on(own, (1,)))  # the row of 3 tokens, none of them injected
    assert (found.generated_tokens, found.injected_tokens, found.trained_tokens) == (26, 8, 22 - 3)
    assert found.flops == 10 * (2 * 58 + 6 * 55)


def test_a_saved_rollout_has_what_its_functions_said_of_it():
    def on(own):
        batch, output = graded(own)
        prefixes = credit.prefix_mask(batch.plan, output)
        decided = credit.Credit.by(NONE, credit.gathered(own, batch, output, prefixes, TABLE), None)
        here = own.own(len(batch.rows))
        said = {"outcomes": [f"outcome {i}" for i in range(8)[here]], "answers": [str(i) for i in range(8)[here]]}
        inputs = [{**given, "prompt": "1 + 1 = ?"} for given in batch.inputs]
        batch = replace(batch, inputs=inputs, apart={"exact": REWARDS, "format": torch.arange(8.0)}, **said)
        output |= {**decided.keys(here, prefixes.size(1)), "rewards": batch.rewards[here]}
        return ledger.records(batch, output, TOKENIZER, own=here)

    found = [record for records in together(2, on) for record in records]
    assert [record["outcome"] for record in found] == [f"outcome {i}" for i in range(8)]
    assert [record["found"] for record in found] == [str(i) for i in range(8)]
    assert found[6]["rewards"] == {"exact": 0.0, "format": 6.0}
    assert found[7]["rewards"] == {"exact": None, "format": 7.0}  # the function had no reward for it


@pytest.mark.parametrize("ranks", [1, 2])
def test_rollouts_of_all_ranks_are_saved_in_order(tmp_path, ranks):
    def on(own, method):
        batch, output = graded(own, method)
        prefixes = credit.prefix_mask(batch.plan, output)
        decided = credit.Credit.by(method, credit.gathered(own, batch, output, prefixes, TABLE), None)
        here = own.own(len(batch.rows))
        inputs = [{**given, "prompt": "1 + 1 = ?", "answer": 2} for given in batch.inputs]
        batch = type(batch)(**{**vars(batch), "inputs": inputs})
        output |= {**decided.keys(here, prefixes.size(1)), "prefix_mask": prefixes, "rewards": batch.rewards[here]}
        ledger.save(str(tmp_path / method.__class__.__name__), ledger.records(batch, output, TOKENIZER), own)

    for method in (NONE, SFTLoss(weight=0.5)):
        together(ranks, lambda own, method=method: on(own, method))
    found = read_rollouts(tmp_path / "PrefixRFT")
    assert [record["row"] for record in found] == [0] * 4 + [2] * 4
    assert [record["prefix_tokens"] for record in found] == [4, 0, 0, 0, 4, 0, 0, 0]
    assert [record["advantage"] for record in found[:4]] == [0.5, -0.5, -0.5, 0.5]
    assert found[0]["prompt"] == '"1 + 1 = ?"'
    assert found[0]["outcome"] is None
    assert [part["kind"] for part in found[0]["segments"]] == ["prefix", "continuation"]
    whole = read_rollouts(tmp_path / "SFTLoss")
    # What moves the last token: the weight of a demonstration's NLL, 0.5 * 8 rows * 10,000 tokens / 16 injected ones
    assert [record["advantage"] for record in whole[:4]] == pytest.approx([2500, -1 / 3, -1 / 3, 2 / 3])
