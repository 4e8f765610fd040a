import pytest
import test_multirank as m
from test_multirank import *  # noqa: F403
from test_multirank import one, two, unequal  # noqa: F401

m.on_one = lambda rows: {"help": m.settings("help", rows, 4)}
m.on_two = lambda parallel, rows: {"help": [*m.settings("help", rows, 1), *m.CUT]}
for name in list(globals()):
    if name.startswith("test_"):
        del globals()[name]


@pytest.mark.parametrize("parallel", ["zero3", "zero2"])
def test_help(one, two, parallel):
    m.test_two_processes_continue_and_supervise_as_one("help", one, lambda _: two(parallel)) if False else m.test_two_processes_continue_and_supervise_as_one(one, lambda _: two(parallel), "help")
