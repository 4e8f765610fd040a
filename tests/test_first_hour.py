"""docs/first-hour: every command runs as it stands, one page after the other, in an empty folder."""

import os
import re
import subprocess
from pathlib import Path

import preloaded
import pytest

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "first-hour"
ORDER = ("my-data", "my-reward", "lora", "cluster")
_NAMED = re.compile(r"`([\w.-]+\.(?:yaml|py))`")


def steps(page):
    """(language, block, name of the file that it is) of each block of a page."""
    text = (PAGES / f"{page}.md").read_text()
    for found in re.finditer(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        names = _NAMED.findall(text[: found.start()].rsplit("```", 1)[-1])
        yield found[1], found[2], names[-1] if names and found[1] != "bash" else None


def test_every_page_is_listed_and_every_link_leads_somewhere():
    index = (PAGES / "README.md").read_text()
    assert re.findall(r"\]\(([\w-]+)\.md\)", index) == list(ORDER)
    for page in [*PAGES.glob("*.md"), ROOT / "docs" / "recipe.md", ROOT / "docs" / "plan.md"]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_runs_as_it_stands(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    path = f"{preloaded.commands(tmp_path / 'bin')}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "CHECKOUT": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    for page in ORDER:
        for language, block, name in steps(page):
            if language == "bash":
                block = block.replace("export PYTHONPATH=.", f"export PYTHONPATH=.:{ROOT}")
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", block], cwd=work, env=variables, capture_output=True, text=True
                )
                assert done.returncode == 0, f"{page}:\n{block}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            else:
                (work / name).write_text(block)
    for run in ("dr_grpo", "mine", "reward", "lora", "two"):
        assert (work / "runs" / run / "final").is_dir(), run
    assert (work / "runs" / "report" / "report.html").is_file()
    assert (work / "merged" / "config.json").is_file()
    assert "rewards/my_rewards.brief/mean" in (work / "runs" / "reward" / "metrics.jsonl").read_text()
