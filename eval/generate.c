/* generate.c: `mobilellm generate`: a text continued token by token.
 *
 * Each token is a forward pass over the whole text so far: simple, and exact by construction. A cache of keys and values would
 * make it fast; this program trains, and phones run other engines. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "data/bytes.h"
#include "eval/command.h"
#include "eval/load.h"
#include "eval/sample.h"
#include "util/options.h"

typedef struct generate_options {
    const char *device;
    const char *prompt, *prompt_tokens;
    int64_t n_tokens, top_k, seed, threads, stop_token;
    double temperature, top_p;
    bool json;
} generate_options;

static int parse(generate_options *o, int argc, char **argv, int *helped, error *err) {
    *o = (generate_options){.n_tokens = 128, .seed = 1, .temperature = 0.8, .top_p = 1, .stop_token = -1};
    const command_option table[] = {
        {"prompt", OPTION_TEXT, &o->prompt, 0, 0, "TEXT", "of a model with the byte vocabulary"},
        {"prompt-tokens", OPTION_TEXT, &o->prompt_tokens, 0, 0, "IDS",
         "token ids, separated by spaces or commas: any vocabulary"},
        {"n-tokens", OPTION_INTEGER, &o->n_tokens, 1, 1 << 20, "N", "to generate at most (128)"},
        {"temperature", OPTION_NUMBER, &o->temperature, 0, 100, "X", "0: always the most likely token (0.8)"},
        {"top-k", OPTION_INTEGER, &o->top_k, 0, 1 << 30, "K", "only among the K most likely (0: all)"},
        {"top-p", OPTION_NUMBER, &o->top_p, 1e-9, 1, "P", "only among the most likely ones with probability P together (1)"},
        {"seed", OPTION_INTEGER, &o->seed, 0, 9e18, "N", "of the draws (1)"},
        {"stop-token", OPTION_INTEGER, &o->stop_token, 0, 1 << 30, "ID", "end here (byte vocabulary: end of document)"},
        {"device", OPTION_TEXT, &o->device, 0, 0, "auto|cpu|cuda", "where it runs (auto)"},
        {"threads", OPTION_INTEGER, &o->threads, 1, 4096, "N", "to compute with"},
        {"json", OPTION_FLAG, &o->json, 0, 0, NULL, "print tokens (and text) as JSON"},
        {0}};
    int n_rest;
    if (options_parse(table,
                      "Usage: mobilellm generate CHECKPOINT --prompt TEXT | --prompt-tokens IDS [options]\n\n"
                      "Continues a text. With a vocabulary other than bytes, token ids go in and out:\n"
                      "  data/prepare.py encode and decode, with --tokenizer FILE, translate.\n",
                      argc, argv, &n_rest, helped, err))
        return -1;
    if (*helped) return 0;
    if (n_rest != 1 || !o->prompt == !o->prompt_tokens)
        return error_set(err, STATUS_USAGE, "generate: needs a checkpoint and one of --prompt and --prompt-tokens");
    return 0;
}

/* The prompt as token ids: an allocated array of *n. */
static int32_t *prompt_ids(const generate_options *o, int64_t vocab_size, int *n, error *err) {
    const char *text = o->prompt ? o->prompt : o->prompt_tokens;
    int32_t *ids = malloc((strlen(text) + 1) * sizeof *ids);
    *n = 0;
    if (!ids) {
        error_set(err, STATUS_RESOURCE, "no memory for the prompt");
        return NULL;
    }
    if (o->prompt)
        for (; *text; text++) ids[(*n)++] = (unsigned char)*text;
    while (o->prompt_tokens && *text) {
        char *end;
        long id = strtol(text, &end, 10);
        if (end == text || id < 0 || id >= vocab_size) {
            error_set(err, STATUS_USAGE, "--prompt-tokens: \"%.20s\": expected token ids from 0 to %lld", text,
                      (long long)vocab_size - 1);
            free(ids);
            return NULL;
        }
        ids[(*n)++] = (int32_t)id;
        text = end + strspn(end, ", \t\n");
    }
    if (*n > 0) return ids;
    error_set(err, STATUS_USAGE, "generate: the prompt is empty: give at least one token");
    free(ids);
    return NULL;
}

/* ids (room for n_prompt + n_tokens) is continued; returns how many there are in the end, or -1. */
static int continue_text(loaded_model *l, const generate_options *o, int32_t *ids, int n_prompt, error *err) {
    int64_t V = l->model.config.vocab_size;
    int T = l->model.options.T, n = n_prompt;
    int32_t *tokens = calloc(2 * (size_t)T, sizeof *tokens), *pos = tokens + T;
    float *logits = malloc((size_t)V * sizeof *logits);
    sample_candidate *candidates = malloc((size_t)V * sizeof *candidates);
    sample_options draw = {o->temperature, (int)o->top_k, o->top_p, (uint64_t)o->seed};
    int result = tokens && logits && candidates ? 0 : error_set(err, STATUS_RESOURCE, "no memory for %lld logits", (long long)V);
    for (int i = 0; result == 0 && i < T; i++) pos[i] = i;
    while (result == 0 && n < n_prompt + o->n_tokens) {
        int first = n > T ? n - T : 0; /* the text's last T tokens are what the model sees */
        memcpy(tokens, ids + first, (size_t)(n - first) * sizeof *tokens);
        model_input in = {1, tokens, tokens, NULL, pos};
        result = model_logits(&l->model, &in, n - first - 1, logits, err);
        if (result) break;
        int32_t token = sample_token(logits, candidates, (int32_t)V, &draw, (uint64_t)n);
        if (token < 0) result = error_set(err, STATUS_DIVERGED, "the model's logits are not finite at token %d", n);
        if (token < 0 || token == o->stop_token) break;
        ids[n++] = token;
    }
    free(tokens);
    free(logits);
    free(candidates);
    return result ? -1 : n;
}

/* The bytes of the byte vocabulary among ids, as they are. */
static void print_bytes(const int32_t *ids, int n) {
    for (int i = 0; i < n; i++)
        if (ids[i] < 256) putchar(ids[i]);
    putchar('\n');
}

static void print_ids(const int32_t *ids, int n_prompt, int n, bool json) {
    if (!json) {
        for (int i = 0; i < n; i++) printf("%d%c", ids[i], i + 1 < n ? ' ' : '\n');
        return;
    }
    json_t *tokens = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(tokens, json_integer(ids[i]));
    json_t *all = json_pack("{s:i,s:o}", "n_prompt", n_prompt, "tokens", tokens);
    json_dumpf(all, stdout, 0);
    printf("\n");
    json_decref(all);
}

static int generate(loaded_model *l, generate_options *o, error *err) {
    bool bytes = strcmp(checkpoint_about(l->checkpoint)->tokenizer_hash, BYTES_TOKENIZER_HASH) == 0;
    if (o->prompt && !bytes)
        return error_set(
            err, STATUS_USAGE,
            "%s was not trained on the byte vocabulary (its tokenizer is %s): translate the prompt with data/prepare.py encode "
            "and give --prompt-tokens",
            checkpoint_path(l->checkpoint),
            checkpoint_about(l->checkpoint)->tokenizer_hash[0] ? checkpoint_about(l->checkpoint)->tokenizer_hash : "unknown");
    if (bytes && o->stop_token < 0) o->stop_token = BYTES_EOD;
    int n_prompt;
    int32_t *ids = prompt_ids(o, l->model.config.vocab_size, &n_prompt, err);
    if (!ids) return -1;
    int32_t *grown = realloc(ids, (size_t)(n_prompt + o->n_tokens) * sizeof *ids);
    if (!grown) {
        free(ids);
        return error_set(err, STATUS_RESOURCE, "no memory for %lld tokens", (long long)o->n_tokens);
    }
    int n = continue_text(l, o, grown, n_prompt, err);
    if (n >= 0 && bytes && !o->json) print_bytes(grown, n);
    if (n >= 0 && !(bytes && !o->json)) print_ids(grown, n_prompt, n, o->json);
    free(grown);
    return n < 0 ? -1 : 0;
}

int generate_command(int argc, char **argv, const ranks *world, error *err) {
    generate_options o;
    loaded_model l;
    int helped;
    if (parse(&o, argc, argv, &helped, err)) return -1;
    if (helped) return 0;
    load_options load = {.device = o.device, .x = -1, .B = 1, .threads = o.threads > 0 ? (int)o.threads : ranks_threads(world)};
    if (loaded_model_open(&l, argv[1], &load, err)) return -1;
    int result = generate(&l, &o, err);
    loaded_model_close(&l);
    return result;
}
