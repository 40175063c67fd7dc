# Everything a fresh machine needs is Python 3.11 or newer, make and the package index.
PYTHON3 ?= python3
VENV    := .venv
PYTHON  := $(VENV)/bin/python
# The project trains tiny models on a laptop here; more threads than cores only get in each other's way.
export OMP_NUM_THREADS ?= 1
# Hundreds of short processes import torch, ray and transformers here. Where bytecode may not be kept, each compiles
# them again: 14 CPU seconds for `import x2vlm.models.x2vlm` instead of 5.5.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo docs quick test slow learn lint format clean lock benchmarks gpu-benchmarks
.DEFAULT_GOAL := demo

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON3) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one with PYTHON3=...")'
	$(PYTHON3) -m venv $(VENV)
	# uv is pinned in the lock like everything else: its lines alone, with their hashes, are what pip gets to read.
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(VENV)/uv.txt
	$(PYTHON) -m pip install --quiet --require-hashes --requirement $(VENV)/uv.txt
	$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --require-hashes --requirement requirements.lock
	$(VENV)/bin/uv pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(VENV)/.installed            ## create .venv with the pinned dependencies

demo: setup                          ## the whole flow on the shipped sample: minutes on two cores
	$(PYTHON) jobs/full_pretrain.py sample

# Files are named in tests/quick.txt: a few seconds each, together about 50 CPU seconds, 15 of them for imports (1,594 of
# 1,641 tests; those against an S3 server or several processes are left out by name). Property-based tests try 10
# examples instead of 100. A file that starts Ray, trains or waits does not belong there.
quick: setup                         ## the tests that matter while writing: under 90 seconds on two cores
	$(PYTHON) -m pytest @tests/quick.txt

# Two processes halve the time on two cores; tests of one file, and all end-to-end ones, stay in one of them. With
# TEST_PROCESSES=0 there is one, in which a debugger can be used.
TEST_PROCESSES ?= 2
test: setup                          ## every test but the slow proofs
	$(PYTHON) -m pytest tests/e2e tests -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder \
		--cov=pipelines/flow --cov-report=term --cov-fail-under=90

slow: setup                          ## the long proofs: kills at random moments, many workers, large plans
	$(PYTHON) -m pytest -m slow --ignore tests/learning

learn: setup                         ## a small model learns a procedural world and every task on it: hours of two cores
	$(PYTHON) -m pytest -m slow -s tests/learning

lint: setup                          ## format, style, types and import directions
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: setup
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

MEASURES = training_step loader seek data_wait readers filters scoring shuffle planning partitioning leaks curation why download \
	http_parsers img2dataset_import reranking record training_start lanes
benchmarks: setup                    ## everything that measures on CPUs, one after the other: an hour or more
	for name in $(MEASURES); do echo "== $$name" && $(PYTHON) -m tests.benchmarks.$$name || exit 1; done

# Three commands of at most ten minutes each, so that a machine lent for ten minutes is enough for one. No setup: it
# may have no network; with its own Python and torch, `make gpu-benchmarks PYTHON=python3`.
GPU_RESULTS ?= runs/gpu
gpu-benchmarks:                      ## a training step on one GPU: JSON, profiles and tables in GPU_RESULTS
	for part in 1 2 3; do $(PYTHON) -m tests.benchmarks.gpu --part $$part --out $(GPU_RESULTS) || exit 1; done

docs: setup                          ## the API reference, from docstrings, into runs/docs
	$(PYTHON) -m pdoc --output-directory runs/docs pipelines x2vlm

# What is pinned stays pinned where it still fits; LOCK=--upgrade moves everything to the newest. torch and torchvision
# are held at the pair that every figure of docs/ was measured with.
lock:                                ## pin again, with hashes, after a change of dependencies
	printf 'torch==2.13.0\ntorchvision==0.28.0\n' | $(VENV)/bin/uv pip compile --quiet --universal \
		--python-version 3.11 --extra dev --constraints - --generate-hashes $(LOCK) \
		--no-header --no-annotate --no-emit-index-url --output-file requirements.lock pyproject.toml

clean:                               ## remove what jobs and tests wrote; keeps .venv
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage *.egg-info build
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +
