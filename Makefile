# Everything works on a fresh machine with Python >= 3.11: each target makes the environment it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-slow check docs pocket vllm clean

quickstart: .venv/installed  ## five methods × three seeds on the pocket world, from the model that ships with the package, and their report
	@$(BIN)/prefopt study experiments/five_methods/study.yaml --jobs 2

test: .venv/installed check  ## formatting, lint, types, and the quick tests
	$(BIN)/pytest -q -n 2

test-slow: .venv/installed  ## process pairs, kill and resume, bad inputs, a real vLLM server where `make vllm` made one
	$(BIN)/pytest -q -n 3 --dist loadfile --no-loadscope-reorder -m slow

check: .venv/installed
	$(BIN)/ruff format --check -q
	$(BIN)/ruff check -q
	$(BIN)/mypy

docs: .venv/installed  ## the pages that are made from the code
	$(BIN)/python docs/make.py

pocket: .venv/installed  ## train the pocket language model again
	$(BIN)/python -m prefopt.testbeds.pocket.build

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prefopt needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

vllm: .vllm/installed  ## an environment of its own with vLLM for CPUs, for `make test-slow` and experiments/vllm

.vllm/installed: experiments/vllm/install.sh
	bash $< .vllm $(PYTHON)
	@touch $@

clean:  ## the environments; runs/ is yours and stays
	rm -rf .venv .vllm
