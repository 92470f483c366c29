# flowspec: one command each. `make` lists them; all of them set up .venv first, once.
#
# On Linux, a plain install of torch brings CUDA along (several GB). PIP_FLAGS is handed to pip, e.g. to name an index
# with CPU builds: make demo PIP_FLAGS="--extra-index-url ..."

PYTHON    ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
                 $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; \
             done)
PIP_FLAGS ?=
TESTS     ?=
WORKERS   ?= 2
BIN       := .venv/bin
READY     := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench faults fuzz soak demo-model demo-drafts clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(READY) ## run the demo: five processes, three prompts, plain against speculative
	@$(BIN)/flowspec demo

test: $(READY) ## run the tests, two files at a time; TESTS="tests/topology -x" runs some of them
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(TESTS)

check: $(READY) ## format, lint, types and import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/test_imports.py

format: $(READY) ## format the code, and mend what lint can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(READY) ## measure on this machine, then the headline figures (25 minutes); build/bench.json
	@$(BIN)/python -m flowspec.bench.run
	@$(BIN)/flowspec bench headline

fuzz: $(READY) ## a million inputs that nobody should send, then as many found by coverage (half an hour)
	@$(BIN)/python -m flowspec.bench.fuzz
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then $(BIN)/python -m flowspec.bench.guided; \
	 else echo "left out: inputs found by coverage, for which atheris is missing (the extra fuzz)"; fi

faults: $(READY) ## kill, freeze and cut nodes and links while streams run: nothing may get lost (30 minutes)
	@$(BIN)/python -m flowspec.bench.faults

soak: $(READY) ## more clients than there is room for, mixed, for 30 minutes: nothing may grow or go wrong
	@$(BIN)/python -m flowspec.bench.soak

demo-model: $(READY) ## train the demo model and its drafts again (hours)
	@$(BIN)/python -m flowspec.training.demo all

demo-drafts: $(READY) ## train the demo's drafts again, for the model that is there (100 minutes)
	@$(BIN)/python -m flowspec.training.demo drafts

clean: ## remove .venv, caches and what was built
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is made last, so that a set-up that was broken off is taken up again.
$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "flowspec needs Python 3.11 or newer; none was found (make PYTHON=/path/to/it)" >&2; exit 1; fi
	@echo "flowspec: setting up .venv with $(PYTHON) (the first time downloads torch: minutes)" >&2
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	@touch $@
	@echo "flowspec: .venv is ready" >&2
