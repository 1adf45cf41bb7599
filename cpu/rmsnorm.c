/* rmsnorm.c: RMSNorm fused with the residual addition before it, forward and backward, on the CPU.
 *
 * Both passes are bound by memory: a row is read once, stays in L1 for the second look that the mean asks for, and is written
 * once. The weight gradient is summed in blocks of tokens (see TOKEN_BLOCK). */
#include "cpu/cpu.h"
#include "cpu/vec.h"

size_t cpu_rmsnorm_scratch(const op_limits *limits) {
    return (size_t)cpu_token_blocks((int64_t)limits->B * limits->T) * (size_t)limits->C * sizeof(float);
}

/* h_out = h + delta */
static void add_row(void *h_out, const void *h, const void *delta, dtype x, int64_t row, int C) {
    float h_buffer[LINE], delta_buffer[LINE], out_buffer[LINE];
    for (int c = 0; c < C; c += LINE) {
        int n = line_length(c, C);
        const float *h_line = line_in(h_buffer, h, x, row + c, n), *delta_line = line_in(delta_buffer, delta, x, row + c, n);
        float *out = line_out(out_buffer, h_out, x, row + c);
#pragma omp simd
        for (int i = 0; i < n; i++) out[i] = h_line[i] + delta_line[i];
        line_close(out, h_out, x, row + c, n);
    }
}

static float sum_squares_row(const void *h, dtype x, int64_t row, int C) {
    float buffer[LINE], total = 0;
    for (int c = 0; c < C; c += LINE) {
        int n = line_length(c, C);
        const float *line = line_in(buffer, h, x, row + c, n);
#pragma omp simd reduction(+ : total)
        for (int i = 0; i < n; i++) total += line[i] * line[i];
    }
    return total;
}

/* y = h * rstd * w */
static void scale_row(void *y, const void *h, const void *w, float rstd, dtype x, int64_t row, int C) {
    float h_buffer[LINE], w_buffer[LINE], y_buffer[LINE];
    for (int c = 0; c < C; c += LINE) {
        int n = line_length(c, C);
        const float *h_line = line_in(h_buffer, h, x, row + c, n), *w_line = line_in(w_buffer, w, x, c, n);
        float *out = line_out(y_buffer, y, x, row + c);
#pragma omp simd
        for (int i = 0; i < n; i++) out[i] = h_line[i] * rstd * w_line[i];
        line_close(out, y, x, row + c, n);
    }
}

void cpu_rmsnorm_forward(backend *b, void *y, float *rstd, void *h_out, const void *h, const void *delta, const void *w,
                         float eps, dtype x, int64_t N, int C) {
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int64_t n = 0; n < N; n++) {
        int64_t row = n * C;
        if (delta) add_row(h_out, h, delta, x, row, C);
        const void *normed = delta ? h_out : h; /* read back: the rounded sum is what the backward pass will see */
        rstd[n] = 1.0f / sqrtf(sum_squares_row(normed, x, row, C) / (float)C + eps);
        scale_row(y, normed, w, rstd[n], x, row, C);
    }
}

/* The sum of dy*w * h over a row; dw += dy * h * rstd on the way. */
static float dot_row(float *dw, const void *dy, const void *h, const void *w, float rstd, dtype x, int64_t row, int C) {
    float dy_buffer[LINE], h_buffer[LINE], w_buffer[LINE], dot = 0;
    for (int c = 0; c < C; c += LINE) {
        int n = line_length(c, C);
        const float *dy_line = line_in(dy_buffer, dy, x, row + c, n), *h_line = line_in(h_buffer, h, x, row + c, n);
        const float *w_line = line_in(w_buffer, w, x, c, n);
        float *dw_line = dw + c;
#pragma omp simd reduction(+ : dot)
        for (int i = 0; i < n; i++) {
            float product = dy_line[i] * h_line[i];
            dot += product * w_line[i];
            dw_line[i] += product * rstd;
        }
    }
    return dot;
}

/* dh += rstd * (dy*w - h * pull) */
static void backward_row(void *dh, const void *dy, const void *h, const void *w, float rstd, float pull, dtype x, int64_t row,
                         int C) {
    float dh_buffer[LINE], dy_buffer[LINE], h_buffer[LINE], w_buffer[LINE];
    for (int c = 0; c < C; c += LINE) {
        int n = line_length(c, C);
        const float *dy_line = line_in(dy_buffer, dy, x, row + c, n), *h_line = line_in(h_buffer, h, x, row + c, n);
        const float *w_line = line_in(w_buffer, w, x, c, n);
        float *dh_line = line_open(dh_buffer, dh, x, row + c, n);
#pragma omp simd
        for (int i = 0; i < n; i++) dh_line[i] += rstd * (dy_line[i] * w_line[i] - h_line[i] * pull);
        line_close(dh_line, dh, x, row + c, n);
    }
}

void cpu_rmsnorm_backward(backend *b, void *dh, float *dw, const void *dy, const void *h, const float *rstd, const void *w,
                          bool accumulate, dtype x, int64_t N, int C) {
    int64_t blocks = cpu_token_blocks(N);
    float *partials = cpu_scratch(b, (size_t)blocks * (size_t)C * sizeof(float)); /* (blocks,C) */
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        float *partial = partials + block * C;
        memset(partial, 0, (size_t)C * sizeof(float));
        int64_t end = (block + 1) * TOKEN_BLOCK < N ? (block + 1) * TOKEN_BLOCK : N;
        for (int64_t n = block * TOKEN_BLOCK; n < end; n++) {
            float dot = dot_row(partial, dy, h, w, rstd[n], x, n * C, C);
            backward_row(dh, dy, h, w, rstd[n], dot / (float)C * rstd[n] * rstd[n], x, n * C, C);
        }
    }
    cpu_add_partials(b, dw, partials, blocks, C, C, accumulate);
}
