/* shim_stall.c: makes a program stand still where a test wants it: where it opens, or renames to, a file of a certain name.
 * Preloaded by test_stop.py, which then sends a signal to a program of which it knows what that is at.
 *
 *   STALL_AT      the end of the file's name
 *   STALL_AFTER   not before a file was opened whose name ends so (unset: at the first)
 *   STALL_IN      a directory: the process makes the file STALL_IN/PID, and goes on when that is removed; this once */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static bool ends_in(const char *path, const char *variable, bool if_unset) {
    const char *end = getenv(variable);
    size_t length = strlen(path), n = end ? strlen(end) : 0;
    return end ? length >= n && strcmp(path + length - n, end) == 0 : if_unset;
}

static void stall(const char *path) {
    static atomic_bool due, done;
    const char *in = getenv("STALL_IN");
    if (ends_in(path, "STALL_AFTER", true)) due = true;
    if (!in || !due || !ends_in(path, "STALL_AT", false) || atomic_exchange(&done, true)) return;
    char mark[4096];
    snprintf(mark, sizeof mark, "%s/%ld", in, (long)getpid());
    close(creat(mark, 0666));
    while (access(mark, F_OK) == 0) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

typedef int (*open_function)(const char *path, int flags, ...);
typedef FILE *(*fopen_function)(const char *path, const char *mode);
typedef int (*rename_function)(const char *from, const char *to);

/* The libraries below use either name. */
static int open_as(const char *name, const char *path, int flags, mode_t mode) {
    stall(path);
    return ((open_function)dlsym(RTLD_NEXT, name))(path, flags, mode);
}

static mode_t mode_of(int flags, va_list arguments) { return flags & O_CREAT ? va_arg(arguments, mode_t) : 0; }

int open(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return open_as("open", path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = mode_of(flags, arguments);
    va_end(arguments);
    return open_as("open64", path, flags, mode);
}

FILE *fopen(const char *path, const char *mode) {
    stall(path);
    return ((fopen_function)dlsym(RTLD_NEXT, "fopen"))(path, mode);
}

/* Before a checkpoint gets its name it is whole, and fsynced. */
int rename(const char *from, const char *to) {
    stall(to);
    return ((rename_function)dlsym(RTLD_NEXT, "rename"))(from, to);
}
