/* loop.c: one step after another: data, forward and backward of each micro-batch, reduction, AdamW; and what surrounds them.
 *
 * The loss is the mean over the valid tokens of the whole step: they are counted over all micro-batches and ranks before the
 * first forward, so any split of the same rows gives the same gradient. docs/step.md follows one step down to the kernels. */
#include "train/loop.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "eval/heldout.h"
#include "train/schedule.h"
#include "train/stop.h"
#include "util/system.h"

/* What is known of a step when it starts. */
typedef struct started_step {
    int64_t n_valid; /* tokens of all ranks that have a target */
    double lr, waited_s;
} started_step;

/* Steps that were started and whose reports have not been read: a device is given its next step before the last one's report,
 * so that it never waits for the host (backend.run_ahead). */
enum { MAX_OPEN = 4 };
typedef struct open_steps {
    started_step steps[MAX_OPEN]; /* steps[i % MAX_OPEN]: the i-th */
    int64_t n_started, n_finished;
} open_steps;

static int64_t n_open(const open_steps *o) { return o->n_started - o->n_finished; }

/* What one step did, the same on all ranks. */
typedef struct step_result {
    double loss, z_loss, lr, grad_norm;
    bool stepped;
    step_report report;
} step_result;

/* Time since the last logged line, without evaluations and checkpoints. */
typedef struct stopwatch {
    double since; /* the end of the last step, or of what came between */
    double busy_s, wait_s;
    int64_t steps;
} stopwatch;

/* Micro-batches that every rank has: with r->ranks->size ranks a step's rows are split into parts that differ by at most one. */
static int common_micro_batches(const run *r) {
    int64_t rows = r->config.batch.tokens / r->config.data.seq_len / r->ranks->size;
    return (int)((rows + r->model.options.B - 1) / r->model.options.B);
}

/* A part of the work, by its name in docs/step.md: for profilers. number: -1 for none. */
static void range_begin(const run *r, const char *name, int64_t number) { r->ops->range_begin(r->backend, name, number); }
static void range_end(const run *r) { r->ops->range_end(r->backend); }

/* This rank's micro-batches. Gradients are final, and reduced, during the last one's backward pass. A step that is stopped
 * between two of them leaves no trace, for the gradients are begun anew by the next. */
static void accumulate_gradients(run *r, const token_batch *batch, float scale, const char **stopped) {
    int micro = r->model.options.B, T = batch->seq_len, common = common_micro_batches(r);
    stop_pace pace = stop_pace_start(r->ranks);
    for (int row = 0; row < batch->rows; row += micro) {
        int rows = batch->rows - row < micro ? batch->rows - row : micro;
        size_t at = (size_t)row * (size_t)T;
        const int32_t *doc = r->config.data.mask_documents ? batch->doc + at : NULL;
        model_input in = {rows, batch->tokens + at, batch->targets + at, doc, batch->pos + at};
        if (row > 0 && row / micro < common && stop_paced(&pace, false)) {
            *stopped = pace.reason;
            return;
        }
        bool last = row + rows == batch->rows;
        model_hooks hooks = {.weights_needed = row == 0 ? optimizer_need_group : NULL,
                             .gradients_final = last ? optimizer_reduce_group : NULL,
                             .rows_final = last && token_rows_apart(&r->optimizer.token_rows) ? optimizer_reduce_rows : NULL,
                             .context = &r->optimizer};
        range_begin(r, "micro-batch", row / micro);
        model_train(&r->model, &in, scale, (float)r->config.optimizer.z_loss, row > 0, &hooks);
        range_end(r);
        ranks_progress(r->ranks);
    }
}

/* A rank without rows (more ranks than rows) takes part in the reduction with zeros, in the order of the others. */
static void reduce_nothing(run *r) {
    optimizer *o = &r->optimizer;
    int head = r->model.config.n_layers + 1;
    bool apart = token_rows_apart(&o->token_rows);
    model_train_nothing(&r->model);
    optimizer_reduce_group(o, head);
    if (apart) optimizer_reduce_group(o, 0);
    for (int group = head - 1; group > 0; group--) optimizer_reduce_group(o, group);
    if (apart)
        optimizer_reduce_rows(o, 0);
    else
        optimizer_reduce_group(o, 0);
}

/* Starts the step after the open ones, on this rank's rows. *stopped: left as it is, or why the step is not made. */
static void start_step(run *r, open_steps *open, const token_batch *batch, int64_t n_valid, double waited, const char **stopped) {
    const run_config *c = &r->config;
    int64_t tokens = r->progress.tokens + n_open(open) * c->batch.tokens;
    double lr = schedule_lr((schedule_kind)c->schedule.kind, c->optimizer.lr, c->schedule.min_lr_ratio, tokens, c->batch.tokens,
                            c->schedule.warmup_tokens, run_steps(c) * c->batch.tokens, c->schedule.decay_fraction);
    if (batch->rows == 0)
        reduce_nothing(r);
    else
        accumulate_gradients(r, batch, n_valid > 0 ? 1.0f / (float)n_valid : 0.0f, stopped);
    if (*stopped) return;
    range_begin(r, "AdamW", -1);
    optimizer_step(&r->optimizer, c, lr);
    range_end(r);
    open->steps[open->n_started++ % MAX_OPEN] = (started_step){n_valid, lr, waited};
}

/* Waits for the oldest open step. */
static int read_report(run *r, open_steps *open, step_result *result, double *waited, error *err) {
    step_report report;
    if (optimizer_report(&r->optimizer, &report, err)) return -1;
    const started_step *s = &open->steps[open->n_finished++ % MAX_OPEN];
    double tokens = (double)s->n_valid;
    *waited = s->waited_s;
    *result = (step_result){.loss = s->n_valid > 0 ? report.losses / tokens : 0,
                            .z_loss = s->n_valid > 0 ? report.z_losses / tokens : 0,
                            .lr = s->lr,
                            .grad_norm = sqrt(report.sum_squares),
                            .stepped = !isnan(report.adamw.scale),
                            .report = report};
    return 0;
}

/* Counters after a step. A non-finite gradient changes no weight; too many in a row end the run. */
static int count_step(run *r, const step_result *s, error *err) {
    checkpoint_info *p = &r->progress;
    p->step++;
    p->tokens += r->config.batch.tokens;
    p->samples += r->config.batch.tokens / r->config.data.seq_len;
    p->nonfinite_in_a_row = s->stepped ? 0 : p->nonfinite_in_a_row + 1;
    if (s->stepped) return 0;
    p->skipped_steps++;
    char whose[100];
    optimizer_name_nonfinite(&r->optimizer, &s->report, whose);
    if (r->ranks->rank == 0)
        fprintf(stderr,
                "mobilellm: step %lld: loss %g, gradient norm %g%s%s: the step is skipped (%lld in a row, %d end the run)\n",
                (long long)p->step, s->loss, s->grad_norm, whose[0] ? ", " : "", whose, (long long)p->nonfinite_in_a_row,
                r->config.train.max_nonfinite);
    if (p->nonfinite_in_a_row < r->config.train.max_nonfinite) return 0;
    error_set(
        err, STATUS_DIVERGED,
        "%lld steps in a row had a non-finite gradient, the last one step %lld%s%s: lower optimizer.lr or optimizer.grad_clip, "
        "look at "
        "the data, and resume from an earlier checkpoint of %s",
        (long long)p->nonfinite_in_a_row, (long long)p->step, whose[0] ? ", where " : "", whose, r->config.checkpoint.dir);
    return ranks_agree(r->ranks, r->ranks->rank == 0 ? -1 : 0, err);
}

static int append_history(history_row **rows, int64_t *n, history_row row, error *err) {
    history_row *grown = realloc(*rows, (size_t)(*n + 1) * sizeof *grown);
    if (!grown) return error_set(err, STATUS_RESOURCE, "no memory for the history of the run");
    *rows = grown;
    (*rows)[(*n)++] = row;
    return 0;
}

static int log_step(run *r, const run_plan *plan, metrics *m, const step_result *s, stopwatch *watch, error *err) {
    checkpoint_info *p = &r->progress;
    history_row row = {p->step, p->tokens, s->loss, s->lr, s->grad_norm};
    if (append_history(&p->train, &p->n_train, row, err)) return -1;
    int64_t memory = (int64_t)r->ops->memory_used(r->backend);
    ranks_max_int64(r->ranks, &memory, 1);
    double step_s = watch->busy_s / (double)watch->steps, rate = (double)r->config.batch.tokens / step_s;
    step_metrics line = {.step = p->step,
                         .n_steps = plan->n_steps,
                         .tokens = p->tokens,
                         .loss = s->loss,
                         .z_loss = s->z_loss,
                         .lr = s->lr,
                         .grad_norm = s->grad_norm,
                         .step_s = step_s,
                         .data_wait_s = watch->wait_s / (double)watch->steps,
                         .tokens_per_s = rate,
                         .gflops = rate * plan->flops_per_token / 1e9,
                         .peak_share = rate * plan->flops_per_token / r->gemm_peak,
                         .memory_bytes = (size_t)memory,
                         .eta_s = step_s * (double)(plan->n_steps - p->step),
                         .skipped_steps = p->skipped_steps};
    *watch = (stopwatch){.since = seconds_now()};
    return m ? metrics_step(m, &line, err) : 0;
}

static int tell_eval(run *r, metrics *m, const char *prefix, const heldout_loss *loss, error *err) {
    eval_metrics line = {.step = r->progress.step,
                         .tokens = r->progress.tokens,
                         .prefix = prefix,
                         .loss = heldout_mean(loss),
                         .perplexity = exp(heldout_mean(loss)),
                         .bits_per_byte = heldout_bits_per_byte(loss),
                         .eval_tokens = loss->tokens,
                         .seconds = loss->seconds};
    return m ? metrics_eval(m, &line, err) : 0;
}

static bool every(int64_t step, int64_t interval) { return interval > 0 && step % interval == 0; }

bool train_owes_evaluation(const run *r) {
    const checkpoint_info *p = &r->progress;
    bool due = every(p->step, r->config.train.eval_every) || p->step == run_steps(&r->config);
    bool made = p->n_heldout > 0 && p->heldout[p->n_heldout - 1].step == p->step;
    return p->step > 0 && r->config.data.heldout.n > 0 && due && !made;
}

/* Each source, and their total. *stopped: left as it is, or why the evaluation was abandoned. */
static int evaluate(run *r, metrics *m, const char **stopped, error *err) {
    const data_source *sources = r->config.data.heldout.items;
    int n = r->config.data.heldout.n;
    heldout_loss total = {0};
    optimizer_need_all(&r->optimizer);
    stop_pace pace = stop_pace_start(r->ranks);
    heldout_stop stop = {stop_paced, &pace};
    profile_enter(r->profile);
    range_begin(r, "evaluation", -1);
    for (int i = 0; i < n && !total.abandoned; i++) {
        heldout_loss loss;
        if (heldout_measure(&loss, &r->model, sources[i].prefix, r->config.data.mask_documents, r->config.train.eval_tokens,
                            &stop, r->ranks, err))
            return -1;
        if (!loss.abandoned && tell_eval(r, m, sources[i].prefix, &loss, err)) return -1;
        heldout_add(&total, &loss);
    }
    range_end(r);
    profile_leave(r->profile, PART_EVALUATION, 0);
    if (total.abandoned) {
        *stopped = pace.reason;
        return 0;
    }
    if (n > 1 && tell_eval(r, m, "total", &total, err)) return -1;
    history_row row = {r->progress.step, r->progress.tokens, heldout_mean(&total), NAN, NAN};
    return append_history(&r->progress.heldout, &r->progress.n_heldout, row, err);
}

static int save(run *r, error *err) {
    char path[4096];
    double start = seconds_now();
    optimizer_need_all(&r->optimizer);
    profile_enter(r->profile);
    range_begin(r, "checkpoint", -1);
    if (run_save(r, path, err)) return -1;
    range_end(r);
    profile_leave(r->profile, PART_CHECKPOINT, 0);
    if (r->ranks->rank == 0) printf("checkpoint  %s  %.2f s\n", path, seconds_now() - start);
    return 0;
}

/* On which rows of the embedding the last micro-batches have a gradient: see token_rows_begin. */
static void agree_on_rows(run *r, const token_batch *batch) {
    int micro = r->model.options.B, last = batch->rows > 0 ? (batch->rows - 1) / micro * micro : 0;
    size_t at = (size_t)last * (size_t)batch->seq_len;
    token_rows_begin(&r->optimizer.token_rows, batch->tokens + at, (int64_t)(batch->rows - last) * batch->seq_len);
}

/* This rank's rows of the next step, and the valid tokens of all ranks. waited: seconds. */
static int next_batch(run *r, const token_batch **batch, int64_t *n_valid, double *waited, error *err) {
    profile_enter(r->profile);
    int result = loader_next(r->loader, batch, waited, err);
    profile_leave(r->profile, PART_DATA, 0);
    profile_enter(r->profile);
    if (ranks_agree(r->ranks, result, err)) return -1;
    *n_valid = (*batch)->n_valid;
    ranks_sum_int64(r->ranks, n_valid, 1);
    agree_on_rows(r, *batch);
    profile_leave(r->profile, PART_COLLECTIVES, sizeof *n_valid);
    return 0;
}

/* Starts a step with the next rows. *stopped: left as it is, or why the step is not made. */
static int next_step(run *r, open_steps *open, const char **stopped, error *err) {
    const token_batch *batch;
    int64_t n_valid;
    double waited = 0;
    range_begin(r, "step", r->progress.step + n_open(open) + 1);
    range_begin(r, "data", -1);
    if (next_batch(r, &batch, &n_valid, &waited, err)) return -1;
    range_end(r);
    start_step(r, open, batch, n_valid, waited, stopped);
    range_end(r);
    return 0;
}

/* Finishes the oldest open step: reads its report, counts it, logs it when it is due. */
static int finish_step(run *r, const run_plan *plan, metrics *m, open_steps *open, stopwatch *watch, int64_t last, error *err) {
    const checkpoint_info *p = &r->progress;
    step_result s;
    double waited;
    range_begin(r, "report", p->step + 1);
    if (read_report(r, open, &s, &waited, err)) return -1;
    range_end(r);
    if (count_step(r, &s, err)) return -1;
    double now = seconds_now(), took = now - watch->since;
    *watch = (stopwatch){now, watch->busy_s + took, watch->wait_s + waited, watch->steps + 1};
    profile_step(r->profile, took);
    if (!every(p->step, r->config.train.log_every) && p->step != last && p->step != 1) return 0;
    return log_step(r, plan, m, &s, watch, err);
}

/* Does something follow step `step` that needs its result? */
static bool is_boundary(const run *r, int64_t step, int64_t last) {
    return step == last || every(step, r->config.train.eval_every) || every(step, r->config.checkpoint.every);
}

int train_loop(run *r, const run_plan *plan, metrics *m, const char **stopped, error *err) {
    const run_config *c = &r->config;
    checkpoint_info *p = &r->progress;
    open_steps open = {0};
    bool saved = true; /* the run as it is */
    int64_t last = c->train.stop_after > 0 && c->train.stop_after < plan->n_steps ? c->train.stop_after : plan->n_steps;
    *stopped = NULL;
    if (train_owes_evaluation(r)) {
        if (evaluate(r, m, stopped, err)) return -1;
        saved = *stopped != NULL;
    }
    stopwatch watch = {.since = seconds_now()};
    while (*stopped == NULL && p->step < last) {
        if ((*stopped = stop_agreed(r->ranks)) == NULL && next_step(r, &open, stopped, err)) return -1;
        int64_t at_most = *stopped || is_boundary(r, p->step + n_open(&open), last) ? 0 : r->ops->run_ahead;
        while (n_open(&open) > at_most) {
            if (finish_step(r, plan, m, &open, &watch, last, err)) return -1;
            saved = false;
        }
        if (*stopped || n_open(&open) > 0) continue;
        if (train_owes_evaluation(r) && evaluate(r, m, stopped, err)) return -1;
        saved = every(p->step, c->checkpoint.every);
        if (saved && save(r, err)) return -1;
        watch.since = seconds_now();
    }
    if (*stopped == NULL && p->step < plan->n_steps) *stopped = "train.stop_after";
    return saved ? 0 : save(r, err);
}
