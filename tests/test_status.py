"""Whether a run that ended, died or hangs is told apart, with real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefix_rl import status
from prefix_rl.progress import bar
from prefix_rl.reports.runs import read_run
from prefix_rl.status import progress, read_status, recorded, state_of

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from prefix_rl import status
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background, as CI may be, ignores it
status.BEAT_SECONDS = 0.1
with status.recorded(Path(sys.argv[1]), "training"):
    for step in range(1, 4):
        time.sleep(0.05)
        status.progress("training", step, 10)
    print("ready", flush=True)
    if sys.argv[2] == "fails":
        raise ValueError("no such thing\\nsecond line")
    if sys.argv[2] == "hangs":
        def stuck():
            time.sleep(600)
        stuck()
    if sys.argv[2] == "works":
        for step in range(4, 10**6):
            time.sleep(0.05)
            status.progress("training", step, 10**6)
"""


@pytest.fixture
def started(tmp_path):
    """Starts the program above; whatever is left of it is killed at the end."""
    made = []

    def start(what):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), what], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        made.append(process)
        assert process.stdout.readline().strip() == b"ready"
        return process

    yield start
    for process in made:
        process.kill()
        process.wait()
        process.stdout.close()


def state(folder, after=0.0):
    return state_of(read_status(folder), time.time() + after)


def far(content):
    return {**content, "space": "another machine", "host": "node7"}


def test_a_run_that_ended_says_so(started, tmp_path):
    started("ends").wait()
    assert state(tmp_path).name == "ended"
    assert state(tmp_path, after=1e6).name == "ended"


def test_a_run_that_failed_says_why(started, tmp_path):
    started("fails").wait()
    assert state(tmp_path).says == "failed: ValueError: no such thing"


def test_a_run_that_was_interrupted_is_no_failure(started, tmp_path):
    process = started("works")
    process.send_signal(signal.SIGINT)
    process.wait()
    assert state(tmp_path).name == "stopped"


def test_a_run_that_was_killed_has_died_at_once(started, tmp_path):
    process = started("works")
    assert state(tmp_path).name == "running"
    process.kill()
    process.wait()
    assert state(tmp_path).name == "died"
    assert f"process {process.pid} is gone" in state(tmp_path).says


def test_a_run_that_hangs_is_heard_of_and_says_where(started, tmp_path, monkeypatch):
    started("hangs")
    assert state(tmp_path).name == "running"
    monkeypatch.setattr(status, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(status, "PATIENCE", 0)  # however slow its steps were
    while (found := state(tmp_path)).name == "running":  # the test's own limit ends it
        time.sleep(0.05)
    assert found.name == "hangs"
    assert " stuck" in found.says
    assert re.search(r"usually [\d.]+ s", found.says)


def test_a_process_that_was_stopped_hangs(started, tmp_path):
    process = started("works")
    process.send_signal(signal.SIGSTOP)
    try:
        assert state(tmp_path, after=61).name == "hangs"
        assert "gave no sign" in state(tmp_path, after=61).says
    finally:
        process.send_signal(signal.SIGCONT)


def test_another_machine_is_judged_by_its_signs_of_life():
    content = far(
        {"state": "running", "doing": "training", "pid": 1, "born": "1", "beat": 1000.0, "moved": 999.0, "pace": 1.0}
    )
    assert state_of(content, 1010.0).name == "running"
    assert state_of(content, 1061.0).name == "died"
    assert "node7 cannot be reached" in state_of(content, 1061.0).says
    # its clock is an hour behind, and a sign was seen to come a second ago
    assert state_of(content, 4600.0, unheard=1.0).name == "running"
    assert state_of({**content, "beat": 1500.0}, 1501.0).name == "hangs"  # heard of, but no further for 502 s
    assert state_of({**content, "beat": 1500.0, "pace": 60.0}, 1501.0).name == "running"  # ten times its pace is 600 s
    assert state_of({**content, "beat": 1500.0, "pace": None}, 1501.0).name == "running"  # before its first step
    assert state_of({**content, "beat": 2900.0, "pace": None}, 2901.0).name == "hangs"


def test_a_number_that_another_process_has_now_is_not_the_run(tmp_path):
    with recorded(tmp_path, "training"):
        content = read_status(tmp_path)
    content |= {"state": "running", "born": "1"}
    assert state_of(content, time.time()).name == "died"


def test_bars_move_the_status(tmp_path):
    with recorded(tmp_path, "evaluating"):
        with bar("aime24", 30) as advance:
            advance(12)
            assert status._records[-1].content["progress"] == {"what": "aime24", "done": 12, "total": 30}
        progress("grading", 1)
    assert read_status(tmp_path, "evaluating")["progress"]["what"] == "grading"
    progress("nobody", 1)  # is recorded: nothing happens


def test_training_and_evaluating_in_one_folder_do_not_mix(tmp_path):
    with recorded(tmp_path, "training"):
        pass
    with recorded(tmp_path, "evaluating"):
        progress("aime24", 3, 30)
        status._records[-1].write()
        found = read_run(tmp_path).state()
        assert (found.name, found.says) == ("running", "evaluating")
        assert found.progress["done"] == 3
    assert read_run(tmp_path).state().says == "ended"


def test_what_went_wrong_is_not_hidden_by_what_was_done_later(tmp_path):
    with pytest.raises(ValueError, match="no"):
        with recorded(tmp_path, "evaluating"):
            raise ValueError("no")
    with recorded(tmp_path, "training"):
        pass
    assert read_run(tmp_path).state().says == "failed: ValueError: no"
    with recorded(tmp_path, "evaluating"):  # tried again
        pass
    assert read_run(tmp_path).state().says == "ended"


def test_a_second_process_leaves_a_living_one_its_status(started, tmp_path):
    process = started("works")
    with pytest.raises(ValueError, match="refused"):
        with recorded(tmp_path, "training"):
            raise ValueError("refused")
    assert state(tmp_path).name == "running"
    process.kill()
    process.wait()
    with recorded(tmp_path, "training"):  # a dead one is replaced
        assert read_status(tmp_path)["pid"] == os.getpid()


def test_a_folder_of_reproducible_content_is_left_as_it_was(tmp_path):
    with pytest.raises(ValueError, match="no"):
        with recorded(tmp_path, "collecting", keep=False):
            raise ValueError("no")
    assert read_run(tmp_path).state().name == "failed"
    with recorded(tmp_path, "collecting", keep=False):
        assert read_run(tmp_path).state().name == "running"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "store.json").write_text("{}")
    (tmp_path / "summary.json").write_text("{}")
    assert read_run(tmp_path).state().name == "ended"


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with recorded(tmp_path, "training"):
        assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_left_to_the_command(tmp_path):
    (tmp_path / "file").write_text("")
    with recorded(tmp_path / "file" / "run", "training"):
        pass


def test_a_disk_that_is_full_ends_no_run(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with recorded(tmp_path, "training"):
        monkeypatch.setattr(Path, "write_text", full)
        status._records[-1].write()
        monkeypatch.undo()
    assert state(tmp_path).name == "ended"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "\ufffd"])
def test_a_status_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "status.training.json").write_text(text)
    assert read_status(tmp_path) is None
    assert state(tmp_path).name == "unknown"


def test_what_is_written_is_whole_at_every_moment(started, tmp_path):
    started("works")
    for _ in range(200):
        json.loads((tmp_path / "status.training.json").read_text())
    assert not [p for p in os.listdir(tmp_path) if "partial" in p and not (time.sleep(0.3) or (tmp_path / p).exists())]
