/* shim_nan.c: makes one number of a running rank NaN, as failing hardware might: preloaded by tests/torture.py.
 *
 * The number is a logarithm, of which attention takes one for each head and token. It gives its next one wrong after a file
 * appears whose name is that in NAN_WHEN, a dot, and the rank; the file is removed with it. */
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

float logf(float x) {
    char path[4096];
    const char *when = getenv("NAN_WHEN"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    snprintf(path, sizeof path, "%s.%s", when ? when : "", rank ? rank : "0");
    if (when && unlink(path) == 0) return NAN;
    float (*real)(float) = (float (*)(float))dlsym(RTLD_NEXT, "logf");
    return real(x);
}
