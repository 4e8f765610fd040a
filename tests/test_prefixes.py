import math
import re
import statistics

import pytest
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from small import CORPUS, TOKENIZERS

from prefix_rl.data.tokenizer import DemonstrationTable, Turn, encode
from prefix_rl.prefixes import NO_PREFIX, Demonstration, Prefix, cut, draw_fraction, join, tokens_in, uniform
from prefix_rl.rewards.guard import readable_from, safe_cuts

ids = st.lists(st.integers(0, 999), min_size=2, max_size=60).map(tuple)


def whole(tokens):
    return Demonstration(tokens, safe_length=len(tokens))


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_a_draw_depends_on_its_key_alone():
    assert uniform("fraction", 0, 3, 17) == uniform("fraction", 0, 3, 17)
    keys = [(seed, step, row) for seed in range(3) for step in range(20) for row in range(20)]
    assert len({uniform("fraction", *key) for key in keys}) == len(keys)


def test_a_draw_is_the_same_on_every_machine():
    assert uniform("fraction", 0, 0, 0) == 0.13743100554247267


def test_draws_are_uniform():
    draws = sorted(uniform("fraction", 7, step, row) for step in range(100) for row in range(50))
    # Kolmogorov-Smirnov: for n = 5000, P(distance > 1.63 / sqrt(n)) = 1 %
    distance = max(abs(d - (i + 0.5) / len(draws)) for i, d in enumerate(draws))
    assert distance < 1.63 / math.sqrt(len(draws))


@given(low=st.floats(0, 1), high=st.floats(0, 1), u=st.floats(0, 1, exclude_max=True))
def test_a_fraction_lies_between_its_bounds_whichever_is_larger(low, high, u):
    assert min(low, high) - 1e-12 <= draw_fraction(low, high, u) <= max(low, high) + 1e-12


# --- cutting ----------------------------------------------------------------------------------------------------------


@given(tokens=ids, fraction=st.floats(0, 1), least=st.integers(1, 5), most=st.integers(1, 80), safe=st.integers(0, 60))
def test_a_prefix_is_a_slice_within_every_limit(tokens, fraction, least, most, safe):
    demonstration = Demonstration(tokens, safe_length=min(safe, len(tokens)))
    prefix = cut(demonstration, fraction, min_tokens=least, max_tokens=most)
    assert tuple(prefix.ids) == tokens[: len(prefix.ids)]
    assert len(prefix.ids) <= min(most, demonstration.safe_length, len(tokens) - 1)
    assert prefix.drawn == min(max(tokens_in(fraction, len(tokens)), least), len(tokens) - 1)
    assert abs(tokens_in(fraction, len(tokens)) - math.floor(fraction * len(tokens))) <= 1
    assert len(prefix.ids) == min(prefix.drawn, most, demonstration.safe_length)


def test_the_share_that_a_prefix_had_gives_as_many_tokens_again():
    # What a controller is told of a prefix of k of n tokens is k / n; it may ask for the same again
    lost = 0
    for n in range(2, 400):
        for k in range(n):
            assert tokens_in(k / n, n) == k
            lost += math.floor(k / n * n) != k
    assert lost > 0  # without care some would be a token shorter, such as 1 of 49


@pytest.mark.parametrize(
    ("length", "fraction", "tokens"),
    [(20, 0.95, 19), (10, 0.5, 5), (7, 0.5, 3), (10, 1.0, 9), (10, 0.01, 1)],
)  # 19 = floor(19.0); 5; 3 = floor(3.5); 9 = |demo| - 1; 1 = min_prefix_tokens
def test_the_cut_is_the_floor_of_the_fraction(length, fraction, tokens):
    assert len(cut(whole(tuple(range(length))), fraction, max_tokens=1000).ids) == tokens


def test_a_cut_that_would_end_inside_a_number_steps_back():
    demonstration = Demonstration((1, 2, 3, 4, 5), safe_length=5, misread_lengths=frozenset({3, 2}))
    assert cut(demonstration, 0.6, max_tokens=10).ids == [1]
    assert cut(demonstration, 0.8, max_tokens=10).ids == [1, 2, 3, 4]


def test_a_demonstration_without_a_safe_cut_is_not_usable():
    assert not Demonstration((1, 2, 3), safe_length=0).usable()
    assert not Demonstration((1,), safe_length=1).usable()
    assert not Demonstration((1, 2, 3), safe_length=1, misread_lengths=frozenset({1})).usable()
    assert Demonstration((1, 2), safe_length=2).usable()


def test_the_share_of_a_prefix_is_of_its_demonstration_and_of_none_it_is_no_number():
    assert Prefix([5, 6], of=8).fraction == 0.25
    assert Prefix([5, 6], of=8, share=0.5).fraction == 0.5
    assert Prefix([], of=8).fraction == 0.0
    assert math.isnan(NO_PREFIX.fraction)


@given(prefix=ids, continuation=ids, budget=st.integers(1, 100))
def test_joining_keeps_order_and_budget(prefix, continuation, budget):
    joined = join(prefix, continuation, budget)
    assert joined == list(prefix + continuation)[:budget]


# --- the answer guard -------------------------------------------------------------------------------------------------


def by_character(text, answer, guard="mention"):
    return text[: safe_cuts(text, answer, list(range(1, len(text) + 1)), guard)[0]]


@pytest.mark.parametrize(
    ("text", "answer", "kept"),
    [
        ("48/2 = 24 and 48+24 = 72 clips\n\\boxed{72}", "72", "48/2 = 24 and 48+24 = "),
        ("it costs $1,000 in all", "1000", "it costs $"),
        ("that is 0.5 of it", r"\frac{1}{2}", "that is "),
        ("we find 1/2, so", "0.5", "we find "),
        (r"we find \dfrac{1}{2}, so", "0.5", "we find "),
        ("720 + 2 is not it. 72 is", "72", "720 + 2 is not it. "),
        ("so x = -3", "-3", "so x = -"),
        ("worth 15 dollars", r"\$15", "worth "),
        ("an angle of 30 degrees", r"30^\circ", "an angle of "),
        (r"hence $x^2 + 1$ it is", "x^2+1", "hence $"),
        ("It is Even, clearly", r"\text{even}", "It is "),
        (r"the roots are (1, -2)", "(1,-2)", "the roots are "),
        ("breakeven is not even close", "even", "breakeven is not "),
        ("nothing to read here", "72", "nothing to read here"),
        (r"notation differs: \boxed{seventy-two}", "72", "notation differs: "),
        ("so the answer is seventy-two", "72", "so the "),
        ("steps\n#### 72", "72", "steps\n"),
        ("A circle has A as its centre. The answer is A", "A", "A circle has A as its centre. The "),
    ],
)
def test_the_guard_stops_before_the_answer_can_be_read(text, answer, kept):
    assert by_character(text, answer) == kept


def test_the_statement_guard_lets_a_mention_pass():
    text = r"48+24 = 72 clips, so the answer is \boxed{72}"
    assert by_character(text, "72", "statement") == "48+24 = 72 clips, so the "
    assert by_character(text, "72", "none") == text


def shown(text, answer):
    """The oracle: every number of the text, read slowly, and every statement."""
    numbers = {m.replace(",", "") for m in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)}
    return answer in numbers or "\\boxed" in text or "answer is" in text


@examples(60)
@given(
    a=st.integers(1, 300), b=st.integers(1, 300), noise=st.lists(st.integers(0, 9999), max_size=4),
    name=st.sampled_from(sorted(TOKENIZERS)), fraction=st.floats(0, 1),
)  # fmt: skip
def test_no_prefix_shows_its_answer_in_any_tokenizer(a, b, noise, name, fraction):
    tokenizer = _tokenizer(name)
    text = f"Take {noise} first. Then {a} + {b} = {a + b}, and so the answer is \\boxed{{{a + b}}}"
    table = DemonstrationTable([[text]], [str(a + b)], tokenizer)
    for demonstration in table[0]:
        prefix = cut(demonstration, fraction, max_tokens=10**6)
        assert not shown(tokenizer.decode(prefix.ids), str(a + b))


# --- token exactness --------------------------------------------------------------------------------------------------

_MADE = {}


def _tokenizer(name):
    if name not in _MADE:
        _MADE[name] = TOKENIZERS[name]()
    return _MADE[name]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("text", CORPUS)
def test_every_prefix_is_the_demonstrations_own_tokens(name, text):
    tokenizer = _tokenizer(name)
    tokens, ends = encode(text, tokenizer)
    table = DemonstrationTable([[text]], ["never mentioned"], tokenizer, guard="none")
    assert list(table[0][0].ids) == tokens == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ends) == len(tokens)
    assert ends == sorted(ends)
    for k in range(1, len(tokens)):  # every cut, inside multi-byte characters and words too
        prefix = cut(table[0][0], k / len(tokens) + 1e-9, max_tokens=10**6)
        assert prefix.ids == tokens[:k]


def test_a_cut_may_fall_inside_a_character():
    tokenizer = _tokenizer("byte-level BPE")
    tokens, _ = encode("🙂", tokenizer)
    assert len(tokens) == 4  # four bytes, none of them merged
    assert "\ufffd" in tokenizer.decode(tokens[:2])
    assert tokenizer.decode(tokens[:2] + tokens[2:]) == "🙂"  # ids in, ids out: the character is whole again


@pytest.mark.parametrize("name", TOKENIZERS)
def test_eos_and_padding_never_stand_in_a_prefix(name):
    tokenizer = _tokenizer(name)
    text = "48 / 2 = 24<eos> and then <pad> more"
    (demonstration,) = DemonstrationTable([[text]], ["never"], tokenizer, guard="none")[0]
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(demonstration.ids)
    assert tokenizer.decode(demonstration.ids).strip().startswith("48")


def test_a_thought_that_the_prompt_has_opened_is_not_opened_again():
    tokenizer = _tokenizer("byte-level BPE")
    given = [["<think>\n48 / 2 = 24"]]
    (doubled,) = DemonstrationTable(given, ["0"], tokenizer, guard="none")[0]
    (once,) = DemonstrationTable(given, ["0"], tokenizer, guard="none", turn=Turn("assistant\n<think>\n"))[0]
    assert tokenizer.decode(doubled.ids) == "<think>\n48 / 2 = 24"
    assert tokenizer.decode(once.ids) == "48 / 2 = 24"


def test_the_data_may_know_better_where_the_answer_becomes_readable():
    tokenizer = _tokenizer("characters")
    given = [[{"text": "1 2 3 (1, 3)", "readable_from": 4}]]
    (demonstration,) = DemonstrationTable(given, ["(1, 3)"], tokenizer)[0]
    assert demonstration.safe_length == 4


def test_mean_fraction_of_the_papers_draw_follows_its_table():
    # mean l = (low_t + 0.95) / 2; t = 0: 0.950, t = 250: (0.5 + 0.95) / 2 = 0.725, t = 500: 0.500
    from prefix_rl.schedules import cosine_decay

    low = cosine_decay(0.95, 0.05, 500)
    for step, mean in ((0, 0.950), (100, 0.907), (200, 0.795), (250, 0.725), (300, 0.655), (400, 0.543), (500, 0.500)):
        drawn = [draw_fraction(low(step), 0.95, uniform("fraction", 0, step, row)) for row in range(4000)]
        assert statistics.fmean(drawn) == pytest.approx(mean, abs=0.012)  # 3 standard errors: 3 * 0.26 / sqrt(4000)


def test_a_number_that_python_does_not_convert_hides_nothing_and_breaks_nothing():
    text = "9" * 5000 + " = 42"
    ends = list(range(1, len(text) + 1))
    assert safe_cuts(text, "42", ends)[0] == readable_from(text, "42") == len(text) - 2
    assert readable_from(text, "7" * 5000) == len(text)


@given(
    st.text(alphabet="0123456789,. =/abAnswer is\\{}", max_size=40),
    st.sampled_from(["42", "4", "a", "0.5", "1,000", "1/2"]),
)
def test_the_offset_is_where_cuts_of_single_characters_end(text, answer):
    ends = list(range(1, len(text) + 1))
    for guard in ("mention", "statement", "none"):
        assert readable_from(text, answer, guard) == safe_cuts(text, answer, ends, guard)[0]
