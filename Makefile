# make check: what to run while working, under two minutes.  make test: everything.  make demo: from nothing to a steered policy.
# make benchmarks: every method of the benchmark for a few steps, minutes; docs/benchmarks.md.
# make faults: kills, damages and starves runs, minutes; KILLS=100 SEED=1 make faults for more and others.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Which build of torch goes into the venv. From PyPI this is the CUDA build, and the venv takes about 6 GB. CPU only:
#   make install TORCH='torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu'
TORCH ?= torch==2.13.0
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: check test faults demo benchmarks docs lint install clean
check: lint
	$(PYTEST) -m 'not slow and not simulator'

test: lint
	$(PYTEST)

faults: install
	$(BIN)/python -m tests.faults

demo: install
	$(BIN)/dsrl run experiment=demo

benchmarks: install
	$(BIN)/python -m benchmarks methods suite=smoke

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/.installed

# constraints.txt pins the environment that the numbers in docs/ were measured in, but for torch, which is yours to choose.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 13) else f"make install has pinned versions for Python 3.11 and 3.12, $(PYTHON) is {v[0]}.{v[1]}: make install PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt $(TORCH)
	$(BIN)/pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[all,dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
