"""On a GPU: the same trainer in bfloat16 with gradient checkpointing."""

import pytest
import torch
from small import dataset
from test_trainer import LATE, parameters, trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def test_prefix_rft_trains_in_bfloat16(tmp_path):
    made = trainer(tmp_path, LATE, data=dataset(8), use_cpu=False, bf16=True, gradient_checkpointing=True)
    before = parameters(made).clone()
    made.train()
    assert torch.isfinite(parameters(made)).all()
    assert not parameters(made).equal(before)
    kept = [m["prefix/kept_share"] for m in made.state.log_history if "prefix/kept_share" in m]
    assert len(kept) == 3
    assert all(0.2 <= share <= 0.35 for share in kept)  # n - floor(0.8 n) of a few dozen tokens
