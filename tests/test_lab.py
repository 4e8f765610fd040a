import itertools
import re

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.cuts import sentence_ends
from prefix_rl.data.tokenizer import DemonstrationTable, load_tokenizer
from prefix_rl.lab.base import _encode, base_policy, model, tokenizer, train_base
from prefix_rl.lab.world import World, chains, held_out_problems, training_problems
from prefix_rl.prefixes import cut
from prefix_rl.rewards.equality import TRAINING_RULES
from prefix_rl.rewards.grading import Outcome, grade

QUICK = World(base_steps=3, problems=8, held_out=8)


def solve(text):
    """The oracle: does the additions one by one."""
    start, *steps, question = text.split()
    assert question == "?"
    totals, total = [], int(start)
    for step in steps:
        total = (total + int(step)) % 20
        totals.append(total)
    return totals


@examples(20)
@given(st.integers(1, 20), st.integers(0, 50))
def test_demonstrations_solve_their_problems_step_by_step(operations, seed):
    world = World(operations=operations, seed=seed, problems=5)
    for problem in training_problems(world):
        totals = solve(problem.text)
        written = problem.demonstrations[0]["text"].split()
        assert [int(w) for w in written[:20]] == totals
        assert problem.answer == f"({totals[6]}, {totals[12]}, {totals[19]})"
        assert sum(step not in ("+0",) for step in problem.text.split()[1:-1]) == operations


@pytest.mark.parametrize("kind", ["clean", "restating"])
def test_full_stops_end_sentences_and_change_nothing_else(kind):
    with_stops, without = (
        training_problems(World(slots=9, operations=9, problems=3, demonstrations=kind, sentences=n)) for n in (4, None)
    )
    for problem, plain in zip(with_stops, without, strict=True):
        assert (problem.text, problem.answer) == (plain.text, plain.answer)
        (one,), (other,) = problem.demonstrations, plain.demonstrations
        words = other["text"].split()
        a, b = (8, 16) if kind == "restating" else (4, 8)  # four totals, and four more; none stands behind the last
        assert one["text"].split() == [*words[:a], ".", *words[a:b], ".", *words[b:]]
        if kind == "clean":  # no sentence begins with a sign
            assert len(sentence_ends(one["text"])) == 2
        totals = words[: words.index(r"\boxed{(")]
        assert [d["text"][d["readable_from"] :].split()[0] for d in (one, other)] == [totals[-1]] * 2


def test_the_base_policys_corpus_has_the_same_full_stops():
    world = World(slots=9, sentences=4)
    made = chains(world, torch.full((2,), 9), torch.Generator().manual_seed(0))
    _, solution = _encode(world, made)
    stop = world.vocabulary.index(".")
    assert (solution == stop).nonzero()[:, 1].tolist() == [4, 9, 4, 9]  # behind four totals, and four more
    assert solution[solution != stop].equal(_encode(World(slots=9), made)[1].flatten())


def test_answers_are_graded_by_the_reward_of_real_data():
    for problem in training_problems(World(problems=16)):
        text = problem.demonstrations[0]["text"]
        assert grade(text, problem.answer) is Outcome.RIGHT
        first, second, last = re.findall(r"\d+", text.split("boxed")[1])
        assert grade(rf"\boxed{{( {first} , {second} , {(int(last) + 1) % 20} )}}", problem.answer) is Outcome.WRONG
        assert grade(text.split("\\boxed")[0], problem.answer, TRAINING_RULES) is Outcome.NO_ANSWER


def test_garbled_demonstrations_are_wrong_on_the_way_and_right_in_the_end():
    world = World(demonstrations="garbled", problems=200)
    wrong = 0
    for problem in training_problems(world):
        written = [int(w) for w in problem.demonstrations[0]["text"].split()[:20]]
        wrong += sum(a != b for a, b in zip(written, solve(problem.text), strict=True))
        assert written[-1] == solve(problem.text)[-1]
        assert grade(problem.demonstrations[0]["text"], problem.answer) is Outcome.RIGHT
    # 19 of 20 totals, 30 % replaced, 1 of 20 replacements right by chance: 200 * 19 * 0.3 * 0.95 = 1083
    assert wrong == pytest.approx(1083, rel=0.1)


def test_a_slipping_teacher_is_one_too_high_on_the_way_and_right_in_the_end():
    wrong = 0
    for problem in training_problems(World(demonstrations="slipping", problems=200)):
        written = [int(w) for w in problem.demonstrations[0]["text"].split()[:20]]
        slips = [(a - b) % 20 for a, b in zip(written, solve(problem.text), strict=True)]
        assert set(slips) <= {0, 1}
        assert slips[-1] == 0
        wrong += sum(slips)
        assert grade(problem.demonstrations[0]["text"], problem.answer) is Outcome.RIGHT
    assert wrong == pytest.approx(200 * 19 * 0.3, rel=0.1)


def test_a_restating_teacher_writes_every_addition_before_its_total():
    world = World(demonstrations="restating", problems=4, held_out=4)
    for problem in [*training_problems(world), *held_out_problems(world)]:
        text = problem.demonstrations[0]["text"]
        words = text.split()
        assert words[0:40:2] == problem.text.split()[1:-1]
        assert [int(w) for w in words[1:40:2]] == solve(problem.text)
        assert grade(text, problem.answer) is Outcome.RIGHT
        assert "boxed" not in text[: problem.demonstrations[0]["readable_from"]]
        assert text[problem.demonstrations[0]["readable_from"] :].split()[0] == words[39]  # the last total


def test_a_terse_expert_writes_every_third_total_and_those_that_the_answer_takes():
    for problem in training_problems(World(demonstrations="terse", problems=4)):
        text, landing = problem.demonstrations[0]["text"], [0, 3, 6, 9, 12, 13, 16, 19]
        right = solve(problem.text)
        assert text.split()[:20] == [str(right[j]) if j in landing else "," for j in range(20)]
        assert grade(text, problem.answer) is Outcome.RIGHT
        assert text[problem.demonstrations[0]["readable_from"] :].split()[0] == str(right[19])


@given(leap=st.integers(2, 9), slots=st.integers(3, 40))
def test_a_terse_expert_leaps_no_further_than_asked_and_lands_where_the_answer_reads(leap, slots):
    world = World(leap=leap, slots=slots, operations=slots)
    landing = [-1, *(j for j, written in enumerate(world.landings) if written)]
    assert set(world.marked) <= set(landing)
    assert max(after - before for before, after in itertools.pairwise(landing)) <= leap


def test_teachers_differ_and_problems_do_not():
    kinds = ("clean", "garbled", "slipping", "restating", "terse")
    by_kind = [training_problems(World(demonstrations=kind, problems=4)) for kind in kinds]
    assert len({tuple((p.text, p.answer) for p in problems) for problems in by_kind}) == 1
    assert len({problems[0].demonstrations[0]["text"] for problems in by_kind}) == 5


def test_settings_are_chosen_on_other_problems_than_results_are_reported_on():
    reported = {p.text for p in held_out_problems(World())}
    assert reported.isdisjoint(p.text for p in held_out_problems(World(held_out_seed=1)))
    assert reported == {p.text for p in held_out_problems(World(seed=5))}


def test_few_demonstrations():
    having = [bool(p.demonstrations) for p in training_problems(World(demonstrated=8))]
    assert having == [True] * 8 + [False] * 56


def test_held_out_problems_are_the_same_for_every_seed_and_not_trained_on():
    assert held_out_problems(World(seed=0)) == held_out_problems(World(seed=1))
    held_out = {p.text for p in held_out_problems(World())}
    assert len(held_out) == 256
    for seed in range(3):
        assert not held_out & {p.text for p in training_problems(World(seed=seed))}


def test_no_prefix_reaches_the_last_total():
    world = World()
    made = tokenizer(world)
    given = training_problems(world)
    table = DemonstrationTable([p.demonstrations for p in given], [p.answer for p in given], made)
    for row in range(len(given)):
        assert len(cut(table[row][0], 0.95, max_tokens=100).ids) == world.slots - 1


def test_slips_go_upwards_and_as_often_as_they_should():
    world = World()
    made = chains(world, torch.full((4000,), 20), torch.Generator().manual_seed(0))
    clean = torch.cat([made.start.unsqueeze(1), made.totals], dim=1).diff(dim=1)
    slipped = torch.cat([made.start.unsqueeze(1), made.slipped], dim=1).diff(dim=1)
    slips = (slipped - clean) % 20
    assert set(slips.unique().tolist()) == {0, 1}
    large = made.steps.abs() > 5
    assert slips[large].float().mean() == pytest.approx(0.7, abs=0.01)
    assert slips[~large].float().mean() == pytest.approx(0.3, abs=0.01)


def test_a_slipped_chain_never_boxes_the_right_answer():
    # Slips add up and never cancel: the answer's last total is right only if no step slipped (or all twenty did)
    world = World()
    made = chains(world, torch.full((20_000,), 20), torch.Generator().manual_seed(1))
    marked = list(world.marked)
    right = (made.slipped[:, marked] == made.totals[:, marked]).all(dim=1)
    clean = (made.slipped == made.totals).all(dim=1)
    assert right.equal(clean)


def test_the_corpus_is_what_the_tokenizer_makes_of_the_text():
    world = World()
    made = chains(world, torch.full((3,), 20), torch.Generator().manual_seed(0))
    prompt, solution = _encode(world, made)
    words = tokenizer(world)
    for row in range(3):
        text = words.decode(prompt[row].tolist())
        assert words(text)["input_ids"] == prompt[row].tolist()
        written = words.decode(solution[row].tolist(), skip_special_tokens=True)
        assert words(written)["input_ids"] == solution[row].tolist()[:-1]
        assert int(solution[row, -1]) == words.eos_token_id


def test_the_base_policy_is_small_deterministic_and_cached(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFIX_RL_CACHE", str(tmp_path))
    assert sum(p.numel() for p in model(QUICK, 0).parameters()) == pytest.approx(113_000, rel=0.02)
    one, two = train_base(QUICK), train_base(QUICK)
    assert all(a.equal(b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    calls = []
    folder = base_policy(QUICK, calls.append)
    assert sum(calls) == 3
    assert base_policy(QUICK, calls.append) == folder
    assert sum(calls) == 3  # not trained again


def test_a_reload_of_the_base_gives_the_same_ids_and_logits():
    from transformers import AutoModelForCausalLM

    folder = str(base_policy(QUICK))
    text = training_problems(QUICK)[0].demonstrations[0]["text"]
    assert load_tokenizer(folder)(text)["input_ids"] == tokenizer(QUICK)(text)["input_ids"]
    ids = torch.tensor([tokenizer(QUICK)(text)["input_ids"]])
    assert AutoModelForCausalLM.from_pretrained(folder)(ids).logits.equal(train_base(QUICK)(ids).logits)


def test_settings_of_the_problems_do_not_train_another_base():
    assert base_policy(World(base_steps=3, seed=4, problems=5, demonstrations="garbled")) == base_policy(QUICK)
    assert base_policy(World(base_steps=3, base_seed=1)) != base_policy(QUICK)
