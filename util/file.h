/* file.h: the parts of writing files that are easy to get wrong. */
#ifndef MOBILELLM_UTIL_FILE_H
#define MOBILELLM_UTIL_FILE_H

#include <stddef.h>

#include "util/error.h"

/* Writes all bytes at the file's position, or fails with the reason (a full disk). `path` is for the message. */
int file_write(int fd, const char *path, const void *data, size_t bytes, error *err);

/* Puts the bytes in the place of the file at path: a kill, or a failure, leaves the old file or the new one, whole. */
int file_replace(const char *path, const void *data, size_t bytes, error *err);

/* Makes the directory and its parents where they are missing. */
int file_make_directories(const char *path, error *err);

#endif
