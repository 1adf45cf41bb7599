/* inspect.c: `mobilellm inspect`: what a checkpoint says of itself, and the tensors in it. */
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint/checkpoint.h"
#include "eval/command.h"
#include "util/options.h"
#include "util/system.h"

static int64_t elements(const checkpoint_tensor *t) { return t->n_axes == 2 ? t->shape[0] * t->shape[1] : t->shape[0]; }

static void print_json(const checkpoint *c, bool verified) {
    const checkpoint_info *a = checkpoint_about(c);
    json_t *tensors = json_array();
    for (int i = 0; i < checkpoint_n_tensors(c); i++) {
        const checkpoint_tensor *t = checkpoint_tensor_at(c, i);
        json_t *shape = json_array();
        for (int k = 0; k < t->n_axes; k++) json_array_append_new(shape, json_integer((json_int_t)t->shape[k]));
        json_array_append_new(tensors, json_pack("{s:s,s:s,s:o,s:I}", "path", t->path, "dtype", dtype_name(t->type), "shape",
                                                 shape, "crc32", (json_int_t)checkpoint_crc_at(c, i)));
    }
    json_t *all = json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:s,s:s,s:s,s:s,s:s,s:b,s:o}", "path", checkpoint_path(c), "step",
                            (json_int_t)a->step, "tokens", (json_int_t)a->tokens, "samples", (json_int_t)a->samples,
                            "optimizer_step", (json_int_t)a->optimizer_step, "skipped_steps", (json_int_t)a->skipped_steps,
                            "data_seed", (json_int_t)a->data_seed, "seq_len", (json_int_t)a->seq_len, "tokenizer_hash",
                            a->tokenizer_hash, "lineage", a->lineage, "created_by", a->created_by, "model", a->model, "config",
                            a->config, "verified", verified, "tensors", tensors);
    json_dumpf(all, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(all);
}

static void print_text(const checkpoint *c, bool verified) {
    const checkpoint_info *a = checkpoint_about(c);
    int64_t parameters = 0;
    printf("%s, by %s\n\n", checkpoint_path(c), a->created_by);
    printf("  step            %" PRId64 " (%" PRId64 " tokens, %" PRId64 " samples, %" PRId64 " steps skipped)\n", a->step,
           a->tokens, a->samples, a->skipped_steps);
    printf("  sequences       %" PRId64 " tokens, data seed %" PRId64 "\n", a->seq_len, a->data_seed);
    printf("  weights from    %s\n", a->lineage);
    printf("  tokenizer       %s\n", a->tokenizer_hash[0] ? a->tokenizer_hash : "unknown");
    if (a->n_train > 0)
        printf("  train loss      %.4f at step %" PRId64 "\n", a->train[a->n_train - 1].loss, a->train[a->n_train - 1].step);
    if (a->n_heldout > 0)
        printf("  held-out loss   %.4f at step %" PRId64 "\n", a->heldout[a->n_heldout - 1].loss,
               a->heldout[a->n_heldout - 1].step);
    if (verified) printf("  checksums       all match\n");
    printf("\n");
    for (int i = 0; i < checkpoint_n_tensors(c); i++) {
        const checkpoint_tensor *t = checkpoint_tensor_at(c, i);
        char shape[48];
        snprintf(shape, sizeof shape, t->n_axes == 2 ? "%" PRId64 " x %" PRId64 : "%" PRId64, t->shape[0], t->shape[1]);
        printf("  %-64s %-5s %18s  crc32 %08" PRIx32 "\n", t->path, dtype_name(t->type), shape, checkpoint_crc_at(c, i));
        if (strncmp(t->path, "params/", 7) == 0) parameters += elements(t);
    }
    printf("\n  %" PRId64 " parameters\n\nmodel:\n%s", parameters, a->model);
}

int inspect_command(int argc, char **argv, const ranks *world, error *err) {
    (void)world;
    bool json = false, verify = false;
    int n_rest, helped;
    const command_option table[] = {{"verify", OPTION_FLAG, &verify, 0, 0, NULL, "read everything and compare the checksums"},
                                    {"json", OPTION_FLAG, &json, 0, 0, NULL, "print JSON"},
                                    {0}};
    if (options_parse(
            table,
            "Usage: mobilellm inspect FILE [options]\n\nWhat a checkpoint holds. FILE: a checkpoint, or a run's directory.\n",
            argc, argv, &n_rest, &helped, err))
        return -1;
    if (helped) return 0;
    if (n_rest != 1) return error_set(err, STATUS_USAGE, "inspect: which file? Usage: mobilellm inspect FILE");
    checkpoint *c;
    if (checkpoint_open(&c, argv[1], err)) return -1;
    int result = verify && checkpoint_verify(c, 0, 1, err) ? -1 : 0;
    if (result == 0 && json) print_json(c, verify);
    if (result == 0 && !json) print_text(c, verify);
    checkpoint_close(c);
    return result;
}
