# The two commands of the README. Everything goes into .venv; models go into the user's cache.
VENV ?= .venv
# vLLM has an environment of its own: it comes with versions of its own, and takes 3.5 GB.
VENV_VLLM ?= .venv-vllm
# The clients of the server have one too: some need an older openai. It has no torch, and takes 0.9 GB.
VENV_CLIENTS ?= .venv-clients
# The tools that read our exports lie above .venv, and bring what it has not: 0.1 GB.
VENV_TOOLS ?= .venv-tools
PYTHON ?= python3
# Pinned so that figures can be compared; any torch of pyproject.toml's range works.
TORCH ?= torch==2.13.0
PROMPT ?= Give three tips for staying healthy.

# Else every process that a test starts would compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check docs test-rest test-commands test-server test-engines test-torch test-vllm test-clients test-tools bench clean

demo: $(VENV)/.ready
	$(VENV)/bin/specrej models pull
	$(VENV)/bin/specrej compare "$(PROMPT)" --policy smollm2-relevance --seed 1

# Three at a time, the longest first: on two cores, two would leave some idle, since tests wait for
# processes, signals and servers.
test: $(VENV)/.ready
	$(VENV)/bin/specrej models pull
	$(MAKE) --jobs=3 --keep-going test-vllm test-rest test-commands test-server test-engines test-torch check test-clients test-tools docs

# Jobs side by side have no cores to share among threads, and tiny models nothing to share. The tests
# of the torch engine have the threads that users have, but none that spin.
test-rest test-commands test-server test-engines test-vllm test-clients test-tools: export OMP_NUM_THREADS ?= 1
test-torch: export OMP_WAIT_POLICY ?= passive

check: $(VENV)/.ready
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The site, in site/. Nothing is fetched. A warning, such as a broken link, is an error: with --quiet,
# --strict would see none.
docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

test-engines: $(VENV)/.ready
	$(VENV)/bin/pytest tests/engines --ignore tests/engines/torch

test-torch: $(VENV)/.ready
	$(VENV)/bin/pytest tests/engines/torch

test-server: $(VENV)/.ready
	$(VENV)/bin/pytest tests/server

COMMANDS = tests/batch tests/cli tests/evaluation
test-commands: $(VENV)/.ready
	$(VENV)/bin/pytest $(COMMANDS)

test-rest: $(VENV)/.ready
	$(VENV)/bin/pytest $(addprefix --ignore ,$(COMMANDS) tests/engines tests/server)

# As a prerequisite the environment would be one job and these tests another, which would come last.
test-vllm:
	$(MAKE) $(VENV_VLLM)/.ready
	$(VENV_VLLM)/bin/specrej models pull
	$(VENV_VLLM)/bin/pytest tests/with_vllm

# The server that the clients ask is a process of the other environment.
test-clients: $(VENV)/.ready
	$(MAKE) $(VENV_CLIENTS)/.ready
	SPECREJ_PYTHON=$(abspath $(VENV)/bin/python) $(VENV_CLIENTS)/bin/pytest tests/with_clients

test-tools: $(VENV)/.ready
	$(MAKE) $(VENV_TOOLS)/.ready
	$(VENV_TOOLS)/bin/python -m pytest tests/with_tools

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

# The packages of an extra alone, without specrej and what that needs.
EXTRA = import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")
$(VENV_CLIENTS)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV_CLIENTS)
	$(VENV_CLIENTS)/bin/python -c '$(EXTRA)' clients >$(VENV_CLIENTS)/requirements.txt
	$(VENV_CLIENTS)/bin/pip install --quiet --no-compile --requirement $(VENV_CLIENTS)/requirements.txt
	touch $@

# Python finds here what is in .venv, behind what is here: alpaca_eval needs an older setuptools.
# FastChat's own commands ask their judge through an openai before 1, alpaca_eval through a new one.
SITE = import sysconfig; print(sysconfig.get_path("purelib"))
$(VENV_TOOLS)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV_TOOLS)
	echo "import site; site.addsitedir('$$($(VENV)/bin/python -c '$(SITE)')')" \
		>"$$($(VENV_TOOLS)/bin/python -c '$(SITE)')/above.pth"
	$(VENV_TOOLS)/bin/python -c '$(EXTRA)' tools >$(VENV_TOOLS)/requirements.txt
	$(VENV_TOOLS)/bin/pip install --quiet --no-compile --requirement $(VENV_TOOLS)/requirements.txt
	$(VENV_TOOLS)/bin/pip install --quiet --no-compile --no-deps --upgrade \
		--target $(VENV_TOOLS)/openai-before-1 openai==0.28.1
	touch $@

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_CLIENTS) $(VENV_TOOLS)
