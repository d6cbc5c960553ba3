"""Images per second of the input pipeline, by workers, and what a device takes.

    python -m benchmarks.input_throughput --folder data/tiny-imagenet/train \
        --out benchmarks/results/input_throughput

reads a folder of small images at 64x64 and generated photographs of ImageNet's median
size at 224x224, with every number of threads and of processes asked for, and writes
`<platform>.json` and `<platform>.md`. `--device-batch-size 1024` also times training
steps of ResNet-50 on images that are already on the device: what the input has to keep
up with.

`alone` is one thread without any pipeline. A row is the best of a few turns, with the
load that the machine had when it started: where others use it too, images per second of
processor time (of all processes together, which is what a core can do) say more than
those by the clock. Files are in the page cache. Linux only.
"""

import argparse
import functools
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import data, image_crops, image_folder, metrics, models

BATCH_SIZE = 512
# ImageNet's median; its files have about 110 kB.
PHOTOGRAPH = 500, 375
NUM_PHOTOGRAPHS = 256


def write_photographs(folder: pathlib.Path) -> None:
    """Writes JPEG files with the spectrum of photographs, amplitude 1 / frequency."""
    from PIL import Image

    width, height = PHOTOGRAPH
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = np.inf
    (folder / "class").mkdir()
    for i in range(NUM_PHOTOGRAPHS):
        noise = np.fft.fft2(rng.standard_normal((3, height, width)))
        grey, *colours = np.fft.ifft2(noise / frequency).real
        channels = [grey + 0.3 * colour for colour in (*colours, -sum(colours))]
        pixels = np.stack(channels, axis=-1)
        pixels = np.clip(128 + 55 * pixels / pixels.std(), 0, 255).astype(np.uint8)
        path = folder / "class" / f"{i:03}.JPEG"
        Image.fromarray(pixels).save(path, quality=90)


def processor_seconds() -> float:
    """Processor time of this process and of its workers so far."""
    seconds = time.process_time()
    for child in multiprocessing.active_children():
        # After the name, which may hold anything: user and system time are the
        # fourteenth and fifteenth field of the line, the name is the second.
        line = pathlib.Path(f"/proc/{child.pid}/stat").read_text()
        ticks = line.rpartition(")")[2].split()[11:13]
        seconds += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return seconds


def rates(batches: image_folder.Batches, num_batches: int) -> dict[str, float]:
    """Images per second, once what was read ahead is used up."""
    for _ in range(2):
        next(batches)
    start, start_cpu = time.perf_counter(), processor_seconds()
    for _ in range(num_batches):
        next(batches)
    seconds = time.perf_counter() - start
    cpu_seconds = processor_seconds() - start_cpu
    num_images = num_batches * BATCH_SIZE
    return {
        "images_per_second": num_images / seconds,
        "images_per_cpu_second": num_images / cpu_seconds,
    }


def measure_input(
    listing: image_folder.Listing,
    image_size: int,
    num_batches: int,
    counts: list[int],
    repeats: int,
) -> list[dict[str, Any]]:
    """Measures every way to read a folder, in turns."""

    def alone() -> dict[str, float]:
        start, start_cpu = time.perf_counter(), time.process_time()
        indices = data.batch_indices(0, 0, BATCH_SIZE, len(listing))
        for position, index in enumerate(indices):
            crop = functools.partial(image_crops.draw_crop, 0, position)
            image_crops.read_image(listing.path(index), image_size, crop)
        return {
            "images_per_second": BATCH_SIZE / (time.perf_counter() - start),
            "images_per_cpu_second": BATCH_SIZE / (time.process_time() - start_cpu),
        }

    def with_workers(**workers: int) -> dict[str, float]:
        batches = image_folder.training_batches(
            listing,
            image_size=image_size,
            seed=0,
            batch_size=BATCH_SIZE,
            num_steps=num_batches + 3,  # the last one is read ahead, not waited for
            **workers,
        )
        result = rates(batches, num_batches)
        batches.close()
        return result

    ways = [("alone", 1)]
    ways += [(kind, count) for kind in ("threads", "processes") for count in counts]
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for _ in range(repeats):
        for kind, count in ways:
            load = os.getloadavg()[0]
            if kind == "alone":
                result = alone()
            elif kind == "threads":
                result = with_workers(num_threads=count)
            else:
                result = with_workers(num_workers=count)
            row = {"workers": kind, "count": count, **result, "load_average": load}
            before = best.setdefault((kind, count), row)
            if row["images_per_second"] > before["images_per_second"]:
                best[kind, count] = row
    return list(best.values())


def measure_device(image_size: int, batch_size: int) -> dict[str, Any]:
    """Times gradients of ResNet-50 with momentum, on images on the device."""
    dtype = models.platform_dtype("auto")
    model = models.build("resnet50", 1000, dtype)
    tx = optax.sgd(0.1, momentum=0.9)
    images = jnp.zeros((batch_size, image_size, image_size, 3), jnp.uint8)
    labels = jnp.arange(batch_size) % 1000

    @jax.jit
    def init(key):
        variables = model.init(key, images[:1].astype(dtype), train=True)
        return variables["params"], variables["batch_stats"]

    @jax.jit
    def step(params, batch_stats, opt_state):
        def loss_fn(params):
            logits, changed = model.apply(
                {"params": params, "batch_stats": batch_stats},
                image_folder.normalize(images, dtype),
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), changed["batch_stats"]

        grads, batch_stats = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return optax.apply_updates(params, updates), batch_stats, opt_state

    params, batch_stats = init(jax.random.key(0))
    state = params, batch_stats, tx.init(params)
    state = jax.block_until_ready(step(*state))
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(5):
            state = step(*state)
        jax.block_until_ready(state)
        best = min(best, (time.perf_counter() - start) / 5)
    return {
        "image_size": image_size,
        "batch_size": batch_size,
        "dtype": dtype.name,
        "images_per_second": batch_size / best,
    }


def table(record: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| images | workers | images/s | images per CPU second | load |",
        "|---|---|--:|--:|--:|",
    ]
    for row in record["input"]:
        lines.append(
            f"| {row['images']}, {row['image_size']} px | {row['count']} "
            f"{row['workers']} | {row['images_per_second']:.0f} | "
            f"{row['images_per_cpu_second']:.0f} | {row['load_average']:.1f} |"
        )
    for row in record["training"]:
        lines.append(
            f"| on the device, {row['image_size']} px | ResNet-50 training, batch "
            f"{row['batch_size']} | {row['images_per_second']:.0f} | | |"
        )
    return "\n".join(lines) + "\n"


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":")[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measures, prints and records."""
    parser = argparse.ArgumentParser(description="Throughput of the input pipeline.")
    parser.add_argument("--folder", type=pathlib.Path, help="64x64 images, by class")
    parser.add_argument(
        "--workers", type=int, nargs="*", default=[1, 2], help="none: no input"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device-batch-size", type=int, default=0)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/input_throughput")
    )
    options = parser.parse_args()
    record: dict[str, Any] = {"input": [], "training": []}

    def add(name: str, folder: pathlib.Path, image_size: int, num_batches: int) -> None:
        listing = image_folder.scan(folder)
        size = sum(os.path.getsize(listing.path(i)) for i in range(len(listing)))
        rows = measure_input(
            listing, image_size, num_batches, options.workers, options.repeats
        )
        common = {"images": name, "image_size": image_size}
        common["bytes_per_file"] = round(size / len(listing))
        record["input"] += [common | row for row in rows]

    if options.workers:
        if options.folder is not None:
            add(options.folder.parent.name, options.folder, 64, num_batches=20)
        with tempfile.TemporaryDirectory() as folder:
            write_photographs(pathlib.Path(folder))
            width, height = PHOTOGRAPH
            add(f"generated {width}x{height}", pathlib.Path(folder), 224, num_batches=4)
    if options.device_batch_size:
        record["training"].append(measure_device(64, options.device_batch_size))
        record["training"].append(measure_device(224, options.device_batch_size // 8))
    record |= {
        "batch_size": BATCH_SIZE,
        "repeats": options.repeats,
        "processor": processor(),
        "packages": {
            name: importlib.metadata.version(name)
            for name in ("grain", "pillow")
            if record["input"]
        },
        **metrics.environment(num_devices=1),
    }
    print(table(record), end="")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{jax.default_backend()}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    path.with_suffix(".md").write_text(table(record))


if __name__ == "__main__":
    main()
