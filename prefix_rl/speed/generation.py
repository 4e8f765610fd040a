"""Generation in which each distinct prompt is encoded once, and rows that have ended leave the batch.

transformers' ``generate`` encodes the prompt of every row, though the rows of a group share theirs, and takes every row
to the end of the longest. Its ``custom_generate`` lets another loop run in the place of its own, behind the same
preparation (settings, logits processors, stopping criteria). The loop here

1. finds the distinct rows and encodes them, those of similar length together, without their padding;
2. repeats their keys and values for the rows that share them (what transformers would hold anyway);
3. decodes as transformers does; rows that have ended leave, and with them the columns that are padding for all others.

The same seed draws the same tokens (up to rounding): a row that has left goes on using up its random numbers.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad as padded_with_zeros
from transformers import (
    DynamicCache,
    EpsilonLogitsWarper,
    GenerationConfig,
    GenerationMixin,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import EosTokenCriteria, GenerationMode
from transformers.integrations import is_fsdp_managed_module

PREFILL_TOKENS = 16384
"""Tokens that are encoded at once, padding included."""
SIMILAR = 1.25
"""Prompts are encoded together as long as the longest is no longer than this many times the shortest."""
SPARE = 128
"""Columns by which the cache grows."""
PATIENCE = 1.0
"""Rows leave once those that have ended were carried along for this many steps of the whole batch."""

ROW_BY_ROW = (
    EosTokenCriteria,
    EpsilonLogitsWarper,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
"""Processors and criteria that hold nothing for single rows, so that rows may leave."""

_NOTHING = -1  # stands for padding where rows are compared: no token has this id, and it sorts before all of them


class Unsupported(Exception):
    """Says why a model or a setting needs the model's own loop."""


@contextmanager
def as_asked(model: torch.nn.Module) -> Iterator[None]:
    """Generation within goes by what it is given alone: a model's own generation_config fills nothing in.

    Of that, the ids that end a completion are used, and these are given. Beams, words that are left out, a time limit
    and the like would change the samples without a word.
    """
    own = {part: vars(part)["generation_config"] for part in model.modules() if "generation_config" in vars(part)}
    for part in own:
        part.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for part, config in own.items():
            part.generation_config = config


@contextmanager
def shared_prefill(model: PreTrainedModel) -> Iterator[None]:
    """``model.generate`` encodes each distinct prompt once while this context lasts; the model may be a PEFT model.

    The contract of ``generate`` is kept: rows of token ids padded on the left go in, the same rows with their
    continuations come out, ``(B, width + longest continuation)``. What cannot be done so (beam search, a static cache,
    a model that prepares its own inputs, sharded parameters) goes through the model's own loop; a warning says so once.

    Logits processors and stopping criteria that hold something for each row may have a method ``keep(rows)``: it is
    called with the places of the rows that stay. With one that lacks it no row leaves before the end.

    In training mode a dropout mask is drawn once for a shared prompt, not once for each row.
    """
    before, own = vars(model).get("generate"), model.generate

    def generate(*args, **kwargs):
        try:
            return own(*args, custom_generate=_decode, **kwargs)
        except Unsupported as reason:
            _say_once(str(reason))
            return own(*args, **kwargs)

    model.generate = generate
    try:
        yield
    finally:
        del model.generate
        if before is not None:
            model.generate = before


@functools.cache
def _say_once(reason: str) -> None:
    warnings.warn(f"prompts that rows share are encoded for each of them: {reason}", stacklevel=3)


def _decode(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs,
) -> torch.Tensor:
    """The loop that ``generate`` calls: ``(B, width) -> (B, width + longest continuation)``.

    Raises:
        Unsupported: before anything is drawn.
    """
    _require_support(model, generation_config, model_kwargs)
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.bool()
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise Unsupported("rows that are not padded on the left")
    logits, cache, mask = _prefill(model, input_ids, mask)
    holders = [one for one in (*logits_processor, *stopping_criteria) if type(one) not in ROW_BY_ROW]
    may_leave = all(hasattr(one, "keep") for one in holders)
    stops = generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else stops or [0]
    pad = stops[0] if generation_config.pad_token_id is None else generation_config.pad_token_id

    rows, ids, positions = torch.arange(len(input_ids), device=input_ids.device), input_ids, mask.sum(dim=1)
    ended = torch.zeros_like(rows, dtype=torch.bool)
    left: list[tuple[torch.Tensor, torch.Tensor]] = []
    padded, idle = not bool(mask.all()), 0
    while True:
        scores = logits_processor(ids, logits)
        if generation_config.do_sample:
            # torch.multinomial's own way to one sample, with the noise of all rows, also of those that have left
            noise = scores.new_empty(len(input_ids), scores.size(1)).exponential_()
            tokens = (scores.softmax(dim=-1) / noise[rows]).argmax(dim=-1)
        else:
            tokens = scores.argmax(dim=-1)
        tokens = tokens.masked_fill(ended, pad)
        ids = torch.cat([ids, tokens.unsqueeze(1)], dim=1)
        ended = ended | stopping_criteria(ids, None)
        waiting = int(ended.sum())
        if waiting == len(rows):
            break
        idle += waiting
        if may_leave and idle >= PATIENCE * len(rows):
            left.append((rows[ended], ids[ended]))
            stay = (~ended).nonzero().flatten()
            rows, ids, positions, tokens, mask = (t[stay] for t in (rows, ids, positions, tokens, mask))
            mask = _keep(cache, stay, mask)
            for one in holders:
                one.keep(stay)
            ended, padded, idle = ended[stay], not bool(mask.all()), 0
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = _forward(model, tokens.unsqueeze(1), mask if padded else None, positions.unsqueeze(1), cache)
        positions = positions + 1

    made = ids.new_full((len(input_ids), ids.size(1)), pad)
    for which, done in [*left, (rows, ids)]:
        made[which, : done.size(1)] = done
    return made


def _forward(model, ids, mask, positions, cache: DynamicCache) -> torch.Tensor:
    """The logits behind the last token of each row, ``(B, V)``, in single precision."""
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    found = model(
        input_ids=ids,
        attention_mask=None if mask is None else mask.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **last,
    )
    return found.logits[:, -1].float()


# --- the cache --------------------------------------------------------------------------------------------------------


def _prefill(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
    """The logits behind each row ``(B, V)``, the cache, and which columns of it are tokens ``(B, W)``."""
    # Sorted, the rows with most padding come first: in the order of their lengths
    distinct, where = torch.unique(ids.masked_fill(~mask, _NOTHING), dim=0, return_inverse=True)
    lengths = (distinct != _NOTHING).sum(dim=1).clamp(min=1).tolist()
    width, windows = lengths[-1], any(_empty_cache(model).is_sliding)
    logits, caches = [], []
    for start, end in [(0, len(lengths))] if windows else _chunks(lengths):
        chunk = distinct[start:end, ids.size(1) - lengths[end - 1] :]
        real = chunk != _NOTHING
        cache = _empty_cache(model)
        positions = (real.long().cumsum(dim=1) - 1).clamp(min=0)
        logits.append(_forward(model, chunk.clamp(min=0), None if bool(real.all()) else real, positions, cache))
        if cache.get_seq_length() != chunk.size(1):
            raise Unsupported(f"{type(model).__name__} keeps no cache here (gradient checkpointing?)")
        caches.append(cache)
    cache = caches[0]
    for i, layer in enumerate(cache.layers):
        if layer.is_sliding:
            layer.reorder_cache(where)
        else:
            cache.layers[i] = _Columns.joined([other.layers[i] for other in caches], width, where)
    return torch.cat(logits)[where], cache, (distinct != _NOTHING)[where][:, ids.size(1) - width :]


def _chunks(lengths: list[int]) -> list[tuple[int, int]]:
    """Pieces ``(first, end)`` of ascending lengths that are encoded together.

    >>> _chunks([100, 110, 125, 126, 300])
    [(0, 3), (3, 4), (4, 5)]
    """
    cuts = [0]
    for i, length in enumerate(lengths):
        first = cuts[-1]
        if length > SIMILAR * lengths[first] or (length * (i + 1 - first) > PREFILL_TOKENS and i > first):
            cuts.append(i)
    return list(zip(cuts, [*cuts[1:], len(lengths)], strict=True))


def _keep(cache: DynamicCache, rows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Leaves these rows in the cache, and gives their mask without the columns that are padding for all of them."""
    first = 0 if any(cache.is_sliding) else int(mask.any(dim=0).int().argmax())
    for layer in cache.layers:
        if first:
            layer.keys, layer.values = layer.keys[:, :, first:], layer.values[:, :, first:]
        layer.reorder_cache(rows)
    return mask[:, first:]


def _empty_cache(model: PreTrainedModel) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config(decoder=True))


class _Columns(DynamicLayer):
    """A cache layer with spare columns: a token is written in place, where ``DynamicLayer`` copies the whole cache."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._hold(keys, values)

    @classmethod
    def joined(cls, layers: list[DynamicLayer], width: int, rows: torch.Tensor) -> _Columns:
        """The rows of several layers one below the other, padded on the left to ``width``, then these of them."""

        def join(parts: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([padded_with_zeros(p, (0, 0, width - p.size(2), 0)) for p in parts])[rows]

        return cls(join([layer.keys for layer in layers]), join([layer.values for layer in layers]))

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        start, end = self.keys.size(2), self.keys.size(2) + key_states.size(2)
        if end > self._room[0].size(2):
            self._hold(self.keys, self.values)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._hold(self.keys[beam_idx], self.values[beam_idx])

    def _hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._room = [padded_with_zeros(t, (0, 0, 0, SPARE)) for t in (keys, values)]
        self.keys, self.values = (room[:, :, : keys.size(2)] for room in self._room)


# --- what goes through the model's own loop ---------------------------------------------------------------------------


def _require_support(model: PreTrainedModel, config: GenerationConfig, inputs: dict) -> None:
    """Raises Unsupported, for reasons that are the same on all ranks: the model's own loop may wait for the others."""
    mode, cache = config.get_generation_mode(), inputs.get("past_key_values")
    known = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
    others = sorted(name for name, value in inputs.items() if value is not None and name not in known)
    prepares = getattr(model.prepare_inputs_for_generation, "__func__", None)
    if mode not in (GenerationMode.SAMPLE, GenerationMode.GREEDY_SEARCH):
        raise Unsupported(f"generation by {mode.value}")
    if config.return_dict_in_generate:
        raise Unsupported("return_dict_in_generate asks for more than tokens")
    if others:
        raise Unsupported(f"the model is given more than tokens: {', '.join(others)}")
    if model.config.is_encoder_decoder or prepares is not GenerationMixin.prepare_inputs_for_generation:
        raise Unsupported(f"{type(model).__name__} prepares its inputs for generation in its own way")
    if "position_ids" not in inputs:
        raise Unsupported(f"{type(model).__name__} takes no positions")
    if type(cache) is not DynamicCache or cache.offloading or cache.get_seq_length():
        raise Unsupported("a cache that is static, quantized, offloaded, filled already, or none (use_cache)")
    kinds = {type(layer) for layer in cache.layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        raise Unsupported(f"cache layers of {', '.join(sorted(kind.__name__ for kind in kinds))}")
    if is_fsdp_managed_module(model) or any(p.numel() == 0 or isinstance(p, DTensor) for p in model.parameters()):
        raise Unsupported("the parameters are sharded, and each pass gathers them on all ranks")
