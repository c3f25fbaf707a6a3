PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= auto

# The shipped tables: what the model says of the usual hidden sizes in bf16, for each Triton beside the torch installed.
TARGETS := sm_80 sm_90 H200
TRITONS := 3.7.1 3.6.0 3.8.0 3.9.0
HIDDEN := 64,128,256,512,768,1024,1536,2048,3072,4096,5120,8192,12288,16384,32768,65536

.PHONY: demo test check bench gpu-acceptance tables $(TARGETS:%=tables-%) format clean

demo: $(VENV)/installed
	$(BIN)/python -m benchmarks.demo

# Kernels run on the GPU, or without one on an emulated H100; a short part in Triton's interpreter.  What is marked
# thorough, more cases of what is tested here too, runs by `.venv/bin/python -m pytest -n auto`, with all else.
test: $(VENV)/installed
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(WORKERS) -q -m interpreted
	$(BIN)/python -m pytest -n $(WORKERS) -q -m "not thorough"

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Measures on a GPU; without one compiles, counts and models.  Ends by naming the report.
bench: $(VENV)/installed
	$(BIN)/python -m benchmarks bench

# For the day a GPU is there: under 9 minutes, from a bare checkout, with the packages of a CUDA PyTorch image.
gpu-acceptance:
	PYTHONPATH=. $(PYTHON) -m benchmarks.acceptance

# `make -j3 tables` makes those of the GPUs side by side.  An entry has the times of the first Triton that found it.
tables: $(TARGETS:%=tables-%)

$(TARGETS:%=tables-%): tables-%: $(VENV)/installed $(TRITONS:%=build/triton-%)
	for triton in $(TRITONS); do \
	PYTHONPATH=build/triton-$$triton $(BIN)/python -m tritonln tune --offline --target $* --hidden $(HIDDEN) \
	--dtype bf16 --candidates 4 --folder autotune_cache || exit 1; done

$(TRITONS:%=build/triton-%): build/triton-%: | $(VENV)/installed
	$(BIN)/pip install --quiet --no-deps --target $@ triton==$*

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
