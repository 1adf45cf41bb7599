/* test_embedding.c: looking up rows of the embedding matrix, and adding their gradients. */
#include "op_testing.h"

enum { N = 133, V = 11 }; /* every token occurs many times */

static const int widths[] = {1, 24, 65, 1500, 2100}; /* less than a cache line, more than a line a thread */
enum { N_WIDTHS = sizeof widths / sizeof *widths };

static void draw_tokens(int32_t *tokens) {
    for (int n = 0; n < N; n++) tokens[n] = (int32_t)(rng_mix(1, (uint64_t)n) % V);
}

/* The rows of the tokens, bit by bit. */
static void forward_copies_rows(void **state) {
    (void)state;
    int32_t tokens[N];
    draw_tokens(tokens);
    for (int i = 0; i < 2 * N_WIDTHS; i++) {
        dtype x = both_dtypes[i % 2];
        int C = widths[i / 2];
        testing t;
        testing_open(&t, 2);
        char *w = array_of(&t, random_doubles(&t, V * C, 1, 1), V * C, x), *y = new_array(&t, N * C, x);
        t.ops->embedding_forward(t.b, y, tokens, w, x, N, C);
        size_t row = (size_t)C * dtype_size(x);
        for (int n = 0; n < N; n++) check_same_bits("row", y + (size_t)n * row, w + (size_t)tokens[n] * row, C, x);
        testing_close(&t);
    }
}

/* dw has the bits of a plain loop over n, with any number of threads. */
static void backward_adds_in_the_order_of_n(void **state) {
    (void)state;
    int32_t tokens[N];
    draw_tokens(tokens);
    for (int i = 0; i < 2 * 3 * N_WIDTHS; i++) {
        dtype x = both_dtypes[i % 2];
        int threads = 1 + i / 2 % 3, C = widths[i / 6];
        testing t;
        testing_open(&t, threads);
        double *dy = random_doubles(&t, N * C, 1, 1), *start = random_doubles(&t, V * C, 2, 1);
        void *x_dy = array_of(&t, dy, N * C, x);
        float *dw = array_of(&t, start, V * C, DTYPE_F32), *expected = copy_of(&t, dw, V * C, DTYPE_F32);
        for (int n = 0; n < N; n++)
            for (int c = 0; c < C; c++) expected[tokens[n] * C + c] += (float)dy[n * C + c];
        t.ops->embedding_backward(t.b, dw, x_dy, tokens, x, N, C, 0, V);
        check_same_bits("dw", dw, expected, V * C, DTYPE_F32);
        testing_close(&t);
    }
}

/* Tokens before and behind the rows that dw has, and negative ones, add nothing; the others keep their order. */
static void backward_leaves_out_tokens_of_other_rows(void **state) {
    (void)state;
    enum { C = 65, FIRST = 3, ROWS = 4 };
    int32_t tokens[N];
    draw_tokens(tokens);
    for (int n = 0; n < N; n += 7) tokens[n] = -1;
    testing t;
    testing_open(&t, 2);
    double *dy = random_doubles(&t, N * C, 1, 1), *start = random_doubles(&t, V * C, 2, 1);
    float *x_dy = array_of(&t, dy, N * C, DTYPE_F32), *whole = array_of(&t, start, V * C, DTYPE_F32);
    float *rows = copy_of(&t, whole + FIRST * C, ROWS * C, DTYPE_F32);
    t.ops->embedding_backward(t.b, whole, x_dy, tokens, DTYPE_F32, N, C, 0, V);
    t.ops->embedding_backward(t.b, rows, x_dy, tokens, DTYPE_F32, N, C, FIRST, ROWS);
    check_same_bits("rows", rows, whole + FIRST * C, ROWS * C, DTYPE_F32);
    testing_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_copies_rows),
        cmocka_unit_test(backward_adds_in_the_order_of_n),
        cmocka_unit_test(backward_leaves_out_tokens_of_other_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
