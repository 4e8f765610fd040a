"""Loading a tokenizer without changing its ids, and demonstrations as ids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError
from ..prefixes import AnswerGuard, Demonstration, safe_cuts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    if not folder.exists() and (name_or_path.startswith(("/", ".")) or name_or_path.count("/") > 1):
        raise DataError(f"no tokenizer could be loaded from {name_or_path}: there is no such folder")
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        # transformers would make up an empty tokenizer of the class that the model's config names
        raise DataError(
            f"no tokenizer could be loaded from {name_or_path}: the folder has none of {', '.join(_TOKENIZER_FILES)}; "
            "copy them there from the model that it was made from"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side="left", **kwargs)
        if _changes_ids(tokenizer, name_or_path):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(name_or_path, padding_side="left", **kwargs)
    except (OSError, ValueError) as error:
        raise DataError(f"no tokenizer could be loaded from {name_or_path}: {error}") from error
    if difference := _changes_ids(tokenizer, name_or_path):
        raise DataError(
            f"the tokenizer loaded from {name_or_path} does not give the ids of its tokenizer.json: {difference}"
        )
    return tokenizer


def _changes_ids(tokenizer: PreTrainedTokenizerBase, path: str) -> str | None:
    """How the loaded tokenizer differs from ``tokenizer.json``, None if it does not or if there is no such file."""
    file = Path(path, "tokenizer.json")
    if not file.is_file():
        return None
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(file))
    raw.no_truncation()
    raw.no_padding()
    vocabulary = raw.get_vocab()
    if any(tokenizer.get_vocab().get(token) != i for token, i in vocabulary.items()):
        return "the vocabulary differs"
    probe = " ".join(sorted(vocabulary, key=vocabulary.get)[:: max(1, len(vocabulary) // 512)])
    for text in ("12 + 3 = \\boxed{15}\n\n  x^2, naïve 数学 🙂", probe):
        given = tokenizer(text, add_special_tokens=False)["input_ids"]
        wanted = raw.encode(text, add_special_tokens=False).ids
        if list(given) != wanted:
            return f"{text[:20]!r}... becomes {given[:8]}..., not {wanted[:8]}..."
    return None


class DemonstrationTable(Sequence):
    """The demonstrations of every row of a data set as token ids, made when first asked for.

    They stand here and not in the data set because TRL hands each row around many times over.

    Args:
        demonstrations: for each row, texts or ``{"text": ..., "readable_from": ..., "ids": ..., "ended": ...}``,
            where ``readable_from`` is the offset at which the answer becomes readable if that is known better than
            :func:`safe_cuts` can tell, ``ids`` are the tokens as they were sampled, if they were, and ``ended`` is
            False if they stopped short of an end.
        answers: the gold answer of each row.
        tokenizer: without special tokens it encodes a demonstration; its EOS ends one.
        guard: see :func:`~prefix_rl.prefixes.safe_cuts`.
        usable: demonstrations that it says no to are left out.
        stop_ids: further ids that end a demonstration, besides EOS and padding.
        opening: what the prompt already ends with (``<think>``); a demonstration that opens with it again loses it.
    """

    def __init__(
        self,
        demonstrations: Sequence[Sequence[str | dict]],
        answers: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        guard: AnswerGuard = "mention",
        usable: Callable[[Demonstration], bool] = Demonstration.usable,
        stop_ids: Collection[int] = (),
        opening: str = "",
    ):
        self._texts, self._answers = demonstrations, answers
        self._tokenizer, self._guard, self._usable = tokenizer, guard, usable
        self._stop_ids = {tokenizer.eos_token_id, tokenizer.pad_token_id, *stop_ids} - {None}
        self._opening = opening
        self._made: dict[int, tuple[Demonstration, ...]] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, row: int) -> tuple[Demonstration, ...]:
        """The usable demonstrations of one row; empty if it has none."""
        if row not in self._made:
            made = (self._encode(given, self._answers[row]) for given in self._texts[row] or ())
            self._made[row] = tuple(d for d in made if self._usable(d))
        return self._made[row]

    def _encode(self, given: str | dict, answer: str) -> Demonstration:
        given = {"text": given} if isinstance(given, str) else given
        text, readable_from, sampled = given["text"], given.get("readable_from"), given.get("ids")
        if self._opening and text.startswith(self._opening):
            text = text[len(self._opening) :]
            readable_from = None if readable_from is None else max(readable_from - len(self._opening), 0)
            sampled = None
        ids, ends = encode(text, self._tokenizer)
        if sampled is not None and list(sampled) != ids:
            ids, ends = list(sampled), _ends_of(sampled, self._tokenizer)
        stop = next((i for i, token in enumerate(ids) if token in self._stop_ids), len(ids))
        ids, ends = ids[:stop], ends[:stop]
        if self._guard == "none":
            cuts = (len(ids), frozenset())
        elif readable_from is not None:
            cuts = (sum(end <= readable_from for end in ends), frozenset())
        else:
            cuts = safe_cuts(text, answer, ends, self._guard)
        end = self._tokenizer.eos_token_id if given.get("ended", True) else None
        return Demonstration(tuple(ids), *cuts, stop=end)


def encode_prompt(prompt: str | list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a prompt as the trainer gives it: a text as it is, or messages with the assistant's turn opened."""
    if isinstance(prompt, str):
        return list(tokenizer(text=prompt)["input_ids"])
    encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)
    return list(encoded["input_ids"])


def opening_of(prompt_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """``<think>`` (and what follows it) if a prompt ends with it, as where the chat template opens a thought."""
    _, found, rest = tokenizer.decode(prompt_ids, skip_special_tokens=False).rpartition("<think>")
    return found + rest if found and not rest.strip() else ""


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


def encode(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids of ``text`` without special tokens, and the offset in ``text`` at which each token ends."""
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids, _ends_of(ids, tokenizer)


def _ends_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The offset in the decoded text at which each token ends."""
    return [len(tokenizer.decode(ids[: k + 1], skip_special_tokens=True)) for k in range(len(ids))]
