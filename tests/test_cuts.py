"""Cuts: sentence ends, peaks of entropy, shares of surprisal, and what a prefix that is cut there holds."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import TOKENIZERS

from prefix_rl.cuts import entropy_places, sentence_ends, sentence_places, surprisal_shares
from prefix_rl.data.tokenizer import DemonstrationTable, encode
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.uft import UFT
from prefix_rl.prefixes import Demonstration, cut, tokens_in
from prefix_rl.rollouts import Row, Step


def sentences(text):
    """The sentences, each without the blanks behind it."""
    starts = [0, *(begin for _, begin in sentence_ends(text))]
    return [text[a:b] for a, (b, _) in zip(starts, sentence_ends(text), strict=False)]


# --- sentence ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is 3.14. So x = 2.5. Done", ["It is 3.14.", "So x = 2.5."]),
        ("Is it 7? No! It is 8.", ["Is it 7?", "No!", "It is 8."]),
        ("See Fig. 3 and Eq. (2), e.g. there, i.e. Dr. Who, vs. U.S. law. End.",
         ["See Fig. 3 and Eq. (2), e.g. there, i.e. Dr. Who, vs. U.S. law.", "End."]),
        ("The answer is no. Then stop.", ["The answer is no.", "Then stop."]),
        ("No. 7 wins. Yes.", ["No. 7 wins.", "Yes."]),
        ("1. First we add.\n2. Then we stop.\n", ["1. First we add.", "2. Then we stop."]),
        ("We add\n\nand go on\r\nto the end", ["We add", "and go on"]),
        (r"So \[ a. B = c \] holds. And", [r"So \[ a. B = c \] holds."]),
        ("So\n\\[ a = b.\n C \\]\nThen", ["So", "\\[ a = b.\n C \\]"]),
        (r"So \[ a = b. \] Then $x = 3.$ And $$y! Z.$$ Go", [r"So \[ a = b. \]", "Then $x = 3.$", "And $$y! Z.$$"]),
        (r"\begin{align*} a. B \\ C. D \end{align*} E. F", [r"\begin{align*} a. B \\ C. D \end{align*} E."]),
        ("It costs $5. Then $6 more. Ok", ["It costs $5.", "Then $6 more."]),
        ("Since 5! = 120 and n! > 9. Yes", ["Since 5! = 120 and n! > 9."]),
        ("Now 5! And then", ["Now 5!"]),
        ('He said "yes." Then (it is so.) And **bold.** End', ['He said "yes."', "Then (it is so.)", "And **bold.**"]),
        ("1, 2, ... , 9 and so on... Wait", ["1, 2, ... , 9 and so on..."]),
        ("所以答案是3。因此x=2！对吗？「是。」好", ["所以答案是3。", "因此x=2！", "对吗？", "「是。」"]),
        ("３．１４です．次", ["３．１４です．"]),
        ("x = a. Then y", ["x = a."]),
        ("", []), ("no end", []), ("\n\n", [""]), ("a.b.c", []),
    ],
)  # fmt: skip
def test_sentence_ends(text, found):
    assert sentences(text) == found


@pytest.mark.parametrize("short", ["Mr", "Mrs", "Ms", "Dr", "Prof", "St", "vs", "cf", "eg", "ie", "resp", "approx", "Thm", "Lem", "Prop", "cor"])  # fmt: skip
def test_an_abbreviation_ends_no_sentence(short):
    assert sentences(f"We take {short}. Euler and 2. So") == [f"We take {short}. Euler and 2."]


@pytest.mark.parametrize(
    "short", ["No", "Nos", "Fig", "figs", "Eq", "eqs", "Sec", "secs", "ch", "Vol", "p", "pp", "Ex", "art", "Nr"]
)
def test_some_are_abbreviations_in_front_of_a_number_alone(short):
    assert sentences(f"We take {short}. 3 here. So") == [f"We take {short}. 3 here."]
    assert sentences(f"We take {short}. (3) here. So") == [f"We take {short}. (3) here."]
    assert sentences(f"We take {short}. Then here. So") == [f"We take {short}.", "Then here."]


@given(st.text(alphabet=".!?。．…\n \t$\\[]()Aa1e\"'!*", max_size=60))
def test_sentence_ends_of_any_text_are_in_order_and_split_it(text):
    ends = sentence_ends(text)
    assert all(0 <= end <= begin <= len(text) for end, begin in ends)
    assert all(one[1] < other[1] or one[1] == other[1] == len(text) for one, other in itertools.pairwise(ends))
    assert all(text[end:begin].strip() == "" for end, begin in ends)


def test_a_long_text_with_openings_that_never_close_is_read_in_time():
    assert len(sentence_ends(r"So \[ x. $ \( Then \begin{align} y. " * 3000)) > 100


@pytest.mark.parametrize("name", TOKENIZERS)
def test_cuts_at_sentence_ends_lie_between_tokens(name):
    tokenizer = TOKENIZERS[name]()
    text = "We have 1,234.5 + 765.5 = 2,000. Then x = 3 is it. The rest is 5. So"
    table = DemonstrationTable([[text]], ["9999"], tokenizer, cut="sentences")
    [demonstration] = table[0]
    ids, ends = encode(text, tokenizer)
    assert list(demonstration.ids) == ids
    # each place is as far as one can go without beginning the next sentence
    slow = []
    for end, begin in sentence_ends(text):
        inside = [k + 1 for k, at in enumerate(ends) if end <= at <= begin and k + 1 < len(ids)]
        slow += inside[-1:]
    assert demonstration.places == tuple(slow)
    assert len(slow) == 3
    for place in slow:
        assert cut(demonstration, (place + 1) / len(ids), max_tokens=1000).ids == ids[:place]


def test_a_sentence_that_ends_inside_a_token_is_not_cut_at():
    #       A  b.c   .\n  D    offsets behind the tokens
    assert sentence_places("Ab. Cd. Ef", [2, 5, 7, 10]) == (3,)  # "Ab" ". C" "d." " Ef": the first end is inside ". C"
    assert sentence_places("Ab.\n\nCd", [2, 5, 7]) == (2,)  # ".\n\n" is one token
    assert sentence_places("Ab. Cd", [3, 4, 6]) == (2,)  # the blank is a token of its own: the cut is behind it
    assert sentence_places("好。好", [1, 1, 2, 3]) == (3,)  # a sign in two tokens
    assert (
        sentence_places("A. Bc. D", [5, 8]) == ()
    )  # both ends are inside a token, the first of them before any boundary
    assert sentence_places("好。好。", [1, 2, 2, 3, 4]) == (3,)  # a full stop in two tokens; the whole is no prefix


# --- scores -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5).map(float), min_size=1, max_size=40))
def test_peaks_equal_a_slow_choice(entropies):
    inside, left = math.ceil(0.2 * (len(entropies) - 1)), list(range(1, len(entropies)))
    chosen = []
    for _ in range(inside):
        best = max(left, key=lambda k: (entropies[k], -k))
        chosen.append(best)
        left.remove(best)
    assert entropy_places(entropies) == tuple(sorted(chosen))


@given(st.lists(st.floats(-20, 0), min_size=1, max_size=40), st.floats(0, 1))
def test_a_share_of_surprisal_is_the_shortest_beginning_that_reaches_it(logps, fraction):
    demonstration = Demonstration(tuple(range(len(logps))), len(logps), shares=surprisal_shares(logps))
    found = demonstration.length_of(fraction)
    held = [0.0, *demonstration.shares]
    assert held[found] >= fraction
    assert found == 0 or held[found - 1] < fraction
    assert demonstration.share_of(found) == held[found]
    assert demonstration.length_of(held[found]) == found or held[found] == held[found - 1]


@given(st.integers(1, 50), st.floats(0, 1))
def test_equal_surprisal_is_a_share_of_tokens(n, fraction):
    demonstration = Demonstration(tuple(range(n)), n, shares=surprisal_shares([-0.5] * n))
    assert tokens_in(fraction, n) <= demonstration.length_of(fraction) <= tokens_in(fraction, n) + 1


def test_where_nothing_surprises_tokens_count_alike():
    assert surprisal_shares([0.0, 0.0]) == (0.5, 1.0)


# --- what is injected -------------------------------------------------------------------------------------------------

IDS = tuple(range(100, 120))


@given(
    places=st.lists(st.integers(1, 19), unique=True).map(lambda p: tuple(sorted(p))), fraction=st.floats(0, 1),
    safe=st.integers(0, 20), most=st.integers(1, 25), misread=st.frozensets(st.integers(1, 19), max_size=5),
    least=st.integers(0, 4),
)  # fmt: skip
def test_a_cut_is_the_last_place_that_is_allowed(places, fraction, safe, most, misread, least):
    demonstration = Demonstration(IDS, safe, misread, places=places)
    prefix = cut(demonstration, fraction, min_tokens=least, max_tokens=most)
    planned = min(max(tokens_in(fraction, 20), least), 19)
    allowed = [p for p in places if p <= min(planned, safe, most) and p not in misread]
    assert prefix.ids == list(IDS[: max(allowed, default=0)])
    assert prefix.drawn == max([p for p in places if p <= planned], default=planned)
    assert prefix.fraction == len(prefix.ids) / 20
    usable = [p for p in places if p <= min(safe, 19) and p not in misread]
    assert demonstration.usable() == bool(usable)


@given(fraction=st.floats(0, 1), safe=st.integers(0, 20), most=st.integers(1, 25))
def test_a_place_behind_every_token_is_a_cut_by_tokens(fraction, safe, most):
    everywhere = Demonstration(IDS, safe, places=tuple(range(1, 20)))
    assert cut(everywhere, fraction, max_tokens=most) == cut(Demonstration(IDS, safe), fraction, max_tokens=most)


def test_a_prefix_by_surprisal_has_its_share_and_the_guards():
    shares = surprisal_shares([-1.0, -1.0, -6.0, -1.0, -1.0])  # .1 .2 .8 .9 1
    demonstration = Demonstration(IDS[:5], 5, shares=shares)
    prefix = cut(demonstration, 0.5, max_tokens=9)
    assert (len(prefix.ids), prefix.drawn, prefix.of, prefix.fraction) == (3, 3, 5, 0.8)
    guarded = cut(Demonstration(IDS[:5], 2, shares=shares), 0.5, max_tokens=9)
    assert (len(guarded.ids), guarded.drawn, guarded.fraction) == (2, 3, 0.2)
    assert cut(demonstration, 0.0, min_tokens=0, max_tokens=9).fraction == 0.0


@pytest.mark.parametrize("method", [PrefixRFT(end=1.0, start=1.0, high=1.0), PrefixRL(plain=0, low=1.0, high=1.0),
                                    UFT(count=1, start=1.0, end=1.0, horizon=9)], ids=lambda m: type(m).__name__)  # fmt: skip
def test_every_prefix_method_cuts_where_it_may(method):
    demonstration = Demonstration(IDS, 20, places=(4, 11))
    prefix = method.prefix(Row(0, 4, 0, (demonstration,)), Step(0, 10, 0, 100))
    assert prefix.ids == list(IDS[:11])
    assert type(method)(cut="surprisal").needs.cut == "surprisal"
