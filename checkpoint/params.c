/* params.c: the registry's tensors, read straight into their places. */
#include "checkpoint/params.h"

#include <stdio.h>

int checkpoint_read_params(checkpoint *c, model *m, const char *folder, error *err) {
    checkpoint_memory device = {m->ops, m->backend};
    for (int i = 0; i < m->registry.n_tensors; i++) {
        const tensor *t = &m->registry.tensors[i];
        checkpoint_part whole = {0, t->count, (char *)m->params + (size_t)t->offset * dtype_size(m->options.x)};
        checkpoint_tensor read = {.type = m->options.x,
                                  .n_axes = t->n_axes,
                                  .shape = {t->shape[0], t->shape[1]},
                                  .n_parts = 1,
                                  .parts = &whole,
                                  .memory = m->ops->host_memory ? NULL : &device};
        snprintf(read.path, sizeof read.path, "%s/%s", folder, t->name);
        if (checkpoint_read(c, &read, err)) return -1;
    }
    return m->ops->sync(m->backend, err);
}
