/* arena.c: a stack of allocations with a high-water mark and a table of who asked. */
#include "util/arena.h"

#include <assert.h>
#include <string.h>

arena arena_dry(void) { return (arena){0}; }

arena arena_on(void *base, size_t size) { return (arena){.base = base, .size = size}; }

static void count_part(arena *a, const char *part, size_t bytes) {
    for (int i = 0; i < a->n_parts; i++)
        if (strcmp(a->parts[i].name, part) == 0) {
            a->parts[i].bytes += bytes;
            return;
        }
    assert(a->n_parts < ARENA_MAX_PARTS);
    a->parts[a->n_parts++] = (struct arena_part){part, bytes};
}

void *arena_alloc(arena *a, const char *part, size_t bytes) {
    if (bytes == 0) return NULL;
    size_t rounded = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    size_t at = a->used;
    a->used += rounded;
    if (a->used > a->peak) a->peak = a->used;
    count_part(a, part, rounded);
    if (a->base == NULL) return NULL;
    assert(a->used <= a->size);
    return a->base + at;
}

size_t arena_mark(const arena *a) { return a->used; }

void arena_release(arena *a, size_t mark) {
    assert(mark <= a->used);
    a->used = mark;
}
