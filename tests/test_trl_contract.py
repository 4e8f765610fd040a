"""The members of TRL that the trainer wraps or reads. On an upgrade this file fails first, and says which one moved."""

import inspect
import re
from pathlib import Path

import pytest
import trl
from packaging.version import Version
from trl import GRPOTrainer
from trl.trainer import grpo_trainer, utils

from prefix_rl.seam.trainer import PrefixTrainer

WRAPPED = {  # member: its leading parameters in TRL 1.16
    "_generate_and_score_completions": ["self", "inputs"],
    "_generate_single_turn": ["self", "prompt_ids", "images", "multimodal_fields", "num_generations"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "_get_per_token_logps_and_entropies": ["self", "model", "input_ids", "attention_mask", "logits_to_keep",
                                           "batch_size", "compute_entropy"],
    "_prepare_inputs": ["self", "generation_batch"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "_get_train_sampler": ["self", "dataset"],
    "_save_checkpoint": ["self", "model", "trial"],
}  # fmt: skip


def test_trl_is_the_release_that_the_trainer_wraps():
    assert Version("1.16") <= Version(trl.__version__) < Version("1.17"), "widen preflight and this file together"


@pytest.mark.parametrize("member", WRAPPED)
def test_a_wrapped_member_has_its_parameters(member):
    parameters = list(inspect.signature(getattr(GRPOTrainer, member)).parameters)
    assert parameters[: len(WRAPPED[member])] == WRAPPED[member]


@pytest.mark.parametrize("member", WRAPPED)
def test_each_wrapper_calls_trl_and_copies_nothing(member):
    source = inspect.getsource(getattr(PrefixTrainer, member))
    assert f"super().{member}" in source
    assert len(source.splitlines()) <= 35, "a wrapper this long has become a copy"


def test_the_trainer_overrides_nothing_else_of_trl():
    own = {name for name in vars(PrefixTrainer) if not name.startswith("__")}
    assert {name for name in own if hasattr(GRPOTrainer, name)} == WRAPPED.keys()


@pytest.mark.parametrize(
    "name", ["_metrics", "_pending_extra_logs", "reward_weights", "_tokenizer", "eos_token_ids", "_is_vlm",
             "_entropy_bonus_enabled", "beta", "current_gradient_accumulation_steps", "max_completion_length", "num_generations",
             "_buffered_inputs", "_step", "_pending_metrics", "_generate"]
)  # fmt: skip
def test_an_attribute_that_the_trainer_reads_is_set_by_trl(name):
    sources = inspect.getsource(grpo_trainer) + inspect.getsource(inspect.getmodule(GRPOTrainer.__mro__[2]))
    assert f"self.{name}" in sources


def test_the_loss_multiplies_by_the_mask_and_takes_advantages_by_token():
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert 'completion_mask * inputs["tool_mask"]' in source
    assert 'inputs["num_items_in_batch"]' in source
    assert "(log_ratio * mask).sum(-1) / mask.sum(-1)" in source
    assert "if advantages.dim() == 1:" in source
    assert "per_token_loss.size(0) * self.max_completion_length" in source


def test_generation_takes_prompts_and_gives_ids_second_and_completions_fourth():
    assert list(inspect.signature(GRPOTrainer._generate).parameters) == ["self", "prompts"]
    assert "return prompt_ids, completion_ids, tool_mask, completions, " in inspect.getsource(GRPOTrainer._generate)


def test_what_generation_and_grading_leave_behind_is_put_back():
    """The metrics and the two pending dictionaries; a list that TRL adds to elsewhere would stay."""
    for member in (GRPOTrainer._generate, GRPOTrainer._calculate_rewards):
        assert set(re.findall(r"self\.(_\w*(?:metrics|logs))\b", inspect.getsource(member))) <= {"_metrics"}
    pending = inspect.getsource(GRPOTrainer._log_metric) + inspect.getsource(GRPOTrainer._log_completion_extra)
    assert set(re.findall(r"self\.(_\w+)", pending)) == {"_pending_metrics", "_pending_extra_logs"}


def test_the_sampler_shuffles_with_one_seeded_generator():
    sampler = utils.RepeatSampler(range(7), mini_repeat_count=1, batch_size=1, seed=3)
    assert sampler.generator.initial_seed() == sampler.seed == 3
    first, second = list(sampler), list(sampler)
    assert first != second  # the next epoch goes on with the generator


def test_missing_sampling_logps_may_be_none():
    assert 'float("nan") if x is None else x' in inspect.getsource(GRPOTrainer._generate_and_score_completions)


def test_the_generation_batch_is_shuffled_split_and_kept_by_micro_step():
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "generation_batch = shuffle_sequence_dict(generation_batch)" in source
    assert "split_tensor_dict(generation_batch, self.args.steps_per_generation)" in source
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in source


def test_the_fused_head_takes_labels_that_are_shifted_already():
    source = inspect.getsource(utils.add_fused_lm_head)
    assert "backbone_outputs = getattr(self, backbone_attr)(*args, **kwargs)" in source
    assert "hidden_states = backbone_outputs.last_hidden_state\n" in source
    assert "labels = shift_labels" in source
    source = inspect.getsource(GRPOTrainer._get_per_token_logps_and_entropies)
    assert "outputs = model(**model_inputs, labels=labels, fused_lm_head=True)" in source
    assert "outputs.log_probs[:, -logits_to_keep:]" in source


def test_nothing_turns_vllms_prefix_caching_off():
    source = Path(inspect.getsourcefile(trl), "..", "generation", "vllm_generation.py").resolve().read_text()
    assert "LLM(" in source
    assert "prefix_caching" not in source  # on by default in vLLM


def test_transformers_tells_of_missing_weights_where_it_is_wrapped():
    """`policy.loads` refuses a folder that lacks weights there (private to transformers)."""
    from transformers import modeling_utils

    parameters = inspect.signature(modeling_utils.log_state_dict_report).parameters
    assert "loading_info" in parameters
    assert "log_state_dict_report(" in inspect.getsource(modeling_utils.PreTrainedModel)
