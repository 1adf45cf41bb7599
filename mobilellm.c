/* mobilellm.c: the program: the table of its commands, nothing else. */
#include <stdio.h>
#include <string.h>

#include "data/command.h"
#include "eval/command.h"
#include "ops.h"
#include "ranks/ranks.h"
#include "train/command.h"
#include "util/config.h"

typedef struct command {
    const char *name, *usage, *purpose;
    int (*run)(int argc, char **argv, const ranks *world, error *err); /* the exit status, or -1 with *err */
    bool parallel; /* under mpirun every rank takes part; the others are for one process */
} command;

static const command commands[] = {
    {"train", "CONFIG [key=value ...] [--resume] [--dry-run]", "train a network, alone or under mpirun", train_command, true},
    {"eval", "CHECKPOINT --data PREFIX ...", "loss, perplexity and bits per byte on token files", eval_command, true},
    {"generate", "CHECKPOINT --prompt TEXT", "continue a text", generate_command, false},
    {"inspect", "FILE", "what a checkpoint holds", inspect_command, false},
    {"plan", "CONFIG [key=value ...] [--ranks N]", "parameters, memory and work of a run, without starting it", plan_command,
     false},
    {"data", "pack|info ...", "write and describe token files", data_command, false},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static void print_help(FILE *to) {
    fprintf(to, "mobilellm " MOBILELLM_VERSION ": training of small on-device language models\n\n");
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(to, "  mobilellm %-9s%-48s%s\n", commands[i].name, commands[i].usage, commands[i].purpose);
    fprintf(to,
            "\n`mobilellm COMMAND --help` tells more. Exit status: 0 done, 1 a library failed unexpectedly, 2 command line\n"
            "or config, 3 a file is missing, damaged or does not fit, 4 memory, disk, permissions, or a directory in use,\n"
            "5 training diverged, 6 another rank failed or hung, 75 stopped early: the same command with --resume goes on.\n");
}

static const command *find_command(const char *name) {
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    return NULL;
}

/* `mobilellm --version`, and the same behind any command. */
static bool asks_version(int argc, char **argv) {
    return strcmp(argv[1], "--version") == 0 || (argc > 2 && strcmp(argv[2], "--version") == 0);
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0); /* a log that is watched through a pipe */
    error err = {0};
    ranks world = {.size = 1, .local_size = 1};
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(argc < 2 ? stderr : stdout);
        return argc < 2 ? STATUS_USAGE : STATUS_OK;
    }
    if (asks_version(argc, argv)) {
        printf("mobilellm " MOBILELLM_VERSION "\n");
        cuda_report(stdout);
        return STATUS_OK;
    }
    const command *c = find_command(argv[1]);
    if (!c) {
        const char *names[N_COMMANDS];
        for (int i = 0; i < N_COMMANDS; i++) names[i] = commands[i].name;
        const char *near = config_nearest(argv[1], names, N_COMMANDS);
        error_set(&err, STATUS_USAGE, "%s is not a command.%s%s%s See `mobilellm --help`.", argv[1], near ? " Did you mean " : "",
                  near ? near : "", near ? "?" : "");
        ranks_abort(&world, &err);
    }
    if (c->parallel && ranks_open(&world, &err)) ranks_abort(&world, &err);
    int exit_status = c->run(argc - 1, argv + 1, &world, &err);
    if (exit_status < 0) ranks_abort(&world, &err);
    ranks_close(&world);
    return exit_status;
}
