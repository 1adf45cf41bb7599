/* analyzer.h: put before every file by lint.sh. clang-tidy sees one file at a time, and not that error_set always returns -1;
 * without that it follows every failed allocation to a null pointer that the program never reaches. */
#include "util/error.h"
#define error_set(...) ((error_set)(__VA_ARGS__), -1)
#define error_prefix(...) ((error_prefix)(__VA_ARGS__), -1)
