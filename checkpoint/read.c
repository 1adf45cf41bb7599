/* read.c: the elements of an open checkpoint, into memory and against their checksums.
 *
 * Any number of ranks reads what any other number wrote: each reads the ranges that it needs, and sums them as they come, because
 * reading a file of gigabytes a second time, to sum it, would take as long again. The CRC-32 of a dataset of which each rank has
 * read a part comes from what the ranks tell each other. */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/crc.h"
#include "checkpoint/opened.h"
#include "checkpoint/ranges.h"

static stored_set *find(const checkpoint *c, const char *path) {
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->sets[i].tensor.path, path) == 0) return &c->sets[i];
    return NULL;
}

static const char *shape_text(char text[64], const checkpoint_tensor *t) {
    if (t->n_axes == 1)
        snprintf(text, 64, "[%lld]", (long long)t->shape[0]);
    else
        snprintf(text, 64, "[%lld, %lld]", (long long)t->shape[0], (long long)t->shape[1]);
    return text;
}

/* The dataset that `t` asks for; NULL with a message if there is none of that name and shape. */
static stored_set *match(const checkpoint *c, const checkpoint_tensor *t, error *err) {
    static const char advice[] =
        "The checkpoint is of another model: compare the config in it, with `mobilellm info` or\n"
        "h5dump -a config, to that of the run.";
    char found[64], wanted[64];
    stored_set *s = find(c, t->path);
    if (!s) {
        error_set(err, STATUS_INPUT, "%s: has no %s, which this model needs.\n%s", c->path, t->path, advice);
        return NULL;
    }
    size_t bytes = (size_t)t->n_axes * sizeof *t->shape;
    if (s->tensor.n_axes == t->n_axes && memcmp(s->tensor.shape, t->shape, bytes) == 0) return s;
    error_set(err, STATUS_INPUT, "%s: %s is %s, this model needs %s.\n%s", c->path, t->path, shape_text(found, &s->tensor),
              shape_text(wanted, t), advice);
    return NULL;
}

static int64_t element_count(const stored_set *s) {
    return s->tensor.n_axes == 1 ? s->tensor.shape[0] : s->tensor.shape[0] * s->tensor.shape[1];
}

/* Elements to be read, and the dataset that each range of them is of. */
typedef struct request {
    range *ranges;     /* (n) */
    stored_set **sets; /* (n) */
    int n;
} request;

static int request_open(request *q, const checkpoint *c, int n, error *err) {
    *q = (request){.ranges = malloc((size_t)n * sizeof *q->ranges + 1), .sets = malloc((size_t)n * sizeof *q->sets + 1)};
    return q->ranges && q->sets ? 0 : opened_no_memory(c, err);
}

static void request_close(request *q) {
    free(q->ranges);
    free(q->sets);
}

/* data NULL: only to be summed. */
static void request_add(request *q, stored_set *s, int64_t first, int64_t count, dtype type, void *data,
                        const checkpoint_memory *m) {
    dtype t = s->tensor.type;
    assert(first >= 0 && count >= 0 && first + count <= element_count(s));
    q->ranges[q->n] = (range){
        .at = s->at + first * (int64_t)dtype_size(t), .count = count, .stored = t, .wanted = type, .to = data, .memory = m};
    q->sets[q->n++] = s;
}

/* The dataset whose range begins at i has been read up to range `end`: notes the sum of its parts, or compares that of the whole.
 */
static int note_sum(const checkpoint *c, const request *q, int i, int end, error *err) {
    stored_set *s = q->sets[i];
    int64_t bytes = element_count(s) * (int64_t)dtype_size(s->tensor.type);
    if (end == i + 1 && q->ranges[i].count == element_count(s)) {
        s->checked = q->ranges[i].crc == s->crc;
        if (s->checked) return 0;
        opened_wrong_crc(c, s->tensor.path, q->ranges[i].crc, s->crc, err);
        return CHECKPOINT_DAMAGED;
    }
    for (; i < end; i++) {
        const range *r = &q->ranges[i];
        int64_t range_end = r->at - s->at + r->count * (int64_t)dtype_size(r->stored);
        s->sum ^= crc_shift(r->crc, (uint64_t)(bytes - range_end));
        s->n_summed += r->count;
    }
    return 0;
}

static int request_read(checkpoint *c, const request *q, error *err) {
    int failed;
    c->trouble = (h5_trouble){0};
    int code = ranges_read(c->fd, q->ranges, q->n, &failed);
    if (code == ENOMEM) return opened_no_memory(c, err);
    if (code) {
        c->trouble.code = code == ENODATA ? 0 : code;
        snprintf(c->trouble.text, sizeof c->trouble.text, "%s", code == ENODATA ? "the file ends before it" : strerror(code));
        opened_damaged(c, q->sets[failed]->tensor.path, err);
        return err->code == STATUS_INPUT ? CHECKPOINT_DAMAGED : -1;
    }
    int result = 0;
    for (int i = 0, end = 0; result == 0 && i < q->n; i = end) {
        while (end < q->n && q->sets[end] == q->sets[i]) end++;
        result = note_sum(c, q, i, end, err);
    }
    return result;
}

int checkpoint_read(checkpoint *c, const checkpoint_tensor *tensors, int n, error *err) {
    request q;
    int n_parts = 0, result;
    for (int i = 0; i < n; i++) n_parts += tensors[i].n_parts;
    result = request_open(&q, c, n_parts, err);
    for (int i = 0; result == 0 && i < n; i++) {
        const checkpoint_tensor *t = &tensors[i];
        stored_set *s = match(c, t, err);
        if (!s) result = -1;
        for (int p = 0; s && p < t->n_parts; p++)
            request_add(&q, s, t->parts[p].first, t->parts[p].count, t->type, t->parts[p].data, t->memory);
    }
    if (result == 0) result = request_read(c, &q, err);
    request_close(&q);
    return result;
}

/* Sums the datasets that are marked. */
static int verify(checkpoint *c, const bool *marked, error *err) {
    request q;
    int result = request_open(&q, c, c->n, err);
    for (int i = 0; result == 0 && i < c->n; i++)
        if (marked[i]) request_add(&q, &c->sets[i], 0, element_count(&c->sets[i]), c->sets[i].tensor.type, NULL, NULL);
    if (result == 0) result = request_read(c, &q, err);
    request_close(&q);
    return result;
}

int checkpoint_verify(checkpoint *c, int part, int of, error *err) {
    bool *marked = malloc((size_t)c->n * sizeof *marked + 1);
    if (!marked) return opened_no_memory(c, err);
    for (int i = 0; i < c->n; i++) marked[i] = i % of == part;
    int result = verify(c, marked, err);
    free(marked);
    return result;
}

/* What one rank tells the others of a dataset. */
typedef struct told {
    int64_t n_summed;
    uint32_t sum, checked;
} told;

/* The sets whose sums are not known from what the ranks have read; or, where one is known to be wrong, damage. */
static int compare_sums(const checkpoint *c, const told *all, int n_ranks, bool *unknown, error *err) {
    for (int i = 0; i < c->n; i++) {
        const stored_set *s = &c->sets[i];
        uint32_t sum = 0;
        int64_t n_summed = 0;
        bool whole = false; /* a rank has read it so, and checked it */
        for (int rank = 0; rank < n_ranks; rank++) {
            const told *t = &all[(size_t)rank * (size_t)c->n + (size_t)i];
            sum ^= t->sum;
            n_summed += t->n_summed;
            whole = whole || t->checked;
        }
        unknown[i] = n_summed != (whole ? 0 : element_count(s));
        if (whole || unknown[i] || sum == s->crc) continue;
        opened_wrong_crc(c, s->tensor.path, sum, s->crc, err);
        return CHECKPOINT_DAMAGED;
    }
    return 0;
}

/* Of the sets that are marked, those that this rank verifies. */
static void keep_share(bool *marked, int n, const ranks *r) {
    for (int i = 0, turn = 0; i < n; i++)
        if (marked[i]) marked[i] = turn++ % r->size == r->rank;
}

int checkpoint_check(checkpoint *c, const ranks *r, error *err) {
    size_t n = (size_t)c->n;
    told *mine = malloc(n * sizeof *mine + 1), *all = malloc(n * (size_t)r->size * sizeof *all + 1);
    bool *unknown = malloc(n * sizeof *unknown + 1);
    int result = checkpoint_share(r, mine && all && unknown ? 0 : opened_no_memory(c, err), err);
    if (result == 0) {
        for (size_t i = 0; i < n; i++) mine[i] = (told){c->sets[i].n_summed, c->sets[i].sum, c->sets[i].checked};
        ranks_gather(r, all, mine, n * sizeof *mine);
        result = compare_sums(c, all, r->size, unknown, err); /* the same on all ranks */
        if (result == 0) {
            keep_share(unknown, c->n, r);
            result = checkpoint_share(r, verify(c, unknown, err), err);
        }
    }
    free(mine);
    free(all);
    free(unknown);
    return result;
}

int checkpoint_share(const ranks *r, int result, error *err) {
    int64_t cannot = result != 0 && result != CHECKPOINT_DAMAGED;
    ranks_max_int64(r, &cannot, 1);
    if (ranks_share(r, result, err) == 0) return 0;
    return cannot ? -1 : CHECKPOINT_DAMAGED;
}
