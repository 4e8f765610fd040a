"""The memory that ``prefix-rl plan`` names against what a GPU's allocator counts while a run trains.

    python benchmarks/plan_memory.py [--shape qwen2.5-0.5b] [--device cuda]

Each run is two steps of Dr.GRPO on a Qwen2 with random weights, every completion at its full length; measured is the
allocator's peak in the second step, generation and update apart. On the CPU, which has no such count, the runs are made
and the estimates printed (to try it).
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

MIB = 2**20
SHAPES = {  # hidden, feed-forward, layers, heads, key heads, words, and prompt, completion, rows
    "qwen2.5-0.5b": ((896, 4864, 24, 14, 2, 151_936), (512, 128, 32)),
    "tiny": ((64, 128, 2, 2, 1, 300), (20, 8, 8)),
}
LORA = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 16, "lora_dropout": 0.0}
RUNS = {
    "all parameters in float32, autocast": {},
    "... gradient checkpointing": {"training": {"gradient_checkpointing": True}},
    "... `speed.shared_prefix: false`": {"speed": {"shared_prefix": False}},
    "... two micro-batches": {"two": True},
    "bfloat16 weights": {"model": {"dtype": "bfloat16"}},
    "LoRA on all linear layers": {"model": {"dtype": "bfloat16", **LORA}},
    "LoRA, gradient checkpointing": {
        "model": {"dtype": "bfloat16", **LORA},
        "training": {"gradient_checkpointing": True},
    },
}


def policy(folder: Path, shape) -> None:
    """Writes a Qwen2 of this shape, with the tokenizer of bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from prefix_rl.lab.tiny import make_tiny

    make_tiny(folder)
    config = AutoConfig.from_pretrained(folder)
    hidden, feed_forward, layers, heads, key_heads, words = shape
    config.update({
        "hidden_size": hidden, "intermediate_size": feed_forward, "num_hidden_layers": layers, "vocab_size": words,
        "num_attention_heads": heads, "num_key_value_heads": key_heads, "head_dim": hidden // heads,
        "tie_word_embeddings": True, "layer_types": ["full_attention"] * layers,
    })  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def made(model: Path, folder: Path, changes: dict, sizes, device: str):
    """The recipe of a run, and its problems."""
    from prefix_rl.data.problems import Problem
    from prefix_rl.recipe import load_recipe

    prompt, completion, rows = sizes
    parts = 2 if changes.get("two") else 1
    training = {
        "max_steps": 2, "per_device_train_batch_size": rows // parts, "gradient_accumulation_steps": parts,
        "num_generations": 8, "max_completion_length": completion, "generation_kwargs": {"min_new_tokens": completion},
        "use_cpu": device == "cpu", "bf16": True, "gradient_checkpointing": False, "report_to": "none",
        "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip
    given = {
        "model": {"name_or_path": str(model), "dtype": "float32", **changes.get("model", {})},
        "data": {"train": str(folder / "rows.jsonl"), "prompt": "plain"}, "method": {"name": "dr_grpo"},
        "output": {"dir": str(folder / "run"), "rollouts_every": 0}, "reward": {"workers": 1},
        "speed": {"verify": "never", **changes.get("speed", {})}, "training": training | changes.get("training", {}),
    }  # fmt: skip
    texts = [f"{i:03}".ljust(prompt, "x") for i in range(rows)]
    return load_recipe(given), [Problem(text, text, "1") for text in texts]


def measured(recipe, problems, device: str) -> tuple[float, float]:
    """MiB at their highest in the second step: up to the rollouts and their rewards, and from there on."""
    import torch

    from prefix_rl.policy import Policy
    from prefix_rl.train import build

    seen = {"generation": 0.0, "update": 0.0}
    trainer = build(Policy(recipe), problems)

    def read(phase: str) -> None:
        if device == "cuda":
            seen[phase] = torch.cuda.max_memory_allocated() / MIB
            torch.cuda.reset_peak_memory_stats()

    scored = trainer._generate_and_score_completions

    def generate(*args, **kwargs):
        read("update")  # what the step before left
        found = scored(*args, **kwargs)
        read("generation")
        return found

    trainer._generate_and_score_completions = generate
    trainer.train()
    read("update")
    return seen["generation"], seen["update"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="of the table; all by default")
    given = parser.parse_args()
    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  TRL prints

    import torch

    from prefix_rl.accelerate_file import Launch
    from prefix_rl.memory import estimate
    from prefix_rl.plan import config_of, setting_of, shape_of

    def line(*cells) -> None:
        print(f"| {' | '.join(map(str, cells))} |", file=stdout, flush=True)

    shape, sizes = SHAPES[given.shape]
    line("run", "generation, MiB", "update, MiB", "estimated peak, MiB", "")
    line("---", *["---:"] * 4)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        policy(model, shape)
        for name in given.runs:
            recipe, problems = made(model, Path(folder), RUNS[name], sizes, given.device)
            decoder = shape_of(recipe, config_of(recipe))
            expected = estimate(decoder, setting_of(recipe, decoder, Launch(), 1, sizes[0]))
            generation, update = measured(recipe, problems, given.device)
            peak = max(generation, update)
            difference = f"{expected.peak / MIB / peak - 1:+.1%}" if peak else "-"
            line(name, f"{generation:,.0f}", f"{update:,.0f}", f"{expected.peak / MIB:,.0f}", difference)
            print(name, {k: round(v / MIB) for k, v in expected.phases.items()}, file=sys.stderr)
            gc.collect()
            if given.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
