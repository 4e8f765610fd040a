"""The fast path against TRL's own: the update phase of the same rollouts, alternating in one process.

    python benchmarks/fast_path.py [--workload prefix_rl] [--rounds 3] [--growth]

The update phase is what a step does once its rollouts are there: the order of the rows, forward and backward of every
micro-batch, the optimizer. Both sides are the same trainer with the same rollouts and the same policy (a Qwen2 of 6
layers of width 256 in float32, random weights, 4,096 words); one takes TRL's path. Prints the median CPU seconds of
each (one thread: what else the machine does counts for little), the median ratio over the rounds with its smallest
and largest, and the memory that an update adds to a process of its own, at its highest. Nothing here passes or fails.

``--growth``: how the ratio grows with the size of a group and the tokens it shares, beside the ratio of the work there
is: every distinct token once, every pair of tokens that attend to each other once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

HIDDEN, LAYERS, VOCABULARY = 256, 6, 4096


@dataclass(frozen=True)
class Workload:
    """Rollouts: groups that share a prompt, maybe a prefix, with completions of their own."""

    groups: int
    size: int
    prompt: tuple[int, int]
    completion: tuple[float, float, int]  # median, spread of the logarithm, longest
    shared: int = 0  # prefix tokens that the whole group holds
    single: int = 0  # prefix tokens that its first row holds
    at_once: int = 8
    checkpointing: bool = False


WORKLOADS = {
    "heavy_tail": Workload(8, 8, (64, 128), (96, 0.8, 512)),
    "prefix_rl": Workload(8, 8, (256, 256), (112, 0.3, 192), shared=512),
    "prefix_rft": Workload(8, 8, (128, 128), (160, 0.7, 512), single=256),
    "long": Workload(1, 16, (1024, 1024), (256, 0.0, 256), shared=3072, at_once=16, checkpointing=True),
}


def rollouts(work: Workload, seed: int = 0):
    """Rows of (prompt, completion, prefix length) as token ids."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(10, VOCABULARY, (count,), generator=generator).tolist()

    rows, (median, spread, most) = [], work.completion
    for _ in range(work.groups):
        low, high = work.prompt
        prompt = words(int(torch.randint(low, high + 1, (), generator=generator)))
        shared, single = words(work.shared), words(work.single)
        for member in range(work.size):
            drawn = float(torch.exp(torch.randn((), generator=generator) * spread)) * median
            own = words(min(max(int(drawn), 1), most))
            prefix = shared or (single if member == 0 else [])
            rows.append((prompt, (prefix + own)[: max(most, work.shared + most)], len(prefix)))
    return rows


def batch_of(rows):
    """A generation batch as TRL makes it."""
    import torch

    left, right = max(len(p) for p, _, _ in rows), max(len(c) for _, c, _ in rows)
    prompt_ids = torch.tensor([[0] * (left - len(p)) + p for p, _, _ in rows])
    completion_ids = torch.tensor([c + [0] * (right - len(c)) for _, c, _ in rows])
    mask = torch.tensor([[1] * len(c) + [0] * (right - len(c)) for _, c, _ in rows])
    prefix = torch.tensor([[i < n for i in range(right)] for _, _, n in rows])
    advantages = torch.randn(len(rows), 1, generator=torch.Generator().manual_seed(1)) * mask
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.tensor([[0] * (left - len(p)) + [1] * len(p) for p, _, _ in rows]),
        "completion_ids": completion_ids, "completion_mask": mask, "prefix_mask": prefix & mask.bool(),
        "update_mask": mask.bool() & ~prefix, "advantages": advantages, "rewards": advantages[:, 0].clone(),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip


class Updates:
    """A trainer that is given its rollouts."""

    def __init__(self, speed, work: Workload, rows):
        import torch
        from small import arguments, byte_level_bpe, dataset, token_reward
        from transformers import Qwen2Config, Qwen2ForCausalLM

        from prefix_rl.methods.dr_grpo import DrGRPO
        from prefix_rl.trainer import PrefixTrainer

        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=4 * HIDDEN, num_hidden_layers=LAYERS,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        steps = max(len(rows) // work.at_once, 1)
        args = arguments(
            tempfile.mkdtemp(), per_device_train_batch_size=work.at_once, gradient_accumulation_steps=steps,
            num_generations=work.size, max_completion_length=1024, learning_rate=1e-6,
            gradient_checkpointing=work.checkpointing,
        )  # fmt: skip
        self.trainer = PrefixTrainer(
            model=Qwen2ForCausalLM(config), reward_funcs=token_reward, args=args, train_dataset=dataset(64, False),
            processing_class=byte_level_bpe(), method=DrGRPO(), speed=speed,
        )  # fmt: skip
        self.rows, self.steps = rows, steps
        self.trainer.model.train()
        self.trainer.current_gradient_accumulation_steps = steps
        if work.checkpointing:
            self.trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.trainer.create_optimizer()
        self.trainer._generate_and_score_completions = self._given

    def _given(self, _):
        return batch_of(self.rows)

    def update(self, most: int | None = None) -> float:
        """CPU seconds of one update phase, or of its first micro-batches."""
        import torch

        trainer = self.trainer
        torch.manual_seed(0)  # the same shuffle on both sides
        trainer._step, trainer._buffered_inputs = 0, None
        start = time.process_time()
        for _ in range(min(most or self.steps, self.steps)):
            inputs = trainer._prepare_inputs(None)
            trainer.compute_loss(trainer.model, inputs).backward()
            trainer._step += 1
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return time.process_time() - start


def sides():
    from prefix_rl.speed.settings import OFF, Speed

    return {"trl": OFF, "fast": Speed(verify="never")}


def compared(work: Workload, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of TRL's path and of the fast path, round by round."""
    rows = rollouts(work)
    made = {name: Updates(speed, work, rows) for name, speed in sides().items()}
    found: dict[str, list[float]] = {name: [] for name in made}
    for name in made:
        Updates(sides()[name], work, rows[:2]).update()  # warms up
    for round_ in range(rounds):
        for name in sorted(made, reverse=bool(round_ % 2)):  # who goes first alternates
            found[name].append(made[name].update())
    return found["trl"], found["fast"]


def peak(workload: str, side: str) -> float:
    """MiB that one update adds to a process, at its highest."""
    command = [sys.executable, __file__, "--workload", workload, "--measure-memory", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def added_by_one_update(workload: str, side: str) -> float:
    work = WORKLOADS[workload]
    update = Updates(sides()[side], work, rollouts(work)).update
    before = _memory("VmRSS")
    update(most=2 if side == "trl" else None)  # TRL's micro-batches are all of one shape
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    """MiB, as Linux counts them for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def operations(rows) -> float:
    """Multiplications of a pass over these rows: of each token by the weights, of each pair that attend."""
    weights = LAYERS * (HIDDEN * (2 * HIDDEN + HIDDEN) + 3 * 4 * HIDDEN * HIDDEN)
    return len(rows) * weights + sum(position + 1 for position in rows) * 2 * HIDDEN * LAYERS


def bound(work: Workload) -> float:
    """The ratio of the work of the padded rows to that of the distinct tokens."""
    rows = [prompt + completion for prompt, completion, _ in rollouts(work)]
    width = max(map(len, rows))
    plain = operations([position for _ in rows for position in range(width)])
    distinct = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    head = HIDDEN * VOCABULARY
    scored = sum(len(c) for _, c, _ in rollouts(work))
    return (plain + len(rows) * width * head) / (operations([len(d) - 1 for d in distinct]) + scored * head)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", choices=WORKLOADS, help="one of them; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="updates of each side, in turn")
    parser.add_argument("--growth", action="store_true", help="group sizes and shared lengths instead")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32], help="of groups, with --growth")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024, 4096], help="shared, with --growth")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--measure-memory", choices=["trl", "fast"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  TRL prints

    def line(*cells) -> None:
        print(f"| {' | '.join(map(str, cells))} |", file=stdout, flush=True)

    if given.measure_memory:
        print(added_by_one_update(given.workload, given.measure_memory), file=stdout)
        return
    if given.growth:
        line("group", "shared", "TRL, CPU s", "fast, CPU s", "ratio", "bound", "of the bound")
        line(*["---:"] * 7)
        for size in given.sizes:
            for shared in given.lengths:
                work = Workload(1, size, (shared, shared), (128, 0.0, 128), at_once=size)
                theirs, ours = (statistics.median(x) for x in compared(work, given.rounds))
                ratio, most = theirs / ours, bound(work)
                line(size, shared, f"{theirs:.2f}", f"{ours:.2f}", f"{ratio:.2f}", f"{most:.2f}", f"{ratio / most:.0%}")
        return
    line("workload", "TRL, CPU s", "fast, CPU s", "ratio (smallest to largest)", "TRL, MiB", "fast, MiB", "ratio")
    line("---", *["---:"] * 6)
    for name in [given.workload] if given.workload else WORKLOADS:
        theirs, ours = compared(WORKLOADS[name], given.rounds)
        ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
        memory = ["-"] * 3
        if not given.no_memory:
            high, low = peak(name, "trl"), peak(name, "fast")
            memory = [f"{high:.0f}", f"{low:.0f}", f"{low / high:.2f}"]
        times = [f"{statistics.median(x):.2f}" for x in (theirs, ours, ratios)]
        line(name, *times[:2], f"{times[2]} ({min(ratios):.2f} to {max(ratios):.2f})", *memory)


if __name__ == "__main__":
    main()
