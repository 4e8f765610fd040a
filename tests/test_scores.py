"""Scores of demonstrations: measured once of the policy that a run starts from, and the cuts that follow."""

import pytest
import torch
from flow import together
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small import dataset, lora
from test_trainer import TOKENIZER, parameters
from test_trainer import trainer as make

from prefix_rl.cuts import entropy_places, surprisal_shares
from prefix_rl.errors import CheckpointError
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.prefixes import Demonstration
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.seam.scores import FILE, Scores, passes_of

HALVES = {"cuts": 1, "plain": 0, "low": 0.1, "high": 0.9}


def trainer(folder, cut, **options):
    return make(folder, PrefixRL(cut=cut, **HALVES), **options)


def slow_scores(model, prompt, ids, temperature=1.0):
    """The log-probability and the entropy of each token behind the prompt, one at a time."""
    found = []
    prompt = TOKENIZER(prompt)["input_ids"]
    with torch.no_grad():
        for t in range(len(ids)):
            logits = model(torch.tensor([[*prompt, *ids[:t]]])).logits[0, -1].double() / temperature
            logps = logits.log_softmax(0)
            found.append((float(logps[ids[t]]), float(-(logps.exp() * logps).sum())))
    return [list(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize(
    "options", [{}, {"options": lora()}, {"temperature": 0.7}], ids=["full", "lora", "temperature"]
)
def test_scores_are_those_of_the_policy_that_the_run_starts_from(tmp_path, options):
    made = trainer(tmp_path, "surprisal", max_steps=1, **options)
    first = made.model.eval()
    expected = [
        slow_scores(first, row["prompt"], made.demonstrations[row["dataset_row"]][0].ids, made.temperature)[0]
        for row in made.train_dataset
    ]
    made.model.train()
    made.train()
    for row, logps in zip(made.train_dataset, expected, strict=True):
        [demonstration] = made._scores[row["dataset_row"]]
        assert demonstration.shares == pytest.approx(surprisal_shares(logps), abs=1e-5)
    asked = sum(len(TOKENIZER(row["prompt"])["input_ids"]) + len(made.demonstrations[row["dataset_row"]][0].ids)
                for row in made.train_dataset)  # fmt: skip
    plain = make(tmp_path / "tokens", PrefixRL(**HALVES), max_steps=1, **options)
    assert made.cost.flops >= 2 * made._deciding.parameters * asked
    assert plain.cost.flops == 0


@pytest.mark.parametrize("cut", ["entropy", "surprisal", "sentences"])
def test_prefixes_end_where_the_cut_says(tmp_path, cut):
    made = trainer(
        tmp_path, cut, max_steps=2, data=dataset_of_sentences(), max_completion_length=60, options={"rollouts_every": 1}
    )
    first = {row["dataset_row"]: slow_scores(made.model.eval(), row["prompt"], made.demonstrations[row["dataset_row"]][0].ids)
             for row in made.train_dataset}  # fmt: skip
    made.model.train()
    made.train()
    lengths = set()
    for step in range(2):
        for record in read_rollouts(tmp_path, step):
            [demonstration] = made.demonstrations[record["row"]]
            logps, entropies = first[record["row"]]
            k = record["prefix_tokens"]
            assert record["completion_ids"][:k] == list(demonstration.ids[:k])
            assert k <= demonstration.safe_length
            if cut == "entropy":
                assert k in (0, *entropy_places(entropies))
            elif cut == "sentences":
                assert k in (0, *demonstration.places)
            elif k < demonstration.safe_length:  # not stopped by the answer guard
                assert surprisal_shares(logps)[k - 1] >= 0.1
            lengths.add(k)
    assert len(lengths - {0}) > 1


def dataset_of_sentences(count=8):
    data = dataset(count)
    texts = [[f"We add. Then it is {row['prompt'][:-4]} so. And more. That makes {row['answer']}"] for row in data]
    return data.remove_columns("demonstrations").add_column("demonstrations", texts)


def test_the_default_asks_the_policy_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Scores, "measure", None)
    trainer(tmp_path, "tokens", max_steps=1).train()
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("cut", ["entropy", "surprisal"])
def test_a_resumed_run_cuts_by_the_policy_that_the_run_started_from(tmp_path, cut, monkeypatch):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "options": {"rollouts_every": 1}}
    whole = trainer(tmp_path, cut, **options)
    whole.train()
    rollouts = [read_rollouts(tmp_path, step) for step in range(4)]
    monkeypatch.setattr(Scores, "measure", None)  # the policy has moved: it is not asked again
    again = trainer(tmp_path, cut, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [read_rollouts(tmp_path, step) for step in range(4)] == rollouts
    assert parameters(again).equal(parameters(whole))
    assert again.cost == whole.cost

    scores = load_file(tmp_path / FILE)["scores"]
    save_file({"scores": scores[:-1].clone()}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        trainer(tmp_path, cut, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    (tmp_path / FILE).unlink()
    with pytest.raises(CheckpointError, match=f"method.cut = {cut} goes by"):
        trainer(tmp_path, cut, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_run_that_begins_anew_measures_anew(tmp_path):
    trainer(tmp_path, "surprisal", max_steps=1).train()
    save_file({"scores": torch.zeros(3)}, tmp_path / FILE)  # another run's
    made = trainer(tmp_path, "surprisal", max_steps=1)
    made.train()
    assert len(load_file(tmp_path / FILE)["scores"]) == sum(len(d.ids) for own in made.demonstrations for d in own)


# --- passes and ranks -------------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 30), max_size=30).map(lambda n: sorted(n, reverse=True)),
    st.integers(1, 5),
    st.integers(1, 60),
)
def test_passes_hold_every_row_once_within_their_limits(lengths, rows, tokens):
    passes = passes_of(lengths, rows, tokens)
    assert [i for some in passes for i in some] == list(range(len(lengths)))
    for some in passes:
        assert len(some) == 1 or (len(some) <= rows and len(some) * max(lengths[i] for i in some) <= tokens)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_rank_has_the_scores_of_all(tmp_path, count):
    demonstrations = [(), (Demonstration((3, 4, 5), 3), Demonstration((6,), 1)), (Demonstration((7, 8), 2),), ()] * 2
    calls = {}

    def work(ranks):
        made = Scores(demonstrations, "surprisal", ranks, str(tmp_path))
        calls[ranks.index] = 0

        def encode(ids, mask, width):
            calls[ranks.index] += 1
            assert mask.equal((ids > 0).long())  # no token of these is 0, and padding is
            return -ids[:, -width:].double(), None, None  # token 5 has a surprisal of 5

        assert made.measure(encode, lambda problem: [1] * (1 + problem), 2, 100) == 2 * 6 + 2 + 2 + 3 + 6 + 6 + 7
        return [made[problem] for problem in range(len(demonstrations))]

    for found in together(count, work):
        assert [d.shares for d in found[1]] == [(3 / 12, 7 / 12, 1.0), (1.0,)]
        assert [d.shares for d in found[6]] == [(7 / 15, 1.0)]
        assert found[0] == ()
    assert len(set(calls.values())) == 1  # sharded parameters are gathered in every pass
    again = Scores(demonstrations, "surprisal", None, str(tmp_path))
    again.read()
    assert [d.shares for d in again[1]] == [(3 / 12, 7 / 12, 1.0), (1.0,)]
