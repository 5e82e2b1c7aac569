# Every routine as one word. `make help` lists them.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
# One thread for each of the workers: the tests' models are so small that a second one would only wait for the
# first. A file stays with one worker, which makes its fixtures once.
TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

.DEFAULT_GOAL := help

help: ## list these
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(VENV)/ready ## make the virtual environment and install everything into it

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/ready ## a text from the bundled model
	$(BIN)/python -m minigpt.generate "Once upon a time" --temperature 1 --min-p 0.1 --repetition-penalty 1.15 --seed 0 --max-new-tokens 120 --echo --stream

check: lint types unit ## what to run before a commit

lint: $(VENV)/ready ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready ## mypy --strict on the package
	$(BIN)/mypy

unit: $(VENV)/ready ## tests of single modules, and the examples in docstrings
	$(TESTS) tests/unit minigpt

test: $(VENV)/ready ## every test that needs nothing from outside
	$(TESTS) -m "not hub and not slow and not heavy and not gpu"
	@echo "not run, for they need the Hugging Face hub (make test-hub), Ray or S3 (make test-all), minutes (make parity-full) or a GPU (make test-gpu):"
	@$(TESTS) -n 0 --collect-only -m "hub or slow or heavy or gpu" | grep '::' | sed 's/^/  not run: /'

test-all: $(VENV)/ready-all ## ... and those that need Ray, an S3 server or a browser; Chromium itself comes by apt
	$(MAKE) test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m heavy

$(VENV)/ready-all: $(VENV)/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,heavy]'
	touch $@

test-browser: $(VENV)/ready-all ## the page of `explore` in Chromium (apt install chromium)
	$(TESTS) tests/browser

fuzz: $(VENV)/ready ## 10,000 random inputs, by FUZZ_SEED (up to an hour)
	FUZZ_EXAMPLES=1300 $(TESTS) --dist worksteal tests/fuzz

faults: $(VENV)/ready ## full and failing disks and kill -9, at every call that changes a folder (up to an hour)
	FAULTS=all $(TESTS) tests/faults

parity: $(VENV)/ready ## against transformers, and the commands as a user runs them
	$(TESTS) -m "not hub and not slow" tests/parity tests/e2e

parity-full: $(VENV)/ready ## logits at the real shapes, distilgpt2 to gpt2-xl (10 minutes, 16 GB)
	$(BIN)/python -m pytest -q -m slow

test-gpu: $(VENV)/ready ## the same results on a GPU; reported as not run where torch has none
	$(TESTS) -n 0 -m gpu tests/gpu

test-hub: $(VENV)/ready ## the real gpt2 from the Hugging Face hub (needs a network)
	$(TESTS) -m hub

bench: $(VENV)/ready ## speed against transformers, in the same run
	$(BIN)/python scripts/bench.py

bench-docs: $(VENV)/ready ## ... and its table into docs/benchmarks.md and, shorter, README.md
	$(BIN)/python scripts/bench.py --update docs/benchmarks.md
	$(BIN)/python scripts/readme.py --speed

readme: $(VENV)/ready ## the output that README.md and docs/ show
	$(BIN)/python scripts/readme.py
	$(BIN)/python scripts/pictures.py

docs: $(VENV)/ready ## the notebooks, run and written as pages into docs/notebooks (3 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/notebooks.py

bench-many: $(VENV)/ready ## many prompts: continuous batching against plain batches, on one thread
	$(BIN)/python scripts/bench_many.py --threads 1 --update docs/benchmarks.md

bench-quantization: $(VENV)/ready ## what weights of 8 and 16 bits lose, on held-out text
	$(BIN)/python scripts/bench_quantization.py --corpus $(CORPUS) --update docs/benchmarks.md

bench-gpu: $(VENV)/ready ## one GPU: decoding by size and batch, and training, against transformers (80 seconds)
	$(BIN)/python scripts/bench_gpu.py --update docs/benchmarks.md

bench-train: $(VENV)/ready ## training: speed against transformers, and the losses of known recipes (20 minutes)
	$(BIN)/python scripts/bench_train.py --corpus $(CORPUS) --update docs/training.md

bench-drafts: $(VENV)/ready ## drafts: passes for each token and speed, against plain greedy
	$(BIN)/python scripts/bench_drafts.py --corpus $(CORPUS) --update docs/benchmarks.md

methods: $(VENV)/ready ## every decoding method measured on held-out tales, its table into docs/comparison.md (15 minutes)
	$(BIN)/python scripts/compare_methods.py --corpus $(CORPUS) --update docs/comparison.md

train: $(VENV)/ready ## the bundled model again, from CORPUS=folder of train.txt, val.txt and MANIFEST.tsv (ten minutes on a GPU, days on a CPU)
	$(BIN)/python scripts/train_bundled.py --corpus $(CORPUS)

size-study: $(VENV)/ready ## which size it should have, measured
	$(BIN)/python scripts/size_study.py --corpus $(CORPUS)

clean: ## remove what can be made again
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help setup demo check lint types unit test test-browser test-all fuzz faults parity parity-full test-gpu test-hub bench bench-docs bench-many bench-quantization bench-gpu bench-train bench-drafts methods readme docs train size-study clean
