"""What else `nonlinear_cg` and `limited_memory_cg` could be: variants, side by side.

    python -m benchmarks.solver_variants --out benchmarks/results/solver_variants

runs rules for beta, restarts, line searches and memory sizes on the problems of
`benchmarks.solvers`, to the same tolerance and cap, and compares them with the rows of
scipy's CG that it finds in `benchmarks/results/solvers/runs.jsonl` (or `--reference`).
Writes one row a run to `runs.jsonl`, and `table.md`. Evaluations are the solver's own
count, which a test holds against a count in the function.

The variants of `nonlinear_cg` are one compiled program a problem: its rule, restarts
and line search are inputs. It rounds differently from the solver itself, so that counts
on ill-conditioned problems can differ from those of `benchmarks.solvers`.
"""

import argparse
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_nlcg
from benchmarks import report, solvers
from benchmarks.metrics import environment, git_commit
from benchmarks.problems import Problem, all_problems
from optax_nlcg.beta import hager_zhang

REFERENCE = pathlib.Path("benchmarks/results/solvers/runs.jsonl")
RULES = {name: rule.compute for name, rule in optax_nlcg.BETA_RULES.items()} | {
    "hager_zhang, theta 2": functools.partial(hager_zhang, theta=2.0)
}


class Variant(NamedTuple):
    """A variant of `nonlinear_cg`.

    Attributes:
      rule: a name in `RULES`.
      cycles: steps from one restart to the next, in numbers of parameters.
      threshold: of Powell's restart test; infinite: no test.
      curvature: the line search's; smaller is more exact.
    """

    rule: str = "hager_zhang"
    cycles: float = 6.0
    threshold: float = np.inf
    curvature: float = 0.9


CONJUGATE = {
    "nonlinear_cg": Variant(),
    "no restarts": Variant(cycles=np.inf),
    "restarts every n": Variant(cycles=1.0),
    "Powell's restarts": Variant(threshold=0.2),
    "more exact search, .3": Variant(curvature=0.3),
    "less exact search, .99": Variant(curvature=0.99),
} | {rule: Variant(rule=rule) for rule in RULES if rule != "hager_zhang"}

LIMITED_MEMORY: dict[str, Callable[[], optax.GradientTransformation]] = {
    f"limited_memory_cg, {size} steps": functools.partial(
        optax_nlcg.limited_memory_cg, memory_size=size
    )
    for size in (3, 5, 10, 20)
}


def conjugate_solver(
    rule: jax.Array, restart_every: Any, threshold: Any, curvature: Any
) -> optax.GradientTransformation:
    """`nonlinear_cg` with its choices as inputs of the program."""

    def compute(products):
        return jnp.stack([compute(products) for compute in RULES.values()])[rule]

    return optax.chain(
        optax_nlcg.scale_by_conjugate_direction(
            beta_rule=optax_nlcg.BetaRule(
                compute,
                needs_previous_gradient=True,
                needs_preconditioned_difference=True,
            ),
            restart_every=restart_every,
            restart_threshold=threshold,
        ),
        optax.scale(-1.0),
        optax_nlcg.scale_by_hager_zhang_line_search(curvature=curvature),
    )


def minimize(problem: Problem, solver: optax.GradientTransformation):
    """Runs a solver on a problem, as `benchmarks.solvers` does."""
    return optax_nlcg.minimize(
        problem.fun,
        jnp.asarray(problem.start),
        solver=solver,
        tol=solvers.TOL,
        max_evaluations=solvers.CAP,
    )


def run_problem(problem: Problem, names: Sequence[str]) -> list[dict[str, Any]]:
    """Runs variants on a problem; one row each."""

    @jax.jit
    def run_conjugate(rule, restart_every, threshold, curvature):
        solver = conjugate_solver(rule, restart_every, threshold, curvature)
        return minimize(problem, solver)

    rows = []
    for name in names:
        if name in CONJUGATE:
            variant = CONJUGATE[name]
            steps = min(variant.cycles * problem.start.size, np.iinfo(np.int32).max)
            result = run_conjugate(
                list(RULES).index(variant.rule),
                int(steps),
                variant.threshold,
                variant.curvature,
            )
        else:
            solver = LIMITED_MEMORY[name]()
            result = jax.jit(lambda solver=solver: minimize(problem, solver))()
        count, grad_norm = int(result.num_evaluations), float(result.grad_norm)
        solved = grad_norm <= solvers.TOL and count <= solvers.CAP
        rows.append(
            {
                "solver": name,
                "problem": problem.name,
                "group": problem.group,
                "size": problem.start.size,
                "tol": solvers.TOL,
                "cap": solvers.CAP,
                "solved": solved,
                "evaluations": count,
                "value": float(result.value),
                "grad_norm": grad_norm,
                "status": result.message,
                "git_commit": git_commit(),
            }
        )
        print(f"{problem.name:28} {name:26} {count}{'' if solved else ' not solved'}")
    return rows


def summary(rows: Sequence[report.Row], reference: dict[str, float]) -> str:
    """A Markdown table of the variants."""
    table = solvers.costs(list(rows))
    base = table["nonlinear_cg"]
    lines = [
        f"Problems: {len(base)}. Solved: largest gradient entry at most "
        f"{solvers.TOL:g} within {solvers.CAP:,} evaluations (values plus gradients). "
        f"Cost: geometric mean of the evaluations against {solvers.REFERENCE}'s and "
        "nonlinear_cg's, over the problems that both solved. Every variant changes one "
        "thing in nonlinear_cg (Hager-Zhang, restarts every 6 n steps, search to .9) "
        "or is limited_memory_cg.",
        "",
        f"| variant | solved | cost / {solvers.REFERENCE} | cost / nonlinear_cg |",
        "|---|---:|---:|---:|",
    ]
    for name, cost in table.items():
        solved = sum(np.isfinite(list(cost.values())))
        lines.append(
            f"| {name} | {solved} | {solvers.relative_cost(cost, reference):.2f} | "
            f"{solvers.relative_cost(cost, base):.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all variants on all problems and writes the rows and the table."""
    parser = argparse.ArgumentParser(description="Variants of the full-batch solvers.")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/solver_variants")
    )
    parser.add_argument("--reference", type=pathlib.Path, default=REFERENCE)
    parser.add_argument("--problems", nargs="*")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    reference = solvers.costs(report.load(arguments.reference))[solvers.REFERENCE]
    rows = []
    with open(arguments.out / "runs.jsonl", "w") as file:
        for problem in all_problems():
            if not arguments.problems or problem.name in arguments.problems:
                for row in run_problem(problem, [*CONJUGATE, *LIMITED_MEMORY]):
                    rows.append(row)
                    file.write(json.dumps(row) + "\n")
    (arguments.out / "environment.json").write_text(
        json.dumps(environment(1), indent=1) + "\n"
    )
    text = summary(rows, reference)
    (arguments.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
