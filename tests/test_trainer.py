import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from small import (
    arguments,
    byte_level_bpe,
    dataset,
    lora,
    policy,
    token_reward,
    trains_adapters_alone,
    with_chat_template,
)
from trl import GRPOTrainer
from trl.trainer import grpo_trainer

from prefix_rl import checkpoints
from prefix_rl.costs import Cost
from prefix_rl.errors import DataError, RecipeError
from prefix_rl.methods.adaptive import Adaptive
from prefix_rl.methods.base import Needs
from prefix_rl.methods.bread import BREAD
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
from prefix_rl.prefixes import NO_PREFIX, Prefix
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.seam.batch import GenerationBatch
from prefix_rl.seam.checks import check_settings, check_text_only
from prefix_rl.seam.credit import prefix_entropies
from prefix_rl.seam.trainer import PrefixTrainer
from prefix_rl.speed.settings import OFF

TOKENIZER = byte_level_bpe()
LATE = PrefixRFT(horizon=1, end=0.2, high=0.6)  # prefixes of 20 to 60 % from the second step on


def trainer(folder, method=LATE, *, data=None, eval_data=None, reward=token_reward, model=None, tokenizer=TOKENIZER,
            options=None, **changes):  # fmt: skip
    return PrefixTrainer(
        model=model or policy(tokenizer),
        reward_funcs=reward,
        args=arguments(folder, **changes),
        train_dataset=dataset() if data is None else data,
        eval_dataset=eval_data,
        processing_class=tokenizer,
        method=method,
        **(options or {}),
    )


def stock(folder, data, **changes):
    return GRPOTrainer(
        model=policy(TOKENIZER), reward_funcs=token_reward, args=arguments(folder, **changes), train_dataset=data,
        processing_class=TOKENIZER,
    )  # fmt: skip


def parameters(trained):
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


def generation(made, count=8):
    """One generation batch as the training loop would make it, before TRL shuffles it."""
    made.state.max_steps, made.state.global_step = 4, 2
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    inputs = [made.train_dataset[i // made.num_generations] for i in range(count)]
    return made._generate_and_score_completions(inputs)


# --- Dr.GRPO is TRL's -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_iterations": 2},
        {"steps_per_generation": 4},
        {"beta": 0.0, "entropy_coef": 0.01},
        {"epsilon_high": 0.28},
    ],
    ids=["on-policy", "two iterations", "misaligned", "entropy bonus", "clip higher"],
)
def test_dr_grpo_equals_stock_trl_bit_for_bit(tmp_path, changes):
    data = dataset(16, demonstrations=False)
    theirs = stock(tmp_path / "trl", data, max_steps=4, **changes)
    theirs.train()
    ours = trainer(tmp_path / "ours", DrGRPO(), data=data, max_steps=4, options={"speed": OFF}, **changes)
    ours.train()
    assert parameters(theirs).equal(parameters(ours))
    for key in ("loss", "reward", "grad_norm", "entropy", "completions/mean_length"):
        assert [m[key] for m in theirs.state.log_history if key in m] == [
            m[key] for m in ours.state.log_history if key in m
        ]
    assert not parameters(ours).equal(torch.cat([p.detach().flatten() for p in policy(TOKENIZER).parameters()]))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The parameters after three steps of Dr.GRPO."""
    made = trainer(tmp_path_factory.mktemp("plain"), DrGRPO())
    made.train()
    return parameters(made)


@pytest.mark.parametrize(
    "neutral",
    [
        PrefixRFT(prefixed=0), PrefixRL(cuts=0), LUFFY(demonstrations=0), SFTLoss(demonstrations=0),
        SFTLoss(demonstrations=0, schedule="chord"), SFTThenRL(), ReLIFT(supervise=False),
        PPPO(share=1, progressive=False, continuations=0, normalize=False, normalizer="constant"),
        TEMPO(weight=0, normalize=False), UFT(count=0),
        Adaptive(PrefixRL(cuts=0)),
    ],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_neutral_settings_equal_dr_grpo_bit_for_bit(plain, tmp_path, neutral):
    made = trainer(tmp_path, neutral)
    made.train()
    assert parameters(made).equal(plain)


# --- Prefix-RFT's gradient --------------------------------------------------------------------------------------------


def loss_gradient(made, batch, rows=None):
    """The gradient of one micro-batch through the trainer's loss."""
    part = {k: v[rows] if rows is not None and torch.is_tensor(v) and v.dim() else v for k, v in batch.items()}
    made.model.zero_grad()
    made.compute_loss(made.model, part).backward()
    return torch.cat([p.grad.flatten() for p in made.model.parameters()])


def reference_gradient(made, batch, group_size, moves):
    """Dr.GRPO written by hand: -1/(B L) sum_i sum_t m_it A_i log pi, at ratio 1."""
    logps = reference_logps(made, batch)
    total = 0.0
    for i in range(len(logps)):
        group = [batch["rewards"][j] for j in range(len(logps)) if j // group_size == i // group_size]
        advantage = batch["rewards"][i] - sum(group) / len(group)
        for t in range(logps.size(1)):
            if moves(i, t):
                total = total - advantage * logps[i, t]
    return gradient_of(made, total / (len(logps) * made.max_completion_length))


def reference_logps(made, batch):
    """The log-probability of every completion token, from the full sequences."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logits = made.model(input_ids=ids, attention_mask=attention).logits / made.temperature
    logps = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return logps[:, -batch["completion_ids"].size(1) :]


def gradient_of(made, loss):
    made.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in made.model.parameters()])


@pytest.mark.parametrize("tokens", ["top_entropy", "all", "none", "low_entropy"])
def test_prefix_rft_gradient_equals_one_written_by_hand(tmp_path, tokens):
    share = {"share": 0.4} if tokens.endswith("entropy") else {}
    made = trainer(tmp_path, replace(LATE, tokens=tokens, **share))
    batch = generation(made)
    prefix, written = batch["prefix_mask"], batch["completion_mask"].bool()
    assert prefix.any(dim=1).tolist() == [True, False, False, False] * 2
    places = [(float(e), i, t) for i, t, e in entropies_of(made, batch) if prefix[i, t]]
    ranked = sorted(places, key=lambda p: (-p[0] if tokens == "top_entropy" else p[0], p[1], p[2]))
    kept = {(i, t) for _, i, t in ranked[: len(ranked) - int(0.6 * len(ranked))]}
    chosen = {"all": lambda i, t: True, "none": lambda i, t: False}.get(tokens, lambda i, t: (i, t) in kept)

    def moves(i, t):
        return bool(written[i, t]) and (not prefix[i, t] or chosen(i, t))

    ours, theirs = loss_gradient(made, batch), reference_gradient(made, batch, 4, moves)
    assert theirs.abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-6


def entropies_of(made, batch):
    """(row, token, entropy) of every completion token, from the full sequences."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    with torch.no_grad():
        logps = torch.log_softmax(made.model(input_ids=ids, attention_mask=attention).logits / made.temperature, dim=-1)
    entropy = -(logps.exp() * logps).sum(dim=-1)[:, -batch["completion_ids"].size(1) - 1 : -1]
    return [(i, t, entropy[i, t]) for i in range(entropy.size(0)) for t in range(entropy.size(1))]


def test_entropies_of_the_short_pass_equal_those_of_the_whole_sequence(tmp_path):
    made = trainer(tmp_path)
    batch = generation(made)
    encode = partial(made._get_per_token_logps_and_entropies, made.model, compute_entropy=True)
    short = prefix_entropies(encode, batch, batch["prefix_mask"], 4, made._ranks)
    assert short.isnan().equal(~batch["prefix_mask"])
    for i, t, entropy in entropies_of(made, batch):
        if batch["prefix_mask"][i, t]:
            assert short[i, t] == pytest.approx(float(entropy), abs=1e-5)


@dataclass(frozen=True)
class OnlyWhereNothingMoves(PrefixRFT):
    """Credit on exactly those tokens that must not move."""

    def advantages(self, rollouts):
        return rollouts.prefix_mask.float()

    def update_mask(self, rollouts, entropies):
        return rollouts.completion_mask & ~rollouts.prefix_mask


def test_no_parameter_moves_through_masked_tokens(tmp_path):
    made = trainer(tmp_path, OnlyWhereNothingMoves(horizon=1))
    batch = generation(made)
    assert batch["advantages"].abs().sum() > 0
    assert loss_gradient(made, batch).abs().max() == 0


def test_the_kept_tokens_and_the_gradient_do_not_depend_on_the_micro_batches(tmp_path):
    made = trainer(tmp_path)
    batch = generation(made)
    whole = loss_gradient(made, batch)
    for size in (1, 2, 4):
        parts = [loss_gradient(made, batch, torch.arange(i, i + size)) for i in range(0, 8, size)]
        assert (sum(parts) * size / 8 - whole).abs().max() < 1e-6
    order = torch.tensor([5, 0, 3, 7, 1, 2, 6, 4])
    assert (loss_gradient(made, batch, order) - whole).abs().max() < 1e-6


def test_training_does_not_depend_on_the_micro_batches(tmp_path):
    runs = []
    for size in (8, 4, 1):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        # Plain gradient descent: AdamW divides, and a gradient of almost 0 may end up on either side of it
        runs.append(trainer(tmp_path / str(size), optim="sgd", learning_rate=0.1, **sizes))
        runs[-1].train()
    for run in runs[1:]:
        assert (parameters(run) - parameters(runs[0])).abs().max() < 2e-5
    untrained = torch.cat([p.detach().flatten() for p in policy(TOKENIZER).parameters()])
    assert (parameters(runs[0]) - untrained).abs().max() > 1e-3
    kept = [[m["prefix/kept_share"] for m in run.state.log_history if "prefix/kept_share" in m] for run in runs]
    assert kept[0] == kept[1] == kept[2]


# --- the gradients of the other methods -------------------------------------------------------------------------------

# The demonstrations have 32 to 35 tokens and an end; 40 are allowed
LONG = {"max_completion_length": 40}
WHOLE = [
    LUFFY(), LUFFY(demonstrations=2, gamma=0.5), SFTLoss(weight=0.7), SFTLoss(demonstrations=2, weight=0.7),
    SFTLoss(weight=0.9, tokens="uncertain", schedule="chord", end=0.1, horizon=4),
]  # fmt: skip


def hybrid_gradient(made, batch, group_size=4):
    """Both methods written by hand: the clipped surrogate on the policy's tokens, the extra term on the others."""
    method, logps = made.method, reference_logps(made, batch)
    rewards, prefix, written = batch["rewards"], batch["prefix_mask"], batch["completion_mask"].bool()
    old = batch.get("old_per_token_logps")
    old = logps.detach() if old is None else old
    surrogate, imitated, tokens, clipped = 0.0, 0.0, 0, 0
    for i in range(len(logps)):
        group = [j for j in range(len(logps)) if j // group_size == i // group_size]
        if isinstance(method, SFTLoss):  # a demonstration is not in the group's mean
            group = [j for j in group if not prefix[j].any()]
        advantage = rewards[i] - sum(rewards[j] for j in group) / len(group)
        for t in range(logps.size(1)):
            if not written[i, t]:
                continue
            p = logps[i, t].exp()
            if not prefix[i, t]:
                ratio = (logps[i, t] - old[i, t]).exp()
                surrogate = surrogate - torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
                clipped += not 0.8 < ratio < 1.2
            elif isinstance(method, LUFFY):
                imitated = imitated - advantage * p / (p + method.gamma)
            else:
                tokens += 1
                uncertainty = (p * (1 - p)).detach() if method.tokens == "uncertain" else 1.0
                imitated = imitated - uncertainty * logps[i, t]
    scale = len(logps) * made.max_completion_length
    if isinstance(method, LUFFY):
        loss = (surrogate + imitated) / scale
    elif method.schedule == "constant":
        loss = surrogate / scale + method.weight * imitated / tokens
    else:  # half of the cosine: step 2 of 4, (0.9 + 0.1) / 2
        loss = 0.5 * surrogate / scale + 0.5 * imitated / tokens
    return gradient_of(made, loss), clipped


@pytest.mark.parametrize("method", WHOLE, ids=repr)
@pytest.mark.parametrize("num_iterations", [1, 2])
def test_the_gradient_of_whole_demonstrations_equals_one_written_by_hand(tmp_path, method, num_iterations):
    made = trainer(tmp_path, method, num_iterations=num_iterations, **LONG)
    batch = generation(made)
    assert batch["prefix_mask"].any(dim=1).tolist() == ([True] * method.demonstrations + [False] * 3)[:4] * 2
    if num_iterations == 2:  # the second pass over the batch: the policy has moved on
        torch.manual_seed(1)
        with torch.no_grad():
            for p in made.model.parameters():
                p += 0.02 * torch.randn_like(p)
    theirs, clipped = hybrid_gradient(made, batch)
    assert (clipped > 0) == (num_iterations == 2)
    assert theirs.abs().max() > 1e-3
    assert (loss_gradient(made, batch) - theirs).abs().max() < 1e-5 * max(1, float(theirs.abs().max()))


@pytest.mark.parametrize("method", [*WHOLE, PrefixRL()], ids=repr)
def test_accumulated_micro_batches_give_the_gradient_of_one_batch(tmp_path, method):
    made = trainer(tmp_path, method, **LONG)
    batch = generation(made)
    whole = loss_gradient(made, batch)
    shuffled = torch.tensor([5, 0, 3, 7, 1, 2, 6, 4])
    for size in (4, 1):
        made.current_gradient_accumulation_steps = 8 // size
        parts = [loss_gradient(made, batch, rows) for rows in shuffled.split(size)]
        assert (sum(parts) - whole).abs().max() < 1e-5 * max(1, float(whole.abs().max()))
    assert whole.abs().max() > 1e-3


def test_training_on_whole_demonstrations_does_not_depend_on_the_micro_batches(tmp_path):
    runs = []
    for size in (8, 2):
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        runs.append(trainer(tmp_path / str(size), SFTLoss(weight=0.5), optim="sgd", **sizes, **LONG))
        runs[-1].train()
    assert (parameters(runs[0]) - parameters(runs[1])).abs().max() < 1e-5
    untrained = torch.cat([p.detach().flatten() for p in policy(TOKENIZER).parameters()])
    assert (parameters(runs[0]) - untrained).abs().max() > 1e-3


def test_no_gradient_flows_through_prefix_rls_prefixes(tmp_path):
    made = trainer(tmp_path, PrefixRL())
    batch = generation(made, count=16)  # the four copies of the first problem
    prefix, written = batch["prefix_mask"], batch["completion_mask"].bool()
    assert prefix.any(dim=1).tolist() == [False] * 4 + [True] * 12
    for group in range(4):
        rows = range(4 * group, 4 * group + 4)
        begun = [batch["completion_ids"][i][prefix[i]].tolist() for i in rows]
        assert begun == [begun[0]] * 4
    ours = loss_gradient(made, batch)
    theirs = reference_gradient(made, batch, 4, lambda i, t: bool(written[i, t] and not prefix[i, t]))
    assert theirs.abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-6
    # A shared prefix's gradients cancel, since a group's credit adds up to 0. So once more with credit that does not:
    batch["advantages"] = prefix.float()
    assert loss_gradient(made, batch).abs().max() == 0


# --- what is injected -------------------------------------------------------------------------------------------------


def test_an_epoch_of_prefix_rl_has_its_copies_and_every_epoch_the_same_cuts(tmp_path):
    # 3 problems with a trace and 4 rows each, 2 without and 1 row: 14 rows, 2 a step, an epoch is 7 steps
    data = dataset(5).to_list()
    for row in (1, 4):
        data[row]["demonstrations"] = []
    made = trainer(tmp_path, PrefixRL(), data=dataset(5).from_list(data), max_steps=14, options={"rollouts_every": 1})
    assert list(zip(made.train_dataset["dataset_row"], made.train_dataset["copy"], strict=True)) == [
        *[(0, copy) for copy in range(4)], (1, 0), *[(2, copy) for copy in range(4)],
        *[(3, copy) for copy in range(4)], (4, 0),
    ]  # fmt: skip
    made.train()
    epochs = []
    for epoch in range(2):
        seen = Counter()
        for step in range(7 * epoch, 7 * epoch + 7):
            records = read_rollouts(tmp_path, step)
            for start in (0, 4):
                group = records[start : start + 4]
                begun = [(r["row"], *r["completion_ids"][: r["prefix_tokens"]]) for r in group]
                assert begun == [begun[0]] * 4
                seen[begun[0]] += 1
        epochs.append(seen)
    assert epochs[0] == epochs[1]
    assert [sum(row == begun[0] and len(begun) == 1 for begun in epochs[0]) for row in range(5)] == [1] * 5
    assert [sum(n for begun, n in epochs[0].items() if begun[0] == row and len(begun) > 1) for row in range(5)] == [
        3, 0, 3, 3, 0,
    ]  # fmt: skip


def test_prefix_rl_without_plain_copies_drops_problems_without_a_trace(tmp_path):
    data = dataset(3).to_list()
    data[1]["demonstrations"] = []
    made = trainer(tmp_path, PrefixRL(plain=0, cuts=2), data=dataset(3).from_list(data))
    assert made.train_dataset["dataset_row"][:] == [0, 0, 2, 2]
    assert made.train_dataset["copy"][:] == [0, 1, 0, 1]


def test_a_batch_of_plain_copies_alone_is_no_failure(tmp_path):
    made = trainer(tmp_path, PrefixRL())
    assert not generation(made, count=4)["prefix_mask"].any()  # copy 0 of the first problem


def asked_of_the_engine(monkeypatch, answer=None):
    """The prompts that reach TRL's generation; with ``answer`` every one of them is answered by these ids."""
    seen = []
    original = GRPOTrainer._generate_single_turn

    def generate(self, ids, *args, **kwargs):
        seen.append([list(row) for row in ids])
        return ([list(answer) for _ in ids], None) if answer else original(self, ids, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)
    return seen


@pytest.mark.parametrize("method", [LUFFY(), SFTLoss(), LUFFY(demonstrations=3)], ids=repr)
def test_nothing_is_generated_for_whole_demonstrations_and_they_end(tmp_path, monkeypatch, method):
    made = trainer(tmp_path, method, **LONG)
    seen = asked_of_the_engine(monkeypatch)
    batch = generation(made)
    prompts = [TOKENIZER(row["prompt"])["input_ids"] for row in dataset(2)]
    left = 4 - method.demonstrations
    assert seen == [[prompts[0]] * left + [prompts[1]] * left]  # and no demonstration behind the prompt
    for i in range(8):
        ids = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        if i % 4 < method.demonstrations:
            assert ids == [*TOKENIZER(dataset()["demonstrations"][i // 4][0])["input_ids"], TOKENIZER.eos_token_id]
            assert batch["prefix_mask"][i].sum() == len(ids)
        else:
            assert ids
            assert not batch["prefix_mask"][i].any()


def test_a_process_whose_rows_are_all_complete_still_takes_part_in_generation(tmp_path, monkeypatch):
    made = trainer(tmp_path, LUFFY(), **LONG)
    seen = asked_of_the_engine(monkeypatch)
    plan = [Prefix([5, 6, TOKENIZER.eos_token_id], drawn=2, of=2, complete=True)] * 3
    with made._open.holding(GenerationBatch([], [], plan, None, None)):
        completions, logps = made._generate_single_turn([[7, 8], [9], [7]], None, {}, 4)
        again, _ = made._generate_single_turn([[7, 8], [9], [7]], None, {}, 4)
    assert all(row[:2] != [5, 6] for row in again)  # with tools TRL comes back for the rest of a turn: no prefix there
    assert seen.pop() == [[7, 8], [9], [7]]
    assert seen == [[[7, 8]]]  # sharded parameters are gathered by all processes
    assert completions == [[5, 6, TOKENIZER.eos_token_id]] * 3
    assert logps is None


def test_a_demonstration_that_does_not_fit_is_as_if_it_were_not_there(tmp_path):
    lengths = [len(TOKENIZER(text)["input_ids"]) for (text,) in dataset()["demonstrations"]]
    assert lengths[:5] == [33, 33, 34, 34, 32]
    made = trainer(tmp_path, LUFFY(), max_completion_length=33)  # only the fifth fits, with its end
    assert [len(made.demonstrations[row]) for row in range(8)] == [0, 0, 0, 0, 1, 0, 0, 0]
    assert not generation(made)["prefix_mask"].any()
    with pytest.raises(DataError, match="max_completion_length = 32"):
        trainer(tmp_path, LUFFY(), max_completion_length=32)


def test_vllm_is_asked_for_every_row_and_what_it_writes_behind_a_demonstration_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", FakeEngine)
    made = trainer(tmp_path, LUFFY(), use_vllm=True, vllm_mode="colocate", **LONG)
    batch = generation(made)
    ((prompts, _),) = FakeEngine.calls
    assert len(prompts) == 8
    assert len({tuple(p) for p in prompts}) == 2
    mask, written = batch["prefix_mask"], batch["completion_mask"].bool()
    assert mask.sum(dim=1).tolist() == [34, 0, 0, 0, 34, 0, 0, 0]
    assert not (written & ~mask)[mask.any(dim=1)].any()
    assert batch["sampling_per_token_logps"][mask].isnan().all()
    assert (batch["sampling_per_token_logps"][written & ~mask] == -1.5).all()


def test_prefixes_are_the_demonstrations_own_tokens_within_the_budget(tmp_path):
    made = trainer(tmp_path, PrefixRFT(prefixed=2), options={"answer_guard": "none"})
    batch = generation(made)
    for i in range(8):
        text = dataset()["demonstrations"][i // 4][0]
        tokens = TOKENIZER(text, add_special_tokens=False)["input_ids"]
        length = int(batch["prefix_mask"][i].sum())
        assert (length > 0) == (i % 4 < 2)
        assert batch["completion_ids"][i, :length].tolist() == tokens[:length]
        assert length < made.max_completion_length
    assert batch["completion_ids"].size(1) <= made.max_completion_length


def test_no_prefix_holds_its_answer(tmp_path):
    made = trainer(tmp_path, PrefixRFT(start=0.95, end=0.95), max_completion_length=80)
    made.state.max_steps = 4
    made.model.train()
    rows = [made.train_dataset[i // 4] for i in range(32)]
    for i, prefix in enumerate(made._planner.planned(rows, made._step_now()).plan):
        text = TOKENIZER.decode(prefix.ids)
        assert "boxed" not in text
        assert f" {2 * (i // 4 + 3)}" not in text
        assert bool(prefix.ids) == (i % 4 == 0)


def test_evaluation_injects_nothing(tmp_path, monkeypatch):
    made = trainer(tmp_path, PrefixRFT(start=0.9, end=0.9), eval_data=dataset(4), per_device_eval_batch_size=4)
    seen = []
    original = GRPOTrainer._generate_single_turn
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn",
                        lambda self, ids, *a, **k: seen.append(ids) or original(self, ids, *a, **k))  # fmt: skip
    made.evaluate()
    made.model.train()
    prompts = {tuple(TOKENIZER(row["prompt"])["input_ids"]) for row in dataset(4)}
    assert {tuple(ids) for call in seen for ids in call} <= prompts
    seen.clear()
    generation(made)
    assert {tuple(ids) for call in seen for ids in call} - prompts  # training does


def test_conversational_prompts_are_continued_behind_the_open_turn(tmp_path):
    tokenizer = with_chat_template()
    data = dataset().map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    made = trainer(tmp_path, PrefixRFT(horizon=1), data=data, tokenizer=tokenizer)
    batch = generation(made)
    text = tokenizer.decode(batch["prompt_ids"][0][batch["prompt_mask"][0].bool()])
    assert text.endswith("<|assistant|>")
    length = int(batch["prefix_mask"][0].sum())
    assert length > 0
    assert data["demonstrations"][0][0].startswith(tokenizer.decode(batch["completion_ids"][0, :length]))


def test_a_method_without_demonstrations_fails_before_training(tmp_path):
    with pytest.raises(DataError, match="no demonstration can be used"):
        trainer(tmp_path, data=dataset(demonstrations=False))


@dataclass(frozen=True)
class Forgetful(PrefixRFT):
    """Claims to inject prefixes, and does not."""

    def prefix(self, row, step):
        return NO_PREFIX


def test_a_run_that_injects_nothing_stops(tmp_path):
    with pytest.raises(DataError, match="injected no prefix although rows of the batch ask for one"):
        trainer(tmp_path, Forgetful()).train()


def test_a_back_end_that_drops_the_prefix_is_found_out(tmp_path, monkeypatch):
    made = trainer(tmp_path)
    monkeypatch.setattr(
        "prefix_rl.seam.planning.join", lambda prefix, continuation, budget: list(continuation)[:budget]
    )
    with pytest.raises(RuntimeError, match="dropped or changed it"):
        generation(made)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"scale_rewards": "group"}, {}, "scale_rewards = group"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, {}, "sum_then_normalize"),
        ({}, {"rollout_func": lambda prompts, trainer: {}}, "generate past the place"),
    ],
)
def test_settings_that_contradict_the_method_are_refused(tmp_path, changes, options, message):
    with pytest.raises(RecipeError, match=message):
        trainer(tmp_path, options=options, **changes)


PLAIN = {
    "scale_rewards": "none", "multi_objective_aggregation": "sum_then_normalize", "loss_type": "dr_grpo", "beta": 0.0,
    "num_generations": 4, "max_completion_length": 24, "importance_sampling_level": "token", "entropy_coef": 0.0, "use_adaptive_entropy": False, "top_entropy_quantile": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "changes", "kl_on", "without_signal", "options", "faults"),
    [
        (PrefixRFT(), {}, "moving", "keep", {}, []),
        (PrefixRFT(), {"scale_rewards": "group"}, "moving", "keep", {}, ["scale_rewards = group"]),
        (PrefixRFT(), {"beta": 0.1}, "all", "keep", {}, []),
        (PrefixRFT(), {}, "all", "keep", {}, ["says nothing with beta = 0"]),
        (PrefixRFT(), {}, "none", "keep", {}, ["kl_on = none: there are moving and all"]),
        (PrefixRFT(), {"beta": 0.1, "loss_type": "grpo"}, "all", "keep", {}, ["kl_on = all needs"]),
        (PrefixRFT(), {"beta": 0.1, "importance_sampling_level": "sequence"}, "all", "keep", {}, ["kl_on = all needs"]),
        (PrefixRFT(), {"loss_type": "grpo"}, "moving", "keep", {}, []),
        (PrefixRFT(), {"top_entropy_quantile": 0.5}, "moving", "keep", {}, []),
        (PrefixRFT(), {"entropy_coef": 0.1}, "moving", "keep", {}, []),
        (PrefixRFT(), {"entropy_coef": 0.1, "top_entropy_quantile": 0.5}, "moving", "keep", {}, ["an entropy bonus together"]),
        (PrefixRFT(), {"use_adaptive_entropy": True, "top_entropy_quantile": 0.5}, "moving", "keep", {}, ["an entropy bonus"]),
        (DrGRPO(), {"entropy_coef": 0.1, "top_entropy_quantile": 0.5}, "moving", "keep", {}, []),
        (DrGRPO(), {}, "moving", "skip", {}, []),
        (DrGRPO(), {}, "moving", "spare", {}, []),
        (DrGRPO(), {"loss_type": "grpo"}, "moving", "spare", {}, []),
        (DrGRPO(), {"loss_type": "dapo"}, "moving", "spare", {}, ["spare with loss_type = dapo and beta = 0.0"]),
        (DrGRPO(), {"beta": 0.1}, "moving", "spare", {}, ["spare with loss_type = dr_grpo and beta = 0.1"]),
        (DrGRPO(), {}, "moving", "resample", {}, []),
        (PPPO(), {}, "moving", "resample", {}, ["groups are exchanged before the further continuations"]),
        (PPPO(continuations=0), {}, "moving", "resample", {}, []),
        (PPPO(), {}, "moving", "skip", {}, []),
        (DrGRPO(), {}, "moving", "drop", {}, ["groups_without_signal = drop: there are keep, spare, skip, resample"]),
        (DrGRPO(), {"entropy_coef": 0.1}, "moving", "skip", {}, ["together with groups_without_signal = skip"]),
        (DrGRPO(), {}, "moving", "keep", {"tools": [print]}, []),
        (DrGRPO(), {}, "moving", "skip", {"tools": [print]}, []),
        (DrGRPO(), {}, "moving", "resample", {"tools": [print]}, ["tools: rollouts that are generated again"]),
        (BREAD(), {}, "moving", "keep", {"tools": [print]}, ["tools: rollouts that are generated again"]),
        (DrGRPO(), {}, "moving", "keep", {"rollout_func": print, "environment_factory": print}, []),
        (DrGRPO(), {}, "moving", "resample", {"rollout_func": print}, ["generate past the place"]),
        (PrefixRFT(), {}, "moving", "keep", {"environment_factory": print}, ["generate past the place"]),
        (PPPO(), {}, "moving", "keep", {"rollout_func": print}, ["generate past the place"]),
        (BREAD(), {}, "moving", "keep", {"rollout_func": print}, ["generate past the place"]),
        (PrefixRFT(), {"scale_rewards": "batch"}, "all", "keep", {}, ["scale_rewards = batch", "with beta = 0"]),
    ],
)  # fmt: skip
def test_settings_that_go_together_pass_and_all_that_do_not_are_told(
    method, changes, kl_on, without_signal, options, faults
):
    found = []
    try:
        check_settings(method, SimpleNamespace(**{**PLAIN, **changes}), kl_on, without_signal, options)
    except RecipeError as error:
        found = error.faults
    assert len(found) == len(faults)
    assert all(fault in said for fault, said in zip(faults, found, strict=True))


def test_a_model_that_takes_images_is_refused_where_the_policy_goes_on_from_ids():
    check_text_only(DrGRPO(), True)
    check_text_only(PrefixRFT(), False)
    for method in (PrefixRFT(), PPPO(), BREAD(), SimpleNamespace(needs=Needs(help_rounds=1))):
        with pytest.raises(RecipeError, match="takes images too"):
            check_text_only(method, True)


# --- the engine's contract --------------------------------------------------------------------------------------------


class FakeEngine:
    """Stands in for vLLM: notes what it is asked, answers with fixed tokens and log-probabilities."""

    calls: list

    def __init__(self, **kwargs):
        type(self).calls = []
        self.max_completion_length = kwargs["max_completion_length"]
        self.generation_kwargs = kwargs.get("generation_kwargs")
        self.mode = kwargs["mode"]

    def sync_weights(self):
        pass

    def generate(self, prompts, images, num_generations, profiler=None):
        self.calls.append((prompts, num_generations))
        completions = [[5 + len(p) % 7, 6, TOKENIZER.eos_token_id] for p in prompts]
        return prompts, completions, [[[-1.5]] * 3 for _ in prompts], None


def test_vllm_gets_one_generation_a_prompt_and_no_logps_of_the_prefix(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", FakeEngine)
    made = trainer(tmp_path, use_vllm=True, vllm_mode="colocate")
    batch = generation(made)
    ((prompts, num_generations),) = FakeEngine.calls
    assert num_generations == 1
    assert len(prompts) == 8  # one prompt for each rollout, not every num_generations-th
    assert [len(p) for p in prompts[1:4]] == [len(prompts[1])] * 3
    assert len(prompts[0]) == len(prompts[1]) + int(batch["prefix_mask"][0].sum())
    logps, mask = batch["sampling_per_token_logps"], batch["prefix_mask"]
    assert logps[mask].isnan().all()
    assert (logps[batch["completion_mask"].bool() & ~mask] == -1.5).all()
    ratio = batch["importance_sampling_ratio"]
    assert torch.isfinite(ratio).all()
    made.args.report_to = []
    assert torch.isfinite(made.compute_loss(made.model, batch))


def test_token_level_importance_ratios_are_one_on_the_prefix(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", FakeEngine)
    made = trainer(
        tmp_path, use_vllm=True, vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=1e9
    )
    batch = generation(made)
    ratio, mask = batch["importance_sampling_ratio"], batch["prefix_mask"]
    assert (ratio[mask] == 1).all()
    assert (ratio[batch["completion_mask"].bool() & ~mask] != 1).any()


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_unscored_rollouts_get_no_credit_and_are_counted(tmp_path):
    made = trainer(
        tmp_path, reward=lambda completions, **k: [None if i == 1 else float(i % 2) for i in range(len(completions))]
    )
    batch = generation(made)
    assert (batch["advantages"][1] == 0).all()
    assert batch["rewards"][1].isnan()
    assert made._metrics["train"]["reward_unscored_share"] == [1 / 8]


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "no rollout could be scored"), (float("nan"), "no rollout"), (float("inf"), "infinite")],
)
def test_rewards_that_cannot_be_trained_on_stop_the_run(tmp_path, value, message):
    with pytest.raises(DataError, match=message):
        trainer(tmp_path, reward=lambda completions, **k: [value] * len(completions)).train()


def test_several_rewards_are_weighted_as_trl_weighs_them(tmp_path):
    made = trainer(
        tmp_path, reward=[token_reward, lambda completions, **k: [1.0] * len(completions)], reward_weights=[2.0, 0.5]
    )
    batch = generation(made)
    expected = [2.0 * r + 0.5 for r in token_reward(None, [ids[m.bool()].tolist() for ids, m in
                zip(batch["completion_ids"], batch["completion_mask"], strict=True)])]  # fmt: skip
    assert batch["rewards"].tolist() == expected


# --- the extra objective ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PrefixNLL(PrefixRFT):
    """No credit at all, but likelihood on prefix tokens."""

    def advantages(self, rollouts):
        return torch.zeros_like(rollouts.completion_mask, dtype=torch.float)

    def extra_loss(self, batch, logps, entropies):
        return -(logps * batch.prefix_mask).sum() / len(logps)


def test_an_extra_loss_is_added_once_whatever_the_accumulation(tmp_path):
    made = trainer(tmp_path, PrefixNLL(horizon=1))
    batch = generation(made)
    whole = loss_gradient(made, batch)
    assert whole.abs().max() > 1e-3
    made.current_gradient_accumulation_steps = 4
    parts = [loss_gradient(made, batch, torch.arange(i, i + 2)) for i in range(0, 8, 2)]
    assert (sum(parts) - whole).abs().max() < 1e-5


def test_trls_own_entropy_mask_ranks_the_tokens_that_move(tmp_path, monkeypatch):
    made = trainer(tmp_path, PrefixRFT(horizon=1, tokens="none"), top_entropy_quantile=0.2)
    batch = generation(made)
    seen = []
    original = GRPOTrainer.get_high_entropy_mask

    def noted(self, entropies, mask, threshold):
        seen.append((mask.bool(), original(self, entropies, mask, threshold)))
        return seen[-1][1]

    monkeypatch.setattr(GRPOTrainer, "get_high_entropy_mask", noted)
    made.compute_loss(made.model, batch)
    ((mask, chosen),) = seen
    assert mask.equal(batch["completion_mask"].bool() & ~batch["prefix_mask"])
    assert int(chosen.sum()) == pytest.approx(0.2 * int(mask.sum()), abs=1)


# --- other settings of TRL --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"mask_truncated_completions": True, "generation_kwargs": {"eos_token_id": list(range(40, 90))}},
        {"num_iterations": 2},
        {"steps_per_generation": 4},
        {"gradient_checkpointing": True},
        {"loss_type": "dapo"},
        {"importance_sampling_level": "sequence", "loss_type": "grpo"},
        {"entropy_coef": 0.01},
        {"pad_to_multiple_of": 8},
    ],
    ids=str,
)
def test_prefix_rft_trains_with_other_settings_of_trl(tmp_path, changes):
    made = trainer(tmp_path, **changes)
    before = parameters(made).clone()
    made.train()
    assert made.state.global_step == 3
    assert torch.isfinite(parameters(made)).all()
    assert (parameters(made) - before).abs().max() > 0


def test_truncated_rollouts_that_trl_masks_move_no_prefix_tokens(tmp_path):
    made = trainer(tmp_path, mask_truncated_completions=True)
    batch = generation(made)
    truncated = ~batch["completion_mask"].bool().any(dim=1)
    assert truncated.any()
    assert not batch["prefix_mask"][truncated].any()


def test_prefix_rft_trains_with_lora(tmp_path):
    trains_adapters_alone(trainer(tmp_path, options=lora()))


# --- what a run costs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "count", "changes", "generated", "injected", "trained", "per_parameter"),
    [
        # 8 rows of 7 + 3 tokens, sampled (2 N D) and trained (6 N D): 8 * 80
        (DrGRPO(), 8, {}, 24, 0, 24, 640),
        # trained twice, and encoded once more for the probabilities of the first pass: (2 + 2 * 6 + 2) * 80
        (DrGRPO(), 8, {"num_iterations": 2}, 24, 0, 48, 1280),
        # 2 demonstrations of 33 + 1 tokens, nothing sampled: 2 * 6 * 10 + 6 * (6 * 10 + 2 * 41)
        (LUFFY(), 8, LONG, 18, 68, 86, 972),
        (SFTLoss(), 8, LONG, 18, 68, 86, 972),
        (SFTLoss(weight=0.0), 8, LONG, 18, 68, 18, 972),
        # 2 * 60 + 2 * 6 * 142 + 2 * 142
        (LUFFY(), 8, {**LONG, "num_iterations": 2}, 18, 68, 172, 2108),
        # 4 plain rows of 10 tokens, 12 that start from 16 of 33: 8 * (4 * 10 + 12 * 26)
        (PrefixRL(low=0.5, high=0.5), 16, LONG, 48, 192, 48, 2816),
        # 2 rows start from 16 tokens, 7 of these 32 are kept; one more pass over prompt and prefix for their entropies:
        # 8 * (6 * 10 + 2 * 26) + 2 * 2 * 23
        (PrefixRFT(horizon=1, end=0.5, high=0.5), 8, LONG, 24, 32, 31, 988),
        (PrefixRFT(horizon=1, end=0.5, high=0.5, tokens="all"), 8, LONG, 24, 32, 56, 896),
    ],
    ids=repr,
)  # fmt: skip
def test_what_a_generation_batch_costs(
    tmp_path, monkeypatch, method, count, changes, generated, injected, trained, per_parameter
):
    made = trainer(
        tmp_path, method, reward=lambda completions, **k: [float(i % 2) for i in range(len(completions))],
        options={"answer_guard": "none"}, **changes,
    )  # fmt: skip
    asked_of_the_engine(monkeypatch, answer=[5, 6, TOKENIZER.eos_token_id])
    batch = generation(made, count)
    assert (batch["prompt_mask"].sum(dim=1) == 7).all()
    parameters = sum(p.numel() for p in made.model.parameters())
    assert made.cost == Cost(generated, injected, trained, per_parameter * parameters)
    assert made._metrics["train"]["cost/flops"] == [per_parameter * parameters]
    generation(made, count)
    assert made.cost.flops == 2 * per_parameter * parameters
    assert made._metrics["train"]["cost/flops"] == [2 * per_parameter * parameters]  # a total, not a mean
    assert made._metrics["train"]["cost/trained_tokens"] == [2 * trained]


def costs(made):
    names = [f"cost/{name}" for name in asdict(Cost())]
    return [[log[name] for name in names] for log in made.state.log_history if names[0] in log]


def test_costs_go_on_after_a_resume_from_what_was_spent_before(tmp_path):
    options = {"options": {"spent": Cost(flops=1e15, generated_tokens=1e6)}, "max_steps": 4}
    whole = trainer(tmp_path / "run", **options, save_strategy="steps", save_steps=2)
    whole.train()
    assert costs(whole)[0][3] > 1e15
    assert 1e6 < costs(whole)[0][0] < 1e6 + 1000
    again = trainer(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert again.cost == whole.cost
    assert costs(again) == costs(whole)  # the first two read back, the others counted on
    assert list(asdict(whole.cost).values()) == costs(whole)[-1]
    assert all(a < b for a, b in zip(costs(whole)[0], costs(whole)[1], strict=True))


def test_the_budget_stops_a_run_at_a_whole_checkpoint(tmp_path):
    whole = trainer(tmp_path / "whole", max_steps=4)
    whole.train()
    flops = [cost[3] for cost in costs(whole)]
    for name, budget, stops_after in (("exactly", flops[1], 2), ("more", flops[1] + 1, 3), ("plenty", 1e30, 4)):
        made = trainer(tmp_path / name, max_steps=4, options={"budget": budget})
        made.train()
        assert made.state.global_step == stops_after
        assert [cost[3] for cost in costs(made)] == flops[:stops_after]
        assert (checkpoints.last_whole(tmp_path / name) is None) == (name == "plenty")  # no save_strategy but this
        if name != "plenty":
            assert checkpoints.facts_of(checkpoints.last_whole(tmp_path / name))["step"] == stops_after
    made = trainer(tmp_path / "spent", max_steps=4, options={"budget": flops[1], "spent": Cost(flops=flops[0])})
    made.train()
    assert made.state.global_step == 1  # what came before counts


# --- what a method remembers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diary(PrefixRFT):
    """Writes down what it is given, and on every third generation batch asks for problems 5 and 2."""

    def remember(self, memory, rollouts):
        assert rollouts.step.memory == memory
        assert rollouts.demonstrated.all()
        assert rollouts.fractions.isnan().equal(~rollouts.prefixed)  # a fraction wherever a prefix was planned
        shown = {
            "problems": rollouts.problems[:: rollouts.group_size].tolist(),
            "fraction": float(rollouts.fractions[0]),
        }
        return {name: [*memory.get(name, []), value] for name, value in shown.items()} | {
            "evaluations": memory.get("evaluations", []),
            "due": [5, 2] if len(memory.get("problems", [])) % 3 == 1 else [],
        }

    def remember_evaluation(self, memory, reward):
        return {**memory, "evaluations": [*memory["evaluations"], reward]}

    def metrics(self, memory):
        return {"batches": len(memory["problems"]), "diary/last": memory["fraction"][-1]}


def test_a_resumed_run_remembers_and_problems_come_in_the_place_of_others(tmp_path):
    options = {"data": dataset(12), "eval_data": dataset(2, demonstrations=False)}
    options |= {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 3}
    whole = trainer(tmp_path / "run", Diary(), **options, save_strategy="steps", save_steps=4)
    whole.train()
    seen = whole._saved.memory["problems"]
    assert len(seen) == 6
    assert seen[2::3] == [[5, 2], [5, 2]]
    assert seen[0] != [5, 2]
    assert len(set(map(tuple, seen))) >= 4
    evaluated = [log["eval_reward"] for log in whole.state.log_history if "eval_reward" in log]
    assert whole._saved.memory["evaluations"] == evaluated
    assert len(evaluated) == 2
    assert all(0 < fraction <= 0.95 for fraction in whole._saved.memory["fraction"])
    logs = [log for log in whole.state.log_history if "reward" in log]
    assert [log["method/batches"] for log in logs] == [1, 2, 3, 4, 5, 6]
    assert [log["diary/last"] for log in logs] == whole._saved.memory["fraction"]
    again = trainer(tmp_path / "again", Diary(), **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert again._saved.memory == whole._saved.memory
    assert parameters(again).equal(parameters(whole))


# --- what is kept of a run --------------------------------------------------------------------------------------------


def test_metrics_are_kept_in_a_file(tmp_path):
    trainer(tmp_path).train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    assert [line["step"] for line in steps] == [1, 2, 3]
    expected = {
        "reward_with_prefix", "reward_without_prefix", "reward_unscored_share", "prefix/rollouts", "prefix/length",
        "prefix/fraction", "prefix/token_share", "prefix/kept_share", "prefix/shortened_share",
        "prefix/continuation_advantage", "entropy_prefix", "entropy_continuation", "speed/encoded_share",
        "speed/grading_share",
    }  # fmt: skip
    assert expected <= steps[-1].keys()
    assert steps[-1]["prefix/rollouts"] == 2
    assert steps[-1]["reward"] == pytest.approx(
        (steps[-1]["reward_with_prefix"] * 2 + steps[-1]["reward_without_prefix"] * 6) / 8
    )


def test_rollouts_are_saved_with_their_prefix_apart(tmp_path):
    trainer(tmp_path, options={"rollouts_every": 2}).train()
    assert sorted(p.name for p in (tmp_path / "rollouts").iterdir()) == ["step_000000.parquet", "step_000002.parquet"]
    records = read_rollouts(tmp_path)
    assert len(records) == 8
    for record in records:
        prefix = "".join(s["text"] for s in record["segments"] if s["kind"] != "continuation")
        assert prefix == TOKENIZER.decode(record["completion_ids"][: record["prefix_tokens"]])
        assert "".join(s["text"] for s in record["segments"]) == TOKENIZER.decode(record["completion_ids"])
    assert sum(r["prefix_tokens"] > 0 for r in records) == 2
