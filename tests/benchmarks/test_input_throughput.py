"""The measurement of the input pipeline."""

import pytest

pytest.importorskip("PIL.Image", reason="Pillow is not installed")
pytest.importorskip("grain", reason="Grain is not installed")

from benchmarks import image_folder, input_throughput


def test_every_way_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(input_throughput, "NUM_PHOTOGRAPHS", 3)
    monkeypatch.setattr(input_throughput, "BATCH_SIZE", 4)
    input_throughput.write_photographs(tmp_path)
    listing = image_folder.scan(tmp_path)
    assert len(listing) == 3
    rows = input_throughput.measure_input(listing, 16, 2, counts=[1], repeats=1)
    assert [row["workers"] for row in rows] == ["alone", "threads", "processes"]
    for row in rows:
        assert row["images_per_second"] > 0
        assert row["images_per_cpu_second"] > 0
    common = {"images": "generated", "image_size": 16}
    training = [{"image_size": 16, "batch_size": 8, "images_per_second": 12.3}]
    table = input_throughput.table(
        {"input": [common | row for row in rows], "training": training}
    )
    assert table.count("| generated, 16 px | 1 ") == 3
    assert "| on the device, 16 px | ResNet-50 training, batch 8 | 12 |" in table
