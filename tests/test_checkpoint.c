/* test_checkpoint.c: checkpoint files, written and read by as many ranks as there are.
 *
 * Runs alone, and under mpirun with any number of ranks, in a directory of its own below $TMPDIR. With arguments it does one
 * thing with files, for test_checkpoint_files.py, which looks at them with h5py, damages them, fills the disk and kills the
 * writer. */
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "checkpoint/checkpoint.h"
#include "util/system.h"

static ranks r;
static char scratch[4096]; /* a directory of this run */

/* Odd shapes, vectors, one element, long rows. test_checkpoint_files.py has the same table. */
static const struct {
    const char *path;
    dtype type;
    int n_axes;
    int64_t shape[2];
} specs[] = {
    {"params/model.embed_tokens.weight", DTYPE_BF16, 2, {37, 13}},
    {"params/model.layers.0.mlp.up_proj.weight", DTYPE_F32, 2, {64, 48}},
    {"params/model.layers.0.input_layernorm.weight", DTYPE_BF16, 1, {13, 0}},
    {"params/model.layers.1.mlp.up_proj.weight", DTYPE_BF16, 2, {3, 50021}},
    {"params/model.norm.weight", DTYPE_F32, 1, {1, 0}},
    {"params/lm_head.weight", DTYPE_BF16, 2, {1009, 1}},
    {"optimizer/master/model.embed_tokens.weight", DTYPE_F32, 2, {37, 13}},
    {"optimizer/m/model.embed_tokens.weight", DTYPE_F32, 2, {37, 13}},
    {"optimizer/v/model.layers.0.input_layernorm.weight", DTYPE_F32, 1, {100003, 0}},
};
enum { N_SPECS = sizeof specs / sizeof *specs };

static int64_t count_of(int t) { return specs[t].shape[0] * (specs[t].n_axes == 2 ? specs[t].shape[1] : 1); }

/* Element i of tensor t of a step: 24 bits, exact in f32. */
static float value(int64_t step, int t, int64_t i) {
    uint32_t h = (uint32_t)i * 2654435761u + (uint32_t)t * 40503u + (uint32_t)step * 97u;
    return (float)(h >> 8) * 0x1p-24f - 0.5f;
}

static void put_value(void *at, dtype type, float v) {
    bf16 b = bf16_from_float(v);
    if (type == DTYPE_F32)
        memcpy(at, &v, sizeof v);
    else
        memcpy(at, &b, sizeof b);
}

/* How a tensor is cut among ranks: pieces that grow, dealt out in turn. Tensor 1 is whole on the last rank, tensor 7 in pieces on
 * the first, so that there are ranks with nothing. */
static int n_pieces(int t, int ways) { return t == 1 ? 1 : 3 * ways + 2; }

static int64_t cut(int t, int ways, int piece) {
    int64_t k = n_pieces(t, ways);
    return count_of(t) * piece * piece / (k * k);
}

static int owner(int t, int ways, int piece) { return t == 1 ? ways - 1 : t == 7 ? 0 : (5 * piece + t) % ways; }

static checkpoint_tensor describe(int t) {
    checkpoint_tensor tensor = {.type = specs[t].type, .n_axes = specs[t].n_axes};
    snprintf(tensor.path, sizeof tensor.path, "%s", specs[t].path);
    memcpy(tensor.shape, specs[t].shape, sizeof tensor.shape);
    return tensor;
}

enum { GUARD = 16 }; /* bytes behind each part that nobody may write */

static void add_part(checkpoint_tensor *t, int64_t first, int64_t count) {
    checkpoint_part *p = &t->parts[t->n_parts++];
    size_t bytes = (size_t)count * dtype_size(t->type);
    *p = (checkpoint_part){.first = first, .count = count, .data = malloc(bytes + GUARD)};
    memset(p->data, 0xa5, bytes + GUARD);
}

/* The parts of `rank` of `ways`. */
static checkpoint_tensor cut_for(int t, int ways, int rank) {
    checkpoint_tensor tensor = describe(t);
    tensor.parts = calloc((size_t)n_pieces(t, ways), sizeof *tensor.parts);
    for (int piece = 0; piece < n_pieces(t, ways); piece++)
        if (owner(t, ways, piece) == rank) add_part(&tensor, cut(t, ways, piece), cut(t, ways, piece + 1) - cut(t, ways, piece));
    return tensor;
}

static void free_data(checkpoint_tensor *t) {
    for (int i = 0; i < t->n_parts; i++) free(t->parts[i].data);
    t->n_parts = 0;
}

static void free_parts(checkpoint_tensor *t) {
    free_data(t);
    free(t->parts);
}

static void fill_parts(checkpoint_tensor *tensor, int64_t step, int t) {
    for (int p = 0; p < tensor->n_parts; p++)
        for (int64_t i = 0; i < tensor->parts[p].count; i++)
            put_value((char *)tensor->parts[p].data + (size_t)i * dtype_size(tensor->type), tensor->type,
                      value(step, t, tensor->parts[p].first + i));
}

/* The number of wrong elements (and broken guards) in what was read as tensor->type from a file that holds `stored`. */
static int64_t wrong_elements_of(const checkpoint_tensor *tensor, int64_t step, int t, dtype stored) {
    static const unsigned char guard[GUARD] = {0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5,
                                               0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5};
    size_t item = dtype_size(tensor->type);
    int64_t wrong = 0;
    for (int p = 0; p < tensor->n_parts; p++) {
        const checkpoint_part *part = &tensor->parts[p];
        for (int64_t i = 0; i < part->count; i++) {
            unsigned char expected[4];
            float v = value(step, t, part->first + i);
            put_value(expected, tensor->type, stored == DTYPE_BF16 ? bf16_to_float(bf16_from_float(v)) : v);
            wrong += memcmp((char *)part->data + (size_t)i * item, expected, item) != 0;
        }
        wrong += memcmp((char *)part->data + (size_t)part->count * item, guard, GUARD) != 0;
    }
    return wrong;
}

static int64_t wrong_elements(const checkpoint_tensor *tensor, int64_t step, int t) {
    return wrong_elements_of(tensor, step, t, specs[t].type);
}

static checkpoint_info make_info(int64_t step) {
    checkpoint_info info = {.model = "n_layers: 2\n",
                            .config = "model: {n_layers: 2}\nname: \"\xc3\xa9l\xc3\xa8ve\"\n",
                            .tokenizer_hash = "",
                            .lineage = "random, seed 1",
                            .created_by = "mobilellm test",
                            .step = step,
                            .tokens = step * 4096,
                            .samples = ((int64_t)1 << 40) + step,
                            .skipped_steps = 2,
                            .nonfinite_in_a_row = 1,
                            .optimizer_step = step - 2,
                            .data_seed = -7,
                            .seq_len = 2048,
                            .n_train = 5,
                            .n_heldout = 0};
    info.train = calloc((size_t)info.n_train, sizeof *info.train);
    for (int64_t i = 0; i < info.n_train; i++)
        info.train[i] =
            (history_row){.step = i + 1, .tokens = (i + 1) * 4096, .loss = 10.0 / (double)(i + 1), .lr = 1e-4, .grad_norm = NAN};
    return info;
}

static int write_as(const char *dir, int keep, const checkpoint_info *info, char path[4096], error *err) {
    checkpoint_tensor tensors[N_SPECS];
    for (int t = 0; t < N_SPECS; t++) {
        tensors[t] = cut_for(t, r.size, r.rank);
        fill_parts(&tensors[t], info->step, t);
    }
    int result = checkpoint_write(dir, keep, info, tensors, N_SPECS, &r, path, err);
    for (int t = 0; t < N_SPECS; t++) free_parts(&tensors[t]);
    return result;
}

static int write_step(const char *dir, int keep, int64_t step, char path[4096], error *err) {
    checkpoint_info info = make_info(step);
    int result = write_as(dir, keep, &info, path, err);
    free(info.train);
    return result;
}

/* Reads all tensors cut as for rank `rank` of `ways`, as `type`. Returns the number of wrong elements, -1 on failure. */
static int64_t read_cut(checkpoint *c, int64_t step, int ways, int rank, dtype type, error *err) {
    int64_t wrong = 0;
    for (int t = 0; t < N_SPECS; t++) {
        checkpoint_tensor tensor = cut_for(t, ways, rank);
        for (int p = 0; p < tensor.n_parts; p++) {
            tensor.parts[p].data = realloc(tensor.parts[p].data, (size_t)tensor.parts[p].count * 4 + GUARD);
            memset(tensor.parts[p].data, 0xa5, (size_t)tensor.parts[p].count * 4 + GUARD);
        }
        tensor.type = type;
        int result = checkpoint_read(c, &tensor, 1, err);
        if (result == 0) wrong += wrong_elements(&tensor, step, t);
        free_parts(&tensor);
        if (result) return -1;
    }
    return wrong;
}

/* A checkpoint_take that reads nothing for itself. */
static int verify_all(void *context, checkpoint *c, error *err) {
    (void)context;
    return checkpoint_check(c, &r, err);
}

static void directory_for(char dir[4096], const char *name) { snprintf(dir, 4096, "%.3000s/%s", scratch, name); }

static bool is_there(const char *dir, const char *name) {
    char path[8192];
    struct stat s;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return lstat(path, &s) == 0;
}

static void overwrite(const char *path, off_t at, const void *bytes, size_t n) {
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, n, at < 0 ? lseek(fd, 0, SEEK_END) + at : at), n);
    close(fd);
}

static void assert_message(const error *err, status code, const char *a, const char *b) {
    if (err->code != code || !strstr(err->text, a) || !strstr(err->text, b))
        fail_msg("code %d (wanted %d), \"%s\" and \"%s\" wanted in:\n%s", err->code, code, a, b, err->text);
}

#define assert_ok(call)                                       \
    do {                                                      \
        if ((call) != 0) fail_msg("%s: %s", #call, err.text); \
    } while (0)

/* Whatever number of ranks reads, in whatever dtype, gets what was written. bf16 read as f32 is exact, f32 as bf16 rounded. */
static void what_was_written_is_read_back(void **state) {
    (void)state;
    char dir[4096], path[4096];
    error err;
    checkpoint *c;
    directory_for(dir, "a/b/c");
    assert_ok(write_step(dir, 0, 11, path, &err));
    assert_non_null(strstr(path, "a/b/c/step_0000000011.h5"));
    assert_ok(checkpoint_open(&c, path, &err));
    for (int ways = 1; ways <= 7; ways++)
        for (int rank = 0; rank < ways; rank++)
            for (int type = DTYPE_F32; type <= DTYPE_BF16; type++)
                assert_int_equal(read_cut(c, 11, ways, rank, (dtype)type, &err), 0);
    assert_ok(checkpoint_verify(c, 0, 1, &err));
    checkpoint_close(c);
}

static void a_file_lists_its_tensors_in_the_order_they_were_given(void **state) {
    (void)state;
    char dir[4096], path[4096];
    error err;
    checkpoint *c;
    directory_for(dir, "list");
    assert_ok(write_step(dir, 0, 1, path, &err));
    assert_ok(checkpoint_open(&c, path, &err));
    assert_string_equal(checkpoint_path(c), path);
    assert_int_equal(checkpoint_n_tensors(c), N_SPECS);
    for (int t = 0; t < N_SPECS; t++) {
        const checkpoint_tensor *found = checkpoint_tensor_at(c, t);
        assert_string_equal(found->path, specs[t].path);
        assert_int_equal(found->type, specs[t].type);
        assert_int_equal(found->n_axes, specs[t].n_axes);
        assert_memory_equal(found->shape, specs[t].shape, (size_t)specs[t].n_axes * sizeof(int64_t));
        assert_int_equal(found->n_parts, 0);
    }
    checkpoint_close(c);
}

static void ranges_that_overlap_are_read(void **state) {
    (void)state;
    char dir[4096], path[4096];
    error err;
    checkpoint *c;
    directory_for(dir, "overlap");
    assert_ok(write_step(dir, 0, 1, path, &err));
    assert_ok(checkpoint_open(&c, path, &err));
    checkpoint_tensor t = describe(0); /* (37,13) */
    checkpoint_part parts[6];
    t.parts = parts;
    const int64_t ranges[6][2] = {{0, 481}, {5, 3}, {5, 8}, {5, 60}, {12, 2}, {480, 1}};
    for (int i = 0; i < 6; i++) add_part(&t, ranges[i][0], ranges[i][1]);
    assert_ok(checkpoint_read(c, &t, 1, &err));
    assert_int_equal(wrong_elements(&t, 1, 0), 0);
    for (int i = 0; i < 6; i++) free(parts[i].data);
    checkpoint_close(c);
}

/* Also a config longer than the 64 KiB that HDF5 sets as a limit to small attributes. */
static void the_state_of_the_run_is_read_back(void **state) {
    (void)state;
    char dir[4096], path[4096];
    error err;
    checkpoint *c;
    directory_for(dir, "info");
    for (size_t length = 0; length < 200000; length = length * 5 + 7000) {
        checkpoint_info info = make_info(20);
        char *config = malloc(length + 1);
        for (size_t i = 0; i < length; i++) config[i] = (char)('a' + i * i % 23);
        config[length] = '\0';
        info.config = config;
        assert_ok(write_as(dir, 0, &info, path, &err));
        assert_ok(checkpoint_open(&c, path, &err));
        const checkpoint_info *found = checkpoint_about(c);
        assert_string_equal(found->config, config);
        assert_string_equal(found->model, info.model);
        assert_string_equal(found->tokenizer_hash, "");
        assert_string_equal(found->lineage, info.lineage);
        assert_string_equal(found->created_by, info.created_by);
        const int64_t numbers[8] = {20, 20 * 4096, ((int64_t)1 << 40) + 20, 2, 1, 18, -7, 2048};
        const int64_t read[8] = {
            found->step,           found->tokens,    found->samples, found->skipped_steps, found->nonfinite_in_a_row,
            found->optimizer_step, found->data_seed, found->seq_len};
        assert_memory_equal(read, numbers, sizeof numbers);
        assert_int_equal(found->n_train, 5);
        assert_int_equal(found->n_heldout, 0);
        assert_memory_equal(found->train, info.train, 5 * sizeof *info.train);
        checkpoint_close(c);
        free(config);
        free(info.train);
    }
}

/* Parts larger than what is written at a time, of one rank and dealt to all: 100 MiB. */
static void large_tensors_take_several_pieces(void **state) {
    (void)state;
    enum { N = 25 << 20, PIECES = 11 };
    char dir[4096], path[4096];
    error err;
    checkpoint *c;
    directory_for(dir, "large");
    checkpoint_info info = make_info(1);
    checkpoint_part parts[PIECES];
    checkpoint_tensor t = {.path = "params/large", .type = DTYPE_F32, .n_axes = 2, .shape = {N / 1024, 1024}, .parts = parts};
    for (int whole = 0; whole < 2; whole++) {
        t.n_parts = 0;
        for (int64_t i = 0; i < PIECES; i++)
            if (whole ? r.rank == 0 && i == 0 : i % r.size == r.rank) {
                int64_t first = whole ? 0 : N * i / PIECES, end = whole ? N : N * (i + 1) / PIECES;
                add_part(&t, first, end - first);
            }
        fill_parts(&t, 1, 3);
        assert_ok(checkpoint_write(dir, 1, &info, &t, 1, &r, path, &err));
        assert_ok(checkpoint_open(&c, path, &err));
        assert_ok(checkpoint_verify(c, 0, 1, &err));
        for (int p = 0; p < t.n_parts; p++) memset(t.parts[p].data, 0, (size_t)t.parts[p].count * 4);
        assert_ok(checkpoint_read(c, &t, 1, &err));
        int64_t wrong = 0;
        for (int p = 0; p < t.n_parts; p++)
            for (int64_t i = 0; i < t.parts[p].count; i++)
                wrong += ((float *)t.parts[p].data)[i] != value(1, 3, t.parts[p].first + i);
        assert_int_equal(wrong, 0);
        checkpoint_close(c);
        for (int p = 0; p < t.n_parts; p++) free(t.parts[p].data);
    }
    free(info.train);
}

static void a_directory_means_its_latest(void **state) {
    (void)state;
    char dir[4096], path[4096];
    error err;
    checkpoint *c;
    directory_for(dir, "latest");
    for (int64_t step = 5; step <= 15; step += 5) {
        assert_ok(write_step(dir, 0, step, path, &err));
        assert_ok(checkpoint_open(&c, dir, &err));
        assert_string_equal(checkpoint_path(c), path);
        assert_int_equal(checkpoint_about(c)->step, step);
        checkpoint_close(c);
        ranks_barrier(&r);
    }
}

/* Files of later steps than the one written are left: they are of a run that was taken back to an earlier step. */
static void only_the_newest_are_kept(void **state) {
    (void)state;
    char dir[4096];
    error err;
    directory_for(dir, "keep");
    assert_ok(write_step(dir, 0, 99, NULL, &err));
    for (int64_t step = 1; step <= 4; step++) assert_ok(write_step(dir, 2, step, NULL, &err));
    assert_false(is_there(dir, "step_0000000001.h5"));
    assert_false(is_there(dir, "step_0000000002.h5"));
    assert_true(is_there(dir, "step_0000000003.h5"));
    assert_true(is_there(dir, "step_0000000004.h5"));
    assert_true(is_there(dir, "step_0000000099.h5"));
    ranks_barrier(&r);
    assert_ok(write_step(dir, 1, 100, NULL, &err));
    assert_false(is_there(dir, "step_0000000099.h5"));
}

static void left_overs_are_removed_and_nothing_else(void **state) {
    (void)state;
    static const char *const names[] = {"step_0000000007.h5.tmp", "latest.tmp", "notes.tmp", "step_7.h5.tmp"};
    enum { N_NAMES = sizeof names / sizeof *names, N_REMOVED = 2 };
    char dir[4096], path[8192];
    error err;
    directory_for(dir, "left");
    assert_ok(write_step(dir, 0, 1, NULL, &err));
    for (int again = 0; again < 2; again++) {
        for (int i = 0; i < N_NAMES; i++) {
            snprintf(path, sizeof path, "%s/%s", dir, names[i]);
            if (r.rank == 0) close(open(path, O_CREAT | O_WRONLY, 0600));
        }
        ranks_barrier(&r);
        if (again)
            assert_ok(write_step(dir, 0, 2, path, &err));
        else
            assert_ok(checkpoint_newest(dir, &r, verify_all, NULL, path, &err));
        for (int i = 0; i < N_NAMES; i++) assert_int_equal(is_there(dir, names[i]), i >= N_REMOVED);
        ranks_barrier(&r);
    }
}

static void the_newest_good_file_is_found(void **state) {
    (void)state;
    char dir[4096], path[4096], newest[4096], first[4096];
    error err;
    directory_for(dir, "newest");
    assert_ok(checkpoint_newest(dir, &r, verify_all, NULL, newest, &err)); /* no directory yet */
    assert_string_equal(newest, "");
    assert_ok(write_step(dir, 0, 1, first, &err));
    assert_ok(write_step(dir, 0, 2, path, &err));
    assert_ok(checkpoint_newest(dir, &r, verify_all, NULL, newest, &err));
    assert_string_equal(newest, path);
    ranks_barrier(&r);
    checkpoint *c;
    assert_ok(write_step(dir, 0, 3, path, &err)); /* its last bytes are elements of the last tensor, or history */
    if (r.rank == 0) overwrite(path, -300, "damage", 6);
    ranks_barrier(&r);
    assert_ok(write_step(dir, 0, 4, path, &err)); /* cut short */
    if (r.rank == 0) assert_int_equal(truncate(path, 5000), 0);
    ranks_barrier(&r);
    assert_int_equal(checkpoint_open(&c, path, &err), -1);
    assert_ok(checkpoint_newest(dir, &r, verify_all, NULL, newest, &err));
    assert_non_null(strstr(newest, "step_0000000002.h5"));
}

/* Step 1 of a directory, with the tensors of `specs`: its path. */
static void write_one(char path[4096], const char *name) {
    char dir[4096];
    error err;
    directory_for(dir, name);
    assert_ok(write_step(dir, 0, 1, path, &err));
}

/* The same, opened; the caller closes it. */
static checkpoint *open_one(const char *name, error *perr) {
    char path[4096];
    error err;
    checkpoint *c;
    write_one(path, name);
    assert_ok(checkpoint_open(&c, path, &err));
    perr->text[0] = '\0';
    return c;
}

static void a_tensor_that_is_missing_or_of_another_shape_is_named(void **state) {
    (void)state;
    error err;
    checkpoint *c = open_one("shape", &err);
    checkpoint_tensor t = describe(0);
    t.shape[1] = 14;
    assert_int_equal(checkpoint_read(c, &t, 1, &err), -1);
    assert_message(&err, STATUS_INPUT, "step_0000000001.h5: params/model.embed_tokens.weight is [37, 13]", "needs [37, 14]");
    t.n_axes = 1;
    assert_int_equal(checkpoint_read(c, &t, 1, &err), -1);
    assert_message(&err, STATUS_INPUT, "is [37, 13]", "needs [37]");
    snprintf(t.path, sizeof t.path, "params/model.layers.9.mlp.up_proj.weight");
    assert_int_equal(checkpoint_read(c, &t, 1, &err), -1);
    assert_message(&err, STATUS_INPUT, "step_0000000001.h5: has no params/model.layers.9.mlp.up_proj.weight", "config");
    checkpoint_close(c);
}

static void assert_refused(const char *path, const char *a, const char *b) {
    error err;
    checkpoint *c;
    assert_int_equal(checkpoint_open(&c, path, &err), -1);
    assert_null(c);
    assert_message(&err, STATUS_INPUT, a, b);
}

/* Changes a good file by HDF5 itself: its checksums are right afterwards, its content is not ours any more. */
static void change_file(const char *path, const char *attribute, hid_t type, const void *new_value, const char *unlink_path) {
    if (r.rank == 0) {
        hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT);
        assert_true(file >= 0);
        if (attribute) H5Adelete(file, attribute);
        if (new_value) {
            hid_t space = H5Screate(H5S_SCALAR), a = H5Acreate2(file, attribute, type, space, H5P_DEFAULT, H5P_DEFAULT);
            H5Awrite(a, type, new_value);
            H5Aclose(a);
            H5Sclose(space);
        }
        if (unlink_path) H5Ldelete(file, unlink_path, H5P_DEFAULT);
        assert_true(H5Fclose(file) >= 0);
    }
    ranks_barrier(&r);
}

static void other_files_are_refused_with_the_reason(void **state) {
    (void)state;
    char dir[4096], path[4096], other[8192];
    error err;
    directory_for(dir, "other");
    const int64_t newer = 2;
    const double seed = 0.5;
    struct {
        const char *attribute;
        hid_t type;
        const void *value;
        const char *unlink_path, *a, *b;
    } changes[] = {
        {"format", -1, NULL, NULL, "not a checkpoint of this program", "`format`"},
        {"format", H5T_C_S1, "x", NULL, "HDF5 of another kind", "\"x\""},
        {"version", H5T_STD_I64LE, &newer, NULL, "has version 2", "reads version 1"},
        {"data_seed", H5T_IEEE_F64LE, &seed, "params/model.norm.weight", "written with 11 datasets, and now has 10", "changed"},
        {NULL, -1, NULL, "history/train", "history/train cannot be read", "damaged"},
        {"lineage", -1, NULL, NULL, "`lineage` cannot be read", "damaged"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        assert_ok(write_step(dir, 0, 1, path, &err));
        change_file(path, changes[i].attribute, changes[i].type, changes[i].value, changes[i].unlink_path);
        assert_refused(path, changes[i].a, changes[i].b);
        ranks_barrier(&r);
    }
    assert_refused("/no/such/file.h5", "/no/such/file.h5: No such file", "Check the name");
    assert_refused(scratch, "holds no checkpoint", "latest");
    assert_refused("Makefile", "Makefile: is not an HDF5 file", "step_*.h5");
    snprintf(other, sizeof other, "%s/empty.%d.h5", dir, r.rank);
    close(open(other, O_CREAT | O_WRONLY, 0600));
    assert_refused(other, "is not an HDF5 file", "step_*.h5");
}

/* Where element 0 of a tensor is in a file, by HDF5. */
static off_t place_of(const char *path, const char *tensor) {
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT), id = H5Dopen2(file, tensor, H5P_DEFAULT);
    off_t at = (off_t)H5Dget_offset(id);
    H5Dclose(id);
    H5Fclose(file);
    return at;
}

static void damage_in_a_tensor_is_found_and_named(void **state) {
    (void)state;
    char path[4096];
    error err;
    checkpoint *c;
    write_one(path, "damage");
    off_t at = place_of(path, specs[3].path) + 100001;
    ranks_barrier(&r);
    if (r.rank == 0) overwrite(path, at, "!", 1);
    ranks_barrier(&r);
    assert_ok(checkpoint_open(&c, path, &err));
    int bad = -1;
    for (int part = 0; part < 4; part++)
        if (checkpoint_verify(c, part, 4, &err)) bad = part;
    assert_int_equal(bad, 3 % 4);
    assert_int_equal(checkpoint_verify(c, 0, 1, &err), CHECKPOINT_DAMAGED);
    assert_message(&err, STATUS_INPUT, "params/model.layers.1.mlp.up_proj.weight is damaged", "CRC-32");
    checkpoint_close(c);
}

/* All ranks: another byte at a place of the file, or the one that was there. */
static void flip(const char *path, off_t at) {
    ranks_barrier(&r);
    if (r.rank == 0) {
        unsigned char byte;
        int fd = open(path, O_RDWR);
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 16;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        close(fd);
    }
    ranks_barrier(&r);
}

/* Opens the file, reads what rank `rank` of `ways` has of each tensor, and checks what all ranks read. flipped_between: a place
 * that is damaged between the two, 0: none. */
static int read_and_check(const char *path, int ways, int rank, off_t flipped_between, error *err) {
    checkpoint *c;
    if (checkpoint_open(&c, path, err)) fail_msg("%s", err->text);
    int64_t wrong = read_cut(c, 1, ways, rank, DTYPE_F32, err);
    if (flipped_between) flip(path, flipped_between);
    int result = checkpoint_share(&r, wrong < 0 ? CHECKPOINT_DAMAGED : 0, err);
    if (result == 0) result = checkpoint_check(c, &r, err);
    if (flipped_between) flip(path, flipped_between);
    checkpoint_close(c);
    return result;
}

/* Damage in any tensor is found as its parts are read, by whichever ranks, and all ranks are told of which. */
static void damage_is_found_in_what_the_ranks_read(void **state) {
    (void)state;
    error err;
    char path[4096];
    write_one(path, "parts");
    assert_ok(read_and_check(path, r.size, r.rank, 0, &err));
    for (int t = 0; t < N_SPECS; t++) {
        off_t at = place_of(path, specs[t].path) + (off_t)(count_of(t) * (int64_t)dtype_size(specs[t].type)) - 1;
        flip(path, at);
        assert_int_equal(read_and_check(path, r.size, r.rank, 0, &err), CHECKPOINT_DAMAGED);
        if (!strstr(err.text, specs[t].path) || !strstr(err.text, "damaged")) fail_msg("%s: %s", specs[t].path, err.text);
        flip(path, at);
    }
    assert_ok(read_and_check(path, r.size, r.rank, 0, &err));
}

/* What has been summed as it was read is not read again: damage that comes afterwards does not matter. */
static void nothing_is_read_twice(void **state) {
    (void)state;
    error err;
    char path[4096];
    write_one(path, "twice");
    for (int t = 0; t < N_SPECS; t++) assert_ok(read_and_check(path, r.size, r.rank, place_of(path, specs[t].path), &err));
}

/* Parts that leave gaps, or that two ranks read: what is not known from them is read for the check. */
static void what_no_rank_reads_is_checked_too(void **state) {
    (void)state;
    error err;
    char path[4096];
    write_one(path, "gaps");
    for (int alike = 0; alike < 2;
         alike++) { /* all ranks read the first of three shares; or each one of one more than they are */
        int ways = alike ? 3 : r.size + 1, rank = alike ? 0 : r.rank;
        assert_ok(read_and_check(path, ways, rank, 0, &err));
        for (int t = 0; t < N_SPECS; t++) {
            off_t at = place_of(path, specs[t].path) + (off_t)(count_of(t) * (int64_t)dtype_size(specs[t].type) / 2);
            flip(path, at);
            assert_int_equal(read_and_check(path, ways, rank, 0, &err), CHECKPOINT_DAMAGED);
            if (!strstr(err.text, specs[t].path)) fail_msg("%s: %s", specs[t].path, err.text);
            flip(path, at);
        }
    }
}

/* A tensor that is read whole needs no other rank to be known as damaged, in either dtype. */
static void damage_in_a_whole_tensor_is_found_by_who_reads_it(void **state) {
    (void)state;
    error err;
    char path[4096];
    checkpoint *c;
    write_one(path, "whole");
    off_t places[N_SPECS];
    for (int t = 0; t < N_SPECS; t++) places[t] = place_of(path, specs[t].path);
    assert_ok(checkpoint_open(&c, path, &err));
    checkpoint_part part;
    for (int t = 0; t < N_SPECS; t++)
        for (int type = DTYPE_F32; type <= DTYPE_BF16; type++)
            for (int damage = 0; damage < 2; damage++) {
                checkpoint_tensor tensor = describe(t);
                tensor.type = (dtype)type;
                tensor.parts = &part;
                add_part(&tensor, 0, count_of(t));
                if (damage) flip(path, places[t]);
                int result = checkpoint_read(c, &tensor, 1, &err);
                if (result != (damage ? CHECKPOINT_DAMAGED : 0))
                    fail_msg("%s: %d: %s", tensor.path, result, result ? err.text : "");
                if (damage) assert_message(&err, STATUS_INPUT, tensor.path, "damaged");
                if (damage) flip(path, places[t]);
                free(part.data);
            }
    checkpoint_close(c);
}

/* ---- a device whose memory the host sees, but only copies into ---- */

static int64_t n_copied;

static void copy_to_device(backend *b, void *device, const void *host, size_t bytes) {
    (void)b;
    n_copied += (int64_t)bytes;
    memcpy(device, host, bytes);
}

static void copy_from_device(backend *b, void *host, const void *device, size_t bytes) {
    (void)b;
    memcpy(host, device, bytes);
}

static int device_is_well(backend *b, error *err) {
    (void)b;
    (void)err;
    return 0;
}

/* Written from a device and read into it: more pieces than the places where they wait for their copy, in the file's dtype and in
 * the other, and small tensors. */
static void a_device_gets_what_another_wrote(void **state) {
    (void)state;
    enum { N = 33 << 20, PIECES = 3, FEW = 1000 };
    static const ops table = {.copy_in = copy_to_device, .copy_out = copy_from_device, .sync = device_is_well};
    const checkpoint_memory memory = {&table, NULL};
    char dir[4096], path[4096];
    error err;
    checkpoint *c;
    directory_for(dir, "device");
    checkpoint_info info = make_info(1);
    checkpoint_part parts[2][PIECES];
    checkpoint_tensor tensors[2] = {{.path = "params/few", .shape = {FEW}}, {.path = "params/many", .shape = {N}}};
    for (int type = DTYPE_F32; type <= DTYPE_BF16; type++)
        for (int t = 0; t < 2; t++) {
            tensors[t].type = DTYPE_BF16;
            tensors[t].n_axes = 1;
            tensors[t].n_parts = 0;
            tensors[t].memory = &memory;
            tensors[t].parts = parts[t];
            if (r.rank == 0) add_part(&tensors[t], 0, tensors[t].shape[0]);
            fill_parts(&tensors[t], 1, t);
            if (t == 0) continue;
            assert_ok(checkpoint_write(dir, 1, &info, tensors, 2, &r, path, &err));
            for (int i = 0; i < 2; i++) free_data(&tensors[i]);
            ranks_barrier(&r);
            if (r.rank != 0) continue;
            assert_ok(checkpoint_open(&c, path, &err));
            int64_t bytes = 0;
            for (int i = 0; i < 2; i++) {
                tensors[i].type = (dtype)type;
                for (int64_t p = 0, n = tensors[i].shape[0]; p < PIECES; p++)
                    add_part(&tensors[i], n * p / PIECES, n * (p + 1) / PIECES - n * p / PIECES);
                bytes += tensors[i].shape[0] * (int64_t)dtype_size(tensors[i].type);
            }
            n_copied = 0;
            assert_ok(checkpoint_read(c, tensors, 2, &err));
            assert_int_equal(n_copied, bytes);
            ranks alone = {.size = 1, .local_size = 1};
            assert_ok(checkpoint_check(c, &alone, &err));
            for (int i = 0; i < 2; i++) {
                assert_int_equal(wrong_elements_of(&tensors[i], 1, i, DTYPE_BF16), 0);
                free_data(&tensors[i]);
            }
            checkpoint_close(c);
        }
    free(info.train);
}

/* Puts a dataset of f32 that is made as `properties` say in the place of one, checksum included. */
static void replace_dataset(hid_t file, const char *path, hsize_t elements, hid_t properties) {
    uint32_t crc = 0;
    H5Ldelete(file, path, H5P_DEFAULT);
    hid_t space = H5Screate_simple(1, &elements, NULL), scalar = H5Screate(H5S_SCALAR);
    hid_t id = H5Dcreate2(file, path, H5T_IEEE_F32LE, space, H5P_DEFAULT, properties, H5P_DEFAULT);
    hid_t a = H5Acreate2(id, "crc32", H5T_STD_U32LE, scalar, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(a, H5T_STD_U32LE, &crc) >= 0);
    H5Aclose(a);
    H5Dclose(id);
    H5Sclose(scalar);
    H5Sclose(space);
}

/* A file of some kilobytes cannot make its reader take gigabytes or work for hours, nor look into another file, nor into a heap
 * without checksums. */
static void only_what_lies_whole_in_the_file_is_read(void **state) {
    (void)state;
    static const char *const wanted[] = {"whole in the file", "whole in the file", "whole in the file", "params cannot be read",
                                         "`lineage` cannot be read"};
    const char *text = "of variable length";
    const hsize_t huge = (hsize_t)1 << 34, chunk = 1 << 20;
    char dir[4096], path[4096];
    error err;
    for (int kind = 0; kind < 5; kind++) {
        directory_for(dir, "elsewhere");
        assert_ok(write_step(dir, 1, 1, path, &err));
        if (r.rank == 0) {
            hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), properties = H5Pcreate(H5P_DATASET_CREATE);
            if (kind == 0) H5Pset_alloc_time(properties, H5D_ALLOC_TIME_LATE);
            if (kind == 1) H5Pset_chunk(properties, 1, &chunk);
            if (kind == 2) H5Pset_external(properties, "/etc/passwd", 0, 4);
            if (kind < 3) replace_dataset(file, "params/model.norm.weight", kind == 2 ? 1 : huge, properties);
            if (kind == 3) {
                H5Lmove(file, "params", file, "other", H5P_DEFAULT, H5P_DEFAULT);
                assert_true(H5Lcreate_external(path, "/other", file, "params", H5P_DEFAULT, H5P_DEFAULT) >= 0);
            }
            H5Pclose(properties);
            assert_true(H5Fclose(file) >= 0);
        }
        ranks_barrier(&r);
        hid_t variable = H5Tcopy(H5T_C_S1);
        H5Tset_size(variable, H5T_VARIABLE);
        if (kind == 4) change_file(path, "lineage", variable, &text, NULL);
        H5Tclose(variable);
        assert_refused(path, path, wanted[kind]);
        ranks_barrier(&r);
    }
}

/* As many tensors as a real model has: HDF5 keeps many links in structures that it does not read safely when they are damaged,
 * and must be kept from using them. */
static void damage_anywhere_in_a_file_of_many_tensors_is_found_or_harmless(void **state) {
    (void)state;
    enum { MANY = 40, STRIDE = 31 };
    char dir[4096], path[4096];
    error err;
    checkpoint *c;
    checkpoint_tensor tensors[MANY];
    float one = 1;
    checkpoint_part part = {.first = 0, .count = 1, .data = &one};
    directory_for(dir, "many");
    for (int t = 0; t < MANY; t++) {
        tensors[t] = (checkpoint_tensor){.n_axes = 1, .shape = {1}, .n_parts = r.rank == 0, .parts = &part};
        snprintf(tensors[t].path, sizeof tensors[t].path, "params/model.layers.%d.mlp.down_proj.weight", t);
    }
    checkpoint_info info = make_info(1);
    assert_ok(checkpoint_write(dir, 1, &info, tensors, MANY, &r, path, &err));
    free(info.train);
    ranks_barrier(&r);
    if (r.rank != 0) return;

    int fd = open(path, O_RDWR);
    off_t bytes = lseek(fd, 0, SEEK_END);
    int found = 0, tried = 0;
    for (off_t at = 0; at < bytes; at += STRIDE, tried++) {
        unsigned char was, changed;
        assert_int_equal(pread(fd, &was, 1, at), 1);
        changed = (unsigned char)(was ^ (1u << at % 8));
        assert_int_equal(pwrite(fd, &changed, 1, at), 1);
        int refused = checkpoint_open(&c, path, &err);
        if (!refused) refused = checkpoint_verify(c, 0, 1, &err);
        if (refused) assert_int_equal(err.code, STATUS_INPUT);
        checkpoint_close(c);
        found += refused != 0;
        assert_int_equal(pwrite(fd, &was, 1, at), 1);
    }
    close(fd);
    if (found < tried / 2) fail_msg("%d of %d changes were found in a file that is mostly metadata", found, tried);
}

/* All ranks come back with the reason, whichever of them met it, and what was there before still is. */
static void a_directory_that_cannot_be_written_is_named(void **state) {
    (void)state;
    char dir[4096], below[8192], long_name[4200];
    error err;
    directory_for(dir, "file");
    if (r.rank == 0) close(open(dir, O_CREAT | O_WRONLY, 0600));
    ranks_barrier(&r);
    snprintf(below, sizeof below, "%s/run", dir);
    assert_int_equal(write_step(below, 0, 1, NULL, &err), -1);
    assert_message(&err, r.rank == 0 ? STATUS_RESOURCE : STATUS_RANK, "file: Not a directory", "choose another name");
    memset(long_name, 'x', sizeof long_name);
    long_name[4199] = '\0';
    assert_int_equal(write_step(long_name, 0, 1, NULL, &err), -1);
    assert_message(&err, r.rank == 0 ? STATUS_RESOURCE : STATUS_RANK, "File name too long", "Check the path");
}

/* A file-size limit stands for every reason that a write can fail for. */
static void a_write_that_fails_leaves_earlier_files(void **state) {
    (void)state;
    char dir[4096], path[4096], newest[4096];
    error err;
    directory_for(dir, "limit");
    assert_ok(write_step(dir, 1, 1, path, &err));
    struct rlimit old, small = {100000, RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    int result = write_step(dir, 1, 2, NULL, &err);
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(result, -1);
    assert_message(&err, r.rank == 0 ? STATUS_RESOURCE : STATUS_RANK, "step_0000000002.h5", "File too large");
    assert_false(is_there(dir, "step_0000000002.h5"));
    assert_false(is_there(dir, "step_0000000002.h5.tmp"));
    assert_ok(checkpoint_newest(dir, &r, verify_all, NULL, newest, &err));
    assert_string_equal(newest, path);
}

/* One thing done with files, watched like a run; the exit status is that of the error. */
static int do_one(int argc, char **argv) {
    enum { HANG_SECONDS = 10 };
    error err = {.code = STATUS_OK};
    char path[4096] = "";
    checkpoint *c = NULL;
    const char *what = argv[1], *name = argv[2];
    int64_t number = argc > 3 ? atoll(argv[3]) : 0, wrong = 0;
    int result = ranks_watch(&r, HANG_SECONDS, "Resume from the checkpoint before.", &err);
    if (result) ranks_abort(&r, &err);
    if (strcmp(what, "write") == 0) result = write_step(name, 0, number, path, &err);
    if (strcmp(what, "newest") == 0) result = checkpoint_newest(name, &r, verify_all, NULL, path, &err);
    for (int64_t step = number; strcmp(what, "loop") == 0 && result == 0; step++) result = write_step(name, 3, step, path, &err);
    if (strcmp(what, "read") == 0) {
        result = checkpoint_open(&c, name, &err);
        if (result == 0) result = checkpoint_verify(c, r.rank, r.size, &err);
        if (result == 0) wrong = read_cut(c, checkpoint_about(c)->step, r.size, r.rank, DTYPE_F32, &err);
        if (wrong != 0)
            result = wrong < 0 ? -1 : error_set(&err, STATUS_INTERNAL, "%s: %lld elements are wrong", name, (long long)wrong);
        checkpoint_close(c);
    }
    if (result) ranks_abort(&r, &err);
    if (r.rank == 0) printf("%s\n", path);
    ranks_close(&r);
    return 0;
}

static int make_scratch(void **state) {
    (void)state;
    const char *below = getenv("TMPDIR");
    snprintf(scratch, sizeof scratch, "%s/mobilellm-checkpoint-XXXXXX", below ? below : "/tmp");
    if (r.rank == 0 && !mkdtemp(scratch)) return -1;
    ranks_broadcast(&r, scratch, sizeof scratch, 0);
    return 0;
}

static int remove_scratch(void **state) {
    (void)state;
    char command[8192];
    ranks_barrier(&r);
    snprintf(command, sizeof command, "rm -rf '%s'", scratch);
    return r.rank == 0 ? system(command) : 0;
}

int main(int argc, char **argv) {
    error err;
    if (ranks_open(&r, &err)) ranks_abort(&r, &err);
    if (argc >= 3) return do_one(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read_back),
        cmocka_unit_test(a_file_lists_its_tensors_in_the_order_they_were_given),
        cmocka_unit_test(ranges_that_overlap_are_read),
        cmocka_unit_test(the_state_of_the_run_is_read_back),
        cmocka_unit_test(large_tensors_take_several_pieces),
        cmocka_unit_test(a_directory_means_its_latest),
        cmocka_unit_test(only_the_newest_are_kept),
        cmocka_unit_test(left_overs_are_removed_and_nothing_else),
        cmocka_unit_test(the_newest_good_file_is_found),
        cmocka_unit_test(a_tensor_that_is_missing_or_of_another_shape_is_named),
        cmocka_unit_test(other_files_are_refused_with_the_reason),
        cmocka_unit_test(damage_in_a_tensor_is_found_and_named),
        cmocka_unit_test(damage_is_found_in_what_the_ranks_read),
        cmocka_unit_test(nothing_is_read_twice),
        cmocka_unit_test(what_no_rank_reads_is_checked_too),
        cmocka_unit_test(damage_in_a_whole_tensor_is_found_by_who_reads_it),
        cmocka_unit_test(a_device_gets_what_another_wrote),
        cmocka_unit_test(only_what_lies_whole_in_the_file_is_read),
        cmocka_unit_test(damage_anywhere_in_a_file_of_many_tensors_is_found_or_harmless),
        cmocka_unit_test(a_directory_that_cannot_be_written_is_named),
        cmocka_unit_test(a_write_that_fails_leaves_earlier_files),
    };
    int failed = cmocka_run_group_tests(tests, make_scratch, remove_scratch);
    ranks_close(&r);
    return failed;
}
