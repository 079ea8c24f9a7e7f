# The one list of commands; CI and the README call the same words. Every word works in a fresh clone.
#   make demo | test | lint | types | asan | parity | tsan | valgrind
#        hosts | quality-peers | bench | bench-quick | bench-request | bench-quality | bench-cm-ibq | bench-calm | bench-docs
#        docs | format | wheel | clean | all
#   VENV=dir  another place for the environment    PYTHON=python3.12  another interpreter
#   OUT=dir   where the demo report goes
VENV ?= .venv
PYTHON ?= python3
OUT ?= demo-report
# Named exactly: an open range would bring gigabytes of CUDA.
TORCH ?= torch==2.13.0

# Sources that cannot be written to are installed, not linked.
EDITABLE := $(shell test -w . && echo -e)
BIN := $(VENV)/bin
PIP := $(BIN)/python3 -m pip --disable-pip-version-check install --quiet
SOURCES := setup.py $(shell find csrc -type f)
C_FILES := $(shell find csrc tests/parity -name '*.c')
C_STYLED := $(shell find csrc tests/parity -name '*.[ch]')

# NumPy's BLAS runs at half speed with these set; idle OpenMP threads must not spin on a busy machine.
unexport OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
export OMP_WAIT_POLICY ?= passive

.PHONY: all hosts quality-peers demo test lint types asan parity tsan valgrind bench bench-docs bench-quick bench-request bench-quality bench-cm-ibq bench-calm docs format wheel clean $(VENV)
.DELETE_ON_ERROR:
all: lint types test asan parity demo
$(VENV): $(BIN)/python

# $(BIN)/python is a link to python3 that is put in place last, so it exists only when everything is
# installed and the extension is built; an interrupted run goes on where it stopped.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python3 || $(PYTHON) -m venv $(VENV)
	rm -f $(BIN)/python
	$(PIP) --upgrade pip
	$(PIP) "$(TORCH)" "numpy>=2" "setuptools>=77" wheel
	$(PIP) --no-build-isolation $(EDITABLE) ".[dev]"
	touch $@

$(BIN)/python: $(VENV)/.installed $(SOURCES)
	rm -f $@
	$(if $(EDITABLE),$(BIN)/python3 setup.py -q build_ext --inplace,$(PIP) --no-build-isolation --no-deps --force-reinstall .)
	ln -s python3 $@
	touch -h $@

demo: $(VENV)
	$(BIN)/cmibq demo --out $(OUT)

test: $(VENV)
	$(BIN)/python -m pytest -q $(ARGS)

lint: $(VENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(C_STYLED)
	printf '%s\n' $(C_FILES) | xargs -P $$(nproc) -n 6 sh -c '\
	$(BIN)/clang-tidy --quiet "$$@" -- $$($(BIN)/python tests/c_flags.py) -Itests/parity' lint

types: $(VENV)
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest cmibq._C --ignore-disjoint-bases
	$(BIN)/mypy tests/typing

# Address and undefined-behaviour sanitizers over everything that calls C without torch, and the fuzz.
# pytest must leave stderr alone: what it captured would be lost with the process.
asan: $(VENV)
	CMIBQ_SANITIZE=address $(BIN)/python setup.py -q build --build-base .build-asan --build-lib .build-asan/lib
	PYTHONPATH=.build-asan/lib:. PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	CMIBQ_EXPECT=.build-asan $(BIN)/python -P -m pytest -q --capture=sys -o pythonpath= -m "not slow" \
	tests/kernels tests/arrays tests/fuzz tests/test_capi.py tests/test_interrupt.py tests/test_nomemory.py

# The kernels without Python: every ISA level against scalar, older CPUs and ARM emulated; the same
# program under the thread sanitizer and under valgrind.
parity tsan valgrind:
	$(MAKE) --no-print-directory -f tests/parity/Makefile $(@:parity=run)

# Every axis beside its peers; minutes on an otherwise idle machine. ARGS: see benchmarks/run.py.
$(VENV)/.bench: $(VENV)/.installed
	$(PIP) --no-build-isolation $(EDITABLE) ".[bench]"
	touch $@

bench: $(VENV) $(VENV)/.bench
	$(BIN)/python benchmarks/run.py $(ARGS)
	$(MAKE) bench-docs
	$(BIN)/python benchmarks/check.py

bench-quick: $(VENV) $(VENV)/.bench
	$(BIN)/python benchmarks/run.py --quick $(ARGS)
	$(BIN)/python benchmarks/check.py benchmarks/results-quick.json

# One request to a model of 1B and of 7B shape, beside torch and OpenVINO; 8 GB of disk, 20 minutes.
# llama.cpp takes part after $(BIN)/pip install gguf llama-cpp-python, which compiles it (15 minutes).
bench-request: $(VENV) $(VENV)/.bench
	$(BIN)/python benchmarks/request.py $(ARGS)

# What rounding costs, method by method; 40 minutes. ARGS: see benchmarks/quality/run.py.
bench-quality: $(VENV)
	$(BIN)/python benchmarks/quality/run.py $(ARGS)

# Bytes of image tokens against right answers; 2 hours. ARGS: see benchmarks/cm_ibq/run.py.
bench-cm-ibq: $(VENV)
	$(BIN)/python benchmarks/cm_ibq/run.py $(ARGS)

# Composed vision towers against controls; 20 minutes. ARGS: see benchmarks/calm/run.py.
bench-calm: $(VENV)
	$(BIN)/python benchmarks/calm/run.py $(ARGS)

# The table and the pictures of docs/performance.md, and the README's line, from the results.
bench-docs: $(VENV)
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/table.py

# Older stacks that some tests need, each in an environment of its own: MBQ, LLaVA, TinyLLaVA.
HOSTS ?= .hosts
hosts: $(HOSTS)/host-mbq/.installed $(HOSTS)/host-llava/.installed $(HOSTS)/host-tinyllava/.installed
hosts: $(HOSTS)/MBQ $(HOSTS)/LLaVA $(HOSTS)/LLaVA-NeXT $(HOSTS)/TinyLLaVA_Factory
$(HOSTS)/host-llava/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet \
	"$(TORCH)" "transformers==4.37.2" "accelerate==0.21.0" "numpy<2" einops pillow sentencepiece tqdm
	touch $@
$(HOSTS)/host-tinyllava/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet \
	"$(TORCH)" "transformers==4.40.1" "accelerate==0.27.2" "peft==0.10.0" "numpy<2" einops einops-exts pillow \
	sentencepiece tqdm
	touch $@
$(HOSTS)/host-mbq/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet \
	"$(TORCH)" "transformers==4.45.0" "numpy<2.3" accelerate pillow tqdm
	touch $@
$(HOSTS)/MBQ:
	rm -rf $@.part
	git clone --quiet https://github.com/thu-nics/MBQ $@.part
	git -C $@.part checkout --quiet a4d460dfb4b1c07b5d1f3ddda6e86d1c90d6e7f1
	mv $@.part $@
$(HOSTS)/LLaVA:
	rm -rf $@.part
	git clone --quiet https://github.com/haotian-liu/LLaVA $@.part
	git -C $@.part checkout --quiet c121f0432da27facab705978f83c4ada465e46fd
	mv $@.part $@
$(HOSTS)/TinyLLaVA_Factory:
	rm -rf $@.part
	git clone --quiet https://github.com/TinyLLaVA/TinyLLaVA_Factory $@.part
	git -C $@.part checkout --quiet 53f12c7804102104d54064102b5d2139343e59c5
	mv $@.part $@
$(HOSTS)/LLaVA-NeXT:
	rm -rf $@.part
	git clone --quiet https://github.com/LLaVA-VL/LLaVA-NeXT $@.part
	git -C $@.part checkout --quiet df179663ae8b83207df100a1f7af24caec633ff9
	mv $@.part $@

# Packages that rounding is compared with, each in an environment of its own: benchmarks/quality/peers.
PEERS = gptq autoround hqq
quality-peers: $(PEERS:%=$(HOSTS)/peer-%/.installed)
$(HOSTS)/peer-gptq/.installed: PINS = llmcompressor==0.14.0.1 transformers==5.17.0
$(HOSTS)/peer-autoround/.installed: PINS = auto-round==0.16.1 transformers==5.23.0
$(HOSTS)/peer-hqq/.installed: PINS = hqq==0.2.8.post1 transformers==5.23.0
$(PEERS:%=$(HOSTS)/peer-%/.installed):
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet \
	"$(TORCH)" "numpy==2.4.6" "pillow==13.0.0" "setuptools>=77" wheel
	$(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-build-isolation \
	"$(TORCH)" $(PINS)
	touch $@

docs: $(VENV)
	$(PIP) "sphinx>=7" "myst-parser>=3" furo
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

format: $(VENV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_STYLED)

wheel: $(VENV)
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation -w dist .

clean:
	rm -rf build dist .build-asan .build-parity docs/_build cmibq/*.so
