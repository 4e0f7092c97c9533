# The two commands of the README. Everything goes into .venv; models go into the user's cache.
VENV ?= .venv
# vLLM has an environment of its own: it comes with versions of its own, and takes 3.5 GB.
VENV_VLLM ?= .venv-vllm
PYTHON ?= python3
# Pinned so that figures can be compared; any torch of pyproject.toml's range works.
TORCH ?= torch==2.13.0
PROMPT ?= Give three tips for staying healthy.

# Else every process that a test starts would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check test-rest test-engines test-torch test-vllm bench clean

demo: $(VENV)/.ready
	$(VENV)/bin/specrej models pull
	$(VENV)/bin/specrej compare "$(PROMPT)" --policy smollm2-relevance --seed 1

# Two at a time: one alone leaves a core idle, since tests wait for processes, signals and servers.
test: $(VENV)/.ready
	$(VENV)/bin/specrej models pull
	$(MAKE) --jobs=2 --keep-going test-rest test-vllm check test-engines test-torch

check: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test-engines: $(VENV)/.ready
	$(VENV)/bin/pytest tests/engines --ignore tests/engines/torch

test-torch: $(VENV)/.ready
	$(VENV)/bin/pytest tests/engines/torch

test-rest: $(VENV)/.ready
	$(VENV)/bin/pytest --ignore tests/engines

# As a prerequisite the environment would be one job and these tests another, which would come last.
test-vllm:
	$(MAKE) $(VENV_VLLM)/.ready
	$(VENV_VLLM)/bin/specrej models pull
	$(VENV_VLLM)/bin/pytest tests/with_vllm

bench: $(VENV)/.ready
	$(VENV)/bin/python benchmarks/engine.py

# Nothing is compiled on installing: most of these 20,000 modules are never imported.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-compile "$(TORCH)"
	$(VENV)/bin/pip install --quiet --no-compile --editable ".[dev]"
	touch $@

# The torchvision, torchaudio and torchcodec that come along do not fit a CPU build of torch.
$(VENV_VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install --quiet --no-compile "$(TORCH)"
	$(VENV_VLLM)/bin/pip install --quiet --no-compile --editable ".[vllm-test]"
	$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VLLM)
