r"""Preparation of training data: raw rows are turned into training rows.

``prefix-rl prepare`` reads sources one row at a time and takes each row through these steps:

1. *check*: converts the columns of the usual data sets (:mod:`.columns`); drops rows without problem or answer;
2. *contamination*: drops problems that occur in an evaluation set (:mod:`.contamination`);
3. *duplicates*: keeps a problem once, with the demonstrations of all its copies (:mod:`.duplicates`);
4. *difficulty*: keeps only problems of certain pass rates, if the settings ask for that (:mod:`.difficulty`);
5. *budget*: drops demonstrations that are too long for training;
6. *grading*: drops demonstrations that do not earn the training reward, and problems whose answer cannot be parsed;
7. *choice*: keeps only as many demonstrations of a problem, and for only as many problems, as the settings say.

The funnel (:mod:`.funnel`) counts everything that enters and lists what is dropped, with the reason. Steps 1 and 2
(:mod:`.reading`) look at one row at a time, step 3 (:mod:`.rows`) at all rows together, the others (:mod:`.making`) at
one row at a time again. Between the steps the rows are kept on disk in chunks (:mod:`.chunks`), so that memory holds
only a few hashes of each row, and interrupted work can be continued.
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
from typing import Any

import numpy as np

from .. import __version__, documents, parts
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
"""Version of these steps: unfinished work of another version is not continued."""
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

    Rows are ``{"id", "problem", "answer", "demonstrations": [{"text", "readable"}]}``, with ``pass_rate`` where it is
    known, and with the further columns of the raw row, for reward functions. ``readable`` holds, for each answer guard,
    the offset in the text behind which no prefix may reach (:func:`~prefix_rl.rewards.guard.readable`); training reads
    it there instead of computing it again.

    Args:
        sources: local files, or ``owner/name`` on the hub, in the order of trust: of duplicates the first is kept.
        output: the training file; replaced as a whole at the end.
        tokenizer: counts the tokens of prompts and demonstrations; None: no length is checked.
        grader: the workers that grade mathematics; for another ``settings.reward`` the limits of its process.
        progress: called with the name of the work and its total (None: not known); returns a function that is called
            with the number of items just finished.

    The same sources and settings give the same bytes, also after an interruption.

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
    """Path of the manifest that belongs to a training file."""
    return Path(f"{output}.manifest.json")


def dropped_path(output: Path | str) -> Path:
    """Path of the list of rows and demonstrations that were dropped while a training file was prepared."""
    return Path(f"{output}.dropped.jsonl")


def without_demonstrations(manifest: dict) -> str:
    """Warning for a file without demonstrations: the columns that were not read, or the steps that dropped all."""
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
    """True if ``prepare`` wrote this very file and graded its demonstrations with this reward and these rules.

    Args:
        reward: the reward that must have been used; None: any.
        rules: the rules of mathematics that must have been used; None: any.
    """
    path = manifest_path(source)
    try:
        manifest = documents.read(path, {"reward": dict[str, Any] | None, "sha256": str | None})
    except parts.Damaged:  # or not there: the demonstrations are graded anew
        return False
    graded_so = manifest.get("demonstrations_graded") is True and manifest.get("grader") == GRADER_VERSION
    by = manifest.get("reward") or {}
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
    """Facts besides the grader's version that verdicts depend on: rules for mathematics, code for other rewards."""
    if name != MATH:
        return {"name": name, "module_sha256": source_sha256(name)}
    return {"name": name, **({} if rules is None else {"rules": asdict(rules)})}


def _facts(sources: Sequence[str], settings: Settings, tokenizer, rules: Rules) -> dict:
    """Everything that the output depends on, in the form of the manifest."""
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
    """Joins the chunks into the output files; returns the manifest."""
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
    """Line of a row whose demonstrations are dropped, so that only a share of the problems has any."""
    for n in range(len(row["demonstrations"])):
        reason = f"demonstration_share = {settings.demonstration_share:g}"
        funnel.drop_demonstration("choice", reason, {"place": place, "id": row["id"]}, n)
    return as_line({**row, "demonstrations": []})
