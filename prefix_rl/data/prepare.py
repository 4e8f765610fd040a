r"""From raw rows to training rows.

``prefix-rl prepare`` reads sources one row at a time and takes each row through these steps:

1. *check*: the columns of the usual data sets are known (:mod:`.columns`); a row without problem or answer goes;
2. *contamination*: so does a problem that stands in an evaluation set (:mod:`.contamination`);
3. *duplicates*: a problem is kept once, with the demonstrations of all its copies (:mod:`.duplicates`);
4. *difficulty*: where it is asked for, problems of a measured pass rate are kept (:mod:`.difficulty`);
5. *budget*: a demonstration that is too long for training goes;
6. *grading*: so does one that does not earn the training reward, and a problem whose answer cannot be parsed;
7. *choice*: so many demonstrations for a problem, for so many of the problems, as was asked for.

Whatever goes in is counted in the funnel (:mod:`.funnel`), and what is dropped is listed with its reason. Steps 1 and 2
(:mod:`.reading`) look at a row alone, step 3 (:mod:`.rows`) at all of them, the others (:mod:`.making`) at a row again;
between them the rows stand on disk in chunks (:mod:`.chunks`), so that memory does not grow with the rows but by their
hashes, and interrupted work goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .. import __version__, parts
from ..errors import DataError
from ..rewards.equality import TRAINING_RULES, Rules
from ..rewards.functions import MATH, find, source_sha256, verdicts
from ..rewards.grading import VERSION as GRADER_VERSION
from ..rewards.workers import Grader
from .chunks import Chunks, as_line, working
from .contamination import EvaluationIndex, load_sets, sets_facts
from .difficulty import PassRates, load_pass_rates
from .funnel import Funnel, steps_of
from .making import make_all
from .problems import keeping
from .reading import read_all
from .rows import Rows
from .settings import PRESETS, Settings  # noqa: F401  callers have both from here
from .sources import fingerprint
from .traces import tokenizer_sha256

FORMAT = 3
"""Version of what these steps do: work of another one is not continued."""
Progress = Callable[[str, int | None], Callable[[int], object]]


def prepare(
    sources: str | Sequence[str],
    output: Path | str,
    settings: Settings | None = None,
    *,
    tokenizer=None,
    grader: Grader | None = None,
    progress: Progress = lambda what, total: lambda n: None,
) -> dict:
    """Writes ``output`` (JSON Lines), ``<output>.manifest.json`` and ``<output>.dropped.jsonl``; returns the manifest.

    Rows are ``{"id", "problem", "answer", "demonstrations": [{"text", "readable"}]}``, ``pass_rate`` where it is known,
    and whatever further columns the raw row has, for reward functions. ``readable`` gives for each answer guard the
    offset in the text at which it ends every prefix (:func:`~prefix_rl.rewards.guard.readable`); training takes it from
    there.

    Args:
        sources: local files, or ``owner/name`` on the hub, in the order of trust: of duplicates the first is kept.
        output: the training file; replaced as a whole when all is done.
        tokenizer: measures prompts and demonstrations; without one none is too long.
        grader: the workers that grade mathematics; for another ``settings.reward`` the limits of its process.
        progress: called with what is being done and how much of it there is; returns what to call with each advance.

    The same sources and settings give the same bytes, also if the work was cut off and continued.

    Raises:
        DataError: if a source cannot be read, no row is left, ids stand for several problems, or an evaluation set
            stands inside the sources.
    """
    sources = [sources] if isinstance(sources, str) else list(sources)
    output, settings = Path(output), settings or Settings()
    _check_output(sources, output)
    for name in ("max_completion_length", "max_prompt_length"):
        if getattr(settings, name) is not None and tokenizer is None:
            raise DataError(f"{name} needs a tokenizer to count with: give --tokenizer")
    try:
        find(settings.reward)
    except LookupError as error:
        raise DataError(f"prepare.reward = {settings.reward}: {error.args[0]}") from None
    grader = verdicts([settings.reward], grader or Grader(rules=TRAINING_RULES))
    index = EvaluationIndex(load_sets(settings.against), settings.ngram, settings.spare_phrases)
    rates = load_pass_rates(settings.pass_rates) if settings.pass_rates else PassRates(())
    facts = _facts(sources, settings, tokenizer, grader.rules)
    with working(output, {"format": FORMAT, **facts}) as chunks:
        counts = read_all(chunks, sources, settings, index, progress)
        found = Counter(number for one in counts for number in one["found"])
        sets = index.refuse_if_inside(found, settings.force)
        for one in counts:
            for name, counted in one["contaminated"].items():
                sets[name] = {what: n + counted.get(what, 0) for what, n in sets[name].items()}
        problems = Rows(chunks, counts, progress, settings.similarity)
        made = make_all(chunks, problems, settings, tokenizer, rates, grader, progress)
        if len(rates) and not sum(one["rated"] for one in made):
            raise DataError(
                f"none of the {len(rates)} ids of {settings.pass_rates} is the id of a row; nothing was written"
            )
        return _finish(chunks, output, settings, counts, made, facts, sets)


def manifest_path(output: Path | str) -> Path:
    """The manifest that belongs to a training file."""
    return Path(f"{output}.manifest.json")


def dropped_path(output: Path | str) -> Path:
    """The list of what was dropped on the way to a training file."""
    return Path(f"{output}.dropped.jsonl")


def without_demonstrations(manifest: dict) -> str:
    """What to say where no row has a demonstration: which columns were not read, or at which step they went."""
    gone = [
        f"{n:,}: {reason}" for step in manifest["funnel"] for reason, n in step["dropped"]["demonstrations"].items()
    ]
    found = manifest["funnel"][0]["demonstrations"]
    if found:
        what = f"{found:,} were read and all were dropped ({'; '.join(gone)})"
    else:
        unread = manifest["unread_columns"]
        named = f"; nothing was read from the columns {', '.join(unread)}" if unread else ""
        what = (
            f"no column with demonstrations is known{named}. Name it: --column solution=NAME or --column messages=NAME"
        )
    return (
        f"NO ROW HAS A DEMONSTRATION: {what}. A method that learns from demonstrations cannot be trained on this file"
    )


def is_verified(source: str, reward: str | None = MATH, rules: Rules | None = None) -> bool:
    """Whether ``prepare`` graded the demonstrations of this very file as they would be graded now.

    Args:
        reward: by which reward; None: by any.
        rules: by which rules of mathematics; None: by any.
    """
    path = manifest_path(source)
    if not os.path.isfile(path):
        return False
    manifest = json.loads(path.read_text(encoding="utf-8"))
    graded_so = manifest.get("demonstrations_graded") is True and manifest.get("grader") == GRADER_VERSION
    by = manifest.get("reward", {})
    asked = {} if reward is None else _reward_facts(reward, rules)
    return (
        graded_so
        and all(by.get(name) == value for name, value in asked.items())
        and manifest.get("sha256") == fingerprint(source)
    )


def _check_output(sources: Sequence[str], output: Path) -> None:
    if not sources:
        raise DataError("there is no source to prepare")
    if output.suffix != ".jsonl":
        raise DataError(f"the output {output} must end in .jsonl: it is JSON Lines, and training reads it by that name")
    if os.path.isdir(output):
        raise DataError(f"the output {output} is a folder; give the name of a file")
    for source in sources:
        if os.path.isfile(source) and Path(source).resolve() == output.resolve():
            raise DataError(f"the output {output} is a source, too; it would be overwritten. Give another name")


def _reward_facts(name: str, rules: Rules | None) -> dict:
    """What a verdict depends on beside the grader's version: for mathematics its rules, for others the code."""
    if name != MATH:
        return {"name": name, "module_sha256": source_sha256(name)}
    return {"name": name, **({} if rules is None else {"rules": asdict(rules)})}


def _facts(sources: Sequence[str], settings: Settings, tokenizer, rules: Rules) -> dict:
    """Whatever the output depends on, as it stands in the manifest."""
    rates = settings.pass_rates
    return {
        "sources": [{"source": s, "sha256": fingerprint(s)} for s in sources],
        "settings": asdict(settings),
        "evaluation_sets": sets_facts(settings.against),
        "pass_rates_sha256": fingerprint(rates) if rates and os.path.isfile(rates) else None,
        "tokenizer_sha256": None if tokenizer is None else tokenizer_sha256(tokenizer),
        "grader": GRADER_VERSION,
        "reward": _reward_facts(settings.reward, rules),
        "versions": {
            "prefix_rl": __version__,
            **{name: version(name) for name in ("math-verify", "datasketch", "numpy")},
        },
    }


# --- the end ----------------------------------------------------------------------------------------------------------


def _finish(
    chunks: Chunks, output: Path, settings: Settings, read_counts, made: Sequence[dict], facts: dict, sets
) -> dict:
    """Puts the chunks together; the manifest."""
    having = np.concatenate([chunks.array("made", n) for n in range(len(made))])
    if not len(having):
        steps = steps_of(one["funnel"] for one in [*read_counts, *made])
        reasons = [f"{n} rows: {r}" for step in steps for r, n in step["dropped"]["rows"].items()]
        raise DataError("no row of the sources is left; nothing was written:", reasons)
    keeps = np.zeros(len(having), bool)
    keeps[keeping(np.flatnonzero(having), settings.demonstration_share, settings.seed)] = True
    rows, dropped, written = (chunks.folder / name for name in ("output", "dropped", "manifest"))
    hashed, place, choice = hashlib.sha256(), 0, Funnel()
    with rows.open("wb") as file, dropped.open("wb") as listing:
        for stage, finished in (("read", read_counts), ("made", made)):
            for number in range(len(finished)):
                listing.write(chunks.dropped(stage, number))
        for number in range(len(made)):
            for line in chunks.lines("made", number):
                if having[place] and not keeps[place]:
                    line = _without_demonstrations(json.loads(line), f"{output.name}:{place + 1}", settings, choice)
                    listing.writelines(map(as_line, choice.listed))
                    choice.listed.clear()
                file.write(line)
                hashed.update(line)
                place += 1
    steps = steps_of([*(one["funnel"] for one in [*read_counts, *made]), choice.counts()])
    for known in facts["evaluation_sets"]:
        known.update(sets[known["set"]])
    manifest = {
        **facts,
        "rows": len(having),
        "rows_with_demonstration": int(keeps.sum()),
        "demonstrations": steps[-1]["demonstrations"],
        "funnel": steps,
        "unread_columns": sorted({name for one in read_counts for name in one["unread_columns"]}),
        "sha256": hashed.hexdigest(),
        "dropped_sha256": fingerprint(str(dropped)),
        "demonstrations_graded": True,
        **({"answers_appended": sum(one["answers_appended"] for one in made)} if settings.append_answer else {}),
    }
    written.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    parts.settle(dropped, dropped_path(output))
    parts.settle(rows, output)
    parts.settle(written, manifest_path(output))
    return manifest


def _without_demonstrations(row: dict, place: str, settings: Settings, funnel: Funnel) -> bytes:
    """The line of a row that is not among those that keep their demonstrations."""
    for n in range(len(row["demonstrations"])):
        reason = f"demonstration_share = {settings.demonstration_share:g}"
        funnel.drop_demonstration("choice", reason, {"place": place, "id": row["id"]}, n)
    return as_line({**row, "demonstrations": []})
