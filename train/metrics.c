/* metrics.c: the console line, the JSON Lines file and the TensorBoard file of a run.
 *
 * Each line of JSON is one write(2) to a file opened for appending: a killed run tears at most its last line, which the next part
 * of the run cuts away, and a full disk is known at once. */
#include "train/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "train/tensorboard.h"
#include "util/file.h"

struct metrics {
    int fd; /* of metrics.jsonl */
    char path[PATH_MAX];
    tensorboard *board;
    int step_width, prefix_width; /* of the console's columns */
};

/* One figure as the two files show it: under the same name, a whole number or a real one. */
typedef struct figure {
    const char *name;
    double value; /* counters stay below 2^53 */
    bool whole, charted;
} figure;

enum { MAX_FIGURES = 15, NUMBER = 32 };

/* ---- numbers as a person reads them ---- */

/* Three significant digits in at most four characters, for 0 <= v < 10000: 0.84, 12.3, 212, 1023. */
static const char *digits(char text[NUMBER], double v) {
    snprintf(text, NUMBER, "%.*f", v < 9.995 ? 2 : v < 99.95 ? 1 : 0, v);
    return text;
}

/* 62.9M: three digits and the letter of a power of 1000. */
static const char *with_letter(char text[NUMBER], double v) {
    static const char letters[] = " kMBT";
    int power = 0;
    for (; v >= 999.5 && letters[power + 1]; v /= 1000) power++;
    digits(text, v);
    if (power) strncat(text, &letters[power], 1);
    return text;
}

static const char *duration(char text[NUMBER], double seconds) {
    if (!isfinite(seconds) || seconds < 0 || seconds > 1e9) return "-";
    long long s = (long long)(seconds + 0.5);
    if (s < 60)
        snprintf(text, NUMBER, "%llds", s);
    else if (s < 3600)
        snprintf(text, NUMBER, "%lldm%02llds", s / 60, s % 60);
    else if (s < 86400)
        snprintf(text, NUMBER, "%lldh%02lldm", s / 3600, s % 3600 / 60);
    else if (s < 100 * 86400)
        snprintf(text, NUMBER, "%lldd%02lldh", s / 86400, s % 86400 / 3600);
    else
        snprintf(text, NUMBER, "%lldd", s / 86400);
    return text;
}

/* Gradient norms and perplexities span decades: 0.84, 12.3, 4096, then 1e+05. */
static const char *any_size(char text[NUMBER], double v) {
    if (fabs(v) < 9999.5) return digits(text, v);
    snprintf(text, NUMBER, "%.0e", v);
    return text;
}

static int width_of(int64_t n) { return snprintf(NULL, 0, "%lld", (long long)n); }

void metrics_step_line(char line[METRICS_LINE], const step_metrics *s) {
    char tokens[NUMBER], norm[NUMBER], speed[NUMBER], flops[NUMBER], share[NUMBER], memory[NUMBER], eta[NUMBER];
    static const char *const flop_units[] = {"GFLOP/s", "TFLOP/s", "PFLOP/s", "EFLOP/s"};
    static const char *const byte_units[] = {"MiB", "GiB", "TiB"};
    double flop_rate = s->gflops, bytes = (double)s->memory_bytes / 0x1p20;
    int flop_unit = 0, byte_unit = 0;
    for (; flop_rate >= 999.5 && flop_unit < 3; flop_rate /= 1000) flop_unit++;
    for (; bytes >= 1023.5 && byte_unit < 2; bytes /= 1024) byte_unit++;
    snprintf(share, sizeof share, "(%.0f%%)", 100 * s->peak_share);
    if (!isfinite(s->peak_share)) share[0] = '\0';

    int n = snprintf(line, METRICS_LINE,
                     "step %*lld/%lld  tokens %5s  loss %7.4f  lr %.1e  gnorm %5s  %5s tok/s  %4s %s%*s  mem %4s %s  eta %6s",
                     width_of(s->n_steps), (long long)s->step, (long long)s->n_steps, with_letter(tokens, (double)s->tokens),
                     s->loss, s->lr, any_size(norm, s->grad_norm), with_letter(speed, s->tokens_per_s), digits(flops, flop_rate),
                     flop_units[flop_unit], share[0] ? 7 : 0, share, digits(memory, bytes), byte_units[byte_unit],
                     duration(eta, s->eta_s));
    if (s->skipped_steps > 0) n += snprintf(line + n, METRICS_LINE - (size_t)n, "  skipped %lld", (long long)s->skipped_steps);
    if (s->data_wait_s > 0.01 * s->step_s)
        snprintf(line + n, METRICS_LINE - (size_t)n, "  data %.1f%%", 100 * s->data_wait_s / s->step_s);
}

void metrics_eval_line(char line[METRICS_LINE], const eval_metrics *e, int step_width, int prefix_width) {
    char perplexity[NUMBER];
    int beside = step_width ? step_width + 1 : 0; /* as wide as "/5000" above */
    int n = snprintf(line, METRICS_LINE, "eval %*lld%*s  %-*.200s  loss %7.4f  ppl %5s", step_width, (long long)e->step, beside,
                     "", prefix_width < 200 ? prefix_width : 200, e->prefix, e->loss, any_size(perplexity, e->perplexity));
    if (isfinite(e->bits_per_byte)) snprintf(line + n, METRICS_LINE - (size_t)n, "  bits/byte %.4f", e->bits_per_byte);
}

static int print_line(const char *line, error *err) {
    if (printf("%s\n", line) < 0 || fflush(stdout))
        return error_set(err, STATUS_RESOURCE, "standard output: cannot write: %s.", strerror(errno));
    return 0;
}

/* ---- metrics.jsonl ---- */

/* Owns `line`. */
static int write_json(metrics *m, json_t *line, const figure *figures, int n, error *err) {
    for (int i = 0; i < n; i++) {
        double v = figures[i].value;
        json_t *value = !isfinite(v) ? json_null() : figures[i].whole ? json_integer((json_int_t)v) : json_real(v);
        json_object_set_new(line, figures[i].name, value);
    }
    char *text = json_dumps(line, 0);
    json_decref(line);
    size_t length = text ? strlen(text) : 0;
    if (!text) return error_set(err, STATUS_RESOURCE, "%s: no memory for a line.", m->path);
    text[length] = '\n'; /* in the place of its end: the length is known */
    int failed = file_write(m->fd, m->path, text, length + 1, err);
    free(text);
    return failed;
}

static int read_line(const char *line, size_t length, int64_t *step, bool *is_eval) {
    json_t *object = json_loadb(line, length, 0, NULL), *value = object ? json_object_get(object, "step") : NULL;
    const char *kind = json_string_value(object ? json_object_get(object, "kind") : NULL);
    int found = value && json_is_integer(value);
    if (found) *step = json_integer_value(value);
    *is_eval = kind && strcmp(kind, "eval") == 0;
    json_decref(object);
    return found ? 0 : -1;
}

/* Moves the lines of `text` that remain valid to its front, and gives their length. */
static int sift(char *text, size_t length, const char *path, int64_t first_step, bool evaluates, size_t *kept, error *err) {
    *kept = 0;
    int number = 1;
    for (size_t at = 0; at < length; number++) {
        char *end = memchr(text + at, '\n', length - at);
        if (!end) break; /* torn */
        size_t bytes = (size_t)(end - (text + at)) + 1;
        int64_t step;
        bool is_eval;
        if (read_line(text + at, bytes, &step, &is_eval))
            return error_set(err, STATUS_INPUT,
                             "%s:%d: expected a JSON object with an integer \"step\". Move the file away to start a new one.",
                             path, number);
        if (step < first_step || (step == first_step && !(evaluates && is_eval))) {
            memmove(text + *kept, text + at, bytes);
            *kept += bytes;
        }
        at += bytes;
    }
    return 0;
}

/* Allocates *text. A missing file is an empty one. */
static int read_file(const char *path, char **text, size_t *length, error *err) {
    *text = NULL;
    *length = 0;
    FILE *f = fopen(path, "re");
    if (!f && errno == ENOENT) return 0;
    struct stat about;
    if (!f || fstat(fileno(f), &about)) goto failed;
    *text = malloc((size_t)about.st_size + 1);
    if (!*text) goto failed;
    *length = fread(*text, 1, (size_t)about.st_size, f);
    if (ferror(f)) goto failed;
    fclose(f);
    return 0;
failed:
    error_set(err, STATUS_RESOURCE, "%s: cannot read: %s.", path, strerror(errno));
    if (f) fclose(f);
    free(*text);
    return -1;
}

static int cut_after(const char *path, int64_t first_step, bool evaluates, error *err) {
    char *text;
    size_t length, kept = 0;
    if (read_file(path, &text, &length, err)) return -1;
    int failed = first_step > 0 ? sift(text, length, path, first_step, evaluates, &kept, err) : 0;
    if (!failed && kept < length) failed = file_replace(path, text, kept, err);
    free(text);
    return failed;
}

/* ---- the three together ---- */

int metrics_open(metrics **out, const char *dir, int64_t first_step, bool evaluates, error *err) {
    *out = NULL;
    if (file_make_directories(dir, err)) return -1;
    metrics *m = calloc(1, sizeof *m);
    if (!m) return error_set(err, STATUS_RESOURCE, "%s: no memory for its metrics.", dir);
    m->fd = -1;
    if (snprintf(m->path, sizeof m->path, "%s/metrics.jsonl", dir) >= (int)sizeof m->path) {
        error_set(err, STATUS_USAGE, "%s: the path is too long.", dir);
        goto failed;
    }
    if (cut_after(m->path, first_step, evaluates, err)) goto failed;
    m->fd = open(m->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (m->fd < 0) {
        error_set(err, STATUS_RESOURCE, "%s: cannot open: %s.", m->path, strerror(errno));
        goto failed;
    }
    if (tensorboard_open(&m->board, dir, first_step > 0 ? first_step + 1 : 0, err)) goto failed;
    *out = m;
    return 0;
failed:
    metrics_close(m);
    return -1;
}

void metrics_close(metrics *m) {
    if (!m) return;
    if (m->fd >= 0) close(m->fd);
    tensorboard_close(m->board);
    free(m);
}

/* Charts the figures as GROUP/NAME. */
static int write_board(metrics *m, const char *group, int64_t step, const figure *figures, int n, error *err) {
    tensorboard_scalar scalars[MAX_FIGURES];
    int used = 0;
    for (int i = 0; i < n; i++) {
        if (!figures[i].charted) continue;
        snprintf(scalars[used].tag, TENSORBOARD_TAG, "%.400s/%s", group, figures[i].name);
        scalars[used++].value = figures[i].value;
    }
    return tensorboard_write(m->board, step, scalars, used, err);
}

int metrics_step(metrics *m, const step_metrics *s, error *err) {
    const figure figures[] = {
        {"step", (double)s->step, true, false},
        {"n_steps", (double)s->n_steps, true, false},
        {"tokens", (double)s->tokens, true, true},
        {"loss", s->loss, false, true},
        {"z_loss", s->z_loss, false, true},
        {"lr", s->lr, false, true},
        {"grad_norm", s->grad_norm, false, true},
        {"step_s", s->step_s, false, true},
        {"data_wait_s", s->data_wait_s, false, true},
        {"tokens_per_s", s->tokens_per_s, false, true},
        {"gflops", s->gflops, false, true},
        {"peak_share", s->peak_share, false, isfinite(s->peak_share)},
        {"memory_bytes", (double)s->memory_bytes, true, true},
        {"eta_s", s->eta_s, false, false},
        {"skipped_steps", (double)s->skipped_steps, true, true},
    };
    int n = sizeof figures / sizeof figures[0];
    char line[METRICS_LINE];
    m->step_width = width_of(s->n_steps);
    metrics_step_line(line, s);
    if (print_line(line, err)) return -1;
    if (write_json(m, json_pack("{s:s}", "kind", "train"), figures, n, err)) return -1;
    return write_board(m, "train", s->step, figures, n, err);
}

int metrics_eval(metrics *m, const eval_metrics *e, error *err) {
    const figure figures[] = {
        {"step", (double)e->step, true, false},
        {"tokens", (double)e->tokens, true, false},
        {"loss", e->loss, false, true},
        {"perplexity", e->perplexity, false, true},
        {"bits_per_byte", e->bits_per_byte, false, isfinite(e->bits_per_byte)},
        {"eval_tokens", (double)e->eval_tokens, true, false},
        {"seconds", e->seconds, false, false},
    };
    int n = sizeof figures / sizeof figures[0], length = (int)strlen(e->prefix);
    char line[METRICS_LINE], group[TENSORBOARD_TAG];
    if (length > m->prefix_width) m->prefix_width = length;
    metrics_eval_line(line, e, m->step_width, m->prefix_width);
    if (print_line(line, err)) return -1;
    json_t *object = json_pack("{s:s,s:s}", "kind", "eval", "prefix", e->prefix);
    if (!object) return error_set(err, STATUS_INPUT, "%s: the name is not UTF-8: rename the files.", e->prefix);
    if (write_json(m, object, figures, n, err)) return -1;
    snprintf(group, sizeof group, "eval/%.400s", e->prefix);
    return write_board(m, group, e->step, figures, n, err);
}
