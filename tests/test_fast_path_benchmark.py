"""The benchmark of the fast path runs as it would on a GPU, at a tiny size: its first run on one does not fail for a name."""

import io
import re
import shlex
import sys

import pytest
import torch
from test_train import ROOT

from prefix_rl.speed.tree import lay_out

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # on the CPU it is not


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import fast_path

    fast_path.ON.shape = fast_path.SHAPES["tiny"]
    yield fast_path
    sys.path.remove(str(ROOT / "benchmarks"))


def test_the_command_of_make_gpu_measures_both_sides_and_attention(benchmark, monkeypatch):
    script = (ROOT / "benchmarks" / "gpu.sh").read_text().replace("\\\n", " ")
    (options,) = re.findall(r"python benchmarks/fast_path.py (.*)", script)
    assert shlex.split(options) == ["--shape", "$shape", "--device", "$device", "--rounds", "3", "--workload", "prefix_rl",
                                    "heavy_tail", "--rows", "8", "32"]  # fmt: skip
    assert "device=cuda shape=qwen2.5-1.5b\n" in script
    assert benchmark.SHAPES["qwen2.5-1.5b"].dtype == "bfloat16"
    assert {"prefix_rl", "heavy_tail"} <= set(benchmark.WORKLOADS)
    small = [
        "--phase",
        "step",
        "--shape",
        "tiny",
        "--device",
        "cpu",
        "--rounds",
        "1",
        "--workload",
        "tiny",
        "--rows",
        "4",
        "8",
    ]
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "argv", ["fast_path.py", *small, "--gpu-table"])
    benchmark.main()
    table = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in printed.getvalue().splitlines()]
    sides = [row for row in table if row[0] == "`tiny`"]
    assert [row[1:3] for row in sides] == [[rows, side] for rows in ("4", "8") for side in ("trl", "fast")]
    for *_, update, step, _, tokens, share, kernels in sides:
        assert int(kernels.replace(",", "")) > 100
        assert float(step) >= float(update) >= 0
        assert int(tokens.replace(",", "")) > 0
        assert share.endswith("%")
    alone = {row[0]: row[1:] for row in table if row[0] in ("parts", "plain, node by node", benchmark.FLEX)}
    assert len(alone) == 3
    assert all(float(milliseconds) >= 0 for _, _, milliseconds in alone.values())
    assert table[-1][0] == "kernels for one more node, parts"
    assert float(table[-1][-1]) > 10  # a causal part at least, forward and backward


def test_its_attentions_are_one_and_the_same(benchmark):
    layout = lay_out([p + c for p, c, _ in benchmark.rollouts(benchmark.WORKLOADS["tiny"])], minimum_saving=1)
    assert len(layout.nodes) > 8  # two groups of four
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, heads, len(layout.ids), 8, generator=generator) for heads in (4, 2, 2)]
    found = {name: function(*given) for name, function in benchmark.attentions(layout).items()}
    assert set(found) == {"parts", "plain, node by node", benchmark.FLEX}
    for out in found.values():
        assert (out - found["plain, node by node"]).abs().max() < 1e-5
