"""The packed trie, its attention, and the order of rows: each against a slow computation row by row."""

from itertools import combinations, pairwise
from types import SimpleNamespace

import pytest
import torch
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.errors import RecipeError
from prefix_rl.recipe import load_recipe
from prefix_rl.speed.attention import (
    KEYWORD,
    _attention_forward,
    attend,
    attend_by_path,
    kernels_for,
)
from prefix_rl.speed.order import (
    SHARE,
    alike_together,
    balanced,
    overlaps,
    rearranged,
    regrouped,
    rows_of,
    windows,
)
from prefix_rl.speed.settings import OFF, Speed
from prefix_rl.speed.tree import Node, lay_out

# Two letters, so that rows meet and part again and again
ROWS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=9)

# --- the trie ---------------------------------------------------------------------------------------------------------


def test_a_shared_prefix_stands_once():
    layout = lay_out([[1, 2, 3, 4], [1, 2, 5], [6, 7]], minimum_saving=1)
    assert layout.ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert layout.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert layout.previous.tolist() == [-1, 0, 1, 2, 1, -1, 5]  # 3 and 5 both follow the 2
    shared = ((0, 2),)
    assert layout.nodes == (Node(0, 2, 5, ()), Node(2, 4, 4, shared), Node(4, 5, 5, shared), Node(5, 7, 7, ()))
    assert [place.tolist() for place in layout.places] == [[0, 1, 2, 3], [0, 1, 4], [5, 6]]
    assert layout.longest == 4


def test_a_node_must_save_its_cost():
    rows = [[1, 2, 3], [1, 2, 4], [1, 2, 5]]  # 2 tokens shared by 3 rows: saves 2 * (3 - 1) = 4
    assert len(lay_out(rows, minimum_saving=4).ids) == 5
    assert len(lay_out(rows, minimum_saving=5).ids) == 9


def test_a_short_shared_part_does_not_hide_a_long_one_behind_it():
    # All begin with 1 (saves 2, too little); two of them share 1 and four more (saves 5)
    layout = lay_out([[1, 2, 2, 2, 2, 3], [1, 2, 2, 2, 2, 4], [1, 5]], minimum_saving=5)
    assert layout.ids.tolist() == [1, 2, 2, 2, 2, 3, 4, 1, 5]


@pytest.mark.parametrize("minimum_saving", [1, 100])
def test_equal_rows_and_rows_that_end_inside_others(minimum_saving):
    rows = [[1, 2, 3], [1, 2, 3], [1, 2], [1, 2, 3, 4], [1]]
    layout = lay_out(rows, minimum_saving)
    assert [layout.ids[place].tolist() for place in layout.places] == rows
    assert len(layout.ids) == (4 if minimum_saving == 1 else 13)


@given(ROWS, st.integers(1, 20))
def test_every_row_is_found_again_and_every_node_is_worth_it(rows, minimum_saving):
    layout = lay_out(rows, minimum_saving)
    assert [layout.ids[place].tolist() for place in layout.places] == rows
    for place in layout.places:
        assert layout.positions[place].tolist() == list(range(len(place)))
        assert layout.previous[place].tolist() == [-1, *place.tolist()[:-1]]
    for node in layout.nodes:
        users = [place for place in layout.places if ((node.start <= place) & (place < node.end)).any()]
        assert len(users) == 1 or (len(users) - 1) * (node.end - node.start) >= minimum_saving
    if minimum_saving == 1:  # nothing stands twice: as many tokens as there are distinct beginnings
        assert len(layout.ids) == len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})


@given(ROWS)
def test_the_waves_hold_every_pair_of_tokens_that_meet_once(rows):
    layout = lay_out(rows, minimum_saving=1)
    length = len(layout.ids)
    meet, seen = torch.zeros(2, length, length, dtype=torch.long)
    for place in layout.places:
        for i, at in enumerate(place.tolist()):
            meet[at, place[: i + 1]] = 1
    everywhere = torch.arange(length)
    for depth, wave in enumerate(layout.waves):
        queries, keys = everywhere[wave.queries], everywhere[wave.keys]
        assert len(queries) == len(set(queries.tolist()))  # so that what a wave gives can be put in place
        assert len(keys) == len(set(keys.tolist()))
        assert wave.causal == (depth == 0)
        bounds = [list(pairwise(ends.tolist())) for ends in (wave.query_ends, wave.key_ends)]
        assert wave.longest == tuple(max(b - a for a, b in side) for side in bounds)
        for (a, b), (c, d) in zip(*bounds, strict=True):
            for i in range(a, b):
                seen[queries[i], keys[c : c + 1 + i - a if depth == 0 else d]] += 1
    assert seen.equal(meet)
    assert everywhere[layout.waves[0].queries].equal(everywhere)  # the first has them all, in order


def test_waves_by_hand():
    # two groups: 1 1 is shared by three rows, of which two share 2 as well; 5 5 by two
    layout = lay_out([[1, 1, 2, 3], [1, 1, 2, 4], [1, 1, 6], [5, 5, 7], [5, 5, 8]], minimum_saving=1)
    assert layout.ids.tolist() == [1, 1, 2, 3, 4, 6, 5, 5, 7, 8]
    own, first, second = layout.waves
    assert own.pairs == tuple((b, b) for b in ((0, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 8), (8, 9), (9, 10)))
    assert first.pairs == (((2, 6), (0, 2)), ((8, 10), (6, 8)))
    assert first.queries.tolist() == [2, 3, 4, 5, 8, 9]  # two slices with a gap
    assert (first.query_ends.tolist(), first.key_ends.tolist(), first.longest) == ([0, 4, 6], [0, 2, 4], (4, 2))
    assert second.pairs == (((3, 5), (2, 3)),)
    assert (second.queries, second.keys) == (slice(3, 5), slice(2, 3))  # nothing is copied


# --- attention --------------------------------------------------------------------------------------------------------


def inputs(length, heads, key_heads, kind, width=8):
    generator = torch.Generator().manual_seed(0)
    shape = [(1, n, length, width) for n in (heads, key_heads, key_heads)]
    return [torch.randn(s, generator=generator, dtype=kind).requires_grad_() for s in shape]


def row_by_row(query, key, value, layout, scale, softcap=None):
    """The oracle: each row alone, its softmax written out."""
    groups = query.shape[1] // key.shape[1]
    out = torch.zeros_like(query)
    for place in layout.places:
        for i, at in enumerate(place.tolist()):
            for head in range(query.shape[1]):
                scores = key[0, head // groups, place[: i + 1]] @ query[0, head, at] * scale
                scores = scores if softcap is None else softcap * (scores / softcap).tanh()
                out[0, head, at] = scores.softmax(0) @ value[0, head // groups, place[: i + 1]]
    return out


TRIE = [
    [1] * 6 + [2] * 4 + [3],
    [1] * 6 + [2] * 4 + [4] * 3,
    [1] * 6 + [5] * 2,
    [1] * 6,
    [7, 8],
    [1] * 6 + [2] * 4 + [3],
]


@pytest.mark.parametrize(("heads", "key_heads"), [(2, 2), (4, 2), (3, 1)])
def test_attention_by_parts_equals_each_row_alone(heads, key_heads):
    layout = lay_out(TRIE, minimum_saving=1)
    assert max(len(node.path) for node in layout.nodes) == 2
    given = inputs(len(layout.ids), heads, key_heads, torch.float64)
    expected = row_by_row(*[x.detach() for x in given], layout, 0.3)
    for function in (attend, attend_by_path):
        assert (function(*given, layout, 0.3) - expected).abs().max() < 1e-12


def test_soft_caps_equal_each_row_alone():
    layout = lay_out(TRIE, minimum_saving=1)
    given = inputs(len(layout.ids), 4, 2, torch.float64)
    expected = row_by_row(*[x.detach() for x in given], layout, 3.0, softcap=2.0)
    assert (attend(*given, layout, 3.0, softcap=2.0) - expected).abs().max() < 1e-12
    assert (attend(*given, layout, 3.0) - expected).abs().max() > 1e-2  # the cap matters


@given(ROWS)
@examples(30)
def test_the_gradient_by_parts_is_autograds(rows):
    layout = lay_out(rows, minimum_saving=1)
    given = inputs(len(layout.ids), 4, 2, torch.float64)
    weights = torch.randn(1, 4, len(layout.ids), 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, plain = (
        torch.autograd.grad((function(*given, layout, 0.3) * weights).sum(), given)
        for function in (attend, attend_by_path)
    )
    for one, other in zip(ours, plain, strict=True):
        assert (one - other).abs().max() < 1e-10


def test_large_scores_do_not_overflow():
    layout = lay_out(TRIE, minimum_saving=1)
    given = inputs(len(layout.ids), 2, 2, torch.float32)
    ours, plain = (function(*given, layout, 300.0) for function in (attend, attend_by_path))
    assert torch.isfinite(ours).all()
    assert (ours - plain).abs().max() < 1e-4
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(ours.sum(), given))


def test_transformers_gets_what_it_asks_for_or_a_refusal():
    layout = lay_out(TRIE, minimum_saving=1)
    given = [x.detach() for x in inputs(len(layout.ids), 4, 2, torch.float64, width=16)]
    asked = {KEYWORD: layout}
    for scaling, scale in ((None, 0.25), (0.3, 0.3)):  # 16 ** -0.5
        out, _ = _attention_forward(None, *given, None, scaling=scaling, **asked)
        assert (out.transpose(1, 2) - row_by_row(*given, layout, scale)).abs().max() < 1e-12
    assert layout.longest == 13  # 6 + 4 + 3
    assert _attention_forward(None, *given, None, sliding_window=13, **asked)[0].equal(
        _attention_forward(None, *given, None, **asked)[0]
    )
    for refused in ({"sliding_window": 12}, {"dropout": 0.1}, {"s_aux": given[0]}):
        with pytest.raises(NotImplementedError, match="no window, dropout or sinks"):
            _attention_forward(None, *given, None, **asked, **refused)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_gpu_has_kernels_for_half_precision_and_heads_of_up_to_256(kind, monkeypatch):
    def there(width, kind=kind):
        return kernels_for(SimpleNamespace(dtype=kind, device=torch.device("cuda"), shape=(1, 2, 3, width))) is not None

    monkeypatch.setattr("prefix_rl.speed.attention._log_sums_are_packed", lambda: True)
    assert [there(width) for width in (8, 128, 256, 264, 100)] == [True, True, True, False, False]
    assert not there(128, torch.float32)
    monkeypatch.setattr("prefix_rl.speed.attention._log_sums_are_packed", lambda: False)
    assert not there(128)


# --- which rows meet --------------------------------------------------------------------------------------------------


def test_rows_that_begin_alike_meet():
    rows = [[1, 1, 5], [2, 2, 5], [1, 1, 6], [2, 2, 6], [2, 2], [1, 1]]
    assert alike_together(rows) == [5, 0, 2, 4, 1, 3]


def test_all_fields_of_a_row_move_together():
    ids = torch.arange(6).unsqueeze(1)
    batches = [
        {"completion_ids": ids[i : i + 2], "rewards": ids[i : i + 2, 0] * 10.0, "names": [f"row {j}" for j in (i, i + 1)],
         "num_items_in_batch": torch.tensor(7), "old": None}
        for i in (0, 2, 4)
    ]  # fmt: skip
    order = [4, 1, 0, 5, 3, 2]
    made = rearranged(batches, order)
    assert [batch["completion_ids"].flatten().tolist() for batch in made] == [[4, 1], [0, 5], [3, 2]]
    assert [batch["rewards"].tolist() for batch in made] == [[40, 10], [0, 50], [30, 20]]
    assert [batch["names"] for batch in made] == [["row 4", "row 1"], ["row 0", "row 5"], ["row 3", "row 2"]]
    assert all(batch["num_items_in_batch"] == 7 and batch["old"] is None for batch in made)
    assert batches[0]["completion_ids"].flatten().tolist() == [0, 1]  # what was given is untouched


def test_rows_move_into_micro_batches_of_other_sizes():
    ids = torch.arange(6).unsqueeze(1)
    batches = [{"completion_ids": ids[i : i + 2], "names": [str(i), str(i + 1)]} for i in (0, 2, 4)]
    made = rearranged(batches, [4, 1, 0, 5, 3, 2], sizes=[1, 4, 1])
    assert [batch["completion_ids"].flatten().tolist() for batch in made] == [[4], [1, 0, 5, 3], [2]]
    assert [batch["names"] for batch in made] == [["4"], ["1", "0", "5", "3"], ["2"]]


def test_a_long_row_stands_alone_and_short_ones_together():
    # 90 | 10 + 10 + 10 + 10 + 10; rows that share count what is new: 50 + 10 + 10 | 50
    assert balanced([[(90, 0), *[(10, 0)] * 5]], parts=2) == [1, 5]
    assert balanced([[(50, 0), (50, 40), (50, 40), (50, 0)]], parts=2) == [3, 1]
    assert balanced([[(90, 0), (1, 0), (1, 0)]], parts=3) == [1, 1, 1]
    # The second process has its long row last, so neither may join the two: at most 90 + 10 | 10 + 90
    assert balanced([[(90, 0), *[(10, 0)] * 3], [*[(10, 0)] * 3, (90, 0)]], parts=2) == [2, 2]


@given(st.data(), st.integers(1, 3), st.integers(1, 8), st.integers(1, 8))
@examples(200)
def test_no_other_cut_has_a_smaller_largest_micro_batch_or_encodes_less(data, ranks, count, parts):
    parts = min(parts, count)
    row = st.lists(st.integers(0, 1), min_size=1, max_size=12)
    drawn = [sorted(data.draw(st.lists(row, min_size=count, max_size=count))) for _ in range(ranks)]

    def micro_batches(sizes):
        """The oracle: each distinct beginning of a row is a token."""
        ends = [sum(sizes[: i + 1]) for i in range(parts)]
        return [
            len({tuple(row[:n]) for row in rows[end - size : end] for n in range(1, len(row) + 1)})
            for rows in drawn for size, end in zip(sizes, ends, strict=True)
        ]  # fmt: skip

    found = balanced([overlaps(rows) for rows in drawn], parts)
    assert (len(found), sum(found), min(found) > 0) == (parts, count, True)
    cuts = [(0, *inner, count) for inner in combinations(range(1, count), parts - 1)]
    others = [micro_batches([b - a for a, b in pairwise(cut)]) for cut in cuts]
    limit = min(map(max, others)) * 1.05
    assert max(micro_batches(found)) <= limit
    best = min((sum(other), max(other)) for other in others if max(other) <= limit)
    assert (sum(micro_batches(found)), max(micro_batches(found))) == best


def test_a_group_is_not_cut_where_that_hardly_helps():
    # Two groups of 4 and 3 rows that share 100 each: 100 + 4 * 10 and 100 + 3 * 10
    group = [(110, 0), *[(110, 100)] * 3]
    assert balanced([[*group, (110, 0), *[(110, 100)] * 2]], parts=2) == [4, 3]
    # 100 + 4 | 50 and nothing twice, against 100 | 50 + 50 and 46 tokens twice: 104 is within 5 % of 100, and 106 is not
    assert balanced([[(100, 0), (50, 46), (50, 0)]], parts=2) == [2, 1]
    assert balanced([[(100, 0), (50, 44), (50, 0)]], parts=2) == [1, 2]


def test_rows_are_read_without_padding():
    batch = {
        "prompt_ids": torch.tensor([[0, 5], [6, 7]]), "prompt_mask": torch.tensor([[0, 1], [1, 1]]),
        "completion_ids": torch.tensor([[8, 0], [0, 9]]), "completion_mask": torch.tensor([[1, 0], [1, 1]]),
    }  # fmt: skip
    assert rows_of(batch) == [[5, 8], [6, 7, 0, 9]]


def test_rows_change_places_within_their_optimizer_step():
    def batch(*rows):
        ids = torch.tensor(rows)
        there = torch.ones_like(ids[:, :1])
        return {"prompt_ids": ids[:, :1], "prompt_mask": there, "completion_ids": ids[:, 1:], "completion_mask": there}

    batches = [batch([2, 5], [1, 5]), batch([2, 6], [1, 6]), batch([4, 5], [3, 5]), batch([3, 6], [3, 7])]
    kept = regrouped(batches, 2, lambda rows, count: None)
    assert [rows_of(made) for made in kept] == [[[1, 5], [1, 6]], [[2, 5], [2, 6]], [[3, 5], [3, 6]], [[3, 7], [4, 5]]]
    assert not any(SHARE in made for made in kept)
    # 1 and 3 rows of 4 in 2 micro-batches: TRL weighs them 1 : 1, and they weigh 1/4 * 2 and 3/4 * 2
    unequal = regrouped(batches, 2, lambda rows, count: [1, 3])
    assert [rows_of(made) for made in unequal[:2]] == [[[1, 5]], [[1, 6], [2, 5], [2, 6]]]
    assert [made[SHARE] for made in unequal] == [0.5, 1.5, 0.5, 1.5]


def test_no_window_where_a_step_spans_two_generations():
    assert windows(4, 2) == [range(2), range(2, 4)]
    assert windows(2, 2) == windows(2, 6) == [range(2)]
    assert windows(3, 2) == windows(2, 3) == []


# --- the recipe's block -----------------------------------------------------------------------------------------------

LAB = {
    "model": {"name_or_path": "lab"}, "data": {"train": "lab", "prompt": "plain"}, "method": {"name": "dr_grpo"},
    "output": {"dir": "runs/x"},
}  # fmt: skip


def test_the_fast_path_is_on_unless_a_recipe_says_otherwise():
    assert load_recipe(LAB).speed == Speed(
        shared_prefix=True, trim=True, order=True, balance=True, shared_prefill=True, verify="first"
    )
    off = load_recipe(LAB, ["speed={shared_prefix: false, trim: false, order: false, shared_prefill: false}"])
    assert off.speed == OFF
    assert load_recipe(off.resolved()).speed == OFF


def test_a_wrong_speed_block_is_refused_with_the_nearest_name():
    with pytest.raises(RecipeError) as caught:
        load_recipe({**LAB, "speed": {"shared_prefixes": True, "verify": "last", "trim": "yes"}})
    said = str(caught.value)
    assert "speed.shared_prefixes: no such key (did you mean shared_prefix?)" in said
    assert 'speed.verify = "last": must be one of first, always, never' in said
    assert 'speed.trim = "yes": must be true or false' in said
