/* open.c: opening a checkpoint: what it says of itself, and which datasets lie where.
 *
 * Each rank opens the file on its own. What a file says of itself is not trusted: shapes and lengths are checked before memory is
 * taken for them. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "checkpoint/crc.h"
#include "checkpoint/format.h"
#include "checkpoint/opened.h"

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
    if (c->fd >= 0) close(c->fd);
    checkpoint_info_free(&c->info);
    free(c->sets);
    free(c);
}

const char *checkpoint_path(const checkpoint *c) { return c->path; }
const checkpoint_info *checkpoint_about(const checkpoint *c) { return &c->info; }
int checkpoint_n_tensors(const checkpoint *c) { return c->n; }
const checkpoint_tensor *checkpoint_tensor_at(const checkpoint *c, int i) { return &c->sets[i].tensor; }
uint32_t checkpoint_crc_at(const checkpoint *c, int i) { return c->sets[i].crc; }

int opened_damaged(const checkpoint *c, const char *what, error *err) {
    if (c->trouble.code && c->trouble.code != EIO) return directory_error(err, c->path, c->trouble.code);
    return error_set(err, STATUS_INPUT, "%s: %s cannot be read: %s.\nThe file is damaged, or cut short. %s", c->path, what,
                     c->trouble.text[0] ? c->trouble.text : "it is not there, or of another kind", other_file);
}

int opened_no_memory(const checkpoint *c, error *err) { return directory_error(err, c->path, ENOMEM); }

/* Follows a directory to its latest file, and opens what is there. */
static int resolve(checkpoint *c, const char *path, error *err) {
    struct stat s;
    if (stat(path, &s) != 0) return directory_error(err, path, errno);
    if (!S_ISDIR(s.st_mode)) {
        if (strlen(path) >= PATH_SIZE) return directory_error(err, path, ENAMETOOLONG);
        strcpy(c->path, path);
    } else if (directory_latest(path, c->path, err)) {
        return -1;
    }
    c->fd = open(c->path, O_RDONLY | O_CLOEXEC);
    return c->fd < 0 ? directory_error(err, c->path, errno) : 0;
}

/* A file that HDF5 does not open. One cut short is the common case, and HDF5 knows both lengths. */
static int cannot_open(const checkpoint *c, error *err) {
    struct stat s;
    const char *written = strstr(c->trouble.text, "stored_eof = ");
    if (!written || stat(c->path, &s) != 0) return opened_damaged(c, "its beginning", err);
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
    char *format = h5_get_string(c->file, "format", &c->trouble);
    int known = format && strcmp(format, FORMAT_NAME) == 0;
    if (format && !known)
        error_set(err, STATUS_INPUT, "%s: is HDF5 of another kind: its format is \"%.100s\", expected \"%s\".", c->path, format,
                  FORMAT_NAME);
    if (!format) opened_damaged(c, "the attribute `format`", err);
    free(format);
    if (!known) return -1;
    if (h5_get_int64(c->file, "version", &version) < 0) return opened_damaged(c, "the attribute `version`", err);
    if (version == FORMAT_VERSION) return 0;
    return error_set(err, STATUS_INPUT, "%s: has version %lld of the format, this program reads version %d.\n%s", c->path,
                     (long long)version, FORMAT_VERSION,
                     version > FORMAT_VERSION ? "A newer mobilellm wrote it: use that one."
                                              : "An older mobilellm wrote it: use that one to export it.");
}

static int missing(const checkpoint *c, const char *name, error *err) {
    char what[128];
    snprintf(what, sizeof what, "the attribute `%s`", name);
    return opened_damaged(c, what, err);
}

static int read_attributes(checkpoint *c, error *err) {
    uint32_t crc;
    for (int i = 0; i < FORMAT_N_STRINGS; i++)
        if (!(*format_string(&c->info, i) = h5_get_string(c->file, format_strings[i].name, &c->trouble)))
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

/* Fills in shape, type, place and checksum of a dataset from the file. The kinds of number are those that we write. */
static int describe(const checkpoint *c, hid_t id, stored_set *s, error *err) {
    checkpoint_tensor *t = &s->tensor;
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
    if (fits) s->at = (int64_t)H5Dget_offset(id);
    if (type >= 0) H5Tclose(type);
    if (space >= 0) H5Sclose(space);
    H5Tclose(f32);
    H5Tclose(half);
    if (!fits)
        return error_set(
            err, STATUS_INPUT,
            "%s: %s is not an array of f32 or bf16 of one or two axes that lies whole in the file, as the format wants.\n%s",
            c->path, t->path, other_file);
    return h5_get_crc(id, FORMAT_CRC, &s->crc) < 0 ? missing(c, FORMAT_CRC, err) : 0;
}

typedef struct visit {
    checkpoint *c;
    const char *group; /* being visited */
    error *err;
} visit;

static stored_set *add_set(checkpoint *c) {
    if (c->n == c->capacity) {
        c->capacity = 2 * c->capacity + 64;
        stored_set *sets = realloc(c->sets, (size_t)c->capacity * sizeof *sets);
        if (!sets) return NULL;
        c->sets = sets;
    }
    c->sets[c->n] = (stored_set){0};
    return &c->sets[c->n];
}

static herr_t visit_link(hid_t group, const char *name, const H5L_info_t *link, void *data) {
    visit *v = data;
    checkpoint *c = v->c;
    stored_set *s = add_set(c);
    if (!s) return opened_no_memory(c, v->err);
    checkpoint_tensor *t = &s->tensor;
    int length = snprintf(t->path, sizeof t->path, "%s/%s", v->group, name);
    if (link->type != H5L_TYPE_HARD || (size_t)length >= sizeof t->path)
        return error_set(v->err, STATUS_INPUT, "%s: %s is a link, or has too long a name.\n%s", c->path, t->path, other_file);
    hid_t object = H5Oopen(group, name, H5P_DEFAULT);
    if (object < 0) return opened_damaged(c, t->path, v->err);
    int result = 0;
    if (H5Iget_type(object) == H5I_DATASET) {
        result = describe(c, object, s, v->err);
        if (result == 0) c->n++;
    }
    H5Oclose(object);
    return result;
}

static int list_tensors(checkpoint *c, error *err) {
    static const char *const groups[] = {"params", "optimizer"};
    for (int i = 0; i < 2; i++) {
        if (H5Lexists(c->file, groups[i], H5P_DEFAULT) == 0) continue;
        if (!h5_is_member(c->file, groups[i])) return opened_damaged(c, groups[i], err);
        hid_t group = H5Gopen2(c->file, groups[i], H5P_DEFAULT);
        visit v = {c, groups[i], err};
        err->text[0] = '\0'; /* filled in by the visit if that is what fails */
        int result = group < 0 ? -1 : H5Lvisit(group, H5_INDEX_CRT_ORDER, H5_ITER_INC, visit_link, &v);
        if (result < 0 && err->text[0] == '\0') opened_damaged(c, groups[i], err);
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
    if (!paths) return opened_no_memory(c, err);
    for (int i = 0; i < c->n; i++) paths[i] = c->sets[i].tensor.path;
    paths[c->n] = FORMAT_TRAIN;
    paths[c->n + 1] = FORMAT_HELDOUT;
    uint32_t found = format_names_crc(paths, c->n + 2);
    free(paths);
    if (n == c->n + 2 && crc == found) return 0;
    return error_set(err, STATUS_INPUT,
                     "%s: was written with %lld datasets, and now has %d, or others: it was changed afterwards.\n%s", c->path,
                     (long long)n, c->n + 2, other_file);
}

int opened_wrong_crc(const checkpoint *c, const char *path, uint32_t found, uint32_t expected, error *err) {
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
        opened_no_memory(c, err);
    else if (*n > 0 && H5Dread(id, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, *rows) < 0)
        opened_damaged(c, path, err);
    else if (crc_of(*rows, (size_t)*n * sizeof **rows) != crc)
        opened_wrong_crc(c, path, crc_of(*rows, (size_t)*n * sizeof **rows), crc, err);
    else
        result = 0;
    if (type >= 0) H5Tclose(type);
    if (stored >= 0) H5Tclose(stored);
    if (space >= 0) H5Sclose(space);
    return result;
}

static int read_history(checkpoint *c, const char *path, history_row **rows, int64_t *n, error *err) {
    hid_t id = h5_is_member(c->file, "history") && h5_is_member(c->file, path) ? H5Dopen2(c->file, path, H5P_DEFAULT) : -1;
    if (id < 0) return opened_damaged(c, path, err);
    int result = read_rows(c, id, path, rows, n, err);
    H5Dclose(id);
    return result;
}

int checkpoint_open(checkpoint **opened, const char *path, error *err) {
    *opened = NULL;
    checkpoint *c = calloc(1, sizeof *c);
    if (!c) return directory_error(err, path, ENOMEM);
    c->file = H5I_INVALID_HID;
    c->fd = -1;
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
