"""What the tests share: shapes checked at run time, small tokenizers and policies made in memory, the shared data."""

import gc
import os
import sys

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", WANDB_MODE="offline")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from pathlib import Path

import browser
import costs
import examples
import preloaded
import pytest
import real
from jaxtyping import install_import_hook

collect_ignore = ["hostile_exit.py", "hostile_rewards.py"]  # modules that nobody should import for their doctests

CHECKED = [
    "schedules",
    "prefixes",
    "cuts",
    "masks",
    "advantages",
    "losses",
    "rollouts",
    "methods",
    "lab.world",
    "lab.base",
]
install_import_hook([f"prefix_rl.{name}" for name in CHECKED], "shapes.check")

examples.load()

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"


LACKING = {"real": real.missing, "browser": browser.missing}


def pytest_runtest_setup(item):
    """Tests of real parts and of a browser are skipped where there are none, unless ``PREFIX_RL_DEMANDS`` names them.

    Those marked ``full`` are skipped unless it names them: another test shows the same in a shorter form.
    """
    demanded = os.environ.get("PREFIX_RL_DEMANDS", "").split(",")
    for part, missing in LACKING.items():
        if item.get_closest_marker(part) and (lacking := missing()):
            (pytest.fail if part in demanded else pytest.skip)(lacking)
    if item.get_closest_marker("full") and "full" not in demanded:
        pytest.skip("takes minutes, and a shorter form of it has run; PREFIX_RL_DEMANDS=full runs it")


def pytest_addoption(parser):
    parser.addoption("--fast", action="store_true", help="only what is quick, see tests/costs.py")
    parser.addoption("--costs", metavar="FILE", help="add the CPU seconds of each test to FILE, see tests/costs.py")


def pytest_collection_modifyitems(config, items):
    """The files with long tests come first, the dearest before the others: what begins last should not take longest."""
    dear = costs.listed()
    if config.getoption("fast"):
        marked = {item for item in items if any(map(item.get_closest_marker, costs.LEFT_OUT))}
        out = {item for item in items if item in marked or costs.function_of(item.nodeid) in dear}
        config.hook.pytest_deselected(items=list(out))
        items[:] = [item for item in items if item not in out]
    long = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("multirank")}
    of_files = costs.of_files(dear)
    items.sort(key=lambda item: (item.path not in long, -of_files[item.nodeid.partition("::")[0]]))


def pytest_collection_finish():
    """What was imported stays: accelerate collects garbage before every training, 0.3 s of CPU with all that in sight."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    before = costs.now()
    try:
        return (yield)
    finally:
        if file := item.config.getoption("costs"):
            costs.add(file, item.nodeid, costs.now() - before)


@pytest.fixture
def shared_data():
    """Real problems and grading cases beside the checkout; the test is skipped where there are none."""
    if not SHARED.is_dir():
        pytest.skip("no shared data beside this checkout")
    return SHARED


@pytest.fixture
def quick_starts(monkeypatch):
    """Commands that are started through ``sys.executable`` begin with everything imported, see tests/preloaded.py."""
    monkeypatch.setattr(sys, "executable", preloaded.python())


@pytest.fixture(scope="session", autouse=True)
def lab_cache(tmp_path_factory):
    """Base policies of the lab are cached in a folder of this test run, unless one is named."""
    if "PREFIX_RL_CACHE" not in os.environ:
        here = tmp_path_factory.getbasetemp()
        shared = here.parent if "PYTEST_XDIST_WORKER" in os.environ else here  # one for the processes of one run
        os.environ["PREFIX_RL_CACHE"] = str(shared / "lab")
    return os.environ["PREFIX_RL_CACHE"]
