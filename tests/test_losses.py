import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefix_rl.losses import negative_log_likelihood, shaped_ratio


def logs(*probabilities):
    return torch.log(torch.tensor([probabilities], dtype=torch.double))


def slopes(of, *probabilities):
    """The derivative of ``of(log p)`` by ``log p``, at each probability."""
    logps = logs(*probabilities).requires_grad_()
    of(logps).sum().backward()
    return logps.grad[0].tolist()


# --- the shaped ratio -------------------------------------------------------------------------------------------------


def test_the_shaped_ratio_in_numbers():
    # 0.1 / 0.2, 0.3 / 0.4, 0.9 / 1.0, 1.0 / 1.1
    assert shaped_ratio(logs(0.1, 0.3, 0.9, 1.0), gamma=0.1)[0].tolist() == pytest.approx([0.5, 0.75, 0.9, 1 / 1.1])
    assert shaped_ratio(logs(0.5, 0.25), gamma=0.5)[0].tolist() == pytest.approx([0.5, 1 / 3])


@given(p=st.floats(1e-6, 1.0), gamma=st.floats(1e-3, 10.0))
def test_the_gradient_of_the_shaped_ratio_is_the_papers(p, gamma):
    (slope,) = slopes(lambda logps: shaped_ratio(logps, gamma), p)
    assert slope == pytest.approx(gamma * p / (p + gamma) ** 2, rel=1e-9)


@pytest.mark.parametrize("gamma", [0.05, 0.1, 0.4])
def test_tokens_of_probability_gamma_are_pulled_hardest(gamma):
    grid = [n / 1000 for n in range(1, 1001)]
    found = slopes(lambda logps: shaped_ratio(logps, gamma), *grid)
    assert grid[max(range(1000), key=lambda i: found[i])] == gamma
    assert max(found) == pytest.approx(0.25)  # gamma * gamma / (2 * gamma)^2


@pytest.mark.parametrize("gamma", [0.0, -0.1])
def test_gamma_must_be_positive(gamma):
    with pytest.raises(ValueError, match="gamma must be above 0"):
        shaped_ratio(logs(0.5), gamma)


# --- likelihood -------------------------------------------------------------------------------------------------------


def test_the_negative_log_likelihood_in_numbers():
    # -ln 0.5 = 0.6931, -ln 0.9 = 0.1054; times p (1 - p): 0.25 * 0.6931 = 0.1733, 0.09 * 0.1054 = 0.009482
    assert negative_log_likelihood(logs(0.5, 0.9))[0].tolist() == pytest.approx([0.693147, 0.105361], abs=1e-6)
    weighed = negative_log_likelihood(logs(0.5, 0.9), by_uncertainty=True)
    assert weighed[0].tolist() == pytest.approx([0.173287, 0.009482], abs=1e-6)


def test_no_gradient_flows_through_the_weight_of_uncertainty():
    chances = (0.01, 0.3, 0.5, 0.99)
    assert slopes(negative_log_likelihood, *chances) == [-1.0] * 4
    found = slopes(lambda logps: negative_log_likelihood(logps, by_uncertainty=True), *chances)
    assert found == pytest.approx([-0.0099, -0.21, -0.25, -0.0099])  # -p (1 - p), and nothing of its derivative


def test_a_certain_token_has_neither_loss_nor_pull():
    logps = torch.zeros(1, 1).requires_grad_()
    loss = negative_log_likelihood(logps, by_uncertainty=True)
    loss.sum().backward()
    assert loss.item() == 0
    assert logps.grad.item() == 0


def test_an_impossible_token_has_no_nan():
    for of in (lambda logps: shaped_ratio(logps, 0.1), negative_log_likelihood):
        logps = torch.full((1, 1), -1e4).requires_grad_()
        value = of(logps)
        value.sum().backward()
        assert torch.isfinite(value).all()
        assert torch.isfinite(logps.grad).all()
    assert shaped_ratio(torch.full((1, 1), -1e4), 0.1).item() == 0
