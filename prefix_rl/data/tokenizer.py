"""Loading a tokenizer without changing its ids, and demonstrations as ids."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cuts import Cut, sentence_places
from ..errors import DataError, RecipeError, unavailable
from ..prefixes import AnswerGuard, Demonstration
from ..rewards.guard import safe_cuts

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
)  # fmt: skip


def load_tokenizer(name_or_path: str, **kwargs) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, padding on the left, with the ids that its ``tokenizer.json`` gives.

    ``AutoTokenizer`` picks the class by the model's type; beside a Qwen2 config it turns a custom tokenizer into
    ``Qwen2Tokenizer``, which splits text differently and gives other ids. So the loaded tokenizer is compared with the
    file, and the generic class is taken where they differ.

    Raises:
        DataError: if there is no tokenizer, or no class that gives back the file's ids.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(name_or_path)
    if not folder.exists() and looks_like_a_path(name_or_path):
        raise DataError(f"no tokenizer could be loaded from {name_or_path}: there is no such folder")
    if folder.is_dir() and not has_tokenizer(folder):
        # transformers would make up an empty tokenizer of the class that the model's config names
        raise DataError(
            f"no tokenizer could be loaded from {name_or_path}: the folder has none of {', '.join(_TOKENIZER_FILES)}; "
            "copy them there from the model that it was made from"
        )
    try:
        probes = _probes(folder / "tokenizer.json")
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side="left", trust_remote_code=False, **kwargs)
        if _difference(tokenizer, probes):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name_or_path, padding_side="left", **kwargs)
    except Exception as error:  # whatever the libraries raise at what stands in the files
        raise unavailable(f"no tokenizer could be loaded from {name_or_path}", error) from error
    if difference := _difference(tokenizer, probes):
        raise DataError(
            f"the tokenizer loaded from {name_or_path} does not give the ids of its tokenizer.json: {difference}"
        )
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def looks_like_a_path(name: str) -> bool:
    """Whether a name can only be that of a folder: on the hub there are ``name`` and ``owner/name``.

    >>> looks_like_a_path("runs/mine/final"), looks_like_a_path("./mine"), looks_like_a_path("Qwen/Qwen3-8B")
    (True, True, False)
    """
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith("/")


class _Probes(NamedTuple):
    """What a tokenizer.json says: every word's id, and the ids of a few texts."""

    vocabulary: dict[str, int]
    ids: dict[str, list[int]]


def _probes(file: Path) -> _Probes | None:
    """None if there is no such file."""
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        raw = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower for a damaged file
        raise DataError(f"{file} cannot be read: {error}; copy it anew from the model") from error
    raw.no_truncation()
    raw.no_padding()
    vocabulary = raw.get_vocab()
    some = " ".join(sorted(vocabulary, key=vocabulary.get)[:: max(1, len(vocabulary) // 512)])
    texts = ("12 + 3 = \\boxed{15}\n\n  x^2, naïve 数学 🙂", some)
    return _Probes(vocabulary, {text: raw.encode(text, add_special_tokens=False).ids for text in texts})


def _difference(tokenizer: PreTrainedTokenizerBase, probes: _Probes | None) -> str | None:
    """How the loaded tokenizer differs from its ``tokenizer.json``, None if it does not or if there is no such file."""
    if probes is None:
        return None
    own = tokenizer.get_vocab()  # a copy of all words: asked for once
    if any(own.get(token) != i for token, i in probes.vocabulary.items()):
        return "the vocabulary differs"
    for text, wanted in probes.ids.items():
        given = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if given != wanted:
            return f"{text[:20]!r}... becomes {given[:8]}..., not {wanted[:8]}..."
    return None


# --- a turn -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """What stands around a completion: what its prompt ends with, and the ids that end it."""

    behind: str = ""
    """The end of the prompt as text: a demonstration gets the ids that it has behind it."""
    end: int | None = None
    """The id that a whole demonstration ends with; None: the tokenizer's EOS."""
    stops: tuple[int, ...] = ()
    """Every id that ends a completion."""

    @property
    def opening(self) -> str:
        """``<think>`` (and the blanks behind it) if the prompt ends with it, as where the template opens a thought."""
        found = _OPENED.search(self.behind)
        return found[0] if found else ""


_OPENS = r"<think>|<thinking>|\[THINK\]"
_OPENED = re.compile(rf"(?:{_OPENS})\s*\Z")
_OPENS_AGAIN = re.compile(rf"\s*(?:{_OPENS})")
_TAIL = 16  # tokens of a prompt behind which a demonstration is encoded


def turn_of(
    prompt_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    config: GenerationConfig | None = None,
    end: int | None = None,
) -> Turn:
    """The turn behind a prompt.

    Args:
        prompt_ids: one prompt; all prompts of a template end alike.
        config: the model's, for the ids that it declares to end a completion.
        end: what the chat template ends a turn with, see :func:`end_of_turn`; None: the tokenizer's EOS.
    """
    end = tokenizer.eos_token_id if end is None else end
    behind = tokenizer.decode(list(prompt_ids)[-_TAIL:], skip_special_tokens=False)
    return Turn(behind, end, tuple(stop_ids(config, tokenizer, end)))


def stop_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, end: int | None = None) -> list[int]:
    """Every id that ends a completion: the model's, the tokenizer's and the chat template's."""
    declared = config.eos_token_id if config else None
    declared = [] if declared is None else declared if isinstance(declared, list) else [declared]
    if not all(isinstance(i, int) and 0 <= i < 2**31 for i in declared):
        raise DataError(f"the model's generation_config.json has eos_token_id = {declared}: give ids, whole numbers")
    return [i for i in dict.fromkeys([*declared, tokenizer.eos_token_id, end]) if i is not None]


def end_of_turn(
    tokenizer: PreTrainedTokenizerBase, template: str | None = None, variables: Mapping[str, Any] | None = None
) -> int | None:
    """The id with which the chat template ends an assistant's turn, None if it ends it with no token of its own.

    Often it is not the tokenizer's EOS: ``<|im_end|>`` beside ``<|endoftext|>`` in the tokenizers of base models.
    """
    said = "xyzzy"
    turns = [{"role": "user", "content": "plugh"}, {"role": "assistant", "content": said}]
    text = _rendered(turns, tokenizer, template, variables, tokenize=False, add_generation_prompt=False)
    _, found, rest = text.rpartition(said)
    if not found:
        return None
    for token in tokenizer(rest, add_special_tokens=False)["input_ids"]:
        if token in tokenizer.added_tokens_decoder:
            return token
        if tokenizer.decode([token]).strip():
            return None
    return None


_DIRECTIVES = "aAwdbBmyYHIpMSfjUWcxXGuV"


def dated(template: str, day: str) -> str:
    """The template with ``strftime_now`` fixed to the beginning of a day (``2026-11-25``).

    transformers fills in the moment of rendering, so that the same prompt would have other ids tomorrow. Templates see
    plain values only; so the function is written in front of the template as a macro.

    Raises:
        ValueError: if ``day`` is no date.
    """
    then = date.fromisoformat(day)
    shown = {f"%-{d}": str(int(then.strftime(f"%{d}"))) for d in "dmyHIMSj"}
    shown |= {f"%{d}": then.strftime(f"%{d}") for d in _DIRECTIVES}
    replaced = "".join(f"|replace({json.dumps(k)}, {json.dumps(v)})" for k, v in shown.items())
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro %}}\n{template}"


def encode_prompt(
    prompt: str | Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """The ids of a prompt as the trainer gives it: a text as it is, or messages with the assistant's turn opened.

    Args:
        template: the chat template; None: the tokenizer's.
        variables: what the template is given besides (TRL's ``chat_template_kwargs``).

    Raises:
        RecipeError: if the chat template refuses the messages or is broken.
    """
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    return list(_rendered(prompt, tokenizer, template, variables, tokenize=True, return_dict=True)["input_ids"])


def prompt_length(problem: str | Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens of a problem: as a user's turn through the tokenizer's chat template, or alone if there is none.

    A problem that is messages has those turns.
    """
    chat = tokenizer.chat_template is not None
    if not isinstance(problem, str):
        return len(encode_prompt(problem if chat else "\n".join(turn["content"] for turn in problem), tokenizer))
    return len(encode_prompt([{"role": "user", "content": problem}] if chat else problem, tokenizer))


def _rendered(
    messages: Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    variables: Mapping[str, Any] | None,
    **how,
):
    """What ``apply_chat_template`` gives, and a fault of the template in words."""
    from jinja2 import TemplateError

    how = {"add_generation_prompt": True, **how}
    try:
        return tokenizer.apply_chat_template(list(messages), chat_template=template, **how, **(variables or {}))
    except TemplateError as error:
        where = f" in line {error.lineno}" if getattr(error, "lineno", None) else ""
        roles = ", ".join(message["role"] for message in messages)
        raise RecipeError(
            f"the chat template refuses messages of the roles {roles}{where}: {error.message or type(error).__name__}"
        ) from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:  # raised inside a template
        raise RecipeError(f"the chat template cannot be rendered: {type(error).__name__}: {error}") from error


# --- demonstrations ---------------------------------------------------------------------------------------------------


class DemonstrationTable(Sequence):
    """The demonstrations of every row of a data set as token ids, made when first asked for.

    They stand here and not in the data set because TRL hands each row around many times over.

    Args:
        demonstrations: for each row, texts or ``{"text": ..., "readable_from": ..., "ids": ..., "ended": ...}``,
            where ``readable_from`` is the offset at which the answer becomes readable if that is known better than the
            guard can tell, ``readable`` what the guard has told (:func:`~prefix_rl.rewards.guard.readable`), ``ids``
            are the tokens as they were sampled, if they were, and ``ended`` is False if they stopped short of an end.
        answers: the gold answer of each row.
        tokenizer: without special tokens it encodes a demonstration; its EOS ends one.
        guard: see :func:`~prefix_rl.rewards.guard.safe_cuts`.
        usable: demonstrations that it says no to are left out.
        turn: what the prompts end with and what ends a completion. A demonstration gets the ids that it has behind such
            a prompt, and loses the thought that it opens if the prompt has opened it.
        problems: the text of each row's problem: what it gives is no secret.
        cut: where demonstrations may be cut, as far as a text tells: ``sentences``. What a policy tells of them
            (:func:`~prefix_rl.cuts.needs_scores`) comes later.
    """

    def __init__(
        self,
        demonstrations: Sequence[Sequence[str | dict]],
        answers: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        guard: AnswerGuard = "mention",
        usable: Callable[[Demonstration], bool] = Demonstration.usable,
        turn: Turn | None = None,
        problems: Sequence[str] | None = None,
        cut: Cut = "tokens",
    ):
        self._cut = cut
        self._texts, self._answers, self._problems = demonstrations, answers, problems
        self._tokenizer, self._guard, self._usable = tokenizer, guard, usable
        self._turn = turn or turn_of([], tokenizer)
        self._stop_ids = {tokenizer.eos_token_id, tokenizer.pad_token_id, *self._turn.stops} - {None}
        self._made: dict[int, tuple[Demonstration, ...]] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> tuple[Demonstration, ...]:
        """The usable demonstrations of one row; empty if it has none."""
        if row not in self._made:
            problem = self._problems[row] if self._problems else ""
            made = (self._encode(given, self._answers[row], problem) for given in self._texts[row] or ())
            self._made[row] = tuple(d for d in made if self._usable(d))
        return self._made[row]

    def _encode(self, given: str | dict, answer: str, problem: str) -> Demonstration:
        given = {"text": given} if isinstance(given, str) else given
        text, readable_from, sampled = given["text"], given.get("readable_from"), given.get("ids")
        known = (given.get("readable") or {}).get(self._guard)
        if opened := _opened_again(text, self._turn.opening):
            text = text[opened:]
            readable_from, known = (None if o is None else max(o - opened, 0) for o in (readable_from, known))
            sampled = None
        ids, ends = encode(text, self._tokenizer, self._turn.behind)
        if sampled is not None and list(sampled) != ids:
            ids, ends = list(sampled), _ends_of(sampled, self._tokenizer)
        stop = next((i for i, token in enumerate(ids) if token in self._stop_ids), len(ids))
        ids, ends = ids[:stop], ends[:stop]
        if self._guard == "none":
            cuts = (len(ids), frozenset())
        elif readable_from is not None:
            cuts = (sum(end <= readable_from for end in ends), frozenset())
        else:
            cuts = safe_cuts(text, answer, ends, self._guard, problem, known)
        end = self._turn.end if given.get("ended", True) else None
        places = sentence_places(text, ends) if self._cut == "sentences" else None
        return Demonstration(tuple(ids), *cuts, stop=end, places=places)


def _opened_again(text: str, opening: str) -> int:
    """How many characters of a demonstration open the thought that its prompt has opened already.

    >>> [_opened_again(text, "<think>\\n") for text in ("<think>\\nSo", " <think>So", "<think>\\r\\n So", "So <think>")]
    [8, 8, 10, 0]
    """
    if not opening:
        return 0
    if text.startswith(opening):
        return len(opening)
    found = _OPENS_AGAIN.match(text)
    if not found:
        return 0
    rest = text[found.end() :]
    blanks = len(rest) - len(rest.lstrip()) if opening[-1:].isspace() else 0  # the prompt's own stand in their place
    return found.end() + blanks


def continuation_start(
    text: str, prefix_ids: Sequence[int], completion_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> int:
    """The offset in ``text`` at which the continuation begins, or an earlier one if that is not certain.

    ``text`` is what ``completion_ids`` decode to, or a part of it (a chat template may take the thought away). Decoded
    alone the prefix may end otherwise than inside the whole, in half a character or in a space, so only what both agree
    on counts. 0 if ``text`` cannot be found in the whole.
    """
    whole, prefix = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (completion_ids, prefix_ids))
    own = next((i for i, (a, b) in enumerate(zip(whole, prefix, strict=False)) if a != b), min(len(whole), len(prefix)))
    return min(max(own - max(whole.rfind(text), 0), 0), len(text)) if text in whole else 0


def encode(text: str, tokenizer: PreTrainedTokenizerBase, behind: str = "") -> tuple[list[int], list[int]]:
    """The ids of ``text`` without special tokens, and the offset in ``text`` at which each token ends.

    With ``behind`` they are the ids that it has behind this text: a tokenizer that puts a blank in front of the first
    word (Llama 2, Mistral) puts none in the middle. Where the two would share a token, they are those behind a line
    end.
    """
    for given in filter(None, (behind, behind and "\n")):
        whole, ends = _encode(given + text, tokenizer)
        before, _ = _encode(given, tokenizer)
        count = len(before)
        if whole[:count] == before:
            ids = whole[count:]
            ends = [end - len(given) for end in ends[count:]] if tokenizer.is_fast else _ends_of(ids, tokenizer)
            return ids, ends
    return _encode(text, tokenizer)


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids, _ends_of(ids, tokenizer)


def _ends_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The offset in the decoded text at which each token ends."""
    return [len(tokenizer.decode(ids[: k + 1], skip_special_tokens=True)) for k in range(len(ids))]
