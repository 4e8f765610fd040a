"""The reward ``code``: what a program earns, and what it cannot do."""

import shutil
import subprocess

import pytest

from prefix_rl.rewards import code
from prefix_rl.rewards.code import code_reward, networks_can_be_taken, run

ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def fenced(program):
    return f"Here it is:\n```python\n{program}\n```\n"


@pytest.mark.parametrize(
    ("text", "tests", "value"),
    [
        (fenced(ADD), TESTS, 1), (fenced(ADD.replace("+", "-")), TESTS, 0), (ADD, TESTS, 0),
        (fenced("x = (") + fenced(ADD), TESTS, 1), (fenced(ADD) + fenced("x = ("), TESTS, 0),
        (fenced("import sys; sys.exit(0)"), TESTS, 0), (fenced("import os; os._exit(0)"), TESTS, 0),
        (fenced(ADD), [], None), (fenced(ADD), None, None),
        (fenced("print(int(input()) * 2)"), [{"input": "21\n", "output": "42"}], 1),
        (fenced("print(int(input()) * 3)"), [{"input": "21\n", "output": "42"}], 0),
    ],
)  # fmt: skip
def test_the_last_block_earns_one_if_it_passes_all_tests(text, tests, value):
    assert code_reward([text], [tests]) == [value]


def test_a_program_stands_in_the_last_message_and_in_the_last_fence_that_is_closed():
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": fenced(ADD)}]
    assert code_reward([turns[1:], turns], [TESTS, TESTS]) == [1, 1]
    assert code.last_block("````\na\n```\nb\n````\n") == "a\n```\nb\n"  # three marks close no fence of four
    assert code.last_block("````\na\n```\n```\n````\n````\n") == "a\n```\n```\n"
    assert code.last_block("```\na\n```\n~~~\nb\n") == "a\n"


def test_a_block_of_the_prefix_is_not_the_policys():
    text = fenced(ADD)
    assert code_reward([text], [TESTS], continuation_start=[len(text)]) == [0]
    assert code_reward([text], [TESTS], continuation_start=[len(text) - 5]) == [1]


def test_limits_of_time_memory_and_files(monkeypatch):
    monkeypatch.setattr(code, "SECONDS", 1.0)
    assert run("while True: pass", "") is None
    assert run("import time; time.sleep(60)", "") is None
    assert run("x = bytearray(2**29)", "") is None
    assert run("x = bytearray(2**20); print(len(x))", "") == "1048576\n"  # control
    assert run("open('x', 'wb').write(bytes(2**22))", "") is None
    assert run("print(open('x', 'wb').write(bytes(2**10)))", "") == "1024\n"  # control


def test_what_a_program_is_given():
    said = """
import os, resource
for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):
    print(*resource.getrlimit(limit))
print(os.path.expanduser("~") == os.getcwd() == os.environ["TMPDIR"], len(os.environ) <= 5)  # Python adds LC_CTYPE
try:
    import yaml  # stands beside this package
except ImportError:
    print("the standard library alone")
"""
    assert run(said, "").splitlines() == [
        "536870912 536870912", "2 2", "1048576 1048576", "64 64", "0 0", "True True", "the standard library alone"
    ]  # fmt: skip


@pytest.mark.skipif(not shutil.which("unshare"), reason="the command unshare is not there")
def test_whether_a_network_can_be_taken_is_what_the_system_says():
    can = subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True).returncode == 0
    assert networks_can_be_taken() is can


def test_no_network_where_the_kernel_lets_a_process_say_so():
    names = "import socket; print(sorted(name for _, name in socket.if_nameindex()))"
    if not networks_can_be_taken():
        pytest.skip("this kernel lets no plain process have a network of its own")
    assert run(names, "") == "['lo']\n"
