# Everything runs in .venv, which is made on demand from constraints.txt. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --prefer-binary

.DEFAULT_GOAL := help
.PHONY: help setup lint format test test-own test-full test-smoke rigs demo test-versions bench bench-workloads mutations faults outside plugins clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## make .venv with everything that the other targets need

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=... setup" if sys.version_info < (3, 11) else 0)'
	@echo "installing into $(VENV) (once; about two minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e '.[smoke,dev]'
	touch $@

lint: $(STAMP)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

test: test-own test-smoke  ## our own tests, then the smoke tests on a local cluster

# On two cores, a file at a time: what a file's tests share is started once. The long files are first.
OWN := -m pytest tests/behaviours tests/acceptance tests/rigs tests/contract tests/security tests/unit \
	-n 2 --dist loadfile --no-loadscope-reorder --timeout 300 --junitxml=test-results/own.xml

test-own: $(STAMP)
	$(BIN)/python $(OWN) -m 'not slow'

test-full: $(STAMP)  ## all of our own tests, with those that `make test` leaves out as slow
	$(BIN)/python $(OWN)

# A machine that shares nothing, and a provider that lies; a machine that can hold no rig is a failure here.
rigs: $(STAMP)  ## clusters that are not this machine, and the contract of providers (as root, about four minutes)
	GPU_CLUSTER_INTERNAL_RIGS=required $(BIN)/python -m pytest tests/rigs tests/acceptance/test_lying_provider.py tests/contract --timeout 300

test-smoke: $(STAMP) | images
	GPU_CLUSTER_RESULTS_DIR=test-results GPU_CLUSTER_SUITE=smoke $(BIN)/python -m pytest --gpu-cluster gpu_tests -m smoke

.PHONY: images
images: $(STAMP)
	$(BIN)/python -m gpu_tests.fetch

demo: $(STAMP) | images  ## the main job: all of gpu_tests on a local cluster
	GPU_CLUSTER_RESULTS_DIR=test-results GPU_CLUSTER_SUITE=demo $(BIN)/python -m pytest --gpu-cluster gpu_tests

test-versions: $(STAMP)  ## what depends on pytest's version, on 8.4, 9.0, 9.1 and 9.2
	$(BIN)/python -m tests.versions 8.4 9.0 9.1 9.2

bench: $(STAMP)  ## measure the figures of the README into bench.json (about half an hour)
	$(BIN)/python -m tests.benchmarks.bench

bench-workloads: $(STAMP)  ## measure the workloads of gpu_tests into bench-workloads.json (about twenty minutes)
	$(BIN)/python -m tests.benchmarks.workloads

mutations: $(STAMP)  ## break each property of the workloads; a test must notice (about half an hour)
	$(BIN)/python -m tests.mutations.run

faults: $(STAMP)  ## kill every process in turn; what is left goes into faults.json
	$(BIN)/python -m tests.faults.run

outside: $(STAMP)  ## other projects' suites: pytest and pytest --gpu-cluster must agree
	$(BIN)/python -m tests.outside.run

plugins: $(STAMP)  ## a hundred plugins, plainly and through the cluster; makes docs/plugins.md (about ten minutes)
	$(BIN)/python -m tests.plugins.run

clean:  ## remove what make made; a warm cluster is ended first
	-test ! -x $(BIN)/gpu-cluster || $(BIN)/gpu-cluster down
	rm -rf $(VENV) .venv-* test-results build dist .mypy_cache .ruff_cache .pytest_cache
