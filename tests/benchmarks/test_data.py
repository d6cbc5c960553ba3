"""Reading, order and augmentation of the benchmarks' images."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import data, tiny_imagenet
from tests.benchmarks.image_files import write_image


def write_cifar100(folder, split, num_images, **changes):
    """Writes one file in the layout of the official CIFAR-100."""
    rng = np.random.default_rng(len(split))
    content = {
        b"data": rng.integers(0, 256, (num_images, 3072), dtype=np.uint8),
        b"fine_labels": [i % 100 for i in range(num_images)],
    }
    content |= {name.encode(): value for name, value in changes.items()}
    folder.mkdir(exist_ok=True)
    (folder / split).write_bytes(pickle.dumps(content, protocol=2))
    return content


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """A complete but tiny CIFAR-100."""
    tiny = data.DATASETS["cifar100"]._replace(num_train=20, num_test=10)
    monkeypatch.setitem(data.DATASETS, "cifar100", tiny)
    folder = tmp_path / "cifar-100-python"
    write_cifar100(folder, "test", 10)
    return folder, write_cifar100(folder, "train", 20)


def test_digits_are_all_there_and_apart():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert train.images.shape == (1437, 8, 8, 1)
    assert test.images.shape == (360, 8, 8, 1)
    assert train.images.dtype == np.uint8
    assert train.images.max() == 16
    assert set(train.labels) == set(test.labels) == set(range(10))


def test_cifar_rows_become_images(cifar100):
    folder, content = cifar100
    train = data.load("cifar100", "train", folder.parent)
    assert train.images.shape == (20, 32, 32, 3)
    assert train.labels.tolist() == content[b"fine_labels"]
    # A row is the red plane, then green, then blue, each by rows.
    pixels = content[b"data"]
    assert train.images[3, 5, 7, 2] == pixels[3, 2 * 1024 + 5 * 32 + 7]


def test_shrunk_images_are_means_over_squares(cifar100, monkeypatch):
    folder, _ = cifar100
    small = data.DATASETS["cifar100_16x16"]._replace(num_train=20, num_test=10)
    monkeypatch.setitem(data.DATASETS, "cifar100_16x16", small)
    whole = data.load("cifar100", "train", folder.parent)
    train = data.load("cifar100_16x16", "train", folder.parent)
    assert train.images.shape == (20, *small.image_shape)
    assert train.images.dtype == np.uint8
    np.testing.assert_array_equal(train.labels, whole.labels)
    for row, column in [(0, 0), (5, 7), (15, 15)]:
        square = whole.images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        error = train.images[:, row, column] - square.mean((1, 2))
        assert np.abs(error).max() <= 0.5


def test_missing_file_says_what_to_download(cifar100):
    folder, _ = cifar100
    (folder / "test").unlink()
    with pytest.raises(FileNotFoundError, match=r"missing test\. Download https://"):
        data.load("cifar100", "train", folder.parent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": np.zeros((20, 3072), np.float32)}, "float32 .* expected uint8"),
        ({"data": np.zeros((20, 3000), np.uint8)}, r"\(20, 3000\), expected"),
        ({"fine_labels": [100] * 20}, r"range over \[100, 100\], expected \[0, 99\]"),
        ({"fine_labels": [0] * 19}, "expected 20 integers"),
        ({"data": pickle.Pickler}, "refuses"),
    ],
)
def test_damaged_file_is_refused(cifar100, changes, message):
    folder, _ = cifar100
    write_cifar100(folder, "train", 20, **changes)
    with pytest.raises(ValueError, match=message):
        data.load("cifar100", "train", folder.parent)


def test_truncated_file_is_refused(cifar100):
    folder, _ = cifar100
    content = (folder / "train").read_bytes()
    (folder / "train").write_bytes(content[:1000])
    with pytest.raises(ValueError, match="not an official CIFAR batch"):
        data.load("cifar100", "train", folder.parent)


def test_wrong_number_of_images_is_refused(cifar100):
    folder, _ = cifar100
    write_cifar100(folder, "train", 19)
    with pytest.raises(ValueError, match=r"has 19 images .* expected 20"):
        data.load("cifar100", "train", folder.parent)


@pytest.fixture
def tiny_imagenet_folder(tmp_path, monkeypatch):
    """A complete Tiny-ImageNet of two classes, whose list is not in order."""
    folder = tmp_path / "tiny-imagenet-200"
    for seed, name in enumerate(["n02", "n01"]):
        for i in range(3):
            path = folder / "train" / name / "images" / f"{name}_{i}.JPEG"
            write_image(path, 10 * seed + i, 64, 64, quality=95)
    (folder / "wnids.txt").write_text("n02\nn01\n")
    for i, mode in enumerate(["RGB", "L"]):
        image = folder / "val" / "images" / f"val_{i}.JPEG"
        write_image(image, 20 + i, 64, 64, mode, quality=95)
    (folder / "val" / "val_annotations.txt").write_text(
        "val_1.JPEG\tn02\t0\t0\t63\t63\nval_0.JPEG\tn01\t0\t0\t63\t63\n"
    )
    few = data.DATASETS["tiny_imagenet_16x16"]._replace(num_train=6, num_test=2)
    monkeypatch.setitem(data.DATASETS, "tiny_imagenet_16x16", few)
    return folder


def test_tiny_imagenet_is_read_as_it_is_published(tiny_imagenet_folder):
    data_dir = tiny_imagenet_folder.parent
    train = data.load("tiny_imagenet_16x16", "train", data_dir)
    test = data.load("tiny_imagenet_16x16", "test", data_dir)
    assert sorted(train.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    # In the order of the list, labels by the names of the classes.
    assert test.labels.tolist() == [1, 0]
    for split, label, path in [
        (train, 0, "train/n01/images/n01_0.JPEG"),
        (train, 1, "train/n02/images/n02_0.JPEG"),
        (test, 1, "val/images/val_1.JPEG"),
    ]:
        with Image.open(tiny_imagenet_folder / path) as image:
            pixels = np.asarray(image.convert("RGB"), np.float32)
        shrunk = pixels.reshape(16, 4, 16, 4, 3).mean((1, 3))
        read = split.images[np.flatnonzero(split.labels == label)[0]]
        assert read.dtype == np.uint8
        assert np.abs(read - shrunk).mean() < 1
    # What the runs of a sweep share cannot be changed by one of them.
    images, _ = tiny_imagenet.read(tiny_imagenet_folder / "train", 16)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda folder: (folder / "val").rename(folder / "validation"),
            FileNotFoundError,
            r"missing val\. Download http://",
        ),
        (
            lambda folder: (folder / "wnids.txt").write_text("n01\nn02\nn03\n"),
            FileNotFoundError,
            "n03",
        ),
        (
            lambda folder: next(folder.glob("train/n01/images/*")).unlink(),
            ValueError,
            "has 5 images .* expected 6",
        ),
        (
            lambda folder: next(folder.glob("train/*/images/*")).write_bytes(b"JPEG"),
            ValueError,
            r"cannot read the image .*\.JPEG",
        ),
    ],
)
def test_damaged_tiny_imagenet_is_refused(tiny_imagenet_folder, damage, error, message):
    damage(tiny_imagenet_folder)
    with pytest.raises(error, match=message):
        data.load("tiny_imagenet_16x16", "train", tiny_imagenet_folder.parent)


def test_unknown_class_of_tiny_imagenet_is_refused(tiny_imagenet_folder):
    (tiny_imagenet_folder / "wnids.txt").write_text("n01\n")
    with pytest.raises(
        ValueError, match=r"val_1\.JPEG is of class 'n02', which is not"
    ):
        tiny_imagenet.read(tiny_imagenet_folder / "val", 16)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="known: digits, cifar10, cifar100"):
        data.load("mnist", "train")
    with pytest.raises(ValueError, match="'train' or 'test'"):
        data.load("digits", "validation")


def test_held_out_images_are_apart_and_always_the_same():
    images = np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1)
    train = data.Split(images, np.arange(50, dtype=np.int32))
    rest, held_out = data.hold_out(train, 12)
    assert len(held_out.labels) == 12
    assert sorted([*rest.labels, *held_out.labels]) == list(range(50))
    np.testing.assert_array_equal(rest.images.ravel(), rest.labels)
    np.testing.assert_array_equal(data.hold_out(train, 12)[1].labels, held_out.labels)
    with pytest.raises(ValueError, match=r"must be in \[0, 49\].*got 50"):
        data.hold_out(train, 50)


@pytest.mark.parametrize("batch_size", [3, 10, 25])
def test_indices_are_a_stream_of_permutations(batch_size):
    steps = 60 // batch_size + 1
    stream = np.concatenate(
        [data.batch_indices(1, step, batch_size, 10) for step in range(steps)]
    )
    epochs = stream[:60].reshape(6, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert len({tuple(data.batch_indices(seed, 0, 10, 10)) for seed in range(5)}) == 5


def test_indices_depend_on_nothing_but_seed_and_step():
    first = data.batch_indices(3, 7, 16, 50)
    data._permutation.cache_clear()
    data.batch_indices(4, 1, 16, 50)
    np.testing.assert_array_equal(first, data.batch_indices(3, 7, 16, 50))


@pytest.mark.parametrize(("height", "padding"), [(16, 2), (32, 4)])
def test_crops_match_numpy(height, padding):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, height, 10, 3), dtype=np.uint8)
    indices = rng.integers(0, 9, 200)
    crops = data.draw_crops(jax.random.key(0), 200, height)
    assert set(np.unique(crops.offsets)) == set(range(2 * padding + 1))
    assert 60 < np.sum(crops.flips) < 140

    sides = padding, padding
    padded = np.pad(images, [(0, 0), sides, sides, (0, 0)])
    expected = []
    for index, (row, column), flip in zip(indices, *map(np.array, crops), strict=True):
        cut = padded[index, row : row + height, column : column + 10]
        expected.append(cut[:, ::-1] if flip else cut)
    taken = jax.jit(data.take_crops)(jnp.asarray(images), jnp.asarray(indices), crops)
    assert taken.dtype == jnp.uint8
    np.testing.assert_array_equal(taken, np.array(expected))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_standardized_images_have_mean_0_and_deviation_1(dtype):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    images[0] = 7  # A constant image must not divide by zero.
    result = data.standardize(jnp.asarray(images), dtype)
    assert result.dtype == dtype
    flat = np.asarray(result, np.float64).reshape(5, -1)
    np.testing.assert_array_equal(flat[0], 0)
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(flat[1:].mean(1), 0, atol=tolerance)
    np.testing.assert_allclose(flat[1:].std(1), 1, atol=tolerance)
