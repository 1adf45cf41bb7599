/* test_optimizer.c: train/optimizer.h: what the ranks make of a step together.
 *
 * Ranks are taken one after the other in one process: until a backend is connected its collectives do nothing, and a rank's own
 * part of the parameters needs nothing from the others when gradients are not clipped. */
#include "train/optimizer.h"

#include "fixture.h"
#include "util/rng.h"

/* Sizes that no cut of a bucket falls together with, nor a block of random bits. */
static const char NETWORK[] = "vocab_size: 61\nn_layers: 2\nd_model: 30\nd_ffn: 50\nn_heads: 3\nn_kv_heads: 1\nhead_dim: 10\n";

/* One rank: its network, its optimizer and the memory of that. */
typedef struct rank {
    network net;
    ranks ranks;
    optimizer o;
    void *memory;
} rank;

static void rank_open(rank *r, const model_config *c, int at, int ways) {
    error err;
    r->ranks = (ranks){.rank = at, .size = ways};
    network_open(&r->net, c, (model_options){.x = DTYPE_BF16, .B = 1, .T = 8, .ways = ways, .training = true});
    arena plan = arena_dry();
    if (optimizer_open(&r->o, &r->net.m, &r->ranks, &plan, &err)) fail_msg("%s", err.text);
    r->memory = r->net.ops->alloc(r->net.backend, plan.peak, &err);
    assert_non_null(r->memory);
    arena real = arena_on(r->memory, plan.peak);
    if (optimizer_open(&r->o, &r->net.m, &r->ranks, &real, &err)) fail_msg("%s", err.text);
    if (optimizer_master_from_init(&r->o, 1, 0.02f, &err)) fail_msg("%s", err.text);
}

static void rank_close(rank *r) {
    optimizer_close(&r->o);
    r->net.ops->free(r->net.backend, r->memory);
    network_close(&r->net);
}

/* Steps with gradients that are a function of tensor, element and step. */
static void take_steps(rank *r, const run_config *c, int steps) {
    const registry *reg = &r->net.m.registry;
    error err;
    for (int k = 0; k < steps; k++) {
        for (int i = 0; i < reg->n_tensors; i++)
            rng_normal(r->net.m.grads + reg->tensors[i].offset, rng_mix((uint64_t)k, (uint64_t)i), 0, reg->tensors[i].count, 1);
        step_report report;
        optimizer_step(&r->o, c, 1e-3);
        if (optimizer_report(&r->o, &report, &err)) fail_msg("%s", err.text);
    }
}

/* Puts the rank's pieces where they lie among all parameters, tensors one behind the other without padding. */
static void collect(const rank *r, bf16 *params, float *master) {
    const registry *reg = &r->net.m.registry;
    int64_t start = 0;
    for (int i = 0, p = 0; i < reg->n_tensors; start += reg->tensors[i++].count)
        for (; p < r->o.n_pieces && r->o.pieces[p].tensor == i; p++) {
            const piece *from = &r->o.pieces[p];
            memcpy(params + start + from->first, (bf16 *)r->net.m.params + from->flat, (size_t)from->count * sizeof *params);
            memcpy(master + start + from->first, r->o.master + from->shard, (size_t)from->count * sizeof *master);
        }
}

/* All parameters after some steps of `ways` ranks. */
static int64_t train(const model_config *c, const run_config *run, int ways, bf16 **params, float **master) {
    int64_t n = 0;
    for (int at = 0; at < ways; at++) {
        rank r;
        rank_open(&r, c, at, ways);
        if (at == 0) {
            n = r.net.m.registry.n_params;
            *params = malloc((size_t)n * sizeof **params);
            *master = malloc((size_t)n * sizeof **master);
            assert_true(*params && *master);
        }
        take_steps(&r, run, 3);
        collect(&r, *params, *master);
        rank_close(&r);
    }
    return n;
}

/* The same for 1, 2, 3 and 5 ranks, whose pieces begin and end elsewhere; and not what rounding to nearest gives. */
static void rounding_by_chance_does_not_depend_on_the_ranks(void **state) {
    (void)state;
    error err;
    model_config c;
    run_config run = {.init.seed = 3,
                      .optimizer = {.betas = {0.9, 0.95}, .eps = 1e-8, .weight_decay = 0.1, .stochastic_rounding = true}};
    if (config_read(&c, model_config_keys, "net", NETWORK, NULL, 0, &err) || model_config_complete(&c, &err))
        fail_msg("%s", err.text);
    bf16 *whole, *params;
    float *whole_master, *master;
    int64_t n = train(&c, &run, 1, &whole, &whole_master), to_nearest = 0;
    for (int64_t i = 0; i < n; i++) to_nearest += whole[i] == bf16_from_float(whole_master[i]);
    if (to_nearest < n * 6 / 10 || to_nearest > n * 9 / 10) /* three quarters, where all distances are alike */
        fail_msg("%lld of %lld weights are what rounding to nearest gives", (long long)to_nearest, (long long)n);
    for (int ways = 2; ways <= 5; ways += ways == 3 ? 2 : 1) {
        train(&c, &run, ways, &params, &master);
        assert_memory_equal(master, whole_master, (size_t)n * sizeof *master);
        assert_memory_equal(params, whole, (size_t)n * sizeof *params);
        free(params), free(master);
    }
    run.init.seed = 4; /* of the random bits: the weights start from 1 */
    train(&c, &run, 1, &params, &master);
    assert_memory_equal(master, whole_master, (size_t)n * sizeof *master);
    int64_t others = 0;
    for (int64_t i = 0; i < n; i++) others += params[i] != whole[i];
    assert_true(others > n / 10);
    free(params), free(master), free(whole), free(whole_master);
    model_config_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(rounding_by_chance_does_not_depend_on_the_ranks)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
