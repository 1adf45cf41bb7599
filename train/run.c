/* run.c: planning, opening and closing a run.
 *
 * One block of memory per rank holds parameters, gradients, optimizer state and activations. Its size comes from running the very
 * code that lays it out on an arena without memory, so that the plan cannot be wrong. */
#include "train/run.h"

#include <stdlib.h>

#include "util/system.h"

int64_t run_steps(const run_config *c) { return (c->train.tokens + c->batch.tokens - 1) / c->batch.tokens; }

static model_options options_of(const run_config *c, int n_ranks, int rows_per_rank) {
    int micro = c->batch.micro < rows_per_rank ? c->batch.micro : rows_per_rank;
    return (model_options){.x = (dtype)c->dtype,
                           .B = micro,
                           .T = c->data.seq_len,
                           .head_chunk = c->batch.head_chunk,
                           .ways = n_ranks,
                           .training = true};
}

/* The same calls plan a run (dry arena) and open it. */
static int lay_out(model *m, optimizer *o, const run_config *c, const run_plan *plan, const ranks *world, const ops *op,
                   backend *b, arena *a, error *err) {
    model_options options = options_of(c, plan->ranks, plan->rows_per_rank);
    if (model_open(m, &c->model, &options, op, b, a, err)) return -1;
    return optimizer_open(o, m, world, a, err);
}

static int plan_memory(run_plan *plan, const run_config *c, const ops *op, backend *b, error *err) {
    model m;
    optimizer o;
    ranks any = {.size = plan->ranks};
    if (lay_out(&m, &o, c, plan, &any, op, b, &plan->arena, err)) return -1;
    plan->params = registry_count(&m.registry);
    optimizer_close(&o);
    model_close(&m);
    return 0;
}

int run_plan_make(run_plan *plan, const run_config *c, const ranks *world, int threads, const ops *op, bool elsewhere,
                  error *err) {
    int n_ranks = world->size;
    int rows = (int)(c->batch.tokens / c->data.seq_len);
    *plan = (run_plan){.arena = arena_dry(), .ranks = n_ranks, .threads = threads, .n_steps = run_steps(c)};
    plan->rows_per_rank = (rows + n_ranks - 1) / n_ranks;
    plan->micro_steps = (plan->rows_per_rank + c->batch.micro - 1) / c->batch.micro;
    plan->flops_per_token = model_flops_per_token(&c->model, c->data.seq_len);
    backend *b = NULL;
    if (!elsewhere && op->open(&b, threads, world->local_rank, err)) return -1;
    int result = plan_memory(plan, c, op, b, err);
    if (b) op->close(b);
    return result;
}

/* The ranks of a machine ask for their memory at the same time. */
static int check_memory(const run *r, const run_plan *plan, const ranks *world, error *err) {
    size_t available = r->ops->memory_available(r->backend, world->local_size);
    if (plan->arena.peak <= available) return 0;
    char need[16], have[16];
    return error_set(
        err, STATUS_RESOURCE,
        "the run needs %s a rank, and this machine has %s free for each of its %d: lower batch.micro or data.seq_len, "
        "use more machines, or see `mobilellm plan` for what takes the memory",
        format_bytes(need, (double)plan->arena.peak), format_bytes(have, (double)available), world->local_size);
}

int run_open(run *r, const run_config *c, const ranks *world, const run_plan *plan, const ops *op, bool profiled, error *err) {
    *r = (run){.config = *c, .ranks = world, .ops = op};
    if (r->ops->open(&r->backend, plan->threads, world->local_rank, err)) return -1;
    if (r->ops->check(r->backend, (dtype)c->dtype, err) || check_memory(r, plan, world, err)) goto fail;
    if (profiled && profile_open(&r->profile, &c->model, &r->ops, &r->backend, err)) goto fail;
    r->memory = r->ops->alloc(r->backend, plan->arena.peak, err);
    if (!r->memory) goto fail;
    r->arena = arena_on(r->memory, plan->arena.peak);
    if (lay_out(&r->model, &r->optimizer, c, plan, world, r->ops, r->backend, &r->arena, err)) goto fail;
    return 0;
fail:
    run_close(r);
    return -1;
}

void run_close(run *r) {
    if (r->loader) loader_close(r->loader);
    optimizer_close(&r->optimizer);
    model_close(&r->model);
    checkpoint_info_free(&r->progress);
    if (r->memory) r->ops->free(r->backend, r->memory);
    if (r->backend) r->ops->close(r->backend);
    *r = (run){0};
}
