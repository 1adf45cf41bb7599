/* file.c: whole writes, atomic replacement, directories with their parents. */
#include "util/file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int file_write(int fd, const char *path, const void *data, size_t bytes, error *err) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(fd, (const char *)data + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return error_set(err, STATUS_RESOURCE, "%s: cannot write: %s.", path, strerror(errno));
        done += (size_t)n;
    }
    return 0;
}

int file_replace(const char *path, const void *data, size_t bytes, error *err) {
    char temporary[PATH_MAX];
    if (snprintf(temporary, sizeof temporary, "%s.tmp", path) >= (int)sizeof temporary)
        return error_set(err, STATUS_USAGE, "%s: the path is too long.", path);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0) return error_set(err, STATUS_RESOURCE, "%s: cannot create: %s.", temporary, strerror(errno));
    int failed = file_write(fd, temporary, data, bytes, err);
    if (!failed && fsync(fd)) failed = error_set(err, STATUS_RESOURCE, "%s: cannot write: %s.", temporary, strerror(errno));
    close(fd);
    if (!failed && rename(temporary, path))
        failed = error_set(err, STATUS_RESOURCE, "%s: cannot rename to %s: %s.", temporary, path, strerror(errno));
    if (failed) unlink(temporary);
    return failed;
}

int file_make_directories(const char *path, error *err) {
    char part[PATH_MAX];
    struct stat about;
    size_t length = strlen(path);
    if (length >= sizeof part) return error_set(err, STATUS_USAGE, "%s: the path is too long.", path);
    memcpy(part, path, length + 1);
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        part[i] = '\0';
        int reason = mkdir(part, 0777) ? errno : 0;
        bool exists = reason && stat(part, &about) == 0;
        if (exists && !S_ISDIR(about.st_mode))
            return error_set(err, STATUS_RESOURCE, "%s is not a directory, so %s cannot be made.", part, path);
        if (reason && !exists)
            return error_set(err, STATUS_RESOURCE, "%s: cannot make the directory: %s.", part, strerror(reason));
        part[i] = path[i];
    }
    return 0;
}
