"""What the policy will see: prompts, prefixes, the guard's place, gold answers and verdicts, for a few problems.

Nothing but the tokenizer and the model's configuration is loaded.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from .data.problems import Problem, graded, guarded
from .data.tokenizer import DemonstrationTable
from .errors import DataError, RecipeError
from .methods.stage import ROLLOUTS, SUPERVISED
from .policy import Policy
from .prefixes import Demonstration, Prefix
from .recipe import LAB, Recipe, load_run
from .reports.schedule import total_steps
from .rewards.grading import Outcome
from .rollouts import Row, Step


@dataclass(frozen=True)
class Piece:
    """A stretch of tokens as text."""

    text: str
    tokens: int
    special: bool = False


@dataclass(frozen=True)
class Shown:
    """A demonstration."""

    verdict: str
    """The outcome of its grading; "not graded" where the method asks for no answers."""
    used: bool
    """Whether rollouts may start from it."""
    text: str
    tokens: int
    safe_tokens: int
    """Longest prefix that does not show the answer."""
    safe_text: str


@dataclass(frozen=True)
class Start:
    """What some rollouts of a group start from."""

    rollouts: int
    copy: int
    """Which of the problem's rows of an epoch it is."""
    tokens: int
    drawn: int
    """Tokens drawn, before guard and budget shortened them."""
    of: int
    """Tokens of the demonstration."""
    complete: bool
    text: str
    rest: str
    """What the demonstration goes on with, to where the guard stops a prefix."""
    beyond: str
    """What the guard keeps out of any prefix."""
    room: int
    """Tokens left for the policy."""
    hint: bool = False
    """The text stands in the prompt, and rollouts start from nothing."""


@dataclass(frozen=True)
class Lesson:
    """What a supervised stage learns of a problem."""

    tokens: int
    text: str
    prompt: list[Piece]
    """Its prompt, where the method asks for something else than in rollouts; else empty."""


@dataclass(frozen=True)
class View:
    """One problem."""

    id: str
    place: str
    source: str
    gold: str
    prompt: list[Piece]
    prompt_tokens: int
    demonstrations: list[Shown] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    lessons: list[Lesson] = field(default_factory=list)


@dataclass(frozen=True)
class Preview:
    """The answer."""

    method: str
    step: int
    total: int
    max_completion_length: int
    problems: int
    """Number of problems to train on; :attr:`views` are the first of them."""
    views: list[View]
    notes: list[str] = field(default_factory=list)


def preview(path: str | os.PathLike, overrides: Sequence[str] = (), rows: int = 3, step: int = 0) -> Preview:
    """The first problems of a recipe's data as the policy will see them at a step of the run.

    Raises:
        UserError: with every fault of recipe, data and tokenizer.
    """
    recipe, problems, _ = load_run(path, overrides)
    with _policy(recipe) as policy:
        recipe, notes = policy.recipe, list(policy.notes)
        having = [i for i, problem in enumerate(problems) if problem.demonstrations]
        chosen = (having or list(range(len(problems))))[:rows]
        if not chosen:
            raise DataError(f"{recipe.data.named} has no problem to show")
        if len(having) < len(problems):
            notes.append(
                f"{len(having)} of {len(problems)} problems have a demonstration; shown are the first of these"
            )
        total = total_steps(recipe, sum(problem.repeats for problem in problems))
        if not 0 <= step <= max(total - 1, 0):
            raise RecipeError(f"--step {step}: the run has steps 0 to {max(total - 1, 0)}")
        now = Step(step, total, recipe.training_value("seed"), recipe.training_value("max_completion_length"))
        some = [problems[i] for i in chosen]
        grades = recipe.method.stages.needs_answers
        outcomes = graded(some, recipe.rewards().grader) if grades else [[None] * len(p.demonstrations) for p in some]
        views = [
            _view(policy, number, problem, found, now)
            for number, problem, found in zip(chosen, some, outcomes, strict=True)
        ]
    if grades and any(shown.verdict != Outcome.RIGHT for view in views for shown in view.demonstrations):
        notes.append("demonstrations that are not right are left out when training begins")
    if recipe.method.needs.prefixes and step:
        notes.append("prefixes are those of a run in which nothing has happened yet: a method may adapt them")
    if recipe.method.needs.help_rounds:
        notes.append("groups that fail are generated again from a prefix, within the step: which, depends on the run")
    if not (recipe.method.needs.prefixes or recipe.method.needs.hint) and ROLLOUTS in recipe.method.stages.order:
        notes.append(f"{recipe.method_name} with these settings starts no rollout from a prefix")
    return Preview(recipe.method_name, step, total, now.max_completion_length, len(problems), views, notes)


@contextmanager
def _policy(recipe: Recipe):
    """The policy; the lab's is not trained for this, only its tokenizer is made."""
    from .lab.base import base_folder

    if recipe.model.name_or_path != LAB or base_folder(recipe.world).is_dir():
        yield Policy(recipe)
        return
    from .lab.base import model, tokenizer

    with TemporaryDirectory() as folder:
        model(recipe.world, 0).config.save_pretrained(folder)
        tokenizer(recipe.world).save_pretrained(folder)
        yield Policy(recipe, folder)


def _view(policy: Policy, number: int, problem: Problem, outcomes: Sequence[Outcome | None], now: Step) -> View:
    recipe, method = policy.recipe, policy.recipe.method
    (found,) = guarded([problem], recipe.data.answer_guard, recipe.reward.grader())
    verdicts = ["not graded" if outcome is None else str(outcome) for outcome in outcomes]

    def ids_of(text: dict, usable) -> tuple[Demonstration, ...]:
        return DemonstrationTable(
            [[text]], [problem.answer], policy.tokenizer, recipe.data.answer_guard, usable=usable, turn=policy.turn,
            problems=[problem.text],
        )[0]  # fmt: skip

    shown, usable = [], []
    for given, verdict in zip(found.demonstrations, verdicts, strict=True):
        every = ids_of(given, lambda demonstration: True)
        mine = ids_of(given, lambda d: method.needs.usable(d, now.max_completion_length))
        taken = bool(mine) and verdict in (Outcome.RIGHT, "not graded")
        usable += mine if taken else ()
        safe = every[0].safe_length
        ids = every[0].ids
        shown.append(
            Shown(verdict, taken, _text(policy, ids), len(ids), min(safe, len(ids)), _text(policy, ids[:safe]))
        )
    prompt = policy.prompt_ids(problem)
    starts = _starts(policy, number, usable, now) if method.needs.prefixes or method.needs.hint else []
    lessons = _lessons(policy, problem, usable, now, prompt) if SUPERVISED in method.stages.order else []
    return View(
        problem.id, problem.place, problem.source, problem.answer, pieces(policy, prompt), len(prompt), shown, starts,
        lessons,
    )  # fmt: skip


def _starts(policy: Policy, number: int, usable: Sequence[Demonstration], now: Step) -> list[Start]:
    """What the rollouts of the problem's groups start from, equal ones together."""
    recipe = policy.recipe
    size, (copies, *_) = recipe.training_value("num_generations"), recipe.method.copies([bool(usable), False])
    found: dict[tuple, list[Prefix]] = {}
    for copy in range(copies):
        for member in range(size):
            prefix = recipe.method.prefix(Row(copy * size + member, size, number, tuple(usable), copy), now)
            prefix = prefix or Prefix([])
            found.setdefault((copy, tuple(prefix.ids), prefix.complete), []).append(prefix)
    return [_start(policy, copy, alike, usable, now) for (copy, *_), alike in found.items()]


def _start(policy: Policy, copy: int, alike: list[Prefix], usable: Sequence[Demonstration], now: Step) -> Start:
    prefix = alike[0]
    count = len(prefix.ids)
    source = next((d for d in usable if list(d.ids[:count]) == prefix.ids and len(d.ids) == prefix.of), None)
    safe = max(min(source.safe_length, len(source.ids)), count) if source and count else count
    rest = _text(policy, source.ids[count:safe]) if source and count and not prefix.complete else ""
    beyond = _text(policy, source.ids[safe:]) if source and count and not prefix.complete else ""
    hint = bool(policy.recipe.method.needs.hint)
    room = now.max_completion_length - (0 if hint else count)
    return Start(
        len(alike), copy, count, prefix.drawn, prefix.of, prefix.complete, _text(policy, prefix.ids), rest, beyond,
        0 if prefix.complete and not hint else room, hint,
    )  # fmt: skip


def _lessons(
    policy: Policy, problem: Problem, usable: Sequence[Demonstration], now: Step, asked: Sequence[int]
) -> list[Lesson]:
    stages = policy.recipe.method.stages
    excerpt = stages.excerpt(problem.id, now.seed)
    prompt = policy.prompt_ids(problem, excerpt.instruction)
    own = [] if list(prompt) == list(asked) else pieces(policy, prompt)
    return [
        Lesson(len(ids), _text(policy, ids), own)
        for ids in map(excerpt.of, stages.lessons(problem.id, usable, now.seed))
        if len(ids) <= now.max_completion_length
    ]


def _text(policy: Policy, ids: Sequence[int]) -> str:
    return policy.tokenizer.decode(list(ids), skip_special_tokens=False)


def pieces(policy: Policy, ids: Sequence[int]) -> list[Piece]:
    """Ids as text, with each special token a piece of its own."""
    special = set(policy.tokenizer.all_special_ids) | set(policy.tokenizer.added_tokens_decoder)
    found: list[list[int]] = []
    for i in ids:
        if not found or i in special or found[-1][0] in special:
            found.append([])
        found[-1].append(i)
    return [Piece(_text(policy, run), len(run), run[0] in special) for run in found]


# --- in words ---------------------------------------------------------------------------------------------------------

_COLORS = {"prefix": "42;30", "special": "36", "beyond": "2;9", "head": "1", "rest": "2"}
"""How parts look on a terminal. Without colours brackets tell them apart."""
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str) -> str:
    r"""A text of somebody else's as a terminal may have it: what controls or turns the line is written out.

    >>> visible("so \x1b[31mit\x07 is\u202e\n\tfine, naïve 数学")
    'so \\x1b[31mit\\x07 is\\u202e\n\tfine, naïve 数学'
    """
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in _HIDDEN else c.encode("unicode_escape").decode()
        for c in text
    )


def clip(text: str, most: int, keep: str = "both") -> str:
    """A text of at most ``most`` characters: the rest of it is counted; 0: all of it.

    >>> clip("one two three four", 8), clip("one two three four", 8, keep="end"), clip("one two", 0)
    ('one [... 10 characters ...]four', '[... 10 characters ...]ree four', 'one two')
    """
    if not most or len(text) <= most:
        return text
    gap = f"[... {len(text) - most:,} characters ...]"
    if keep == "end":
        return gap + text[len(text) - most :]
    head = most if keep == "start" else most // 2
    tail = text[len(text) - (most - head) :] if most > head else ""
    return text[:head] + gap + tail


def report(found: Preview, characters: int = 600, color: bool = False) -> str:
    """The preview as text, at most ``characters`` of each part."""

    def styled(text: str, how: str, marks: tuple[str, str] = ("", "")) -> str:
        if not text:
            return ""
        return f"\x1b[{_COLORS[how]}m{text}\x1b[0m" if color else f"{marks[0]}{text}{marks[1]}"

    def shown(text: str, keep: str = "both") -> str:
        return clip(visible(text), characters, keep)

    lines = [f"{found.method}, step {found.step} of {found.total}; the first of {found.problems} problems"]
    for view in found.views:
        where = " ".join(filter(None, (view.place, f"from {view.source}" if view.source else "")))
        lines += ["", styled(f"=== problem {visible(view.id)}{f' ({visible(where)})' if where else ''}", "head")]
        lines.append(styled(f"--- prompt, {view.prompt_tokens} tokens", "head"))
        lines.append("".join(styled(shown(p.text), "special") if p.special else shown(p.text) for p in view.prompt))
        lines.append(styled("--- gold: ", "head") + shown(view.gold))
        for number, one in enumerate(view.demonstrations, 1):
            use = "" if one.used else ", not used"
            stops = "" if one.safe_tokens >= one.tokens else f"; the guard stops a prefix at {one.safe_tokens}"
            lines.append(styled(f"--- demonstration {number}: {one.verdict}{use}, {one.tokens} tokens{stops}", "head"))
            if not any(start.tokens for start in view.starts):
                safe = len(one.safe_text) if one.text.startswith(one.safe_text) else len(one.text)
                beyond = styled(shown(one.text[safe:]), "beyond", ("[guard|", "]"))
                lines.append(shown(one.text[:safe]) + beyond)
        for start in view.starts:
            lines.append(styled(f"--- {_heading(start)}", "head"))
            if start.tokens:
                lines.append(
                    styled(shown(start.text, "both"), "prefix", ("[hint|" if start.hint else "[prefix|", "]"))
                    + styled(shown(start.rest), "rest")
                    + styled(shown(start.beyond), "beyond", ("[guard|", "]"))
                )
        for lesson in view.lessons:
            lines.append(styled(f"--- learned in the supervised stage, {lesson.tokens} tokens", "head"))
            lines += ["".join(shown(p.text) for p in lesson.prompt)] if lesson.prompt else []
            lines.append(styled(shown(lesson.text), "prefix", ("[learned|", "]")))
    return "\n".join(lines)


def _heading(start: Start) -> str:
    who = f"{start.rollouts} rollout{'s' * (start.rollouts > 1)}" + (f" of copy {start.copy + 1}" if start.copy else "")
    if not start.tokens:
        return f"{who} without a {'hint' if start.hint else 'prefix'}, room for {start.room} tokens"
    if start.hint:
        hint = f"a hint at the end of the prompt, {start.tokens} of {start.of} tokens"
        return f"{who} with {hint}, room for {start.room} tokens"
    if start.complete:
        return f"{who}: a whole demonstration, {start.tokens} tokens; nothing is generated behind it"
    short = f", shortened from {start.drawn}" if start.tokens < start.drawn else ""
    return f"{who}: prefix of {start.tokens} of {start.of} tokens{short}, room for {start.room} tokens"


def as_json(found: Preview) -> dict[str, Any]:
    """The preview as JSON holds it."""
    return asdict(found)
