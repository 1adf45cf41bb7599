/* profile_report.c: a profile as a table and as JSON.
 *
 * A row names its own bound: multiplications are held against the GEMM peak, other ops against the memory's speed. More than 100
 * % of the latter means that caches, not memory, held the data. What waits (collectives, data, files) has no bound. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "train/profile.h"

static const char *const pass_names[] = {"forward", "d input", "d weight"};
static const char *const part_names[] = {
    [PART_ATTENTION_FORWARD] = "attention forward",
    [PART_ATTENTION_BACKWARD] = "attention backward",
    [PART_EMBEDDING] = "embedding",
    [PART_NORM] = "norms",
    [PART_QK_ROPE] = "QK-norm and RoPE",
    [PART_SWIGLU] = "SwiGLU",
    [PART_CROSS_ENTROPY] = "cross-entropy",
    [PART_REDUCTIONS] = "reductions, clipping",
    [PART_ADAMW] = "AdamW",
    [PART_COPIES] = "copies, zeroing",
    [PART_COLLECTIVES] = "collectives",
    [PART_DATA] = "data wait",
    [PART_EVALUATION] = "evaluation",
    [PART_CHECKPOINT] = "checkpoint",
};

const char *profile_label(const profile *p, profile_part part, char text[64]) {
    if (part >= PART_ATTENTION_FORWARD) {
        snprintf(text, 64, "%s", part_names[part]);
        return text;
    }
    const profile_matrix *own = &p->matrices[(part - PART_GEMM) / N_PASSES];
    text[0] = 0;
    for (const profile_matrix *m = own; m < p->matrices + N_MATRICES; m++)
        if (m->I == own->I && m->O == own->O)
            snprintf(text + strlen(text), 64 - strlen(text), "%s%s", m == own ? "" : ", ", m->name);
    snprintf(text + strlen(text), 64 - strlen(text), " %s", pass_names[(part - PART_GEMM) % N_PASSES]);
    return text;
}

/* Operations or bytes per second, and their share of the bound. Zero where there is none. */
typedef struct speed {
    double flops, bytes, share;
} speed;

static speed speed_of(const profile *p, profile_part part, double gemm_peak) {
    const profile_total *t = &p->parts[part];
    speed s = {0};
    if (t->seconds <= 0) return s;
    s.flops = t->flops / t->seconds;
    s.bytes = t->bytes / t->seconds;
    if (t->flops > 0)
        s.share = s.flops / gemm_peak;
    else if (part < PART_COLLECTIVES)
        s.share = s.bytes / p->memory_speed;
    return s;
}

static void print_row(FILE *to, const profile *p, profile_part part, double gemm_peak) {
    const profile_total *t = &p->parts[part];
    char label[64];
    double steps = (double)p->steps;
    speed s = speed_of(p, part, gemm_peak);
    fprintf(to, "  %-22s %9.1f %11.3f %7.2f %%", profile_label(p, part, label), (double)t->calls / steps,
            1e3 * t->seconds / steps, 100 * t->seconds / p->step_seconds);
    if (s.flops > 0)
        fprintf(to, " %9.1f GFLOP/s", s.flops / 1e9);
    else if (s.bytes > 0)
        fprintf(to, " %9.1f GB/s", s.bytes / 1e9);
    if (s.share > 0) fprintf(to, " %*.0f %%", s.flops > 0 ? 7 : 10, 100 * s.share); /* GB/s is three letters shorter */
    fprintf(to, "\n");
}

void profile_print(FILE *to, const profile *p, double gemm_peak) {
    if (p->steps == 0) {
        fprintf(to, "profile     nothing to show: the first step is left out, for it builds what later ones use again\n");
        return;
    }
    double ms = 1e3 / (double)p->steps;
    fprintf(to, "profile     %lld steps after the first, GEMM peak %.0f GFLOP/s, memory %.1f GB/s\n", (long long)p->steps,
            gemm_peak / 1e9, p->memory_speed / 1e9);
    fprintf(to, "  %-22s %9s %11s %9s %17s %9s\n", "part", "calls", "ms a step", "of step", "speed", "of bound");
    for (int part = 0; part < N_STEP_PARTS; part++)
        if (p->parts[part].calls > 0) print_row(to, p, (profile_part)part, gemm_peak);
    fprintf(to, "  %-22s %9s %11.3f %7.2f %%\n", "other", "", ms * profile_rest(p), 100 * profile_rest(p) / p->step_seconds);
    fprintf(to, "  %-22s %9s %11.3f %7.2f %%\n", "step", "", ms * p->step_seconds, 100.0);
    for (int part = N_STEP_PARTS; part < N_PARTS; part++)
        if (p->parts[part].calls > 0) print_row(to, p, (profile_part)part, gemm_peak);
}

static json_t *row_json(const profile *p, profile_part part, double gemm_peak) {
    const profile_total *t = &p->parts[part];
    char label[64];
    double steps = (double)p->steps;
    speed s = speed_of(p, part, gemm_peak);
    return json_pack("{s:s,s:b,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "part", profile_label(p, part, label), "in_step",
                     part < N_STEP_PARTS, "calls_per_step", (double)t->calls / steps, "ms_per_step", 1e3 * t->seconds / steps,
                     "flops_per_step", t->flops / steps, "bytes_per_step", t->bytes / steps, "gflops", s.flops / 1e9, "gb_per_s",
                     s.bytes / 1e9, "share_of_bound", s.share);
}

char *profile_json(const profile *p, double gemm_peak) {
    json_t *parts = json_array();
    double ms = p->steps > 0 ? 1e3 / (double)p->steps : 0;
    for (int part = 0; part < N_PARTS; part++)
        if (p->steps > 0 && p->parts[part].calls > 0) json_array_append_new(parts, row_json(p, (profile_part)part, gemm_peak));
    json_t *all = json_pack("{s:I,s:f,s:f,s:f,s:f,s:o}", "steps", (json_int_t)p->steps, "ms_per_step", ms * p->step_seconds,
                            "other_ms_per_step", ms * profile_rest(p), "gemm_peak_gflops", gemm_peak / 1e9, "memory_gb_per_s",
                            p->memory_speed / 1e9, "parts", parts);
    char *text = json_dumps(all, JSON_INDENT(2));
    json_decref(all);
    return text;
}
