# Everything runs in .venv, made by the standard library's venv where it is not there.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet
RUN = .venv/bin/python

.PHONY: help demo test versions lint types notebooks docs package clean

help:
	@echo "make demo      train with NLCG against tuned baselines on an embedded data set"
	@echo "make test      run the test suite"
	@echo "make versions  run the tests with the oldest and the newest versions"
	@echo "make lint      check style (ruff)"
	@echo "make types     check types (pyright)"
	@echo "make notebooks run the notebooks from top to bottom"
	@echo "make docs      build the site in docs/_build/html"
	@echo "make package   build and try out what is published, in dist"
	@echo "make clean     remove .venv and caches"

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

# `make versions SETS=oldest` for one of them. Each Python has to be there.
versions: .venv/installed-bench
	$(RUN) -m benchmarks.versions --out benchmarks/results/versions \
		$(if $(SETS),--only $(SETS))

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/installed-bench+flax+test .venv/installed-dev
	.venv/bin/pyright

# The site shows the copies with outputs where there are some.
notebooks: .venv/installed-flax+notebooks
	$(RUN) notebooks/execute.py --out docs/notebooks

docs: .venv/installed-docs+flax
	.venv/bin/sphinx-build --fail-on-warning --keep-going -b html docs docs/_build/html

# The wheel in an environment of its own: first with nothing else, then with the extra
# that its public types mention.
package: .venv/installed-dev
	rm -rf dist .venv-package
	$(RUN) -m build --outdir dist
	$(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip --disable-pip-version-check install --quiet dist/*.whl
	.venv-package/bin/python tests/package_smoke.py
	.venv-package/bin/python -m pip --disable-pip-version-check install --quiet "flax>=0.12.2"
	cd $$(mktemp -d) && PATH="$(CURDIR)/.venv-package/bin:$$PATH" \
		$(CURDIR)/.venv/bin/pyright --verifytypes optax_nlcg --ignoreexternal

clean:
	rm -rf .venv-package docs/_build docs/notebooks .venv .pytest_cache
	rm -rf .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
