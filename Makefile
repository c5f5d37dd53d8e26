# Two commands do everything on a fresh machine: `make serve` and `make test`.
#
# TORCH_INDEX may name a package index to take torch from (for a CPU or CUDA build of it).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help serve test check model nightly gpu-check format clean
.PHONY: test-quick test-marked test-cpus test-definitions test-interpreted test-compiled
.PHONY: nightly-soaks nightly-properties gpu-kernels gpu-parity gpu-benchmarks
# Parts of the tests run one after another, whatever `-j` says.
.NOTPARALLEL:

help:
	@echo "make serve      environment, default model, running server (ARGS=... for flags)"
	@echo "make test       environment and the whole test suite; make test-quick for its first part"
	@echo "make nightly    soaks, long fuzzing, other versions of Triton: hours"
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

# Everything whose prerequisite is there, from quick to slow; each part runs by its own name, too.
# No part needs a GPU; where there is one, `test-marked` uses it.
PYTEST := $(BIN)/python -m pytest -q
MARKED := model or node or browser or prometheus or gpu or kernel or alone
LATER := soak or compile or cpus
# Each test process computes on one thread: two of them fill two cores.
BESIDE := -n 2 --dist loadfile
SPREAD := -n 2 --dist worksteal

test: test-quick test-marked test-cpus test-definitions test-interpreted test-compiled

test-quick: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST) $(BESIDE) -m "not ($(MARKED) or $(LATER))"

test-marked: $(READY) model
	$(PYTEST) -m "($(MARKED)) and not ($(LATER))"

# How fast products are under the instructions of other CPUs: one after another, beside nothing.
test-cpus: $(READY)
	$(PYTEST) -m cpus tests/kernels

# What a machine without a C++ compiler runs.
test-definitions: $(READY)
	OMP_NUM_THREADS=1 ESTUARY_CPU_KERNELS=0 $(PYTEST) $(BESIDE) \
		-m "not ($(MARKED) or $(LATER))" tests/kernels tests/weights/network

# The kernels themselves: in Triton's interpreter, and compiled for sm_80, sm_90 and sm_100.
test-interpreted: $(READY)
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(PYTEST) $(SPREAD) -m "kernel and not gpu" \
		tests/kernels tests/sampler

test-compiled: $(READY)
	$(PYTEST) $(SPREAD) -m compile tests/kernels

# What takes hours: soaks and ten minutes of fuzzing, 30 times the examples of property tests, and
# the kernels with every Triton that is supported, each in a folder of its own.
TRITONS := 3.6.0 3.7.1 3.8.0 3.9.0
nightly: nightly-soaks nightly-properties $(TRITONS:%=nightly-triton-%)

nightly-soaks: $(READY) model
	$(PYTEST) -m soak

nightly-properties: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST) $(BESIDE) --hypothesis-profile=nightly --timeout=7200 \
		-m "hypothesis and not ($(MARKED) or $(LATER))"

nightly-triton-%: build/triton-%
	OMP_NUM_THREADS=1 PYTHONPATH=$< TRITON_INTERPRET=1 $(PYTEST) $(SPREAD) \
		-m "kernel and not gpu" tests/kernels tests/sampler
	PYTHONPATH=$< $(PYTEST) $(SPREAD) -m compile tests/kernels

.PRECIOUS: build/triton-%
# The interpreter of Triton 3.6 fails with NumPy 2.4 and later.
build/triton-%: $(READY)
	rm -rf $@
	$(PIP) install --no-deps --target $@ triton==$* $(if $(filter 3.6.%,$*),"numpy<2.4")

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
