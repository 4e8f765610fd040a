"""Whole files, locks and parts: killed in the middle, on a full disk, by two processes at once, read while written."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl import parts as module
from prefix_rl.parts import Damaged, Lock, OtherColumns, Parts, Taken, settle, whole, write_json, write_text


def schema():
    return pyarrow.schema([("number", pyarrow.int64()), ("text", pyarrow.string())])


def store(folder, **options):
    return Parts(Path(folder), "part-{:06}.parquet", **{"schema": schema, "checksums": True, **options})


def numbers(parts):
    return [row["number"] for batch in parts.batches() for row in batch.to_pylist()]


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def start(program, *arguments):
    """Another process that runs a program; it says ``ready`` when it is where the test wants it."""
    program = "import sys, time\nfrom pathlib import Path\nfrom prefix_rl.parts import *\n" + program
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL


# --- whole files ------------------------------------------------------------------------------------------------------


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    with whole(tmp_path / "new" / "a.txt") as file:
        file.write(b"half")
        file.flush()
        assert names(tmp_path / "new") == ["a.txt.partial"]
    assert names(tmp_path / "new") == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"half"
    assert (tmp_path / "new" / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask()  # as of any file


def umask():
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_what_goes_wrong_leaves_everything_as_it_was(tmp_path, error):
    write_text(tmp_path / "a.txt", "before")

    def write():
        with whole(tmp_path / "a.txt") as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "before"


def test_the_content_is_on_the_disk_before_the_name_is_and_the_name_before_the_call_returns(tmp_path, monkeypatch):
    told, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (told.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name), fsync(handle))
    )
    monkeypatch.setattr(Path, "replace", lambda self, to: (told.append("renamed"), replace(self, to)))
    write_text(tmp_path / "a.txt", "x")
    assert told == ["a.txt.partial", "renamed", tmp_path.name]


def test_json_is_readable_and_ends_with_a_line(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "ä": [\n    1\n  ]\n}\n'


@pytest.fixture
def full(monkeypatch):
    """A context in which what is written beside goes to a device on which there is never room."""
    opened = module._opened_alone

    def on_a_full_disk(partial):
        file = opened(partial)
        device = os.open("/dev/full", os.O_WRONLY)
        os.dup2(device, file.fileno())
        os.close(device)
        return file

    @contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(module, "_opened_alone", on_a_full_disk)
            yield

    return context


def test_a_full_disk_leaves_the_old_file(tmp_path, full):
    write_text(tmp_path / "a.txt", "before")
    with full(), pytest.raises(OSError, match="No space left"), whole(tmp_path / "a.txt") as file:
        file.write(b"x" * 100_000)
    assert (tmp_path / "a.txt").read_text() == "before"
    assert names(tmp_path) == ["a.txt"]
    write_text(tmp_path / "a.txt", "after")
    assert (tmp_path / "a.txt").read_text() == "after"


def test_a_disk_that_is_full_at_the_last_moment_leaves_the_old_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "before")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_text(tmp_path / "a.txt", "after")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "before"


def test_kill_9_in_the_middle_leaves_the_old_file_and_the_next_writer_takes_over(tmp_path):
    write_text(tmp_path / "a.txt", "before")
    process = start("with whole(sys.argv[1]) as file:\n file.write(b'x' * 100_000)\n print('ready', flush=True)\n time.sleep(60)",
                    tmp_path / "a.txt")  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    assert (tmp_path / "a.txt").read_text() == "before"
    kill(process)
    assert names(tmp_path) == ["a.txt", "a.txt.partial"]
    assert (tmp_path / "a.txt").read_text() == "before"
    write_text(tmp_path / "a.txt", "after")  # shorter than what was left
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "after"


WRITER = """
for n in range(int(sys.argv[3])):
    write_text(sys.argv[1], sys.argv[2] * 20_000)
print("ready", flush=True)
"""


def test_two_writers_at_once_never_mix_and_a_reader_sees_whole_files_only(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "a" * 20_000)
    writers = [start(WRITER, path, letter, 150) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        seen.add(path.read_text())
    for writer in writers:
        assert writer.wait() == 0
        writer.stdout.close()
    seen.add(path.read_text())
    assert seen <= {"a" * 20_000, "b" * 20_000}
    assert names(tmp_path) == ["a.txt"]


def test_without_the_name_beside_a_reader_would_see_half_a_file(tmp_path):
    """The control of the test above: the same reader finds a plain writer out."""
    path = tmp_path / "a.txt"
    write_text(path, "a" * 20_000)
    writer = start(WRITER.replace("write_text(sys.argv[1],", "Path(sys.argv[1]).write_text("), path, "a", 3000)
    torn = False
    while writer.poll() is None and not torn:
        torn = path.read_text() != "a" * 20_000
    kill(writer) if writer.poll() is None else writer.stdout.close()
    assert torn


def test_a_folder_made_beside_takes_the_place_of_the_old_one(tmp_path):
    for name, content in (("final", "old"), ("final.partial", "new")):
        write_text(tmp_path / name / "weights" / "a.bin", content)
    write_text(tmp_path / "final" / "only-in-the-old", "")
    settle(tmp_path / "final.partial", tmp_path / "final")
    assert names(tmp_path) == ["final"]
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == ["final/weights/a.bin"]
    assert (tmp_path / "final" / "weights" / "a.bin").read_text() == "new"
    settle(tmp_path / "final" / "weights" / "a.bin", tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_text() == "new"


# --- locks ------------------------------------------------------------------------------------------------------------

HOLDER = "with Lock(sys.argv[1]).held():\n print('ready', flush=True)\n time.sleep(float(sys.argv[2]))"


def test_a_lock_of_a_live_process_refuses_and_says_who_and_of_a_dead_one_is_taken_over(tmp_path):
    process = start(HOLDER, tmp_path / ".lock", 60)
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(Taken, match=rf"^ \(process {process.pid} on .+ since \d\d\d\d-\d\d-\d\d .+: -c .*\)$"):
        with Lock(tmp_path / ".lock").held():
            pytest.fail("two processes have it")
    kill(process)
    with Lock(tmp_path / ".lock").held():
        assert json.loads((tmp_path / ".lock.by").read_text())["pid"] == os.getpid()
    assert names(tmp_path) == [".lock"]  # nobody has it, and nobody is said to


def test_one_lock_is_held_several_times_and_given_back_once(tmp_path):
    lock = Lock(tmp_path / ".lock")
    with lock.held():
        with lock.held():
            pass
        assert (tmp_path / ".lock.by").exists()
        with pytest.raises(Taken), Lock(tmp_path / ".lock").held():
            pass
    with Lock(tmp_path / ".lock").held():
        pass


def test_who_waits_is_told_for_whom_once_and_then_gets_it(tmp_path):
    process = start(HOLDER, tmp_path / ".lock", 0.3)
    assert process.stdout.readline() == "ready\n"
    told = []
    with Lock(tmp_path / ".lock").held(told.append):
        assert process.wait(timeout=10) == 0
    process.stdout.close()
    assert len(told) == 1
    assert f"process {process.pid} on" in told[0]


def test_a_lock_without_a_note_refuses_all_the_same(tmp_path):
    with Lock(tmp_path / ".lock").held():
        (tmp_path / ".lock.by").write_text("not JSON")
        with pytest.raises(Taken) as taken, Lock(tmp_path / ".lock").held():
            pass
    assert str(taken.value) == ""


def test_a_lock_that_cannot_be_written_is_an_error_of_the_system(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Not a directory|File exists"), Lock(tmp_path / "file" / ".lock").held():
        pass


# --- parts ------------------------------------------------------------------------------------------------------------


@examples(20)
@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=5))
def test_what_was_appended_is_read_in_that_order(tmp_path_factory, groups):
    parts = store(tmp_path_factory.mktemp("s"))
    for group in groups:
        parts.append([{"number": n, "text": "x"} for n in group])
    assert numbers(parts) == [n for group in groups for n in group]
    assert parts.count() == sum(map(len, groups))
    assert list(parts.paths()) == list(range(len(groups)))
    assert parts.missing() == []


def test_numbers_order_the_parts_also_beyond_their_digits(tmp_path):
    parts = Parts(tmp_path, "{:02}.parquet", schema)
    for number in (100, 9, 99):
        parts.put(number, [{"number": number, "text": ""}])
    assert numbers(parts) == [9, 99, 100]
    assert parts.next_path().name == "101.parquet"
    assert parts.missing()[:2] == ["00.parquet", "01.parquet"]
    assert len(parts.missing()) == 101 - 3
    parts.put(9, [{"number": 10, "text": ""}])  # in the place of the earlier one
    assert numbers(parts) == [10, 99, 100]


def test_other_files_in_the_folder_are_no_parts(tmp_path):
    parts = store(tmp_path)
    parts.append([{"number": 1, "text": "x"}])
    for name in ("part-000001.parquet.partial", "part-00001.parquet", "xpart-000001.parquet", "store.json"):
        (tmp_path / name).write_bytes(b"x")
    assert numbers(parts) == [1]
    parts.remove_leftovers()
    assert "part-000001.parquet.partial" not in names(tmp_path)
    assert store(tmp_path / "none").paths() == {}
    assert (store(tmp_path / "none").count(), store(tmp_path / "none").next_path().name) == (0, "part-000000.parquet")


def test_columns_are_read_alone_and_without_a_schema_are_those_of_the_rows(tmp_path):
    parts = store(tmp_path / "a")
    parts.append([{"number": 1, "text": "x"}])
    (batch,) = parts.batches(["text"])
    assert batch.to_pylist() == [{"text": "x"}]
    free = Parts(tmp_path / "b", "step_{:06}.parquet")
    path = free.put(10, [{"any": 1.5, "list": [{"a": "b"}]}])
    assert path.name == "step_000010.parquet"
    assert free.rows(path) == [{"any": 1.5, "list": [{"a": "b"}]}]


def test_parts_of_something_else_and_damaged_ones_are_told_apart(tmp_path):
    parts = store(tmp_path)
    path = parts.append([{"number": n, "text": "x" * 50} for n in range(100)])
    Parts(tmp_path, "part-{:06}.parquet").put(1, [{"other": 1}])
    with pytest.raises(OtherColumns, match="it has the columns other") as error:
        numbers(parts)
    assert error.value.path.name == "part-000001.parquet"
    good = path.read_bytes()
    for bad in (good[:-20], b"", good[: len(good) // 2]):
        path.write_bytes(bad)
        with pytest.raises(Damaged) as error:
            numbers(parts)
        assert error.value.path == path
        assert str(error.value)
        assert not isinstance(error.value, OtherColumns)


def test_a_flipped_bit_is_found_by_its_checksum(tmp_path):
    rows = [{"number": n * n % 97, "text": str(n * n)} for n in range(100)]
    checked, unchecked = store(tmp_path), store(tmp_path, checksums=False)
    path = checked.append(rows)
    good, silent = path.read_bytes(), 0
    for at in range(40, 400, 3):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        try:
            wrong = unchecked.rows(path) != rows
        except Damaged:
            continue  # of that bit the plain reader knows, too
        if wrong:
            silent += 1
            with pytest.raises(Damaged):
                checked.rows(path)
    assert silent > 3  # without checksums these would be trained on


APPENDER = """
import pyarrow
parts = Parts(Path(sys.argv[1]), "part-{:06}.parquet", lambda: pyarrow.schema([("number", pyarrow.int64()), ("text", pyarrow.string())]), True)
for n in range(int(sys.argv[2])):
    parts.append([{"number": 3 * n + i, "text": "x" * 2000} for i in range(3)])
    print("ready", flush=True)
"""


@pytest.mark.parametrize("after", [0.0, 0.003, 0.01, 0.02])
def test_kill_9_at_any_moment_leaves_whole_parts_and_the_next_process_goes_on(tmp_path, after):
    process = start(APPENDER, tmp_path / "s", 10_000)
    for _ in range(3):
        process.stdout.readline()
    time.sleep(after)
    kill(process)
    parts = store(tmp_path / "s")
    there = numbers(parts)
    assert there == list(range(len(there)))  # no row lost, none half
    assert len(there) % 3 == 0
    assert len(there) >= 9
    parts.append([{"number": len(there), "text": "x"}])
    assert numbers(parts) == list(range(len(there) + 1))
    assert not [name for name in names(tmp_path / "s") if name.endswith(".partial")]  # that part was the same one


def test_a_reader_beside_a_writer_sees_a_growing_number_of_whole_parts(tmp_path):
    process = start(APPENDER, tmp_path / "s", 60)
    process.stdout.readline()
    lengths = []
    while process.poll() is None:
        there = numbers(store(tmp_path / "s"))
        assert there == list(range(len(there)))
        lengths.append(len(there))
    process.stdout.close()
    assert process.returncode == 0
    assert lengths == sorted(lengths)
    assert numbers(store(tmp_path / "s")) == list(range(180))


def test_two_processes_that_append_under_the_lock_lose_nothing(tmp_path):
    program = """
import pyarrow
parts = Parts(Path(sys.argv[1]), "part-{:06}.parquet", lambda: pyarrow.schema([("number", pyarrow.int64()), ("text", pyarrow.string())]), True)
for n in range(20):
    with Lock(parts.folder / ".lock").held(lambda who: None):
        parts.append([{"number": int(sys.argv[2]) + n, "text": ""}])
"""
    (tmp_path / "s").mkdir()
    processes = [start(program, tmp_path / "s", first) for first in (0, 100)]
    for process in processes:
        assert process.wait(timeout=60) == 0
        process.stdout.close()
    assert sorted(numbers(store(tmp_path / "s"))) == [*range(20), *range(100, 120)]


def test_a_full_disk_leaves_the_parts_as_they_were(tmp_path, full):
    parts = store(tmp_path)
    parts.append([{"number": 1, "text": "x"}])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full(), pytest.raises(OSError, match="No space left"):
        parts.append([{"number": 2, "text": "y"}])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    parts.append([{"number": 2, "text": "y"}])
    assert numbers(parts) == [1, 2]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    rows = [{"number": n, "text": str(n)} for n in range(50)]
    one, other = (store(tmp_path / name).append(rows).read_bytes() for name in "ab")
    assert one == other
