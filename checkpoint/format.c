/* format.c: the tables of a checkpoint's root attributes. */
#include "checkpoint/format.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

const format_attribute format_strings[FORMAT_N_STRINGS] = {
    {"model", offsetof(checkpoint_info, model)},
    {"config", offsetof(checkpoint_info, config)},
    {"tokenizer_hash", offsetof(checkpoint_info, tokenizer_hash)},
    {"lineage", offsetof(checkpoint_info, lineage)},
    {"created_by", offsetof(checkpoint_info, created_by)},
};

const format_attribute format_numbers[FORMAT_N_NUMBERS] = {
    {"step", offsetof(checkpoint_info, step)},
    {"tokens", offsetof(checkpoint_info, tokens)},
    {"samples", offsetof(checkpoint_info, samples)},
    {"skipped_steps", offsetof(checkpoint_info, skipped_steps)},
    {"nonfinite_in_a_row", offsetof(checkpoint_info, nonfinite_in_a_row)},
    {"optimizer_step", offsetof(checkpoint_info, optimizer_step)},
    {"data_seed", offsetof(checkpoint_info, data_seed)},
    {"seq_len", offsetof(checkpoint_info, seq_len)},
};

char **format_string(checkpoint_info *info, int i) { return (char **)((char *)info + format_strings[i].offset); }
int64_t *format_number(checkpoint_info *info, int i) { return (int64_t *)((char *)info + format_numbers[i].offset); }

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

uint32_t format_names_crc(const char **paths, int n) {
    uLong crc = crc32(0, NULL, 0);
    qsort(paths, (size_t)n, sizeof *paths, by_bytes);
    for (int i = 0; i < n; i++) {
        crc = crc32_z(crc, (const Bytef *)paths[i], strlen(paths[i]));
        crc = crc32_z(crc, (const Bytef *)"\n", 1);
    }
    return (uint32_t)crc;
}
