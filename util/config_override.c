/* config_override.c: key=value from the command line, put into the tree of a config before it is read.
 *
 * `model=FILE` and `model.n_layers=4` may come in either order: those that say which file a section is are applied first. */
#include <stdlib.h>
#include <string.h>

#include "util/config_parts.h"
#include "util/number.h"

static const tree command_line = {.file = CONFIG_COMMAND_LINE};

static int put_in_section(config_reader *r, const config_key *keys, tree *map, char *rest, tree *value);

static int put_in_list(config_reader *r, const config_key *key, tree *list, char *rest, tree *value) {
    const char *part = strsep(&rest, ".");
    int64_t i;
    if (list->kind == TREE_NOTHING) list->kind = TREE_LIST;
    if (list->kind != TREE_LIST) return config_wrong(r, list, "a list: [a, b, ...]");
    if (!number_read_int64(&i, part) || i < 0 || i > list->n)
        return tree_error(&command_line, r->err, "%s.%s: expected the number of an item, from 0 to %d (a new one)", r->path, part,
                          list->n);
    tree *item = i < list->n ? &list->items[i] : tree_add(list, NULL, r->err);
    if (!item) return -1;
    config_enter(r, part);
    if (!rest) {
        tree_replace(item, value);
        return 0;
    }
    if (config_open_item(r, key, item)) return -1;
    return put_in_section(r, key->keys, item, rest, value);
}

static int put_in_section(config_reader *r, const config_key *keys, tree *map, char *rest, tree *value) {
    const char *part = strsep(&rest, ".");
    const config_key *key = config_find_key(keys, part);
    if (!key) return config_unknown_key(r, &command_line, keys, part);
    tree *t = tree_find(map, part);
    if (!t) t = tree_add(map, part, r->err);
    if (!t) return -1;
    config_enter(r, part);
    if (!rest) {
        tree_replace(t, value);
        return 0;
    }
    if (key->kind == CONFIG_LIST) return put_in_list(r, key, t, rest, value);
    if (key->kind == CONFIG_SECTION) return config_open_section(r, key, t) ? -1 : put_in_section(r, key->keys, t, rest, value);
    return tree_error(&command_line, r->err, "%s.%s is not a key: %s holds a value", r->path, rest, r->path);
}

static int parse_value(config_reader *r, const char *override, const char *text, tree *value) {
    if (tree_parse(value, CONFIG_COMMAND_LINE, false, text, strlen(text), r->err) == 0) return 0;
    if (r->err->code != STATUS_USAGE) return -1;
    const char *reason = r->err->text + strlen(CONFIG_COMMAND_LINE ": ");
    char why[256];
    snprintf(why, sizeof why, "%s", reason);
    return tree_error(&command_line, r->err, "%s: %s; a text with special characters needs quotes", override, why);
}

static int apply(config_reader *r, tree *root, const char *override) {
    const char *equals = strchr(override, '=');
    tree value;
    if (parse_value(r, override, equals + 1, &value)) return -1;
    char *key = strndup(override, (size_t)(equals - override));
    int result = key ? put_in_section(r, r->schema, root, key, &value)
                     : error_set(r->err, STATUS_RESOURCE, "%s: no memory to read it", CONFIG_COMMAND_LINE);
    free(key);
    tree_free(&value);
    config_leave(r, 0);
    return result;
}

/* Is this the override of a whole section that may be a file? */
static bool says_which_file(const config_reader *r, const char *override) {
    const config_key *keys = r->schema;
    for (const char *part = override;;) {
        size_t n = strcspn(part, ".=");
        const config_key *key = keys;
        while (key->name && (strlen(key->name) != n || strncmp(key->name, part, n) != 0)) key++;
        if (!key->name || key->kind != CONFIG_SECTION) return false;
        if (part[n] != '.') return key->may_be_file;
        keys = key->keys;
        part += n + 1;
    }
}

int config_override(config_reader *r, tree *root, const char *const *overrides, int n_overrides) {
    for (int i = 0; i < n_overrides; i++)
        if (!strchr(overrides[i], '='))
            return tree_error(&command_line, r->err, "%s is not key=value, such as optimizer.lr=1e-3", overrides[i]);
    for (int pass = 0; pass < 2; pass++)
        for (int i = 0; i < n_overrides; i++)
            if (says_which_file(r, overrides[i]) == (pass == 0) && apply(r, root, overrides[i])) return -1;
    return 0;
}
