/* stop.c: a signal handler may only set a flag; these are the flags, which is why they live at file scope. */
#include "train/stop.h"

#include <signal.h>

#include "util/system.h"

static volatile sig_atomic_t caught;
static double deadline;

static void note(int number) { caught = number; }

void stop_watch(double time_limit) {
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    action.sa_flags |= SA_RESETHAND;
    sigaction(SIGINT, &action, NULL);
    deadline = time_limit > 0 ? seconds_now() + time_limit : 0;
}

const char *stop_reason(void) {
    switch (caught) {
        case SIGTERM:
            return "SIGTERM";
        case SIGUSR1:
            return "SIGUSR1";
        case SIGINT:
            return "SIGINT";
        default:
            break;
    }
    return deadline > 0 && seconds_now() > deadline ? "the time limit (train.time_limit)" : NULL;
}
