"""Handwritten digits (8x8, from scikit-learn) with a small network.

    python -m benchmarks.train --config digits --optimizer momentum

A quick look at an optimizer: seconds on two CPU cores, nothing to download. Expect the
accuracy of the rows in benchmarks/results/digits/results.jsonl, which also say on what
they ran and for how long; `python -m benchmarks.report` prints them as a table.
"""

from benchmarks.config import Config


def get_config() -> Config:
    """Returns the config."""
    return Config(
        dataset="digits",
        model="mlp",
        batch_size=128,
        num_devices=1,
        num_epochs=30,
        schedule="cosine",
    )
