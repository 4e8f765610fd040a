"""Generation with shared prefill draws the tokens that transformers' own loop draws, with less computation."""

import contextlib
import functools
import warnings

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from small import byte_level_bpe, policy
from test_trainer import FakeEngine, trainer
from test_trainer import generation as generation_batch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from trl.trainer import grpo_trainer

from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.seam.vllm import EachRow
from prefix_rl.speed import generation
from prefix_rl.speed.generation import shared_prefill

VOCABULARY, PAD, STOP = 30, 0, 1
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": STOP,
    "pad_token_id": PAD,
}
MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "mistral, window 6": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)),
    "qwen2, window in every second layer": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@pytest.fixture(scope="module")
def qwen2():
    torch.manual_seed(0)
    return MODELS["qwen2"]().eval()


class Noise:
    """Gumbel noise of its own for each row and step: the most likely token behind it is a draw from the softmax."""

    def __init__(self, rows, steps, seed=0):
        uniform = torch.rand(rows, steps, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        self.noise, self.step = -torch.log(-torch.log(uniform.clamp(min=1e-20))), 0

    def __call__(self, ids, scores):
        self.step += 1
        return scores + self.noise[:, self.step - 1]

    def keep(self, rows):
        self.noise = self.noise[rows]


def padded(prompts, extra=0):
    width = max(map(len, prompts)) + extra
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts]),
        "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
    }


def prompt(length, seed=0):
    return torch.randint(2, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def both(model, prompts, steps, noise=True, extra=0, **settings):
    """What the model's own loop makes, and what ours makes, of the same prompts with the same noise."""
    config = GenerationConfig(
        **{"max_new_tokens": steps, "pad_token_id": PAD, "eos_token_id": STOP, "do_sample": False, **settings}
    )
    found = []
    for context in (contextlib.nullcontext(), shared_prefill(model)):
        torch.manual_seed(7)
        with context, warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            found.append(
                model.generate(
                    **{name: ids.to(model.device) for name, ids in padded(prompts, extra).items()},
                    generation_config=config,
                    logits_processor=LogitsProcessorList([Noise(len(prompts), steps)] if noise else []),
                )
            )
    return found


@contextlib.contextmanager
def passes(model):
    """The shapes of the ids that go through the model."""
    shapes = []
    handle = model.register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield shapes
    finally:
        handle.remove()


GROUPS = {
    "groups of unequal lengths": [prompt(5)] * 4 + [prompt(11, 1)] * 4 + [prompt(8, 2)] * 4,
    "groups of one": [prompt(n, n) for n in (3, 9, 4, 30, 7)],
    "one long prompt for all": [prompt(60)] * 8,
    "mixed up": [prompt(5 + i % 3, i % 3) for i in range(9)],
    "one row": [prompt(6)],
    "one is another's beginning": [prompt(12)[:7], prompt(12), prompt(12)[:7], prompt(12)[:1]],
}


# --- the same tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", GROUPS.values(), ids=GROUPS)
def test_the_same_noise_draws_the_same_tokens(model, prompts):
    own, ours = both(model, prompts, 40)
    assert ours.equal(own)
    new = own[:, max(map(len, prompts)) :]
    assert ((new == STOP).any(dim=1)).any() or len(prompts) == 1  # some rows end, and not all at once


@pytest.mark.parametrize("prompts", GROUPS.values(), ids=GROUPS)
def test_the_same_seed_draws_the_same_tokens(model, prompts):
    own, ours = both(model, prompts, 40, noise=False, do_sample=True, top_k=0)
    assert ours.equal(own)


@pytest.mark.parametrize("prompts", GROUPS.values(), ids=GROUPS)
def test_greedy_is_greedy(model, prompts):
    own, ours = both(model, prompts, 12, noise=False)
    assert ours.equal(own)


def test_padding_that_the_caller_added_changes_nothing(model):
    own, ours = both(model, GROUPS["mixed up"], 20, extra=5)
    assert ours.equal(own)


def test_without_a_padding_token_rows_that_have_ended_are_filled_with_the_stop(qwen2, monkeypatch):
    monkeypatch.setattr(qwen2.generation_config, "pad_token_id", None)
    own, ours = both(qwen2, GROUPS["mixed up"], 30, pad_token_id=None)
    assert ours.equal(own)
    assert (ours == STOP).sum() > len(ours)


def test_one_token(model):
    own, ours = both(model, GROUPS["mixed up"], 1)
    assert ours.equal(own)
    assert ours.size(1) == 7 + 1


def test_rows_that_end_at_once(model):
    class Stop(Noise):
        def __call__(self, ids, scores):
            return torch.zeros_like(scores).index_fill_(1, torch.tensor([STOP]), 1.0)

    prompts, config = GROUPS["mixed up"], GenerationConfig(max_new_tokens=9, pad_token_id=PAD, eos_token_id=STOP)
    with shared_prefill(model):
        made = model.generate(
            **padded(prompts), generation_config=config, logits_processor=LogitsProcessorList([Stop(9, 9)])
        )
    assert made[:, 7:].tolist() == [[STOP]] * 9
    assert made.shape == (9, 8)  # and nothing is generated behind the last end


@given(
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 4)), min_size=1, max_size=5),
    steps=st.integers(1, 30),
    order=st.randoms(use_true_random=False),
    patience=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
)
@examples(40)
def test_any_groups_in_any_order(qwen2, lengths, steps, order, patience):
    prompts = [prompt(length, i) for i, (length, group) in enumerate(lengths) for _ in range(group)]
    order.shuffle(prompts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "PATIENCE", patience)
        patch.setattr(generation, "PREFILL_TOKENS", 50)
        patch.setattr(generation, "SPARE", 7)
        own, ours = both(qwen2, prompts, steps)
    assert ours.equal(own)


SETTINGS = {
    "temperature": {"temperature": 0.5},
    "top_k": {"top_k": 3},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.2},
    "typical_p": {"typical_p": 0.8},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "suppress_tokens": {"suppress_tokens": [4, 5, 6]},
    "several": {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_setting_of_generation_means_the_same(qwen2, settings):
    options = {"steps": 15, "noise": False, "do_sample": True, "eos_token_id": None}
    prompts = GROUPS["groups of unequal lengths"]
    own, ours = both(qwen2, prompts, **options, **{"top_k": 0, **settings})
    plain, _ = both(qwen2, prompts, **options, top_k=0)
    assert ours.equal(own)
    assert not ours.equal(plain)


def test_a_penalty_that_knows_its_rows_keeps_them_to_the_end(qwen2):
    with passes(qwen2) as shapes:
        own, ours = both(qwen2, GROUPS["mixed up"], 40, repetition_penalty=1.3)
    assert ours.equal(own)
    assert {rows for rows, width in shapes if width == 1} == {9}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_are_drawn_as_often_as_the_model_says(qwen2, temperature):
    ids, count = prompt(6), 20_000
    with torch.no_grad():
        expected = (qwen2(torch.tensor([ids])).logits[0, -1] / temperature).softmax(dim=-1) * count
    torch.manual_seed(1)
    config = GenerationConfig(
        max_new_tokens=1, do_sample=True, temperature=temperature, top_k=0, pad_token_id=PAD, eos_token_id=STOP
    )
    with shared_prefill(qwen2), passes(qwen2) as shapes:
        drawn = qwen2.generate(**padded([ids] * count), generation_config=config)[:, -1]
    counts = torch.bincount(drawn, minlength=VOCABULARY)
    assert shapes == [(1, 6)]
    likely = expected >= 5
    chi = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi < 60  # 29 degrees of freedom at most: 60 or more in 1 of 1,700 runs
    assert (
        abs(int(counts[~likely].sum()) - float(expected[~likely].sum())) < 5 * float(expected[~likely].sum()) ** 0.5 + 1
    )


class Dictated:
    """Chooses token ``texts[i][t]`` for row ``i`` and step ``t``, the stop at its end; keeps the logits of each."""

    def __init__(self, texts):
        self.texts, self.rows, self.step, self.logits = texts, list(range(len(texts))), 0, {}

    def __call__(self, ids, scores):
        chosen = torch.full_like(scores, -torch.inf)
        for i, row in enumerate(self.rows):
            if self.step < len(self.texts[row]):
                self.logits[row, self.step] = scores[i].float()
            chosen[i, self.texts[row][self.step] if self.step < len(self.texts[row]) else STOP] = 0
        self.step += 1
        return chosen

    def keep(self, rows):
        self.rows = [self.rows[i] for i in rows.tolist()]


def test_bfloat16_is_as_near_to_float32_as_the_models_own_loop():
    torch.manual_seed(0)
    low = MODELS["qwen2"]().eval().to(torch.bfloat16)
    exact = MODELS["qwen2"]().eval()
    exact.load_state_dict(low.state_dict())  # the same rounded weights in both
    prompts = GROUPS["groups of unequal lengths"]
    texts = [prompt(n, 50 + i) for i, n in enumerate((20, 3, 9, 20, 2, 2, 20, 14, 1, 20, 5, 6))]

    def logits(model, rows, context):
        """Of every token of these rows, dictated in one batch."""
        dictated = Dictated([texts[row] for row in rows])
        with context:
            model.generate(
                **padded([prompts[row] for row in rows]), logits_processor=LogitsProcessorList([dictated]),
                max_new_tokens=21, do_sample=False, pad_token_id=PAD, eos_token_id=STOP,
            )  # fmt: skip
        return {(rows[i], step): found for (i, step), found in dictated.logits.items()}

    whole, plain = list(range(len(prompts))), contextlib.nullcontext
    truth = logits(exact, whole, plain())
    own = logits(low, whole, plain())
    alone = {key: found for row in whole for key, found in logits(low, [row], plain()).items()}
    ours = logits(low, whole, shared_prefill(low))
    assert truth.keys() == own.keys() == alone.keys() == ours.keys()
    assert len(truth) == sum(map(len, texts))
    errors = [
        float(sum((found[key] - truth[key]).square().sum() for key in truth) ** 0.5) for found in (own, alone, ours)
    ]
    assert errors[2] <= 1.25 * max(errors[:2])
    assert 0 < errors[2] < 0.05 * float(sum(x.square().sum() for x in truth.values()) ** 0.5)


# --- with less computation --------------------------------------------------------------------------------------------


def test_each_distinct_prompt_is_encoded_once_without_padding(qwen2):
    with passes(qwen2) as shapes, shared_prefill(qwen2):
        qwen2.generate(**padded([prompt(40, 1), prompt(10)] * 4 + [prompt(12, 2)]), max_new_tokens=3, min_new_tokens=3)
    # the prompts of 10 and 12 tokens go together (12 <= 1.25 * 10), that of 40 alone; then two steps of 9 rows
    assert shapes == [(2, 12), (1, 40), (9, 1), (9, 1)]


def test_logits_are_computed_for_the_last_token_of_a_row_alone(qwen2):
    widths = []
    handle = qwen2.lm_head.register_forward_hook(lambda _, given, found: widths.append(found.size(1)))
    with shared_prefill(qwen2):
        qwen2.generate(
            **padded([prompt(9)] * 2), max_new_tokens=3, do_sample=False, pad_token_id=PAD, eos_token_id=VOCABULARY
        )
    handle.remove()
    assert widths == [1, 1, 1]


def test_no_more_tokens_are_encoded_at_once_than_the_budget_allows(qwen2, monkeypatch):
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 25)
    with passes(qwen2) as shapes, shared_prefill(qwen2):
        qwen2.generate(**padded([prompt(10, i) for i in range(5)]), max_new_tokens=1)
    assert shapes == [(2, 10), (2, 10), (1, 10)]


class Ends(Noise):
    """Ends row i with its token number ``lengths[i]``."""

    def __init__(self, lengths):
        super().__init__(len(lengths), max(lengths))
        self.lengths = torch.tensor(lengths)

    def __call__(self, ids, scores):
        scores = super().__call__(ids, scores)
        scores[:, STOP] = torch.where(self.step == self.lengths, torch.inf, -torch.inf)
        return scores

    def keep(self, rows):
        super().keep(rows)
        self.lengths = self.lengths[rows]


def generated(model, prompts, lengths):
    return model.generate(
        **padded(prompts), logits_processor=LogitsProcessorList([Ends(lengths)]), max_new_tokens=max(lengths),
        do_sample=False, pad_token_id=PAD, eos_token_id=STOP,
    )  # fmt: skip


def test_rows_that_have_ended_leave_and_take_their_columns_along(model):
    prompts, lengths = [prompt(30, 1)] * 2 + [prompt(5)] * 6, [2, 2, 3, 9, 9, 9, 9, 9]
    own = generated(model, prompts, lengths)
    held = []
    with passes(model) as shapes, shared_prefill(model):
        handle = model.register_forward_pre_hook(
            lambda _, a, g: held.append(None if g["attention_mask"] is None else g["attention_mask"].size(1)),
            with_kwargs=True,
        )
        ours = generated(model, prompts, lengths)
        handle.remove()
    assert ours.equal(own)
    # Two rows have ended after 2 tokens and a third after 3: carried along they make 2, then 5, then 8 idle row-steps
    # (8 rows times PATIENCE = 1), so five rows are left for tokens 5 to 9
    assert [rows for rows, width in shapes if width == 1] == [8, 8, 8, 5, 5, 5, 5, 5]
    # The five that stay are of one length: without windows, which stand by place, nothing is padding any more
    windows = any(generation._empty_cache(model).is_sliding)
    assert [h is None for h in held[-8:]] == [False] * 3 + [not windows] * 5


def test_the_cache_writes_a_token_in_place(qwen2):
    caches = []
    with shared_prefill(qwen2):
        handle = qwen2.register_forward_pre_hook(
            lambda _, a, g: caches.append(g["past_key_values"].layers[0]), with_kwargs=True
        )
        qwen2.generate(**padded([prompt(5)] * 3), max_new_tokens=4, min_new_tokens=4)
        handle.remove()
    layer = caches[-1]
    assert layer.keys.shape == (3, 2, 5 + 3, 8)  # 5 tokens of the prompt and 3 of the 4 that were made
    assert layer.keys.untyped_storage().nbytes() == 3 * 2 * (5 + generation.SPARE) * 8 * 4  # one room for all of them


# --- what goes through the model's own loop ---------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_said_yet():
    generation._say_once.cache_clear()


REFUSED = {
    "beam": {"num_beams": 2},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "use_cache": {"use_cache": False},
    "return_dict": {"return_dict_in_generate": True},
}


@pytest.mark.parametrize(("said", "settings"), REFUSED.items(), ids=REFUSED)
def test_what_is_not_supported_is_said_and_generated_as_before(qwen2, said, settings):
    given = {**padded(GROUPS["mixed up"]), "max_new_tokens": 6, "do_sample": False, **settings}
    own = qwen2.generate(**given)
    with shared_prefill(qwen2), pytest.warns(UserWarning, match=f"prompts that rows share .*{said}"):
        ours = qwen2.generate(**given)
    own, ours = (found if torch.is_tensor(found) else found.sequences for found in (own, ours))
    assert ours.equal(own)
    with shared_prefill(qwen2), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        qwen2.generate(**given)  # said once


def test_a_model_that_prepares_its_own_inputs_is_left_alone(qwen2, monkeypatch):
    prepare = functools.wraps(GenerationMixin.prepare_inputs_for_generation)(
        lambda *args, **given: GenerationMixin.prepare_inputs_for_generation(*args, **given)
    )
    monkeypatch.setattr(Qwen2ForCausalLM, "prepare_inputs_for_generation", prepare)
    with shared_prefill(qwen2), pytest.warns(UserWarning, match="prepares its inputs for generation in its own way"):
        qwen2.generate(**padded(GROUPS["mixed up"]), max_new_tokens=2)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_are_left_alone(kind):
    import peft

    torch.manual_seed(0)
    model = peft.get_peft_model(
        MODELS["qwen2"](), getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    given = {**padded(GROUPS["mixed up"]), "max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    own = model.generate(**given)
    with shared_prefill(model), pytest.warns(UserWarning, match="prompts that rows share are encoded for each of them"):
        assert model.generate(**given).equal(own)


def test_rows_that_are_not_padded_on_the_left_are_left_alone(qwen2):
    given = {"input_ids": torch.tensor([[5, 6, 0], [5, 6, 7]]), "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}
    own = qwen2.generate(**given, max_new_tokens=3)
    with shared_prefill(qwen2), pytest.warns(UserWarning, match="not padded on the left"):
        assert qwen2.generate(**given, max_new_tokens=3).equal(own)


def test_sharded_parameters_are_left_alone(qwen2, monkeypatch):
    monkeypatch.setattr(qwen2, "parameters", lambda: iter([torch.empty(0)]))
    with shared_prefill(qwen2), pytest.warns(UserWarning, match="the parameters are sharded"):
        qwen2.generate(**padded([prompt(3)]), max_new_tokens=2)


def test_a_model_without_a_cache_in_training_is_left_alone():
    model = MODELS["qwen2"]().train()
    model.gradient_checkpointing_enable()
    with shared_prefill(model), pytest.warns(UserWarning, match="keeps no cache"):
        model.generate(**padded([prompt(3)] * 2), max_new_tokens=2)


def test_the_models_generate_comes_back(qwen2):
    own = qwen2.generate
    with contextlib.suppress(KeyError), shared_prefill(qwen2):
        assert qwen2.generate != own
        raise KeyError
    assert qwen2.generate == own
    assert "generate" not in vars(qwen2)
    with shared_prefill(qwen2):
        inner = qwen2.generate
        with shared_prefill(qwen2):
            pass
        assert qwen2.generate is inner


# --- in the trainer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [DrGRPO(), PrefixRFT(horizon=1, end=0.2, high=0.6)], ids=["groups", "prefixes"])
def test_the_trainer_generates_the_same_with_fewer_tokens_encoded(tmp_path, method):
    found, encoded = [], []
    for shared in (True, False):
        made = trainer(tmp_path, method)
        if not shared:
            made._generating = lambda plan, count: contextlib.nullcontext()
        with passes(made.model) as shapes:
            torch.manual_seed(3)
            found.append(generation_batch(made))
        encoded.append(sum(rows * width for rows, width in shapes if width > 1))
        assert "generate" not in vars(made.model)
    ours, own = found
    for key in ("prompt_ids", "completion_ids", "completion_mask", "prefix_mask"):
        assert ours[key].equal(own[key]), key
    assert encoded[0] < encoded[1]


@pytest.mark.parametrize("other", ["use_vllm", "use_transformers_continuous_batching"])
def test_other_engines_are_left_alone(tmp_path, monkeypatch, other):
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", FakeEngine)
    for named, encoded_once in (({}, True), ({other: True}, False)):
        made = trainer(tmp_path, DrGRPO(), **named)
        if made.use_vllm:
            assert isinstance(made._generating, EachRow)
            continue
        with made._generating(None, 1):
            assert ("generate" in vars(made.model)) == encoded_once


def test_an_adapter_generates_the_same(tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(policy(byte_level_bpe()), LoraConfig(r=4, init_lora_weights=False, lora_dropout=0.0))
    ids = {"input_ids": torch.tensor([prompt(9)] * 3 + [prompt(6, 1)[:6] + [2] * 3] * 3)}
    config = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    own = model.generate(**ids, generation_config=config)
    with shared_prefill(model), passes(model.get_base_model()) as shapes:
        ours = model.generate(**ids, generation_config=config)
    assert ours.equal(own)
    assert shapes[0] == (2, 9)
