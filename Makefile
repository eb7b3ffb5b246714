# `make demo` trains, evaluates and uses a small model; `make test` runs the tests. Both make
# their own environment in .venv first. Other targets: lint, types, examples, bench, hooks, clean.
#
# Variables, as in `make test PYTHON=python3.12 WORKERS=4`:
#   PYTHON       the interpreter that .venv is made from (3.10 or newer)
#   TORCH_INDEX  an index to take torch from, beside pip's usual one. PyTorch's own index for the CPU
#                has builds of a tenth of the size; PyTorch's installation page names it.
#   PIP_ARGS     further arguments for every `pip install`
#   WORKERS      processes that run the tests, one thread each
#   PYTEST_ARGS  further arguments for pytest, as in PYTEST_ARGS="-k lstm"

PYTHON ?= python3
TORCH_INDEX ?=
PIP_ARGS ?=
WORKERS ?= 2
PYTEST_ARGS ?=

# The demo: its command lines

DEMO_RUN := runs/digits
# Prints three digits to predict, a 0, a 1 and a 2, as a line of JSON each.
DEMO_SAMPLE := import json, sklearn.datasets as data; \
  print(*(json.dumps(image.tolist()) for image in data.load_digits().images[:3]), sep="\n")

.PHONY: demo
demo: .venv/.tasks
	$(BIN)/cello train digits --out $(DEMO_RUN) --overwrite
	$(BIN)/cello evaluate $(DEMO_RUN) digits
	$(BIN)/python -c '$(DEMO_SAMPLE)' | $(BIN)/cello predict $(DEMO_RUN)

# Checks

# One thread in each worker, so that WORKERS is the number of cores in use.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: test
test: .venv/.test
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

CPP := $(wildcard csrc/*.cc csrc/*.cpp csrc/*.cu csrc/*.h csrc/*.hpp)

.PHONY: lint
lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(if $(CPP),$(BIN)/clang-format --dry-run --Werror $(CPP))

.PHONY: types
types: .venv/.dev
	$(BIN)/mypy --strict src

EXAMPLES := $(sort $(wildcard examples/*.py))

.PHONY: examples
examples: .venv/.tasks
	set -e; for example in $(EXAMPLES); do \
	  echo "== $$example"; MPLBACKEND=Agg $(BIN)/python "$$example"; \
	done

.PHONY: bench
bench: .venv/.bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# Environment
# A stamp in .venv says that an installation is up to date with pyproject.toml and constraints.txt;
# the package itself is installed in editable form, so that editing it needs no new installation.

# Two targets at once would run pip twice in one environment.
.NOTPARALLEL:

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

.venv/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Cello needs Python 3.10")'
	$(PYTHON) -m venv --clear .venv
	@touch $@

# torch by itself, so that nothing else can come from its index. Where that index cannot be reached,
# pip says so, and takes torch from the usual one.
.venv/.base: pyproject.toml constraints.txt | .venv/.created
	$(INSTALL) --constraint constraints.txt --no-deps --retries 2 \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(INSTALL) --quiet --constraint constraints.txt scikit-build-core
	@touch $@

# .venv/.tasks, .venv/.test, ...: the package with the extras that the target needs. The backend is
# in .venv already, at its pinned version; hence no build isolation.
EXTRAS_tasks := tasks
EXTRAS_bench := tasks,bench
EXTRAS_test := tasks,test
EXTRAS_dev := dev

.venv/.tasks .venv/.bench .venv/.test .venv/.dev: .venv/.%: .venv/.base
	$(INSTALL) --quiet --constraint constraints.txt --no-build-isolation \
	  --editable ".[$(EXTRAS_$*)]"
	@touch $@

.PHONY: hooks
hooks: .venv/.dev
	$(BIN)/pre-commit install

.PHONY: clean
clean:
	rm -rf .venv build dist runs .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
