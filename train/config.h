/* config.h: a training run, as configs/runs/ files say it. */
#ifndef MOBILELLM_TRAIN_CONFIG_H
#define MOBILELLM_TRAIN_CONFIG_H

#include "model/config.h"

typedef struct data_source {
    char *prefix;  /* PREFIX.bin and PREFIX.idx */
    double weight; /* share of the samples; only for training data */
} data_source;

typedef enum schedule_kind { SCHEDULE_COSINE, SCHEDULE_WSD, SCHEDULE_LINEAR, SCHEDULE_CONSTANT } schedule_kind;

typedef struct run_config {
    model_config model;
    struct run_init {
        int64_t seed;
        double stddev;    /* of the normal distribution; projections into the residual stream get stddev / sqrt(2 n_layers) */
        char *checkpoint; /* weights to start from; NULL: random */
    } init;
    struct run_data {
        config_list train, heldout; /* of data_source */
        int seq_len;
        int64_t seed;
        bool mask_documents; /* tokens see only their own document; positions start anew in each */
    } data;
    struct run_batch {
        int64_t tokens; /* a step, over all ranks: a multiple of seq_len */
        int micro;      /* sequences a rank works on at a time */
        int head_chunk; /* rows of logits held at a time; 0: chosen from the vocabulary */
    } batch;
    struct run_train {
        int64_t tokens;            /* of the whole run */
        int log_every, eval_every; /* steps; 0: never (eval: only at the end) */
        int64_t eval_tokens;       /* of each held-out prefix; 0: all of it */
        double time_limit;         /* seconds after the start at which to write a checkpoint and stop; 0: none */
        double hang_timeout;       /* seconds without progress after which a rank hangs, and the run is ended; 0: never */
        int max_nonfinite;         /* non-finite steps in a row that end the run */
        int64_t stop_after;        /* stop with a checkpoint after this many steps of the run; 0: at the end */
    } train;
    struct run_optimizer {
        double lr, betas[2], eps, weight_decay, grad_clip, z_loss;
        bool stochastic_rounding; /* of bf16 parameters */
    } optimizer;
    struct run_schedule {
        int kind; /* schedule_kind */
        int64_t warmup_tokens;
        double decay_fraction; /* wsd: the last part of the run, over which the rate falls */
        double min_lr_ratio;
    } schedule;
    struct run_checkpoint {
        char *dir;
        int every, keep; /* steps between checkpoints (0: only at the end), newest ones kept */
    } checkpoint;
    int dtype;  /* enum dtype */
    int device; /* 0 cpu */
    int threads;
} run_config;

extern const config_key run_config_keys[];

/* Reads, completes and checks a run: the file, then the overrides. */
int run_config_read(run_config *c, const char *path, const char *const *overrides, int n_overrides, error *err);
const char *run_config_device(const run_config *c); /* "auto", "cpu", "cuda" */
void run_config_free(run_config *c);

#endif
