/* rmsnorm.cu: RMSNorm fused with the residual addition before it, forward and backward.
 *
 * Both passes are bound by memory, so each row is read once, all of its loads in flight together, and held in registers while its
 * mean is taken. A row is worked on by a team of threads: a warp, whose sums need no barriers, for rows of up to 2,048 bf16
 * numbers, and a block for longer ones. The weight gradient is summed by a block over a fixed number of tokens, and the blocks'
 * sums are added in order by a second kernel: its bits depend on N, not on the device. */
#include <assert.h>
#include <stdio.h>

#include "cuda/device.cuh"
#include "cuda/plan.h"

/* Packs that a thread holds of a row. */
template <typename A>
constexpr int PACKS = A::W == 1 ? 32 : 8;

constexpr int BLOCK = block_threads(128); /* teams of a warp share one */
constexpr int LONG_TEAM = 256;            /* threads for a long row; fewer would not hold it */

constexpr int MOST_C =
    CUDA_MOST_D_MODEL; /* what a block of LONG_TEAM holds in either format, in registers and in shared memory */

/* Threads of a block of teams of T. */
template <int T>
constexpr int BLOCK_OF = T == WARP ? BLOCK : T;

size_t cuda_rmsnorm_scratch(const op_limits *limits) {
    return (size_t)cuda_token_blocks((int64_t)limits->B * limits->T) * (size_t)limits->C * sizeof(float);
}

/* Calls f with the access that suits the rows and the size of team that holds one. */
template <typename F>
static void with_team(dtype x, bool wide, int C, F f) {
    with_access(x, wide, [&](auto a) {
        constexpr int held = PACKS<decltype(a)> * decltype(a)::W; /* by a thread */
        assert(C <= held * LONG_TEAM);
        if (C <= held * WARP)
            f(a, std::integral_constant<int, WARP>());
        else
            f(a, std::integral_constant<int, LONG_TEAM>());
    });
}

/* One row in registers: pack p of thread `lane` of its team holds the elements from (p * T + lane) * W on. */
template <typename A, int T>
__device__ __forceinline__ void load_row(pack<A> (&held)[PACKS<A>], const void *array, int64_t row, int lane, int C) {
#pragma unroll
    for (int p = 0; p < PACKS<A>; p++) {
        int c = (p * T + lane) * A::W;
        held[p] = c < C ? load_pack<A>(array, row + c) : zero_pack<A>();
    }
}

/* h_out = h + delta, rounded, which then is what is normed */
template <typename A, int T>
__device__ __forceinline__ void add_delta(pack<A> (&held)[PACKS<A>], void *h_out, const void *delta, int64_t row, int lane,
                                          int C) {
    pack<A> added[PACKS<A>];
    load_row<A, T>(added, delta, row, lane, C);
#pragma unroll
    for (int p = 0; p < PACKS<A>; p++) {
        float h[A::W], d[A::W];
        unpack<A>(h, held[p]);
        unpack<A>(d, added[p]);
#pragma unroll
        for (int i = 0; i < A::W; i++) h[i] += d[i];
        round_to(held[p].element, h);
        int c = (p * T + lane) * A::W;
        if (c < C) store_pack<A>(h_out, row + c, held[p]);
    }
}

template <typename A, int T>
__global__ void __launch_bounds__(BLOCK_OF<T>)
    rmsnorm_forward(void *y, float *__restrict__ rstd, void *h_out, const void *h, const void *delta, const void *__restrict__ w,
                    float eps, int64_t N, int C) {
    int64_t n = (int64_t)blockIdx.x * (BLOCK_OF<T> / T) + threadIdx.x / T;
    if (n >= N) return; /* all of a team */
    int lane = threadIdx.x % T;
    int64_t row = n * C;
    pack<A> held[PACKS<A>];
    load_row<A, T>(held, h, row, lane, C);
    if (delta) add_delta<A, T>(held, h_out, delta, row, lane, C);

    float squares = 0;
#pragma unroll
    for (int p = 0; p < PACKS<A>; p++)
#pragma unroll
        for (int i = 0; i < A::W; i++) squares += to_float(held[p].element[i]) * to_float(held[p].element[i]);
    float r = 1.0f / sqrtf(block_sum<T>(squares) / (float)C + eps);
    if (lane == 0) rstd[n] = r;

#pragma unroll
    for (int p = 0; p < PACKS<A>; p++) {
        int c = (p * T + lane) * A::W;
        if (c >= C) continue;
        float f[A::W], weight[A::W];
        unpack<A>(f, held[p]);
        load<A>(weight, w, c);
#pragma unroll
        for (int i = 0; i < A::W; i++) f[i] = f[i] * r * weight[i];
        store<A>(y, row + c, f);
    }
}

static bool takes(backend *b, int C) {
    char why[80];
    if (C <= MOST_C) return true;
    snprintf(why, sizeof why, "model.d_model is %d, and its kernels take at most %d", C, MOST_C);
    cuda_fail(b, "RMSNorm", why);
    return false;
}

void cuda_rmsnorm_forward(backend *b, void *y, float *rstd, void *h_out, const void *h, const void *delta, const void *w,
                          float eps, dtype x, int64_t N, int C) {
    if (!takes(b, C)) return;
    with_team(x, wide_rows(x, C, y, h_out, h, delta, w), C, [&](auto a, auto team) {
        typedef decltype(a) A;
        constexpr int T = decltype(team)::value;
        LAUNCH(b, (rmsnorm_forward<A, T>), blocks_of(N, BLOCK_OF<T> / T), BLOCK_OF<T>, 0, y, rstd, h_out, h, delta, w, eps, N, C);
    });
}

/* A row's part of dw, and the thread's share of dot = the sum of dy*w * h. */
template <typename A, int T>
__device__ __forceinline__ float dot_row(float *dw, const pack<A> (&dy)[PACKS<A>], const pack<A> (&h)[PACKS<A>],
                                         const void *__restrict__ w, float r, int lane, int C) {
    float dot = 0;
#pragma unroll
    for (int p = 0; p < PACKS<A>; p++) {
        int c = (p * T + lane) * A::W;
        if (c >= C) continue;
        float weight[A::W], sum[A::W];
        load<A>(weight, w, c);
        load<access<float, A::W>>(sum, dw, c);
#pragma unroll
        for (int i = 0; i < A::W; i++) {
            float product = to_float(dy[p].element[i]) * to_float(h[p].element[i]);
            dot += product * weight[i];
            sum[i] += product * r;
        }
        store<access<float, A::W>>(dw, c, sum);
    }
    return dot;
}

/* dh += r * (dy*w - h * pull) */
template <typename A, int T>
__device__ __forceinline__ void add_gradient(void *to, int64_t row, const pack<A> (&dh)[PACKS<A>], const pack<A> (&dy)[PACKS<A>],
                                             const pack<A> (&h)[PACKS<A>], const void *__restrict__ w, float r, float pull,
                                             int lane, int C) {
#pragma unroll
    for (int p = 0; p < PACKS<A>; p++) {
        int c = (p * T + lane) * A::W;
        if (c >= C) continue;
        float f[A::W], weight[A::W];
        unpack<A>(f, dh[p]);
        load<A>(weight, w, c);
#pragma unroll
        for (int i = 0; i < A::W; i++) f[i] += r * (to_float(dy[p].element[i]) * weight[i] - to_float(h[p].element[i]) * pull);
        store<A>(to, row + c, f);
    }
}

/* Block i takes the tokens of token block i, and writes its sum over them to partials[i]. A thread adds to numbers of its own in
 * shared memory, where registers would not be enough beside the rows. */
template <typename A, int T>
__global__ void __launch_bounds__(BLOCK_OF<T>, T == WARP ? 2 : 1)
    rmsnorm_backward(void *dh, float *__restrict__ partials /* (blocks,C) */, const void *__restrict__ dy,
                     const void *__restrict__ h, const float *__restrict__ rstd, const void *__restrict__ w, int64_t N, int C) {
    DYN_SMEM(float, sums); /* (teams,C) */
    constexpr int teams = BLOCK_OF<T> / T;
    int team = threadIdx.x / T, lane = threadIdx.x % T;
    int64_t first = (int64_t)blockIdx.x * TOKEN_BLOCK, end = first + TOKEN_BLOCK < N ? first + TOKEN_BLOCK : N;
    float *dw = sums + team * C;
    for (int c = lane * A::W; c < C; c += T * A::W) store<access<float, A::W>>(dw, c, {});
    for (int64_t n = first + team; n < end; n += teams) {
        int64_t row = n * C;
        pack<A> dy_row[PACKS<A>], h_row[PACKS<A>], dh_row[PACKS<A>];
        load_row<A, T>(dy_row, dy, row, lane, C);
        load_row<A, T>(h_row, h, row, lane, C);
        load_row<A, T>(dh_row, dh, row, lane, C);
        float r = rstd[n];
        float dot = block_sum<T>(dot_row<A, T>(dw, dy_row, h_row, w, r, lane, C));
        add_gradient<A, T>(dh, row, dh_row, dy_row, h_row, w, r, dot / (float)C * r * r, lane, C);
    }
    __syncthreads();
    for (int c = threadIdx.x; c < C; c += BLOCK_OF<T>) {
        float total = 0;
        for (int i = 0; i < teams; i++) total += sums[i * C + c];
        partials[(int64_t)blockIdx.x * C + c] = total;
    }
}

void cuda_rmsnorm_backward(backend *b, void *dh, float *dw, const void *dy, const void *h, const float *rstd, const void *w,
                           bool accumulate, dtype x, int64_t N, int C) {
    if (!takes(b, C)) return;
    int64_t blocks = cuda_token_blocks(N);
    float *partials = (float *)cuda_scratch(b, (size_t)blocks * (size_t)C * sizeof(float));
    with_team(x, wide_rows(x, C, dh, dy, h, w), C, [&](auto a, auto team) {
        typedef decltype(a) A;
        constexpr int T = decltype(team)::value;
        size_t sums = sizeof(float) * BLOCK_OF<T> / T * (size_t)C;
        LAUNCH(b, (rmsnorm_backward<A, T>), (unsigned)blocks, BLOCK_OF<T>, sums, dh, partials, dy, h, rstd, w, N, C);
    });
    cuda_add_partials(b, dw, partials, blocks, C, C, accumulate);
}
