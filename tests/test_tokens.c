/* test_tokens.c: data/tokens.h on files that Megatron-LM itself wrote, and on every way in which such files can be damaged. */
#include "data/tokens.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <sys/stat.h>

#include "tests/data_testing.h"

#define FIXTURES "tests/fixtures/megatron/"

/* ---- what Megatron-LM wrote ---- */

static void check_against(const char *name, const json_t *golden) {
    char prefix[100];
    snprintf(prefix, sizeof prefix, FIXTURES "%s", name);
    const json_t *sequences = json_object_get(golden, "sequences"), *documents = json_object_get(golden, "document_indices");
    token_file f;
    error err = {0};
    if (token_file_open(&f, prefix, &err)) fail_msg("%s", err.text);
    assert_string_equal(token_type_name(f.type), json_string_value(json_object_get(golden, "dtype")));
    assert_int_equal(f.n_sequences, json_array_size(sequences));
    assert_int_equal(f.n_documents, json_array_size(documents) - 1);

    int64_t at = 0;
    for (int64_t i = 0; i < f.n_sequences; i++) {
        const json_t *sequence = json_array_get(sequences, (size_t)i);
        int64_t n = (int64_t)json_array_size(sequence);
        int64_t document = f.n_documents - 1; /* the last one that begins at sequence i or before: earlier ones there are empty */
        while (json_integer_value(json_array_get(documents, (size_t)document)) > i) document--;
        assert_int_equal(token_file_start(&f, i), at);
        for (int64_t t = 0; t < n; t++, at++) {
            int32_t id;
            token_file_read(&f, at, 1, &id);
            if (id != json_integer_value(json_array_get(sequence, (size_t)t)))
                fail_msg("%s: token %" PRId64 " of sequence %" PRId64 " is read as %d", name, t, i, id);
            int64_t end;
            assert_int_equal(token_file_document(&f, at, &end), document);
            assert_int_equal(end, token_file_start(&f, json_integer_value(json_array_get(documents, (size_t)document + 1))));
        }
    }
    assert_int_equal(f.n_tokens, at);
    assert_int_equal(token_file_start(&f, f.n_sequences), at);
    token_file_close(&f);
}

static void files_of_megatron_read_as_they_were_written(void **state) {
    (void)state;
    static const char *const names[] = {"a_i32", "b_u16", "c_mask_u8", "e_empty", "f_zero_len", "s44"};
    json_error_t problem;
    json_t *golden = json_load_file(FIXTURES "golden.json", 0, &problem);
    if (!golden) fail_msg("golden.json: %s", problem.text);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        check_against(names[i], json_object_get(json_object_get(golden, "files"), names[i]));
    json_decref(golden);
}

/* Any stretch reads as its tokens do one by one, across sequences, and nothing beside it is touched. */
static void stretches_read_across_sequences(void **state) {
    (void)state;
    static const char *const prefixes[] = {FIXTURES "a_i32", FIXTURES "b_u16", FIXTURES "c_mask_u8"};
    for (int p = 0; p < 3; p++) {
        token_file f;
        error err = {0};
        assert_int_equal(token_file_open(&f, prefixes[p], &err), 0);
        for (int64_t first = 0; first <= f.n_tokens; first++)
            for (int64_t n = 0; n <= f.n_tokens - first; n += 3) {
                int32_t ids[102], one;
                memset(ids, 0x5a, sizeof ids);
                token_file_read(&f, first, n, ids + 1);
                assert_int_equal(ids[0], 0x5a5a5a5a);
                assert_int_equal(ids[n + 1], 0x5a5a5a5a);
                for (int64_t i = 0; i < n; i++) {
                    token_file_read(&f, first + i, 1, &one);
                    assert_int_equal(ids[i + 1], one);
                }
            }
        token_file_close(&f);
    }
}

static void an_empty_file_has_no_tokens(void **state) {
    (void)state;
    token_file f;
    error err = {0};
    int32_t largest;
    assert_int_equal(token_file_open(&f, FIXTURES "e_empty", &err), 0);
    assert_int_equal(f.n_tokens, 0);
    assert_int_equal(f.n_documents, 0);
    assert_int_equal(token_file_verify(&f, 1, &largest, &err), 0);
    assert_int_equal(largest, -1);
    token_file_read(&f, 0, 0, NULL);
    token_file_close(&f);
}

/* ---- damage ---- */

/* A copy of a_i32 (7 sequences, 8 document entries, 182 and 400 bytes) that a test changes before it is opened. */
typedef struct damaged {
    path_text prefix;
    unsigned char *idx, *bin;
    size_t idx_bytes, bin_bytes;
} damaged;

static damaged copy_of_a(void **state) {
    damaged d = {.prefix = path_in(state, "damaged")};
    d.idx = read_file(FIXTURES "a_i32", ".idx", &d.idx_bytes);
    d.bin = read_file(FIXTURES "a_i32", ".bin", &d.bin_bytes);
    return d;
}

enum { LENGTHS = 34, OFFSETS = 62, DOCUMENTS = 118 }; /* in a_i32.idx */

static void put_i32(damaged *d, int at, int32_t value) { memcpy(d->idx + at, &value, sizeof value); }
static void put_i64(damaged *d, int at, int64_t value) { memcpy(d->idx + at, &value, sizeof value); }

/* Writes the pair, opens it, and returns the error there must be. */
static error refused(damaged *d) {
    char path[400];
    snprintf(path, sizeof path, "%s.idx", d->prefix.text);
    write_file(path, d->idx, d->idx_bytes);
    snprintf(path, sizeof path, "%s.bin", d->prefix.text);
    write_file(path, d->bin, d->bin_bytes);
    free(d->idx);
    free(d->bin);
    token_file f;
    error err = {0};
    if (token_file_open(&f, d->prefix.text, &err) == 0) fail_msg("the damage was not noticed");
    assert_int_equal(err.code, STATUS_INPUT);
    assert_says(&err, d->prefix.text, NULL);
    return err;
}

static void a_wrong_magic_is_refused(void **state) {
    for (int at = 0; at < 9; at++) {
        damaged d = copy_of_a(state);
        d.idx[at] ^= 1;
        error err = refused(&d);
        assert_says(&err, ".idx", "MMIDIDX", "182 bytes", NULL);
    }
}

static void another_version_is_refused(void **state) {
    damaged d = copy_of_a(state);
    put_i64(&d, 9, 2);
    error err = refused(&d);
    assert_says(&err, ".idx: version 2", "knows version 1", NULL);
}

static void other_types_are_refused_by_name(void **state) {
    static const char *const names[] = {[0] = "unknown", [2] = "int8",    [3] = "int16",   [5] = "int64",
                                        [6] = "float64", [7] = "float32", [9] = "unknown", [255] = "unknown"};
    for (int code = 0; code < 256; code++) {
        if (!names[code]) continue;
        damaged d = copy_of_a(state);
        d.idx[17] = (unsigned char)code;
        error err = refused(&d);
        char found[40];
        snprintf(found, sizeof found, "%s (code %d)", names[code], code);
        assert_says(&err, ".idx", found, "int32 and uint16", NULL);
    }
    error err = {0};
    token_file f;
    assert_int_equal(token_file_open(&f, FIXTURES "d_i64", &err), -1);
    assert_says(&err, FIXTURES "d_i64.idx", "int64 (code 5)", NULL);
}

static void a_cut_index_is_refused_at_every_length(void **state) {
    for (size_t bytes = 0; bytes < 182; bytes++) {
        damaged d = copy_of_a(state);
        d.idx_bytes = bytes;
        error err = refused(&d);
        if (bytes >= 34) {
            char has[60];
            snprintf(has, sizeof has, "the file has %zu bytes: it is truncated", bytes);
            assert_says(&err, ".idx: 7 sequences and 8 document boundaries need 182 bytes", has, "data/prepare.py", NULL);
        }
    }
}

static void an_index_with_more_than_it_says_is_refused(void **state) {
    for (size_t extra = 1; extra < 20; extra++) {
        if (extra == 7) continue; /* the modes of 7 sequences */
        damaged d = copy_of_a(state);
        d.idx_bytes += extra;
        error err = refused(&d);
        char more[40];
        snprintf(more, sizeof more, ": %zu too many", extra);
        assert_says(&err, ".idx: 7 sequences", "need 182 bytes", more, NULL);
    }
}

/* Counts that would overflow 64 bits when the size is worked out from them. */
static void lying_counts_do_not_overflow(void **state) {
    static const uint64_t lies[] = {8,          1u << 20,  INT64_MAX, UINT64_MAX, UINT64_MAX / 12 + 1, UINT64_MAX / 8 + 1,
                                    1ull << 61, 1ull << 62};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++)
        for (int both = 0; both < 3; both++) {
            damaged d = copy_of_a(state);
            char count[40];
            snprintf(count, sizeof count, "%" PRIu64, lies[i] + (both != 0));
            if (both != 1) put_i64(&d, 18, (int64_t)(lies[i] + (both != 0)));
            if (both != 0) put_i64(&d, 26, (int64_t)(lies[i] + 1));
            error err = refused(&d);
            if (lies[i] + 1 == 0 && both != 0)
                assert_says(&err, "an empty document index", NULL);
            else
                assert_says(&err, ".idx", count, "the file has 182 bytes: it is truncated", NULL);
        }
}

static void a_document_index_without_entries_is_refused(void **state) {
    damaged d = copy_of_a(state);
    put_i64(&d, 26, 0);
    error err = refused(&d);
    assert_says(&err, ".idx", "an empty document index", NULL);
}

static void a_negative_length_is_refused(void **state) {
    damaged d = copy_of_a(state);
    put_i32(&d, LENGTHS + 4 * 2, -17);
    error err = refused(&d);
    assert_says(&err, ".idx: sequence 2 has length -17", NULL);
}

static void a_sequence_past_the_end_is_refused(void **state) {
    damaged d = copy_of_a(state);
    put_i32(&d, LENGTHS + 4 * 6, INT32_MAX);
    error err = refused(&d);
    assert_says(&err, ".bin: sequence 6 ends at byte 8589934952, the file has 400", "truncated", NULL);
}

static void a_cut_bin_is_refused(void **state) {
    damaged d = copy_of_a(state);
    d.bin_bytes = 399;
    error err = refused(&d);
    assert_says(&err, ".bin: sequence 6 ends at byte 400, the file has 399", "truncated", NULL);
    d = copy_of_a(state);
    d.bin_bytes = 0;
    err = refused(&d);
    assert_says(&err, ".bin: sequence 0 ends at byte 20, the file has 0", NULL);
}

static void a_bin_of_another_index_is_refused(void **state) {
    damaged d = copy_of_a(state);
    d.bin_bytes = 404;
    error err = refused(&d);
    assert_says(&err, ".bin: the index accounts for 400 bytes, the file has 404", "damaged.idx", NULL);
}

/* Before, behind, backwards and far outside: an offset that is not the end of the sequence before it. */
static void gaps_and_overlaps_are_refused(void **state) {
    static const int64_t wrong[] = {0, 20, 23, 28, 400, -24, INT64_MIN, INT64_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        damaged d = copy_of_a(state);
        put_i64(&d, OFFSETS + 8 * 2, wrong[i]);
        error err = refused(&d);
        char found[60];
        snprintf(found, sizeof found, "sequence 2 begins at byte %" PRId64 " of the .bin", wrong[i]);
        assert_says(&err, ".idx", found, "end at byte 24", "without gap or overlap", NULL);
    }
}

static void documents_begin_at_sequence_0(void **state) {
    damaged d = copy_of_a(state);
    put_i64(&d, DOCUMENTS, 1);
    error err = refused(&d);
    assert_says(&err, ".idx: the first document begins at sequence 1, expected 0", NULL);
}

static void documents_that_go_backwards_are_refused(void **state) {
    damaged d = copy_of_a(state);
    put_i64(&d, DOCUMENTS + 8 * 4, 1);
    error err = refused(&d);
    assert_says(&err, ".idx: document 4 begins at sequence 1, before document 3 at 3", NULL);
    d = copy_of_a(state);
    put_i64(&d, DOCUMENTS + 8 * 4, INT64_MAX);
    err = refused(&d);
    assert_says(&err, ".idx: document 5 begins at sequence 5, before document 4 at 9223372036854775807", NULL);
}

static void documents_end_at_the_last_sequence(void **state) {
    damaged d = copy_of_a(state);
    put_i64(&d, DOCUMENTS + 8 * 7, 6);
    error err = refused(&d);
    assert_says(&err, ".idx: the documents end at sequence 6 of 7", NULL);
    token_file f;
    assert_int_equal(token_file_open(&f, FIXTURES "h_no_end_document", &err), -1);
    assert_says(&err, FIXTURES "h_no_end_document.idx", "the documents end at sequence 0 of 2", "end_document", NULL);
}

/* Multimodal data has one more byte a sequence; the tokens are where they always are. */
static void modes_are_passed_over(void **state) {
    damaged d = copy_of_a(state);
    char path[400];
    snprintf(path, sizeof path, "%s.idx", d.prefix.text);
    memset(d.idx + d.idx_bytes, 1, 7);
    write_file(path, d.idx, d.idx_bytes + 7);
    snprintf(path, sizeof path, "%s.bin", d.prefix.text);
    write_file(path, d.bin, d.bin_bytes);
    free(d.idx);
    free(d.bin);
    token_file f;
    error err = {0};
    if (token_file_open(&f, d.prefix.text, &err)) fail_msg("%s", err.text);
    assert_int_equal(f.n_tokens, 100);
    token_file_close(&f);
}

static void missing_files_say_what_a_prefix_is(void **state) {
    token_file f;
    error err = {0};
    path_text none = path_in(state, "none");
    assert_int_equal(token_file_open(&f, none.text, &err), -1);
    assert_int_equal(err.code, STATUS_INPUT);
    assert_says(&err, none.text, ".idx: No such file", "PREFIX.bin and PREFIX.idx", NULL);

    assert_int_equal(token_file_open(&f, FIXTURES "a_i32.bin", &err), -1);
    assert_says(&err, FIXTURES "a_i32.bin.idx: No such file", "without .bin or .idx", NULL);

    path_text half = path_in(state, "half.idx");
    size_t bytes;
    unsigned char *idx = read_file(FIXTURES "a_i32", ".idx", &bytes);
    write_file(half.text, idx, bytes);
    free(idx);
    assert_int_equal(token_file_open(&f, path_in(state, "half").text, &err), -1);
    assert_says(&err, "half.bin: No such file", NULL);
}

static void a_directory_or_pipe_is_not_data(void **state) {
    token_file f;
    error err = {0};
    path_text directory = path_in(state, "folder.idx");
    assert_int_equal(mkdir(directory.text, 0777), 0);
    assert_int_equal(token_file_open(&f, path_in(state, "folder").text, &err), -1);
    assert_says(&err, "folder.idx is not a regular file", NULL);
}

static void a_file_without_permission_says_so(void **state) {
    if (geteuid() == 0) skip(); /* root may read everything */
    path_text idx = path_in(state, "secret.idx");
    write_file(idx.text, "x", 1);
    assert_int_equal(chmod(idx.text, 0), 0);
    token_file f;
    error err = {0};
    assert_int_equal(token_file_open(&f, path_in(state, "secret").text, &err), -1);
    assert_int_equal(err.code, STATUS_RESOURCE);
    assert_says(&err, "secret.idx: Permission denied", NULL);
}

/* ---- ids ---- */

static void verify_finds_the_largest_id(void **state) {
    (void)state;
    token_file f;
    error err = {0};
    int32_t largest;
    assert_int_equal(token_file_open(&f, FIXTURES "a_i32", &err), 0);
    assert_int_equal(token_file_verify(&f, 201677, &largest, &err), 0);
    assert_int_equal(largest, 201676);
    assert_int_equal(token_file_verify(&f, 201676, &largest, &err), -1);
    assert_says(&err, FIXTURES "a_i32.bin: token 70 is id 201676", "vocabulary of 201676", "0 to 201675", NULL);
    token_file_close(&f);
}

/* The offender lies beyond the first stretch that is read at once, and is named by its place in the whole file. */
static void verify_names_the_first_offender(void **state) {
    path_text prefix = path_in(state, "long");
    const int64_t length = 40000;
    write_documents(prefix.text, TOKEN_INT32, &length, 1, (ramp){0, 1, 100000});
    token_file f;
    error err = {0};
    int32_t largest;
    assert_int_equal(token_file_open(&f, prefix.text, &err), 0);
    assert_int_equal(token_file_verify(&f, 39000, &largest, &err), -1);
    assert_says(&err, "long.bin: token 39000 is id 39000", NULL);
    assert_int_equal(token_file_verify(&f, 40000, &largest, &err), 0);
    assert_int_equal(largest, 39999);
    token_file_close(&f);
}

static void a_negative_id_is_outside_of_every_vocabulary(void **state) {
    damaged d = copy_of_a(state);
    const int32_t negative = -5;
    memcpy(d.bin + 4 * 33, &negative, 4);
    char path[400];
    snprintf(path, sizeof path, "%s.idx", d.prefix.text);
    write_file(path, d.idx, d.idx_bytes);
    snprintf(path, sizeof path, "%s.bin", d.prefix.text);
    write_file(path, d.bin, d.bin_bytes);
    free(d.idx);
    free(d.bin);
    token_file f;
    error err = {0};
    int32_t largest;
    assert_int_equal(token_file_open(&f, d.prefix.text, &err), 0);
    assert_int_equal(token_file_verify(&f, INT64_C(1) << 31, &largest, &err), -1);
    assert_says(&err, "token 33 is id -5", NULL);
    token_file_close(&f);
}

/* ---- the card ---- */

static int read_card(void **state, const char *text, token_card *card, error *err) {
    write_file(path_in(state, "card.json").text, text, strlen(text));
    return token_card_read(card, path_in(state, "card").text, err);
}

static void a_card_is_read(void **state) {
    token_card card;
    error err = {0};
    const char *text =
        "{\"bytes\": 29410000000, \"tokens\": 9, \"vocab_size\": 8192, \"n_documents\": 3, \"tokenizer\": \"bpe\","
        " \"tokenizer_hash\": \"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\", \"more\": [1]}";
    assert_int_equal(read_card(state, text, &card, &err), 0);
    assert_int_equal(card.bytes, 29410000000);
    assert_int_equal(card.tokens, 9);
    assert_int_equal(card.vocab_size, 8192);
    assert_int_equal(card.n_documents, 3);
    assert_string_equal(card.tokenizer, "bpe");
    assert_string_equal(card.tokenizer_hash, "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef");
}

static void what_a_card_does_not_say_is_unknown(void **state) {
    token_card card;
    error err = {0};
    assert_int_equal(token_card_read(&card, path_in(state, "none").text, &err), 0);
    assert_int_equal(card.bytes, -1);
    assert_string_equal(card.tokenizer_hash, "");
    assert_int_equal(read_card(state, "{}", &card, &err), 0);
    assert_int_equal(card.tokens, -1);
    assert_int_equal(card.vocab_size, -1);
    assert_int_equal(card.n_documents, -1);
    assert_string_equal(card.tokenizer, "");
}

static void a_damaged_card_is_refused(void **state) {
    token_card card;
    error err = {0};
    assert_int_equal(read_card(state, "{\n\"bytes\": 1,\n", &card, &err), -1);
    assert_says(&err, "card.json:", "not JSON", NULL);
    assert_int_equal(read_card(state, "[1]", &card, &err), -1);
    assert_says(&err, "card.json", "must be a JSON object", NULL);
    assert_int_equal(read_card(state, "{\"bytes\": -1}", &card, &err), -1);
    assert_says(&err, "card.json", "\"bytes\" must be an integer", NULL);
    assert_int_equal(read_card(state, "{\"vocab_size\": \"8192\"}", &card, &err), -1);
    assert_says(&err, "card.json", "\"vocab_size\" must be an integer", NULL);
    char text[200];
    snprintf(text, sizeof text, "{\"tokenizer_hash\": \"%0100d\"}", 0);
    assert_int_equal(read_card(state, text, &card, &err), -1);
    assert_says(&err, "card.json", "\"tokenizer_hash\" must be a string of less than 80 bytes", NULL);
    assert_int_equal(err.code, STATUS_INPUT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_of_megatron_read_as_they_were_written),
        cmocka_unit_test(stretches_read_across_sequences),
        cmocka_unit_test(an_empty_file_has_no_tokens),
        cmocka_unit_test(a_wrong_magic_is_refused),
        cmocka_unit_test(another_version_is_refused),
        cmocka_unit_test(other_types_are_refused_by_name),
        cmocka_unit_test(a_cut_index_is_refused_at_every_length),
        cmocka_unit_test(an_index_with_more_than_it_says_is_refused),
        cmocka_unit_test(lying_counts_do_not_overflow),
        cmocka_unit_test(a_document_index_without_entries_is_refused),
        cmocka_unit_test(a_negative_length_is_refused),
        cmocka_unit_test(a_sequence_past_the_end_is_refused),
        cmocka_unit_test(a_cut_bin_is_refused),
        cmocka_unit_test(a_bin_of_another_index_is_refused),
        cmocka_unit_test(gaps_and_overlaps_are_refused),
        cmocka_unit_test(documents_begin_at_sequence_0),
        cmocka_unit_test(documents_that_go_backwards_are_refused),
        cmocka_unit_test(documents_end_at_the_last_sequence),
        cmocka_unit_test(modes_are_passed_over),
        cmocka_unit_test(missing_files_say_what_a_prefix_is),
        cmocka_unit_test(a_directory_or_pipe_is_not_data),
        cmocka_unit_test(a_file_without_permission_says_so),
        cmocka_unit_test(verify_finds_the_largest_id),
        cmocka_unit_test(verify_names_the_first_offender),
        cmocka_unit_test(a_negative_id_is_outside_of_every_vocabulary),
        cmocka_unit_test(a_card_is_read),
        cmocka_unit_test(what_a_card_does_not_say_is_unknown),
        cmocka_unit_test(a_damaged_card_is_refused),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
