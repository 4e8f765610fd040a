"""Tokenizers, policies and data small enough for a unit test."""

import json

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

CORPUS = [
    "Natalia sold 48/2 = 24 clips in May, so 48 + 24 = 72 clips altogether.",
    "Let $x$ be the number. Then \\frac{x}{3} = 14, and the answer is \\boxed{42}.",
    "Die Größe ist naïve 数学 🙂 and ∑_{i=1}^{n} i = n(n+1)/2.",
    "We have 1,234.5 + 765.5 = 2,000 -- twice 1000.",
]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _wrap(raw, **kwargs):
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left", **kwargs
    )


def byte_level_bpe(**kwargs):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>", "<unk>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    raw.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=special)
    )
    return _wrap(raw, **kwargs)


def word_piece():
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.decoder = decoders.WordPiece()
    raw.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<pad>", "<eos>", "<unk>"])
    )
    return _wrap(raw)


def characters():
    alphabet = sorted({c for text in CORPUS for c in text} | set("0123456789+-*/=?\\{}() abcdefghijklmnopqrstuvwxyz"))
    raw = Tokenizer(
        models.BPE({w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *alphabet])}, [], unk_token="<unk>")
    )
    raw.decoder = decoders.Fuse()
    return _wrap(raw)


def metaspace_unigram():
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    special = ["<pad>", "<eos>", "<unk>"]
    raw.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>"))
    return _wrap(raw)


def with_chat_template():
    return byte_level_bpe(chat_template=CHAT_TEMPLATE)


TOKENIZERS = {
    "byte-level BPE": byte_level_bpe,
    "WordPiece": word_piece,
    "characters": characters,
    "Metaspace unigram": metaspace_unigram,
    "with a chat template": with_chat_template,
}


def policy(tokenizer, seed=0, hidden=32, layers=2):
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.3,  # far from uniform, so that entropies differ from token to token
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def dataset(count=8, demonstrations=True):
    rows = []
    for i in range(3, 3 + count):
        solution = f"{i} + {i} is {i} twice, and that makes {2 * i}, so \\boxed{{{2 * i}}}"
        rows.append(
            {
                "prompt": f"{i} + {i} = ?",
                "answer": str(2 * i),
                **({"demonstrations": [solution]} if demonstrations else {}),
            }
        )
    return Dataset.from_list(rows)


def token_reward(completions, completion_ids, **kwargs):
    """Deterministic, varied, and quick: how many token ids are odd, modulo 3."""
    return [float(sum(i % 2 for i in ids) % 3) for ids in completion_ids]


def arguments(folder, **changes):
    from trl import GRPOConfig

    return GRPOConfig(
        **{
            "output_dir": str(folder),
            "loss_type": "dr_grpo",
            "scale_rewards": "none",
            "remove_unused_columns": False,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "num_generations": 4,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_completion_length": 24,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            **changes,
        }
    )


def lora():
    """The option of a trainer with adapters on all linear layers."""
    from peft import LoraConfig

    return {"peft_config": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")}


def trains_adapters_alone(made):
    """Trains, and sees that the adapters moved and nothing else."""
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    made.train()
    moved = {n for n, p in made.model.named_parameters() if not p.equal(before[n])}
    assert moved
    assert all("lora" in n for n in moved)


def write(path, rows):
    """Rows as JSON Lines; the path as a text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
