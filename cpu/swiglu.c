/* swiglu.c: the gated activation of the feed-forward network, forward and backward, on the CPU.
 *
 * Bound by memory. The backward pass reads gate, up and dy once and has everything at hand that the next two products need: the
 * gradients of gate and up, and y, which is cheaper to make again than to keep from the forward pass. */
#include "cpu/cpu.h"
#include "cpu/vec.h"

static inline float sigmoid(float a) { return 1.0f / (1.0f + vec_exp(-a)); }

void cpu_swiglu_forward(backend *b, void *y, const void *gate_up, dtype x, int64_t N, int F) {
#pragma omp parallel for num_threads(b->threads) schedule(static) collapse(2)
    for (int64_t n = 0; n < N; n++)
        for (int f = 0; f < F; f += LINE) {
            float gate_buffer[LINE], up_buffer[LINE], y_buffer[LINE];
            int length = line_length(f, F);
            const float *gate = line_in(gate_buffer, gate_up, x, n * 2 * F + f, length);
            const float *up = line_in(up_buffer, gate_up, x, n * 2 * F + F + f, length);
            float *out = line_out(y_buffer, y, x, n * F + f);
#pragma omp simd
            for (int i = 0; i < length; i++) out[i] = gate[i] * sigmoid(gate[i]) * up[i];
            line_close(out, y, x, n * F + f, length);
        }
}

void cpu_swiglu_backward(backend *b, void *gate_up, void *dy_y, dtype x, int64_t N, int F) {
#pragma omp parallel for num_threads(b->threads) schedule(static) collapse(2)
    for (int64_t n = 0; n < N; n++)
        for (int f = 0; f < F; f += LINE) {
            float gate_buffer[LINE], up_buffer[LINE], dy_buffer[LINE];
            int length = line_length(f, F);
            int64_t gate_at = n * 2 * F + f, up_at = gate_at + F, y_at = n * F + f;
            float *gate = line_open(gate_buffer, gate_up, x, gate_at, length);
            float *up = line_open(up_buffer, gate_up, x, up_at, length);
            float *dy = line_open(dy_buffer, dy_y, x, y_at, length);
#pragma omp simd
            for (int i = 0; i < length; i++) {
                float s = sigmoid(gate[i]), silu = gate[i] * s, d = dy[i];
                dy[i] = silu * up[i];
                gate[i] = d * up[i] * s * (1.0f + gate[i] * (1.0f - s));
                up[i] = d * silu;
            }
            line_close(gate, gate_up, x, gate_at, length);
            line_close(up, gate_up, x, up_at, length);
            line_close(dy, dy_y, x, y_at, length);
        }
}
