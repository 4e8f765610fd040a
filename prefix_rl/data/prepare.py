r"""From raw rows to training rows.

``prefix-rl prepare`` knows the columns of the usual data sets, brings their final answers into one form, grades every
demonstration by the training reward, and drops what cannot be used. Every row that goes in is counted in the funnel.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from .. import __version__
from ..errors import DataError
from ..rewards.grading import final_answer
from ..rewards.workers import Grader
from .problems import Problem, _problem, row_problems, verify
from .sources import fingerprint, read
from .tokenizer import encode


def prepare(
    source: str,
    output: Path,
    *,
    split: str = "train",
    limit: int | None = None,
    columns: dict[str, str] | None = None,
    tokenizer=None,
    max_completion_length: int | None = None,
    require_demonstration: bool = False,
    grader: Grader | None = None,
    progress: Callable[[str, int | None], Callable[[int], object]] = lambda what, total: lambda n: None,
) -> dict:
    """Writes ``output`` (JSON Lines) and ``<output>.manifest.json`` beside it; returns the manifest.

    Args:
        source: a local file, or ``owner/name`` on the hub.
        output: the training file; replaced as a whole when all is done.
        columns: ``{"problem": "question", ...}`` for columns that :func:`normalize` does not know.
        tokenizer, max_completion_length: with both, a demonstration that is longer than the budget is dropped.
        require_demonstration: drop problems that no demonstration is left for.
        grader: the workers that grade.
        progress: called with what is being done and how much of it there is; returns what to call with each advance.

    The same input gives the same bytes.
    """
    funnel: dict[str, Counter] = {"rows": Counter(), "demonstrations": Counter()}
    advance = progress("reading", limit)
    problems = []
    for number, (place, raw) in enumerate(read(source, split)):
        if limit is not None and number >= limit:
            break
        advance(1)
        row = normalize(raw, columns or {})
        if wrong := row_problems(row):
            funnel["rows"][_reason(wrong[0])] += 1
            continue
        problem = _problem(row, number, place)
        problems.append(_fitting(problem, tokenizer, max_completion_length, funnel["demonstrations"]))
    if not problems:
        reasons = [f"{n} rows: {reason}" for reason, n in funnel["rows"].most_common()]
        raise DataError(f"no row of {source} can be used", reasons or ["it has no rows"])

    count = sum(max(len(p.demonstrations), 1) for p in problems)
    problems, bad_gold, outcomes = verify(problems, grader or Grader(), progress("grading demonstrations", count))
    funnel["rows"]["the gold answer cannot be parsed"] += len(bad_gold)
    for outcome, n in outcomes.items():
        funnel["demonstrations"]["kept" if outcome == "right" else _OUTCOME_REASONS[outcome]] += n
    if require_demonstration:
        left = [p for p in problems if p.demonstrations]
        funnel["rows"]["no demonstration is left"] += len(problems) - len(left)
        problems = left
    funnel["rows"]["kept"] = len(problems)
    funnel["rows"]["kept, with a demonstration"] = sum(bool(p.demonstrations) for p in problems)

    partial = output.with_name(output.name + ".partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(p.as_row(), ensure_ascii=False) + "\n" for p in problems)
    partial.replace(output)
    manifest = {
        "source": source,
        "split": split,
        "source_sha256": fingerprint(source),
        "sha256": fingerprint(str(output)),
        "funnel": {stage: dict(sorted(counts.items())) for stage, counts in funnel.items()},
        "max_completion_length": max_completion_length,
        "demonstrations_graded": True,
        "prefix_rl": __version__,
    }
    manifest_path(output).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


_OUTCOME_REASONS = {
    "wrong": "its final answer is not the gold answer",
    "no_answer": "it states no final answer",
    "timeout": "grading it took too long",
    "crash": "grading it crashed",
    "bad_gold": "the gold answer cannot be parsed",
}


def manifest_path(output: Path | str) -> Path:
    """The manifest that belongs to a training file."""
    return Path(f"{output}.manifest.json")


def is_verified(source: str) -> bool:
    """Whether ``prepare`` graded the demonstrations of this very file."""
    path = manifest_path(source)
    if not path.is_file():
        return False
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return manifest.get("demonstrations_graded") is True and manifest.get("sha256") == fingerprint(source)


def normalize(row: dict, columns: dict[str, str]) -> dict:
    r"""A raw row with the columns ``id``, ``problem``, ``answer`` and ``demonstrations``, as far as they can be found.

    Known by name: GSM8K (``question``, ``answer`` with ``#### 42`` and ``<<6*7=42>>``), MATH (``problem``,
    ``solution`` with a box), OpenR1-Math (``problem``, ``answer``, ``generations``), and the 46k subset of LUFFY
    (``prompt``, ``target``, ``reward_model``). GSM8K's marks are taken out and its last line becomes a box, so that the
    demonstrations end as the instruction asks.

    >>> normalize({"question": "6 * 7?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}, {})
    {'problem': '6 * 7?', 'answer': '42', 'demonstrations': ['6 * 7 = 42\n\\boxed{42}']}
    """
    row = {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}
    made = {"id": row["id"]} if row.get("id") is not None else {}
    problem = _first(row, "problem", "question", "prompt")
    answer = _first(row, "answer", "final_answer", "ground_truth")
    solutions = _first(row, "demonstrations", "generations", "solution", "target")
    if isinstance(row.get("reward_model"), dict) and answer is None:
        answer = row["reward_model"].get("ground_truth")
    if isinstance(answer, str) and "####" in answer and solutions is None:
        solutions = answer
    made["problem"] = _last_content(problem)
    texts = [_text(s) for s in (solutions if isinstance(solutions, list) else [solutions]) if s is not None]
    if answer is None and len(texts) == 1 and texts[0]:
        answer = final_answer(texts[0])
    elif isinstance(answer, str) and "####" in answer:
        answer = final_answer(answer)
    if answer is not None:
        made["answer"] = answer
    made["demonstrations"] = [_boxed_ending(text) for text in texts if text]
    return made


def _first(row: dict, *names: str):
    return next((row[name] for name in names if row.get(name) is not None), None)


def _last_content(problem):
    """The text of a problem that is given as chat messages: what the last user turn says."""
    if isinstance(problem, list) and all(isinstance(m, dict) for m in problem):
        return next((m.get("content") for m in reversed(problem) if m.get("role") == "user"), None)
    return problem


def _text(solution) -> str | None:
    if isinstance(solution, dict):
        return solution.get("text") or solution.get("content")
    return solution if isinstance(solution, str) else None


def _boxed_ending(solution: str) -> str:
    """GSM8K's calculator marks removed and its ``#### 42`` line turned into a box; other texts unchanged."""
    solution = re.sub(r"<<[^<>\n]*>>", "", solution.strip())
    return re.sub(r"^#### *(\S.*?)\s*\Z", lambda m: rf"\boxed{{{m[1]}}}", solution, flags=re.MULTILINE)


def _fitting(problem: Problem, tokenizer, max_completion_length: int | None, counts: Counter) -> Problem:
    """The problem without the demonstrations that are too short, or too long for the budget."""
    if tokenizer is None:
        return problem
    kept = []
    for demonstration in problem.demonstrations:
        length = len(encode(demonstration["text"], tokenizer)[0]) + 1  # and EOS
        if length - 1 < 2:
            counts["it is shorter than two tokens"] += 1
        elif max_completion_length is not None and length > max_completion_length:
            counts[f"it is longer than max_completion_length = {max_completion_length} tokens"] += 1
        else:
            kept.append(demonstration)
    return replace(problem, demonstrations=tuple(kept))


def _reason(problem: str) -> str:
    """A reason to count by: without the numbers and names of the one row."""
    return re.sub(r"; there are .*|has [\d,]+ characters, ", "", problem)


def parse_columns(pairs: Iterable[str]) -> dict[str, str]:
    """``["problem=question"]`` -> ``{"problem": "question"}``."""
    columns = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    wrong = [p for p in pairs if "=" not in p] + [
        c for c in columns if c not in ("id", "problem", "answer", "solution")
    ]
    if wrong:
        raise DataError(f"--column {wrong[0]}: give OURS=THEIRS, where OURS is one of id, problem, answer, solution")
    return columns
