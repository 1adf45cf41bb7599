/* banner.c: plain text for people, JSON for programs, from the same plan. */
#include "train/banner.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "data/tokens.h"
#include "util/system.h"

static const char *const qk_norm_names[] = {"none", "l2", "rms"}, *const rope_names[] = {"interleaved", "half"};

static int count_kind(const char *pattern, char kind) {
    int n = 0;
    for (; *pattern; pattern++) n += *pattern == kind;
    return n;
}

static void print_params(FILE *to, const param_counts *p) {
    char text[16];
    fprintf(to, "  parameters  %s =", format_count(text, (double)p->total));
    fprintf(to, " embedding %s +", format_count(text, (double)p->embedding));
    fprintf(to, " attention %s +", format_count(text, (double)p->attention));
    fprintf(to, " ffn %s +", format_count(text, (double)p->ffn));
    if (p->head > 0) fprintf(to, " head %s +", format_count(text, (double)p->head));
    fprintf(to, " norms %s\n", format_count(text, (double)p->norms));
}

static void print_memory(FILE *to, const run_plan *plan) {
    const arena *a = &plan->arena;
    char text[16];
    fprintf(to, "  memory      %s%s a rank =", plan->elsewhere ? "at most " : "", format_bytes(text, (double)a->peak));
    for (int i = 0; i < a->n_parts; i++)
        fprintf(to, "%s %s %s", i ? " +" : "", a->parts[i].name, format_bytes(text, (double)a->parts[i].bytes));
    fprintf(to, "%s\n", plan->elsewhere ? " (how much of its scratch attention takes is known on the GPU only)" : "");
}

void banner_plan(FILE *to, const run_config *c, const run_plan *plan) {
    const model_config *m = &c->model;
    fprintf(to, "  network     %d layers %s (%d full, %d window %d, %d skip), d_model %d, d_ffn %d, heads %d/%d x %d\n",
            m->n_layers, m->attention, count_kind(m->attention, 'f'), count_kind(m->attention, 'w'), m->window,
            count_kind(m->attention, 's'), m->d_model, m->d_ffn, m->n_heads, m->n_kv_heads, m->head_dim);
    fprintf(to, "              vocabulary %lld%s, QK-norm %s, RoPE %s, theta %g\n", (long long)m->vocab_size,
            m->tie_embeddings ? ", tied" : ", untied", qk_norm_names[m->qk_norm], rope_names[m->rope], m->rope_theta);
    print_params(to, &plan->params);
    char flops[16], step[16], all[16];
    fprintf(to, "  work        %sFLOP a token and step; %lld steps of %s tokens, %s tokens in all\n",
            format_count(flops, plan->flops_per_token), (long long)plan->n_steps, format_count(step, (double)c->batch.tokens),
            format_count(all, (double)plan->n_steps * (double)c->batch.tokens));
    int micro = c->batch.micro < plan->rows_per_rank ? c->batch.micro : plan->rows_per_rank;
    fprintf(to, "  batch       %d rank%s x %d micro-batch%s x %d x %d tokens, %s\n", plan->ranks, plan->ranks == 1 ? "" : "s",
            plan->micro_steps, plan->micro_steps == 1 ? "" : "es", micro, c->data.seq_len, dtype_name((dtype)c->dtype));
    print_memory(to, plan);
}

static json_t *params_json(const param_counts *p) {
    return json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "total", (json_int_t)p->total, "embedding", (json_int_t)p->embedding,
                     "attention", (json_int_t)p->attention, "ffn", (json_int_t)p->ffn, "head", (json_int_t)p->head, "norms",
                     (json_int_t)p->norms);
}

char *banner_plan_json(const run_config *c, const run_plan *plan) {
    json_t *memory = json_object();
    for (int i = 0; i < plan->arena.n_parts; i++)
        json_object_set_new(memory, plan->arena.parts[i].name, json_integer((json_int_t)plan->arena.parts[i].bytes));
    json_object_set_new(memory, "total", json_integer((json_int_t)plan->arena.peak));
    json_t *all = json_pack("{s:o,s:o,s:f,s:I,s:I,s:i,s:i,s:s}", "parameters", params_json(&plan->params),
                            "memory_bytes_per_rank", memory, "flops_per_token", plan->flops_per_token, "steps",
                            (json_int_t)plan->n_steps, "tokens_per_step", (json_int_t)c->batch.tokens, "ranks", plan->ranks,
                            "micro_steps", plan->micro_steps, "dtype", dtype_name((dtype)c->dtype));
    char *text = json_dumps(all, JSON_INDENT(2));
    json_decref(all);
    return text;
}

int banner_data(FILE *to, const run_config *c, error *err) {
    const data_source *train = c->data.train.items, *heldout = c->data.heldout.items;
    double weights = 0, drawn = (double)run_steps(c) * (double)c->batch.tokens;
    for (int i = 0; i < c->data.train.n; i++) weights += train[i].weight;
    for (int i = 0; i < c->data.train.n + c->data.heldout.n; i++) {
        bool is_train = i < c->data.train.n;
        const data_source *s = is_train ? &train[i] : &heldout[i - c->data.train.n];
        token_file f;
        if (token_file_open(&f, s->prefix, err)) return -1;
        char tokens[16];
        fprintf(to, "  %-11s %s: %s tokens, %lld documents",
                i == 0                 ? "data"
                : i == c->data.train.n ? "held-out"
                                       : "",
                s->prefix, format_count(tokens, (double)f.n_tokens), (long long)f.n_documents);
        if (is_train)
            fprintf(to, ", %.1f %% of the samples, %.2f epochs", 100 * s->weight / weights,
                    drawn * s->weight / weights / (double)(f.n_tokens > 0 ? f.n_tokens : 1));
        fprintf(to, "\n");
        token_file_close(&f);
    }
    return 0;
}
