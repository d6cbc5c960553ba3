"""What orthogonalising the gradients of a large model costs each of many devices.

    python -m benchmarks.orthogonalization --compile-for v5e:4x4 \
        --out benchmarks/results/orthogonalization_v5e

Compiles one update around Muon's metric of ResNet-50 and of a transformer with a
billion parameters (scaling_models.py) for the chips of a TPU pod, which need not be
there (topologies.py), with parameters that are replicated and with parameters that are
split. Reads off the program what each chip computes and sends, and the memory it takes.
Gradients are given. Nothing is run. Writes `results.json` and `table.md`.
"""

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import collectives, metrics, optimizers, topologies, weak_scaling
from benchmarks.scaling_models import MODELS, TOKENS, Model
from optax_nlcg import nlcg, parallel, scale_by_orthogonalization

IMAGES = 256  # on a chip, to compare with


def matrices(params: Any) -> Any:
    """Kernels with a column for each output; the transformer's layers are stacked."""
    layers = optax.contrib.MuonDimensionNumbers(1, 2)
    otherwise = {
        **dict.fromkeys(("qkv", "mix", "up", "down"), layers),
        **dict.fromkeys(("embedding", "scale")),
    }
    return jax.tree_util.tree_map_with_path(
        lambda path, _, kernel: otherwise.get(path[-1].key, kernel),
        params,
        optimizers.kernels_as_matrices(params),
    )


def _nlcg(
    stack_sharding: NamedSharding | PartitionSpec | None,
) -> optax.GradientTransformation:
    metric = scale_by_orthogonalization(matrices, stack_sharding)
    return nlcg(0.1, preconditioner=metric, line_search=optax.identity())


CASES: dict[str, Callable[[Mesh], optax.GradientTransformation]] = {
    "optax.contrib.muon": lambda mesh: optax.contrib.muon(
        0.1, muon_weight_dimension_numbers=matrices
    ),
    "nlcg, orthogonalisation": lambda mesh: _nlcg(None),
    "nlcg, orthogonalisation, `stack_sharding`": lambda mesh: _nlcg(
        NamedSharding(mesh, PartitionSpec("devices"))
    ),
}
# The last of them where all devices run a program of their own.
BY_HAND = "the same inside `shard_map`"
CASES[BY_HAND] = lambda mesh: _nlcg(PartitionSpec("devices"))


def measure(model: Model, case: str, split: bool, mesh: Mesh) -> dict[str, Any]:
    """Compiles an update and reads what it takes on each device."""
    tx = CASES[case](mesh)
    grads, state = weak_scaling.laid_out(model, tx, split, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, (grads, state))
    update = tx.update
    if case == BY_HAND:
        specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
        update = jax.shard_map(
            parallel.over_shards(tx, specs[0]).update,
            mesh=mesh,
            in_specs=(*specs, specs[0]),
            out_specs=specs,
        )
    update = jax.jit(update, out_shardings=shardings, donate_argnums=(0, 1))
    compiled = update.lower(grads, state, grads).compile()
    sent = collectives.read(compiled)
    memory: Any = compiled.memory_analysis()
    return {
        "flops": metrics.flops(compiled),
        "collectives": collectives.summary(sent),
        "sent_bytes": sum(one.sent(mesh.size) for one in sent),
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def gradient_flops() -> dict[str, float]:
    """Operations for a gradient of what a chip may have of a mini-batch."""
    resnet50, transformer = MODELS["resnet50"](), MODELS["transformer"]()
    loss = jax.grad(lambda params, batch: resnet50.loss(params, batch, lambda x: x))
    one_image = jax.jit(loss).lower(resnet50.params, resnet50.inputs)
    # XLA counts the body of a loop once. A product with a weight and its addition are
    # in the value once and in the derivatives twice.
    size = sum(leaf.size for leaf in jax.tree.leaves(transformer.params))
    return {
        "resnet50": IMAGES * metrics.flops(one_image),
        "transformer": 6.0 * TOKENS * size,
    }


def table(record: dict[str, Any], caption: str) -> str:
    """The results as Markdown."""
    lines = [
        caption,
        "",
        "| model | parameters | update | 10¹² operations | MB sent | MB temporary |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in record["rows"]:
        numbers = (
            f"{row['flops'] / 1e12:,.2f}",
            *(f"{row[name] / 1e6:,.0f}" for name in ("sent_bytes", "temporary_bytes")),
        )
        names = (row[name] for name in ("model", "layout", "update"))
        lines.append(f"| {' | '.join((*names, *numbers))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compiles everything and writes the table."""
    parser = argparse.ArgumentParser(description="Cost of orthogonalisation.")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/orthogonalization")
    )
    parser.add_argument("--compile-for", metavar="TARGET", default="v5e:4x4")
    arguments = parser.parse_args()
    target = arguments.compile_for
    mesh = weak_scaling.make_mesh(topologies.devices(target))
    record = topologies.environment(target)
    gradients = gradient_flops()
    rows = []
    for name, make_model in MODELS.items():
        for layout, split in {"replicated": False, "split": True}.items():
            for update in CASES:
                row = {"model": name, "layout": layout, "update": update}
                rows.append(row | measure(make_model(), update, split, mesh))
                print(rows[-1], flush=True)
    resnet50, transformer = (f"{x / 1e12:.1f}" for x in gradients.values())
    caption = (
        f"What each of {mesh.size} chips computes and sends in one update, gradients "
        f"given. A gradient takes {resnet50} 10¹² operations for {IMAGES} images with "
        f"ResNet-50, and {transformer} for {TOKENS:,} tokens with the transformer. "
        + topologies.circumstances(target)
    )
    record |= {"gradient_flops": gradients, "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    (arguments.out / "table.md").write_text(table(record, caption))


if __name__ == "__main__":
    main()
