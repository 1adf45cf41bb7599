/* test_pack.c: data/pack.h, data/token_writer.h and data/info.h: text in, the same text out, and nothing half-written. */
#include "data/pack.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "data/bytes.h"
#include "data/info.h"
#include "tests/data_testing.h"

/* ---- helpers ---- */

/* Packs `bytes` bytes of `input` (a file named `name`) to the prefix "out". */
static int pack_text(void **state, const char *name, const char *input, size_t bytes, pack_split split, token_card *card,
                     error *err) {
    path_text path = path_in(state, name), prefix = path_in(state, "out");
    write_file(path.text, input, bytes);
    const char *inputs[] = {path.text};
    pack_options o = {.prefix = prefix.text, .inputs = inputs, .n_inputs = 1, .split = split, .key = "text"};
    return pack(&o, card, err);
}

/* The prefix "out" holds exactly these documents, each a sequence that ends with the end of document, and its card is theirs. */
static void assert_documents(void **state, const char *const *documents, const size_t *bytes, int n) {
    token_file f;
    token_card card;
    error err = {0};
    path_text prefix = path_in(state, "out");
    if (token_file_open(&f, prefix.text, &err)) fail_msg("%s", err.text);
    assert_int_equal(f.type, TOKEN_UINT16);
    assert_int_equal(f.n_documents, n);
    assert_int_equal(f.n_sequences, n);
    int64_t total = 0;
    for (int d = 0; d < n; d++) {
        int64_t size = (int64_t)bytes[d];
        assert_int_equal(token_file_start(&f, d), total + d);
        assert_int_equal(token_file_start(&f, d + 1), total + d + size + 1);
        int32_t *ids = calloc((size_t)size + 1, sizeof *ids);
        token_file_read(&f, total + d, size + 1, ids);
        for (int64_t i = 0; i < size; i++)
            if (bytes_decode(ids[i]) != (unsigned char)documents[d][i])
                fail_msg("document %d: byte %" PRId64 " is id %d, expected %d", d, i, ids[i], (unsigned char)documents[d][i]);
        assert_int_equal(ids[size], BYTES_EOD);
        free(ids);
        total += size;
    }
    assert_int_equal(f.n_tokens, total + n);
    token_file_close(&f);
    assert_int_equal(token_card_read(&card, prefix.text, &err), 0);
    assert_int_equal(card.bytes, total);
    assert_int_equal(card.tokens, total + n);
    assert_int_equal(card.n_documents, n);
    assert_int_equal(card.vocab_size, BYTES_VOCAB_SIZE);
    assert_string_equal(card.tokenizer, "bytes");
    assert_string_equal(card.tokenizer_hash, BYTES_TOKENIZER_HASH);
}

static void assert_texts(void **state, const char *const *documents, int n) {
    size_t bytes[20];
    for (int d = 0; d < n; d++) bytes[d] = strlen(documents[d]);
    assert_documents(state, documents, bytes, n);
}

static void assert_no_file(void **state, const char *name) {
    if (access(path_in(state, name).text, F_OK) == 0) fail_msg("%s is there", name);
}

static void remove_outputs(void **state) {
    static const char *const names[] = {"out.bin", "out.idx", "out.json"};
    for (int i = 0; i < 3; i++) unlink(path_in(state, names[i]).text);
}

static void assert_nothing_written(void **state) {
    static const char *const names[] = {"out.bin", "out.idx", "out.json", "out.bin.tmp", "out.idx.tmp", "out.json.tmp"};
    for (int i = 0; i < 6; i++) assert_no_file(state, names[i]);
}

static void ok(int rc, const error *err) {
    if (rc) fail_msg("%s", err->text);
}

/* ---- text ---- */

static void a_whole_file_is_one_document_of_its_bytes(void **state) {
    char every[3 * 256];
    for (int i = 0; i < 3 * 256; i++) every[i] = (char)(i * 7 + i / 256);
    const char *document = every;
    size_t bytes = sizeof every;
    token_card card;
    error err = {0};
    ok(pack_text(state, "a.txt", every, bytes, PACK_WHOLE, &card, &err), &err);
    assert_documents(state, &document, &bytes, 1);
    assert_int_equal(card.tokens, 769);

    /* More than the writer and the reader of text hold at once. */
    bytes = 700000;
    char *large = malloc(bytes);
    for (size_t i = 0; i < bytes; i++) large[i] = (char)(i * i / 255 + i % 3);
    document = large;
    ok(pack_text(state, "a.txt", large, bytes, PACK_WHOLE, &card, &err), &err);
    assert_documents(state, &document, &bytes, 1);
    free(large);
}

static void lines_are_documents_without_their_newline(void **state) {
    static const char text[] = "one\n\n two \r\n\nlast";
    static const char *const documents[] = {"one", " two \r", "last"};
    token_card card;
    error err = {0};
    ok(pack_text(state, "a.txt", text, strlen(text), PACK_LINES, &card, &err), &err);
    assert_texts(state, documents, 3);
}

static void blank_lines_part_documents(void **state) {
    static const char text[] = "\n \t\na\nb\n\n\n c\n  \n\r\nd\n\te";
    static const char *const documents[] = {"a\nb", " c", "d\n\te"};
    token_card card;
    error err = {0};
    ok(pack_text(state, "a.txt", text, strlen(text), PACK_BLANK, &card, &err), &err);
    assert_texts(state, documents, 3);
    ok(pack_text(state, "a.txt", "x\ny\n\n", 5, PACK_BLANK, &card, &err), &err);
    assert_texts(state, (const char *[]){"x\ny"}, 1);
}

static void files_follow_one_another(void **state) {
    path_text one = path_in(state, "one.txt"), two = path_in(state, "two.jsonl"), prefix = path_in(state, "out");
    write_file(one.text, "first\n", 6);
    write_file(two.text, "{\"body\": \"second\"}\n{\"body\": \"third\"}\n", 37);
    const char *inputs[] = {one.text, two.text, one.text};
    pack_options o = {.prefix = prefix.text, .inputs = inputs, .n_inputs = 3, .key = "body"};
    token_card card;
    error err = {0};
    ok(pack(&o, &card, &err), &err);
    assert_texts(state, (const char *[]){"first\n", "second", "third", "first\n"}, 4);

    o.format = PACK_TEXT; /* whatever the name says */
    o.inputs = inputs + 1;
    o.n_inputs = 1;
    ok(pack(&o, &card, &err), &err);
    assert_texts(state, (const char *[]){"{\"body\": \"second\"}\n{\"body\": \"third\"}\n"}, 1);
}

/* ---- JSON Lines ---- */

static void json_strings_become_their_utf8(void **state) {
    static const char text[] =
        "{\"text\": \"plain\", \"id\": 1}\n"
        "  {\"meta\": {\"text\": \"not this\"}, \"text\": \"a\\n\\t\\\"\\\\\\/b\"}\r\n"
        "\n"
        "{\"text\": \"\\u00e9\\u4e2d\\ud83d\\ude00 \xc3\xa9\"}\n"
        "{\"text\": \"\"}\n"
        "{\"text\": \"nul\\u0000inside\"}";
    static const char *const documents[] = {"plain", "a\n\t\"\\/b", "\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80 \xc3\xa9", "",
                                            "nul\0inside"};
    static const size_t bytes[] = {5, 7, 12, 0, 10};
    token_card card;
    error err = {0};
    ok(pack_text(state, "a.jsonl", text, strlen(text), PACK_WHOLE, &card, &err), &err);
    assert_documents(state, documents, bytes, 5);
}

static void bad_lines_of_json_are_named(void **state) {
    static const struct {
        const char *line, *says;
    } cases[] = {
        {"{\"text\": \"a}", "a.jsonl:3: not JSON"},
        {"{\"text\": \"a\"} x", "a.jsonl:3: not JSON"},
        {"{\"text\": \"\xff\"}", "a.jsonl:3: not JSON"},
        {"{\"text\": \"\\ud83d\"}", "a.jsonl:3: not JSON"},
        {"{\"text\": \"a\", \"text\": \"b\"}", "a.jsonl:3: not JSON: duplicate"},
        {"[\"text\"]", "a.jsonl:3: expected an object"},
        {"{\"content\": \"a\"}", "a.jsonl:3: no member \"text\"; the object has \"content\""},
        {"{}", "a.jsonl:3: no member \"text\"; the object has none"},
        {"{\"text\": 5}", "a.jsonl:3: \"text\" is not a string"},
        {"{\"text\": null}", "a.jsonl:3: \"text\" is not a string"},
    };
    remove_outputs(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[200];
        int n = snprintf(text, sizeof text, "{\"text\": \"good\"}\n\n%s\n{\"text\": \"good\"}\n", cases[i].line);
        token_card card;
        error err = {0};
        assert_int_equal(pack_text(state, "a.jsonl", text, (size_t)n, PACK_WHOLE, &card, &err), -1);
        assert_int_equal(err.code, STATUS_INPUT);
        assert_says(&err, cases[i].says, NULL);
        assert_nothing_written(state);
    }
}

static void inputs_without_documents_are_refused(void **state) {
    token_card card;
    error err = {0};
    remove_outputs(state);
    assert_int_equal(pack_text(state, "a.jsonl", "\n\n", 2, PACK_WHOLE, &card, &err), -1);
    assert_says(&err, "a.jsonl: there is no document", NULL);
    assert_int_equal(pack_text(state, "a.txt", "\n\n", 2, PACK_LINES, &card, &err), -1);
    assert_int_equal(pack_text(state, "a.txt", " \n", 2, PACK_BLANK, &card, &err), -1);
    const char *none[] = {path_in(state, "none.txt").text};
    pack_options o = {.prefix = path_in(state, "out").text, .inputs = none, .n_inputs = 1, .key = "text"};
    assert_int_equal(pack(&o, &card, &err), -1);
    assert_int_equal(err.code, STATUS_INPUT);
    assert_says(&err, "none.txt: No such file", NULL);
    const char *directory[] = {*state};
    o.inputs = directory;
    assert_int_equal(pack(&o, &card, &err), -1);
    assert_says(&err, *state, ": cannot read: Is a directory", NULL);
    assert_nothing_written(state);
}

/* ---- the writer ---- */

static token_writer *open_writer(const char *prefix, token_type type) {
    token_writer *w;
    error err = {0};
    ok(token_writer_open(&w, prefix, type, &err), &err);
    return w;
}

/* Byte for byte the files that Megatron-LM wrote of the same sequences. */
static void files_are_those_of_megatron(void **state) {
    static const struct {
        const char *name;
        token_type type;
    } files[] = {{"a_i32", TOKEN_INT32},
                 {"b_u16", TOKEN_UINT16},
                 {"c_mask_u8", TOKEN_UINT8},
                 {"e_empty", TOKEN_INT32},
                 {"f_zero_len", TOKEN_INT32}};
    path_text prefix = path_in(state, "out");
    json_t *golden = json_load_file("tests/fixtures/megatron/golden.json", 0, NULL);
    assert_non_null(golden);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        const json_t *file = json_object_get(json_object_get(golden, "files"), files[i].name);
        const json_t *sequences = json_object_get(file, "sequences"), *documents = json_object_get(file, "document_indices");
        token_writer *w = open_writer(prefix.text, files[i].type);
        error err = {0};
        for (size_t d = 0; d + 1 < json_array_size(documents); d++) {
            json_int_t begin = json_integer_value(json_array_get(documents, d)),
                       end = json_integer_value(json_array_get(documents, d + 1));
            for (json_int_t s = begin; s < end; s++) {
                const json_t *sequence = json_array_get(sequences, (size_t)s);
                for (size_t t = 0; t < json_array_size(sequence); t++) {
                    int32_t id = (int32_t)json_integer_value(json_array_get(sequence, t));
                    ok(token_writer_append(w, &id, 1, &err), &err);
                }
                ok(token_writer_end_sequence(w, &err), &err);
            }
            ok(token_writer_end_document(w, &err), &err);
        }
        ok(token_writer_finish(w, NULL, &err), &err);
        char megatron[100];
        snprintf(megatron, sizeof megatron, "tests/fixtures/megatron/%s", files[i].name);
        for (int part = 0; part < 2; part++) {
            size_t ours, theirs;
            unsigned char *a = read_file(prefix.text, part ? ".idx" : ".bin", &ours);
            unsigned char *b = read_file(megatron, part ? ".idx" : ".bin", &theirs);
            assert_int_equal(ours, theirs);
            assert_memory_equal(a, b, ours);
            free(a);
            free(b);
        }
    }
    json_decref(golden);
}

static void ids_that_do_not_fit_are_refused(void **state) {
    static const struct {
        token_type type;
        int32_t id;
        const char *says;
    } cases[] = {{TOKEN_UINT16, 65536, "uint16 holds 0 to 65535"},
                 {TOKEN_UINT16, 70000, "token 3 is id 70000"},
                 {TOKEN_UINT16, -1, "id -1"},
                 {TOKEN_UINT8, 256, "uint8 holds 0 to 255"},
                 {TOKEN_INT32, -1, "int32 holds 0 to 2147483647"}};
    remove_outputs(state);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        token_writer *w = open_writer(path_in(state, "out").text, cases[i].type);
        int32_t ids[] = {1, 2, 3, cases[i].id};
        error err = {0};
        assert_int_equal(token_writer_append(w, ids, 4, &err), -1);
        assert_int_equal(err.code, STATUS_INPUT);
        assert_says(&err, "out: token 3", cases[i].says, NULL);
        token_writer_abandon(w);
        assert_nothing_written(state);
    }
}

static void the_largest_ids_of_a_type_are_kept(void **state) {
    static const token_type types[] = {TOKEN_UINT8, TOKEN_UINT16, TOKEN_INT32};
    for (int i = 0; i < 3; i++) {
        path_text prefix = path_in(state, "out");
        int32_t largest = (int32_t)token_type_max(types[i]), read;
        const int64_t one = 1;
        write_documents(prefix.text, types[i], &one, 1, (ramp){largest, 0, (int64_t)1 << 32});
        token_file f;
        error err = {0};
        ok(token_file_open(&f, prefix.text, &err), &err);
        token_file_read(&f, 0, 1, &read);
        assert_int_equal(read, largest);
        token_file_close(&f);
    }
}

/* Until it is finished there are only temporary files, and finishing without a card takes an earlier one away. */
static void files_appear_when_they_are_whole(void **state) {
    path_text prefix = path_in(state, "out");
    token_card card;
    error err = {0};
    remove_outputs(state);
    ok(pack_text(state, "a.txt", "old text", 8, PACK_WHOLE, &card, &err), &err);

    token_writer *w = open_writer(prefix.text, TOKEN_INT32);
    const int32_t ids[] = {5, 6};
    ok(token_writer_append(w, ids, 2, &err), &err);
    ok(token_writer_end_sequence(w, &err), &err);
    ok(token_writer_end_document(w, &err), &err);
    assert_texts(state, (const char *[]){"old text"}, 1);
    ok(token_writer_finish(w, NULL, &err), &err);
    assert_no_file(state, "out.bin.tmp");
    assert_no_file(state, "out.idx.tmp");
    assert_no_file(state, "out.json");
    token_file f;
    ok(token_file_open(&f, prefix.text, &err), &err);
    assert_int_equal(f.n_tokens, 2);
    token_file_close(&f);
}

/* The temporary name leads to a device that is always full. */
static void a_full_disk_leaves_nothing(void **state) {
    static const char *const names[] = {"out.bin.tmp", "out.idx.tmp", "out.json.tmp"};
    for (int i = 0; i < 3; i++) {
        remove_outputs(state);
        assert_int_equal(symlink("/dev/full", path_in(state, names[i]).text), 0);
        token_card card;
        error err = {0};
        assert_int_equal(pack_text(state, "a.txt", "some text", 9, PACK_WHOLE, &card, &err), -1);
        assert_int_equal(err.code, STATUS_RESOURCE);
        assert_says(&err, names[i], "No space left on device", NULL);
        assert_nothing_written(state);
    }
}

/* A limit on the size of files, which makes a write come back short before it fails. */
static void a_short_write_leaves_what_was_there(void **state) {
    token_card card;
    error err = {0};
    ok(pack_text(state, "a.txt", "old text", 8, PACK_WHOLE, &card, &err), &err);
    size_t bytes = 400000;
    char *large = calloc(1, bytes);
    path_text path = path_in(state, "large.txt"), prefix = path_in(state, "out");
    write_file(path.text, large, bytes);
    free(large);
    const char *inputs[] = {path.text};
    pack_options o = {.prefix = prefix.text, .inputs = inputs, .n_inputs = 1, .key = "text"};

    struct rlimit before, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    limit = before;
    limit.rlim_cur = 300001;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    int rc = pack(&o, &card, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(rc, -1);
    assert_int_equal(err.code, STATUS_RESOURCE);
    assert_says(&err, "out.bin.tmp: cannot write: File too large", NULL);
    assert_no_file(state, "out.bin.tmp");
    assert_texts(state, (const char *[]){"old text"}, 1);
}

/* When the new files cannot all be put in place, the old index does not stay beside the new .bin: here the card is in the way. */
static void a_replacement_that_stops_half_way_leaves_no_index(void **state) {
    token_card card;
    error err = {0};
    ok(pack_text(state, "a.txt", "old text", 8, PACK_WHOLE, &card, &err), &err);
    path_text json = path_in(state, "out.json");
    assert_int_equal(unlink(json.text), 0);
    assert_int_equal(mkdir(json.text, 0777), 0);
    assert_int_equal(pack_text(state, "a.txt", "new text", 8, PACK_WHOLE, &card, &err), -1);
    assert_int_equal(rmdir(json.text), 0);
    assert_int_equal(err.code, STATUS_RESOURCE);
    assert_says(&err, "out.json: Is a directory", NULL);
    unlink(path_in(state, "out.bin").text);
    assert_nothing_written(state);
}

static void a_directory_that_is_missing_is_named(void **state) {
    token_writer *w;
    error err = {0};
    assert_int_equal(token_writer_open(&w, path_in(state, "no/such/out").text, TOKEN_INT32, &err), -1);
    assert_int_equal(err.code, STATUS_RESOURCE);
    assert_says(&err, "no/such/out.bin.tmp: cannot create: No such file or directory", NULL);
    assert_null(w);
}

/* ---- info ---- */

static void info_counts_what_was_written(void **state) {
    path_text prefix = path_in(state, "out");
    static const int64_t lengths[] = {9, 1, 4, 70, 6, 30};
    write_documents(prefix.text, TOKEN_UINT16, lengths, 6, (ramp){3, 11, 1000});
    token_info info;
    error err = {0};
    ok(token_info_read(&info, prefix.text, false, 0, &err), &err);
    assert_int_equal(info.type, TOKEN_UINT16);
    assert_int_equal(info.n_documents, 6);
    assert_int_equal(info.n_sequences, 6);
    assert_int_equal(info.n_tokens, 120);
    assert_int_equal(info.shortest, 1);
    assert_int_equal(info.median, 6);
    assert_int_equal(info.longest, 70);
    assert_int_equal(info.largest, -1);
    assert_int_equal(info.card.bytes, -1);
    ok(token_info_read(&info, prefix.text, true, 0, &err), &err);
    assert_int_equal(info.largest, 993); /* 3 + 11 * 90 */
    ok(token_info_read(&info, prefix.text, true, 994, &err), &err);
    assert_int_equal(token_info_read(&info, prefix.text, true, 993, &err), -1);
    assert_int_equal(err.code, STATUS_INPUT);
    assert_says(&err, "out.bin: token 90 is id 993, outside of a vocabulary of 993", NULL);
}

static void info_finds_a_card_of_other_data(void **state) {
    path_text prefix = path_in(state, "out"), card = path_in(state, "out.json");
    token_info info;
    token_card written;
    error err = {0};
    ok(pack_text(state, "a.txt", "some text", 9, PACK_WHOLE, &written, &err), &err);
    ok(token_info_read(&info, prefix.text, true, 0, &err), &err);
    assert_int_equal(info.largest, BYTES_EOD);
    static const struct {
        const char *card, *says;
    } cases[] = {
        {"{\"tokens\": 11}", "out.json says 11 tokens, "},
        {"{\"tokens\": 10, \"n_documents\": 2}", "out.json says 2 documents, "},
        {"{\"tokens\": 10, \"vocab_size\": 256}", "token 9 is id 256, outside of a vocabulary of 256"},
        {"{", "out.json:1: the card of the data is not JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(card.text, cases[i].card, strlen(cases[i].card));
        assert_int_equal(token_info_read(&info, prefix.text, true, 0, &err), -1);
        assert_int_equal(err.code, STATUS_INPUT);
        assert_says(&err, cases[i].says, NULL);
    }
    /* A larger vocabulary on the command line does not hide what the card says. */
    write_file(card.text, cases[2].card, strlen(cases[2].card));
    assert_int_equal(token_info_read(&info, prefix.text, true, 1000, &err), -1);
    assert_says(&err, "out.bin holds id 256", "out.json says a vocabulary of 256", NULL);
}

static void info_prints_what_it_read(void **state) {
    token_card card;
    token_info infos[2];
    error err = {0};
    path_text prefix = path_in(state, "out");
    ok(pack_text(state, "a.txt", "one\nthree\nfifteen", 17, PACK_LINES, &card, &err), &err);
    const char *prefixes[] = {prefix.text, "tests/fixtures/megatron/e_empty"};
    ok(token_info_read(&infos[0], prefixes[0], true, 0, &err), &err);
    ok(token_info_read(&infos[1], prefixes[1], true, 0, &err), &err);

    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    ok(token_info_print_json(to, infos, prefixes, 2, &err), &err);
    fclose(to);
    json_t *all = json_loads(text, 0, NULL);
    free(text);
    assert_int_equal(json_array_size(all), 2);
    const json_t *first = json_array_get(all, 0), *second = json_array_get(all, 1), *lengths = json_object_get(first, "lengths");
    assert_string_equal(json_string_value(json_object_get(first, "prefix")), prefix.text);
    assert_string_equal(json_string_value(json_object_get(first, "type")), "uint16");
    assert_int_equal(json_integer_value(json_object_get(first, "documents")), 3);
    assert_int_equal(json_integer_value(json_object_get(first, "tokens")), 18);
    assert_int_equal(json_integer_value(json_object_get(first, "bytes")), 15);
    assert_int_equal(json_integer_value(json_object_get(first, "largest_id")), 256);
    assert_int_equal(json_integer_value(json_object_get(lengths, "shortest")), 4);
    assert_int_equal(json_integer_value(json_object_get(lengths, "median")), 6);
    assert_int_equal(json_integer_value(json_object_get(lengths, "longest")), 8);
    assert_true(json_real_value(json_object_get(first, "bytes_per_token")) == 15.0 / 18.0);
    assert_string_equal(json_string_value(json_object_get(first, "tokenizer_hash")), BYTES_TOKENIZER_HASH);
    static const char *const unknown[] = {"bytes", "bytes_per_token", "largest_id", "vocab_size", "tokenizer", "tokenizer_hash"};
    for (int i = 0; i < 6; i++) assert_true(json_is_null(json_object_get(second, unknown[i])));
    json_decref(all);

    infos[0].n_tokens = 1234567890;
    to = open_memstream(&text, &bytes);
    token_info_print(to, infos, prefixes, 2);
    fclose(to);
    assert_non_null(strstr(text, " 1,234,567,890 "));
    assert_non_null(strstr(text, " 4/6/8 "));
    assert_non_null(strstr(text, " bytes, 260\n"));
    assert_non_null(strstr(text, " -, -\n"));
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_file_is_one_document_of_its_bytes),
        cmocka_unit_test(lines_are_documents_without_their_newline),
        cmocka_unit_test(blank_lines_part_documents),
        cmocka_unit_test(files_follow_one_another),
        cmocka_unit_test(json_strings_become_their_utf8),
        cmocka_unit_test(bad_lines_of_json_are_named),
        cmocka_unit_test(inputs_without_documents_are_refused),
        cmocka_unit_test(files_are_those_of_megatron),
        cmocka_unit_test(ids_that_do_not_fit_are_refused),
        cmocka_unit_test(the_largest_ids_of_a_type_are_kept),
        cmocka_unit_test(files_appear_when_they_are_whole),
        cmocka_unit_test(a_full_disk_leaves_nothing),
        cmocka_unit_test(a_short_write_leaves_what_was_there),
        cmocka_unit_test(a_replacement_that_stops_half_way_leaves_no_index),
        cmocka_unit_test(a_directory_that_is_missing_is_named),
        cmocka_unit_test(info_counts_what_was_written),
        cmocka_unit_test(info_finds_a_card_of_other_data),
        cmocka_unit_test(info_prints_what_it_read),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
