/* test_faults.c: what the program does when memory, files, threads or oneDNN fail it: at every single place where they can.
 *
 * The linker puts the functions below between our code and the libraries (-Wl,--wrap, see the Makefile), so that the n-th of
 * these calls can be made to fail, and no call that a library makes for itself. Each scenario is run once to count its calls,
 * then once for each of them. It must end with a message and the status of its cause, or, of the few calls whose failure may be
 * survived, as if nothing had been; and, which the run of this program under AddressSanitizer tells, lose no memory. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <dnnl.h>
#include <pthread.h>

#include "data/command.h"
#include "data/loader.h"
#include "eval/command.h"
#include "train/command.h"
#include "train/metrics.h"
#include "train/run.h"

/* ---- the faults ---- */

/* Shared with the processes that are forked. */
typedef struct fault {
    atomic_int calls;  /* so far, counted while armed */
    atomic_int chosen; /* the number of the call that fails; 0: none; -1: not armed */
    char name[32];     /* of the function that failed */
} fault;
static fault *the;

static bool fails(const char *name) {
    if (!the || the->chosen < 0 || atomic_fetch_add(&the->calls, 1) + 1 != the->chosen) return false;
    snprintf(the->name, sizeof the->name, "%s", name);
    return true;
}

/* What the function returns when it fails, and its errno. */
#define WRAPPED(type, name, parameters, arguments, result, code) \
    type __real_##name parameters;                               \
    type __wrap_##name parameters;                               \
    type __wrap_##name parameters {                              \
        if (!fails(#name)) return __real_##name arguments;       \
        errno = code;                                            \
        return result;                                           \
    }

WRAPPED(void *, malloc, (size_t n), (n), NULL, ENOMEM)
WRAPPED(void *, calloc, (size_t n, size_t size), (n, size), NULL, ENOMEM)
WRAPPED(void *, realloc, (void *old, size_t n), (old, n), NULL, ENOMEM)
WRAPPED(void *, aligned_alloc, (size_t align, size_t n), (align, n), NULL, ENOMEM)
WRAPPED(int, posix_memalign, (void **memory, size_t align, size_t n), (memory, align, n), ENOMEM, 0)
WRAPPED(char *, strdup, (const char *text), (text), NULL, ENOMEM)
WRAPPED(char *, strndup, (const char *text, size_t n), (text, n), NULL, ENOMEM)
WRAPPED(FILE *, open_memstream, (char **text, size_t *size), (text, size), NULL, ENOMEM)
WRAPPED(int, pthread_create, (pthread_t * thread, const pthread_attr_t *a, void *(*body)(void *), void *context),
        (thread, a, body, context), EAGAIN, 0)

WRAPPED(dnnl_status_t, dnnl_engine_create, (dnnl_engine_t * engine, dnnl_engine_kind_t kind, size_t i), (engine, kind, i),
        dnnl_runtime_error, 0)
WRAPPED(dnnl_status_t, dnnl_stream_create, (dnnl_stream_t * stream, dnnl_engine_t engine, unsigned flags),
        (stream, engine, flags), dnnl_runtime_error, 0)
WRAPPED(dnnl_status_t, dnnl_primitive_attr_create, (dnnl_primitive_attr_t * attr), (attr), dnnl_out_of_memory, 0)
WRAPPED(dnnl_status_t, dnnl_post_ops_create, (dnnl_post_ops_t * made), (made), dnnl_out_of_memory, 0)
WRAPPED(dnnl_status_t, dnnl_primitive_create, (dnnl_primitive_t * made, const_dnnl_primitive_desc_t desc), (made, desc),
        dnnl_out_of_memory, 0)

WRAPPED(DIR *, opendir, (const char *path), (path), NULL, EACCES)
WRAPPED(int, fstat, (int fd, struct stat *about), (fd, about), -1, EIO)
WRAPPED(void *, mmap, (void *at, size_t n, int access, int flags, int fd, off_t from), (at, n, access, flags, fd, from),
        MAP_FAILED, ENOMEM)
WRAPPED(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n), -1, ENOSPC)
WRAPPED(int, ftruncate, (int fd, off_t n), (fd, n), -1, EIO)
WRAPPED(int, flock, (int fd, int how), (fd, how), -1, ENOLCK)
WRAPPED(int, fsync, (int fd), (fd), -1, EIO)
WRAPPED(int, rename, (const char *from, const char *to), (from, to), -1, EIO)
WRAPPED(int, symlink, (const char *target, const char *path), (target, path), -1, EPERM)

/* What is not there fails anyway, and of what the machine tells of itself we can do without. */
FILE *__real_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode);
FILE *__wrap_fopen(const char *path, const char *mode) {
    if (strncmp(path, "/proc/", 6) == 0 || access(path, F_OK) != 0 || !fails("fopen")) return __real_fopen(path, mode);
    errno = EACCES;
    return NULL;
}

/* One that is there already is not missed. */
int __real_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode);
int __wrap_mkdir(const char *path, mode_t mode) {
    if (access(path, F_OK) == 0 || !fails("mkdir")) return __real_mkdir(path, mode);
    errno = EACCES;
    return -1;
}

/* Its third argument may not be there. */
int __real_open(const char *path, int flags, mode_t mode);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if (!fails("open")) return __real_open(path, flags, mode);
    errno = EACCES;
    return -1;
}

/* ---- what is tried ---- */

static char base[] = "/tmp/test_faults.XXXXXX";
static const ranks alone = {.size = 1, .local_size = 1};

typedef int (*command)(int argc, char **argv, const ranks *world, error *err);

/* Runs a command of the program with a line of arguments, in which @ stands for the directory of the test. */
static int call(command c, const char *line, error *err) {
    char text[1024], *argv[32];
    int argc = 0;
    size_t used = 0;
    for (const char *l = line; *l; l++)
        used += (size_t)snprintf(text + used, sizeof text - used, *l == '@' ? "%s" : "%.1s", *l == '@' ? base : l);
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) argv[argc++] = word;
    argv[argc] = NULL;
    return c(argc, argv, &alone, err);
}

#define RUN "@/small.yaml data.train=[@/data] data.heldout=[@/data]"

static int packs(error *err) { return call(data_command, "data pack @/packed @/text.txt --split lines", err); }
static int informs(error *err) { return call(data_command, "data info @/data --json", err); }
static int plans(error *err) { return call(plan_command, "plan " RUN " --json", err); }
static int inspects(error *err) { return call(inspect_command, "inspect @/good --verify --json", err); }
static int generates(error *err) { return call(generate_command, "generate @/good --prompt ab --n-tokens 2 --json", err); }
static int evaluates(error *err) { return call(eval_command, "eval @/good --data @/data", err); }
static int packs_many(error *err) { return call(data_command, "data pack @/data @/many.txt", err); }
static int trains(error *err) { return call(train_command, "train " RUN " checkpoint.dir=@/good", err); }
static int trains_anew(error *err) {
    char line[200];
    snprintf(line, sizeof line, "train " RUN " checkpoint.dir=@/run%d", the->chosen);
    return call(train_command, line, err);
}

/* A run's state made, saved and read again. */
static int keeps_state(error *err) {
    char config[64], saved[4096];
    run_config c;
    run_plan plan;
    run r;
    snprintf(config, sizeof config, "%s/good/config.yaml", base);
    if (run_config_read(&c, config, NULL, 0, err)) return -1;
    backend *b;
    int result = cpu_ops()->open(&b, 1, 0, err);
    if (result == 0 && (result = run_plan_make(&plan, &c, alone.size, cpu_ops(), b, err))) cpu_ops()->close(b);
    if (result == 0) result = run_open(&r, &c, &alone, &plan, cpu_ops(), b, false, err);
    if (result == 0) {
        result = run_init(&r, err);
        r.progress.tokenizer_hash = __real_strdup("");
        if (result == 0) result = run_save(&r, saved, err);
        if (result == 0) result = run_resume(&r, saved, err);
        run_close(&r);
    }
    run_config_free(&c);
    return result;
}

static int loads(error *err) {
    char prefix[64];
    snprintf(prefix, sizeof prefix, "%s/data", base);
    const char *prefixes[] = {prefix};
    const double weights[] = {1};
    loader_options o = {.n_sources = 1,
                        .prefixes = prefixes,
                        .weights = weights,
                        .seq_len = 16,
                        .rows_per_step = 2,
                        .vocab_size = 260,
                        .n_ranks = 1};
    loader *l;
    const token_batch *batch;
    double waited;
    if (loader_open(&l, &o, err)) return -1;
    int result = loader_next(l, &batch, &waited, err);
    loader_close(l);
    return result;
}

static void put(const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", base, name);
    FILE *file = __real_fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

/* In a directory that has what an earlier part of the run wrote. */
static int reports(error *err) {
    char name[32], file[64], directory[64];
    metrics *m;
    step_metrics step = {.step = 2, .n_steps = 2, .loss = 1};
    eval_metrics eval = {.step = 2, .prefix = "data", .loss = 1};
    snprintf(name, sizeof name, "metrics%d", the->chosen);
    snprintf(file, sizeof file, "%s/metrics.jsonl", name);
    snprintf(directory, sizeof directory, "%s/%s", base, name);
    __real_mkdir(directory, 0777);
    put(file, "{\"kind\": \"train\", \"step\": 1}\n");
    if (metrics_open(&m, directory, 1, false, err)) return -1;
    int result = metrics_step(m, &step, err) || metrics_eval(m, &eval, err) ? -1 : 0;
    metrics_close(m);
    return result;
}

/* ---- how it is tried ---- */

typedef struct scenario {
    const char *name;
    int (*run)(error *);
    bool aborts;          /* it ends the process where it fails, and is run in one of its own; some SAMPLE calls are tried */
    const char *survives; /* functions that it can do without, in its last calls */
} scenario;
enum { SAMPLE = 32, SECONDS = 30 };

static bool begins(const char *text, const char *with) { return strncmp(text, with, strlen(with)) == 0; }

/* Memory may also seem to be lacking because a damaged attribute of a checkpoint asks for too much of it. */
static bool is_due(const char *name, const error *err) {
    static const char *const memory[] = {"malloc", "calloc",  "realloc",        "aligned_alloc", "posix_memalign",
                                         "strdup", "strndup", "open_memstream", "pthread_create"};
    if (begins(name, "dnnl_")) return err->code == STATUS_INTERNAL || err->code == STATUS_RESOURCE;
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        if (strcmp(name, memory[i]) == 0)
            return err->code == STATUS_RESOURCE || (err->code == STATUS_INPUT && strstr(err->text, "the attribute `"));
    return err->code == STATUS_USAGE || err->code == STATUS_INPUT || err->code == STATUS_RESOURCE;
}

static void check_told(const scenario *s, int n, int result, const error *err) {
    if (result == 0) {
        if (!strstr(s->survives, the->name)) fail_msg("%s: call %d, %s, failed, and nobody noticed", s->name, n, the->name);
        return;
    }
    if (!err->text[0]) fail_msg("%s: call %d, %s, failed without a message", s->name, n, the->name);
    if (!is_due(the->name, err))
        fail_msg("%s: call %d, %s, failed with status %d: %s", s->name, n, the->name, (int)err->code, err->text);
}

/* The message of a process, which it wrote to a file, and once. */
static void read_message(const char *path, error *err) {
    static const char name[] = "mobilellm: ";
    char text[sizeof err->text] = "";
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    const char *begin = strstr(text, name);
    if (!begin || strstr(begin + 1, name)) fail_msg("expected one message: %s", text);
    snprintf(err->text, sizeof err->text, "%s", begin + strlen(name));
}

/* As the program does it. */
static int run_in_process(const scenario *s, error *err) {
    char path[64];
    snprintf(path, sizeof path, "%s/stderr", base);
    pid_t child = fork();
    if (child == 0) {
        alarm(SECONDS);
        if (!freopen(path, "w", stderr)) exit(100);
        int result = s->run(err);
        the->chosen = -1; /* what runs as a process ends is not of the scenario */
        if (result < 0) ranks_abort(&alone, err);
        exit(0);
    }
    int ended;
    assert_int_equal(waitpid(child, &ended, 0), child);
    if (!WIFEXITED(ended)) fail_msg("%s: call %d, %s: killed by signal %d", s->name, the->chosen, the->name, WTERMSIG(ended));
    the->chosen = -1;
    err->code = (status)WEXITSTATUS(ended);
    if (err->code == STATUS_OK) return 0;
    read_message(path, err);
    return -1;
}

/* With what the commands print sent away. */
static int run_with(const scenario *s, int n, error *err) {
    *err = (error){.code = STATUS_OK};
    fflush(stdout);
    int saved = dup(STDOUT_FILENO), nothing = open("/dev/null", O_WRONLY);
    dup2(nothing, STDOUT_FILENO);
    close(nothing);
    the->calls = 0;
    the->chosen = n;
    int result = s->aborts ? run_in_process(s, err) : s->run(err);
    the->chosen = -1;
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    return result;
}

static void every_failure_is_told(void **state) {
    const scenario *s = *state;
    error err;
    if (run_with(s, 0, &err)) fail_msg("%s: %s", s->name, err.text);
    int step = s->aborts && the->calls > SAMPLE ? the->calls / SAMPLE : 1;
    for (int n = step;; n += step) {
        int result = run_with(s, n, &err);
        if (the->calls < n) break;
        check_told(s, n, result, &err);
    }
}

static int make_files(void **state) {
    (void)state;
    setenv("OMP_NUM_THREADS", "1", 1); /* none to be lost when a process is forked */
    the = mmap(NULL, sizeof *the, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (the == MAP_FAILED || !mkdtemp(base)) return -1;
    the->chosen = -1;
    put("model.yaml", "{vocab_size: 260, n_layers: 1, d_model: 16, d_ffn: 16, n_heads: 2, n_kv_heads: 1, head_dim: 8}\n");
    put("small.yaml",
        "{model: model.yaml, init: {seed: 1}, batch: {tokens: 64, micro: 2}, train: {tokens: 128, log_every: 1},\n"
        " optimizer: {lr: 1e-3}, data: {train: [], seq_len: 16}, checkpoint: {dir: none}, dtype: f32}\n");
    put("text.txt", "One line, and\n\nanother one.\n");
    static char many[2000];
    memset(many, 'x', sizeof many - 1);
    put("many.txt", many);
    static const scenario packing = {"data pack", packs_many, false, ""}, training = {"train", trains, true, ""};
    error err;
    if (run_with(&packing, 0, &err) || run_with(&training, 0, &err)) fail_msg("%s", err.text);
    return 0;
}

static int remove_files(void **state) {
    (void)state;
    char line[64];
    snprintf(line, sizeof line, "rm -r %s", base);
    return system(line);
}

int main(void) {
    /* A checkpoint is there before older ones are looked for, to be removed. */
    static const scenario scenarios[] = {
        {"data pack", packs, false, ""},
        {"data info", informs, false, ""},
        {"plan", plans, false, ""},
        {"inspect", inspects, false, ""},
        {"generate", generates, false, ""},
        {"eval", evaluates, true, ""},
        {"train", trains_anew, true, "opendir realloc"},
        {"a run's state", keeps_state, false, "opendir realloc"},
        {"the loader", loads, false, ""},
        {"the metrics", reports, false, ""},
    };
    enum { N = sizeof scenarios / sizeof *scenarios };
    struct CMUnitTest tests[N];
    for (int i = 0; i < N; i++)
        tests[i] = (struct CMUnitTest){
            .name = scenarios[i].name, .test_func = every_failure_is_told, .initial_state = (void *)&scenarios[i]};
    return _cmocka_run_group_tests("every failure is told", tests, N, make_files, remove_files);
}
