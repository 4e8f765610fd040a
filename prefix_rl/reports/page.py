"""The rollout page: one HTML file that needs no server and no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from .rollouts import read_rollouts

_GROUPS_SHOWN = 4


def page(runs: Sequence[tuple[str, Path]], titles: Sequence[str], rows: Sequence[Sequence[str]], figure: Path) -> str:
    """The page of ``(name, folder)`` runs, with their table and their figure."""
    import jinja2

    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        titles=titles,
        rows=rows,
        picture=base64.b64encode(figure.read_bytes()).decode(),
        runs=[_rollouts_of(name, folder) for name, folder in runs],
    )


def _rollouts_of(name: str, folder: Path) -> dict:
    """Groups of a run's last saved generation: first those that got some right and some wrong, then long prefixes."""
    groups: dict[int, list[dict]] = {}
    for record in read_rollouts(folder):
        groups.setdefault(record["row"], []).append(record)

    def interest(group: list[dict]) -> tuple[bool, int]:
        return len({r["reward"] for r in group}) > 1, max(r["prefix_tokens"] for r in group)

    shown = sorted(groups.values(), key=interest, reverse=True)[:_GROUPS_SHOWN]
    return {"name": name, "step": shown[0][0]["step"] if shown else None, "groups": [_group(g) for g in shown]}


def _group(records: Sequence[dict]) -> dict:
    prompt = json.loads(records[0]["prompt"])
    return {
        "prompt": prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt),
        "answer": records[0]["answer"],
        "right": sum(r["reward"] > 0 for r in records),
        "rollouts": [{**r, "verdict": r["outcome"] or f"reward {r['reward']:g}"} for r in records],
    }
