"""The Python that has imported everything already does what the true one does, as far as the tests ask for it."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import preloaded
import psutil
import pytest

CLI = "from prefix_rl.cli import main; "  # a program of the package


def run(*words, **options):
    return subprocess.run([preloaded.python(), *words], capture_output=True, text=True, **options)


def test_arguments_environment_folder_and_streams_are_the_callers(tmp_path):
    program = CLI + "import json, os, sys; print(json.dumps([sys.argv, os.environ['GIVEN'], os.getcwd(), input()])); "
    program += "print('aside', file=sys.stderr)"
    done = run("-c", program, "a", "b c", input="read\n", cwd=tmp_path, env={**os.environ, "GIVEN": "x"})
    assert json.loads(done.stdout) == [["-c", "a", "b c"], "x", str(tmp_path), "read"]
    assert (done.stderr, done.returncode) == ("aside\n", 0)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("sys.exit(3)", 3), ("sys.exit('what is wrong')", 1), ("1 / 0", 1), ("os._exit(75)", 75),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9), ("os.kill(os.getppid(), 0)", 0),
    ],
)  # fmt: skip
def test_it_ends_as_the_program_ends(end, status):
    assert run("-c", CLI + f"import os, signal, sys; {end}").returncode == status


def test_a_module_that_a_folder_of_the_path_holds_is_found(tmp_path):
    (tmp_path / "own_words.py").write_text("WORD = 'found'")
    (tmp_path / "program.py").write_text("import own_words; print(own_words.WORD, __name__)")
    assert run(str(tmp_path / "program.py")).stdout == "found __main__\n"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert run("-c", CLI + "import own_words; print(own_words.WORD)", env=environment).stdout == "found\n"


WAITS = CLI + "import os, signal, sys, time; {}; print(os.getpid(), flush=True); time.sleep(600)"


def waiting(before="pass"):
    """A program that waits, and the id of the process that runs it."""
    process = subprocess.Popen([preloaded.python(), "-c", WAITS.format(before)], stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def test_signals_reach_the_program():
    process, _ = waiting("signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))")
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    process, _ = waiting()
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM


def test_the_program_is_killed_with_it():
    process, program = waiting()
    assert program != process.pid
    process.kill()
    process.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(program).wait(timeout=120)  # the test's own failure if it lives on


def test_what_is_no_program_of_the_package_is_run_by_the_true_python():
    program = "import sys; print(sys.executable, 'torch' in sys.modules)"
    assert run("-c", program).stdout == f"{sys.executable} False\n"
    assert run("-c", CLI + program).stdout == f"{preloaded.python()} True\n"
