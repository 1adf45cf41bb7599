/* directory.c: naming, publishing and removing checkpoint files.
 *
 * Publishing is ordered for a power cut at any point: the data were fsynced before (by their writers), then come the rename and
 * an fsync of the directory, then `latest`, and only when that is on the disk as well are older files removed. */
#include "checkpoint/directory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char suffix[] = ".tmp";

int directory_error(error *err, const char *path, int code) {
    const char *advice;
    switch (code) {
        case ENOSPC:
        case EDQUOT:
        case EFBIG:
            advice = "Free space there or keep fewer checkpoints, then resume: earlier checkpoints are untouched.";
            break;
        case EROFS:
            advice = "The filesystem is mounted read-only: choose another directory, or mount it for writing.";
            break;
        case EACCES:
        case EPERM:
            advice = "Give this user the right to it and to its directory, or choose another one.";
            break;
        case ENOTDIR:
        case EEXIST:
            advice = "Where a directory is needed stands a file: choose another name, or move the file away.";
            break;
        case ENOENT:
            advice = "Check the name; on several machines, that all of them see the same filesystem there.";
            break;
        case EIO:
            advice = "The disk or the network filesystem failed: see the machine's log (dmesg).";
            break;
        default:
            advice = "Check the path and its filesystem.";
    }
    return error_set(err, code == ENOENT ? STATUS_INPUT : STATUS_RESOURCE, "%.1000s: %s.\n%s", path, strerror(code), advice);
}

static int join(char path[PATH_SIZE], const char *dir, const char *name, error *err) {
    if ((size_t)snprintf(path, PATH_SIZE, "%s/%s", dir, name) < PATH_SIZE) return 0;
    return directory_error(err, dir, ENAMETOOLONG);
}

static void step_name(char name[64], int64_t step) { snprintf(name, 64, "step_%010" PRId64 ".h5", step); }

int directory_names(char file[PATH_SIZE], char temporary[PATH_SIZE], const char *dir, int64_t step, error *err) {
    char name[64], name_temporary[72];
    step_name(name, step);
    snprintf(name_temporary, sizeof name_temporary, "%s%s", name, suffix);
    return join(file, dir, name, err) || join(temporary, dir, name_temporary, err) ? -1 : 0;
}

static int make_one(const char *path, error *err) {
    struct stat s;
    if (mkdir(path, 0777) == 0) return 0;
    int code = errno;
    if (stat(path, &s) == 0) return S_ISDIR(s.st_mode) ? 0 : directory_error(err, path, ENOTDIR);
    return directory_error(err, path, code);
}

int directory_make(const char *dir, error *err) {
    char path[PATH_SIZE];
    if (join(path, dir, "", err)) return -1;
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        if (make_one(path, err)) return -1;
        *slash = '/';
    }
    return 0;
}

/* Other reasons for which it cannot be seen are left to who opens it. */
static bool exists(const char *dir) {
    struct stat s;
    return stat(dir, &s) == 0 || errno != ENOENT;
}

/* Calls `each` for every name in dir until it fails. */
static int for_each(const char *dir, int (*each)(const char *dir, const char *name, void *data, error *err), void *data,
                    error *err) {
    DIR *d = opendir(dir);
    if (!d) return directory_error(err, dir, errno);
    int result = 0;
    for (struct dirent *e; result == 0 && (e = readdir(d));) result = each(dir, e->d_name, data, err);
    closedir(d);
    return result;
}

/* What follows the name of a step's file; NULL if it is none. */
static const char *after_step(const char *name, int64_t *step) {
    char expected[64];
    if (strncmp(name, "step_", 5) != 0) return NULL;
    *step = strtoll(name + 5, NULL, 10);
    step_name(expected, *step);
    size_t length = strlen(expected);
    return *step >= 0 && strncmp(name, expected, length) == 0 ? name + length : NULL;
}

static bool is_temporary(const char *name) {
    int64_t step;
    const char *after = after_step(name, &step);
    return (after && strcmp(after, suffix) == 0) || strcmp(name, "latest.tmp") == 0;
}

static int remove_temporary(const char *dir, const char *name, void *unused, error *err) {
    (void)unused;
    char path[PATH_SIZE];
    if (!is_temporary(name)) return 0;
    if (join(path, dir, name, err)) return -1;
    return unlink(path) == 0 || errno == ENOENT ? 0 : directory_error(err, path, errno);
}

int directory_clean(const char *dir, error *err) { return exists(dir) ? for_each(dir, remove_temporary, NULL, err) : 0; }

typedef struct step_list {
    int64_t *steps;
    int n, capacity;
} step_list;

static int add_step(const char *dir, const char *name, void *data, error *err) {
    step_list *list = data;
    int64_t step;
    const char *after = after_step(name, &step);
    if (!after || after[0]) return 0;
    if (list->n == list->capacity) {
        list->capacity = 2 * list->capacity + 16;
        int64_t *more = realloc(list->steps, (size_t)list->capacity * sizeof *more);
        if (!more) return directory_error(err, dir, ENOMEM);
        list->steps = more;
    }
    list->steps[list->n++] = step;
    return 0;
}

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

int directory_steps(const char *dir, int64_t **steps, int *n, error *err) {
    step_list list = {0};
    int result = exists(dir) ? for_each(dir, add_step, &list, err) : 0;
    if (list.n > 1) qsort(list.steps, (size_t)list.n, sizeof *list.steps, newest_first);
    *steps = list.steps;
    *n = list.n;
    return result;
}

int directory_sync(const char *path, error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return directory_error(err, path, errno);
    int code = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    return code ? directory_error(err, path, code) : 0;
}

/* A new link is renamed over the old one, so that there is a `latest` at every moment. */
static int point_latest(const char *dir, const char *name, error *err) {
    char link[PATH_SIZE], link_temporary[PATH_SIZE];
    if (join(link, dir, "latest", err) || join(link_temporary, dir, "latest.tmp", err)) return -1;
    unlink(link_temporary);
    if (symlink(name, link_temporary) != 0 || rename(link_temporary, link) != 0) return directory_error(err, link, errno);
    return directory_sync(dir, err);
}

/* Failures are let pass: the new checkpoint stands, and what hinders removing will hinder the next writing, with a message. */
static void remove_old(const char *dir, int64_t step, int keep) {
    error unused;
    int64_t *steps;
    int n, kept = 0;
    char file[PATH_SIZE], temporary[PATH_SIZE];
    directory_steps(dir, &steps, &n, &unused);
    for (int i = 0; i < n; i++)
        if (steps[i] <= step && kept++ >= keep && directory_names(file, temporary, dir, steps[i], &unused) == 0) unlink(file);
    free(steps);
}

/* The name that `latest` holds, "" if there is none. */
static int read_latest(const char *dir, char name[PATH_SIZE], error *err) {
    char link[PATH_SIZE];
    if (join(link, dir, "latest", err)) return -1;
    ssize_t length = readlink(link, name, PATH_SIZE - 1);
    name[length > 0 ? length : 0] = '\0';
    return 0;
}

/* After a failure: the step's file goes, and `latest` names what it named before. Whether that works too is not asked. */
static void take_back(const char *dir, const char *file, const char *before) {
    error unused;
    char link[PATH_SIZE];
    if (before[0])
        point_latest(dir, before, &unused);
    else if (join(link, dir, "latest", &unused) == 0)
        unlink(link);
    unlink(file);
}

int directory_publish(const char *dir, int64_t step, int keep, error *err) {
    char name[64], file[PATH_SIZE], temporary[PATH_SIZE], before[PATH_SIZE];
    step_name(name, step);
    if (directory_names(file, temporary, dir, step, err) || read_latest(dir, before, err)) return -1;
    if (rename(temporary, file) != 0) return directory_error(err, file, errno);
    if (directory_sync(dir, err) || point_latest(dir, name, err)) {
        take_back(dir, file, before);
        return -1;
    }
    if (keep > 0) remove_old(dir, step, keep);
    return 0;
}

int directory_latest(const char *dir, char file[PATH_SIZE], error *err) {
    char link[PATH_SIZE], name[PATH_SIZE] = "";
    if (join(link, dir, "latest", err)) return -1;
    ssize_t length = readlink(link, name, sizeof name - 1);
    if (length < 0 && errno != ENOENT && errno != EINVAL) return directory_error(err, link, errno);
    if (length < 0)
        return error_set(err, STATUS_INPUT,
                         "%s: holds no checkpoint: there is no link `latest` in it.\n"
                         "Name the file itself, or the directory that a run wrote its checkpoints to.",
                         dir);
    return name[0] == '/' ? join(file, "", name + 1, err) : join(file, dir, name, err);
}
