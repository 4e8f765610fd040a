"""The arguments of ``PrefixTrainer``: completed where their meaning is clear, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .data.tokenizer import load_tokenizer
from .errors import DataError, RecipeError, at_most
from .rewards.grading import gold_text

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def tokenizer_of(model: str | PreTrainedModel) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, for a trainer without a ``processing_class``, with its ids unchanged.

    Raises:
        RecipeError: if the model was built in memory, so that it is not known which tokenizer belongs to it.
        DataError: if there is none where the model comes from.
    """
    source = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
    if not source:
        raise RecipeError(
            "processing_class is missing: this model was made in memory and comes from no folder that could have its "
            "tokenizer. Give PrefixTrainer the tokenizer as processing_class"
        )
    return load_tokenizer(source)


def demonstrations_and_answers(dataset: Dataset) -> tuple[Sequence[Sequence[str | dict[str, Any]]], list[str]]:
    """Demonstrations and gold answer of each row, as the training reward reads them: a number as it is written,
    null as an empty text.

    Raises:
        DataError: if ``demonstrations`` holds something other than lists of texts.
    """
    count, columns = len(dataset), dataset.column_names
    given = dataset["demonstrations"][:] if "demonstrations" in columns else [[]] * count
    wrong = [
        f"row {i}: {str(row)[:60]!r} is a {type(row).__name__}"
        for i, row in enumerate(given)
        if not (row is None or isinstance(row, list)) or any(_text_of(d) is None for d in row or ())
    ]
    if wrong:
        raise DataError(
            "the column demonstrations must hold a list for each row, of texts or of {'text': ...} (one demonstration "
            "is a list of one):",
            at_most(wrong, 5),
        )
    answers = dataset["answer"][:] if "answer" in columns else [None] * count
    return [row or [] for row in given], [gold_text(answer) for answer in answers]


def _text_of(demonstration: object) -> str | None:
    text = demonstration.get("text") if isinstance(demonstration, dict) else demonstration
    return text if isinstance(text, str) else None


def check_trainable(model: PreTrainedModel) -> None:
    """Sees that training would move something.

    Raises:
        RecipeError: if no parameter takes a gradient.
    """
    if any(parameter.requires_grad for parameter in model.parameters()):
        return
    frozen = "its adapters are frozen; load them with PeftModel.from_pretrained(..., is_trainable=True)"
    other = "every one has requires_grad = False"
    why = frozen if getattr(model, "peft_config", None) else other
    raise RecipeError(f"this model has no parameter that can be trained, so training would change nothing: {why}")
