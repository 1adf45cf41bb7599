/* config.h: the shape of a network, as configs/models/ files and checkpoints say it. */
#ifndef MOBILELLM_MODEL_CONFIG_H
#define MOBILELLM_MODEL_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "ops.h"
#include "util/config.h"
#include "util/error.h"

typedef struct model_config {
    int64_t vocab_size;
    int n_layers, d_model, d_ffn, n_heads, n_kv_heads, head_dim;
    char *attention; /* one letter a layer: f full, w sliding window, s skip; never NULL once completed */
    int window;      /* keys a sliding-window layer sees, itself included */
    int qk_norm;     /* enum qk_norm */
    int rope;        /* enum rope_pairs */
    double rope_theta, norm_eps;
    bool tie_embeddings;
} model_config;

extern const config_key model_config_keys[];

/* Gives a config without an attention pattern the one that it means: full attention in all layers. */
int model_config_complete(model_config *c, error *err);

/* Checks a completed config: sizes within the schema's bounds (it may come from another format), divisible heads, even head_dim,
 * a pattern of n_layers letters f, w, s. `where` opens the message. */
int model_config_check(const model_config *c, const char *where, error *err);

/* Are these the same network? If not, *err says which key differs and how. The window counts only where a layer has one. */
int model_config_same(const model_config *a, const char *name_a, const model_config *b, const char *name_b, error *err);

/* The network's configuration read from a file of its own, completed and checked. */
int model_config_read(model_config *c, const char *path, error *err);
void model_config_free(model_config *c);

#endif
