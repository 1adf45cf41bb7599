/* lock.c: flock rather than a file that is there or not: the kernel releases it with the process, so no run is ever refused for
 * the sake of a dead one. The file is never removed, because a run waiting for the old one and a run making a new one would both
 * be let in. */
#include "train/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "util/file.h"

enum { WAIT_MS = 3000, POLL_MS = 50, CARD_SIZE = 400 };

/* What the holder wrote: "process 4711 on HOST since 2026-05-03 14:07:31 UTC". It may not have come to that yet. */
static void read_card(char card[CARD_SIZE], int fd) {
    ssize_t n = pread(fd, card, CARD_SIZE - 1, 0);
    card[n > 0 ? n : 0] = '\0';
    card[strcspn(card, "\n")] = '\0';
    if (!card[0]) snprintf(card, CARD_SIZE, "a process that has just started");
}

static int write_card(int fd, const char *path, error *err) {
    char card[CARD_SIZE], host[256] = "", when[64];
    time_t now = time(NULL);
    struct tm utc;
    gethostname(host, sizeof host - 1);
    strftime(when, sizeof when, "%Y-%m-%d %H:%M:%S UTC", gmtime_r(&now, &utc));
    int n = snprintf(card, sizeof card, "process %ld on %s since %s\n", (long)getpid(), host, when);
    if (ftruncate(fd, 0)) return error_set(err, STATUS_RESOURCE, "%s: cannot write: %s", path, strerror(errno));
    return file_write(fd, path, card, (size_t)n, err);
}

static int wait_for_lock(int fd) {
    for (int waited = 0;; waited += POLL_MS) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) return 0;
        if (errno != EINTR && (errno != EWOULDBLOCK || waited >= WAIT_MS)) return -1;
        usleep(1000 * POLL_MS);
    }
}

static int refuse(int fd, const char *dir, const char *path, error *err) {
    char card[CARD_SIZE];
    if (errno != EWOULDBLOCK)
        return error_set(err, STATUS_RESOURCE,
                         "%s: cannot be locked: %s.\nDoes its filesystem have locks (flock)? If not, use another checkpoint.dir.",
                         path, strerror(errno));
    read_card(card, fd);
    return error_set(err, STATUS_RESOURCE,
                     "%s is in use by another run: %s.\n"
                     "Wait for it, end it (SIGTERM lets it write a checkpoint), or give this run another checkpoint.dir.",
                     dir, card);
}

int lock_take(int *lock, const char *dir, error *err) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/lock", dir) >= (int)sizeof path)
        return error_set(err, STATUS_USAGE, "%s: the path is too long", dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return error_set(err, STATUS_RESOURCE, "%s: cannot create: %s", path, strerror(errno));
    if (wait_for_lock(fd) ? refuse(fd, dir, path, err) : write_card(fd, path, err)) {
        close(fd);
        return -1;
    }
    *lock = fd;
    return 0;
}

void lock_release(int lock) {
    if (lock >= 0) close(lock);
}
