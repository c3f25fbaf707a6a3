PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= auto

.PHONY: demo test check bench gpu-acceptance format clean

demo: $(VENV)/installed
	$(BIN)/python -m benchmarks.demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS) -q

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Measures on a GPU; without one compiles, counts and models.  Ends by naming the report.
bench: $(VENV)/installed
	$(BIN)/python -m benchmarks bench

# For the day a GPU is there: under 9 minutes, from a bare checkout, with the packages of a CUDA PyTorch image.
gpu-acceptance:
	PYTHONPATH=. $(PYTHON) -m benchmarks.acceptance

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info

# Installed once; again only when what is asked for changes.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
