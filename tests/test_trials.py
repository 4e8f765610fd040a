"""Modules, patterns and templates that may have no end are tried where they can be ended, and told."""

import contextlib
import os
import signal
import sys

import pytest
from hostile import ROOT, cpu_budget

from prefix_rl.errors import RecipeError
from prefix_rl.recipe import load_recipe
from prefix_rl.trials import IMPORT_SECONDS, import_module, tried

LAB = ROOT / "recipes" / "lab" / "dr_grpo.yaml"
LATE = "its import takes more than 1 seconds"
GONE = "its import ends the process that runs it (status 0)"
BIG = "x = []\nwhile True: x.append(bytearray(10**7))"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes a module of somebody's own, ``strange.module``."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "strange").mkdir()

    def make(text):
        function = "\ndef reward(completions, **columns):\n    return [1.0] * len(completions)\n"
        (tmp_path / "strange" / "module.py").write_text(text + function)

    yield make
    for name in ("strange", "strange.module"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("override", ["reward.functions=[strange.module.reward]", "method={name: strange.module}"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("while True: pass", LATE), ("import time\ntime.sleep(10**6)", LATE), ("10 ** 10 ** 9", LATE),
        ("while True:\n try:\n  while True: pass\n except BaseException: pass", LATE),
        ("import os\nos._exit(0)", GONE), ("import os\nos.kill(os.getpid(), 11)", "runs it (signal 11)"),
        (BIG, "its import takes more than 300 MiB"), ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("raise KeyError(3)", "KeyError: 3"),
    ],
)  # fmt: skip
def test_a_module_whose_import_has_no_end_is_a_fault_of_the_recipe(own, monkeypatch, text, said, override):
    monkeypatch.setattr("prefix_rl.trials._half_of_memory", lambda: 300)
    monkeypatch.setenv(IMPORT_SECONDS, "1" if said == LATE else "300")
    own(text)
    with cpu_budget(), pytest.raises(RecipeError) as raised:
        load_recipe(LAB, [override])
    assert said in str(raised.value)
    assert ("PREFIX_RL_IMPORT_SECONDS=300 in the environment" in str(raised.value)) is (said == LATE)


def test_what_a_module_starts_is_ended_with_the_trial(own, tmp_path):
    started = tmp_path / "started"
    own(f"import subprocess\nopen({str(started)!r}, 'a').write(f\"{{subprocess.Popen(['sleep', '600']).pid}} \")")
    load_recipe(LAB, ["reward.functions=[strange.module.reward]"])
    tried_there, here = map(int, started.read_text().split())
    os.kill(here, signal.SIGKILL)
    os.waitpid(here, 0)
    with cpu_budget(), contextlib.suppress(ProcessLookupError):
        while True:  # until whoever inherits it has seen its end
            os.kill(tried_there, 0)


def test_who_waits_is_told_what_for_and_wrong_seconds_are_none(own, monkeypatch, capsys):
    monkeypatch.setattr("prefix_rl.trials._PATIENCE", 0.2)
    own("import time\ntime.sleep(0.5)")
    for seconds in ("nonsense", "20"):
        monkeypatch.setenv(IMPORT_SECONDS, seconds)
        sys.modules.pop("strange.module", None)
        load_recipe(LAB, ["reward.functions=[strange.module.reward]"])
        told = "30" if seconds == "nonsense" else "20"
        assert (
            f"importing the module strange.module takes long; it is given up after {told} s" in capsys.readouterr().err
        )


def test_what_raises_has_come_to_an_end():
    assert tried("1 / 0", None, 20) is None
    assert tried("assert given == [1]", [1], 20) is None
    assert tried("status = TOO_LONG", None, 20, characters=7) == "makes more than 7 characters"
    assert tried("while True: pass", None, 60, cpu_seconds=1) == "takes more than 1 seconds"


@pytest.mark.parametrize(("name", "is_tried"), [("json.tool", False), ("jinja2.ext", False), ("strange.module", True)])
def test_what_is_installed_is_not_tried(own, monkeypatch, name, is_tried):
    own("")
    monkeypatch.delitem(sys.modules, name, raising=False)
    asked = []
    monkeypatch.setattr("prefix_rl.trials.tried", lambda *arguments, **more: asked.append(arguments[1]))
    assert import_module(name).__name__ == name
    assert asked == [name] * is_tried
