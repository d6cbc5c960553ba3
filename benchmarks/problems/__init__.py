"""Smooth unconstrained test problems for the full-batch solvers.

Each problem is a function of one vector, written with `jax.numpy`, and a standard
starting point. A family has a file. Functions take any float dtype; constants are NumPy
float64 and become weakly typed nowhere, so run them with 64-bit types enabled to
reproduce the published optima.
"""

from benchmarks.problems import data, large, more_garbow_hillstrom, quadratic
from benchmarks.problems.problem import Problem as Problem


def all_problems() -> list[Problem]:
    """Every problem, in a fixed order."""
    families = more_garbow_hillstrom, large, data, quadratic
    return [problem for family in families for problem in family.problems()]
