/* embedding.c: rows of the embedding matrix looked up, and their gradients added, on the CPU.
 *
 * A token occurs many times, so its gradients must not be added by two threads at once. Each thread takes all tokens but only
 * some of the columns: no locks, equal shares however the tokens are distributed, and the order of n for every sum. */
#include <assert.h>

#include "cpu/cpu.h"
#include "cpu/vec.h"

void cpu_embedding_forward(backend *b, void *y, const int32_t *tokens, const void *w, dtype x, int64_t N, int C) {
    size_t row = (size_t)C * dtype_size(x);
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int64_t n = 0; n < N; n++) {
        assert(tokens[n] >= 0);
        memcpy((char *)y + (size_t)n * row, (const char *)w + (size_t)tokens[n] * row, row);
    }
}

/* Columns per thread: whole cache lines, so that threads do not share one, and at most a line. */
static int slice_width(int C, int threads) {
    int floats_per_cache_line = 16;
    int width = (C + threads - 1) / threads;
    width = (width + floats_per_cache_line - 1) / floats_per_cache_line * floats_per_cache_line;
    return width < LINE ? width : LINE;
}

void cpu_embedding_backward(backend *b, float *dw, const void *dy, const int32_t *tokens, dtype x, int64_t N, int C,
                            int64_t first, int64_t V) {
    int width = slice_width(C, b->threads);
#pragma omp parallel for num_threads(b->threads) schedule(static)
    for (int c = 0; c < C; c += width) {
        float buffer[LINE];
        int length = C - c < width ? C - c : width;
        for (int64_t n = 0; n < N; n++) {
            if (tokens[n] < first || tokens[n] >= first + V) continue;
            const float *line = line_in(buffer, dy, x, n * C + c, length);
            float *to = dw + (tokens[n] - first) * C + c;
#pragma omp simd
            for (int i = 0; i < length; i++) to[i] += line[i];
        }
    }
}
