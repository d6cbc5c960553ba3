"""Full-batch solvers on the test problems: what they solve and what it costs.

    python -m benchmarks.solvers --out benchmarks/results/solvers

runs every solver that is installed on every problem, in float64, and writes one row a
run to `runs.jsonl`, and from it a table (`table.md`) and Dolan and Moré's performance
profile (`profile.png`). Rows that are there already are not run again. A problem counts
as solved if the largest gradient entry at the returned point is within the tolerance;
its cost is the values plus gradients computed until the solver stopped; of optimistix,
which stops by its iterates, those until the first gradient within the tolerance.
"""

import argparse
import json
import pathlib
import time
import warnings
from typing import Any

import jax
import numpy as np

from benchmarks import peers, report
from benchmarks.metrics import environment, git_commit
from benchmarks.problems import Problem, all_problems

TOL = 1e-6
CAP = 10_000
REFERENCE = "scipy CG"
REFERENCES = REFERENCE, "CG_DESCENT"

STYLES = {
    "limited_memory_cg": ("#D55E00", "-", 2.4),
    "nonlinear_cg": ("#D55E00", "--", 2.4),
    "scipy CG": ("#000000", "--", 1.3),
    "scipy L-BFGS-B": ("#000000", "-", 1.3),
    "CG_DESCENT": ("#0072B2", "--", 1.3),
    "CG_DESCENT memory": ("#0072B2", "-", 1.3),
    "optax.lbfgs": ("#009E73", "-", 1.3),
    "jaxopt NonlinearCG": ("#CC79A7", "--", 1.3),
    "optimistix NonlinearCG": ("#E69F00", "--", 1.3),
}


def run_all(
    out: pathlib.Path, names: list[str], problems: list[Problem]
) -> list[dict[str, Any]]:
    """Runs what is missing from `out/runs.jsonl` and returns all rows.

    `out/environment.json` is that of the last run.
    """
    path = out / "runs.jsonl"
    rows = report.load(path) if path.exists() else []
    done = {(row["solver"], row["problem"]) for row in rows}
    for name in names:
        for problem in problems:
            if (name, problem.name) not in done:
                row = run_one(name, problem)
                rows.append(row)
                (out / "environment.json").write_text(
                    json.dumps(environment(1), indent=1) + "\n"
                )
                with open(path, "a") as file:
                    file.write(json.dumps(row) + "\n")
                print(
                    f"{name:24} {problem.name:28} {row['evaluations']}"
                    f"{'' if row['solved'] else ' not solved'}",
                    flush=True,
                )
    return rows


def run_one(name: str, problem: Problem) -> dict[str, Any]:
    """Runs one solver on one problem; the row says what it did and where."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        # Some solvers overflow on their way; their results tell how that ended.
        warnings.simplefilter("ignore")
        result = peers.run(name, problem, TOL, CAP)
    value, grad = jax.jit(jax.value_and_grad(problem.fun))(result.params)
    grad_norm = float(np.max(np.abs(grad)))
    count = result.evaluations
    solved = grad_norm <= TOL and count is not None and count <= CAP
    return {
        "solver": name,
        "problem": problem.name,
        "group": problem.group,
        "size": problem.start.size,
        "tol": TOL,
        "cap": CAP,
        "solved": solved,
        "evaluations": result.evaluations,
        "reported": result.reported,
        "success": result.success,
        "false_success": bool(result.success) and not grad_norm <= TOL,
        "value": float(value),
        "grad_norm": grad_norm,
        "seconds": round(time.perf_counter() - start, 2),
        "git_commit": git_commit(),
    }


def costs(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Evaluations by solver and problem; infinite where it was not solved."""
    table: dict[str, dict[str, float]] = {}
    for row in rows:
        cost = float(row["evaluations"]) if row["solved"] else np.inf
        table.setdefault(row["solver"], {})[row["problem"]] = cost
    return table


def _problems(table: dict[str, dict[str, float]]) -> list[str]:
    """Every problem that a solver was given, in the order of the first that was."""
    return list(dict.fromkeys(problem for cost in table.values() for problem in cost))


def relative_cost(cost: dict[str, float], reference: dict[str, float]) -> float:
    """Geometric mean of the ratio, over the problems that both solved."""
    ratios = [
        np.log(cost[problem] / reference[problem])
        for problem in cost
        if np.isfinite(cost[problem]) and np.isfinite(reference.get(problem, np.inf))
    ]
    return float(np.exp(np.mean(ratios)))


def summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown table of the solvers, and one of every run."""
    table = costs(rows)
    problems = _problems(table)
    lines = [
        f"Problems: {len(problems)}. Solved: largest gradient entry at most {TOL:g} "
        f"at the returned point, within {CAP:,} evaluations (values plus gradients). "
        f"Cost: geometric mean of the evaluations against {REFERENCES[0]}'s and "
        f"{REFERENCES[1]}'s, over the problems that both solved. Evaluations are those "
        "until the solver stopped; of optimistix, which stops by its iterates, until "
        "the first gradient within the tolerance. False success: reported, but not so "
        "at the returned point.",
        "",
        "| solver | solved | cost / {} | cost / {} | false success |".format(
            *REFERENCES
        ),
        "|---|---:|---:|---:|---:|",
    ]
    for name in peers.SOLVERS:
        if name not in table:
            continue
        solved = sum(np.isfinite(cost) for cost in table[name].values())
        wrong = sum(row["false_success"] for row in rows if row["solver"] == name)
        own = [row["success"] for row in rows if row["solver"] == name]
        cells = [
            name,
            str(solved),
            *(
                f"{relative_cost(table[name], table[other]):.2f}"
                if other in table
                else ""
                for other in REFERENCES
            ),
            "" if None in own else str(wrong),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    names = [name for name in peers.SOLVERS if name in table]
    lines += ["", "Evaluations by problem; a dash where it was not solved.", ""]
    lines += ["| problem | " + " | ".join(names) + " |"]
    lines += ["|---|" + "---:|" * len(names)]
    for problem in problems:
        cells = [table[name].get(problem, np.inf) for name in names]
        texts = [f"{cell:.0f}" if np.isfinite(cell) else "-" for cell in cells]
        lines.append(f"| {problem} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def profile(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Plots the share of problems solved within a factor of the best solver's cost."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    table = costs(rows)
    names = [name for name in peers.SOLVERS if name in table]
    problems = _problems(table)
    matrix = np.array([[table[n].get(p, np.inf) for p in problems] for n in names])
    best = matrix.min(axis=0)
    solvable = np.isfinite(best)
    ratios = matrix[:, solvable] / best[solvable]
    factors = np.geomspace(1, 64, 400)
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for name, row in zip(names, ratios, strict=True):
        color, dashes, width = STYLES[name]
        share = (row[:, None] <= factors).sum(axis=0) / len(problems)
        axes.plot(factors, share, color=color, linestyle=dashes, lw=width, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(2.0 ** np.arange(7), [str(2**k) for k in range(7)])
    axes.set_xlim(1, 64)
    axes.set_ylim(0, 1)
    axes.set_xlabel("evaluations, as a multiple of the best solver's")
    axes.set_ylabel("share of problems solved within it")
    axes.set_title(f"{len(problems)} problems to |g| ≤ {TOL:g}", loc="left")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8.5)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Runs what is missing and writes the table and the plot."""
    parser = argparse.ArgumentParser(
        description="Runs full-batch solvers on test problems."
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/solvers")
    )
    parser.add_argument("--solvers", nargs="*", default=peers.installed())
    parser.add_argument("--problems", nargs="*")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    problems = [
        problem
        for problem in all_problems()
        if not arguments.problems or problem.name in arguments.problems
    ]
    rows = run_all(arguments.out, arguments.solvers, problems)
    (arguments.out / "table.md").write_text(summary(rows))
    profile(rows, arguments.out / "profile.png")


if __name__ == "__main__":
    main()
