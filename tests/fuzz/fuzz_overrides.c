/* fuzz_overrides.c: key=value from the command line, one a line of the input, over a whole config. */
#include "tests/fuzz/fuzz_config.h"

enum { MOST = 16 };

static const char run[] =
    "model: {vocab_size: 260, n_layers: 2, d_model: 8, d_ffn: 8, n_heads: 2, n_kv_heads: 1, head_dim: 4}\n"
    "data: {train: [{prefix: p}, q], seq_len: 4}\n"
    "batch: {tokens: 16, micro: 1}\n"
    "train: {tokens: 64}\n"
    "optimizer: {lr: 1e-3}\n"
    "schedule: {warmup_tokens: 8}\n"
    "checkpoint: {dir: d}\n";

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    enter_directory();
    put_file("run.yaml", run, sizeof run - 1);
    put_file("net.yaml", run + sizeof "model: {" - 1, strcspn(run, "}") - (sizeof "model: {" - 1));
    error err = {0};
    run_config c;
    CHECK(run_config_read(&c, "run.yaml", NULL, 0, &err) == 0, "%s", err.text);
    run_config_free(&c);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *overrides[MOST];
    int n = 0;
    char *text = malloc(size + 1), *rest = text;
    CHECK(text, "no memory");
    memcpy(text, data, size);
    text[size] = '\0';
    while (n < MOST && rest) overrides[n++] = strsep(&rest, "\n");
    check_run("run.yaml", overrides, n);
    free(text);
    return 0;
}
