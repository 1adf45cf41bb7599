/* system.h: what the machine says: time, memory, processors. Linux. */
#ifndef MOBILELLM_UTIL_SYSTEM_H
#define MOBILELLM_UTIL_SYSTEM_H

#include <stddef.h>

/* Seconds on a clock that never jumps. */
double seconds_now(void);

/* Bytes that this process can still take before the machine, its control group or its address-space limit stops it. */
size_t system_memory_available(void);

/* Bytes resident in this process. */
size_t process_memory(void);

/* Processors that this process may run on, and those of the machine. */
int system_processors_allowed(void);
int system_processors(void);

/* "1.84 GiB", written into text and returned. */
const char *format_bytes(char text[16], double bytes);

/* "394.6 M": a count or rate with three to four digits and the unit's prefix, written into text and returned. */
const char *format_count(char text[16], double count);

#endif
