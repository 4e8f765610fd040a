"""Completion in the shell: the script that typer makes, and what bash gets from it."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def shell(tmp_path):
    """Runs the command ``prefix-rl`` as a program of its own, or bash with it on the path."""
    program = tmp_path / "prefix-rl"
    program.write_text(f"#!{sys.executable}\nfrom prefix_rl.cli import main\nmain()\n")
    program.chmod(0o755)

    def run(*command, **variables):
        variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", **variables}
        return subprocess.run(command, env=variables, capture_output=True, text=True, cwd=tmp_path)

    return run


@pytest.mark.parametrize("kind", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell, kind):
    done = shell("prefix-rl", _PREFIX_RL_COMPLETE=f"source_{kind}")
    assert done.returncode == 0, done.stderr
    assert f"complete_{kind}" in done.stdout
    assert "prefix-rl" in done.stdout


def test_bash_takes_the_script_and_completes(shell, tmp_path):
    (tmp_path / "script").write_text(shell("prefix-rl", _PREFIX_RL_COMPLETE="source_bash").stdout)
    assert shell("bash", "-n", "script").returncode == 0

    def completed(*words):
        listed = " ".join(f"'{word}'" for word in words)
        ask = f'source script; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _prefix_rl_completion prefix-rl; ' \
              'printf "%s\\n" "${COMPREPLY[@]}"'  # fmt: skip
        done = shell("bash", "-c", ask)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert completed("prefix-rl", "pre") == ["prepare", "preview"]
    assert {"--gpus", "--memory"} <= set(completed("prefix-rl", "plan", "--"))
