/* eval.c: `mobilellm eval`: the loss of a checkpoint on token files. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eval/command.h"
#include "eval/heldout.h"
#include "eval/load.h"
#include "util/options.h"

typedef struct eval_options {
    bool json, mask_documents, data_given;
    int64_t batch, seq_len, max_tokens, threads;
    const char *dtype, *device;
    char **rest; /* CHECKPOINT PREFIX ... */
    int n_rest;
} eval_options;

static int parse(eval_options *o, int argc, char **argv, bool prints, int *helped, error *err) {
    *o = (eval_options){.batch = 8, .rest = argv + 1};
    const command_option table[] = {
        {"data", OPTION_FLAG, &o->data_given, 0, 0, NULL, "what follows are the prefixes of token files"},
        {"seq-len", OPTION_INTEGER, &o->seq_len, 1, 1 << 24, "N", "tokens of a window (the training's)"},
        {"batch", OPTION_INTEGER, &o->batch, 1, 1 << 20, "N", "windows at a time (8)"},
        {"max-tokens", OPTION_INTEGER, &o->max_tokens, 0, 1e18, "N", "of each file, rounded up to whole windows (0: all)"},
        {"mask-documents", OPTION_FLAG, &o->mask_documents, 0, 0, NULL, "tokens see only their own document"},
        {"dtype", OPTION_TEXT, &o->dtype, 0, 0, "f32|bf16", "to compute in (the checkpoint's)"},
        {"device", OPTION_TEXT, &o->device, 0, 0, "auto|cpu|cuda", "where it runs (auto)"},
        {"threads", OPTION_INTEGER, &o->threads, 1, 4096, "N", "of each rank"},
        {"json", OPTION_FLAG, &o->json, 0, 0, NULL, "print JSON"},
        {0}};
    const char *usage =
        "Usage: mobilellm eval CHECKPOINT --data PREFIX ... [options]\n"
        "       mpirun -np N mobilellm eval ...\n\n"
        "Loss (nats a token), perplexity and bits per byte on token files, each and in total. A file is read from end to end in "
        "windows\n"
        "that do not overlap: every token but the first is predicted once. CHECKPOINT: a file, or a run's directory.\n";
    if (options_parse(table, prints ? usage : NULL, argc, argv, &o->n_rest, helped, err)) return -1;
    if (*helped) return 0;
    if (o->n_rest < 2 || !o->data_given)
        return error_set(err, STATUS_USAGE,
                         "eval: needs a checkpoint and token files: mobilellm eval CHECKPOINT --data PREFIX ...");
    if (o->dtype && strcmp(o->dtype, "f32") != 0 && strcmp(o->dtype, "bf16") != 0)
        return error_set(err, STATUS_USAGE, "--dtype %s: expected f32 or bf16", o->dtype);
    return 0;
}

static json_t *number_or_null(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *loss_json(const char *prefix, const heldout_loss *l) {
    return json_pack("{s:s,s:o,s:o,s:o,s:o,s:I,s:o,s:f}", "prefix", prefix, "loss", number_or_null(heldout_mean(l)), "perplexity",
                     number_or_null(exp(heldout_mean(l))), "bits_per_byte", number_or_null(heldout_bits_per_byte(l)), "nats",
                     number_or_null(l->nats), "tokens", (json_int_t)l->tokens, "bytes", number_or_null(l->bytes), "seconds",
                     l->seconds);
}

static void print_line(const char *prefix, const heldout_loss *l) {
    char bits[32] = "-";
    if (isfinite(l->bytes)) snprintf(bits, sizeof bits, "%.4f", heldout_bits_per_byte(l));
    printf("%-40s %12lld %10.6f %12.4f %11s %8.2f\n", prefix, (long long)l->tokens, heldout_mean(l), exp(heldout_mean(l)), bits,
           l->seconds);
}

static void print_results(const eval_options *o, const loaded_model *l, const heldout_loss *losses, const heldout_loss *total) {
    int n = o->n_rest - 1;
    if (o->json) {
        json_t *files = json_array();
        for (int i = 0; i < n; i++) json_array_append_new(files, loss_json(o->rest[1 + i], &losses[i]));
        json_t *all = json_pack("{s:s,s:I,s:i,s:s,s:o,s:o}", "checkpoint", checkpoint_path(l->checkpoint), "step",
                                (json_int_t)checkpoint_about(l->checkpoint)->step, "seq_len", l->model.options.T, "dtype",
                                dtype_name(l->model.options.x), "files", files, "total", loss_json("total", total));
        json_dumpf(all, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
        printf("\n");
        json_decref(all);
        return;
    }
    printf("%s, step %lld, windows of %d tokens, %s\n\n", checkpoint_path(l->checkpoint),
           (long long)checkpoint_about(l->checkpoint)->step, l->model.options.T, dtype_name(l->model.options.x));
    printf("%-40s %12s %10s %12s %11s %8s\n", "file", "tokens", "loss", "perplexity", "bits/byte", "seconds");
    for (int i = 0; i < n; i++) print_line(o->rest[1 + i], &losses[i]);
    if (n > 1) print_line("total", total);
}

static int measure_all(const eval_options *o, loaded_model *l, const ranks *world, error *err) {
    int n = o->n_rest - 1;
    heldout_loss total = {0}, *losses = calloc((size_t)n, sizeof *losses);
    if (!losses) return error_set(err, STATUS_RESOURCE, "no memory for %d results", n);
    int result = 0;
    for (int i = 0; result == 0 && i < n; i++) {
        result = heldout_measure(&losses[i], &l->model, o->rest[1 + i], o->mask_documents, o->max_tokens, NULL, world, err);
        heldout_add(&total, &losses[i]);
    }
    if (result == 0 && world->rank == 0) print_results(o, l, losses, &total);
    free(losses);
    return result;
}

int eval_command(int argc, char **argv, const ranks *world, error *err) {
    eval_options o;
    loaded_model l;
    int helped;
    if (ranks_agree(world, parse(&o, argc, argv, world->rank == 0, &helped, err), err)) return -1;
    if (helped) return 0;
    load_options load = {.device = o.device,
                         .local_rank = world->local_rank,
                         .x = !o.dtype                      ? -1
                              : strcmp(o.dtype, "f32") == 0 ? DTYPE_F32
                                                            : DTYPE_BF16,
                         .B = (int)o.batch,
                         .T = (int)o.seq_len,
                         .threads = o.threads > 0 ? (int)o.threads : ranks_threads(world)};
    if (ranks_agree(world, loaded_model_open(&l, o.rest[0], &load, err), err)) return -1;
    int result = measure_all(&o, &l, world, err);
    loaded_model_close(&l);
    return result;
}
