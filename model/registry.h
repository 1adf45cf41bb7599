/* registry.h: the table of a network's tensors, from which allocation, initialisation, optimizer groups, shards, checkpoints and
 * pruning all read. Names are those of Hugging Face.
 *
 * Tensors lie in one flat array, in the order of the table: q, k, v of a layer next to each other, gate and up too, so that each
 * is one GEMM. The array is cut into buckets, the units of reduction and sharding: a bucket lies within one layer (or the
 * embedding, or the head), and its size is a multiple of ways * 64, so that each of `ways` ranks owns an equal part of every
 * bucket. Of the embedding a rank owns whole rows. */
#ifndef MOBILELLM_MODEL_REGISTRY_H
#define MOBILELLM_MODEL_REGISTRY_H

#include "model/config.h"

typedef enum axis { AXIS_NONE, AXIS_VOCAB, AXIS_D_MODEL, AXIS_D_FFN, AXIS_Q_HEADS, AXIS_KV_HEADS, AXIS_HEAD_DIM } axis;
typedef enum init_kind { INIT_NORMAL, INIT_RESIDUAL, INIT_ONES } init_kind; /* RESIDUAL: normal / sqrt(2 n_layers) */

typedef struct tensor {
    char name[96];
    int layer; /* -1: embedding, final norm, head */
    int n_axes;
    int64_t shape[2];
    axis axes[2];
    init_kind init;
    bool decay;            /* matrices only */
    int64_t offset, count; /* elements, in the flat array */
} tensor;

/* Groups become final one after the other in backward: the head (final norm, untied head), layers from the last, the embedding.
 */
typedef struct bucket {
    int group;             /* 0 embedding, 1 + layer, 1 + n_layers: head */
    int64_t offset, count; /* elements; count is a multiple of ways * 64 */
} bucket;

typedef struct registry {
    tensor *tensors;
    int n_tensors;
    bucket *buckets;
    int n_buckets;
    int ways;
    int64_t n_params; /* of the network, padding not counted */
    int64_t n_flat;   /* elements of the flat array */
} registry;

int registry_build(registry *r, const model_config *c, int ways, error *err);
void registry_free(registry *r);
const tensor *registry_find(const registry *r, const char *name); /* NULL if there is none */

/* The elements that one rank owns, tensor by tensor: the optimizer's work list, and what a rank writes into a checkpoint. */
typedef struct piece {
    int tensor;    /* index into tensors */
    int64_t first; /* within the tensor */
    int64_t count;
    int64_t flat;  /* where they lie in the flat array */
    int64_t shard; /* where they lie in the rank's own array, which holds its part of bucket 0, then of bucket 1, ... */
} piece;

/* The pieces of `rank` of r->ways, in the order of the flat array: *pieces is allocated, the count is returned (-1: no memory).
 */
int registry_pieces(const registry *r, int rank, piece **pieces);

/* Elements of a rank's own array (the same for each). */
int64_t registry_shard_size(const registry *r);

/* Parameters by part: embedding, head, attention, ffn, norms. */
typedef struct param_counts {
    int64_t embedding, head, attention, ffn, norms, total;
} param_counts;
param_counts registry_count(const registry *r);

#endif
