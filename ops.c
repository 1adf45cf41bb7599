/* ops.c: the backends by name. */
#include "ops.h"

#include <string.h>

int ops_named(const ops **op, const char *device, error *err) {
    if (strcmp(device, "cpu") == 0)
        *op = cpu_ops();
    else if (strcmp(device, "cuda") == 0)
        *op = cuda_ops();
    else if (strcmp(device, "auto") == 0)
        *op = cuda_available() ? cuda_ops() : cpu_ops();
    else
        return error_set(err, STATUS_USAGE, "device: found \"%s\", expected auto, cpu or cuda.", device);
    return 0;
}
