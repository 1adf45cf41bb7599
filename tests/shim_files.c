/* shim_files.c: makes calls on the files of one directory fail as broken, full or simple filesystems do. Preloaded by the tests
 * of checkpoints.
 *
 *   FAULT_DIR    the directory: only calls on it, on what lies below it, and on /dev/shm/mobilellm-* are counted and can fail
 *   FAULT_LOG    each call adds a line "NAME PATH" to the file FAULT_LOG.RANK, so that a test can count them
 *   FAULT_RANK   only calls of this rank fail (unset: of all)
 *   FAULT_CALL   the number of the call that fails, from 1 ...
 *   FAULT_NAME   ... or the name of all that do: "fallocate"
 *   FAULT_CODE   errno of the failure; "short": a write writes half of its bytes, and succeeds
 *   FAULT_ROOM   the filesystem says that it has room
 *
 * Both names of a function are here, because libraries built for large files call the one with 64. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)

typedef enum verdict { PASS, FAIL, SHORT } verdict;

static bool is_meant(const char *path) {
    const char *dir = getenv("FAULT_DIR");
    size_t length = dir ? strlen(dir) : 0;
    bool inside = length > 0 && strncmp(path, dir, length) == 0 && (path[length] == '/' || path[length] == '\0');
    return inside || (dir && strncmp(path, "/dev/shm/mobilellm-", 19) == 0);
}

static void add_to_log(const char *rank, const char *name, const char *path) {
    char file[4096], line[4200];
    const char *log = getenv("FAULT_LOG");
    if (!log) return;
    snprintf(file, sizeof file, "%s.%s", log, rank);
    int fd = REAL(open, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    int length = snprintf(line, sizeof line, "%s %s\n", name, path);
    if (REAL(write, fd, line, (size_t)length) != length) abort();
    close(fd);
}

/* What is to become of this call. On FAIL errno is set. */
static verdict judge(const char *name, const char *path) {
    static atomic_int calls;
    if (!is_meant(path)) return PASS;
    const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *which = getenv("FAULT_RANK"), *number = getenv("FAULT_CALL");
    const char *all = getenv("FAULT_NAME"), *code = getenv("FAULT_CODE");
    if (!rank) rank = "0";
    int call = atomic_fetch_add(&calls, 1) + 1;
    add_to_log(rank, name, path);
    bool hit = (number && atoi(number) == call) || (all && strcmp(all, name) == 0);
    if (!hit || !code || (which && strcmp(which, rank) != 0)) return PASS;
    if (strcmp(code, "short") == 0) return SHORT;
    errno = atoi(code);
    return FAIL;
}

static verdict judge_fd(const char *name, int fd) {
    char link[64], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return readlink(link, path, sizeof path - 1) > 0 ? judge(name, path) : PASS;
}

int open(const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, mode_t) : 0;
    va_end(args);
    return judge("open", path) == FAIL ? -1 : REAL(open, path, flags, mode);
}
int open64(const char *path, int flags, ...) __attribute__((alias("open")));

int mkstemp(char *path) { return judge("mkstemp", path) == FAIL ? -1 : REAL(mkstemp, path); }
int mkstemp64(char *path) __attribute__((alias("mkstemp")));
int mkdir(const char *path, mode_t mode) { return judge("mkdir", path) == FAIL ? -1 : REAL(mkdir, path, mode); }
int rename(const char *from, const char *to) { return judge("rename", from) == FAIL ? -1 : REAL(rename, from, to); }
int symlink(const char *target, const char *path) { return judge("symlink", path) == FAIL ? -1 : REAL(symlink, target, path); }

int fallocate(int fd, int mode, off_t at, off_t n) {
    return judge_fd("fallocate", fd) == FAIL ? -1 : REAL(fallocate, fd, mode, at, n);
}
int fallocate64(int fd, int mode, off_t at, off_t n) __attribute__((alias("fallocate")));
int posix_fallocate(int fd, off_t at, off_t n) {
    return judge_fd("posix_fallocate", fd) == FAIL ? errno : REAL(posix_fallocate, fd, at, n);
}
int posix_fallocate64(int fd, off_t at, off_t n) __attribute__((alias("posix_fallocate")));
int ftruncate(int fd, off_t n) { return judge_fd("ftruncate", fd) == FAIL ? -1 : REAL(ftruncate, fd, n); }
int ftruncate64(int fd, off_t n) __attribute__((alias("ftruncate")));
int fsync(int fd) { return judge_fd("fsync", fd) == FAIL ? -1 : REAL(fsync, fd); }
int fdatasync(int fd) { return judge_fd("fdatasync", fd) == FAIL ? -1 : REAL(fdatasync, fd); }

static size_t some(verdict v, size_t n) { return v == SHORT ? (n + 1) / 2 : n; }

ssize_t write(int fd, const void *data, size_t n) {
    verdict v = judge_fd("write", fd);
    return v == FAIL ? -1 : REAL(write, fd, data, some(v, n));
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    verdict v = judge_fd("pwrite", fd);
    return v == FAIL ? -1 : REAL(pwrite, fd, data, some(v, n), at);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off_t at) __attribute__((alias("pwrite")));

/* Half of a vector: its first buffers, or half of its only one. */
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) {
    verdict judged = judge_fd("pwritev", fd);
    if (judged == FAIL) return -1;
    if (judged == SHORT && n == 1) return REAL(pwrite, fd, v->iov_base, some(judged, v->iov_len), at);
    return REAL(pwritev, fd, v, (int)some(judged, (size_t)n), at);
}
ssize_t pwritev64(int fd, const struct iovec *v, int n, off_t at) __attribute__((alias("pwritev")));

int fstatvfs(int fd, struct statvfs *s) {
    int result = REAL(fstatvfs, fd, s);
    if (getenv("FAULT_ROOM")) s->f_bavail = 1 << 30;
    return result;
}
