"""The code in the guide runs as it stands."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def test_solver_page(capsys):
    text = (DOCS / "solver.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope, results = {}, []
    for block in blocks:
        exec(block, scope)
        results.append(scope["result"])
    assert all(result.converged for result in results)
    assert bool(jnp.all(scope["results"].converged))
    assert float(scope["rosenbrock"](scope["x"])) < 10
    # The derivative that the page prints, against a difference quotient.
    derivative = jax.grad(scope["weight_norm"])(0.1)
    steps = [float(scope["weight_norm"](ridge)) for ridge in (0.09, 0.11)]
    np.testing.assert_allclose(derivative, (steps[1] - steps[0]) / 0.02, rtol=0.05)
    assert "converged" in capsys.readouterr().out
