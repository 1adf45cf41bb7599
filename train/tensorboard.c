/* tensorboard.c: protocol buffers and TFRecords, encoded by hand.
 *
 * Three message types with eight fields do not earn a protobuf library. Field numbers are those of event.proto and summary.proto:
 *   Event      1 wall_time (double)  2 step (int64)  3 file_version (string)  5 summary (Summary)  7 session_log (SessionLog)
 *   Summary    1 value (repeated Value)       Value  1 tag (string)  2 simple_value (float)
 *   SessionLog 1 status (enum, START = 1)
 * A file goes on the disk record by record through write(2): nothing waits in a buffer when a run is killed. */
#include "train/tensorboard.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "util/crc32c.h"
#include "util/file.h"

enum {
    MAX_SCALARS = 16,
    VALUE_BYTES = TENSORBOARD_TAG + 16, /* a Value and its lengths */
    EVENT_BYTES = MAX_SCALARS * VALUE_BYTES + 64,
    RECORD_EXTRA = 16 /* length, its checksum, the checksum of the data */
};

enum wire_type { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

struct tensorboard {
    int fd;
    char path[PATH_MAX];
};

typedef struct message {
    unsigned char data[EVENT_BYTES];
    size_t used;
} message;

static void put_bytes(message *m, const void *data, size_t bytes) {
    assert(m->used + bytes <= sizeof m->data);
    memcpy(m->data + m->used, data, bytes);
    m->used += bytes;
}

static void put_varint(message *m, uint64_t value) {
    for (; value >= 0x80; value >>= 7) put_bytes(m, &(unsigned char){(unsigned char)(value | 0x80)}, 1);
    put_bytes(m, &(unsigned char){(unsigned char)value}, 1);
}

static void put_key(message *m, int field, enum wire_type type) { put_varint(m, (uint64_t)field << 3 | type); }

/* Little-endian, like the machines this runs on. */
static void put_double(message *m, int field, double value) {
    put_key(m, field, WIRE_FIXED64);
    put_bytes(m, &value, sizeof value);
}

static void put_float(message *m, int field, float value) {
    put_key(m, field, WIRE_FIXED32);
    put_bytes(m, &value, sizeof value);
}

static void put_integer(message *m, int field, int64_t value) {
    put_key(m, field, WIRE_VARINT);
    put_varint(m, (uint64_t)value);
}

static void put_block(message *m, int field, const void *data, size_t bytes) {
    put_key(m, field, WIRE_BYTES);
    put_varint(m, bytes);
    put_bytes(m, data, bytes);
}

static void event_begin(message *m, int64_t step) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    m->used = 0;
    put_double(m, 1, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec);
    put_integer(m, 2, step);
}

/* A TFRecord: u64 length, masked CRC of the length, data, masked CRC of the data. */
static int write_record(tensorboard *t, const message *m, error *err) {
    unsigned char record[EVENT_BYTES + RECORD_EXTRA];
    uint64_t length = m->used;
    uint32_t length_crc = crc32c_masked(&length, sizeof length), data_crc = crc32c_masked(m->data, m->used);
    memcpy(record, &length, 8);
    memcpy(record + 8, &length_crc, 4);
    memcpy(record + 12, m->data, m->used);
    memcpy(record + 12 + m->used, &data_crc, 4);
    return file_write(t->fd, t->path, record, m->used + RECORD_EXTRA, err);
}

/* TensorBoard reads the files of a directory in the order of their names, so two files of one second must not share one. */
static int create_file(tensorboard *t, const char *dir, error *err) {
    char host[256] = "localhost";
    gethostname(host, sizeof host - 1);
    for (int64_t seconds = time(NULL);; seconds++) {
        int length = snprintf(t->path, sizeof t->path, "%s/events.out.tfevents.%010lld.%s", dir, (long long)seconds, host);
        if (length >= (int)sizeof t->path) return error_set(err, STATUS_USAGE, "%s: the path is too long.", dir);
        t->fd = open(t->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (t->fd >= 0) return 0;
        if (errno != EEXIST)
            return error_set(err, STATUS_RESOURCE, "%s: cannot create: %s. Check that the directory may be written.", t->path,
                             strerror(errno));
    }
}

int tensorboard_open(tensorboard **out, const char *dir, int64_t purge_step, error *err) {
    static const char version[] = "brain.Event:2";
    *out = NULL;
    tensorboard *t = malloc(sizeof *t);
    if (!t) return error_set(err, STATUS_RESOURCE, "%s: no memory for its TensorBoard file.", dir);
    message event;
    if (create_file(t, dir, err)) {
        free(t);
        return -1;
    }
    event_begin(&event, 0);
    put_block(&event, 3, version, sizeof version - 1);
    int failed = write_record(t, &event, err);
    if (!failed) {
        message start = {.used = 0};
        put_integer(&start, 1, 1);
        event_begin(&event, purge_step);
        put_block(&event, 7, start.data, start.used);
        failed = write_record(t, &event, err);
    }
    if (failed) {
        tensorboard_close(t);
        return -1;
    }
    *out = t;
    return 0;
}

void tensorboard_close(tensorboard *t) {
    if (!t) return;
    close(t->fd);
    free(t);
}

int tensorboard_write(tensorboard *t, int64_t step, const tensorboard_scalar *scalars, int n, error *err) {
    assert(n <= MAX_SCALARS);
    message event, summary = {.used = 0};
    for (int i = 0; i < n; i++) {
        message value = {.used = 0};
        put_block(&value, 1, scalars[i].tag, strlen(scalars[i].tag));
        put_float(&value, 2, (float)scalars[i].value);
        put_block(&summary, 1, value.data, value.used);
    }
    event_begin(&event, step);
    put_block(&event, 5, summary.data, summary.used);
    return write_record(t, &event, err);
}
