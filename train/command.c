/* command.c: the command lines of train and plan, and the order in which a run comes up.
 *
 * Everything that can be found wrong cheaply is found first: config, then data files, then memory, then the checkpoint to resume
 * from. */
#include "train/command.h"

#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "data/tokens.h"
#include "train/banner.h"
#include "train/lock.h"
#include "train/loop.h"
#include "train/peak.h"
#include "train/stop.h"
#include "util/file.h"
#include "util/system.h"

typedef struct train_options {
    const char *config;
    const char *const *overrides;
    int n_overrides, n_ranks;
    bool resume, dry_run, json, profile, help;
} train_options;

enum {
    OPTION_RESUME = 'r',
    OPTION_DRY_RUN = 'd',
    OPTION_JSON = 'j',
    OPTION_HELP = 'h',
    OPTION_RANKS = 'n',
    OPTION_PROFILE = 'p'
};

static const struct option train_flags[] = {
    {"resume", no_argument, NULL, OPTION_RESUME}, {"dry-run", no_argument, NULL, OPTION_DRY_RUN},
    {"json", no_argument, NULL, OPTION_JSON},     {"profile", no_argument, NULL, OPTION_PROFILE},
    {"help", no_argument, NULL, OPTION_HELP},     {0}};
static const struct option plan_flags[] = {{"ranks", required_argument, NULL, OPTION_RANKS},
                                           {"json", no_argument, NULL, OPTION_JSON},
                                           {"help", no_argument, NULL, OPTION_HELP},
                                           {0}};

static int parse(train_options *o, int argc, char **argv, const struct option *flags, error *err) {
    *o = (train_options){.n_ranks = 1};
    optind = 0;
    opterr = 0;
    for (int flag; (flag = getopt_long(argc, argv, "h", flags, NULL)) != -1;) switch (flag) {
            case OPTION_RESUME:
                o->resume = true;
                break;
            case OPTION_DRY_RUN:
                o->dry_run = true;
                break;
            case OPTION_JSON:
                o->json = true;
                break;
            case OPTION_PROFILE:
                o->profile = true;
                break;
            case OPTION_HELP:
                o->help = true;
                break;
            case OPTION_RANKS: {
                char *end;
                long n = strtol(optarg, &end, 10);
                if (*end || n < 1 || n > 1 << 20)
                    return error_set(err, STATUS_USAGE, "--ranks %s: expected a number of ranks from 1 on", optarg);
                o->n_ranks = (int)n;
                break;
            }
            default:
                return error_set(err, STATUS_USAGE, "%s: %s is not an option, or lacks its value; see `mobilellm %s --help`",
                                 argv[0], argv[optind - 1], argv[0]);
        }
    if (o->help) return 0;
    if (optind >= argc)
        return error_set(err, STATUS_USAGE, "%s: which config? Usage: mobilellm %s CONFIG [key=value ...]", argv[0], argv[0]);
    o->config = argv[optind];
    o->overrides = (const char *const *)argv + optind + 1;
    o->n_overrides = argc - optind - 1;
    return 0;
}

static void train_help(void) {
    printf(
        "Usage: mobilellm train CONFIG [key=value ...] [--resume] [--profile] [--dry-run] [--json]\n"
        "       mpirun -np N mobilellm train CONFIG ...\n\n"
        "Trains the network that CONFIG describes; key=value overrides its keys (optimizer.lr=3e-4, model.n_layers=6).\n\n"
        "  --resume   go on from the newest valid checkpoint of checkpoint.dir; start anew where there is none\n"
        "  --profile  end with a table of where the time of a step went on rank 0, also in checkpoint.dir/profile.json\n"
        "  --dry-run  check the config and the data, print the plan, train nothing\n"
        "  --json     with --dry-run: the plan as JSON\n\n"
        "SIGTERM, SIGINT, SIGUSR1 and train.time_limit end a run after the step in progress, with a checkpoint and exit code "
        "75.\n\n"
        "Keys of CONFIG:\n");
    config_describe(stdout, run_config_keys);
}

static int prepare(const train_options *o, run_config *c, run_plan *plan, const ranks *world, error *err) {
    if (run_config_read(c, o->config, o->overrides, o->n_overrides, err)) return -1;
    return run_plan_make(plan, c, world->size, c->threads > 0 ? c->threads : ranks_threads(world), cpu_ops(), err);
}

static int show_plan(const train_options *o, const run_config *c, const run_plan *plan, error *err) {
    if (!o->json) {
        printf("%s\n", o->config);
        banner_plan(stdout, c, plan);
        return 0;
    }
    char *text = banner_plan_json(c, plan);
    if (!text) return error_set(err, STATUS_RESOURCE, "no memory");
    printf("%s\n", text);
    free(text);
    return 0;
}

int plan_command(int argc, char **argv, const ranks *world, error *err) {
    train_options o;
    run_config c = {0};
    run_plan plan;
    if (parse(&o, argc, argv, plan_flags, err)) return -1;
    if (o.help) {
        printf(
            "Usage: mobilellm plan CONFIG [key=value ...] [--ranks N] [--json]\n\n"
            "What a run of CONFIG on N ranks (1) would take, without starting it: parameters by part, memory of a rank by part, "
            "floating-\n"
            "point operations of a training step per token (6 a weight of each matrix, attention as the mask leaves it).\n");
        return 0;
    }
    ranks planned = {.size = o.n_ranks, .local_size = world->local_size};
    int result = prepare(&o, &c, &plan, &planned, err);
    if (result == 0) result = show_plan(&o, &c, &plan, err);
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
    if (o->resume && checkpoint_newest(r->config.checkpoint.dir, r->ranks, resumed, err)) return -1;
    return resumed[0] ? run_restore(r, resumed, err) : run_init(r, err);
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
    if (r->ranks->rank == 0) print_machine(r, resumed);
    int result = r->ranks->rank == 0 ? metrics_open(&m, r->config.checkpoint.dir, r->progress.step, err) : 0;
    if (ranks_agree(r->ranks, result, err)) return -1;
    result = train_loop(r, plan, m, &stopped, err);
    if (m) metrics_close(m);
    if (result) return -1;
    if (r->profile && ranks_agree(r->ranks, r->ranks->rank == 0 ? show_profile(r, err) : 0, err)) return -1;
    bool complete = r->progress.step >= plan->n_steps, asked = stopped && strcmp(stopped, "train.stop_after") == 0;
    if (r->ranks->rank == 0 && !complete)
        printf("stopped     by %s at step %lld of %lld: go on with --resume\n", stopped, (long long)r->progress.step,
               (long long)plan->n_steps);
    return complete || asked ? STATUS_OK : STATUS_AGAIN;
}

static int bring_up(run *r, const train_options *o, const run_config *c, const run_plan *plan, error *err) {
    const ranks *world = r->ranks;
    char resumed[4096], advice[160];
    stop_watch(c->train.time_limit);
    snprintf(advice, sizeof advice, "train.hang_timeout is %g s. Go on from the newest checkpoint with --resume.",
             c->train.hang_timeout);
    if (ranks_agree(world, ranks_watch(world, c->train.hang_timeout, advice, err), err)) return -1;
    if (ranks_agree(world, r->ops->connect(r->backend, world, err), err)) return -1;
    if (ranks_agree(world, start_state(r, o, resumed, err), err)) return -1;
    if (ranks_agree(world, note_tokenizer(r, err) || open_loader(r, err) ? -1 : 0, err)) return -1;
    r->gemm_peak = peak_measure(&r->model);
    ranks_sum_double(world, &r->gemm_peak, 1);
    return run_to_end(r, plan, resumed, err);
}

int train_command(int argc, char **argv, const ranks *world, error *err) {
    train_options o;
    run_config c = {0};
    run_plan plan;
    run r;
    bool first = world->rank == 0;
    int lock = -1;
    if (ranks_agree(world, parse(&o, argc, argv, train_flags, err), err)) return -1;
    if (o.help) {
        if (first) train_help();
        return 0;
    }
    int result = prepare(&o, &c, &plan, world, err);
    if (result == 0 && first) result = show_plan(&o, &c, &plan, err);
    if (result == 0 && first) result = banner_data(o.json ? stderr : stdout, &c, err);
    if (result == 0 && first && !o.dry_run) result = claim_directory(&c, o.resume, &lock, err);
    if (result == 0 && first && !(o.dry_run && o.json)) result = show_config(&c, o.dry_run, err);
    result = ranks_agree(world, result, err);
    if (result == 0 && !o.dry_run) {
        result = ranks_agree(world, run_open(&r, &c, world, &plan, o.profile, err), err);
        if (result == 0) {
            result = bring_up(&r, &o, &c, &plan, err);
            run_close(&r);
        }
    }
    lock_release(lock);
    run_config_free(&c);
    return result;
}
