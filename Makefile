# Everything runs in .venv, a virtual environment that `make venv` makes from requirements.lock.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-all v2 unit docs ascend upstream versions newest wheels release-check lint format clean

PYTHON ?= python3
PYTHONS ?= $(PYTHON)
PY := .venv/bin/python
PARALLEL := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses

# No model is fetched from a hub and no usage is reported, by tests and demo alike.
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
# Packages are installed uncompiled: most of their modules are never imported. Python compiles what is, once.
unexport PYTHONDONTWRITEBYTECODE

help: ## show this list
	@echo 'make venv, make demo, make test are the usual three. All targets:'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

venv: .venv/.installed ## make .venv and install everything into it

.venv/.installed: requirements.lock pyproject.toml setup.py $(wildcard csrc/cpu/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@$(PYTHON) packaging/set_up.py

demo: venv ## show contrastive decoding at work on a small model, on the CPU
	$(PY) -m examples.demo

test: lint ## all checks and the test suite, without what takes minutes
	$(PY) -m tests

# Triton's interpreter runs the kernels: ten to thirty times slower than V1.
v2: venv ## the tests of engines and a server on vLLM's V2 model runner
	$(PY) -m tests --v2

test-all: lint ## all checks and all tests
	$(PY) -m tests --all

unit: venv ## the tests of a minute: units and the scheduler, no engine, no kernel
	$(PARALLEL) 8 --dist worksteal -m 'unit and not slow and not full' tests/unit tests/scheduler

docs: venv ## the documentation as a site, in site/
	$(PY) -m docs.pictures
	$(PY) -m docs.places
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

# 130 MB are downloaded the first time.
ascend: venv ## the tests on vllm-ascend's own classes, on CPU, beside a stub of torch_npu
	$(PY) -m tests.ascend

upstream: venv ## vLLM's own scheduler tests, with its schedulers and with ours
	$(PY) -m tests.upstream

# Environments of 3 to 6 GB each, made once, and about an hour. With OTHER_VLLM=0.31.0 on that release alone.
versions: venv ## the tests, with and without engines, on all releases of vLLM that are supported
	OMP_NUM_THREADS=1 $(PY) -m tests.upstream.versions $(OTHER_VLLM)

# VLLM=main: the newest wheel of its main branch; VLLM=0.34.0: that release; VLLM=FILE.whl: that wheel.
newest: venv ## what vLLM's newest release has changed where vllm-cold takes part; some minutes
	OMP_NUM_THREADS=1 $(PY) -m tests.upstream.newest $(VLLM) --issue newest-vllm.md

wheels: venv ## the files of a release in dist/: source distribution, wheels for x86-64 and aarch64; two minutes
	$(PY) packaging/wheels.py

# Interpreters to install for: make release-check PYTHONS="python3.11 python3.12". A quarter of an hour, and 7 GB for each
# other than .venv's own where torch's CPU build is not to be had.
release-check: venv ## versions, the files of a release, their kernels, an installation that decodes
	$(PY) packaging/release_check.py --python $(PYTHONS)

lint: venv ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: venv ## let ruff fix and format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## remove .venv, caches and build output
	rm -rf .venv build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf *.egg-info vllm_cold/ops/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
