/* config.cpp: what the environment says. The variables are told in emu.h. */
#include <omp.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/emu/runtime.h"

namespace cuemu {

void fatal(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fputs("cuemu: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

/* What a flavour does unless it is told: emu.mk. */
#ifndef CUEMU_ORDER_IS
#define CUEMU_ORDER_IS "fwd"
#endif
#ifndef CUEMU_STREAMS_IS
#define CUEMU_STREAMS_IS "eager"
#endif

static uint64_t seed_of(uint64_t number) { return (number * 0x9E3779B97F4A7C15ull) | 1; }

/* Which of three words the variable is; the number after "WORD:" goes into the seed. */
static int choice(const char *variable, const char *otherwise, const char *const words[3], uint64_t *seed) {
    const char *value = getenv(variable) ? getenv(variable) : otherwise;
    size_t length = strcspn(value, ":");
    if (value[length]) *seed = seed_of(strtoull(value + length + 1, nullptr, 0));
    for (int i = 0; i < 3; i++)
        if (strlen(words[i]) == length && !strncmp(value, words[i], length)) return i;
    fatal("%s=%s: expected %s, %s, %s or %s:SEED", variable, value, words[0], words[1], words[2], words[2]);
}

static uint64_t number(const char *variable, uint64_t otherwise) {
    const char *value = getenv(variable);
    if (!value) return otherwise;
    char *end;
    uint64_t n = strtoull(value, &end, 0);
    if (end == value || *end) fatal("%s=%s: expected a number", variable, value);
    return n;
}

static config read_environment() {
    static const char *const orders[] = {"fwd", "rev", "rand"}, *const timings[] = {"eager", "lazy", "rand"};
    config c = {};
    c.order_seed = c.stream_seed = seed_of(number("CUEMU_SEED", 1));
    c.threads = static_cast<order>(choice("CUEMU_ORDER", CUEMU_ORDER_IS, orders, &c.order_seed));
    c.streams = static_cast<timing>(choice("CUEMU_STREAMS", CUEMU_STREAMS_IS, timings, &c.stream_seed));
#ifdef CUEMU_CHECKED
    c.os_threads = 1;  // static shared memory exists once
    c.stack = number("CUEMU_STACK", 256 << 10);
#else
    c.os_threads = static_cast<int>(number("CUEMU_THREADS", static_cast<uint64_t>(omp_get_max_threads())));
    c.stack = number("CUEMU_STACK", 64 << 10);
#endif
    c.stack = (c.stack + 4095) & ~static_cast<size_t>(4095);
    c.fresh_seed = number("CUEMU_FRESH", 0);
    c.guard = number("CUEMU_GUARD", 0) != 0;
    c.memory = number("CUEMU_MEMORY", 8ull << 30);
    c.largest = number("CUEMU_LARGEST", c.memory);
    c.devices = static_cast<int>(number("CUEMU_DEVICES", 1));
    c.multiprocessors = static_cast<int>(number("CUEMU_MULTIPROCESSORS", 4));
    c.fail = number("CUEMU_FAIL", 0);
    c.time_seed = number("CUEMU_TIMES", 0);
    c.name = getenv("CUEMU_NAME") ? getenv("CUEMU_NAME") : "emulated GPU";
    c.major = 9;
    const char *capability = getenv("CUEMU_CAPABILITY");
    if (capability && sscanf(capability, "%d.%d", &c.major, &c.minor) != 2)
        fatal("CUEMU_CAPABILITY=%s: expected MAJOR.MINOR", capability);
    return c;
}

const config &settings() {
    static const config c = read_environment();
    return c;
}

}  // namespace cuemu
