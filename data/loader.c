/* loader.c: batches, and the thread that makes the next step's while the model works on this one's.
 *
 * Two batches suffice: the caller holds step c, the thread fills step c + 1 into the other one and waits. Reading a window is a
 * copy out of mapped memory, so what the thread hides is the disk. */
#include "data/loader.h"

#include <assert.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "data/order.h"

/* ---- batches ---- */

int token_batch_alloc(token_batch *batch, int rows, int seq_len, error *err) {
    assert(rows >= 0 && seq_len > 0);
    size_t n = (size_t)rows * (size_t)seq_len;
    *batch = (token_batch){.rows = rows, .seq_len = seq_len};
    int32_t *memory = calloc(4 * n + 1, sizeof *memory); /* + 1: a rank can have no rows, and calloc(0) may be NULL */
    if (!memory)
        return error_set(err, STATUS_RESOURCE, "out of memory for a batch of %d rows of %d tokens: use smaller steps", rows,
                         seq_len);
    batch->tokens = memory;
    batch->targets = memory + n;
    batch->doc = memory + 2 * n;
    batch->pos = memory + 3 * n;
    memset(batch->targets, 0xff, n * sizeof *memory);
    return 0;
}

void token_batch_free(token_batch *batch) {
    free(batch->tokens);
    *batch = (token_batch){0};
}

/* doc and pos of a row that starts at token `first`; a target that lies in the next document becomes -1. n: tokens of the row
 * that the file has. */
static void mask_documents_of_row(int32_t *doc, int32_t *pos, int32_t *targets, const token_file *file, int64_t first, int64_t n,
                                  int seq_len) {
    int64_t end = first;
    int32_t number = -1, position = 0;
    for (int64_t t = 0; t < seq_len; t++) {
        if (t < n && first + t == end) {
            token_file_document(file, first + t, &end);
            number++;
            position = 0;
        }
        doc[t] = number < 0 ? 0 : number;
        pos[t] = position++;
        if (first + t + 1 == end) targets[t] = -1;
    }
}

int token_batch_fill(token_batch *batch, int row, const token_file *file, int64_t first, int64_t vocab_size, bool mask_documents,
                     error *err) {
    assert(row >= 0 && row < batch->rows && first >= 0);
    int seq_len = batch->seq_len;
    size_t at = (size_t)row * (size_t)seq_len;
    int32_t *tokens = batch->tokens + at, *targets = batch->targets + at, *doc = batch->doc + at, *pos = batch->pos + at;
    for (int t = 0; t < seq_len; t++) batch->n_valid -= targets[t] != -1;

    int64_t window = first < file->n_tokens ? file->n_tokens - first : 0; /* tokens of the window that the file has */
    if (window > seq_len + (int64_t)1) window = seq_len + (int64_t)1;
    int64_t n = window < seq_len ? window : seq_len, n_targets = window > 0 ? window - 1 : 0;
    memset(tokens, 0, (size_t)seq_len * sizeof *tokens);
    memset(targets, 0xff, (size_t)seq_len * sizeof *targets);
    token_file_read(file, first < file->n_tokens ? first : 0, n, tokens);
    if (n_targets > 0) token_file_read(file, first + 1, n_targets, targets);

    /* The first token and every target are all tokens of the window. */
    if (n > 0 && (tokens[0] < 0 || tokens[0] >= vocab_size)) {
        memset(targets, 0xff, (size_t)seq_len * sizeof *targets);
        return token_file_bad_id(file, first, tokens[0], vocab_size, err);
    }
    for (int64_t t = 0; t < n_targets; t++) {
        int32_t id = targets[t];
        if (id >= 0 && id < vocab_size) continue;
        memset(targets, 0xff, (size_t)seq_len * sizeof *targets);
        return token_file_bad_id(file, first + 1 + t, id, vocab_size, err);
    }

    if (mask_documents) {
        mask_documents_of_row(doc, pos, targets, file, first, n, seq_len);
    } else {
        memset(doc, 0, (size_t)seq_len * sizeof *doc);
        for (int t = 0; t < seq_len; t++) pos[t] = t;
    }
    for (int t = 0; t < seq_len; t++) batch->n_valid += targets[t] != -1;
    return 0;
}

/* ---- the loader ---- */

struct loader {
    /* Belong to the thread while it runs. */
    token_file *files; /* (n_sources) */
    int n_sources;
    sample_order order;
    int64_t vocab_size;
    bool mask_documents;
    int rows_per_step, row_begin, row_end; /* this rank's rows of a step */
    /* Shared, under the lock. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    token_batch batches[2]; /* step s is in batch s % 2 */
    int64_t made, taken;    /* steps made by the thread, handed to the caller: made <= taken + 1 */
    bool stop, failed;
    error failure;
    pthread_t thread;
    bool running;
};

/* The rows of the next step into `batch`. */
static int make_step(loader *l, token_batch *batch, error *err) {
    for (int row = 0; row < l->rows_per_step; row++) {
        sample s = sample_order_next(&l->order);
        if (row < l->row_begin || row >= l->row_end) continue;
        int64_t first = s.window * batch->seq_len;
        if (token_batch_fill(batch, row - l->row_begin, &l->files[s.source], first, l->vocab_size, l->mask_documents, err))
            return -1;
    }
    return 0;
}

static void *prefetch(void *argument) {
    loader *l = argument;
    pthread_mutex_lock(&l->lock);
    while (!l->stop && !l->failed) {
        if (l->made > l->taken) { /* the other batch is the caller's */
            pthread_cond_wait(&l->changed, &l->lock);
            continue;
        }
        token_batch *batch = &l->batches[l->made % 2];
        error failure = {0};
        pthread_mutex_unlock(&l->lock);
        bool failed = make_step(l, batch, &failure) != 0;
        pthread_mutex_lock(&l->lock);
        l->failed = failed;
        l->failure = failure;
        if (!failed) l->made++;
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

/* Opens the prefixes and the order over their windows. */
static int open_sources(loader *l, const loader_options *o, error *err) {
    l->files = calloc((size_t)o->n_sources + 1, sizeof *l->files); /* + 1: no source at all is sample_order_open's error */
    int64_t *n_windows = calloc((size_t)o->n_sources + 1, sizeof *n_windows);
    int rc = l->files && n_windows ? 0 : error_set(err, STATUS_RESOURCE, "out of memory");
    for (int d = 0; d < o->n_sources && rc == 0; d++) {
        token_file *file = &l->files[d];
        rc = token_file_open(file, o->prefixes[d], err);
        if (rc) break;
        l->n_sources = d + 1;
        n_windows[d] = file->n_tokens > 0 ? (file->n_tokens - 1) / o->seq_len : 0;
        if (n_windows[d] == 0)
            rc = error_set(err, STATUS_INPUT,
                           "%s has %" PRId64
                           " tokens, one sample of sequence length %d needs %d: use a shorter data.seq_len or more data",
                           o->prefixes[d], file->n_tokens, o->seq_len, o->seq_len + 1);
    }
    if (rc == 0) rc = sample_order_open(&l->order, o->n_sources, o->prefixes, n_windows, o->weights, o->seed, err);
    free(n_windows);
    return rc;
}

int loader_open(loader **out, const loader_options *o, error *err) {
    assert(o->seq_len > 0 && o->rows_per_step > 0 && o->rank >= 0 && o->rank < o->n_ranks && o->first_sample >= 0);
    *out = NULL;
    loader *l = calloc(1, sizeof *l);
    if (!l) return error_set(err, STATUS_RESOURCE, "out of memory");
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    l->vocab_size = o->vocab_size;
    l->mask_documents = o->mask_documents;
    l->rows_per_step = o->rows_per_step;
    l->row_begin = (int)((int64_t)o->rows_per_step * o->rank / o->n_ranks);
    l->row_end = (int)((int64_t)o->rows_per_step * (o->rank + 1) / o->n_ranks);
    int rows = l->row_end - l->row_begin;

    int rc = open_sources(l, o, err) || token_batch_alloc(&l->batches[0], rows, o->seq_len, err) ||
             token_batch_alloc(&l->batches[1], rows, o->seq_len, err);
    if (rc == 0) {
        sample_order_seek(&l->order, o->first_sample);
        int failure = pthread_create(&l->thread, NULL, prefetch, l);
        l->running = failure == 0;
        if (failure) rc = error_set(err, STATUS_RESOURCE, "cannot start the thread that reads data: %s", strerror(failure));
    }
    if (rc) {
        loader_close(l);
        return -1;
    }
    *out = l;
    return 0;
}

void loader_close(loader *l) {
    if (!l) return;
    if (l->running) {
        pthread_mutex_lock(&l->lock);
        l->stop = true;
        pthread_cond_broadcast(&l->changed);
        pthread_mutex_unlock(&l->lock);
        pthread_join(l->thread, NULL);
    }
    for (int d = 0; d < l->n_sources; d++) token_file_close(&l->files[d]);
    free(l->files);
    sample_order_close(&l->order);
    token_batch_free(&l->batches[0]);
    token_batch_free(&l->batches[1]);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int loader_next(loader *l, const token_batch **batch, double *waited, error *err) {
    double began = seconds();
    int rc = 0;
    pthread_mutex_lock(&l->lock);
    while (l->made == l->taken && !l->failed) pthread_cond_wait(&l->changed, &l->lock);
    if (l->made == l->taken) {
        *err = l->failure;
        rc = -1;
    } else {
        *batch = &l->batches[l->taken % 2];
        l->taken++; /* lets the thread have the batch that the caller held before */
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    if (waited) *waited = seconds() - began;
    return rc;
}
