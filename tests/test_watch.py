"""The page of runs that go on: who gets it, what it shows as files change, how it stops."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import browser as chromium
import pytest
from test_reports import made_run, rollout

from prefix_rl.errors import DataError
from prefix_rl.reports import watch as module
from prefix_rl.reports.rollouts import write_rollouts
from prefix_rl.reports.watch import Watched, serve
from prefix_rl.status import recorded

ROOT = Path(__file__).parents[1]


@pytest.fixture
def served():
    """Starts servers that end with the test."""
    made = []

    def start(*folders):
        server = serve(list(folders), port=0)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        made.append(server)
        return server

    yield start
    for server in made:
        server.shutdown()
        server.server_close()


def get(server, name="", token=None, host=None):
    """Status and body; ``host`` is what the browser thinks it speaks to."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=120)
    connection.request(
        "GET", f"/{server.token if token is None else token}/{name}", headers={"Host": host} if host else {}
    )
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def opened(body):
    return json.loads(zlib.decompress(body))


def index(server):
    return opened(get(server, "index")[1])


def test_who_has_the_token_gets_the_page_and_its_data(served, tmp_path):
    server = served(made_run(tmp_path / "run"))
    status, body, headers = get(server)
    assert status == 200
    assert b'data-source="live"' in body
    assert b"connect-src 'self'" in body
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    found = index(server)
    assert found["runs"][0]["name"] == "run"
    assert opened(get(server, "curves-0")[1])["metrics"]["reward"]["values"][0] == 0.025
    assert opened(get(server, "0-10")[1])[0]["answer"] == "1"


@pytest.mark.parametrize("token", ["", "wrong", "..", "%2e%2e", "é"])
def test_nobody_else_gets_anything(served, tmp_path, token):
    server = served(made_run(tmp_path / "run"))
    for name in ("", "index", "curves-0", "0-10"):
        with_quotes = urllib.request.quote(token, safe="%")
        assert get(server, name, token=with_quotes)[0] == 404


def test_a_name_that_resolves_here_is_refused(served, tmp_path):
    server = served(made_run(tmp_path / "run"))
    port = server.server_address[1]
    assert get(server, host=f"evil.example:{port}")[0] == 404
    assert get(server, host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "0-11",
        "7-10",
        "curves-7",
        "curves--1",
        "../metrics.jsonl",
        "0-10/..",
        "recipe.yaml",
        "curves-99999999999999",
    ],
)
def test_only_what_is_on_the_page_is_served(served, tmp_path, name):
    assert get(served(made_run(tmp_path / "run")), name)[0] == 404


def test_it_listens_on_this_machine_only_unless_asked(tmp_path):
    server = serve([made_run(tmp_path / "run")], port=0)
    try:
        assert server.server_address[0] == "127.0.0.1"
        assert server.address.startswith("http://127.0.0.1:")
        assert len(server.token) >= 20
        assert serve.__defaults__[0] == "127.0.0.1"
    finally:
        server.server_close()


def test_a_port_that_is_taken_is_said_or_left(tmp_path):
    run = made_run(tmp_path / "run")
    first = serve([run], port=0)
    try:
        with pytest.raises(DataError, match="nothing can listen"):
            serve([run], port=first.server_address[1])
    finally:
        first.server_close()
    with pytest.raises(DataError, match="is no folder"):
        serve([tmp_path / "nowhere"])


def test_what_changes_is_seen(served, tmp_path):
    run = made_run(tmp_path / "run")
    server = served(run)
    before = index(server)["runs"][0]
    assert [g["step"] for g in before["generations"]] == [10]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('ard": 0.5}\n{"step": 22, "reward": 0.75}\n')
    write_rollouts(run / "rollouts" / "step_000020.parquet", [rollout(i, row=5) for i in range(4)])
    after = index(server)["runs"][0]
    assert [g["step"] for g in after["generations"]] == [10, 20]
    assert after["step"] == 22
    assert after["curves_version"] != before["curves_version"]
    assert opened(get(server, "curves-0")[1])["step"][-1] == 22
    write_rollouts(run / "rollouts" / "step_000020.parquet", [rollout(i, row=6) for i in range(4)])  # a resumed run
    assert index(server)["runs"][0]["generations"][1]["version"] != after["generations"][1]["version"]


def test_runs_that_come_later_are_added_and_keep_their_number(served, tmp_path):
    (tmp_path / "runs").mkdir()
    server = served(tmp_path / "runs")
    assert index(server)["runs"] == []
    made_run(tmp_path / "runs" / "seed1" / "x")
    assert [run["name"] for run in index(server)["runs"]] == ["x"]
    made_run(tmp_path / "runs" / "seed0" / "x")
    assert [run["name"] for run in index(server)["runs"]] == ["seed1/x", "seed0/x"]
    shutil.rmtree(tmp_path / "runs" / "seed1")
    assert [run["name"] for run in index(server)["runs"]] == ["seed1/x", "seed0/x"]  # what was seen stays


def test_a_run_that_evaluates_or_collects_is_shown(served, tmp_path):
    folder = tmp_path / "traces"
    server = served(tmp_path)
    with recorded(folder, "collecting"):
        found = index(server)["runs"][0]
    assert (found["name"], found["state"]["name"], found["state"]["says"]) == ("traces", "running", "collecting")


def test_a_sign_of_life_counts_by_the_readers_own_clock(tmp_path, monkeypatch):
    run = made_run(tmp_path / "run")
    status = {
        "state": "running",
        "doing": "training",
        "space": "far",
        "host": "far",
        "pid": 1,
        "born": "1",
        "pace": 1.0,
    }

    def beat(at):
        (run / "status.training.json").write_text(json.dumps({**status, "beat": at, "moved": at}))

    now = [5000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    watched = Watched([run])
    state = lambda: opened(watched.index())["runs"][0]["state"]["name"]  # noqa: E731
    beat(time.time() - 3600)  # its clock is an hour behind, or it has been dead for an hour
    assert state() == "died"
    now[0] += 5
    beat(time.time() - 3595)
    assert state() == "running"  # it has just been heard of
    now[0] += 61
    assert state() == "died"  # and now no more
    ahead = Watched([run])
    beat(time.time() + 3600)  # a clock that goes ahead hides no death
    assert opened(ahead.index())["runs"][0]["state"]["name"] == "running"
    now[0] += 61
    assert opened(ahead.index())["runs"][0]["state"]["name"] == "died"


def test_many_that_ask_at_once_are_all_answered(served, tmp_path):
    server = served(made_run(tmp_path / "run"))
    found = []
    threads = [threading.Thread(target=lambda: found.append(get(server, "index")[0])) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 12


# SIGINT as in a terminal: a job in the background, as CI may be, ignores it, and its children inherit that
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from prefix_rl.cli import main; main()
"""


def test_the_command_prints_its_address_and_stops_with_ctrl_c(tmp_path):
    run = made_run(tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "watch", str(run), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    address = process.stdout.readline().strip()
    with urllib.request.urlopen(address, timeout=120) as answer:
        assert b"prefix_rl runs" in answer.read()
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(address.rstrip("/")[:-1] + "/", timeout=120)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "Traceback" not in told
    assert told.splitlines()[-1] == "stopped"


# --- in the browser ---------------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_the_page_keeps_up_and_keeps_what_is_looked_at(served, tmp_path):
    run = made_run(tmp_path / "run")
    server = served(tmp_path)
    page = chromium.Browser(tmp_path / "profile")
    try:
        page.open(server.address)
        page.until("document.documentElement.dataset.drawn === 'run 10'")
        with recorded(run, "training"):
            (run / "metrics.jsonl").write_text('{"step": 99, "reward": 0.25, "new/metric": 1.0}\n')
            write_rollouts(run / "rollouts" / "step_000020.parquet", [rollout(i, row=5) for i in range(4)])
            # who looks at the last generation is shown the new one
            page.until("document.documentElement.dataset.drawn === 'run 20'")
            page.until("document.querySelector('#runs .state').textContent.startsWith('running')")
            assert "99" in page.texts("#runs tbody td")
            page.set("#metric-filter", "new/metric")
            page.until("document.querySelector('.chart[data-metric=\"new/metric\"] circle')")
            # who looks at another one keeps it, and what was typed
            page.set("#generation", "0")
            page.set("#search", "so it")
            page.until("document.documentElement.dataset.drawn === 'run 10' && document.querySelector('.rollout mark')")
            write_rollouts(run / "rollouts" / "step_000030.parquet", [rollout(i, row=5) for i in range(4)])
            page.until("document.querySelector('#generation').max === '2'")
            assert page.js("document.querySelector('#generation').value") == "0"
            assert page.js("document.querySelector('#search').value") == "so it"
            assert page.js("document.documentElement.dataset.drawn") == "run 10"
        page.until("document.querySelector('#runs .state').textContent === 'ended'")
        assert [text for text in page.errors() if "favicon" not in text] == []
        server.shutdown()
        server.server_close()
        page.until("document.querySelector('#live').textContent.includes('does not answer')")
        assert page.texts("#runs tbody td:first-child") == ["run"]
    finally:
        page.close()
