# cuda.mk: how cuda/ is compiled, and whether. Included by the Makefile.
#
# With a CUDA compiler the kernels are compiled for the A100 (sm_80), the H100 and H200 (sm_90a), and as PTX, which drivers compile
# for GPUs that come later. The runtime is linked statically and no other library of CUDA's at all (cuda/libraries.h), so the
# program also starts where there is no GPU, no driver and no toolkit. Without a compiler cuda/none.c stands for the whole folder.
#
# The compiler: NVCC, or of CUDA_HOME, PATH, /usr/local/cuda, or what `make setup-cuda` has put into build/cuda. NVCC= builds
# without CUDA. CUDA_HOME also tells the headers where there is no compiler.

NVCC ?= $(firstword $(wildcard $(CUDA_HOME:%=%/bin/nvcc)) $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc build/cuda/bin/nvcc))
CUDA := $(firstword $(patsubst %/bin/nvcc,%,$(realpath $(NVCC))) $(CUDA_HOME) $(patsubst %/include/,%,$(dir $(wildcard /usr/local/cuda/include/cuda_runtime.h build/cuda/include/cuda_runtime.h))))

# The sanitizers and the coverage of the host program would gain nothing: tests/emu has flavours of its own for cuda/.
CUDA_COMPILER = $(if $(findstring -fsanitize,$(OPT))$(findstring --coverage,$(OPT)),,$(and $(filter cuda,$(FOLDERS)),$(NVCC)))
CUDA_ARCHITECTURES ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_90,code=compute_90
NVCC_FLAGS = -std=c++17 -O3 --threads 3 $(CUDA_ARCHITECTURES) -lineinfo -Werror all-warnings -Xcompiler -Wall,-Wextra -I. $(NVCCFLAGS)

CUDA_CFLAGS := $(CUDA:%=-isystem %/include)
ifneq ($(CUDA_COMPILER),)
CUDA_LEFT_OUT = cuda/none.c
CUDA_OBJECTS = $(patsubst %.cu,$(BUILD)/obj/%.cu.o,$(wildcard cuda/*.cu))
CUDA_LIBS = -L$(CUDA)/lib64 -L$(CUDA)/lib -lcudart_static -ldl -lrt -lpthread -Wl,--push-state,--as-needed -lstdc++ -Wl,--pop-state
# cuDNN's attention, where its headers are; the frontend's come with make setup-cuda.
CUDNN_FRONTEND ?= $(wildcard build/cuda-frontend)
ifneq ($(and $(CUDNN_FRONTEND),$(wildcard $(CUDA)/include/cudnn.h),$(wildcard cuda/attention_cudnn.cpp)),)
CUDA_OBJECTS += $(BUILD)/obj/cuda/attention_cudnn.cpp.o
$(BUILD)/obj/cuda/attention.o: private FLAGS += -DMOBILELLM_CUDNN
endif
else
CUDA_LEFT_OUT = $(filter-out cuda/none.c,$(wildcard cuda/*.c))
endif

$(BUILD)/obj/cuda/%.cu.o: cuda/%.cu $(BUILD)/cuda-flags
	@echo "compile $@" && mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

# Its templates take 20 s at -O1, and twice that at -O2, of code that runs once.
$(BUILD)/obj/cuda/attention_cudnn.cpp.o: cuda/attention_cudnn.cpp $(BUILD)/cuda-flags
	@echo "compile $@" && mkdir -p $(@D)
	$(Q)g++ -std=c++17 -O1 -g $(WARN) -I. $(CUDA_CFLAGS) -isystem $(CUDNN_FRONTEND)/include -DCUDNN_FRONTEND_SKIP_JSON_LIB -MMD -MP -c -o $@ $<

# Changes when the kernels must be compiled again, and only then: they take minutes.
$(BUILD)/cuda-flags: FORCE
	@mkdir -p $(@D) && echo '$(NVCC) $(NVCC_FLAGS) $(CUDNN_FRONTEND)' | cmp -s - $@ || echo '$(NVCC) $(NVCC_FLAGS) $(CUDNN_FRONTEND)' > $@

setup-cuda: ## the CUDA compiler and headers, from PyPI into build/cuda, where the machine has none; no root, no GPU
	@scripts/setup_cuda.sh

.PHONY: setup-cuda
