/* error.c: filling and prefixing error values. */
#include "util/error.h"

#include <stdio.h>
#include <string.h>

int error_set(error *err, status code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    err->code = code;
    vsnprintf(err->text, sizeof err->text, format, args);
    va_end(args);
    return -1;
}

int error_prefix(error *err, const char *format, ...) {
    char text[2 * sizeof err->text];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof err->text, format, args);
    va_end(args);
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, ": %s", err->text);
    memcpy(err->text, text, sizeof err->text - 1);
    return -1;
}
