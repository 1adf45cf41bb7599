/* folder_testing.h: a folder of a test program's own, in which it may write what it likes. Group fixtures make and remove it. */
#ifndef MOBILELLM_TESTS_FOLDER_TESTING_H
#define MOBILELLM_TESTS_FOLDER_TESTING_H

#include <stdio.h>
#include <stdlib.h>

enum { FOLDER_PATH = 128 };

static char folder[] = "/tmp/mobilellm_test.XXXXXX";

static inline int make_folder(void **state) {
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static inline int remove_folder(void **state) {
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static inline char *in_folder(char path[FOLDER_PATH], const char *name) {
    snprintf(path, FOLDER_PATH, "%s/%s", folder, name);
    return path;
}

#endif
