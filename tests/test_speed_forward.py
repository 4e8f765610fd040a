"""Log-probabilities, entropies and gradients of the fast path equal those of the plain one, model by model."""

import warnings
from functools import partial

import pytest
import torch
import transformers
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from trl.trainer.utils import add_fused_lm_head

from prefix_rl.errors import StackError
from prefix_rl.speed import forward
from prefix_rl.speed.forward import Encoder, check_equal, pack, unsupported
from prefix_rl.speed.settings import OFF, Speed
from prefix_rl.speed.tree import lay_out

ALWAYS = Speed(verify="always")
SMALL = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
MODELS = {
    "Qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen2, YaRN": ("Qwen2", {"rope_parameters": YARN}),
    "Qwen3": ("Qwen3", {"head_dim": 16}),
    "Llama": ("Llama", {}),
    "Mistral, every row inside its window": ("Mistral", {"sliding_window": 80}),
    "Gemma 2, soft caps": ("Gemma2", {"head_dim": 8, "sliding_window": 80, "attn_logit_softcapping": 2.0,
                                      "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 4}),
}  # fmt: skip


def model(name="Qwen2", seed=0, **changes):
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **changes})
    made = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config)
    add_fused_lm_head(made, outputs=("log_probs", "entropy"))
    return made.train()


def score(policy, input_ids, attention_mask, width, batch_size=None, compute_entropy=True, images=None):
    """What TRL does."""
    found = []
    size = batch_size or len(input_ids)
    for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-width] = -100
        found.append(policy(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True))
    logps, entropies = (torch.cat([getattr(f, n)[:, -width:] for f in found]) for n in ("log_probs", "entropy"))
    return logps, entropies if compute_entropy else None, None


def padded(rows):
    """Rows of (prompt, completion) as TRL pads them: prompts on the left, completions on the right."""
    left, right = max(len(p) for p, _ in rows), max(max(len(c) for _, c in rows), 1)
    ids = torch.tensor([[0] * (left - len(p)) + p + c + [0] * (right - len(c)) for p, c in rows])
    mask = torch.tensor([[0] * (left - len(p)) + [1] * (len(p) + len(c)) + [0] * (right - len(c)) for p, c in rows])
    return ids, mask, right


def words(count, seed):
    return torch.randint(2, 61, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def groups():
    """Two prompts, one of them with a forced prefix that rows hold whole, in part, alone or not at all; one row alone."""
    prompt, other, forced = words(20, 1), words(25, 2), words(24, 3)
    return [
        *[(prompt, forced + words(n, 10 + n)) for n in (9, 1, 17)],
        (prompt, forced),  # a prefix that is the whole completion
        (prompt, forced[:13] + words(6, 4)),  # parts with the others inside the forced prefix
        (prompt, words(11, 5)), (prompt, words(11, 5)),  # no prefix; twice the same
        (other, words(30, 6)), (other, []),  # and nothing written
        (words(7, 7), words(3, 8)),
    ]  # fmt: skip


def outcome(encoder, policy, inner, batch, batch_size=None, weights=None):
    """Log-probabilities, entropies, and the gradient of a weighted sum of both."""
    ids, mask, width = batch
    policy.zero_grad()
    logps, entropies, _ = encoder(score, policy, inner, ids, mask, width, batch_size, compute_entropy=True)
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(9)) if weights is None else weights
    ((logps + 0.3 * entropies) * weights * mask[:, -width:]).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    return logps.detach(), entropies.detach(), gradient


def assert_equal(ours, plain, most=1e-5):
    for one, other in zip(ours, plain, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= most * other.norm()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True, "reentrant"])
def test_the_fast_path_equals_the_plain_one(name, checkpointing):
    made = model(MODELS[name][0], **MODELS[name][1])
    if checkpointing:
        made.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        made.enable_input_require_grads()
    usual = made.config._attn_implementation
    plain, encoder = outcome(Encoder(OFF), made, made, padded(groups())), Encoder(ALWAYS, pytest.fail)
    assert_equal(outcome(encoder, made, made, padded(groups())), plain)
    assert encoder.tokens == {"encoded": 20 + 24 + 27 + 6 + 22 + 55 + 10, "rows": 394, "padded": 10 * (25 + 41)}
    assert made.config._attn_implementation == usual
    assert plain[2].norm() > 1


def test_the_entropies_differ_and_padding_is_zero():
    made = model()
    logps, entropies, _ = outcome(Encoder(ALWAYS), made, made, padded(groups()))
    mask = padded(groups())[1][:, -logps.shape[1] :].bool()
    assert (logps[~mask] == 0).all()
    assert (entropies[~mask] == 0).all()
    assert (logps[mask] < 0).all()


def test_log_probabilities_alone_without_gradient_in_chunks():
    made = model()
    ids, mask, width = padded(groups())
    with torch.no_grad():
        for size in (1, 3, 10):
            ours, plain = (
                Encoder(speed)(score, made, made, ids, mask, width, size, compute_entropy=False)
                for speed in (ALWAYS, OFF)
            )
            assert (ours[0] - plain[0]).abs().max() < 1e-5
            assert ours[1] is plain[1] is None


def test_rows_without_a_completion_hang_on_the_model_and_move_nothing():
    made = model()
    logps, entropies, gradient = outcome(Encoder(ALWAYS), made, made, padded([(words(9, 1), []), (words(5, 2), [])]))
    assert logps.tolist() == entropies.tolist() == [[0.0], [0.0]]
    assert gradient.abs().max() == 0  # and backward() did not fail


def test_as_many_passes_as_the_plain_path():
    made, passes = model(), []
    made.register_forward_hook(lambda *_: passes.append(1))
    ids, mask, width = padded(groups())
    for size, count in ((None, 1), (4, 3)):
        passes.clear()
        Encoder(Speed(verify="never"))(score, made, made, ids, mask, width, size)
        assert len(passes) == count


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(2, 3), max_size=10)), min_size=1, max_size=7
    ),
    st.integers(1, 20),
)  # fmt: skip
@examples(40)
def test_random_tries_of_random_rows(drawn, saving):
    made = model(num_hidden_layers=1)
    batch = padded([([5, 6, 7 + which] * (which + 1), completion) for which, completion in drawn])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "lay_out", partial(lay_out, minimum_saving=saving))
        ours = outcome(Encoder(ALWAYS), made, made, batch)
    plain = outcome(Encoder(OFF), made, made, batch)
    for one, other in zip(ours, plain, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-6


def test_a_shared_token_gets_the_sum_of_its_rows_gradients():
    made, prompt, forced = model(), words(20, 1), words(24, 2)
    rows = padded([(prompt, forced), (prompt, forced)])
    # Weighted +1 in one row and -1 in the other it does not move at all, with +1 twice it does
    apart, twice = torch.ones(2, 24), torch.ones(2, 24)
    apart[1] = -1
    assert outcome(Encoder(ALWAYS), made, made, rows, weights=apart)[2].abs().max() < 1e-6
    assert outcome(Encoder(ALWAYS), made, made, rows, weights=twice)[2].abs().max() > 1
    packed = pack(*rows)
    assert len(packed.layout.ids) == 44
    assert packed.labels.tolist() == [forced]
    assert packed.index.tolist() == [list(range(24))] * 2


def test_bfloat16_is_as_near_to_float32_as_the_plain_path():
    rows, exact = padded(groups()), model()
    low = model().to(torch.bfloat16)
    low.load_state_dict(exact.state_dict())
    exact.load_state_dict(low.state_dict())  # the same rounded weights in both
    reference = outcome(Encoder(OFF), exact, exact, rows)
    plain = outcome(Encoder(OFF), low, low, rows)
    alone = outcome(Encoder(OFF), low, low, rows, batch_size=1)
    ours = outcome(Encoder(ALWAYS), low, low, rows)
    for truth, *found in zip(reference, plain, alone, ours, strict=True):
        errors = [float((x.float() - truth).norm()) for x in found]
        assert errors[2] <= 1.25 * max(errors[:2])
        assert errors[2] < 0.05 * float(truth.norm())


def test_autocast_equals_the_plain_path():
    made = model("Qwen3", head_dim=16)

    def autocast(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return score(*args, **kwargs)

    ids, mask, width = padded(groups())
    exact, *_ = score(made, ids, mask, width)
    plain, *_ = autocast(made, ids, mask, width)
    ours, *_ = Encoder(ALWAYS)(autocast, made, made, ids, mask, width)
    assert (ours - exact).norm() <= 1.25 * (plain - exact).norm()
    assert (plain - exact).norm() > 0


def adapted(made, **changes):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **changes
    )
    return peft.get_peft_model(made, config)


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
@pytest.mark.parametrize("speed", [ALWAYS, Speed(shared_prefix=False)], ids=["packed", "trimmed"])
def test_virtual_tokens_take_the_plain_path(kind, speed):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    made = model()
    policy = peft.get_peft_model(made, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    ids, mask, width = padded(groups())
    said, pad = [], torch.zeros(len(ids), 4, dtype=torch.long)
    # Columns of padding stand between virtual tokens and prompts, so that leaving them out would move the prompts
    wide = (torch.cat([pad, ids], dim=1), torch.cat([pad, mask], dim=1), width)
    encoder = Encoder(speed, said.append)
    assert_equal(outcome(encoder, policy, made, wide), outcome(Encoder(OFF), policy, made, wide), most=0)
    assert encoder.tokens["encoded"] == 0
    assert ["virtual tokens" in text for text in said] == ([True] if speed.shared_prefix else [])


def test_lora_and_its_reference_without_the_adapter():
    made = model()
    ids, mask, width = batch = padded(groups())
    before, *_ = score(made, ids, mask, width)
    policy = adapted(made)
    ours, plain = (outcome(Encoder(speed, pytest.fail), policy, made, batch) for speed in (ALWAYS, OFF))
    assert_equal(ours, plain)
    with policy.disable_adapter(), torch.no_grad():
        reference, *_ = Encoder(ALWAYS)(score, policy, made, ids, mask, width)
    assert (reference - before).abs().max() < 1e-5
    assert (reference - ours[0]).abs().max() > 0.1


# --- refused, with the reason, and right all the same -----------------------------------------------------------------


REFUSED = {
    "a window that is shorter than a row": (lambda: model("Mistral", sliding_window=40), "sliding window of 40 tokens"),
    "dropout": (lambda: model(attention_dropout=0.5).eval().train(), "dropout"),
    "positions that are learned": (lambda: model("GPT2", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), "not rotary"),
    "positions that depend on the batch": (
        lambda: model("Llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "dynamic"),
    "a recurrent model": (lambda: model("Mamba", state_size=4, num_hidden_layers=1), "attention"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_says_so_once_and_takes_the_plain_path(case):
    made, reason = REFUSED[case][0](), REFUSED[case][1]
    said, batch = [], padded(groups())
    encoder = Encoder(ALWAYS, said.append)
    for _ in range(2):
        torch.manual_seed(3)
        ours = outcome(encoder, made, made, batch)
    torch.manual_seed(3)
    assert_equal(ours, outcome(Encoder(OFF), made, made, batch))
    assert len(said) == 1
    assert "takes the plain path" in said[0]
    assert reason in said[0]
    assert encoder.tokens["encoded"] == 0


def test_dropout_is_refused_in_training_only():
    policy = adapted(model(), lora_dropout=0.1)
    inner = policy.get_base_model()
    assert "dropout" in unsupported(inner)
    policy.eval()
    assert unsupported(inner) is None


def test_images_take_the_plain_path():
    said, made = [], model()
    encoder = Encoder(Speed(), said.append)
    encoder(score, made, made, *padded(groups()), images=[1])
    assert said == ["speed.shared_prefix: this model or setting takes the plain path, since images is given"]
    assert encoder.tokens["encoded"] == 0


def test_a_model_that_is_not_what_it_seems_is_stopped():
    made = model()
    made.base_model.layers[1].register_forward_hook(lambda _, __, out: out + out.mean(dim=1, keepdim=True))
    with pytest.raises(StackError, match=r"instead of -.*Set speed\.shared_prefix = false"):
        Encoder(Speed())(score, made, made, *padded(groups()))
    Encoder(Speed(verify="never"))(score, made, made, *padded(groups()))


def test_the_check_is_made_once_for_each_model_or_always():
    one, other = model(), model(seed=1)
    for verify, calls in (("first", 5 + 2), ("always", 2 * 5), ("never", 5)):
        passes = []
        encoder = Encoder(Speed(verify=verify))

        def counted(*args, passes=passes, **kwargs):
            passes.append(1)
            return score(*args, **kwargs)

        for made in (one, one, other, one, other):
            encoder(counted, made, made, *padded(groups()))
        assert len(passes) == calls


def test_the_check_waits_for_the_first_micro_batch_that_is_packed():
    long, short = padded(groups()), padded([(words(9, 1), words(5, 2)), (words(9, 1), words(5, 3))])
    for here, elsewhere, calls in (
        ([long, long, short, short], [False] * 4, 4 + 1),  # the third is packed, and compared
        (
            [long, long, short, short],
            [False, True, False, False],
            4 + 1,
        ),  # another rank packs the second: a pass here too
        ([short, short, long, short], [False, False, True, True], 4 + 1),
    ):
        made, passes, asked = model("Mistral", sliding_window=40), [], iter(elsewhere)
        encoder = Encoder(Speed(), lambda _: None, anywhere=lambda packs, asked=asked: next(asked) or packs)

        def counted(*args, passes=passes, **kwargs):
            passes.append(1)
            return score(*args, **kwargs)

        for batch in here:
            encoder(counted, made, made, *batch)
        assert len(passes) == calls
        assert made in encoder._verified
    made = model("Mistral", sliding_window=40)
    made.base_model.layers[1].register_forward_hook(lambda _, __, out: out + out.mean(dim=1, keepdim=True))
    encoder = Encoder(Speed(), lambda _: None)
    encoder(score, made, made, *long)
    with pytest.raises(StackError):
        encoder(score, made, made, *short)


@pytest.mark.parametrize("low_precision", [False, True])
def test_the_tolerances(low_precision):
    plain = torch.tensor([[-1.0, -3.0, 0.0]])
    allowed = 0.03 if low_precision else 1e-4  # relative to 1 + |b|: 2 and 4
    within = plain + torch.tensor([[2.0, -4.0, 0.0]]) * allowed * 0.99
    beyond = plain + torch.tensor([[2.0, -4.0, 0.0]]) * allowed * 1.01
    check_equal(within, plain, low_precision)
    with pytest.raises(StackError, match=r"most at token [01] of row 0"):
        check_equal(beyond, plain, low_precision)
    with pytest.raises(StackError):
        check_equal(plain * torch.nan, plain, low_precision)


# --- padding ----------------------------------------------------------------------------------------------------------


def test_trimming_alone_leaves_out_columns_and_changes_nothing():
    made, widths = model(), []

    def watched(policy, ids, *args, **kwargs):
        widths.append(tuple(ids.shape))
        return score(policy, ids, *args, **kwargs)

    ids, mask, width = padded(groups())
    trim = Encoder(Speed(shared_prefix=False), pytest.fail)
    ours = trim(watched, made, made, ids, mask, width, 2)
    plain = score(made, ids, mask, width)
    assert (ours[0] - plain[0]).abs().max() < 1e-5
    # Pairs of rows: the longer prompts have 20, 20, 20, 25 and 25 tokens, the longer completions 33, 41, 19, 30 and 3
    assert widths == [(2, 20 + 33), (2, 20 + 41), (2, 20 + 19), (2, 25 + 30), (2, 25 + 3)]


def test_nothing_is_done_where_all_is_off():
    seen = []
    Encoder(OFF)(lambda *args, **kwargs: seen.append((args, kwargs)), "model", None, "ids", "mask", 7, 2, given=1)
    assert seen == [(("model", "ids", "mask", 7, 2), {"given": 1})]


def test_a_warning_is_what_a_user_sees():
    made = model("Mistral", sliding_window=40)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Encoder(Speed())(score, made, made, *padded(groups()))
    assert "sliding window" in str(caught[0].message)
