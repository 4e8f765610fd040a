"""What a GPU must show. Each test has one body for two devices: in a small form it runs on the CPU in every suite, so that the
first run on a GPU (``make gpu``) fails for what a GPU does and not for a name.

What a GPU's kernels are called with is checked without one, on torch's meta device: it knows their schemas and shapes, and
computes nothing.
"""

import json
import os
import subprocess
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from small import dataset, lora, policy
from test_generation import both, prompt
from test_multirank import launcher
from test_train import PREFIX_RFT, ROOT, SMALL
from test_trainer import LATE, TOKENIZER, parameters, stock, trainer

from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.speed import attention
from prefix_rl.speed.attention import attend, attend_by_path
from prefix_rl.speed.settings import OFF, Speed
from prefix_rl.speed.tree import lay_out

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
both_devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])


def words(count, seed):
    return torch.randint(100, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def long_nodes(device):
    """A group of 8 that shares far more than each row adds: few nodes, long ones."""
    shared, own = (4096, 256) if device == "cuda" else (96, 7)
    return [words(shared, 0) + words(own, row) for row in range(1, 9)]


def many_nodes(device):
    """Groups whose rows part again and again: a path of many nodes, some of a single token."""
    groups, rows = (16, 8) if device == "cuda" else (2, 4)
    forced = words(40 * rows, 99)
    return [
        words(30, g) + forced[: 37 * row] + words(5 + row, 7 * g + row) for g in range(groups) for row in range(rows)
    ]


# --- attention --------------------------------------------------------------------------------------------------------


HEADS = [(4, 4), (12, 2)]  # each with keys of its own, and grouped
CASES = [("cpu", 64, (4, 4)), ("cpu", 96, (4, 2)), ("cpu", 256, (4, 2))]
CASES += [pytest.param("cuda", width, heads, marks=GPU) for width in (64, 96, 128, 192, 256) for heads in HEADS]


@pytest.mark.parametrize("rows", [long_nodes, many_nodes])
@pytest.mark.parametrize(("device", "width", "heads"), CASES)
def test_attention_by_parts_is_as_near_to_float32_as_plain_bfloat16(device, width, heads, rows):
    layout = lay_out(rows(device)).to(device)
    assert len(layout.nodes) > (8 if rows is long_nodes else 7)
    generator, length = torch.Generator().manual_seed(0), len(layout.ids)
    given = [torch.randn(1, n, length, width, generator=generator) for n in (*heads, heads[1], heads[0])]
    *given, weights = [x.to(device, torch.bfloat16) for x in given]
    assert attention.kernels_for(given[0]) is not None

    def found(function, kind):
        at = [x.detach().to(kind).requires_grad_() for x in given]
        out = function(*at, layout, width**-0.5)
        return [out.detach(), *torch.autograd.grad((out * weights.to(kind)).sum(), at)]

    exact, plain = found(attend_by_path, torch.float32), found(attend_by_path, torch.bfloat16)
    for truth, usual, ours in zip(exact, plain, found(attend, torch.bfloat16), strict=True):
        assert ours.dtype == torch.bfloat16
        errors = [float((x.float() - truth).norm() / truth.norm()) for x in (usual, ours)]
        assert errors[1] <= 1.5 * errors[0]
        assert errors[1] < 0.02


@pytest.mark.parametrize(("kind", "width"), [(torch.bfloat16, 64), (torch.bfloat16, 256), (torch.float16, 96)])
def test_the_gpus_kernels_take_what_they_are_called_with(monkeypatch, kind, width):
    on_gpu = SimpleNamespace(dtype=kind, device=torch.device("cuda"), shape=(2, 2, 9, width))
    kernels = attention.kernels_for(on_gpu)
    assert kernels is not None
    called = []

    def watched(kernel):
        def call(*given):
            called.append(kernel)
            return kernel(*given)

        return call

    monkeypatch.setattr(attention, "kernels_for", lambda query: tuple(map(watched, kernels)))
    layout = lay_out(many_nodes("cpu")).to("meta")
    shapes = [(1, heads, len(layout.ids), width) for heads in (4, 2, 2)]
    given = [torch.empty(shape, dtype=kind, device="meta", requires_grad=True) for shape in shapes]
    out = attend(*given, layout, 0.1)
    assert (out.shape, out.dtype) == (shapes[0], kind)
    out.sum().backward()
    assert [(x.grad.shape, x.grad.dtype) for x in given] == [(shape, kind) for shape in shapes]
    waves = 1 + len({len(node.path) for node in layout.nodes if node.until > node.end})
    assert len(layout.nodes) > waves > 2  # not a call for each node
    assert called == [kernels[0]] * waves + [kernels[1]] * waves


@pytest.mark.parametrize(("kind", "width"), [(torch.float32, 64), (torch.bfloat16, 264), (torch.bfloat16, 60)])
def test_what_no_kernel_of_the_gpu_takes_goes_through_plain_torch(kind, width):
    on_gpu = SimpleNamespace(dtype=kind, device=torch.device("cuda"), shape=(2, 2, 9, width))
    assert attention.kernels_for(on_gpu) is None


def test_a_torch_whose_kernel_pads_its_log_sums_takes_plain_torch(monkeypatch):
    on_gpu = SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cuda"), shape=(2, 2, 9, 64))
    assert attention.kernels_for(on_gpu) is not None
    monkeypatch.setattr(attention, "_log_sums_are_packed", lambda: False)
    assert attention.kernels_for(on_gpu) is None


# --- training ---------------------------------------------------------------------------------------------------------


def on(device, **changes):
    """Settings of training in bfloat16 on a device; the CPU takes two steps."""
    return {"use_cpu": device == "cpu", "bf16": True, **({"max_steps": 2} if device == "cpu" else {}), **changes}


@both_devices
@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "LoRA"])
def test_prefix_rft_trains_in_bfloat16_with_checkpointing_on_the_fast_path(tmp_path, device, adapters):
    """Every micro-batch is compared with the plain path, and training stops if they differ."""
    options = {"speed": Speed(verify="always"), **(lora() if adapters else {})}
    made = trainer(tmp_path, LATE, data=dataset(8), options=options, **on(device, gradient_checkpointing=True))
    before = parameters(made).clone()
    made.train()
    assert torch.isfinite(parameters(made)).all()
    assert not parameters(made).equal(before)
    assert made._encoder.tokens["encoded"] > 0
    assert next(made.model.parameters()).device.type == device
    kept = [m["prefix/kept_share"] for m in made.state.log_history if "prefix/kept_share" in m]
    assert len(kept) == made.args.max_steps
    assert all(0.2 <= share <= 0.35 for share in kept)  # n - floor(0.8 n) of a few dozen tokens


@both_devices
@pytest.mark.parametrize("low_precision", [False, True], ids=["float32", "bfloat16"])
def test_a_step_with_speed_off_is_trls(tmp_path, device, low_precision):
    data, changes = dataset(8, demonstrations=False), on(device, bf16=low_precision)
    made = []  # one after the other: a trainer draws its seed when it is made
    for make in (stock, partial(trainer, method=DrGRPO(), options={"speed": OFF})):
        made.append(make(tmp_path / str(len(made)), data=data, **changes))
        made[-1].train()
    theirs, ours = (parameters(one).float().cpu() for one in made)
    moved = theirs - torch.cat([p.detach().flatten() for p in policy(TOKENIZER).parameters()])
    assert moved.norm() > 1e-3
    if device == "cpu":
        assert ours.equal(theirs)
    else:  # a GPU adds the gradients of embeddings in no certain order
        assert (ours - theirs).norm() < 1e-2 * moved.norm()
    for key in ("loss", "reward", "grad_norm"):
        logs = [[m[key] for m in one.state.log_history if key in m] for one in made]
        assert logs[0] == pytest.approx(logs[1], rel=1e-2 if device == "cuda" else 1e-9)


@pytest.mark.multirank
@both_devices
def test_one_process_trains_under_zero_3(tmp_path, device):
    """On the CPU with one process as well: that a launch of one is no launch of two is what would be missed."""
    cpu = device == "cpu"
    kind = [] if cpu else ["training.use_cpu=false", "training.bf16=true"]
    command = launcher("zero3", 1, "no" if cpu else "bf16")
    done = subprocess.run(
        [*command, "-m", "prefix_rl.train", "--config", PREFIX_RFT, *SMALL, *kind, "training.max_steps=2",
         "training.gradient_checkpointing=true", f"output.dir={tmp_path / 'run'}"],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "DS_ACCELERATOR": device},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert "1 process(es), DEEPSPEED" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["grad_norm"] > 0 for line in lines if "grad_norm" in line] == [True, True]
    assert (tmp_path / "run" / "final" / "model.safetensors").exists()


# --- generation -------------------------------------------------------------------------------------------------------


@both_devices
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_generation_with_shared_prefill_writes_what_transformers_writes(device, kind):
    model = policy(TOKENIZER).to(device, kind).eval()
    prompts = [prompt(n, n) for n in (12, 30) for _ in range(4)]
    theirs, ours = both(model, prompts, steps=16, noise=False)
    assert ours.shape == theirs.shape
    # the same logits up to rounding; in bfloat16 one token in a few may be chosen otherwise, and what follows it differs
    same = [one.equal(other) for one, other in zip(theirs, ours, strict=True)]
    assert all(same) if kind == torch.float32 else sum(same) >= 4
