/* fuzz_checkpoint.c: a file of any bytes opened as a checkpoint, verified, and every tensor read. */
#include <hdf5.h>

#include "checkpoint/checkpoint.h"
#include "tests/fuzz/fuzz.h"

enum { MOST_ELEMENTS = 1 << 20 };

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    enter_directory();
    H5open();
    return 0;
}

static int64_t elements(const checkpoint_tensor *t) { return t->n_axes == 1 ? t->shape[0] : t->shape[0] * t->shape[1]; }

/* A tensor as either type; whether it verified is another matter. */
static void read_tensor(checkpoint *c, checkpoint_tensor t) {
    if (elements(&t) > MOST_ELEMENTS) return;
    for (int type = 0; type < 2; type++) {
        error err = {0};
        t.type = type ? DTYPE_BF16 : DTYPE_F32;
        checkpoint_part part = {.first = 0, .count = elements(&t), .data = malloc((size_t)elements(&t) * dtype_size(t.type))};
        CHECK(part.data, "no memory");
        t.n_parts = 1;
        t.parts = &part;
        if (checkpoint_read(c, &t, 1, &err)) check_told(&err);
        free(part.data);
    }
}

/* Files, datasets, groups and attributes that are open in HDF5: what the reader opens it closes. */
static long open_objects(void) { return (long)H5Fget_obj_count((hid_t)H5F_OBJ_ALL, H5F_OBJ_ALL); }

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    error err = {0};
    checkpoint *c;
    put_file("c.h5", data, size);
    if (checkpoint_open(&c, "c.h5", &err)) {
        check_told(&err);
        CHECK(!c, "refused, and not cleared");
    } else {
        if (checkpoint_verify(c, 0, 1, &err)) check_told(&err);
        for (int i = 0; i < checkpoint_n_tensors(c); i++) read_tensor(c, *checkpoint_tensor_at(c, i));
        checkpoint_close(c);
    }
    CHECK(open_objects() == 0, "%ld objects are left open: %s", open_objects(), err.text);
    return 0;
}
