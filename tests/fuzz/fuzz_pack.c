/* fuzz_pack.c: any bytes as text or JSON Lines to pack (data/pack.h); what was packed is read back.
 *
 * The first byte says how the others are taken: 0 as JSON Lines, else as text, a document the whole, a line or a paragraph. */
#include "data/bytes.h"
#include "data/pack.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    enter_directory();
    return 0;
}

/* Every sequence is a document and ends with the end of document, which stands nowhere else. */
static void check_packed(const token_card *card) {
    error err = {0};
    token_file f;
    int32_t largest;
    CHECK(token_file_open(&f, "packed", &err) == 0, "%s", err.text);
    CHECK(token_file_verify(&f, BYTES_VOCAB_SIZE, &largest, &err) == 0, "%s", err.text);
    CHECK(f.n_sequences == f.n_documents && f.n_documents == card->n_documents && f.n_tokens == card->tokens &&
              f.n_tokens == card->bytes + card->n_documents,
          "%lld documents, %lld tokens", (long long)f.n_documents, (long long)f.n_tokens);
    for (int64_t i = 0, at = 0; i < f.n_sequences; i++)
        for (; at < token_file_start(&f, i + 1); at++) {
            int32_t id;
            token_file_read(&f, at, 1, &id);
            CHECK((id == BYTES_EOD) == (at + 1 == token_file_start(&f, i + 1)), "token %lld is %d", (long long)at, id);
        }
    token_file_close(&f);
    token_card again;
    CHECK(token_card_read(&again, "packed", &err) == 0 && again.bytes == card->bytes && again.tokens == card->tokens, "%s",
          err.text);
}

/* The text as one document is the input. */
static void check_whole(const uint8_t *data, size_t size) {
    error err = {0};
    token_file f;
    CHECK(token_file_open(&f, "packed", &err) == 0 && f.n_tokens == (int64_t)size + 1, "%s", err.text);
    for (size_t i = 0; i < size; i++) {
        int32_t id;
        token_file_read(&f, (int64_t)i, 1, &id);
        CHECK(id == data[i], "byte %zu is %d, packed as %d", i, data[i], id);
    }
    token_file_close(&f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) return 0;
    static const pack_split splits[] = {PACK_WHOLE, PACK_WHOLE, PACK_LINES, PACK_BLANK};
    int kind = data[0] % 4;
    put_file("input", data + 1, size - 1);
    const char *const inputs[] = {"input"};
    pack_options options = {.prefix = "packed",
                            .inputs = inputs,
                            .n_inputs = 1,
                            .format = kind == 0 ? PACK_JSONL : PACK_TEXT,
                            .split = splits[kind],
                            .key = "text"};
    error err = {0};
    token_card card;
    if (pack(&options, &card, &err)) {
        check_told(&err);
        CHECK(access("packed.bin.tmp", F_OK) != 0, "a temporary file is left");
        return 0;
    }
    check_packed(&card);
    if (kind == 1) check_whole(data + 1, size - 1);
    return 0;
}
