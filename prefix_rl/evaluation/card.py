"""The result card: what was measured, and everything needed to measure it again, as JSON and as Markdown."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import documents, preflight
from ..errors import DataError
from ..parts import Damaged, places_of
from ..reports.tables import text_table
from .samples import CARD, SAMPLES
from .shape import compared_fault, whole_fault

__all__ = ["checkpoint_facts", "markdown", "markdown_table", "read_card", "rows_of", "text_table", "versions"]

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def checkpoint_facts(path: str, revision: str | None = None) -> dict[str, Any]:
    """Facts that tell one policy from another: name, commit on the hub, files, and a hash of their content.

    Of a large file 16 places of 1 MiB are hashed: training moves every weight, and 15 GB would take half a minute.
    """
    folder, facts = Path(path), {"path": path}
    if not folder.is_dir():
        from transformers import AutoConfig

        commit = getattr(AutoConfig.from_pretrained(path, revision=revision), "_commit_hash", None)
        return facts | {"revision": revision, "commit": commit}
    digest = hashlib.sha256()
    files = sorted(f for f in folder.iterdir() if f.is_file() and (f.name in _CONFIGURATION or f.suffix in _WEIGHTS))
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}".encode())
        for part in places_of(file):
            digest.update(part)
    return facts | {"files": {f.name: f.stat().st_size for f in files}, "sha256_of_places": digest.hexdigest()}


def parameters_of(config: PretrainedConfig) -> int:
    """The number of parameters of a model with this configuration. No weights are loaded."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


_CONFIGURATION = {"config.json", "generation_config.json", "adapter_config.json"}
_WEIGHTS = {".safetensors", ".bin"}


# --- reading it again -------------------------------------------------------------------------------------------------


def read_card(folder: Path, whole: bool = False) -> dict[str, Any]:
    """The card in the folder of an evaluation; with ``whole`` every number of it is looked at.

    Raises:
        DataError: if there is none, or it is damaged.
    """
    path = Path(folder) / CARD
    if not os.path.lexists(path):
        unfinished = " It holds samples of an unfinished evaluation: the command that began it goes on." if (
            Path(folder) / SAMPLES
        ).is_dir() else ""  # fmt: skip
        raise DataError(f"{folder} is not the folder of an evaluation: it has no {CARD}.{unfinished}")
    try:
        card = documents.read(path, dict[str, Any])
        if "benchmarks" not in card:
            raise DataError(f"{path} was written by an older version; evaluate again with `prefix-rl evaluate`")
        wrong = (whole_fault if whole else compared_fault)(card)
    except Damaged as error:
        wrong = str(error)
    if wrong:
        raise DataError(f"{path} is damaged: {wrong}. `prefix-rl evaluate` writes it anew from the samples beside it")
    return card


# --- tables -----------------------------------------------------------------------------------------------------------


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _interval(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found['mean']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def rows_of(card: Mapping[str, Any]) -> list[list[str]]:
    """The table of a card: a head, a row for each benchmark, and their mean where there are several."""
    benchmarks = card["benchmarks"]
    ks = sorted({int(k) for b in benchmarks.values() for k in b["pass"]})
    shown = [(f"{kind}@{k}", kind, str(k)) for k in ks for kind in ("pass", "maj")]
    head = ["benchmark", "problems", "samples", "avg", *(title for title, _, _ in shown),
            "truncated", "no answer", "tokens"]  # fmt: skip
    rows = [
        [
            name, str(b["problems"]), str(b["samples"]), _interval(b["accuracy"]),
            *(_interval(b[kind].get(k)) for _, kind, k in shown),
            _percent(b["truncated_share"]), _percent(b["no_answer_share"]), f"{b['mean_completion_length']:.0f}",
        ]
        for name, b in benchmarks.items()
    ]  # fmt: skip
    if len(rows) > 1:
        rows.append(
            ["mean", str(card["accuracy"]["problems"]), "", _interval(card["accuracy"])] + [""] * (len(head) - 4)
        )
    for name, b in benchmarks.items():
        for fraction, found in b["accuracy_by_prefix_fraction"].items():
            start = [f"{name}, from {float(fraction):.0%} of a demonstration", str(found["problems"])]
            rows.append([*start, str(found["samples"]), _interval(found)] + [""] * (len(head) - 4))
    return [head, *rows]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a page."""
    sampling, engine, grader, prompt = card["sampling"], card["engine"], card["grader"], card["prompt"]
    facts = {
        "policy": card["policy"],
        "checkpoint": json.dumps({k: v for k, v in card["checkpoint"].items() if k not in ("path", "files")}),
        "sampling": ", ".join(f"{key} {value}" for key, value in sampling.items()),
        "engine": ", ".join(f"{key} {value}" for key, value in engine.items() if value is not None),
        "grader": f"version {grader['version']}, rules {json.dumps(grader['rules'])}",
        "date": card["date"],
        "code": card["git_commit"] or f"prefix_rl {card['versions']['prefix_rl']}",
        "versions": ", ".join(f"{name} {v}" for name, v in card["versions"].items() if v),
        "chat template": f"sha256 {prompt['chat_template_sha256'] or '-'}",
        **(
            {"chat template variables": json.dumps(prompt["chat_template_kwargs"])}
            if prompt.get("chat_template_kwargs")
            else {}
        ),
        **({"date in the prompts": prompt["date"]} if prompt.get("date") else {}),
        **({"completions end with": ", ".join(prompt["ended_by"])} if prompt.get("ended_by") else {}),
        **{f"note {i}": note for i, note in enumerate(prompt.get("notes", ()), start=1)},
    }
    data = [["benchmark", "source", "sha256 of the problems", "outcomes"]]
    for name, b in card["benchmarks"].items():
        data.append([name, b["source"], b["sha256"], ", ".join(f"{k} {n}" for k, n in b["outcomes"].items())])
    return f"""# Evaluation of {card["policy"]}

{markdown_table(rows_of(card))}

Brackets: 95 % intervals with the problems as clusters; they speak of other problems of the same kind, not of another
training run. avg: share of right samples. pass@k: without bias, 1 - C(n - c, k) / C(n, k). maj@k: the most frequent
answer of k samples, a tie broken by lot, samples without an answer not voting. No completion starts from a
demonstration unless the table says so.

## How it was measured

```
{shlex.join(card["command"])}
```

{chr(10).join(f"- {name}: {value}" for name, value in facts.items())}

{markdown_table(data)}

The first prompt, as the policy saw it:

````
{prompt["example"]}
````
"""


def versions() -> dict[str, str | None]:
    """Versions of the packages that the numbers depend on, and of Python."""
    import platform

    from .. import __version__

    return {"prefix_rl": __version__, "python": platform.python_version(), **preflight.versions()}
