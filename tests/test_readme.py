"""What the README tells people to type exists, and is what the tests run."""

import ast
import re
import shlex
from pathlib import Path

from typer.main import get_command

from prefix_rl import methods
from prefix_rl.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RECIPES = (ROOT / "recipes" / "README.md").read_text()
NO_METRICS = {"reward_weights"}  # names of TRL's that look like ours


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def test_every_prefix_rl_command_and_option_exists():
    found = [words for words in commands() if words[0] == "prefix-rl"]
    assert {words[1] for words in found} >= {"prepare", "schedule", "evaluate", "report"}
    for words in found:
        options = {name for p in get_command(app).commands[words[1]].params for name in p.opts}
        assert {w for w in words if w.startswith("--")} <= options, words


def test_every_file_that_the_readme_names_exists():
    for text, folder in ((README, ROOT), (RECIPES, ROOT / "recipes")):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (folder / target).exists(), target
    for path in re.findall(r"(?:recipes|benchmarks)/[\w./-]+\.(?:yaml|py|sh|md)", README):
        assert (ROOT / path).exists(), path


def test_the_tree_in_the_design_is_the_tree():
    tree = (ROOT / "docs" / "design.md").read_text().split("## What is where")[1]
    assert "trainer.py" in tree
    for name in re.findall(r"\b([a-z_]+\.py|[a-z]+/)", tree):
        assert list((ROOT / "prefix_rl").rglob(name.rstrip("/"))) or (ROOT / name).exists(), name


def test_the_two_commands_are_what_make_and_ci_run():
    makefile = (ROOT / "Makefile").read_text()
    assert [words for words in commands() if words[0] == "make"] == [["make", "quickstart"], ["make", "test"]]
    assert "$(BIN)/prefix-rl quickstart" in makefile
    assert "-m pytest" in makefile
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make test" in ci
    assert "rm -rf .venv" in ci


def test_every_method_has_a_row_and_every_recipe_is_listed():
    for name in methods.names():
        assert re.search(rf"^\| `{name}` \|", README, re.MULTILINE)
    for path in (ROOT / "recipes").rglob("*.yaml"):
        if path.parent.name != "accelerate":
            assert f"({path.relative_to(ROOT / 'recipes')})" in RECIPES, path


def logged(path):
    """The names of metrics that a module logs: what a dictionary or a log has by a name like ``prefix/length``."""
    names = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    return {
        n
        for n in names
        if isinstance(n, str) and re.fullmatch(r"(prefix|speed|sampler)/[a-z_]+|(reward|entropy)_[a-z_]+", n)
    }


def test_every_metric_of_ours_is_explained():
    page = (ROOT / "docs" / "metrics.md").read_text()
    names = {name for path in (ROOT / "prefix_rl" / "seam").glob("*.py") for name in logged(path)} - NO_METRICS
    assert len(names) > 12
    for name in names | {"eval_reward", "outcome/right"}:
        assert f"`{name}`" in page, name
