/* run.c: planning, opening and closing a run.
 *
 * One block of memory per rank holds parameters, gradients, optimizer state and activations. Its size comes from running the very
 * code that lays it out on an arena without memory, so that the plan cannot be wrong. */
#include "train/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/system.h"

int64_t run_steps(const run_config *c) { return (c->train.tokens + c->batch.tokens - 1) / c->batch.tokens; }

static model_options options_of(const run_config *c, int n_ranks, int rows_per_rank) {
    int micro = c->batch.micro < rows_per_rank ? c->batch.micro : rows_per_rank;
    return (model_options){.x = (dtype)c->dtype,
                           .B = micro,
                           .T = c->data.seq_len,
                           .head_chunk = c->batch.head_chunk,
                           .ways = n_ranks,
                           .training = true,
                           .documents = c->data.mask_documents};
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

int run_plan_make(run_plan *plan, const run_config *c, int n_ranks, const ops *op, backend *b, error *err) {
    int rows = (int)(c->batch.tokens / c->data.seq_len);
    *plan = (run_plan){.arena = arena_dry(), .ranks = n_ranks, .elsewhere = b == NULL, .n_steps = run_steps(c)};
    plan->rows_per_rank = (rows + n_ranks - 1) / n_ranks;
    plan->micro_steps = (plan->rows_per_rank + c->batch.micro - 1) / c->batch.micro;
    plan->flops_per_token = model_flops_per_token(&c->model, c->data.seq_len);
    return plan_memory(plan, c, op, b, err);
}

/* The ranks of a machine ask for their memory at the same time. */
static int check_memory(const run *r, const run_plan *plan, const ranks *world, error *err) {
    size_t available = r->ops->memory_available(r->backend, world->local_size);
    if (plan->arena.peak <= available) return 0;
    char need[16], have[16];
    return error_set(err, STATUS_RESOURCE, "the run needs %s a rank, and this machine has %s free for each of its %d.",
                     format_bytes(need, (double)plan->arena.peak), format_bytes(have, (double)available), world->local_size);
}

/* To what was said of memory that there is not: what it is for, as `mobilellm plan` has it, and what to change. */
static int explain_memory(const run_plan *plan, error *err) {
    const arena *a = &plan->arena;
    size_t used = strlen(err->text);
    char text[16];
    used += (size_t)snprintf(err->text + used, sizeof err->text - used, "\nIt is for");
    for (int i = 0; i < a->n_parts && used < sizeof err->text; i++)
        used += (size_t)snprintf(err->text + used, sizeof err->text - used, "%s %s %s", i ? "," : "", a->parts[i].name,
                                 format_bytes(text, (double)a->parts[i].bytes));
    if (used < sizeof err->text)
        snprintf(
            err->text + used, sizeof err->text - used,
            " (see `mobilellm plan`).\nLower batch.micro (activations, scratch) or data.seq_len, or use more ranks (optimizer).");
    return -1;
}

int run_open(run *r, const run_config *c, const ranks *world, const run_plan *plan, const ops *op, backend *b, bool profiled,
             error *err) {
    *r = (run){.config = *c, .ranks = world, .ops = op, .backend = b};
    if (check_memory(r, plan, world, err)) goto no_memory;
    if (profiled && profile_open(&r->profile, &c->model, &r->ops, &r->backend, err)) goto fail;
    r->memory = r->ops->alloc(r->backend, plan->arena.peak, err);
    if (!r->memory) goto no_memory;
    r->arena = arena_on(r->memory, plan->arena.peak);
    if (lay_out(&r->model, &r->optimizer, c, plan, world, r->ops, r->backend, &r->arena, err)) goto fail;
    return 0;
no_memory:
    explain_memory(plan, err);
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
