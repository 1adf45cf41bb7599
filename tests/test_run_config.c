/* test_run_config.c: model/config.h and train/config.h, and every file in configs/. Run from the root of the repository. */
#include "train/config.h"

#include <glob.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "data/bytes.h"
#include "model/registry.h"

enum { MOST_OVERRIDES = 8 };
#define WITH(...) ((const char *const[MOST_OVERRIDES]){__VA_ARGS__})

static const char RUN[] = "configs/runs/tiny.yaml";

static int read_run(run_config *c, const char *const overrides[MOST_OVERRIDES], error *err) {
    int n = 0;
    while (n < MOST_OVERRIDES && overrides[n]) n++;
    memset(c, 0xAA, sizeof *c);
    return run_config_read(c, RUN, overrides, n, err);
}

static run_config accepted(const char *const overrides[MOST_OVERRIDES]) {
    run_config c;
    error err;
    if (read_run(&c, overrides, &err)) fail_msg("refused: %s", err.text);
    return c;
}

/* The tiny run with the overrides is refused with a message that begins with `begins`, and nothing is left in the struct. */
static void refused(const char *begins, const char *const overrides[MOST_OVERRIDES]) {
    run_config c;
    error err;
    if (read_run(&c, overrides, &err) == 0) fail_msg("accepted %s, expected: %s", overrides[0], begins);
    assert_int_equal(err.code, STATUS_USAGE);
    if (strncmp(err.text, begins, strlen(begins)) != 0) fail_msg("got: %s\nexpected: %s", err.text, begins);
    assert_null(c.checkpoint.dir);
    assert_null(c.data.train.items);
    assert_null(c.model.attention);
}

/* Reads a network as configs/models/ files say it. */
static model_config network(const char *text) {
    model_config c;
    error err;
    if (config_read(&c, model_config_keys, "net.yaml", text, NULL, 0, &err) || model_config_complete(&c, &err))
        fail_msg("refused: %s", err.text);
    return c;
}

#define SIZES "vocab_size: 9\nn_layers: 3\nd_model: 8\nd_ffn: 16\nn_heads: 4\nn_kv_heads: 2\nhead_dim: 2\n"

static void a_network_of_sizes_alone_has_the_defaults(void **state) {
    (void)state;
    error err;
    model_config c = network(SIZES);
    assert_int_equal(model_config_check(&c, "net", &err), 0);
    assert_string_equal(c.attention, "fff");
    assert_int_equal(c.window, 256);
    assert_int_equal(c.qk_norm, QK_NORM_L2);
    assert_int_equal(c.rope, ROPE_INTERLEAVED);
    assert_true(c.rope_theta == 500000 && c.norm_eps == 1e-5 && c.tie_embeddings);
    model_config_free(&c);
    c = network(SIZES "qk_norm: none\nrope: half\n");
    assert_int_equal(c.qk_norm, QK_NORM_NONE);
    assert_int_equal(c.rope, ROPE_HALF);
    model_config_free(&c);
    c = network(SIZES "qk_norm: rms\n");
    assert_int_equal(c.qk_norm, QK_NORM_RMS);
    model_config_free(&c);
}

static void networks_that_cannot_be_are_refused(void **state) {
    (void)state;
    const struct {
        const char *text, *message;
    } cases[] = {{SIZES "attention: fwxf\n",
                  "net: attention \"fwxf\" has 'x' for layer 2, expected f (full), w (sliding window) or s (skip)"},
                 {SIZES "attention: fw\n", "net: attention \"fw\" has 2 letters, expected one for each of the n_layers 3"},
                 {SIZES "attention: fwsf\n", "net: attention \"fwsf\" has 4 letters, expected one for each of the n_layers 3"},
                 {SIZES "attention: ''\n", "net: attention \"\" has 0 letters, expected one for each of the n_layers 3"},
                 {SIZES "attention: fws\nwindow: 0\n",
                  "net: window is 0, but layer 1 has a sliding window (attention \"fws\"): expected at least 1"},
                 {"vocab_size: 9\nn_layers: 3\nd_model: 8\nd_ffn: 16\nn_heads: 4\nn_kv_heads: 3\nhead_dim: 2\n",
                  "net: n_heads 4 is no multiple of n_kv_heads 3:"},
                 {"vocab_size: 9\nn_layers: 3\nd_model: 8\nd_ffn: 16\nn_heads: 2\nn_kv_heads: 4\nhead_dim: 2\n",
                  "net: n_heads 2 is no multiple of n_kv_heads 4:"},
                 {"vocab_size: 9\nn_layers: 3\nd_model: 8\nd_ffn: 16\nn_heads: 4\nn_kv_heads: 2\nhead_dim: 15\n",
                  "net: head_dim 15 is odd, expected an even number:"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        error err;
        model_config c = network(cases[i].text);
        if (model_config_check(&c, "net", &err) == 0) fail_msg("accepted, expected %s", cases[i].message);
        if (strncmp(err.text, cases[i].message, strlen(cases[i].message)) != 0)
            fail_msg("got: %s\nexpected: %s", err.text, cases[i].message);
        model_config_free(&c);
    }
    error err;
    model_config c = network(SIZES "window: 0\n"); /* no layer has one */
    assert_int_equal(model_config_check(&c, "net", &err), 0);
    model_config_free(&c);
}

/* A config that did not come through the schema, such as one of another format. */
static void sizes_that_would_overflow_are_refused_wherever_they_come_from(void **state) {
    (void)state;
    char pattern[] = "fff";
    const model_config good = {.vocab_size = 9,
                               .n_layers = 3,
                               .d_model = 8,
                               .d_ffn = 16,
                               .n_heads = 4,
                               .n_kv_heads = 2,
                               .head_dim = 2,
                               .attention = pattern,
                               .window = 1,
                               .rope_theta = 1e4,
                               .norm_eps = 1e-5};
    error err;
    assert_int_equal(model_config_check(&good, "net", &err), 0);
    model_config c = good;
    c.n_layers = 0;
    assert_int_equal(model_config_check(&c, "net", &err), -1);
    assert_string_equal(err.text, "net: n_layers is 0, expected 1 to 1024");
    c = good;
    c.d_model = 65537;
    assert_int_equal(model_config_check(&c, "net", &err), -1);
    assert_string_equal(err.text, "net: d_model is 65537, expected 1 to 65536");
    c = good;
    c.n_kv_heads = 0;
    assert_int_equal(model_config_check(&c, "net", &err), -1);
    assert_string_equal(err.text, "net: n_kv_heads is 0, expected 1 to 4096");
    c = good;
    c.vocab_size = (int64_t)1 << 40;
    assert_int_equal(model_config_check(&c, "net", &err), -1);
    assert_non_null(strstr(err.text, "vocab_size is 1099511627776, expected 1 to 16777216"));
    c = good;
    c.norm_eps = NAN;
    assert_int_equal(model_config_check(&c, "net", &err), -1);
    assert_non_null(strstr(err.text, "norm_eps is nan"));
    c = good;
    c.attention = NULL;
    assert_int_equal(model_config_check(&c, "net", &err), -1);
    assert_string_equal(err.text, "net: attention is missing: a letter for each layer");
}

static void a_difference_in_any_key_makes_another_network(void **state) {
    (void)state;
    const char *const lines[] = {"vocab_size: 9\n",    "n_layers: 3\n",         "d_model: 8\n",  "d_ffn: 16\n",
                                 "n_heads: 4\n",       "n_kv_heads: 2\n",       "head_dim: 2\n", "attention: fws\n",
                                 "window: 7\n",        "qk_norm: l2\n",         "rope: half\n",  "rope_theta: 10000\n",
                                 "norm_eps: 1.0e-6\n", "tie_embeddings: true\n"};
    const char *const others[] = {"vocab_size: 8\n",    "n_layers: 4\n",          "d_model: 9\n",        "d_ffn: 17\n",
                                  "n_heads: 8\n",       "n_kv_heads: 1\n",        "head_dim: 4\n",       "attention: ffs\n",
                                  "window: 8\n",        "qk_norm: rms\n",         "rope: interleaved\n", "rope_theta: 10001\n",
                                  "norm_eps: 1.0e-5\n", "tie_embeddings: false\n"};
    enum { N = sizeof lines / sizeof *lines };
    int n_keys = 0;
    while (model_config_keys[n_keys].name) n_keys++;
    assert_int_equal(N, n_keys); /* a new key needs a line here */
    for (int changed = -1; changed < N; changed++) {
        char text[2][512] = {"", ""};
        for (int i = 0; i < N; i++) {
            strcat(text[0], lines[i]);
            strcat(text[1], i == changed ? others[i] : lines[i]);
        }
        model_config a = network(text[0]), b = network(text[1]);
        error err = {0};
        int result = model_config_same(&a, "a.h5", &b, "b.yaml", &err);
        if (changed < 0) assert_int_equal(result, 0);
        if (changed >= 0 && result == 0) fail_msg("the same, but for %s", others[changed]);
        if (changed >= 0) {
            char expected[160];
            const char *colon = strchr(lines[changed], ':');
            int name = (int)(colon - lines[changed]);
            snprintf(expected, sizeof expected, "these are different networks: a.h5 has %.*s ", name, lines[changed]);
            if (strncmp(err.text, expected, strlen(expected)) != 0) fail_msg("got: %s\nexpected: %s", err.text, expected);
            assert_int_equal(err.code, STATUS_INPUT);
        }
        model_config_free(&a);
        model_config_free(&b);
    }
    model_config a = network(SIZES "window: 7\n"), b = network(SIZES "window: 8\n");
    error err;
    assert_int_equal(model_config_same(&a, "a", &b, "b", &err), 0); /* no layer has a window */
    b.d_ffn = 17;
    assert_int_equal(model_config_same(&a, "a.h5", &b, "b.yaml", &err), -1);
    assert_string_equal(err.text, "these are different networks: a.h5 has d_ffn 16, but b.yaml has 17");
    model_config_free(&a);
    model_config_free(&b);
}

/* Reads a run of the keys that must be given, and more. */
static int read_short(run_config *c, char path[32], const char *more, error *err) {
    strcpy(path, "/tmp/test_run_config.XXXXXX");
    FILE *f = fdopen(mkstemp(path), "w");
    assert_non_null(f);
    fprintf(f,
            "model: configs/models/flash-350m.yaml\ndata: {train: [P]}\nbatch: {tokens: 4096}\ntrain: {tokens: 1e6}\n"
            "checkpoint: {dir: D}\n%s",
            more);
    fclose(f);
    int result = run_config_read(c, path, NULL, 0, err);
    unlink(path);
    return result;
}

/* Keys that a run may leave out, and what they then are. */
static void a_short_run_has_the_defaults(void **state) {
    (void)state;
    char path[32];
    run_config c;
    error err;
    if (read_short(&c, path, "optimizer: {lr: 1e-3}\n", &err)) fail_msg("%s", err.text);
    const data_source *train = c.data.train.items;
    assert_int_equal(c.data.train.n, 1);
    assert_string_equal(train->prefix, "P");
    assert_true(train->weight == 1);
    assert_int_equal(c.data.heldout.n, 0);
    assert_int_equal(c.data.seq_len, 2048);
    assert_int_equal(c.data.seed, 1);
    assert_false(c.data.mask_documents);
    assert_int_equal(c.init.seed, 1);
    assert_true(c.init.stddev == 0.02);
    assert_null(c.init.checkpoint);
    assert_int_equal(c.batch.micro, 1);
    assert_int_equal(c.batch.head_chunk, 0);
    assert_int_equal(c.train.tokens, 1000000);
    assert_int_equal(c.train.log_every, 10);
    assert_int_equal(c.train.eval_every, 0);
    assert_int_equal(c.train.eval_tokens, 0);
    assert_true(c.train.time_limit == 0);
    assert_int_equal(c.train.max_nonfinite, 5);
    assert_true(c.train.hang_timeout == 1800);
    assert_int_equal(c.train.stop_after, 0);
    assert_true(c.optimizer.lr == 1e-3 && c.optimizer.betas[0] == 0.9 && c.optimizer.betas[1] == 0.95 && c.optimizer.eps == 1e-8);
    assert_false(c.optimizer.stochastic_rounding);
    assert_true(c.optimizer.weight_decay == 0.1 && c.optimizer.grad_clip == 1 && c.optimizer.z_loss == 0);
    assert_int_equal(c.schedule.kind, SCHEDULE_COSINE);
    assert_int_equal(c.schedule.warmup_tokens, 0);
    assert_true(c.schedule.decay_fraction == 0.2 && c.schedule.min_lr_ratio == 0.1);
    assert_string_equal(c.checkpoint.dir, "D");
    assert_int_equal(c.checkpoint.every, 0);
    assert_int_equal(c.checkpoint.keep, 3);
    assert_int_equal(c.dtype, DTYPE_BF16);
    assert_int_equal(c.device, 0);
    assert_int_equal(c.threads, 0);
    assert_string_equal(c.model.attention, "ffsfssffsfsf");
    run_config_free(&c);
}

static void runs_that_cannot_be_are_refused(void **state) {
    (void)state;
    refused("command line: data.train is empty, expected at least one source", WITH("data.train=[]"));
    refused("command line: data.train.1.weight is 0, expected more: leave q out instead",
            WITH("data.train=[p, {prefix: q, weight: 0}]"));
    refused("command line: data.train.0.weight: found \"-1\", expected a number of at least 0", WITH("data.train.0.weight=-1"));
    refused("command line: data.heldout.0.weight is not a key.", WITH("data.heldout.0.weight=1"));
    refused("command line: batch.tokens 100 is no multiple of data.seq_len 128: a step is whole samples, say 128",
            WITH("batch.tokens=100"));
    refused("command line: batch.tokens 300 is no multiple of data.seq_len 128: a step is whole samples, say 384",
            WITH("batch.tokens=300"));
    refused("command line: batch.tokens 1280000000000 are more than 2147483647 samples of data.seq_len 128",
            WITH("batch.tokens=1.28e12", "train.tokens=1e15"));
    refused("command line: batch.tokens: found \"0\", expected a whole number of at least 1", WITH("batch.tokens=0"));
    refused("command line: data.seq_len: found \"0\", expected a whole number from 1 to 1048576", WITH("data.seq_len=0"));
    refused("command line: schedule.warmup_tokens 819200 is not below train.tokens 819200",
            WITH("schedule.warmup_tokens=819200"));
    refused("configs/runs/tiny.yaml:26: batch.tokens 4096 is no multiple of data.seq_len 1000", WITH("data.seq_len=1000"));
    refused("command line: optimizer.stochastic_rounding is true with dtype: f32, expected false",
            WITH("dtype=f32", "optimizer.stochastic_rounding=true"));
    refused("command line: schedule.decay_fraction is 0, expected a number above 0", WITH("schedule.decay_fraction=0"));
    refused("command line: schedule.decay_fraction: found \"1.5\", expected a number from 0 to 1",
            WITH("schedule.decay_fraction=1.5"));
    refused("command line: schedule.kind: found \"cosin\", expected cosine, wsd, linear or constant",
            WITH("schedule.kind=cosin"));
    refused("command line: optimizer.betas.1 is 1, expected a number below 1", WITH("optimizer.betas=[0.9, 1]"));
    refused("command line: optimizer.betas: found \"-0.1\", expected a number from 0 to 1", WITH("optimizer.betas=[-0.1, 0.9]"));
    refused("command line: optimizer.lr is 0, expected a number above 0", WITH("optimizer.lr=0"));
    refused("command line: optimizer.lr: found \"-1\", expected a number from 0 to 100", WITH("optimizer.lr=-1"));
    refused("command line: optimizer.eps: found \"0\", expected a number from 1.0e-30 to 1", WITH("optimizer.eps=0"));
    refused("command line: train.max_nonfinite: found \"0\", expected a whole number from 1", WITH("train.max_nonfinite=0"));
    refused("command line: checkpoint.dir: found nothing, expected text", WITH("checkpoint.dir="));
    refused("command line: checkpoint.dir is empty, expected a directory's name", WITH("checkpoint.dir=''"));
    refused("command line: checkpoint.dir is missing: directory of the run: checkpoints and logs", WITH("checkpoint={every: 1}"));
    refused("command line: device: found \"tpu\", expected auto, cpu or cuda", WITH("device=tpu"));
    refused("command line: dtype: found \"f16\", expected f32 or bf16", WITH("dtype=f16"));
    refused("command line: optimizer.weigth_decay is not a key. Did you mean optimizer.weight_decay?",
            WITH("optimizer.weigth_decay=1"));
    refused("command line: lr is not a key. Did you mean optimizer.lr?", WITH("lr=1"));
    refused("command line: seed is not a key. Did you mean init.seed or data.seed?", WITH("seed=1"));
}

static void only_bf16_is_rounded_by_chance(void **state) {
    (void)state;
    char path[32], expected[256];
    const char *chance = "optimizer:\n  lr: 1e-3\n  stochastic_rounding: true\n", *f32 = "dtype: f32\n";
    run_config c;
    error err;
    if (read_short(&c, path, chance, &err)) fail_msg("%s", err.text);
    assert_true(c.optimizer.stochastic_rounding);
    run_config_free(&c);
    char both[128];
    snprintf(both, sizeof both, "%s%s", chance, f32);
    assert_int_equal(read_short(&c, path, both, &err), -1);
    assert_int_equal(err.code, STATUS_USAGE);
    snprintf(expected, sizeof expected,
             "%s:8: optimizer.stochastic_rounding is true with dtype: f32, expected false: only weights in bf16 are rounded",
             path);
    assert_string_equal(err.text, expected);
}

static void errors_of_the_network_of_a_run_say_so(void **state) {
    (void)state;
    refused("configs/runs/tiny.yaml: model: n_heads 4 is no multiple of n_kv_heads 3", WITH("model.n_kv_heads=3"));
    refused("configs/runs/tiny.yaml: model: attention \"fwsf\" has 4 letters", WITH("model.n_layers=5"));
    refused("command line: model.n_layers: found \"0\", expected a whole number from 1 to 1024", WITH("model.n_layers=0"));
    refused("command line: model.n_layres is not a key. Did you mean model.n_layers?", WITH("model.n_layres=1"));
    refused("command line: model: there is no file none.yaml here, nor configs/runs/none.yaml", WITH("model=none.yaml"));
}

static void a_network_s_file_and_changes_to_it_come_in_either_order(void **state) {
    (void)state;
    for (int order = 0; order < 2; order++) {
        const char *const overrides[MOST_OVERRIDES] = {order ? "model=configs/models/flash-650m.yaml" : "model.n_layers=4",
                                                       order ? "model.n_layers=4" : "model=configs/models/flash-650m.yaml",
                                                       "model.attention=null"};
        run_config c = accepted(overrides);
        assert_int_equal(c.model.n_layers, 4);
        assert_int_equal(c.model.d_model, 1280);
        assert_string_equal(c.model.attention, "ffff"); /* null is completed for the n_layers there are */
        run_config_free(&c);
    }
}

static void the_overrides_of_a_search_work(void **state) {
    (void)state;
    run_config c = accepted(WITH("train.tokens=2.6e9", "data.train=[{prefix: a/b, weight: 0.25}, c]", "data.train.1.weight=0.75",
                                 "data.heldout=[]", "init.checkpoint=x.h5", "optimizer.betas=[0.8, 0.9]", "threads=2"));
    const data_source *train = c.data.train.items;
    assert_int_equal(c.train.tokens, 2600000000);
    assert_int_equal(c.data.train.n, 2);
    assert_string_equal(train[0].prefix, "a/b");
    assert_string_equal(train[1].prefix, "c");
    assert_true(train[0].weight == 0.25 && train[1].weight == 0.75);
    assert_int_equal(c.data.heldout.n, 0);
    assert_string_equal(c.init.checkpoint, "x.h5");
    assert_true(c.optimizer.betas[0] == 0.8);
    assert_int_equal(c.threads, 2);
    run_config_free(&c);
}

/* The resolved config, which a checkpoint holds, is the same run without any other file. */
static void assert_round_trip(const run_config *c, const char *path) {
    char *text = config_print(c, run_config_keys);
    assert_non_null(text);
    run_config back;
    error err;
    if (config_read(&back, run_config_keys, path, text, NULL, 0, &err)) fail_msg("%s\n%s", err.text, text);
    char *again = config_print(&back, run_config_keys);
    assert_string_equal(text, again);
    assert_memory_equal(&back.optimizer, &c->optimizer, offsetof(struct run_optimizer, stochastic_rounding));
    assert_int_equal(model_config_same(&c->model, "before", &back.model, "after", &err), 0);
    free(text);
    free(again);
    run_config_free(&back);
}

static void every_run_in_configs_reads_and_prints_to_itself(void **state) {
    (void)state;
    glob_t files;
    assert_int_equal(glob("configs/runs/*.yaml", 0, NULL, &files), 0);
    assert_true(files.gl_pathc >= 3);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        run_config c;
        error err;
        if (run_config_read(&c, files.gl_pathv[i], NULL, 0, &err)) fail_msg("%s", err.text);
        assert_round_trip(&c, files.gl_pathv[i]);
        run_config_free(&c);
    }
    globfree(&files);
}

/* The number that begins the second line of a model's file, "# 394.6 M parameters" or "# 201,472 parameters", and the size of its
 * last digit. */
static double promised_parameters(const char *path, double *digit) {
    char line[256], number[32];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    assert_non_null(fgets(line, sizeof line, f));
    fclose(f);
    int n = 0, k = 0;
    if (sscanf(line, "# %31[0-9.,]%n", number, &n) != 1) fail_msg("%s: no count of parameters in line 2", path);
    for (int i = 0; number[i]; i++)
        if (number[i] != ',') number[k++] = number[i];
    number[k] = '\0';
    bool millions = strncmp(line + n, " M parameters", 13) == 0;
    if (!millions && strncmp(line + n, " parameters", 11) != 0) fail_msg("%s: line 2 does not count parameters", path);
    *digit = millions ? 1e5 : 1;
    return strtod(number, NULL) * (millions ? 1e6 : 1);
}

static void every_model_in_configs_has_the_parameters_it_promises(void **state) {
    (void)state;
    glob_t files;
    assert_int_equal(glob("configs/models/*.yaml", 0, NULL, &files), 0);
    assert_true(files.gl_pathc >= 9);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        model_config c;
        registry r;
        error err;
        const char *path = files.gl_pathv[i];
        if (model_config_read(&c, path, &err) || registry_build(&r, &c, 1, &err)) fail_msg("%s", err.text);
        double digit, promised = promised_parameters(path, &digit);
        if (!(fabs(promised - (double)r.n_params) <= digit / 2))
            fail_msg("%s: %lld parameters, but it says %.0f", path, (long long)r.n_params, promised);
        registry_free(&r);
        model_config_free(&c);
    }
    globfree(&files);
}

/* Rows of the paper's Table 5. */
static void the_paper_s_networks_are_those_of_its_table(void **state) {
    (void)state;
    const struct {
        const char *path;
        int n_layers, d_model, d_ffn;
        const char *attention;
        bool tied;
    } rows[] = {{"configs/models/shallow-1.8b.yaml", 16, 2048, 8192, "ffffffffffffffff", false},
                {"configs/models/flash-350m.yaml", 12, 1024, 4096, "ffsfssffsfsf", true},
                {"configs/models/flash-650m.yaml", 13, 1280, 6144, "fsffsfsffffss", true},
                {"configs/models/flash-1.4b.yaml", 16, 2048, 8192, "ffffffffffffffff", true}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        model_config c;
        error err;
        if (model_config_read(&c, rows[i].path, &err)) fail_msg("%s", err.text);
        assert_int_equal(c.vocab_size, 202048);
        assert_int_equal(c.n_layers, rows[i].n_layers);
        assert_int_equal(c.d_model, rows[i].d_model);
        assert_int_equal(c.d_ffn, rows[i].d_ffn);
        assert_int_equal(c.n_heads, 32);
        assert_int_equal(c.n_kv_heads, 8);
        assert_int_equal(c.head_dim, 64);
        assert_string_equal(c.attention, rows[i].attention);
        assert_int_equal(c.window, 256);
        assert_int_equal(c.tie_embeddings, rows[i].tied);
        model_config_free(&c);
    }
}

static void the_tiny_network_speaks_bytes(void **state) {
    (void)state;
    run_config c = accepted(WITH(NULL));
    assert_int_equal(c.model.vocab_size, BYTES_VOCAB_SIZE);
    run_config_free(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_network_of_sizes_alone_has_the_defaults),
                                       cmocka_unit_test(networks_that_cannot_be_are_refused),
                                       cmocka_unit_test(sizes_that_would_overflow_are_refused_wherever_they_come_from),
                                       cmocka_unit_test(a_difference_in_any_key_makes_another_network),
                                       cmocka_unit_test(a_short_run_has_the_defaults),
                                       cmocka_unit_test(runs_that_cannot_be_are_refused),
                                       cmocka_unit_test(only_bf16_is_rounded_by_chance),
                                       cmocka_unit_test(errors_of_the_network_of_a_run_say_so),
                                       cmocka_unit_test(a_network_s_file_and_changes_to_it_come_in_either_order),
                                       cmocka_unit_test(the_overrides_of_a_search_work),
                                       cmocka_unit_test(every_run_in_configs_reads_and_prints_to_itself),
                                       cmocka_unit_test(every_model_in_configs_has_the_parameters_it_promises),
                                       cmocka_unit_test(the_paper_s_networks_are_those_of_its_table),
                                       cmocka_unit_test(the_tiny_network_speaks_bytes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
