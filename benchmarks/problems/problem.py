"""What a test problem is, and what several families of them are written with."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Problem(NamedTuple):
    """A function to minimise.

    Attributes:
      name: Unique name, with the number of variables where it is a choice.
      group: The set it belongs to.
      fun: Function of a vector of shape [n], to a scalar.
      start: Starting point, float64, shape [n].
      diagonal: Diagonal of the Hessian, shape [n], where it is a known constant and
        the problem is meant to be preconditioned with it; else None.
    """

    name: str
    group: str
    fun: Callable[[jax.Array], jax.Array]
    start: np.ndarray
    diagonal: np.ndarray | None = None


def least_squares(residuals):
    """The sum of squares of a function's values."""
    return lambda x: jnp.sum(residuals(x) ** 2)


def indices(n):
    """1 to n, as the literature counts."""
    return np.arange(1, n + 1, dtype=np.float64)
