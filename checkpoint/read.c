/* read.c: reading a checkpoint, by one rank on its own.
 *
 * Ranks need not read together: each opens the file and reads the ranges it needs, so that any number of ranks can read what any
 * other number wrote. What a file says of itself is not trusted: shapes and lengths are checked before memory is taken for them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/crc.h"
#include "checkpoint/directory.h"
#include "checkpoint/format.h"
#include "checkpoint/hdf5.h"

enum { CHUNK_BYTES = 16 << 20 }; /* read at a time where values are converted or summed */

struct checkpoint {
    hid_t file;
    char path[PATH_SIZE];
    checkpoint_info info;
    checkpoint_tensor *tensors; /* (n) */
    uint32_t *crcs;             /* (n) */
    int n, capacity;
    h5_trouble trouble;
};

static const char other_file[] = "Use another checkpoint of the run: `mobilellm train ... --resume` takes the newest good one.";

void checkpoint_info_free(checkpoint_info *info) {
    for (int i = 0; i < FORMAT_N_STRINGS; i++) free(*format_string(info, i));
    free(info->train);
    free(info->heldout);
    *info = (checkpoint_info){0};
}

void checkpoint_close(checkpoint *c) {
    if (!c) return;
    if (c->file >= 0) H5Fclose(c->file);
    checkpoint_info_free(&c->info);
    free(c->tensors);
    free(c->crcs);
    free(c);
}

const char *checkpoint_path(const checkpoint *c) { return c->path; }
const checkpoint_info *checkpoint_about(const checkpoint *c) { return &c->info; }
int checkpoint_n_tensors(const checkpoint *c) { return c->n; }
const checkpoint_tensor *checkpoint_tensor_at(const checkpoint *c, int i) { return &c->tensors[i]; }
uint32_t checkpoint_crc_at(const checkpoint *c, int i) { return c->crcs[i]; }

/* HDF5 cannot read what `what` names. Failures of the machine are told apart from damage, of which a bad disk sector is one. */
static int damaged(const checkpoint *c, const char *what, error *err) {
    if (c->trouble.code && c->trouble.code != EIO) return directory_error(err, c->path, c->trouble.code);
    return error_set(err, STATUS_INPUT, "%s: %s cannot be read: %s.\nThe file is damaged, or cut short. %s", c->path, what,
                     c->trouble.text[0] ? c->trouble.text : "it is not there, or of another kind", other_file);
}

static int no_memory(const checkpoint *c, error *err) { return directory_error(err, c->path, ENOMEM); }

/* Follows a directory to its latest file, and sees that there is something to open. */
static int resolve(checkpoint *c, const char *path, error *err) {
    struct stat s;
    if (stat(path, &s) != 0) return directory_error(err, path, errno);
    if (!S_ISDIR(s.st_mode)) {
        if (strlen(path) >= PATH_SIZE) return directory_error(err, path, ENAMETOOLONG);
        strcpy(c->path, path);
    } else if (directory_latest(path, c->path, err)) {
        return -1;
    }
    int fd = open(c->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return directory_error(err, c->path, errno);
    close(fd);
    return 0;
}

/* A file that HDF5 does not open. One cut short is the common case, and HDF5 knows both lengths. */
static int cannot_open(const checkpoint *c, error *err) {
    struct stat s;
    const char *written = strstr(c->trouble.text, "stored_eof = ");
    if (!written || stat(c->path, &s) != 0) return damaged(c, "its beginning", err);
    return error_set(err, STATUS_INPUT, "%s: is %lld bytes long, and was %lld when it was written: it is cut short.\n%s", c->path,
                     (long long)s.st_size, atoll(written + strlen("stored_eof = ")), other_file);
}

static int open_hdf5(checkpoint *c, error *err) {
    if (H5Fis_hdf5(c->path) <= 0)
        return error_set(err, STATUS_INPUT,
                         "%s: is not an HDF5 file, or its first bytes are damaged.\n"
                         "Checkpoints are the files step_*.h5; weights from elsewhere are read from a Hugging Face folder.",
                         c->path);
    hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    if (access >= 0 && H5Pset_file_locking(access, 0, 1) >= 0) c->file = H5Fopen(c->path, H5F_ACC_RDONLY, access);
    int result = c->file < 0 ? cannot_open(c, err) : 0;
    if (access >= 0) H5Pclose(access);
    return result;
}

static int check_format(checkpoint *c, error *err) {
    int64_t version;
    if (H5Aexists(c->file, "format") <= 0)
        return error_set(err, STATUS_INPUT,
                         "%s: is HDF5, but not a checkpoint of this program: its root has no attribute `format`.\n"
                         "Weights from elsewhere are read from a Hugging Face folder.",
                         c->path);
    char *format = h5_get_string(c->file, "format");
    int known = format && strcmp(format, FORMAT_NAME) == 0;
    if (format && !known)
        error_set(err, STATUS_INPUT, "%s: is HDF5 of another kind: its format is \"%.100s\", expected \"%s\".", c->path, format,
                  FORMAT_NAME);
    if (!format) damaged(c, "the attribute `format`", err);
    free(format);
    if (!known) return -1;
    if (h5_get_int64(c->file, "version", &version) < 0) return damaged(c, "the attribute `version`", err);
    if (version == FORMAT_VERSION) return 0;
    return error_set(err, STATUS_INPUT, "%s: has version %lld of the format, this program reads version %d.\n%s", c->path,
                     (long long)version, FORMAT_VERSION,
                     version > FORMAT_VERSION ? "A newer mobilellm wrote it: use that one."
                                              : "An older mobilellm wrote it: use that one to export it.");
}

static int missing(const checkpoint *c, const char *name, error *err) {
    char what[128];
    snprintf(what, sizeof what, "the attribute `%s`", name);
    return damaged(c, what, err);
}

static int read_attributes(checkpoint *c, error *err) {
    uint32_t crc;
    for (int i = 0; i < FORMAT_N_STRINGS; i++)
        if (!(*format_string(&c->info, i) = h5_get_string(c->file, format_strings[i].name)))
            return missing(c, format_strings[i].name, err);
    for (int i = 0; i < FORMAT_N_NUMBERS; i++)
        if (h5_get_int64(c->file, format_numbers[i].name, format_number(&c->info, i)) < 0)
            return missing(c, format_numbers[i].name, err);
    if (h5_get_crc(c->file, FORMAT_CONFIG_CRC, &crc) < 0) return missing(c, FORMAT_CONFIG_CRC, err);
    if (crc == crc_of(c->info.config, strlen(c->info.config))) return 0;
    return error_set(err, STATUS_INPUT, "%s: the config in it is damaged: its CRC-32 is not %08x, which was written.\n%s",
                     c->path, crc, other_file);
}

/* The elements of a shape, -1 if their bytes do not fit in an int64_t. */
static int64_t count_elements(int n_axes, const hsize_t *shape, size_t item) {
    int64_t n = 1, bytes;
    for (int i = 0; i < n_axes; i++)
        if (__builtin_mul_overflow(n, shape[i], &n)) return -1;
    return __builtin_mul_overflow(n, (int64_t)item, &bytes) ? -1 : n;
}

/* Fills in shape, type and checksum of a dataset from the file. The kinds of number are those that we write. */
static int describe(const checkpoint *c, hid_t id, checkpoint_tensor *t, uint32_t *crc, error *err) {
    hsize_t shape[2];
    hid_t type = H5Dget_type(id), space = H5Dget_space(id), f32 = h5_type(DTYPE_F32), half = h5_type(DTYPE_BF16);
    int n_axes = space >= 0 ? H5Sget_simple_extent_ndims(space) : -1;
    bool is_f32 = H5Tequal(type, f32) > 0, is_bf16 = H5Tequal(type, half) > 0;
    t->n_axes = n_axes;
    t->type = is_f32 ? DTYPE_F32 : DTYPE_BF16;
    int64_t count = (n_axes == 1 || n_axes == 2) && (is_f32 || is_bf16) && H5Sget_simple_extent_dims(space, shape, NULL) >= 0
                        ? count_elements(n_axes, shape, dtype_size(t->type))
                        : -1;
    int fits = count > 0 && h5_is_whole(id, count * (int64_t)dtype_size(t->type));
    for (int i = 0; fits && i < n_axes; i++) t->shape[i] = (int64_t)shape[i];
    if (type >= 0) H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    H5Tclose(f32);
    H5Tclose(half);
    if (!fits)
        return error_set(
            err, STATUS_INPUT,
            "%s: %s is not an array of f32 or bf16 of one or two axes that lies whole in the file, as the format wants.\n%s",
            c->path, t->path, other_file);
    return h5_get_crc(id, FORMAT_CRC, crc) < 0 ? missing(c, FORMAT_CRC, err) : 0;
}

typedef struct visit {
    checkpoint *c;
    const char *group; /* being visited */
    error *err;
} visit;

static checkpoint_tensor *add_tensor(checkpoint *c) {
    if (c->n == c->capacity) {
        c->capacity = 2 * c->capacity + 64;
        checkpoint_tensor *tensors = realloc(c->tensors, (size_t)c->capacity * sizeof *tensors);
        if (tensors) c->tensors = tensors;
        uint32_t *crcs = realloc(c->crcs, (size_t)c->capacity * sizeof *crcs);
        if (crcs) c->crcs = crcs;
        if (!tensors || !crcs) return NULL;
    }
    c->tensors[c->n] = (checkpoint_tensor){0};
    return &c->tensors[c->n];
}

static herr_t visit_link(hid_t group, const char *name, const H5L_info_t *link, void *data) {
    visit *v = data;
    checkpoint *c = v->c;
    checkpoint_tensor *t = add_tensor(c);
    if (!t) return no_memory(c, v->err);
    int length = snprintf(t->path, sizeof t->path, "%s/%s", v->group, name);
    if (link->type != H5L_TYPE_HARD || (size_t)length >= sizeof t->path)
        return error_set(v->err, STATUS_INPUT, "%s: %s is a link, or has too long a name.\n%s", c->path, t->path, other_file);
    hid_t object = H5Oopen(group, name, H5P_DEFAULT);
    if (object < 0) return damaged(c, t->path, v->err);
    int result = 0;
    if (H5Iget_type(object) == H5I_DATASET) {
        result = describe(c, object, t, &c->crcs[c->n], v->err);
        if (result == 0) c->n++;
    }
    H5Oclose(object);
    return result;
}

static int list_tensors(checkpoint *c, error *err) {
    static const char *const groups[] = {"params", "optimizer"};
    for (int i = 0; i < 2; i++) {
        if (H5Lexists(c->file, groups[i], H5P_DEFAULT) == 0) continue;
        if (!h5_is_member(c->file, groups[i])) return damaged(c, groups[i], err);
        hid_t group = H5Gopen2(c->file, groups[i], H5P_DEFAULT);
        visit v = {c, groups[i], err};
        err->text[0] = '\0'; /* filled in by the visit if that is what fails */
        int result = group < 0 ? -1 : H5Lvisit(group, H5_INDEX_CRT_ORDER, H5_ITER_INC, visit_link, &v);
        if (result < 0 && err->text[0] == '\0') damaged(c, groups[i], err);
        if (group >= 0) H5Gclose(group);
        if (result < 0) return -1;
    }
    return 0;
}

/* Does the file have the datasets that it was written with? */
static int check_names(checkpoint *c, error *err) {
    int64_t n;
    uint32_t crc;
    if (h5_get_int64(c->file, FORMAT_N_DATASETS, &n) < 0) return missing(c, FORMAT_N_DATASETS, err);
    if (h5_get_crc(c->file, FORMAT_NAMES_CRC, &crc) < 0) return missing(c, FORMAT_NAMES_CRC, err);
    const char **paths = malloc(((size_t)c->n + 2) * sizeof *paths);
    if (!paths) return no_memory(c, err);
    for (int i = 0; i < c->n; i++) paths[i] = c->tensors[i].path;
    paths[c->n] = FORMAT_TRAIN;
    paths[c->n + 1] = FORMAT_HELDOUT;
    uint32_t found = format_names_crc(paths, c->n + 2);
    free(paths);
    if (n == c->n + 2 && crc == found) return 0;
    return error_set(err, STATUS_INPUT,
                     "%s: was written with %lld datasets, and now has %d, or others: it was changed afterwards.\n%s", c->path,
                     (long long)n, c->n + 2, other_file);
}

static int wrong_crc(const checkpoint *c, const char *path, uint32_t found, uint32_t expected, error *err) {
    return error_set(err, STATUS_INPUT, "%s: %s is damaged: its CRC-32 is %08x, it was written with %08x.\n%s", c->path, path,
                     found, expected, other_file);
}

static int read_rows(const checkpoint *c, hid_t id, const char *path, history_row **rows, int64_t *n, error *err) {
    hsize_t shape[2];
    uint32_t crc;
    hid_t type = h5_history_type(), stored = H5Dget_type(id), space = H5Dget_space(id);
    int result = -1;
    if (H5Tequal(type, stored) <= 0 || H5Sget_simple_extent_ndims(space) != 1 ||
        H5Sget_simple_extent_dims(space, shape, NULL) < 0 || (*n = count_elements(1, shape, sizeof(history_row))) < 0 ||
        !h5_is_whole(id, *n * (int64_t)sizeof(history_row)))
        error_set(err, STATUS_INPUT,
                  "%s: %s is not a table of step, tokens, loss, lr, grad_norm that lies whole in the file.\n%s", c->path, path,
                  other_file);
    else if (h5_get_crc(id, FORMAT_CRC, &crc) < 0)
        missing(c, FORMAT_CRC, err);
    else if (!(*rows = malloc((size_t)*n * sizeof **rows + 1)))
        no_memory(c, err);
    else if (*n > 0 && H5Dread(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, *rows) < 0)
        damaged(c, path, err);
    else if (crc_of(*rows, (size_t)*n * sizeof **rows) != crc)
        wrong_crc(c, path, crc_of(*rows, (size_t)*n * sizeof **rows), crc, err);
    else
        result = 0;
    if (type >= 0) H5Tclose(type);
    if (stored >= 0) H5Tclose(stored);
    if (space >= 0) H5Sclose(space);
    return result;
}

static int read_history(checkpoint *c, const char *path, history_row **rows, int64_t *n, error *err) {
    hid_t id = h5_is_member(c->file, "history") && h5_is_member(c->file, path) ? H5Dopen2(c->file, path, H5P_DEFAULT) : -1;
    if (id < 0) return damaged(c, path, err);
    int result = read_rows(c, id, path, rows, n, err);
    H5Dclose(id);
    return result;
}

int checkpoint_open(checkpoint **opened, const char *path, error *err) {
    *opened = NULL;
    checkpoint *c = calloc(1, sizeof *c);
    if (!c) return directory_error(err, path, ENOMEM);
    c->file = H5I_INVALID_HID;
    h5_listen(&c->trouble);
    int failed = resolve(c, path, err) || open_hdf5(c, err) || check_format(c, err) || read_attributes(c, err) ||
                 list_tensors(c, err) || check_names(c, err) ||
                 read_history(c, FORMAT_TRAIN, &c->info.train, &c->info.n_train, err) ||
                 read_history(c, FORMAT_HELDOUT, &c->info.heldout, &c->info.n_heldout, err);
    h5_listen(NULL);
    if (failed)
        checkpoint_close(c);
    else
        *opened = c;
    return failed ? -1 : 0;
}

/* Elements [first, first + n) of a dataset, as stored. */
static int read_range(hid_t id, const checkpoint_tensor *t, int64_t first, int64_t n, void *data) {
    hsize_t size = (hsize_t)n;
    hid_t type = H5Dget_type(id), space = H5Dget_space(id), memory = H5Screate_simple(1, &size, NULL);
    int result = -1;
    if (type >= 0 && space >= 0 && memory >= 0 && H5Sselect_none(space) >= 0 &&
        h5_select(space, t->n_axes, t->shape, first, n) >= 0)
        result = H5Dread(id, type, memory, space, H5P_DEFAULT, data);
    if (type >= 0) H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    if (memory >= 0) H5Sclose(memory);
    return result;
}

static void convert(void *to, dtype to_type, const void *from, int64_t n) {
    if (to_type == DTYPE_F32)
        for (int64_t i = 0; i < n; i++) ((float *)to)[i] = bf16_to_float(((const bf16 *)from)[i]);
    else
        for (int64_t i = 0; i < n; i++) ((bf16 *)to)[i] = bf16_from_float(((const float *)from)[i]);
}

/* Into the memory of the part, by way of two buffers of CHUNK_BYTES where it is stored in another dtype or is on a device. */
static int read_part(hid_t id, const checkpoint_tensor *stored, const checkpoint_tensor *t, const checkpoint_part *part,
                     void *buffers[2]) {
    const int64_t a_call = CHUNK_BYTES / sizeof(float);
    bool same = t->type == stored->type;
    for (int64_t at = 0; at < part->count; at += a_call) {
        int64_t n = part->count - at < a_call ? part->count - at : a_call;
        char *to = (char *)part->data + (size_t)at * dtype_size(t->type);
        void *here = t->memory ? buffers[1] : to;
        if (read_range(id, stored, part->first + at, n, same ? here : buffers[0]) < 0) return -1;
        if (!same) convert(here, t->type, buffers[0], n);
        if (t->memory) t->memory->ops->copy_in(t->memory->backend, to, here, (size_t)n * dtype_size(t->type));
    }
    return 0;
}

static const checkpoint_tensor *find(const checkpoint *c, const char *path) {
    for (int i = 0; i < c->n; i++)
        if (strcmp(c->tensors[i].path, path) == 0) return &c->tensors[i];
    return NULL;
}

static const char *shape_text(char text[64], const checkpoint_tensor *t) {
    if (t->n_axes == 1)
        snprintf(text, 64, "[%lld]", (long long)t->shape[0]);
    else
        snprintf(text, 64, "[%lld, %lld]", (long long)t->shape[0], (long long)t->shape[1]);
    return text;
}

/* The tensor in the file that `t` asks for; NULL with a message if there is none of that name and shape. */
static const checkpoint_tensor *match(const checkpoint *c, const checkpoint_tensor *t, error *err) {
    static const char advice[] =
        "The checkpoint is of another model: compare the config in it, with `mobilellm info` or\n"
        "h5dump -a config, to that of the run.";
    char found[64], wanted[64];
    const checkpoint_tensor *stored = find(c, t->path);
    if (!stored) {
        error_set(err, STATUS_INPUT, "%s: has no %s, which this model needs.\n%s", c->path, t->path, advice);
        return NULL;
    }
    if (stored->n_axes == t->n_axes && memcmp(stored->shape, t->shape, (size_t)t->n_axes * sizeof *t->shape) == 0) return stored;
    error_set(err, STATUS_INPUT, "%s: %s is %s, this model needs %s.\n%s", c->path, t->path, shape_text(found, stored),
              shape_text(wanted, t), advice);
    return NULL;
}

int checkpoint_read(checkpoint *c, const checkpoint_tensor *t, error *err) {
    const checkpoint_tensor *stored = match(c, t, err);
    if (!stored) return -1;
    char *staging = malloc(2 * CHUNK_BYTES);
    if (!staging) return no_memory(c, err);
    void *buffers[2] = {staging, staging + CHUNK_BYTES};
    h5_listen(&c->trouble);
    hid_t id = H5Dopen2(c->file, t->path, H5P_DEFAULT);
    int result = id < 0 ? -1 : 0;
    for (int i = 0; result == 0 && i < t->n_parts; i++) result = read_part(id, stored, t, &t->parts[i], buffers);
    if (result) damaged(c, t->path, err);
    if (id >= 0) H5Dclose(id);
    h5_listen(NULL);
    free(staging);
    return result;
}

static int verify_one(const checkpoint *c, int i, void *staging, error *err) {
    const checkpoint_tensor *t = &c->tensors[i];
    int64_t count = t->n_axes == 1 ? t->shape[0] : t->shape[0] * t->shape[1];
    int64_t item = (int64_t)dtype_size(t->type), a_call = CHUNK_BYTES / item;
    uint32_t crc = 0;
    hid_t id = H5Dopen2(c->file, t->path, H5P_DEFAULT);
    int result = id < 0 ? -1 : 0;
    for (int64_t at = 0; result == 0 && at < count; at += a_call) {
        int64_t n = count - at < a_call ? count - at : a_call;
        result = read_range(id, t, at, n, staging);
        if (result == 0) crc = crc_shift(crc, (uint64_t)(n * item)) ^ crc_of(staging, (size_t)(n * item));
    }
    if (result) damaged(c, t->path, err);
    if (id >= 0) H5Dclose(id);
    if (result) return -1;
    return crc == c->crcs[i] ? 0 : wrong_crc(c, t->path, crc, c->crcs[i], err);
}

int checkpoint_verify(checkpoint *c, int part, int of, error *err) {
    void *staging = malloc(CHUNK_BYTES);
    int result = staging ? 0 : no_memory(c, err);
    h5_listen(&c->trouble);
    for (int i = part; result == 0 && i < c->n; i += of) result = verify_one(c, i, staging, err);
    h5_listen(NULL);
    free(staging);
    return result;
}
