# The two commands of the README. Everything goes into .venv; models go into the user's cache.
VENV ?= .venv
PYTHON ?= python3
# Pinned so that figures can be compared; any torch of pyproject.toml's range works.
TORCH ?= torch==2.13.0
PROMPT ?= Give three tips for staying healthy.

.PHONY: demo test bench clean

demo: $(VENV)/.ready
	$(VENV)/bin/specrej models pull
	$(VENV)/bin/specrej compare "$(PROMPT)" --max-new-tokens 128 --seed 1

test: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/specrej models pull
	$(VENV)/bin/pytest

bench: $(VENV)/.ready
	$(VENV)/bin/python benchmarks/engine.py

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet "$(TORCH)"
	$(VENV)/bin/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV)
