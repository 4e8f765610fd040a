"""Attention over a packed trie: every query looks at its own node up to itself, and at all ancestors.

The attention of a node's descendants to the node is one dense part, that of its own tokens one causal part. A softmax
over several parts is the parts' own softmaxes, weighted by their sums: with ``lse_k`` the log of part ``k``'s sum,

    lse = log sum_k exp(lse_k),    out = sum_k exp(lse_k - lse) * out_k

(Hydragen, arXiv 2402.05099, section 3.2). Backward, a part whose kernel gets the merged ``out`` and ``lse`` computes
its probabilities ``exp(s - lse)`` and so its exact share of the gradients, as in ring attention (arXiv 2310.01889).
No key is copied and no mask is built.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .tree import Layout

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
        groups = query.shape[1] // key.shape[1]
        # The heads that share a key head become a batch over which keys are expanded: kernels take a stride of 0
        query = query.view(key.shape[1], groups, *query.shape[2:]).transpose(0, 1)
        out = _Parts.apply(query, key, value, layout, scale)
        return out.transpose(0, 1).reshape(1, -1, *out.shape[2:])
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


class _Parts(torch.autograd.Function):
    """Attention part by part, merged. ``query (G, K, L, D)``; ``key``, ``value (1, K, L, D)``."""

    @staticmethod
    def forward(ctx, query, key, value, layout, scale):
        forward, _ = kernels_for(query)
        exact = torch.promote_types(query.dtype, torch.float32)
        out, lse = query.new_empty(query.shape, dtype=exact), query.new_empty(query.shape[:-1], dtype=exact)
        for queries, keys, causal in _parts(layout):
            part, part_lse, *state = forward(_slice(query, queries), *_expanded(query, key, value, keys), causal, scale)
            here, here_lse = _slice(out, queries), _slice(lse, queries)
            if causal:  # the first that these queries see
                here.copy_(part)
                here_lse.copy_(part_lse)
            else:
                weight = torch.sigmoid(part_lse - here_lse)  # exp(lse_k) / (exp(lse_k) + exp(lse))
                here.lerp_(part.to(exact), weight.unsqueeze(-1))
                here_lse.copy_(torch.logaddexp(here_lse, part_lse))
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.layout, ctx.scale, ctx.state = layout, scale, state
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, out, lse = ctx.saved_tensors
        _, backward = kernels_for(query)
        grads = [x.new_zeros(x.shape, dtype=lse.dtype) for x in (query, key, value)]
        for queries, keys, causal in _parts(ctx.layout):
            found = backward(
                _slice(grad, queries), _slice(query, queries), *_expanded(query, key, value, keys),
                _slice(out, queries), _slice(lse, queries), causal, ctx.scale, *ctx.state,
            )  # fmt: skip
            for total, part, where in zip(grads, found, (queries, keys, keys), strict=True):
                _slice(total, where).add_(part if total is grads[0] else part.sum(dim=0, keepdim=True))
        return *(total.to(query.dtype) for total in grads), None, None


def _parts(layout: Layout):
    """(queries, keys, whether it is causal) of each part, as bounds. All causal parts come first."""
    for node in layout.nodes:
        yield (node.start, node.end), (node.start, node.end), True
    for node in layout.nodes:
        if node.until > node.end:
            yield (node.end, node.until), (node.start, node.end), False


def _slice(x: Tensor, bounds: tuple[int, int]) -> Tensor:
    return x[:, :, bounds[0] : bounds[1]]


def _expanded(query: Tensor, key: Tensor, value: Tensor, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return tuple(_slice(x, bounds).expand(query.shape[0], -1, -1, -1) for x in (key, value))


# --- the kernels that give the log-sum-exp as well --------------------------------------------------------------------


def kernels_for(query: Tensor):
    """(forward, backward) for this device and type, or None.

    ``forward(q, k, v, causal, scale) -> (out, lse, *state)`` and ``backward(grad, q, k, v, out, lse, causal, scale,
    *state) -> (dq, dk, dv)``, where ``lse`` is a constant. The state is that of a dropout that there is not, so the
    last part's will do for all.
    """
    kind, device = query.dtype, query.device.type
    if device == "cpu" and kind in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        return _cpu_forward, _cpu_backward
    width = query.shape[-1]
    if device == "cuda" and kind in (torch.bfloat16, torch.float16) and width % 8 == 0 and width <= 256:
        return _cuda_forward, _cuda_backward
    return None


_aten = torch.ops.aten


def _cpu_forward(q, k, v, causal, scale):
    return _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def _cpu_backward(grad, q, k, v, out, lse, causal, scale):
    return _aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, causal, scale=scale)


def _cuda_forward(q, k, v, causal, scale):
    out, lse, *_, seed, offset, _ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)
    return out, lse, seed, offset


def _cuda_backward(grad, q, k, v, out, lse, causal, scale, seed, offset):
    return _aten._scaled_dot_product_flash_attention_backward(
        grad, q, k, v, out, lse.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, causal, seed, offset, scale=scale
    )


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
