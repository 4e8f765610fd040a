r"""Memory of a training step on one device, in bytes, from the shape of the model and the sizes of the batch.

The letters: ``N`` parameters, ``n`` of them trained, ``L`` layers, ``D`` hidden size, ``F`` width of the feed-forward
block, ``A`` attention heads and ``K`` key heads of width ``d``, ``V`` words of the vocabulary, ``T`` tokens encoded at
once, ``b`` bytes of a number in a matrix product (4 in float32, 2 in bfloat16), ``R`` devices.

The model is a decoder of the Llama kind: RMS norm, rotary positions, attention, gated feed-forward block. What torch
keeps for the backward pass was read off its derivative formulas and is compared with measured peaks in
``tests/test_memory.py``; docs/plan.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD_TOKENS, HEAD_WORDS = 4096, 32768
"""Tile of logits that TRL's head holds at a time, in tokens and words."""
BUCKET = 500_000_000
"""Numbers in DeepSpeed's communication bucket, its default."""
LIVE = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered at most, its default (``stage3_max_live_parameters``)."""


@dataclass(frozen=True)
class Shape:
    """A decoder, in numbers."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    parameters: int
    """N, of the model with its adapters."""
    trained: int
    """n, parameters with a gradient."""
    adapted: frozenset[str] = frozenset()
    """Linear layers of a block that have adapters: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj."""
    rank: int = 0
    """Rank of the adapters; 0: there are none and all parameters are trained."""
    dropout: bool = False
    """Whether the adapters drop inputs."""

    @property
    def whole(self) -> bool:
        """True if all parameters are trained."""
        return not self.rank


@dataclass(frozen=True)
class Setting:
    """A run on one of its devices, in numbers."""

    rows: int
    """Rollouts of a micro-batch."""
    group: int
    """Rollouts of one prompt."""
    prompt: int
    """Tokens."""
    completion: int
    """Tokens, prefix included."""
    accumulation: int = 1
    """Micro-batches of an optimizer step."""
    generated: int = 0
    """Rollouts that are generated together; 0: another engine generates."""
    weights: float = 4
    """Bytes of one parameter."""
    compute: int = 4
    """b, bytes of a number in a matrix product."""
    autocast: bool = False
    """Whether float32 weights are cast for each product."""
    packed: bool = True
    """Whether what rows share is encoded once, and padding not at all (speed.shared_prefix)."""
    checkpointing: bool = False
    """Whether layers are computed again in the backward pass."""
    states: float = 8
    """Bytes of optimizer states for one trained parameter; a float32 copy of it included."""
    reference: bool = False
    """Whether a second, frozen model is held (training.beta)."""
    devices: int = 1
    """R"""
    stage: int = 0
    """ZeRO's stage; 0: every device holds everything."""
    offload_states: bool = False
    """Whether optimizer states lie in the host's memory."""
    offload_parameters: bool = False
    """Whether parameters do, too (stage 3)."""

    def share(self, stage: int) -> int:
        """Number of devices among which something is divided from this ZeRO stage on.

        >>> [Setting(1, 1, 1, 1, devices=8, stage=s).share(2) for s in (1, 2, 3)]
        [1, 8, 8]
        """
        return self.devices if self.stage >= stage else 1


def tokens(run: Setting) -> int:
    """Tokens ``T`` of a micro-batch of ``B`` rows: ``B (P + C)``; packed, each prompt counts once,
    ``B C + ceil(B / G) P``.

    Prefixes that rows share are not taken off: it is the most that there may be.

    >>> tokens(Setting(rows=8, group=8, prompt=60, completion=128))  # 8 * 128 + 60
    1084
    >>> tokens(Setting(rows=8, group=8, prompt=60, completion=128, packed=False))  # 8 * 188
    1504
    """
    prompts = -(-run.rows // run.group) if run.packed else run.rows
    return run.rows * run.completion + prompts * run.prompt


def parameters(shape: Shape, run: Setting) -> float:
    """``w N``, divided by ``R`` in stage 3, where two layers and the embeddings are gathered at a time; and the frozen
    copy of them that a KL needs.

    >>> shape = Shape(2, 8, 32, 2, 1, 4, 100, parameters=2000, trained=2000)
    >>> parameters(shape, Setting(1, 1, 1, 1, weights=4)), parameters(shape, Setting(1, 1, 1, 1, reference=True))
    (8000, 16000)
    """
    whole = run.weights * shape.parameters
    copies = 2 if run.reference else 1
    if run.stage < 3:
        return copies * whole
    own = 0 if run.offload_parameters else copies * whole / run.devices
    return own + min(run.weights * LIVE, whole)


def gradients(shape: Shape, run: Setting) -> float:
    """``g n`` with ``g`` bytes of a parameter, divided by ``R`` from stage 2 on.

    DDP copies gradients into buckets (as much again), ZeRO into one bucket of :data:`BUCKET` numbers.

    >>> shape = Shape(2, 8, 32, 2, 1, 4, 100, parameters=2000, trained=2000)
    >>> gradients(shape, Setting(1, 1, 1, 1)), gradients(shape, Setting(1, 1, 1, 1, devices=2))  # alone, with DDP
    (8000, 16000)
    >>> gradients(shape, Setting(1, 1, 1, 1, weights=2, compute=2, devices=2, stage=2))  # 2000 * 2 / 2, and the bucket
    6000.0
    """
    size = run.weights if shape.whole else 4
    own = size * shape.trained / run.share(2) if run.stage >= 2 else size * shape.trained
    if run.stage:
        return own + size * min(BUCKET, shape.trained)
    return own * (2 if run.devices > 1 else 1)


def optimizer(shape: Shape, run: Setting) -> float:
    """``s n``, divided by ``R`` from stage 1 on: AdamW's two moments in float32 are 8 bytes; with DeepSpeed's float32
    copy of the weights 12. Nothing on the device if it is offloaded.

    >>> shape = Shape(2, 8, 32, 2, 1, 4, 100, parameters=2000, trained=2000)
    >>> optimizer(shape, Setting(1, 1, 1, 1, states=12, devices=4, stage=1))  # 12 * 2000 / 4
    6000.0
    """
    return 0 if run.offload_states else run.states * shape.trained / run.share(1)


def layer(shape: Shape, run: Setting) -> float:
    """Bytes that one token leaves in one layer for the backward pass.

    - norms, two: the input in float32, the normalized one and the output, ``2 (4 + 2 b) D``. Under autocast the last
      is kept as it is cast for each of q, k, v, gate and up: ``2 (4 + 4) D + 5 b D``. Frozen weights need the input
      alone, and the output where an adapter reads it: ``8 D + b D [q, k or v] + b D [gate or up]``.
    - attention: query, keys, values, output, ``b (2 A + 2 K) d``, and the logarithm of each softmax's sum, ``4 A``;
      plain attention holds keys and values for each of the ``A`` heads. The packed one keeps its output a second time
      where o_proj's gradient needs it: ``b A d``.
    - feed-forward block: gate, its activation, up, and (where down_proj needs it) their product: ``b (3 + 1) F``.
    - adapters: ``b r`` each; with dropout the input that is left, and what was dropped: ``(b + 1)`` times its width.

    >>> shape = Shape(4, 128, 512, 4, 2, 32, 259, parameters=0, trained=0)
    >>> layer(shape, Setting(1, 1, 1, 1))  # 4 * (6 * 128 + (8 + 4) * 32 + 4 + 128 + 4 * 512)
    13328
    """
    b, d, f = run.compute, shape.hidden, shape.feed_forward
    query, key = shape.heads * shape.head_width, shape.key_heads * shape.head_width
    reads = {name: shape.whole or name in shape.adapted for name in _WIDTHS}
    attends, widens = any(reads[n] for n in ("q_proj", "k_proj", "v_proj")), reads["gate_proj"] or reads["up_proj"]
    if not shape.whole:
        norms = 8 * d + b * d * (attends + widens)
    elif run.autocast:
        norms = 2 * (4 + 4) * d + 5 * b * d
    else:
        norms = 2 * (4 + 2 * b) * d
    attention = b * (2 * query + 2 * (key if run.packed else query)) + 4 * shape.heads
    if run.packed and reads["o_proj"]:
        attention += b * query
    feeds = b * f * (3 + reads["down_proj"])
    sizes = {"D": d, "Q": query, "F": f}
    adapters = sum(
        b * shape.rank + ((b + 1) * sizes[_WIDTHS[name]] if shape.dropout else 0)
        for name in shape.adapted if name in _WIDTHS
    )  # fmt: skip
    return norms + attention + feeds + adapters


_WIDTHS = {"q_proj": "D", "k_proj": "D", "v_proj": "D", "o_proj": "Q", "gate_proj": "D", "up_proj": "D",
           "down_proj": "F"}  # fmt: skip
"""Linear layers of a block, and what their inputs are as wide as."""


def activations(shape: Shape, run: Setting) -> float:
    """What a micro-batch leaves for the backward pass: ``T L`` times :func:`layer`, and the last norm.

    With gradient checkpointing the input of each layer is left, ``T L b D``, and of one layer at a time all.

    >>> shape = Shape(4, 128, 512, 4, 2, 32, 259, parameters=0, trained=0)
    >>> run = Setting(rows=8, group=8, prompt=60, completion=128)
    >>> activations(shape, run)  # 1084 * (4 * 13328 + 3 * 4 * 128) + 4 * 8 * 128 * 128
    59979520
    """
    count, residual = tokens(run), 4 if run.autocast else run.compute
    kept = shape.layers * (residual * shape.hidden if run.checkpointing else layer(shape, run))
    last = (4 + 2 * residual) * shape.hidden if shape.whole else 4 * shape.hidden
    return count * (kept + last) + 4 * run.rows * run.completion * shape.hidden


def casts(shape: Shape, run: Setting) -> float:
    """Under autocast, copies of the weights in the smaller type, ``b N``, held until the pass is over."""
    return run.compute * shape.parameters if run.autocast else 0


def head(shape: Shape, run: Setting) -> float:
    """Work space of TRL's head, which scores tokens in tiles: ``b min(B C, 4096) 32768`` for the logits, ``4 B C D``
    for the gradient of the hidden states, and ``4 V D`` for that of the head's own weights if they are trained.

    >>> shape = Shape(4, 128, 512, 4, 2, 32, 259, parameters=0, trained=0)
    >>> head(shape, Setting(rows=8, group=8, prompt=60, completion=128))  # 1024 * (4 * 32768 + 4 * 128) + 4 * 259 * 128
    134874624
    """
    scored = run.rows * run.completion
    own = 4 * shape.vocabulary * shape.hidden if shape.whole else 0
    return run.compute * min(scored, HEAD_TOKENS) * HEAD_WORDS + 4 * scored * shape.hidden + own


def generation(shape: Shape, run: Setting) -> float:
    """Keys and values of all rollouts in the making, ``2 w S (P + C) L K d`` for ``S`` of them, three copies of the
    next token's logits in float32, ``12 S V``, and in stage 3 the gathered parameters.

    >>> shape = Shape(4, 128, 512, 4, 2, 32, 259, parameters=0, trained=0)
    >>> generation(shape, Setting(8, 8, 60, 128, generated=8))  # 2 * 4 * 8 * 188 * 4 * 2 * 32 + 12 * 8 * 259
    3105056
    """
    size = max(run.compute, 4 if run.autocast else 2)
    cache = 2 * size * run.generated * (run.prompt + run.completion) * shape.layers * shape.key_heads * shape.head_width
    gathered = run.weights * shape.parameters if run.stage >= 3 and run.generated else 0
    return cache + 12 * run.generated * shape.vocabulary + gathered


def work(shape: Shape, run: Setting) -> float:
    """Gradients that stand at once while a feed-forward block is differentiated, ``3 b F T``: those of the product, of
    the activated gate, and of up.

    >>> shape = Shape(4, 128, 512, 4, 2, 32, 259, parameters=0, trained=0)
    >>> work(shape, Setting(rows=8, group=8, prompt=60, completion=128))  # 3 * 4 * 512 * 1084
    6660096
    """
    return 3 * run.compute * shape.feed_forward * tokens(run)


@dataclass(frozen=True)
class Estimate:
    """Bytes on one device, part by part."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    layer: float
    """One layer's activations, computed again while it is differentiated; 0 without gradient checkpointing."""
    work: float
    casts: float
    head: float
    generation: float
    accumulates: bool
    """Whether the gradients of earlier micro-batches stand beside the activations of the next."""

    @property
    def phases(self) -> dict[str, float]:
        """The most that is held while rollouts are generated, at the head, and in the layers' backward pass.

        Of one micro-batch the gradients grow as activations fall, so that both never stand in full.
        """
        still = self.parameters + self.optimizer
        before = self.gradients if self.accumulates else 0
        return {
            "generating": still + self.generation,
            "at the head": still + before + self.activations + self.casts + self.head,
            "in the layers": still + self.casts
            + max(before + self.activations, self.gradients) + self.layer + self.work,
        }  # fmt: skip

    @property
    def peak(self) -> float:
        """The largest of :attr:`phases`."""
        return max(self.phases.values())


def estimate(shape: Shape, run: Setting) -> Estimate:
    """All parts for a model and a run."""
    return Estimate(
        parameters(shape, run), gradients(shape, run), optimizer(shape, run), activations(shape, run),
        tokens(run) * layer(shape, run) if run.checkpointing else 0.0,
        work(shape, run), casts(shape, run), head(shape, run), generation(shape, run), run.accumulation > 1,
    )  # fmt: skip
