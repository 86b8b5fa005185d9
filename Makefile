# Each target sets up all it needs: a virtual environment with the pinned dependencies of
# constraints.txt. PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART := runs/quickstart
# Decides the order of the tests, which must not matter: `make test SEED=2` tries another one.
SEED ?= 1

.PHONY: quickstart test test-fast test-latest test-oldest check lock clean

quickstart: $(VENV)/installed
	@if [ -e $(QUICKSTART)/eval_results.json ]; then \
		echo "$(QUICKSTART) is trained already; remove it to train again. Three of its stories:"; \
		$(BIN)/python scripts/generate.py --model $(QUICKSTART) --prompt \
			"Once upon a time there was a little girl named Mia." \
			"One day, a clever fox named Ben went to the" \
			"Once upon a time, a brave boy named Leo lived near the"; \
	else \
		CUDA_VISIBLE_DEVICES="$${CUDA_VISIBLE_DEVICES-0}" $(BIN)/python scripts/train.py \
			--config configs/quickstart.yaml --resume_from_checkpoint auto; \
	fi

test: $(VENV)/installed-dev check
	$(BIN)/python -m pytest -n 3 --dist worksteal --randomly-seed=$(SEED)

# The everyday loop: without the tests that start processes of their own.
test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 3 --dist worksteal --randomly-seed=$(SEED) -m "not slow and not launches"

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	$(BIN)/mypy

# The newest versions of all dependencies, and the oldest that pyproject.toml allows, each in an
# environment of its own.
test-latest test-oldest: test-%: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-$*
	$(BIN)/uv pip install --quiet --python $(VENV)-$*/bin/python \
		--resolution $(if $(filter oldest,$*),lowest-direct,highest) --editable ".[dev]"
	$(VENV)-$*/bin/python -m pytest -n 3 --dist worksteal --randomly-seed=$(SEED)

lock: $(VENV)/installed-dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.10 --all-extras --no-emit-index-url \
		--no-annotate --quiet --custom-compile-command "make lock" \
		--constraints constraints.in pyproject.toml --output-file constraints.txt

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "needs Python 3.10 or newer: make PYTHON=python3.12")'
	@echo "Installing into $(VENV); torch is large, this can take minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-latest $(VENV)-oldest .mypy_cache .pytest_cache .ruff_cache
