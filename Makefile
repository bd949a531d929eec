# The targets work in a fresh clone. They need Python 3.11 or newer, pip and make. `make` without a target lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint docs notebooks clean

help:
	@echo "make demo   set up, then run the demo on packaged images (needs a network only for the set-up)"
	@echo "make test   set up, then run the checks and the tests"
	@echo "make lint   set up, then check format, lint, types and import rules"
	@echo "make docs   set up, then build the documentation site in site/"
	@echo "make notebooks  set up, then run the notebooks of docs/ and store their outputs"
	@echo "make clean  remove the virtual environment, the site and the caches"

# uv is used instead of pip if it is installed, because it is several times faster.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

# Two processes with one thread each: the models are small, and more threads would only wait for each other.
# PYTHONDONTWRITEBYTECODE is emptied, because many tests start Python, and without bytecode files the import of torch
# takes seconds.
test: $(VENV)/installed lint
	PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=40

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Building the site needs packages that the tests do not need.
$(VENV)/docs-installed: $(VENV)/installed
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --quiet --python $(BIN)/python -e '.[docs]'; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'; \
	fi
	@touch $@

# mkdocs.yml sets `strict`, so a missing page or link is an error.
docs: $(VENV)/docs-installed
	$(BIN)/python -m mkdocs build

# Warnings of other packages are ignored, because they would put paths of this machine into the notebooks.
notebooks: $(VENV)/docs-installed
	PYTHONWARNINGS=ignore PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter execute --inplace docs/notebooks/*.ipynb

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache site
