# `make` without a target lists the targets: every line here with `##`.
.DEFAULT_GOAL := help
.PHONY: help run test chaos storm soak fuzz simulate bench overload lint format schemas settings-doc lock clean demo

BIN := .venv/bin
IS_NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for each in python3.12 python3.11 python3.13 python3; do \
	"$$each" -c '$(IS_NEW_ENOUGH)' 2>/dev/null && { echo "$$each"; break; }; done)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links --quiet $(LOCK_OPTIONS)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/.run-stamp ## Set up what is missing and run the whole system until Ctrl-C
	@exec $(BIN)/seckill up

demo: .venv/.run-stamp ## Sell a product to a crowd on the running system and check the outcome
	@exec $(BIN)/seckill demo

test: .venv/.dev-stamp ## Set up what is missing and run all tests (TESTS="tests/unit -x" for some, JOBS=1 to run them serially)
	@# Fault tests mostly wait, so they run in parallel with tests that compute.
	@$(BIN)/python -m pytest --numprocesses $(or $(JOBS),2) --dist loadfile $(TESTS)

chaos: .venv/.dev-stamp ## Inject every fault 50 times (TRIES=5 for fewer) and write docs/reliability.md
	@$(BIN)/python -m pytest tests/chaos --chaos-tries $(or $(TRIES),50) --chaos-report tests/chaos/outcomes.json
	@$(BIN)/python tests/chaos/report.py tests/chaos/outcomes.json docs/reliability.md

storm: .venv/.dev-stamp ## Inject random faults, two at a time, into the local stack (SECONDS=150 SEED=2); fails if a part dies by itself
	@$(BIN)/python tests/chaos/storm.py --seconds $(or $(SECONDS),150) --seed $(or $(SEED),2)

soak: .venv/.dev-stamp ## Run a mixed load with milder faults and measure the memory of every process (MINUTES=20)
	@$(BIN)/python tests/chaos/soak.py --minutes $(or $(MINUTES),20)

fuzz: .venv/.dev-stamp ## Send requests generated from the specification to both listeners (CASES=20000 per call, SEED=1)
	@$(BIN)/python -m pytest --numprocesses $(or $(JOBS),2) --dist worksteal -vv tests/e2e/test_fuzz.py --fuzz-cases $(or $(CASES),20000) --fuzz-seed $(or $(SEED),1)

bench: .venv/.dev-stamp ## Measure costs and floors in 16 minutes and write docs/benchmark.md (PARTS="sync --rounds 1" only prints some)
	@$(BIN)/python bench/run.py $(PARTS)

overload: .venv/.dev-stamp ## Offer up to five times what the system carries for SECONDS=60 and write docs/overload.md
	@$(BIN)/python bench/overload.py --seconds $(or $(SECONDS),60)

simulate: .venv/.dev-stamp ## Run the real decider through 20,000 random schedules (SCHEDULES=500 for fewer)
	@PYTHONPATH=tests $(BIN)/python tests/model/simulation.py $(or $(SCHEDULES),20000)

lint: .venv/.dev-stamp ## Check style, types and imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev-stamp ## Format the code and fix what the linter can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

schemas: .venv/.dev-stamp ## Write the JSON schemas of pipeline/messages/models.py into topics.yaml
	@$(BIN)/python -m pipeline.messages.schemas

settings-doc: .venv/.dev-stamp ## Write docs/settings.md from pipeline/settings
	@$(BIN)/python -m pipeline.settings_page

lock: ## Rewrite the lock files, with hashes (LOCK_OPTIONS=--upgrade for the newest versions); needs uv
	@command -v uv >/dev/null || { echo "make lock needs uv on the PATH" >&2; exit 1; }
	$(COMPILE) --extra build --output-file requirements.lock
	$(COMPILE) --extra build --extra local --constraints requirements.lock --output-file requirements-local.lock
	$(COMPILE) --all-extras --constraints requirements-local.lock --output-file requirements-dev.lock
	@! grep -n '://' requirements.lock requirements-local.lock requirements-dev.lock

clean: ## Remove the virtual environment and all caches, but not the system's data
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make the second run instant: pip runs only after a lock file has changed.
.venv/.run-stamp: requirements-local.lock pyproject.toml
	@"$(or $(PYTHON),false)" -c '$(IS_NEW_ENOUGH)' 2>/dev/null || \
		{ echo "Python 3.11 or newer is needed (found: $(or $(PYTHON),none)); set PYTHON=/path/to/python" >&2; exit 1; }
	@$(BIN)/python -c '$(IS_NEW_ENOUGH)' 2>/dev/null || $(PYTHON) -m venv --clear .venv || \
		{ echo "$(PYTHON) cannot create a virtual environment; the package python3-venv may be missing" >&2; exit 1; }
	@echo "setting up .venv ..."
	@$(PIP) --require-hashes -r requirements-local.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@# Not left to the first start: with PYTHONDONTWRITEBYTECODE set, every start would compile again.
	@$(BIN)/python -m compileall -q pipeline agents
	@touch $@

.venv/.dev-stamp: .venv/.run-stamp requirements-dev.lock
	@echo "installing what the tests need ..."
	@$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@
