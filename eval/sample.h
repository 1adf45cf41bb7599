/* sample.h: draws the next token from a row of logits. */
#ifndef MOBILELLM_EVAL_SAMPLE_H
#define MOBILELLM_EVAL_SAMPLE_H

#include <stdint.h>

typedef struct sample_options {
    double temperature; /* logits are divided by it; 0: always the most likely token */
    int top_k;          /* only the k most likely tokens; 0: all */
    double top_p;       /* then only the most likely ones that together have at least this share of what is left; 1: all */
    uint64_t seed;
} sample_options;

typedef struct sample_candidate {
    float logit;
    int32_t token;
} sample_candidate;

/* A token of softmax(logits / temperature), restricted by top_k, then top_p [Holtzman et al. 2020] to at least one token and
 * renormalised. Tokens of equal logits rank by their numbers, the lowest first. A pure function of its arguments: (seed,
 * position) picks the random number, so that a text does not depend on what else is generated. A logit of -inf, or NaN, is never
 * drawn; one of +inf always is. Returns -1 if no logit can be drawn: the model is broken. */
int32_t sample_token(const float *logits,       /* (V) */
                     sample_candidate *scratch, /* (V) */
                     int32_t V, const sample_options *options, uint64_t position);

#endif
