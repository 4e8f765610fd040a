"""QuestA: a hint at the end of the prompt, in training alone."""

import json
from pathlib import Path

import pytest
from small import dataset, with_chat_template
from test_methods import TRAINING, rows
from test_oracle import Run, agrees
from test_train import SMALL
from test_trainer import TOKENIZER, parameters
from test_trainer import trainer as make
from trl import GRPOTrainer

from prefix_rl.errors import DataError, RecipeError
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.questa import QuestA
from prefix_rl.prefixes import tokens_in
from prefix_rl.recipe import load_recipe
from prefix_rl.reports.rollouts import read_rollouts
from prefix_rl.rollouts import Step
from prefix_rl.train import train

LAB = Path(__file__).parents[1] / "recipes" / "lab"
ALWAYS = QuestA(switch=99, first=0.3)


def step(index, total=2000, budget=100):
    return Step(index, total, 0, budget)


def test_the_share_falls_once_at_a_twentieth_of_the_run():
    assert [QuestA().share(step(i)) for i in (0, 99, 100, 1999)] == [0.5, 0.5, 0.25, 0.25]
    assert [QuestA(switch=3, then=0).share(step(i)) for i in (2, 3)] == [0.5, 0]
    assert [QuestA(switch=0).share(step(i)) for i in (0, 1)] == [0.25, 0.25]


def test_a_group_has_one_hint_of_the_share_and_no_longer_than_allowed():
    for index, length in ((0, 500), (100, 250)):
        found = [QuestA().prefix(row, step(index)) for row in rows(3, 4, length=1000, count=2)]
        assert [len(p.ids) for p in found] == [length] * 12
        assert all(found[i].ids == found[i - i % 4].ids for i in range(12))
    assert len(QuestA(max_hint_tokens=7).prefix(rows(1, 4)[0], step(0)).ids) == 7
    assert QuestA(then=0).prefix(rows(1, 4)[0], step(500)) is None
    assert QuestA(first=0, then=0).needs == DrGRPO().needs
    assert "must have {} once" in QuestA(instruction="a hint").faults(TRAINING)[0]


def test_without_shares_it_is_dr_grpo_bit_for_bit(tmp_path):
    made = make(tmp_path / "questa", QuestA(first=0, then=0))
    made.train()
    plain = make(tmp_path / "plain", DrGRPO())
    plain.train()
    assert parameters(made).equal(parameters(plain))


@pytest.mark.parametrize(
    "method", [ALWAYS, QuestA(switch=1, first=0.6, then=0.2, cut="surprisal")], ids=["tokens", "surprisal"]
)
def test_a_whole_step_is_the_oracles_behind_the_hinted_prompt(tmp_path, method):
    rollouts = agrees(Run(tmp_path, method))
    assert not any(r.prefix for r in rollouts)
    lengths = []
    for index in range(2):
        records = read_rollouts(tmp_path, index)
        for record in records:
            text = json.loads(record["prompt"])
            asked, hint = text.split("\n\nA solution may begin like this:\n")
            solution = dataset()[record["row"]]["demonstrations"][0]
            assert asked == dataset()[record["row"]]["prompt"]
            assert hint
            assert solution.startswith(hint)
            assert record["answer"] not in hint.split("that makes")[-1] or "that makes" not in hint
            lengths.append(len(hint))
            if method is ALWAYS:
                ids = TOKENIZER(solution)["input_ids"]
                assert hint == TOKENIZER.decode(ids[: tokens_in(0.3, len(ids))])
    assert method is ALWAYS or max(lengths[:8]) > max(lengths[8:])


def test_the_hint_stands_in_the_users_last_turn_and_evaluation_has_none(tmp_path, monkeypatch):
    tokenizer, asked = with_chat_template(), []
    original = GRPOTrainer._generate_single_turn

    def generate(self, prompts, *args, **kwargs):
        asked.append((self.model.training, [self._tokenizer.decode(ids) for ids in prompts]))
        return original(self, prompts, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)
    data = dataset().map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    made = make(tmp_path, ALWAYS, data=data, eval_data=data.select(range(4)), tokenizer=tokenizer, eval_strategy="steps",
                eval_steps=1, max_steps=1, per_device_eval_batch_size=4)  # fmt: skip
    made.train()
    assert {training for training, _ in asked} == {True, False}
    for training, prompts in asked:
        for prompt in prompts:
            assert ("begin like this" in prompt) == training
            assert prompt.startswith("<|user|>")
            assert prompt.endswith("<|end|><|assistant|>")
    [log] = [log for log in made.state.log_history if "reward" in log]
    assert log["hint/rollouts"] == 8
    assert 0.2 < log["hint/fraction"] <= 0.3
    assert "prefix/rollouts" not in log


def test_half_a_character_at_the_end_of_a_hint_is_left_out(tmp_path):
    made = make(tmp_path, ALWAYS)
    ids = TOKENIZER("12 🙂")["input_ids"]
    [prefix] = [QuestA().prefix(row, step(0)) for row in rows(1, 1)]
    given = made._planner.hinted({"prompt": "?"}, prefix._replace(ids=ids[:-1]))
    assert given["prompt"] == "?\n\nA solution may begin like this:\n12 "


def test_demonstrations_are_needed_and_room_for_the_hint(tmp_path):
    with pytest.raises(DataError, match="QuestA starts rollouts from demonstrations, but no demonstration can be used"):
        make(tmp_path, ALWAYS, data=dataset(demonstrations=False))
    with pytest.raises(DataError, match="injected no prefix"):
        make(tmp_path, QuestA(first=1e-9, then=1e-9, cut="entropy"), data=dataset(), max_steps=1).train()
    assert load_recipe(str(LAB / "questa.yaml")).uses_demonstrations


def test_a_run_in_the_lab_has_room_for_its_hints_or_says_that_it_has_not(tmp_path):
    small = [*SMALL, f"output.dir={tmp_path}", "training.max_steps=2", "training.save_strategy=no", "method.switch=1"]
    small.append("data.lab.base_steps=20")  # any policy will do
    with pytest.raises(RecipeError, match=r"max_completion_length \+ method\.max_hint_tokens = 2078"):
        train(str(LAB / "questa.yaml"), [*small, "method.max_hint_tokens=2048"])
    train(str(LAB / "questa.yaml"), small)
    shown = [[len(json.loads(r["prompt"]).split()) for r in read_rollouts(tmp_path, index)] for index in range(2)]
    assert min(shown[0]) > max(shown[1]) > 22  # twenty additions and the question mark, with half or a quarter behind
