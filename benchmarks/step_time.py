"""CPU seconds a step: method dr_grpo in PrefixTrainer against TRL's own GRPOTrainer, alternating in one process.

    python benchmarks/step_time.py [--steps 60] [--rounds 5]

Both train the same policy on the same prompts with the same seed, so they see the same batches (the completions are
equal, as the test suite shows). Prints the median CPU seconds of a step for each, and the median ratio over the rounds
with its smallest and largest value. Nothing here passes or fails.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="steps of one run")
    parser.add_argument(
        "--rounds", type=int, default=5, help="runs of each trainer, in turn, after one that is not counted"
    )
    given = parser.parse_args()

    from small import arguments, byte_level_bpe, dataset, policy, token_reward
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from prefix_rl import DrGRPO, PrefixTrainer
    from prefix_rl.speed.settings import OFF

    class Clock(TrainerCallback):
        """Notes when each step ends."""

        def __init__(self):
            self.times = []

        def on_step_end(self, args, state, control, **kwargs):
            self.times.append(time.process_time())

    tokenizer, data = byte_level_bpe(), dataset(64, demonstrations=False)

    def seconds(cls, **own) -> float:
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            args = arguments(
                folder,
                max_steps=given.steps,
                per_device_train_batch_size=32,
                num_generations=8,
                gradient_accumulation_steps=1,
                max_completion_length=48,
                learning_rate=1e-4,
                logging_steps=10,
            )
            cls(
                model=policy(tokenizer, hidden=64), reward_funcs=token_reward, args=args, train_dataset=data,
                processing_class=tokenizer, callbacks=[clock], **own,
            ).train()  # fmt: skip
        gaps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
        return statistics.median(gaps[2:])

    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  TRL prints its logs
    ours, theirs = [], []
    runs = [(theirs, lambda: seconds(GRPOTrainer)), (ours, lambda: seconds(PrefixTrainer, method=DrGRPO(), speed=OFF))]
    for round_ in range(given.rounds + 1):
        for times, run in runs if round_ % 2 else reversed(runs):  # who goes first alternates
            times.append(run())
    del ours[0], theirs[0]  # the round that warms up
    sys.stdout = stdout
    ratios = [o / t for o, t in zip(ours, theirs, strict=True)]
    print(f"GRPOTrainer    {statistics.median(theirs):.4f} CPU s a step")
    print(f"PrefixTrainer  {statistics.median(ours):.4f} CPU s a step")
    spread = f"from {min(ratios):.3f} to {max(ratios):.3f}, {given.rounds} rounds"
    print(f"ratio          {statistics.median(ratios):.3f} ({spread})")


if __name__ == "__main__":
    main()
