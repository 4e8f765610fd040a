"""The ids that end a completion, told to whatever generates."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.tokenizer import Turn, end_of_turn, turn_of


def turn_behind(trainer, tokenizer, prompts: Sequence, prompt_ids: Sequence[Sequence[int]]) -> Turn:
    """The ids that the prompts end with, and those that end a completion; whatever generates is told to stop at these.

    Args:
        trainer: TRL's.
        prompts, prompt_ids: the first of the data set, or none if that is empty.
    """
    end = None
    if prompts and not isinstance(prompts[0], str):
        end = end_of_turn(tokenizer, trainer.chat_template, trainer.chat_template_kwargs)
    turn = turn_of(prompt_ids[0] if prompts else [], tokenizer, trainer.model.generation_config, end)
    stops = list(turn.stops)
    if set(stops) != set(trainer.eos_token_ids):
        trainer.eos_token_ids = stops
        trainer.model.generation_config.eos_token_id = stops  # saved with the policy: it ends there from now on
        if not trainer.use_vllm:
            trainer.generation_config.eos_token_id = trainer.generation_kwargs["eos_token_id"] = stops
    if trainer.use_vllm:
        own = getattr(trainer.vllm_generation, "generation_kwargs", None) or {}
        trainer.vllm_generation.generation_kwargs = {"stop_token_ids": stops, **own}
    return turn
