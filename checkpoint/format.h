/* format.h: the names in a checkpoint file, in one place for the writer and the reader. docs/checkpoint.md explains them. */
#ifndef MOBILELLM_CHECKPOINT_FORMAT_H
#define MOBILELLM_CHECKPOINT_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "checkpoint/checkpoint.h"

#define FORMAT_NAME "mobilellm.c checkpoint"
enum { FORMAT_VERSION = 1 };

#define FORMAT_TRAIN      "history/train"
#define FORMAT_HELDOUT    "history/heldout"
#define FORMAT_CRC        "crc32"          /* attribute of each dataset */
#define FORMAT_N_DATASETS "n_datasets"     /* attributes of the root ... */
#define FORMAT_NAMES_CRC  "datasets_crc32" /* ... which a file that lost a dataset contradicts */
#define FORMAT_CONFIG_CRC "config_crc32"

/* Attributes of the root, and where each is in a checkpoint_info. */
typedef struct format_attribute {
    const char *name;
    size_t offset;
} format_attribute;

enum { FORMAT_N_STRINGS = 5, FORMAT_N_NUMBERS = 8 };
extern const format_attribute format_strings[FORMAT_N_STRINGS];
extern const format_attribute format_numbers[FORMAT_N_NUMBERS];

char **format_string(checkpoint_info *info, int i);
int64_t *format_number(checkpoint_info *info, int i);

/* The CRC-32 of the paths, sorted by their bytes, each followed by a line feed. Sorts the array. */
uint32_t format_names_crc(const char **paths, int n);

#endif
