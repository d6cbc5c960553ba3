"""Time of the full-batch solvers: per evaluation, and many problems at once.

    python -m benchmarks.solver_timing --out benchmarks/results/solvers

writes `timing.json` and `timing.md`. Compilation is not counted; the best of three runs
is. Host solvers call the compiled function and gradient from Python.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import optax_nlcg
from benchmarks.metrics import environment
from benchmarks.problems import Problem, all_problems

PROBLEMS = ["rosenbrock_1000", "softmax_400", "minimal_surface_30x30", "tridia_1000"]
TOL = 1e-6


def best_time(run: Callable[[], Any], repeats: int = 3) -> float:
    """Seconds of the fastest of some runs, after one that compiles."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def time_ours(problem: Problem, solver) -> dict[str, float]:
    start = jnp.asarray(problem.start)
    run = jax.jit(lambda x: optax_nlcg.minimize(problem.fun, x, solver=solver, tol=TOL))
    return per_evaluation(best_time(lambda: run(start)), run(start).num_evaluations)


def time_scipy(problem: Problem, method: str) -> dict[str, float]:
    value, gradient = jax.jit(problem.fun), jax.jit(jax.grad(problem.fun))

    def run():
        return scipy.optimize.minimize(
            lambda x: float(value(x)),
            problem.start,
            jac=lambda x: np.asarray(gradient(x)),
            method=method,
            options={"gtol": TOL, "maxiter": 10_000},
        )

    result = run()
    return per_evaluation(best_time(lambda: run().x), result.nfev + result.njev)


def per_evaluation(seconds: float, evaluations) -> dict[str, float]:
    count = int(evaluations)
    return {
        "seconds": seconds,
        "evaluations": count,
        "microseconds_per_evaluation": 1e6 * seconds / count,
    }


def time_function(problem: Problem) -> dict[str, float]:
    """The function's own cost inside a compiled loop: half a value and gradient."""
    start, count = jnp.asarray(problem.start), 200

    @jax.jit
    def run(x):
        def body(_, x):
            _, gradient = jax.value_and_grad(problem.fun)(x)
            return x - 1e-12 * gradient

        return jax.lax.fori_loop(0, count, body, x)

    return per_evaluation(best_time(lambda: run(start)), 2 * count)


def time_batch(lanes: int, rows: int = 64, columns: int = 16) -> dict[str, float]:
    """Logistic regressions of different data: one vmap against a loop."""
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.standard_normal((lanes, rows, columns)))
    labels = jnp.asarray(rng.choice([-1.0, 1.0], (lanes, rows)))

    def solve(features, labels):
        def loss(x):
            margins = labels * (features @ x)
            return jnp.mean(jax.nn.softplus(-margins)) + 5e-3 * jnp.sum(x**2)

        return optax_nlcg.minimize(loss, jnp.zeros(columns), tol=TOL)

    single, batch = jax.jit(solve), jax.jit(jax.vmap(solve))
    result = batch(features, labels)

    def loop():
        return [single(f, y) for f, y in zip(features, labels, strict=True)]

    one_by_one = loop()
    return {
        "lanes": lanes,
        "converged": int(jnp.sum(result.converged)),
        "equal_counts": sum(
            int(a) == int(b.num_evaluations)
            for a, b in zip(result.num_evaluations, one_by_one, strict=True)
        ),
        "vmap_seconds": best_time(lambda: batch(features, labels)),
        "loop_seconds": best_time(loop),
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    names = list(next(iter(results["problems"].values())))
    lines = [
        "Microseconds per evaluation (a value or a gradient), compilation not counted:",
        "",
        "| problem | " + " | ".join(names) + " |",
        "|---|" + "---:|" * len(names),
    ]
    for problem, times in results["problems"].items():
        cells = [f"{times[n]['microseconds_per_evaluation']:.1f}" for n in names]
        lines.append(f"| {problem} | " + " | ".join(cells) + " |")
    batch = results["batch"]
    lines += [
        "",
        f"{batch['lanes']} logistic regressions: {batch['vmap_seconds']:.2f} s in one "
        f"vmap, {batch['loop_seconds']:.2f} s in a loop of compiled calls "
        f"({batch['loop_seconds'] / batch['vmap_seconds']:.1f} times as long): "
        f"{batch['converged']} converged, {batch['equal_counts']} with the same number "
        "of evaluations as alone.",
        "",
        "Device: {device}, {date}.".format_map(results["environment"]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Times everything and writes the table."""
    parser = argparse.ArgumentParser(description="Times the full-batch solvers.")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/solvers")
    )
    parser.add_argument("--lanes", type=int, default=1000)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    solvers = {
        "the function alone": time_function,
        "limited_memory_cg": lambda p: time_ours(p, optax_nlcg.limited_memory_cg()),
        "nonlinear_cg": lambda p: time_ours(p, optax_nlcg.nonlinear_cg()),
        "scipy CG": lambda p: time_scipy(p, "CG"),
        "scipy L-BFGS-B": lambda p: time_scipy(p, "L-BFGS-B"),
    }
    chosen = [problem for problem in all_problems() if problem.name in PROBLEMS]
    results = {
        "environment": environment(1),
        "problems": {
            problem.name: {name: run(problem) for name, run in solvers.items()}
            for problem in chosen
        },
        "batch": time_batch(arguments.lanes),
    }
    (arguments.out / "timing.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.out / "timing.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
