"""What one update costs beside the gradient: time, passes over memory, kernels.

    python -m benchmarks.step_cost --out benchmarks/results/step_cost
    python -m benchmarks.step_cost --compile-for h100 --out benchmarks/results/step_cost

For each optimizer and set of parameters it compiles `update` and `apply_updates` with
everything donated and reads off the program how often it goes through the main memory,
in multiples of the parameters' size (hlo_traffic.py), what it needs beside its
arguments, and how many kernels it starts. The least is every argument read once and
every result written once.

On the device that is there, updates are timed too, each in turns with AdamW's, so that
a busy machine hurts both alike. The memory bandwidth is that of a copy, measured in the
same run; a floor is the least time in which the least bytes can be moved. With
`--compile-for` the device need not be there (topologies.py), and nothing is timed.
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
from benchmarks import (
    hlo_traffic,
    metrics,
    optimizers,
    report,
    scaling_models,
    topologies,
)

Tree = Any

# Wide matrices, as in a transformer; a vector for each. Those of programs that are only
# read are larger than what could stay in a TPU's on-chip memory between two uses.
WIDTH, WIDTH_OF_COMPILED = 1024, 2048
# Compiling for many small arrays takes minutes for each optimizer.
WITH_MANY_ARRAYS = (
    "sgd",
    "adamw",
    "nlcg",
    "nlcg, flattened",
    "nlcg, Fletcher-Reeves alone",
    "nlcg, Hessian diagonal",
)


def _hessian() -> optax.GradientTransformation:
    return optax_nlcg.scale_by_hessian_diagonal(estimator=None)


OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(0.1),
    "muon": lambda: optax.contrib.muon(0.1),
    "sophia": lambda: optax.contrib.sophia(0.1),
    "nlcg": lambda: optax_nlcg.nlcg(0.1),
    "nlcg, flattened": lambda: optax.flatten(optax_nlcg.nlcg(0.1)),
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
    "nlcg, Adam's scaling, no search": lambda: optax_nlcg.nlcg(
        0.1, preconditioner=optimizers.ADAM_SCALING, line_search=optax.identity()
    ),
    "nlcg, Adam's scaling": lambda: optax_nlcg.nlcg(
        0.1, preconditioner=optimizers.ADAM_SCALING
    ),
    "nlcg, orthogonalisation, no search": lambda: optax_nlcg.nlcg(
        0.1,
        preconditioner=optax_nlcg.scale_by_orthogonalization(),
        line_search=optax.identity(),
    ),
    "nlcg, Hager-Zhang rule": lambda: optax_nlcg.nlcg(0.1, beta_rule="hager_zhang"),
    "ml_ncg": lambda: optax_nlcg.reference.ml_ncg(0.1),
    "lbfgs direction, memory 10": lambda: optax.chain(
        optax.scale_by_lbfgs(10), optax.scale_by_learning_rate(0.1)
    ),
}


def matrices(num_parameters: int, width: int = WIDTH) -> Tree:
    """Shapes of matrices and vectors, about so many numbers in all."""
    layers = max(1, round(num_parameters / (width * width + width)))
    return {
        f"layer{i}": {
            "kernel": jax.ShapeDtypeStruct((width, width), jnp.float32),
            "bias": jax.ShapeDtypeStruct((width,), jnp.float32),
        }
        for i in range(layers)
    }


def size(tree: Tree) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def squares(params: Tree) -> jax.Array:
    """Sophia takes its Hessian from a function; this one costs next to nothing."""
    return 0.5 * jnp.sum(jnp.array([jnp.vdot(x, x) for x in jax.tree.leaves(params)]))


class Update:
    """One compiled update.

    Attributes:
        compiled: the program, `(params, state, grads, value) -> (params, state)`.
        carry: shapes of the parameters and the state.
        row: what can be said of it without running it.
    """

    def __init__(self, name: str, params: Tree, device: topologies.Device = None):
        tx = optax.with_extra_args_support(OPTIMIZERS[name]())

        def update(params, state, grads, value):
            updates, state = tx.update(
                grads, state, params, value=value, obj_fn=squares
            )
            return optax.apply_updates(params, updates), state

        sharding = jax.sharding.SingleDeviceSharding(device or jax.devices()[0])
        value = jax.ShapeDtypeStruct((), jnp.float32)
        self.init = tx.init
        self.carry = params, jax.eval_shape(tx.init, params)
        arguments = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            (*self.carry, params, value),
        )
        lowered = jax.jit(update, donate_argnums=(0, 1)).lower(*arguments)
        self.compiled = lowered.compile()
        memory = self.compiled.memory_analysis()
        traffic = hlo_traffic.total(hlo_traffic.read(self.compiled))
        self.row = {
            "optimizer": name,
            "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "num_arrays": len(jax.tree.leaves(params)),
            "parameter_bytes": size(params),
            "state_bytes": size(self.carry[1]),
            # Parameters and state are read and written, the gradient is read.
            "least_bytes": 2 * size(self.carry) + size(params),
            "moved_bytes": traffic.num_bytes,
            "temporary_bytes": memory.temp_size_in_bytes if memory else None,
            "kernels": traffic.kernels,
            "scalar_operations": traffic.scalar_operations,
        }

    def start(self) -> None:
        """Makes what `run` works on."""
        params = jax.tree.map(lambda x: jnp.full(x.shape, 0.01), self.carry[0])
        self._grads = jax.tree.map(lambda x: x + 0.01, params)
        # Copies, because a fresh state of L-BFGS has one array in two places.
        self._carry = params, jax.tree.map(jnp.copy, self.init(params))
        self._value = jnp.float32(1.0)

    def run(self, times: int) -> float:
        """Seconds of one update, in a queue of `times`."""
        start = time.perf_counter()
        for _ in range(times):
            self._carry = self.compiled(*self._carry, self._grads, self._value)
        jax.block_until_ready(self._carry)
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
    params = matrices(num_parameters)
    for name in OPTIMIZERS:
        # Two at a time: all do not fit beside each other.
        update, reference = Update(name, params), Update("adamw", params)
        update.start()
        reference.start()
        timings = [
            (update.run(times), reference.run(times)) for _ in range(rounds + 1)
        ][1:]  # the first warms caches up
        seconds = statistics.median(own for own, _ in timings)
        rows.append(
            update.row
            | {
                "parameters": "matrices",
                "seconds": seconds,
                "over_adamw": statistics.median(a / b for a, b in timings),
                "over_floor": seconds * speed / update.row["least_bytes"],
                "bandwidth": speed,
            }
        )
        ratio = rows[-1]["over_adamw"]
        print(f"{num_parameters:>12,} {name:36} {ratio:.2f} x adamw", flush=True)
    return rows


def count(
    parameters: str, params: Tree, device: topologies.Device
) -> list[dict[str, Any]]:
    """Compiles updates for a device that need not be there; one row each."""
    rows = []
    for name in WITH_MANY_ARRAYS if parameters == "resnet50" else OPTIMIZERS:
        rows.append(Update(name, params, device).row | {"parameters": parameters})
        passes = rows[-1]["moved_bytes"] / rows[-1]["parameter_bytes"]
        print(f"{parameters:10} {name:36} {passes:.1f} passes", flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lays the rows out, with times where there are some."""
    header = "optimizer", "parameters", "state, copies", "least passes", "passes"
    header += "temporary, copies", "kernels", "on scalars"
    timed = "seconds" in rows[0]
    if timed:
        header += "time / adamw", "time / floor", "ms"
    lines = []
    for row in rows:

        def copies(name: str, row: dict[str, Any] = row) -> str:
            known = row[name] is not None
            return f"{row[name] / row['parameter_bytes']:.1f}" if known else "-"

        line = (
            row["optimizer"],
            f"{row['num_parameters']:,} in {row['num_arrays']}",
            copies("state_bytes"),
            copies("least_bytes"),
            copies("moved_bytes"),
            copies("temporary_bytes"),
            f"{row['kernels']:,}",
            f"{row['scalar_operations']:,}",
        )
        if timed:
            line += (
                f"{row['over_adamw']:.2f}",
                f"{row['over_floor']:.2f}",
                f"{1e3 * row['seconds']:.2f}",
            )
        lines.append(line)
    return report.markdown(header, lines)


def main() -> None:
    """Measures and writes `<out>/<platform or target>.json` and `.md`."""
    parser = argparse.ArgumentParser(description="Cost of one update.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs"))
    parser.add_argument("--num-parameters", nargs="+", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument(
        "--compile-for", metavar="TARGET", help="h100, v5e, v5p, ...: nothing is timed"
    )
    arguments = parser.parse_args()
    metrics.git_commit()  # as it is now, not when the runs end
    rows = []
    if arguments.compile_for:
        target = arguments.compile_for
        device, *_ = topologies.devices(target)
        for number in arguments.num_parameters or [10**8]:
            rows += count("matrices", matrices(number, WIDTH_OF_COMPILED), device)
        # Most of its parameters are in few of its 161 arrays.
        rows += count("resnet50", scaling_models.resnet50().params, device)
        environment = topologies.environment(target)
        name = target.split(":")[0]
        caption = f"One update. {topologies.circumstances(target)}\n\n"
    else:
        for number in arguments.num_parameters or [10**6, 10**7, 10**8]:
            rows += measure(number, arguments.rounds, arguments.times)
        environment = metrics.environment(num_devices=1)
        name, caption = environment["platform"], ""
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{name}.json"
    path.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1))
    path.with_suffix(".md").write_text(caption + table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
