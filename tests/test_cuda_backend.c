/* test_cuda_backend.c: a GPU as a device: opening, memory, copies, results, failures.
 *
 * With the argument "open" it opens the backend and prints what it says of itself, or why not: what machines without a GPU, or
 * with one that does not do, are told. The emulation (tests/emu) is such a machine when its environment says so. */
#include "op_testing.h"

#include <dlfcn.h>
#include <unistd.h>

#include "cuda/cuda.h"
#include "cuda/plan.h"

/* The tests of machines that are not this one run only where the GPU is emulated. */
static bool emulated(void) { return dlsym(RTLD_DEFAULT, "cuemu_room") != NULL; }

static void gpu_open(testing *t) {
    *t = (testing){.ops = cuda_ops()};
    error err = {0};
    if (t->ops->open(&t->b, 0, 0, &err)) fail_msg("%s", err.text);
}

static void *on_device(testing *t, size_t bytes) {
    error err = {0};
    void *memory = t->ops->alloc(t->b, bytes, &err);
    if (memory == NULL) fail_msg("%s", err.text);
    return memory;
}

/* ---- opening ---- */

static int open_and_tell(int local_rank) {
    const ops *op = cuda_ops();
    backend *b;
    error err;
    if (op->open(&b, 0, local_rank, &err)) {
        printf("%s\n", err.text);
        return err.code;
    }
    printf("%s\n", op->describe(b));
    op->close(b);
    return 0;
}

/* What this program says when it is run with the argument and variables of a shell. */
static int say(char *text, size_t size, const char *variables, const char *arguments) {
    char self[400], command[800];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(length > 0);
    self[length] = '\0';
    snprintf(command, sizeof command, "%s '%s' %s 2>&1", variables, self, arguments);
    FILE *out = popen(command, "r");
    assert_non_null(out);
    text[fread(text, 1, size - 1, out)] = '\0';
    return WEXITSTATUS(pclose(out));
}

/* Each machine that does not do is told what it lacks and what to do. */
static void unusable_machines_are_told_why(void **state) {
    (void)state;
    static const struct {
        const char *variables, *arguments, *expected[3];
    } machines[] = {
        {"CUEMU_DEVICES=0", "open 0", {"no NVIDIA driver", "Install one for CUDA", "device: cpu"}},
        {"CUEMU_CAPABILITY=7.5", "open 0", {"compute capability 7.5", "8.0 (A100) or later", "device: cpu"}},
        {"CUEMU_DEVICES=2", "open 2", {"this is rank 2 of its machine", "2 GPUs", "at most 2 ranks"}},
        {"CUEMU_DEVICES=1", "open 1", {"this is rank 1 of its machine", "1 GPU for us", "at most 1 rank on"}},
    };
    if (!emulated()) skip();
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) {
        char text[4000];
        int status_of = say(text, sizeof text, machines[i].variables, machines[i].arguments);
        if (status_of != STATUS_RESOURCE) fail_msg("%s: status %d, %s", machines[i].variables, status_of, text);
        for (int k = 0; k < 3; k++)
            if (strstr(text, machines[i].expected[k]) == NULL)
                fail_msg("%s: \"%s\" is not in: %s", machines[i].variables, machines[i].expected[k], text);
    }
}

/* Ranks take the GPUs of their machine in turn; where the launcher shows each rank one, that one. */
static void ranks_take_gpus_in_turn(void **state) {
    (void)state;
    char text[4000];
    if (!emulated()) skip();
    assert_int_equal(say(text, sizeof text, "CUEMU_DEVICES=3", "open 2"), 0);
    assert_int_equal(say(text, sizeof text, "CUEMU_DEVICES=1 CUDA_VISIBLE_DEVICES=3", "open 2"), 0);
    assert_int_equal(say(text, sizeof text, "CUEMU_DEVICES=1 CUDA_VISIBLE_DEVICES=2,3", "open 2"), STATUS_RESOURCE);
}

/* The banner names the GPU, its memory, the driver and the libraries. */
static void description_says_what_computes(void **state) {
    (void)state;
    testing t;
    gpu_open(&t);
    const char *text = t.ops->describe(t.b);
    print_message("%s\n", text);
    assert_int_equal(strncmp(text, t.b->name, strlen(t.b->name)), 0);
    assert_non_null(strstr(text, " SMs, "));
    assert_non_null(strstr(text, " GiB, driver "));
    assert_non_null(strstr(text, ", cuBLASLt 1"));
    error err = {0};
    assert_int_equal(t.ops->check_sizes(t.b, &(op_limits){.x = DTYPE_F32}, &err), 0);
    assert_int_equal(t.ops->check_sizes(t.b, &(op_limits){.x = DTYPE_BF16}, &err), 0);
    t.ops->close(t.b);
}

/* The peak is that of the data sheet, found by a whole word of the name; of unknown GPUs nothing is claimed. */
static void peaks_are_those_of_the_data_sheets(void **state) {
    (void)state;
    static const struct {
        const char *name;
        double bf16;
    } gpus[] = {{"NVIDIA H100 80GB HBM3", 989e12},
                {"NVIDIA H100 PCIe", 756e12},
                {"NVIDIA H100 NVL", 835e12},
                {"NVIDIA H200", 989e12},
                {"NVIDIA GH200 480GB", 989e12},
                {"NVIDIA A100-SXM4-80GB", 312e12},
                {"NVIDIA A10", 125e12},
                {"NVIDIA RTX A4000", 0},
                {"NVIDIA GB200", 2500e12},
                {"NVIDIA L40S", 362e12},
                {"NVIDIA GeForce GTX 1080", 0}};
    testing t;
    gpu_open(&t);
    for (size_t i = 0; i < sizeof gpus / sizeof *gpus; i++) {
        snprintf(t.b->name, sizeof t.b->name, "%s", gpus[i].name);
        double peak = t.ops->peak_flops(t.b, DTYPE_BF16);
        if (peak != gpus[i].bf16) fail_msg("%s: %g, expected %g", gpus[i].name, peak, gpus[i].bf16);
    }
    int khz = 0;
    t.b->n_sm = 108;
    t.b->capability = 80;
    assert_int_equal(cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, t.b->device), cudaSuccess);
    double peak = t.ops->peak_flops(t.b, DTYPE_F32), expected = 108 * 128 * 1e3 * khz; /* an A100's 19.5e12 at 1.41 GHz */
    if (fabs(peak - expected) > 1) fail_msg("f32: %g, expected %g", peak, expected);
    t.ops->close(t.b);
}

/* A build without CUDA plans with the scratch memory that one with it asks for, to a few percent; no GPU is needed for either. */
static void plans_are_those_of_a_build_without_cuda(void **state) {
    (void)state;
    for (int B = 1; B <= 64; B *= 4) {
        op_limits limits = {
            .x = DTYPE_BF16, .B = B, .T = 2048, .C = 1024, .F = 4096, .H = 32, .K = 8, .D = 64, .V = 202048, .head_rows = 8192};
        double asked = (double)cuda_ops()->scratch_bytes(NULL, &limits), planned = (double)cuda_planned_scratch(&limits);
        if (fabs(asked / planned - 1) > 0.05) fail_msg("B %d: %.0f bytes asked for, %.0f planned", B, asked, planned);
    }
}

/* ---- memory ---- */

/* Memory is aligned; none is no memory and no error; too much is an error that tells how much, how much there is and what to do.
 */
static void memory(void **state) {
    (void)state;
    testing t;
    gpu_open(&t);
    error err = {0};
    for (size_t bytes = 1; bytes < 10000000; bytes = bytes * 3 + 1) {
        void *block = on_device(&t, bytes);
        assert_int_equal((uintptr_t)block % 256, 0);
        t.ops->free(t.b, block);
    }
    assert_null(t.ops->alloc(t.b, 0, &err));
    assert_int_equal(err.code, STATUS_OK);
    t.ops->free(t.b, NULL);
    assert_null(t.ops->alloc(t.b, (size_t)1 << 50, &err));
    assert_int_equal(err.code, STATUS_RESOURCE);
    const char *const expected[] = {"refused 1048576.00 GiB", " GiB are free", "Ask for less", "nvidia-smi"};
    for (int i = 0; i < 4; i++)
        if (strstr(err.text, expected[i]) == NULL) fail_msg("\"%s\" is not in: %s", expected[i], err.text);
    assert_int_equal(t.ops->sync(t.b, &err), 0); /* and that was all that it did */
    t.ops->close(t.b);
}

static unsigned char pattern(size_t i, unsigned seed) { return (unsigned char)(i * 2654435761u >> 13 ^ seed); }

/* Copies and clears of any length touch exactly their bytes, in the order of the calls, whatever becomes of the host's arrays. */
static void copying_and_clearing(void **state) {
    (void)state;
    enum { ROOM = 21 << 20 }; /* five pieces and some: more than one is on its way */
    const size_t lengths[] = {0, 1, 255, 4 << 20, (4 << 20) + 1, (20 << 20) + 77};
    testing t;
    gpu_open(&t);
    unsigned char *host = new_bytes(&t, ROOM), *got = new_bytes(&t, ROOM);
    char *one = on_device(&t, ROOM), *two = on_device(&t, ROOM);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        size_t n = lengths[i], half = n / 2;
        for (size_t k = 0; k < ROOM; k++) host[k] = pattern(k, (unsigned)i);
        t.ops->copy_in(t.b, one, host, ROOM);
        t.ops->zero(t.b, two, ROOM);
        t.ops->copy(t.b, two, one, n);
        t.ops->zero(t.b, two, half);
        memset(host, 0xee, ROOM); /* the copy has been taken */
        t.ops->copy_in(t.b, one, host, n);
        memset(got, 0xdd, ROOM);
        t.ops->copy_out(t.b, got, two, n);
        for (size_t k = 0; k < n; k++)
            if (got[k] != (k < half ? 0 : pattern(k, (unsigned)i))) fail_msg("length %zu: byte %zu is 0x%02x", n, k, got[k]);
        for (size_t k = n; k < ROOM; k++)
            if (got[k] != 0xdd) fail_msg("length %zu: byte %zu was written", n, k);
        t.ops->copy_out(t.b, got, one, ROOM);
        for (size_t k = 0; k < ROOM; k++)
            if (got[k] != (k < n ? 0xee : pattern(k, (unsigned)i))) fail_msg("length %zu: byte %zu is 0x%02x", n, k, got[k]);
    }
    t.ops->free(t.b, one);
    t.ops->free(t.b, two);
    testing_close(&t);
}

/* Many small copies and a few large ones, more than the ring between host and device holds of either. */
static void the_ring_wraps_around(void **state) {
    (void)state;
    enum { SMALL = 1000, N_SMALL = 3000, LARGE = (5 << 20) + 13, N_LARGE = 17 };
    testing t;
    gpu_open(&t);
    unsigned char *host = new_bytes(&t, LARGE), *got = new_bytes(&t, LARGE);
    char *small = on_device(&t, SMALL * N_SMALL), *large = on_device(&t, LARGE);
    for (unsigned round = 0; round < N_LARGE; round++) {
        for (size_t k = 0; k < LARGE; k++) host[k] = pattern(k, round);
        t.ops->copy_in(t.b, large, host, LARGE);
        for (unsigned i = 0; round % 4 == 0 && i < N_SMALL; i++) {
            memset(host, (int)(i + round), SMALL);
            t.ops->copy_in(t.b, small + i * SMALL, host, SMALL);
        }
        memset(host, 0, LARGE);
        t.ops->copy_out(t.b, got, large, LARGE);
        for (size_t k = 0; k < LARGE; k++)
            if (got[k] != pattern(k, round)) fail_msg("round %u: byte %zu is 0x%02x", round, k, got[k]);
    }
    t.ops->copy_out(t.b, got, small, SMALL * N_SMALL);
    for (unsigned i = 0; i < N_SMALL; i++)
        for (unsigned k = 0; k < SMALL; k++)
            if (got[i * SMALL + k] != (unsigned char)(i + 16)) fail_msg("copy %u: byte %u is 0x%02x", i, k, got[i * SMALL + k]);
    t.ops->free(t.b, small);
    t.ops->free(t.b, large);
    testing_close(&t);
}

/* ---- results ---- */

/* What was posted is fetched in that order, as it was when it was posted, with up to eight open. */
static void results_come_in_the_order_of_the_posts(void **state) {
    (void)state;
    testing t;
    gpu_open(&t);
    error err = {0};
    double *device = on_device(&t, 64), host[8] = {0};
    for (int first = 0, next = 0, open = 1; first < 100; open = open % 8 + 1) {
        for (; next < first + open; next++) {
            for (int i = 0; i < 8; i++) host[i] = next + i * 1e-3;
            t.ops->copy_in(t.b, device, host, sizeof host);
            t.ops->post(t.b, device, (size_t)(next % 8 + 1) * sizeof *host);
            t.ops->zero(t.b, device, sizeof host);
        }
        for (; first < next; first++) {
            memset(host, 0xff, sizeof host);
            if (t.ops->fetch(t.b, host, (size_t)(first % 8 + 1) * sizeof *host, &err)) fail_msg("%s", err.text);
            for (int i = 0; i <= first % 8; i++)
                if (host[i] != first + i * 1e-3) fail_msg("result %d, value %d: %g", first, i, host[i]);
        }
    }
    t.ops->free(t.b, device);
    testing_close(&t);
}

/* ---- failures ---- */

/* The first failure is kept until sync or fetch tells it, once. */
static void the_first_failure_is_told_once(void **state) {
    (void)state;
    testing t;
    gpu_open(&t);
    error err = {0};
    void *device = on_device(&t, 8);
    int64_t result = 0;
    assert_int_equal(t.ops->sync(t.b, &err), 0);
    for (int by_fetch = 0; by_fetch < 2; by_fetch++) {
        cuda_fail(t.b, "first", "this");
        cuda_check(t.b, "second", cudaErrorInvalidValue);
        cuda_check(t.b, "third", cudaSuccess);
        t.ops->post(t.b, device, sizeof result);
        assert_int_equal(by_fetch ? t.ops->fetch(t.b, &result, sizeof result, &err) : t.ops->sync(t.b, &err), -1);
        assert_string_equal(err.text, "first: this");
        assert_int_equal(err.code, STATUS_INTERNAL);
        assert_int_equal(t.ops->sync(t.b, &err), 0);
        if (!by_fetch) assert_int_equal(t.ops->fetch(t.b, &result, sizeof result, &err), 0);
    }
    t.ops->free(t.b, device);
    testing_close(&t);
}

/* A call that the runtime refuses is told by its name and the reason, and does not stick to the calls after it. */
static void a_refused_call_is_told_and_forgotten(void **state) {
    (void)state;
    testing t;
    gpu_open(&t);
    error err = {0};
    cuda_check(t.b, "cudaSetDevice", cudaSetDevice(1000));
    assert_int_equal(t.ops->sync(t.b, &err), -1);
    assert_string_equal(err.text, "cudaSetDevice: invalid device ordinal");
    assert_int_equal(cudaPeekAtLastError(), cudaSuccess);
    assert_int_equal(t.ops->sync(t.b, &err), 0);
    testing_close(&t);
}

/* Work that fails on the device ends the wait for it, with a message. */
static int fail_on_the_device(void) {
    testing t;
    gpu_open(&t);
    error err = {0};
    char host[100] = {0}, *device = on_device(&t, sizeof host);
    for (int i = 0; i < 100; i++) t.ops->copy_in(t.b, device, host, sizeof host);
    t.ops->post(t.b, device, 8);
    int failed = t.ops->fetch(t.b, host, 8, &err);
    t.ops->copy_out(t.b, host, device, sizeof host); /* which does not wait for ever */
    printf("%s\n", failed ? err.text : "nothing failed");
    t.ops->close(t.b);
    return failed ? err.code : 0;
}

static void a_device_that_fails_does_not_hang_the_host(void **state) {
    (void)state;
    char text[4000];
    if (!emulated()) skip();
    assert_int_equal(say(text, sizeof text, "CUEMU_FAIL=20", "fail 0"), STATUS_INTERNAL);
    if (strstr(text, "illegal memory access") == NULL) fail_msg("%s", text);
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "open") == 0) return open_and_tell(atoi(argv[2]));
    if (argc == 3 && strcmp(argv[1], "fail") == 0) return fail_on_the_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(unusable_machines_are_told_why),
        cmocka_unit_test(ranks_take_gpus_in_turn),
        cmocka_unit_test(description_says_what_computes),
        cmocka_unit_test(peaks_are_those_of_the_data_sheets),
        cmocka_unit_test(plans_are_those_of_a_build_without_cuda),
        cmocka_unit_test(memory),
        cmocka_unit_test(copying_and_clearing),
        cmocka_unit_test(the_ring_wraps_around),
        cmocka_unit_test(results_come_in_the_order_of_the_posts),
        cmocka_unit_test(the_first_failure_is_told_once),
        cmocka_unit_test(a_refused_call_is_told_and_forgotten),
        cmocka_unit_test(a_device_that_fails_does_not_hang_the_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
