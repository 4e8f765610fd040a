import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.masks import first_fraction_mask, top_entropy_mask


def slow_mask(entropies, candidates, share):
    """The oracle: sort the candidates one by one, first the highest entropy, then the earliest position."""
    places = [(r, c) for r, row in enumerate(candidates) for c, chosen in enumerate(row) if chosen]
    keep = len(places) - math.floor((1 - Fraction(str(share))) * len(places))
    kept = sorted(places, key=lambda place: (-entropies[place[0]][place[1]], place))[:keep]
    return [[(r, c) in kept for c in range(len(row))] for r, row in enumerate(candidates)]


@st.composite
def batches(draw):
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    values = st.sampled_from([0.0, 0.1, 0.5, 0.5, 1.0, 2.5])  # few values, so that ties are common
    entropies = [[draw(values) for _ in range(columns)] for _ in range(rows)]
    candidates = [[draw(st.booleans()) for _ in range(columns)] for _ in range(rows)]
    return entropies, candidates


@given(batch=batches(), share=st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 0.9, 1.0]))
def test_the_mask_equals_a_slow_sort(batch, share):
    entropies, candidates = batch
    fast = top_entropy_mask(torch.tensor(entropies), torch.tensor(candidates), share)
    assert fast.tolist() == slow_mask(entropies, candidates, share)


@given(batch=batches(), share=st.sampled_from([0.1, 0.2, 0.5, 0.9]))
def test_rowwise_is_the_mask_of_each_row(batch, share):
    entropies, candidates = torch.tensor(batch[0]), torch.tensor(batch[1])
    together = top_entropy_mask(entropies, candidates, share, rowwise=True)
    apart = [top_entropy_mask(entropies[i : i + 1], candidates[i : i + 1], share) for i in range(len(entropies))]
    assert together.equal(torch.cat(apart))


@pytest.mark.parametrize(
    ("n", "share", "kept"),
    [(10, 0.2, 2), (11, 0.2, 3), (3, 0.2, 1), (10, 0.9, 9), (10, 0.3, 3), (7, 0.0, 0), (7, 1.0, 7)],
)  # n - floor((1 - share) n): 10 - 8, 11 - floor(8.8), 3 - floor(2.4), 10 - 1 (and not 10 - floor(0.99..)), ...
def test_the_count_is_exact(n, share, kept):
    entropies = torch.rand(1, n, generator=torch.Generator().manual_seed(n))
    assert int(top_entropy_mask(entropies, torch.ones(1, n, dtype=torch.bool), share).sum()) == kept


def test_equal_entropies_keep_the_earlier_tokens():
    mask = top_entropy_mask(torch.ones(2, 5), torch.ones(2, 5, dtype=torch.bool), 0.3)
    assert mask.tolist() == [[True, True, True, False, False], [False] * 5]


def test_a_batch_without_candidates_keeps_nothing():
    assert not top_entropy_mask(torch.rand(2, 3), torch.zeros(2, 3, dtype=torch.bool), 0.2).any()


@given(batch=batches())
def test_what_stands_outside_the_candidates_does_not_matter(batch):
    entropies, candidates = torch.tensor(batch[0]), torch.tensor(batch[1])
    disturbed = torch.where(candidates, entropies, torch.nan)
    assert top_entropy_mask(entropies, candidates, 0.2).equal(top_entropy_mask(disturbed, candidates, 0.2))


@given(batch=batches(), order=st.randoms(use_true_random=False))
def test_row_order_does_not_matter_where_entropies_differ(batch, order):
    candidates = torch.tensor(batch[1])
    entropies = torch.rand(candidates.shape, generator=torch.Generator().manual_seed(0))  # no ties
    rows = list(range(len(candidates)))
    order.shuffle(rows)
    shuffled = top_entropy_mask(entropies[rows], candidates[rows], 0.2)
    assert shuffled.equal(top_entropy_mask(entropies, candidates, 0.2)[rows])


def test_missing_entropies_are_refused():
    with pytest.raises(ValueError, match="no entropy"):
        top_entropy_mask(torch.tensor([[0.1, torch.nan]]), torch.tensor([[True, True]]), 0.2)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"fraction in \[0, 1\]"):
        top_entropy_mask(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), share)


def test_shapes_are_checked():
    with pytest.raises(Exception, match="candidates"):
        top_entropy_mask(torch.ones(2, 3), torch.ones(2, 4, dtype=torch.bool), 0.2)


# --- the first share of each row --------------------------------------------------------------------------------------


@given(batch=batches(), share=st.integers(0, 100).map(lambda percent: percent / 100))
def test_the_first_fraction_equals_a_slow_count(batch, share):
    _, rows = batch
    expected = []
    for row in rows:
        allowed, seen = math.floor(Fraction(str(share)) * sum(row)), 0
        expected.append([])
        for token in row:
            seen += token
            expected[-1].append(token and seen <= allowed)
    assert first_fraction_mask(torch.tensor(rows), share).tolist() == expected


@pytest.mark.parametrize(
    ("n", "share", "kept"), [(100, 0.15, 15), (100, 0.29, 29), (100, 0.35, 35), (6, 0.15, 0), (7, 0.15, 1), (7, 1.0, 7)]
)  # 0.29 * 100 is 28.999... in floating point; 0.15 * 6 = 0.9
def test_the_first_fraction_is_an_exact_count(n, share, kept):
    mask = first_fraction_mask(torch.ones(1, n, dtype=torch.bool), share)
    assert mask[0].tolist() == [True] * kept + [False] * (n - kept)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_first_fraction_outside_its_range_is_refused(share):
    with pytest.raises(ValueError, match=r"fraction in \[0, 1\]"):
        first_fraction_mask(torch.ones(1, 2, dtype=torch.bool), share)
