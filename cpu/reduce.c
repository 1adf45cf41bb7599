/* reduce.c: sums and conversions between number formats, on the CPU.
 *
 * Sums are taken in double over fixed parts of the array, whose totals are added in order: their bits depend on n only. */
#include "cpu/cpu.h"
#include "cpu/vec.h"

enum { PARTS = 512 }; /* enough for any number of cores, and their totals fit on the stack */

/* Part i of n elements starts here: whole lines, so that loops stay aligned. */
static int64_t part_start(int64_t i, int64_t n) {
    int64_t lines = (n + LINE - 1) / LINE, start = lines * i / PARTS * LINE;
    return start < n ? start : n;
}

static double add_values(const float *values, int64_t n) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += (double)values[i];
    return total;
}

static double add_squares(const float *values, int64_t n) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < n; i++) total += (double)values[i] * (double)values[i];
    return total;
}

static double add_parts(backend *b, double (*add)(const float *, int64_t), const float *values, int64_t n) {
    double totals[PARTS], total = 0;
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int i = 0; i < PARTS; i++) totals[i] = add(values + part_start(i, n), part_start(i + 1, n) - part_start(i, n));
    for (int i = 0; i < PARTS; i++) total += totals[i];
    return total;
}

void cpu_sum(backend *b, double *total, const float *values, int64_t n) { *total += add_parts(b, add_values, values, n); }

void cpu_sum_squares(backend *b, double *total, const float *values, int64_t n) {
    *total += add_parts(b, add_squares, values, n);
}

void cpu_add_partials(backend *b, float *dw, const float *partials, int64_t n_partials, int64_t stride, int n, bool accumulate) {
    enum { COLUMNS = 128 }; /* few enough that every thread has some */
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int c = 0; c < n; c += COLUMNS) {
        float total[COLUMNS] = {0};
        int length = n - c < COLUMNS ? n - c : COLUMNS;
        for (int64_t p = 0; p < n_partials; p++) {
            const float *partial = partials + p * stride + c;
#pragma omp simd
            for (int i = 0; i < length; i++) total[i] += partial[i];
        }
        for (int i = 0; i < length; i++) dw[c + i] = accumulate ? dw[c + i] + total[i] : total[i];
    }
}

void cpu_to_float(backend *b, float *y, const void *in, dtype x, int64_t n) {
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int64_t at = 0; at < n; at += LINE) {
        int length = line_length(at, n);
        if (x == DTYPE_F32)
            memcpy(y + at, (const float *)in + at, (size_t)length * sizeof *y);
        else
            line_in(y + at, in, x, at, length);
    }
}

void cpu_from_float(backend *b, void *y, const float *in, dtype x, int64_t n) {
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int64_t at = 0; at < n; at += LINE) {
        int length = line_length(at, n);
        if (x == DTYPE_F32)
            memcpy((float *)y + at, in + at, (size_t)length * sizeof *in);
        else
            line_close(in + at, y, x, at, length);
    }
}
