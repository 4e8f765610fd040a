"""The supervised stage: what it trains on, that every token weighs the same, and that it can be cut off."""

import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small import CHAT_TEMPLATE, arguments, byte_level_bpe, policy, token_reward
from test_train import PREFIX_RFT, run
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

from prefix_rl.costs import Cost
from prefix_rl.data.problems import Problem
from prefix_rl.errors import CheckpointError, DataError, RecipeError
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.stage import Supervised
from prefix_rl.policy import Policy
from prefix_rl.recipe import load_recipe
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.seam.trainer import PrefixTrainer
from prefix_rl.supervised import _trainer, fine_tune, micro_batches, order, rows

TOKENIZER = byte_level_bpe()
FACTS = {"recipe": {}, "data": "x", "versions": {}, "world_size": 1}
TEXTS = ["so \\boxed{%d}", "We have %d, and so the answer is %d: that is the number, and it is \\boxed{%d}"]


def problems(count=16):
    """Demonstrations of about 5 and about 45 tokens, in turn."""
    return [
        Problem(
            id=str(i), text=f"{i} + {i} = ?", answer=str(2 * i), place=f"row {i}",
            demonstrations=({"text": TEXTS[i % 2].replace("%d", str(2 * i))},),
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder of an untrained policy."""
    folder = tmp_path_factory.mktemp("policy")
    policy(TOKENIZER).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def recipe_for(start, *overrides, **stage):
    stage = {"batch_size": 8, "epochs": 1.5, "learning_rate": 0.1, "warmup": 0, **stage}
    return load_recipe(
        PREFIX_RFT,
        [f"method={json.dumps({'name': 'sft', 'supervised': stage})}", f"model.name_or_path={start}",
         "training.max_completion_length=80", "training.logging_steps=1", "training.save_strategy=no", *overrides],
    )  # fmt: skip


def stage_of(folder, recipe, start, given=None):
    return fine_tune(Policy(recipe, start), given or problems(), folder, FACTS)


def parameters(folder):
    found = load_file(folder / "final" / "model.safetensors")
    return torch.cat([found[name].flatten() for name in sorted(found)])


# --- the order --------------------------------------------------------------------------------------------------------


@given(
    count=st.integers(1, 40), epochs=st.floats(0.1, 5), batch=st.integers(1, 20), seed=st.integers(0, 3),
)  # fmt: skip
def test_the_order_is_whole_steps_of_whole_epochs(count, epochs, batch, seed):
    found = order(count, Supervised(epochs=epochs, batch_size=batch), seed)
    assert len(found) % batch == 0
    assert len(found) >= batch
    assert len(found) == batch or abs(len(found) - epochs * count) <= batch / 2 + 1e-9
    for start in range(0, len(found), count):
        epoch = found[start : start + count]
        assert len(set(epoch)) == len(epoch)  # nothing twice in an epoch
    times = Counter(found)
    assert set(found) <= set(range(count))
    assert max(times.values()) - min(times[i] for i in range(count)) <= 1
    assert found == order(count, Supervised(epochs=epochs, batch_size=batch), seed)


def test_epochs_and_seeds_differ_in_their_order():
    three = Supervised(epochs=3, batch_size=4)
    epochs = [tuple(order(20, three, seed=0)[start : start + 20]) for start in (0, 20, 40)]
    assert len(set(epochs)) == 3
    assert order(20, three, seed=0) != order(20, three, seed=1)
    assert order(20, three, seed=0)[:20] == order(20, Supervised(epochs=1, batch_size=4), seed=0)


@given(own=st.integers(1, 64), ranks=st.integers(1, 8), at_once=st.integers(1, 64))
def test_micro_batches_make_up_the_batch(own, ranks, at_once):
    micro, accumulation = micro_batches(Supervised(batch_size=own * ranks, per_device_batch_size=at_once), ranks)
    assert micro * accumulation * ranks == own * ranks
    assert micro <= at_once
    assert not any(own % n == 0 for n in range(micro + 1, min(at_once, own) + 1))  # the largest there is


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(RecipeError, match="batch_size = 6 demonstrations cannot be shared equally by 4 processes"):
        micro_batches(Supervised(batch_size=6), ranks=4)


# --- the rows ---------------------------------------------------------------------------------------------------------


def test_the_prompt_has_no_label_and_the_end_has_one(start):
    found = rows(Policy(recipe_for(start)), problems())
    assert len(found) == 16
    for row, problem in zip(found, problems(), strict=True):
        prompt = TOKENIZER(problem.text)["input_ids"]
        completion = [*TOKENIZER(problem.demonstrations[0]["text"])["input_ids"], TOKENIZER.eos_token_id]
        assert row["input_ids"] == prompt + completion
        assert row["labels"] == [-100] * len(prompt) + completion


@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_a_row_is_what_a_whole_demonstration_is_to_the_rl_stage(start, tmp_path, opening):
    template = CHAT_TEMPLATE.replace("<|assistant|>", f"<|assistant|>{opening}")
    tokenizer = byte_level_bpe(chat_template=template)
    text = f"{opening}1 + 1 is 2 so \\boxed{{2}}"
    given = [Problem(id="0", text="1 + 1 = ?", answer="2", demonstrations=({"text": text},), place="row 0")]
    policy(tokenizer).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    chat = ["data.train=rows.jsonl", "data.prompt=chat", "data.system_prompt=Be brief."]
    (row,) = rows(Policy(recipe_for(tmp_path / "start", *chat)), given)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 = ?"}]
    data = [{"prompt": messages, "answer": "2", "demonstrations": [{"text": text}]}] * 2
    trainer = PrefixTrainer(
        model=policy(tokenizer), reward_funcs=token_reward, args=arguments(tmp_path, max_completion_length=80),
        train_dataset=Dataset.from_list(data), processing_class=tokenizer, method=LUFFY(),
    )  # fmt: skip
    trainer.state.max_steps, trainer.current_gradient_accumulation_steps = 4, 1
    trainer.model.train()
    batch = trainer._generate_and_score_completions([trainer.train_dataset[0]] * 4)
    prompt = batch["prompt_ids"][0][batch["prompt_mask"][0].bool()].tolist()
    demonstration = batch["completion_ids"][0][batch["completion_mask"][0].bool()].tolist()
    assert batch["prefix_mask"][0].sum() == len(demonstration)
    assert row["input_ids"] == prompt + demonstration
    assert row["labels"] == [-100] * len(prompt) + demonstration
    assert tokenizer.decode(row["input_ids"]).count("<think>") == (1 if opening else 0)


def test_demonstrations_that_are_too_long_are_left_out(start, capsys):
    long = [sum(label != -100 for label in row["labels"]) for row in rows(Policy(recipe_for(start)), problems())]
    assert min(long[1::2]) > 2 * max(long[::2])
    limit = f"training.max_completion_length={max(long[::2])}"
    found = rows(Policy(recipe_for(start, limit)), problems())
    assert [len(row) for row in found["input_ids"]] == [
        len(TOKENIZER(p.text)["input_ids"]) + n for p, n in zip(problems()[::2], long[::2], strict=True)
    ]
    assert f"left out 8 demonstrations of more than max_completion_length = {max(long[::2])}" in capsys.readouterr().err
    with pytest.raises(DataError, match="no demonstration is left to fine-tune on: 16 have more than"):
        rows(Policy(recipe_for(start, "training.max_completion_length=3")), problems())


# --- every token weighs the same --------------------------------------------------------------------------------------


def by_hand(start, recipe, optimizer, rates, norm=math.inf, step_of=None):
    """The stage, one demonstration at a time: the mean over the tokens of a step, then the optimizer."""
    model = AutoModelForCausalLM.from_pretrained(start)
    stage, data = recipe.method.supervised, rows(Policy(recipe, start), problems())
    places = order(len(data), stage, recipe.training_value("seed"))
    optimizer = optimizer(model.parameters())
    for step, rate in enumerate(rates):
        batch = [data[i] for i in places[step * stage.batch_size : (step + 1) * stage.batch_size]]
        losses = []
        for row in batch:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
            logps = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), dim=-1)
            losses.append([-logps[t, labels[t + 1]] for t in range(len(labels) - 1) if labels[t + 1] != -100])
        optimizer.zero_grad()
        (step_of or token_mean)(losses).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    assert len(places) == len(rates) * stage.batch_size
    found = {name: p for name, p in model.state_dict().items() if name != "lm_head.weight"}  # tied
    return torch.cat([found[name].flatten() for name in sorted(found)])


def test_what_training_sets_for_both_stages_is_passed_on(start, tmp_path):
    both = {
        "seed": 5, "gradient_checkpointing": False, "gradient_checkpointing_kwargs": {"use_reentrant": True},
        "max_grad_norm": 0.25, "weight_decay": 0.3, "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6,
        "optim": "sgd", "run_name": "mine", "logging_steps": 3, "save_steps": 7, "save_strategy": "steps",
        "save_total_limit": 4, "disable_tqdm": True, "project": "ours", "dataloader_num_workers": 1, "bf16": True,
    }  # fmt: skip
    given = [f"training.{name}={json.dumps(value)}" for name, value in both.items()]
    made = Policy(recipe_for(start, *given, warmup=0.5, min_lr=0.25), start)
    args = _trainer(made, rows(made, problems()), tmp_path, FACTS, micro=4, accumulation=2, steps=6).args
    assert {name: getattr(args, name) for name in both} == both
    own = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 0.1, "warmup_steps": 3,
        "lr_scheduler_kwargs": {"min_lr_rate": 0.25}, "num_train_epochs": 1, "max_length": None, "packing": False,
        "average_tokens_across_devices": True,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in own} == own


def test_shares_of_the_stage_lie_between_0_and_1(start):
    for setting in ({"warmup": 1.5}, {"min_lr": -0.1}):
        with pytest.raises(RecipeError, match=r"must be a number in \[0, 1\]"):
            recipe_for(start, **setting)
    assert recipe_for(start, warmup=1, min_lr=0).method.supervised.warmup == 1


def token_mean(losses):
    return sum(sum(row) for row in losses) / sum(len(row) for row in losses)


def mean_of_means(losses):
    """What goes wrong where each micro-batch is averaged by itself (here: micro-batches of one)."""
    return sum(sum(row) / len(row) for row in losses) / len(losses)


PLAIN_SGD = ("training.optim=sgd", "training.max_grad_norm=1e9")


@pytest.fixture(scope="module")
def expected(start):
    recipe = recipe_for(start, *PLAIN_SGD, min_lr=1.0)
    return by_hand(start, recipe, lambda p: torch.optim.SGD(p, lr=1.0), [0.1] * 3)


@pytest.mark.parametrize(("at_once", "shape"), [(8, (8, 1)), (4, (4, 2)), (3, (2, 4)), (1, (1, 8))])
def test_a_step_is_the_mean_over_its_tokens_however_it_is_cut(start, expected, tmp_path, at_once, shape):
    recipe = recipe_for(start, *PLAIN_SGD, min_lr=1.0, per_device_batch_size=at_once)
    assert micro_batches(recipe.method.supervised, ranks=1) == shape
    stage_of(tmp_path, recipe, start)
    untrained = torch.cat([p.flatten() for _, p in sorted(load_file(Path(start) / "model.safetensors").items())])
    assert (expected - untrained).abs().max() > 0.01
    assert (parameters(tmp_path) - expected).abs().max() < 1e-6


def test_a_mean_of_means_would_be_seen(start, expected):
    recipe = recipe_for(start, *PLAIN_SGD, min_lr=1.0)
    wrong = by_hand(start, recipe, lambda p: torch.optim.SGD(p, lr=1.0), [0.1] * 3, step_of=mean_of_means)
    assert (wrong - expected).abs().max() > 1e-3


def adamw(parameters):
    """Decay is for matrices, as transformers does it; norms and biases have none."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-8)


def test_the_optimizer_the_schedule_and_the_clip_are_the_recipes(start, tmp_path):
    # three steps, round(0.34 * 3) = 1 of them to warm up: 0, the peak, and half of the cosine to a tenth of it,
    # 0.1 + 0.9 / 2 = 0.55
    recipe = recipe_for(
        start, "training.weight_decay=0.1", "training.max_grad_norm=0.5", "training.adam_beta1=0.8",
        learning_rate=1e-3, warmup=0.34, per_device_batch_size=4,
    )  # fmt: skip
    stage_of(tmp_path, recipe, start)
    theirs = by_hand(start, recipe, adamw, [0.0, 1e-3, 0.55e-3], norm=0.5)
    assert (parameters(tmp_path) - theirs).abs().max() < 2e-6


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_the_cost_of_a_stage(start, tmp_path):
    recipe = recipe_for(start, epochs=1)
    found = stage_of(tmp_path, recipe, start)
    data = rows(Policy(recipe, start), problems())
    every = sum(len(ids) for ids in data["input_ids"])
    trained = sum(len(TOKENIZER(p.demonstrations[0]["text"])["input_ids"]) + 1 for p in problems())
    count = sum(p.numel() for p in policy(TOKENIZER).parameters())
    assert found == Cost(injected_tokens=trained, trained_tokens=trained, flops=6 * count * every)
    twice = stage_of(tmp_path / "twice", recipe_for(start, epochs=2), start)
    assert twice.flops == 2 * found.flops
    assert twice.trained_tokens == 2 * trained


# --- cut off and continued --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """Six steps with AdamW, a checkpoint at every second."""
    folder = tmp_path_factory.mktemp("whole")
    saving = ("training.save_strategy=steps", "training.save_steps=2", "training.save_total_limit=3")
    recipe = recipe_for(start, *saving, epochs=3, learning_rate=1e-3)
    return folder, recipe, stage_of(folder, recipe, start)


@pytest.mark.parametrize(
    ("lost", "left"), [(["checkpoint-4", "checkpoint-6", "final"], 4), (["checkpoint-6", "final"], 2), (["final"], 0)]
)
def test_a_resumed_stage_equals_an_uninterrupted_one(start, whole, tmp_path, monkeypatch, lost, left):
    folder, recipe, cost = whole
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    for name in lost:
        shutil.rmtree(cut / name)
    trained, step = [], SFTTrainer.training_step
    monkeypatch.setattr("trl.SFTTrainer.training_step", lambda *args: trained.append(1) or step(*args))
    assert stage_of(cut, recipe, start) == cost
    assert len(trained) == left  # it went on, and did not begin anew
    assert parameters(cut).equal(parameters(folder))
    logged = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_that_was_cut_off_is_not_continued_from(start, whole, tmp_path):
    folder, recipe, _ = whole
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    shutil.rmtree(cut / "final")
    (cut / "checkpoint-6" / "prefix_rl.json").unlink()
    stage_of(cut, recipe, start)
    assert (cut / "incomplete-6").is_dir()
    assert parameters(cut).equal(parameters(folder))


def test_a_finished_stage_is_not_trained_again(start, whole, monkeypatch, capsys):
    folder, recipe, cost = whole

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr("trl.SFTTrainer.train", refuse)
    assert stage_of(folder, recipe, start) == cost
    assert "the supervised stage is finished" in capsys.readouterr().err


def test_a_stage_that_cannot_be_written_or_is_stopped_says_so(start, whole, tmp_path, monkeypatch, capsys):
    _, recipe, _ = whole

    def fail(error):
        def train(*args, **kwargs):
            raise error

        monkeypatch.setattr("trl.SFTTrainer.train", train)

    fail(OSError(28, "No space left on device"))
    with pytest.raises(CheckpointError, match=r"could not be written to .*No space left"):
        stage_of(tmp_path / "a", recipe, start)
    fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stage_of(tmp_path / "b", recipe, start)
    assert "stopped at step 0 of the supervised stage; no checkpoint has been written yet" in capsys.readouterr().err


@pytest.mark.parametrize("finished", [True, False])
def test_the_stage_of_another_run_is_refused(start, whole, tmp_path, finished):
    folder, recipe, _ = whole
    cut = tmp_path / "cut"
    shutil.copytree(folder, cut)
    if not finished:
        shutil.rmtree(cut / "final")
    with pytest.raises(CheckpointError, match="the training data has changed"):
        fine_tune(Policy(recipe, start), problems(), cut, {**FACTS, "data": "y"})


# --- in a run ---------------------------------------------------------------------------------------------------------

STAGE = "{epochs: 2, batch_size: 4, per_device_batch_size: 2, learning_rate: 1e-3}"


def test_no_epochs_are_dr_grpo(tmp_path):
    short = ("training.max_steps=2", "training.save_strategy=no")
    one = run(tmp_path / "one", "method={name: sft_then_rl, supervised: {epochs: 0}}", *short)
    other = run(tmp_path / "other", "method={name: dr_grpo}", *short)
    assert not (one / "sft").exists()
    for step in range(2):
        assert read_rollouts(one, step) == read_rollouts(other, step)
    left, right = (load_file(folder / "final" / "model.safetensors") for folder in (one, other))
    assert all(left[name].equal(right[name]) for name in left)
    assert (one / "cost.json").read_text() == (other / "cost.json").read_text()


def test_sft_alone_ends_with_the_policy_of_its_stage(tmp_path):
    folder = run(tmp_path / "run", f"method={{name: sft, supervised: {STAGE}}}")
    stage, final = (load_file(f / "final" / "model.safetensors") for f in (folder / "sft", folder))
    assert all(stage[name].equal(final[name]) for name in stage)
    cost = json.loads((folder / "cost.json").read_text())
    assert cost["generated_tokens"] == 0
    # 8 problems, twice, 20 totals, a box of seven words (\boxed{( , a , b , c , )) and the end
    assert cost["trained_tokens"] == 2 * 8 * 28
    assert not (folder / "rollouts").exists()


def test_the_rl_stage_starts_from_the_policy_and_the_cost_of_the_stage(tmp_path):
    folder = run(tmp_path / "run", f"method={{name: sft_then_rl, supervised: {STAGE}}}", "training.max_steps=1",
                 "training.save_strategy=no", "training.learning_rate=1e-12")  # fmt: skip
    stage, final = (load_file(f / "final" / "model.safetensors") for f in (folder / "sft", folder))
    assert all((stage[name] - final[name]).abs().max() < 1e-6 for name in stage)
    spent = json.loads((folder / "sft" / "final" / "prefix_rl.json").read_text())["cost"]
    first = next(json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "reward" in line)
    # 4 prompts of 22 words, 4 rollouts each: 8 N D for the tokens that were sampled and trained on
    count = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder / "final").parameters())
    generated = first["cost/generated_tokens"]
    assert first["cost/flops"] == spent["flops"] + 8 * count * (16 * 22 + generated)
    assert first["cost/trained_tokens"] >= spent["trained_tokens"] == 2 * 8 * 28


def test_trls_complaints_come_before_the_stage(tmp_path):
    with pytest.raises(RecipeError, match="TRL does not accept the training block"):
        run(
            tmp_path / "run", f"method={{name: sft_then_rl, supervised: {STAGE}}}", "training.lr_scheduler_type=cosinus"
        )
    assert not (tmp_path / "run" / "sft").exists()


def test_the_stage_loads_the_revision_that_was_asked_for(start, tmp_path, monkeypatch):
    seen = {}

    class Stop(Exception):
        pass

    class Noting:
        def __init__(self, *args, **kwargs):
            seen.update(kwargs["args"].model_init_kwargs)
            raise Stop

    monkeypatch.setattr("trl.SFTTrainer", Noting)
    with pytest.raises(Stop):
        stage_of(tmp_path, recipe_for(start, "model.revision=v2", "model.dtype=bfloat16"), start)
    assert seen == {"revision": "v2", "dtype": "bfloat16"}
