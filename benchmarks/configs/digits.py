"""Handwritten digits (8x8, from scikit-learn) with a small network.

    python -m benchmarks.train --config digits --optimizer momentum

A quick look at an optimizer: seconds on a CPU, nothing to download.
"""

from benchmarks.config import Config


def get_config() -> Config:
    """Returns the config."""
    return Config(
        dataset="digits",
        model="mlp",
        batch_size=128,
        num_epochs=30,
        schedule="cosine",
    )
