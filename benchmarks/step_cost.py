"""What one update costs beside the gradient: time, bytes moved, memory of the state.

    python -m benchmarks.step_cost --out benchmarks/results/step_cost

For each optimizer and number of parameters it compiles `update` and `apply_updates`
with everything donated, counts the bytes that the program must move (every argument
read once, every result written once) and those that XLA says it accesses, and times it
in turns with AdamW's, so that a busy machine hurts both alike. The memory bandwidth is
that of a copy, measured in the same run; a floor is the least time in which the bytes
that must be moved can be.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import optax_nlcg
from benchmarks import metrics, report

Tree = Any

# Wide matrices, as in a transformer; a vector for each.
WIDTH = 1024


def _hessian() -> optax.GradientTransformation:
    return optax_nlcg.scale_by_hessian_diagonal(estimator=None)


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(0.1),
    "sophia": lambda: optax.contrib.sophia(0.1),
    "nlcg": lambda: optax_nlcg.nlcg(0.1),
    "nlcg, no search": lambda: optax_nlcg.nlcg(0.1, line_search=optax.identity()),
    "nlcg, no preconditioner": lambda: optax_nlcg.nlcg(
        0.1, preconditioner=optax.identity()
    ),
    "nlcg, Fletcher-Reeves alone": lambda: optax_nlcg.nlcg(
        0.1, preconditioner=optax.identity(), line_search=optax.identity()
    ),
    "nlcg, Hessian diagonal, no search": lambda: optax_nlcg.nlcg(
        0.1, preconditioner=_hessian(), line_search=optax.identity()
    ),
    "nlcg, Hessian diagonal": lambda: optax_nlcg.nlcg(0.1, preconditioner=_hessian()),
    "nlcg, Hager-Zhang rule": lambda: optax_nlcg.nlcg(0.1, beta_rule="hager_zhang"),
    "ml_ncg": lambda: optax_nlcg.reference.ml_ncg(0.1),
    "lbfgs direction, memory 10": lambda: optax.chain(
        optax.scale_by_lbfgs(10), optax.scale_by_learning_rate(0.1)
    ),
}


def make_params(num_parameters: int) -> Tree:
    """Matrices and vectors, about so many numbers in all."""
    layers = max(1, round(num_parameters / (WIDTH * WIDTH + WIDTH)))
    return {
        f"layer{i}": {
            "kernel": jnp.full((WIDTH, WIDTH), 0.01),
            "bias": jnp.full((WIDTH,), 0.01),
        }
        for i in range(layers)
    }


def size(tree: Tree) -> int:
    """Bytes of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def squares(params: Tree) -> jax.Array:
    """Sophia takes its Hessian from a function; this one costs next to nothing."""
    return 0.5 * jnp.sum(jnp.array([jnp.vdot(x, x) for x in jax.tree.leaves(params)]))


class Update:
    """One compiled update, and what it works on."""

    def __init__(self, name: str, num_parameters: int):
        tx = optax.with_extra_args_support(OPTIMIZERS[name]())

        def update(params, state, grads, value):
            updates, state = tx.update(
                grads, state, params, value=value, obj_fn=squares
            )
            return optax.apply_updates(params, updates), state

        params = make_params(num_parameters)
        self.grads = jax.tree.map(lambda x: x + 0.01, params)
        # Copies, because a fresh state of L-BFGS has one array in two places.
        self.carry = params, jax.tree.map(jnp.copy, tx.init(params))
        self.value = jnp.float32(1.0)
        self.copies = size(self.carry[1]) / size(params)
        lowered = jax.jit(update, donate_argnums=(0, 1)).lower(
            *self.carry, self.grads, self.value
        )
        self.compiled = lowered.compile()
        cost = self.compiled.cost_analysis() or {}
        self.bytes_accessed = cost.get("bytes accessed", float("nan"))
        # Parameters and state are read and written, the gradient is read.
        self.least_bytes = 2 * size(self.carry) + size(self.grads)

    def run(self, times: int) -> float:
        """Seconds of one update, in a queue of `times`."""
        start = time.perf_counter()
        for _ in range(times):
            self.carry = self.compiled(*self.carry, self.grads, self.value)
        jax.block_until_ready(self.carry)
        return (time.perf_counter() - start) / times


def bandwidth(num_bytes: int = 2**28, repeats: int = 7) -> float:
    """Bytes per second that a copy of float32 reads and writes."""
    x = jnp.zeros(num_bytes // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jax.block_until_ready(copy(x))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        x = jax.block_until_ready(copy(x))
        best = min(best, time.perf_counter() - start)
    return 2 * num_bytes / best


def measure(num_parameters: int, rounds: int, times: int) -> list[dict[str, Any]]:
    """Times all optimizers at one size; one row each."""
    rows = []
    speed = bandwidth()
    for name in OPTIMIZERS:
        # Two at a time: all do not fit beside each other.
        update = Update(name, num_parameters)
        reference = Update("adamw", num_parameters)
        timings = [
            (update.run(times), reference.run(times)) for _ in range(rounds + 1)
        ][1:]  # the first warms caches up
        seconds = statistics.median(own for own, _ in timings)
        rows.append(
            {
                "optimizer": name,
                "num_parameters": num_parameters,
                "state_copies": update.copies,
                "least_bytes": update.least_bytes,
                "bytes_accessed": update.bytes_accessed,
                "seconds": seconds,
                "over_adamw": statistics.median(a / b for a, b in timings),
                "over_floor": seconds * speed / update.least_bytes,
                "bandwidth": speed,
            }
        )
        ratio = rows[-1]["over_adamw"]
        print(f"{num_parameters:>12,} {name:36} {ratio:.2f} x adamw")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lays the rows out."""
    header = "optimizer", "parameters", "state, copies", "least passes"
    header += "passes by XLA", "time / adamw", "time / floor", "ms"
    lines = []
    for row in rows:
        one_pass = 4 * row["num_parameters"]
        lines.append(
            (
                row["optimizer"],
                f"{row['num_parameters']:,}",
                f"{row['state_copies']:.1f}",
                f"{row['least_bytes'] / one_pass:.1f}",
                f"{row['bytes_accessed'] / one_pass:.1f}",
                f"{row['over_adamw']:.2f}",
                f"{row['over_floor']:.2f}",
                f"{1e3 * row['seconds']:.2f}",
            )
        )
    return report.markdown(header, lines)


def main() -> None:
    """Measures and writes `<out>/<platform>.json` and `.md`."""
    parser = argparse.ArgumentParser(description="Cost of one update.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument(
        "--num-parameters", nargs="+", type=int, default=[10**6, 10**7, 10**8]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=5)
    arguments = parser.parse_args()
    metrics.git_commit()  # as it is now, not when the runs end
    rows = []
    for number in arguments.num_parameters:
        rows += measure(number, arguments.rounds, arguments.times)
    environment = metrics.environment(num_devices=1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{environment['platform']}.json"
    path.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1))
    path.with_suffix(".md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
