PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo app test test-slow test-browser gpu lint format

demo: $(INSTALLED)
	$(BIN)/python -m tools.demo

app: $(INSTALLED)
	@$(BIN)/python -c 'import gradio' 2> /dev/null || $(BIN)/python -m pip install -e '.[app]'
	$(BIN)/python -m tools.app

test: $(INSTALLED)
	@echo "without the tests in a browser: make test-browser runs them"
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

test-browser: $(INSTALLED)
	@$(BIN)/python -c 'import gradio, playwright' 2> /dev/null || $(BIN)/python -m pip install -e '.[browser]'
	$(BIN)/python -m pytest -m browser

gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu -p tests.report --report exp/gpu/report.json -o faulthandler_timeout=120

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@
