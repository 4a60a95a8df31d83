# Two commands: `make demo` and `make test`. Both set up what they need.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch==2.13.0
DEMO   ?= demo.fdb
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
# A torch that the base interpreter already has (a CUDA build, say) is used as it is.
SITE   := $(shell $(PYTHON) -c "import importlib.util as u; print('--system-site-packages' if u.find_spec('torch') else '')" 2>/dev/null)

.PHONY: demo test lint types docs bench vendor setup setup-dev clean

demo: setup
	@$(BIN)/featuredb demo --path $(DEMO)

# A file at a time on each core: files share stores and models among their tests. tests/conftest.py
# orders them.
test: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# What pages of a site read Parquet with: pinned by version and hash, bundled into the package.
vendor:
	cd vendor && npm ci --ignore-scripts && npm run -s build
	cd featuredb/explorer/assets && sha256sum hyparquet.js > ../../../vendor/hyparquet.sha256

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m featuredb.cli.reference --check docs/commands.md

types: setup-dev
	$(BIN)/mypy

docs: setup-dev
	$(BIN)/python -m featuredb.cli.reference --write docs/commands.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Under ten minutes on two cores; each is worth longer runs, as docs/benchmarks.md has them.
bench: setup-dev
	$(BIN)/python -m benchmarks.ingest --documents 400
	$(BIN)/python -m benchmarks.store --activations 100M

setup: $(VENV)/.setup
setup-dev: $(VENV)/.setup-dev

$(VENV)/.setup: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(SITE) $(VENV) || \
		{ echo "No virtual environment could be made: apt-get install python3-venv, then try again" >&2; \
		  rm -rf $(VENV); exit 1; }
	@$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) $(TORCH)
	$(PIP) -e ".[all]"
	@touch $@

$(VENV)/.setup-dev: $(VENV)/.setup
	$(PIP) -e ".[all,dev]"
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO)
