/* gemm_choices.c: the algorithms chosen for matrix products, in memory and in a small text file.
 *
 *   mobilellm gemm 1, NVIDIA H100 80GB HBM3, 132 SMs, cuBLASLt 130100
 *   tn bf16 bf16 1024 65536 4096 256 256 256 0000000000000023 ... 0000000000000000 8f2c01d7
 *
 * A line is the shape, the algorithm as the library wrote it (8 words) and the line's CRC-32C. The library promises to take its
 * words back only in the same version, and cannot say whether it would crash on others: hence the sum, and the version above. */
#include "cuda/gemm.h"

#include <ctype.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/crc32c.h"
#include "util/file.h"

enum { LINE = 512, LARGEST_FILE = 1 << 20, N_WORDS = 8, MAX_CHOICES = LARGEST_FILE / LINE };

bool gemm_same_shape(const gemm_shape *p, const gemm_shape *q) {
    return p->m == q->m && p->n == q->n && p->k == q->k && p->a_transposed == q->a_transposed &&
           p->b_transposed == q->b_transposed && p->x == q->x && p->out == q->out &&
           memcmp(p->alignment, q->alignment, sizeof p->alignment) == 0;
}

static void warn(const error *err) { ranks_warn(&(ranks){.size = 1}, err); }

/* ---- in memory ---- */

const gemm_choice *gemm_choices_find(const gemm_choices *c, const gemm_shape *shape) {
    for (int i = 0; i < c->n; i++)
        if (gemm_same_shape(&c->list[i].shape, shape)) return &c->list[i];
    return NULL;
}

/* In the place of the shape's choice so far. What does not fit is not kept: it is timed again in the next run. */
static void put(gemm_choices *c, const gemm_choice *choice) {
    gemm_choice *before = (gemm_choice *)gemm_choices_find(c, &choice->shape);
    if (before) {
        *before = *choice;
        return;
    }
    if (c->n == MAX_CHOICES) return;
    if (c->n == c->room) {
        int room = c->room ? 2 * c->room : 32;
        gemm_choice *list = realloc(c->list, (size_t)room * sizeof *list);
        if (list == NULL) return;
        c->list = list;
        c->room = room;
    }
    c->list[c->n++] = *choice;
}

void gemm_choices_close(gemm_choices *c) {
    free(c->list);
    *c = (gemm_choices){0};
}

/* ---- as text ---- */

static int print_choice(char line[LINE], const gemm_choice *choice) {
    const gemm_shape *s = &choice->shape;
    int used = snprintf(line, LINE, "%c%c %s %s %" PRId64 " %" PRId64 " %" PRId64 " %d %d %d", s->a_transposed ? 't' : 'n',
                        s->b_transposed ? 't' : 'n', dtype_name(s->x), dtype_name(s->out), s->m, s->n, s->k, s->alignment[0],
                        s->alignment[1], s->alignment[2]);
    for (int i = 0; i < N_WORDS; i++)
        used += snprintf(line + used, (size_t)(LINE - used), " %016" PRIx64, choice->algorithm.data[i]);
    used += snprintf(line + used, (size_t)(LINE - used), " %08" PRIx32 "\n", crc32c(line, (size_t)used));
    return used;
}

char *gemm_choices_print(const gemm_choices *c) {
    char *text = malloc(sizeof c->heading + 1 + (size_t)c->n * LINE);
    if (text == NULL) return NULL;
    int used = sprintf(text, "%s\n", c->heading);
    for (int i = 0; i < c->n; i++) used += print_choice(text + used, &c->list[i]);
    return text;
}

static int read_dtype(dtype *x, const char *name) {
    *x = strcmp(name, "bf16") == 0 ? DTYPE_BF16 : DTYPE_F32;
    return strcmp(name, dtype_name(*x)) ? -1 : 0;
}

/* The line is what print_choice makes of what is read from it, or it is damaged. */
static int read_choice(gemm_choice *choice, const char *line, size_t length) {
    char transposed[3], x[5], out[5], again[LINE];
    gemm_shape *s = &choice->shape;
    uint64_t *w = choice->algorithm.data;
    memset(choice, 0, sizeof *choice);
    int n = sscanf(line,
                   "%2s %4s %4s %" SCNd64 " %" SCNd64 " %" SCNd64 " %d %d %d %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64
                   " %" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64,
                   transposed, x, out, &s->m, &s->n, &s->k, &s->alignment[0], &s->alignment[1], &s->alignment[2], &w[0], &w[1],
                   &w[2], &w[3], &w[4], &w[5], &w[6], &w[7]);
    if (n != 9 + N_WORDS || read_dtype(&s->x, x) || read_dtype(&s->out, out)) return -1;
    s->a_transposed = transposed[0] == 't';
    s->b_transposed = transposed[1] == 't';
    int expected = print_choice(again, choice);
    return (size_t)expected == length && memcmp(line, again, length) == 0 ? 0 : -1;
}

int gemm_choices_read(gemm_choices *c, const char *text) {
    size_t heading = strlen(c->heading);
    c->n = 0;
    if (strncmp(text, c->heading, heading) != 0 || text[heading] != '\n') return -1;
    for (const char *line = text + heading + 1; *line;) {
        gemm_choice choice;
        size_t length = strcspn(line, "\n") + 1;
        if (line[length - 1] == '\0' || read_choice(&choice, line, length)) {
            c->n = 0;
            return -1;
        }
        put(c, &choice);
        line += length;
    }
    return 0;
}

/* ---- the file ---- */

/* "": neither XDG_CACHE_HOME nor HOME is set. */
static void cache_folder(char *path, size_t size) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    path[0] = '\0';
    if (cache && *cache == '/')
        snprintf(path, size, "%s/mobilellm", cache);
    else if (home && *home)
        snprintf(path, size, "%s/.cache/mobilellm", home);
}

static void find_path(gemm_choices *c, const char *gpu, size_t version) {
    char name[64];
    snprintf(name, sizeof name, "%s", gpu);
    for (char *p = name; *p; p++)
        if (!isalnum((unsigned char)*p)) *p = '-';
    cache_folder(c->path, sizeof c->path - 128);
    size_t used = strlen(c->path);
    if (used) snprintf(c->path + used, sizeof c->path - used, "/gemm-%s-%zu.txt", name, version);
}

/* The text of the file, allocated; NULL: there is none that can be read. */
static char *read_file(const char *path) {
    FILE *file = fopen(path, "r");
    if (file == NULL) return NULL;
    char *text = malloc(LARGEST_FILE + 1);
    if (text) text[fread(text, 1, LARGEST_FILE, file)] = '\0';
    fclose(file);
    return text;
}

void gemm_choices_open(gemm_choices *c, const char *gpu, int n_sm, size_t version) {
    snprintf(c->heading, sizeof c->heading, "mobilellm gemm 1, %s, %d SMs, cuBLASLt %zu", gpu, n_sm, version);
    find_path(c, gpu, version);
    char *text = read_file(c->path);
    if (text && gemm_choices_read(c, text)) {
        error err;
        error_set(&err, STATUS_INPUT, "%s is damaged and not used: matrix products are timed again, and the file is replaced.",
                  c->path);
        warn(&err);
    }
    free(text);
}

static int write_file(const gemm_choices *c, error *err) {
    char folder[sizeof c->path], *text = gemm_choices_print(c);
    if (text == NULL) return error_set(err, STATUS_RESOURCE, "%s: no memory to write it.", c->path);
    snprintf(folder, sizeof folder, "%s", c->path);
    *strrchr(folder, '/') = '\0';
    int failed = file_make_directories(folder, err);
    if (!failed) failed = file_replace(c->path, text, strlen(text), err);
    free(text);
    return failed;
}

void gemm_choices_add(gemm_choices *c, const gemm_choice *choice) {
    put(c, choice);
    c->unsaved = true;
}

void gemm_choices_save(gemm_choices *c) {
    error err;
    if (!c->unsaved || *c->path == '\0') return;
    c->unsaved = false;
    if (write_file(c, &err) == 0) return;
    c->path[0] = '\0';
    size_t used = strlen(err.text);
    snprintf(err.text + used, sizeof err.text - used,
             "\nThe algorithms chosen for matrix products are not kept: the next run times them again.");
    warn(&err);
}

int gemm_choices_share(gemm_choices *c, const ranks *world, error *err) {
    bool first = world->rank == 0;
    if (first) gemm_choices_save(c);
    if (world->size == 1) return 0;
    char *text = first ? gemm_choices_print(c) : NULL;
    int64_t bytes = text ? (int64_t)strlen(text) + 1 : 0;
    int failed = first && text == NULL ? error_set(err, STATUS_RESOURCE, "no memory for the table of GEMMs") : 0;
    ranks_broadcast(world, &bytes, sizeof bytes, 0);
    if (!first && bytes) text = malloc((size_t)bytes);
    if (!first && !text) failed = error_set(err, STATUS_RESOURCE, "no memory for the table of GEMMs");
    if (ranks_share(world, failed, err) || !text) {
        free(text);
        return -1;
    }
    ranks_broadcast(world, text, (size_t)bytes, 0);
    if (!first) {
        c->path[0] = '\0';
        failed = gemm_choices_read(c, text) ? error_set(err, STATUS_INTERNAL, "rank 0 has another GPU or cuBLASLt") : 0;
    }
    free(text);
    return ranks_share(world, failed, err);
}
