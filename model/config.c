/* config.c: the keys of a network's shape, and what the schema alone cannot check.
 *
 * The bounds in the schema are far above any model of this kind; they keep every product of two or three
 * sizes within 64 bits. */
#include "model/config.h"

#include <assert.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static const char *const qk_norms[] = {"none", "l2", "rms", NULL};       /* enum qk_norm */
static const char *const rope_choices[] = {"interleaved", "half", NULL}; /* enum rope_pairs */

#define AT(field) offsetof(model_config, field)
const config_key model_config_keys[] = {
    {"vocab_size", CONFIG_INT64, AT(vocab_size), .doc = "number of tokens", .min = 1, .max = 1 << 24},
    {"n_layers", CONFIG_INT, AT(n_layers), .doc = "number of layers", .min = 1, .max = 1024},
    {"d_model", CONFIG_INT, AT(d_model), .doc = "width of the residual stream", .min = 1, .max = 65536},
    {"d_ffn", CONFIG_INT, AT(d_ffn), .doc = "width of the feed-forward layers", .min = 1, .max = 1 << 20},
    {"n_heads", CONFIG_INT, AT(n_heads), .doc = "query heads", .min = 1, .max = 4096},
    {"n_kv_heads", CONFIG_INT, AT(n_kv_heads), .doc = "key and value heads; divides n_heads", .min = 1, .max = 4096},
    {"head_dim", CONFIG_INT, AT(head_dim), .doc = "width of a head; even", .min = 2, .max = 1024},
    {"attention", CONFIG_STRING, AT(attention), "null",
     .doc = "a letter per layer: f full, w sliding window, s skip; null: all f"},
    {"window", CONFIG_INT, AT(window), "256", .doc = "keys that a sliding-window layer sees, itself included", .max = 1 << 30},
    {"qk_norm", CONFIG_CHOICE, AT(qk_norm), "l2", .doc = "norm of queries and keys", .choices = qk_norms},
    {"rope", CONFIG_CHOICE, AT(rope), "interleaved", .doc = "how the rotary embedding pairs a head's elements",
     .choices = rope_choices},
    {"rope_theta", CONFIG_DOUBLE, AT(rope_theta), "500000", .doc = "base of the rotary embedding's wavelengths", .min = 1,
     .max = 1e12},
    {"norm_eps", CONFIG_DOUBLE, AT(norm_eps), "1.0e-5", .doc = "added to the mean square in every norm", .min = 1e-12,
     .max = 0.1},
    {"tie_embeddings", CONFIG_BOOL, AT(tie_embeddings), "true", .doc = "one matrix embeds tokens and predicts them"},
    {0}};
#undef AT

static double number_at(const model_config *c, const config_key *key) {
    const void *at = (const char *)c + key->offset;
    switch (key->kind) {
        case CONFIG_INT:
            return *(const int *)at;
        case CONFIG_INT64:
            return (double)*(const int64_t *)at;
        default:
            assert(key->kind == CONFIG_DOUBLE);
            return *(const double *)at;
    }
}

static bool is_number(const config_key *key) {
    return key->kind == CONFIG_INT || key->kind == CONFIG_INT64 || key->kind == CONFIG_DOUBLE;
}

/* The schema's ranges, for a config that was not read by it but came from another format. */
static int check_ranges(const model_config *c, const char *where, error *err) {
    for (const config_key *key = model_config_keys; key->name; key++) {
        if (!is_number(key)) continue;
        double value = number_at(c, key);
        if (!(value >= key->min && value <= key->max))
            return error_set(err, STATUS_USAGE, "%s: %s is %.15g, expected %.15g to %.15g", where, key->name, value, key->min,
                             key->max);
    }
    return 0;
}

static int check_attention(const model_config *c, const char *where, error *err) {
    size_t n = strlen(c->attention), good = strspn(c->attention, "fws");
    if (good < n)
        return error_set(err, STATUS_USAGE,
                         "%s: attention \"%s\" has '%c' for layer %zu, expected f (full), w (sliding window) or s (skip)", where,
                         c->attention, c->attention[good], good);
    if (n != (size_t)c->n_layers)
        return error_set(err, STATUS_USAGE, "%s: attention \"%s\" has %zu letters, expected one for each of the n_layers %d",
                         where, c->attention, n, c->n_layers);
    if (strchr(c->attention, 'w') && c->window < 1)
        return error_set(err, STATUS_USAGE,
                         "%s: window is %d, but layer %d has a sliding window (attention \"%s\"): expected at least 1", where,
                         c->window, (int)(strchr(c->attention, 'w') - c->attention), c->attention);
    return 0;
}

int model_config_check(const model_config *c, const char *where, error *err) {
    if (check_ranges(c, where, err)) return -1;
    if (c->n_heads % c->n_kv_heads)
        return error_set(
            err, STATUS_USAGE,
            "%s: n_heads %d is no multiple of n_kv_heads %d: every key and value head serves equally many query heads", where,
            c->n_heads, c->n_kv_heads);
    if (c->head_dim % 2)
        return error_set(err, STATUS_USAGE,
                         "%s: head_dim %d is odd, expected an even number: the rotary embedding turns pairs of elements", where,
                         c->head_dim);
    if (!c->attention) return error_set(err, STATUS_USAGE, "%s: attention is missing: a letter for each layer", where);
    return check_attention(c, where, err);
}

int model_config_complete(model_config *c, error *err) {
    if (c->attention || c->n_layers < 1) return 0;
    c->attention = malloc((size_t)c->n_layers + 1);
    if (!c->attention) return error_set(err, STATUS_RESOURCE, "no memory for a pattern of %d layers", c->n_layers);
    memset(c->attention, 'f', (size_t)c->n_layers);
    c->attention[c->n_layers] = '\0';
    return 0;
}

int model_config_same(const model_config *a, const char *name_a, const model_config *b, const char *name_b, error *err) {
    bool has_window = a->attention && strchr(a->attention, 'w');
    for (const config_key *key = model_config_keys; key->name; key++) {
        if (strcmp(key->name, "window") == 0 && !has_window) continue; /* it shapes nothing then */
        char in_a[1200], in_b[1200];                                   /* the longest pattern, of 1024 layers, fits */
        config_print_value(in_a, sizeof in_a, a, key);
        config_print_value(in_b, sizeof in_b, b, key);
        if (strcmp(in_a, in_b) == 0) continue;
        return error_set(err, STATUS_INPUT, "these are different networks: %s has %s %s, but %s has %s", name_a, key->name, in_a,
                         name_b, in_b);
    }
    return 0;
}

int model_config_read(model_config *c, const char *path, error *err) {
    if (config_read(c, model_config_keys, path, NULL, NULL, 0, err)) return -1;
    if (model_config_complete(c, err) || model_config_check(c, path, err)) {
        model_config_free(c);
        return -1;
    }
    return 0;
}

void model_config_free(model_config *c) { config_free(c, model_config_keys); }
