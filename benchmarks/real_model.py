"""CPU seconds of two steps of a real model (SmolLM2-135M-Instruct) by method, and of the same work in plain torch.

    make real; python benchmarks/real_model.py [--methods dr_grpo,prefix_rft] [--rollouts 8] [--tokens 32] [--profile]

The plain loop knows no method, no reward and no trainer: for as many rollouts it encodes each prompt once, decodes as
many tokens as the method had sampled, one at a time with a cache, then passes the rows forward and backward and takes a
step of AdamW. CPU seconds are those of this process, so what else runs on the machine counts little. Prints, for each
method, both, their ratio, and the FLOPs that the run counted; with ``--profile`` also where its own seconds went.
Nothing here passes or fails.
"""

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

STEPS = 2


def rows(count: int) -> list[dict]:
    return [
        {
            "prompt": [{"role": "user", "content": f"A baker fills {i} trays with 12 rolls each. How many are there?"}],
            "answer": str(12 * i),
            "demonstrations": [f"{i} trays of 12 rolls are {i} * 10 + {i} * 2 rolls, that is \\boxed{{{12 * i}}}."],
        }
        for i in range(21, 21 + count)
    ]


def trained(method: str, given: argparse.Namespace, profile: cProfile.Profile | None):
    """A trainer after its steps, and the CPU seconds that they took."""
    import real
    from datasets import Dataset
    from small import arguments

    from prefix_rl import PrefixTrainer, methods

    def length(completions, completion_ids, **_):
        return [float(len(ids) % 3 + sum(ids) % 2) for ids in completion_ids]

    settings = {"pppo": {"progressive": False}, "prefix_rl": {"cuts": 1, "plain": 0}}.get(method, {})
    with tempfile.TemporaryDirectory() as folder:
        trainer = PrefixTrainer(
            model=str(real.folder("smollm2")), method=methods.find(method)(**settings), reward_funcs=length,
            args=arguments(folder, max_steps=STEPS, num_generations=4, per_device_train_batch_size=given.rollouts,
                           gradient_accumulation_steps=1, max_completion_length=given.tokens, learning_rate=1e-6),
            train_dataset=Dataset.from_list(rows(16)),
        )  # fmt: skip
        began = time.process_time()
        if profile:
            profile.enable()
        trainer.train()
        if profile:
            profile.disable()
        return trainer, time.process_time() - began


def plain(given: argparse.Namespace, sampled: float, prefixed: float) -> float:
    """CPU seconds of the same tokens without anything around them."""
    import real
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(real.folder("smollm2"), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(real.folder("smollm2"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    prompts = given.rollouts // 4
    decoded = max(round(sampled / (STEPS * given.rollouts)), 1)  # tokens of each rollout that were sampled
    before = round(prefixed / (STEPS * given.rollouts))
    asked = [row["prompt"] for row in rows(prompts)]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", padding=True,
                                        return_dict=True)["input_ids"]  # fmt: skip
    ids = torch.nn.functional.pad(ids, (0, before), value=5)
    began = time.process_time()
    for _ in range(STEPS):
        with torch.no_grad():
            first = model(ids, use_cache=True, logits_to_keep=1)
            cache, rollouts = first.past_key_values, ids.repeat_interleave(4, dim=0)
            cache.batch_repeat_interleave(4)
            last = first.logits[:, -1].argmax(-1).repeat_interleave(4)
            written = [last]
            for _ in range(decoded - 1):
                last = model(last[:, None], past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1)
                written.append(last)
        rollouts = torch.cat([rollouts, torch.stack(written, dim=1)], dim=1)
        logits = model(rollouts, use_cache=False, logits_to_keep=decoded + before + 1).logits[:, :-1]
        targets = rollouts[:, -(decoded + before) :]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--methods", default="dr_grpo,prefix_rft,prefix_rl,luffy,sft_loss,uft,adaptive,tempo,relift,pppo"
    )
    parser.add_argument("--rollouts", type=int, default=8, help="of a step, four for each prompt")
    parser.add_argument("--tokens", type=int, default=32, help="of a completion at most")
    parser.add_argument("--profile", action="store_true", help="print where the seconds went")
    given = parser.parse_args()
    stdout = sys.stdout
    for method in given.methods.split(","):
        profile = cProfile.Profile() if given.profile else None
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  TRL prints its logs
        trainer, ours = trained(method, given, profile)
        theirs = plain(given, trainer.cost.generated_tokens, trainer.cost.injected_tokens)
        sys.stdout = stdout
        times = f"{ours:6.1f} s, plain torch {theirs:6.1f} s, ratio {ours / theirs:.2f}"
        print(f"{method:12} {times}; {trainer.cost.flops:.3g} FLOPs", flush=True)
        if profile:
            pstats.Stats(profile, stream=stdout).sort_stats("tottime").print_stats(15)
        del trainer


if __name__ == "__main__":
    main()
