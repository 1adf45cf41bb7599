/* layout.c: laying out a checkpoint file.
 *
 * HDF5 does not survive a failed write of its own metadata: it cannot close the file, and crashes as the program ends. So it
 * makes the file in memory, where the elements are a hole that takes no room, and the few pages that it wrote are copied to the
 * disk by plain writes, whose failures are plain too. */
#include "checkpoint/layout.h"

#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "checkpoint/crc.h"
#include "checkpoint/directory.h"
#include "checkpoint/format.h"
#include "checkpoint/hdf5.h"
#include "util/system.h"

enum { METADATA_BYTES = 4096 }; /* of a dataset, generously */

int64_t dataset_count(const dataset *d) { return d->n_axes == 1 ? d->shape[0] : d->shape[0] * d->shape[1]; }

/* How many datasets lie in a group itself, and the longest of their names. */
static unsigned count_links(const char *group, const dataset *sets, int n, unsigned *longest) {
    unsigned links = 0;
    size_t length = strlen(group);
    for (int i = 0; i < n; i++) {
        if (strncmp(sets[i].path, group, length) != 0 || sets[i].path[length] != '/') continue;
        const char *name = sets[i].path + length + 1;
        if (strchr(name, '/')) continue;
        links++;
        if (strlen(name) > *longest) *longest = (unsigned)strlen(name);
    }
    return links;
}

/* Groups keep the order in which things were put into them, and their links stay in their headers, under one checksum, however
 * many: damage to the heap and the trees that HDF5 would move them to crashes its readers. A header has room for all of them from
 * the start: one that grows takes time with the cube of their number. */
static hid_t make_group(hid_t file, const char *group, const dataset *sets, int n) {
    enum { MOST = 65535, GROUPS = 4 }; /* the most links that HDF5 takes so; a model has some hundreds. Groups within a group */
    unsigned longest = sizeof "heldout", links = count_links(group, sets, n, &longest) + GROUPS;
    hid_t made = -1, properties = H5Pcreate(H5P_GROUP_CREATE);
    if (properties >= 0 && H5Pset_obj_track_times(properties, 0) >= 0 && H5Pset_link_phase_change(properties, MOST, 0) >= 0 &&
        H5Pset_est_link_info(properties, links < MOST ? links : MOST, longest) >= 0 &&
        H5Pset_link_creation_order(properties, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED) >= 0)
        made = H5Gcreate2(file, group, H5P_DEFAULT, properties, H5P_DEFAULT);
    if (properties >= 0) H5Pclose(properties);
    return made;
}

/* Makes the groups that `path` lies in, where they are missing. */
static int make_groups(hid_t file, const char *path, const dataset *sets, int n) {
    char group[sizeof((checkpoint_tensor *)0)->path];
    for (const char *slash = strchr(path, '/'); slash; slash = strchr(slash + 1, '/')) {
        snprintf(group, sizeof group, "%.*s", (int)(slash - path), path);
        if (H5Lexists(file, group, H5P_DEFAULT) > 0) continue;
        hid_t made = make_group(file, group, sets, n);
        if (made < 0 || H5Gclose(made) < 0) return -1;
    }
    return 0;
}

/* Contiguous, its space taken now, nothing written to it: all of it will be, by the ranks. */
static int make_dataset(hid_t file, dataset *d, const dataset *sets, int n) {
    hsize_t shape[2] = {(hsize_t)d->shape[0], d->n_axes == 2 ? (hsize_t)d->shape[1] : 1};
    hid_t type = d->is_history ? h5_history_type() : h5_type(d->type);
    hid_t space = H5Screate_simple(d->n_axes, shape, NULL), properties = H5Pcreate(H5P_DATASET_CREATE), id = -1;
    int result = -1;
    if (type >= 0 && space >= 0 && properties >= 0 && make_groups(file, d->path, sets, n) == 0 &&
        H5Pset_obj_track_times(properties, 0) >= 0 && H5Pset_layout(properties, H5D_CONTIGUOUS) >= 0 &&
        H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY) >= 0 && H5Pset_fill_time(properties, H5D_FILL_TIME_NEVER) >= 0)
        id = H5Dcreate2(file, d->path, type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
    if (id >= 0) {
        result = h5_put_crc(id, FORMAT_CRC, d->crc);
        if (dataset_count(d) > 0) d->at = (int64_t)H5Dget_offset(id);
        if (H5Dclose(id) < 0) result = -1;
    }
    if (properties >= 0) H5Pclose(properties);
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return result;
}

static int put_info(hid_t root, const checkpoint_info *info, const dataset *sets, int n) {
    const char **paths = malloc((size_t)n * sizeof *paths);
    if (!paths) return -1;
    for (int i = 0; i < n; i++) paths[i] = sets[i].path;
    uint32_t names = format_names_crc(paths, n);
    free(paths);

    int failed = h5_put_string(root, "format", FORMAT_NAME) < 0 || h5_put_int64(root, "version", FORMAT_VERSION) < 0 ||
                 h5_put_int64(root, FORMAT_N_DATASETS, n) < 0 || h5_put_crc(root, FORMAT_NAMES_CRC, names) < 0 ||
                 h5_put_crc(root, FORMAT_CONFIG_CRC, crc_of(info->config, strlen(info->config))) < 0;
    for (int i = 0; i < FORMAT_N_STRINGS && !failed; i++)
        failed = h5_put_string(root, format_strings[i].name, *format_string((checkpoint_info *)info, i)) < 0;
    for (int i = 0; i < FORMAT_N_NUMBERS && !failed; i++)
        failed = h5_put_int64(root, format_numbers[i].name, *format_number((checkpoint_info *)info, i)) < 0;
    return failed ? -1 : 0;
}

/* The newest form of the file that HDF5 1.8 reads: its metadata carry checksums. What is as large as a page begins at one:
 * copying between memory and the file's pages is up to twice as fast where both begin at a cache line (docs/results.md). */
static hid_t create_file(const char *path) {
    enum { ATTRIBUTES = 64, PAGE = 4096 }; /* this many stay in the root's header, where everyone finds them at once */
    hid_t access = H5Pcreate(H5P_FILE_ACCESS), creation = H5Pcreate(H5P_FILE_CREATE), file = -1;
    if (access >= 0 && creation >= 0 && H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V18) >= 0 &&
        H5Pset_file_locking(access, 0, 1) >= 0 && H5Pset_alignment(access, PAGE, PAGE) >= 0 &&
        H5Pset_attr_phase_change(creation, ATTRIBUTES, 0) >= 0 && H5Pset_obj_track_times(creation, 0) >= 0 &&
        H5Pset_link_creation_order(creation, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED) >= 0)
        file = H5Fcreate(path, H5F_ACC_TRUNC, creation, access);
    if (access >= 0) H5Pclose(access);
    if (creation >= 0) H5Pclose(creation);
    return file;
}

static int out_of_space(error *err, const char *path, int64_t bytes, int64_t available, int code) {
    char needed[16], there[16];
    return error_set(err, STATUS_RESOURCE,
                     "%s: the checkpoint needs %s, the filesystem has %s free (%s).\n"
                     "Free space there or keep fewer checkpoints, then resume: earlier checkpoints are untouched.",
                     path, format_bytes(needed, (double)bytes), format_bytes(there, (double)available), strerror(code));
}

/* Filesystems that tell no size are taken to have room. */
static int64_t available_bytes(int fd) {
    struct statvfs s;
    return fstatvfs(fd, &s) == 0 && s.f_blocks > 0 ? (int64_t)s.f_bavail * (int64_t)s.f_frsize : INT64_MAX;
}

/* Is there room, as far as can be told before it is taken? */
static int check_space(int fd, const char *path, const checkpoint_info *info, const dataset *sets, int n, error *err) {
    struct rlimit limit;
    int64_t bytes = METADATA_BYTES + (int64_t)strlen(info->config), available = available_bytes(fd);
    for (int i = 0; i < n; i++) bytes += METADATA_BYTES + dataset_count(&sets[i]) * (int64_t)sets[i].item;
    if (bytes > available) return out_of_space(err, path, bytes, available, ENOSPC);
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && (rlim_t)bytes > limit.rlim_cur)
        return out_of_space(err, path, bytes, (int64_t)limit.rlim_cur, EFBIG);
    return 0;
}

/* Takes the space on the disk, so that no later write finds it full. Filesystems that cannot do this only get the length. */
static int reserve(int fd, off_t bytes) {
    if (fallocate(fd, 0, 0, bytes) == 0) return 0;
    if (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL) return -1;
    return ftruncate(fd, bytes);
}

/* Copies what is not a hole. */
static int copy_pages(int to, int from) {
    enum { BUFFER = 1 << 16 };
    char buffer[BUFFER];
    off_t at = 0;
    while ((at = lseek(from, at, SEEK_DATA)) >= 0) {
        off_t end = lseek(from, at, SEEK_HOLE);
        while (at < end) {
            ssize_t n = pread(from, buffer, end - at < BUFFER ? (size_t)(end - at) : BUFFER, at);
            if (n > 0) n = pwrite(to, buffer, (size_t)n, at);
            if (n <= 0) return -1;
            at += n;
        }
    }
    return errno == ENXIO ? 0 : -1; /* ENXIO: no more data */
}

static int put_on_disk(int fd, const char *path, int memory, error *err) {
    struct stat s;
    int code = fstat(memory, &s) || reserve(fd, s.st_size) || copy_pages(fd, memory) || fsync(fd) ? errno : 0;
    if (code == ENOSPC || code == EDQUOT || code == EFBIG) return out_of_space(err, path, s.st_size, available_bytes(fd), code);
    return code ? directory_error(err, path, code) : 0;
}

/* code: errno, or 0 when HDF5 told none. Returns -1. */
static int no_memory(error *err, const char *path, int code, const char *reason) {
    if (!code) return error_set(err, STATUS_RESOURCE, "%s: HDF5 cannot lay out the file: %s.", path, reason);
    directory_error(err, "/dev/shm", code);
    return error_prefix(err, "%s: cannot be laid out in memory", path);
}

/* The file, made in memory. Returns its descriptor; its name is already gone. A memfd has no name that HDF5 could open. */
static int describe_file(const char *path, const checkpoint_info *info, dataset *sets, int n, error *err) {
    char name[] = "/dev/shm/mobilellm-checkpoint-XXXXXX";
    h5_trouble trouble;
    int memory = mkstemp(name);
    if (memory < 0) return no_memory(err, path, errno, "");
    h5_listen(&trouble);
    hid_t file = create_file(name);
    unlink(name);
    int result = file < 0 ? -1 : put_info(file, info, sets, n);
    for (int i = 0; result == 0 && i < n; i++) result = make_dataset(file, &sets[i], sets, n);
    if (file >= 0 && H5Fclose(file) < 0) result = -1;
    h5_listen(NULL);
    if (result == 0) return memory;
    close(memory);
    return no_memory(err, path, trouble.code, trouble.text);
}

int layout_write(const char *path, const checkpoint_info *info, dataset *sets, int n, error *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return directory_error(err, path, errno);
    int result = check_space(fd, path, info, sets, n, err);
    int memory = result ? -1 : describe_file(path, info, sets, n, err);
    if (result == 0) result = memory < 0 ? -1 : put_on_disk(fd, path, memory, err);
    if (memory >= 0) close(memory);
    close(fd);
    return result;
}
