/* test_metrics.c: train/metrics.h. What TensorBoard makes of the event files is for test_tensorboard.py, which runs this program
 * with METRICS_TEST_DIR set and reads what the last test leaves there. */
#include "train/metrics.h"

#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "folder_testing.h"

enum { PATH = 256, TEXT = 1 << 16 };

/* Sends standard output to a file until told to restore it. */
static int redirect_stdout(const char *path) {
    fflush(stdout);
    int saved = dup(STDOUT_FILENO), fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    assert_true(saved >= 0 && fd >= 0);
    dup2(fd, STDOUT_FILENO);
    close(fd);
    return saved;
}

static void restore_stdout(int saved) {
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
}

static void read_text(char text[TEXT], const char *path) {
    FILE *f = fopen(path, "r");
    if (!f) fail_msg("%s is not there", path);
    text[fread(text, 1, TEXT - 1, f)] = '\0';
    fclose(f);
}

static void write_text(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static const step_metrics STEP = {.step = 120,
                                  .n_steps = 5000,
                                  .tokens = 62914560,
                                  .loss = 3.8123,
                                  .z_loss = 0.25,
                                  .lr = 3.1e-4,
                                  .grad_norm = 0.84,
                                  .step_s = 2,
                                  .data_wait_s = 0.01,
                                  .tokens_per_s = 5410,
                                  .gflops = 212,
                                  .peak_share = 0.51,
                                  .memory_bytes = 1975684956,
                                  .eta_s = 724,
                                  .skipped_steps = 0};

static const eval_metrics EVAL = {.step = 500,
                                  .tokens = 262144000,
                                  .prefix = "heldout/wiki",
                                  .loss = 3.708,
                                  .perplexity = 40.77,
                                  .bits_per_byte = 1.31,
                                  .eval_tokens = 100000,
                                  .seconds = 3.5};

static void assert_step_line(const step_metrics *s, const char *expected) {
    char line[METRICS_LINE];
    metrics_step_line(line, s);
    assert_string_equal(line, expected);
}

static void a_step_is_one_readable_line(void **state) {
    (void)state;
    step_metrics s = STEP;
    assert_step_line(&s,
                     "step  120/5000  tokens 62.9M  loss  3.8123  lr 3.1e-04  gnorm  0.84  5.41k tok/s   212 GFLOP/s  (51%)"
                     "  mem 1.84 GiB  eta 12m04s");
    s.skipped_steps = 2;
    s.data_wait_s = 0.024;
    s.peak_share = NAN;
    assert_step_line(&s,
                     "step  120/5000  tokens 62.9M  loss  3.8123  lr 3.1e-04  gnorm  0.84  5.41k tok/s   212 GFLOP/s"
                     "  mem 1.84 GiB  eta 12m04s  skipped 2  data 1.2%");
}

/* Every figure over the range that runs have: no field outgrows its place, so the line has one length. */
static void columns_keep_their_places(void **state) {
    (void)state;
    char line[METRICS_LINE];
    metrics_step_line(line, &STEP);
    size_t length = strlen(line);
    for (int i = 0; i <= 120; i++) {
        double decades = pow(10, i / 10.0);
        step_metrics s = STEP;
        s.step = 1 + i * 41;
        s.tokens = (int64_t)decades;
        s.loss = 0.001 * pow(10, i / 40.0);
        s.lr = 1e-9 * decades;
        s.grad_norm = 1e-3 * decades;
        s.tokens_per_s = decades;
        s.gflops = 1e-2 * decades;
        s.peak_share = 0.01 * i;
        s.memory_bytes = (size_t)(1e6 * decades / 1e2);
        s.eta_s = 0.01 * decades < 8e7 ? 0.01 * decades : INFINITY;
        metrics_step_line(line, &s);
        if (strlen(line) != length || strncmp(line + length - 12, "  eta ", 6) != 0)
            fail_msg("%zu characters, expected %zu:\n%s", strlen(line), length, line);
    }
    step_metrics broken = STEP;
    broken.loss = broken.grad_norm = NAN;
    broken.eta_s = NAN;
    metrics_step_line(line, &broken);
    assert_int_equal(strlen(line), length);
    assert_non_null(strstr(line, "loss     nan  lr 3.1e-04  gnorm   nan"));
}

static void durations_read_as_two_units(void **state) {
    (void)state;
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {{0.4, "    0s"},     {59.4, "   59s"},  {59.6, " 1m00s"},  {3599, "59m59s"},
                 {3600, " 1h00m"},    {86399, "23h59m"}, {86400, " 1d00h"}, {8e6, "92d14h"},
                 {8640000, "  100d"}, {NAN, "     -"},   {-1, "     -"},    {INFINITY, "     -"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[METRICS_LINE];
        step_metrics s = STEP;
        s.eta_s = cases[i].seconds;
        metrics_step_line(line, &s);
        assert_string_equal(line + strlen(line) - 6, cases[i].text);
    }
}

static void an_eval_line_stands_under_the_steps(void **state) {
    (void)state;
    char line[METRICS_LINE];
    metrics_eval_line(line, &EVAL, 4, 14);
    assert_string_equal(line, "eval  500       heldout/wiki    loss  3.7080  ppl  40.8  bits/byte 1.3100");
    eval_metrics e = EVAL;
    e.bits_per_byte = NAN;
    e.perplexity = 250000;
    metrics_eval_line(line, &e, 0, 0);
    assert_string_equal(line, "eval 500  heldout/wiki  loss  3.7080  ppl 2e+05");
}

/* Opens DIR at first_step and logs the steps [from, to) and an evaluation at each step of a multiple of 10. */
static void log_steps(const char *dir, int64_t first_step, int64_t from, int64_t to) {
    error err;
    metrics *m;
    char console[PATH];
    if (metrics_open(&m, dir, first_step, false, &err)) fail_msg("%s", err.text);
    int saved = redirect_stdout(in_folder(console, "console"));
    for (int64_t i = from; i < to; i++) {
        step_metrics s = STEP;
        s.step = i;
        s.loss = 10.0 / (double)(i + first_step); /* the resumed part differs from what it replaces */
        eval_metrics e = EVAL;
        e.step = i;
        e.loss = 11.0 / (double)(i + first_step);
        if (metrics_step(m, &s, &err) || (i % 10 == 0 && metrics_eval(m, &e, &err))) fail_msg("%s", err.text);
    }
    restore_stdout(saved);
    metrics_close(m);
}

static void the_console_gets_the_lines(void **state) {
    (void)state;
    char dir[PATH], console[PATH], text[TEXT], line[METRICS_LINE], expected[TEXT];
    log_steps(in_folder(dir, "console_run"), 0, 10, 11);
    read_text(text, in_folder(console, "console"));
    step_metrics s = STEP;
    s.step = 10;
    s.loss = 1.0;
    eval_metrics e = EVAL;
    e.step = 10;
    e.loss = 1.1;
    metrics_step_line(line, &s);
    int n = snprintf(expected, sizeof expected, "%s\n", line);
    metrics_eval_line(line, &e, 4, 12);
    snprintf(expected + n, sizeof expected - (size_t)n, "%s\n", line);
    assert_string_equal(text, expected);
}

static void a_line_of_json_holds_every_figure(void **state) {
    (void)state;
    error err;
    metrics *m;
    char dir[PATH], path[PATH], text[TEXT];
    step_metrics s = STEP;
    eval_metrics e = EVAL;
    s.grad_norm = NAN;
    s.eta_s = INFINITY;
    s.loss = 0.1 + 0.2; /* 0.30000000000000004: all digits are kept */
    e.bits_per_byte = NAN;
    e.prefix = "a \"quoted\" name";
    assert_int_equal(metrics_open(&m, in_folder(dir, "json/made/here"), 0, false, &err), 0);
    int saved = redirect_stdout("/dev/null"), failed = metrics_step(m, &s, &err) || metrics_eval(m, &e, &err);
    restore_stdout(saved);
    metrics_close(m);
    assert_int_equal(failed, 0);
    read_text(text, in_folder(path, "json/made/here/metrics.jsonl"));
    char *second = strchr(text, '\n') + 1;
    json_t *train = json_loadb(text, (size_t)(second - text), 0, NULL), *eval = json_loads(second, 0, NULL);
    json_t *train_expected =
        json_pack("{ss,si,si,sI,sf,sf,sf,sn,sf,sf,sf,sf,sf,sI,sn,si}", "kind", "train", "step", 120, "n_steps", 5000, "tokens",
                  (json_int_t)62914560, "loss", 0.1 + 0.2, "z_loss", 0.25, "lr", 3.1e-4, "grad_norm", "step_s", 2.0,
                  "data_wait_s", 0.01, "tokens_per_s", 5410.0, "gflops", 212.0, "peak_share", 0.51, "memory_bytes",
                  (json_int_t)1975684956, "eta_s", "skipped_steps", 0);
    json_t *eval_expected = json_pack("{ss,ss,si,sI,sf,sf,sn,sI,sf}", "kind", "eval", "prefix", e.prefix, "step", 500, "tokens",
                                      (json_int_t)262144000, "loss", 3.708, "perplexity", 40.77, "bits_per_byte", "eval_tokens",
                                      (json_int_t)100000, "seconds", 3.5);
    if (!json_equal(train, train_expected) || !json_equal(eval, eval_expected)) fail_msg("the file holds\n%s", text);
    json_decref(train);
    json_decref(eval);
    json_decref(train_expected);
    json_decref(eval_expected);
}

static void lines_beyond_the_checkpoint_and_a_torn_one_are_cut(void **state) {
    (void)state;
    error err;
    metrics *m;
    char dir[PATH], path[PATH], text[TEXT];
    in_folder(dir, "cut");
    in_folder(path, "cut/metrics.jsonl");
    assert_int_equal(metrics_open(&m, dir, 0, false, &err), 0);
    metrics_close(m);
    write_text(path,
               "{\"kind\": \"train\", \"step\": 1}\n{\"kind\": \"train\", \"step\": 3}\n{\"kind\": \"eval\", \"step\": 2}\n"
               "{\"kind\": \"train\", \"step\": 2}\n{\"kind\": \"train\", \"st");
    assert_int_equal(metrics_open(&m, dir, 2, false, &err), 0);
    metrics_close(m);
    read_text(text, path);
    assert_string_equal(
        text, "{\"kind\": \"train\", \"step\": 1}\n{\"kind\": \"eval\", \"step\": 2}\n{\"kind\": \"train\", \"step\": 2}\n");
}

/* Of the evaluation that a run was stopped in, one of two sources may be there, and with a kill after it was made again all. */
static void an_evaluation_that_is_repeated_is_cut(void **state) {
    (void)state;
    error err;
    metrics *m;
    char dir[PATH], path[PATH], text[TEXT];
    in_folder(dir, "repeated");
    in_folder(path, "repeated/metrics.jsonl");
    assert_int_equal(metrics_open(&m, dir, 0, false, &err), 0);
    metrics_close(m);
    write_text(path,
               "{\"kind\": \"eval\", \"step\": 1}\n{\"kind\": \"train\", \"step\": 2}\n"
               "{\"kind\": \"eval\", \"step\": 2}\n{\"kind\": \"train\", \"step\": 3}\n");
    assert_int_equal(metrics_open(&m, dir, 2, true, &err), 0);
    metrics_close(m);
    read_text(text, path);
    assert_string_equal(text, "{\"kind\": \"eval\", \"step\": 1}\n{\"kind\": \"train\", \"step\": 2}\n");
}

static void nothing_to_cut_leaves_the_file_alone(void **state) {
    (void)state;
    error err;
    metrics *m;
    char dir[PATH], path[PATH];
    struct stat before, after;
    log_steps(in_folder(dir, "whole"), 0, 1, 6);
    assert_int_equal(stat(in_folder(path, "whole/metrics.jsonl"), &before), 0);
    assert_int_equal(metrics_open(&m, dir, 5, false, &err), 0);
    metrics_close(m);
    assert_int_equal(stat(path, &after), 0);
    assert_true(after.st_ino == before.st_ino);
    assert_int_equal(after.st_size, before.st_size);
    assert_true(after.st_size > 1000);
}

static void a_new_run_starts_with_an_empty_file(void **state) {
    (void)state;
    error err;
    metrics *m;
    char dir[PATH], path[PATH], text[TEXT];
    log_steps(in_folder(dir, "again"), 0, 0, 6);
    assert_int_equal(metrics_open(&m, dir, 0, false, &err), 0);
    metrics_close(m);
    read_text(text, in_folder(path, "again/metrics.jsonl"));
    assert_string_equal(text, "");
}

static void a_file_that_is_not_ours_is_refused_by_line(void **state) {
    (void)state;
    error err;
    metrics *m;
    char dir[PATH], path[PATH], text[TEXT];
    log_steps(in_folder(dir, "foreign"), 0, 1, 2);
    write_text(in_folder(path, "foreign/metrics.jsonl"), "{\"step\": 1}\nhello\n{\"step\": 2}\n");
    assert_int_equal(metrics_open(&m, dir, 1, false, &err), -1);
    assert_null(m);
    assert_int_equal(err.code, STATUS_INPUT);
    assert_non_null(strstr(err.text, "/foreign/metrics.jsonl:2: expected a JSON object with an integer \"step\""));
    read_text(text, path);
    assert_string_equal(text, "{\"step\": 1}\nhello\n{\"step\": 2}\n");
}

/* Logs a step while no file may grow beyond `limit` bytes. Gives the sizes of both files. */
static int log_within(const char *name, rlim_t limit, rlim_t *json_size, rlim_t *event_size, error *err) {
    metrics *m;
    char dir[PATH], path[2 * PATH];
    struct rlimit before;
    struct stat about;
    glob_t files;
    assert_int_equal(metrics_open(&m, in_folder(dir, name), 0, false, err), 0);
    getrlimit(RLIMIT_FSIZE, &before);
    int saved = redirect_stdout("/dev/null");
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &(struct rlimit){limit, before.rlim_max});
    int result = metrics_step(m, &STEP, err);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    restore_stdout(saved);
    metrics_close(m);

    snprintf(path, sizeof path, "%s/metrics.jsonl", dir);
    assert_int_equal(stat(path, &about), 0);
    *json_size = (rlim_t)about.st_size;
    snprintf(path, sizeof path, "%s/events.out.tfevents.*", dir);
    assert_int_equal(glob(path, 0, NULL, &files), 0);
    assert_int_equal(stat(files.gl_pathv[0], &about), 0);
    *event_size = (rlim_t)about.st_size;
    globfree(&files);
    return result;
}

static void a_disk_that_fills_up_is_an_error(void **state) {
    (void)state;
    error err;
    rlim_t json, event, json_left, event_left;
    assert_int_equal(log_within("not_full", 100000, &json, &event, &err), 0);
    assert_true(event > json);

    assert_int_equal(log_within("full_json", json - 1, &json_left, &event_left, &err), -1);
    assert_non_null(strstr(err.text, "/full_json/metrics.jsonl: cannot write: File too large"));
    assert_int_equal(err.code, STATUS_RESOURCE);
    assert_int_equal(json_left, json - 1);

    assert_int_equal(log_within("full_event", event - 1, &json_left, &event_left, &err), -1);
    assert_non_null(strstr(err.text, "/full_event/events.out.tfevents."));
    assert_non_null(strstr(err.text, ": cannot write: File too large"));
    assert_int_equal(err.code, STATUS_RESOURCE);
    assert_int_equal(event_left, event - 1);
}

static void a_console_that_cannot_be_written_is_an_error(void **state) {
    (void)state;
    error err;
    metrics *m;
    char dir[PATH];
    assert_int_equal(metrics_open(&m, in_folder(dir, "no_console"), 0, false, &err), 0);
    int saved = redirect_stdout("/dev/full"), result = metrics_step(m, &STEP, &err);
    restore_stdout(saved);
    clearerr(stdout);
    metrics_close(m);
    assert_int_equal(result, -1);
    assert_string_equal(err.text, "standard output: cannot write: No space left on device.");
}

static void a_directory_that_cannot_be_made_is_named(void **state) {
    (void)state;
    error err;
    metrics *m;
    assert_int_equal(metrics_open(&m, "/proc/none/run", 0, false, &err), -1);
    assert_null(m);
    assert_non_null(strstr(err.text, "/proc/none: cannot make the directory"));
}

/* Steps 1 to 30, a kill, a resume from the checkpoint of step 20, on to step 40. Both parts within one second: the names of the
 * event files must differ and sort in their order. */
static void a_resumed_run_adds_an_event_file(void **state) {
    (void)state;
    char path[PATH], line[32], text[TEXT];
    const char *dir = getenv("METRICS_TEST_DIR");
    if (!dir) dir = in_folder(path, "resumed");
    log_steps(dir, 0, 1, 31);
    log_steps(dir, 20, 21, 41);
    char pattern[2 * PATH];
    glob_t files;
    snprintf(pattern, sizeof pattern, "%s/events.out.tfevents.*", dir);
    assert_int_equal(glob(pattern, 0, NULL, &files), 0);
    assert_int_equal(files.gl_pathc, 2);
    struct stat first, second;
    assert_int_equal(stat(files.gl_pathv[0], &first), 0);
    assert_int_equal(stat(files.gl_pathv[1], &second), 0);
    assert_true(first.st_size > second.st_size); /* 30 steps, then 20 */
    globfree(&files);

    snprintf(pattern, sizeof pattern, "%s/metrics.jsonl", dir);
    read_text(text, pattern);
    const char *at = text;
    for (int i = 1; i <= 40; i++) {
        snprintf(line, sizeof line, "\"step\": %d,", i);
        for (int lines = i % 10 == 0 ? 2 : 1; lines > 0; lines--) {
            const char *end = strchr(at, '\n'), *found = strstr(at, line);
            if (!end || !found || found > end) fail_msg("step %d is missing or out of order at: %.80s", i, at);
            at = end + 1;
        }
    }
    assert_string_equal(at, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_is_one_readable_line),
        cmocka_unit_test(columns_keep_their_places),
        cmocka_unit_test(durations_read_as_two_units),
        cmocka_unit_test(an_eval_line_stands_under_the_steps),
        cmocka_unit_test(the_console_gets_the_lines),
        cmocka_unit_test(a_line_of_json_holds_every_figure),
        cmocka_unit_test(lines_beyond_the_checkpoint_and_a_torn_one_are_cut),
        cmocka_unit_test(an_evaluation_that_is_repeated_is_cut),
        cmocka_unit_test(nothing_to_cut_leaves_the_file_alone),
        cmocka_unit_test(a_new_run_starts_with_an_empty_file),
        cmocka_unit_test(a_file_that_is_not_ours_is_refused_by_line),
        cmocka_unit_test(a_disk_that_fills_up_is_an_error),
        cmocka_unit_test(a_console_that_cannot_be_written_is_an_error),
        cmocka_unit_test(a_directory_that_cannot_be_made_is_named),
        cmocka_unit_test(a_resumed_run_adds_an_event_file),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
