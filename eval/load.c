/* load.c: config from the file, memory from a dry run, parameters read straight into their places. */
#include "eval/load.h"

#include "checkpoint/params.h"
#include "util/system.h"

static int read_model_config(model_config *c, const checkpoint *from, error *err) {
    const checkpoint_info *about = checkpoint_about(from);
    if (config_read(c, model_config_keys, checkpoint_path(from), about->model, NULL, 0, err) ||
        model_config_check(c, "model", err))
        return error_prefix(err, "%s: the network it describes", checkpoint_path(from));
    return 0;
}

static int open_model(loaded_model *l, const model_config *c, const model_options *o, error *err) {
    arena plan = arena_dry();
    model m;
    if (model_open(&m, c, o, l->ops, l->backend, &plan, err)) return -1;
    model_close(&m);
    size_t available = l->ops->memory_available(l->backend, 1);
    if (plan.peak > available) {
        char need[16], have[16];
        return error_set(err, STATUS_RESOURCE, "the model needs %s, and %s are free: use a shorter sequence or fewer rows",
                         format_bytes(need, (double)plan.peak), format_bytes(have, (double)available));
    }
    l->memory = l->ops->alloc(l->backend, plan.peak, err);
    if (!l->memory) return -1;
    arena real = arena_on(l->memory, plan.peak);
    if (model_open(&l->model, c, o, l->ops, l->backend, &real, err)) return -1;
    return checkpoint_read_params(l->checkpoint, &l->model, "params", err) ? -1 : 0;
}

/* The dtype of the parameters in the file. */
static dtype file_dtype(const checkpoint *c) {
    return checkpoint_n_tensors(c) > 0 ? checkpoint_tensor_at(c, 0)->type : DTYPE_F32;
}

int loaded_model_open(loaded_model *l, const char *path, const load_options *options, error *err) {
    *l = (loaded_model){0};
    model_config c = {0};
    int result = -1;
    if (ops_named(&l->ops, options->device ? options->device : "auto", err)) return -1;
    if (checkpoint_open(&l->checkpoint, path, err)) return -1;
    if (read_model_config(&c, l->checkpoint, err)) goto done;
    int64_t seq_len = checkpoint_about(l->checkpoint)->seq_len;
    model_options o = {.x = options->x < 0 ? file_dtype(l->checkpoint) : (dtype)options->x,
                       .B = options->B,
                       .T = options->T > 0 ? options->T : (int)seq_len,
                       .ways = 1};
    if (o.T < 1) {
        error_set(err, STATUS_USAGE, "%s does not say how long its sequences are: give --seq-len",
                  checkpoint_path(l->checkpoint));
        goto done;
    }
    if (l->ops->open(&l->backend, options->threads, options->local_rank, err)) goto done;
    result = open_model(l, &c, &o, err);
done:
    model_config_free(&c);
    if (result) loaded_model_close(l);
    return result;
}

void loaded_model_close(loaded_model *l) {
    model_close(&l->model);
    if (l->memory) l->ops->free(l->backend, l->memory);
    if (l->backend) l->ops->close(l->backend);
    if (l->checkpoint) checkpoint_close(l->checkpoint);
    *l = (loaded_model){0};
}
