/* optimizer.c: ZeRO-1 over the buckets of the registry. */
#include "train/optimizer.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "util/rng.h"

int optimizer_open(optimizer *o, model *m, const ranks *r, arena *device, error *err) {
    *o = (optimizer){.model = m, .ranks = r};
    size_t bytes = (size_t)registry_shard_size(&m->registry) * sizeof(float);
    if (m->options.x != DTYPE_F32) o->master = arena_alloc(device, "optimizer", bytes);
    o->m = arena_alloc(device, "optimizer", bytes);
    o->v = arena_alloc(device, "optimizer", bytes);
    o->report = arena_alloc(device, "optimizer", sizeof *o->report);
    if (token_rows_open(&o->token_rows, m, r, device, err)) return -1;
    if (device->base == NULL) return 0;
    o->n_pieces = registry_pieces(&m->registry, r->rank, &o->pieces);
    o->gathered = calloc((size_t)m->config.n_layers + 2, sizeof *o->gathered);
    if (o->n_pieces < 0 || !o->gathered) return error_set(err, STATUS_RESOURCE, "no memory for the optimizer's list of tensors");
    return 0;
}

void optimizer_clear(optimizer *o) {
    const model *m = o->model;
    for (int i = 0; i < o->n_pieces; i++) {
        const piece *p = &o->pieces[i];
        m->ops->zero(m->backend, o->m + p->shard, (size_t)p->count * sizeof *o->m);
        m->ops->zero(m->backend, o->v + p->shard, (size_t)p->count * sizeof *o->v);
    }
}

void optimizer_close(optimizer *o) {
    free(o->pieces);
    free(o->gathered);
    token_rows_close(&o->token_rows);
    *o = (optimizer){0};
}

/* Of buckets and hooks, as registry.h counts them; the embedding is the first tensor of all. */
static int group_of(const model *m, const tensor *t) {
    if (t->layer >= 0) return 1 + t->layer;
    return t->offset == 0 ? 0 : 1 + m->config.n_layers;
}

/* Adds the squares of a group's gradient, as this rank alone made it, to own_squares. */
static void sum_own(optimizer *o, int group) {
    model *m = o->model;
    double *own = &o->report->own_squares;
    if (group == 1 + m->config.n_layers) m->ops->zero(m->backend, own, sizeof *own); /* the first one */
    for (int i = 0; i < m->registry.n_tensors; i++) { /* not the buckets: what lies between tensors is undefined */
        const tensor *t = &m->registry.tensors[i];
        if (group_of(m, t) == group) m->ops->sum_squares(m->backend, own, m->grads + t->offset, t->count);
    }
}

void optimizer_reduce_group(void *context, int group) {
    optimizer *o = context;
    const model *m = o->model;
    const registry *r = &m->registry;
    m->ops->range_begin(m->backend, "reduction", group);
    if (o->ranks->size > 1) sum_own(o, group);
    for (int i = 0; i < r->n_buckets; i++)
        if (r->buckets[i].group == group)
            o->reduced = m->ops->reduce_scatter(m->backend, m->grads + r->buckets[i].offset, r->buckets[i].count / r->ways);
    m->ops->range_end(m->backend);
}

void optimizer_reduce_rows(void *context, int64_t N) {
    optimizer *o = context;
    const model *m = o->model;
    m->ops->range_begin(m->backend, "reduction of rows", -1);
    token_rows_reduce(&o->token_rows, N, &o->report->own_squares);
    m->ops->range_end(m->backend);
}

void optimizer_need_group(void *context, int group) {
    optimizer *o = context;
    o->model->ops->join(o->model->backend, o->gathered[group]);
}

/* The head's group is gathered last, and a ticket stands for all before it. */
void optimizer_need_all(optimizer *o) { optimizer_need_group(o, 1 + o->model->config.n_layers); }

/* Leaves the sums of all ranks and the clip factor on the device, where AdamW reads it. */
static void clip_gradients(optimizer *o, const run_config *c) {
    model *m = o->model;
    step_report *report = o->report;
    m->ops->join(m->backend, o->reduced);
    m->ops->copy(m->backend, &report->losses, m->loss_sums, 2 * sizeof *m->loss_sums);
    m->ops->zero(m->backend, &report->sum_squares, sizeof report->sum_squares);
    for (int i = 0; i < o->n_pieces; i++) /* not the buckets' parts: what lies between tensors is undefined after a reduction */
        m->ops->sum_squares(m->backend, &report->sum_squares, m->grads + o->pieces[i].flat, o->pieces[i].count);
    m->ops->all_sum(m->backend, &report->losses, 3);
    m->ops->adamw_begin(m->backend, &report->adamw, &report->sum_squares, (float)c->optimizer.grad_clip,
                        (float)c->optimizer.betas[0], (float)c->optimizer.betas[1]);
}

void optimizer_name_nonfinite(const optimizer *o, const step_report *report, char text[100]) {
    const ranks *r = o->ranks;
    text[0] = '\0';
    if (r->size == 1) return;
    int64_t n = !isfinite(report->own_squares),
            after = n ? r->size - r->rank : 0; /* ranks from this one on: most where the rank is lowest */
    ranks_sum_int64(r, &n, 1);
    ranks_max_int64(r, &after, 1);
    int lowest = r->size - (int)after;
    if (n == 1) snprintf(text, 100, "rank %d's own gradient is not finite", lowest);
    if (n > 1) snprintf(text, 100, "the own gradients of %lld ranks are not finite, rank %d's first", (long long)n, lowest);
    if (n == 0) snprintf(text, 100, "each rank's own gradient is finite, their sum is not");
}

/* Of the random bits that a tensor is rounded with: another one than its first weights are drawn with. */
static uint64_t rounding_key(uint64_t seed, const tensor *t) {
    return rng_mix(rng_mix(seed, rng_hash("stochastic rounding")), rng_hash(t->name));
}

static void update_piece(optimizer *o, const piece *p, const run_config *c, double lr) {
    model *m = o->model;
    const tensor *t = &m->registry.tensors[p->tensor];
    dtype x = m->options.x;
    adamw_step step = {.lr = (float)lr,
                       .beta1 = (float)c->optimizer.betas[0],
                       .beta2 = (float)c->optimizer.betas[1],
                       .eps = (float)c->optimizer.eps,
                       .weight_decay = t->decay ? (float)c->optimizer.weight_decay : 0.0f,
                       .stochastic = c->optimizer.stochastic_rounding,
                       .key = rounding_key((uint64_t)c->init.seed, t),
                       .first = p->first};
    m->ops->adamw(m->backend, (char *)m->params + (size_t)p->flat * dtype_size(x), o->master ? o->master + p->shard : NULL,
                  o->m + p->shard, o->v + p->shard, m->grads + p->flat, &o->report->adamw, &step, x, p->count);
}

void optimizer_step(optimizer *o, const run_config *c, double lr) {
    model *m = o->model;
    const registry *r = &m->registry;
    size_t e = dtype_size(m->options.x);
    clip_gradients(o, c);
    /* In the order in which the next forward needs them, each bucket on its way while the next is updated. */
    for (int i = 0, p = 0; i < r->n_buckets; i++) {
        const bucket *k = &r->buckets[i];
        for (; p < o->n_pieces && o->pieces[p].flat < k->offset + k->count; p++) update_piece(o, &o->pieces[p], c, lr);
        o->gathered[k->group] =
            m->ops->all_gather(m->backend, (char *)m->params + (size_t)k->offset * e, (size_t)(k->count / r->ways) * e);
    }
    m->ops->post(m->backend, o->report, sizeof *o->report);
}

int optimizer_report(optimizer *o, step_report *report, error *err) {
    if (o->model->ops->fetch(o->model->backend, report, sizeof *report, err)) return -1;
    o->t = report->adamw.t;
    return 0;
}

void optimizer_resume(optimizer *o, int64_t t) {
    o->t = t;
    o->model->ops->copy_in(o->model->backend, &o->report->adamw.t, &t, sizeof t);
}

void optimizer_master_from_params(optimizer *o) {
    model *m = o->model;
    if (!o->master) return;
    for (int i = 0; i < o->n_pieces; i++) {
        const piece *p = &o->pieces[i];
        m->ops->to_float(m->backend, o->master + p->shard, (char *)m->params + (size_t)p->flat * dtype_size(m->options.x),
                         m->options.x, p->count);
    }
}

int optimizer_master_from_init(optimizer *o, uint64_t seed, float stddev, error *err) {
    enum { CHUNK = 1 << 22 };
    model *m = o->model;
    if (!o->master) return 0;
    float *values = malloc(CHUNK * sizeof *values);
    if (!values) return error_set(err, STATUS_RESOURCE, "no memory to initialise master weights");
    for (int i = 0; i < o->n_pieces; i++) {
        const piece *p = &o->pieces[i];
        for (int64_t at = 0; at < p->count; at += CHUNK) {
            int64_t n = p->count - at < CHUNK ? p->count - at : CHUNK;
            model_init_values(values, &m->config, &m->registry.tensors[p->tensor], seed, stddev, p->first + at, n);
            m->ops->copy_in(m->backend, o->master + p->shard + at, values, (size_t)n * sizeof *values);
        }
    }
    free(values);
    return m->ops->sync(m->backend, err);
}
