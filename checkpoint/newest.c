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

/* All ranks. What only shows as the file is opened is damage as much as what `take` finds. */
static int try_file(const char *path, const ranks *r, checkpoint_take *take, void *context, error *err) {
    checkpoint *c;
    int result = checkpoint_open(&c, path, err);
    if (result && err->code == STATUS_INPUT) result = CHECKPOINT_DAMAGED;
    result = checkpoint_share(r, result, err);
    if (result == 0) result = take(context, c, err);
    checkpoint_close(c);
    return result;
}

static void pass_over(const ranks *r, error *err) {
    error_prefix(err, "a checkpoint is passed over");
    if (r->rank == 0) ranks_warn(r, err);
}

/* All ranks: the name that rank 0 gives the file of a step. */
static int name_file(char path[PATH_SIZE], const char *dir, int64_t step, const ranks *r, error *err) {
    char temporary[PATH_SIZE];
    if (ranks_share(r, r->rank == 0 ? directory_names(path, temporary, dir, step, err) : 0, err)) return -1;
    ranks_broadcast(r, path, PATH_SIZE, 0);
    return 0;
}

int checkpoint_newest(const char *dir, const ranks *r, checkpoint_take *take, void *context, char path[4096], error *err) {
    int64_t *steps = NULL;
    int n = 0, result = ranks_share(r, r->rank == 0 ? candidates(dir, &steps, &n, err) : 0, err);
    bool taken = false;
    ranks_broadcast(r, &n, sizeof n, 0);
    for (int i = 0; result == 0 && !taken && i < n; i++) {
        result = name_file(path, dir, r->rank == 0 ? steps[i] : 0, r, err);
        if (result == 0) result = try_file(path, r, take, context, err);
        taken = result == 0;
        if (result != CHECKPOINT_DAMAGED) continue;
        pass_over(r, err);
        result = 0;
    }
    free(steps);
    if (!taken) path[0] = '\0';
    return result;
}
