# emu.mk: the CUDA backend on the CPU, for machines without a GPU; emu.h tells how it works. Included by the Makefile.
#
# `make emu` builds one flavour, EMU=fast unless another is named; `make emu-test` builds and tests all. T= chooses tests, as in
# the Makefile. A flavour compiles cuda/, its tests and the emulation with other flags, and runs in another order unless the
# environment says which; the rest of the program is as in the product.
#   fast   build/emu        as fast as can be, several OS threads: for tests that run the program
#   asan   build/emu-asan   AddressSanitizer and UBSan: bounds, alignment. Random order, streams late
#   tsan   build/emu-tsan   ThreadSanitizer (needs clang): races within and between blocks, in shared and global memory. Likewise
#   cov    build/emu-cov    counts the lines of cuda/ that tests reach: `make emu-coverage`. The C tests run here instead of in fast
# In each: mobilellm, tests/test_cuda_*, tests/test_emu_*, faults. In build/emu/lib the stand-ins for NVIDIA's libraries.

EMU ?= fast
EMU_DIR = $(BUILD)/emu$(if $(filter-out fast,$(EMU)),-$(EMU))
# A toolkit, or the few packages with its headers that `make setup-cuda` fetches.
CUDA ?= $(firstword $(CUDA_HOME) $(patsubst %/include/cuda_runtime.h,%,$(wildcard /usr/local/cuda/include/cuda_runtime.h)) $(BUILD)/cuda)

EMU_CC = $(CC)
EMU_CXX = $(if $(filter default,$(origin CXX)),g++,$(CXX))
EMU_OPT = -O3 -march=$(ARCH)
EMU_RUNTIME_OPT = $(EMU_OPT)
EMU_LATE = -DCUEMU_ORDER_IS='"rand"' -DCUEMU_STREAMS_IS='"lazy"'
ifeq ($(EMU),asan)
EMU_OPT = -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -DCUEMU_CHECKED
EMU_RUNTIME_OPT = -O2 -DCUEMU_CHECKED -DCUEMU_ASAN $(EMU_LATE)
else ifeq ($(EMU),tsan)
EMU_CC = clang
EMU_CXX = clang++
# It remembers too few threads to see races between blocks of more than 120.
EMU_OPT = -O1 -fno-omit-frame-pointer -fsanitize=thread -DCUEMU_CHECKED -DCUEMU_SECTION -DBLOCK_LIMIT=64
EMU_RUNTIME_OPT = -O2 -DCUEMU_CHECKED -DCUEMU_SECTION -DCUEMU_TSAN $(EMU_LATE)
else ifeq ($(EMU),cov)
# Threads may lose a count between them, but not all.
EMU_CC = gcc
EMU_CXX = g++
EMU_OPT = -O1 --coverage
EMU_RUNTIME_OPT = -O2
endif

EMU_FLAGS = -g -fopenmp -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -DCUEMU -DCUDA_OVERLAP_TOKENS=1 $(CPPFLAGS) -I. -isystem $(CUDA)/include
EMU_CFLAGS = -std=c11 -D_GNU_SOURCE $(EMU_OPT) $(EMU_FLAGS) $(PKG_CFLAGS)
# CUDA's sources look at memory through pointers of other types. #pragma unroll is not known here.
EMU_CXXFLAGS = -std=gnu++17 -fno-strict-aliasing $(EMU_FLAGS) -Wno-unknown-pragmas
EMU_KERNEL = $(EMU_CXX) $(EMU_OPT) $(EMU_CXXFLAGS) -Itests/emu/include -include tests/emu/emu.h -x c++
# The stand-ins are found before any library of their name, because the loader asks a DT_RPATH even before LD_LIBRARY_PATH, and
# call back into the program.
EMU_LINK = $(EMU_CXX) $(EMU_OPT) -fopenmp -rdynamic -Wl,--disable-new-dtags,-rpath,$(abspath $(BUILD)/emu/lib)

# Without the real runtime, which would step in for a function that tests/emu lacks.
EMU_LIBS = $(filter-out $(CUDA_LIBS),$(LIBS)) -ldl -lm -lpthread

# cuDNN is not emulated: an empty library of its name hides one that may be installed. Names as cuda/libraries.c looks for them.
EMU_MAJOR = $(shell awk '/define CUDART_VERSION/ { print int($$3 / 1000) }' $(CUDA)/include/cuda_runtime_api.h 2>/dev/null)
EMU_LIBRARIES = $(addprefix $(BUILD)/emu/lib/,libcublasLt.so.$(EMU_MAJOR) libnccl.so.2 libcudnn.so.9)

EMU_CUDA = $(wildcard cuda/*.cu) $(filter-out cuda/none.c,$(wildcard cuda/*.c))
EMU_RUNTIME = $(addprefix $(EMU_DIR)/obj/tests/emu/,$(addsuffix .cpp.o,config fiber schedule block warp grid memory stream device))
EMU_OBJECTS = $(EMU_CUDA:%=$(EMU_DIR)/obj/%.o) $(EMU_RUNTIME) $(BUILD)/emu/librest.a
EMU_TEST_NAMES = $(basename $(notdir $(filter tests/test_cuda_% tests/test_emu_%,$(wildcard $(T:%=tests/%.c)))))
EMU_PY_TESTS = $(filter tests/test_cuda_% tests/test_emu%,$(wildcard $(T:%=tests/%.py)))
EMU_HEADERS := $(wildcard $(CUDA)/include/cuda_runtime.h)
EMU_TESTED = cov asan $(if $(shell command -v clang++),tsan)
# Of some tests alone the lines that they reach say nothing.
EMU_ALL_TESTS = $(foreach each,$(EMU_TESTED),$(EMU_TEST_NAMES:%=$(BUILD)/emu-$(each)/tests/%)) $(if $(filter test_*,$(T)),tests/emu/coverage.py)

emu: emu-program $(EMU_TEST_NAMES:%=$(EMU_DIR)/tests/%) ## the CUDA backend on the CPU: build/emu/mobilellm and its tests; EMU=asan, EMU=tsan

emu-program: $(EMU_DIR)/faults $(EMU_DIR)/mobilellm

emu-all:
	@$(MAKE) --no-print-directory emu-program
	@$(foreach each,$(EMU_TESTED),$(MAKE) --no-print-directory EMU=$(each) emu &&) true

emu-test: emu-all ## the tests of cuda/ on the emulated GPU, also under ASan and TSan
	@$(EMU_FORGET)
	@$(PYTHON) tests/run.py $(EMU_PY_TESTS) $(EMU_ALL_TESTS)

emu-coverage: ## lines of cuda/ that its C tests reach on the emulated GPU; fails if one of a .cu file is not
	@$(MAKE) --no-print-directory EMU=cov emu
	@$(EMU_FORGET)
	@$(PYTHON) tests/run.py $(EMU_TEST_NAMES:%=$(BUILD)/emu-cov/tests/%) tests/emu/coverage.py

# Counts of an earlier run would be added to.
EMU_FORGET = find $(BUILD)/emu-cov -name '*.gcda' -delete

$(EMU_DIR)/mobilellm: $(BUILD)/obj/mobilellm.o $(EMU_OBJECTS) | $(EMU_LIBRARIES)
	@echo "link $@"
	$(Q)$(EMU_LINK) -o $@ $^ $(EMU_LIBS)

$(EMU_DIR)/tests/%: $(EMU_DIR)/obj/tests/%.c.o $(EMU_OBJECTS) | $(EMU_LIBRARIES)
	@echo "link $@" && mkdir -p $(@D)
	$(Q)$(EMU_LINK) -o $@ $^ -lcmocka $(EMU_LIBS)

$(EMU_DIR)/faults: $(EMU_DIR)/obj/tests/emu/faults.cu.o $(EMU_RUNTIME)
	@echo "link $@"
	$(Q)$(EMU_LINK) -o $@ $^

# Without cuda/, so that nothing waits for nvcc.
$(BUILD)/emu/librest.a: $(filter-out $(BUILD)/obj/cuda/%,$(OBJECTS))
	$(Q)mkdir -p $(@D) && rm -f $@ && ar qcs $@ $^

$(BUILD)/emu/lib/libcublasLt.so.$(EMU_MAJOR): tests/emu/cublaslt.c
$(BUILD)/emu/lib/libnccl.so.2: tests/emu/nccl.c
$(BUILD)/emu/lib/%: tests/emu/emu_host.h cuda/library_api.h
	@echo "link $@" && mkdir -p $(@D)
	$(Q)$(CC) -std=c11 -D_GNU_SOURCE -O3 -march=$(ARCH) $(EMU_FLAGS) $(PKG_CFLAGS) -shared -fPIC -o $@ $(filter %.c,$^) -x c /dev/null $(EMU_LIBS)

$(EMU_DIR)/obj/%.c.o: %.c $(EMU_DIR)/flags
	@echo "compile $@" && mkdir -p $(@D)
	$(Q)$(EMU_CC) $(EMU_CFLAGS) -MMD -MP -c -o $@ $<

$(EMU_DIR)/obj/%.cu.o: %.cu $(EMU_DIR)/flags
	@echo "compile $@" && mkdir -p $(@D)
	$(Q)$(EMU_KERNEL) -MMD -MP -c -o $@ $<

$(EMU_DIR)/obj/tests/emu/%.cpp.o: tests/emu/%.cpp $(EMU_DIR)/flags
	@echo "compile $@" && mkdir -p $(@D)
	$(Q)$(EMU_CXX) $(EMU_RUNTIME_OPT) $(EMU_CXXFLAGS) -MMD -MP -c -o $@ $<

$(EMU_DIR)/flags: FORCE
	@mkdir -p $(@D) && echo '$(EMU_KERNEL) $(EMU_RUNTIME_OPT) $(EMU_LINK) $(EMU_CFLAGS)' | cmp -s - $@ || echo '$(EMU_KERNEL) $(EMU_RUNTIME_OPT) $(EMU_LINK) $(EMU_CFLAGS)' > $@

.PHONY: emu emu-program emu-all emu-test emu-coverage
-include $(shell find $(EMU_DIR)/obj -name '*.d' 2>/dev/null)
