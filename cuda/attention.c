/* attention.c: attention by cuDNN where it has a plan for the shape, by our own kernels otherwise, and the memory of both.
 *
 * cuDNN is asked in bf16, for rows of one document, and head sizes that are multiples of 8; packed documents are our own
 * kernels'. Its backward pass that gives the same bits each time sums dq of every 128 keys in memory of its own, in proportion to
 * T^2: 285 MB for a row of 2,048 positions and 32 heads of 64. So it takes as many rows at once as WORKSPACE has room for, and if
 * that is none, our own backward pass, which needs no such memory, runs. The plans of the largest shapes are made when scratch
 * memory is planned, those for fewer rows when they come first: half a second of the host each.
 *
 * The environment variable MOBILELLM_ATTENTION says `own` or `cudnn`, for tests and comparisons: one of them always, and with
 * cudnn a failure where it refuses what it would have been asked for. */
#include "cuda/attention.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/attention_cudnn.h"
#include "cuda/plan.h"
#include "util/arena.h"

enum { WORKSPACE = CUDA_ATTENTION_WORKSPACE }; /* bytes that a plan may run with */
enum { MAX_PLANS = 256 };                      /* shapes of a run: each window and number of rows, forward and backward */

/* What cuDNN has said to a shape. */
typedef struct answer {
    cudnn_shape shape; /* of the whole call */
    cudnn_plan *plan;  /* for `rows` of its B rows at once; NULL: refused */
    int rows;
} answer;

struct attention_plans {
    bool only_cudnn;
    cudnn_attention *cudnn; /* NULL: our own kernels only */
    char absent[200];       /* why it is */
    int n;
    answer answers[MAX_PLANS];
    char refused[400];     /* what cuDNN refused first, and why; "": nothing */
    bool by_cudnn;         /* some call was its */
    char own[400];         /* why the first call that was not, was not; "": all were */
    char description[600]; /* of all that */
};

#ifdef MOBILELLM_CUDNN
static const cudnn_functions *const cudnn = &attention_by_cudnn;
#else
static const cudnn_functions *const cudnn = NULL;
#endif

/* ---- opening ---- */

static int open_cudnn(backend *b, error *err) {
    error none;
    if (!cudnn) return error_set(err, STATUS_RESOURCE, "this program was built without cuDNN's headers (see make setup-cuda)");
    (void)libraries_open(b->libraries, LIBRARY_NVRTC, &none); /* cuDNN opens it by its bare name, and so finds this one */
    if (libraries_open(b->libraries, LIBRARY_CUDNN, err)) return -1;
    return cudnn->open(&b->attention->cudnn, b->libraries, b->stream, err);
}

/* Where the library was looked for, and what to install, is of no use to who does not need it. */
static void keep_first_sentence(char *kept, size_t size, const char *text) {
    const char *dot = strstr(text, ". ");
    size_t length = strcspn(text, "\n");
    if (dot && (size_t)(dot - text) < length) length = (size_t)(dot - text);
    snprintf(kept, size, "%.*s", (int)length, text);
}

int cuda_attention_open(backend *b, error *err) {
    const char *wish = getenv("MOBILELLM_ATTENTION");
    bool own = wish && strcmp(wish, "own") == 0, only_cudnn = wish && strcmp(wish, "cudnn") == 0;
    if (wish && *wish && !own && !only_cudnn)
        return error_set(err, STATUS_USAGE, "MOBILELLM_ATTENTION is \"%s\", and can be own or cudnn, or not set", wish);
    b->attention = calloc(1, sizeof *b->attention);
    if (b->attention == NULL) return error_set(err, STATUS_RESOURCE, "no memory for the CUDA backend");
    b->attention->only_cudnn = only_cudnn;
    error why;
    if (own) snprintf(why.text, sizeof why.text, "MOBILELLM_ATTENTION is own");
    if (!own && open_cudnn(b, &why) == 0) return 0;
    if (only_cudnn) return error_set(err, STATUS_RESOURCE, "MOBILELLM_ATTENTION is cudnn: %s", why.text);
    keep_first_sentence(b->attention->absent, sizeof b->attention->absent, why.text);
    return 0;
}

void cuda_attention_close(backend *b) {
    struct attention_plans *plans = b->attention;
    if (plans == NULL) return;
    for (int i = 0; i < plans->n; i++)
        if (plans->answers[i].plan) cudnn->destroy(plans->answers[i].plan);
    if (plans->cudnn) cudnn->close(plans->cudnn);
    free(plans);
    b->attention = NULL;
}

const char *cuda_attention_describe(backend *b) {
    struct attention_plans *plans = b->attention;
    char version[48];
    const char *cudnn_is = plans->by_cudnn ? libraries_name(version, b->libraries, LIBRARY_CUDNN) : "";
    snprintf(plans->description, sizeof plans->description, "%s%s%s%s", cudnn_is, *cudnn_is && *plans->own ? "; " : "",
             *plans->own ? "our own kernels: " : "", plans->own);
    return plans->description;
}

/* ---- cuDNN ---- */

static int refuse(struct attention_plans *plans, const cudnn_shape *s, const char *why) {
    if (*plans->refused == '\0')
        snprintf(plans->refused, sizeof plans->refused, "the %s pass of B %d T %d H %d K %d D %d window %d: %.200s",
                 s->backward ? "backward" : "forward", s->B, s->T, s->H, s->K, s->D, s->window, why);
    return 0;
}

/* A plan for as many rows at once as have room in `most` bytes, the same number in each run. Returns them, 0: refused. */
static int plan_rows(struct attention_plans *plans, const cudnn_shape *whole, size_t most, cudnn_plan **plan) {
    error err;
    cudnn_shape s = *whole;
    *plan = cudnn->plan(plans->cudnn, &s, &err);
    if (*plan && cudnn->workspace(*plan) > most) {
        size_t a_row = cudnn->workspace(*plan) / (size_t)s.B;
        do s.B--;
        while (s.B > 0 && (whole->B % s.B != 0 || (size_t)s.B * a_row > most));
        cudnn->destroy(*plan);
        *plan = s.B > 0 ? cudnn->plan(plans->cudnn, &s, &err) : NULL;
        if (s.B == 0)
            error_set(&err, STATUS_RESOURCE, "cuDNN needs %.0f MB for each row, more than %.0f", (double)a_row * 1e-6,
                      (double)most * 1e-6);
    }
    if (*plan && cudnn->workspace(*plan) > most) {
        error_set(&err, STATUS_RESOURCE, "cuDNN needs %.0f MB, more than %.0f", (double)cudnn->workspace(*plan) * 1e-6,
                  (double)most * 1e-6);
        cudnn->destroy(*plan);
        *plan = NULL;
    }
    return *plan ? s.B : refuse(plans, whole, err.text);
}

static bool same_shape(const cudnn_shape *a, const cudnn_shape *b) {
    return a->backward == b->backward && a->B == b->B && a->T == b->T && a->H == b->H && a->K == b->K && a->D == b->D &&
           a->window == b->window;
}

/* What cuDNN says to the shape, asked once; NULL: it has been asked too much. */
static const answer *ask(struct attention_plans *plans, const cudnn_shape *s, size_t most) {
    for (int i = 0; i < plans->n; i++)
        if (same_shape(&plans->answers[i].shape, s)) return &plans->answers[i];
    if (plans->n == MAX_PLANS) return NULL;
    answer *a = &plans->answers[plans->n++];
    a->shape = *s;
    a->rows = plan_rows(plans, s, most, &a->plan);
    return a;
}

/* Why cuDNN is not asked; NULL: it is. */
static const char *not_asked(const struct attention_plans *plans, bool documents, dtype x, int D) {
    if (x != DTYPE_BF16) return "cuDNN is asked in bf16 only";
    if (documents) return "rows of several documents (data.mask_documents)";
    if (D % 8 != 0) return "cuDNN takes heads whose size is a multiple of 8";
    return plans->cudnn ? NULL : plans->absent;
}

/* The plan of a call, or NULL: our own kernels. */
static const answer *choose(backend *b, bool backward, const attention *a, const int32_t *doc, dtype x) {
    struct attention_plans *plans = b->attention;
    const char *why = not_asked(plans, doc != NULL, x, a->D);
    cudnn_shape s = {backward, a->B, a->T, a->H, a->K, a->D, a->window};
    const answer *said = why ? NULL : ask(plans, &s, b->scratch_bytes < WORKSPACE ? b->scratch_bytes : WORKSPACE);
    if (said && said->plan) {
        plans->by_cudnn = true;
        return said;
    }
    if (!why) why = said ? plans->refused : "more shapes than plans are kept of";
    if (*plans->own == '\0') snprintf(plans->own, sizeof plans->own, "%s", why);
    if (plans->only_cudnn && x == DTYPE_BF16 && !doc) cuda_fail(b, "MOBILELLM_ATTENTION is cudnn", why);
    return NULL;
}

static void *rows_from(const void *array, int64_t rows, int64_t row_bytes) { return (char *)array + rows * row_bytes; }

static void run_forward(backend *b, const answer *said, const attention *a, void *o, float *lse, const void *qkv) {
    error err;
    int64_t qkv_row = a->T * a->row * 2, o_row = (int64_t)a->T * a->H * a->D * 2, lse_row = (int64_t)a->T * a->H * 4;
    for (int row = 0; row < a->B; row += said->rows)
        if (cudnn->forward(said->plan, rows_from(o, row, o_row), rows_from(lse, row, lse_row), rows_from(qkv, row, qkv_row),
                           b->scratch, &err))
            cuda_fail(b, "attention", err.text);
}

static void run_backward(backend *b, const answer *said, const attention *a, void *dqkv, const void *d_o, const void *o,
                         const float *lse, const void *qkv) {
    error err;
    int64_t qkv_row = a->T * a->row * 2, o_row = (int64_t)a->T * a->H * a->D * 2, lse_row = (int64_t)a->T * a->H * 4;
    for (int row = 0; row < a->B; row += said->rows)
        if (cudnn->backward(said->plan, rows_from(dqkv, row, qkv_row), rows_from(d_o, row, o_row), rows_from(o, row, o_row),
                            rows_from(lse, row, lse_row), rows_from(qkv, row, qkv_row), b->scratch, &err))
            cuda_fail(b, "attention", err.text);
}

/* ---- both ---- */

/* What our own kernels share between them. */
typedef struct statistics {
    int32_t *first, *last; /* (B,T) */
    float *delta;          /* (B,H,T) */
} statistics;

static statistics allocate(arena *memory, int B, int T, int H) {
    size_t N = (size_t)B * (size_t)T;
    statistics s;
    s.first = arena_alloc(memory, "attention", N * sizeof *s.first);
    s.last = arena_alloc(memory, "attention", N * sizeof *s.last);
    s.delta = arena_alloc(memory, "attention", N * (size_t)H * sizeof *s.delta);
    return s;
}

static int keys_seen(int window, int T) { return window > 0 && window < T ? window : T; }

/* The largest calls of a run: each pass of each kind of layer. Returns how many. */
static int largest_calls(cudnn_shape calls[4], const op_limits *l) {
    int n = 0;
    for (int backward = 0; backward <= (int)l->training; backward++) {
        if (l->full) calls[n++] = (cudnn_shape){backward, l->B, l->T, l->H, l->K, l->D, l->T};
        if (l->window) calls[n++] = (cudnn_shape){backward, l->B, l->T, l->H, l->K, l->D, keys_seen(l->window, l->T)};
    }
    return n;
}

static size_t cudnn_workspace(struct attention_plans *plans, const op_limits *limits) {
    cudnn_shape calls[4];
    int n = not_asked(plans, limits->documents, limits->x, limits->D) ? 0 : largest_calls(calls, limits);
    size_t most = 0;
    for (int i = 0; i < n; i++) {
        const answer *said = ask(plans, &calls[i], WORKSPACE);
        if (said && said->plan && cudnn->workspace(said->plan) > most) most = cudnn->workspace(said->plan);
    }
    return most;
}

size_t cuda_attention_scratch(const backend *b, const op_limits *limits) {
    if (limits->K == 0) return 0;
    arena dry = arena_dry();
    allocate(&dry, limits->B, limits->T, limits->H);
    size_t workspace = b ? cudnn_workspace(b->attention, limits) : cuda_planned_cudnn(limits);
    return workspace > dry.peak ? workspace : dry.peak;
}

int cuda_attention_check(const backend *b, const op_limits *limits, error *err) {
    struct attention_plans *plans = b->attention;
    cudnn_shape calls[4];
    if (limits->D <= ATTENTION_MAX_D) return 0;
    const char *why = not_asked(plans, limits->documents, limits->x, limits->D);
    for (int i = 0, n = largest_calls(calls, limits); i < n; i++) {
        const answer *said = why ? NULL : ask(plans, &calls[i], WORKSPACE);
        if (said && said->plan) continue;
        return error_set(
            err, STATUS_USAGE,
            "model.head_dim: found %d, and our attention kernels for GPUs take at most %d. cuDNN, which may take more,\n"
            "does not run it here: %s. Use smaller heads, or device: cpu.",
            limits->D, ATTENTION_MAX_D,
            said  ? plans->refused
            : why ? why
                  : "too many shapes");
    }
    return 0;
}

static attention call_of(int window, int B, int T, int H, int K, int D) {
    attention a = {.B = B, .T = T, .H = H, .K = K, .D = D, .window = keys_seen(window, T)};
    a.row = (int64_t)(H + 2 * K) * D;
    a.scale = 1.0f / sqrtf((float)D);
    return a;
}

/* Memory for our own kernels, and the bounds of documents found. False, and the failure kept: not a head size of theirs. */
static bool begin_own(backend *b, attention *a, statistics *s, const int32_t *doc) {
    if (a->D > ATTENTION_MAX_D) {
        char why[80];
        snprintf(why, sizeof why, "model.head_dim is %d, and the CUDA backend takes at most %d", a->D, ATTENTION_MAX_D);
        cuda_fail(b, "attention", why);
        return false;
    }
    arena scratch = arena_on(b->scratch, b->scratch_bytes);
    *s = allocate(&scratch, a->B, a->T, a->H);
    if (doc) {
        cuda_attention_bounds(b, s->first, s->last, doc, a);
        a->first = s->first, a->last = s->last;
    }
    return true;
}

void cuda_attention_forward(backend *b, void *o, float *lse, const void *qkv, const int32_t *doc, int window, dtype x, int B,
                            int T, int H, int K, int D) {
    attention a = call_of(window, B, T, H, K, D);
    statistics s;
    const answer *said = choose(b, false, &a, doc, x);
    if (said) {
        run_forward(b, said, &a, o, lse, qkv);
        return;
    }
    if (!begin_own(b, &a, &s, doc)) return;
    if (x == DTYPE_F32)
        cuda_attention_forward_f32(b, o, lse, qkv, &a);
    else
        cuda_attention_forward_bf16(b, o, lse, qkv, &a);
}

void cuda_attention_backward(backend *b, void *dqkv, const void *d_o, const void *o, const float *lse, const void *qkv,
                             const int32_t *doc, int window, dtype x, int B, int T, int H, int K, int D) {
    attention a = call_of(window, B, T, H, K, D);
    statistics s;
    const answer *said = choose(b, true, &a, doc, x);
    if (said) {
        run_backward(b, said, &a, dqkv, d_o, o, lse, qkv);
        return;
    }
    if (!begin_own(b, &a, &s, doc)) return;
    cuda_attention_delta(b, s.delta, d_o, o, x, &a);
    if (x == DTYPE_F32)
        cuda_attention_backward_f32(b, dqkv, d_o, lse, s.delta, qkv, &a);
    else
        cuda_attention_backward_bf16(b, dqkv, d_o, lse, s.delta, qkv, &a);
}
