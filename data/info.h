/* info.h: what token files hold. */
#ifndef MOBILELLM_DATA_INFO_H
#define MOBILELLM_DATA_INFO_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "data/tokens.h"
#include "util/error.h"

typedef struct token_info {
    token_type type;
    int64_t n_sequences, n_documents, n_tokens;
    int64_t shortest, median, longest; /* tokens of a sequence; 0 without sequences. median: the lower one of an even number */
    token_card card;
    int32_t largest; /* id; -1: not looked for, or no token */
} token_info;

/* Describes a prefix, and refuses one whose card tells of other data. verify: reads every token; ids must lie in [0, vocab_size)
 * (0: the card's vocabulary, or any) and in the card's vocabulary, and the .bin must have the card's checksum. */
int token_info_read(token_info *info, const char *prefix, bool verify, int64_t vocab_size, error *err);

/* n prefixes as a table for people, and as JSON: an array of objects, null for what is not known. */
void token_info_print(FILE *to, const token_info *infos, const char *const *prefixes, int n);
int token_info_print_json(FILE *to, const token_info *infos, const char *const *prefixes, int n, error *err);

#endif
