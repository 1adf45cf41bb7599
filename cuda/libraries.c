/* libraries.c: finds NVIDIA's libraries on this machine and opens them.
 *
 * The loader's own search comes first: it knows LD_LIBRARY_PATH and what the system has configured. The other places are those
 * where toolkits, pip and conda put the libraries without telling the loader. A file that is there and does not load (made for
 * another machine, or lacking a library of its own) is remembered: its reason is worth more than "not found". What was opened
 * stays so until the program ends, for these libraries have threads and exit handlers, which must not lose their code. */
#include "cuda/libraries.h"

#include <assert.h>
#include <dlfcn.h>
#include <glob.h>
#include <limits.h>
#include <link.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CUDA_MAJOR = CUDART_VERSION / 1000 };
#define TEXT_OF(x) #x
#define TEXT(x)    TEXT_OF(x)

static const struct known_library {
    const char *title, *file; /* file: %d is the major version of CUDA */
    const char *version_call, *package;
    int major; /* what the version must start with; 0: CUDA_MAJOR */
} known[N_LIBRARIES] = {
    [LIBRARY_CUBLASLT] = {"cuBLASLt", "libcublasLt.so.%d", "cublasLtGetVersion", "nvidia-cublas", 0},
    [LIBRARY_NCCL] = {"NCCL", "libnccl.so.2", "ncclGetVersion", "nvidia-nccl-cu%d", 2},
    [LIBRARY_CUDNN] = {"cuDNN", "libcudnn.so.9", "cudnnGetVersion", "nvidia-cudnn-cu%d", 9},
    [LIBRARY_NVRTC] = {"NVRTC", "libnvrtc.so.%d", "nvrtcVersion", "nvidia-cuda-nvrtc", 0},
};

/* What a search has come across, for its message. */
typedef struct search {
    const char *file;
    char looked_in[900];
    char reason[400]; /* of a file that was there and did not load */
} search;

static void note_place(search *s, const char *place) {
    size_t used = strlen(s->looked_in);
    snprintf(s->looked_in + used, sizeof s->looked_in - used, "%s%s", used ? ", " : "", place);
}

/* The file in this folder, which may be a pattern; NULL: none there, or none that loads. */
static void *open_in(search *s, const char *folder) {
    char pattern[PATH_MAX];
    glob_t found = {0};
    void *handle = NULL;
    note_place(s, folder);
    snprintf(pattern, sizeof pattern, "%s/%s", folder, s->file);
    if (glob(pattern, 0, NULL, &found)) return NULL;
    for (size_t i = 0; i < found.gl_pathc && handle == NULL; i++) {
        handle = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
        if (handle == NULL) snprintf(s->reason, sizeof s->reason, "%s", dlerror());
    }
    globfree(&found);
    return handle;
}

static void *open_below(search *s, const char *variable, const char *below) {
    const char *root = getenv(variable);
    char folder[PATH_MAX];
    if (root == NULL || *root == '\0') return NULL;
    snprintf(folder, sizeof folder, "%s/%s", root, below);
    return open_in(s, folder);
}

static void *open_beside_program(search *s) {
    char folder[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 8);
    if (length <= 0) return NULL;
    folder[length] = '\0';
    char *name = strrchr(folder, '/');
    strcpy(name, "/../lib"); /* 8 bytes, kept free above */
    return open_in(s, folder);
}

/* The loader says "NAME: cannot open shared object file" of a name that is nowhere; any other reason is of a file it found. */
static void *open_by_name(search *s) {
    void *handle = dlopen(s->file, RTLD_NOW | RTLD_LOCAL);
    const char *reason = handle ? NULL : dlerror(), *path = getenv("LD_LIBRARY_PATH");
    note_place(s, "the loader's path");
    if (path && *path) note_place(s, "LD_LIBRARY_PATH");
    if (reason && (strncmp(reason, s->file, strlen(s->file)) != 0 || strstr(reason, "No such file") == NULL))
        snprintf(s->reason, sizeof s->reason, "%s", reason);
    return handle;
}

static void *open_anywhere(search *s) {
    void *handle = open_by_name(s);
    if (!handle) handle = open_below(s, "CUDA_HOME", "lib64");
    if (!handle) handle = open_below(s, "CUDA_HOME", "lib");
    if (!handle) handle = open_in(s, "/usr/local/cuda/lib64");
    if (!handle) handle = open_beside_program(s);
    if (!handle) handle = open_below(s, "VIRTUAL_ENV", "lib/python3*/site-packages/nvidia/*/lib");
    if (!handle) handle = open_below(s, "CONDA_PREFIX", "lib");
    if (!handle) handle = open_below(s, "CONDA_PREFIX", "lib/python3*/site-packages/nvidia/*/lib");
    return handle;
}

int libraries_find(void **handle, const char *file, const char *title, const char *package, error *err) {
    search s = {.file = file};
    *handle = open_anywhere(&s);
    if (*handle) return 0;
    if (*s.reason) return error_set(err, STATUS_RESOURCE, "%s (%s) does not load: %s.", file, title, s.reason);
    return error_set(err, STATUS_RESOURCE,
                     "%s (%s) was not found. Looked in: %s.\n"
                     "Install it (`pip install %s` in an active Python environment, or from NVIDIA's packages for this\n"
                     "system), or name its folder in LD_LIBRARY_PATH.",
                     file, title, s.looked_in, package);
}

void libraries_path(char *path, size_t size, void *handle) {
    struct link_map *map = NULL;
    snprintf(path, size, "%s", dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 ? map->l_name : "");
}

/* ---- versions ---- */

/* Each library encodes its version in a number of its own form: 130100, 22809, 91900; NVRTC fills two ints. */
static void read_version(library which, void *call, int version[3]) {
    memset(version, 0, 3 * sizeof *version);
    if (which == LIBRARY_NVRTC) {
        ((int (*)(int *, int *))call)(&version[0], &version[1]);
        return;
    }
    size_t number = 0;
    if (which == LIBRARY_NCCL) {
        int code = 0;
        ((nccl_result(*)(int *))call)(&code);
        number = (size_t)code;
    } else {
        number = ((size_t(*)(void))call)();
    }
    size_t major = which == LIBRARY_CUDNN && number < 90000 ? 1000 : 10000; /* cuDNN 8 wrote 8907 */
    version[0] = (int)(number / major);
    version[1] = (int)(number % major / 100);
    version[2] = (int)(number % 100);
}

static int check_version(struct opened_library *opened, library which, error *err) {
    const struct known_library *k = &known[which];
    int version[3], major = k->major ? k->major : CUDA_MAJOR;
    void *call = dlsym(opened->handle, k->version_call);
    if (call == NULL)
        return error_set(err, STATUS_RESOURCE, "%s is not %s: it has no %s.", opened->path, k->title, k->version_call);
    read_version(which, call, version);
    snprintf(opened->version, sizeof opened->version, "%d.%d.%d", version[0], version[1], version[2]);
    if (version[0] == major) return 0;
    return error_set(err, STATUS_RESOURCE,
                     "%s is %s %s, and this program was compiled for %s %d (CUDA " TEXT(CUDART_VERSION) ").\n"
                     "Put the folder of the right one first in LD_LIBRARY_PATH.",
                     opened->path, k->title, opened->version, k->title, major);
}

/* ---- functions ---- */

typedef struct named_function {
    const char *name;
    size_t offset; /* of its pointer in libraries */
} named_function;

#define NAMED(result, name, arguments) {#name, offsetof(libraries, name)},
static const named_function cublaslt_functions[] = {CUBLASLT_FUNCTIONS(NAMED){NULL, 0}};
static const named_function nccl_functions[] = {NCCL_FUNCTIONS(NAMED){NULL, 0}};
static const named_function no_functions[] = {{NULL, 0}};

static int find_functions(libraries *l, library which, error *err) {
    const named_function *f = which == LIBRARY_CUBLASLT ? cublaslt_functions : no_functions;
    if (which == LIBRARY_NCCL) f = nccl_functions;
    for (; f->name; f++) {
        void *symbol = dlsym(l->of[which].handle, f->name);
        if (symbol == NULL)
            return error_set(err, STATUS_RESOURCE, "%s (%s %s) has no function %s: it is too old. Install a newer %s.",
                             l->of[which].path, known[which].title, l->of[which].version, f->name, known[which].title);
        memcpy((char *)l + f->offset, &symbol, sizeof symbol);
    }
    return 0;
}

/* ---- opening ---- */

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral" /* the formats are those of the table above */
static void file_and_package(char file[64], char package[64], library which) {
    snprintf(file, 64, known[which].file, CUDA_MAJOR);
    snprintf(package, 64, known[which].package, CUDA_MAJOR);
}
#pragma GCC diagnostic pop

int libraries_open(libraries *l, library which, error *err) {
    struct opened_library *opened = &l->of[which];
    char file[64], package[64];
    if (opened->handle) return 0;
    file_and_package(file, package, which);
    if (libraries_find(&opened->handle, file, known[which].title, package, err)) return -1;
    libraries_path(opened->path, sizeof opened->path, opened->handle);
    if (check_version(opened, which, err) == 0 && find_functions(l, which, err) == 0) return 0;
    *opened = (struct opened_library){0};
    return -1;
}

void *libraries_symbol(const libraries *l, library which, const char *name) {
    assert(l->of[which].handle);
    return dlsym(l->of[which].handle, name);
}

const char *libraries_name(char text[48], const libraries *l, library which) {
    const struct opened_library *opened = &l->of[which];
    snprintf(text, 48, "%s%s%s%s", opened->handle ? "" : "no ", known[which].title, opened->handle ? " " : "", opened->version);
    return text;
}

void libraries_report(FILE *to) {
    libraries l = {0};
    for (int i = 0; i < N_LIBRARIES; i++) {
        error err;
        int missing = libraries_open(&l, (library)i, &err);
        const char *places = missing ? strstr(err.text, " Looked in") : NULL; /* of no use where nothing is asked for */
        if (missing)
            fprintf(to, "  %-9s%.*s\n", known[i].title, (int)(places ? places - err.text : (long)strcspn(err.text, "\n")),
                    err.text);
        else
            fprintf(to, "  %-9s%s (%s)\n", known[i].title, l.of[i].version, l.of[i].path);
    }
}
