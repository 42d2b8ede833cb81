# Two commands set up everything: `make demo` and `make test`. Each creates the environment that it requires.

PYTHON ?= python3
BIN := .venv/bin
BASE := .venv-base/bin
FUZZ := .venv-fuzz/bin
NATIVE := $(wildcard src/opq/codec/native/*)
INCLUDE = $(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_path('include'))")
LIBRARY = $(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))")
PYTHON_VERSION = $(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_python_version())")
# Tests of the C module: golden files, and round trips of codes and planes.
CODEC_TESTS = $(addprefix tests/codec/test_,native.py golden.py code_stream.py trellis_sections.py fast_sections.py fast_planes.py byte_planes.py deltas.py)
FUZZ_SECONDS ?= 600
WORKERS ?= auto
# The memory limit is for atheris, which keeps almost a kilobyte per execution.
FUZZ_OPTIONS = -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=6000 -malloc_limit_mb=1000 -print_final_stats=1
# Benchmarks that take minutes, and those that take longer (a night or more on two cores) or require other tools.
QUICK := main_job.py laplace_fit.py plan_cost.py squeezenet.py loading.py ablations.py efficiency.py
LONG := browser.py finetune_cost.py mnist.py 'finetune.py resnet20' 'finetune.py resnet56' finetune_mobilenet.py codec.py deltas.py speeds.py lossless.py 'allocation.py --anew' peers.py large.py 'large.py --ray' zoo.py unseen.py calibration_time.py resident.py from_pretrained.py deploy.py
# All of some benchmarks, then the tables. A script fails if its claim does not hold; the others run nevertheless.
define measure
failed=; for script in $(1); do $(BIN)/python benchmarks/$$script || failed="$$failed $$script;"; done; \
	$(BIN)/python benchmarks/readme.py; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }
endef
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-thorough check base mutants reproduce reproduce-quick peers docs zoo-packages unseen-packages fuzz corpus portable sanitize c js clean

help:  ## Show all targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 17

demo: .venv/ready  ## Train a small network, compress it, load it back, and compare
	$(BIN)/python examples/digits.py

# A worker per core, each with one thread; tests of a file mostly stay together, as they share imports and fixtures.
test test-fast test-thorough: export OMP_NUM_THREADS = 1
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test: check .venv/ready base portable  ## Everything that must hold: lint, types, tests, and tests without PyTorch
	$(PYTEST)

test-fast: .venv/ready  ## The tests that take less than about a second each, for the developer's loop
	$(PYTEST) -m "not slow" --hypothesis-profile fast

test-thorough: .venv/ready  ## All tests with more examples, places and repetitions, before a release: a quarter of an hour
	$(PYTEST) --hypothesis-profile thorough

check: .venv/ready  ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

base: .venv-base/ready  ## The tests that hold for the base install, as a wheel and without PyTorch
	$(BASE)/python -m pytest tests/cli tests/base

mutants: .venv/ready  ## Break the library in many places, one at a time: a test must notice each
	$(BIN)/python tests/mutants/run.py

reproduce: .venv/ready .venv-peers/ready .zoo-packages/ready .unseen-packages/ready js/opq.wasm  ## Every result from data (OPQ_DATA) and seeds, then the tables; resumes from checkpoints
	$(call measure,$(QUICK) $(LONG))

reproduce-quick: .venv/ready  ## The results that take minutes, then the tables; needs the data
	$(call measure,$(QUICK))

peers: .venv-peers/ready  ## The environment of the tools that benchmarks compare with

docs: .venv-docs/ready  ## The documentation site, in build/site; a warning is an error
	.venv-docs/bin/zensical build --strict --config-file mkdocs.yml

zoo-packages: .zoo-packages/ready  ## The packages that hold the networks of benchmarks/zoo_networks

unseen-packages: .unseen-packages/ready  ## The packages that hold the networks of benchmarks/unseen_networks

fuzz: .venv-fuzz/ready build/fuzz/native  ## Look for inputs that break the reader, for FUZZ_SECONDS; needs clang
	PYTHONPATH=src:tests/codec:fuzz $(FUZZ)/python fuzz/seeds.py build/fuzz/seeds
	mkdir -p build/fuzz/reader-new build/fuzz/deltas-new build/fuzz/native-new
	PYTHONPATH=src:tests/codec:fuzz $(FUZZ)/python fuzz/reader.py $(FUZZ_OPTIONS) -max_len=2048 -cross_over=0 \
		-artifact_prefix=build/fuzz/reader- build/fuzz/reader-new build/fuzz/seeds/reader fuzz/corpus/reader
	PYTHONPATH=src:tests/codec:fuzz $(FUZZ)/python fuzz/deltas.py $(FUZZ_OPTIONS) -max_len=4096 -cross_over=0 \
		-artifact_prefix=build/fuzz/deltas- build/fuzz/deltas-new build/fuzz/seeds/deltas fuzz/corpus/deltas
	ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=4:max_malloc_fill_size=0 build/fuzz/native $(FUZZ_OPTIONS) -max_len=600 \
		-artifact_prefix=build/fuzz/native- build/fuzz/native-new fuzz/corpus/native

corpus: .venv-fuzz/ready build/fuzz/native  ## Keep what `make fuzz` found, as few and as small inputs as show the same
	rm -rf build/fuzz/kept && mkdir -p build/fuzz/kept/reader build/fuzz/kept/deltas build/fuzz/kept/native
	PATH="$(abspath $(FUZZ)):$$PATH" PYTHONPATH=src:tests/codec:fuzz fuzz/reader.py -merge=1 build/fuzz/kept/reader build/fuzz/reader-new fuzz/corpus/reader
	PATH="$(abspath $(FUZZ)):$$PATH" PYTHONPATH=src:tests/codec:fuzz fuzz/deltas.py -merge=1 build/fuzz/kept/deltas build/fuzz/deltas-new fuzz/corpus/deltas
	ASAN_OPTIONS=detect_leaks=0 build/fuzz/native -merge=1 build/fuzz/kept/native build/fuzz/native-new fuzz/corpus/native
	rm -rf fuzz/corpus && mv build/fuzz/kept fuzz/corpus

# The flags are those of pyproject.toml.
portable: .venv/ready  ## Tests of the codec with the C code that processors other than x86-64 run
	rm -rf build/portable && mkdir -p build/portable && cp -r src/opq build/portable/ && rm -f build/portable/opq/codec/*.so
	gcc -O3 -fno-tree-slp-vectorize -DOPQ_PORTABLE -shared -fPIC -DPy_LIMITED_API=0x030B0000 -I$(INCLUDE) \
		-o build/portable/opq/codec/_native.abi3.so src/opq/codec/native/module.c
	PYTHONPATH=build/portable $(BIN)/python -c "from opq.codec import _native; assert 'portable' in _native.__file__"
	PYTHONPATH=build/portable $(BIN)/python -m pytest $(CODEC_TESTS)

sanitize: .venv/ready  ## Tests that code and decode, with AddressSanitizer and UndefinedBehaviorSanitizer in the C module
	rm -rf build/sanitized && mkdir -p build/sanitized && cp -r src/opq build/sanitized/ && rm -f build/sanitized/opq/codec/*.so
	gcc -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -shared -fPIC \
		-DPy_LIMITED_API=0x030B0000 -I$(INCLUDE) -o build/sanitized/opq/codec/_native.abi3.so src/opq/codec/native/module.c
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
		PYTHONMALLOC=malloc PYTHONPATH=build/sanitized $(BIN)/python -m pytest --hypothesis-profile thorough $(CODEC_TESTS) tests/attacks/test_corpus.py

c: build/c/opq.c  ## The reader without Python as one header and one source, build/c/opq.h and build/c/opq.c

js: .venv/ready js/opq.wasm  ## The reader for JavaScript: build it, and test it in Node and in Chromium; needs clang and lld
	$(BIN)/python -m pytest tests/readers/test_js_reader.py tests/readers/test_js_onnx.py tests/readers/test_demo.py

clean:  ## Remove environments and caches
	rm -rf .venv .venv-base .venv-docs .venv-peers .venv-fuzz .zoo-packages .unseen-packages build dist js/opq.wasm src/*.egg-info src/opq/codec/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis

.venv/ready: requirements/dev.lock pyproject.toml $(NATIVE)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements/dev.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv-base/ready: requirements/base.lock .venv/ready $(shell find src -name '*.py')
	$(PYTHON) -m venv .venv-base
	$(BASE)/python -m pip install --quiet -r requirements/base.lock
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BASE)/python -m pip install --quiet --no-deps --force-reinstall build/wheel/*.whl
	touch $@

.venv-docs/ready: requirements/docs.lock
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet -r requirements/docs.lock
	touch $@

.venv-peers/ready: requirements/peers.lock
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -r requirements/peers.lock
	touch $@

# pip does not replace packages that are already in the target folder, so it is removed first.
.unseen-packages/ready: requirements/unseen.lock .venv/ready
	rm -rf .unseen-packages
	$(BIN)/python -m pip install --quiet --no-deps --target=.unseen-packages -r requirements/unseen.lock
	touch $@

.zoo-packages/ready: requirements/zoo.lock .venv/ready
	rm -rf .zoo-packages
	$(BIN)/python -m pip install --quiet --no-deps --target=.zoo-packages -r requirements/zoo.lock
	touch $@

.venv-fuzz/ready: requirements/fuzz.lock .venv/ready
	$(PYTHON) -m venv .venv-fuzz
	$(FUZZ)/python -m pip install --quiet -r requirements/fuzz.lock
	touch $@

# The arithmetic decoder's comparisons do not help a fuzzer, and tracing them halves the speed.
build/fuzz/native: fuzz/native.c $(NATIVE)
	mkdir -p build/fuzz
	for part in fuzz/native.c src/opq/codec/native/module.c; do \
		clang -g -O2 -fsanitize=address,undefined,fuzzer-no-link -fno-sanitize-recover=undefined \
			-fno-sanitize-coverage=trace-cmp -I$(INCLUDE) -c $$part -o build/fuzz/$$(basename $$part .c).o || exit 1; done
	clang -fsanitize=fuzzer,address,undefined build/fuzz/native.o build/fuzz/module.o \
		-L$(LIBRARY) -lpython$(PYTHON_VERSION) -Wl,-rpath,$(LIBRARY) -o $@

build/c/opq.c: c/amalgamate.py include/opq.h $(wildcard c/*) $(NATIVE)
	$(PYTHON) c/amalgamate.py build/c

js/opq.wasm: include/opq.h $(wildcard c/*) $(wildcard js/wasm/* js/wasm/libc/*) $(NATIVE)
	js/wasm/build.sh $@
