/* fuzz_tokens.c: an index of token data (data/tokens.h) that may hold anything.
 *
 * The first byte says which .bin lies beside the index of the other bytes: if even, one of the size that the lengths in the index
 * add up to, or else nothing behind that check would ever be reached; if odd, one of as many bytes. */
#include <fcntl.h>

#include "data/info.h"
#include "data/tokens.h"
#include "tests/fuzz/fuzz.h"

enum { HEADER = 34, MOST_BYTES = 1 << 20, VOCAB = 1 << 15 };

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    enter_directory();
    return 0;
}

/* What the index says the .bin holds, as far as it can be followed. */
static int64_t told_bytes(const uint8_t *idx, size_t size) {
    uint64_t n;
    int64_t sum = 0;
    if (size < HEADER) return 0;
    memcpy(&n, idx + 18, sizeof n);
    for (uint64_t i = 0; i < n && HEADER + 4 * i + 4 <= size && sum <= MOST_BYTES; i++) {
        int32_t length;
        memcpy(&length, idx + HEADER + 4 * i, sizeof length);
        sum += length > 0 ? length : 0;
    }
    int64_t bytes = sum * (idx[17] == TOKEN_INT32 ? 4 : idx[17] == TOKEN_UINT16 ? 2 : 1);
    return bytes < MOST_BYTES ? bytes : MOST_BYTES;
}

/* The index's own bytes, over and over: ids of every size. */
static void put_bin(const uint8_t *idx, size_t size, int64_t bytes) {
    FILE *file = fopen("t.bin", "wb");
    CHECK(file, "t.bin cannot be written");
    for (int64_t done = 0; done < bytes && size > 0;) {
        size_t n = bytes - done < (int64_t)size ? (size_t)(bytes - done) : size;
        done += (int64_t)fwrite(idx, 1, n, file);
    }
    fclose(file);
}

static void check_reading(const token_file *f) {
    CHECK(f->n_tokens >= 0 && f->n_tokens * f->token_bytes == (int64_t)f->bin_bytes, "%lld tokens", (long long)f->n_tokens);
    int32_t *all = malloc((size_t)f->n_tokens * sizeof *all + 1);
    CHECK(all, "no memory");
    token_file_read(f, 0, f->n_tokens, all);
    for (int64_t i = 0; i < f->n_sequences; i++)
        CHECK(token_file_start(f, i) <= token_file_start(f, i + 1), "sequence %lld ends before it begins", (long long)i);
    for (int64_t at = 0, documents = 0; at < f->n_tokens; documents++) {
        int64_t end, document = token_file_document(f, at, &end);
        CHECK(end > at && document >= documents && document < f->n_documents, "token %lld: document %lld ends at %lld",
              (long long)at, (long long)document, (long long)end);
        at = end;
    }

    error err = {0};
    int32_t largest, expected = -1;
    int64_t bad = 0;
    for (int64_t i = 0; i < f->n_tokens; i++) {
        bad += all[i] < 0 || all[i] >= VOCAB;
        expected = all[i] > expected ? all[i] : expected;
    }
    int rc = token_file_verify(f, VOCAB, &largest, &err);
    CHECK((rc == 0) == (bad == 0) && (rc || largest == expected), "%lld ids outside, largest %d, found %d", (long long)bad,
          expected, largest);
    free(all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) return 0;
    error err = {0};
    put_file("t.idx", data + 1, size - 1);
    put_bin(data + 1, size - 1, data[0] % 2 ? data[0] : told_bytes(data + 1, size - 1));
    token_file f;
    if (token_file_open(&f, "t", &err)) {
        check_told(&err);
        return 0;
    }
    check_reading(&f);
    token_file_close(&f);
    token_info info;
    CHECK(token_info_read(&info, "t", false, 0, &err) == 0, "opened, but not described: %s", err.text);
    return 0;
}
