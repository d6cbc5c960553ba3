"""What an installed package must do, with nothing but its dependencies there.

    python tests/package_smoke.py

Run by `make package` in an environment that holds the wheel alone.
"""

import importlib.metadata
import importlib.resources
import pathlib
import sys

import jax
import jax.numpy as jnp
import optax

import optax_nlcg


def main() -> None:
    """Trains a few steps and solves a problem with the installed package."""
    where = pathlib.Path(optax_nlcg.__file__).parent
    assert "site-packages" in where.parts, f"this is a checkout, not a package: {where}"
    assert importlib.resources.files("optax_nlcg").joinpath("py.typed").is_file()
    assert "flax" not in sys.modules

    def loss(x):
        return jnp.sum((x - jnp.arange(3.0)) ** 2)

    optimizer = optax_nlcg.nlcg(0.1)

    @jax.jit
    def step(x, state):
        value, grad = jax.value_and_grad(loss)(x)
        updates, state = optimizer.update(grad, state, x, value=value)
        return optax.apply_updates(x, updates), state

    x = jnp.zeros(3)
    state = optimizer.init(x)
    for _ in range(20):
        x, state = step(x, state)
    assert loss(x) < 1e-2 * loss(jnp.zeros(3)), x
    result = optax_nlcg.minimize(loss, jnp.zeros(3), tol=1e-4)
    assert result.converged, result.message
    version = importlib.metadata.version("optax-nlcg")
    print(f"optax-nlcg {version} works from {where}")


if __name__ == "__main__":
    main()
