/* optimizer.c: ZeRO-1 over the buckets of the registry. */
#include "train/optimizer.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int optimizer_open(optimizer *o, model *m, const ranks *r, arena *device, error *err) {
    *o = (optimizer){.model = m, .ranks = r};
    size_t bytes = (size_t)registry_shard_size(&m->registry) * sizeof(float);
    if (m->options.x != DTYPE_F32) o->master = arena_alloc(device, "optimizer", bytes);
    o->m = arena_alloc(device, "optimizer", bytes);
    o->v = arena_alloc(device, "optimizer", bytes);
    o->sum_squares = arena_alloc(device, "optimizer", sizeof *o->sum_squares);
    o->own_squares = arena_alloc(device, "optimizer", sizeof *o->own_squares);
    o->clip_scale = arena_alloc(device, "optimizer", sizeof *o->clip_scale);
    if (device->base == NULL) return 0;
    o->n_pieces = registry_pieces(&m->registry, r->rank, &o->pieces);
    if (o->n_pieces < 0) return error_set(err, STATUS_RESOURCE, "no memory for the optimizer's list of tensors");
    m->ops->zero(m->backend, o->m, bytes);
    m->ops->zero(m->backend, o->v, bytes);
    if (o->master) m->ops->zero(m->backend, o->master, bytes);
    return 0;
}

void optimizer_close(optimizer *o) {
    free(o->pieces);
    *o = (optimizer){0};
}

/* Adds the squares of a group's gradient, as this rank alone made it, to own_squares. */
static void sum_own(optimizer *o, int group) {
    model *m = o->model;
    const registry *r = &m->registry;
    int64_t first = INT64_MAX, end = 0;
    for (int i = 0; i < r->n_buckets; i++) {
        const bucket *b = &r->buckets[i];
        if (b->group != group) continue;
        if (b->offset < first) first = b->offset;
        if (b->offset + b->count > end) end = b->offset + b->count;
    }
    for (int i = 0; i < r->n_tensors; i++) { /* not the buckets: what lies between tensors is undefined */
        const tensor *t = &r->tensors[i];
        if (t->offset >= first && t->offset < end)
            m->ops->sum_squares(m->backend, o->own_squares, m->grads + t->offset, t->count);
    }
}

void optimizer_reduce_group(void *context, int group) {
    optimizer *o = context;
    const model *m = o->model;
    const registry *r = &m->registry;
    if (o->ranks->size == 1) return;
    if (group == m->config.n_layers + 1) m->ops->zero(m->backend, o->own_squares, sizeof *o->own_squares); /* the first one */
    sum_own(o, group);
    double elements = 0;
    profile_enter(o->profile);
    for (int i = 0; i < r->n_buckets; i++)
        if (r->buckets[i].group == group) {
            ranks_reduce_scatter(o->ranks, o->model->grads + r->buckets[i].offset, r->buckets[i].count / r->ways);
            elements += (double)r->buckets[i].count;
        }
    profile_leave(o->profile, PART_COLLECTIVES, elements * sizeof(float));
}

/* Leaves the clip factor on the device, where AdamW reads it. */
static double clip_gradients(optimizer *o, double max_norm) {
    model *m = o->model;
    m->ops->zero(m->backend, o->sum_squares, sizeof *o->sum_squares);
    for (int i = 0; i < o->n_pieces; i++) /* not the buckets' parts: what lies between tensors is undefined after a reduction */
        m->ops->sum_squares(m->backend, o->sum_squares, m->grads + o->pieces[i].flat, o->pieces[i].count);
    double total;
    m->ops->copy_out(m->backend, &total, o->sum_squares, sizeof total);
    profile_enter(o->profile);
    ranks_sum_double(o->ranks, &total, 1);
    profile_leave(o->profile, PART_COLLECTIVES, sizeof total);
    m->ops->copy_in(m->backend, o->sum_squares, &total, sizeof total);
    m->ops->clip_scale(m->backend, o->clip_scale, o->sum_squares, (float)max_norm);
    return sqrt(total);
}

static void gather_params(optimizer *o) {
    model *m = o->model;
    const registry *r = &m->registry;
    size_t e = dtype_size(m->options.x);
    if (o->ranks->size == 1) return;
    profile_enter(o->profile);
    for (int i = 0; i < r->n_buckets; i++)
        ranks_all_gather(o->ranks, (char *)m->params + (size_t)r->buckets[i].offset * e,
                         (size_t)(r->buckets[i].count / r->ways) * e);
    profile_leave(o->profile, PART_COLLECTIVES, (double)r->n_flat * (double)e);
}

void optimizer_name_nonfinite(optimizer *o, char text[100]) {
    const ranks *r = o->ranks;
    text[0] = '\0';
    if (r->size == 1) return;
    double own;
    o->model->ops->copy_out(o->model->backend, &own, o->own_squares, sizeof own);
    int64_t n = !isfinite(own), after = n ? r->size - r->rank : 0; /* ranks from this one on: most where the rank is lowest */
    ranks_sum_int64(r, &n, 1);
    ranks_max_int64(r, &after, 1);
    int lowest = r->size - (int)after;
    if (n == 1) snprintf(text, 100, "rank %d's own gradient is not finite", lowest);
    if (n > 1) snprintf(text, 100, "the own gradients of %lld ranks are not finite, rank %d's first", (long long)n, lowest);
    if (n == 0) snprintf(text, 100, "each rank's own gradient is finite, their sum is not");
}

int optimizer_step(optimizer *o, const run_config *c, double lr, double *grad_norm, bool *stepped, error *err) {
    model *m = o->model;
    dtype x = m->options.x;
    *grad_norm = clip_gradients(o, c->optimizer.grad_clip);
    *stepped = isfinite(*grad_norm);
    if (!*stepped) return m->ops->sync(m->backend, err);
    o->t++;
    adamw_step step = {.lr = (float)lr,
                       .beta1 = (float)c->optimizer.betas[0],
                       .beta2 = (float)c->optimizer.betas[1],
                       .eps = (float)c->optimizer.eps,
                       .t = o->t};
    for (int i = 0; i < o->n_pieces; i++) {
        const piece *p = &o->pieces[i];
        step.weight_decay = m->registry.tensors[p->tensor].decay ? (float)c->optimizer.weight_decay : 0.0f;
        m->ops->adamw(m->backend, (char *)m->params + (size_t)p->flat * dtype_size(x), o->master ? o->master + p->shard : NULL,
                      o->m + p->shard, o->v + p->shard, m->grads + p->flat, o->clip_scale, &step, x, p->count);
    }
    if (m->ops->sync(m->backend, err)) return -1;
    gather_params(o);
    return 0;
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
