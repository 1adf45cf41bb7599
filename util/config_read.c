/* config_read.c: from a tree to a C struct, as a schema says.
 *
 * The tree of the config file is completed first (overrides, sections that are files of their own) and read into the struct last,
 * in one walk over the schema, so that a value is checked by the same code wherever it came from. Defaults take that way too. */
#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "util/config.h"
#include "util/config_parts.h"
#include "util/number.h"

/* ---- telling what is wrong ---- */

static bool from_command_line(const tree *t) { return t->line == 0 && strcmp(t->file, CONFIG_COMMAND_LINE) == 0; }

size_t config_enter(config_reader *r, const char *part) {
    size_t length = strlen(r->path);
    snprintf(r->path + length, sizeof r->path - length, "%s%s", length ? "." : "", part);
    return length;
}

void config_leave(config_reader *r, size_t length) { r->path[length] = '\0'; }

/* The key at hand by the name it has where `at` stands. */
static const char *name_of(const config_reader *r, const tree *at) {
    if (from_command_line(at) || r->base >= strlen(r->path)) return r->path;
    const char *path = r->path + r->base;
    return *path == '.' ? path + 1 : path;
}

/* What a node holds, in the words of a message. */
static const char *found(char out[96], const tree *t) {
    switch (t->kind) {
        case TREE_NOTHING:
            return "nothing";
        case TREE_LIST:
            return "a list";
        case TREE_MAP:
            return "a section";
        default:
            snprintf(out, 96, "\"%.*s%s\"%s", 60, t->text, strlen(t->text) > 60 ? "..." : "", t->quoted ? " in quotes" : "");
    }
    return out;
}

int config_wrong(config_reader *r, const tree *t, const char *expected) {
    char text[96];
    return tree_error(t, r->err, "%s: found %s, expected %s", r->path[0] ? name_of(r, t) : "the top level", found(text, t),
                      expected);
}

/* Appends to a list of names in a message: "a", "a or b". */
static void list_name(char *out, size_t size, const char *name, const char *separator) {
    size_t n = strlen(out);
    snprintf(out + n, size - n, "%s%s", n ? separator : "", name);
}

/* The dotted keys anywhere in the schema whose last part is `name`: for one who writes lr instead of optimizer.lr. */
static void find_elsewhere(char *out, size_t size, const config_key *keys, const char *section, const char *name) {
    for (const config_key *k = keys; k->name; k++) {
        char dotted[128];
        snprintf(dotted, sizeof dotted, "%s%s%s", section, *section ? "." : "", k->name);
        if (strcmp(k->name, name) == 0) list_name(out, size, dotted, " or ");
        if (k->kind == CONFIG_SECTION) find_elsewhere(out, size, k->keys, dotted, name);
    }
}

const config_key *config_find_key(const config_key *keys, const char *name) {
    for (; keys->name; keys++)
        if (strcmp(keys->name, name) == 0) return keys;
    return NULL;
}

int config_unknown_key(config_reader *r, const tree *at, const config_key *keys, const char *name) {
    enum { MOST = 64 };
    const char *names[MOST];
    int n = 0;
    char all[512] = "", hint[256] = "";
    for (const config_key *k = keys; k->name && n < MOST; k++) list_name(all, sizeof all, names[n++] = k->name, ", ");

    const char *near = config_nearest(name, names, n);
    size_t back = config_enter(r, near ? near : name);
    if (near)
        snprintf(hint, sizeof hint, "%s", name_of(r, at));
    else
        find_elsewhere(hint, sizeof hint, r->schema, "", name);
    config_leave(r, back);

    back = config_enter(r, name);
    int result = *hint ? tree_error(at, r->err, "%s is not a key. Did you mean %s?", name_of(r, at), hint)
                       : tree_error(at, r->err, "%s is not a key. The keys here are %s", name_of(r, at), all);
    config_leave(r, back);
    return result;
}

/* ---- files ---- */

static int load(config_reader *r, tree *t, const char *path) {
    enum { LARGEST = 1 << 18 }; /* 256 KiB: far more than any config, far less than a model given by mistake */
    FILE *f = fopen(path, "rb");
    if (!f) return error_set(r->err, STATUS_USAGE, "%s: cannot be opened: %m", path);
    config_file *kept = malloc(sizeof *kept + strlen(path) + 1);
    char *text = malloc(LARGEST + 1);
    size_t length = text ? fread(text, 1, LARGEST + 1, f) : 0;
    int result = 0;
    if (!text || !kept)
        result = error_set(r->err, STATUS_RESOURCE, "%s: no memory to read it", path);
    else if (ferror(f))
        result = error_set(r->err, STATUS_USAGE, "%s: cannot be read: %m", path);
    else if (length > LARGEST)
        result = error_set(r->err, STATUS_USAGE, "%s: larger than %d bytes: this is not a config", path, LARGEST);
    fclose(f);
    if (result) {
        free(kept);
    } else {
        strcpy(kept->name, path);
        kept->next = r->files;
        r->files = kept;
        result = tree_parse(t, kept->name, true, text, length, r->err);
    }
    free(text);
    return result;
}

/* Where a file named in a config lies: as it is named, or else beside the config. */
static int locate(const config_reader *r, const tree *name, char out[PATH_MAX]) {
    snprintf(out, PATH_MAX, "%s", name->text);
    FILE *f = fopen(out, "rb");
    const char *slash = strrchr(r->main_file, '/');
    if (!f && slash && name->text[0] != '/') {
        snprintf(out, PATH_MAX, "%.*s/%s", (int)(slash - r->main_file), r->main_file, name->text);
        f = fopen(out, "rb");
        if (!f) return tree_error(name, r->err, "%s: there is no file %s here, nor %s", r->path, name->text, out);
    }
    if (!f) return tree_error(name, r->err, "%s: there is no file %s: %m", r->path, name->text);
    fclose(f);
    return 0;
}

int config_open_section(config_reader *r, const config_key *key, tree *t) {
    if (t->kind == TREE_MAP) return 0;
    if (t->kind == TREE_NOTHING) {
        t->kind = TREE_MAP;
        return 0;
    }
    if (t->kind != TREE_TEXT || !key->may_be_file)
        return config_wrong(r, t, key->may_be_file ? "a section, or the name of a file" : "a section with keys");
    char path[PATH_MAX];
    tree file;
    if (locate(r, t, path) || load(r, &file, path)) return -1;
    if (file.kind != TREE_MAP) {
        int result = config_wrong(r, &file, "the keys of a section");
        tree_free(&file);
        return result;
    }
    tree_replace(t, &file);
    return 0;
}

/* ---- values ---- */

static int read_whole(config_reader *r, int64_t *out, const config_key *key, const tree *t, int64_t least, int64_t most) {
    char expected[96];
    bool bounded = key->min != 0 || key->max != 0;
    double min = bounded && key->min > (double)least ? key->min : (double)least;
    double max = bounded && key->max < (double)most ? key->max : (double)most;
    bool whole = t->kind == TREE_TEXT && !t->quoted && number_read_int64(out, t->text);
    if (whole && *out >= least && *out <= most && (double)*out >= min && (double)*out <= max) return 0;
    if (!bounded && most == INT64_MAX) return config_wrong(r, t, "a whole number");
    if (max >= (double)INT64_MAX)
        snprintf(expected, sizeof expected, "a whole number of at least %.0f", min);
    else
        snprintf(expected, sizeof expected, "a whole number from %.0f to %.0f", min, max);
    return config_wrong(r, t, expected);
}

static int read_double(config_reader *r, double *out, const config_key *key, const tree *t) {
    char expected[96], min[NUMBER_TEXT], max[NUMBER_TEXT];
    bool bounded = key->min != 0 || key->max != 0;
    if (t->kind == TREE_TEXT && !t->quoted && number_read_double(out, t->text) &&
        (!bounded || (*out >= key->min && *out <= key->max)))
        return 0;
    if (!bounded) return config_wrong(r, t, "a number");
    number_print_double(min, key->min);
    if (isinf(key->max)) {
        snprintf(expected, sizeof expected, "a number of at least %s", min);
    } else {
        number_print_double(max, key->max);
        snprintf(expected, sizeof expected, "a number from %s to %s", min, max);
    }
    return config_wrong(r, t, expected);
}

static int read_choice(config_reader *r, int *out, const config_key *key, const tree *t) {
    char expected[256] = "";
    for (int i = 0; key->choices[i]; i++) {
        *out = i;
        if (t->kind == TREE_TEXT && strcmp(t->text, key->choices[i]) == 0) return 0;
        list_name(expected, sizeof expected, key->choices[i], key->choices[i + 1] ? ", " : " or ");
    }
    return config_wrong(r, t, expected);
}

static int read_string(config_reader *r, char **out, const config_key *key, const tree *t) {
    bool optional = key->fallback && strcmp(key->fallback, "null") == 0;
    if (t->kind == TREE_NOTHING && optional) return 0;
    if (t->kind != TREE_TEXT) return config_wrong(r, t, "text");
    *out = strdup(t->text);
    return *out ? 0 : error_set(r->err, STATUS_RESOURCE, "%s: no memory to read it", t->file);
}

static int read_pair(config_reader *r, double out[2], const config_key *key, const tree *t) {
    if (t->kind != TREE_LIST || t->n != 2) return config_wrong(r, t, "two numbers: [a, b]");
    return read_double(r, &out[0], key, &t->items[0]) || read_double(r, &out[1], key, &t->items[1]) ? -1 : 0;
}

static int read_keys(config_reader *r, void *out, const config_key *keys, tree *map);

int config_open_item(config_reader *r, const config_key *list, tree *t) {
    if (t->kind == TREE_MAP) return 0;
    if (t->kind == TREE_LIST) return config_wrong(r, t, "a section with keys");
    tree was = *t;
    *t = (tree){.kind = TREE_MAP, .file = was.file, .line = was.line};
    if (was.kind == TREE_NOTHING) return 0;
    tree *first = tree_add(t, list->keys[0].name, r->err);
    if (!first) {
        tree_free(&was);
        return -1;
    }
    tree_replace(first, &was);
    return 0;
}

static int read_list(config_reader *r, config_list *out, const config_key *key, tree *t) {
    if (t->kind != TREE_LIST && t->kind != TREE_NOTHING) return config_wrong(r, t, "a list: [a, b, ...]");
    if (t->n == 0) return 0;
    out->items = calloc((size_t)t->n, key->item_size);
    if (!out->items) return error_set(r->err, STATUS_RESOURCE, "%s: no memory to read it", t->file);
    out->n = t->n;
    for (int i = 0; i < t->n; i++) {
        char part[24];
        snprintf(part, sizeof part, "%d", i);
        size_t back = config_enter(r, part);
        if (config_open_item(r, key, &t->items[i])) return -1;
        if (read_keys(r, (char *)out->items + (size_t)i * key->item_size, key->keys, &t->items[i])) return -1;
        config_leave(r, back);
    }
    return 0;
}

/* In a file of its own a section's keys go by the names that the file has for them. */
static int read_section(config_reader *r, void *out, const config_key *key, tree *t, const tree *parent) {
    if (config_open_section(r, key, t)) return -1;
    size_t base = r->base;
    if (strcmp(t->file, parent->file) != 0 && !from_command_line(t)) r->base = strlen(r->path);
    int result = read_keys(r, out, key->keys, t);
    r->base = base;
    return result;
}

static int read_value(config_reader *r, void *out, const config_key *key, tree *t, const tree *parent) {
    int64_t whole = 0;
    switch (key->kind) {
        case CONFIG_INT:
            if (read_whole(r, &whole, key, t, INT_MIN, INT_MAX)) return -1;
            *(int *)out = (int)whole;
            return 0;
        case CONFIG_INT64:
            return read_whole(r, out, key, t, INT64_MIN, INT64_MAX);
        case CONFIG_DOUBLE:
            return read_double(r, out, key, t);
        case CONFIG_BOOL:
            *(bool *)out = t->kind == TREE_TEXT && strcmp(t->text, "true") == 0;
            if (t->kind == TREE_TEXT && !t->quoted && (*(bool *)out || strcmp(t->text, "false") == 0)) return 0;
            return config_wrong(r, t, "true or false");
        case CONFIG_STRING:
            return read_string(r, out, key, t);
        case CONFIG_CHOICE:
            return read_choice(r, out, key, t);
        case CONFIG_PAIR:
            return read_pair(r, out, key, t);
        case CONFIG_SECTION:
            return read_section(r, out, key, t, parent);
        case CONFIG_LIST:
            return read_list(r, out, key, t);
    }
    return 0;
}

/* A key that the config does not have. */
static int read_fallback(config_reader *r, void *out, const config_key *key, tree *map) {
    if (!key->fallback) return tree_error(map, r->err, "%s is missing: %s", name_of(r, map), key->doc);
    tree t;
    if (key->kind == CONFIG_SECTION) {
        t = (tree){.kind = TREE_MAP, .file = map->file, .line = map->line};
    } else if (tree_parse(&t, "a default of the schema", false, key->fallback, strlen(key->fallback), r->err)) {
        return -1;
    }
    int result = read_value(r, out, key, &t, map);
    tree_free(&t);
    return result;
}

static int read_keys(config_reader *r, void *out, const config_key *keys, tree *map) {
    for (int i = 0; i < map->n; i++)
        if (!config_find_key(keys, map->items[i].key)) return config_unknown_key(r, &map->items[i], keys, map->items[i].key);
    for (const config_key *key = keys; key->name; key++) {
        void *at = (char *)out + key->offset;
        tree *t = tree_find(map, key->name);
        size_t back = config_enter(r, key->name);
        if (t ? read_value(r, at, key, t, map) : read_fallback(r, at, key, map)) return -1;
        config_leave(r, back);
    }
    return 0;
}

/* ---- the whole ---- */

/* Clears the fields that the schema knows; with `release`, what they hold is freed first. */
static void clear(void *values, const config_key *keys, bool release) {
    for (const config_key *key = keys; key->name; key++) {
        void *at = (char *)values + key->offset;
        switch (key->kind) {
            case CONFIG_INT:
            case CONFIG_CHOICE:
                *(int *)at = 0;
                break;
            case CONFIG_INT64:
                *(int64_t *)at = 0;
                break;
            case CONFIG_DOUBLE:
                *(double *)at = 0;
                break;
            case CONFIG_BOOL:
                *(bool *)at = false;
                break;
            case CONFIG_PAIR:
                ((double *)at)[0] = ((double *)at)[1] = 0;
                break;
            case CONFIG_SECTION:
                clear(at, key->keys, release);
                break;
            case CONFIG_STRING:
                if (release) free(*(char **)at);
                *(char **)at = NULL;
                break;
            case CONFIG_LIST: {
                config_list *list = at;
                for (int i = 0; release && i < list->n; i++)
                    clear((char *)list->items + (size_t)i * key->item_size, key->keys, true);
                if (release) free(list->items);
                *list = (config_list){0};
            }
        }
    }
}

void config_free(void *values, const config_key *schema) { clear(values, schema, true); }

/* The tree of a config with the overrides in it; text NULL: of the file at r->main_file. */
static int read_tree(config_reader *r, tree *root, const char *text, const char *const *overrides, int n_overrides) {
    const char *path = r->main_file;
    if (text ? tree_parse(root, path, true, text, strlen(text), r->err) : load(r, root, path)) return -1;
    if (root->kind == TREE_NOTHING) return tree_error(root, r->err, "there is nothing in it");
    if (root->kind != TREE_MAP) return config_wrong(r, root, "the keys of a config");
    return config_override(r, root, overrides, n_overrides);
}

static void close_reader(config_reader *r, tree *root) {
    tree_free(root);
    while (r->files) {
        config_file *file = r->files;
        r->files = file->next;
        free(file);
    }
}

int config_read(void *out, const config_key *schema, const char *path, const char *text, const char *const *overrides,
                int n_overrides, error *err) {
    config_reader r = {.schema = schema, .main_file = path, .err = err};
    tree root = {0};
    clear(out, schema, false);
    int result = read_tree(&r, &root, text, overrides, n_overrides);
    if (!result) result = read_keys(&r, out, schema, &root);
    if (result) config_free(out, schema);
    close_reader(&r, &root);
    return result;
}

/* The deepest node on the way to a dotted key. */
static const tree *find_dotted(const tree *t, const char *key) {
    char copy[512], *rest = copy;
    snprintf(copy, sizeof copy, "%s", key);
    for (const char *part = strsep(&rest, "."); part; part = strsep(&rest, ".")) {
        int64_t i;
        const tree *next = NULL;
        if (t->kind == TREE_MAP) next = tree_find(t, part);
        if (t->kind == TREE_LIST && number_read_int64(&i, part) && i >= 0 && i < t->n) next = &t->items[i];
        if (!next) break;
        t = next;
    }
    return t;
}

void config_place(char *out, size_t size, const config_key *schema, const char *path, const char *const *overrides,
                  int n_overrides, const char *key) {
    error err;
    config_reader r = {.schema = schema, .main_file = path, .err = &err};
    tree root = {0};
    const tree *t = read_tree(&r, &root, NULL, overrides, n_overrides) ? NULL : find_dotted(&root, key);
    if (t && t->line > 0)
        snprintf(out, size, "%s:%d", t->file, t->line);
    else
        snprintf(out, size, "%s", t ? t->file : path);
    close_reader(&r, &root);
}
