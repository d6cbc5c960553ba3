"""Eight CPU devices for every test, and programs that are quickly compiled."""

import faulthandler
import importlib.metadata
import os
import sys

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

# Compiling is nearly all that the suite does, and two thirds of that is the emission of
# fusions through MLIR, which JAX before 0.11 can do without, and LLVM's optimisation.
# What is done before, such as placing collectives, is as ever. `XLA_FLAGS= make test`
# tests what users run, as does every run with a newer JAX.
if int(importlib.metadata.version("jaxlib").split(".")[1]) < 11:
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=2 "
        "--xla_backend_optimization_level=0",
    )


@pytest.fixture
def x64():
    """Double precision in the test that asks for it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def time_limit():
    """Devices that wait for each other for ever must end the run, not stop it."""
    faulthandler.dump_traceback_later(120, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()
