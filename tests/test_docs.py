"""The site says what is so: its code runs, its API is complete, its files exist."""

import enum
import importlib
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import optax_nlcg
from benchmarks import results_page
from optax_nlcg import flax, parallel, reference
from tests import common

DOCS = pathlib.Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
OUTPUT = re.compile(r"```text\n(.*?)```", re.DOTALL)


# ------------------------------------------------------------------------------
#  Code
# ------------------------------------------------------------------------------

# Pages whose code is not run, and why.
NOT_RUN = {"distributed": "it starts several processes"}


def solver(scope):
    assert bool(jnp.all(scope["results"].converged))
    assert float(scope["rosenbrock"](scope["x"])) < 10
    # The derivative that the page prints, against a difference quotient.
    derivative = jax.grad(scope["weight_norm"])(0.1)
    steps = [float(scope["weight_norm"](ridge)) for ridge in (0.09, 0.11)]
    np.testing.assert_allclose(derivative, (steps[1] - steps[0]) / 0.02, rtol=0.05)


def guide(scope):
    assert float(
        scope["loss_fn"](scope["params"], scope["inputs"], scope["targets"])
    ) < (0.2 * float(jnp.var(scope["targets"])))
    assert scope["skipped"] == 0
    assert float(scope["model_loss"]) < 0.3 * float(jnp.var(scope["targets"]))
    assert scope["result"].num_steps > 1
    for x, y in zip(
        *map(jax.tree.leaves, (scope["average"], scope["params"])), strict=True
    ):
        assert 0 < jnp.max(jnp.abs(x - y)) < 0.1


def descends(optimizer):
    x = jnp.array([[1.0, 2.0], [3.0, -1.0]])
    _, _, losses = common.descend(optimizer, lambda x: jnp.sum(x**2), x, 20)
    return losses[-1] < 0.9 * losses[0]


def choosing(scope):
    assert float(scope["loss"]) < np.log(2)  # that of the first step
    assert scope["copies"](optax_nlcg.nlcg(0.1)) == 4  # as the page says
    for name in ("with_adam", "with_muon", "of_hidden"):
        assert descends(scope[name])
    layers = {"embed": jnp.ones((3, 2)), "mlp": jnp.ones((2, 2)), "b": jnp.ones(2)}
    assert scope["hidden"](layers) == {"embed": False, "mlp": True, "b": False}


def migrating(scope):
    assert scope["after"].converged
    for ours, theirs in [
        (scope["params"], jnp.ones(5)),
        (scope["after"].params, scope["before"].value),
        (scope["x_after"], scope["x_before"]),
    ]:
        np.testing.assert_allclose(ours, theirs, atol=5e-3)
    before = scope["fun"](scope["start"], scope["scale"])
    for params in scope["trained"].values():
        assert scope["fun"](params, scope["scale"]) < 0.5 * before


def faq(scope):
    assert scope["step"]._cache_size() == 1
    # As in Flax, where normalisation has a parameter of that name.
    state = optax_nlcg.nlcg(0.1).init({"LayerNorm_0": {"scale": jnp.ones(3)}})
    assert scope["told"](state) == {"beta": 0, "scale": 1, "loss_average": 0}


def scaling(scope):
    args = jnp.ones(3), scope["optimizer"].init(jnp.ones(3)), jnp.ones((16, 3))
    params, _, value = scope["step"](*args)
    assert bool((params < 1).all())
    assert float(value) == 3.0
    assert descends(scope["with_muon"])


# What a page's code has to have done; of other pages it has to run.
CHECKS = {f.__name__: f for f in (solver, guide, choosing, migrating, faq, scaling)}


PAGES = {page.stem: BLOCK.findall(page.read_text()) for page in DOCS.glob("*.md")}
OUTPUTS = {page: OUTPUT.findall((DOCS / f"{page}.md").read_text()) for page in PAGES}


# Of Equinox, which Optimistix imports, with JAX 0.8.
@pytest.mark.filterwarnings(r"ignore:jax\.core\.\w+ is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "page", sorted(p for p, blocks in PAGES.items() if blocks and p not in NOT_RUN)
)
def test_code_of_page(page, capsys):
    scope = {}
    for block in PAGES[page]:
        exec(block, scope)
        if "result" in scope:
            assert scope["result"].converged
    printed = capsys.readouterr().out
    assert all(output in printed for output in OUTPUTS[page])
    CHECKS.get(page, lambda scope: None)(scope)


@pytest.mark.parametrize("shape", [(64, 16), (16, 64)])
def test_rates_of_optax_muon_are_converted_as_the_page_says(shape):
    kernel = jax.random.normal(jax.random.key(0), shape)
    lengths = [
        jnp.linalg.norm(tx.update(kernel, tx.init(kernel), kernel)[0])
        for tx in (optax.contrib.muon(1.0), optax_nlcg.scale_by_orthogonalization())
    ]
    np.testing.assert_allclose(lengths[0] / lengths[1], 5 / shape[0] ** 0.5, rtol=0.01)


def test_pages_that_are_checked_have_code():
    assert all(PAGES[page] for page in [*CHECKS, *NOT_RUN])
    assert OUTPUTS["choosing"]


# ------------------------------------------------------------------------------
#  API
# ------------------------------------------------------------------------------


def public_names():
    """Public objects by dotted name; those of submodules where they are defined."""
    names = {}
    for module in optax_nlcg, parallel, reference, flax:
        for name, value in vars(module).items():
            home = getattr(value, "__module__", module.__name__)
            ours = home == module.__name__ or module is optax_nlcg
            if ours and not name.startswith("_") and not inspect.ismodule(value):
                names[f"{module.__name__}.{name}"] = value
    return names


PUBLIC = public_names()


def documented_names():
    """Dotted names that the API page has directives for."""
    names, module = set(), ""
    text = re.sub(r",\s*\n\s+", ", ", (DOCS / "api.md").read_text())
    for line in text.splitlines():
        if match := re.match(r"\.\. (?:current|auto)module:: (\S+)", line):
            module = match[1]
        elif match := re.match(r"\.\. auto(?:function|class|data):: (\S+)", line):
            names.add(f"{module}.{match[1]}")
        elif match := re.match(r"\s+:members: (.+)", line):
            names |= {f"{module}.{name.strip()}" for name in match[1].split(",")}
    return names


def documented():
    """The objects of these names."""
    objects = {}
    for name in documented_names():
        module, _, attribute = name.rpartition(".")
        # Fails on a name that does not exist.
        objects[name] = getattr(importlib.import_module(module), attribute)
    return objects


def test_public_names_are_found():
    assert {
        "optax_nlcg.nlcg",
        "optax_nlcg.BETA_RULES",
        "optax_nlcg.parallel.synchronize",
        "optax_nlcg.reference.ml_ncg",
        "optax_nlcg.flax.TrainState",
    } <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_documented(name):
    value = PUBLIC[name]
    assert any(value is found for found in documented().values())
    if isinstance(value, dict):  # its docstring is in the source alone
        return
    needs = "Examples:"
    if isinstance(value, type) and issubclass(value, tuple | enum.Enum):
        needs = "Attributes:"
    assert needs in (inspect.getdoc(value) or "")


# ------------------------------------------------------------------------------
#  Results
# ------------------------------------------------------------------------------


def test_results_page():
    page = results_page.page()
    same = results_page.PAGE.read_text() == page
    assert same, "run `python -m benchmarks.results_page`"
    for title in results_page.sections():
        assert f"## {title}\n" in page


def anchors(page):
    """Fragments that a page's headings have, here and on the site."""
    headings = re.findall(r"^#+ (.*)$", (DOCS / f"{page}.md").read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """In the repository as well, where there is no site."""
    text = (DOCS / f"{page}.md").read_text()
    links = re.findall(r"\]\(([^):]+)\)|^\[\d+\]: (\S+)$", text, re.MULTILINE)
    for link in (a or b for a, b in links):
        path, _, fragment = link.partition("#")
        assert not path or (DOCS / path).is_file(), link
        if fragment:
            target = pathlib.Path(path).stem if path else page
            assert fragment in anchors(target), link
