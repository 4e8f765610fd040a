"""What ``prefix-rl preview`` shows, without weights and without letting data speak to the terminal."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prefix_rl import preview as previews
from prefix_rl.cli import app
from prefix_rl.errors import RecipeError
from prefix_rl.lab.tiny import make_tiny

RECIPES = Path(__file__).parents[1] / "recipes"
ARMS = sorted(p.stem for p in (RECIPES / "lab").glob("*.yaml") if p.stem not in ("ladder", "rft", "upft"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def recipe(tiny, tmp_path, monkeypatch):
    """Writes rows and a recipe for them; answers with the recipe's file."""
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", lambda *a, **k: pytest.fail("loads weights"))

    def write(rows, **blocks):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {
            "model": {"name_or_path": str(tiny)}, "data": {"train": str(tmp_path / "rows.jsonl")},
            "method": {"name": "prefix_rft", "start": 0.5, "high": 0.5}, "reward": {"workers": 1},
            "training": {"max_steps": 10, "num_generations": 8, "max_completion_length": 40, "use_cpu": True},
            "output": {"dir": str(tmp_path / "run")},
        }  # fmt: skip
        given = {name: given.get(name, {}) | blocks.get(name, {}) for name in given | blocks}
        given["method"] = blocks.get("method", given["method"])
        (tmp_path / "recipe.yaml").write_text(json.dumps(given))
        return tmp_path / "recipe.yaml"

    return write


ROW = {"id": "one", "problem": "What is 2 + 3?", "answer": "5",
       "demonstrations": ["Two and three make \\boxed{5}.", "It is \\boxed{6}."]}  # fmt: skip


def test_prompt_prefix_guard_gold_and_verdicts(recipe):
    found = previews.preview(recipe([ROW]))
    (view,) = found.views
    assert (view.id, view.gold) == ("one", "5")
    # one token for each byte, and one for <|im_start|> and <|im_end|>
    assert [(p.text, p.tokens) for p in view.prompt if p.special] == [
        ("<|im_start|>", 1), ("<|im_end|>", 1), ("<|im_start|>", 1)
    ]  # fmt: skip
    assert "".join(p.text for p in view.prompt) == (
        "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert view.prompt_tokens == sum(p.tokens for p in view.prompt) == 3 + len("user\nWhat is 2 + 3?\nassistant\n")
    right, wrong = view.demonstrations
    assert (right.verdict, right.used, right.tokens) == ("right", True, 29)
    assert (wrong.verdict, wrong.used) == ("wrong", False)
    assert right.safe_text == right.text[: right.safe_tokens]
    assert "5" not in right.safe_text
    plain, prefixed = sorted(view.starts, key=lambda start: start.tokens)
    assert (plain.rollouts, plain.room) == (7, 40)
    # 0.5 * 29 = 14 tokens of the right one
    assert (prefixed.rollouts, prefixed.tokens, prefixed.of, prefixed.room) == (1, 14, 29, 26)
    assert prefixed.text == "Two and three "[:14]
    assert prefixed.text + prefixed.rest + prefixed.beyond == right.text
    text = previews.report(found)
    assert "prefix of 14 of 29 tokens, room for 26 tokens" in text
    assert "[prefix|Two and three ]make [guard|\\boxed{5}.]" in text
    assert "demonstration 2: wrong, not used" in text
    assert any("left out when training begins" in note for note in found.notes)


def test_colours_take_the_place_of_brackets(recipe):
    text = previews.report(previews.preview(recipe([ROW])), color=True)
    assert "\x1b[42;30mTwo and three \x1b[0m" in text
    assert "[prefix|" not in text


def test_the_text_of_data_does_not_reach_the_terminal_as_control(recipe):
    evil = "\x1b]0;owned\x07\x1b[2J\x9b1m\u202e\u2028\x08\r"
    row = ROW | {"id": f"x{evil}", "problem": f"What{evil} is 2 + 3?",
                 "demonstrations": [f"Two {evil} and three make \\boxed{{5}}."]}  # fmt: skip
    for method in ({"name": "prefix_rft"}, {"name": "sft"}, {"name": "luffy"}):
        path = recipe([row], method=method, training={"max_completion_length": 200})
        text = previews.report(previews.preview(path))
        assert not set(text) & set("\x1b\x07\x9b\u202e\u2028\x08\r")
        assert "\\x1b]0;owned\\x07" in text
    assert json.loads(json.dumps(previews.as_json(previews.preview(path))))["views"][0]["id"].startswith("x\x1b")


@pytest.mark.parametrize("arm", ARMS)
def test_every_method_of_the_lab_is_shown(arm, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFIX_RL_CACHE", str(tmp_path))  # no base policy: only its tokenizer is made
    monkeypatch.chdir(RECIPES.parent)
    found = previews.preview(RECIPES / "lab" / f"{arm}.yaml", rows=2, step=20)
    text = previews.report(found)
    assert len(found.views) == 2
    assert not list(tmp_path.iterdir())
    for view in found.views:
        rollouts = sum(start.rollouts for start in view.starts if not start.copy)
        assert rollouts in (0, 8)
        assert bool(view.lessons) == (arm in ("sft", "sft_then_rl"))
        assert [d.verdict for d in view.demonstrations] == ["right"]
    assert ("starts no rollout from a prefix" in " ".join(found.notes)) == (arm in ("dr_grpo", "pppo", "sft_then_rl"))
    if arm == "luffy":
        assert "a whole demonstration, 28 tokens; nothing is generated behind it" in text
    if arm in ("sft", "sft_then_rl"):
        assert "[learned|" in text


def test_adapters_and_mixtures(recipe, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"problem": "What is 1 + 1?", "answer": "2", "demonstrations": ["It is \\boxed{2}."]}))
    path = recipe([ROW], model={"use_peft": True},
                  data={"train": [str(tmp_path / "rows.jsonl"), {"file": str(other), "weight": 2.0}]})  # fmt: skip
    assert {view.source for view in previews.preview(path).views} == {"rows", "other"}


def test_own_traces_are_what_is_learned(recipe, tmp_path):
    path = recipe([ROW], method={"name": "upft"}, data={"traces": str(tmp_path / "nowhere")})
    done = CliRunner().invoke(app, ["preview", str(path)])
    assert "nowhere" in str(done.exception)  # UserError: main() prints it


def test_a_step_outside_of_the_run_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"--step 10: the run has steps 0 to 9"):
        previews.preview(recipe([ROW]), step=10)


def test_the_command_prints_json(recipe):
    done = CliRunner().invoke(app, ["preview", str(recipe([ROW])), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["views"][0]["demonstrations"][0]["verdict"] == "right"


def test_long_texts_are_clipped_and_said_to_be(recipe):
    row = ROW | {"problem": "x" * 500}
    found = previews.preview(recipe([row]))
    assert "characters ...]" in previews.report(found, characters=100)
    assert "characters ...]" not in previews.report(found, characters=0)
