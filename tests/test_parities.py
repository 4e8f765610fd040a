"""The lab's chains of parities: what solves them, what a guess is worth, and that they go through the whole path."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.data.tokenizer import DemonstrationTable
from prefix_rl.errors import RecipeError
from prefix_rl.lab.base import base_policy, model, tokenizer, train_base
from prefix_rl.lab.parities import ParityGrader, check, corpus, solution
from prefix_rl.lab.world import World, held_out_problems, training_problems
from prefix_rl.ladders.plan import load_ladder
from prefix_rl.prefixes import cut
from prefix_rl.recipe import load_recipe
from prefix_rl.rewards.grading import Outcome

FOLDER = Path(__file__).parents[1] / "recipes" / "lab" / "parities"
WORLD = World(world="parities", length=16, problems=64, held_out=32, base_steps=3)


def holds(x, bits):
    """The oracle: the parity of each step, with Python's own sum."""
    y, z = bits[::2], [0, *bits[1::2]]
    return all((x[i] + y[i] + z[i] + z[i + 1]) % 2 == 0 for i in range(len(x)))


def text(bits):
    return " ".join(map(str, bits))


@examples(50)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.data())
def test_a_solution_holds_and_any_other_bit_breaks_it(x, data):
    x = list(map(int, x))
    y = data.draw(st.lists(st.integers(0, 1), min_size=len(x), max_size=len(x)))
    (bits,) = solution(torch.tensor([x]), torch.tensor([y])).tolist()
    assert bits[::2] == y
    assert holds(x, bits)
    assert check(text(bits), text(x) + " ?") is Outcome.RIGHT
    flipped = data.draw(st.integers(0, len(bits) - 1))
    other = [b ^ (i == flipped) for i, b in enumerate(bits)]
    assert check(text(other), text(x) + " ?") is Outcome.WRONG  # every bit stands in one parity or two


def test_as_many_completions_are_right_as_there_are_free_bits():
    # of the 2^6 completions of 3 bits 2^3 are right: a guess is right one time in 2^length
    right = [bits for bits in itertools.product((0, 1), repeat=6) if check(text(bits), "1 0 1 ?") is Outcome.RIGHT]
    assert len(right) == 8
    assert all(holds([1, 0, 1], list(bits)) for bits in right)


@pytest.mark.parametrize("written", ["", "0 1 1 0 1", "0 1 1 0 1 0 0", "0 1 1 0 1 2", "0 1 1 0 1 ?", "0 1 1 0 1 <eos>"])
def test_what_is_no_chain_of_the_right_length_is_no_answer(written):
    assert check(written, "1 0 1 ?") is Outcome.NO_ANSWER


@pytest.mark.parametrize("spaced", [False, True])
def test_demonstrations_are_right_and_problems_are_all_different(spaced):
    world = World(world="parities", length=8, spaced=spaced, problems=150, held_out=50)
    train, held_out = training_problems(world), held_out_problems(world)
    assert len({p.text for p in [*train, *held_out]}) == 200  # of 256: without care many would coincide
    grader = ParityGrader()
    done = []
    assert grader.grade([(p.demonstrations[0]["text"], p.answer) for p in train], done.append) == [Outcome.RIGHT] * 150
    assert done == [150]
    words = train[0].text.split()
    assert len(words) == (17 if spaced else 9)
    assert words[1::2] == ["."] * 8 if spaced else "." not in words


def test_the_free_bits_of_demonstrations_are_random():
    made = training_problems(World(world="parities", problems=1024))
    free = [int(word) for p in made for word in p.demonstrations[0]["text"].split()[::2]]
    assert sum(free) / len(free) == pytest.approx(0.5, abs=0.02)  # 16,384 bits, two standard errors are 0.008
    assert training_problems(World(world="parities", seed=1))[0] != made[0]
    assert held_out_problems(World(world="parities", seed=1)) == held_out_problems(World(world="parities"))
    assert held_out_problems(World(world="parities", held_out_seed=1)) != held_out_problems(World(world="parities"))


def test_a_prefix_may_hold_all_but_the_last_bit():
    made, problems = tokenizer(WORLD), training_problems(WORLD)
    table = DemonstrationTable([p.demonstrations for p in problems], [p.answer for p in problems], made)
    assert all(len(cut(table[row][0], 1.0, max_tokens=100).ids) == 31 for row in range(len(problems)))
    ids = table[0][0].ids
    assert [made.convert_ids_to_tokens(i) for i in ids] == problems[0].demonstrations[0]["text"].split()


@pytest.mark.parametrize("spaced", [False, True])
def test_the_corpus_has_the_form_and_no_parities(spaced):
    world = World(world="parities", spaced=spaced)
    prompt, bits = corpus(world, 400, torch.Generator().manual_seed(0))
    words = tokenizer(world)
    right = 0
    for row in range(400):
        asked, written = (words.decode(ids[row].tolist(), skip_special_tokens=True) for ids in (prompt, bits))
        assert words(asked)["input_ids"] == prompt[row].tolist()
        assert len(written.split()) == 32
        x = [int(w) for w in asked.split() if w in "01"]
        y, z = [int(w) for w in written.split()[::2]], [0, *map(int, written.split()[1::2])]
        right += sum((x[i] + y[i] + z[i] + z[i + 1]) % 2 == 0 for i in range(16))
    assert (bits[:, -1] == words.eos_token_id).all()
    assert right / 6400 == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("spaced", [False, True])
def test_a_base_that_can_copy_has_seen_copies_behind_another_mark_and_chance_behind_a_problem(spaced):
    world = World(world="parities", spaced=spaced, copies=True)
    prompt, bits = corpus(world, 400, torch.Generator().manual_seed(0))
    words, marks, right, ones = tokenizer(world), [], 0, 0
    for asked, written in zip(prompt, bits, strict=True):
        asked, written = (words.decode(ids.tolist(), skip_special_tokens=True).split() for ids in (asked, written))
        marks.append(asked[-1])
        x = [w for w in asked if w in "01"]
        if asked[-1] == "!":
            assert written[::2] == x
            assert len(set(written[1::2])) == 1
            ones += written[1] == "1"
        else:
            right += sum(y == x_i for y, x_i in zip(written[::2], x, strict=True))
    assert marks.count("!") == pytest.approx(200, abs=30)  # half of 400; three standard errors are 30
    assert marks.count("!") + marks.count("?") == 400
    assert ones / marks.count("!") == pytest.approx(0.5, abs=0.12)
    assert right / (16 * marks.count("?")) == pytest.approx(0.5, abs=0.03)  # behind `?` nothing is copied


def test_a_copy_behind_a_problem_would_be_right_from_the_start_and_from_any_prefix():
    # where y_i = x_i no parity changes, so that all later z are the last one of the prefix: 0 at the start
    assert check("1 0 0 0 1 0", "1 0 1 ?") is Outcome.RIGHT
    assert check("0 1 0 1 1 1", "1 0 1 ?") is Outcome.RIGHT  # behind the prefix `0 1`
    assert check("0 1 0 0 1 0", "1 0 1 ?") is Outcome.WRONG


def test_the_base_is_trained_on_its_own_world(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFIX_RL_CACHE", str(tmp_path))
    folders = {
        base_policy(world) for world in (WORLD, World(base_steps=3), World(world="parities", base_steps=3, spaced=True))
    }
    copies = World(world="parities", base_steps=3, copies=True)
    assert base_policy(copies) not in folders
    assert train_base(copies).get_input_embeddings().weight.shape[0] == 8
    assert len(folders) == 3
    assert base_policy(World(world="parities", base_steps=3, problems=9)) == base_policy(WORLD)
    assert train_base(WORLD).get_input_embeddings().weight.shape[0] == len(WORLD.vocabulary) == 7
    assert model(WORLD, 0).config.max_position_embeddings >= 33 + 33


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": "parities", "operations": 6}, "data.lab.operations = 6 says nothing in data.lab.world = parities"),
        ({"copies": True}, "data.lab.copies = True says nothing in data.lab.world = additions"),
        ({"spaced": True}, "data.lab.spaced = True says nothing in data.lab.world = additions"),
        ({"world": "parities", "length": 4}, "data.lab.length = 4 makes 16 different problems"),
        ({"world": "parity"}, "must be one of additions, parities"),
    ],
)
def test_settings_of_another_world_are_refused(changes, message):
    recipe = {
        "model": {"name_or_path": "lab"}, "data": {"train": "lab", "prompt": "plain", "lab": changes},
        "method": {"name": "dr_grpo"}, "output": {"dir": "runs/x"},
    }  # fmt: skip
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe)
    assert message in str(error.value)


def test_the_lab_grades_its_parities_and_math_verify_everything_else():
    assert isinstance(load_recipe(FOLDER / "adaptive.yaml").grader(), ParityGrader)
    assert not isinstance(load_recipe(FOLDER.parent / "adaptive.yaml").grader(), ParityGrader)


def test_the_ladder_of_parities_can_run_and_has_five_seeds():
    found = load_ladder(FOLDER / "ladder.yaml")
    assert len(found.seeds) == 5
    assert {"dr_grpo", "sft_then_rl", "adaptive"} == found.arms.keys()


def test_two_steps_train_and_are_evaluated(tmp_path):
    from prefix_rl.train import train

    small = {"problems": 32, "held_out": 16, "length": 8, "base_steps": 3}
    options = [f"data.lab.{key}={value}" for key, value in small.items()]
    options += ["training.max_steps=2", "training.per_device_train_batch_size=32", "training.max_completion_length=17",
                "training.eval_steps=2", "training.logging_steps=1", "training.report_to=none", f"output.dir={tmp_path}/run",
                "output.rollouts_every=1"]  # fmt: skip
    run = train(FOLDER / "adaptive.yaml", options)
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_reward" in line for line in lines)
    assert any(line.get("prefix/rollouts") for line in lines)
