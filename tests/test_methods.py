import math
import statistics
from dataclasses import dataclass, replace

import pytest
import torch
from flow import generated, plan, trained_on
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl import methods
from prefix_rl.methods.adaptive import Adaptive
from prefix_rl.methods.base import Method, Needs
from prefix_rl.methods.combined import QUESTIONS, Combined
from prefix_rl.methods.dr_grpo import DrGRPO
from prefix_rl.methods.luffy import LUFFY
from prefix_rl.methods.pppo import PPPO
from prefix_rl.methods.prefix_rft import PrefixRFT
from prefix_rl.methods.prefix_rl import PrefixRL
from prefix_rl.methods.sft import SFT
from prefix_rl.methods.sft_loss import SFTLoss
from prefix_rl.methods.sft_then_rl import SFTThenRL
from prefix_rl.methods.stage import Supervised
from prefix_rl.methods.tempo import TEMPO
from prefix_rl.methods.uft import UFT
from prefix_rl.methods.upft import UPFT
from prefix_rl.prefixes import NO_PREFIX, Demonstration, Prefix
from prefix_rl.rollouts import Row, Step

TRAINING = {"num_generations": 8, "max_completion_length": 100}


def step(index=0, total=500, seed=0, budget=10_000):
    return Step(index, total, seed, budget)


def rows(groups, size, length=1000, count=1):
    demonstrations = tuple(Demonstration(tuple(range(n, n + length)), length) for n in range(count))
    return [Row(i, size, i // size, demonstrations) for i in range(groups * size)]


def rollouts(rewards, prefix_lengths, width=6, size=4, index=0):
    n = len(rewards)
    positions = torch.arange(width)
    return generated(
        completion_ids=torch.arange(n * width).view(n, width),
        completion_mask=torch.ones(n, width, dtype=torch.bool),
        prefix_mask=positions < torch.tensor(prefix_lengths).unsqueeze(1),
        rewards=torch.tensor(rewards),
        step=step(index),
        group_size=size,
    )


# --- finding methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", methods.names())
def test_every_module_is_a_method_of_its_name(name):
    made = methods.find(name)()
    assert isinstance(made, Method)
    assert made.faults(TRAINING) == []


def test_an_unknown_method_is_named_with_those_there_are():
    with pytest.raises(LookupError, match=r"no method 'prefix_rtf'; there are .*dr_grpo, .*prefix_rft"):
        methods.find("prefix_rtf")


def test_a_method_may_live_in_another_package(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom prefix_rl.methods.base import Method\n"
        "@dataclass(frozen=True)\nclass Mine(Method):\n    weight: float = 0.5\n"
    )
    (tmp_path / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "mine.py").rename(tmp_path / "pack" / "mine.py")
    (tmp_path / "empty.py").rename(tmp_path / "pack" / "empty.py")
    assert methods.find("pack.mine")().weight == 0.5
    with pytest.raises(LookupError, match="one subclass of Method, it defines none"):
        methods.find("pack.empty")
    with pytest.raises(LookupError, match="no module"):
        methods.find("pack.missing")


def test_a_combined_method_hands_every_question_on():
    assert {"needs", "stages", "prefix", "weights", "metrics"} <= set(QUESTIONS) <= vars(Combined).keys()
    assert len(QUESTIONS) == 14
    asked = []

    class Within(Method):
        """Notes what it is asked; answers with the question."""

    for name in QUESTIONS:
        if isinstance(vars(Method)[name], property):
            setattr(Within, name, property(lambda self, name=name: asked.append((name,)) or name))
        else:
            setattr(Within, name, lambda self, *args, name=name: asked.append((name, *args)) or [name])
    around = Combined(Within())
    for name in QUESTIONS:
        if isinstance(vars(Method)[name], property):
            assert getattr(around, name) == name
        elif name != "faults":  # which it answers itself, with those of the other one among them
            assert getattr(around, name)("an argument") == [name]
    assert around.faults(TRAINING)[-1] == "faults"
    assert {name for name, *_ in asked} == set(QUESTIONS)
    assert all(argument in ("an argument", TRAINING) for _, *arguments in asked for argument in arguments)


def test_a_combined_method_answers_what_it_answers_itself():
    @dataclass(frozen=True)
    class Own(Combined):
        def metrics(self, memory):
            return {**super().metrics(memory), "own": 1.0}

    assert Own(PPPO()).metrics({}) == {"share": 0.15, "own": 1.0}
    assert Own(PPPO()).needs.further.count == 8


# --- Dr.GRPO ----------------------------------------------------------------------------------------------------------


def test_dr_grpo_gives_the_plain_answers():
    method, batch = DrGRPO(), rollouts([1.0, 0, 0, 0], [0, 0, 0, 0])
    assert plan(method, rows(1, 4), step()) == [NO_PREFIX] * 4
    assert method.advantages(batch)[:, 0].tolist() == [0.75, -0.25, -0.25, -0.25]
    assert method.update_mask(batch, None).all()
    assert method.extra_loss(trained_on(batch, method.weights(batch)), torch.zeros(4, 6), torch.zeros(4, 6)) is None
    assert method.needs == Needs()


# --- Prefix-RFT: what is injected -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefixed", [0, 1, 3, 8])
def test_so_many_rollouts_of_each_group_are_prefixed(prefixed):
    found = plan(PrefixRFT(prefixed=prefixed), rows(5, 8), step(100))
    assert [bool(p.ids) for p in found] == [i % 8 < prefixed for i in range(40)]


def test_a_rank_plans_its_own_rows_as_one_process_would():
    method, all_rows = PrefixRFT(prefixed=3), rows(6, 8)
    together = plan(method, all_rows, step(123))
    apart = [p for start in (0, 12, 24, 36) for p in plan(method, all_rows[start : start + 12], step(123))]
    assert together == apart


def test_a_question_without_a_demonstration_is_rolled_out_plainly():
    assert plan(PrefixRFT(), [Row(0, 4, 0, ())], step()) == [NO_PREFIX]


@pytest.mark.parametrize(
    ("schedule", "at", "low", "high"),
    [
        ("cosine_low", 0, 0.95, 0.95), ("cosine_low", 250, 0.50, 0.95), ("cosine_low", 500, 0.05, 0.95),
        ("cosine_length", 0, 0.95, 0.95), ("cosine_length", 250, 0.50, 0.50), ("cosine_length", 500, 0.05, 0.05),
        ("uniform", 0, 0.05, 0.95), ("uniform", 499, 0.05, 0.95),
    ],
)  # fmt: skip
def test_bounds_of_the_draw(schedule, at, low, high):
    assert PrefixRFT(schedule=schedule).bounds(step(at)) == pytest.approx((low, high))


def test_the_horizon_is_the_run_unless_given():
    assert PrefixRFT().bounds(step(50, total=100))[0] == pytest.approx(0.5)
    assert PrefixRFT(horizon=500).bounds(step(250, total=10_000))[0] == pytest.approx(0.5)


@given(at=st.integers(0, 600), seed=st.integers(0, 5))
def test_drawn_fractions_stay_within_their_bounds(at, seed):
    method = PrefixRFT(prefixed=8)
    low, high = method.bounds(step(at))
    for p in plan(method, rows(2, 8), step(at, seed=seed)):
        assert int(low * 1000) - 1 <= len(p.ids) <= int(high * 1000)


def test_drawn_fractions_are_uniform_between_the_bounds():
    fractions = [len(p.ids) / 1000 for p in plan(PrefixRFT(prefixed=8), rows(500, 8), step(250)) if p.ids]
    assert statistics.fmean(fractions) == pytest.approx(0.725, abs=0.007)  # (0.5 + 0.95) / 2; 0.13 / sqrt(4000) = 0.002
    assert statistics.pstdev(fractions) == pytest.approx(0.45 / 12**0.5, abs=0.005)


def test_several_demonstrations_are_drawn_uniformly():
    found = plan(PrefixRFT(prefixed=8), rows(100, 8, count=4), step(10))
    counts = [sum(p.ids[0] == n for p in found) for n in range(4)]
    assert all(abs(count - 200) < 50 for count in counts)  # 800 draws of 4: 200 +- 4 standard deviations of 12


def test_draws_differ_between_steps_and_seeds():
    method = PrefixRFT(schedule="uniform")  # the bounds do not move, only the draw does
    assert len({len(plan(method, rows(1, 8), step(400, seed=s))[0].ids) for s in range(10)}) > 8
    assert len({len(plan(method, rows(1, 8), step(400 + t))[0].ids) for t in range(10)}) > 8
    assert len({len(p.ids) for p in plan(PrefixRFT(prefixed=8, schedule="uniform"), rows(2, 8), step(3))}) > 12


def test_the_budget_leaves_a_token_to_generate():
    assert {len(p.ids) for p in plan(PrefixRFT(prefixed=8), rows(1, 8), step(0, budget=50))} == {49}
    limited = PrefixRFT(prefixed=8, max_prefix_tokens=20)
    assert {len(p.ids) for p in plan(limited, rows(1, 8), step(0, budget=50))} == {20}


@pytest.mark.parametrize("method", [PrefixRFT(), PrefixRL(plain=0)], ids=repr)
def test_a_fraction_that_was_decided_takes_the_place_of_the_draw_and_0_of_it_is_nothing(method):
    (row,) = groups((0, 0), size=1)
    found = [method.prefix(replace(row, fraction=share), step()) for share in (0, 0.0001, 0.25)]
    assert [len(prefix.ids) for prefix in found] == [0, 1, 250]  # of 1,000 tokens; what is not 0 is a token at least


# --- Prefix-RFT: credit -----------------------------------------------------------------------------------------------

REWARDS = [1.0, 0.0, 0.0, 1.0]  # the first is prefixed: mu4 = 1/2, mu3 = 1/3


@pytest.mark.parametrize(
    ("credit", "on_prefix", "on_continuation", "plain"),
    [
        ("pooled", 1 - 1 / 2, 1 - 1 / 2, [-1 / 2, -1 / 2, 1 / 2]),
        ("unprefixed", 1 - 1 / 3, 1 - 1 / 3, [-1 / 3, -1 / 3, 2 / 3]),
        ("released", 1 - 1 / 3, 1.0, [-1 / 3, -1 / 3, 2 / 3]),
    ],
)
def test_the_three_estimators(credit, on_prefix, on_continuation, plain):
    advantages = PrefixRFT(credit=credit).advantages(rollouts(REWARDS, [2, 0, 0, 0]))
    assert advantages[0].tolist() == pytest.approx([on_prefix] * 2 + [on_continuation] * 4)
    assert advantages[1:, 0].tolist() == pytest.approx(plain)


# --- Prefix-RFT: which tokens move ------------------------------------------------------------------------------------

ENTROPIES = torch.tensor([[0.1, 0.9, 0.3, 0.5, 0.2, torch.nan], [torch.nan] * 6, [torch.nan] * 6, [torch.nan] * 6])


@pytest.mark.parametrize(
    ("settings", "moving"),
    [
        ({"tokens": "all"}, [True] * 5),
        ({"tokens": "none"}, [False] * 5),
        ({"tokens": "top_entropy"}, [False, True, False, False, False]),  # 5 - floor(0.8 * 5) = 1
        ({"tokens": "top_entropy", "share": 0.4}, [False, True, False, True, False]),
        ({"tokens": "low_entropy"}, [True, False, False, False, False]),
        ({"tokens": "top_entropy", "share": 1.0}, [True] * 5),
        ({"tokens": "top_entropy", "share": 0.0}, [False] * 5),
    ],
)
def test_which_prefix_tokens_move(settings, moving):
    batch = rollouts(REWARDS, [5, 0, 0, 0])
    mask = PrefixRFT(**settings).update_mask(batch, ENTROPIES)
    assert mask[0].tolist() == [*moving, True]  # what the policy wrote always moves
    assert mask[1:].all()


def test_the_share_is_taken_over_the_whole_batch_or_by_row():
    entropies = torch.full((4, 6), torch.nan)
    entropies[0, :5], entropies[1, :5] = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([6.0, 7, 8, 9, 10])
    batch = rollouts(REWARDS, [5, 5, 0, 0])
    kept = PrefixRFT().update_mask(batch, entropies) & batch.prefix_mask
    assert kept.sum(dim=1).tolist() == [0, 2, 0, 0]  # 2 of 10, both from the second row
    kept = PrefixRFT(scope="row").update_mask(batch, entropies) & batch.prefix_mask
    assert kept.sum(dim=1).tolist() == [1, 1, 0, 0]


def test_random_tokens_are_exactly_the_share_and_change_with_the_step():
    method = PrefixRFT(tokens="random", share=0.5)
    masks = []
    for index in range(5):
        batch = rollouts(REWARDS, [4, 4, 4, 0], index=index)
        kept = method.update_mask(batch, None) & batch.prefix_mask
        assert int(kept.sum()) == 6
        masks.append(kept)
    assert len({tuple(m.flatten().tolist()) for m in masks}) > 1
    again = rollouts(REWARDS, [4, 4, 4, 0], index=0)
    assert masks[0].equal(method.update_mask(again, None) & again.prefix_mask)


def test_only_entropy_selectors_ask_for_entropies():
    needs = {
        tokens: PrefixRFT(tokens=tokens).needs.entropies for tokens in ("top_entropy", "low_entropy", "random", "all")
    }
    assert needs == {"top_entropy": True, "low_entropy": True, "random": False, "all": False}
    assert not PrefixRFT(prefixed=0).needs.entropies


def test_without_prefixes_prefix_rft_answers_as_dr_grpo():
    neutral, plain = PrefixRFT(prefixed=0), DrGRPO()
    batch = rollouts(REWARDS, [0, 0, 0, 0])
    assert plan(neutral, rows(2, 4), step()) == plan(plain, rows(2, 4), step())
    assert neutral.advantages(batch).equal(plain.advantages(batch))
    assert neutral.update_mask(batch, torch.full((4, 6), torch.nan)).equal(plain.update_mask(batch, None))
    assert neutral.needs == Needs()


# --- Prefix-RFT: what cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prefixed": 9}, "more than training.num_generations = 8"),
        ({"prefixed": 8, "credit": "unprefixed"}, "leaves none of 8"),
        ({"max_prefix_tokens": 100}, "not below training.max_completion_length = 100"),
        ({"min_prefix_tokens": 30, "max_prefix_tokens": 20}, "more than the longest prefix allowed, 20 tokens"),
        ({"min_prefix_tokens": 100}, "longest prefix allowed, 99 tokens"),
    ],
)
def test_contradictions_are_explained(settings, message):
    (fault,) = PrefixRFT(**settings).faults(TRAINING)
    assert message in fault


def test_either_part_of_a_contradiction_is_none():
    for works in ({"prefixed": 8}, {"prefixed": 7, "credit": "unprefixed"}, {"max_prefix_tokens": 99}):
        assert PrefixRFT(**works).faults(TRAINING) == []


# --- PrefixRL: what is injected ---------------------------------------------------------------------------------------


def groups(*members, size=4, length=1000, count=1):
    """Rows of whole groups, one group for each ``(problem, copy)``."""
    demonstrations = tuple(Demonstration(tuple(range(n, n + length)), length) for n in range(count))
    found = []
    for i in range(len(members) * size):
        problem, copy = members[i // size]
        found.append(Row(i, size, problem, demonstrations, copy))
    return found


def lengths(method, given, at=None, size=4):
    """The prefix length of each group, after seeing that its rows share one prefix."""
    found = plan(method, given, at or step())
    for i, prefix in enumerate(found):
        assert prefix == found[i - i % size]
        assert not prefix.complete
        assert prefix.ids == list(given[i].demonstrations[0].ids)[: len(prefix.ids)] or len(given[i].demonstrations) > 1
    return [len(found[i].ids) for i in range(0, len(found), size)]


EPOCH = [(problem, copy) for problem in range(5) for copy in range(4)]


def test_all_rows_of_a_group_share_a_prefix_and_the_plain_copy_has_none():
    found = lengths(PrefixRL(), groups(*EPOCH))
    assert [length > 0 for length in found] == [False, True, True, True] * 5  # copy 0 is the plain one
    assert len(set(found)) > 12  # 15 cuts of their own
    assert [length > 0 for length in lengths(PrefixRL(plain=2, cuts=2), groups(*EPOCH))] == [False] * 2 + [True] * 2 + (
        [False] * 2 + [True] * 2
    ) * 4


def test_cuts_are_drawn_once():
    method = PrefixRL()
    first = lengths(method, groups(*EPOCH), step(0))
    assert lengths(method, groups(*EPOCH), step(499)) == first
    assert lengths(method, groups(*reversed(EPOCH)), step(7)) == first[::-1]  # wherever in a batch the group stands
    assert lengths(method, groups(*EPOCH, size=8), step(3), size=8) == first  # however large it is


def test_cuts_differ_between_seeds_copies_and_problems():
    method = PrefixRL()
    assert len({lengths(method, groups((3, 1)), step(seed=s))[0] for s in range(10)}) > 8
    assert len(set(lengths(method, groups(*[(3, copy) for copy in range(1, 11)])))) > 8
    assert len(set(lengths(method, groups(*[(problem, 1) for problem in range(10)])))) > 8


def test_cuts_may_be_drawn_anew_in_every_step():
    method = PrefixRL(redraw=True)
    assert len({lengths(method, groups((3, 1)), step(t))[0] for t in range(10)}) > 8
    assert len(set(lengths(method, groups(*[(3, 1)] * 10), step(5)))) > 8  # a problem twice in a batch: two cuts
    assert lengths(method, groups((3, 1)), step(5)) == lengths(method, groups((3, 1)), step(5))


@given(
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted), length=st.integers(2, 300), seed=st.integers(0, 9),
    redraw=st.booleans(),
)  # fmt: skip
def test_cuts_lie_between_low_and_high_of_the_trace(bounds, length, seed, redraw):
    method = PrefixRL(plain=0, low=bounds[0], high=bounds[1], redraw=redraw)
    least, most = (min(max(math.floor(bound * length), 1), length - 1) for bound in bounds)
    for found in lengths(method, groups((0, 0), (0, 1), (1, 0), length=length), step(seed, seed=seed)):
        assert least <= found <= most


def test_cuts_are_uniform_between_low_and_high():
    found = lengths(PrefixRL(plain=0), groups(*[(problem, 0) for problem in range(2000)], size=1), size=1)
    assert statistics.fmean(found) / 1000 == pytest.approx(0.6, abs=0.01)  # (0.4 + 0.8) / 2; 0.115 / sqrt(2000) = 0.003
    assert statistics.pstdev(found) / 1000 == pytest.approx(0.4 / 12**0.5, abs=0.005)


def test_a_trace_is_drawn_for_each_copy_and_kept():
    given = groups(*[(problem, 1) for problem in range(200)], count=4)
    found = [p.ids[0] for p in plan(PrefixRL(), given, step())][::4]  # a demonstration's ids start at its number
    assert all(abs(found.count(n) - 50) < 25 for n in range(4))  # 200 draws of 4: 50 +- 4 standard deviations of 6
    assert [p.ids[0] for p in plan(PrefixRL(), given, step(9))][::4] == found


def test_a_cut_respects_the_answer_guard_and_the_budget():
    guarded = (Demonstration(tuple(range(100)), safe_length=30),)
    (prefix,) = plan(PrefixRL(plain=0), [Row(0, 4, 0, guarded)], step())
    assert (len(prefix.ids), prefix.of) == (30, 100)
    assert 40 <= prefix.drawn < 80
    assert lengths(PrefixRL(plain=0), groups((0, 0)), step(budget=50)) == [49]  # a token is left to generate


def test_a_rank_plans_its_own_prefix_rl_rows_as_one_process_would():
    for method in (PrefixRL(), PrefixRL(redraw=True)):
        given = groups(*EPOCH)
        together = plan(method, given, step(123))
        apart = [p for start in range(0, 80, 10) for p in plan(method, given[start : start + 10], step(123))]
        assert together == apart


def test_a_problem_without_a_trace_keeps_its_plain_copy():
    assert PrefixRL().copies([True, False, True]) == [4, 1, 4]  # 3 cuts and a plain one
    assert plan(PrefixRL(), [Row(0, 4, 0, (), 0)], step()) == [NO_PREFIX]
    assert PrefixRL(plain=0).copies([True, False, True]) == [3, 0, 3]
    assert PrefixRL(cuts=2, plain=5).copies([True, False]) == [7, 5]
    assert PrefixRL(cuts=0).copies([True, False]) == [1, 1]


@given(demonstrated=st.lists(st.booleans(), min_size=1, max_size=40), cuts=st.integers(0, 5), plain=st.integers(1, 4))
def test_a_balanced_epoch_keeps_the_ratio_however_few_traces_there_are(demonstrated, cuts, plain):
    copies = PrefixRL(cuts=cuts, plain=plain, balance="epoch").copies(demonstrated)
    having = sum(demonstrated)
    prefixed = sum(copies) - plain * len(demonstrated)
    assert all(count == plain for count, has in zip(copies, demonstrated, strict=True) if not has)
    if having:
        # cuts * n prefixed rows, rounded up to a whole number for each problem with a trace
        assert cuts * len(demonstrated) <= prefixed < cuts * len(demonstrated) + having
    else:
        assert prefixed == 0


def test_one_trace_among_four_problems_is_repeated_twelve_times():
    assert PrefixRL(balance="epoch").copies([False, True, False, False]) == [1, 13, 1, 1]  # 12 prefixed : 4 plain


def test_prefix_rl_trains_on_what_the_policy_wrote():
    batch = rollouts([1.0, 0, 0, 1.0], [2, 2, 2, 2])
    assert PrefixRL().update_mask(batch, None).tolist() == [[False] * 2 + [True] * 4] * 4
    assert PrefixRL().advantages(batch)[:, -1].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert not PrefixRL().needs.entropies
    assert not PrefixRL().weights(batch).any()


# --- LUFFY: whole demonstrations --------------------------------------------------------------------------------------

THREE = (Demonstration((5, 6, 7), safe_length=1, stop=2),)
WHOLE = Prefix([5, 6, 7, 2], drawn=4, of=4, complete=True)  # the answer guard has no say: nothing is asked from it


@pytest.mark.parametrize("method", [LUFFY, SFTLoss])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_so_many_rollouts_of_each_group_are_whole_demonstrations(method, count):
    found = plan(method(demonstrations=count), [Row(i, 4, i // 4, THREE) for i in range(8)], step())
    assert found == ([WHOLE] * count + [NO_PREFIX] * (4 - count)) * 2
    assert method(demonstrations=count).needs.prefixes is (count > 0)


def test_a_demonstration_that_does_not_fit_is_left_out():
    given = [Row(i, 4, 0, THREE) for i in range(4)]
    assert plan(LUFFY(), given, step(budget=4))[0] == WHOLE  # its three tokens and the end
    assert plan(LUFFY(), given, step(budget=3)) == [NO_PREFIX] * 4
    assert plan(LUFFY(), [Row(0, 4, 0, ())], step()) == [NO_PREFIX]


def test_whole_demonstrations_are_drawn_uniformly_and_in_every_step():
    four = tuple(Demonstration((n,), 1, stop=9) for n in range(4))
    given = [Row(i, 4, i // 4, four) for i in range(3200)]
    found = [p.ids[0] for p in plan(LUFFY(), given, step(3)) if p.ids]
    assert all(abs(found.count(n) - 200) < 50 for n in range(4))  # 800 draws of 4: 200 +- 4 standard deviations of 12
    assert [p.ids[0] for p in plan(LUFFY(), given, step(4)) if p.ids] != found
    apart = [p for start in range(0, 3200, 100) for p in plan(LUFFY(), given[start : start + 100], step(3))]
    assert [p.ids[0] for p in apart if p.ids] == found


def test_a_demonstration_is_one_of_luffys_group():
    batch = rollouts([1.0, 0, 0, 0], [6, 0, 0, 0])
    assert LUFFY().advantages(batch).tolist() == [[0.75] * 6, *[[-0.25] * 6] * 3]
    assert LUFFY().update_mask(batch, None).tolist() == [[False] * 6, *[[True] * 6] * 3]  # out of the surrogate
    assert LUFFY().weights(batch).tolist() == [[0.75] * 6, *[[0.0] * 6] * 3]  # its credit, in the extra objective


def random_batch(seed, rows=4, width=6, budget=24, index=0):
    """A generation batch with random rewards and masks, and log-probabilities; row 0 is a whole demonstration, others
    may be."""
    random = torch.Generator().manual_seed(seed)
    written = torch.randint(1, width + 1, (rows, 1), generator=random) > torch.arange(width)
    whole = torch.rand(rows, 1, generator=random) < 0.3
    whole[0] = True
    batch = generated(
        completion_ids=torch.zeros(rows, width, dtype=torch.long),
        completion_mask=written,
        prefix_mask=written & whole,
        rewards=torch.rand(rows, generator=random),
        step=Step(index, 500, 0, budget),
    )
    return batch, -3 * torch.rand(rows, width, generator=random)


@given(seed=st.integers(0, 10**6), gamma=st.floats(0.01, 1))
def test_luffys_extra_loss_equals_a_slow_loop(seed, gamma):
    batch, logps = random_batch(seed)
    method, total = LUFFY(gamma=gamma), 0.0
    for i in range(4):
        for t in range(6):
            if batch.prefix_mask[i, t]:
                p = math.exp(logps[i, t])
                total -= p / (p + gamma) * float(batch.rewards[i] - batch.rewards.mean())
    found = method.extra_loss(trained_on(batch, method.weights(batch)), logps, torch.zeros(4, 6))
    assert float(found) == pytest.approx(total / (4 * 24), abs=1e-6)  # B rows, L = 24


def test_luffys_extra_loss_in_numbers():
    batch, _ = random_batch(0)
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[0, :2] = True
    batch = trained_on(batch, 0.5 * mask)
    logps = torch.log(torch.tensor([[0.1, 0.3] + [0.9] * 4] * 4))
    # -(0.5 * 0.5 + 0.75 * 0.5) / (4 * 24)
    assert float(LUFFY().extra_loss(batch, logps, logps)) == pytest.approx(-0.625 / 96)


# --- RL with a supervised term, CHORD ---------------------------------------------------------------------------------

CHORD = SFTLoss(schedule="chord", weight=0.9, end=0.05, warmup=10, horizon=200)


@pytest.mark.parametrize(
    ("at", "weight"),
    [
        (0, 0.0), (5, 0.45), (10, 0.9),  # linear to the peak
        (60, 0.05 + 0.85 * (1 + 2**-0.5) / 2),  # a quarter of the cosine
        (110, 0.475),  # half of it: (0.9 + 0.05) / 2
        (210, 0.05), (499, 0.05),
    ],
)  # fmt: skip
def test_chords_weight_at_its_steps(at, weight):
    assert CHORD.mixed(step(at)) == pytest.approx(weight)


def test_a_constant_weight_and_the_default_horizon():
    assert [SFTLoss(weight=0.3).mixed(step(at)) for at in (0, 5, 499)] == [0.3] * 3
    whole_run = SFTLoss(schedule="chord", weight=0.9, warmup=10)
    assert whole_run.mixed(step(60, total=110)) == pytest.approx(0.475)  # 100 steps are left: half of them
    assert whole_run.mixed(step(110, total=110)) == 0.05
    assert SFTLoss(schedule="chord", weight=0.9).mixed(step(0)) == 0.9  # no warm-up
    assert SFTLoss(schedule="chord", weight=0.9, warmup=500).mixed(step(250)) == 0.45  # a run that only warms up


def test_a_demonstration_is_none_of_the_policys_group():
    batch = rollouts([1.0, 0, 0, 1.0], [6, 0, 0, 0])
    found, weights = SFTLoss(weight=0.2).advantages(batch), SFTLoss(weight=0.2).weights(batch)
    assert found[:, 0].tolist() == pytest.approx([0, -1 / 3, -1 / 3, 2 / 3])  # the mean of 0, 0, 1
    assert weights[0].tolist() == pytest.approx([0.2 * 4 * 10_000 / 6] * 6)  # weight * B * L / demonstration tokens
    assert not weights[1:].any()
    assert SFTLoss().update_mask(batch, None).tolist() == [[False] * 6, *[[True] * 6] * 3]


def test_chord_takes_from_the_rl_term_what_it_gives_to_the_supervised_one():
    for at, mu in ((5, 0.45), (10, 0.9), (300, 0.05)):
        batch = rollouts([1.0, 0, 0, 1.0], [6, 0, 0, 0], index=at)
        constant = SFTLoss(weight=1.0)
        weights = CHORD.weights(batch)
        assert CHORD.advantages(batch).equal(constant.advantages(batch))
        assert (CHORD.scale(batch), constant.scale(batch)) == (pytest.approx(1 - mu), 1)
        assert weights.flatten().tolist() == pytest.approx((constant.weights(batch) * mu).flatten().tolist())
    assert SFTLoss(schedule="chord", weight=0.9, demonstrations=0).scale(batch) == 1


@given(
    seed=st.integers(0, 10**6), size=st.sampled_from([1, 2, 4, 8]), uncertain=st.booleans(), at=st.integers(0, 300),
    chord=st.booleans(),
)  # fmt: skip
def test_micro_batches_sum_to_the_weighed_mean_over_all_demonstration_tokens(seed, size, uncertain, at, chord):
    method = SFTLoss(
        schedule="chord" if chord else "constant", weight=0.9, warmup=10, horizon=200,
        tokens="uncertain" if uncertain else "all",
    )  # fmt: skip
    batch, logps = random_batch(seed, rows=8, index=at)
    weights = method.weights(batch)
    terms = []
    for i in range(8):
        for t in range(6):
            if batch.prefix_mask[i, t]:
                p = math.exp(logps[i, t])
                terms.append(-math.log(p) * (p * (1 - p) if uncertain else 1.0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))  # TRL shuffles, then cuts
    found = 0.0
    for start in range(0, 8, size):
        rows = order[start : start + size]
        part = trained_on(batch, weights, rows)
        found += float(method.extra_loss(part, logps[rows], torch.zeros(len(rows), 6))) / (8 / size)  # accumulation
    assert found == pytest.approx(method.mixed(step(at)) * statistics.fmean(terms), abs=1e-5)


def test_a_batch_without_demonstrations_has_no_supervised_loss():
    batch = rollouts([1.0, 0, 0, 1.0], [0, 0, 0, 0])
    assert SFTLoss().advantages(batch)[:, 0].tolist() == [0.5, -0.5, -0.5, 0.5]
    batch = trained_on(batch, SFTLoss().weights(batch))
    assert float(SFTLoss().extra_loss(batch, -torch.ones(4, 6), torch.ones(4, 6))) == 0


# --- all of them ------------------------------------------------------------------------------------------------------

NEUTRAL = [
    PrefixRL(cuts=0), LUFFY(demonstrations=0), SFTLoss(demonstrations=0), SFTLoss(demonstrations=0, schedule="chord"),
    SFTThenRL(), TEMPO(weight=0, normalize=False), UFT(count=0), Adaptive(PrefixRL(cuts=0)),
    Adaptive(PrefixRFT(prefixed=0)),
]  # fmt: skip


@pytest.mark.parametrize("neutral", NEUTRAL, ids=lambda method: type(method).__name__)
def test_neutral_settings_answer_as_dr_grpo(neutral):
    batch, plain = rollouts(REWARDS, [0, 0, 0, 0], index=250), DrGRPO()
    assert plan(neutral, rows(2, 4), step()) == plan(plain, rows(2, 4), step())
    assert neutral.advantages(batch).equal(plain.advantages(batch))
    assert neutral.update_mask(batch, None).equal(plain.update_mask(batch, None))
    assert neutral.copies([True, False]) == [1, 1]
    assert not neutral.needs.prefixes
    assert not neutral.needs.entropies
    assert neutral.stages.order[-1] == "rollouts"
    assert not neutral.weights(batch).any()
    extra = neutral.extra_loss(trained_on(batch, neutral.weights(batch)), -torch.ones(4, 6), torch.ones(4, 6))
    assert extra is None or float(extra) == 0


def test_only_the_supervised_methods_never_roll_out():
    stages = {name: methods.find(name)().stages for name in methods.names()}
    assert [name for name, its in stages.items() if "rollouts" not in its.order] == ["rft", "sft", "upft"]
    assert SFT().supervised == SFTThenRL().supervised == Supervised(epochs=3, learning_rate=5e-5, warmup=0.1)
    assert UPFT().supervised == Supervised(epochs=1, learning_rate=1e-6, warmup=0.03, min_lr=1.0)
    assert [name for name, its in stages.items() if its.supervised] == ["rft", "sft", "sft_then_rl", "upft"]
    assert all(("supervised" in its.order) == bool(its.supervised) for its in stages.values())
    assert TEMPO(SFTThenRL()).stages == SFTThenRL()  # a combination has those of the method within


def test_whole_demonstrations_are_usable_where_no_prefix_is():
    told = Demonstration((5, 6), safe_length=0)  # the answer stands in its first token
    usable = {name for name in methods.names() if methods.find(name)().needs.usable(told)}
    assert usable == {"luffy", "relift", "rft", "sft", "sft_loss", "sft_then_rl", "upft"}
    assert not any(methods.find(name)().needs.usable(Demonstration((), 0)) for name in methods.names())
    assert [LUFFY().needs.usable(told, longest) for longest in (2, 3)] == [False, True]  # two tokens and the end
    assert UFT().needs.usable(Demonstration((5, 6), safe_length=1), longest=1)  # of which a beginning will do


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (PrefixRL(cuts=0, plain=0), "leave no row to train on"),
        (PrefixRL(low=0.8, high=0.4), "method.low = 0.8 is above method.high = 0.4"),
        (PrefixRL(balance="epoch", plain=0), "method.plain = 0; use problem"),
        (LUFFY(demonstrations=8), "method.demonstrations = 8 leaves no rollout of training.num_generations = 8"),
        (SFTLoss(demonstrations=7), "leaves fewer than two rollouts of training.num_generations = 8"),
        (SFTLoss(schedule="chord", weight=1.5), "a share of the loss, at most 1"),
    ],
)
def test_contradictions_of_the_others_are_explained(method, message):
    (fault,) = method.faults(TRAINING)
    assert message in fault


def test_the_last_settings_that_work():
    for method in (
        LUFFY(demonstrations=7),
        SFTLoss(demonstrations=6),
        SFTLoss(weight=1.5),
        SFTLoss(schedule="chord", weight=1),
        PrefixRL(low=0.5, high=0.5),
    ):
        assert method.faults(TRAINING) == []


def test_sft_without_epochs_has_nothing_to_do():
    assert SFT().faults(TRAINING) == []
    assert "leaves nothing to do" in SFT(supervised=Supervised(epochs=0)).faults(TRAINING)[0]
