/* params.c: the registry's tensors, read straight into their places. */
#include "checkpoint/params.h"

#include <stdio.h>
#include <stdlib.h>

int checkpoint_read_params(checkpoint *c, model *m, const char *folder, error *err) {
    int n = m->registry.n_tensors;
    checkpoint_memory device = {m->ops, m->backend};
    checkpoint_tensor *tensors = malloc((size_t)n * sizeof *tensors);
    checkpoint_part *parts = malloc((size_t)n * sizeof *parts);
    int result = tensors && parts ? 0 : error_set(err, STATUS_RESOURCE, "no memory for the list of a model's tensors");
    for (int i = 0; result == 0 && i < n; i++) {
        const tensor *t = &m->registry.tensors[i];
        parts[i] = (checkpoint_part){0, t->count, (char *)m->params + (size_t)t->offset * dtype_size(m->options.x)};
        tensors[i] = (checkpoint_tensor){.type = m->options.x,
                                         .n_axes = t->n_axes,
                                         .shape = {t->shape[0], t->shape[1]},
                                         .n_parts = 1,
                                         .parts = &parts[i],
                                         .memory = m->ops->host_memory ? NULL : &device};
        snprintf(tensors[i].path, sizeof tensors[i].path, "%s/%s", folder, t->name);
    }
    if (result == 0) result = checkpoint_read(c, tensors, n, err);
    free(tensors);
    free(parts);
    return result ? result : m->ops->sync(m->backend, err);
}
