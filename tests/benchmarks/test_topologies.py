"""Programs for devices that are not there, where their compilers are installed."""

import math

import pytest

from benchmarks import collectives, communication, step_cost, topologies


def devices(target):
    try:
        return topologies.devices(target)
    except (ImportError, RuntimeError) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("target", ["h200", "tpu", ""])
def test_unknown_targets(target):
    with pytest.raises(ValueError, match="h100 or like v5e:2x2"):
        topologies.devices(target)


def test_number_of_chips():
    assert len(devices("v5e:4x4")) == 16


# SGD reads parameter and gradient and writes the parameter; AdamW has two moments.
@pytest.mark.parametrize(("optimizer", "passes"), [("sgd", 3), ("adamw", 7)])
@pytest.mark.parametrize("target", ["h100", "v5e:2x2"])
def test_passes_of_known_optimizers(target, optimizer, passes):
    device, *_ = devices(target)
    row = step_cost.Update(optimizer, step_cost.matrices(4_000_000), device).row
    found = row["moved_bytes"] / row["parameter_bytes"]
    assert found == pytest.approx(passes, rel=1e-4)
    assert row["kernels"] == row["num_arrays"]
    assert row["temporary_bytes"] < 1e-3 * row["parameter_bytes"]


@pytest.mark.parametrize("layout", communication.LAYOUTS)
def test_an_update_on_a_pod_sends_scalars_only(layout):
    """One number for each inner product, however many arrays there are."""
    devices("v5e:4x4")
    mesh = communication.make_mesh("v5e:4x4")
    spec = communication.LAYOUTS[layout]
    found = communication.measure(communication.CASES["nlcg"], spec, mesh)
    if layout == "replicated":
        assert found == []
    else:
        assert collectives.summary(found).keys() == {"all-reduce"}
        assert [one.times for one in found] == [1, 1]
        assert all(math.prod(shape) == 1 for one in found for shape in one.shapes)
