"""Credit decided over several ranks, without a trainer."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from flow import together
from small import byte_level_bpe
from test_methods import rollouts, step
from test_planning import LATE, TABLE, batch_on

from prefix_rl.errors import DataError
from prefix_rl.methods.base import Method
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.sft_loss import SFTLoss
from prefix_rl.methods.uft import UFT
from prefix_rl.seam import credit, signal

TOKENIZER = byte_level_bpe()
REWARDS = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, torch.nan])
LENGTHS = [7, 3, 5, 2, 6, 6, 1, 4]  # tokens of the completions; the rows 0 and 4 start from 4 tokens of a demonstration


def graded(own, method=LATE, masked=()):
    """The open batch of one rank, and TRL's output for it: padded to its own longest row, the ``masked`` rows blank."""
    batch = batch_on(own, [0, 2], method)
    batch = replace(batch, rewards=REWARDS)
    here = range(8)[own.own(len(batch.rows))]
    texts = [
        p.ids if p.complete else [*p.ids, *range(50 + i, 60 + i)][: LENGTHS[i]]
        for i, p in zip(here, batch.plan, strict=True)
    ]
    ids, mask = torch.zeros(2, len(here), max(map(len, texts)), dtype=torch.long)
    for row, (i, written) in enumerate(zip(here, texts, strict=True)):
        ids[row, : len(written)] = torch.tensor(written)
        mask[row, : len(written)] = int(i not in masked)
    prompt = torch.ones(len(here), 3, dtype=torch.long)
    batch = replace(batch, completions=texts)
    return batch, {"completion_ids": ids, "completion_mask": mask, "prompt_ids": prompt, "prompt_mask": prompt}


def rollouts_on(own, method=LATE, masked=()):
    batch, output = graded(own, method, masked)
    return credit.gathered(own, batch, output, credit.prefix_mask(batch.plan, output), TABLE)


def same(one, other):
    for name, value in vars(one).items():
        theirs = getattr(other, name)
        assert value.equal(theirs) or value.isnan().equal(theirs.isnan()) if torch.is_tensor(value) else value == theirs


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_rank_has_the_rollouts_that_one_process_would_have(ranks):
    (alone,) = together(1, rollouts_on)
    assert alone.prefix_mask.sum(dim=1).tolist() == [4, 0, 0, 0, 4, 0, 0, 0]
    assert alone.completion_mask.sum(dim=1).tolist() == LENGTHS
    assert alone.problems.tolist() == [0] * 4 + [2] * 4
    assert alone.demonstrated.all()
    assert alone.continued.shape == (8, 0)
    for found in together(ranks, rollouts_on):
        same(found, alone)


def test_what_was_prefixed_stays_so_where_trl_masks_the_completion():
    """A masked completion moves nothing, and yet its reward is not one of the plain rollouts'."""
    (found,) = together(1, lambda own: rollouts_on(own, masked=[0]))
    assert not found.prefix_mask[0].any()
    assert found.prefixed.tolist() == [True] + [False] * 3 + [True] + [False] * 3
    method = PrefixRFT(credit="unprefixed")
    assert method.advantages(found)[1:4, 0].tolist() == pytest.approx([-1 / 3, -1 / 3, 2 / 3])  # the mean of 0, 0, 1
    derived = replace(found, prefixed=found.prefix_mask.any(dim=1))
    assert method.advantages(derived)[1:4, 0].tolist() == [-0.5, -0.5, 0.5]  # of 1, 0, 0, 1


def test_the_keys_of_a_rank_are_its_rows_of_what_was_decided():
    def on(own):
        rollouts = rollouts_on(own)
        decided = credit.Credit.by(PrefixRFT(tokens="none"), rollouts, None)
        return decided.keys(own.own(8 // own.count), 3)

    (alone,), (first, second) = together(1, on), together(2, on)
    assert alone.keys() == {"advantages", "weights", "update_mask"}
    for key, value in alone.items():
        assert torch.cat([first[key], second[key]]).equal(value)
    assert alone["update_mask"][0].tolist() == [False] * 3
    assert alone["advantages"][0].tolist() == [0.5] * 3


def test_credit_is_no_weight_and_what_is_trained_has_one_of_the_two():
    (batch,) = together(1, rollouts_on)
    plain = credit.Credit.by(PrefixRFT(tokens="none"), batch, None)
    assert not plain.weights.any()
    assert not plain.trained[batch.prefix_mask].any()
    for method in (LUFFY(), SFTLoss(), UFT(weight=0.5)):
        decided = credit.Credit.by(method, batch, None)
        assert (decided.weights != 0).equal(batch.prefix_mask & (decided.weights != 0))
        assert decided.weights[batch.prefix_mask].all()
        assert decided.trained[batch.prefix_mask].all()
        assert not decided.moving[batch.prefix_mask].any()
    assert not credit.Credit.by(SFTLoss(weight=0.0), batch, None).trained[batch.prefix_mask].any()
    assert not SFTLoss().advantages(batch)[batch.prefix_mask].any()  # a demonstration is none of the group


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_entropies_stand_on_prefix_tokens_and_all_ranks_make_the_same_passes(ranks):
    def on(own):
        batch, output = graded(own)
        passes = []

        def encode(ids, mask, width):
            passes.append(len(ids))
            return None, ids[:, -width:].float() / 10, None

        prefixes = credit.prefix_mask(batch.plan, output)
        return passes, credit.prefix_entropies(encode, output, prefixes, 1, own)

    found = together(ranks, on)
    assert {len(passes) for passes, _ in found} == {2 if ranks == 1 else 1}  # with 4, two ranks have no prefix at all
    for _, entropies in found:
        assert entropies.isnan().sum(dim=1).tolist() == [3, 7, 7, 7, 3, 7, 7, 7]
        assert entropies[4, :4].tolist() == pytest.approx([2.0, 2.1, 2.2, 2.3])


def test_rewards_are_weighed_and_none_is_none():
    nan = torch.nan
    rewards = torch.tensor([[1.0, 2.0], [nan, 1.0], [nan, nan]])
    found = credit.total(rewards, torch.tensor([2.0, 0.5]), step=3)
    assert found[:2].tolist() == [3.0, 0.5]
    assert found[2].isnan()
    credit.check_scored(found, 3)
    with pytest.raises(DataError, match="step 3: no rollout could be scored"):
        credit.check_scored(found[2:], 3)
    with pytest.raises(DataError, match="step 3: a reward function returned an infinite reward"):
        credit.total(torch.tensor([[torch.inf]]), torch.ones(1), 3)


def test_a_micro_batch_carries_what_was_decided():
    inputs = {"completion_ids": torch.ones(2, 3, dtype=torch.long), "completion_mask": torch.ones(2, 3), "rewards": REWARDS[:2],
              "prefix_mask": torch.zeros(2, 3, dtype=torch.bool), "advantages": torch.ones(2, 3), "weights": torch.zeros(2, 3)}  # fmt: skip
    found = credit.micro_batch(inputs, step(7))
    assert found.step.index == 7
    assert found.continuation_mask.all()
    assert found.weights is inputs["weights"]


def test_groups_that_are_not_kept_are_not_there_for_the_method():
    given = rollouts([1.0, 0, 0, 0] + [1.0] * 4 + [1.0, 1, 0, 0], [2] * 12)
    entropies = torch.zeros(12, 6)
    entropies[:4, 0], entropies[4:8, :2], entropies[8:, 1] = 1.0, 2.0, 1.0
    method = PrefixRFT(tokens="top_entropy", share=0.5)
    found = credit.Credit.by(method, given, entropies, given, torch.tensor([True, False, True]))
    # of the 16 prefix tokens that are left, the 8 with entropy 1; of all 24 it would be the 8 of the second group too
    assert found.moving[:, :2].tolist() == [[True, False]] * 4 + [[False, False]] * 4 + [[False, True]] * 4
    assert found.moving[:, 2:].all(dim=1).tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert found.advantages[:, 0].tolist() == [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0, 0.5, 0.5, -0.5, -0.5]
    nothing = credit.Credit.by(method, given, entropies, given, torch.zeros(3, dtype=torch.bool))
    assert not nothing.moving.any()
    assert not nothing.trained.any()


def test_a_token_is_trained_that_moves_with_credit_or_has_a_weight():
    found = credit.Credit(torch.tensor([[0.5, 0.0, 0.5, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0, 0.5, 1.0]]),
                          torch.tensor([[True, True, False, False, False]]))  # fmt: skip
    assert found.trained.tolist() == [[True, False, False, True, True]]


def test_what_functions_have_logged_is_kept_and_several_rewards_apart():
    rewards = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = credit.told({"outcome": ["right", "wrong"], "found": ["4", "5"]}, ["exact", "format"], rewards)
    assert (found["outcomes"], found["answers"]) == (["right", "wrong"], ["4", "5"])
    assert {name: of.tolist() for name, of in found["apart"].items()} == {"exact": [1.0, 3.0], "format": [2.0, 4.0]}
    assert credit.told({}, ["exact"], rewards[:, :1]) == {"outcomes": None, "answers": None, "apart": {}}


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_the_loss_leaves_out_is_still_what_it_was(ranks):
    def on(own):
        batch, output = graded(own, masked=[0, 5])
        found = credit.gathered(own, batch, output, credit.prefix_mask(batch.plan, output), TABLE)
        return found, credit.whole(own, batch, found)

    for left, found in together(ranks, on):
        assert left.completion_mask.sum(dim=1).tolist() == [0, *LENGTHS[1:5], 0, *LENGTHS[6:]]
        assert found.completion_mask.sum(dim=1).tolist() == LENGTHS
        assert found.prefix_mask.sum(dim=1).tolist() == [4, 0, 0, 0, 4, 0, 0, 0]


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_loss_counts_the_tokens_that_move_on_all_ranks(ranks):
    moving = torch.tensor([[True, True, False], [False, True, True]])
    for found in together(ranks, lambda own: credit.only_moving({}, moving, own)):
        assert found["tool_mask"].tolist() == [[1, 1, 0], [0, 1, 1]]
        assert int(found["num_items_in_batch"]) == 4 * ranks
    tools = {"tool_mask": torch.tensor([[1, 0, 1], [1, 0, 1]])}
    (found,) = together(1, lambda own: credit.only_moving(tools, moving, own))
    assert found["tool_mask"].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert int(found["num_items_in_batch"]) == 2


def test_the_kl_on_context_in_numbers():
    half, tenth = torch.tensor(0.5).log(), torch.tensor(0.1).log()
    inputs = {
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "update_mask": torch.tensor([[False, True, True], [False, True, False]]),  # context: the first token of each
        "ref_per_token_logps": torch.stack([torch.stack([half, tenth, tenth])] * 2),
    }
    logps = torch.stack([torch.stack([2 * half, half, half])] * 2)  # 1/4 where the reference has 1/2: 2 - ln 2 - 1
    arguments = SimpleNamespace(beta=0.5, max_completion_length=5, use_bias_correction_kl=False)
    assert float(credit.kl_on_context(inputs, logps, arguments)) == pytest.approx(0.5 * 2 * 0.3068528 / (2 * 5))
    arguments.use_bias_correction_kl = True
    assert float(credit.kl_on_context(inputs, logps, arguments)) == pytest.approx(0.5 * 2 * 0.3068528 / (2 * 5))
    inputs["old_per_token_logps"] = logps + half  # the policy holds twice of what the sampler did
    assert float(credit.kl_on_context(inputs, logps, arguments)) == pytest.approx(2 * 0.5 * 2 * 0.3068528 / (2 * 5))


def test_a_prefix_token_stands_for_the_mean_entropy_of_what_the_policy_wrote():
    def on(prefix, update):
        inputs = {"prefix_mask": torch.tensor([prefix]).bool(), "update_mask": torch.tensor([update]).bool()}
        return credit.entropies_of_the_policy(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), inputs).tolist()

    assert on([1, 1, 0, 0], [0, 1, 1, 1]) == [[6.0, 6.0, 4.0, 8.0]]
    assert on([1, 1, 0, 0], [0, 1, 1, 0]) == [[4.0, 4.0, 4.0, 8.0]]
    assert on([1, 1, 0, 0], [1, 1, 0, 0]) == [[0.0, 0.0, 4.0, 8.0]]  # nothing of the policy's moves


# --- groups without signal --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Everywhere(Method):
    """The same credit on every token, and a weight on the first token of row 4."""

    credit: float = 0.0
    weight: float = 0.0

    def advantages(self, rollouts):
        return torch.full(rollouts.completion_mask.shape, self.credit)

    def weights(self, rollouts):
        found = torch.zeros(rollouts.completion_mask.shape)
        found[4, 0] = self.weight
        return found


def test_a_group_has_signal_by_credit_on_a_token_in_the_loss_or_by_a_weight():
    whole = rollouts([1.0, 0, 0, 0] + [1.0] * 4 + [1.0, 0, 0, 0], [0] * 12)
    assert signal.with_signal(DrGRPO(), whole, whole).tolist() == [True, False, True]
    left_out = replace(whole, completion_mask=whole.completion_mask & (torch.arange(12) < 8).unsqueeze(1))
    assert signal.with_signal(DrGRPO(), left_out, whole).tolist() == [True, False, False]
    for weight in (0.5, -0.5):
        assert signal.with_signal(Everywhere(weight=weight), whole, whole).tolist() == [False, True, False]
    for amount, there in ((0.0, False), (1e-7, False), (1e-5, True), (-1e-5, True)):  # 1e-7: left of a sum of floats
        assert signal.with_signal(Everywhere(credit=amount), whole, whole).tolist() == [there] * 3


@pytest.mark.parametrize(
    ("loss_type", "kept", "scale", "extra"),
    [("dr_grpo", [1, 0, 1], 1.5, 1.5), ("grpo", [1, 0, 0], 3.0, 3.0), ("sapo", [1, 0, 1], 1.5, 1.5),
     ("luspo", [1, 0, 1], 1.5, 1.5), ("dapo", [1, 0, 1], 1.0, 1.5), ("bnpo", [1, 0, 1], 1.0, 1.5),
     ("dr_grpo", [1, 1, 1], 1.0, 1.0), ("dr_grpo", [0, 0, 0], 1.0, 1.0), (None, [1, 0, 1], 1.0, 1.0)],
)  # fmt: skip
def test_skipped_groups_have_no_tokens_and_count_in_no_normalizer(loss_type, kept, scale, extra):
    given, kept = rollouts([0.0] * 12, [2] * 12), torch.tensor(kept).bool()
    output = {
        "completion_mask": torch.ones(6, 6, dtype=torch.long)
    }  # the second of two ranks, from the middle of a group
    found = signal.skipped(output, given, kept, loss_type, slice(6, 12))
    expected = [6 * int(kept[row // 4]) for row in range(12)]
    assert found.completion_mask.sum(dim=1).tolist() == expected
    assert found.prefix_mask.sum(dim=1).tolist() == [tokens // 3 for tokens in expected]
    assert output["completion_mask"].sum(dim=1).tolist() == expected[6:]
    assert float(output[signal.SCALE]) == pytest.approx(scale)
    assert float(output[signal.EXTRA_SCALE]) == pytest.approx(extra)  # its mean is over rows, whatever the loss
