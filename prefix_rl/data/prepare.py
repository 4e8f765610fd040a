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
look at a row alone, step 3 at all of them, the others at a row again; between them the rows stand on disk in chunks
(:mod:`.chunks`), so that memory does not grow with the rows but by their hashes, and interrupted work goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval

from .. import __version__
from ..errors import DataError
from ..fields import check, fields_of
from ..prefixes import readable_from
from ..rewards.equality import TRAINING_RULES
from ..rewards.grading import VERSION as GRADER_VERSION
from ..rewards.grading import Outcome
from ..rewards.workers import Grader
from . import duplicates
from .chunks import Chunks, as_line, working
from .columns import check_columns, normalize
from .contamination import LONG, LONG_RUN, EvaluationIndex, load_sets, sets_facts
from .difficulty import PassRates, is_rate, load_pass_rates
from .funnel import Funnel, steps_of
from .problems import Problem, graded, keeping, row_problems
from .sources import fingerprint, read
from .texts import hash64, squeezed
from .tokenizer import encode
from .traces import tokenizer_sha256

FORMAT = 1
"""Version of what these steps do: work of another one is not continued."""
MAX_DEMONSTRATIONS = 256
"""Copies of a problem bring their demonstrations along up to so many."""
PRESETS = {"openr1-46k": {"max_completion_length": 8192, "require_demonstration": True, "demonstrations": 1}}
"""Named filters. ``openr1-46k``: what is known of OpenR1-Math-46k-8192, the training set of LUFFY (arXiv 2504.14945)
and Prefix-RFT (arXiv 2507.01679): one trace of R1 for each problem, right, of at most 8,192 tokens. Which of several
was taken is not known to us; here it is the first. So the rows need not be the very same."""
_ROWS_AT_ONCE, _CHARACTERS_AT_ONCE = 1000, 8_000_000  # of one chunk
_HEAD = 100  # rows of a source in which a named column must occur
Fraction = Annotated[float, Interval(ge=0, le=1)]
Progress = Callable[[str, int | None], Callable[[int], object]]


@dataclass(frozen=True)
class Settings:
    """What is kept."""

    split: str = "train"
    """The split, of data sets on the hub."""
    limit: Annotated[int, Ge(1)] | None = None
    """Read the first rows only."""
    columns: dict[str, str] = field(default_factory=dict)
    """``{"problem": "question", ...}`` for columns that are not known by name."""
    renumber: bool = False
    """Give new ids, the number of the row in its source."""
    against: tuple[str, ...] = ()
    """Evaluation sets, whose problems must not be trained on."""
    ngram: Annotated[int, Ge(2)] = 8
    """So many words in a row in common with one of them are too many."""
    spare_phrases: bool = False
    """But not if they are a turn of phrase, which stands in three different evaluation problems."""
    force: bool = False
    """Go on, dropping its problems, if an evaluation set stands whole in the sources."""
    similarity: Fraction | None = 0.8
    """Drop problems as similar as that to an earlier one; None: only the same ones."""
    pass_rates: str | None = None
    """A file of pass rates, or a trace store."""
    pass_rate: tuple[Fraction, Fraction] | None = None
    """Keep problems with a pass rate in this closed interval."""
    max_completion_length: Annotated[int, Ge(2)] | None = None
    """Drop longer demonstrations, in tokens with EOS."""
    demonstrations: Annotated[int, Ge(0)] | None = None
    """At most so many for each problem, the first ones."""
    require_demonstration: bool = False
    """Drop problems that no demonstration is left for."""
    demonstration_share: Fraction = 1.0
    """The share of the problems that keep their demonstrations, as ``data.demonstration_share`` of a recipe chooses."""
    seed: int = 42
    """Of that choice; TRL's default, so that recipe and file agree."""

    def __post_init__(self):
        _, problems = check("prepare", asdict(self), fields_of(type(self)))
        wrong = [f"{name} {what}" for name, what in problems.items()]
        if "prepare.pass_rate" not in problems and self.pass_rate and self.pass_rate[0] > self.pass_rate[1]:
            wrong.append(f"prepare.pass_rate = {list(self.pass_rate)}: must be LOW HIGH with LOW <= HIGH")
        if wrong:
            raise DataError("settings that cannot be:", wrong)


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

    Rows are ``{"id", "problem", "answer", "demonstrations": [{"text", "readable"}]}``, and ``pass_rate`` where it is
    known. ``readable`` gives for each answer guard the offset in the text at which it ends every prefix
    (:func:`~prefix_rl.prefixes.readable_from`); training finds the same place itself.

    Args:
        sources: local files, or ``owner/name`` on the hub, in the order of trust: of duplicates the first is kept.
        output: the training file; replaced as a whole when all is done.
        tokenizer: measures demonstrations; without one none is too long.
        grader: the workers that grade.
        progress: called with what is being done and how much of it there is; returns what to call with each advance.

    The same sources and settings give the same bytes, also if the work was cut off and continued.

    Raises:
        DataError: if a source cannot be read, no row is left, ids stand for several problems, or an evaluation set
            stands inside the sources.
    """
    sources = [sources] if isinstance(sources, str) else list(sources)
    output, settings = Path(output), settings or Settings()
    _check_output(sources, output)
    if settings.max_completion_length is not None and tokenizer is None:
        raise DataError("max_completion_length needs a tokenizer to count with: give --tokenizer")
    index = EvaluationIndex(load_sets(settings.against), settings.ngram, settings.spare_phrases)
    rates = load_pass_rates(settings.pass_rates) if settings.pass_rates else PassRates(())
    facts = _facts(sources, settings, tokenizer)
    with working(output, {"format": FORMAT, **facts}) as chunks:
        counts = _read_all(chunks, sources, settings, index, progress)
        found = Counter(number for one in counts for number in one["found"])
        sets = index.refuse_if_inside(found, settings.force)
        for one in counts:
            for name, counted in one["contaminated"].items():
                sets[name] = {what: n + counted.get(what, 0) for what, n in sets[name].items()}
        problems = _Rows(chunks, counts, progress, settings.similarity)
        made = _make_all(chunks, problems, settings, tokenizer, rates, grader or Grader(rules=TRAINING_RULES), progress)
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


def is_verified(source: str) -> bool:
    """Whether ``prepare`` graded the demonstrations of this very file as they would be graded now."""
    path = manifest_path(source)
    if not path.is_file():
        return False
    manifest = json.loads(path.read_text(encoding="utf-8"))
    graded_so = manifest.get("demonstrations_graded") is True and manifest.get("grader") == GRADER_VERSION
    return graded_so and manifest.get("sha256") == fingerprint(source)


def _check_output(sources: Sequence[str], output: Path) -> None:
    if not sources:
        raise DataError("there is no source to prepare")
    if output.suffix != ".jsonl":
        raise DataError(f"the output {output} must end in .jsonl: it is JSON Lines, and training reads it by that name")
    if output.is_dir():
        raise DataError(f"the output {output} is a folder; give the name of a file")
    for source in sources:
        if Path(source).is_file() and Path(source).resolve() == output.resolve():
            raise DataError(f"the output {output} is a source, too; it would be overwritten. Give another name")


def _facts(sources: Sequence[str], settings: Settings, tokenizer) -> dict:
    """Whatever the output depends on, as it stands in the manifest."""
    rates = settings.pass_rates
    return {
        "sources": [{"source": s, "sha256": fingerprint(s)} for s in sources],
        "settings": asdict(settings),
        "evaluation_sets": sets_facts(settings.against),
        "pass_rates_sha256": fingerprint(rates) if rates and Path(rates).is_file() else None,
        "tokenizer_sha256": None if tokenizer is None else tokenizer_sha256(tokenizer),
        "grader": GRADER_VERSION,
        "versions": {
            "prefix_rl": __version__,
            **{name: version(name) for name in ("math-verify", "datasketch", "numpy")},
        },
    }


# --- check and contamination ------------------------------------------------------------------------------------------


def _read_all(chunks: Chunks, sources: Sequence[str], settings: Settings, index: EvaluationIndex, progress: Progress):
    """Reads the sources into chunks; returns the facts of the chunks."""
    counts = chunks.finished("read")
    skipped = sum(one["funnel"]["entered"].get("rows", 0) for one in counts)
    advance = progress("reading", settings.limit)
    advance(skipped)
    rows = islice(_rows(sources, settings), skipped, settings.limit)
    while not (counts and counts[-1]["last"]):
        counts.append(_read_chunk(chunks, len(counts), rows, settings, index, advance))
    return counts


def _rows(sources: Sequence[str], settings: Settings) -> Iterator[tuple[str, str, dict]]:
    """``(id if the row has none, place, row)`` of all sources."""
    for source in sources:
        stem = Path(source).name.split(".")[0] + "/" if len(sources) > 1 else ""
        rows = read(source, settings.split)
        head = list(islice(rows, _HEAD))
        check_columns(settings.columns, source, [row for _, row in head])
        for number, (place, row) in enumerate(chain(head, rows)):
            yield f"{stem}{number}", place, row


def _read_chunk(chunks: Chunks, number: int, rows, settings: Settings, index: EvaluationIndex, advance) -> dict:
    funnel, lines, entries, offset = Funnel(), [], [], 0
    found, contaminated, last = set(), {}, True
    for default_id, place, raw in rows:
        advance(1)
        row = _checked(default_id, place, raw, settings, funnel)
        hit = index.find(row["problem"]) if row else None
        if hit:
            name, _, _ = index.problems[hit.problem]
            found.update(hit.whole)
            contaminated.setdefault(name, Counter()).update({"rows dropped": 1, LONG: hit.words >= LONG_RUN})
            reason = f"it shares {settings.ngram} words in a row, or all, with a problem of {name}"
            funnel.drop("contamination", reason, row, len(row["demonstrations"]), **index.shown(row["problem"], hit))
        elif row:
            lines.append(as_line(row))
            entries.append(_entry(row, offset))
            offset += len(lines[-1])
        if funnel.entered["rows"] == _ROWS_AT_ONCE or offset > _CHARACTERS_AT_ONCE:
            last = False
            break
    facts = {
        "last": last,
        "rows": len(lines),
        "found": sorted(found),
        "contaminated": contaminated,
        "funnel": funnel.counts(),
    }
    chunks.put("read", number, lines, funnel.listed, np.array(entries, duplicates.INDEX), facts)
    return facts


def _entry(row: dict, offset: int) -> tuple:
    """What :data:`~prefix_rl.data.duplicates.INDEX` holds of a row."""
    hashes = (hash64(text) for text in (row["id"], squeezed(row["problem"]), squeezed(row["answer"])))
    return *hashes, offset, len(row["demonstrations"]), duplicates.bands(row["problem"], row["answer"])


def _checked(default_id: str, place: str, raw: dict, settings: Settings, funnel: Funnel) -> dict | None:
    """The row as training reads it, or None if it cannot be used."""
    row = normalize(raw, settings.columns)
    if row.get("id") is None or settings.renumber:
        row["id"] = default_id
    wrong = row_problems(row)
    if "pass_rate" in row and not is_rate(row["pass_rate"]):
        wrong.append("pass_rate is no number in [0, 1]")
    count = len(row["demonstrations"])
    funnel.enter(count)
    if wrong:
        named = {"place": place, **({"id": row["id"]} if isinstance(row["id"], str) else {})}
        problems = [what.partition("; there are")[0] for what in wrong]  # the columns of the source are others
        funnel.drop("check", problems[0], named, count, problems=problems, columns=list(raw))
        return None
    row = {"place": place, **row, "id": str(row["id"]), "answer": str(row["answer"]), "problem": str(row["problem"])}
    made = []
    for n, given in enumerate(row["demonstrations"]):
        demonstration = {"text": given} if isinstance(given, str) else dict(given)
        if demonstration.pop("complete", True) is False:
            funnel.drop_demonstration("check", "it is not complete", row, n)
        elif not demonstration["text"].strip():
            funnel.drop_demonstration("check", "it is empty", row, n)
        else:
            made.append(demonstration)
    return {**row, "demonstrations": made}


# --- duplicates -------------------------------------------------------------------------------------------------------


class _Rows:
    """The rows of all chunks, and which of them are duplicates."""

    def __init__(self, chunks: Chunks, counts: Sequence[dict], progress: Progress, threshold: float | None):
        self._chunks, self.lengths = chunks, [one["rows"] for one in counts]
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)
        if not self.starts[-1]:
            raise DataError("no row of the sources can be used", _why_none(counts, chunks))
        advance = progress("looking for duplicates", duplicates.BANDS)
        self._offsets = self._column("offset", None)
        self.demonstrations = self._column("size", None)

        def column(name: str, band: int | None) -> np.ndarray:
            advance(band is not None)
            return self._column(name, band)

        self.kind, self.of = duplicates.find(column, lambda row: self[row]["problem"], threshold)
        same = np.flatnonzero((self.kind == duplicates.SAME) & (self.demonstrations > 0))
        self._copies = same[np.argsort(self.of[same], kind="stable")]
        self._refuse_repeated_ids()

    def __getitem__(self, row: int) -> dict:
        return self._chunks.line("read", self._chunk(row), int(self._offsets[row]))

    def lines(self, first: int) -> Iterator[bytes]:
        """The rows from one on, to the end of its chunk."""
        return self._chunks.lines("read", self._chunk(first), int(self._offsets[first]))

    def _chunk(self, row: int) -> int:
        return int(np.searchsorted(self.starts, row, side="right")) - 1

    def copies(self, row: int) -> Iterator[dict]:
        """The other rows of the same problem and answer that have a demonstration."""
        first, last = np.searchsorted(self.of[self._copies], [row, row + 1])
        return (self[int(copy)] for copy in self._copies[first:last])

    def _column(self, name: str, band: int | None) -> np.ndarray:
        arrays = (self._chunks.array("read", n)[name] for n in range(len(self.lengths)))
        return np.concatenate([a if band is None else a[:, band] for a in arrays])

    def _refuse_repeated_ids(self) -> None:
        rows = np.flatnonzero(self.kind == duplicates.KEPT)
        ids = self._column("id", None)[rows]
        order = np.argsort(ids, kind="stable")
        again = order[1:][ids[order[1:]] == ids[order[:-1]]]
        if not len(again):
            return
        first = order[np.searchsorted(ids[order], ids[again])]
        pairs = [(self[int(rows[f])], self[int(rows[a])]) for f, a in zip(first[:20], again[:20], strict=True)]
        listed = [f"id {a['id']!r}: {f['place']} and {a['place']}" for f, a in pairs]
        raise DataError(
            f"{len(again)} rows have the id of another problem; nothing was written. Name the column that tells them "
            "apart (--column id=NAME), or have ids given (--renumber):",
            listed + ([f"... and {len(again) - 20} more"] if len(again) > 20 else []),
        )


def _why_none(counts: Sequence[dict], chunks: Chunks) -> list[str]:
    """The reasons for which no row is left, with an example of each."""
    reasons: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for number, one in enumerate(counts):
        for step in one["funnel"]["dropped"].values():
            reasons.update(step["rows"])
        for line in chunks.dropped("read", number).splitlines():
            row = json.loads(line)
            told = "; ".join([*row.get("problems", [row["reason"]]), *_columns(row)])
            examples.setdefault(row["reason"], f"{row['place']}: {told}")
    hint = ["--column OURS=THEIRS names columns that are not known"] if any("no column" in r for r in reasons) else []
    return [f"{n} rows: {r}; for example {examples[r]}" for r, n in reasons.most_common()] + hint or [
        "there are no rows"
    ]


def _columns(row: dict) -> list[str]:
    return [f"there are the columns {', '.join(map(str, row['columns']))}"] if row.get("columns") else []


# --- difficulty, budget, grading, choice ------------------------------------------------------------------------------


def _make_all(
    chunks: Chunks, rows: _Rows, settings: Settings, tokenizer, rates: PassRates, grader: Grader, progress: Progress
) -> list[dict]:
    """Makes training rows of what was read, chunk by chunk; returns the facts of the chunks."""
    made = chunks.finished("made")
    samples = np.maximum(rows.demonstrations, 1)
    advance = progress("grading demonstrations", int(samples.sum()))
    advance(int(samples[: made[-1]["through"] if made else 0].sum()))
    while (first := made[-1]["through"] if made else 0) < rows.starts[-1]:
        made.append(_make_chunk(chunks, len(made), first, rows, settings, tokenizer, rates, grader, advance))
    return made


def _make_chunk(
    chunks: Chunks, number: int, first: int, rows: _Rows, settings: Settings, tokenizer, rates, grader, advance
) -> dict:
    """Makes training rows from row ``first`` on: to the end of its chunk, or as many as memory should hold."""
    funnel, waiting, rated, size, place = Funnel(), [], 0, 0, first
    for place, line in enumerate(rows.lines(first), start=first):
        row, count = json.loads(line), int(rows.demonstrations[place])
        kind = int(rows.kind[place])
        if kind != duplicates.KEPT:
            gone = 0 if kind == duplicates.SAME else count
            kept = rows[int(rows.of[place])]
            both = {} if kind == duplicates.SAME else {"problem": row["problem"], "of_problem": kept["problem"]}
            funnel.drop("duplicates", _DUPLICATES[kind], row, gone, of=kept["id"], **both)
        else:
            row = _with_copies(row, rows.copies(place), funnel)
            rate = rates.of(row["id"])
            rated += rate is not None
            rate = row.pop("pass_rate", None) if rate is None else rate
            row = {**row, **({} if rate is None else {"pass_rate": rate})}
            if reason := _difficulty(rate, settings.pass_rate):
                funnel.drop("difficulty", reason, row, len(row["demonstrations"]))
            else:
                waiting.append(_fitting(row, tokenizer, settings.max_completion_length, funnel))
                size += sum(len(d["text"]) for d in waiting[-1]["demonstrations"])
        if size > _CHARACTERS_AT_ONCE:
            break
    samples = np.maximum(rows.demonstrations[first : place + 1], 1).sum()
    advance(max(int(samples) - sum(max(len(row["demonstrations"]), 1) for row in waiting), 0))
    problems = [Problem(r["id"], r["problem"], r["answer"], tuple(r["demonstrations"]), r["place"]) for r in waiting]
    done = []
    for row, outcomes in zip(waiting, graded(problems, grader, advance), strict=True):
        row = _right(row, outcomes, funnel)
        row = row and _chosen(row, settings, funnel)
        if row:
            done.append(row)
    having = np.array([bool(row["demonstrations"]) for row in done], bool)
    facts = {
        "through": place + 1,
        "rated": rated,
        "rows": len(done),
        "demonstrations": sum(len(r["demonstrations"]) for r in done),
        "funnel": funnel.counts(),
    }
    chunks.put("made", number, [as_line(_final(row)) for row in done], funnel.listed, having, facts)
    return facts


_DUPLICATES = {
    duplicates.SAME: "the same problem as an earlier row, which got its demonstrations",
    duplicates.OTHER_ANSWER: "the same problem as an earlier row, with another answer",
    duplicates.NEAR: "nearly the same problem as an earlier row, with the same numbers and answer",
}
_OUTCOMES = {
    Outcome.WRONG: "its final answer is not the gold answer",
    Outcome.NO_ANSWER: "it states no final answer",
    Outcome.TIMEOUT: "grading it took too long",
    Outcome.CRASH: "grading it crashed",
    Outcome.BAD_GOLD: "the gold answer cannot be parsed",
}


def _with_copies(row: dict, copies: Iterator[dict], funnel: Funnel) -> dict:
    """The row with the demonstrations of its copies, each text once."""
    given = chain(row["demonstrations"], (d for copy in copies for d in copy["demonstrations"]))
    kept, texts = [], set()
    for n, demonstration in enumerate(given):
        if demonstration["text"] in texts:
            funnel.drop_demonstration("duplicates", "the problem has the same one already", row, n)
        elif len(kept) == MAX_DEMONSTRATIONS:
            funnel.drop_demonstration("duplicates", f"the problem has {MAX_DEMONSTRATIONS} already", row, n)
        else:
            texts.add(demonstration["text"])
            kept.append(demonstration)
    return {**row, "demonstrations": kept}


def _difficulty(rate: float | None, wanted: tuple[float, float] | None) -> str | None:
    if wanted is None:
        return None
    if rate is None:
        return "its pass rate is not known"
    return None if wanted[0] <= rate <= wanted[1] else f"its pass rate is outside {wanted[0]:g} to {wanted[1]:g}"


def _fitting(row: dict, tokenizer, max_completion_length: int | None, funnel: Funnel) -> dict:
    """The row without the demonstrations that are too short, or too long for the budget."""
    if tokenizer is None:
        return row
    kept = []
    for n, demonstration in enumerate(row["demonstrations"]):
        length = len(demonstration.get("ids") or encode(demonstration["text"], tokenizer)[0]) + 1  # and EOS
        if length - 1 < 2:
            funnel.drop_demonstration("budget", "it is shorter than two tokens", row, n)
        elif max_completion_length is not None and length > max_completion_length:
            reason = f"it is longer than max_completion_length = {max_completion_length} tokens"
            funnel.drop_demonstration("budget", reason, row, n)
        else:
            kept.append(demonstration)
    return {**row, "demonstrations": kept}


def _right(row: dict, outcomes: Sequence[Outcome], funnel: Funnel) -> dict | None:
    """The row with the demonstrations that earn the reward; None if its gold answer cannot be parsed."""
    if set(outcomes) == {Outcome.BAD_GOLD}:
        reason = "the gold answer cannot be parsed"
        funnel.drop("grading", reason, row, len(row["demonstrations"]), answer=row["answer"][:500])
        return None
    kept = []
    for n, (demonstration, outcome) in enumerate(zip(row["demonstrations"], outcomes, strict=False)):
        if outcome is Outcome.RIGHT:
            kept.append(demonstration)
        else:
            funnel.drop_demonstration("grading", _OUTCOMES[outcome], row, n)
    return {**row, "demonstrations": kept}


def _chosen(row: dict, settings: Settings, funnel: Funnel) -> dict | None:
    """The row with so many demonstrations; None if it has none and needs one."""
    kept = row["demonstrations"][: settings.demonstrations]
    for n in range(len(kept), len(row["demonstrations"])):
        funnel.drop_demonstration("choice", f"the problem has {settings.demonstrations} already", row, n)
    if settings.require_demonstration and not kept:
        funnel.drop("choice", "no demonstration is left", row)
        return None
    return {**row, "demonstrations": kept}


def _final(row: dict) -> dict:
    """The row of a training file."""
    demonstrations = [
        {**d, "readable": {guard: readable_from(d["text"], row["answer"], guard) for guard in ("mention", "statement")}}
        for d in row["demonstrations"]
    ]
    made = {name: row[name] for name in ("id", "problem", "answer")} | {"demonstrations": demonstrations}
    return made | ({"pass_rate": row["pass_rate"]} if "pass_rate" in row else {})


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
    rows, dropped, hashed, place, choice = (
        chunks.folder / "output",
        chunks.folder / "dropped",
        hashlib.sha256(),
        0,
        Funnel(),
    )
    with rows.open("wb") as file, dropped.open("wb") as listing:
        for stage, parts in (("read", read_counts), ("made", made)):
            for number in range(len(parts)):
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
        "sha256": hashed.hexdigest(),
        "dropped_sha256": fingerprint(str(dropped)),
        "demonstrations_graded": True,
    }
    written = chunks.folder / "manifest"
    written.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    dropped.replace(dropped_path(output))
    rows.replace(output)
    written.replace(manifest_path(output))
    return manifest


def _without_demonstrations(row: dict, place: str, settings: Settings, funnel: Funnel) -> bytes:
    """The line of a row that is not among those that keep their demonstrations."""
    for n in range(len(row["demonstrations"])):
        reason = f"demonstration_share = {settings.demonstration_share:g}"
        funnel.drop_demonstration("choice", reason, {"place": place, "id": row["id"]}, n)
    return as_line({**row, "demonstrations": []})
