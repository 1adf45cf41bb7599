/* config.c: the keys of a training run, and the checks that involve more than one of them. */
#include "train/config.h"

#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

static const char *const schedules[] = {"cosine", "wsd", "linear", "constant", NULL}; /* enum schedule_kind */
static const char *const dtypes[] = {"f32", "bf16", NULL};                            /* enum dtype */
static const char *const devices[] = {"auto", "cpu", "cuda", NULL};

#define AT(field) offsetof(data_source, field)
static const config_key train_source_keys[] = {
    {"prefix", CONFIG_STRING, AT(prefix), .doc = "tokens are in PREFIX.bin and PREFIX.idx"},
    {"weight", CONFIG_DOUBLE, AT(weight), "1", .doc = "share of the samples, relative to the other sources", .max = INFINITY},
    {0}};

static const config_key heldout_source_keys[] = {
    {"prefix", CONFIG_STRING, AT(prefix), .doc = "tokens are in PREFIX.bin and PREFIX.idx"}, {0}};
#undef AT

#define AT(section, field) offsetof(struct run_##section, field)
static const config_key init_keys[] = {
    {"seed", CONFIG_INT64, AT(init, seed), "1", .doc = "seed of the random weights and of optimizer.stochastic_rounding",
     .max = INFINITY},
    {"stddev", CONFIG_DOUBLE, AT(init, stddev), "0.02",
     .doc = "standard deviation of the random weights; projections into the residual stream get it / sqrt(2 n_layers)",
     .max = 10},
    {"checkpoint", CONFIG_STRING, AT(init, checkpoint), "null",
     .doc = "file or run directory whose weights to start from; null: random"},
    {0}};

static const config_key data_keys[] = {
    {"train", CONFIG_LIST, AT(data, train), NULL, .doc = "sources that samples are drawn from", .keys = train_source_keys,
     .item_size = sizeof(data_source)},
    {"heldout", CONFIG_LIST, AT(data, heldout), "[]", .doc = "sources that are never trained on, for the held-out loss",
     .keys = heldout_source_keys, .item_size = sizeof(data_source)},
    {"seq_len", CONFIG_INT, AT(data, seq_len), "2048", .doc = "tokens of a sample", .min = 1, .max = 1 << 20},
    {"seed", CONFIG_INT64, AT(data, seed), "1", .doc = "seed of the order of the samples", .max = INFINITY},
    {"mask_documents", CONFIG_BOOL, AT(data, mask_documents), "false",
     .doc = "tokens see only their own document, and positions start anew in each"},
    {0}};

static const config_key batch_keys[] = {
    {"tokens", CONFIG_INT64, AT(batch, tokens), .doc = "tokens of a step, over all ranks; a multiple of data.seq_len", .min = 1,
     .max = INFINITY},
    {"micro", CONFIG_INT, AT(batch, micro), "1", .doc = "samples that a rank works on at a time", .min = 1, .max = 65536},
    {"head_chunk", CONFIG_INT, AT(batch, head_chunk), "0", .doc = "rows of logits held at a time; 0: chosen from the vocabulary",
     .max = 1 << 20},
    {0}};

static const config_key train_keys[] = {
    {"tokens", CONFIG_INT64, AT(train, tokens), .doc = "tokens of the whole run, rounded up to whole steps", .min = 1,
     .max = 1e18},
    {"log_every", CONFIG_INT, AT(train, log_every), "10", .doc = "steps between lines of the log; 0: the first and the last only",
     .max = INFINITY},
    {"eval_every", CONFIG_INT, AT(train, eval_every), "0", .doc = "steps between held-out losses; 0: only at the end",
     .max = INFINITY},
    {"eval_tokens", CONFIG_INT64, AT(train, eval_tokens), "0", .doc = "tokens read of each held-out source; 0: all",
     .max = INFINITY},
    {"time_limit", CONFIG_DOUBLE, AT(train, time_limit), "0",
     .doc = "seconds after its start at which a run writes a checkpoint and stops; 0: none", .max = INFINITY},
    {"hang_timeout", CONFIG_DOUBLE, AT(train, hang_timeout), "1800",
     .doc = "seconds without progress of a rank that end the run; more than the longest read of a checkpoint; 0: never",
     .max = INFINITY},
    {"max_nonfinite", CONFIG_INT, AT(train, max_nonfinite), "5",
     .doc = "steps in a row without a finite gradient that end the run", .min = 1, .max = INFINITY},
    {"stop_after", CONFIG_INT64, AT(train, stop_after), "0",
     .doc = "stop with a checkpoint after this step of the run; 0: the last", .max = INFINITY},
    {0}};

static const config_key optimizer_keys[] = {
    {"lr", CONFIG_DOUBLE, AT(optimizer, lr), .doc = "the highest learning rate", .min = 0, .max = 100},
    {"betas", CONFIG_PAIR, AT(optimizer, betas), "[0.9, 0.95]", .doc = "AdamW: memory of the mean and of the mean square",
     .max = 1},
    {"eps", CONFIG_DOUBLE, AT(optimizer, eps), "1.0e-8", .doc = "AdamW: added to the root of the mean square", .min = 1e-30,
     .max = 1},
    {"weight_decay", CONFIG_DOUBLE, AT(optimizer, weight_decay), "0.1",
     .doc = "matrices shrink by lr * weight_decay in each step", .max = 100},
    {"grad_clip", CONFIG_DOUBLE, AT(optimizer, grad_clip), "1.0", .doc = "the largest norm of the whole gradient; 0: not clipped",
     .max = INFINITY},
    {"z_loss", CONFIG_DOUBLE, AT(optimizer, z_loss), "0", .doc = "weight of the squared log-partition of the logits", .max = 1},
    {"stochastic_rounding", CONFIG_BOOL, AT(optimizer, stochastic_rounding), "false",
     .doc = "bf16 weights are the f32 ones rounded up or down by chance, without bias; else to nearest"},
    {0}};

static const config_key schedule_keys[] = {{"kind", CONFIG_CHOICE, AT(schedule, kind), "cosine",
                                            .doc = "shape of the learning rate after warm-up", .choices = schedules},
                                           {"warmup_tokens", CONFIG_INT64, AT(schedule, warmup_tokens), "0",
                                            .doc = "tokens over which the rate rises from 0", .max = INFINITY},
                                           {"decay_fraction", CONFIG_DOUBLE, AT(schedule, decay_fraction), "0.2",
                                            .doc = "wsd: the last share of the run, over which the rate falls", .max = 1},
                                           {"min_lr_ratio", CONFIG_DOUBLE, AT(schedule, min_lr_ratio), "0.1",
                                            .doc = "the last learning rate, as a share of the highest", .max = 1},
                                           {0}};

static const config_key checkpoint_keys[] = {
    {"dir", CONFIG_STRING, AT(checkpoint, dir), .doc = "directory of the run: checkpoints and logs"},
    {"every", CONFIG_INT, AT(checkpoint, every), "0", .doc = "steps between checkpoints; 0: only at the end", .max = INFINITY},
    {"keep", CONFIG_INT, AT(checkpoint, keep), "3", .doc = "newest checkpoints that are kept; 0: all", .max = INFINITY},
    {0}};
#undef AT

#define AT(field) offsetof(run_config, field)
const config_key run_config_keys[] = {
    {"model", CONFIG_SECTION, AT(model), .doc = "the network", .keys = model_config_keys, .may_be_file = true},
    {"init", CONFIG_SECTION, AT(init), "{}", .doc = "its first weights", .keys = init_keys},
    {"data", CONFIG_SECTION, AT(data), "{}", .doc = "what it reads", .keys = data_keys},
    {"batch", CONFIG_SECTION, AT(batch), "{}", .doc = "how much of it in a step", .keys = batch_keys},
    {"train", CONFIG_SECTION, AT(train), "{}", .doc = "how long, and what is told of it", .keys = train_keys},
    {"optimizer", CONFIG_SECTION, AT(optimizer), "{}", .doc = "AdamW", .keys = optimizer_keys},
    {"schedule", CONFIG_SECTION, AT(schedule), "{}", .doc = "the learning rate over the run", .keys = schedule_keys},
    {"checkpoint", CONFIG_SECTION, AT(checkpoint), "{}", .doc = "what is written", .keys = checkpoint_keys},
    {"dtype", CONFIG_CHOICE, AT(dtype), "bf16",
     .doc = "format of weights and activations; sums, gradients and the optimizer are always f32", .choices = dtypes},
    {"device", CONFIG_CHOICE, AT(device), "auto", .doc = "where it runs; auto: on GPUs where there are, else on the CPU",
     .choices = devices},
    {"threads", CONFIG_INT, AT(threads), "0", .doc = "threads of a rank; 0: its share of the machine's cores", .max = 4096},
    {0}};
#undef AT

/* Messages of the checks begin with the key that they are about. */
static int check_data(const run_config *c, error *err) {
    const data_source *sources = c->data.train.items;
    if (c->data.train.n == 0)
        return error_set(err, STATUS_USAGE, "data.train is empty, expected at least one source: [{prefix: P, weight: 1}]");
    for (int i = 0; i < c->data.train.n; i++)
        if (!(sources[i].weight > 0))
            return error_set(err, STATUS_USAGE, "data.train.%d.weight is 0, expected more: leave %s out instead", i,
                             sources[i].prefix);
    if (c->batch.tokens / c->data.seq_len > INT_MAX)
        return error_set(err, STATUS_USAGE, "batch.tokens %lld are more than %d samples of data.seq_len %d",
                         (long long)c->batch.tokens, INT_MAX, c->data.seq_len);
    if (c->batch.tokens % c->data.seq_len)
        return error_set(
            err, STATUS_USAGE, "batch.tokens %lld is no multiple of data.seq_len %d: a step is whole samples, say %lld",
            (long long)c->batch.tokens, c->data.seq_len, (long long)((c->batch.tokens / c->data.seq_len + 1) * c->data.seq_len));
    return 0;
}

static int check_optimizer(const run_config *c, error *err) {
    if (!(c->optimizer.lr > 0)) return error_set(err, STATUS_USAGE, "optimizer.lr is 0, expected a number above 0");
    for (int i = 0; i < 2; i++)
        if (!(c->optimizer.betas[i] < 1))
            return error_set(err, STATUS_USAGE, "optimizer.betas.%d is 1, expected a number below 1: it would never forget", i);
    if (c->optimizer.stochastic_rounding && c->dtype != DTYPE_BF16)
        return error_set(err, STATUS_USAGE,
                         "optimizer.stochastic_rounding is true with dtype: %s, expected false: only weights in bf16 are rounded",
                         dtypes[c->dtype]);
    if (!(c->schedule.decay_fraction > 0))
        return error_set(err, STATUS_USAGE,
                         "schedule.decay_fraction is 0, expected a number above 0; for no decay, schedule.kind: constant");
    if (c->schedule.warmup_tokens >= c->train.tokens)
        return error_set(err, STATUS_USAGE,
                         "schedule.warmup_tokens %lld is not below train.tokens %lld: the run would end before "
                         "its learning rate is reached",
                         (long long)c->schedule.warmup_tokens, (long long)c->train.tokens);
    return 0;
}

static int check_values(const run_config *c, error *err) {
    if (check_data(c, err) || check_optimizer(c, err)) return -1;
    if (!*c->checkpoint.dir) return error_set(err, STATUS_USAGE, "checkpoint.dir is empty, expected a directory's name");
    return 0;
}

static int run_config_check(const run_config *c, const char *path, const char *const *overrides, int n_overrides, error *err) {
    char where[PATH_MAX], key[64];
    snprintf(where, sizeof where, "%s: model", path);
    if (model_config_check(&c->model, where, err)) return -1;
    if (check_values(c, err) == 0) return 0;
    snprintf(key, sizeof key, "%.*s", (int)strcspn(err->text, " "), err->text);
    config_place(where, sizeof where, run_config_keys, path, overrides, n_overrides, key);
    return error_prefix(err, "%s", where);
}

int run_config_read(run_config *c, const char *path, const char *const *overrides, int n_overrides, error *err) {
    if (config_read(c, run_config_keys, path, NULL, overrides, n_overrides, err)) return -1;
    if (model_config_complete(&c->model, err) || run_config_check(c, path, overrides, n_overrides, err)) {
        run_config_free(c);
        return -1;
    }
    return 0;
}

void run_config_free(run_config *c) { config_free(c, run_config_keys); }

const char *run_config_device(const run_config *c) { return devices[c->device]; }
