# make setup        set up .venv
# make quickstart   set up .venv and run the main job
# make test         set up .venv and run the tests
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP = .venv/bin/python -m pip
STAMP = .venv/.installed

.PHONY: setup quickstart test lint clean

setup: $(STAMP)

# The lock is complete, so nothing is left for pip to resolve: resolving vLLM's own requirements would bring CUDA builds.
$(STAMP): requirements/cpu.txt pyproject.toml
	requirements/debian.sh setup
	@echo "setting up .venv: about 3 GB, a few minutes"
	$(PYTHON) -m venv --clear .venv
	$(PIP) install --quiet --disable-pip-version-check --no-deps -r requirements/cpu.txt
	$(PIP) install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)

quickstart: setup
	.venv/bin/python jobs/train.py experiment=quickstart

lint: setup
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

test: lint
	requirements/debian.sh test
	.venv/bin/python -m pytest tests

clean:
	rm -rf .venv outputs
