"""The fast path against TRL's and transformers' own, on the same rollouts, alternating in one process.

    python benchmarks/fast_path.py [--phase update|generation|step] [--workload prefix_rl] [--rounds 3]
    python benchmarks/fast_path.py --growth [--plot growth.png]
    python benchmarks/fast_path.py --shape qwen2.5-1.5b --device cuda [--workload prefix_rl] [--rows 8 32]

Both sides are the same trainer with the same rollouts and the same policy (a Qwen2 of 6 layers of width 256 in float32,
random weights, 4,096 words, unless ``--shape`` says otherwise); one takes TRL's path. ``update`` is what a step does
once its rollouts are there: the order of the rows, forward and backward of every micro-batch, the optimizer.
``generation`` is transformers' loop; a
logits processor chooses the tokens, so that both sides write the same rollouts. ``step`` is both, and what TRL does
between them (decoding, a trivial reward). Prints the median CPU seconds of each side (one thread: what else the machine
does counts for little), the median ratio over the rounds with its smallest and largest, and the memory that it adds, at
its highest, to a process that has loaded its libraries (malloc gives freed tensors back at once there, so that it is
the memory of tensors that is compared). Nothing here passes or fails.

``--device cuda``: seconds of the clock between two moments at which the GPU has nothing left to do, memory as its
allocator counts it, tokens a second (of the rollouts, each row in full: what a user has at the end), and the share of
what a large matrix product reaches on this GPU in this type. Then attention alone: by parts, by path in plain torch,
and FlexAttention with the same layout, forward and backward, and how many kernels one more node costs.

``--growth``: how the ratio of updates grows with the size of a group and the tokens it shares, beside the ratio of the
work there is: every distinct token once, every pair of tokens that attend to each other once. TRL's rows are all of one
length here, so its micro-batches are all alike: it takes them in the largest size that holds at most 16,384 tokens
(more would not fit into memory), one of them is measured, and its seconds are multiplied.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

STOP = 1
AT_ONCE = 16_384  # tokens of a micro-batch of TRL, with --growth


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    dtype: str = "float32"


SHAPES = {
    "small": Shape(256, 1024, 6, 4, 2, 4096),
    "tiny": Shape(32, 64, 2, 4, 2, 256),
    "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2, 151_936, "bfloat16"),
}


@dataclass
class On:
    """What is measured on; set once by :func:`main`."""

    shape: Shape = SHAPES["small"]
    device: str = "cpu"

    @property
    def cpu(self) -> bool:
        return self.device == "cpu"

    def clock(self) -> float:
        """Seconds: of this process's CPU, or of the clock once the GPU has nothing left to do."""
        import torch

        if self.cpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


ON = On()


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
    "tiny": Workload(2, 4, (20, 24), (9, 0.3, 12), shared=20, at_once=4),
}
LEFT_OUT = ("tiny",)  # unless it is asked for
FLEX = "FlexAttention"


def rollouts(work: Workload, seed: int = 0):
    """Rows of (prompt, completion, prefix length) as token ids; completions end with the stop token."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(10, ON.shape.vocabulary, (count,), generator=generator).tolist()

    rows, (median, spread, most) = [], work.completion
    for _ in range(work.groups):
        low, high = work.prompt
        prompt = words(int(torch.randint(low, high + 1, (), generator=generator)))
        shared, single = words(work.shared), words(work.single)
        for member in range(work.size):
            drawn = float(torch.exp(torch.randn((), generator=generator) * spread)) * median
            own = words(min(max(int(drawn), 1), most))
            prefix = shared or (single if member == 0 else [])
            completion = (prefix + own)[: max(most, work.shared + most)]
            rows.append((prompt, [*completion[:-1], STOP], len(prefix)))
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
    moving = mask.bool() & ~prefix
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": torch.tensor([[0] * (left - len(p)) + [1] * len(p) for p, _, _ in rows]),
        "completion_ids": completion_ids, "completion_mask": mask, "prefix_mask": prefix & mask.bool(),
        "update_mask": moving, "tool_mask": moving.long(), "advantages": advantages,
        "weights": torch.ones(mask.shape), "rewards": advantages[:, 0].clone(),
        "num_items_in_batch": moving.sum(), "loss_scale": torch.ones(()),
    }  # fmt: skip


class Chosen:
    """A logits processor: token number ``t`` of row ``i`` is ``continuations[i][t]``."""

    def __init__(self, continuations):
        import torch

        width = max(map(len, continuations))
        self.tokens, self.step = torch.tensor([c + [STOP] * (width - len(c)) for c in continuations]), 0

    def __call__(self, ids, scores):
        self.tokens = self.tokens.to(scores.device)
        chosen = self.tokens[:, self.step : self.step + 1]
        self.step += 1
        return scores.new_full(scores.shape, float("-inf")).scatter(1, chosen, 0.0)

    def keep(self, rows):
        self.tokens = self.tokens[rows]


class Trial:
    """A trainer whose rollouts are these rows."""

    def __init__(self, speed, work: Workload, rows):
        import torch
        from small import arguments, byte_level_bpe, dataset, token_reward
        from transformers import Qwen2Config, Qwen2ForCausalLM

        from prefix_rl.methods.dr_grpo import DrGRPO
        from prefix_rl.seam.trainer import PrefixTrainer

        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=ON.shape.vocabulary, hidden_size=ON.shape.hidden, intermediate_size=ON.shape.intermediate,
            num_hidden_layers=ON.shape.layers, num_attention_heads=ON.shape.heads,
            num_key_value_heads=ON.shape.key_heads, max_position_embeddings=8192, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=STOP, pad_token_id=0,
        )  # fmt: skip
        self.rows, self.steps = rows, max(len(rows) // work.at_once, 1)
        args = arguments(
            tempfile.mkdtemp(), per_device_train_batch_size=work.at_once, gradient_accumulation_steps=self.steps,
            num_generations=work.size, max_completion_length=max(len(c) for _, c, _ in rows), learning_rate=1e-6,
            gradient_checkpointing=work.checkpointing, use_cpu=ON.cpu,
        )  # fmt: skip
        with torch.device(ON.device):  # where it is quick to draw random weights
            model = Qwen2ForCausalLM(config).to(getattr(torch, ON.shape.dtype))
        self.trainer = trainer = PrefixTrainer(
            model=model,
            reward_funcs=token_reward,
            args=args,
            train_dataset=dataset(64, False),
            processing_class=byte_level_bpe(),
            method=DrGRPO(),
            speed=speed,
        )
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = self.steps
        trainer.state.max_steps = 1
        if work.checkpointing:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
        trainer.model.to(ON.device)
        trainer.create_optimizer()
        self._score = trainer._generate_and_score_completions
        trainer._tokenize_prompts = lambda _: ([list(p) for p, _, _ in rows], None, {})
        trainer._planner.planned = self._planned
        self._generate, trainer.model.generate = trainer.model.generate, self._generated

    def _planned(self, inputs, step):
        """The prefixes of these rows, whatever the data set holds."""
        from prefix_rl.prefixes import Prefix
        from prefix_rl.rollouts import Row
        from prefix_rl.seam.batch import GenerationBatch, Planned

        plan = [Prefix(c[:n], n, n + 1) for _, c, n in self.rows]
        rows = [Row(i, self.trainer.num_generations, 0, ()) for i in range(len(plan))]
        planned = Planned.over(self.trainer._ranks, plan, [True] * len(plan))
        return GenerationBatch(inputs, rows, plan, planned, step)

    def _generated(self, **given):
        from transformers import LogitsProcessorList

        return self._generate(logits_processor=LogitsProcessorList([Chosen([c[n:] for _, c, n in self.rows])]), **given)

    def update(self, most: int | None = None) -> float:
        """CPU seconds of one update phase; with ``most``, of so many micro-batches, multiplied to those of all."""
        batch = {name: values.to(ON.device) for name, values in batch_of(self.rows).items()}
        self.trainer._generate_and_score_completions = lambda _: dict(batch)
        return self._run(most or self.steps)

    def step(self) -> float:
        """CPU seconds of one step: generation and update."""
        self.trainer._generate_and_score_completions = self._score
        found = self._run(self.steps)
        self._check(row for batch in self.trainer._buffered_inputs for row in zip(
            batch["completion_ids"].tolist(), batch["completion_mask"].tolist(), strict=True
        ))  # fmt: skip
        return found

    def generation(self) -> float:
        """CPU seconds of generation alone."""
        prompts, images, fields = self.trainer._tokenize_prompts(None)
        with self.trainer._open.holding(self._planned([], self.trainer._step_now())):
            start = ON.clock()
            found, _ = self.trainer._generate_single_turn(prompts, images, fields, 1)
            seconds = ON.clock() - start
        self._check((completion, [1] * len(completion)) for completion in found)
        return seconds

    def _run(self, micro_batches: int) -> float:
        import torch

        trainer, given = self.trainer, [self.trainer.train_dataset[0]] * len(self.rows)
        torch.manual_seed(0)  # the same shuffle on both sides
        trainer._step, trainer._buffered_inputs = 0, None
        start = ON.clock()
        for _ in range(micro_batches):
            inputs = trainer._prepare_inputs(given)
            trainer.compute_loss(trainer.model, inputs).backward()
            trainer._step += 1
        passes = ON.clock() - start
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return passes * self.steps / micro_batches + ON.clock() - start - passes

    def _check(self, found) -> None:
        """The rollouts are those that were chosen."""
        kept = sorted([token for token, real in zip(*row, strict=True) if real] for row in found)
        if kept != sorted(completion for _, completion, _ in self.rows):
            raise RuntimeError("this side has written other rollouts")


def sides():
    from prefix_rl.speed.settings import OFF, Speed

    return {"trl": OFF, "fast": Speed(verify="never")}


def warm_up(work: Workload) -> None:
    """What is loaded and compiled on first use is there afterwards, and its memory given back."""
    little = replace(work, groups=1, size=2, prompt=(20, 20), completion=(9, 0.3, 16), shared=0, single=0, at_once=2)
    for speed in sides().values():
        Trial(speed, little, rollouts(little)).step()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def compared(work: Workload, phase: str, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of TRL's path and of the fast path, round by round."""
    rows = rollouts(work)
    warm_up(work)
    made = {name: Trial(speed, work, rows) for name, speed in sides().items()}
    found: dict[str, list[float]] = {name: [] for name in made}
    for round_ in range(rounds):
        for name in sorted(made, reverse=bool(round_ % 2)):  # who goes first alternates
            found[name].append(getattr(made[name], phase)())
    return found["trl"], found["fast"]


def ratio(theirs: list[float], ours: list[float]) -> str:
    """The median over the rounds, with the smallest and the largest."""
    ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


# --- memory -----------------------------------------------------------------------------------------------------------


def peak(workload: str, phase: str, side: str) -> float:
    """MiB that one run adds to a process of its own, at its highest."""
    command = [sys.executable, __file__, "--workload", workload, "--phase", phase, "--measure-memory", side]
    returned = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}  # what is freed is given back, not kept for the next tensor
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **returned})
    return float(done.stdout.split()[-1])


def on_gpu(work: Workload, rounds: int, phase: str) -> dict[str, list[str]]:
    """The cells of each side of a workload on a GPU: seconds of an update and, unless that is the phase, of a step."""
    import torch

    cells = {}
    rows = rollouts(work)
    lengths, scored = [len(p) + len(c) for p, c, _ in rows], sum(len(c) for _, c, _ in rows)
    fastest = product_rate()
    for name, speed in sides().items():
        trial = Trial(speed, work, rows)
        trial.update(most=1)  # what is compiled and chosen on first use
        if not ON.cpu:
            torch.cuda.reset_peak_memory_stats()
        update = statistics.median(trial.update() for _ in range(rounds))
        high = 0.0 if ON.cpu else torch.cuda.max_memory_allocated() / 2**20
        kernels = launched(lambda trial=trial: trial.update(most=1))
        step = "-" if phase == "update" else f"{statistics.median(trial.step() for _ in range(rounds)):.2f}"
        # of all tokens of the rows, whatever a side encodes of them: one that encodes less may pass 100 %
        work_done = 2 * operations([position for n in lengths for position in range(n)], scored)
        cells[name] = [f"{update:.2f}", step, f"{high:,.0f}", f"{sum(lengths) / update:,.0f}",
                       f"{work_done / update / fastest:.0%}", f"{kernels:,}"]  # fmt: skip
        del trial
        gc.collect()
        if not ON.cpu:
            torch.cuda.empty_cache()
    return cells


def product_rate(size: int | None = None) -> float:
    """FLOPs a second of a product of two square matrices in the policy's type: the peak that can be reached here."""
    import torch

    size = size or (256 if ON.cpu else 8192)
    a, b = (torch.randn(size, size, device=ON.device).to(getattr(torch, ON.shape.dtype)) for _ in range(2))
    a @ b
    best = float("inf")
    for _ in range(5):
        began = ON.clock()
        for _ in range(10):
            a @ b
        best = min(best, (ON.clock() - began) / 10)
    return 2 * size**3 / max(best, 1e-9)


def visible(layout):
    """FlexAttention's mask of a layout: a key is seen from its place on, up to the end of its node's descendants."""
    import torch

    until = torch.empty(len(layout.ids), dtype=torch.long)
    for node in layout.nodes:
        until[node.start : node.end] = node.until
    until = until.to(ON.device)
    return lambda batch, head, query, key: (key <= query) & (query < until[key])


def attentions(layout) -> dict[str, object]:
    """Functions ``(query, key, value) -> out`` that compute the same attention."""
    import torch

    from prefix_rl.speed.attention import attend, attend_by_path

    scale = (ON.shape.hidden // ON.shape.heads) ** -0.5
    found = {
        "parts": lambda q, k, v: attend(q, k, v, layout, scale),
        "plain, node by node": lambda q, k, v: attend_by_path(q, k, v, layout, scale),
    }
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError:
        return found
    length = len(layout.ids)
    mask = create_block_mask(visible(layout), None, None, length, length, device=ON.device)
    flex = flex_attention if ON.cpu else torch.compile(flex_attention, dynamic=False)
    found[FLEX] = lambda q, k, v: flex(q, k, v, block_mask=mask, scale=scale, enable_gqa=True)
    return found


def compare_attentions(work: Workload, line) -> None:
    """Milliseconds of one layer's attention of a micro-batch, forward and backward, and kernels for one more node."""
    import torch

    from prefix_rl.speed.tree import lay_out

    rows = [prompt + completion for prompt, completion, _ in rollouts(work)][: work.at_once]
    layout = lay_out(rows).to(ON.device)
    width, kind = ON.shape.hidden // ON.shape.heads, getattr(torch, ON.shape.dtype)

    def given(length):
        heads = (ON.shape.heads, ON.shape.key_heads, ON.shape.key_heads)
        return [torch.randn(1, n, length, width, device=ON.device).to(kind).requires_grad_() for n in heads]

    tensors = given(len(layout.ids))
    for name, function in attentions(layout).items():
        times = []
        for _ in range(4):
            began = ON.clock()
            if name == FLEX and ON.cpu:  # goes forward only there
                function(*(x.detach() for x in tensors))
            else:
                function(*tensors).sum().backward()
            times.append(ON.clock() - began)
        line(name, len(layout.ids), len(layout.nodes), f"{1000 * min(times[1:]):.2f}")
    fewer = lay_out(rows[: max(len(rows) // 2, 1)]).to(ON.device)
    counts = []
    for each in (fewer, layout):
        function, inputs = attentions(each)["parts"], given(len(each.ids))
        counts.append(launched(lambda run=function, of=inputs: run(*of).sum().backward()))
    more = len(layout.nodes) - len(fewer.nodes)
    line("kernels for one more node, parts", "", "", f"{(counts[1] - counts[0]) / more:.1f}" if more else "-")


def launched(run) -> int:
    """Number of kernels that this starts; on the CPU, of operators."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] if ON.cpu else [ProfilerActivity.CUDA]
    with profile(activities=activities) as found:
        run()
    where = DeviceType.CPU if ON.cpu else DeviceType.CUDA  # the calls that start kernels are events of the CPU there
    return sum(event.count for event in found.key_averages() if event.device_type == where)


def added_by_one(workload: str, phase: str, side: str) -> float:
    work = WORKLOADS[workload]
    warm_up(work)
    trial = Trial(sides()[side], work, rollouts(work))
    before = _memory("VmRSS")
    if phase == "update" and side == "trl":
        trial.update(most=min(2, trial.steps))  # TRL's micro-batches are all of one shape
    else:
        getattr(trial, phase)()
    return _memory("VmHWM") - before


def _memory(field: str) -> float:
    """MiB, as Linux counts them for this process: ``VmRSS`` now, ``VmHWM`` at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


# --- growth -----------------------------------------------------------------------------------------------------------


def operations(positions, scored: int) -> float:
    """Multiplications of an update on tokens at these places, of which so many go through the head.

    Of each token by the weights, and of each pair that attend; forward once and backward twice. TRL's head computes its
    logits a second time before it goes backward.
    """
    shape = ON.shape
    keys = shape.hidden * shape.key_heads // shape.heads
    weights = shape.layers * shape.hidden * (2 * shape.hidden + 2 * keys + 3 * shape.intermediate)
    attended = sum(position + 1 for position in positions) * 2 * shape.hidden * shape.layers
    return 3 * (len(positions) * weights + attended) + 4 * scored * shape.hidden * shape.vocabulary


def bound(work: Workload) -> float:
    """The ratio of the work of the padded rows to that of the distinct tokens."""
    from prefix_rl.speed.tree import lay_out

    made = rollouts(work)
    rows = [prompt + completion for prompt, completion, _ in made]
    width = max(map(len, rows))
    plain = operations([position for _ in rows for position in range(width)], len(rows) * width)
    distinct = lay_out(rows, minimum_saving=1).positions.tolist()
    return plain / operations(distinct, sum(len(c) for _, c, _ in made))


def grown(size: int, shared: int, rounds: int) -> tuple[list[float], list[float], float]:
    """Seconds of TRL's path and of the fast path for one group, and the bound of their ratio."""
    work = Workload(1, size, (shared, shared), (128, 0.0, 128), at_once=size)
    rows, fewer = rollouts(work), size
    while fewer > 1 and (fewer * (shared + 128) > AT_ONCE or size % fewer):
        fewer -= 1
    warm_up(work)
    theirs = Trial(sides()["trl"], replace(work, at_once=fewer), rows)
    ours = Trial(sides()["fast"], work, rows)
    runs = {True: lambda: theirs.update(most=1), False: lambda: ours.update()}
    found: dict[bool, list[float]] = {True: [], False: []}
    for round_ in range(rounds):
        for side in sorted(runs, reverse=bool(round_ % 2)):
            found[side].append(runs[side]())
    return found[True], found[False], bound(work)


def plot(found: dict[int, dict[int, tuple[float, float]]], path: Path) -> None:
    """``found[size][shared]`` = measured ratio and bound, as lines over the shared length."""
    from prefix_rl.reports.plots import COLORS, figure, save

    fig, axes = figure(1, 1, 5.5, 3.6)
    for color, (size, by_length) in zip(COLORS, found.items(), strict=False):
        lengths = list(by_length)
        axes.plot(lengths, [by_length[n][0] for n in lengths], "o-", color=color, label=f"group of {size}")
        axes.plot(lengths, [by_length[n][1] for n in lengths], "--", color=color)
    axes.plot([], [], "--", color="0.5", label="ratio of the multiplications")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    ticks = sorted({shared for by_length in found.values() for shared in by_length})
    axes.set_xticks(ticks, [f"{shared:,}" for shared in ticks], minor=False)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="tokens that the group shares", ylabel="TRL's time / time of the fast path")
    axes.legend()
    save(fig, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--phase",
        choices=["update", "generation", "step"],
        default="update",
        help="what is measured; on a GPU, step: both",
    )
    parser.add_argument("--workload", choices=WORKLOADS, nargs="+", help="all by default; `long` for updates only")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, in turn")
    parser.add_argument(
        "--rows", type=int, nargs="+", help="of a micro-batch, on a GPU; those of the workload by default"
    )
    parser.add_argument("--growth", action="store_true", help="group sizes and shared lengths instead")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 8, 16, 32], help="of groups, with --growth")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096], help="with --growth")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="with --growth: the table as a picture")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--measure-memory", choices=["trl", "fast"], help=argparse.SUPPRESS)
    parser.add_argument("--shape", choices=SHAPES, default="small", help="of the policy")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cuda prints other columns")
    parser.add_argument("--gpu-table", action="store_true", help="the columns of a GPU, also on the CPU (to try them)")
    given = parser.parse_args()
    ON.shape, ON.device = SHAPES[given.shape], given.device
    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115  TRL prints

    def line(*cells) -> None:
        print(f"| {' | '.join(map(str, cells))} |", file=stdout, flush=True)

    if given.measure_memory:
        print(added_by_one(given.workload[0], given.phase, given.measure_memory), file=stdout)
    elif given.gpu_table or not ON.cpu:
        line("workload", "rows", "side", "update, s", "step, s", "memory, MiB", "tokens a second",
             "share of a product's FLOPs", "kernels of a micro-batch")  # fmt: skip
        line("---", "---:", "---", *["---:"] * 6)
        for name in given.workload or ["heavy_tail", "prefix_rl"]:
            for rows in given.rows or [WORKLOADS[name].at_once]:
                work = replace(WORKLOADS[name], at_once=rows)
                for side, cells in on_gpu(work, given.rounds, given.phase).items():
                    line(f"`{name}`", rows, side, *cells)
        for name in given.workload or ["heavy_tail", "prefix_rl"]:
            line(f"attention of `{name}`", "tokens", "nodes", "ms, forward and backward")
            line("---", *["---:"] * 3)
            compare_attentions(WORKLOADS[name], line)
    elif given.growth:
        line("group", "shared", "TRL, CPU s", "fast, CPU s", "ratio (smallest to largest)", "bound", "of the bound")
        line(*["---:"] * 7)
        found: dict[int, dict[int, tuple[float, float]]] = {}
        for size in given.sizes:
            for shared in given.lengths:
                theirs, ours, most = grown(size, shared, given.rounds)
                measured = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
                times = [f"{statistics.median(x):.2f}" for x in (theirs, ours)]
                line(size, f"{shared:,}", *times, ratio(theirs, ours), f"{most:.2f}", f"{measured / most:.0%}")
                found.setdefault(size, {})[shared] = (measured, most)
                if given.plot:
                    plot(found, given.plot)  # so far: the last points take long
    else:
        line("workload", "TRL, CPU s", "fast, CPU s", "ratio (smallest to largest)", "TRL, MiB", "fast, MiB", "ratio")
        line("---", *["---:"] * 6)
        usual = [n for n in WORKLOADS if n not in LEFT_OUT and (given.phase == "update" or n != "long")]
        for name in given.workload or usual:
            theirs, ours = compared(WORKLOADS[name], given.phase, given.rounds)
            memory = ["-"] * 3
            if not given.no_memory:
                high, low = peak(name, given.phase, "trl"), peak(name, given.phase, "fast")
                memory = [f"{high:,.0f}", f"{low:,.0f}", f"{low / high:.2f}"]
            times = [f"{statistics.median(x):.1f}" for x in (theirs, ours)]
            line(f"`{name}`", *times, ratio(theirs, ours), *memory)


if __name__ == "__main__":
    main()
