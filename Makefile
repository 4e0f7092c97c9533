# The two commands of the README. Everything goes into .venv; models go into the user's cache.
VENV ?= .venv
# vLLM has an environment of its own: it comes with versions of its own, and takes 3.5 GB.
VENV_VLLM ?= .venv-vllm
PYTHON ?= python3
# Pinned so that figures can be compared; any torch of pyproject.toml's range works.
TORCH ?= torch==2.13.0
PROMPT ?= Give three tips for staying healthy.

.PHONY: demo test test-vllm bench clean

demo: $(VENV)/.ready
	$(VENV)/bin/specrej models pull
	$(VENV)/bin/specrej compare "$(PROMPT)" --max-new-tokens 128 --seed 1

test: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/specrej models pull
	$(VENV)/bin/pytest
	$(MAKE) test-vllm

test-vllm: $(VENV_VLLM)/.ready
	$(VENV_VLLM)/bin/specrej models pull
	$(VENV_VLLM)/bin/pytest tests/with_vllm

bench: $(VENV)/.ready
	$(VENV)/bin/python benchmarks/engine.py

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet "$(TORCH)"
	$(VENV)/bin/pip install --quiet --editable ".[dev]"
	touch $@

# The torchvision, torchaudio and torchcodec that come along do not fit a CPU build of torch.
$(VENV_VLLM)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install --quiet "$(TORCH)"
	$(VENV_VLLM)/bin/pip install --quiet --editable ".[vllm-test]"
	$(VENV_VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VLLM)
