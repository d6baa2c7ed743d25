# Everything that a developer or CI runs. Each target sets up what it needs; a second run finds it there.
#
#   make up      the whole system on this machine; PORT= and HOST= choose where
#   make test    every test, the browser's included; JOBS= at a time, ARGS= goes to pytest
#   make chaos   a storm of faults over the whole system; MINUTES=, SEED=, CLIENT=python or js
#   make model   the model of the log protocol, walked further than the suite does
#   make fuzz    EXAMPLES= of junk at each parser, and Schemathesis over the API; SEED=
#   make soak    RUNS= runs through one worker and one gateway: does either grow?
#   make bench   every figure beside its rival, and docs/performance.md; QUICK=1 in under three minutes, without the page
#   make sbom    what an installed Stagebus brings along, as CycloneDX in sbom.json, and its licences
#   make screenshots   the pictures of the page in docs/, with the demo model
#   make client  what is made out of the schemas and of clients/js: its types, the page's copy of it
#   make lint types format docs clean

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
JOBS ?= 2
MINUTES ?= 1
SEED ?= 1
CLIENT ?= strict
RUNS ?= 10000
EXAMPLES ?= 15000
QUICK ?=

BIN := .venv/bin
RUNTIME := .venv/.runtime-is-set-up
DEV := .venv/.dev-is-set-up
JS := clients/js
NODE_MODULES := $(JS)/node_modules/.is-set-up
DIST := $(JS)/dist/.built
# Wheels alone: nothing that somebody else wrote runs while it is installed.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --only-binary :all: -c constraints.txt

# An environment that forbids Python's compiled files makes each of the many processes that are started compile anew.
export PYTHONDONTWRITEBYTECODE :=

.DELETE_ON_ERROR:
.PHONY: up test chaos model fuzz soak bench sbom screenshots client lint types format docs clean

# exec: make's child is stagebus itself, so that the SIGTERM that make passes on reaches it.
up: $(RUNTIME)
	@exec $(BIN)/stagebus up --host "$(HOST)" --port "$(PORT)"

test: $(DEV) $(NODE_MODULES)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

chaos: $(DEV) $(if $(filter js,$(CLIENT)),$(DIST))
	$(BIN)/python -m tests.support.chaos --minutes $(MINUTES) --seed $(SEED) --client $(CLIENT)

model: $(DEV)
	$(BIN)/python -m tests.model.log_protocol

fuzz: $(DEV)
	$(BIN)/python -m tests.support.fuzz --examples $(EXAMPLES) --seed $(SEED)

soak: $(DEV)
	$(BIN)/python -m tests.support.soak --runs $(RUNS)

bench: $(DEV)
	QUICK=$(QUICK) $(BIN)/python -m benchmarks

sbom: $(DEV)
	$(BIN)/python -m tests.support.supply sbom.json

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is made out of the code: the settings' table and the diagram of a run's states.
docs: $(RUNTIME)
	$(BIN)/python -m docs.generate

screenshots: $(DEV)
	$(BIN)/python -m tests.browser.screenshots

client: $(RUNTIME) $(NODE_MODULES)
	$(BIN)/python $(JS)/scripts/schemas.py | node $(JS)/scripts/generate.mjs > $(JS)/src/.schema.ts
	@mv $(JS)/src/.schema.ts $(JS)/src/schema.ts
	cd $(JS) && npm run --silent build && npm run --silent bundle
	@touch $(DIST)

$(DIST): $(wildcard $(JS)/src/*) $(JS)/tsconfig.json | $(NODE_MODULES)
	cd $(JS) && npm run --silent build
	@touch $@

clean:
	rm -rf $(JS)/node_modules $(JS)/dist .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up .venv; this happens once"
	@$(PIP) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "setting up .venv for development; this happens once"
	@$(PIP) -e '.[dev]'
	@touch $(RUNTIME) $@

# Without Node the client's tests are skipped; in CI they fail.
$(NODE_MODULES): $(JS)/package.json
	@if command -v npm >/dev/null; then cd $(JS) && npm install --silent --no-progress && touch ../../$@; \
		else echo "no npm: the tests of clients/js are skipped" >&2; fi

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"Stagebus needs Python 3.11 or newer; name one with PYTHON=")'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "python venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
