/* gemm_testing.h: shapes of linear layers and their products in double precision, for the tests of both backends. */
#ifndef MOBILELLM_TESTS_GEMM_TESTING_H
#define MOBILELLM_TESTS_GEMM_TESTING_H

#include "op_testing.h"

static const struct shape {
    int64_t N;
    int I;
    int64_t O;
} shapes[] = {{1, 24, 65}, {7, 65, 11}, {33, 24, 1003}, {64, 128, 96}, {130, 257, 33}, {5, 24, 2050}, {1, 1, 1}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

/* c[i][j] = sum over k of a[i][k] b[k][j], read through strides */
static inline double *product(testing *t, const double *a, int64_t a_row, int64_t a_column, const double *b, int64_t b_row,
                              int64_t b_column, int64_t rows, int64_t inner, int64_t columns) {
    double *c = new_doubles(t, rows * columns);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            double sum = 0;
            for (int64_t k = 0; k < inner; k++) sum += a[i * a_row + k * a_column] * b[k * b_row + j * b_column];
            c[i * columns + j] = sum;
        }
    return c;
}

/* The terms are products of unit normals: their sum grows as the root of their number, its fp32 error a little faster. */
static inline double sum_scale(int64_t terms) { return 4 * sqrt((double)terms) + 4; }

#endif
