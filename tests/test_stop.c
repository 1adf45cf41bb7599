/* test_stop.c: train/stop.h, each test in a process of its own, for signals and flags belong to the process. Whole runs are for
 * test_stop.py. */
#include "train/stop.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const ranks alone = {.size = 1, .local_size = 1};

/* Runs `body` in a child; text: what it wrote to standard output. Returns its exit status, or -number of the signal that ended
 * it. */
static int in_child(int (*body)(void), char text[200]) {
    int ends[2], ended;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        _exit(body());
    }
    close(ends[1]);
    ssize_t n = read(ends[0], text, 199);
    text[n > 0 ? n : 0] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(child, &ended, 0), child);
    return WIFEXITED(ended) ? WEXITSTATUS(ended) : -WTERMSIG(ended);
}

static int raise_while_loading(void) {
    stop_watch(true);
    raise(SIGTERM);
    return 0;
}

static int raise_while_loading_in_silence(void) {
    stop_watch(false);
    raise(SIGINT);
    return 0;
}

static int raise_between(void) {
    stop_watch(true);
    stop_defer(true);
    raise(SIGUSR1);
    stop_defer(false);
    return 0;
}

static void while_loading_a_signal_ends_the_program_with_75(void **state) {
    (void)state;
    char text[200];
    assert_int_equal(in_child(raise_while_loading, text), STATUS_AGAIN);
    assert_string_equal(text, "stopped     by SIGTERM while loading: start again with --resume\n");
    assert_int_equal(in_child(raise_while_loading_in_silence, text), STATUS_AGAIN);
    assert_string_equal(text, "");
    assert_int_equal(in_child(raise_between, text), STATUS_AGAIN);
    assert_string_equal(text, "stopped     by SIGUSR1 while loading: start again with --resume\n");
}

/* 0 if each is noted and told by its name. */
static int note_all(void) {
    const struct {
        int number;
        const char *name;
    } signals[] = {{SIGTERM, "SIGTERM"}, {SIGUSR1, "SIGUSR1"}, {SIGINT, "SIGINT"}};
    stop_watch(true);
    stop_defer(true);
    if (stop_agreed(&alone)) return 1;
    for (int i = 0; i < 3; i++) {
        stop_pace pace = stop_pace_start(&alone);
        raise(signals[i].number);
        if (strcmp(stop_agreed(&alone), signals[i].name) != 0) return 2 + i;
        if (!stop_paced(&pace, false) || strcmp(pace.reason, signals[i].name) != 0) return 5 + i;
    }
    return 0;
}

static int raise_sigint_twice(void) {
    stop_watch(true);
    stop_defer(true);
    raise(SIGINT);
    raise(SIGINT);
    return 0;
}

static void later_signals_are_noted_until_a_second_sigint(void **state) {
    (void)state;
    char text[200];
    assert_int_equal(in_child(note_all, text), 0);
    assert_string_equal(text, "");
    assert_int_equal(in_child(raise_sigint_twice, text), -SIGINT);
}

static int wait_for_limit(void) {
    stop_watch(true);
    stop_defer(true);
    stop_limit(0);
    if (stop_agreed(&alone)) return 1;
    stop_limit(1000);
    if (stop_agreed(&alone)) return 2;
    stop_limit(1e-9);
    const char *reason = stop_agreed(&alone);
    return reason && strstr(reason, "train.time_limit") ? 0 : 3;
}

static void the_time_limit_is_a_wish(void **state) {
    (void)state;
    char text[200];
    assert_int_equal(in_child(wait_for_limit, text), 0);
}

static void quick_pieces_of_work_are_seldom_asked_between_and_slow_ones_often(void **state) {
    (void)state;
    stop_pace pace = stop_pace_start(&alone);
    int asked = 0;
    for (int i = 0; i < 1000; i++) {
        int64_t left = pace.left;
        assert_false(stop_paced(&pace, false));
        asked += left == 0;
    }
    if (asked > 20) fail_msg("asked %d times in 1000 quick pieces", asked);
    for (int questions = 0; questions < 20; questions++) {
        pace.left = 0;
        pace.asked_at -= 10; /* so long ago was the last question */
        assert_false(stop_paced(&pace, false));
    }
    assert_int_equal(pace.every, 1);
    assert_true(stop_paced(&pace, true));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(while_loading_a_signal_ends_the_program_with_75),
        cmocka_unit_test(later_signals_are_noted_until_a_second_sigint),
        cmocka_unit_test(the_time_limit_is_a_wish),
        cmocka_unit_test(quick_pieces_of_work_are_seldom_asked_between_and_slow_ones_often),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
