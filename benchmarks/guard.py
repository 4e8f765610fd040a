"""What the answer guard does to demonstrations: what still shows the value, what is cut without need, what is left.

    python benchmarks/guard.py FILE ... [--fraction 0.95] [--guard mention]

A FILE is JSON Lines with ``problem``, ``answer`` and ``solution``. Prefixes end where the guard ends them at the latest,
in characters, so that the figures hold for every tokenizer. The check of what a prefix shows is no part of the guard:
it reads every number of the prefix in a plain way, and the problem's. Nothing here passes or fails.
"""  # noqa: E501

import argparse
import gzip
import json
import re
import sys
import time
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

PLAIN = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}|(?<![\d.])(\d+(?:(?:,|\{,\}|\\,|,\\!)\d{3})*(?:\.\d+)?|\.\d+)")


def numbers(text: str) -> set[Fraction]:
    """The numbers of a text without their signs."""
    found = set()
    for m in PLAIN.finditer(text):
        if m[3] and len(m[3]) < 40:
            found.add(Fraction(re.sub(r"[^\d.]", "", m[3])))
        elif m[1] and int(m[2]):
            found.add(abs(Fraction(int(m[1]), int(m[2]))))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--fraction", type=float, default=0.95, help="of the schedule's draw")
    parser.add_argument("--limit", type=int, default=0)
    given = parser.parse_args()

    from prefix_rl.rewards.guard import readable

    for file in given.files:
        opened = gzip.open(file, "rt", encoding="utf-8") if file.endswith(".gz") else open(file, encoding="utf-8")  # noqa: SIM115
        with opened as lines:
            rows = [json.loads(line) for line in lines]
        rows = [row for row in rows if row.get("solution")][: given.limit or None]
        began = time.process_time()
        places = [readable(row["solution"], row["answer"], row["problem"]) for row in rows]
        seconds = time.process_time() - began
        blind = [readable(row["solution"], row["answer"], computed=False) for row in rows]
        print(f"{file}: {len(rows):,} demonstrations, {1000 * seconds / len(rows):.2f} CPU ms each (computed as well)")
        for guard in ("none", "statement", "mention", "computed"):
            kept, lost, shows, secret, ends = 0.0, 0, 0, 0, 0
            for row, place in zip(rows, places, strict=True):
                text = row["solution"]
                cut = min(int(given.fraction * len(text)), place.get(guard, len(text)))
                kept += cut / len(text)
                value = numbers(row["answer"])
                if (
                    re.fullmatch(r"[\s$\\]*-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)|\\[dt]?frac\{-?\d+\}\{\d+\}", row["answer"])
                    and len(value) == 1
                ):
                    own = value & numbers(row["problem"])
                    secret += not own
                    shows += not own and bool(value & numbers(text[:cut]))
                    lost += bool(own) and cut < 0.25 * len(text)
                ends += place["computed"] < cut
            print(
                f"  {guard:<10} mean length {100 * kept / len(rows):5.1f} % (drawn {100 * given.fraction:g} %)   "
                f"value shown in {shows} of {secret}   given by the problem and three quarters lost: {lost}   "
                f"holds an expression worth the answer: {100 * ends / len(rows):.0f} %"
            )
        early = sum(
            b["mention"] < 0.25 * len(r["solution"]) <= p["mention"]
            for r, p, b in zip(rows, places, blind, strict=True)
        )
        print(f"  without the problem's text {early} more would lose three quarters to a number that the problem gives")


if __name__ == "__main__":
    main()
