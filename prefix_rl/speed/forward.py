"""Log-probabilities of completions, with each shared token encoded once.

``encoder(score, model, inner, ...)`` stands in for ``score``, the plain computation over padded rows: it asks ``score``
for the packed rows of a micro-batch, and gives back what the plain one would, row by row. ``score`` may run the model
as it likes, through whatever wraps it (DeepSpeed, peft, autocast); the layout goes along as a keyword argument.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import StackError
from . import attention
from .order import balanced, overlaps
from .settings import Speed
from .tree import Layout, lay_out

TOLERANCE = 1e-4
"""Bound on float32 log-probabilities ``a`` against the plain path's ``b``: ``|a - b| <= TOLERANCE * (1 + |b|)``."""
LOW_PRECISION_TOLERANCE = 0.03
"""Bound on bfloat16 and float16 ones: on the mean of ``|a - b| / (1 + |b|)``. Single ones differ by more, as they
do between two batch orders of the plain path."""


@dataclass(frozen=True, eq=False)
class Packed:
    """The rows of a micro-batch as one sequence, and the way back."""

    layout: Layout
    scored: Tensor
    """``(N,)``: the places of the tokens whose probability is asked for, each once."""
    index: Tensor
    """``(B, T)``: for each completion token its number among them, ``N`` for padding."""

    @property
    def labels(self) -> Tensor:
        """``(1, N)``"""
        return self.layout.ids[self.scored].unsqueeze(0)

    def to_rows(self, values: Tensor) -> Tensor:
        """``(1, N)`` to ``(B, T)``. A token that several rows share goes to each, so its gradient is their sum."""
        return torch.cat([values[0], values.new_zeros(1)])[self.index]


def pack(input_ids: Tensor, attention_mask: Tensor, completion_width: int) -> Packed:
    """The packed form of padded rows.

    Args:
        input_ids, attention_mask: ``(B, S)``: prompts with padding on the left, completions with padding on the right.
        completion_width: ``T``, the columns that belong to completions.
    """
    mask = attention_mask.bool().cpu()
    layout = lay_out([ids[kept].tolist() for ids, kept in zip(input_ids.cpu(), mask, strict=True)])
    completions = mask[:, -completion_width:]
    counts = completions.sum(dim=1).tolist()
    asked = torch.cat([place[len(place) - n :] for place, n in zip(layout.places, counts, strict=True)])
    scored, number = torch.unique(asked, return_inverse=True)
    index = torch.full(completions.shape, len(scored))
    index[completions] = number
    if not len(scored):  # one token that goes to no row, so that the result hangs on the model
        scored, index = torch.tensor([len(layout.ids) - 1]), index + 1
    device = input_ids.device
    return Packed(layout.to(device), scored.to(device), index.to(device))


def unsupported(inner: nn.Module, model: nn.Module | None = None) -> str | None:
    """Reason why the rows of this transformers model cannot be packed, or None; ``model`` is what it is wrapped in.

    What is refused looks at tokens in another way than through transformers' attention interface (recurrent and
    convolutional layers, sinks), has positions that rotation does not give, puts tokens of its own before each row
    (prompt tuning), or draws random numbers while it encodes.
    """
    config = inner.config.get_text_config()
    backbone = inner.base_model
    taken = inspect.signature(type(backbone).forward).parameters
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    modules = list(backbone.modules())
    if getattr(config, "is_encoder_decoder", False) or backbone is inner or config is not inner.config:
        return "it is not a plain decoder with a language-model head"
    if not getattr(inner, "_supports_attention_backend", False) or "position_ids" not in taken:
        return "its attention does not go through transformers' attention interface"
    if not relative_positions(inner):
        return "its positions are not rotary, or depend on the width of the batch (dynamic, longrope)"
    if layers - {"full_attention", "sliding_attention"} or any(isinstance(m, nn.Conv1d) for m in modules):
        return f"it has layers other than attention ({', '.join(sorted(layers))})"
    if any(hasattr(m, "sinks") for m in modules) or any(getattr(m, "is_causal", True) is False for m in modules):
        return "its attention has sinks, or looks ahead"
    if has_virtual_tokens(model):
        return "its adapter puts virtual tokens before each row"
    dropped = any(isinstance(m, nn.Dropout) and m.p for m in modules) or getattr(config, "attention_dropout", 0)
    if has_noise(inner):
        return "its embeddings get noise (training.neftune_noise_alpha), for each row another one"
    if dropped and inner.training:
        return "it has dropout: one mask for a shared token is not what the rows would draw alone"
    return None


def transformers_model(model: nn.Module, unwrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The model inside what training (``unwrap``) and peft wrap it in."""
    inner = unwrap(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def relative_positions(inner: nn.Module) -> bool:
    """True if only distances between tokens count: rotary positions, with frequencies that no input changes."""
    rope = getattr(inner.config.get_text_config(), "rope_parameters", None) or {}
    kinds = {part.get("rope_type", "default") for part in (rope, *rope.values()) if isinstance(part, dict)}
    return bool(rope) and not kinds & {"dynamic", "longrope"}


def has_virtual_tokens(model: nn.Module | None) -> bool:
    """True if a prompt-learning adapter of peft (prompt tuning, prefix tuning) is among what wraps a model."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    configs = [config for module in modules for config in (getattr(module, "peft_config", None) or {}).values()]
    return any(config.is_prompt_learning for config in configs)


def has_noise(inner: nn.Module) -> bool:
    """True if random noise is added to the embeddings (NEFTune), as much of it as a row with its padding is long."""
    return bool(inner.training and getattr(inner.get_input_embeddings(), "neftune_noise_alpha", None))


def window_of(inner: nn.Module) -> int | None:
    """The longest row that sees all of itself, None if there is no limit."""
    config = inner.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    used = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    return min((size for size in sizes if size), default=None) if used else None


class Encoder:
    """The fast path with its settings; says once where it is not taken, and checks itself.

    Args:
        speed: the settings.
        say: what is said goes here.
        anywhere: whether something holds on any of the ranks; every rank asks at the same places.
    """

    def __init__(
        self, speed: Speed, say: Callable[[str], None] = warnings.warn, anywhere: Callable[[bool], bool] = bool
    ):
        self.speed, self.say, self.anywhere = speed, say, anywhere
        if speed.shared_prefix:
            attention.register()
        self._said: set[str] = set()
        self._reasons: dict[tuple[bool, nn.Module], str | None] = {}
        self._verified: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.tokens = {"encoded": 0, "rows": 0, "padded": 0}
        """Numbers of tokens in all packed calls so far: encoded, in the rows, and in the rows with their padding."""
        self._taken = dict(self.tokens)

    def __call__(
        self, score, model, inner, input_ids, attention_mask, completion_width, batch_size=None, **kwargs
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities ``(B, T)``, entropies ``(B, T)`` or None, and the auxiliary loss or None.

        Args:
            score: the plain computation, ``score(model, input_ids, attention_mask, completion_width, batch_size,
                **kwargs)``. It calls ``model(input_ids, attention_mask, labels, ...)``.
            model: the policy as training wraps it.
            inner: the transformers model inside.
            input_ids, attention_mask: ``(B, S)``.
            completion_width: ``T``.
            batch_size: rows encoded together; None: all. The number of passes is that of the plain path, which ranks
                that share parameters rely on.
            **kwargs: handed on; where they hold images or ask for the auxiliary loss, the plain path is taken.

        Raises:
            StackError: if the result is not that of the plain path.
        """
        if not (self.speed.shared_prefix or self.speed.trim):
            return score(model, input_ids, attention_mask, completion_width, batch_size, **kwargs)
        given = [name for name, value in kwargs.items() if name != "compute_entropy" and value not in (None, False)]
        if given:  # fields by image, not by row
            self._once(f"{', '.join(given)} is given")
            return score(model, input_ids, attention_mask, completion_width, batch_size, **kwargs)
        size, found = batch_size or len(input_ids), []
        for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            found.append(self._micro_batch(score, model, inner, ids, mask, completion_width, kwargs))
        logps, entropies, aux_losses = zip(*found, strict=True)
        return (
            torch.cat(logps),
            None if entropies[0] is None else torch.cat(entropies),
            None if aux_losses[0] is None else torch.stack(aux_losses).mean(),
        )

    def taken(self) -> dict[str, int]:
        """The :attr:`tokens` since they were last taken."""
        before, self._taken = self._taken, dict(self.tokens)
        return {name: count - before[name] for name, count in self.tokens.items()}

    def sizes(
        self, model, inner, of_all_ranks: Callable[[list], list], rows: Sequence[Sequence[int]], parts: int
    ) -> list[int] | None:
        """Numbers of these ordered rows in each of ``parts`` micro-batches; None: equally many.

        They are balanced where rows are packed; TRL gathers by row, so all ranks cut alike.
        """
        if not self.speed.balance:
            return None
        packs = self.refuses(model, inner, max(map(len, rows))) is None
        ranks = of_all_ranks([overlaps(rows) if packs else None])
        return None if None in ranks else balanced(ranks, parts)

    def refuses(self, model, inner, longest: int) -> str | None:
        """Reason why rows take the plain path, or None; ``longest``: number of tokens of the longest row."""
        window = window_of(inner)
        beyond = window is not None and longest > window
        why = self._always_refuses(model, inner)
        return why or (f"a row is longer than the sliding window of {window} tokens" if beyond else None)

    def _always_refuses(self, model, inner) -> str | None:
        """The reasons that hold for all rows, and on all ranks."""
        if not self.speed.shared_prefix:
            return "it is turned off"
        if (inner.training, inner) not in self._reasons:
            self._reasons[inner.training, inner] = unsupported(inner, model)
        return self._reasons[inner.training, inner]

    def _micro_batch(self, score, model, inner, *batch):
        *padded, kwargs = batch
        why = self.refuses(model, inner, int(padded[1].sum(dim=1).max()))
        if not self._always_refuses(model, inner):
            expected = self._expected(why is None, score, model, inner, *batch)
            if why is None:
                return self._packed(score, model, inner, *batch, expected)
        if self.speed.shared_prefix:
            self._once(why)
        trim = self.speed.trim and relative_positions(inner) and not has_virtual_tokens(model) and not has_noise(inner)
        return _plain(score, model, *padded, kwargs, trim)

    def _expected(self, packs: bool, score, model, inner, *batch) -> Tensor | None:
        """The plain path's log-probabilities, where they are to be compared.

        Ranks that share parameters make the same passes, so that all ask for them as soon as one of them packs.
        """
        if self.speed.verify == "never" or (self.speed.verify == "first" and inner in self._verified):
            return None
        if window_of(inner) is not None and not self.anywhere(packs):
            return None
        self._verified.add(inner)
        with torch.no_grad():
            return _plain(score, model, *batch, trim=False)[0]

    def _packed(self, score, model, inner, input_ids, attention_mask, completion_width, kwargs, expected):
        packed = pack(input_ids, attention_mask, completion_width)
        ids = packed.layout.ids.unsqueeze(0)
        self.tokens["encoded"] += ids.numel()
        self.tokens["rows"] += sum(map(len, packed.layout.places))
        self.tokens["padded"] += input_ids.numel()
        call = _PackedModel(model, inner, packed)
        with call:
            logps, entropies, aux_loss = score(call, ids, torch.ones_like(ids), len(packed.scored), None, **kwargs)
        logps = packed.to_rows(logps)
        entropies = None if entropies is None else packed.to_rows(entropies)
        if expected is not None:
            check_equal(logps.detach(), expected, low_precision=call.low_precision)
        return logps, entropies, aux_loss

    def _once(self, why: str) -> None:
        if why and why not in self._said:
            self._said.add(why)
            self.say(f"speed.shared_prefix: this model or setting takes the plain path, since {why}")


def check_equal(logps: Tensor, plain: Tensor, low_precision: bool) -> None:
    """Compares log-probabilities ``(B, T)`` with those of the plain path.

    Raises:
        StackError: if they differ by more than rounding.
    """
    if not plain.isfinite().all():
        return  # the trainer says so, and there is nothing to compare with
    differences = (logps - plain).abs() / (1 + plain.abs())
    mean, most = (True, LOW_PRECISION_TOLERANCE) if low_precision else (False, TOLERANCE)
    scored = (plain != 0).sum().clamp(min=1)  # padding is 0 in both
    measure = differences.sum() / scored if mean else differences.max()
    if measure <= most:  # false for NaN
        return
    row, token = divmod(int(differences.nan_to_num(torch.inf).argmax()), differences.shape[1])
    raise StackError(
        f"speed.shared_prefix: the shared-prefix forward does not give this model's log-probabilities. Relative to the "
        f"plain path they differ by {float(measure):.2g} ({'in the mean' if mean else 'at most'}; allowed "
        f"{most:g}), most at token {token} of row {row}: {float(logps[row, token]):.6g} instead of "
        f"{float(plain[row, token]):.6g}. Nothing was trained on them. Set speed.shared_prefix = false, and tell us "
        "the model and its attn_implementation"
    )


def _plain(score, model, input_ids, attention_mask, completion_width, kwargs, trim: bool):
    """The plain path; with ``trim`` without the columns that hold padding alone."""
    if not trim:
        return score(model, input_ids, attention_mask, completion_width, None, **kwargs)
    used = attention_mask.bool().any(dim=0)
    left, right = int(used.long().argmax()), int(used.flip(0).long().argmax())
    left = min(left, input_ids.shape[1] - completion_width - 1)  # the token before the first completion token
    right = min(right, completion_width - 1)
    stop = input_ids.shape[1] - right
    logps, entropies, aux_loss = score(
        model, input_ids[:, left:stop], attention_mask[:, left:stop], completion_width - right, None, **kwargs
    )
    logps, entropies = (None if x is None else nn.functional.pad(x, (0, right)) for x in (logps, entropies))
    return logps, entropies, aux_loss


class _PackedModel:
    """Stands in for a model while the plain computation calls it with packed rows, within a ``with`` block."""

    def __init__(self, model, inner: nn.Module, packed: Packed):
        self.model, self.inner, self.packed = model, inner, packed
        self.low_precision = next(inner.parameters()).dtype in (torch.bfloat16, torch.float16)

    def __enter__(self) -> None:
        self.usual = self.inner.config._attn_implementation
        self._hook = self.inner.base_model.register_forward_hook(self._keep_scored)
        self._switch(attention.NAME)

    def __exit__(self, *_) -> None:
        self._switch(self.usual)
        self._hook.remove()

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **kwargs):
        self.low_precision |= torch.is_autocast_enabled(input_ids.device.type)
        layout = {attention.KEYWORD: self.packed.layout}
        return self.model(
            input_ids=input_ids, attention_mask=None, position_ids=self.packed.layout.positions.unsqueeze(0),
            shift_labels=self.packed.labels, **layout, **kwargs,
        )  # fmt: skip

    def _switch(self, name: str) -> None:
        self.inner.config._attn_implementation = name

    def _keep_scored(self, module, args, output):
        """The hidden states from which the scored tokens are predicted; the head sees no others."""
        layout = self.packed.layout
        hidden = output.last_hidden_state[:, layout.previous[self.packed.scored]]
        if hidden.requires_grad:
            hidden.register_hook(self._switch_for_backward)
        output.last_hidden_state = hidden
        return output

    def _switch_for_backward(self, grad: Tensor) -> None:
        """Gradient checkpointing calls the layers again, and they must find the same attention."""
        self._switch(attention.NAME)
        torch.autograd.Variable._execution_engine.queue_callback(lambda: self._switch(self.usual))
