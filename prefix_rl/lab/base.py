"""The base policy: a two-layer Qwen2 trained on the world's corpus with slips, cached by its settings."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from ..parts import Lock, settle
from ..progress import say
from .parities import corpus
from .world import Chains, World, chains

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH, _LEARNING_RATE, _WARMUP, _HIDDEN = 32, 4e-3, 30, 64
_OF_THE_BASE = (
    "world",
    "length",
    "spaced",
    "copies",
    "slots",
    "modulus",
    "sentences",
    "slip_small",
    "slip_large",
    "base_steps",
    "base_seed",
)


def cache_folder() -> Path:
    """The folder of the lab's base policies: ``$PREFIX_RL_CACHE``, or ``~/.cache/prefix_rl``."""
    return Path(os.environ.get("PREFIX_RL_CACHE") or Path.home() / ".cache" / "prefix_rl")


def base_folder(world: World) -> Path:
    """The folder of the base policy of these settings, once it is trained."""
    sources = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("world.py", "parities.py", "base.py"))
    key = hashlib.sha256(json.dumps(_settings(world), sort_keys=True).encode() + sources).hexdigest()[:12]
    return cache_folder() / f"lab-base-{key}"


def _settings(world: World) -> dict[str, object]:
    return {name: getattr(world, name) for name in _OF_THE_BASE}


def base_policy(world: World, progress: Callable[[int], object] | None = None) -> Path:
    """The folder of the trained base policy and its tokenizer; trains it first if the cache does not hold it.

    The same settings give the same parameters on the same machine; other settings, or other code of the lab, another
    folder. ``progress(n)`` is called after every n steps.
    """
    folder = base_folder(world)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Lock(f"{folder}.lock").held(_waiting):  # other ranks wait here, and then find it
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
            train_base(world, progress).save_pretrained(partial)
            tokenizer(world).save_pretrained(partial)
            (partial / "world.json").write_text(json.dumps(_settings(world), indent=2) + "\n", encoding="utf-8")
            settle(partial, folder)
    return folder


def _waiting(who: str) -> None:
    say(f"waiting for another process{who}, which trains the lab's base policy")


def tokenizer(world: World) -> PreTrainedTokenizerBase:
    """One token for each word of the world; words are separated by blanks."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(world.vocabulary)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def model(world: World, seed: int) -> PreTrainedModel:
    """An untrained policy of about 113,000 parameters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    generator = torch.Generator().manual_seed(seed)
    policy = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(world.vocabulary),
            hidden_size=_HIDDEN,
            intermediate_size=3 * _HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=world.longest,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
    )
    for name, parameter in policy.named_parameters():
        if parameter.dim() == 2:
            scale = 1 / math.sqrt(_HIDDEN) if "layers" in name else 0.02
            closes_a_block = "o_proj" in name or "down_proj" in name
            torch.nn.init.normal_(parameter, std=scale / 2 if closes_a_block else scale, generator=generator)
    return policy


def train_base(world: World, progress: Callable[[int], object] | None = None) -> PreTrainedModel:
    """Next-token prediction on fresh texts of the world's corpus.

    Of additions, solutions with slips; 70 % of the problems are of full difficulty.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small for two, and one gives the same sums everywhere
    policy, generator = model(world, world.base_seed), torch.Generator().manual_seed(world.base_seed + 1)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(world.base_steps):
        scale = min((step + 1) / _WARMUP, 1) * (1 - 0.98 * step / world.base_steps)
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * scale
        prompt, solution = _texts(world, generator)
        ids = torch.cat([prompt, solution], dim=1)
        logits = policy(input_ids=ids[:, :-1]).logits[:, prompt.size(1) - 1 :]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), solution.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        if progress:
            progress(1)
    torch.set_num_threads(threads)
    return policy.eval()


def _texts(world: World, generator: torch.Generator) -> tuple[Int[Tensor, "N prompt"], Int[Tensor, "N solution"]]:
    """A batch of the corpus as token ids."""
    if world.world == "parities":
        return corpus(world, _BATCH, generator)
    easier = torch.randint(1, world.slots + 1, (_BATCH,), generator=generator)
    full = torch.rand(_BATCH, generator=generator) < 0.7
    return _encode(world, chains(world, torch.where(full, world.slots, easier), generator))


def _encode(world: World, made: Chains) -> tuple[Int[Tensor, "N prompt"], Int[Tensor, "N solution"]]:
    """Problems and slipped solutions as token ids, without going through text."""
    ids = {word: i for i, word in enumerate(world.vocabulary)}
    zero, plus, minus = ids["0"], ids["+0"], ids["-1"] - 1

    def column(word: str) -> Tensor:
        return torch.full((len(made.start), 1), ids[word])

    steps = torch.where(made.steps >= 0, plus + made.steps, minus - made.steps)
    prompt = torch.cat([zero + made.start.unsqueeze(1), steps, column("?")], dim=1)
    first, second, last = (zero + made.slipped[:, j : j + 1] for j in world.marked)
    box = [column(r"\boxed{("), first, column(","), second, column(","), last, column(")}"), column("<eos>")]
    written = []
    for j, stop in enumerate(world.stops):
        written += [zero + made.slipped[:, j : j + 1], *([column(".")] if stop else [])]
    return prompt, torch.cat([*written, *box], dim=1)
