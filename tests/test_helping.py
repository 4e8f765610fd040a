"""Rounds within a step: help for failed groups, other problems for groups without signal. Whole steps by the oracle."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import oracle
import pytest
import torch
from small import dataset, lora, trains_adapters_alone
from test_oracle import TOKENIZER, Run, agrees, off, some_end
from test_seam_vllm import Colocated, Llm
from test_tempo import batch
from test_trainer import generation, parameters, trainer
from trl.trainer import grpo_trainer

from prefix_rl.errors import RecipeError
from prefix_rl.methods.base import Earlier, Method, Needs
from prefix_rl.methods.bread import BREAD
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.tempo import TEMPO
from prefix_rl.methods.uft import UFT
from prefix_rl.prefixes import Prefix
from prefix_rl.recipe import load_recipe
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.seam.helping import Made, Rounds
from prefix_rl.speed.settings import OFF

TOKENS = {"cut": "tokens"}  # the demonstrations of small.dataset are one sentence each


def even(ids):
    return float(sum(ids) % 2 == 0)


def unaided_fail(completions, completion_ids, answer, continuation_start, **columns):
    """Half of the problems are never solved without a prefix; with one of 10 characters or more some rollouts are."""
    return [
        even(ids) if start >= 10 or int(a) % 4 else 0.0
        for ids, a, start in zip(completion_ids, answer, continuation_start, strict=True)
    ]


def half_teach(completions, completion_ids, answer, **columns):
    """All rollouts of half of the problems are right, of the others some."""
    return [even(ids) if int(a) % 4 else 1.0 for ids, a in zip(completion_ids, answer, strict=True)]


def easy_or_failing(completions, completion_ids, answer, **columns):
    """All rollouts of every third problem are right."""
    found = unaided_fail(completions, completion_ids, answer, **columns)
    return [reward if int(a) % 3 else 1.0 for reward, a in zip(found, answer, strict=True)]


def groups(records, size=4):
    return [records[i : i + size] for i in range(0, len(records), size)]


def metrics(run):
    import json

    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "reward" in line]


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (BREAD(**TOKENS), {}),
        (BREAD(normalize=True, **TOKENS), {"beta": 0.5}),
        (BREAD(**TOKENS), {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_iterations": 2}),
        (BREAD(**TOKENS), {"loss_type": "dapo"}),
    ],
    ids=repr,
)  # fmt: skip
def test_a_whole_step_with_help_is_the_oracles(tmp_path, method, changes):
    run = Run(tmp_path, method, steps=4, reward=unaided_fail, **changes)
    rollouts = agrees(run)
    helped = [g for g in groups(rollouts) if g[0].prefix]
    assert helped
    for group in helped:  # all rollouts of a group start from one prefix, and some of them are right
        assert len({tuple(r.ids[: r.prefix]) for r in group}) == 1
        assert {r.reward for r in group} == {0.0, 1.0}
    assert any(not g[0].prefix for g in groups(rollouts))
    found = metrics(run)
    assert any(line["help/groups_share"] > 0 and line["discarded_tokens"] > 0 for line in found)


def test_without_help_the_same_groups_stay_failed(tmp_path):
    """The control: what the test above sees comes from the help."""
    failing = lambda completions, completion_ids, **columns: unaided_fail(  # noqa: E731
        completions, completion_ids, continuation_start=[0] * len(completion_ids), **columns
    )
    Run(tmp_path, BREAD(episodes=0), steps=4, reward=failing)
    rollouts = [r for step in range(4) for r in oracle.read(read_rollouts(tmp_path, step), TOKENIZER)]
    assert not any(r.prefix for r in rollouts)
    assert any({r.reward for r in g} == {0.0} for g in groups(rollouts))


@dataclass(frozen=True)
class Alone(Method):
    """Row 0 of the batch is generated once more; in the next round it gets back what it was, and row 6 a prefix."""

    @property
    def needs(self):
        return Needs(prefixes=True, help_rounds=2)

    def help(self, rollouts, step):
        given = rollouts.rows[6].demonstrations[0]
        assert rollouts.prefixed.tolist() == [len(rollouts.earlier) == 1] + [False] * 7  # what stands now
        first = {0: Prefix(list(given.ids[:3]), 3, len(given.ids))}
        second = {0: Earlier(0), 6: Prefix(list(given.ids[:5]), 5, len(given.ids))}
        return [first, second][len(rollouts.earlier)]


def test_rows_are_replaced_put_back_and_counted(tmp_path, monkeypatch):
    some_end(monkeypatch)  # those that stay are complete, and nothing is added to them
    run = Run(tmp_path, Alone(), steps=1)
    (graded, again, last) = run.rewards  # one call a round: eight rows, then the new one alone
    assert [len(call) for call in (graded, again, last)] == [8, 1, 1]
    records = read_rollouts(tmp_path, 0)
    expected = [ids for ids, _ in graded]
    expected[6] = last[0][0]
    assert [r["completion_ids"] for r in records] == expected
    assert [r["reward"] for r in records] == [reward for _, reward in [*graded[:6], last[0], graded[7]]]
    assert [r["prefix_tokens"] for r in records] == [0] * 6 + [5, 0]
    assert records[6]["demonstration_tokens"] > 5
    # everything was generated and read once, in whichever round; the discarded rollouts are the first of row 6 and the
    # second of row 0, whose three tokens of a prefix nobody generated
    discarded = len(graded[6][0]) + len(again[0][0]) - 3
    (line,) = metrics(run)
    assert line["discarded_tokens"] == discarded
    assert (line["help/rounds"], line["help/groups_share"]) == (2, 1)
    kept = sum(len(r["completion_ids"]) for r in records)
    assert run.made.cost.generated_tokens == kept - 5 + discarded
    assert run.made.cost.injected_tokens == 5 + 3
    assert line["completions/mean_length"] == kept / 8
    assert line["num_tokens"] == kept + sum(len(TOKENIZER(p)["input_ids"]) * 4 for p in prompts(records))
    agrees(run)


def test_a_rollout_that_stands_as_it_is_was_neither_generated_nor_read():
    rollout = Made({}, None, Prefix([7, 8], 2, 5), prompt=10, ids=[7, 8, 9, 4, 5])
    assert rollout.tokens == (3, 2, 15)
    assert replace(rollout, prefix=Prefix([7, 8, 9, 4, 5], complete=True)).tokens == (0, 5, 0)


def prompts(records):
    import json

    return [json.loads(g[0]["prompt"]) for g in groups(records)]


def test_vllm_is_asked_for_the_new_rows_alone_and_what_it_told_of_the_others_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Colocated)
    write = Llm.generate

    def generate(self, prompts, *args, **kwargs):  # row 3 ends early
        found = write(self, prompts, *args, **kwargs)
        if len(found) == 8:
            end = TOKENIZER.eos_token_id
            found[3].outputs[0].token_ids[3:] = [end]
            found[3].outputs[0].logprobs[3:] = [{end: SimpleNamespace(rank=1, logprob=-1.5)}]
        return found

    monkeypatch.setattr(Llm, "generate", generate)
    made = trainer(tmp_path, Alone(), use_vllm=True, vllm_mode="colocate")
    batch = generation(made)
    calls = made.vllm_generation.llm.asked
    assert [[limit for _, limit, _ in call] for call in calls] == [[24] * 8, [24 - 3], [24 - 5]]
    assert len({seed for call in calls for *_, seed in call}) == 10
    told = batch["sampling_per_token_logps"]
    assert told.shape == (8, 24)
    assert told.isnan().sum(dim=1).tolist() == [0] * 6 + [5, 0]  # nobody sampled the prefix of row 6
    assert told[6, :5].isnan().all()
    assert (told[3, :4] == -1.5).all()
    assert (told[3, 4:] == 0).all()  # padding
    assert (told[[0, 1, 2, 4, 5, 7]] == -1.5).all()
    assert (told[6, 5:] == -1.5).all()


def test_a_rank_answers_for_its_own_rows():
    rows = [Made({}, None, Prefix([])) for _ in range(4)]
    history = [SimpleNamespace(made=rows, rewards=torch.zeros(12))]
    rounds = SimpleNamespace(_own=slice(4, 8), _state=lambda *of: of, _generated=lambda starts, state: starts)
    answers = {row: Prefix([row]) for row in (3, 4, 6, 7, 8)}
    starts = Rounds._answered(rounds, answers, history)
    assert {here: made.prefix.ids for here, made in starts.items()} == {0: [4], 2: [6], 3: [7]}


def test_the_tables_of_trl_hold_what_stands_at_last(tmp_path):
    def first(completions, completion_ids, log_extra, **columns):
        log_extra("odd", [sum(ids) % 2 for ids in completion_ids])
        return [float(len(ids)) for ids in completion_ids]

    def second(completions, completion_ids, log_metric, **columns):
        log_metric("rows", float(len(completion_ids)))
        return [None if i % 2 else even(ids) for i, ids in enumerate(completion_ids)]

    made = trainer(tmp_path, Alone(), reward=[first, second], max_steps=1, options={"rollouts_every": 1})
    made.train()
    records, logs = read_rollouts(tmp_path, 0), made._logs
    ids = [r["completion_ids"] for r in records]
    assert list(logs["completion"]) == [TOKENIZER.decode(row, skip_special_tokens=True) for row in ids]
    assert list(logs["extra"]["odd"]) == [sum(row) % 2 for row in ids]
    assert list(logs["rewards"]["first"]) == [float(len(row)) for row in ids]
    # graded alone in its round, row 6 is the first of its call and has a reward; so it had among the others
    expected = [even(row) if i % 2 == 0 else None for i, row in enumerate(ids)]
    assert [None if r != r else r for r in logs["rewards"]["second"]] == expected
    assert [r["rewards"]["first"] for r in records] == [float(len(row)) for row in ids]
    # calls of 8, 1 and 1 rows, each counted by its rows: (8 * 8 + 1 + 1) / 10
    assert [log["rows"] for log in made.state.log_history if "rows" in log] == [pytest.approx(6.6)]


# --- groups without signal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (DrGRPO(), {}),
        (DrGRPO(), {"beta": 0.5, "loss_type": "grpo"}),
        (DrGRPO(), {"beta": 0.5, "loss_type": "dapo"}),
        (DrGRPO(), {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_iterations": 2}),
        (PrefixRL(plain=0), {"beta": 0.5, "options": {"kl_on": "all"}, "per_device_train_batch_size": 16}),
        (TEMPO(of=DrGRPO(), normalize=True), {"mask_truncated_completions": True}),
    ],
    ids=repr,
)  # fmt: skip
def test_groups_without_signal_are_skipped_as_if_they_were_not_there(tmp_path, monkeypatch, method, changes):
    if changes.get("mask_truncated_completions"):
        some_end(monkeypatch)
    options = {"groups_without_signal": "skip", **changes.pop("options", {})}
    run = Run(tmp_path, method, steps=4, reward=half_teach, options=options, **changes)
    rollouts = agrees(run)
    equal = [len({r.reward for r in g}) == 1 for g in groups(rollouts)]
    assert {True, False} == set(equal)
    shares = [line["signal/missing_share"] for line in metrics(run) if "signal/missing_share" in line]
    shares *= run.args.num_iterations
    assert sum(shares) * len(equal) / 4 >= sum(equal) - 1e-9  # four steps with as many groups each


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        (DrGRPO(), {}),
        (DrGRPO(), {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
        (DrGRPO(), {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_iterations": 2}),
        (PrefixRL(plain=0), {"per_device_train_batch_size": 16}),
        (TEMPO(of=DrGRPO(), normalize=True), {}),
    ],
    ids=repr,
)  # fmt: skip
def test_groups_without_signal_are_spared_with_the_gradient_of_keep_for_less(tmp_path, method, changes):
    runs = {
        name: Run(
            tmp_path / name, method, steps=4, reward=half_teach, options={"groups_without_signal": name}, **changes
        )
        for name in ("keep", "spare")
    }
    equal = [len({r.reward for r in g}) == 1 for g in groups(agrees(runs["spare"]))]
    assert {True, False} == set(equal)
    assert off(runs["spare"].measured(3), runs["keep"].measured(3)) < 1e-4
    kept, spared = ([line for line in metrics(runs[name]) if "cost/flops" in line][-1] for name in ("keep", "spare"))
    assert spared["cost/flops"] < kept["cost/flops"]
    assert spared["cost/trained_tokens"] == kept["cost/trained_tokens"]
    assert spared["cost/generated_tokens"] == kept["cost/generated_tokens"]


def test_kept_groups_count_otherwise(tmp_path):
    """The control: with the groups in the normalizer the gradient is another."""
    run = Run(tmp_path, DrGRPO(), steps=2, reward=half_teach, options={"groups_without_signal": "skip"})
    for step in (0, 1):
        right, rollouts = run.expected(step)
        if len({len({r.reward for r in g}) for g in groups(rollouts)}) == 2:  # one group of each kind
            other, _ = run.expected(step, without_signal="keep")
            assert torch.allclose(other * 2, right)
            return
    raise AssertionError("no step had a group of each kind")


@pytest.mark.parametrize("method", [DrGRPO(), BREAD(**TOKENS)], ids=repr)
def test_groups_without_signal_give_way_to_other_problems(tmp_path, method):
    options = {"groups_without_signal": "resample", "resample_rounds": 3}
    reward = half_teach if isinstance(method, DrGRPO) else easy_or_failing
    run = Run(tmp_path, method, steps=3, reward=reward, options=options)
    agrees(run)
    found = metrics(run)
    assert any(line["signal/exchanged_share"] > 0 for line in found)
    for step, line in enumerate(found):
        records = groups(read_rollouts(tmp_path, step))
        assert len({r["row"] for g in records for r in g}) == len(records)  # no problem twice
        assert all(len({(r["row"], r["prompt"], r["answer"]) for r in g}) == 1 for g in records)
        prompt, answer = dataset()[records[0][0]["row"]]["prompt"], dataset()[records[0][0]["row"]]["answer"]
        assert (prompt, answer) == (prompts(records[0])[0], records[0][0]["answer"])
        assert line["signal/missing_share"] <= line["signal/missing_before"]
    assert sum(line["signal/missing_before"] for line in found) > sum(line["signal/missing_share"] for line in found)


def test_a_run_in_which_nothing_is_exchanged_is_the_plain_run(tmp_path):
    """Every group teaches something: the rounds make no difference, bit for bit."""
    varied = lambda completions, completion_ids, **k: [float(i % 4) for i in range(len(completions))]  # noqa: E731
    runs = [
        Run(tmp_path / name, DrGRPO(), steps=2, reward=varied, options={"groups_without_signal": name})
        for name in ("keep", "spare", "skip", "resample")
    ]
    for run in runs[1:]:
        assert torch.equal(run.measured(1), runs[0].measured(1))
        assert read_rollouts(run.folder, 1) == read_rollouts(runs[0].folder, 1)


@pytest.mark.parametrize(("masked", "exchanged"), [(True, 1.0), (False, 0.0)])
def test_a_group_whose_credit_lies_on_rollouts_that_the_loss_leaves_out_is_exchanged(tmp_path, masked, exchanged):
    def unequal(completions, completion_ids, **columns):  # in every group
        return [float(i % 4 == 0) for i in range(len(completions))]

    options = {"groups_without_signal": "resample", "resample_rounds": 1}
    changes = {"mask_truncated_completions": masked, "max_completion_length": 3}
    run = Run(tmp_path, DrGRPO(), steps=1, reward=unequal, options=options, **changes)
    assert {len(r["completion_ids"]) for r in read_rollouts(tmp_path, 0)} == {3}
    assert not any(TOKENIZER.eos_token_id in r["completion_ids"] for r in read_rollouts(tmp_path, 0))  # all are cut off
    (line,) = [line for line in metrics(run) if "signal/missing_before" in line]
    assert (line["signal/missing_before"], line["signal/exchanged_share"]) == (exchanged, exchanged)
    assert line["signal/rounds"] == exchanged


def test_what_is_imitated_teaches_nothing_where_the_loss_leaves_it_out():
    rollouts = batch((2,) * 8, rewards=(1.0,) * 8)  # no credit: a weight on the tokens of the prefixes alone
    ends = [5, 6, 5, 5, 1, 2, 3, 4]  # the last ids
    rounds = SimpleNamespace(_method=UFT(weight=0.5), _ranks=SimpleNamespace(all=lambda own: own))
    state = SimpleNamespace(rollouts=rollouts, made=[SimpleNamespace(ids=[7, id]) for id in ends])
    for stops, taught in ((None, [True, True]), ({6}, [True, False]), ({9}, [False, False])):
        rounds._stops = stops
        assert Rounds._signal(rounds, state).tolist() == taught


@pytest.mark.parametrize("without_signal", ["keep", "resample"])
def test_a_resumed_run_helps_and_exchanges_as_the_whole_one(tmp_path, without_signal):
    options = {"rollouts_every": 1, "groups_without_signal": without_signal}
    given = {"data": dataset(6), "max_steps": 4, "reward": easy_or_failing, "options": options}
    whole = trainer(tmp_path / "run", BREAD(**TOKENS), **given, save_strategy="steps", save_steps=2)
    whole.train()
    again = trainer(tmp_path / "again", BREAD(**TOKENS), **given)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert parameters(again).equal(parameters(whole))
    assert again.cost == whole.cost
    last = [read_rollouts(tmp_path / name, 3) for name in ("run", "again")]
    assert last[0] == last[1]
    assert any(r["prefix_tokens"] for step in range(4) for r in read_rollouts(tmp_path / "run", step))


def test_help_on_the_fast_path_is_help_on_trls_own(tmp_path):
    options = {"rollouts_every": 1, "groups_without_signal": "skip"}
    made = []
    for name, speed in (("fast", None), ("plain", OFF)):
        run = trainer(tmp_path / name, BREAD(**TOKENS), reward=easy_or_failing, options={**options, "speed": speed},
                      generation_kwargs={"do_sample": False})  # fmt: skip
        run.train()
        made.append(run)
    fast, plain = map(parameters, made)
    assert (fast - plain).abs().mean() < 1e-5
    assert read_rollouts(tmp_path / "fast", 0) == read_rollouts(tmp_path / "plain", 0)


def test_help_trains_adapters_alone(tmp_path):
    options = {"groups_without_signal": "resample", **lora()}
    trains_adapters_alone(trainer(tmp_path, BREAD(**TOKENS), reward=easy_or_failing, options=options))


def test_contradictions_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="there are keep, spare, skip, resample"):
        Run(tmp_path, DrGRPO(), options={"groups_without_signal": "drop"})
    with pytest.raises(RecipeError, match="an entropy bonus together with groups_without_signal = skip"):
        Run(tmp_path, DrGRPO(), options={"groups_without_signal": "skip"}, entropy_coef=0.1)


@pytest.mark.parametrize("changes", [{"loss_type": "dapo"}, {"beta": 0.5}], ids=repr)
def test_spare_is_refused_where_the_gradient_would_not_be_that_of_keep(tmp_path, changes):
    with pytest.raises(RecipeError, match=r"groups_without_signal = spare with .* Set groups_without_signal = skip"):
        Run(tmp_path, DrGRPO(), options={"groups_without_signal": "spare"}, **changes)


def test_a_recipe_says_what_becomes_of_them():
    options = ["training.groups_without_signal=resample", "training.resample_rounds=5"]
    recipe = load_recipe("recipes/lab/dr_grpo.yaml", options)
    assert recipe.beside_trls == {"kl_on": "moving", "groups_without_signal": "resample", "resample_rounds": 5}
    assert not {"groups_without_signal", "resample_rounds"} & set(recipe.arguments)
    assert load_recipe(recipe.resolved()) == recipe
    with pytest.raises(RecipeError, match="at least 1"):
        load_recipe("recipes/lab/dr_grpo.yaml", ["training.resample_rounds=0"])
