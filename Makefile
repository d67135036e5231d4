# make sweep: from nothing to ten tracked runs and their ensemble. make test: from nothing to the tests' verdict.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: env sweep test test-all lint audit

env: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

sweep: env
	$(BIN)/python train.py feature=mel,mfcc fold=0,1,2,3,4 -m
	$(BIN)/python ensemble.py run_ids=latest
	@echo
	@echo "Next, after . $(BIN)/activate:"
	@echo "  your own clips:  python train.py data=folder data.root=CLIPS feature=mel,mfcc fold=0,1,2,3,4 -m"
	@echo "  compare runs:    mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db"

# AUDIO_MNIST_DATA names the folder of real recordings that some tests need; without it they are skipped and say so
test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

# three at a time on two cores: tests of SLURM, servers and pages mostly wait
test-all: env
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# style, types, and imports that point down
lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# known vulnerabilities of what is installed
audit: env
	$(BIN)/pip-audit --skip-editable --progress-spinner off
