/* test_heldout.c: eval/heldout.h on one rank. What several come to is for test_training.py and test_stop.py. */
#include "eval/heldout.h"

#include "tests/data_testing.h"
#include "tests/fixture.h"

enum { T = 17, N_TOKENS = 9 * T + 5, N_WINDOWS = 10, N_BATCHES = 5 }; /* two windows a batch */
static const ramp tokens_of_file = {3, 5, 37};

typedef struct subject {
    fixture f;
    network net;
    path_text prefix;
    ranks alone;
} subject;

static subject make_subject(void **state) {
    subject s = {.f = fixture_open("hybrid_fws"), .prefix = path_in(state, "tokens"), .alone = {.size = 1, .local_size = 1}};
    fixture_network(&s.net, &s.f, (model_options){.x = DTYPE_F32, .T = T, .B = 2});
    write_documents(s.prefix.text, TOKEN_UINT16, (int64_t[]){N_TOKENS}, 1, tokens_of_file);
    return s;
}

static void subject_close(subject *s) {
    network_close(&s->net);
    fixture_close(&s->f);
}

static heldout_loss measure(subject *s, int64_t max_tokens, const heldout_stop *stop) {
    error err = {0};
    heldout_loss loss;
    if (heldout_measure(&loss, &s->net.m, s->prefix.text, false, max_tokens, stop, &s->alone, &err)) fail_msg("%s", err.text);
    return loss;
}

/* Nats of the first n_windows, one at a time, the tokens by their formula. */
static double nats_of_windows(subject *s, int n_windows, int64_t *n_tokens) {
    error err = {0};
    int32_t tokens[T], targets[T], doc[T] = {0}, pos[T];
    float losses[T];
    double nats = 0;
    *n_tokens = 0;
    for (int64_t first = 0; first < (int64_t)n_windows * T; first += T) {
        for (int64_t t = first; t < first + T; t++) {
            int i = (int)(t - first);
            tokens[i] = (int32_t)(t < N_TOKENS ? (3 + 5 * t) % 37 : 0);
            targets[i] = (int32_t)(t + 1 < N_TOKENS ? (3 + 5 * (t + 1)) % 37 : -1);
            pos[i] = i;
        }
        model_input in = {1, tokens, targets, doc, pos};
        if (model_losses(&s->net.m, &in, losses, &err)) fail_msg("%s", err.text);
        for (int i = 0; i < T; i++) {
            nats += losses[i];
            *n_tokens += targets[i] >= 0;
        }
    }
    return nats;
}

static void every_token_but_the_first_is_predicted_once(void **state) {
    subject s = make_subject(state);
    int64_t n_tokens;
    double nats = nats_of_windows(&s, N_WINDOWS, &n_tokens);
    heldout_loss loss = measure(&s, 0, NULL);
    assert_int_equal(n_tokens, N_TOKENS - 1);
    assert_int_equal(loss.tokens, N_TOKENS - 1);
    if (!(fabs(loss.nats - nats) <= 1e-6 * nats)) fail_msg("%.9f nats, expected %.9f", loss.nats, nats);
    assert_false(loss.abandoned);
    subject_close(&s);
}

static void a_part_of_a_file_is_whole_windows(void **state) {
    subject s = make_subject(state);
    int64_t n_tokens;
    double nats = nats_of_windows(&s, 3, &n_tokens);
    heldout_loss loss = measure(&s, 2 * T + 1, NULL);
    assert_int_equal(loss.tokens, n_tokens);
    if (!(fabs(loss.nats - nats) <= 1e-6 * nats)) fail_msg("%.9f nats, expected %.9f", loss.nats, nats);
    subject_close(&s);
}

/* Says yes when asked for the at-th time; 0: never. */
typedef struct asking {
    int at, n;
    bool failed;
} asking;

static bool ask(void *context, bool failed) {
    asking *a = context;
    a->failed = a->failed || failed;
    return ++a->n == a->at;
}

static void it_is_asked_for_before_each_batch_and_abandoned_there(void **state) {
    subject s = make_subject(state);
    heldout_loss whole = measure(&s, 0, NULL);
    for (int at = 0; at <= N_BATCHES + 1; at++) {
        asking a = {.at = at};
        heldout_loss loss = measure(&s, 0, &(heldout_stop){ask, &a});
        bool abandoned = at >= 1 && at <= N_BATCHES;
        assert_int_equal(a.n, abandoned ? at : N_BATCHES);
        assert_int_equal(loss.abandoned, abandoned);
        assert_int_equal(loss.tokens, abandoned ? (at - 1) * 2 * T : whole.tokens);
        assert_true(abandoned || loss.nats == whole.nats);
        assert_false(a.failed);
    }
    subject_close(&s);
}

static void a_total_is_of_sums_and_abandoned_with_any_of_them(void **state) {
    (void)state;
    heldout_loss total = {0};
    heldout_add(&total, &(heldout_loss){30, 10, 20, 1, false});
    assert_false(total.abandoned);
    heldout_add(&total, &(heldout_loss){10, 30, NAN, 2, true});
    heldout_add(&total, &(heldout_loss){0});
    assert_true(total.abandoned && total.seconds == 3);
    assert_true(heldout_mean(&total) == 1);
    assert_true(isnan(heldout_bits_per_byte(&total)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_but_the_first_is_predicted_once),
        cmocka_unit_test(a_part_of_a_file_is_whole_windows),
        cmocka_unit_test(it_is_asked_for_before_each_batch_and_abandoned_there),
        cmocka_unit_test(a_total_is_of_sums_and_abandoned_with_any_of_them),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
