"""What an optimizer's update sends between devices.

    python -m benchmarks.communication --out benchmarks/results/communication
    python -m benchmarks.communication --compile-for v5e:4x4 \
        --out benchmarks/results/communication_v5e

Compiles one update of each optimizer for eight virtual devices, or for those of a
target (topologies.py), with parameters that are replicated and with parameters that are
split, and reads the operations between devices off the program: their number, and the
bytes of their results. Gradients are given, so what is counted is the optimizer's own.
Nothing is run. Writes `results.json` and `table.md`.
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optax_nlcg
from benchmarks import collectives, topologies, weak_scaling
from benchmarks.metrics import environment

NUM_DEVICES = 8
LAYOUTS = {"replicated": PartitionSpec(), "split": PartitionSpec("devices")}
SHAPES = {"in": (512, 256), "bias": (256,), "out": (256, 128)}


def loss(params: optax.Params) -> jax.Array:
    """A loss for the curvature search, whose own derivatives need no communication."""
    means = [jnp.mean(jnp.cosh(leaf)) for leaf in jax.tree.leaves(params)]
    return sum(means, jnp.zeros(()))


class Case(NamedTuple):
    """An optimizer, and the extra arguments of its update."""

    make: Callable[[], optax.GradientTransformation]
    needs: tuple[str, ...] = ()


CASES = {
    "optax.sgd": Case(lambda: optax.sgd(0.1)),
    "optax.adamw": Case(lambda: optax.adamw(0.1)),
    "optax.adamw, gradient clipped": Case(
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    ),
    "optax.lamb": Case(lambda: optax.lamb(0.1)),
    "nlcg": Case(lambda: optax_nlcg.nlcg(0.1), ("value",)),
    "nlcg, online search": Case(
        lambda: optax_nlcg.nlcg(
            0.1, line_search=optax_nlcg.scale_by_online_line_search()
        ),
        ("value",),
    ),
    "nlcg, Polak-Ribiere": Case(
        lambda: optax_nlcg.nlcg(0.1, beta_rule="polak_ribiere"), ("value",)
    ),
    "nlcg, Hager-Zhang rule": Case(
        lambda: optax_nlcg.nlcg(0.1, beta_rule="hager_zhang"), ("value",)
    ),
    "nlcg, no preconditioner": Case(
        lambda: optax_nlcg.nlcg(0.1, preconditioner=optax.identity()), ("value",)
    ),
    "nlcg, Hessian diagonal": Case(
        lambda: optax_nlcg.nlcg(
            0.1, preconditioner=optax_nlcg.scale_by_hessian_diagonal(estimator=None)
        ),
        ("value",),
    ),
    "nlcg, Hessian diagonal, step with an estimate": Case(
        lambda: optax_nlcg.nlcg(
            0.1, preconditioner=optax_nlcg.scale_by_hessian_diagonal(estimator=None)
        ),
        ("value", "hessian_diagonal"),
    ),
    "nlcg, no preconditioner, curvature search": Case(
        lambda: optax_nlcg.nlcg(
            1.0,
            preconditioner=optax.identity(),
            line_search=optax_nlcg.scale_by_curvature_line_search(),
        ),
        ("value", "value_fn"),
    ),
    "nonlinear_cg's direction": Case(
        lambda: optax_nlcg.scale_by_conjugate_direction(
            beta_rule="hager_zhang", restart_cycles=6
        )
    ),
    "optax.scale_by_lbfgs": Case(optax.scale_by_lbfgs),
    "reference.ml_ncg": Case(lambda: optax_nlcg.reference.ml_ncg(0.1), ("value",)),
}


def make_mesh(target: str | None = None) -> Mesh:
    """A mesh of all devices that are here, or of a target's, along one axis."""
    devices = topologies.devices(target) if target else jax.devices()[:NUM_DEVICES]
    return weak_scaling.make_mesh(devices)


def measure(
    case: Case, spec: PartitionSpec, mesh: Mesh
) -> list[collectives.Collective]:
    """Compiles an update and reads what it sends."""

    def place(shape: tuple[int, ...], spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, spec)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

    params = {name: place(shape, spec) for name, shape in SHAPES.items()}
    scalar = place((), PartitionSpec())
    tx = optax.with_extra_args_support(case.make())
    state = weak_scaling.state_like(tx, params, mesh)

    def update(
        grads: Any, state: Any, params: Any, value: jax.Array, diagonal: Any
    ) -> Any:
        extra_args = {"value": value, "hessian_diagonal": diagonal, "value_fn": loss}
        needed = {name: extra_args[name] for name in case.needs}
        return tx.update(grads, state, params, **needed)

    lowered = jax.jit(update).lower(params, state, params, scalar, params)
    return collectives.read(lowered.compile())


def main() -> None:
    """Compiles everything and writes the table."""
    parser = argparse.ArgumentParser(description="Communication of an update.")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/communication")
    )
    parser.add_argument("--compile-for", metavar="TARGET", help="v5e:4x4, ...")
    arguments = parser.parse_args()
    target = arguments.compile_for
    jax.config.update("jax_num_cpu_devices", NUM_DEVICES)
    mesh = make_mesh(target)
    what = "chips" if target else "devices"
    caption = (
        f"Operations between {mesh.size} {what} in one update of an optimizer, and the "
        "bytes of their results."
    )
    if target:
        caption += f" {topologies.circumstances(target)}"
        record = topologies.environment(target)
    else:
        record = environment(NUM_DEVICES)
    rows = []
    lines = [
        caption,
        "",
        "| optimizer | parameters replicated | parameters split |",
        "|---|---:|---:|",
    ]
    for name, case in CASES.items():
        cells = []
        for layout, spec in LAYOUTS.items():
            totals = collectives.summary(measure(case, spec, mesh))
            rows.append({"optimizer": name, "layout": layout, "collectives": totals})
            cell = "; ".join(
                f"{total['count']} {kind}, {total['bytes']:,} B"
                for kind, total in totals.items()
            )
            cells.append(cell or "none")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"shapes": SHAPES, "rows": rows, **record}
    (arguments.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
