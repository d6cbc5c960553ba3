"""The variants of the solvers: the first is the solver itself, and the table."""

import jax
import numpy as np

import optax_nlcg
from benchmarks import solver_variants
from benchmarks.problems import all_problems
from benchmarks.solver_variants import CONJUGATE, LIMITED_MEMORY, Variant


def test_inputs_of_the_program_are_what_the_solver_takes():
    with jax.enable_x64(True):
        problem = next(p for p in all_problems() if p.name == "beale")
        rows = solver_variants.run_problem(
            problem, ["nonlinear_cg", "Powell's restarts", "dai_yuan"]
        )
        same = solver_variants.minimize(problem, optax_nlcg.nonlinear_cg())
    assert all(row["solved"] for row in rows)
    assert rows[0]["evaluations"] == int(same.num_evaluations)
    np.testing.assert_allclose(rows[0]["value"], float(same.value), atol=1e-15)
    assert len({row["evaluations"] for row in rows}) == 3


def test_variants_differ():
    assert len(set(CONJUGATE.values())) == len(CONJUGATE)
    assert CONJUGATE["nonlinear_cg"] == Variant()
    assert {variant.rule for variant in CONJUGATE.values()} == set(
        solver_variants.RULES
    )
    assert set(optax_nlcg.BETA_RULES) < set(solver_variants.RULES)
    assert not set(CONJUGATE) & set(LIMITED_MEMORY)


def test_table():
    def row(solver, problem, evaluations, solved=True):
        return {
            "solver": solver,
            "problem": problem,
            "evaluations": evaluations,
            "solved": solved,
        }

    rows = [
        row("nonlinear_cg", "a", 50),
        row("nonlinear_cg", "b", 80),
        row("dai_yuan", "a", 100),
        row("dai_yuan", "b", 90, solved=False),
    ]
    text = solver_variants.summary(rows, {"a": 100.0, "b": 20.0})
    assert text.startswith("Problems: 2.")
    assert f"| nonlinear_cg | 2 | {np.sqrt(0.5 * 4):.2f} | 1.00 |" in text
    assert "| dai_yuan | 1 | 1.00 | 2.00 |" in text
