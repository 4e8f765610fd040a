"""``accelerate launch -m prefix_rl.evaluate ...``: `prefix-rl evaluate`, its samples shared out over processes."""

import sys

from .cli import app
from .progress import run_or_explain

if __name__ == "__main__":
    sys.exit(run_or_explain(lambda: app(["evaluate", *sys.argv[1:]])))
