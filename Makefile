# Everything runs in .venv, made by the standard library's venv where it is not there.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet
RUN = .venv/bin/python

.PHONY: help demo test lint types docs clean

help:
	@echo "make demo    train with NLCG against tuned baselines on an embedded data set"
	@echo "make test    run the test suite"
	@echo "make lint    check style (ruff)"
	@echo "make types   check types (pyright)"
	@echo "make docs    build the site in docs/_build"
	@echo "make clean   remove .venv and caches"

# One stamp a set of extras, so that `make demo` installs nothing that it does not need.
.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed-%: pyproject.toml | .venv/bin/python
	$(PIP) --editable ".[$(subst +,$(comma),$*)]"
	@touch $@

comma := ,

demo: .venv/installed-bench
	$(RUN) -m benchmarks.demo

test: .venv/installed-bench+flax+test
	$(RUN) -m pytest -n auto --dist worksteal

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/installed-bench+flax+test .venv/installed-dev
	.venv/bin/pyright

docs: .venv/installed-docs+flax
	.venv/bin/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build

clean:
	rm -rf docs/_build .venv .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
