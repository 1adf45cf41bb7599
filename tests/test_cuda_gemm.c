/* test_cuda_gemm.c: the three products of a linear layer on the GPU, against double precision, and what is remembered of them. */
#include "gemm_testing.h"

#include <dirent.h>
#include <unistd.h>

#include "cuda/cuda.h"
#include "cuda/gemm.h"

/* ---- a GPU for a test ---- */

typedef struct gpu {
    testing t; /* its host memory */
    void *device[MAX_BLOCKS];
    int n;
} gpu;

static void gpu_open(gpu *g) {
    *g = (gpu){.t = {.ops = cuda_ops()}};
    error err = {0};
    op_limits limits = {.x = DTYPE_F32, .B = 1, .T = 16, .C = 64, .F = 64, .H = 1, .K = 1, .D = 32, .V = 64, .head_rows = 1};
    if (g->t.ops->open(&g->t.b, 0, 0, &err)) fail_msg("%s", err.text);
    size_t bytes = g->t.ops->scratch_bytes(g->t.b, &limits);
    g->t.scratch = g->t.ops->alloc(g->t.b, bytes, &err);
    assert_non_null(g->t.scratch);
    g->t.ops->set_scratch(g->t.b, g->t.scratch, bytes);
}

static void gpu_close(gpu *g) {
    for (int i = 0; i < g->n; i++) g->t.ops->free(g->t.b, g->device[i]);
    testing_close(&g->t);
}

/* Device memory that holds n elements, `shift` elements behind an aligned address. */
static void *on_device(gpu *g, const void *host, int64_t n, dtype x, int shift) {
    error err = {0};
    size_t size = dtype_size(x), bytes = (size_t)(n + shift) * size;
    char *memory = g->t.ops->alloc(g->t.b, bytes ? bytes : 1, &err);
    if (memory == NULL) fail_msg("%s", err.text);
    g->device[g->n++] = memory;
    g->t.ops->copy_in(g->t.b, memory + (size_t)shift * size, host, (size_t)n * size);
    return memory + (size_t)shift * size;
}

static void *to_host(gpu *g, const void *device, int64_t n, dtype x) {
    void *host = new_array(&g->t, n, x);
    g->t.ops->copy_out(g->t.b, host, device, (size_t)n * dtype_size(x));
    return host;
}

/* ---- the products ---- */

/* Tensor cores add in fp32, but cut off rather than round. */
static double fp32_error(dtype x) { return x == DTYPE_F32 ? 1e-6 : 1e-5; }

static void check_linear(gpu *g, int64_t N, int I, int64_t O, dtype x, int shift) {
    testing *t = &g->t;
    double *in = random_doubles(t, N * I, 1, 1), *w = random_doubles(t, O * I, 2, 1), *dy = random_doubles(t, N * O, 3, 1);
    double *start = random_doubles(t, O * I, 4, 1), e = fp32_error(x);
    void *x_in = on_device(g, array_of(t, in, N * I, x), N * I, x, shift),
         *x_w = on_device(g, array_of(t, w, O * I, x), O * I, x, shift);
    void *x_dy = on_device(g, array_of(t, dy, N * O, x), N * O, x, shift);
    float *nothing = new_floats(t, N * (I + O) + O * I); /* nothing of it may be read */
    for (int64_t i = 0; i < N * (I + O) + O * I; i++) nothing[i] = NAN;
    void *y = on_device(g, nothing, N * O, x, shift), *din = on_device(g, nothing, N * I, x, shift);
    float *dw = on_device(g, nothing, O * I, DTYPE_F32, shift);
    float *added = on_device(g, array_of(t, start, O * I, DTYPE_F32), O * I, DTYPE_F32, shift);

    t->ops->linear_forward(t->b, y, x_in, x_w, x, N, I, O);
    t->ops->linear_backward_input(t->b, din, x_dy, x_w, x, N, I, O);
    t->ops->linear_backward_weight(t->b, dw, x_dy, x_in, false, x, N, I, O);
    t->ops->linear_backward_weight(t->b, added, x_dy, x_in, true, x, N, I, O);

    check_close("y", to_host(g, y, N * O, x), product(t, in, I, 1, w, 1, I, N, I, O), N * O, x, e, sum_scale(I));
    check_close("din", to_host(g, din, N * I, x), product(t, dy, O, 1, w, I, 1, N, O, I), N * I, x, e, sum_scale(O));
    double *dw_expected = product(t, dy, 1, O, in, I, 1, O, N, I);
    check_close("dw", to_host(g, dw, O * I, DTYPE_F32), dw_expected, O * I, DTYPE_F32, e, sum_scale(N));
    for (int64_t i = 0; i < O * I; i++) dw_expected[i] += start[i];
    check_close("dw added", to_host(g, added, O * I, DTYPE_F32), dw_expected, O * I, DTYPE_F32, e, sum_scale(N));
}

/* Forward, backward to the input, weight gradients replaced and added, in sizes that fit no vector, at addresses that fit none.
 */
static void products_are_exact(void **state) {
    (void)state;
    for (int i = 0; i < 4 * N_SHAPES; i++) {
        gpu g;
        gpu_open(&g);
        check_linear(&g, shapes[i / 4].N, shapes[i / 4].I, shapes[i / 4].O, both_dtypes[i % 2], i / 2 % 2);
        gpu_close(&g);
    }
}

/* More shapes than are kept come and go; a shape that comes back gives the same. */
static void prepared_products_are_reused(void **state) {
    (void)state;
    gpu g;
    gpu_open(&g);
    float ones[600];
    for (int i = 0; i < 600; i++) ones[i] = 1;
    float *in = on_device(&g, ones, 600, DTYPE_F32, 0), *y = on_device(&g, ones, 300, DTYPE_F32, 0);
    for (int round = 0; round < 2; round++) {
        float w[2] = {1, (float)round}, *device_w = on_device(&g, w, 2, DTYPE_F32, 0), got[300];
        for (int64_t N = 1; N <= 300; N++) {
            g.t.ops->linear_forward(g.t.b, y, in, device_w, DTYPE_F32, N, 2, 1);
            g.t.ops->copy_out(g.t.b, got, y, (size_t)N * sizeof *got);
            for (int64_t n = 0; n < N; n++)
                if (got[n] != (float)(1 + round)) fail_msg("N %lld, row %lld: %g", (long long)N, (long long)n, (double)got[n]);
        }
    }
    gpu_close(&g);
}

/* Of no tokens the weight gradient is zero, or what it was; nothing is written of no outputs. */
static void sums_of_nothing_are_zero(void **state) {
    (void)state;
    const float start[6] = {1, 2, 3, 4, 5, 6}, zero[6] = {0};
    gpu g;
    gpu_open(&g);
    float *dw = on_device(&g, start, 6, DTYPE_F32, 0);
    for (int i = 0; i < 2; i++) {
        g.t.ops->linear_backward_weight(g.t.b, dw, dw, dw, true, both_dtypes[i], 0, 2, 3);
        assert_memory_equal(to_host(&g, dw, 6, DTYPE_F32), start, sizeof start);
        g.t.ops->linear_forward(g.t.b, dw, dw, dw, both_dtypes[i], 0, 2, 3);
        assert_memory_equal(to_host(&g, dw, 6, DTYPE_F32), start, sizeof start);
    }
    g.t.ops->linear_backward_weight(g.t.b, dw, dw, dw, false, DTYPE_BF16, 0, 2, 3);
    assert_memory_equal(to_host(&g, dw, 6, DTYPE_F32), zero, sizeof zero);
    gpu_close(&g);
}

/* ---- what is chosen, and remembered ---- */

static gemm_choice a_choice(int i) {
    gemm_choice c = {.shape = {.m = 1 + i, .n = (int64_t)1 << 33, .k = 4096, .a_transposed = i % 2, .b_transposed = i / 2 % 2}};
    c.shape.x = both_dtypes[i % 2];
    c.shape.out = both_dtypes[i / 2 % 2];
    for (int k = 0; k < 3; k++) c.shape.alignment[k] = 256 >> (i + k) % 9;
    for (int k = 0; k < 8; k++) c.algorithm.data[k] = rng_mix((uint64_t)i, (uint64_t)k);
    return c;
}

/* Choices read back are those written, and no byte of the file can change without the file being refused. */
static void choices_survive_their_file_and_damage_is_seen(void **state) {
    (void)state;
    enum { N = 70 };
    gemm_choices c = {.heading = "mobilellm gemm 1, a GPU, 4 SMs, cuBLASLt 130000"}, again = {0};
    strcpy(again.heading, c.heading);
    for (int i = 0; i < N; i++) {
        gemm_choice choice = a_choice(i);
        gemm_choices_add(&c, &choice);
        gemm_choices_add(&c, &choice); /* which replaces it */
        gemm_choices_save(&c);         /* nowhere */
    }
    assert_int_equal(c.n, N);
    char *text = gemm_choices_print(&c);
    assert_int_equal(gemm_choices_read(&again, text), 0);
    assert_int_equal(again.n, N);
    for (int i = 0; i < N; i++) {
        gemm_choice choice = a_choice(i);
        const gemm_choice *found = gemm_choices_find(&again, &choice.shape);
        assert_non_null(found);
        assert_memory_equal(&found->algorithm, &choice.algorithm, sizeof choice.algorithm);
        choice.shape.n++;
        assert_null(gemm_choices_find(&again, &choice.shape));
    }
    size_t length = strlen(text);
    for (size_t i = 0; i < length; i += i < 600 ? 1 : 37) {
        char before = text[i];
        for (int bit = 0; bit < 8; bit += 3) {
            text[i] = (char)(before ^ 1 << bit);
            if (gemm_choices_read(&again, text) == 0 && text[i] != '\0')
                fail_msg("byte %zu, 0x%02x instead of 0x%02x, is taken", i, (unsigned char)text[i], (unsigned char)before);
        }
        text[i] = before;
    }
    text[length - 1] = '\0';
    assert_int_equal(gemm_choices_read(&again, text), -1);
    assert_int_equal(again.n, 0);
    free(text);
    gemm_choices_close(&c);
    gemm_choices_close(&again);
}

static char cache[] = "/tmp/test_cuda_gemm.XXXXXX";

/* The one file in the cache, as text; "" if there is none. */
static void read_cache(char *path, char *text, size_t size) {
    char folder[64];
    snprintf(folder, sizeof folder, "%s/mobilellm", cache);
    DIR *entries = opendir(folder);
    text[0] = path[0] = '\0';
    for (struct dirent *e; entries && (e = readdir(entries));)
        if (e->d_name[0] != '.') snprintf(path, 400, "%s/%s", folder, e->d_name);
    if (entries) closedir(entries);
    FILE *file = *path ? fopen(path, "r") : NULL;
    if (file == NULL) return;
    text[fread(text, 1, size - 1, file)] = '\0';
    fclose(file);
}

/* y = in w^T: 300 terms a sum, so that its bits depend on the order in which they are added. */
enum { ROWS = 40, TERMS = 300, COLUMNS = 50 };
static float *multiply_once(gpu *g) {
    float *in = new_floats(&g->t, ROWS * TERMS), *w = new_floats(&g->t, COLUMNS * TERMS);
    rng_normal(in, 1, 0, ROWS * TERMS, 1);
    rng_normal(w, 2, 0, COLUMNS * TERMS, 1);
    void *device_in = on_device(g, in, ROWS * TERMS, DTYPE_F32, 0), *device_w = on_device(g, w, COLUMNS * TERMS, DTYPE_F32, 0);
    void *y = on_device(g, in, ROWS * COLUMNS, DTYPE_F32, 0);
    g->t.ops->linear_forward(g->t.b, y, device_in, device_w, DTYPE_F32, ROWS, TERMS, COLUMNS);
    return to_host(g, y, ROWS * COLUMNS, DTYPE_F32);
}

/* The bits of y in a run of its own. */
static void run_once(float y[ROWS * COLUMNS]) {
    gpu g;
    gpu_open(&g);
    memcpy(y, multiply_once(&g), ROWS * COLUMNS * sizeof *y);
    gpu_close(&g);
}

static void use_cache(const char *folder, const char *timing) {
    setenv("XDG_CACHE_HOME", folder, 1);
    setenv("MOBILELLM_GEMM_TIMING", timing, 1);
}

/* What was chosen by timing in one run is used by the next, which gives the same bits and leaves the file as it is. */
static void a_choice_by_timing_is_kept_for_the_next_run(void **state) {
    (void)state;
    char path[400], first[4000], again[4000];
    float y[ROWS * COLUMNS], y_again[ROWS * COLUMNS];
    use_cache(cache, "1");
    run_once(y);
    read_cache(path, first, sizeof first);
    if (strstr(first, "\ntn f32 f32 50 40 300 256 256 256 ") == NULL) fail_msg("%s: %s", path, first);
    run_once(y_again);
    read_cache(path, again, sizeof again);
    check_same_bits("y of the next run", y, y_again, ROWS * COLUMNS, DTYPE_F32);
    assert_string_equal(again, first);
    unlink(path);
}

/* A file that is damaged is not used, and replaced; where none can be written the run goes on. */
static void a_damaged_file_is_replaced(void **state) {
    (void)state;
    char path[400], first[4000], again[4000];
    float y[ROWS * COLUMNS];
    use_cache(cache, "1");
    run_once(y);
    read_cache(path, first, sizeof first);
    assert_int_equal(truncate(path, (off_t)strlen(first) - 5), 0);
    run_once(y);
    read_cache(path, again, sizeof again);
    assert_int_equal(strlen(again), strlen(first));
    unlink(path);
    use_cache("/proc/nothing", "1");
    run_once(y);
}

/* Trying out would add more than once: a sum that is first seen where it is added to takes the library's first proposal. */
static void what_is_added_to_is_not_tried_out(void **state) {
    (void)state;
    const float three = 3, start = 100;
    char path[400], text[4000];
    gpu g;
    use_cache(cache, "1");
    gpu_open(&g);
    float *in = on_device(&g, &three, 1, DTYPE_F32, 0), *dw = on_device(&g, &start, 1, DTYPE_F32, 0);
    for (int i = 0; i < 2; i++) g.t.ops->linear_backward_weight(g.t.b, dw, in, in, true, DTYPE_F32, 1, 1, 1);
    float got = *(float *)to_host(&g, dw, 1, DTYPE_F32);
    if (got != 118) fail_msg("100 + 2 * 3 * 3 is %g", (double)got);
    gpu_close(&g);
    read_cache(path, text, sizeof text);
    assert_string_equal(text, "");
}

/* Timing off: the library's first proposal, and no file. */
static void without_timing_nothing_is_written(void **state) {
    (void)state;
    char path[400], text[4000];
    float y[ROWS * COLUMNS];
    use_cache(cache, "0");
    run_once(y);
    read_cache(path, text, sizeof text);
    assert_string_equal(text, "");
}

static int remove_cache(void **state) {
    (void)state;
    char folder[64];
    snprintf(folder, sizeof folder, "%s/mobilellm", cache);
    rmdir(folder);
    return rmdir(cache);
}

int main(void) {
    if (mkdtemp(cache) == NULL) return 1;
    setenv("XDG_CACHE_HOME", cache, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_exact),
        cmocka_unit_test(prepared_products_are_reused),
        cmocka_unit_test(sums_of_nothing_are_zero),
        cmocka_unit_test(choices_survive_their_file_and_damage_is_seen),
        cmocka_unit_test(a_choice_by_timing_is_kept_for_the_next_run),
        cmocka_unit_test(a_damaged_file_is_replaced),
        cmocka_unit_test(what_is_added_to_is_not_tried_out),
        cmocka_unit_test(without_timing_nothing_is_written),
    };
    return cmocka_run_group_tests(tests, NULL, remove_cache);
}
