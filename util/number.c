/* number.c: strict reading of decimal numbers, and the shortest text of a double.
 *
 * Whole numbers are read digit by digit and not through a double, so that a 64-bit seed or a count above 2^53 stays exact. */
#include "util/number.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_digit(char c) { return c >= '0' && c <= '9'; }

static const char *skip_digits(const char *at) {
    while (is_digit(*at)) at++;
    return at;
}

static const char *skip_sign(const char *at) { return *at == '+' || *at == '-' ? at + 1 : at; }

bool number_is_decimal(const char *text) {
    const char *start = skip_sign(text), *at = skip_digits(start);
    int64_t digits = at - start;
    if (*at == '.') {
        const char *fraction = at + 1;
        at = skip_digits(fraction);
        digits += at - fraction;
    }
    if (digits == 0) return false;
    if (*at == 'e' || *at == 'E') {
        const char *exponent = skip_sign(at + 1);
        at = skip_digits(exponent);
        if (at == exponent) return false;
    }
    return *at == '\0';
}

/* The exponent of a decimal, 0 if it has none; beyond +-100000 it makes no difference to what fits. */
static int64_t exponent_of(const char *text) {
    const char *e = strpbrk(text, "eE");
    if (!e) return 0;
    long value = strtol(e + 1, NULL, 10); /* saturates */
    return value > 100000 ? 100000 : value < -100000 ? -100000 : value;
}

/* *value = 10 * *value + digit, growing downwards, because the negative numbers reach one further than the positive ones. */
static bool append_digit(int64_t *value, int digit) {
    return !__builtin_mul_overflow(*value, 10, value) && !__builtin_sub_overflow(*value, digit, value);
}

bool number_read_int64(int64_t *out, const char *text) {
    if (!number_is_decimal(text)) return false;
    const char *point = strchr(text, '.');
    const char *at = skip_sign(text), *end = at + strcspn(at, "eE");
    int64_t scale = exponent_of(text) - (point ? end - point - 1 : 0); /* value = all digits * 10^scale */

    const char *last = end; /* zeros at the end of the digits belong to the scale: 100e-2 is whole */
    while (last > at && (last[-1] == '0' || last[-1] == '.')) {
        if (last[-1] == '0') scale++;
        last--;
    }
    int64_t value = 0;
    for (; at < last; at++)
        if (*at != '.' && !append_digit(&value, *at - '0')) return false;
    if (value != 0 && scale < 0) return false;
    for (; value != 0 && scale > 0; scale--)
        if (!append_digit(&value, 0)) return false;

    if (*text != '-' && __builtin_sub_overflow(0, value, &value)) return false;
    *out = value;
    return true;
}

bool number_read_double(double *out, const char *text) {
    if (!number_is_decimal(text)) return false;
    double value = strtod(text, NULL);
    bool is_zero = strcspn(text, "123456789") >= strcspn(text, "eE");
    if (!isfinite(value) || (value == 0 && !is_zero)) return false;
    *out = value;
    return true;
}

void number_print_double(char out[NUMBER_TEXT], double value) {
    assert(isfinite(value));
    if (value == floor(value) && fabs(value) < 1e15) {
        snprintf(out, NUMBER_TEXT, "%.0f", value);
        return;
    }
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(out, NUMBER_TEXT, "%.*g", digits, value);
        if (strtod(out, NULL) == value) break;
    }
    char *e = strchr(out, 'e');
    if (!e || strchr(out, '.')) return;
    memmove(e + 2, e, strlen(e) + 1);
    memcpy(e, ".0", 2);
}
