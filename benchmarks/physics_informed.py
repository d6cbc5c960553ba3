"""A physics-informed network trained full batch to an accuracy Adam does not reach.

    python -m benchmarks.physics_informed --out benchmarks/results/physics_informed

A network u(x, y) of two tanh layers is fitted to the Poisson problem

    -div grad u = f on the unit square, u = 0 on its boundary,

with f made so that u = sin(pi x) sin(2 pi y): the loss is the mean squared residual at
400 points inside plus ten times the mean square of u at 120 points of the boundary.
Every solver starts from the same weights and runs in float64 with the same number of
evaluations (values plus gradients). Adam's learning rate decays by a cosine and is the
best of six, by the final loss. Writes `results.json`, `table.md` and `training.png`.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_nlcg
from benchmarks.metrics import environment

WIDTH = 24
ADAM_RATES = [1e-2, 3e-2, 6e-2, 1e-1, 2e-1, 3e-1]
STYLES = {
    "limited_memory_cg": ("#D55E00", "-", 2.2),
    "nonlinear_cg": ("#D55E00", "--", 2.2),
    "optax.lbfgs": ("#009E73", "-", 1.4),
    "adam": ("#0072B2", "-", 1.4),
}


def exact_solution(points):
    return jnp.sin(jnp.pi * points[..., 0]) * jnp.sin(2 * jnp.pi * points[..., 1])


def init_network(seed: int) -> dict[str, jax.Array]:
    """Weights of a 2-24-24-1 network, Glorot-normal, biases zero."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"w1": (2, WIDTH), "w2": (WIDTH, WIDTH), "w3": (WIDTH, 1)}
    params = {
        name: jax.random.normal(key, shape) * np.sqrt(2 / sum(shape))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return params | {"b1": jnp.zeros(WIDTH), "b2": jnp.zeros(WIDTH), "b3": jnp.zeros(1)}


def network(params: dict[str, jax.Array], point: jax.Array) -> jax.Array:
    """The network at one point."""
    hidden = jnp.tanh(point @ params["w1"] + params["b1"])
    hidden = jnp.tanh(hidden @ params["w2"] + params["b2"])
    return (hidden @ params["w3"] + params["b3"])[0]


def make_loss(seed: int) -> Callable[[dict[str, jax.Array]], jax.Array]:
    """The loss on fixed random points."""
    rng = np.random.default_rng(seed)
    inside = jnp.asarray(rng.uniform(size=(400, 2)))
    along = rng.uniform(size=(4, 30))
    edges = [
        np.stack([along[0], np.zeros(30)], 1),
        np.stack([along[1], np.ones(30)], 1),
        np.stack([np.zeros(30), along[2]], 1),
        np.stack([np.ones(30), along[3]], 1),
    ]
    boundary = jnp.asarray(np.concatenate(edges))
    force = 5 * jnp.pi**2 * exact_solution(inside)

    def laplacian(params, point):
        return jnp.trace(jax.hessian(network, argnums=1)(params, point))

    def loss(params):
        residuals = jax.vmap(laplacian, (None, 0))(params, inside) + force
        edge = jax.vmap(network, (None, 0))(params, boundary)
        return jnp.mean(residuals**2) + 10 * jnp.mean(edge**2)

    return loss


def relative_error(params: dict[str, jax.Array]) -> float:
    """Error of the solution on a grid, in the L2 norm, relative to its size."""
    axis = jnp.linspace(0, 1, 101)
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    values = jax.vmap(network, (None, 0))(params, grid)
    want = exact_solution(grid)
    return float(jnp.linalg.norm(values - want) / jnp.linalg.norm(want))


def solvers(evaluations: int) -> Mapping[str, optax.GradientTransformation]:
    """What is compared; every step of Adam costs a value and a gradient."""
    steps = evaluations // 2
    return {
        "limited_memory_cg": optax_nlcg.limited_memory_cg(),
        "nonlinear_cg": optax_nlcg.nonlinear_cg(),
        "optax.lbfgs": optax.lbfgs(),
    } | {
        f"adam {rate:g}": optax.adam(optax.cosine_decay_schedule(rate, steps))
        for rate in ADAM_RATES
    }


def run(seed: int, evaluations: int) -> list[dict[str, Any]]:
    """Trains with every solver from one start."""
    loss, start = make_loss(seed), init_network(seed)
    rows = []
    for name, solver in solvers(evaluations).items():
        train = jax.jit(
            lambda params, solver=solver: optax_nlcg.minimize(
                loss,
                params,
                solver=solver,
                tol=0.0,
                max_evaluations=evaluations,
                record_history=True,
            )
        )
        result = train(start)
        history, count = result.history, int(result.num_steps) + 1
        keep = np.unique(np.geomspace(1, count, 400).astype(int)) - 1
        rows.append(
            {
                "solver": name,
                "seed": seed,
                "loss": float(result.value),
                "grad_norm": float(result.grad_norm),
                "relative_error": relative_error(result.params),
                "steps": int(result.num_steps),
                "evaluations": int(result.num_evaluations),
                "status": result.message,
                "curve_evaluations": np.asarray(history.num_evaluations)[keep].tolist(),
                "curve_loss": np.asarray(history.value)[keep].tolist(),
            }
        )
        print(f"{seed} {name:20} {rows[-1]['loss']:.3e}", flush=True)
    return rows


def best_adam(rows: list[dict[str, Any]]) -> str:
    """The Adam whose final loss is least, in the geometric mean over the seeds."""
    losses: dict[str, list[float]] = {}
    for row in rows:
        if row["solver"].startswith("adam"):
            losses.setdefault(row["solver"], []).append(row["loss"])
    return min(losses, key=lambda name: np.mean(np.log(losses[name])))


def summary(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: geometric means over the seeds."""
    lines = [
        "Final loss and relative error of the solution; geometric mean over "
        f"{len({row['seed'] for row in rows})} seeds, least and greatest in brackets.",
        "",
        "| solver | evaluations | loss | relative error |",
        "|---|---:|---:|---:|",
    ]
    for name in dict.fromkeys(row["solver"] for row in rows):
        of = [row for row in rows if row["solver"] == name]

        def cell(field, of=of):
            x = np.array([row[field] for row in of])
            return f"{np.exp(np.mean(np.log(x))):.1e} ({x.min():.1e}, {x.max():.1e})"

        count = int(np.mean([row["evaluations"] for row in of]))
        lines.append(
            f"| {name} | {count:,} | {cell('loss')} | {cell('relative_error')} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Loss against evaluations, one line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.8), layout="constrained")
    shown = {"adam": best_adam(rows)}
    for name, (color, dashes, width) in STYLES.items():
        of = [row for row in rows if row["solver"] == shown.get(name, name)]
        label = f"adam, rate {best_adam(rows).split()[1]}" if name == "adam" else name
        for row in of:
            loss = np.minimum.accumulate(row["curve_loss"])
            axes.plot(
                row["curve_evaluations"],
                loss,
                color=color,
                linestyle=dashes,
                lw=width,
                label=label if row is of[0] else None,
            )
    axes.set_yscale("log")
    axes.set_xlabel("evaluations (values plus gradients)")
    axes.set_ylabel("least loss so far")
    axes.set_title("Physics-informed network, Poisson problem, full batch", loc="left")
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Trains with every solver and writes the table and the plot."""
    parser = argparse.ArgumentParser(description="Trains a physics-informed network.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/pinn"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=20_000)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [
        row
        for seed in range(arguments.seeds)
        for row in run(seed, arguments.evaluations)
    ]
    results = {"environment": environment(1), "rows": rows}
    (arguments.out / "results.json").write_text(json.dumps(results) + "\n")
    (arguments.out / "table.md").write_text(summary(rows))
    plot(rows, arguments.out / "training.png")
    print(summary(rows))


if __name__ == "__main__":
    main()
