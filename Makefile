# `make demo` and `make test` set up everything they need in .venv and run.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Test processes, each with one thread of its own: two that share their threads would slow each other down.
WORKERS ?= 2
READY := $(VENV)/.secateur-ready
# The repository is the package: whatever folder it lies in, Python, mypy, editors and the documentation see it through links
# under the package's name, without its tests and environments.
ROOMS := $(patsubst %/__init__.py,%,$(wildcard */__init__.py))
CHECKOUT := $(abspath $(VENV))/checkout

# Where an environment forbids bytecode, as container images do, every process would compile all of torch anew: 15 s each.
unexport PYTHONDONTWRITEBYTECODE

# Of glibc: memory that a tensor leaves is kept for the next one, which saves a tenth of the tests' time.
ALLOCATION := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000

.PHONY: setup demo test test-all check docs figures lint format lock clean

# What `make check` compares with.
BASE ?= main

setup: $(READY)

$(READY): requirements.lock pyproject.toml $(ROOMS:=/__init__.py)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Python 3.11 to 3.13 is needed; give it with: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip sync --quiet --require-hashes requirements.lock
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	rm -rf $(CHECKOUT) && mkdir -p $(CHECKOUT)/secateur
	ln -s $(addprefix "$(CURDIR)"/,__init__.py __main__.py py.typed $(ROOMS)) $(CHECKOUT)/secateur
	echo "$(CHECKOUT)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/secateur-checkout.pth"
	touch $(READY)

demo: setup
	$(BIN)/secateur prune-and-export --speedup 1.7 --latency-batch 32 --out demo

test: setup
	OMP_NUM_THREADS=1 $(ALLOCATION) $(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not long"

# The rest too: large networks from end to end, trainings over several seeds.
test-all: setup
	OMP_NUM_THREADS=1 $(ALLOCATION) $(BIN)/pytest -n $(WORKERS) --dist worksteal

# The quick loop: lint, whether docs/architecture.md still shows the imports, and the tests of what changed against BASE but the
# slow ones. Pytest ends with 5 where only slow ones are left.
check: lint
	@$(BIN)/python scripts/architecture.py --check
	@tests="$$($(BIN)/python scripts/changed_tests.py $(BASE))" || exit 1; \
		if [ -z "$$tests" ]; then echo "no test belongs to what changed"; exit 0; fi; \
		OMP_NUM_THREADS=1 $(ALLOCATION) $(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not slow and not long" $$tests || [ $$? = 5 ]

# Tables and pictures in the documentation: from benchmarks/results/*.json, and of the architecture from the code.
figures: setup
	$(BIN)/python -m benchmarks.pages
	$(BIN)/python scripts/architecture.py

# The pages of docs/ and the reference from docstrings, into build/docs, without a network.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH="$(CHECKOUT)" $(BIN)/mypy -p secateur

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url \
		--python-version 3.11 --extra dev --extra docs pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache demo
