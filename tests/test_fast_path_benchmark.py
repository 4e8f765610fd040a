"""The benchmark of the fast path runs as it would on a GPU, at a tiny size: its first run on one does not fail for a name."""

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


def test_both_sides_train_and_are_measured(benchmark):
    cells = benchmark.on_gpu("tiny", rounds=1)
    assert list(cells) == ["trl", "fast"]
    for update, step, _, tokens, share in cells.values():
        assert float(step) >= float(update) >= 0
        assert int(tokens.replace(",", "")) > 0
        assert share.endswith("%")


def test_its_attentions_are_one_and_the_same(benchmark):
    layout = lay_out([p + c for p, c, _ in benchmark.rollouts(benchmark.WORKLOADS["tiny"])], minimum_saving=1)
    assert len(layout.nodes) > 8  # two groups of four
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, heads, len(layout.ids), 8, generator=generator) for heads in (4, 2, 2)]
    found = {name: function(*given) for name, function in benchmark.attentions(layout).items()}
    assert set(found) == {"parts", "plain, node by node", benchmark.FLEX}
    for out in found.values():
        assert (out - found["plain, node by node"]).abs().max() < 1e-5


def test_attention_is_timed_and_kernels_are_counted(benchmark):
    lines = []
    benchmark.compare_attentions(benchmark.WORKLOADS["tiny"], lambda *cells: lines.append(cells))
    assert [line[0] for line in lines] == [
        "parts", "plain, node by node", benchmark.FLEX, "kernels for one more node, parts"
    ]  # fmt: skip
    assert all(float(line[3]) >= 0 for line in lines[:3])
    assert float(lines[3][3]) > 10  # a causal part at least, forward and backward
