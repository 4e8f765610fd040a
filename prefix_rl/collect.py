"""``accelerate launch -m prefix_rl.collect ...``: `prefix-rl collect`, its attempts shared out over processes."""

import sys

from .cli import app
from .progress import run_or_explain

if __name__ == "__main__":
    sys.exit(run_or_explain(lambda: app(["collect", *sys.argv[1:]])))
