"""Attention over a packed trie: every query looks at its own node up to itself, and at all ancestors.

The attention of a node's descendants to the node is one dense part, that of its own tokens one causal part. A softmax
over several parts is the parts' own softmaxes, weighted by their sums: with ``lse_k`` the log of part ``k``'s sum,

    lse = log sum_k exp(lse_k),    out = sum_k exp(lse_k - lse) * out_k

(Hydragen, arXiv 2402.05099, section 3.2). Backward, a part whose kernel gets the merged ``out`` and ``lse`` computes
its probabilities ``exp(s - lse)`` and so its exact share of the gradients, as in ring attention (arXiv 2310.01889).
No mask is built.

On a GPU the parts of a whole wave (:attr:`~prefix_rl.speed.tree.Layout.waves`) are one call of a kernel: what a layer
starts depends on how deep the trie is, and not on how many nodes it has. With a call for each part, a GPU waits for the
CPU to start them (docs/speed.md has the times).
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tree import Layout, Wave

NAME = "prefix_rl_shared_prefix"
"""Name of this attention in transformers' registry. It builds no mask."""
KEYWORD = "shared_prefix_layout"
"""The keyword argument with which a :class:`~prefix_rl.speed.tree.Layout` travels through a model to its attention.

As an argument, it is there again when gradient checkpointing recomputes a layer."""


def attend(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, softcap: float | None = None):
    """The attention of ``L`` packed tokens.

    Args:
        query: ``(1, H, L, D)``.
        key, value: ``(1, K, L, D)``; each of the ``K`` heads serves ``H / K`` query heads in a row.
        layout: how the tokens hang together.
        scale: what the scores are multiplied with.
        softcap: scores ``s`` become ``softcap * tanh(s / softcap)`` (Gemma 2).

    Returns:
        ``(1, H, L, D)``, as if each row stood alone.
    """
    if softcap is None and value.shape[-1] == query.shape[-1] and kernels_for(query) is not None:
        packed = (x[0].transpose(0, 1) for x in (query, key, value))
        return _Waves.apply(*packed, layout, scale).transpose(0, 1).unsqueeze(0)
    return attend_by_path(query, key, value, layout, scale, softcap)


def attend_by_path(query, key, value, layout: Layout, scale: float, softcap: float | None = None) -> Tensor:
    """:func:`attend` in plain torch, for every type and device; the keys of each node's path are copied."""
    groups, exact = query.shape[1] // key.shape[1], torch.promote_types(query.dtype, torch.float32)
    outs = []
    for node in layout.nodes:
        path = [*node.path, (node.start, node.end)]
        keys, values = (torch.cat([x[:, :, a:b] for a, b in path], dim=2) for x in (key, value))
        keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
        scores = (query[:, :, node.start : node.end] @ keys.transpose(-1, -2)) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        own = node.end - node.start
        future = torch.ones(own, keys.shape[2], dtype=torch.bool, device=query.device).triu(keys.shape[2] - own + 1)
        scores = scores.masked_fill(future, -torch.inf)
        outs.append(scores.softmax(dim=-1, dtype=exact).to(values.dtype) @ values)
    return torch.cat(outs, dim=2)


class _Waves(torch.autograd.Function):
    """Attention wave by wave, merged. ``query (L, H, D)``; ``key``, ``value (L, K, D)``."""

    @staticmethod
    def forward(ctx, query, key, value, layout, scale):
        forward, _ = kernels_for(query)
        exact = torch.promote_types(query.dtype, torch.float32)
        first, *others = layout.waves  # the first holds every query, in order
        out, lse, *state = forward(query, key, value, first, scale)
        out = out.to(exact)
        for wave in others:
            at = wave.queries
            part, part_lse, *_ = forward(query[at], key[wave.keys], value[wave.keys], wave, scale)
            here, here_lse = out[at], lse[:, at]
            weight = torch.sigmoid(part_lse - here_lse)  # exp(lse_k) / (exp(lse_k) + exp(lse))
            here.lerp_(part.to(exact), weight.t().unsqueeze(-1))
            here_lse.copy_(torch.logaddexp(here_lse, part_lse))
            if not isinstance(at, slice):  # then these are copies
                out[at], lse[:, at] = here, here_lse
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.layout, ctx.scale, ctx.state = layout, scale, state
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, out, lse = ctx.saved_tensors
        _, backward = kernels_for(query)
        first, *others = ctx.layout.waves
        found = backward(grad, query, key, value, out, lse, first, ctx.scale, *ctx.state)
        grads = [x.to(lse.dtype) for x in found]
        for wave in others:
            at, keys = wave.queries, wave.keys
            found = backward(
                grad[at], query[at], key[keys], value[keys], out[at], lse[:, at], wave, ctx.scale, *ctx.state
            )
            for total, part, where in zip(grads, found, (at, keys, keys), strict=True):
                if isinstance(where, slice):
                    total[where].add_(part)
                else:
                    total.index_add_(0, where, part.to(total.dtype))
        return *(total.to(query.dtype) for total in grads), None, None


# --- the kernels that give the log-sum-exp as well --------------------------------------------------------------------


def kernels_for(query: Tensor):
    """(forward, backward) for this device and type, or None.

    ``forward(q, k, v, wave, scale) -> (out, lse, *state)`` and ``backward(grad, q, k, v, out, lse, wave, scale, *state)
    -> (dq, dk, dv)``, with ``q (Q, H, D)`` and ``k``, ``v (S, K, D)`` packed as the wave says, and ``lse (H, Q)`` a
    constant. The state is that of a dropout that there is not, so that of the first wave will do for all.
    """
    kind, device = query.dtype, query.device.type
    if device == "cpu" and kind in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return _cpu_forward, _cpu_backward
    width = query.shape[-1]
    fits = kind in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256
    if device == "cuda" and fits and _log_sums_are_packed():
        return _cuda_forward, _cuda_backward
    return None


_aten = torch.ops.aten


def _cpu_forward(q, k, v, wave, scale):
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1::-1], dtype=torch.promote_types(q.dtype, torch.float32))
    for queries, keys in _slices(wave):
        part, part_lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            *_by_key_head(k.shape[1], q[queries], k[keys], v[keys]), 0.0, wave.causal, scale=scale
        )
        out[queries] = _by_token(part)
        lse[:, queries] = part_lse.transpose(0, 1).reshape(len(lse), -1)
    return out, lse


def _cpu_backward(grad, q, k, v, out, lse, wave, scale):
    grads = tuple(torch.empty_like(x) for x in (q, k, v))
    for queries, keys in _slices(wave):
        *given, sums = grad[queries], q[queries], k[keys], v[keys], out[queries], lse[:, queries]
        given = _by_key_head(k.shape[1], *given)
        sums = sums.reshape(k.shape[1], -1, sums.shape[1]).transpose(0, 1)
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *given, sums, 0.0, wave.causal, scale=scale
        )
        grads[0][queries] = _by_token(dq)
        for total, part in zip(grads[1:], (dk, dv), strict=True):
            total[keys] = part.sum(dim=0).transpose(0, 1)
    return grads


def _slices(wave: Wave):
    """The slices of each pair among the packed queries and keys."""
    ends = [x.tolist() for x in (wave.query_ends, wave.key_ends)]
    return zip(*([slice(a, b) for a, b in pairwise(side)] for side in ends), strict=True)


def _by_key_head(key_heads: int, *tensors: Tensor) -> list[Tensor]:
    """``(T, H, D)`` as ``(H / K, K, T, D)``: the heads that share a key head are a batch.

    Keys are expanded over it and not copied: the kernel takes a stride of 0.
    """
    groups = max(x.shape[1] for x in tensors) // key_heads
    apart = (x.unflatten(1, (key_heads, -1)).permute(2, 1, 0, 3) for x in tensors)
    return [x.expand(groups, -1, -1, -1) for x in apart]


def _by_token(x: Tensor) -> Tensor:
    """``(H / K, K, T, D)`` as ``(T, H, D)``."""
    return x.permute(2, 1, 0, 3).flatten(1, 2)


def _cuda_forward(q, k, v, wave, scale):
    out, lse, *state, _ = _aten._flash_attention_forward(
        q, k, v, wave.query_ends, wave.key_ends, *wave.longest, 0.0, wave.causal, False, scale=scale
    )
    return out, lse, *state


def _cuda_backward(grad, q, k, v, out, lse, wave, scale, *state):
    ends = wave.query_ends, wave.key_ends, *wave.longest
    return _aten._flash_attention_backward(
        grad, q, k, v, out, lse.contiguous(), *ends, 0.0, wave.causal, *state, scale=scale
    )


@cache
def _log_sums_are_packed() -> bool:
    """Whether this torch gives ``lse`` as ``(H, Q)``. Older ones pad it to the longest slice."""
    q = torch.empty(3, 2, 8, dtype=torch.bfloat16, device="meta")
    ends = torch.empty(3, dtype=torch.int32, device="meta")
    lse = _aten._flash_attention_forward(q, q, q, ends, ends, 2, 2, 0.0, True, False)[1]
    return lse.shape == (2, 3)


# --- in transformers --------------------------------------------------------------------------------------------------


def register() -> None:
    """Makes the attention known to transformers under :data:`NAME`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention_forward)


def _attention_forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, **kwargs):
    layout = kwargs[KEYWORD]
    window = kwargs.get("sliding_window")
    if (window is not None and layout.longest > window) or dropout or kwargs.get("s_aux") is not None:
        raise NotImplementedError(f"{type(module).__name__}: this attention has no window, dropout or sinks")
    if torch.is_autocast_enabled(query.device.type):
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = attend(query, key, value, layout, scale, softcap)
    return out.transpose(1, 2).contiguous(), None
