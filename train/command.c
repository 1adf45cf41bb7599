/* command.c: the command lines of train and plan, and the order in which a run comes up.
 *
 * Everything that can be found wrong cheaply is found first: config, then data files, then memory, then the checkpoint to resume
 * from. */
#include "train/command.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/tokens.h"
#include "train/banner.h"
#include "train/lock.h"
#include "train/loop.h"
#include "train/peak.h"
#include "train/roofline.h"
#include "train/stop.h"
#include "train/warm_up.h"
#include "util/file.h"
#include "util/options.h"
#include "util/system.h"

typedef struct train_options {
    const char *config;
    const char *const *overrides;
    int n_overrides;
    const char *device; /* NULL: the config's */
    bool resume, dry_run, json, profile;
    /* of `plan` */
    int64_t n_ranks;
    const gpu_spec *gpu; /* a device that is not here; NULL: one that is */
    link_spec links;
} train_options;

static bool is_backend(const char *device) {
    return strcmp(device, "auto") == 0 || strcmp(device, "cpu") == 0 || strcmp(device, "cuda") == 0;
}

/* What both commands read: CONFIG, then overrides. */
static int parse(train_options *o, const command_option *table, const char *usage, int argc, char **argv, int *helped,
                 error *err) {
    int n_rest;
    if (options_parse(table, usage, argc, argv, &n_rest, helped, err)) return -1;
    if (*helped) return 0;
    if (n_rest == 0)
        return error_set(err, STATUS_USAGE, "%s: which config? Usage: mobilellm %s CONFIG [key=value ...]", argv[0], argv[0]);
    o->config = argv[1];
    o->overrides = (const char *const *)argv + 2;
    o->n_overrides = n_rest - 1;
    return 0;
}

static int parse_train(train_options *o, int argc, char **argv, bool prints, int *helped, error *err) {
    *o = (train_options){0};
    const command_option table[] = {
        {"resume", OPTION_FLAG, &o->resume, 0, 0, NULL, "go on from the newest valid checkpoint; start anew where there is none"},
        {"device", OPTION_TEXT, &o->device, 0, 0, "auto|cpu|cuda", "where it runs (the config's)"},
        {"profile", OPTION_FLAG, &o->profile, 0, 0, NULL,
         "end with a table of where the time of a step went on rank 0, also in checkpoint.dir/profile.json"},
        {"dry-run", OPTION_FLAG, &o->dry_run, 0, 0, NULL, "check the config and the data, print the plan, train nothing"},
        {"json", OPTION_FLAG, &o->json, 0, 0, NULL, "with --dry-run: the plan as JSON"},
        {0}};
    const char *usage =
        "Usage: mobilellm train CONFIG [key=value ...] [options]\n"
        "       mpirun -np N mobilellm train CONFIG ...\n\n"
        "Trains the network that CONFIG describes; key=value overrides its keys (optimizer.lr=3e-4, model.n_layers=6).\n";
    if (parse(o, table, prints ? usage : NULL, argc, argv, helped, err)) return -1;
    if (o->json && !o->dry_run && !*helped)
        return error_set(err, STATUS_USAGE, "train: --json goes with --dry-run; the figures of a run are in metrics.jsonl");
    if (!*helped || !prints) return 0;
    printf(
        "\nSIGTERM, SIGINT, SIGUSR1 and train.time_limit end a run with a checkpoint and exit status 75. Then, and after a "
        "kill,\n"
        "the same command with --resume goes on as if nothing had happened.\n\n"
        "Keys of CONFIG:\n");
    config_describe(stdout, run_config_keys);
    return 0;
}

/* Bandwidths in GB/s and latencies in microseconds, as nccl-tests prints them. */
static int parse_plan(train_options *o, int argc, char **argv, int *helped, error *err) {
    *o = (train_options){.n_ranks = 1, .links = default_links};
    double node = default_links.node_bandwidth / 1e9, net = default_links.net_bandwidth / 1e9;
    double node_us = 1e6 * default_links.node_latency, net_us = 1e6 * default_links.net_latency;
    int64_t node_size = default_links.node_size;
    const command_option table[] = {
        {"ranks", OPTION_INTEGER, &o->n_ranks, 1, 1 << 20, "N", "of the run (1)"},
        {"device", OPTION_TEXT, &o->device, 0, 0, "NAME",
         "auto, cpu, cuda (the config's); h100, h200 or a100 estimate the time of a step on GPUs that need not be here"},
        {"node-size", OPTION_INTEGER, &node_size, 1, 1024, "N", "GPUs of a node (8)"},
        {"node-bandwidth", OPTION_NUMBER, &node, 1e-3, 1e5, "GB/s", "of a collective within a node, a GPU (330)"},
        {"node-latency", OPTION_NUMBER, &node_us, 0, 1e6, "us", "of a hop within a node (1.5)"},
        {"net-bandwidth", OPTION_NUMBER, &net, 1e-3, 1e5, "GB/s", "a GPU's share of the network between nodes (45)"},
        {"net-latency", OPTION_NUMBER, &net_us, 0, 1e6, "us", "of a hop between nodes (6)"},
        {"json", OPTION_FLAG, &o->json, 0, 0, NULL, "print JSON"},
        {0}};
    if (parse(o, table,
              "Usage: mobilellm plan CONFIG [key=value ...] [options]\n\n"
              "What a run of CONFIG would take, without starting it: parameters by part, memory of a rank by part, floating-\n"
              "point operations of a training step per token (6 a weight of each matrix, attention as the mask leaves it).\n"
              "For GPUs also the time of a step by part, estimated, and how it scales to 1,024 of them.\n",
              argc, argv, helped, err))
        return -1;
    o->links = (link_spec){(int)node_size, node * 1e9, node_us / 1e6, net * 1e9, net_us / 1e6};
    if (o->device == NULL || is_backend(o->device)) return 0;
    o->gpu = gpu_spec_find(o->device, err);
    return o->gpu ? 0 : -1;
}

/* The backend, by the option or else the config. A GPU that is not here is planned for as what all GPUs are driven by. */
static int choose_ops(const train_options *o, const run_config *c, const ops **op, error *err) {
    return ops_named(op, o->gpu ? "cuda" : o->device ? o->device : run_config_device(c), err);
}

/* The config, the backend opened, and what the run will need of it. A device that is not here stays NULL. */
static int prepare(const train_options *o, run_config *c, run_plan *plan, const ranks *world, const ops **op, backend **b,
                   error *err) {
    if (run_config_read(c, o->config, o->overrides, o->n_overrides, err) || choose_ops(o, c, op, err)) return -1;
    int threads = c->threads > 0 ? c->threads : ranks_threads(world);
    if (!o->gpu && (*op)->open(b, threads, world->local_rank, err)) return -1;
    if (run_plan_make(plan, c, world->size, *op, *b, err) == 0) return 0;
    return err->code == STATUS_USAGE ? error_prefix(err, "%s", o->config) : -1;
}

static int show_plan(const train_options *o, const run_config *c, const run_plan *plan, error *err) {
    if (!o->json) {
        printf("%s\n", o->config);
        banner_plan(stdout, c, plan);
        if (o->gpu) roofline_print(stdout, o->gpu, &o->links, c, plan);
        return 0;
    }
    char *text = o->gpu ? roofline_json(o->gpu, &o->links, c, plan) : banner_plan_json(c, plan);
    if (!text) return error_set(err, STATUS_RESOURCE, "no memory");
    printf("%s\n", text);
    free(text);
    return 0;
}

int plan_command(int argc, char **argv, const ranks *world, error *err) {
    train_options o;
    run_config c = {0};
    run_plan plan;
    int helped;
    if (parse_plan(&o, argc, argv, &helped, err)) return -1;
    if (helped) return 0;
    ranks planned = {.size = (int)o.n_ranks, .local_size = world->local_size};
    const ops *op;
    backend *b = NULL;
    int result = prepare(&o, &c, &plan, &planned, &op, &b, err);
    if (result == 0) result = show_plan(&o, &c, &plan, err);
    if (b) op->close(b);
    run_config_free(&c);
    return result;
}

/* The resolved config, every key of it: printed by a dry run, kept beside the checkpoints of a real one. */
static int show_config(const run_config *c, bool dry_run, error *err) {
    char path[4096], *text = config_print(c, run_config_keys);
    if (!text) return error_set(err, STATUS_RESOURCE, "no memory");
    int result = 0;
    if (dry_run) {
        printf("\n%s", text);
    } else {
        snprintf(path, sizeof path, "%s/config.yaml", c->checkpoint.dir);
        result = file_replace(path, text, strlen(text), err);
    }
    free(text);
    return result;
}

/* Makes the run's directory this run's own. One that would write over another's checkpoints is refused. */
static int claim_directory(const run_config *c, bool resume, int *lock, error *err) {
    char path[4096];
    if (file_make_directories(c->checkpoint.dir, err) || lock_take(lock, c->checkpoint.dir, err)) return -1;
    if (resume) return 0;
    snprintf(path, sizeof path, "%s/latest", c->checkpoint.dir);
    if (access(path, F_OK) != 0) return 0;
    return error_set(err, STATUS_USAGE,
                     "%s holds the checkpoints of an earlier run: go on with --resume, or give another checkpoint.dir",
                     c->checkpoint.dir);
}

/* Weights and position: from the newest checkpoint, or new. resumed: its path, or "". */
static int start_state(run *r, const train_options *o, char resumed[4096], error *err) {
    resumed[0] = 0;
    if (o->resume && run_resume(r, resumed, err)) return -1;
    return resumed[0] ? 0 : run_init(r, err);
}

static int open_loader(run *r, error *err) {
    const data_source *sources = r->config.data.train.items;
    int n = r->config.data.train.n;
    const char **prefixes = malloc((size_t)n * sizeof *prefixes);
    double *weights = malloc((size_t)n * sizeof *weights);
    int result = prefixes && weights ? 0 : error_set(err, STATUS_RESOURCE, "no memory for %d data sources", n);
    for (int i = 0; result == 0 && i < n; i++) {
        prefixes[i] = sources[i].prefix;
        weights[i] = sources[i].weight;
    }
    loader_options options = {.n_sources = n,
                              .prefixes = prefixes,
                              .weights = weights,
                              .seq_len = r->config.data.seq_len,
                              .rows_per_step = (int)(r->config.batch.tokens / r->config.data.seq_len),
                              .vocab_size = r->config.model.vocab_size,
                              .seed = (uint64_t)r->config.data.seed,
                              .mask_documents = r->config.data.mask_documents,
                              .rank = r->ranks->rank,
                              .n_ranks = r->ranks->size,
                              .first_sample = r->progress.samples};
    if (result == 0) result = loader_open(&r->loader, &options, err);
    free(prefixes);
    free(weights);
    return result;
}

static int note_tokenizer(run *r, error *err) {
    token_card card;
    const data_source *first = r->config.data.train.items;
    if (token_card_read(&card, first->prefix, err)) return -1;
    free(r->progress.tokenizer_hash);
    r->progress.tokenizer_hash = strdup(card.tokenizer_hash);
    return r->progress.tokenizer_hash ? 0 : error_set(err, STATUS_RESOURCE, "no memory");
}

static void print_machine(const run *r, const char *resumed) {
    printf("  machine     %d rank%s, each: %s\n", r->ranks->size, r->ranks->size == 1 ? "" : "s", r->ops->describe(r->backend));
    if (r->ops->describe_attention && *r->ops->describe_attention(r->backend))
        printf("  attention   %s\n", r->ops->describe_attention(r->backend));
    printf("  GEMM peak   %.0f GFLOP/s in %s\n", r->gemm_peak / 1e9, dtype_name(r->model.options.x));
    if (resumed[0])
        printf("  resumed     %s: step %lld, %.4g tokens\n", resumed, (long long)r->progress.step, (double)r->progress.tokens);
    else
        printf("  weights     %s\n", r->progress.lineage);
    fflush(stdout);
}

static int show_profile(const run *r, error *err) {
    char path[4096];
    double gemm_peak = r->gemm_peak / r->ranks->size;
    profile_print(stdout, r->profile, gemm_peak);
    char *text = profile_json(r->profile, gemm_peak);
    if (!text) return error_set(err, STATUS_RESOURCE, "no memory");
    snprintf(path, sizeof path, "%s/profile.json", r->config.checkpoint.dir);
    int result = file_replace(path, text, strlen(text), err);
    free(text);
    return result;
}

static int run_to_end(run *r, const run_plan *plan, const char *resumed, error *err) {
    metrics *m = NULL;
    const char *stopped;
    int64_t step = r->progress.step;
    if (r->ranks->rank == 0) print_machine(r, resumed);
    int result = r->ranks->rank == 0 ? metrics_open(&m, r->config.checkpoint.dir, step, train_owes_evaluation(r), err) : 0;
    if (ranks_agree(r->ranks, result, err)) return -1;
    result = train_loop(r, plan, m, &stopped, err);
    if (m) metrics_close(m);
    if (result) return -1;
    if (r->profile && ranks_agree(r->ranks, r->ranks->rank == 0 ? show_profile(r, err) : 0, err)) return -1;
    if (!stopped) return STATUS_OK;
    if (r->ranks->rank == 0)
        printf("stopped     by %s at step %lld of %lld%s: go on with --resume\n", stopped, (long long)r->progress.step,
               (long long)plan->n_steps, train_owes_evaluation(r) ? ", before its evaluation" : "");
    return strcmp(stopped, "train.stop_after") == 0 ? STATUS_OK : STATUS_AGAIN;
}

/* Until the run has its state it has nothing to lose, and a signal ends it where it is. */
static int bring_up(run *r, const train_options *o, const run_config *c, const run_plan *plan, error *err) {
    const ranks *world = r->ranks;
    char resumed[4096], advice[160];
    snprintf(advice, sizeof advice, "train.hang_timeout is %g s. Go on from the newest checkpoint with --resume.",
             c->train.hang_timeout);
    if (ranks_agree(world, ranks_watch(world, c->train.hang_timeout, advice, err), err)) return -1;
    if (ranks_agree(world, run_warm_up(r, err), err)) return -1;
    if (ranks_agree(world, r->ops->connect(r->backend, world, err), err)) return -1;
    if (ranks_agree(world, start_state(r, o, resumed, err), err)) return -1;
    if (ranks_agree(world, note_tokenizer(r, err) || open_loader(r, err) ? -1 : 0, err)) return -1;
    r->gemm_peak = r->ops->peak_flops(r->backend, (dtype)c->dtype);
    if (ranks_agree(world, r->gemm_peak == 0 ? peak_measure(&r->model, &r->gemm_peak, err) : 0, err)) return -1;
    ranks_sum_double(world, &r->gemm_peak, 1);
    stop_defer(true);
    return run_to_end(r, plan, resumed, err);
}

/* Rank 0: shows what the run will be, and makes its directory ready, in which a signal leaves nothing half written. */
static int announce(const train_options *o, const run_config *c, const run_plan *plan, int *lock, error *err) {
    if (show_plan(o, c, plan, err) || banner_data(o->json ? stderr : stdout, c, err)) return -1;
    if (o->dry_run) return o->json ? 0 : show_config(c, true, err);
    stop_defer(true);
    if (claim_directory(c, o->resume, lock, err) || show_config(c, false, err)) return -1;
    stop_defer(false);
    return 0;
}

int train_command(int argc, char **argv, const ranks *world, error *err) {
    train_options o;
    run_config c = {0};
    run_plan plan;
    run r;
    bool first = world->rank == 0;
    const ops *op;
    backend *b = NULL;
    int lock = -1, helped;
    if (ranks_agree(world, parse_train(&o, argc, argv, first, &helped, err), err)) return -1;
    if (helped) return 0;
    if (!o.dry_run) stop_watch(first);
    int result = prepare(&o, &c, &plan, world, &op, &b, err);
    if (result == 0) stop_limit(c.train.time_limit);
    if (result == 0 && first) result = announce(&o, &c, &plan, &lock, err);
    result = ranks_agree(world, result, err);
    if (result == 0 && !o.dry_run) {
        result = ranks_agree(world, run_open(&r, &c, world, &plan, op, b, o.profile, err), err);
        b = NULL; /* the run's */
        if (result == 0) {
            result = bring_up(&r, &o, &c, &plan, err);
            run_close(&r);
        }
    }
    if (b) op->close(b);
    lock_release(lock);
    run_config_free(&c);
    return result;
}
