/* command.c: the command lines of `mobilellm data`. */
#include "data/command.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "data/info.h"
#include "data/pack.h"
#include "util/options.h"

/* The number of `text` among n names, or an error that lists them. */
static int choose(int *chosen, const char *option, const char *text, const char *const *names, int n, error *err) {
    for (*chosen = 0; *chosen < n; ++*chosen)
        if (strcmp(text, names[*chosen]) == 0) return 0;
    char list[100] = "";
    for (int i = 0; i < n; i++) snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", names[i]);
    return error_set(err, STATUS_USAGE, "--%s %s: expected one of %s", option, text, list);
}

static int pack_command(int argc, char **argv, error *err) {
    static const char *const formats[] = {"auto", "text", "jsonl"}, *const splits[] = {"whole", "lines", "blank"};
    const char *format = "auto", *split = "whole", *key = "text";
    const command_option table[] = {
        {"format", OPTION_TEXT, &format, 0, 0, "F", "text, jsonl (JSON Lines), or auto: jsonl if a name ends so (auto)"},
        {"split", OPTION_TEXT, &split, 0, 0, "S", "whole, lines or blank (whole)"},
        {"key", OPTION_TEXT, &key, 0, 0, "K", "the member of each JSON object that is the document (text)"},
        {0}};
    int n_rest, helped, chosen_format, chosen_split;
    if (options_parse(table,
                      "Usage: mobilellm data pack PREFIX INPUT ... [options]\n\n"
                      "Writes the documents of text files to PREFIX.bin and PREFIX.idx, one byte a token, and PREFIX.json, which "
                      "describes\n"
                      "them. A text is one document (--split whole), or each of its lines that is not empty is one (lines), or "
                      "what stands\n"
                      "between its blank lines (blank). For other vocabularies there is data/prepare.py.\n",
                      argc, argv, &n_rest, &helped, err))
        return -1;
    if (helped) return STATUS_OK;
    if (n_rest < 2)
        return error_set(err, STATUS_USAGE,
                         "data pack: needs the prefix to write and files to read. See `mobilellm data pack --help`.");
    if (choose(&chosen_format, "format", format, formats, 3, err) || choose(&chosen_split, "split", split, splits, 3, err))
        return -1;

    pack_options o = {.prefix = argv[1],
                      .inputs = (const char *const *)(argv + 2),
                      .n_inputs = n_rest - 1,
                      .format = (pack_format)chosen_format,
                      .split = (pack_split)chosen_split,
                      .key = key};
    token_card card;
    if (pack(&o, &card, err)) return -1;
    printf("%s: %lld documents, %lld bytes, %lld tokens of a vocabulary of %lld\n", o.prefix, (long long)card.n_documents,
           (long long)card.bytes, (long long)card.tokens, (long long)card.vocab_size);
    return STATUS_OK;
}

static int info_command(int argc, char **argv, error *err) {
    bool verify = false, json = false;
    int64_t vocab_size = 0;
    const command_option table[] = {
        {"verify", OPTION_FLAG, &verify, 0, 0, NULL, "read every token: the largest id, and that all fit the card's vocabulary"},
        {"vocab", OPTION_INTEGER, &vocab_size, 1, 1LL << 31, "N", "read every token: all ids must lie below N"},
        {"json", OPTION_FLAG, &json, 0, 0, NULL, "print JSON"},
        {0}};
    int n_rest, helped;
    if (options_parse(
            table,
            "Usage: mobilellm data info PREFIX ... [options]\n\n"
            "What the token files PREFIX.bin, PREFIX.idx hold, and whether they are whole and agree with the card PREFIX.json.\n",
            argc, argv, &n_rest, &helped, err))
        return -1;
    if (helped) return STATUS_OK;
    if (n_rest < 1)
        return error_set(err, STATUS_USAGE, "data info: needs at least one prefix. See `mobilellm data info --help`.");

    const char *const *prefixes = (const char *const *)(argv + 1);
    token_info *infos = calloc((size_t)n_rest, sizeof *infos);
    int rc = infos ? 0 : error_set(err, STATUS_RESOURCE, "out of memory");
    for (int i = 0; rc == 0 && i < n_rest; i++)
        rc = token_info_read(&infos[i], prefixes[i], verify || vocab_size > 0, vocab_size, err);
    if (rc == 0 && json)
        rc = token_info_print_json(stdout, infos, prefixes, n_rest, err);
    else if (rc == 0)
        token_info_print(stdout, infos, prefixes, n_rest);
    free(infos);
    return rc ? -1 : STATUS_OK;
}

int data_command(int argc, char **argv, const ranks *world, error *err) {
    (void)world; /* one process */
    static const char usage[] =
        "Usage: mobilellm data pack PREFIX INPUT ...   text to token files, one byte a token\n"
        "       mobilellm data info PREFIX ...         what token files hold\n\n"
        "`mobilellm data pack --help` and `mobilellm data info --help` tell more. docs/data.md describes the files.\n";
    if (argc < 2) return error_set(err, STATUS_USAGE, "data: expected pack or info. See `mobilellm data --help`.");
    char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        fputs(usage, stdout);
        return STATUS_OK;
    }
    bool is_pack = strcmp(name, "pack") == 0;
    if (!is_pack && strcmp(name, "info") != 0)
        return error_set(err, STATUS_USAGE, "data: %s is not one of its commands, pack and info. See `mobilellm data --help`.",
                         name);
    char full_name[16];
    snprintf(full_name, sizeof full_name, "data %s", name);
    argv[1] = full_name; /* what messages and the help call the command */
    return is_pack ? pack_command(argc - 1, argv + 1, err) : info_command(argc - 1, argv + 1, err);
}
