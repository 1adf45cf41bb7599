/* arena.h: all memory of a run is carved from a few blocks before step 0, and planned by a dry run.
 *
 * The code that allocates is run twice: once on an arena without memory, whose high-water mark is then the size to ask for
 * (and what `mobilellm plan` prints), and once on the real block. In the dry run the addresses are null: nobody may look. */
#ifndef MOBILELLM_UTIL_ARENA_H
#define MOBILELLM_UTIL_ARENA_H

#include <stddef.h>

enum { ARENA_ALIGN = 256, ARENA_MAX_PARTS = 24 }; /* 256 bytes: what cudaMalloc aligns to, and four cache lines */

typedef struct arena {
    char *base;  /* NULL in a dry run */
    size_t size; /* bytes at base; ignored in a dry run */
    size_t used; /* bytes handed out and not taken back */
    size_t peak; /* the largest `used` so far */
    int n_parts; /* one line of the memory table each */
    struct arena_part {
        const char *name;
        size_t bytes;
    } parts[ARENA_MAX_PARTS];
} arena;

arena arena_dry(void);
arena arena_on(void *base, size_t size); /* base: aligned to ARENA_ALIGN */

/* `bytes` of memory aligned to ARENA_ALIGN, not cleared, counted under `part` (a string literal). Asserts that it fits: a real
 * arena has the size that its dry run asked for. Zero bytes give NULL, so that a tensor that does not exist has no address. */
void *arena_alloc(arena *a, const char *part, size_t bytes);

/* Temporaries: what is allocated between mark and release shares its memory with what comes after the release. */
size_t arena_mark(const arena *a);
void arena_release(arena *a, size_t mark);

#endif
