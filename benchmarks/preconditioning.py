"""What a diagonal preconditioner saves the full-batch solver.

    python -m benchmarks.preconditioning --out benchmarks/results/solvers

Runs nonlinear_cg on badly scaled problems without a preconditioner, with the Hessian's
diagonal estimated once at the start, and refreshed every 25 steps. An estimate averages
8 Hutchinson probes. A probe, a Hessian-vector product, is charged as four evaluations
(two values and two gradients). Writes `preconditioning.json` and `preconditioning.md`.
"""

import argparse
import json
import math
import pathlib
from typing import Any

import jax

import optax_nlcg
from benchmarks.metrics import environment
from benchmarks.problems import Problem, all_problems

PROBLEMS = [
    "scaled_quadratic_1e4_200",
    "scaled_quadratic_1e6_200",
    "tridia_1000",
    "vareigvl_500",
    "logistic_scaled_100",
    "softmax_400",
    "dixmaanl_3000",
    "quadratic_1e4_300",
]
PROBES = 8
CHARGE = 4
REFRESHES = {"none": None, "at the start": 10**9, "every 25 steps": 25}


def run(problem: Problem, every: int | None) -> dict[str, Any]:
    """Minimises a problem; what it cost, the estimates included."""
    preconditioner = None
    if every is not None:
        preconditioner = optax_nlcg.scale_by_hessian_diagonal(
            num_probes=PROBES,
            update_every=every,
            averaging="signed",
            decay=0.0,
            floor=1e-8,
        )
    solver = optax_nlcg.nonlinear_cg(preconditioner=preconditioner)
    result = jax.jit(
        lambda x: optax_nlcg.minimize(
            problem.fun, x, solver=solver, tol=1e-6, max_evaluations=10_000
        )
    )(problem.start)
    estimates = 0 if every is None else math.ceil(int(result.num_steps) / every)
    evaluations = int(result.num_evaluations) + CHARGE * PROBES * estimates
    return {
        "problem": problem.name,
        "evaluations": evaluations,
        "steps": int(result.num_steps),
        "grad_norm": float(result.grad_norm),
        "converged": bool(result.converged) and evaluations <= 10_000,
    }


def main() -> None:
    """Runs everything and writes the table."""
    parser = argparse.ArgumentParser(description="Measures preconditioning.")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/solvers")
    )
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    lines = [
        f"Evaluations of nonlinear_cg with a Hessian diagonal ({PROBES} probes, each "
        f"charged as {CHARGE} evaluations); a dash where 10,000 did not do.",
        "",
        "| problem | " + " | ".join(REFRESHES) + " |",
        "|---|" + "---:|" * len(REFRESHES),
    ]
    for problem in all_problems():
        if problem.name in PROBLEMS:
            cells = []
            for name, every in REFRESHES.items():
                row = {"preconditioner": name} | run(problem, every)
                rows.append(row)
                cells.append(f"{row['evaluations']:,}" if row["converged"] else "-")
            lines.append(f"| {problem.name} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    results = {"environment": environment(1), "rows": rows}
    out = arguments.out / "preconditioning"
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    out.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
