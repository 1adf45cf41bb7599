# gpu.mk: what is to be run on a machine with a GPU. Included by the Makefile, after tests/emu/emu.mk.
#
# Building and running are apart, because the machine that has the GPU may have neither compiler nor network: make gpu-programs
# elsewhere (ARCH=x86-64-v3 BUILD=build/portable), copy the tree with that folder, and name it there: BINARIES=build/portable. It
# holds mobilellm, tests/test_cuda_*, bench/gpu_kernels, and in lib/, if there is one, the libraries that the machine lacks.
# The bin folder of an unpacked bundle is such a folder too.

GPU_TESTS = $(patsubst %.c,$(BUILD)/%,$(wildcard tests/test_cuda_*.c))
GPU_PROGRAMS = $(BUILD)/mobilellm $(BUILD)/bench/gpu_kernels
BUNDLED = $(if $(CUDA_COMPILER),$(patsubst $(BUILD)/%,%,$(GPU_PROGRAMS) $(GPU_TESTS)),mobilellm)
BINARIES ?=
GPU_FROM = $(or $(BINARIES),$(BUILD))
# Builds, where nothing built is named. The GPU is looked for before, because building takes minutes.
GPU_BUILD = scripts/gpu_check.sh --look $(GPU_FROM) && \
            $(if $(BINARIES),true,$(if $(CUDA_COMPILER),$(SUBMAKE) $(1),{ echo "no CUDA compiler here: make setup-cuda, or name what was built elsewhere by BINARIES="; false; }))

gpu-programs: $(GPU_PROGRAMS) $(GPU_TESTS) ## build what the three below run; they do it themselves where BINARIES= names no folder

gpu-check: ## the first thing to run on a machine with GPUs: driver, libraries, speeds, links, a few steps; two minutes
	@$(call GPU_BUILD,$(GPU_PROGRAMS))
	@scripts/gpu_check.sh $(GPU_FROM)

test-gpu: ## the tests of cuda/ on this machine's GPUs, and under compute-sanitizer; eight minutes
	@$(call GPU_BUILD,gpu-programs)
	@scripts/test_gpu.sh $(GPU_FROM)

bench-gpu: ## speed and memory of whole steps and of each kernel on GPU 0, beside PyTorch where there is one: docs/results-gpu.md
	@$(call GPU_BUILD,$(GPU_PROGRAMS))
	@python3 scripts/bench/gpu.py --binaries $(GPU_FROM)

$(BUILD)/bench/gpu_kernels: $(BUILD)/obj/scripts/bench/gpu_kernels.o $(BUILD)/libmobilellm.a
	@echo "link $@" && mkdir -p $(@D)
	$(Q)$(CC) $(FLAGS) -o $@ $^ $(LIBS)

# The same for the emulated GPU, where these scripts are tested.
emu-program: $(if $(filter fast,$(EMU)),$(EMU_DIR)/bench/gpu_kernels)

$(EMU_DIR)/bench/gpu_kernels: $(EMU_DIR)/obj/scripts/bench/gpu_kernels.c.o $(EMU_OBJECTS) | $(EMU_LIBRARIES)
	@echo "link $@" && mkdir -p $(@D)
	$(Q)$(EMU_LINK) -o $@ $^ $(EMU_LIBS)

# What stands there for Nsight Systems.
emu: $(if $(wildcard $(CUDA)/include/nvtx3/nvToolsExt.h),$(BUILD)/emu/lib/libnvtx_recorder.so)
$(BUILD)/emu/lib/libnvtx_recorder.so: tests/emu/nvtx_recorder.c

.PHONY: gpu-programs gpu-check test-gpu bench-gpu
