/* fuzz_config.c: a run config (train/config.h) of any text. */
#include "tests/fuzz/fuzz_config.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    enter_directory();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    put_file("run.yaml", data, size);
    check_run("run.yaml", NULL, 0);
    return 0;
}
