"""CPU seconds of generation: each distinct prompt encoded once, against transformers' own loop, in turn in one process.

    python benchmarks/generation.py [--rounds 5] [--only prefix_rl heavy_tail]

A Qwen2 of hidden size 256 with 6 layers, in single precision on the CPU. 8 groups of 8 rows: ``prefix_rl`` has
prompts of 768 tokens and completions of 64 to 192, ``heavy_tail`` prompts of 64 to 128 and completions of log-normal
length (median 96, at most 512). Both loops get the same prompts, the same seed and the same lengths (a logits
processor ends each row at its own). Prints the median seconds of one core, the median ratio over the rounds with its
smallest and largest value, and how far the peak of the memory rises in a process of its own (what it holds before it
generates is not counted). Nothing here passes or fails.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
VOCABULARY, PAD, STOP = 8192, 0, 1


def workloads(torch):
    """Prompt ids and lengths of the completions, for each workload."""
    generator = torch.Generator().manual_seed(0)

    def prompt(length):
        return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()

    def between(low, high):
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    long, short = [prompt(768) for _ in range(8)], [prompt(between(64, 128)) for _ in range(8)]
    tail = (torch.randn(64, generator=generator) * 0.8).exp() * 96
    return {
        "prefix_rl": ([p for p in long for _ in range(8)], [between(64, 192) for _ in range(64)]),
        "heavy_tail": ([p for p in short for _ in range(8)], [min(512, max(1, int(n))) for n in tail]),
    }


class Ends:
    """Ends row i with its token number ``lengths[i]``."""

    def __init__(self, torch, lengths):
        self.torch, self.lengths, self.step = torch, torch.tensor(lengths), 0

    def __call__(self, ids, scores):
        self.step += 1
        scores = scores.clone()
        scores[:, STOP] = -self.torch.inf
        scores[self.lengths == self.step] = -self.torch.inf
        scores[self.lengths == self.step, STOP] = 0.0
        return scores

    def keep(self, rows):
        self.lengths = self.lengths[rows]


def resident(field: str) -> float:
    """Memory of this process in MiB: ``VmRSS`` is what it holds, ``VmHWM`` the most that it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="runs of each loop, in turn, after one that warms up")
    parser.add_argument("--only", nargs="+", default=["prefix_rl", "heavy_tail"], help="these workloads")
    parser.add_argument("--memory-of", choices=["own", "ours"], help="print the rise of the peak of one run, in MiB")
    given = parser.parse_args()

    import torch
    from transformers import GenerationConfig, LogitsProcessorList, Qwen2Config, Qwen2ForCausalLM

    from prefix_rl.speed.generation import shared_prefill

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=None, eos_token_id=STOP, pad_token_id=PAD,
        )
    ).eval()  # fmt: skip

    def generate(loop, prompts, lengths):
        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts])
        config = GenerationConfig(
            max_new_tokens=512, do_sample=True, top_k=0, pad_token_id=PAD, eos_token_id=STOP, disable_compile=True
        )
        torch.manual_seed(0)
        began = time.process_time()
        with shared_prefill(model) if loop == "ours" else contextlib.nullcontext():
            made = model.generate(
                input_ids=ids, attention_mask=(ids != PAD).long(), generation_config=config,
                logits_processor=LogitsProcessorList([Ends(torch, lengths)]),
            )  # fmt: skip
        return time.process_time() - began, made

    for name in given.only:
        prompts, lengths = workloads(torch)[name]
        if given.memory_of:
            before = resident("VmRSS")
            generate(given.memory_of, prompts, lengths)
            print(resident("VmHWM") - before)
            return
        seconds = {"own": [], "ours": []}
        for round_ in range(given.rounds + 1):
            made = {}
            for loop in sorted(seconds, reverse=bool(round_ % 2)):  # who goes first alternates
                taken, made[loop] = generate(loop, prompts, lengths)
                seconds[loop].append(taken)
        own, ours = seconds["own"][1:], seconds["ours"][1:]  # the first round warms up
        ratios = [a / b for a, b in zip(own, ours, strict=True)]
        same = (
            float((made["own"] == made["ours"]).all(dim=1).float().mean())
            if made["own"].shape == made["ours"].shape
            else 0
        )
        peaks = [
            float(subprocess.run([sys.executable, __file__, "--only", name, "--memory-of", loop], capture_output=True,
                                 text=True, check=True).stdout)
            for loop in seconds
        ]  # fmt: skip
        print(f"{name}: rows with the same tokens: {same:.0%}")
        print(f"  transformers  {statistics.median(own):7.2f} s  peak {peaks[0]:6.0f} MiB")
        print(f"  prefix_rl     {statistics.median(ours):7.2f} s  peak {peaks[1]:6.0f} MiB")
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}, {given.rounds} rounds"
        print(f"  speed-up      {statistics.median(ratios):7.2f}    ({spread})", flush=True)


if __name__ == "__main__":
    main()
