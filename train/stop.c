/* stop.c: a signal handler may only set a flag, or end the program; these are the flags, which is why they live at file scope.
 *
 * Where there is nothing to save the handler ends the program itself, because what a run does then (reading gigabytes, waiting
 * for the other ranks to have read them) can be long, and has no place at which all ranks could look for a flag. */
#include "train/stop.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "util/system.h"

/* Wishes are numbers of signals, or these; of several, the largest counts. */
enum { WISH_LIMIT = 1000, WISH_FAILED };

static const double asked_about_every = 0.2; /* seconds */

static volatile sig_atomic_t caught, at_once;
static bool is_speaker;
static double watched_since, deadline;

static const char *reason_of(int64_t wish) {
    switch (wish) {
        case 0:
            return NULL;
        case SIGTERM:
            return "SIGTERM";
        case SIGUSR1:
            return "SIGUSR1";
        case SIGINT:
            return "SIGINT";
        case WISH_LIMIT:
            return "the time limit (train.time_limit)";
        default:
            return "an error";
    }
}

/* Calls only what a signal handler may. */
static void end_at_once(int number) {
    char line[100], *end = stpcpy(stpcpy(line, "stopped     by "), reason_of(number));
    end = stpcpy(end, " while loading: start again with --resume\n");
    ssize_t unused = is_speaker ? write(STDOUT_FILENO, line, (size_t)(end - line)) : 0;
    (void)unused;
    _exit(STATUS_AGAIN);
}

static void note(int number) {
    if (at_once) end_at_once(number);
    caught = number;
}

void stop_watch(bool speaks) {
    is_speaker = speaks;
    at_once = true;
    watched_since = seconds_now();
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    action.sa_flags |= SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
}

void stop_defer(bool yes) {
    at_once = !yes;
    if (at_once && caught) end_at_once(caught);
}

void stop_limit(double seconds) { deadline = seconds > 0 ? watched_since + seconds : 0; }

static int64_t own_wish(void) { return caught ? caught : deadline > 0 && seconds_now() > deadline ? WISH_LIMIT : 0; }

const char *stop_agreed(const ranks *r) {
    int64_t wish = own_wish();
    ranks_max_int64(r, &wish, 1);
    return reason_of(wish);
}

stop_pace stop_pace_start(const ranks *r) { return (stop_pace){.ranks = r, .every = 1, .asked_at = seconds_now()}; }

bool stop_paced(void *pace, bool failed) {
    stop_pace *p = pace;
    if (p->left-- > 0) return false;
    double passed = seconds_now() - p->asked_at;
    int64_t both[2] = {failed ? WISH_FAILED : own_wish(), (int64_t)(1e6 * passed)};
    ranks_max_int64(p->ranks, both, 2);
    passed = 1e-6 * (double)both[1]; /* of the slowest rank: all come to the same number of pieces */
    if (passed < asked_about_every / 2)
        p->every *= 2;
    else if (passed > asked_about_every && p->every > 1)
        p->every /= 2;
    p->left = p->every - 1;
    p->asked_at = seconds_now();
    p->reason = reason_of(both[0]);
    return p->reason != NULL;
}
