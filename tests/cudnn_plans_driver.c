/* cudnn_plans_driver.c: a libcuda.so.1 for machines without a GPU, with which cuDNN plans (tests/cudnn_plans.c) and nothing runs.
 *
 * The functions by which cuDNN takes in a kernel it has compiled succeed and hand out handles that nobody looks into; there is no
 * device. The functions at the end are those that cuDNN 9.19 looks for and does not need while it plans. */
#include <stddef.h>

enum { SUCCESS = 0, NO_DEVICE = 100, NOT_SUPPORTED = 801 };

static int hand_out(void **handle) {
    static char thing;
    *handle = &thing;
    return SUCCESS;
}

int cuInit(unsigned flags) { return (void)flags, NO_DEVICE; }
int cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
int cuGetErrorString(int code, const char **text) { return (void)code, *text = "a driver for planning only", SUCCESS; }
int cuGetErrorName(int code, const char **text) { return (void)code, *text = "PLANNING_ONLY", SUCCESS; }

int cuLibraryLoadData(void **library) { return hand_out(library); }
int cuLibraryUnload(void *library) { return (void)library, SUCCESS; }
int cuLibraryGetKernel(void **kernel) { return hand_out(kernel); }
int cuModuleLoadData(void **module) { return hand_out(module); }
int cuModuleGetFunction(void **function) { return hand_out(function); }
int cuKernelGetFunction(void **function) { return hand_out(function); }
int cuKernelGetAttribute(int *value) { return *value = 0, SUCCESS; }
int cuFuncGetAttribute(int *value) { return *value = 0, SUCCESS; }
int cuKernelSetAttribute(void) { return SUCCESS; }
int cuFuncSetAttribute(void) { return SUCCESS; }

#define ABSENT(name) \
    int name(void) { return NOT_SUPPORTED; }
ABSENT(cuCtxGetCurrent)
ABSENT(cuCtxGetLimit)
ABSENT(cuCtxPopCurrent)
ABSENT(cuCtxPushCurrent)
ABSENT(cuDeviceGet)
ABSENT(cuDeviceGetCount)
ABSENT(cuLaunchCooperativeKernel)
ABSENT(cuLaunchKernel)
ABSENT(cuLaunchKernelEx)
ABSENT(cuLibraryLoadFromFile)
ABSENT(cuLinkAddData)
ABSENT(cuLinkComplete)
ABSENT(cuLinkCreate)
ABSENT(cuLinkDestroy)
ABSENT(cuOccupancyMaxPotentialClusterSize)
ABSENT(cuStreamGetCtx)
