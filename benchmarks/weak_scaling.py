"""What a training step sends between devices, from 1 to 4096 of them.

    python -m benchmarks.weak_scaling --out benchmarks/results/weak_scaling

Compiles whole training steps (gradient, update, new parameters) of ResNet-50 and of a
transformer with a billion parameters for up to 64 virtual devices, with a fixed batch
per device, and reads the operations between devices off the programs. Arguments are
abstract: nothing is run, and nothing needs to fit. Two layouts: data parallel, where
parameters are replicated, and fully sharded, where parameters and the optimizer's state
are split too.

The sizes of what is reduced and gathered do not depend on the number of devices,
if XLA splits the work in the same way for all of them. Where the compiled programs show
that, the bytes that a device sends beyond them follow from the ring's formulas,
2 (n - 1) / n of what is reduced and (n - 1) / n of what is gathered.

Writes `results.json`, `table.md` and `bytes.png`.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optax_nlcg
from benchmarks import collectives
from benchmarks.metrics import environment
from benchmarks.resnet50 import ResNet50

COMPILED = (1, 2, 4, 8, 16, 32, 64)
EXTRAPOLATED = (256, 1024, 4096)
LAYOUTS = {"data parallel": False, "fully sharded": True}
OPTIMIZERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.sgd(0.1),
    "adamw": lambda: optax.adamw(0.1),
    "nlcg": lambda: optax_nlcg.nlcg(0.1),
}
# The program is read, not run.
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

LAYERS, WIDTH, HIDDEN, VOCABULARY, HEADS, TOKENS = 19, 2048, 8192, 32_768, 16, 2048


class Model(NamedTuple):
    """A model: abstract parameters, and the loss of a batch.

    Attributes:
        params: tree of shapes.
        inputs: what a device's part of the batch is made of.
        loss: `loss(params, inputs, by_batch)`, with `by_batch` a function that lays out
            an array by its first axis.
        stacked: whether leaves hold all layers, along their first axis.
    """

    params: Any
    inputs: Any
    loss: Callable[..., jax.Array]
    stacked: bool


def resnet50() -> Model:
    """ResNet-50 with one image of 224x224 per device, and batch normalisation."""
    network = ResNet50(1000)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((1,), jnp.int32)
    variables = jax.eval_shape(
        lambda key: network.init(key, jnp.zeros(images.shape), train=True),
        jax.random.key(0),
    )
    stats = variables["batch_stats"]

    def loss(params, batch, by_batch):
        del by_batch
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), stats)
        logits, _ = network.apply(
            {"params": params, "batch_stats": zeros},
            batch["images"],
            train=True,
            mutable=["batch_stats"],
        )
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(cross_entropy(logits, batch["labels"]))

    inputs = {"images": images, "labels": labels}
    return Model(variables["params"], inputs, loss, stacked=False)


def transformer() -> Model:
    """A decoder with one sequence of 2048 tokens per device, its layers in a loop."""

    def shape(*dims: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(dims, jnp.float32)

    params = {
        "embedding": shape(VOCABULARY, WIDTH),
        "layers": {
            "scale": shape(LAYERS, 2, WIDTH),
            "qkv": shape(LAYERS, WIDTH, 3 * WIDTH),
            "mix": shape(LAYERS, WIDTH, WIDTH),
            "up": shape(LAYERS, WIDTH, HIDDEN),
            "down": shape(LAYERS, HIDDEN, WIDTH),
        },
    }

    def normalise(x):
        return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)

    def loss(params, batch, by_batch):
        tokens = batch["tokens"]

        def layer(x, weights):
            qkv = (weights["scale"][0] * normalise(x)) @ weights["qkv"]
            heads = qkv.reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
            mixed = jax.nn.dot_product_attention(
                heads[:, :, 0], heads[:, :, 1], heads[:, :, 2], is_causal=True
            )
            x = by_batch(x + mixed.reshape(x.shape) @ weights["mix"])
            up = (weights["scale"][1] * normalise(x)) @ weights["up"]
            return by_batch(x + jax.nn.gelu(up) @ weights["down"]), None

        x = by_batch(params["embedding"][tokens])
        x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
        logits = by_batch(normalise(x) @ params["embedding"].T)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels
        return jnp.mean(cross_entropy(logits[:, :-1], tokens[:, 1:]))

    inputs = {"tokens": jax.ShapeDtypeStruct((1, TOKENS), jnp.int32)}
    return Model(params, inputs, loss, stacked=True)


MODELS = {"resnet50": resnet50, "transformer": transformer}


def compile_step(
    model: Model, tx: optax.GradientTransformation, split: bool, num_devices: int
) -> list[collectives.Collective]:
    """Compiles a training step and reads what it sends."""
    tx = optax.with_extra_args_support(tx)
    mesh = jax.make_mesh((num_devices,), ("devices",), (AxisType.Auto,))
    by_first = NamedSharding(mesh, PartitionSpec("devices"))
    replicated = NamedSharding(mesh, PartitionSpec())

    def placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def layout(leaf: Any) -> NamedSharding:
        return (
            parameter_layout(leaf.shape, mesh, model.stacked) if split else replicated
        )

    layouts = jax.tree.map(layout, model.params)
    params = jax.tree.map(placed, model.params, layouts)
    state = optax.tree.map_params(
        tx,
        placed,
        jax.eval_shape(tx.init, model.params),
        layouts,
        transform_non_params=lambda leaf: placed(leaf, replicated),
    )
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (num_devices * x.shape[0], *x.shape[1:]), x.dtype, sharding=by_first
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
    compiled = (
        jax.jit(step, out_shardings=(*shardings, replicated))
        .lower(params, state, batch)
        .compile(compiler_options=COMPILER_OPTIONS)
    )
    return collectives.read(compiled)


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


def measure(model_name: str, num_devices: int) -> list[dict[str, Any]]:
    """All layouts and optimizers of a model, on so many devices."""
    jax.config.update("jax_num_cpu_devices", num_devices)
    model = MODELS[model_name]()
    rows = []
    for layout, split in LAYOUTS.items():
        for optimizer, make in OPTIMIZERS.items():
            found = compile_step(model, make(), split, num_devices)
            rows.append(
                {
                    "model": model_name,
                    "layout": layout,
                    "optimizer": optimizer,
                    "num_devices": num_devices,
                    "collectives": collectives.summary(found),
                    "sent_bytes": sum(one.sent(num_devices) for one in found),
                }
            )
    return rows


def extrapolate(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for more devices, by the ring's formulas from the program for the most.

    They hold where what is reduced and gathered no longer depends on the number of
    devices. Each row says whether: whether the formulas give the bytes of the programs
    for a quarter and for half as many devices too.

    Args:
        rows: what `measure` returns, for all models and numbers of devices.

    Returns:
        Further rows, with `holds` and without the bytes where it is false.
    """
    most = max(row["num_devices"] for row in rows)
    series = "model", "layout", "optimizer"

    def sent(row, num_devices):
        return sum(
            collectives.Collective(kind, (), total["bytes"]).sent(num_devices)
            for kind, total in row["collectives"].items()
        )

    further = []
    for base in (row for row in rows if row["num_devices"] == most):
        alike = [
            row
            for row in rows
            if all(row[name] == base[name] for name in series)
            and row["num_devices"] >= most // 4
        ]
        holds = all(
            math.isclose(sent(base, row["num_devices"]), row["sent_bytes"])
            for row in alike
        )
        for num_devices in EXTRAPOLATED:
            more = {"num_devices": num_devices, "computed": True, "holds": holds}
            further.append(base | more | {"sent_bytes": sent(base, num_devices)})
    return further


def select(
    rows: list[dict[str, Any]], model: str, layout: str
) -> list[tuple[int, dict[str, dict[str, Any]]]]:
    """Rows of a model and layout: for each number of devices, those by optimizer."""
    chosen: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if (row["model"], row["layout"]) == (model, layout):
            chosen.setdefault(row["num_devices"], {})[row["optimizer"]] = row
    return sorted(chosen.items())


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown."""

    def count(row):
        return sum(total["count"] for total in row["collectives"].values())

    lines = [
        "| model | layout | devices | operations, SGD | AdamW adds | NLCG adds | "
        "bytes sent by a device, SGD | AdamW adds | NLCG adds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for model in MODELS:
        for layout in LAYOUTS:
            for num_devices, by_optimizer in select(rows, model, layout):
                sgd = by_optimizer["sgd"]
                others = by_optimizer["adamw"], by_optimizer["nlcg"]
                mark = " (computed)" if "computed" in sgd else ""
                cells = [model, layout, f"{num_devices}{mark}"]
                if sgd.get("holds", True):
                    cells.append(str(count(sgd)))
                    cells += [str(count(row) - count(sgd)) for row in others]
                    cells.append(f"{sgd['sent_bytes']:,.0f}")
                else:
                    cells += ["-"] * 4
                cells += [
                    f"{row['sent_bytes'] - sgd['sent_bytes']:,.0f}" for row in others
                ]
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Bytes that a device sends in a step, and what NLCG adds to them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"resnet50": "ResNet-50", "transformer": "transformer, 1.0 B parameters"}
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for panel, model in zip(axes, MODELS, strict=True):
        for colour, layout in zip(("tab:blue", "tab:orange"), LAYOUTS, strict=True):
            series = [pair for pair in select(rows, model, layout) if pair[0] > 1]
            numbers = [number for number, _ in series]
            sgd = [
                row["sgd"]["sent_bytes"] if row["sgd"].get("holds", True) else math.nan
                for _, row in series
            ]
            added = [
                row["nlcg"]["sent_bytes"] - row["sgd"]["sent_bytes"]
                for _, row in series
            ]
            panel.plot(numbers, sgd, color=colour, label=f"SGD, {layout}")
            if any(added):
                panel.plot(
                    numbers, added, "--", color=colour, label=f"NLCG adds, {layout}"
                )
            compiled = [i for i, n in enumerate(numbers) if n <= max(COMPILED)]
            for values in (sgd, added):
                panel.plot(
                    [numbers[i] for i in compiled if values[i]],
                    [values[i] for i in compiled if values[i]],
                    "o",
                    color=colour,
                    markersize=4,
                )
        panel.set(xscale="log", yscale="log", title=titles[model], xlabel="devices")
        panel.set_xticks([2, 8, 32, 256, 1024, 4096], [2, 8, 32, 256, 1024, 4096])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0].set(ylabel="bytes sent by a device in a step", ylim=(30, 2e11))
    axes[1].legend(fontsize=8, loc="center right")
    figure.suptitle(
        "Dots: compiled; lines beyond: computed. Data parallel, NLCG adds nothing.",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def write(out: pathlib.Path) -> None:
    """Writes the table and the plot of `results.json`."""
    record = json.loads((out / "results.json").read_text())
    rows = record["rows"] + extrapolate(record["rows"])
    caption = (
        f"As compiled on {record['date'][:10]} with jax {record['versions']['jax']} "
        f"for {max(COMPILED)} and fewer devices of the kind `{record['device']}`; "
        "beyond them computed, where the same formulas give the bytes of the programs "
        f"for {max(COMPILED) // 4} and {max(COMPILED) // 2} devices; a dash elsewhere."
    )
    (out / "table.md").write_text("\n".join([caption, "", *table(rows)]) + "\n")
    plot(rows, out / "bytes.png")


def main() -> None:
    """Measures in one process per number of devices, and writes the results."""
    parser = argparse.ArgumentParser(description="Bytes per step, by devices.")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/weak_scaling")
    )
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "DEVICES"))
    parser.add_argument("--write", action="store_true", help="only table and plot")
    arguments = parser.parse_args()
    if arguments.one:  # the number of devices is fixed when a process starts
        model, num_devices = arguments.one
        print(json.dumps(measure(model, int(num_devices))))
        return
    if not arguments.write:
        rows = []
        for model in MODELS:
            for num_devices in COMPILED:
                command = [sys.executable, "-m", "benchmarks.weak_scaling"]
                command += ["--one", model, str(num_devices)]
                output = subprocess.check_output(command, text=True)
                rows += json.loads(output.splitlines()[-1])
                print(f"{model} on {num_devices}: done", flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        record = {"rows": rows, **environment(max(COMPILED))}
        text = json.dumps(record, indent=1) + "\n"
        (arguments.out / "results.json").write_text(text)
    write(arguments.out)


if __name__ == "__main__":
    main()
