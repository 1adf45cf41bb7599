/* number.h: decimal numbers in text, strictly: the whole string is one number, or it is refused.
 *
 * The form is [+-] digits [. digits] [e [+-] digits], with digits on at least one side of the point. No spaces, underscores,
 * hexadecimal, inf or nan. */
#ifndef MOBILELLM_UTIL_NUMBER_H
#define MOBILELLM_UTIL_NUMBER_H

#include <stdbool.h>
#include <stdint.h>

/* Has the text the form above? */
bool number_is_decimal(const char *text);

/* A whole number that fits in 64 bits, however it is written: 42, 2.6e9, 100e-2. Exact; false if the text is anything else. */
bool number_read_int64(int64_t *out, const char *text);

/* The nearest double; false if the text has another form, or is too large or (not being zero) too small for any double. */
bool number_read_double(double *out, const char *text);

/* The shortest text that reads back to the same bits, 0.1 and not 0.10000000000000001. YAML readers of other languages take it
 * for a number as well (1.0e-05, never 1e-05). The value is finite. */
enum { NUMBER_TEXT = 32 };
void number_print_double(char out[NUMBER_TEXT], double value);

#endif
