"""The solver benchmark: its problems, its counts, its table."""

import jax
import numpy as np
import pytest

from benchmarks import peers, solvers
from benchmarks.problems import all_problems

# Values at the standard starts, from the problems' publication and by hand.
STARTS = {
    "rosenbrock": 24.2,
    "freudenstein_roth": 400.5,
    "powell_badly_scaled": 1.13526,
    "brown_badly_scaled": 9.99998000003e11,
    "beale": 14.203125,
    "helical_valley": 2500.0,
    "bard": 41.6817,
    "box": 1031.154,
    "powell_singular": 215.0,
    "wood": 19192.0,
    "kowalik_osborne": 5.31317e-3,
    "brown_dennis": 7926693.337,
    "osborne_1": 0.879026,
    "biggs_exp6": 0.779070,
    "osborne_2": 2.093420,
    "watson_6": 30.0,
    "broyden_tridiagonal_1000": 1011.0,
    "arwhead_1000": 3 * 999.0,
    "dqdrtic_5000": 9 * 201 * 4998.0,
    "engval1_1000": (64 - 8 + 3) * 999.0,
    "quartc_1000": float(np.sum((2.0 - np.arange(1, 1001)) ** 4)),
}


@pytest.fixture(scope="module")
def problems():
    return {problem.name: problem for problem in all_problems()}


def test_problems_are_what_they_are_called(x64, problems):
    assert len(problems) >= 75
    for name, value in STARTS.items():
        np.testing.assert_allclose(
            problems[name].fun(problems[name].start), value, rtol=2e-6, err_msg=name
        )


def test_diagonals_are_those_of_the_hessians(x64, problems):
    named = [p for p in problems.values() if p.diagonal is not None]
    assert named
    for problem in named:
        hessian = jax.jit(jax.hessian(problem.fun))(problem.start)
        np.testing.assert_allclose(np.diag(hessian), problem.diagonal, rtol=1e-9)


@pytest.mark.parametrize(
    "name", ["limited_memory_cg", "scipy CG", "optax.lbfgs", "scipy L-BFGS-B"]
)
def test_counts_agree_with_the_solvers_own(x64, problems, name):
    run = peers.run(name, problems["beale"], tol=1e-6, cap=1000)
    assert run.evaluations == run.reported
    np.testing.assert_allclose(run.params, [3, 0.5], atol=1e-4)


def rows():
    def row(solver, problem, evaluations, solved=True, wrong=False):
        return {
            "solver": solver,
            "problem": problem,
            "evaluations": evaluations,
            "solved": solved,
            "false_success": wrong,
            "success": solved or wrong,
        }

    return [
        row("scipy CG", "a", 100),
        row("scipy CG", "b", 400),
        row("scipy CG", "c", 50, solved=False, wrong=True),
        row("nonlinear_cg", "a", 50),
        row("nonlinear_cg", "b", 100),
        row("nonlinear_cg", "c", 70),
    ]


def test_table(tmp_path):
    table = solvers.costs(rows())
    assert table["scipy CG"] == {"a": 100, "b": 400, "c": np.inf}
    ratio = solvers.relative_cost(table["nonlinear_cg"], table["scipy CG"])
    np.testing.assert_allclose(ratio, np.sqrt(0.5 * 0.25))
    text = solvers.summary(rows())
    assert "| nonlinear_cg | 3 | 0.35 |  | 0 |" in text
    assert "| scipy CG | 2 | 1.00 |  | 1 |" in text
    assert "| c | 70 | - |" in text
    solvers.profile(rows(), tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 10_000


def test_table_of_one_solver(tmp_path):
    """What others cost is compared with may not have been asked for."""
    alone = [row for row in rows() if row["solver"] == "nonlinear_cg"]
    assert "| nonlinear_cg | 3 |  |  | 0 |" in solvers.summary(alone)
    solvers.profile(alone, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").exists()
