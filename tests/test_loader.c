/* test_loader.c: data/loader.h: what stands in a batch, that ranks and resuming do not change it, and the thread behind it. */
#include "data/loader.h"

#include <inttypes.h>
#include <time.h>

#include "data/order.h"
#include "tests/data_testing.h"

enum { VOCAB = 50000 };

/* Three files whose tokens tell their place: token t of file k is 10000 k + t. Documents of 1 to 40 tokens. */
enum { N_FILES = 3 };
static const int64_t file_tokens[N_FILES] = {400, 1234, 97};
static const double weights[N_FILES] = {0.5, 0.3, 0.2};

typedef struct corpus {
    path_text paths[N_FILES];
    const char *prefixes[N_FILES];
} corpus;

static corpus make_corpus(void **state) {
    static const char *const names[N_FILES] = {"first", "second", "third"};
    corpus c;
    for (int k = 0; k < N_FILES; k++) {
        int64_t lengths[300], left = file_tokens[k];
        int n = 0;
        for (; left > 0; n++) {
            lengths[n] = 1 + (7 * n + 3 * k) % 40;
            if (lengths[n] > left) lengths[n] = left;
            left -= lengths[n];
        }
        c.paths[k] = path_in(state, names[k]);
        write_documents(c.paths[k].text, TOKEN_UINT16, lengths, n, (ramp){10000 * k, 1, 1 << 16});
    }
    return c;
}

static loader_options options_of(corpus *c, int seq_len, int rows) {
    for (int k = 0; k < N_FILES; k++) c->prefixes[k] = c->paths[k].text;
    return (loader_options){.n_sources = N_FILES,
                            .prefixes = c->prefixes,
                            .weights = weights,
                            .seq_len = seq_len,
                            .rows_per_step = rows,
                            .vocab_size = VOCAB,
                            .seed = 7,
                            .n_ranks = 1};
}

static loader *open_loader(const loader_options *o) {
    loader *l;
    error err = {0};
    if (loader_open(&l, o, &err)) fail_msg("%s", err.text);
    return l;
}

static const token_batch *next_batch(loader *l) {
    const token_batch *batch;
    error err = {0};
    double waited = -1;
    if (loader_next(l, &batch, &waited, &err)) fail_msg("%s", err.text);
    assert_true(waited >= 0 && waited < 60);
    return batch;
}

/* The tokens of `steps` steps, (steps, rows, seq_len), of all ranks put together. */
static int32_t *tokens_of_steps(loader_options o, int n_ranks, int steps) {
    size_t row = (size_t)o.seq_len;
    int32_t *all = calloc((size_t)steps * (size_t)o.rows_per_step * row, sizeof *all);
    assert_non_null(all);
    for (int rank = 0; rank < n_ranks; rank++) {
        o.rank = rank;
        o.n_ranks = n_ranks;
        loader *l = open_loader(&o);
        int begin = o.rows_per_step * rank / n_ranks, end = o.rows_per_step * (rank + 1) / n_ranks;
        for (int step = 0; step < steps; step++) {
            const token_batch *batch = next_batch(l);
            assert_int_equal(batch->rows, end - begin);
            assert_int_equal(batch->seq_len, o.seq_len);
            memcpy(all + ((size_t)step * (size_t)o.rows_per_step + (size_t)begin) * row, batch->tokens,
                   (size_t)batch->rows * row * sizeof *all);
        }
        loader_close(l);
    }
    return all;
}

/* ---- what stands in a batch ---- */

/* Row i of step s is sample s * rows + i of the order: a window of its file, and the targets are the same window one token on. */
static void rows_are_the_samples_of_the_order(void **state) {
    corpus c = make_corpus(state);
    loader_options o = options_of(&c, 16, 5);
    loader *l = open_loader(&o);
    int64_t windows[N_FILES];
    for (int k = 0; k < N_FILES; k++) windows[k] = (file_tokens[k] - 1) / 16;
    sample_order order;
    error err = {0};
    assert_int_equal(sample_order_open(&order, N_FILES, o.prefixes, windows, weights, 7, &err), 0);
    for (int step = 0; step < 60; step++) {
        const token_batch *batch = next_batch(l);
        assert_int_equal(batch->n_valid, 5 * 16);
        for (int row = 0; row < 5; row++) {
            sample s = sample_order_next(&order);
            for (int t = 0; t < 16; t++) {
                int64_t at = row * 16 + t, token = 10000 * s.source + s.window * 16 + t;
                assert_int_equal(batch->tokens[at], token);
                assert_int_equal(batch->targets[at], token + 1);
                assert_int_equal(batch->doc[at], 0);
                assert_int_equal(batch->pos[at], t);
            }
        }
    }
    sample_order_close(&order);
    loader_close(l);
}

/* With mask_documents, doc and pos start anew at each document and nothing is predicted across its end; checked against the
 * lengths that the file was written with. */
static void masked_documents_do_not_see_each_other(void **state) {
    path_text prefix = path_in(state, "documents");
    static const int64_t lengths[] = {5, 1, 0, 9, 1, 1, 20, 3};
    int document_of[40], place_in[40], n = 0;
    for (int d = 0; d < 8; d++)
        for (int i = 0; i < lengths[d]; i++, n++) document_of[n] = d, place_in[n] = i;
    assert_int_equal(n, 40);
    write_documents(prefix.text, TOKEN_INT32, lengths, 8, (ramp){100, 1, 1000});
    token_file f;
    error err = {0};
    assert_int_equal(token_file_open(&f, prefix.text, &err), 0);
    token_batch batch;
    for (int T = 1; T <= 41; T++)
        for (int64_t first = 0; first <= 41; first++) {
            assert_int_equal(token_batch_alloc(&batch, 2, T, &err), 0);
            assert_int_equal(token_batch_fill(&batch, 1, &f, first, 1000, true, &err), 0);
            int64_t valid = 0;
            int documents = 0;
            for (int t = 0; t < T; t++) {
                int64_t i = first + t;
                int at = T + t;
                if (i >= n) {
                    assert_int_equal(batch.tokens[at], 0);
                    assert_int_equal(batch.targets[at], -1);
                    continue;
                }
                if (t > 0 && document_of[i] != document_of[i - 1]) documents++;
                bool predicted = i + 1 < n && document_of[i + 1] == document_of[i];
                assert_int_equal(batch.tokens[at], 100 + i);
                assert_int_equal(batch.targets[at], predicted ? 100 + i + 1 : -1);
                assert_int_equal(batch.doc[at], documents);
                assert_int_equal(batch.pos[at], place_in[i] < t ? place_in[i] : t);
                valid += predicted;
            }
            assert_int_equal(batch.n_valid, valid);
            token_batch_free(&batch);
        }
    token_file_close(&f);
}

static void the_loader_masks_documents_when_asked(void **state) {
    corpus c = make_corpus(state);
    loader_options o = options_of(&c, 32, 8);
    o.mask_documents = true;
    loader *l = open_loader(&o);
    int64_t masked = 0;
    for (int step = 0; step < 20; step++) {
        const token_batch *batch = next_batch(l);
        int64_t valid = 0;
        for (int at = 0; at < 8 * 32; at++) {
            valid += batch->targets[at] != -1;
            if (at % 32 == 31) continue;
            bool same = batch->doc[at] == batch->doc[at + 1];
            assert_int_equal(batch->targets[at], same ? batch->tokens[at] + 1 : -1);
            assert_int_equal(batch->pos[at + 1], same ? batch->pos[at] + 1 : 0);
        }
        assert_int_equal(batch->n_valid, valid);
        masked += 8 * 32 - valid;
    }
    assert_true(masked > 0);
    loader_close(l);
}

/* ---- a file read from end to end ---- */

/* Every token but the first is a target exactly once, and what is past the end is none. */
static void windows_from_end_to_end_predict_every_token_once(void **state) {
    corpus c = make_corpus(state);
    token_file f;
    error err = {0};
    assert_int_equal(token_file_open(&f, c.paths[0].text, &err), 0);
    static const int lengths[] = {1, 7, 16, 399, 400, 401, 1000};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        int T = lengths[i], targets[401] = {0};
        int64_t valid = 0;
        token_batch batch;
        assert_int_equal(token_batch_alloc(&batch, 1, T, &err), 0);
        for (int64_t first = 0; first < f.n_tokens - 1; first += T) {
            assert_int_equal(token_batch_fill(&batch, 0, &f, first, VOCAB, false, &err), 0);
            valid += batch.n_valid;
            for (int t = 0; t < T; t++) {
                int32_t target = batch.targets[t];
                if (target == -1) continue;
                assert_in_range(target, 1, 399);
                assert_int_equal(target, batch.tokens[t] + 1);
                targets[target]++;
            }
        }
        assert_int_equal(valid, 399);
        for (int id = 1; id < 400; id++) assert_int_equal(targets[id], 1);
        token_batch_free(&batch);
    }
    token_file_close(&f);
}

/* n_valid stays the number of targets in the whole batch, whatever is filled over what. */
static void n_valid_counts_the_batch(void **state) {
    corpus c = make_corpus(state);
    token_file f;
    error err = {0};
    token_batch batch;
    assert_int_equal(token_file_open(&f, c.paths[2].text, &err), 0);
    assert_int_equal(token_batch_alloc(&batch, 3, 10, &err), 0);
    assert_int_equal(batch.n_valid, 0);
    static const struct {
        int row;
        int64_t first;
    } fills[] = {{0, 0}, {1, 90}, {2, 86}, {0, 95}, {1, 97}, {1, 5}, {0, 96}, {2, 2000}};
    for (size_t i = 0; i < sizeof fills / sizeof *fills; i++) {
        assert_int_equal(token_batch_fill(&batch, fills[i].row, &f, fills[i].first, VOCAB, i % 2, &err), 0);
        int64_t valid = 0;
        for (int at = 0; at < 30; at++) valid += batch.targets[at] != -1;
        assert_int_equal(batch.n_valid, valid);
    }
    token_batch_free(&batch);
    token_file_close(&f);
}

/* ---- ranks and resuming ---- */

static void ranks_together_see_the_rows_of_one(void **state) {
    corpus c = make_corpus(state);
    loader_options o = options_of(&c, 16, 10);
    size_t bytes = sizeof(int32_t) * 40 * 10 * 16;
    int32_t *alone = tokens_of_steps(o, 1, 40);
    static const int n_ranks[] = {2, 3, 5, 10, 16}; /* 16: some ranks have no row */
    for (size_t i = 0; i < sizeof n_ranks / sizeof *n_ranks; i++) {
        int32_t *together = tokens_of_steps(o, n_ranks[i], 40);
        assert_memory_equal(together, alone, bytes);
        free(together);
    }
    free(alone);
}

/* The same samples whatever the size of a step, and from wherever the run goes on. */
static void a_resumed_run_sees_the_samples_that_would_have_come(void **state) {
    corpus c = make_corpus(state);
    enum { T = 16, SAMPLES = 480 };
    loader_options o = options_of(&c, T, 10);
    int32_t *all = tokens_of_steps(o, 1, SAMPLES / 10);
    static const int rows[] = {1, 6, 15};
    static const int64_t first[] = {0, 1, 37, 150, 401};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t i = 0; i < sizeof first / sizeof *first; i++) {
            loader_options resumed = options_of(&c, T, rows[r]);
            resumed.first_sample = first[i];
            int steps = (int)(SAMPLES - first[i]) / rows[r];
            int32_t *rest = tokens_of_steps(resumed, 2, steps);
            assert_memory_equal(rest, all + first[i] * T, sizeof(int32_t) * T * (size_t)rows[r] * (size_t)steps);
            free(rest);
        }
    free(all);
}

/* ---- the thread ---- */

/* A batch is the caller's until its next call: the thread, given time, does not write over it. */
static void a_batch_stays_until_the_next_call(void **state) {
    corpus c = make_corpus(state);
    loader_options o = options_of(&c, 64, 32);
    loader *l = open_loader(&o);
    int32_t kept[32 * 64];
    for (int step = 0; step < 10; step++) {
        const token_batch *batch = next_batch(l);
        memcpy(kept, batch->tokens, sizeof kept);
        const struct timespec pause = {0, 3000000};
        nanosleep(&pause, NULL);
        assert_memory_equal(batch->tokens, kept, sizeof kept);
    }
    loader_close(l);
}

static void a_loader_closes_at_any_time(void **state) {
    corpus c = make_corpus(state);
    loader_options o = options_of(&c, 64, 32);
    for (int i = 0; i < 200; i++) {
        loader *l = open_loader(&o);
        for (int step = 0; step < i % 4; step++) next_batch(l);
        loader_close(l);
    }
    loader_close(NULL);
}

/* ---- errors ---- */

/* The steps before the damage come; the step with it fails with the file, the place and the id, and so does every call after it.
 */
static void an_id_outside_of_the_vocabulary_is_named(void **state) {
    path_text prefix = path_in(state, "outside");
    const int64_t length = 1601;
    write_documents(prefix.text, TOKEN_INT32, &length, 1, (ramp){0, 1, 1 << 20});
    const char *name = prefix.text;
    const double one = 1;
    loader_options o = {
        .n_sources = 1, .prefixes = &name, .weights = &one, .seq_len = 16, .rows_per_step = 1, .vocab_size = 1600, .n_ranks = 1};
    /* Only id 1600, the target of the last window's last token, lies outside. */
    loader *l = open_loader(&o);
    const token_batch *batch;
    error err = {0};
    int good = 0;
    while (loader_next(l, &batch, NULL, &err) == 0) {
        good++;
        assert_int_not_equal(batch->tokens[0], 1584);
    }
    assert_in_range(good, 0, 99);
    assert_int_equal(err.code, STATUS_INPUT);
    assert_says(&err, "outside.bin: token 1600 is id 1600", "vocabulary of 1600", NULL);
    for (int again = 0; again < 3; again++) {
        error later = {0};
        assert_int_equal(loader_next(l, &batch, NULL, &later), -1);
        assert_string_equal(later.text, err.text);
    }
    loader_close(l);

    token_file f;
    token_batch mine;
    assert_int_equal(token_file_open(&f, prefix.text, &err), 0);
    assert_int_equal(token_batch_alloc(&mine, 1, 16, &err), 0);
    assert_int_equal(token_batch_fill(&mine, 0, &f, 99, 99, false, &err), -1); /* the first token of a window */
    assert_says(&err, "token 99 is id 99", NULL);
    assert_int_equal(token_batch_fill(&mine, 0, &f, 98, 99, false, &err), -1); /* a target */
    assert_says(&err, "token 99 is id 99", NULL);
    assert_int_equal(mine.n_valid, 0);
    token_batch_free(&mine);
    token_file_close(&f);
}

static int open_fails(loader_options o, error *err) {
    loader *l;
    assert_int_equal(loader_open(&l, &o, err), -1);
    assert_null(l);
    return err->code;
}

static void what_cannot_be_read_is_named_at_open(void **state) {
    corpus c = make_corpus(state);
    error err = {0};
    loader_options o = options_of(&c, 97, 4); /* the third file has 97 tokens, one window takes 98 */
    assert_int_equal(open_fails(o, &err), STATUS_INPUT);
    assert_says(&err, c.paths[2].text, "97 tokens", "sequence length 97 needs 98", "data.seq_len", NULL);

    o = options_of(&c, 96, 4);
    loader_close(open_loader(&o));

    c.prefixes[1] = "no/such/data";
    assert_int_equal(open_fails(o, &err), STATUS_INPUT);
    assert_says(&err, "no/such/data.idx", NULL);

    o = options_of(&c, 16, 4);
    const double negative[] = {1, 1, -2};
    o.weights = negative;
    assert_int_equal(open_fails(o, &err), STATUS_USAGE);
    assert_says(&err, c.paths[2].text, "weight is -2", NULL);

    o.n_sources = 0;
    assert_int_equal(open_fails(o, &err), STATUS_USAGE);

    o = options_of(&c, 16, 4);
    c.prefixes[0] = "tests/fixtures/megatron/e_empty";
    assert_int_equal(open_fails(o, &err), STATUS_INPUT);
    assert_says(&err, "e_empty has 0 tokens", NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_are_the_samples_of_the_order),
        cmocka_unit_test(masked_documents_do_not_see_each_other),
        cmocka_unit_test(the_loader_masks_documents_when_asked),
        cmocka_unit_test(windows_from_end_to_end_predict_every_token_once),
        cmocka_unit_test(n_valid_counts_the_batch),
        cmocka_unit_test(ranks_together_see_the_rows_of_one),
        cmocka_unit_test(a_resumed_run_sees_the_samples_that_would_have_come),
        cmocka_unit_test(a_batch_stays_until_the_next_call),
        cmocka_unit_test(a_loader_closes_at_any_time),
        cmocka_unit_test(an_id_outside_of_the_vocabulary_is_named),
        cmocka_unit_test(what_cannot_be_read_is_named_at_open),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
