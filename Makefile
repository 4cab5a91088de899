# `make` lists what there is. Everything installs into .venv, once.
BIN := .venv/bin
ARGS ?=
# Hashes, of which there are hundreds, are no secrets, and those of the tests are made up.
SECRETS := --disable-plugin HexHighEntropyString --disable-plugin Base64HighEntropyString \
	--exclude-files '^tests/' --exclude-lines '://user:password@'

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format data repro up down ui docs lock sbom clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make the environment .venv from the lock (TORCH=cpu or TORCH=cuda chooses the build)
	@bash scripts/install.sh

demo: setup ## a learner learns digits batch by batch, each deleted once learnt, and forgets one again
	$(BIN)/python scripts/demo.py

test: setup ## run the tests, two at a time (ARGS="-k merge" for some of them)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup ## check style, types, who imports whom, dangerous calls, and that no secret is kept
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml dynammo tasks flows scripts
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook $(SECRETS)

format: setup ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

data: setup ## write the embedded data set to data/digits
	$(BIN)/dynammo export digits data/digits

repro: data ## bring every DVC stage up to date
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro

up: setup ## start Prefect, MLflow, a worker and the learners' page in the background, on this machine only
	@$(BIN)/python scripts/servers.py up

down: ## stop what `make up` started
	@if [ -x $(BIN)/python ]; then $(BIN)/python scripts/servers.py down; fi

ui: setup ## show the MLflow runs of this folder in a browser, until Ctrl-C
	@$(BIN)/python scripts/servers.py ui

docs: setup ## write the documents as a site into site/; a broken link or anchor is an error
	$(BIN)/mkdocs build --strict --quiet

lock: setup ## resolve pyproject.toml into requirements.lock again (ARGS=--upgrade for newer versions)
	bash scripts/lock.sh $(ARGS)

sbom: setup ## write sbom.json: what requirements.lock installs, in CycloneDX's form
	$(BIN)/uv tool run --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements.lock \
		--output-format JSON --output-file sbom.json

clean: ## delete caches and build products; keeps .venv, data and results
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find dynammo tasks flows tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
