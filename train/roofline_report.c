/* roofline_report.c: an estimate as a table for people and as JSON. */
#include <jansson.h>

#include "train/roofline.h"
#include "util/system.h"

static const char *const part_names[N_STEP_TIMES] = {"layer GEMMs",   "head GEMMs", "attention", "norms, SwiGLU, RoPE",
                                                     "cross-entropy", "embedding",  "AdamW",     "collectives",
                                                     "host"};
enum { MOST_GPUS = 1024 };

static step_shape shape_of(const run_config *c, const run_plan *plan) {
    return (step_shape){.rows = plan->rows_per_rank,
                        .micro = c->batch.micro,
                        .T = c->data.seq_len,
                        .ranks = plan->ranks,
                        .step_tokens = (double)c->batch.tokens};
}

/* The same step on n GPUs. rows 0: there are not so many rows. */
static step_shape spread(const run_config *c, int n) {
    int rows = (int)(c->batch.tokens / c->data.seq_len);
    return (step_shape){.rows = rows < n ? 0 : (rows + n - 1) / n,
                        .micro = c->batch.micro,
                        .T = c->data.seq_len,
                        .ranks = n,
                        .step_tokens = (double)c->batch.tokens};
}

/* Each of n GPUs has the rows that a rank of the plan has. */
static step_shape grown(const run_config *c, const run_plan *plan, int n) {
    step_shape s = shape_of(c, plan);
    s.ranks = n;
    s.step_tokens = (double)n * s.rows * s.T;
    return s;
}

static void print_estimate(FILE *to, const step_estimate *e) {
    char rate[16];
    fprintf(to, "%9.1f ms %10s/s %6.1f %%", 1e3 * e->total, format_count(rate, e->tokens_per_s), 100 * e->mfu);
}

static void print_scaling(FILE *to, const gpu_spec *g, const link_spec *links, const run_config *c, const run_plan *plan) {
    fprintf(to, "\n  GPUs   the run's step: time, tokens, MFU    %d row%s a GPU: time, tokens, MFU\n", plan->rows_per_rank,
            plan->rows_per_rank == 1 ? "" : "s");
    for (int n = 1; n <= MOST_GPUS; n *= 2) {
        step_shape same = spread(c, n), more = grown(c, plan, n);
        fprintf(to, "  %4d  ", n);
        if (same.rows > 0) {
            step_estimate e = step_estimate_make(g, links, &default_state, &c->model, &same);
            print_estimate(to, &e);
        } else {
            fprintf(to, "%35s", "more GPUs than rows");
        }
        step_estimate e = step_estimate_make(g, links, &default_state, &c->model, &more);
        fprintf(to, "    ");
        print_estimate(to, &e);
        fprintf(to, "\n");
    }
}

void roofline_print(FILE *to, const gpu_spec *g, const link_spec *links, const run_config *c, const run_plan *plan) {
    step_shape s = shape_of(c, plan);
    step_estimate e = step_estimate_make(g, links, &default_state, &c->model, &s);
    char rate[16];
    fprintf(to, "\n  Estimated on %d x %s: %.1f ms a step, %s tokens/s, MFU %.1f %% of %.0f TFLOP/s a GPU\n", s.ranks, g->text,
            1e3 * e.total, format_count(rate, e.tokens_per_s), 100 * e.mfu, g->peak / 1e12);
    for (int i = 0; i < N_STEP_TIMES; i++)
        fprintf(to, "    %-20s %9.2f ms %5.1f %%\n", part_names[i], 1e3 * e.seconds[i], 100 * e.seconds[i] / e.total);
    print_scaling(to, g, links, c, plan);
    fprintf(
        to,
        "\n  Assumed: GEMMs %.0f TFLOP/s at best, memory %.2f TB/s, fp32 gradients and optimizer state, bf16 weights; "
        "collectives\n"
        "  %.0f GB/s a GPU within a node of %d, %.0f GB/s a GPU between nodes, hops of %.1f and %.1f us. Nothing of this was\n"
        "  measured on your machine: expect errors of some points of MFU.\n",
        g->gemm / 1e12, g->stream / 1e12, links->node_bandwidth / 1e9, links->node_size, links->net_bandwidth / 1e9,
        1e6 * links->node_latency, 1e6 * links->net_latency);
    if ((double)plan->arena.peak > 0.95 * g->memory_bytes) {
        char need[16], have[16];
        fprintf(to, "  It does not fit: %s a rank, and the device has %s. Lower batch.micro.\n",
                format_bytes(need, (double)plan->arena.peak), format_bytes(have, g->memory_bytes));
    }
}

static json_t *estimate_json(const step_estimate *e, int n) {
    return json_pack("{s:i,s:f,s:f,s:f}", "gpus", n, "step_s", e->total, "tokens_per_s", e->tokens_per_s, "mfu", e->mfu);
}

char *roofline_json(const gpu_spec *g, const link_spec *links, const run_config *c, const run_plan *plan) {
    step_shape s = shape_of(c, plan);
    step_estimate e = step_estimate_make(g, links, &default_state, &c->model, &s);
    json_t *all = estimate_json(&e, s.ranks), *parts = json_object(), *same = json_array(), *more = json_array();
    for (int i = 0; i < N_STEP_TIMES; i++) json_object_set_new(parts, part_names[i], json_real(1e3 * e.seconds[i]));
    for (int n = 1; n <= MOST_GPUS; n *= 2) {
        step_shape fixed = spread(c, n), growing = grown(c, plan, n);
        step_estimate a = step_estimate_make(g, links, &default_state, &c->model, &growing);
        json_array_append_new(more, estimate_json(&a, n));
        if (fixed.rows == 0) continue;
        a = step_estimate_make(g, links, &default_state, &c->model, &fixed);
        json_array_append_new(same, estimate_json(&a, n));
    }
    json_object_set_new(all, "device", json_string(g->text));
    json_object_set_new(all, "memory_bytes_per_rank", json_integer((json_int_t)plan->arena.peak));
    json_object_set_new(all, "memory_is_upper_bound", json_boolean(plan->elsewhere));
    json_object_set_new(all, "parts_ms", parts);
    json_object_set_new(all, "same_step", same);
    json_object_set_new(all, "same_rows_per_gpu", more);
    char *text = json_dumps(all, JSON_INDENT(2));
    json_decref(all);
    return text;
}
