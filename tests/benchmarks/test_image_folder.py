"""The input pipeline for folders of images."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import data, image_crops, image_folder
from benchmarks.image_folder import evaluation_batches, training_batches
from tests.benchmarks.image_files import read_image, write_image

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("grain", reason="Grain is not installed")

SIZE = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of nine images of several sizes, and files that are not images."""
    root = tmp_path_factory.mktemp("images") / "train"
    for label, name in enumerate(["n03", "n01", "n02"]):
        for i in range(9):
            suffix = [".JPEG", ".jpg", ".jpeg", ".png"][i % 4]
            path = root / name / f"{name}_{i}{suffix}"
            write_image(path, 10 * label + i, 20 + 3 * i, 34 - 2 * i)
    (root / "n01" / "notes.txt").write_text("not an image")
    (root / "README").write_text("not a class")
    (root / ".cache").mkdir()
    return root


@pytest.fixture(scope="module")
def listing(folder):
    return image_folder.scan(folder)


def training(listing, **changes):
    options = {"image_size": SIZE, "seed": 3, "batch_size": 8, "num_steps": 5}
    options |= {"num_threads": 2, **changes}
    return list(training_batches(listing, **options))


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    for (images, labels), (other_images, other_labels) in zip(
        batches, expected, strict=True
    ):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


# ------------------------------------------------------------------------------
#  Listing
# ------------------------------------------------------------------------------


def test_scan_is_in_the_order_of_names(folder, listing):
    assert listing.classes == ("n01", "n02", "n03")
    paths = [pathlib.Path(listing.path(i)) for i in range(len(listing))]
    files = [p for p in folder.glob("*/*") if p.suffix != ".txt"]
    assert paths == sorted(files)
    assert listing.labels.dtype == np.int32
    assert [listing.classes[x] for x in listing.labels] == [
        p.parent.name for p in paths
    ]


def test_selection_keeps_paths_and_labels(listing):
    selected = listing.select(np.array([20, 3]))
    assert len(selected) == 2
    assert selected.path(0) == listing.path(20)
    assert selected.labels.tolist() == [2, 0]
    assert selected.classes == listing.classes


def test_names_that_are_not_ascii_are_found(tmp_path):
    write_image(tmp_path / "été" / "été 1.png", 0, 5, 5)
    assert pathlib.Path(image_folder.scan(tmp_path).path(0)).is_file()


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*/nowhere: images are"):
        image_folder.scan(tmp_path / "nowhere")


def test_folder_without_classes_is_refused(tmp_path):
    write_image(tmp_path / "a.png", 0, 5, 5)
    with pytest.raises(FileNotFoundError, match="has no class folders"):
        image_folder.scan(tmp_path)


def test_class_without_images_is_refused(tmp_path):
    write_image(tmp_path / "cat" / "a.png", 0, 5, 5)
    (tmp_path / "dog").mkdir()
    with pytest.raises(FileNotFoundError, match=r"class folder .*/dog holds no image"):
        image_folder.scan(tmp_path)


def test_other_classes_than_in_training_are_refused(folder):
    assert image_folder.scan(folder, ("n01", "n02", "n03")).classes[0] == "n01"
    with pytest.raises(ValueError, match="missing n04, unexpected n03"):
        image_folder.scan(folder, ("n01", "n02", "n04"))
    with pytest.raises(ValueError, match=r"missing a, b, c, \.\.\., unexpected n03"):
        image_folder.scan(folder, ("n01", "n02", *"abcd"))


# ------------------------------------------------------------------------------
#  Batches
# ------------------------------------------------------------------------------


def test_order_is_that_of_the_trainer(listing):
    batches = training(listing, first_step=2)
    for step, (images, labels) in enumerate(batches, start=2):
        indices = data.batch_indices(3, step, 8, len(listing))
        np.testing.assert_array_equal(labels, listing.labels[indices])
        assert images.shape == (8, SIZE, SIZE, 3)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32


def test_images_are_crops_by_position(listing):
    """Against the same made one by one, at the places where the stream has them."""
    images, _ = training(listing, first_step=4, num_steps=1)[0]
    for row, index in enumerate(data.batch_indices(3, 4, 8, len(listing))):
        with Image.open(listing.path(index)) as image:
            box, mirror = image_crops.draw_crop(3, 4 * 8 + row, image.size)
            cut = image.convert("RGB").resize(
                (SIZE, SIZE), Image.Resampling.BILINEAR, box
            )
        if mirror:
            cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        np.testing.assert_array_equal(images[row], np.asarray(cut))


def test_goes_on_at_a_step(listing):
    every = training(listing)
    assert_same(training(listing, first_step=3, num_steps=2), every[3:])
    assert_same(training(listing), every)
    assert not np.array_equal(training(listing, seed=4)[0][0], every[0][0])
    assert training(listing, num_steps=0) == []


@pytest.mark.parametrize("process_count", [2, 4])
def test_parts_of_processes_make_up_the_mini_batch(listing, process_count):
    options = {"batch_size": 16, "num_steps": 3, "first_step": 1}
    parts = [
        training(listing, process_index=i, process_count=process_count, **options)
        for i in range(process_count)
    ]
    whole = [
        tuple(np.concatenate(arrays) for arrays in zip(*batch, strict=True))
        for batch in zip(*parts, strict=True)
    ]
    assert_same(whole, training(listing, **options))


def test_pieces_of_a_mini_batch_come_in_order(listing):
    """More than one chunk a step, the last of them smaller."""
    batch_size = 2 * image_folder.CHUNK + 6
    large = training(listing, batch_size=batch_size, num_steps=2)
    small = training(listing, batch_size=2, num_steps=batch_size)
    flat = [tuple(map(np.concatenate, zip(*b, strict=True))) for b in (large, small)]
    assert_same(flat[:1], flat[1:])


def test_worker_processes_change_nothing(listing):
    options = {"batch_size": 2 * image_folder.CHUNK + 6, "num_steps": 2}
    assert_same(
        training(listing, num_workers=2, **options), training(listing, **options)
    )


def test_evaluation_takes_each_image_once(listing):
    options = {"image_size": SIZE, "batch_size": 8, "num_threads": 2}
    batches = list(evaluation_batches(listing, **options))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 8]
    labels = np.concatenate([labels for _, labels in batches])
    np.testing.assert_array_equal(labels[:27], listing.labels)
    np.testing.assert_array_equal(labels[27:], -1)
    images = np.concatenate([images for images, _ in batches])
    assert np.all(images[27:] == 0)
    for index in (0, 13, 26):
        with Image.open(listing.path(index)) as image:
            box = image_crops.centre_crop(SIZE, image.size)
        expected = read_image(listing.path(index), SIZE, box)
        np.testing.assert_array_equal(images[index], expected)
    # The last of four processes has nothing but padding in the last mini-batch.
    options |= {"batch_size": 12, "process_count": 4}
    parts = [
        list(evaluation_batches(listing, process_index=i, **options)) for i in range(4)
    ]
    assert [len(part) for part in parts] == [3] * 4
    assert parts[3][2][1].tolist() == [-1, -1, -1]
    assert sum(np.sum(labels >= 0) for part in parts for _, labels in part) == 27


@pytest.mark.parametrize(
    ("num_workers", "content"), [(0, b""), (0, b"no image"), (0, None), (1, None)]
)
def test_damaged_image_is_named(tmp_path, num_workers, content):
    write_image(tmp_path / "cat" / "good.jpg", 0, 40, 40)
    damaged = tmp_path / "cat" / "damaged.jpg"
    write_image(damaged, 0, 40, 40)
    damaged.write_bytes(damaged.read_bytes()[:300] if content is None else content)
    batches = evaluation_batches(
        image_folder.scan(tmp_path), image_size=8, batch_size=2, num_workers=num_workers
    )
    with pytest.raises(ValueError, match=r"cannot read the image .*cat/damaged\.jpg"):
        next(batches)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7, "process_count": 2}, "multiple of process_count 2, got 7"),
        ({"batch_size": 0}, "positive multiple of process_count 1, got 0"),
        ({"process_index": 1}, r"process_index must be in \[0, process_count\), got 1"),
        ({"seed": -1}, "seed must not be negative, got -1"),
        ({"first_step": -1}, "must not be negative, got -1 and 5"),
        ({"image_size": 0}, "image_size must be positive, got 0"),
        ({"num_workers": -1}, "num_workers must not be negative"),
        ({"num_threads": 0}, "num_threads must be positive, got 0 and 0"),
    ],
)
def test_bad_arguments_are_refused_at_once(listing, changes, message):
    options = {"image_size": SIZE, "seed": 3, "batch_size": 8, "num_steps": 5}
    with pytest.raises(ValueError, match=message):
        training_batches(listing, **(options | changes))


PROGRAM = """
import os, signal, sys, time
from multiprocessing import active_children
from benchmarks import image_folder

if __name__ == "__main__":
    listing = image_folder.scan(sys.argv[1])
    batches = image_folder.training_batches(
        listing, image_size=8, seed=0, batch_size=8, num_steps=10**6, num_workers=1
    )
    next(batches)
    workers = [child.pid for child in active_children()]
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        next(batches)
    print(*workers, flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False
    return state.split()[0] != "Z"  # a zombie has ended


@pytest.mark.skipif(
    not os.path.isdir("/proc/self"), reason="processes are read in /proc"
)
@pytest.mark.parametrize("end", ["returns", "killed"])
def test_workers_end_with_the_program_and_not_before(folder, tmp_path, end):
    """They outlive a signal to the whole job, but not the process they work for."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    result = subprocess.run(
        [sys.executable, program, folder, end],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == (-signal.SIGKILL if end == "killed" else 0), (
        result.stderr
    )
    if end == "returns":
        assert result.stderr == ""
    workers = [int(pid) for pid in result.stdout.split()]
    assert len(workers) == 1
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in workers)


# ------------------------------------------------------------------------------
#  Standardisation, real data
# ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalized_images_follow_the_formula(dtype):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), dtype=np.uint8)
    result = image_folder.normalize(jnp.asarray(images), dtype)
    assert result.dtype == dtype
    mean, deviation = np.array(image_folder.MEAN), np.array(image_folder.DEVIATION)
    expected = (images / 255 - mean) / deviation
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(
        result.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.skipif(
    "TINY_IMAGENET" not in os.environ,
    reason="TINY_IMAGENET does not name the folder of Tiny-ImageNet's train/ and val/",
)
def test_tiny_imagenet():
    root = pathlib.Path(os.environ["TINY_IMAGENET"])
    train = image_folder.scan(root / "train")
    val = image_folder.scan(root / "val", train.classes)
    assert len(train) == 100_000
    assert len(val) == 10_000
    assert np.bincount(train.labels).tolist() == [500] * 200
    assert np.bincount(val.labels).tolist() == [50] * 200
    images, labels = next(evaluation_batches(val, image_size=64, batch_size=256))
    for index in range(0, 256, 17):
        with Image.open(val.path(index)) as image:
            np.testing.assert_array_equal(
                images[index], np.asarray(image.convert("RGB"))
            )
    # As the network sees them: near mean 0 and deviation 1.
    (images, labels), *_ = training(train, image_size=64, batch_size=512, num_steps=1)
    normalized = image_folder.normalize(jnp.asarray(images), jnp.float32)
    assert abs(normalized.mean()) < 0.15
    assert 0.9 < normalized.std() < 1.3
    assert len(set(labels.tolist())) > 150
