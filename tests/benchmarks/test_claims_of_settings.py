"""What the docs say of settings and cost holds for the committed rows."""

import json

import pytest

from benchmarks import (
    rate_sensitivity,
    readme,
    report,
    sweep_choice,
    sweep_pairs,
)
from tests.benchmarks.claims import BUILT_ON, RESULTS


def test_where_to_start():
    """As docs/choosing.md says of what was chosen."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in sweep_pairs.settings().splitlines()[2:]
    ]
    chosen = {name: [c for c in cells if c[3] == name] for name, _ in sweep_pairs.PAIRS}
    assert all(chosen.values())
    # Rate, schedules, warm-up, decay, the usual bound on beta.
    table = {
        "nlcg_muon": (
            (0.02, 0.09),
            {"linear", "cosine", "constant"},
            (0.02, 0.05),
            (0.001, 0.6),
        ),
        sweep_pairs.NESTEROV: (
            (0.03, 0.05),
            {"linear", "cosine", "constant"},
            (0.02, 0.2),
            (0.02, 0.5),
        ),
        "nlcg_adam": (
            (0.0025, 0.008),
            {"linear", "constant"},
            (0.02, 0.2),
            (0.001, 0.2),
        ),
        "nlcg": ((6.0, 7.0), {"cosine", "linear"}, (0.05, 0.1), (4e-5, 7e-4)),
    }
    bounds = {"nlcg_muon": "0.8", "nlcg_adam": "0.9", "nlcg": "0.9"}
    for name, (rates, schedules, warmups, decays) in table.items():
        ours = chosen[name]
        assert {c[5] for c in ours} == schedules
        for column, (low, high) in ((4, rates), (6, warmups), (7, decays)):
            numbers = [float(c[column].split(",")[0]) for c in ours]
            assert min(numbers) == pytest.approx(low, rel=0.25)
            assert max(numbers) == pytest.approx(high, rel=0.25)
        assert all(("in the loss" in c[7]) == (name == "nlcg") for c in ours)
        if name == sweep_pairs.NESTEROV:
            assert {c[9] for c in ours} == {"1", "0.8"}
        else:
            assert sum(c[9] == bounds[name] for c in ours) > len(ours) / 2


def test_learning_rates_of_conjugate_directions():
    """As docs/migrating.md says."""
    ratios = {name: [] for name in BUILT_ON}
    for folder in RESULTS.glob("sweep_*"):
        chosen = {
            key: rows[0]["learning_rate"]
            for key, rows in report.group_rows(
                sweep_choice.final_runs(folder), "num_epochs", "optimizer"
            ).items()
        }
        for (num_epochs, name), rate in chosen.items():
            other = chosen.get((num_epochs, BUILT_ON.get(name)))
            if other is not None:
                ratios[name].append(rate / other)
    stated = {"nlcg": (1, 2.4), "nlcg_adam": (1 / 6, 1.6), "nlcg_muon": (1 / 7, 2.4)}
    for name, (low, high) in stated.items():
        assert low <= min(ratios[name]) < 1.2 * low
        assert high / 1.2 < max(ratios[name]) <= high


def test_how_much_of_the_past():
    """As docs/choosing.md says of bounds on beta, each at its own best rate."""
    for name in "sweep_cifar100_16x16_constant", "sweep_cifar100_16x16_b8192_constant":
        best = {}
        for row in report.load(RESULTS / name / "past" / "results.jsonl"):
            if row["config"]["optimizer"] == "nlcg_muon":
                share = row["config"]["optimizer_setting"]
                accuracy = sweep_choice.accuracy(row)
                best[share] = max(best.get(share, 0), accuracy)
        assert set(best) == {0.5, 0.65, 0.8, 0.9}
        worst = best.pop(0.5)
        assert worst < min(best.values())
        assert max(best.values()) - min(best.values()) < 0.01


def test_what_a_wrong_learning_rate_costs():
    """As docs/choosing.md says: more room far off, and no rule close to the best."""
    rows = report.load(RESULTS / "sweep_cifar100_16x16/rates/results.jsonl")
    curves = {}
    for (name, rate), same in report.group_rows(
        rows, "optimizer", "learning_rate"
    ).items():
        values = [sweep_choice.accuracy(row) for row in same]
        curves.setdefault(name, []).append((rate, sum(values) / len(values)))

    def width(name, share):
        curve = dict(enumerate(value for _, value in sorted(curves[name])))
        low, high = rate_sensitivity.stretch(curve, share)
        return high - low

    for name, other in BUILT_ON.items():
        assert 0.1 < width(name, 0.5) - width(other, 0.5) < 1
    assert width("nlcg_adam", 0.9) > width("adamw", 0.9)
    assert width("nlcg_muon", 0.9) < width("muon", 0.9)


@pytest.mark.parametrize(("target", "times"), [("h100", 3), ("cpu", 4)])
def test_passes_of_the_default_against_those_of_adamw(target, times):
    """As the README says."""
    rows = json.loads((RESULTS / f"step_cost/{target}.json").read_text())["rows"]
    moved = {
        (row["optimizer"], row["num_parameters"]): row["moved_bytes"] for row in rows
    }
    for size in {size for _, size in moved}:
        ratio = moved["nlcg", size] / moved["adamw", size]
        assert ratio == pytest.approx(times, rel=0.05)


def test_cost_of_an_update():
    """The table of docs/choosing.md."""
    results = json.loads((RESULTS / "step_cost/h100.json").read_text())
    passes = {}
    for row in results["rows"]:
        copies = round(row["moved_bytes"] / row["parameter_bytes"])
        passes.setdefault(row["optimizer"], copies)  # the larger network comes first
    page = (readme.ROOT / "docs/choosing.md").read_text()
    for line, without, searched in (
        ("`nlcg`, the default", "nlcg, no search", "nlcg"),
        (
            "with the Hessian's diagonal",
            "nlcg, Hessian diagonal, no search",
            "nlcg, Hessian diagonal",
        ),
        (
            "without a preconditioner",
            "nlcg, Fletcher-Reeves alone",
            "nlcg, no preconditioner",
        ),
        (
            "with Adam's scaling",
            "nlcg, Adam's scaling, no search",
            "nlcg, Adam's scaling",
        ),
    ):
        assert f"| {line} | {passes[without]} | {passes[searched]} |\n" in page
    assert f"| `optax.adamw` | {passes['adamw']} | |\n" in page
