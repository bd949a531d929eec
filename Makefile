# Everything from a fresh clone needs Python 3.11 or newer, pip and make. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint docs notebooks clean

help:
	@echo "make demo   set up, then classify the packaged images (no network needed after the set-up)"
	@echo "make test   set up, then run the checks and the tests"
	@echo "make lint   format, lint, types and import rules"
	@echo "make docs   set up, then build the site of the documents into site/"
	@echo "make notebooks  set up, then run the notebooks of docs/ and store their outputs"
	@echo "make clean  remove the environment, the site and caches"

# uv is several times faster than pip and used where it is installed.
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

# Two processes of one thread each: the models are small, and more threads would only wait for one another. Bytecode is
# kept whatever the shell says: many of the tests start Python, and without it torch alone takes seconds to import.
test: $(VENV)/installed lint
	PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=40

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The site needs packages that the tests do not.
$(VENV)/docs-installed: $(VENV)/installed
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --quiet --python $(BIN)/python -e '.[docs]'; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'; \
	fi
	@touch $@

# mkdocs.yml says `strict`: a page or a link that is missing ends the build.
docs: $(VENV)/docs-installed
	$(BIN)/python -m mkdocs build

# Warnings of other packages name folders of this machine.
notebooks: $(VENV)/docs-installed
	PYTHONWARNINGS=ignore PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter execute --inplace docs/notebooks/*.ipynb

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache site
