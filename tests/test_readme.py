"""The README's code runs as it stands."""

import pathlib
import re

import chex
import jax
import optax

from benchmarks import optimizers

README = pathlib.Path(__file__).parent.parent / "README.md"
# Rate, steps of warm-up, bound on beta, weight decay.
SETTINGS = {
    "nlcg_muon_nesterov": (0.04, 50, 1.0, 0.2),
    "nlcg_adam": (0.005, 100, 0.9, 0.01),
}


def check_update_is_that_of_the_benchmarks(name, optimizer):
    """The README's optimizer does what the one of that name in its tables does."""
    params = {
        "w": jax.random.normal(jax.random.key(0), (4, 3)),
        "b": jax.random.normal(jax.random.key(1), (3,)),
    }
    grads = jax.tree.map(lambda x: 0.1 * x, params)
    outputs = []
    rate, warmup, bound, decay = SETTINGS[name]
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, 1_000)
    for tx in optimizer, optimizers.build(name, schedule, setting=bound):
        state = tx.init(params)
        for value in 1.0, 0.9, 0.8:
            updates, state = tx.update(grads, state, params, value=value)
        outputs.append(updates)
    ours, built = outputs
    # A schedule there has no decay.
    decayed = jax.tree.map(lambda u, x: u - schedule(2) * decay * x, built, params)
    chex.assert_trees_all_close(ours, decayed, rtol=1e-5)


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        scope = {}
        exec(block, scope)
        if "loss" in scope:
            assert float(scope["loss"]) < 2.0  # from 2.3 for ten classes
        elif "nlcg_adam" in scope:
            for name in SETTINGS:
                check_update_is_that_of_the_benchmarks(name, scope[name])
        else:
            assert scope["result"].converged
