# cuda.mk: how cuda/ is compiled, and whether. Included by the Makefile.
#
# With a CUDA compiler the kernels are compiled for the A100 (sm_80), the H100 and H200 (sm_90a), and as PTX, which drivers compile
# for GPUs that come later. The runtime is linked statically and no other library of CUDA's at all (cuda/libraries.h), so the
# program also starts where there is no GPU, no driver and no toolkit. Without a compiler cuda/none.c stands for the whole folder.
#
# The compiler: NVCC, or of CUDA_HOME, PATH, /usr/local/cuda, or what `make setup-cuda` has put into build/cuda. NVCC= builds
# without CUDA. CUDA is the toolkit's root; where there is no compiler, that of the headers alone.

ifeq ($(origin NVCC),undefined)
NVCC := $(firstword $(wildcard $(CUDA_HOME:%=%/bin/nvcc)) $(shell nvcc --version >/dev/null 2>&1 && command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc build/cuda/bin/nvcc))
endif
# Of a compiler that is only a script elsewhere, the toolkit is where it looks itself.
CUDA := $(firstword $(if $(NVCC),$(realpath $(shell $(NVCC) --dryrun any.cu 2>&1 | sed -n 's/^\#\$$ TOP=//p'))) $(CUDA_HOME) $(patsubst %/include/cuda_runtime.h,%,$(wildcard /usr/local/cuda/include/cuda_runtime.h build/cuda/include/cuda_runtime.h)))

# The sanitizers and the coverage of the host program would gain nothing: tests/emu has flavours of its own for cuda/.
ifeq ($(findstring -fsanitize,$(OPT))$(findstring --coverage,$(OPT)),)
CUDA_COMPILER := $(and $(filter cuda,$(FOLDERS)),$(shell command -v g++),$(NVCC))
endif
ifeq ($(and $(NVCC),$(if $(shell command -v g++),,missing),$(filter 0,$(MAKELEVEL))),0)
$(info CUDA is left out: $(NVCC) is here, but no g++, which it needs (apt install g++))
endif
CUDA_ARCHITECTURES ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_90,code=compute_90
NVCC_FLAGS = -std=c++17 -O3 --threads 3 $(CUDA_ARCHITECTURES) -lineinfo -Werror all-warnings -Xcompiler -Wall,-Wextra -I. $(NVCCFLAGS)
CUDA_CFLAGS = $(CUDA:%=-isystem %/include)

ifneq ($(CUDA_COMPILER),)
CUDA_LEFT_OUT = cuda/none.c
CUDA_OBJECTS = $(patsubst %.cu,$(BUILD)/obj/%.cu.o,$(wildcard cuda/*.cu))
CUDA_LIBS = -L$(CUDA)/lib64 -L$(CUDA)/lib -lcudart_static -ldl -lrt -lpthread -Wl,--push-state,--as-needed -lstdc++ -Wl,--pop-state
# cuDNN's attention where its headers are, and its frontend's, which come with make setup-cuda.
CUDNN_FRONTEND ?= $(wildcard build/cuda-frontend)
ifneq ($(and $(CUDNN_FRONTEND),$(wildcard $(CUDA)/include/cudnn.h),$(wildcard cuda/attention_cudnn.cpp)),)
CUDA_OBJECTS += $(BUILD)/obj/cuda/attention_cudnn.cpp.o
$(BUILD)/obj/cuda/attention.o: private FLAGS += -DMOBILELLM_CUDNN
endif
else
CUDA_LEFT_OUT = $(filter-out cuda/none.c cuda/plan.c,$(wildcard cuda/*.c))
endif

$(BUILD)/obj/cuda/attention.o: $(BUILD)/cuda-flags

$(BUILD)/obj/cuda/%.cu.o: cuda/%.cu $(BUILD)/cuda-flags
	@echo "compile $@" && mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

# -O1: it is templates without end, 20 s of them so and twice that at -O2, and runs once.
$(BUILD)/obj/cuda/attention_cudnn.cpp.o: cuda/attention_cudnn.cpp $(BUILD)/cuda-flags
	@echo "compile $@" && mkdir -p $(@D)
	$(Q)g++ -std=c++17 -O1 -g $(WARN) -I. $(CUDA_CFLAGS) -isystem $(CUDNN_FRONTEND)/include -DCUDNN_FRONTEND_SKIP_JSON_LIB -MMD -MP -c -o $@ $<

# Apart from the other flags, because the kernels take minutes: they are compiled again only for a reason of theirs.
CUDA_FLAGS_TEXT = $(CUDA_COMPILER) $(NVCC_FLAGS) $(CUDA_CFLAGS) $(CUDNN_FRONTEND)
$(BUILD)/cuda-flags: FORCE
	@mkdir -p $(@D) && echo '$(CUDA_FLAGS_TEXT)' | cmp -s - $@ || echo '$(CUDA_FLAGS_TEXT)' > $@

setup-cuda: ## the CUDA compiler and headers, into build/cuda, where the machine has none; no root and no GPU needed
	@scripts/setup_cuda.sh

# cuDNN plans for GPUs that are not here, with a driver that does nothing.
$(BUILD)/cudnn-plans/plans: $(BUILD)/obj/tests/cudnn_plans.o $(BUILD)/libmobilellm.a
	@echo "link $@" && mkdir -p $(@D)
	$(Q)$(CC) $(FLAGS) -o $@ $^ $(LIBS)

$(BUILD)/cudnn-plans/libcuda.so.1: tests/cudnn_plans_driver.c
	@echo "link $@" && mkdir -p $(@D)
	$(Q)$(CC) -std=c11 $(WARN) -shared -fPIC -o $@ $<

CUDNN_PLANS = $(if $(filter %/attention_cudnn.cpp.o,$(CUDA_OBJECTS)),$(addprefix $(BUILD)/cudnn-plans/,plans libcuda.so.1))
cudnn-plans: $(CUDNN_PLANS) ## asks cuDNN for a plan of every attention shape of configs/models, for GPUs that need not be here
	$(if $^,@LD_LIBRARY_PATH="$(BUILD)/cudnn-plans:$$LD_LIBRARY_PATH" $< configs/models/*.yaml,@echo "cudnn-plans: skipped: no cuDNN headers here (make setup-cuda)")

.PHONY: setup-cuda cudnn-plans
