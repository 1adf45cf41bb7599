/* token_rows.c: the rows that tokens add to the gradient of tied embeddings: summed per token, then over the ranks.
 *
 * A chunk holds equally many rows of each owner's tokens, so that a reduce-scatter leaves each rank the sums of its own tokens.
 * While one chunk is on its way the next is filled. Two chunks of a sixteenth of the vocabulary are all the memory there is: of
 * 202,048 words a few ten thousand occur in a step, which is three or four chunks. */
#include "train/token_rows.h"

#include <stdlib.h>
#include <string.h>

enum { LEAST_CHUNKS = 16, BITS = 64 }; /* chunks of a whole vocabulary */

static int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

static int64_t longest(const model *m) { return (int64_t)m->options.B * m->options.T; }

/* Rows of one rank, and one chunk more: what the last chunk may lack. */
static int64_t most_own(const token_rows *t) {
    const registry *r = &t->model->registry;
    int64_t elements = 0;
    for (int i = 0; i < r->n_buckets && r->buckets[i].group == 0; i++) elements += r->buckets[i].count / r->ways;
    return elements / t->model->config.d_model + t->most_rows;
}

static int host_memory(token_rows *t, error *err) {
    size_t V = (size_t)t->model->config.vocab_size;
    t->occurring = calloc(V / BITS + 1, sizeof *t->occurring);
    t->owner = malloc(V * sizeof *t->owner);
    t->place = malloc(V * sizeof *t->place);
    t->host_places = malloc((size_t)longest(t->model) * sizeof *t->host_places);
    t->host_own = malloc((size_t)most_own(t) * sizeof *t->host_own);
    t->n_owned = malloc((size_t)t->ranks->size * sizeof *t->n_owned);
    if (t->occurring && t->owner && t->place && t->host_places && t->host_own && t->n_owned) return 0;
    return error_set(err, STATUS_RESOURCE, "no memory to list the tokens of a step");
}

/* Parts of the embedding's buckets are whole rows. */
static void find_owners(token_rows *t) {
    const registry *r = &t->model->registry;
    int64_t C = t->model->config.d_model;
    const bucket *k = r->buckets;
    for (int64_t v = 0; v < t->model->config.vocab_size; v++) {
        if (v * C >= k->offset + k->count) k++;
        t->owner[v] = (int32_t)((v * C - k->offset) / (k->count / r->ways));
    }
}

int token_rows_open(token_rows *t, model *m, const ranks *r, arena *device, error *err) {
    *t = (token_rows){0};
    int64_t N = longest(m), share = divided_up(m->config.vocab_size, (int64_t)LEAST_CHUNKS * r->size);
    if (!m->config.tie_embeddings || r->size == 1 || m->ops->overlap_tokens == 0 || N < m->ops->overlap_tokens) return 0;
    *t = (token_rows){.model = m, .ranks = r, .most_rows = share < N ? share : N};
    size_t floats = (size_t)(r->size * t->most_rows * m->config.d_model);
    for (int i = 0; i < 2; i++) t->sums[i] = arena_alloc(device, "temporaries", floats * sizeof(float));
    t->places = arena_alloc(device, "temporaries", (size_t)N * sizeof *t->places);
    t->own = arena_alloc(device, "temporaries", (size_t)most_own(t) * sizeof *t->own);
    if (device->base == NULL) return 0;
    if (host_memory(t, err)) return -1;
    find_owners(t);
    return 0;
}

void token_rows_close(token_rows *t) {
    void *all[] = {t->occurring, t->owner, t->place, t->host_places, t->host_own, t->n_owned};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    *t = (token_rows){0};
}

/* ---- which tokens occur, and where their rows are ---- */

static bool occurs(const token_rows *t, int64_t v) { return (uint64_t)t->occurring[v / BITS] >> v % BITS & 1; }

static void agree_on_tokens(token_rows *t, const int32_t *tokens, int64_t N) {
    int n = (int)(t->model->config.vocab_size / BITS + 1);
    memset(t->occurring, 0, (size_t)n * sizeof *t->occurring);
    for (int64_t i = 0; i < N; i++) t->occurring[tokens[i] / BITS] |= (int64_t)(UINT64_C(1) << tokens[i] % BITS);
    ranks_or_int64(t->ranks, t->occurring, n);
}

/* The number of each token among those of its owner, and chunks for the owner with most. */
static void number_tokens(token_rows *t) {
    int64_t most = 0;
    memset(t->n_owned, 0, (size_t)t->ranks->size * sizeof *t->n_owned);
    for (int64_t v = 0; v < t->model->config.vocab_size; v++)
        if (occurs(t, v)) t->place[v] = (int32_t)t->n_owned[t->owner[v]]++;
    for (int i = 0; i < t->ranks->size; i++)
        if (t->n_owned[i] > most) most = t->n_owned[i];
    t->n_chunks = divided_up(most, t->most_rows);
    t->chunk_rows = most ? divided_up(most, t->n_chunks) : 0;
}

/* From the number of a token to the row of the chunks. */
static void place_tokens(token_rows *t) {
    int64_t rows = t->chunk_rows, n_own = t->n_chunks * rows;
    for (int64_t i = 0; i < n_own; i++) t->host_own[i] = -1;
    for (int64_t v = 0; v < t->model->config.vocab_size; v++) {
        if (!occurs(t, v)) continue;
        int64_t number = t->place[v], chunk = number / rows;
        if (t->owner[v] == t->ranks->rank) t->host_own[number] = (int32_t)v;
        t->place[v] = (int32_t)((chunk * t->ranks->size + t->owner[v]) * rows + number % rows);
    }
}

void token_rows_begin(token_rows *t, const int32_t *tokens, int64_t N) {
    model *m = t->model;
    if (!m) return;
    agree_on_tokens(t, tokens, N);
    number_tokens(t);
    if (2 * t->n_chunks * t->chunk_rows * t->ranks->size > m->config.vocab_size) t->n_chunks = 0;
    if (t->n_chunks == 0) return;
    place_tokens(t);
    for (int64_t i = 0; i < N; i++) t->host_places[i] = t->place[tokens[i]];
    if (N) m->ops->copy_in(m->backend, t->places, t->host_places, (size_t)N * sizeof *t->places);
    m->ops->copy_in(m->backend, t->own, t->host_own, (size_t)(t->n_chunks * t->chunk_rows) * sizeof *t->own);
}

/* ---- their gradient ---- */

/* Sums this rank's rows of a chunk, and sends them on their way. */
static int64_t send_chunk(token_rows *t, int64_t chunk, int64_t N, double *own_squares) {
    model *m = t->model;
    int C = m->config.d_model;
    int64_t rows = t->ranks->size * t->chunk_rows;
    float *sums = t->sums[chunk % 2];
    m->ops->zero(m->backend, sums, (size_t)(rows * C) * sizeof *sums);
    if (N) m->ops->embedding_backward(m->backend, sums, m->dh, t->places, m->options.x, N, C, chunk * rows, rows);
    m->ops->sum_squares(m->backend, own_squares, sums, rows * C);
    return m->ops->reduce_scatter(m->backend, sums, t->chunk_rows * C);
}

static void add_chunk(token_rows *t, int64_t chunk, int64_t ticket) {
    model *m = t->model;
    int C = m->config.d_model;
    m->ops->join(m->backend, ticket);
    m->ops->embedding_backward(m->backend, m->grads, t->sums[chunk % 2] + t->ranks->rank * t->chunk_rows * C,
                               t->own + chunk * t->chunk_rows, DTYPE_F32, t->chunk_rows, C, 0, m->config.vocab_size);
}

void token_rows_reduce(token_rows *t, int64_t N, double *own_squares) {
    int64_t before = 0;
    for (int64_t chunk = 0; chunk < t->n_chunks; chunk++) {
        int64_t ticket = send_chunk(t, chunk, N, own_squares);
        if (chunk > 0) add_chunk(t, chunk - 1, before);
        before = ticket;
    }
    add_chunk(t, t->n_chunks - 1, before);
}
