"""How many examples a property is tried on: the same ones in every run, or with ``PREFIX_RL_EXAMPLES=8`` eight times as many at random."""

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("PREFIX_RL_EXAMPLES", "1"))


def load():
    """Hypothesis' settings for all properties.

    The same examples every time, so that a change is not refused for what another one brought. Hypothesis would fail an
    example that takes 200 ms, and one that is slow to draw: on a busy machine any is.
    """
    settings.register_profile(
        "suite",
        max_examples=100 * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        print_blob=True,
    )
    settings.load_profile("suite")


def examples(count):
    """A property that is tried on so many examples, or more in the long form."""
    return settings(max_examples=count * TIMES)
