"""Several trainings one after another in the processes of one launch, so that a launch is paid once:

    accelerate launch ... tests/several.py FILE

``FILE`` is JSON: ``{name: [recipe, override, ...]}``. Each is ``python -m prefix_rl.train`` on these arguments; what it says
stands on standard error between its line and the next one's. The first that fails ends them all.
"""

import gc
import json
import os
import sys
from pathlib import Path

LINE = "=== "


def said_by_each(said: str) -> dict[str, str]:
    """What each training has said, by its name."""
    parts = said.split(f"\n{LINE}")[1:]
    return {name: rest for name, _, rest in (part.partition("\n") for part in parts)}


if __name__ == "__main__":
    import prefix_rl.seam.trainer  # noqa: F401  all that is heavy
    from prefix_rl.train import main

    gc.collect()
    gc.freeze()  # accelerate collects garbage before every training, 0.3 s of CPU with all that in sight
    for name, (recipe, *overrides) in json.loads(Path(sys.argv[1]).read_text()).items():
        if os.environ.get("RANK", "0") == "0":
            print(f"\n{LINE}{name}", file=sys.stderr, flush=True)
        if code := main(["--config", recipe, *overrides]):
            sys.exit(code)
