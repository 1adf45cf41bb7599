/* roofline.h: how long a training step would take on GPUs that are not here: for each part, what it must compute and move over
 * what the device and its links reach. What `mobilellm plan --device h100 --ranks N` prints.
 *
 * One number is fitted, the rate of GEMMs of ideal shape: at 735 TFLOP/s the model gives within three points the MFU that LLM.Q
 * publishes for four networks on one H100 (tests/test_roofline.c). Expect errors of that size, and larger ones between nodes. */
#ifndef MOBILELLM_TRAIN_ROOFLINE_H
#define MOBILELLM_TRAIN_ROOFLINE_H

#include <stdio.h>

#include "train/run.h"

/* What a kind of GPU reaches, per second. */
typedef struct gpu_spec {
    const char *name, *text; /* "h100", "H100 SXM 80 GB" */
    double peak;             /* dense bf16 FLOP/s of the data sheet: what MFU is a share of */
    double gemm;             /* FLOP/s of bf16 GEMMs of ideal shape */
    double attention;        /* of its attention relative to an H100's */
    double stream;           /* bytes of memory that elementwise kernels move */
    double memory_bytes;
    int n_sm;
} gpu_spec;

/* NULL and an error that lists them if there is none of that name. */
const gpu_spec *gpu_spec_find(const char *name, error *err);

/* Between GPUs: bytes/s that a collective moves per GPU (what nccl-tests calls bus bandwidth), seconds of a hop. */
typedef struct link_spec {
    int node_size; /* GPUs of a node */
    double node_bandwidth, node_latency;
    double net_bandwidth, net_latency; /* a GPU's share of the network between nodes */
} link_spec;
extern const link_spec default_links; /* NVLink 4 and one 400 Gb/s adapter a GPU */

/* Bytes that depend on how weights and state are kept. */
typedef struct state_bytes {
    double gradient, adamw; /* of a gradient; read and written per parameter by the step's end */
} state_bytes;
extern const state_bytes default_state; /* fp32 gradients, master weights and moments, bf16 weights */

typedef enum step_part {
    STEP_GEMM_LAYERS,
    STEP_GEMM_HEAD,
    STEP_ATTENTION,
    STEP_ELEMENTWISE,
    STEP_CROSS_ENTROPY,
    STEP_EMBEDDING,
    STEP_ADAMW,
    STEP_COLLECTIVES, /* what of them no computation hides */
    STEP_HOST,
    N_STEP_TIMES
} step_part;

typedef struct step_estimate {
    double seconds[N_STEP_TIMES], total;
    double tokens_per_s, mfu; /* of all ranks; model FLOPs over peak */
} step_estimate;

/* A step of `rows` rows of T tokens on the rank with most of them, in micro-batches of `micro` rows; all ranks together have
 * step_tokens. */
typedef struct step_shape {
    int rows, micro, T, ranks;
    double step_tokens;
} step_shape;

step_estimate step_estimate_make(const gpu_spec *g, const link_spec *links, const state_bytes *state, const model_config *c,
                                 const step_shape *s);

/* The estimate of a planned run as a table, its assumptions, and the same run on 1 to 1,024 GPUs. */
void roofline_print(FILE *to, const gpu_spec *g, const link_spec *links, const run_config *c, const run_plan *plan);
char *roofline_json(const gpu_spec *g, const link_spec *links, const run_config *c, const run_plan *plan);

#endif
