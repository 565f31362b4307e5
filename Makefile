# The one list of commands. CI calls these and nothing else.
#
#   make serve   from a fresh clone to a chat model on http://127.0.0.1:3000     (ARGS="--port 8080" for flags)
#   make test    every Rust, Python and integration test; no GPU needed
#   make lint    formatters and linters            make fmt     let the formatters write
#   make model   fetch SmolLM2-135M-Instruct       make bench   ours beside the peers, on this CPU
#   make wheel   the distributable wheel           make clean   forget what was built

VENV ?= .venv
BIN := $(VENV)/bin
# The first Python of at least 3.11; name another with `make PYTHON=/path/to/python3.12`.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.version_info >= (3, 11) or sys.exit(1); print(sys.executable)' 2>/dev/null && break; done)
endif
MODEL ?= smollm2-135m

SOURCES := $(shell git ls-files '*.rs' '*.py' '*.pyi' '*.proto' '*.toml' Cargo.lock 2>/dev/null | grep -v -E '(^|/)tests?/|^integration-tests/|^benchmarks/')

.PHONY: serve model test test-rust test-python test-integration test-gpu lint fmt bench wheel clean tools
.DELETE_ON_ERROR:

serve: $(VENV)/.installed
	$(BIN)/anaphora serve $(MODEL) $(ARGS)

model: $(VENV)/.installed
	$(BIN)/anaphora fetch $(MODEL)

test: test-rust test-python test-integration

test-rust: tools model
	cargo test --workspace --exclude anaphora-native --all-features

test-python: $(VENV)/.installed-test model
	$(BIN)/python -m pytest kernels/tests server/tests
	TRITON_INTERPRET=1 $(BIN)/python -m pytest kernels/tests/triton server/tests/triton
	$(BIN)/python kernels/bench/compile.py

test-integration: $(VENV)/.installed-test model
	$(BIN)/python -m pytest integration-tests

test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu kernels/tests server/tests integration-tests

lint: $(VENV)/.installed-test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(VENV)/.installed-test
	cargo fmt --all
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-test model
	$(BIN)/python benchmarks/cpu_peers.py $(ARGS)

wheel: $(VENV)/.created
	$(BIN)/pip wheel --no-deps -w dist .

clean:
	cargo clean
	rm -rf $(VENV) dist

# --- what the commands above need -------------------------------------------------------------------------------------

# `pip install .` builds the one wheel with maturin; cargo's own cache makes the second time quick.
$(VENV)/.installed: $(VENV)/.created $(SOURCES)
	$(BIN)/pip install .
	@touch $@

# text-generation asks for an old huggingface_hub and works with the new one: hence --no-deps.
$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install '.[test]'
	$(BIN)/pip install --no-deps text-generation==0.7.0
	@touch $@

$(VENV)/.created: | tools
	$(PYTHON) -m venv $(VENV)
	@touch $@

tools:
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust from https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "a C compiler is missing: install gcc or clang (Debian: apt install build-essential)" >&2; exit 1; }
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is missing (Debian: apt install python3 python3-venv); name one that is not on PATH with make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: apt install python3-venv)" >&2; exit 1; }
