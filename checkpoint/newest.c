/* newest.c: finding the checkpoint to resume from.
 *
 * The file of the highest step, rather than the one `latest` names: a run killed between the rename and the link has both. */
#include <stdlib.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/directory.h"

/* Rank 0: the steps that have a file, with left-overs removed. */
static int candidates(const char *dir, int64_t **steps, int *n, error *err) {
    if (directory_steps(dir, steps, n, err)) return -1;
    return directory_clean(dir, err);
}

static int check(const char *path, const ranks *r, error *err) {
    checkpoint *c;
    if (checkpoint_open(&c, path, err)) return -1;
    int result = checkpoint_verify(c, r->rank, r->size, err);
    checkpoint_close(c);
    return result;
}

/* All ranks: 1 if the file is good, 0 if it is damaged, -1 if it cannot be told (no right to read it, no memory). */
static int judge(const char *path, const ranks *r, error *err) {
    int result = check(path, r, err);
    int64_t unknown = result != 0 && err->code != STATUS_INPUT;
    ranks_max_int64(r, &unknown, 1);
    if (ranks_share(r, result, err) == 0) return 1;
    if (unknown) return -1;
    error_prefix(err, "a checkpoint is passed over");
    if (r->rank == 0) ranks_warn(r, err);
    return 0;
}

int checkpoint_newest(const char *dir, const ranks *r, char path[4096], error *err) {
    int64_t *steps = NULL;
    int n = 0, found = 0;
    char temporary[PATH_SIZE];
    int result = ranks_share(r, r->rank == 0 ? candidates(dir, &steps, &n, err) : 0, err);
    ranks_broadcast(r, &n, sizeof n, 0);
    for (int i = 0; result == 0 && found == 0 && i < n; i++) {
        if (r->rank == 0) result = directory_names(path, temporary, dir, steps[i], err);
        result = ranks_share(r, result, err);
        if (result) break;
        ranks_broadcast(r, path, PATH_SIZE, 0);
        found = judge(path, r, err);
    }
    free(steps);
    if (found != 1) path[0] = '\0';
    return result || found < 0 ? -1 : 0;
}
