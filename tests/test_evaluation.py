import json
import random
import statistics

import pytest
import torch
from small import byte_level_bpe, characters, dataset, policy

from prefix_rl.data.problems import Problem
from prefix_rl.errors import DataError, RecipeError
from prefix_rl.evaluation.engines import until_stop
from prefix_rl.evaluation.evaluate import evaluate
from prefix_rl.evaluation.metrics import accuracy, wilson
from prefix_rl.evaluation.sampling import by_problem, sample
from prefix_rl.lab.tiny import make_tiny
from prefix_rl.rewards.workers import Grader


@pytest.fixture(scope="module")
def grader():
    made = Grader(workers=1)
    yield made
    made.close()


# --- intervals --------------------------------------------------------------------------------------------------------


def test_wilson_gives_its_textbook_values():
    # p = 0.8, n = 10, z = 1.96: (0.8 + 0.192 -+ 1.96 sqrt(0.016 + 0.0096)) / 1.384 = 0.490, 0.943
    assert wilson(0.8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert wilson(0.0, 100)[0] == 0.0
    assert wilson(1.0, 100)[1] == 1.0


@pytest.mark.parametrize(("p", "samples"), [(0.05, 1), (0.5, 1), (0.9, 1), (0.5, 4), (0.9, 4)])
def test_intervals_cover_the_truth_at_their_rate(p, samples):
    # With several samples the problems differ (Beta with mean p), so that samples of one problem are alike
    generator = random.Random(0)
    covered = 0
    for _ in range(600):
        right = []
        for _ in range(120):
            chance = p if samples == 1 else generator.betavariate(2 * p, 2 * (1 - p))
            right.append([generator.random() < chance for _ in range(samples)])
        found = accuracy(right)
        covered += found.low <= p <= found.high
    assert 0.92 <= covered / 600 <= 0.98


def test_more_samples_of_the_same_problems_do_not_pretend_to_be_more_problems():
    alike = accuracy([[True] * 8] * 50 + [[False] * 8] * 50)
    once = accuracy([[True]] * 50 + [[False]] * 50)
    assert alike.high - alike.low == pytest.approx(once.high - once.low, rel=0.02)


def test_an_accuracy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        accuracy([])


# --- sampling ---------------------------------------------------------------------------------------------------------


def problems(count=6):
    return [Problem(str(i), row["prompt"], row["answer"], tuple({"text": t} for t in row["demonstrations"]))
            for i, row in enumerate(dataset(count))]  # fmt: skip


def draw(grader, **changes):
    tokenizer = byte_level_bpe()
    found = problems()
    options = {"max_completion_length": 12, "batch_size": 4, **changes}
    return tokenizer, found, sample(policy(tokenizer), tokenizer, found, [p.text for p in found], grader, **options)


def test_sampling_never_starts_from_a_prefix_unless_asked(grader):
    _, _, found = draw(grader)
    assert all(s.prefix_tokens == 0 for s in found)
    assert [s.problem for s in found] == list(range(6))


def test_sampling_from_a_fraction_starts_from_the_demonstrations_tokens(grader):
    tokenizer, given, found = draw(grader, prefix_fraction=0.3, max_completion_length=40)
    for s in found:
        tokens = tokenizer(given[s.problem].demonstrations[0]["text"], add_special_tokens=False)["input_ids"]
        assert 0 < s.prefix_tokens <= int(0.3 * len(tokens))
        assert s.completion_ids[: s.prefix_tokens] == tokens[: s.prefix_tokens]
        assert len(s.completion_ids) <= 40


def test_the_same_seed_gives_the_same_samples_whatever_was_drawn_before(grader):
    torch.manual_seed(5)
    _, _, first = draw(grader, samples=2)
    torch.manual_seed(6)
    _, _, second = draw(grader, samples=2)
    _, _, other = draw(grader, samples=2, seed=1)
    assert first == second != other
    assert [len(group) for group in by_problem(first)] == [2] * 6


def test_greedy_sampling_is_the_most_likely_token(grader):
    tokenizer, given, found = draw(grader, temperature=0.0)
    model = policy(tokenizer)
    ids = tokenizer(given[0].text)["input_ids"] + found[0].completion_ids[:3]
    assert int(model(torch.tensor([ids])).logits[0, -1].argmax()) == found[0].completion_ids[3]


def test_padding_does_not_change_what_is_generated(grader):
    tokenizer = characters()
    model, given = policy(tokenizer), problems()
    prompts = [p.text + " " * (7 * i) for i, p in enumerate(given)]
    options = {"max_completion_length": 8, "temperature": 0.0}
    together = sample(model, tokenizer, given, prompts, grader, batch_size=6, **options)
    apart = sample(model, tokenizer, given, prompts, grader, batch_size=1, **options)
    assert [s.completion_ids for s in together] == [s.completion_ids for s in apart]


def test_a_completion_ends_at_its_first_stop():
    assert until_stop([1, 2, 9, 3, 9], [9]) == [1, 2, 9]
    assert until_stop([1, 2], [9]) == [1, 2]


# --- the command's function -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def recipe_for(tmp_path, tiny):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(p.as_row()) + "\n" for p in problems()))
    recipe = tmp_path / "eval.yaml"
    recipe.write_text(
        f"model: {{name_or_path: {tiny}}}\ndata: {{train: {rows}}}\nmethod: {{name: dr_grpo}}\n"
        f"training: {{max_completion_length: 16, use_cpu: true}}\nevaluation: {{data: {rows}}}\noutput: {{dir: {tmp_path / 'run'}}}\n"
    )
    return recipe


def test_an_evaluation_says_what_was_measured_and_how(tmp_path, tiny):
    found = evaluate(str(tiny), str(recipe_for(tmp_path, tiny)), ["evaluation.prefix_fractions=[0, 0.5]", "evaluation.samples=2"],
                     tmp_path / "out")  # fmt: skip
    assert found["problems"] == 6
    assert found["accuracy"]["problems"] == 6
    assert found["accuracy"]["samples"] == 2
    assert sum(found["outcomes"].values()) == 12
    assert found["accuracy_by_prefix_fraction"].keys() == {"0", "0.5"}
    assert found["accuracy_by_prefix_fraction"]["0"] == found["accuracy"]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert statistics.fmean(line["truncated"] for line in lines) == pytest.approx(found["truncated_share"])


@pytest.mark.parametrize(
    ("target", "overrides", "error", "message"),
    [("tiny", ["evaluation.data=null"], RecipeError, "names nothing to evaluate on"),
     ("/nowhere", [], DataError, "no tokenizer could be loaded"), ("tiny", ["evaluation.data=/no.jsonl"], DataError, "there is no file")],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_explained(tmp_path, tiny, target, overrides, error, message):
    target = str(tiny) if target == "tiny" else target
    with pytest.raises(error, match=message):
        evaluate(target, str(recipe_for(tmp_path, tiny)), overrides)


def test_a_bare_model_needs_a_recipe(tiny):
    with pytest.raises(RecipeError, match="give a recipe with --config"):
        evaluate(str(tiny))
