"""What a training step sends between devices, from 1 to 4096 of them.

    python -m benchmarks.weak_scaling --out benchmarks/results/weak_scaling
    python -m benchmarks.weak_scaling --compile-for v5e:4x4 v5e:16x16 \
        --out benchmarks/results/weak_scaling_v5e

Compiles whole training steps (gradient, update, new parameters) of ResNet-50 and of a
transformer with a billion parameters (scaling_models.py) for up to 64 virtual devices
of the CPU, or for TPU pods that need not be there (topologies.py), with a fixed batch
per device, and reads the operations between devices off the programs. Arguments are
abstract: nothing is run. Two layouts: data parallel, where parameters are replicated,
and fully sharded, where parameters and the optimizer's state are split too.

The sizes of what is reduced and gathered do not depend on the number of devices,
if XLA splits the work in the same way for all of them. Where the compiled programs show
that, the bytes that a device sends beyond them follow from the ring's formulas,
2 (n - 1) / n of what is reduced and (n - 1) / n of what is gathered.

That is how the virtual devices' table goes on beyond 64; pods are compiled for as they
are. Writes `results.json`, `table.md` and, for virtual devices, `bytes.png`.
"""

import argparse
import concurrent.futures
import itertools
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optax_nlcg
from benchmarks import collectives, metrics, topologies, weak_scaling_report
from benchmarks.scaling_models import MODELS, Model

COMPILED = (1, 2, 4, 8, 16, 32, 64)
LAYOUTS = {"data parallel": False, "fully sharded": True}
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "adamw": lambda: optax.adamw(0.1),
    "nlcg": lambda: optax_nlcg.nlcg(0.1),
}
# The program is read, not run. For pods it is left as those who run it get it.
CPU_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def make_mesh(devices: Sequence[topologies.Device]) -> Mesh:
    """A mesh of these devices along one axis."""
    return jax.make_mesh(
        (len(devices),), ("devices",), (AxisType.Auto,), devices=devices
    )


def compile_step(
    model: Model, tx: optax.GradientTransformation, split: bool, mesh: Mesh
) -> list[collectives.Collective]:
    """Compiles a training step and reads what it sends."""
    tx = optax.with_extra_args_support(tx)
    by_first = NamedSharding(mesh, PartitionSpec("devices"))
    replicated = NamedSharding(mesh, PartitionSpec())
    params, state = laid_out(model, tx, split, mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (mesh.size * x.shape[0], *x.shape[1:]), x.dtype, sharding=by_first
        ),
        model.inputs,
    )

    def by_batch(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, by_first)

    def step(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(model.loss)(params, batch, by_batch)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, value

    shardings = jax.tree.map(lambda x: x.sharding, (params, state))
    lowered = jax.jit(
        step, out_shardings=(*shardings, replicated), donate_argnums=(0, 1)
    ).lower(params, state, batch)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options = CPU_OPTIONS if on_cpu else None
    return collectives.read(lowered.compile(compiler_options=options))


def laid_out(
    model: Model, tx: optax.GradientTransformation, split: bool, mesh: Mesh
) -> tuple[Any, Any]:
    """Abstract parameters, and the optimizer's state laid out like them."""

    def placed(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = (
            parameter_layout(leaf.shape, mesh, model.stacked)
            if split
            else NamedSharding(mesh, PartitionSpec())
        )
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    params = jax.tree.map(placed, model.params)
    return params, state_like(tx, params, mesh)


def state_like(tx: optax.GradientTransformation, params: Any, mesh: Mesh) -> Any:
    """An optimizer's abstract state, laid out like its abstract parameters."""

    def is_masked(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    def place(leaf: Any, *axes: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def like(leaf: Any, parameter: Any) -> Any:
        """Laid out as the parameter is; what holds several of them along axis 0 too."""
        if is_masked(leaf):
            return leaf
        several = leaf.ndim - parameter.ndim
        return place(leaf, *[None] * several, *parameter.sharding.spec)

    return optax.tree.map_params(
        tx,
        like,
        jax.eval_shape(tx.init, params),
        params,
        transform_non_params=place,
        is_leaf=is_masked,
    )


def parameter_layout(
    shape: tuple[int, ...], mesh: Mesh, stacked: bool
) -> NamedSharding:
    """Splits the largest axis that can be split evenly; layers stay together."""
    axes = [
        axis
        for axis in range(1 if stacked and len(shape) > 2 else 0, len(shape))
        if shape[axis] % mesh.size == 0
    ]
    spec: list[str | None] = [None] * len(shape)
    if axes:
        spec[max(axes, key=lambda axis: shape[axis])] = "devices"
    return NamedSharding(mesh, PartitionSpec(*spec))


def measure(model_name: str, layout: str, mesh: Mesh) -> list[dict[str, Any]]:
    """All optimizers, for a model and a layout on these devices.

    Where a step does not fit into a device's memory, its row says so, without the rest.
    """
    model = MODELS[model_name]()
    rows = []
    for optimizer, make in OPTIMIZERS.items():
        row = {
            "model": model_name,
            "layout": layout,
            "optimizer": optimizer,
            "num_devices": mesh.size,
        }
        try:
            found = compile_step(model, make(), LAYOUTS[layout], mesh)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row["fits"] = False
        else:
            row["fits"] = True
            row["collectives"] = collectives.summary(found)
            row["sent_bytes"] = sum(one.sent(mesh.size) for one in found)
        rows.append(row)
    return rows


def measure_all(places: Sequence[str], processes: int) -> list[dict[str, Any]]:
    """Rows for all models and layouts; a process for each, on each of these devices.

    The number of virtual devices is fixed when a process starts.
    """

    def measure_one(what: tuple[str, str, str]) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "benchmarks.weak_scaling", "--one", *what]
        output = subprocess.check_output(command, text=True)
        print(*what, "done", flush=True)
        return json.loads(output.splitlines()[-1])

    everything = itertools.product(MODELS, LAYOUTS, places)
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        return [row for rows in pool.map(measure_one, everything) for row in rows]


def main() -> None:
    """Measures, and writes the results."""
    parser = argparse.ArgumentParser(description="Bytes per step, by devices.")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/weak_scaling")
    )
    parser.add_argument(
        "--compile-for", nargs="+", metavar="TARGET", help="v5e:4x4, v5e:16x16, ..."
    )
    parser.add_argument("--processes", type=int, default=1, help="at the same time")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "LAYOUT", "DEVICES"))
    parser.add_argument("--write", action="store_true", help="only table and plot")
    arguments = parser.parse_args()
    if arguments.one:
        model, layout, place = arguments.one
        if place.isdecimal():
            jax.config.update("jax_num_cpu_devices", int(place))
            devices = jax.devices()
        else:
            devices = topologies.devices(place)
        print(json.dumps(measure(model, layout, make_mesh(devices))))
        return
    if not arguments.write:
        metrics.git_commit()  # as it is now, not when everything is compiled
        targets = arguments.compile_for
        if targets:
            record = topologies.environment(targets[-1]) | {"compiled_for": targets}
        else:
            record = metrics.environment(max(COMPILED))
        places = targets or [str(number) for number in COMPILED]
        rows = measure_all(places, arguments.processes)
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"rows": rows, **record}, indent=1) + "\n"
        (arguments.out / "results.json").write_text(text)
    weak_scaling_report.write(arguments.out)


if __name__ == "__main__":
    main()
