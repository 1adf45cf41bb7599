/* profile.h: where the time of a training step goes, part by part: what `mobilellm train --profile` shows.
 *
 * A profile stands between a run and its backend: a table of ops that forwards each call to the real one, waits for it, and
 * counts time, floating-point operations and bytes from the arguments. Neither ops nor model know of it, and a run without it
 * pays nothing. What is not an op (collectives, data, evaluation) is counted by profile_enter and profile_leave, which do nothing
 * on NULL.
 *
 * Operations are counted as model_flops_per_token does: attention as causality and window leave it, documents not taken into
 * account, the scores that its backward pass makes again not counted. Bytes: each array once for being read, once for being
 * written, whatever a cache saves or an op reads twice. */
#ifndef MOBILELLM_TRAIN_PROFILE_H
#define MOBILELLM_TRAIN_PROFILE_H

#include <stdio.h>

#include "model/model.h"
#include "ranks/ranks.h"

/* Products with the five matrices of a network, each in three passes, come first: PART_GEMM + 3 * matrix + pass. */
enum { N_MATRICES = 5, N_PASSES = 3 };
typedef enum gemm_pass { PASS_FORWARD, PASS_BACKWARD_INPUT, PASS_BACKWARD_WEIGHT } gemm_pass;
typedef enum profile_part {
    PART_GEMM,
    PART_ATTENTION_FORWARD = PART_GEMM + N_MATRICES * N_PASSES,
    PART_ATTENTION_BACKWARD,
    PART_EMBEDDING,
    PART_NORM,
    PART_QK_ROPE,
    PART_SWIGLU,
    PART_CROSS_ENTROPY,
    PART_REDUCTIONS, /* sums of losses and of squares, the clip factor */
    PART_ADAMW,
    PART_COPIES, /* copies, zeroing, conversions */
    PART_COLLECTIVES,
    PART_DATA, /* waiting for the loader */
    N_STEP_PARTS,
    PART_EVALUATION = N_STEP_PARTS, /* the last two lie between steps */
    PART_CHECKPOINT,
    N_PARTS
} profile_part;

typedef struct profile_total {
    int64_t calls;
    double seconds, flops, bytes;
} profile_total;

/* A matrix is known by its shape: (O,I), as the ops see it. */
typedef struct profile_matrix {
    const char *name;
    int64_t I, O;
} profile_matrix;

typedef struct profile {
    ops table;           /* what the run calls, with the profile itself for its backend */
    const ops *real;     /* what is called then */
    backend *backend;    /* the real one */
    int ways;            /* ranks in a collective */
    error failure;       /* the first one since the last sync */
    int depth;           /* of parts entered */
    double entered;      /* when the outermost was */
    bool warm;           /* past the first step */
    int64_t steps;       /* counted: all but the first, which builds what later ones use again */
    double step_seconds; /* of these, whole */
    profile_total parts[N_PARTS];
    profile_matrix matrices[N_MATRICES];
    double memory_speed; /* bytes/s read and written by `copy` on arrays that no cache holds */
} profile;

/* Wraps an open backend; measures the memory's speed, in a moment. *op and *b are replaced by the profile's, and closing that
 * closes both. */
int profile_open(profile **p, const model_config *c, const ops **op, backend **b, error *err);

/* What happens in between is counted as one part, ops included. Within another part it is that part's. */
void profile_enter(profile *p);
void profile_leave(profile *p, profile_part part, double bytes);

/* A step has ended that took so long. */
void profile_step(profile *p, double seconds);

/* "gate|up forward": the label of a part. Matrices of the same shape cannot be told apart, and share one: "qkv, gate|up". */
const char *profile_label(const profile *p, profile_part part, char text[64]);

/* Seconds of the counted steps that belong to no part. */
double profile_rest(const profile *p);

/* A table for people, and one JSON object, an allocated string. gemm_peak: FLOP/s of this rank, the bound of what multiplies
 * matrices; the memory's speed is that of the other ops. */
void profile_print(FILE *to, const profile *p, double gemm_peak);
char *profile_json(const profile *p, double gemm_peak);

#endif
