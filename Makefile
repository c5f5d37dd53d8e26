# Two commands do everything on a fresh machine: `make serve` and `make test`.
#
# TORCH_INDEX may name a package index to take torch from (for a CPU or CUDA build of it).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help serve test check model gpu-check gpu-kernels gpu-parity gpu-benchmarks format clean

help:
	@echo "make serve      environment, default model, running server (ARGS=... for flags)"
	@echo "make test       environment and the whole test suite"
	@echo "make check      formatter, linter, import contracts, types"
	@echo "make model      fetch the default model only"
	@echo "make gpu-check  on a CUDA machine: kernel tests, engine parity, benchmarks"

serve: $(READY) model
	@$(BIN)/estuary serve $(ARGS)

model: $(READY)
	@$(BIN)/estuary fetch

$(READY): requirements.lock pyproject.toml
	@echo "making the environment in $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	@$(PIP) install -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

# The suite on the CPU, then the kernels themselves: run in Triton's interpreter, and compiled
# ahead of time for sm_80, sm_90 and sm_100. Neither needs a GPU.
test: $(READY) model
	$(BIN)/python -m pytest -q -m "not compile and not soak"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -m kernel tests/kernels tests/sampler
	$(BIN)/python -m pytest -q -m compile tests/kernels

# On a CUDA machine: every kernel for real, whole decodes by the definitions, by kernels launched one
# by one and by replayed graphs, then the benchmarks, which check before they time. The parts run
# alone, too. Where torch is installed already: make gpu-check READY= BIN=/folder/of/python
GPU_BENCHMARKS := bench_paged_attention bench_score_rows bench_other_kernels bench_cuda_graphs
gpu-check: gpu-kernels gpu-parity gpu-benchmarks

gpu-kernels: $(READY)
	$(BIN)/python -m pytest -q -m "not compile and not model" tests/kernels

gpu-parity: $(READY)
	$(BIN)/python -m pytest -q -m "kernel or gpu" tests/sampler

gpu-benchmarks: $(READY)
	set -e; for name in $(GPU_BENCHMARKS); do $(BIN)/python -m tests.bench.$$name; done
	$(BIN)/python -m tests.bench.bench_eso_speed --device cuda --lengths 2048 8192

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
