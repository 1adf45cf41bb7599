/* watch.c: a thread in each rank that sees whether the rank goes on, answers the other ranks' threads, and asks them when it
 * does not.
 *
 * Nothing passes between ranks until one has stood still for the limit. Its thread then asks all others for their positions. The
 * threads talk by UDP, because MPI may be called by the main thread only, which is inside the collective that does not return;
 * and because a thread that does not answer is itself the news: its process is stopped, or its machine is gone. A thread counts
 * the time in which it runs itself, so a job that is suspended as a whole and continued is not taken for one that hangs. */
#include "ranks/watch.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <mpi.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "util/system.h"

enum { TICK_MS = 100, N_ADDRESSES = 8, NAMED_AT_MOST = 8, ABORT_SECONDS = 5 };
static const double answer_time = 2; /* that the ranks have to answer in */
static const double quiet_time = 5;  /* in which a rank that was asked leaves the matter to the one that asked */
static const double slack = 0.3;     /* by which the ranks' idle times may differ when they stopped together */

/* How to reach a rank. */
typedef struct card {
    uint64_t key; /* rank 0's is in every message, so that strangers are not listened to */
    char host[128];
    uint32_t addresses[N_ADDRESSES]; /* in network order, as is the port */
    int n_addresses;
    uint16_t port;
} card;

typedef enum message_kind { QUESTION = 1, ANSWER } message_kind;

typedef struct message {
    uint64_t key, position;
    double idle; /* seconds without progress */
    int32_t kind, rank;
    char call[40]; /* the collective that the rank is in, or was in last */
} message;

struct watch {
    _Atomic uint64_t position, progress; /* written by the main thread */
    const char *_Atomic call;
    atomic_bool stop;
    atomic_bool asked, told; /* of watch_ask: a question of the main thread, and that the answers are there */

    const ranks *r; /* from here on the thread's own, once it runs */
    pthread_t thread;
    bool running, asking, yielding;
    int socket;
    card *cards;      /* (size) */
    message *answers; /* (size), kind 0: none yet */
    char advice[256];
    double limit, idle, quiet;
    uint64_t seen; /* position + progress */
};

watch *watch_open(void) {
    watch *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    w->socket = -1;
    w->call = "MPI_Init";
    return w;
}

void watch_enter(watch *w, const char *call) {
    if (!w) return;
    atomic_store_explicit(&w->call, call, memory_order_relaxed);
    atomic_fetch_add_explicit(&w->position, 1, memory_order_relaxed);
}

void watch_leave(watch *w) {
    if (w) atomic_fetch_add_explicit(&w->position, 1, memory_order_relaxed);
}

void watch_progress(watch *w) {
    if (w) atomic_fetch_add_explicit(&w->progress, 1, memory_order_relaxed);
}

static message own_state(const watch *w, message_kind kind) {
    message m = {.key = w->cards[0].key, .position = w->position, .idle = w->idle, .kind = (int32_t)kind, .rank = w->r->rank};
    snprintf(m.call, sizeof m.call, "%s", w->call);
    return m;
}

/* To all addresses of the rank: which of them is reached from here is not known. What is lost is asked for again. */
static void send_to(const watch *w, int rank, message_kind kind) {
    message m = own_state(w, kind);
    const card *to = &w->cards[rank];
    bool near = strcmp(to->host, w->cards[w->r->rank].host) == 0;
    for (int i = 0; i < (near ? 1 : to->n_addresses); i++) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = to->port};
        address.sin_addr.s_addr = near ? htonl(INADDR_LOOPBACK) : to->addresses[i];
        (void)sendto(w->socket, &m, sizeof m, MSG_DONTWAIT, (struct sockaddr *)&address, sizeof address);
    }
}

static void handle(watch *w, const message *m) {
    if (m->key != w->cards[0].key || m->rank < 0 || m->rank >= w->r->size || m->rank == w->r->rank) return;
    if (m->kind == ANSWER) {
        if (w->told) return; /* the main thread reads them */
        w->answers[m->rank] = *m;
        w->answers[m->rank].call[sizeof m->call - 1] = '\0';
        return;
    }
    send_to(w, m->rank, ANSWER);
    if (w->asking && m->rank > w->r->rank) return; /* of two that ask, the lower speaks */
    w->yielding = true;
    w->quiet = quiet_time;
}

/* A tick: answers what comes in, and counts the time. */
static double pass_time(watch *w) {
    double start = seconds_now();
    struct pollfd in = {.fd = w->socket, .events = POLLIN};
    message m;
    if (poll(&in, 1, TICK_MS) > 0)
        while (recv(w->socket, &m, sizeof m, MSG_DONTWAIT) == (ssize_t)sizeof m) handle(w, &m);
    double passed = seconds_now() - start, most = 2e-3 * TICK_MS;
    if (passed > most) passed = most;
    uint64_t now = w->position + w->progress;
    w->idle = now == w->seen ? w->idle + passed : 0;
    w->seen = now;
    w->quiet = w->quiet > passed ? w->quiet - passed : 0;
    return passed;
}

/* Asks until all have answered or the time is over. With `hanging` also until this rank goes on after all, or another is asking:
 * false. */
static bool ask_all(watch *w, bool hanging) {
    int size = w->r->size, missing = size - 1;
    for (int i = 0; i < size; i++) w->answers[i].kind = 0;
    w->asking = true;
    w->yielding = false;
    for (double waited = 0; waited < answer_time && missing > 0; waited += pass_time(w)) {
        if (hanging && (w->idle == 0 || w->yielding)) break;
        missing = 0;
        for (int i = 0; i < size; i++)
            if (i != w->r->rank && w->answers[i].kind == 0) {
                send_to(w, i, QUESTION);
                missing++;
            }
    }
    w->asking = false;
    w->answers[w->r->rank] = own_state(w, ANSWER);
    return w->idle > 0 && !w->yielding;
}

static bool blamed(const watch *w, int rank, bool silent, uint64_t lowest) {
    return silent ? w->answers[rank].kind == 0 : w->answers[rank].position == lowest;
}

/* "rank 3 (HOST)", or "rank 3 (HOST), rank 5 (HOST)". */
static void name_ranks(char *text, size_t size, const watch *w, bool silent, uint64_t lowest) {
    int n = 0;
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < w->r->size && used < size; i++) {
        if (!blamed(w, i, silent, lowest)) continue;
        if (n++ < NAMED_AT_MOST)
            used += (size_t)snprintf(text + used, size - used, "%srank %d (%s)", n > 1 ? ", " : "", i, w->cards[i].host);
    }
    if (n > NAMED_AT_MOST && used < size) snprintf(text + used, size - used, " and %d more", n - NAMED_AT_MOST);
}

/* MPI_Abort from a thread that is not the main one is more than MPI allows, and ends the run where nothing else can. If it does
 * not return, or another thread keeps the lock of stderr, the alarm ends this rank, and the launcher the others. */
static void end_run(const watch *w, const error *err) {
    alarm(ABORT_SECONDS);
    ranks_warn(w->r, err);
    MPI_Abort(MPI_COMM_WORLD, STATUS_RANK);
}

/* With the answers there: who is it? Ranks that do not answer; else those that are furthest behind, if they stand still too. */
static void judge(watch *w) {
    char names[NAMED_AT_MOST * 160];
    bool silent = false, all_equal = true;
    uint64_t lowest = w->position;
    for (int i = 0; i < w->r->size; i++) {
        silent = silent || w->answers[i].kind == 0;
        all_equal = all_equal && w->answers[i].position == w->position;
        if (w->answers[i].kind && w->answers[i].position < lowest) lowest = w->answers[i].position;
    }
    double idle = w->limit;
    const char *call = w->call;
    for (int i = 0; i < w->r->size; i++)
        if (!silent && w->answers[i].position == lowest) {
            if (w->answers[i].idle < idle) idle = w->answers[i].idle;
            call = w->answers[i].call;
        }
    if (idle + slack < w->limit) {
        w->idle = idle;
        return;
    }
    error err;
    name_ranks(names, sizeof names, w, silent, lowest);
    const char *where = lowest % 2 ? "in" : "since";
    if (silent)
        error_set(&err, STATUS_RANK,
                  "%s: no answer. The process is stopped, or its machine or the network is down.\n"
                  "This rank has waited %.0f s, %s %s. %s",
                  names, w->idle, w->position % 2 ? "in" : "since", w->call, w->advice);
    else if (all_equal)
        error_set(&err, STATUS_RANK,
                  "no rank goes on: all have been %s %s for %.0f s. Is the network up, and the filesystem?\n%s", where, call,
                  w->idle, w->advice);
    else
        error_set(&err, STATUS_RANK, "%s: no progress for %.0f s, %s %s; the other ranks wait.\n%s", names, idle, where, call,
                  w->advice);
    end_run(w, &err);
}

static void *watch_thread(void *context) {
    watch *w = context;
    while (!w->stop) {
        pass_time(w);
        if (w->asked && !w->told) {
            ask_all(w, false);
            w->told = true;
        } else if (w->idle >= w->limit && w->quiet <= 0 && !w->asked && ask_all(w, true)) {
            judge(w);
        }
    }
    return NULL;
}

/* Once the thread has told, it leaves the answers alone. */
void watch_ask(watch *w, char *names, size_t size, bool *lowest) {
    names[0] = '\0';
    *lowest = true;
    if (!w || !w->running) return;
    w->asked = true;
    while (!w->told) usleep(1000 * TICK_MS);
    name_ranks(names, size, w, true, 0);
    for (int i = 0; i < w->r->rank; i++)
        if (w->answers[i].kind) *lowest = false;
}

static void find_addresses(card *c) {
    struct ifaddrs *all = NULL;
    if (getifaddrs(&all)) return;
    for (struct ifaddrs *i = all; i && c->n_addresses < N_ADDRESSES; i = i->ifa_next)
        if (i->ifa_addr && i->ifa_addr->sa_family == AF_INET && (i->ifa_flags & IFF_UP) && !(i->ifa_flags & IFF_LOOPBACK))
            c->addresses[c->n_addresses++] = ((struct sockaddr_in *)i->ifa_addr)->sin_addr.s_addr;
    freeifaddrs(all);
}

/* The socket is seen from outside only if there are ranks outside. */
static int open_socket(watch *w, card *own, error *err) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    address.sin_addr.s_addr = htonl(w->r->local_size == w->r->size ? INADDR_LOOPBACK : INADDR_ANY);
    w->socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (w->socket < 0 || bind(w->socket, (struct sockaddr *)&address, sizeof address) ||
        getsockname(w->socket, (struct sockaddr *)&address, &size) || getrandom(&own->key, sizeof own->key, 0) < 0)
        return error_set(err, STATUS_RESOURCE, "cannot open a UDP socket to watch the other ranks: %s.", strerror(errno));
    own->port = address.sin_port;
    gethostname(own->host, sizeof own->host - 1);
    find_addresses(own);
    return 0;
}

/* Signals are for the main thread. */
static int start_thread(watch *w, error *err) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&w->thread, NULL, watch_thread, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    w->running = !failed;
    return failed ? error_set(err, STATUS_RESOURCE, "cannot start the thread that watches the other ranks") : 0;
}

int watch_start(watch *w, const ranks *r, double limit, const char *advice, error *err) {
    card own = {0};
    w->r = r;
    w->limit = limit;
    snprintf(w->advice, sizeof w->advice, "%s", advice);
    w->cards = calloc((size_t)r->size, sizeof *w->cards);
    w->answers = calloc((size_t)r->size, sizeof *w->answers);
    int result = w->cards && w->answers ? 0 : error_set(err, STATUS_RESOURCE, "no memory to watch %d ranks", r->size);
    if (result == 0) result = open_socket(w, &own, err);
    if (ranks_share(r, result, err)) return -1;
    ranks_gather(r, w->cards, &own, sizeof own);
    return start_thread(w, err);
}

void watch_close(watch *w) {
    if (!w) return;
    w->stop = true;
    if (w->running) pthread_join(w->thread, NULL);
    if (w->socket >= 0) close(w->socket);
    free(w->cards);
    free(w->answers);
    free(w);
}
