"""Training with vLLM in the same process: what it is asked for, and whether it samples from the policy that is trained.

A CPU needs two repairs, both of which have to do with the CPU alone: its linear layers put their weights into another
order, in which no update can be loaded; and its random generators do not go together with prompts in chunks.
"""

import functools

import pytest
import torch
from small import arguments, dataset, token_reward

from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.prefix_rft import PrefixRFT

LENGTH, STEPS = 48, 4


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    import vllm.distributed
    from trl.generation import vllm_generation
    from vllm.model_executor.layers import utils

    def keep(layer, remove_weight):
        layer.cpu_linear = torch.nn.functional.linear

    monkeypatch.setattr(utils, "dispatch_cpu_unquantized_gemm", keep)
    loading = {"enable_chunked_prefill": False, "enforce_eager": True, "dtype": "float32"}
    monkeypatch.setattr(vllm_generation, "LLM", functools.partial(vllm_generation.LLM, **loading))
    yield
    vllm.distributed.cleanup_dist_env_and_memory()


def trained(folder, tokenizer, tmp_path, method, steps=STEPS, **changes):
    """The trainer after some steps, and of each generation what vLLM was asked for and what became of it."""
    from prefix_rl.seam.trainer import PrefixTrainer

    seen = []

    class Watched(PrefixTrainer):
        def _generate_and_score_completions(self, inputs):
            output = super()._generate_and_score_completions(inputs)
            seen.append(output)
            return output

    options = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.2, "vllm_max_model_length": 128,
               "max_completion_length": LENGTH, "max_steps": steps, "learning_rate": 1e-2, **changes}  # fmt: skip
    made = Watched(
        model=str(folder), reward_funcs=token_reward, args=arguments(tmp_path, **options), train_dataset=dataset(),
        processing_class=tokenizer, method=method,
    )  # fmt: skip
    asked = []
    llm = made.vllm_generation.llm
    whole = llm.generate

    def watched(prompts, sampling_params, **more):
        found = whole(prompts, sampling_params=sampling_params, **more)
        asked.append([(s.max_tokens, s.seed, len(o.outputs[0].token_ids), o.num_cached_tokens)
                      for s, o in zip(sampling_params, found, strict=True)])  # fmt: skip
        return found

    llm.generate = watched
    made.train()
    return made, seen, asked


def differences(made, name):
    return [log[name] for log in made.state.log_history if name in log]


def test_the_sampler_is_the_policy_after_every_update_and_nothing_is_thrown_away(folder, tokenizer, tmp_path):
    method = PrefixRFT(prefixed=2)
    made, seen, asked = trained(folder, tokenizer, tmp_path, method)
    assert len(seen) == len(asked) == STEPS
    for output, rows in zip(seen, asked, strict=True):
        prefixes, written = output["prefix_mask"], output["completion_mask"].bool()
        assert prefixes.any()
        nan = output["sampling_per_token_logps"].isnan()
        assert (nan & written).equal(prefixes)  # exactly on the prefixes
        assert [limit for limit, *_ in rows] == (LENGTH - prefixes.sum(dim=1)).tolist()
        assert sum(count for _, _, count, _ in rows) == int((written & ~prefixes).sum())
        ratio = output["importance_sampling_ratio"]
        assert ratio == pytest.approx(torch.ones_like(ratio), abs=1e-2)
    for name in ("sampler/difference_with_prefix", "sampler/difference_without_prefix"):
        apart = differences(made, name)
        assert len(apart) == STEPS
        assert max(apart) < 1e-4
    before = torch.nn.utils.parameters_to_vector(type(made.model).from_pretrained(folder).parameters())
    assert (torch.nn.utils.parameters_to_vector(made.model.parameters()) - before).abs().max() > 1e-2


def test_without_the_update_sampler_and_policy_part(folder, tokenizer, tmp_path, monkeypatch):
    from trl.generation.vllm_generation import VLLMGeneration

    monkeypatch.setattr(VLLMGeneration, "sync_weights", lambda self: None)
    made, *_ = trained(folder, tokenizer, tmp_path, PrefixRFT(prefixed=2))
    apart = differences(made, "sampler/difference_without_prefix")
    assert apart[0] < 1e-4  # nothing has been updated yet
    assert min(apart[1:]) > 0.05


def test_rollouts_can_be_made_again_and_those_of_a_group_differ(folder, tokenizer, tmp_path):
    _, first, asked = trained(folder, tokenizer, tmp_path / "a", DrGRPO(), steps=1)
    _, again, _ = trained(folder, tokenizer, tmp_path / "b", DrGRPO(), steps=1)
    assert first[0]["completion_ids"].equal(again[0]["completion_ids"])
    rows = {tuple(row.tolist()) for row in first[0]["completion_ids"]}
    assert len(rows) == 8
    assert len({seed for _, seed, *_ in asked[0]}) == 8


def test_a_complete_demonstration_costs_nothing(folder, tokenizer, tmp_path):
    _, seen, asked = trained(folder, tokenizer, tmp_path, LUFFY(), steps=2)
    for output, rows in zip(seen, asked, strict=True):
        complete = output["prefix_mask"].any(dim=1)
        assert complete.sum() == 2
        assert len(rows) == 6
        assert sum(count for _, _, count, _ in rows) == int(
            (output["completion_mask"].bool() & ~output["prefix_mask"]).sum()
        )
