/* system.c: /proc, control groups, sched_getaffinity. What cannot be read does not limit. */
#include "util/system.h"

#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The number behind `key` in a file of "key: number" lines; of the whole file when key is "". -1: not there. */
static double read_number(const char *path, const char *key) {
    FILE *f = fopen(path, "r");
    if (!f) return -1;
    char line[256];
    double number = -1;
    while (number < 0 && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), "%lf", &number) != 1) number = -1;
    fclose(f);
    return number;
}

static double smaller(double limit, double used, double best) {
    return limit >= 0 && used >= 0 && limit - used < best ? limit - used : best;
}

size_t system_memory_available(void) {
    double best = (double)SIZE_MAX / 2, kib = read_number("/proc/meminfo", "MemAvailable:");
    if (kib >= 0) best = kib * 1024;
    best = smaller(read_number("/sys/fs/cgroup/memory.max", ""), read_number("/sys/fs/cgroup/memory.current", ""), best);
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        best = smaller((double)limit.rlim_cur, read_number("/proc/self/status", "VmSize:") * 1024, best);
    return best < 0 ? 0 : (size_t)best;
}

size_t process_memory(void) {
    double kib = read_number("/proc/self/status", "VmRSS:");
    return kib < 0 ? 0 : (size_t)(kib * 1024);
}

int system_processors_allowed(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : system_processors();
}

int system_processors(void) {
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

const char *format_bytes(char text[16], double bytes) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    for (; bytes >= 1000 && unit < 4; unit++) bytes /= 1024;
    snprintf(text, 16, bytes < 10 && unit ? "%.2f %s" : bytes < 100 && unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}

const char *format_count(char text[16], double count) {
    static const char *const prefixes[] = {"", " k", " M", " G", " T", " P"};
    int prefix = 0;
    for (; count >= 9999.5 && prefix < 5; prefix++) count /= 1000;
    snprintf(text, 16, prefix == 0 ? "%.4g%s" : "%.1f%s", count, prefixes[prefix]);
    return text;
}
