# Two commands matter: `make run` (the whole referral, on real servers) and `make test`.
# Both set up everything they need in .venv; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1

# make run: ONCE=1 stops after the walk; ARGS="--port 8001 --temporal temporal" takes any option of `referrals dev`.
ONCE ?=
ARGS ?=
RUN_OPTIONS := $(if $(ONCE),--once) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup run test lint format faults fuzz audit bench bench-plots screenshots release-check openapi build-id requirements clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## .venv with everything pinned and hashed

$(VENV)/.installed: requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name it with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-index -e .
	@touch $@

run: setup ## one referral from click to expiry, then the stack stays up (ONCE=1 stops)
	@$(BIN)/referrals dev $(RUN_OPTIONS)

lint: setup ## formatting, lint, strict types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tests wait more than they compute: three at a time are at home on two cores.
TESTS_AT_ONCE ?= 3

test: lint ## every check and every test
	$(BIN)/pytest -n $(TESTS_AT_ONCE) --dist worksteal

# make faults: MINUTES=30 makes it a long one, SEED=7 repeats the schedule of another run.
MINUTES ?=
SEED ?=
FAULTS_OPTIONS := $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(ARGS)

faults: setup ## the program under load and under fire, then counted up (MINUTES=30, SEED=7)
	@$(BIN)/python -m tests.faults $(FAULTS_OPTIONS)

# Other examples each time; what it finds it prints in a form to be tried again.
EXAMPLES ?= 200

fuzz: setup ## parsers fed for MINUTES=10, the API with EXAMPLES=200 or so for each call
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),10)
	$(BIN)/pytest tests/test_security_contract.py --contract-examples $(EXAMPLES) --contract-seed $$(date +%s)

audit: setup ## known weaknesses of what we depend on (asks PyPI's service; needs the network)
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements/runtime.txt
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements/dev.txt
# make bench: QUICK=1 measures less of everything; ARGS="--only lifecycle --strict" takes any option of `python -m bench`.
QUICK ?=

bench: setup ## what the program costs next to its engine, another one and PostgreSQL alone (QUICK=1)
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(ARGS)

bench-plots: setup ## how cost grows, drawn into docs/images
	@$(BIN)/python -m bench.plots $(ARGS)

screenshots: setup ## the pictures of the pages in docs/images, made anew
	$(BIN)/python -m tests.screenshots $(ARGS)

release-check: setup ## can this code follow what is released: its runs, its data, its callers?
	@$(BIN)/referrals release-check $(ARGS)

openapi: setup ## the document of the HTTP contract, docs/openapi.json, made anew
	$(BIN)/referrals openapi --output docs/openapi.json

# The release itself where the commit is tagged as it; else the commit, too. Letters of a label of Kubernetes.
build-id: setup ## what this checkout is called in Temporal (REFERRALS_BUILD_ID)
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("kallyai-referrals"))'); \
	if [ "$$(git describe --tags --exact-match --dirty 2>/dev/null)" = "v$$version" ]; then echo "$$version"; \
	else echo "$$version-$$(git describe --always --dirty --abbrev=12 --exclude='*')"; fi

format: setup ## put the code into its one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

requirements: ## pin the newest versions that pyproject.toml admits, with hashes (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet --upgrade --all-extras pyproject.toml -o requirements/dev.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -c requirements/dev.txt pyproject.toml -o requirements/runtime.txt

clean: ## throw away what was built; the data under .local/ stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
