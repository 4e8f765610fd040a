"""What the quickstart leaves out: supervised fine-tuning on the lab's demonstrations, then Dr.GRPO.

    python benchmarks/lab_sft_then_rl.py [--seeds 0 1 2] [--epochs 4] [--learning-rate 1e-3] [--output runs/lab/sft]

Fine-tunes the lab's base policy on the 64 clean demonstrations of recipes/lab (next-token loss on the solution,
batches of 16, AdamW with a linear decay), continues with recipes/lab/dr_grpo.yaml from there, and prints the unprefixed
accuracy on the held-out problems after each. Nothing here passes or fails.
"""

import argparse
import os
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")

import torch

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "lab" / "dr_grpo.yaml"


def fine_tune(base: str, folder: Path, seed: int, epochs: int, learning_rate: float, batch: int = 16) -> None:
    """Next-token prediction of the solutions, each token with the same weight."""
    from transformers import AutoModelForCausalLM

    from prefix_rl.data.tokenizer import load_tokenizer
    from prefix_rl.lab.world import World, training_problems

    torch.manual_seed(seed)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), load_tokenizer(base)
    problems = training_problems(World(seed=seed))
    prompts = torch.tensor([tokenizer(p.text)["input_ids"] for p in problems])
    solutions = torch.tensor(
        [tokenizer(p.demonstrations[0]["text"])["input_ids"] + [tokenizer.eos_token_id] for p in problems]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    steps = epochs * len(problems) // batch
    for step in range(steps):
        if step % (len(problems) // batch) == 0:
            order = torch.randperm(len(problems))
        rows = order[step * batch % len(problems) :][:batch]
        ids = torch.cat([prompts[rows], solutions[rows]], dim=1)
        logits = model(input_ids=ids[:, :-1]).logits[:, prompts.size(1) - 1 :]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), solutions[rows].flatten())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--output", type=Path, default=Path("runs/lab/sft"))
    given = parser.parse_args()

    from prefix_rl.evaluation.evaluate import evaluate
    from prefix_rl.lab.base import base_policy
    from prefix_rl.lab.world import World
    from prefix_rl.train import train

    for seed in given.seeds:
        tuned, run = given.output / f"tuned-{seed}", given.output / f"then-rl-{seed}"
        fine_tune(str(base_policy(World())), tuned, seed, given.epochs, given.learning_rate)
        seeds = [f"training.seed={seed}", f"data.lab.seed={seed}", "evaluation.samples=2"]
        after_sft = evaluate(str(tuned), str(RECIPE), seeds)["accuracy"]
        train(RECIPE, [*seeds, f"model.name_or_path={tuned}", f"output.dir={run}", "training.eval_strategy=no"])
        after_rl = evaluate(str(run), None, ["evaluation.samples=2"])["accuracy"]
        print(
            f"seed {seed}: after SFT {100 * after_sft['mean']:.1f} %, after Dr.GRPO {100 * after_rl['mean']:.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
