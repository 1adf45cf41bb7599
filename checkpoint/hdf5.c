/* hdf5.c: types, attributes and the error stack of HDF5. */
#include "checkpoint/hdf5.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoint/checkpoint.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little endian, and memory is written as it is");

/* The walk goes from the innermost call outwards: the first description is the cause. */
static herr_t keep_innermost(unsigned depth, const H5E_error2_t *e, void *text) {
    if (depth == 0 && e->desc) snprintf(text, sizeof((h5_trouble *)0)->text, "%s", e->desc);
    return 0;
}

/* HDF5 calls this as a function of its API fails, before the next call clears its error stack. */
static herr_t note(hid_t stack, void *trouble) {
    h5_trouble *t = trouble;
    if (t->text[0]) return 0;
    H5Ewalk2(stack, H5E_WALK_UPWARD, keep_innermost, t->text);
    const char *number = strstr(t->text, "errno = ");
    t->code = number ? atoi(number + strlen("errno = ")) : 0;
    if (t->code) snprintf(t->text, sizeof t->text, "%s", strerror(t->code));
    return 0;
}

void h5_listen(h5_trouble *t) {
    H5dont_atexit(); /* as the program ends HDF5 would crash over a file whose last write failed */
    if (t) *t = (h5_trouble){0};
    H5Eset_auto2(H5E_DEFAULT, t ? note : NULL, t);
}

hid_t h5_type(dtype type) {
    hid_t t = H5Tcopy(H5T_IEEE_F32LE);
    if (t < 0 || type == DTYPE_F32) return t;
    bool failed =
        H5Tset_fields(t, 15, 7, 8, 0, 7) < 0 || H5Tset_precision(t, 16) < 0 || H5Tset_size(t, 2) < 0 || H5Tset_ebias(t, 127) < 0;
    if (!failed) return t;
    H5Tclose(t);
    return H5I_INVALID_HID;
}

hid_t h5_history_type(void) {
    hid_t t = H5Tcreate(H5T_COMPOUND, sizeof(history_row));
    if (t < 0) return t;
    bool failed = H5Tinsert(t, "step", HOFFSET(history_row, step), H5T_STD_I64LE) < 0 ||
                  H5Tinsert(t, "tokens", HOFFSET(history_row, tokens), H5T_STD_I64LE) < 0 ||
                  H5Tinsert(t, "loss", HOFFSET(history_row, loss), H5T_IEEE_F64LE) < 0 ||
                  H5Tinsert(t, "lr", HOFFSET(history_row, lr), H5T_IEEE_F64LE) < 0 ||
                  H5Tinsert(t, "grad_norm", HOFFSET(history_row, grad_norm), H5T_IEEE_F64LE) < 0;
    if (!failed) return t;
    H5Tclose(t);
    return H5I_INVALID_HID;
}

bool h5_is_whole(hid_t dataset, int64_t bytes) {
    if (bytes == 0) return true;
    haddr_t at = H5Dget_offset(dataset);
    hsize_t file_bytes = 0;
    hid_t file = H5Iget_file_id(dataset);
    bool known = file >= 0 && H5Fget_filesize(file, &file_bytes) >= 0;
    if (file >= 0) H5Fclose(file);
    return known && at != HADDR_UNDEF && H5Dget_storage_size(dataset) == (hsize_t)bytes && at < file_bytes &&
           (hsize_t)bytes <= file_bytes - at;
}

bool h5_is_member(hid_t group, const char *name) {
    H5L_info_t info;
    return H5Lget_info(group, name, &info, H5P_DEFAULT) >= 0 && info.type == H5L_TYPE_HARD;
}

static int put(hid_t object, const char *name, hid_t type, const void *value) {
    int result = -1;
    hid_t space = H5Screate(H5S_SCALAR), attribute = H5I_INVALID_HID;
    if (space >= 0) attribute = H5Acreate2(object, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (attribute >= 0) {
        result = H5Awrite(attribute, type, value);
        if (H5Aclose(attribute) < 0) result = -1;
    }
    if (space >= 0) H5Sclose(space);
    return result;
}

int h5_put_int64(hid_t object, const char *name, int64_t value) { return put(object, name, H5T_STD_I64LE, &value); }
int h5_put_crc(hid_t object, const char *name, uint32_t value) { return put(object, name, H5T_STD_U32LE, &value); }

int h5_put_string(hid_t object, const char *name, const char *text) {
    assert(text);
    int result = -1;
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type < 0) return -1;
    if (H5Tset_size(type, strlen(text) + 1) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0) result = put(object, name, type, text);
    H5Tclose(type);
    return result;
}

static int get(hid_t object, const char *name, hid_t type, void *value) {
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT);
    if (attribute < 0) return -1;
    hid_t space = H5Aget_space(attribute);
    int result = space >= 0 && H5Sget_simple_extent_npoints(space) == 1 ? H5Aread(attribute, type, value) : -1;
    if (space >= 0) H5Sclose(space);
    H5Aclose(attribute);
    return result;
}

int h5_get_int64(hid_t object, const char *name, int64_t *value) { return get(object, name, H5T_STD_I64LE, value); }
int h5_get_crc(hid_t object, const char *name, uint32_t *value) { return get(object, name, H5T_STD_U32LE, value); }

/* The text of an attribute that is a string of fixed length. */
static char *get_text(hid_t object, const char *name, hid_t type, h5_trouble *t) {
    if (H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0) return NULL;
    char *text = calloc(H5Tget_size(type) + 1, 1);
    if (!text) t->code = ENOMEM;
    if (text && get(object, name, type, text) >= 0) return text;
    free(text);
    return NULL;
}

char *h5_get_string(hid_t object, const char *name, h5_trouble *t) {
    char *text = NULL;
    hid_t attribute = H5Aopen(object, name, H5P_DEFAULT), type = H5I_INVALID_HID;
    if (attribute < 0) return NULL;
    type = H5Aget_type(attribute);
    if (type >= 0) {
        text = get_text(object, name, type, t);
        H5Tclose(type);
    }
    H5Aclose(attribute);
    return text;
}
