"""Which part of an image is read, and how."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from benchmarks import image_crops
from tests.benchmarks.image_files import read_image, write_image

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


@hypothesis.given(
    seed=st.integers(0, 2**63),
    position=st.integers(0, 2**40),
    width=st.integers(1, 4000),
    height=st.integers(1, 4000),
    image_size=st.integers(1, 300),
)
@hypothesis.settings(deadline=None, max_examples=200)
def test_crops_are_inside_and_of_the_shape_asked_for(
    seed, position, width, height, image_size
):
    box, _ = image_crops.draw_crop(seed, position, (width, height))
    left, top, right, bottom = box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    area = (right - left) * (bottom - top) / (width * height)
    ratio = (right - left) / (bottom - top)
    assert 3 / 4 - 1e-9 <= ratio <= 4 / 3 + 1e-9
    if 3 / 4 <= width / height <= 4 / 3:  # else there may be no crop so large
        assert 0.08 - 1e-9 <= area <= 1 + 1e-9

    left, top, right, bottom = image_crops.centre_crop(image_size, (width, height))
    side = right - left
    assert side == bottom - top
    assert min(left, top) >= 0
    assert right <= width
    assert bottom <= height
    # In the middle, but for less than a pixel.
    np.testing.assert_allclose([left + right, top + bottom], [width, height], atol=2)
    assert side >= min(width, height) * 7 / 8
    assert side >= min(width, height, image_size)


def test_crops_have_the_distribution_of_the_recipe():
    drawn = [image_crops.draw_crop(5, i, (500, 500)) for i in range(4000)]
    boxes, mirrored = np.array([box for box, _ in drawn]), [m for _, m in drawn]
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    ratio, area = np.log(width / height) / np.log(4 / 3), width * height / 500**2
    error = 4 / np.sqrt(4000)  # four standard deviations of a mean of unit variables
    assert abs(np.mean(mirrored) - 0.5) < 0.5 * error
    assert abs(np.mean(ratio)) < 0.58 * error
    # Small crops always fit: their areas are uniform.
    assert abs(np.mean(area[area < 0.5]) - 0.29) < 0.13 * error * np.sqrt(2.2)
    assert area.min() < 0.085
    assert area.max() > 0.97
    # Where a crop lies, as a fraction of the room there is for it.
    for corner, length in ((boxes[:, 0], width), (boxes[:, 1], height)):
        assert abs(np.mean(corner / (500 - length)) - 0.5) < 0.29 * error


def test_a_crop_depends_on_seed_and_position():
    crops = {image_crops.draw_crop(s, p, (90, 80)) for s in (0, 1) for p in range(9)}
    assert len(crops) == 18


def test_image_of_the_right_size_stays_as_it_is():
    assert image_crops.centre_crop(64, (64, 64)) == (0, 0, 64, 64)
    assert image_crops.centre_crop(64, (70, 64)) == (3, 0, 67, 64)
    # The usual: the shorter side becomes 256, of which 224 are cut out.
    assert image_crops.centre_crop(224, (500, 375)) == (85, 23, 413.125, 351.125)
    assert image_crops.centre_crop(224, (256, 512)) == (16, 144, 240, 368)
    # 7/8 of 240 would be enlarged; all of 100 has to be.
    assert image_crops.centre_crop(224, (240, 240)) == (8, 8, 232, 232)
    assert image_crops.centre_crop(224, (100, 120)) == (0, 10, 100, 110)


def test_box_is_cut_out_exactly(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png", 8, (5, 7, 13, 15)), pixels[7:15, 5:13]
    )
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.png", 8, (5, 7, 13, 15), mirror=True),
        pixels[7:15, 5:13][:, ::-1],
    )


@pytest.mark.parametrize("size", [100, 250, 800, 1599])
def test_decoding_at_reduced_size_changes_little(tmp_path, monkeypatch, size):
    path = tmp_path / "a.jpg"
    write_image(path, 0, 1601, 1203, quality=95)
    box = (1601 - size, 50, 1601, 50 + 0.7 * size)
    reduced = read_image(path, 64, box)
    with monkeypatch.context() as patch:
        patch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda *_: None)
        full = read_image(path, 64, box)
    assert np.abs(full.astype(int) - reduced.astype(int)).max() <= 4


@pytest.mark.parametrize(("scale", "reduced_by"), [(0.9, 1), (1, 1), (2.1, 2), (9, 8)])
def test_large_files_are_decoded_at_reduced_size(
    tmp_path, monkeypatch, scale, reduced_by
):
    path = tmp_path / "a.jpg"
    write_image(path, 0, 640, 480)
    sizes = []
    to_rgb = image_crops._to_rgb

    def spy(image):
        sizes.append(image.size)
        return to_rgb(image)

    monkeypatch.setattr(image_crops, "_to_rgb", spy)
    read_image(path, 32, (10, 20, 10 + 32 * scale, 20 + 32 * scale))
    assert sizes == [(640 // reduced_by, 480 // reduced_by)]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("a.jpg", mode) for mode in ("L", "CMYK")),
        *(("a.png", mode) for mode in ("L", "P", "RGBA", "LA", "1")),
    ],
)
def test_any_colour_mode_becomes_rgb(tmp_path, name, mode):
    write_image(tmp_path / name, 0, 16, 16, mode)
    image = read_image(tmp_path / name, 8, (0, 0, 8, 8))
    assert image.shape == (8, 8, 3)
    assert image.dtype == np.uint8
    if mode in ("L", "1", "LA"):
        np.testing.assert_array_equal(image[..., :1] + 0 * image, image)
    else:
        rgb = Image.open(tmp_path / name).convert("RGB").crop((0, 0, 8, 8))
        np.testing.assert_array_equal(image, np.asarray(rgb))


def test_transparent_palette_becomes_rgb_without_a_warning(tmp_path):
    path = tmp_path / "a.png"
    write_image(path, 0, 16, 16, "P", transparency=bytes(range(200)))
    image = read_image(path, 4, (0, 0, 16, 16))
    assert image.shape == (4, 4, 3)
