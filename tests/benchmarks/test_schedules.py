"""Schedules against their equations, written out."""

import math

import jax
import numpy as np
import pytest

from benchmarks import schedules


def reference(k):
    """200 epochs of one step."""
    if k < 25:
        return 12.8 + (0.1 - 12.8) * math.sqrt(1 - k / 25)
    return 12.8 * (1 if k < 102 else 0.1 if k < 153 else 0.01)


def linear(k):
    return 12.8 * ((k + 1) / 11 if k < 10 else 1 - (k - 10) / 190)


def cosine(k):
    if k < 10:
        return 12.8 * (k + 1) / 11
    return 6.4 * (1 + math.cos(math.pi * (k - 10) / 190))


@pytest.mark.parametrize(
    ("name", "equation"),
    [
        ("reference", reference),
        ("linear", linear),
        ("cosine", cosine),
        ("constant", lambda k: 12.8),
    ],
)
def test_schedule_is_its_equation(name, equation):
    expected = [equation(k) for k in range(200)]
    schedule = schedules.build(name, 12.8, 200)
    actual = [schedule(k) for k in range(200)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    # The peak may be traced: one program for a grid of learning rates.
    traced = jax.jit(lambda peak: schedules.build(name, peak, 200)(60))(12.8)
    np.testing.assert_allclose(traced, expected[60], rtol=1e-5)


def test_reference_drops_at_the_same_fractions_of_610_steps():
    schedule = schedules.build("reference", 12.8, 610)
    rates = np.array([schedule(k) for k in range(610)])
    assert np.argmax(rates) == 76
    assert np.flatnonzero(rates[77:] < 0.5 * rates[76:-1]).tolist() == [
        311 - 77,
        467 - 77,
    ]


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_short_runs_keep_positive_learning_rates(name, num_steps):
    schedule = schedules.build(name, 1.0, num_steps)
    assert all(0 < schedule(k) <= 1 for k in range(num_steps))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="known: reference, linear, cosine, constant"):
        schedules.build("step", 1.0, 10)
    for name in "linear", "cosine", "reference":
        with pytest.raises(ValueError, match=r"warmup .*: 0\.95 of 6 steps are all"):
            schedules.build(name, 1.0, 6, warmup=0.95)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        schedules.build("linear", 1.0, 0)
