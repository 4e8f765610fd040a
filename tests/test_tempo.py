from dataclasses import replace

import pytest
import torch
from flow import generated
from test_methods import TRAINING, rollouts, step
from test_trainer import LATE, generation, loss_gradient, parameters, reference_logps, trainer

from prefix_rl.advantages import prefix_tree
from prefix_rl.methods.adaptive import Adaptive
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.sft_then_rl import SFTThenRL
from prefix_rl.methods.tempo import TEMPO
from prefix_rl.methods.uft import UFT

# Two groups of 4. In the first all begin with 1; two go on with 2. The second shares nothing but its prefix 7 7
IDS = torch.tensor([[1, 2, 5], [1, 2, 6], [1, 3, 5], [1, 4, 5], [7, 7, 1], [7, 7, 2], [7, 7, 3], [7, 7, 4]])


def batch(prefix_lengths=(0,) * 8, rewards=(1.0, 0, 0, 0, 1, 1, 0, 0)):
    return generated(
        completion_ids=IDS,
        completion_mask=torch.ones(8, 3, dtype=torch.bool),
        prefix_mask=torch.arange(3) < torch.tensor(prefix_lengths).unsqueeze(1),
        rewards=torch.tensor(rewards),
        step=step(budget=24),
    )


def test_credit_in_numbers():
    found = TEMPO().advantages(batch())
    # First group: mean 1/4, std sqrt((9/16 + 3/16) / 3) = 1/2 (unbiased). V(1) = 1/4, V(1 2) = 1/2, V(1 2 5) = 1:
    # TD = 0, 1/4, 1/2 for the right one; 0, 1/4, -1/2 for the one that turned off last; 0, -1/4, 0 for the others
    assert found[0].tolist() == pytest.approx([0.75 / 0.5, (0.75 + 0.25) / 0.5, (0.75 + 0.5) / 0.5], rel=1e-5)
    assert found[1].tolist() == pytest.approx([-0.25 / 0.5, (-0.25 + 0.25) / 0.5, (-0.25 - 0.5) / 0.5], abs=1e-5)
    assert found[2].tolist() == pytest.approx([-0.25 / 0.5, (-0.25 - 0.25) / 0.5, -0.25 / 0.5], rel=1e-5)
    # Second group: mean 1/2, std sqrt(4 * 1/4 / 3) = 0.57735. All part at the third token: V = 1 or 0
    assert found[4].tolist() == pytest.approx([0.5 / 0.57735, 0.5 / 0.57735, (0.5 + 0.5) / 0.57735], rel=1e-4)
    assert found[6].tolist() == pytest.approx([-0.5 / 0.57735, -0.5 / 0.57735, (-0.5 - 0.5) / 0.57735], rel=1e-4)


def test_weight_and_deviation_can_be_switched_off_alone():
    plain = DrGRPO().advantages(batch())
    tree = prefix_tree(IDS, IDS > 0, batch().rewards, 4)
    assert TEMPO(normalize=False).advantages(batch()).equal(plain + tree)
    assert TEMPO(normalize=False, weight=0.5).advantages(batch()).equal(plain + 0.5 * tree)
    by_hand = plain / (torch.tensor([0.5] * 4 + [3**-0.5] * 4).unsqueeze(1) + 1e-6)
    assert TEMPO(weight=0).advantages(batch()).flatten().tolist() == pytest.approx(by_hand.flatten().tolist())


def test_a_group_of_one_opinion_gets_nothing():
    assert TEMPO().advantages(batch(rewards=(1.0,) * 4 + (0.0,) * 4)).abs().sum() == 0
    unscored = TEMPO().advantages(batch(rewards=(torch.nan,) * 4 + (1.0, 0, torch.nan, torch.nan)))
    assert unscored[:4].abs().sum() == unscored[6:].abs().sum() == 0
    assert unscored[4, 0] == pytest.approx(0.5 / 0.5**0.5, rel=1e-5)


@pytest.mark.parametrize(
    "of", [DrGRPO(), PrefixRL(), PrefixRFT(), UFT(), Adaptive(), SFTThenRL()], ids=lambda of: type(of).__name__
)
def test_switched_off_it_answers_as_the_method_within(of):
    off, given = TEMPO(of, weight=0, normalize=False), batch((2,) * 8)
    entropies = torch.rand(8, 3)
    assert off.advantages(given).equal(of.advantages(given))
    assert off.update_mask(given, entropies).equal(of.update_mask(given, entropies))
    assert off.copies([True, False]) == of.copies([True, False])
    assert off.weights(given).equal(of.weights(given))
    assert (off.needs, off.stages.supervised) == (of.needs, of.stages.supervised)
    assert off.faults(TRAINING) == []


def test_the_root_of_a_group_that_shares_a_prefix_is_its_end():
    shared = batch((1,) * 4 + (2,) * 4)
    tree = TEMPO(PrefixRL(), normalize=False).advantages(shared) - PrefixRL().advantages(shared)
    assert (tree[:4, 0] == 0).all()
    assert (tree[4:, :2] == 0).all()
    assert tree[4:, 2].tolist() == pytest.approx([0.5, 0.5, -0.5, -0.5])


def test_a_hybrid_turns_off_at_its_first_token():
    given = rollouts([1.0, 0, 0, 0], [2, 0, 0, 0])
    given = replace(given, completion_ids=torch.tensor([[9] * 6] + [[1] * 5 + [n] for n in range(3)]))
    found = TEMPO(PrefixRFT(), normalize=False).advantages(given)
    assert found[0].tolist() == pytest.approx([0.75 + 0.75] + [0.75] * 5)  # V(9) - V(root) = 1 - 1/4, on a prefix token
    assert found[1].tolist() == pytest.approx([-0.25 - 0.25] + [-0.25] * 5)


def test_what_is_imitated_keeps_its_weight():
    given, uft = batch((2,) * 8), UFT(weight=0.5)
    found, weights = TEMPO(uft).advantages(given), TEMPO(uft).weights(given)
    assert weights.equal(uft.weights(given))
    assert weights[0].tolist() == [0.5 * 8 * 24 / 16] * 2 + [0]  # weight * B * L / hint tokens, whatever the deviation
    # The third token of the first group: r - mean + TD, over the deviation 1/2
    assert found[0, 2] == pytest.approx((0.75 + 0.5) / 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (LUFFY(), "method.of.name = luffy: its demonstrations are no completions of the policy's"),
        (TEMPO(), "method.of.name = tempo: its tree would be counted twice"),
        (PrefixRFT(credit="released"), "method.of.credit = released: the root of the tree is the mean of all rollouts"),
        (
            Adaptive(PrefixRFT(credit="unprefixed")),
            "method.of.of.credit = unprefixed: the root of the tree is the mean of all rollouts",
        ),
        (PrefixRL(low=0.8, high=0.4), "method.of.low = 0.8 is above method.of.high = 0.4"),
    ],
)
def test_contradictions_are_explained(of, message):
    (fault,) = TEMPO(of).faults(TRAINING)
    assert message in fault


# --- in the trainer ---------------------------------------------------------------------------------------------------


def test_the_gradient_equals_one_written_by_hand(tmp_path):
    made = trainer(tmp_path, TEMPO(PrefixRL()))
    given = generation(made, count=16)  # the four copies of the first problem
    prefix, written = given["prefix_mask"], given["completion_mask"].bool()
    ids, logps, rewards = given["completion_ids"], reference_logps(made, given), given["rewards"]
    total = 0.0
    for i in range(16):
        group = range(i // 4 * 4, i // 4 * 4 + 4)
        mean = sum(rewards[j] for j in group) / 4
        std = (sum((rewards[j] - mean) ** 2 for j in group) / 3) ** 0.5
        with_me = list(group)
        for t in range(int(written[i].sum())):
            before = sum(rewards[j] for j in with_me) / len(with_me)
            with_me = [j for j in with_me if written[j, t] and ids[j, t] == ids[i, t]]
            after = sum(rewards[j] for j in with_me) / len(with_me)
            if not prefix[i, t]:
                total = total - (rewards[i] - mean + after - before) / (std + 1e-6) * logps[i, t]
    made.model.zero_grad()
    (total / (16 * made.max_completion_length)).backward()
    theirs = torch.cat([p.grad.flatten() for p in made.model.parameters()])
    ours = loss_gradient(made, given)
    assert theirs.abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-5 * max(1, float(theirs.abs().max()))
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    for size in (8, 2):
        made.current_gradient_accumulation_steps = 16 // size
        parts = sum(loss_gradient(made, given, rows) for rows in shuffled.split(size))
        assert (parts - ours).abs().max() < 1e-5 * max(1, float(theirs.abs().max()))


def test_off_it_trains_as_the_method_within_and_on_it_does_not(tmp_path):
    runs = {}
    methods = {"within": LATE, "off": TEMPO(LATE, weight=0, normalize=False), "on": TEMPO(LATE)}
    for name, method in methods.items():
        runs[name] = trainer(tmp_path / name, method)
        runs[name].train()
    assert parameters(runs["off"]).equal(parameters(runs["within"]))
    assert not parameters(runs["on"]).equal(parameters(runs["within"]))
