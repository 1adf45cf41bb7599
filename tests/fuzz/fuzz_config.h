/* fuzz_config.h: what must hold of a run config that was accepted, whether its text or its overrides are fuzzed. */
#ifndef MOBILELLM_TESTS_FUZZ_CONFIG_H
#define MOBILELLM_TESTS_FUZZ_CONFIG_H

#include "tests/fuzz/fuzz.h"
#include "train/config.h"

/* It prints as YAML that reads back as what prints the same. */
static inline void check_prints(const run_config *c) {
    error err = {0};
    run_config again;
    char *text = config_print(c, run_config_keys);
    CHECK(text, "no text");
    CHECK(config_read(&again, run_config_keys, "printed", text, NULL, 0, &err) == 0, "%s\n%s", err.text, text);
    char *twice = config_print(&again, run_config_keys);
    CHECK(twice && strcmp(text, twice) == 0, "printed:\n%s\nread back and printed:\n%s", text, twice);
    free(text);
    free(twice);
    run_config_free(&again);
}

static inline void check_run(const char *path, const char *const *overrides, int n) {
    error err = {0};
    run_config c;
    if (run_config_read(&c, path, overrides, n, &err)) {
        check_told(&err);
        CHECK(!c.checkpoint.dir && !c.data.train.items && !c.model.attention, "refused, and not cleared");
        return;
    }
    check_prints(&c);
    run_config_free(&c);
}

#endif
