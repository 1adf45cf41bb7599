/* state.c: a run's state into a checkpoint and back.
 *
 * Each rank writes the pieces that its optimizer owns, of the parameters too (which all ranks hold): so the file is written by
 * all ranks in equal parts. Reading asks for the pieces of the new ranks, so their number does not matter. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/params.h"
#include "train/run.h"

#ifndef MOBILELLM_VERSION
#define MOBILELLM_VERSION "unknown"
#endif

/* The datasets of a run, built and freed together. */
typedef struct state_tensors {
    checkpoint_tensor *tensors;
    checkpoint_part *parts;
    checkpoint_memory memory;
    int n;
} state_tensors;

static void state_free(state_tensors *s) {
    free(s->tensors);
    free(s->parts);
}

/* One dataset a tensor under `folder`, with this rank's pieces of it. flat: data is indexed like the flat array, else like the
 * shard. */
static void add_folder(state_tensors *s, const run *r, const char *folder, dtype type, void *data, bool flat) {
    const registry *reg = &r->model.registry;
    const optimizer *o = &r->optimizer;
    checkpoint_part *part = s->parts + (size_t)(s->n / reg->n_tensors) * (size_t)o->n_pieces;
    int p = 0;
    for (int i = 0; i < reg->n_tensors; i++) {
        const tensor *t = &reg->tensors[i];
        checkpoint_tensor *out = &s->tensors[s->n++];
        *out = (checkpoint_tensor){.type = type,
                                   .n_axes = t->n_axes,
                                   .shape = {t->shape[0], t->shape[1]},
                                   .parts = part + p,
                                   .memory = r->ops->host_memory ? NULL : &s->memory};
        snprintf(out->path, sizeof out->path, "%s/%s", folder, t->name);
        for (; p < o->n_pieces && o->pieces[p].tensor == i; p++, out->n_parts++) {
            const piece *from = &o->pieces[p];
            int64_t at = flat ? from->flat : from->shard;
            part[p] = (checkpoint_part){from->first, from->count, (char *)data + (size_t)at * dtype_size(type)};
        }
    }
}

static int state_collect(state_tensors *s, const run *r, bool params, bool master, error *err) {
    const registry *reg = &r->model.registry;
    const optimizer *o = &r->optimizer;
    *s = (state_tensors){.tensors = malloc(4 * (size_t)reg->n_tensors * sizeof *s->tensors),
                         .parts = malloc((4 * (size_t)o->n_pieces + 1) * sizeof *s->parts),
                         .memory = {r->ops, r->backend}};
    if (!s->tensors || !s->parts) {
        state_free(s);
        return error_set(err, STATUS_RESOURCE, "no memory for the list of a checkpoint's tensors");
    }
    if (params) add_folder(s, r, "params", r->model.options.x, r->model.params, true);
    if (master) add_folder(s, r, "optimizer/master", DTYPE_F32, o->master, false);
    add_folder(s, r, "optimizer/m", DTYPE_F32, o->m, false);
    add_folder(s, r, "optimizer/v", DTYPE_F32, o->v, false);
    return 0;
}

static int replace_string(char **string, const char *with, error *err) {
    free(*string);
    *string = strdup(with);
    return *string ? 0 : error_set(err, STATUS_RESOURCE, "no memory");
}

int run_save(run *r, char path[4096], error *err) {
    checkpoint_info *info = &r->progress;
    free(info->config);
    free(info->model);
    info->config = config_print(&r->config, run_config_keys);
    info->model = config_print(&r->config.model, model_config_keys);
    if (!info->config || !info->model) return error_set(err, STATUS_RESOURCE, "no memory");
    if (replace_string(&info->created_by, "mobilellm.c " MOBILELLM_VERSION, err)) return -1;
    info->optimizer_step = r->optimizer.t;
    info->data_seed = r->config.data.seed;
    info->seq_len = r->config.data.seq_len;
    state_tensors s;
    if (state_collect(&s, r, true, r->optimizer.master != NULL, err)) return -1;
    int result = checkpoint_write(r->config.checkpoint.dir, r->config.checkpoint.keep, info, s.tensors, s.n, r->ranks, path, err);
    state_free(&s);
    return result;
}

/* The network that a file holds must be the one that the config describes. */
static int check_model(const run *r, const checkpoint *c, error *err) {
    model_config written;
    if (config_read(&written, model_config_keys, checkpoint_path(c), checkpoint_about(c)->model, NULL, 0, err))
        return error_prefix(err, "%s: the network it describes", checkpoint_path(c));
    int result = model_config_same(&r->config.model, "the config", &written, checkpoint_path(c), err);
    model_config_free(&written);
    return result;
}

static bool has_folder(const checkpoint *c, const char *folder) {
    for (int i = 0; i < checkpoint_n_tensors(c); i++)
        if (strncmp(checkpoint_tensor_at(c, i)->path, folder, strlen(folder)) == 0) return true;
    return false;
}

static int copy_history(history_row **to, int64_t *n_to, const history_row *from, int64_t n, error *err) {
    *n_to = n;
    *to = malloc((size_t)(n > 0 ? n : 1) * sizeof **to);
    if (!*to) return error_set(err, STATUS_RESOURCE, "no memory for a history of %lld rows", (long long)n);
    if (n > 0) memcpy(*to, from, (size_t)n * sizeof **to);
    return 0;
}

static int copy_progress(checkpoint_info *to, const checkpoint_info *from, error *err) {
    checkpoint_info_free(to);
    *to = *from;
    to->config = to->model = to->tokenizer_hash = to->lineage = to->created_by = NULL;
    to->train = to->heldout = NULL;
    if (replace_string(&to->tokenizer_hash, from->tokenizer_hash, err) || replace_string(&to->lineage, from->lineage, err))
        return -1;
    if (copy_history(&to->train, &to->n_train, from->train, from->n_train, err)) return -1;
    return copy_history(&to->heldout, &to->n_heldout, from->heldout, from->n_heldout, err);
}

/* This rank's part of weights and optimizer state. What is damaged is told as by checkpoint_read. */
static int read_state(run *r, checkpoint *c, error *err) {
    bool master_there = has_folder(c, "optimizer/master/"), master_here = r->optimizer.master != NULL;
    if (check_model(r, c, err)) return -1;
    if (!has_folder(c, "optimizer/m/"))
        return error_set(
            err, STATUS_INPUT,
            "%s has no optimizer state to resume from: start a new run with init.checkpoint=%s and another checkpoint.dir",
            checkpoint_path(c), checkpoint_path(c));
    state_tensors s;
    int result = checkpoint_read_params(c, &r->model, master_there && !master_here ? "optimizer/master" : "params", err);
    if (result) return result;
    if (state_collect(&s, r, false, master_here && master_there, err)) return -1;
    result = checkpoint_read(c, s.tensors, s.n, err);
    state_free(&s);
    if (result) return result;
    if (master_here && !master_there) optimizer_master_from_params(&r->optimizer);
    return r->ops->sync(r->backend, err);
}

/* A checkpoint_take. The run's state is overwritten by what turns out to be damaged too: by the next file's, or by run_init. */
static int take_state(void *context, checkpoint *c, error *err) {
    run *r = context;
    int result = checkpoint_share(r->ranks, read_state(r, c, err), err);
    if (result == 0) result = checkpoint_check(c, r->ranks, err);
    if (result) return result;
    optimizer_resume(&r->optimizer, checkpoint_about(c)->optimizer_step);
    return checkpoint_share(r->ranks, copy_progress(&r->progress, checkpoint_about(c), err), err);
}

int run_resume(run *r, char path[4096], error *err) {
    return checkpoint_newest(r->config.checkpoint.dir, r->ranks, take_state, r, path, err);
}

static int init_from_checkpoint(run *r, error *err) {
    checkpoint *c;
    char lineage[4200];
    if (checkpoint_open(&c, r->config.init.checkpoint, err)) return -1;
    int result = check_model(r, c, err);
    if (result == 0) result = checkpoint_read_params(c, &r->model, "params", err);
    snprintf(lineage, sizeof lineage, "weights of %s, step %lld (%s)", checkpoint_path(c), (long long)checkpoint_about(c)->step,
             checkpoint_about(c)->lineage);
    checkpoint_close(c);
    if (result) return -1;
    optimizer_master_from_params(&r->optimizer);
    return replace_string(&r->progress.lineage, lineage, err);
}

int run_init(run *r, error *err) {
    optimizer_clear(&r->optimizer);
    if (r->config.init.checkpoint) return init_from_checkpoint(r, err);
    char lineage[80];
    snprintf(lineage, sizeof lineage, "random, seed %lld", (long long)r->config.init.seed);
    if (model_init(&r->model, (uint64_t)r->config.init.seed, (float)r->config.init.stddev, err)) return -1;
    if (optimizer_master_from_init(&r->optimizer, (uint64_t)r->config.init.seed, (float)r->config.init.stddev, err)) return -1;
    return replace_string(&r->progress.lineage, lineage, err);
}
