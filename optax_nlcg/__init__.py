"""Nonlinear conjugate gradients for JAX, as Optax gradient transformations."""
