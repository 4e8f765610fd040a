"""Loading of tokenizers with their own ids, and encoding of prompts and demonstrations as token ids."""

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
    """Tokenizer of a model, padding on the left, with the ids of its ``tokenizer.json``.

    ``AutoTokenizer`` picks the class by the model's type: with a Qwen2 config it turns a custom tokenizer into
    ``Qwen2Tokenizer``, which splits text differently and gives other ids. So the loaded tokenizer is compared with the
    file, and the generic class is used if they differ.

    Raises:
        DataError: if there is no tokenizer, or no class reproduces the file's ids.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(name_or_path)
    if not folder.exists() and looks_like_a_path(name_or_path):
        raise DataError(f"no tokenizer could be loaded from {name_or_path}: there is no such folder")
    if folder.is_dir() and not has_tokenizer(folder):
        # transformers would construct an empty tokenizer of the class that the model's config names
        raise DataError(
            f"no tokenizer could be loaded from {name_or_path}: the folder has none of {', '.join(_TOKENIZER_FILES)}; "
            "copy them there from the model that it was made from"
        )
    try:
        probes = _probes(folder / "tokenizer.json")
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side="left", trust_remote_code=False, **kwargs)
        if _difference(tokenizer, probes):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name_or_path, padding_side="left", **kwargs)
    except Exception as error:  # the libraries raise many kinds for damaged files
        raise unavailable(f"no tokenizer could be loaded from {name_or_path}", error) from error
    if not tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys():  # the file with its words is gone
        raise DataError(
            f"the tokenizer of {name_or_path} knows no word, only special tokens: its files are not all there. Copy "
            "them from the model that it was made from"
        )
    if difference := _difference(tokenizer, probes):
        raise DataError(
            f"the tokenizer loaded from {name_or_path} does not give the ids of its tokenizer.json: {difference}"
        )
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """True if a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def looks_like_a_path(name: str) -> bool:
    """True if a name can only be a folder's: names on the hub are ``name`` or ``owner/name``.

    >>> [looks_like_a_path(name) for name in ("runs/mine/final", "./mine", "~/mine", "Qwen/Qwen3-8B")]
    [True, True, True, False]
    """
    return name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith("/")


class _Probes(NamedTuple):
    """Reference ids from a tokenizer.json: the vocabulary, and the ids of two texts."""

    vocabulary: dict[str, int]
    ids: dict[str, list[int]]


def _probes(file: Path) -> _Probes | None:
    """Reference ids of a tokenizer.json; None if there is no such file."""
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
    # at most 1,023 words, evenly spaced over the ids of the vocabulary
    some = " ".join(sorted(vocabulary, key=vocabulary.get)[:: max(1, len(vocabulary) // 512)])
    texts = ("12 + 3 = \\boxed{15}\n\n  x^2, naïve 数学 🙂", some)
    return _Probes(vocabulary, {text: raw.encode(text, add_special_tokens=False).ids for text in texts})


def _difference(tokenizer: PreTrainedTokenizerBase, probes: _Probes | None) -> str | None:
    """First difference between a tokenizer and its ``tokenizer.json``; None if they agree or there is no such file."""
    if probes is None:
        return None
    own = tokenizer.get_vocab()  # every call copies the whole vocabulary, so it is called once
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
    """Surroundings of a completion: the end of the prompt before it, and the ids that end it."""

    behind: str = ""
    """End of the prompt as text; demonstrations are encoded as continuations of it."""
    end: int | None = None
    """Id that ends a whole demonstration; None: none is appended."""
    stops: tuple[int, ...] = ()
    """Ids that end a completion."""

    @property
    def opening(self) -> str:
        """``<think>`` and the blanks behind it, if the template ends the prompt with an open thought; else empty."""
        found = _OPENED.search(self.behind)
        return found[0] if found else ""


_OPENS = r"<think>|<thinking>|\[THINK\]"
_OPENED = re.compile(rf"(?:{_OPENS})\s*\Z")
_OPENS_AGAIN = re.compile(rf"\s*(?:{_OPENS})")
_TAIL = 16  # number of tokens at the end of a prompt that demonstrations are encoded behind


def turn_of(
    prompt_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    config: GenerationConfig | None = None,
    end: int | None = None,
) -> Turn:
    """Turn of a completion that follows a prompt.

    Args:
        prompt_ids: ids of one prompt; all prompts of a chat template end in the same way.
        config: generation config of the model, for its declared EOS ids.
        end: id that ends a turn in the chat template, see :func:`end_of_turn`; None: the tokenizer's EOS.
    """
    end = tokenizer.eos_token_id if end is None else end
    behind = tokenizer.decode(list(prompt_ids)[-_TAIL:], skip_special_tokens=False)
    return Turn(behind, end, tuple(stop_ids(config, tokenizer, end)))


def stop_ids(config: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase, end: int | None = None) -> list[int]:
    """Ids that end a completion: those of the model, of the tokenizer and of the chat template, each once."""
    declared = config.eos_token_id if config else None
    declared = [] if declared is None else declared if isinstance(declared, list) else [declared]
    if not all(isinstance(i, int) and 0 <= i < 2**31 for i in declared):
        raise DataError(f"the model's generation_config.json has eos_token_id = {declared}: give ids, whole numbers")
    return [i for i in dict.fromkeys([*declared, tokenizer.eos_token_id, end]) if i is not None]


def end_of_turn(
    tokenizer: PreTrainedTokenizerBase, template: str | None = None, variables: Mapping[str, Any] | None = None
) -> int | None:
    """Id with which the chat template ends an assistant's turn; None if it ends turns with no special token.

    It often differs from the tokenizer's EOS: ``<|im_end|>`` beside ``<|endoftext|>`` in the tokenizers of base models.
    """
    said = "xyzzy"  # a word that no template contains
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
    """Chat template with ``strftime_now`` fixed to the beginning of a day (``2026-11-25``).

    transformers uses the time of rendering, so that the same prompt would have other ids tomorrow. A template can be
    passed plain values but no functions; so the function is written in front of the template as a macro.

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
    """Token ids of a prompt as in training: of a plain text, or of messages with the assistant's turn opened.

    Args:
        template: the chat template; None: the tokenizer's.
        variables: further variables of the template (TRL's ``chat_template_kwargs``).

    Raises:
        RecipeError: if the chat template refuses the messages or is broken.
    """
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    return list(_rendered(prompt, tokenizer, template, variables, tokenize=True, return_dict=True)["input_ids"])


def prompt_length(problem: str | Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens of a problem in the tokenizer's chat template, or of its text alone if there is no template.

    A text counts as one turn of the user; a problem of several messages keeps its turns.
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
    """Result of ``apply_chat_template``; faults of the template become a RecipeError."""
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
    """Demonstrations of every row of a data set as token ids, encoded at the first access to the row.

    They are kept here and not in the data set because TRL copies each row many times.

    Args:
        demonstrations: for each row, texts or objects with a ``text`` and optional keys. ``readable_from`` is the
            offset at which the answer becomes readable, if the data know it; ``readable`` the offsets of the answer
            guards (:func:`~prefix_rl.rewards.guard.readable`); ``ids`` the token ids as they were sampled; ``ended`` is
            False if no end token followed them.
        answers: the gold answer of each row.
        tokenizer: encodes a demonstration, without special tokens.
        guard: see :func:`~prefix_rl.rewards.guard.safe_cuts`.
        usable: returns False for a demonstration that is to be left out.
        turn: the end of the prompts, and the ids that end a completion; None: no text, and EOS. A demonstration is
            encoded as a continuation of such a prompt, and loses its ``<think>`` if the prompt ends with one.
        problems: the text of each row's problem; numbers in it do not count as the answer shown.
        cut: the rule for the places of cuts. Here only ``sentences`` has an effect; rules that need the policy's scores
            (:func:`~prefix_rl.cuts.needs_scores`) are applied later.
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
        """Usable demonstrations of one row; empty if it has none."""
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
            sampled = None  # the sampled ids begin with the text that was just removed
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
    """Number of characters at the start of a demonstration that repeat the ``<think>`` at the end of its prompt.

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
    blanks = len(rest) - len(rest.lstrip()) if opening[-1:].isspace() else 0  # the prompt has its own
    return found.end() + blanks


def continuation_start(
    text: str, prefix_ids: Sequence[int], completion_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> int:
    """Offset in ``text`` at which the continuation begins, or an earlier offset if that is not certain.

    ``text`` is the decoded completion, or a part of it (a chat template may remove the thought). The prefix decoded
    alone may end differently than inside the completion (half a character, a blank), so only the characters that agree
    count. 0 if ``text`` does not occur in the completion.
    """
    whole, prefix = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (completion_ids, prefix_ids))
    own = next((i for i, (a, b) in enumerate(zip(whole, prefix, strict=False)) if a != b), min(len(whole), len(prefix)))
    return min(max(own - max(whole.rfind(text), 0), 0), len(text)) if text in whole else 0


def encode(text: str, tokenizer: PreTrainedTokenizerBase, behind: str = "") -> tuple[list[int], list[int]]:
    """Token ids of ``text`` without special tokens, and for each token the offset in ``text`` at which it ends.

    With ``behind`` the text is encoded as the continuation of ``behind``: a tokenizer that puts a blank in front of the
    first word (Llama 2, Mistral) puts none in the middle. If a token would span both texts, ``text`` is encoded as the
    continuation of a line end instead.
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
    """Offsets in the decoded text at which the tokens end."""
    return [len(tokenizer.decode(ids[: k + 1], skip_special_tokens=True)) for k in range(len(ids))]
