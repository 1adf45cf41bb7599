/* warm_up.c: forward and backward passes over random tokens and weights, of each number of rows that a step or an evaluation has.
 *
 * The weights are random because what multiplies zeros is done sooner, and would be timed wrong. */
#include "train/warm_up.h"

#include <stdlib.h>

#include "eval/heldout.h"
#include "util/rng.h"

/* Micro-batches that differ in their rows. */
typedef struct shapes {
    int *rows; /* (n) */
    bool *training;
    int n;
} shapes;

static void add(shapes *s, int64_t rows, bool training) {
    for (int i = 0; i < s->n; i++)
        if (s->rows[i] == rows && (s->training[i] || !training)) return;
    if (rows == 0) return;
    s->rows[s->n] = (int)rows;
    s->training[s->n++] = training;
}

/* So many rows, B at a time. */
static void add_batches(shapes *s, int64_t rows, int B, bool training) {
    if (rows >= B) add(s, B, training);
    add(s, rows % B, training);
}

/* The ranks' parts of a step differ by a row at most; batches of an evaluation may come to any rank. */
static int list_shapes(shapes *s, const run *r, error *err) {
    const run_config *c = &r->config;
    const data_source *heldout = c->data.heldout.items;
    int64_t rows = c->batch.tokens / c->data.seq_len;
    int B = r->model.options.B;
    add_batches(s, (rows + r->ranks->size - 1) / r->ranks->size, B, true);
    add_batches(s, rows / r->ranks->size, B, true);
    for (int i = 0; i < c->data.heldout.n; i++) {
        int64_t n_windows;
        if (heldout_windows(&n_windows, heldout[i].prefix, c->data.seq_len, c->train.eval_tokens, err)) return -1;
        add_batches(s, n_windows, B, false);
    }
    return 0;
}

/* The same numbers again and again, by way of the gradients. */
static int random_weights(model *m, error *err) {
    int64_t room = m->registry.n_flat < 1 << 20 ? m->registry.n_flat : 1 << 20;
    float *values = malloc((size_t)room * sizeof *values);
    if (!values) return error_set(err, STATUS_RESOURCE, "no memory for random weights");
    rng_normal(values, 1, 0, room, 0.02f);
    m->ops->copy_in(m->backend, m->grads, values, (size_t)room * sizeof *values);
    for (int64_t at = 0; at < m->registry.n_flat; at += room) {
        int64_t n = m->registry.n_flat - at < room ? m->registry.n_flat - at : room;
        m->ops->from_float(m->backend, (char *)m->params + (size_t)at * dtype_size(m->options.x), m->grads, m->options.x, n);
    }
    free(values);
    return 0;
}

/* losses: room for those of a micro-batch. */
static int pass(run *r, const int32_t *tokens, const int32_t *doc, const int32_t *pos, float *losses, int rows, bool training,
                error *err) {
    model_input in = {rows, tokens, tokens, r->config.data.mask_documents ? doc : NULL, pos};
    ranks_progress(r->ranks);
    if (!training) return model_losses(&r->model, &in, losses, err);
    model_train(&r->model, &in, 1e-3f, 0, false, NULL);
    return r->ops->sync(r->backend, err);
}

static int pass_all(run *r, const shapes *s, error *err) {
    int64_t T = r->model.options.T, N = (int64_t)r->model.options.B * T;
    int32_t *tokens = malloc((size_t)N * sizeof *tokens), *doc = calloc((size_t)N, sizeof *doc);
    int32_t *pos = malloc((size_t)N * sizeof *pos);
    float *losses = malloc((size_t)N * sizeof *losses);
    int result = tokens && doc && pos && losses ? 0 : error_set(err, STATUS_RESOURCE, "no memory for %lld tokens", (long long)N);
    for (int64_t i = 0; result == 0 && i < N; i++) {
        tokens[i] = (int32_t)(rng_uniform(1, (uint64_t)i) * (double)r->config.model.vocab_size);
        pos[i] = (int32_t)(i % T);
    }
    for (int i = 0; result == 0 && i < s->n; i++) result = pass(r, tokens, doc, pos, losses, s->rows[i], s->training[i], err);
    free(tokens);
    free(doc);
    free(pos);
    free(losses);
    return result;
}

static int warm_up(run *r, error *err) {
    size_t room = 4 + 2 * (size_t)r->config.data.heldout.n;
    shapes s = {calloc(room, sizeof *s.rows), calloc(room, sizeof *s.training), 0};
    int result = s.rows && s.training ? list_shapes(&s, r, err) : error_set(err, STATUS_RESOURCE, "no memory");
    if (result == 0) result = random_weights(&r->model, err);
    if (result == 0) result = pass_all(r, &s, err);
    free(s.rows);
    free(s.training);
    return result;
}

int run_warm_up(run *r, error *err) {
    model *m = &r->model;
    if (!r->ops->tune) return 0;
    r->ops->tune(r->backend, true);
    if (warm_up(r, err)) return -1;
    r->ops->tune(r->backend, false);
    r->ops->zero(r->backend, m->params, (size_t)m->registry.n_flat * dtype_size(m->options.x));
    model_train_nothing(m);
    return r->ops->sync(r->backend, err);
}
