"""A Python that has imported everything heavy already: its start costs some 0.1 s of CPU, and a fresh interpreter's 5 s.

:func:`python` is the path of an executable that is called as ``sys.executable`` is. One process for each process of the
tests imports trl, transformers and the package; a command is a fork of it with the caller's arguments, environment, folder
and standard streams, and the executable hands signals on and ends as the fork ends. If it is killed, so is the fork. What
the command starts through ``sys.executable`` starts in the same way; what is not of this package (or is one of its graders,
which live under limits of their own) is the true Python.

A test whose claim is about the start itself (what is imported, which environment counts), about who is whose parent, or
about kills in the middle of things, takes ``sys.executable``. So does one that two processes of a run agree: forks share the
seed of Python's hashes, and what depends on the order of a set would be alike in both.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import json
import os
import random
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from pathlib import Path

import costs

HEAVY = (
    "accelerate.commands.launch", "accelerate.state", "datasets", "matplotlib.pyplot", "scipy.stats",
    "torch.distributed.elastic.multiprocessing.errors", "torch.distributed.run", "transformers.models.qwen2.modeling_qwen2",
    "transformers.trainer", "trl.trainer.grpo_trainer", "prefix_rl.cli", "prefix_rl.collect", "prefix_rl.evaluate",
    "prefix_rl.evaluation.evaluate", "prefix_rl.ladders.climb", "prefix_rl.ladders.one", "prefix_rl.launch",
    "prefix_rl.reports.report", "prefix_rl.seam.trainer", "prefix_rl.supervised", "prefix_rl.train",
)  # fmt: skip
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys

given = sys.argv[1:]
words = [word for word in given if word != "-u"]
ours = len(words) > 1 and (
    (words[0] == "-m" and words[1].startswith(("prefix_rl.", "accelerate.")))
    or (words[0] == "-c" and "from prefix_rl.cli import main" in words[1])
) or words and words[0][:1] != "-"
if not ours:
    os.execv({python!r}, [{python!r}, *given])
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
asked = json.dumps([words, dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
server.sendall(asked)
fork = int.from_bytes(server.recv(8), "big")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, frame: os.kill(fork, number))
ended = int.from_bytes(server.recv(8), "big", signed=True)
if ended < 0:
    signal.signal(-ended, signal.SIG_DFL) if -ended not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -ended)
os._exit(ended)
"""


@functools.cache
def python() -> str:
    """The path of the executable; the process behind it starts at the first call and ends with this one."""
    folder = Path(tempfile.mkdtemp())
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    listening.listen(32)
    executable = folder / "python"
    executable.write_text(CLIENT.format(python=sys.executable, address=str(folder / "socket")), encoding="utf-8")
    executable.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, str(listening.fileno()), str(executable)], stdin=subprocess.PIPE,
        pass_fds=[listening.fileno()], cwd=Path(__file__).parents[1],
    )  # fmt: skip
    listening.close()

    def end() -> None:
        server.stdin.close()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    costs.ELSEWHERE.append(folder / "used")
    return str(executable)


def commands(folder: Path) -> Path:
    """The folder, with the commands ``prefix-rl`` and ``accelerate`` in it, for ``PATH``."""
    folder.mkdir()
    for name, module in (("prefix-rl", "prefix_rl.cli"), ("accelerate", "accelerate.commands.accelerate_cli")):
        (folder / name).write_text(f"#!{python()}\nfrom {module} import main\nmain()\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


# --- the process behind it ----------------------------------------------------------------------------------------------


def serve(listening: socket.socket, executable: str) -> None:
    """Forks for whoever asks, until standard input ends."""
    waiting = select.poll()
    waiting.register(listening, select.POLLIN)
    waiting.register(0, select.POLLIN | select.POLLHUP)
    forks: dict[int, tuple[int, socket.socket]] = {}  # by the descriptors of the process, and of who asked
    while True:
        ready = [handle for handle, _ in waiting.poll()]
        for handle in sorted(ready, key=lambda handle: handle == listening.fileno()):  # who ended before who begins
            if handle == 0:
                for pid, _ in forks.values():
                    os.kill(pid, signal.SIGKILL)
                return
            if handle == listening.fileno():
                asking, _ = listening.accept()
                pid = fork(asking, executable, [listening, *{who for _, who in forks.values()}])
                asking.sendall(pid.to_bytes(8, "big"))
                watched = os.pidfd_open(pid)
                for one in (watched, asking.fileno()):
                    forks[one] = (pid, asking)
                    waiting.register(one, select.POLLIN | select.POLLHUP)
            elif handle in forks:
                pid, asking = forks[handle]
                if handle == asking.fileno():  # who asked is dead
                    os.kill(pid, signal.SIGKILL)
                    waiting.unregister(handle)
                    del forks[handle]
                    continue
                _, status = os.waitpid(pid, 0)
                Path(executable).with_name("used").write_text(str(costs.now()), encoding="utf-8")
                with contextlib.suppress(OSError):
                    asking.sendall(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))
                for one in [one for one, (whose, _) in forks.items() if whose == pid]:
                    waiting.unregister(one)
                    del forks[one]
                os.close(handle)
                asking.close()


def fork(asking: socket.socket, executable: str, others: list[socket.socket]) -> int:
    """The id of a new process that does what is asked; in that process this does not return."""
    size, streams, _, _ = socket.recv_fds(asking, 8, 3)
    asked = b""
    while len(asked) < int.from_bytes(size, "big"):
        asked += asking.recv(1 << 20)
    if pid := os.fork():
        for stream in streams:
            os.close(stream)
        return pid
    for stream, at in zip(streams, (0, 1, 2), strict=True):
        os.dup2(stream, at)
        os.close(stream)
    for one in (asking, *others):
        one.close()
    words, environment, folder = json.loads(asked)
    os._exit(command(words, environment, folder, executable))


def command(words: list[str], environment: dict[str, str], folder: str, executable: str) -> int:
    """Does what ``python WORDS`` does, as far as a command of this package can tell; returns the exit status."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    random.seed()
    sys.executable = executable
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(
            os.fdopen(at, mode, closefd=False), encoding="utf-8", errors=errors, line_buffering=at == 2 or os.isatty(at)
        )
        for at, mode, errors in ((0, "rb", "strict"), (1, "wb", "strict"), (2, "wb", "backslashreplace"))
    )
    first = str(Path(words[0]).parent.absolute()) if words[0][:1] != "-" else folder if words[0] == "-m" else ""
    own = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = [first, *own, *sys.path]
    code = 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            warnings.filterwarnings("ignore", message=".*found in sys.modules", category=RuntimeWarning)
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            main = sys.modules["__main__"] = type(sys)("__main__")
            exec(compile(words[1], "<string>", "exec"), main.__dict__)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        traceback.print_exc()
        code = 130
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return (code or 0) & 0xFF


if __name__ == "__main__":
    import gc
    import importlib

    shown = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    sys.path[:] = [part for part in sys.path if part not in shown and part != str(Path(__file__).parent)]
    sys.path.insert(0, str(Path(__file__).parents[1]))
    for name in HEAVY:
        importlib.import_module(name)
    sys.path.pop(0)
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
