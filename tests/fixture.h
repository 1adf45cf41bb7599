/* fixture.h: the networks of tests/fixtures/model/ for C tests: the reading of their files, and a model made ready from one.
 *
 * What cannot be read fails the test that asked. Memory lent to a model is filled with NaNs first, so that what reads memory it
 * has not written is seen. */
#ifndef MOBILELLM_TESTS_FIXTURE_H
#define MOBILELLM_TESTS_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <hdf5.h>

#include "model/model.h"

typedef struct fixture {
    const char *name;
    hid_t file;
} fixture;

static inline fixture fixture_open(const char *name) {
    char path[256];
    snprintf(path, sizeof path, "tests/fixtures/model/%s.h5", name);
    fixture f = {name, H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT)};
    if (f.file < 0) fail_msg("%s cannot be opened; tests run in the root of the repository", path);
    return f;
}

static inline void fixture_close(fixture *f) { H5Fclose(f->file); }

static inline double fixture_number(const fixture *f, const char *attribute) {
    double value = NAN;
    hid_t a = H5Aopen(f->file, attribute, H5P_DEFAULT);
    if (a < 0 || H5Aread(a, H5T_NATIVE_DOUBLE, &value) < 0) fail_msg("%s has no number %s", f->name, attribute);
    H5Aclose(a);
    return value;
}

static inline char *fixture_text(const fixture *f, const char *attribute) {
    char *text = NULL;
    hid_t a = H5Aopen(f->file, attribute, H5P_DEFAULT), type = H5Aget_type(a);
    if (a < 0 || H5Aread(a, type, &text) < 0) fail_msg("%s has no text %s", f->name, attribute);
    H5Tclose(type);
    H5Aclose(a);
    return text;
}

/* A whole dataset as `type`, which has `size` bytes: allocated. *n: its elements; axes (if not NULL): its shape. */
static inline void *fixture_array(const fixture *f, const char *path, hid_t type, size_t size, int64_t *n, hsize_t *axes) {
    hid_t d = H5Dopen2(f->file, path, H5P_DEFAULT), space = H5Dget_space(d);
    if (d < 0) fail_msg("%s has no dataset %s", f->name, path);
    *n = H5Sget_simple_extent_npoints(space);
    if (axes) H5Sget_simple_extent_dims(space, axes, NULL);
    void *values = malloc((size_t)*n * size);
    if (!values || H5Dread(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0) fail_msg("%s: %s cannot be read", f->name, path);
    H5Sclose(space);
    H5Dclose(d);
    return values;
}

static inline double *fixture_doubles(const fixture *f, const char *path, int64_t *n) {
    return fixture_array(f, path, H5T_NATIVE_DOUBLE, sizeof(double), n, NULL);
}

/* The tensor of this name in a group ("params", "grads"). */
static inline float *fixture_tensor(const fixture *f, const char *group, const tensor *t) {
    char path[128];
    int64_t n;
    snprintf(path, sizeof path, "%s/%s", group, t->name);
    float *values = fixture_array(f, path, H5T_NATIVE_FLOAT, sizeof(float), &n, NULL);
    if (n != t->count)
        fail_msg("%s: %s has %lld elements, the model's has %lld", f->name, path, (long long)n, (long long)t->count);
    return values;
}

/* tokens, targets, doc, pos: (rows,T), or (steps,rows,T) one after another. */
typedef struct fixture_input {
    int steps, rows, T;
    int32_t *tokens, *targets, *doc, *pos;
} fixture_input;

static inline fixture_input fixture_read_input(const fixture *f) {
    fixture_input in;
    int32_t **arrays[] = {&in.tokens, &in.targets, &in.doc, &in.pos};
    const char *names[] = {"tokens", "targets", "doc", "pos"};
    int64_t n = 0;
    hsize_t axes[3] = {0};
    for (int i = 0; i < 4; i++) *arrays[i] = fixture_array(f, names[i], H5T_NATIVE_INT32, sizeof(int32_t), &n, axes);
    bool stepped = axes[2] > 0;
    in.steps = stepped ? (int)axes[0] : 1;
    in.rows = (int)axes[stepped ? 1 : 0];
    in.T = (int)axes[stepped ? 2 : 1];
    return in;
}

static inline void fixture_free_input(fixture_input *in) {
    free(in->tokens);
    free(in->targets);
    free(in->doc);
    free(in->pos);
}

/* Rows [first, first + rows) of all. */
static inline model_input fixture_rows(const fixture_input *in, int first, int rows) {
    ptrdiff_t at = (ptrdiff_t)first * in->T;
    return (model_input){rows, in->tokens + at, in->targets + at, in->doc + at, in->pos + at};
}

static inline int64_t fixture_valid(const model_input *in, int T) {
    int64_t n = 0;
    for (int64_t i = 0; i < (int64_t)in->rows * T; i++) n += in->targets[i] >= 0;
    return n;
}

static inline model_config fixture_config(const fixture *f) {
    error err = {0};
    model_config c;
    char *text = fixture_text(f, "model");
    if (config_read(&c, model_config_keys, f->name, text, NULL, 0, &err) || model_config_check(&c, f->name, &err))
        fail_msg("%s", err.text);
    H5free_memory(text);
    return c;
}

/* A model with its backend and memory. */
typedef struct network {
    const ops *ops;
    backend *backend;
    void *memory;
    model m;
} network;

/* Parameters and gradients are zero, all else NaN until it is written. ways 0 means 1. */
static inline void network_open(network *net, const model_config *c, model_options o) {
    error err = {0};
    model planned;
    if (o.ways == 0) o.ways = 1;
    *net = (network){.ops = cpu_ops()};
    if (net->ops->open(&net->backend, 0, 0, &err)) fail_msg("%s", err.text);
    arena plan = arena_dry();
    if (model_open(&planned, c, &o, net->ops, net->backend, &plan, &err)) fail_msg("%s", err.text);
    model_close(&planned);
    net->memory = net->ops->alloc(net->backend, plan.peak, &err);
    assert_non_null(net->memory);
    memset(net->memory, 0xff, plan.peak);
    arena real = arena_on(net->memory, plan.peak);
    if (model_open(&net->m, c, &o, net->ops, net->backend, &real, &err)) fail_msg("%s", err.text);
    net->ops->zero(net->backend, net->m.params, (size_t)net->m.registry.n_flat * dtype_size(o.x));
    if (o.training) net->ops->zero(net->backend, net->m.grads, (size_t)net->m.registry.n_flat * sizeof(float));
    if (real.peak != plan.peak) fail_msg("the dry run asked for %zu bytes, the real one took %zu", plan.peak, real.peak);
}

static inline void network_close(network *net) {
    error err = {0};
    if (net->ops->sync(net->backend, &err)) fail_msg("%s", err.text);
    model_close(&net->m);
    net->ops->free(net->backend, net->memory);
    net->ops->close(net->backend);
}

/* The network of a fixture with its weights. B and T of the options are those of the fixture where they are 0. */
static inline void fixture_network(network *net, const fixture *f, model_options o) {
    model_config c = fixture_config(f);
    fixture_input in = fixture_read_input(f);
    if (o.B == 0) o.B = in.rows;
    if (o.T == 0) o.T = in.T;
    network_open(net, &c, o);
    for (int i = 0; i < net->m.registry.n_tensors; i++) {
        const tensor *t = &net->m.registry.tensors[i];
        float *values = fixture_tensor(f, "params", t);
        model_set_tensor(&net->m, t, values);
        free(values);
    }
    fixture_free_input(&in);
    model_config_free(&c);
}

/* All gradients by the order of the table, tensors one behind the other without padding: allocated. */
static inline float *network_gradients(network *net) {
    const registry *r = &net->m.registry;
    float *all = malloc((size_t)r->n_params * sizeof *all);
    assert_non_null(all);
    int64_t at = 0;
    for (int i = 0; i < r->n_tensors; at += r->tensors[i++].count) model_get_gradient(&net->m, &r->tensors[i], all + at);
    return all;
}

static inline double norm_of(const float *values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)values[i] * (double)values[i];
    return sqrt(sum);
}

/* ||got - expected|| / ||expected|| */
static inline double relative_error(const float *got, const float *expected, int64_t n) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        double e = expected[i], d = (double)got[i] - e;
        difference += d * d;
        size += e * e;
    }
    return sqrt(difference / size);
}

static inline double cosine(const float *a, const float *b, int64_t n) {
    double ab = 0, aa = 0, bb = 0;
    for (int64_t i = 0; i < n; i++) {
        ab += (double)a[i] * b[i];
        aa += (double)a[i] * a[i];
        bb += (double)b[i] * b[i];
    }
    return ab / sqrt(aa * bb);
}

#endif
