/* test_model.c: the model against PyTorch (tests/fixtures/), and the promises of model/model.h.
 *
 * fp32 must agree with the float64 reference to 1e-5 of each gradient's norm: a few dozen roundings of 6e-8 one after another,
 * and nothing that a missing term, a wrong mask or a bf16 anywhere could hide in. */
#include "tests/fixture.h"

static const char *const fixtures[] = {
    "full_l2",
    "full_none_half_untied",
    "full_rms_half",
    "full_rms_interleaved_untied",
    "full_l2_half",
    "window_l2",
    "window_of_one",
    "window_beyond_row",
    "hybrid_fws",
    "hybrid_sfw_rms",
    "skip_all",
    "heads_wider",
    "heads_narrower",
    "documents",
    "ignored_targets",
    "z_loss",
    "positions",
    "long_documents",
    "long_window_d64",
    "rms_d128",
    "heads_d64_rms_half",
};
enum { N_FIXTURES = sizeof fixtures / sizeof *fixtures };

static const model_options training_f32 = {.x = DTYPE_F32, .training = true}, training_bf16 = {.x = DTYPE_BF16, .training = true};

/* sums: of the losses and z-losses since the last call that did not accumulate. */
static void train_with(network *net, const model_input *in, float scale, double z_loss, bool accumulate, const model_hooks *hooks,
                       double sums[2]) {
    error err = {0};
    model_train(&net->m, in, scale, (float)z_loss, accumulate, hooks);
    net->ops->copy_out(net->backend, sums, net->m.loss_sums, 2 * sizeof *sums);
    if (net->ops->sync(net->backend, &err)) fail_msg("%s", err.text);
}

static void train(network *net, const model_input *in, float scale, double z_loss, bool accumulate, double sums[2]) {
    train_with(net, in, scale, z_loss, accumulate, NULL, sums);
}

static float *token_losses(network *net, const model_input *in) {
    error err = {0};
    float *losses = malloc((size_t)in->rows * (size_t)net->m.options.T * sizeof *losses);
    if (model_losses(&net->m, in, losses, &err)) fail_msg("%s", err.text);
    return losses;
}

/* A fixture's network after one step on all of its rows, by the mean loss. */
typedef struct trained {
    fixture f;
    network net;
    fixture_input input;
    model_input rows;
    double z_loss, sums[2];
    int64_t n_valid;
} trained;

static trained train_fixture(const char *name, model_options o) {
    trained t = {.f = fixture_open(name)};
    t.input = fixture_read_input(&t.f);
    t.rows = fixture_rows(&t.input, 0, t.input.rows);
    t.n_valid = fixture_valid(&t.rows, t.input.T);
    t.z_loss = fixture_number(&t.f, "z_loss");
    fixture_network(&t.net, &t.f, o);
    train(&t.net, &t.rows, 1.0f / (float)t.n_valid, t.z_loss, false, t.sums);
    return t;
}

static void trained_close(trained *t) {
    network_close(&t->net);
    fixture_free_input(&t->input);
    fixture_close(&t->f);
}

static void check_sum(const trained *t, const char *attribute, double got, double limit) {
    double expected = fixture_number(&t->f, attribute);
    if (!(fabs(got - expected) <= limit * fabs(expected)))
        fail_msg("%s: %s is %.9g, PyTorch's %.9g: off by %.2e of it, allowed %.0e", t->f.name, attribute, got, expected,
                 fabs(got / expected - 1), limit);
}

/* ---- against PyTorch ---- */

/* Where PyTorch's gradient is zero (queries that see one key), ours is rounding, measured by that of all tensors together. */
static bool check_zero(const tensor *x, const float *got, const float *expected, double whole, double limit) {
    for (int64_t i = 0; i < x->count; i++)
        if (expected[i] != 0) return false;
    double size = norm_of(got, x->count);
    if (!(size <= limit * whole)) fail_msg("the gradient of %s is zero, and has norm %.2e (all: %.2e)", x->name, size, whole);
    return true;
}

static void check_f32(const trained *t, const tensor *x, const float *got, const float *expected, double whole) {
    if (check_zero(x, got, expected, whole, 1e-6)) return;
    double e = relative_error(got, expected, x->count);
    if (!(e <= 1e-5)) fail_msg("%s: the gradient of %s is off by %.2e of its norm, allowed 1e-5", t->f.name, x->name, e);
}

static void check_bf16(const trained *t, const tensor *x, const float *got, const float *expected, double whole) {
    if (check_zero(x, got, expected, whole, 0x1p-8)) return;
    double c = cosine(got, expected, x->count);
    if (!(c >= 0.999)) fail_msg("%s: the gradient of %s has cosine %.5f with PyTorch's", t->f.name, x->name, c);
}

static void check_gradients(trained *t, void (*check)(const trained *, const tensor *, const float *, const float *, double)) {
    const registry *r = &t->net.m.registry;
    float *all = network_gradients(&t->net), *got = all;
    double whole = norm_of(all, r->n_params);
    for (int i = 0; i < r->n_tensors; got += r->tensors[i++].count) {
        float *expected = fixture_tensor(&t->f, "grads", &r->tensors[i]);
        check(t, &r->tensors[i], got, expected, whole);
        free(expected);
    }
    free(all);
}

static void f32_is_pytorch(void **state) {
    trained t = train_fixture(*state, training_f32);
    assert_int_equal(t.n_valid, (int64_t)fixture_number(&t.f, "n_valid"));
    check_sum(&t, "loss_sum", t.sums[0], 1e-6);
    check_sum(&t, "z_loss_sum", t.sums[1], 1e-6);
    check_gradients(&t, check_f32);
    trained_close(&t);
}

static void f32_token_losses_are_pytorchs(void **state) {
    (void)state;
    for (int i = 0; i < N_FIXTURES; i++) {
        trained t = train_fixture(fixtures[i], training_f32);
        int64_t n;
        double *expected = fixture_doubles(&t.f, "losses", &n);
        float *got = token_losses(&t.net, &t.rows);
        for (int64_t k = 0; k < n; k++)
            if (!(fabs((double)got[k] - expected[k]) <= 1e-5))
                fail_msg("%s: the loss of token %lld is %.9g, PyTorch's %.9g", t.f.name, (long long)k, (double)got[k],
                         expected[k]);
        free(expected);
        free(got);
        trained_close(&t);
    }
}

/* The same steps in bf16, where each stored number, weights included, is off by up to 2^-9 of itself. PyTorch's own bf16 strays
 * as far on these networks: cosines of 0.9994 to 0.9999, losses off by up to 0.4 %. */
static void bf16_is_near_pytorch(void **state) {
    trained t = train_fixture(*state, training_bf16);
    check_sum(&t, "loss_sum", t.sums[0], 0.005);
    check_gradients(&t, check_bf16);
    trained_close(&t);
}

/* ---- what must not matter ---- */

/* Both gradients, to 1e-6 of each tensor's norm: what another order of fp32 sums may do. */
static void check_same_gradients(const registry *r, const float *got, const float *expected, const char *what) {
    int64_t at = 0;
    for (int i = 0; i < r->n_tensors; at += r->tensors[i++].count) {
        double e = relative_error(got + at, expected + at, r->tensors[i].count);
        if (!(e <= 1e-6)) fail_msg("%s: the gradient of %s differs by %.2e of its norm", what, r->tensors[i].name, e);
    }
}

static void micro_batches_add_up(void **state) {
    (void)state;
    static const int splits[][4] = {{1, 1, 1, 1}, {2, 2}, {3, 1}, {1, 2, 1}};
    trained t = train_fixture("ignored_targets", training_f32);
    assert_int_equal(t.input.rows, 4);
    float *whole = network_gradients(&t.net);
    for (int s = 0; s < 4; s++) {
        double sums[2] = {0};
        for (int i = 0, first = 0; i < 4 && splits[s][i] > 0; first += splits[s][i++]) {
            model_input rows = fixture_rows(&t.input, first, splits[s][i]);
            train(&t.net, &rows, 1.0f / (float)t.n_valid, 0, i > 0, sums);
        }
        float *added = network_gradients(&t.net);
        check_same_gradients(&t.net.m.registry, added, whole, "micro-batches");
        assert_true(fabs(sums[0] / t.sums[0] - 1) < 1e-6);
        free(added);
    }
    free(whole);
    trained_close(&t);
}

static void head_chunks_do_not_matter(void **state) {
    (void)state;
    static const char *const names[] = {"documents", "z_loss", "full_none_half_untied"};
    static const int chunks[] = {1, 3, 16};
    for (int i = 0; i < 3; i++) {
        trained whole = train_fixture(names[i], training_f32);
        float *expected = network_gradients(&whole.net);
        for (int k = 0; k < 3; k++) {
            model_options o = training_f32;
            o.head_chunk = chunks[k];
            trained t = train_fixture(names[i], o);
            float *got = network_gradients(&t.net);
            check_same_gradients(&t.net.m.registry, got, expected, names[i]);
            assert_true(fabs(t.sums[0] / whole.sums[0] - 1) < 1e-6);
            assert_true(fabs(t.sums[1] - whole.sums[1]) <= 1e-6 * whole.sums[1]);
            free(got);
            trained_close(&t);
        }
        free(expected);
        trained_close(&whole);
    }
}

/* Two models, the second with NaNs where the first had zeros in its gradients: the first micro-batch replaces what was there. */
static void check_two_runs(dtype x) {
    for (int i = 0; i < N_FIXTURES; i++) {
        model_options o = {.x = x, .training = true};
        trained a = train_fixture(fixtures[i], o), b = train_fixture(fixtures[i], o);
        float *first = network_gradients(&a.net);
        size_t bytes = (size_t)b.net.m.registry.n_flat * sizeof(float);
        void *nans = malloc(bytes);
        memset(nans, 0xff, bytes);
        b.net.ops->copy_in(b.net.backend, b.net.m.grads, nans, bytes);
        double sums[2] = {0};
        train(&b.net, &b.rows, 1.0f / (float)b.n_valid, b.z_loss, false, sums);
        float *second = network_gradients(&b.net);
        if (memcmp(first, second, (size_t)a.net.m.registry.n_params * sizeof *first))
            fail_msg("%s, %s: two runs gave different gradients", fixtures[i], dtype_name(x));
        assert_memory_equal(sums, a.sums, sizeof sums);
        free(nans);
        free(first);
        free(second);
        trained_close(&a);
        trained_close(&b);
    }
}

static void two_runs_are_bit_equal_f32(void **state) {
    (void)state;
    check_two_runs(DTYPE_F32);
}

static void two_runs_are_bit_equal_bf16(void **state) {
    (void)state;
    check_two_runs(DTYPE_BF16);
}

/* Other words in document `doc` of row `row`: its own losses change, all others keep their bits. */
static void check_document_alone(trained *t, const float *losses, int row, int doc) {
    int T = t->input.T;
    bool changed = false;
    int64_t n_targets = 0, V = t->net.m.config.vocab_size;
    fixture_input other = t->input;
    size_t bytes = (size_t)other.rows * (size_t)T * sizeof(int32_t);
    other.tokens = memcpy(malloc(bytes), t->input.tokens, bytes);
    for (int i = row * T; i < (row + 1) * T; i++)
        if (other.doc[i] == doc) other.tokens[i] = (other.tokens[i] + 1 + i % 7) % (int32_t)V;
    model_input in = fixture_rows(&other, 0, other.rows);
    float *after = token_losses(&t->net, &in);
    for (int i = 0; i < other.rows * T; i++) {
        bool same = memcmp(&after[i], &losses[i], sizeof *losses) == 0, inside = i / T == row && other.doc[i] == doc;
        if (!inside && !same) fail_msg("%s: document %d of row %d changes the loss of token %d", t->f.name, doc, row, i);
        n_targets += inside && other.targets[i] >= 0;
        changed |= inside && !same;
    }
    assert_true(changed == (n_targets > 0));
    free(after);
    free(other.tokens);
}

static void documents_do_not_see_each_other(void **state) {
    (void)state;
    static const char *const names[] = {"documents", "long_documents", "long_window_d64"};
    for (int i = 0; i < 3; i++) {
        trained t = train_fixture(names[i], training_f32);
        float *losses = token_losses(&t.net, &t.rows);
        for (int row = 0; row < t.input.rows; row++)
            for (int doc = 0; doc <= t.input.doc[(row + 1) * t.input.T - 1]; doc++) check_document_alone(&t, losses, row, doc);
        free(losses);
        trained_close(&t);
    }
}

/* ---- losses and logits without training ---- */

/* A model without gradients keeps all layers in the same memory; training must not tell it apart. */
static void losses_are_those_of_training(void **state) {
    (void)state;
    for (int i = 0; i < N_FIXTURES; i++) {
        trained t = train_fixture(fixtures[i], training_f32);
        network forward_only;
        fixture_network(&forward_only, &t.f, (model_options){.x = DTYPE_F32});
        float *expected = token_losses(&t.net, &t.rows), *got = token_losses(&forward_only, &t.rows);
        double total = 0;
        for (int64_t k = 0; k < (int64_t)t.input.rows * t.input.T; k++) {
            if (t.input.targets[k] < 0) assert_true(expected[k] == 0);
            total += (double)expected[k];
        }
        assert_memory_equal(got, expected, (size_t)t.input.rows * (size_t)t.input.T * sizeof *got);
        if (!(fabs(total - t.sums[0]) <= 1e-12 * total)) fail_msg("%s: %.15g and %.15g", fixtures[i], total, t.sums[0]);
        free(expected);
        free(got);
        network_close(&forward_only);
        trained_close(&t);
    }
}

static void logits_give_the_losses(void **state) {
    (void)state;
    error err = {0};
    trained t = train_fixture("hybrid_fws", training_f32);
    float *losses = token_losses(&t.net, &t.rows);
    int64_t V = t.net.m.config.vocab_size;
    float *z = malloc((size_t)V * sizeof *z);
    for (int at = 0; at < t.input.T; at++) {
        if (model_logits(&t.net.m, &t.rows, at, z, &err)) fail_msg("%s", err.text);
        double sum = 0;
        for (int64_t v = 0; v < V; v++) sum += exp((double)z[v]);
        double loss = log(sum) - (double)z[t.input.targets[at]];
        if (!(fabs(loss - (double)losses[at]) <= 1e-5))
            fail_msg("position %d: %.9g by logits, %.9g", at, loss, (double)losses[at]);
    }
    free(z);
    free(losses);
    trained_close(&t);
}

/* ---- hooks ---- */

typedef struct hook_log {
    network *net;
    int needed[64], n_needed, final[64], n_final;
    int64_t n_rows;
    float *snapshot; /* (n_flat): each group's gradients when they were said to be final */
} hook_log;

static void log_needed(void *context, int group) {
    hook_log *log = context;
    log->needed[log->n_needed++] = group;
}

static void log_final(void *context, int group) {
    hook_log *log = context;
    const model *m = &log->net->m;
    log->final[log->n_final++] = group;
    for (int i = 0; i < m->registry.n_buckets; i++) {
        bucket k = m->registry.buckets[i];
        if (k.group == group)
            m->ops->copy_out(m->backend, log->snapshot + k.offset, m->grads + k.offset, (size_t)k.count * sizeof(float));
    }
}

/* Once per group, from the head to the embedding, and nothing changes after its group's call. */
static void check_hooks(const char *name) {
    trained t = train_fixture(name, training_f32);
    int L = t.net.m.config.n_layers;
    size_t bytes = (size_t)t.net.m.registry.n_flat * sizeof(float);
    hook_log log = {.net = &t.net, .snapshot = malloc(bytes)};
    model_hooks hooks = {.weights_needed = log_needed, .gradients_final = log_final, .context = &log};
    double sums[2] = {0};
    train_with(&t.net, &t.rows, 1.0f, 0, false, &hooks, sums);

    assert_int_equal(log.n_final, L + 2);
    for (int i = 0; i < L + 2; i++) assert_int_equal(log.final[i], L + 1 - i);
    assert_memory_equal(log.snapshot, t.net.m.grads, bytes);

    /* Forward: the embedding, the layers, the head, which when tied is the embedding again. Backward: the layers from the last.
     */
    int tied = t.net.m.config.tie_embeddings;
    assert_int_equal(log.n_needed, 2 * L + 2 + tied);
    for (int i = 0; i < L + 2; i++) assert_int_equal(log.needed[i], i);
    if (tied) assert_int_equal(log.needed[L + 2], 0);
    for (int i = 0; i < L; i++) assert_int_equal(log.needed[L + 2 + tied + i], L - i);
    free(log.snapshot);
    trained_close(&t);
}

static void hooks_name_each_group_once(void **state) {
    (void)state;
    check_hooks("hybrid_fws");
    check_hooks("full_none_half_untied");
}

/* What a caller does that has no other ranks: adds the rows where they belong. */
static void add_rows(void *context, int64_t N) {
    hook_log *log = context;
    const model *m = &log->net->m;
    log->n_rows = N;
    m->ops->embedding_backward(m->backend, m->grads, m->dh, m->tokens, m->options.x, N, m->config.d_model, 0,
                               m->config.vocab_size);
}

/* A tied embedding is final after the head but for the rows of the tokens; with these all gradients have their usual bits. */
static void rows_of_tied_embeddings_may_be_the_callers_to_add(void **state) {
    (void)state;
    trained t = train_fixture("hybrid_fws", training_f32);
    assert_true(t.net.m.config.tie_embeddings);
    int L = t.net.m.config.n_layers;
    size_t bytes = (size_t)t.net.m.registry.n_flat * sizeof(float);
    hook_log log = {.net = &t.net, .snapshot = malloc(bytes)};
    float *usual = memcpy(malloc(bytes), t.net.m.grads, bytes);
    model_hooks hooks = {.gradients_final = log_final, .rows_final = add_rows, .context = &log};
    double sums[2] = {0};
    train_with(&t.net, &t.rows, 1.0f / (float)t.n_valid, t.z_loss, false, &hooks, sums);

    assert_int_equal(log.n_final, L + 2);
    assert_int_equal(log.final[0], L + 1);
    assert_int_equal(log.final[1], 0);
    for (int i = 0; i < L; i++) assert_int_equal(log.final[2 + i], L - i);
    assert_int_equal(log.n_rows, (int64_t)t.rows.rows * t.input.T);
    assert_memory_equal(t.net.m.grads, usual, bytes);
    assert_memory_not_equal(log.snapshot, usual, (size_t)t.net.m.registry.buckets[0].count * sizeof(float));
    free(usual);
    free(log.snapshot);
    trained_close(&t);
}

/* ---- twenty steps of AdamW ---- */

/* The optimizer's memory: a tensor's parts lie where they do in the flat array. */
typedef struct adamw_memory {
    float *m, *v; /* (n_flat) */
    double *sum_squares;
    adamw_state *state;
} adamw_memory;

/* Returns the norm of the gradient before it was clipped. */
static double adamw_update(network *net, const adamw_memory *memory, const fixture *f, double lr) {
    const ops *op = net->ops;
    const registry *r = &net->m.registry;
    double sum_squares = 0;
    memset(memory->sum_squares, 0, sizeof(double));
    for (int i = 0; i < r->n_tensors; i++)
        op->sum_squares(net->backend, memory->sum_squares, net->m.grads + r->tensors[i].offset, r->tensors[i].count);
    op->adamw_begin(net->backend, memory->state, memory->sum_squares, (float)fixture_number(f, "max_norm"),
                    (float)fixture_number(f, "beta1"), (float)fixture_number(f, "beta2"));
    for (int i = 0; i < r->n_tensors; i++) {
        const tensor *x = &r->tensors[i];
        adamw_step step = {.lr = (float)lr,
                           .beta1 = (float)fixture_number(f, "beta1"),
                           .beta2 = (float)fixture_number(f, "beta2"),
                           .eps = (float)fixture_number(f, "eps"),
                           .weight_decay = x->decay ? (float)fixture_number(f, "weight_decay") : 0};
        op->adamw(net->backend, (float *)net->m.params + x->offset, NULL, memory->m + x->offset, memory->v + x->offset,
                  net->m.grads + x->offset, memory->state, &step, DTYPE_F32, x->count);
    }
    op->copy_out(net->backend, &sum_squares, memory->sum_squares, sizeof sum_squares);
    return sqrt(sum_squares);
}

static void twenty_steps_of_adamw_are_pytorchs(void **state) {
    (void)state;
    fixture f = fixture_open("adamw");
    fixture_input in = fixture_read_input(&f);
    network net;
    fixture_network(&net, &f, training_f32);
    int64_t n = net.m.registry.n_flat, n_steps;
    double *lr = fixture_doubles(&f, "lr", &n_steps), *loss = fixture_doubles(&f, "loss", &n_steps);
    double *norm = fixture_doubles(&f, "grad_norm", &n_steps);
    assert_int_equal(n_steps, 20);
    adamw_memory memory = {calloc((size_t)n, sizeof(float)), calloc((size_t)n, sizeof(float)), malloc(sizeof(double)),
                           calloc(1, sizeof(adamw_state))};
    for (int step = 0; step < 20; step++) {
        model_input rows = fixture_rows(&in, step * in.rows, in.rows);
        int64_t n_valid = fixture_valid(&rows, in.T);
        double sums[2] = {0};
        train(&net, &rows, 1.0f / (float)n_valid, 0, false, sums);
        double got = sums[0] / (double)n_valid, got_norm = adamw_update(&net, &memory, &f, lr[step]);
        if (!(fabs(got / loss[step] - 1) <= 1e-5))
            fail_msg("step %d: the loss is %.9g, PyTorch's %.9g", step + 1, got, loss[step]);
        if (!(fabs(got_norm / norm[step] - 1) <= 1e-5))
            fail_msg("step %d: the gradient's norm is %.9g, PyTorch's %.9g", step + 1, got_norm, norm[step]);
    }
    for (int i = 0; i < net.m.registry.n_tensors; i++) {
        const tensor *x = &net.m.registry.tensors[i];
        float *expected = fixture_tensor(&f, "final", x), *got = malloc((size_t)x->count * sizeof *got);
        model_get_tensor(&net.m, x, got);
        double e = relative_error(got, expected, x->count);
        if (!(e <= 1e-5)) fail_msg("%s ends off by %.2e of its norm", x->name, e);
        free(expected);
        free(got);
    }
    void *all[] = {lr, loss, norm, memory.m, memory.v, memory.sum_squares, memory.state};
    for (int i = 0; i < 7; i++) free(all[i]);
    network_close(&net);
    fixture_free_input(&in);
    fixture_close(&f);
}

/* ---- memory and work ---- */

/* In fp32 throughout, an angle of 8191 radians would be off by 5e-4. */
static void rotary_tables_are_exact_far_out(void **state) {
    (void)state;
    enum { T = 8192, D = 8 };
    char attention[] = "f";
    model_config c = {.vocab_size = 3,
                      .n_layers = 1,
                      .d_model = 8,
                      .d_ffn = 8,
                      .n_heads = 1,
                      .n_kv_heads = 1,
                      .head_dim = D,
                      .attention = attention,
                      .window = 1,
                      .rope_theta = 500000,
                      .norm_eps = 1e-5};
    network net;
    network_open(&net, &c, (model_options){.x = DTYPE_F32, .B = 1, .T = T});
    for (int t = 0; t < T; t++)
        for (int p = 0; p < D / 2; p++) {
            long double angle = t / powl(500000, (long double)(2 * p) / D);
            double cosine_error = fabs((double)(net.m.cosines[t * (D / 2) + p] - cosl(angle)));
            double sine_error = fabs((double)(net.m.sines[t * (D / 2) + p] - sinl(angle)));
            if (!(cosine_error <= 6e-8 && sine_error <= 6e-8))
                fail_msg("pair %d at position %d: off by %.2e and %.2e", p, t, cosine_error, sine_error);
        }
    network_close(&net);
}

static void head_chunks_are_near_what_the_backend_asks_for(void **state) {
    (void)state;
    const int64_t logits = (int64_t)1 << 26;
    assert_int_equal(cpu_ops()->head_logits, logits);
    assert_int_equal(model_head_chunk(logits, 202048, 8192), 332);
    assert_int_equal(model_head_chunk(logits, 202048, 100), 100);
    assert_int_equal(model_head_chunk(logits, 37, 1 << 20), 8192);
    assert_int_equal(model_head_chunk(logits, 1 << 20, 1 << 20), 256);
}

/* Attention counted key by key; 6 for each weight that multiplies, once per token. */
static void flops_count_the_keys_that_are_seen(void **state) {
    (void)state;
    char attention[] = "fws";
    int T = 9, W = 4;
    model_config c = {.vocab_size = 37,
                      .n_layers = 3,
                      .d_model = 10,
                      .d_ffn = 14,
                      .n_heads = 4,
                      .n_kv_heads = 2,
                      .head_dim = 6,
                      .attention = attention,
                      .window = W,
                      .tie_embeddings = true};
    double keys = 0;
    for (int query = 0; query < T; query++)
        for (int key = 0; key <= query; key++) keys += 1 + (query - key < W);
    double projections = 2 * (24 * 10 + 12 * 10 + 12 * 10 + 10 * 24), ffn = 3 * 3 * 10 * 14, head = 37 * 10;
    double expected = 6 * (projections + ffn + head) + 12 * 24 * keys / T;
    assert_true(fabs(model_flops_per_token(&c, T) - expected) < 1e-9 * expected);
}

int main(void) {
    enum { N_OTHERS = 14 };
    struct CMUnitTest tests[N_OTHERS + 2 * N_FIXTURES] = {
        cmocka_unit_test(f32_token_losses_are_pytorchs),      cmocka_unit_test(micro_batches_add_up),
        cmocka_unit_test(head_chunks_do_not_matter),          cmocka_unit_test(two_runs_are_bit_equal_f32),
        cmocka_unit_test(two_runs_are_bit_equal_bf16),        cmocka_unit_test(documents_do_not_see_each_other),
        cmocka_unit_test(losses_are_those_of_training),       cmocka_unit_test(logits_give_the_losses),
        cmocka_unit_test(hooks_name_each_group_once),         cmocka_unit_test(twenty_steps_of_adamw_are_pytorchs),
        cmocka_unit_test(rotary_tables_are_exact_far_out),    cmocka_unit_test(head_chunks_are_near_what_the_backend_asks_for),
        cmocka_unit_test(flops_count_the_keys_that_are_seen), cmocka_unit_test(rows_of_tied_embeddings_may_be_the_callers_to_add),
    };
    static char names[2 * N_FIXTURES][64];
    for (int i = 0; i < 2 * N_FIXTURES; i++) {
        bool f32 = i < N_FIXTURES;
        const char *name = fixtures[i % N_FIXTURES];
        snprintf(names[i], sizeof names[i], "%s: %s", f32 ? "f32_is_pytorch" : "bf16_is_near_pytorch", name);
        tests[N_OTHERS + i] =
            (struct CMUnitTest){names[i], f32 ? f32_is_pytorch : bf16_is_near_pytorch, NULL, NULL, (void *)name};
    }
    return _cmocka_run_group_tests("model", tests, N_OTHERS + 2 * N_FIXTURES, NULL, NULL);
}
