# Makefile: builds, tests and checks mobilellm. `make help` lists the targets.
#
# Everything it makes lies under build/. The sanitizer and coverage builds are this same file run with another BUILD and OPT, so
# there is one list of sources and one set of flags.

VERSION = 0.1.0
ifeq ($(origin CC),default) # make's own default is cc, which may be anything; CC from the environment or command line wins
CC = gcc
endif
ARCH ?= native
OPT ?= -O3
WARN ?= -Wall -Wextra -Wshadow -Werror
BUILD ?= build
JOBS ?= $(shell nproc)
# Which tests, without folder and ending: T=test_order, T='test_c*'
T ?= test_*

PKG_CONFIG_NAMES = ompi-c hdf5 yaml-0.1 jansson zlib
PKG_CFLAGS := $(patsubst -I%,-isystem%,$(shell pkg-config --cflags $(PKG_CONFIG_NAMES) 2>/dev/null))
PKG_LIBS := $(shell pkg-config --libs $(PKG_CONFIG_NAMES) 2>/dev/null)

# Nothing here reads errno after a math function or traps on a NaN, and without these two loops over expf or min would not vectorise.
# Reassociation (-ffast-math) stays off: results must not depend on the compiler's mood.
FLAGS = -std=c11 -D_GNU_SOURCE $(OPT) -march=$(ARCH) -g -fopenmp -fno-math-errno -fno-trapping-math $(WARN) -I. $(PKG_CFLAGS) \
        $(CUDA_CFLAGS) $(CPPFLAGS) $(CFLAGS)
LIBS = $(LDFLAGS) $(PKG_LIBS) -ldnnl $(CUDA_LIBS) -lm -lpthread

FOLDERS = util ranks cpu cuda model checkpoint data eval distill train
SOURCES = ops.c $(filter-out $(CUDA_LEFT_OUT),$(wildcard $(FOLDERS:%=%/*.c)))
OBJECTS = $(SOURCES:%.c=$(BUILD)/obj/%.o) $(CUDA_OBJECTS)
# Those of cuda/ run on the emulated GPU: tests/emu/emu.mk.
C_TESTS = $(patsubst %.c,$(BUILD)/%,$(filter-out tests/test_cuda_% tests/test_emu_%,$(wildcard $(T:%=tests/%.c))))
PY_TESTS = $(wildcard $(T:%=tests/%.py))

# ThreadSanitizer knows pthreads. What OpenMP's threads do to one another it is told by archer, which is part of clang's OpenMP (for
# gcc's there is none); where that is not, only the loader's and the watch's threads are looked at.
ARCHER := $(wildcard $(dir $(realpath $(shell command -v clang)))../lib/libarcher.so)
THREADED_TESTS = loader ranks $(if $(ARCHER),adamw cross_entropy embedding gemm reduce rmsnorm swiglu tensors)
THREADED_PROGRAMS = $(patsubst $(BUILD)/%,build/tsan/%,$(filter $(THREADED_TESTS:%=\%/test_%),$(C_TESTS)))
THREADED = BUILD=build/tsan OPT="-O1 -fsanitize=thread $(if $(ARCHER),-Wno-pass-failed" CC=clang,") T="$(notdir $(THREADED_PROGRAMS))"
SANITIZED = BUILD=build/asan OPT="-O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
# Of these folders, because clang calls it an error that under its sanitizers the loops of cpu/ are not vectorised.
FUZZED = BUILD=$(BUILD)/fuzz CC=clang FOLDERS="util ranks cuda model checkpoint data train" OPT="-O1 -fno-omit-frame-pointer \
         -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all"
SECONDS_EACH ?= 20
Q = $(if $(V),,@) # V=1 shows the commands
SUBMAKE = $(MAKE) --no-print-directory -j$(JOBS)
SANITIZED_TESTS = $(C_TESTS:$(BUILD)/%=build/asan/%) $(THREADED_PROGRAMS)
PYTHON = build/venv/bin/python

all: # the default, before those of the included files

include scripts/cuda.mk

all: $(BUILD)/mobilellm ## build build/mobilellm (the default); ARCH=x86-64-v3 for other machines than this one

$(BUILD)/mobilellm: $(BUILD)/obj/mobilellm.o $(BUILD)/libmobilellm.a
	@echo "link $@"
	$(Q)$(CC) $(FLAGS) -o $@ $^ $(LIBS)

$(BUILD)/libmobilellm.a: $(OBJECTS)
	$(Q)rm -f $@ && ar qcs $@ $^

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@echo "compile $@" && mkdir -p $(@D)
	$(Q)$(CC) $(FLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(BUILD)/libmobilellm.a
	@echo "link $@" && mkdir -p $(@D)
	$(Q)$(CC) $(FLAGS) -o $@ $^ -lcmocka $(LIBS)

# What test_faults makes fail: it stands between these functions and our code.
FAULTS = malloc calloc realloc aligned_alloc posix_memalign strdup strndup open_memstream pthread_create open fopen opendir mkdir \
         fstat mmap write ftruncate flock fsync rename symlink \
         $(addprefix dnnl_,engine_create stream_create primitive_attr_create post_ops_create primitive_create)
$(BUILD)/tests/test_faults: private LIBS += $(FAULTS:%=-Wl,--wrap=%)

$(BUILD)/fuzz_%: $(BUILD)/obj/tests/fuzz/fuzz_%.o $(BUILD)/libmobilellm.a
	@echo "link $@"
	$(Q)$(CC) $(FLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS)

# Two files that change only when what they hold does: other flags rebuild everything, another commit only what names the version.
$(BUILD)/flags: FORCE
	@scripts/setup.sh --check build "$(CC)"
	@mkdir -p $(@D) && echo '$(CC) $(FLAGS) $(LIBS)' | cmp -s - $@ || echo '$(CC) $(FLAGS) $(LIBS)' > $@

COMMIT := $(shell git describe --always --dirty 2>/dev/null)
VERSION_TEXT := $(VERSION)$(if $(COMMIT), ($(COMMIT)))
VERSIONED := $(shell grep -ls MOBILELLM_VERSION mobilellm.c $(SOURCES))
$(VERSIONED:%.c=$(BUILD)/obj/%.o): private FLAGS += -DMOBILELLM_VERSION='"$(VERSION_TEXT)"'
$(VERSIONED:%.c=$(BUILD)/obj/%.o): $(BUILD)/version
$(BUILD)/version: FORCE
	@mkdir -p $(@D) && echo '$(VERSION_TEXT)' | cmp -s - $@ || echo '$(VERSION_TEXT)' > $@

setup: ## install what building, testing and the demo need and this machine lacks (apt, and a Python venv in build/venv)
	@scripts/setup.sh build test

# A make of its own after setup, because this one asked pkg-config before the libraries were there. The tests in Python run the
# program and C tests other than their namesake (under mpirun, killed, with no disk left), so they need all of them.
test: setup ## build and run all tests, then the C tests again under ASan, UBSan and TSan, and those of cuda/ on the emulated GPU; one: T=test_order
	@$(SUBMAKE) $(if $(PY_TESTS),all test-programs T='test_*',test-programs)
	@$(SUBMAKE) $(SANITIZED) test-programs
	@$(if $(THREADED_PROGRAMS),$(SUBMAKE) $(THREADED) test-programs)
	@$(if $(EMU_HEADERS),$(if $(EMU_TEST_NAMES)$(EMU_PY_TESTS),$(SUBMAKE) emu-all),echo "make test: no CUDA headers here, cuda/ is not tested (make setup-cuda)")
	@$(if $(EMU_HEADERS),$(EMU_FORGET))
	@OMP_TOOL_LIBRARIES=$(ARCHER) $(PYTHON) tests/run.py $(C_TESTS) $(PY_TESTS) $(SANITIZED_TESTS) $(if $(EMU_HEADERS),$(EMU_ALL_TESTS))

sanitize: setup ## only the sanitizers' part of `make test`: ASan and UBSan for all C tests, TSan for those with threads
	@$(SUBMAKE) $(SANITIZED) test-programs
	@$(if $(THREADED_PROGRAMS),$(SUBMAKE) $(THREADED) test-programs)
	@OMP_TOOL_LIBRARIES=$(ARCHER) $(PYTHON) tests/run.py $(SANITIZED_TESTS)

test-programs: $(C_TESTS)

$(BUILD)/bench/ops: $(BUILD)/obj/scripts/bench/ops.o $(BUILD)/libmobilellm.a
	@echo "link $@" && mkdir -p $(@D)
	$(Q)$(CC) $(FLAGS) -o $@ $^ $(LIBS)

fuzz: ## run the fuzz targets of tests/fuzz, SECONDS_EACH=20; needs clang
	@scripts/setup.sh build fuzz
	@$(SUBMAKE) fuzz-programs
	@python3 tests/fuzz/run.py $(BUILD)/fuzz $(SECONDS_EACH)

fuzz-programs:
	@$(SUBMAKE) $(FUZZED) fuzz-targets

fuzz-targets: $(patsubst tests/fuzz/%.c,$(BUILD)/%,$(wildcard tests/fuzz/*.c))

bundle: setup ## one archive with all that a cluster's node needs (not CUDA's libraries): build/mobilellm.tar.xz
	@$(SUBMAKE) BUILD=build/portable ARCH=x86-64-v3 $(BUNDLED:%=build/portable/%)
	@scripts/bundle.sh build/mobilellm.tar.xz build/portable $(BUNDLED)

demo: ## the whole pipeline on a small model and real text, in minutes on two cores
	@scripts/setup.sh build test demo
	@$(SUBMAKE) all
	@scripts/demo.sh

# The program with a loader that is slowed down.
$(BUILD)/bench/slow_loader: $(BUILD)/obj/mobilellm.o $(BUILD)/obj/scripts/bench/slow_loader.o $(BUILD)/libmobilellm.a
	@echo "link $@" && mkdir -p $(@D)
	$(Q)$(CC) $(FLAGS) -Wl,--wrap=sample_order_next -o $@ $^ $(LIBS)

bench: setup ## speed and memory of whole training steps on this machine, as a table; TORCH=1: beside PyTorch's (GBs of download)
	@$(if $(TORCH),VENV=build/venv-torch scripts/setup.sh bench)
	@$(SUBMAKE) all $(BUILD)/bench/ops $(BUILD)/bench/slow_loader
	@$(PYTHON) scripts/bench/train.py --ops $(BUILD)/bench/ops
	@$(PYTHON) scripts/bench/whole.py --directory $(BUILD)

coverage: setup ## lines of C that the tests reach; of cuda/: make emu-coverage
	@scripts/setup.sh coverage
	@scripts/coverage.sh $(C_TESTS:$(BUILD)/%=%) $(filter-out $(EMU_PY_TESTS),$(PY_TESTS))

format: ## clang-format every C and CUDA file in place
	@scripts/setup.sh format
	@scripts/lint.sh format

lint: ## formatting, clang-tidy, cppcheck, shellcheck, that no folder includes from above itself, what nvcc made of cuda/, cuDNN's plans
	@scripts/setup.sh build format lint
	@$(if $(CUDA_COMPILER),$(SUBMAKE) -s $(filter %.cu.o,$(CUDA_OBJECTS)) $(CUDNN_PLANS))
	@CUDA_HEADERS="$(EMU_HEADERS:%/cuda_runtime.h=%)" CUDA_KERNELS="$(filter %.cu.o,$(CUDA_OBJECTS))" CUDNN_PLANS="$(CUDNN_PLANS)" scripts/lint.sh check $(FLAGS)

clean: ## remove what was built; Python environments stay, for they come from the network
	@if [ -d build ]; then find build -mindepth 1 -maxdepth 1 ! -name 'venv*' -exec rm -rf {} +; fi

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(filter-out %.d,$(MAKEFILE_LIST))

include tests/emu/emu.mk
include scripts/gpu.mk

FORCE:
.PHONY: all setup bundle test sanitize test-programs fuzz fuzz-programs fuzz-targets demo bench coverage format lint clean help FORCE
.SECONDARY:
-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
