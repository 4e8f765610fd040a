import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.schedules import constant, cosine_decay, linear

fractions = st.floats(0, 1)
horizons = st.integers(1, 2000)


@pytest.mark.parametrize(
    ("step", "low"), [(0, 0.950), (100, 0.864), (200, 0.639), (250, 0.500), (300, 0.361), (400, 0.136), (500, 0.050)]
)
def test_cosine_gives_the_lower_bound_of_the_paper(step, low):
    # low_t = 0.05 + 0.45 * (1 + cos(pi t / 500)); t = 100: 0.05 + 0.45 * 1.809 = 0.864
    assert cosine_decay(0.95, 0.05, horizon=500)(step) == pytest.approx(low, abs=5e-4)


def test_cosine_stays_exactly_at_its_end_after_the_horizon():
    schedule = cosine_decay(0.95, 0.05, horizon=500)
    assert [schedule(t) for t in (500, 501, 10**6)] == [0.05] * 3


@given(start=fractions, end=fractions, horizon=horizons, step=st.integers(0, 4000))
def test_schedules_stay_between_start_and_end(start, end, horizon, step):
    for schedule in (linear(start, end, horizon), cosine_decay(start, end, horizon)):
        assert min(start, end) - 1e-12 <= schedule(step) <= max(start, end) + 1e-12


@given(start=fractions, end=fractions, horizon=horizons, step=st.integers(0, 3000))
def test_schedules_move_one_way(start, end, horizon, step):
    sign = 1 if end >= start else -1
    for schedule in (linear(start, end, horizon), cosine_decay(start, end, horizon)):
        assert sign * (schedule(step + 1) - schedule(step)) >= -1e-12


@given(start=fractions, end=fractions, horizon=horizons)
def test_schedules_begin_at_start_and_end_at_end(start, end, horizon):
    for schedule in (linear(start, end, horizon), cosine_decay(start, end, horizon)):
        assert schedule(0) == pytest.approx(start, abs=1e-12)
        assert schedule(horizon) == pytest.approx(end, abs=1e-12)


def test_linear_is_half_way_at_half_time():
    assert linear(0.9, 0.1, horizon=10)(5) == pytest.approx(0.5)  # 0.9 - 0.8 * 5 / 10


def test_constant_does_not_move():
    assert {constant(0.3)(t) for t in range(100)} == {0.3}


@pytest.mark.parametrize("make", [linear, cosine_decay])
def test_a_horizon_without_steps_is_refused(make):
    with pytest.raises(ValueError, match="at least 1 step, given 0"):
        make(0.9, 0.1, horizon=0)
