# make try      set up, fetch a real model, compile it for the CPU, print the report
# make test     set up, run the tests (those that need torch are skipped and say so)
# make help     the rest
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -rs
FIGURES := nodes opt_time latency conformance random_graphs scale faults quant_accuracy saturation four_bits ablation calibration tvm_zoo tvm_conformance tvm_random tvm_layers tvm_int8 tvm_binary tvm_latency backends gpu_tiles

.PHONY: help setup setup-torch setup-tvm try test test-torch test-tvm test-slow lint check figures peers clean

help:
	@echo "make setup        virtual environment in $(VENV) with graphopt, ONNX Runtime for the CPU and the test tools"
	@echo "make try          fetch ppocr-cls, compile it for the CPU, print the report"
	@echo "make test         all tests but the slow ones; those that need torch or TVM are skipped and say so"
	@echo "make test-torch   install the torch extra and run the tests that need it"
	@echo "make test-tvm     install the tvm extra and run the tests that need it"
	@echo "make test-slow    install the torch extra and run the tests that take over a minute"
	@echo "make lint         ruff and mypy"
	@echo "make check        lint and test"
	@echo "make figures      measure all figures into docs/figures; fails when a bar is missed (hours; FIGURES=\"nodes scale\" takes some)"
	@echo "make clean        remove what was built; the model cache stays"

setup: $(VENV)/.installed
setup-torch: $(VENV)/.installed-torch
setup-tvm: $(VENV)/.installed-tvm

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[dev]"
	@touch $@

$(VENV)/.installed-torch: $(VENV)/.installed
	$(PIP) -e ".[dev,torch]"
	@touch $@

$(VENV)/.installed-tvm: $(VENV)/.installed
	$(PIP) -e ".[dev,tvm-rpc]"
	@touch $@

try: setup
	$(BIN)/graphopt models fetch ppocr-cls
	$(BIN)/graphopt compile "$$($(BIN)/graphopt models path ppocr-cls)" --target cpu -o out/ppocr-cls

test: setup
	$(PYTEST) -m "not slow"

test-torch: setup-torch
	$(PYTEST) -m "torch and not slow"

test-tvm: setup-tvm
	$(PYTEST) -m "tvm and not slow"

test-slow: setup-torch
	$(PYTEST) -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py benchmarks/quant/*.py

check: lint test

peers: setup-torch
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.quant.quantizers

# Every figure runs, also after one that misses a bar; any miss fails the target.
figures: peers setup-tvm
	@missed=""; for name in $(FIGURES); do \
	  echo "== $$name" >&2; $(BIN)/python -m benchmarks.$$name || missed="$$missed $$name"; \
	done; \
	if [ -n "$$missed" ]; then echo "bars are missed in:$$missed" >&2; exit 1; fi

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
