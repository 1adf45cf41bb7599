/* attention_cudnn.cpp: attention by cuDNN, through its C++ frontend, which is all headers and which no other file includes.
 *
 * The frontend calls cuDNN and NVRTC by their functions' names, and neither is linked. So the names are defined here, and lead
 * through a table that is filled when the library has been opened. The table is the one global of cuda/: the names have nowhere
 * else to find it. NVRTC's lead to an error: the frontend compiles kernels of its own only for GPUs and graphs that are not
 * asked for here, while cuDNN, which does compile, opens NVRTC itself. */
#include "cuda/attention_cudnn.h"

#include <cudnn_frontend.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <new>

namespace fe = cudnn_frontend;

/* ---- the names ---- */

/* X(result, name, (parameters), (arguments)) */
#define CUDNN_NAMES(X)                                                                                                           \
    X(cudnnStatus_t, cudnnBackendCreateDescriptor, (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t * d), (type, d)) \
    X(cudnnStatus_t, cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t d), (d))                                           \
    X(cudnnStatus_t, cudnnBackendFinalize, (cudnnBackendDescriptor_t d), (d))                                                    \
    X(cudnnStatus_t, cudnnBackendSetAttribute,                                                                                   \
      (cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n,                \
       const void *v),                                                                                                           \
      (d, name, type, n, v))                                                                                                     \
    X(cudnnStatus_t, cudnnBackendGetAttribute,                                                                                   \
      (cudnnBackendDescriptor_t const d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t most,       \
       int64_t *n, void *v),                                                                                                     \
      (d, name, type, most, n, v))                                                                                               \
    X(cudnnStatus_t, cudnnBackendExecute, (cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack),  \
      (handle, plan, pack))                                                                                                      \
    X(cudnnStatus_t, cudnnGetStream, (cudnnHandle_t handle, cudaStream_t * stream), (handle, stream))                            \
    X(size_t, cudnnGetVersion, (void), ())                                                                                       \
    X(const char *, cudnnGetErrorString, (cudnnStatus_t s), (s))                                                                 \
    X(void, cudnnGetLastErrorString, (char *text, size_t size), (text, size))                                                    \
    X(cudnnStatus_t, cudnnCreate, (cudnnHandle_t * handle), (handle))                                                            \
    X(cudnnStatus_t, cudnnDestroy, (cudnnHandle_t handle), (handle))                                                             \
    X(cudnnStatus_t, cudnnSetStream, (cudnnHandle_t handle, cudaStream_t stream), (handle, stream))

#define POINTER(result, name, parameters, arguments) result(*name) parameters;
static struct cudnn_names { CUDNN_NAMES(POINTER) } names;

extern "C" {
#define LEAD(result, name, parameters, arguments) \
    result name parameters { return names.name arguments; }
CUDNN_NAMES(LEAD)

nvrtcResult nvrtcCreateProgram(nvrtcProgram *, const char *, const char *, int, const char *const *, const char *const *) {
    return NVRTC_ERROR_INTERNAL_ERROR;
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram *) { return NVRTC_ERROR_INTERNAL_ERROR; }
nvrtcResult nvrtcCompileProgram(nvrtcProgram, int, const char *const *) { return NVRTC_ERROR_INTERNAL_ERROR; }
nvrtcResult nvrtcGetCUBIN(nvrtcProgram, char *) { return NVRTC_ERROR_INTERNAL_ERROR; }
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram, size_t *) { return NVRTC_ERROR_INTERNAL_ERROR; }
nvrtcResult nvrtcGetProgramLog(nvrtcProgram, char *) { return NVRTC_ERROR_INTERNAL_ERROR; }
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram, size_t *) { return NVRTC_ERROR_INTERNAL_ERROR; }
}

static int find_names(const libraries *l, error *err) {
#define FIND(result, name, parameters, arguments)                                                   \
    names.name = reinterpret_cast<result(*) parameters>(libraries_symbol(l, LIBRARY_CUDNN, #name)); \
    if (names.name == nullptr) return error_set(err, STATUS_RESOURCE, "%s lacks " #name, l->of[LIBRARY_CUDNN].path);
    CUDNN_NAMES(FIND)
    return 0;
}

/* ---- opening ---- */

struct cudnn_attention {
    cudnnHandle_t handle = nullptr;
    std::shared_ptr<fe::DeviceProperties> described; /* a GPU that is not here */
    int capability = 0;                              /* its */
    ~cudnn_attention() {
        if (handle) cudnnDestroy(handle);
    }
};

/* The first line of cuDNN's message; what follows is the graph in JSON. */
static int refused(error *err, const char *what, const std::string &why) {
    int length = static_cast<int>(why.find_first_of("\n{"));
    return error_set(err, STATUS_RESOURCE, "%s: %.*s", what, length < 0 ? 400 : length, why.c_str());
}

static int open_cudnn(cudnn_attention **c, const libraries *l, cudaStream_t stream, error *err) {
    if (find_names(l, err)) return -1;
    std::unique_ptr<cudnn_attention> opened(new (std::nothrow) cudnn_attention);
    if (!opened) return error_set(err, STATUS_RESOURCE, "no memory for cuDNN");
    cudnnStatus_t failed = cudnnCreate(&opened->handle);
    if (failed == CUDNN_STATUS_SUCCESS) failed = cudnnSetStream(opened->handle, stream);
    if (failed != CUDNN_STATUS_SUCCESS) return refused(err, "cuDNN does not open", cudnnGetErrorString(failed));
    *c = opened.release();
    return 0;
}

static int open_described(cudnn_attention **c, const libraries *l, const char *description, int capability, error *err) try {
    if (find_names(l, err)) return -1;
    std::unique_ptr<cudnn_attention> opened(new cudnn_attention);
    opened->described = std::make_shared<fe::DeviceProperties>();
    opened->capability = capability;
    fe::error_t failed = opened->described->deserialize(std::vector<uint8_t>(description, description + strlen(description)));
    if (failed.is_bad()) return refused(err, "the description of the GPU", failed.get_message());
    *c = opened.release();
    return 0;
} catch (const std::exception &e) {
    return refused(err, "the description of the GPU", e.what());
}

static void close_cudnn(cudnn_attention *c) { delete c; }

/* ---- plans ---- */

typedef std::shared_ptr<fe::graph::Tensor_attributes> tensor;

/* Numbers by which a run tells a plan its arrays. */
enum uid : int64_t { Q = 1, K, V, O, LSE, D_O, D_Q, D_K, D_V };

struct cudnn_plan {
    fe::graph::Graph graph;
    cudnnHandle_t handle = nullptr;
    cudnn_shape shape = {};
    int64_t workspace = 0;
    std::string name;
};

/* Heads of a token, D elements each, in rows of `row` elements: (B,T,...) as cuDNN sees it. */
static void lay_out(fe::graph::Tensor_attributes &t, uid id, const cudnn_shape &s, int64_t heads, int64_t row) {
    t.set_uid(id).set_dim({s.B, heads, s.T, s.D}).set_stride({s.T * row, s.D, row, 1});
}

static void lay_out_lse(fe::graph::Tensor_attributes &t, const cudnn_shape &s) {
    int64_t H = s.H, T = s.T;
    t.set_uid(LSE).set_data_type(fe::DataType_t::FLOAT).set_dim({s.B, H, T, 1}).set_stride({H * T, T, 1, 1});
}

static tensor input(fe::graph::Graph &graph, const char *name, uid id, const cudnn_shape &s, int64_t heads, int64_t row) {
    fe::graph::Tensor_attributes t;
    lay_out(t.set_name(name), id, s, heads, row);
    return graph.tensor(t);
}

static void output(const tensor &t, uid id, const cudnn_shape &s, int64_t heads, int64_t row) {
    lay_out(t->set_output(true), id, s, heads, row);
}

/* The mask, alike in both passes. A left bound of W lets a query see W keys, itself included. */
template <class attributes>
static attributes masked(attributes a, const cudnn_shape &s) {
    a.set_attn_scale(1.0f / std::sqrt(static_cast<float>(s.D)));
    a.set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
    if (s.window < s.T) a.set_diagonal_band_left_bound(s.window);
    return a;
}

static void build_graph(fe::graph::Graph &graph, const cudnn_shape &s) {
    int64_t row = static_cast<int64_t>(s.H + 2 * s.K) * s.D, o_row = static_cast<int64_t>(s.H) * s.D;
    graph.set_io_data_type(fe::DataType_t::BFLOAT16);
    graph.set_intermediate_data_type(fe::DataType_t::FLOAT).set_compute_data_type(fe::DataType_t::FLOAT);
    tensor q = input(graph, "q", Q, s, s.H, row), k = input(graph, "k", K, s, s.K, row), v = input(graph, "v", V, s, s.K, row);
    if (!s.backward) {
        auto attributes = masked(fe::graph::SDPA_attributes().set_name("attention").set_generate_stats(true), s);
        auto [o, lse] = graph.sdpa(q, k, v, attributes);
        output(o, O, s, s.H, o_row);
        lay_out_lse(lse->set_output(true), s);
        return;
    }
    tensor o = input(graph, "o", O, s, s.H, o_row), d_o = input(graph, "d_o", D_O, s, s.H, o_row);
    fe::graph::Tensor_attributes lse;
    lay_out_lse(lse.set_name("lse"), s);
    auto attributes = masked(fe::graph::SDPA_backward_attributes().set_name("attention_backward"), s);
    attributes.set_deterministic_algorithm(true);
    auto [dq, dk, dv] = graph.sdpa_backward(q, k, v, o, d_o, graph.tensor(lse), attributes);
    output(dq, D_Q, s, s.H, row);
    output(dk, D_K, s, s.K, row);
    output(dv, D_V, s, s.K, row);
}

/* What cuDNN says to the graph, step by step. */
static int make_plan(cudnn_plan *plan, cudnn_attention *c, error *err) {
    fe::graph::Graph &graph = plan->graph;
    fe::error_t failed = graph.validate();
    if (failed.is_bad()) return refused(err, "cuDNN", failed.get_message());
    failed = c->described ? graph.build_operation_graph() : graph.build_operation_graph(c->handle);
    if (failed.is_good()) failed = graph.create_execution_plans({fe::HeurMode_t::A});
    if (failed.is_good()) failed = graph.check_support();
    if (failed.is_good()) failed = graph.build_plans(fe::BuildPlanPolicy_t::HEURISTICS_CHOICE);
    if (failed.is_good()) failed = graph.get_workspace_size(plan->workspace);
    if (failed.is_good()) failed = graph.get_plan_name(plan->name);
    return failed.is_bad() ? refused(err, "cuDNN has no plan", failed.get_message()) : 0;
}

static cudnn_plan *create_plan(cudnn_attention *c, const cudnn_shape *shape, error *err) try {
    std::unique_ptr<cudnn_plan> plan(new cudnn_plan);
    plan->handle = c->handle;
    plan->shape = *shape;
    if (c->described) plan->graph.set_device_properties(c->described).set_sm_version(c->capability);
    build_graph(plan->graph, *shape);
    return make_plan(plan.get(), c, err) ? nullptr : plan.release();
} catch (const std::exception &e) {
    refused(err, "cuDNN", e.what());
    return nullptr;
}

static void destroy_plan(cudnn_plan *plan) { delete plan; }

static size_t workspace_of(const cudnn_plan *plan) { return static_cast<size_t>(plan->workspace); }

static const char *name_of(const cudnn_plan *plan) { return plan->name.c_str(); }

/* ---- running them ---- */

typedef std::unordered_map<int64_t, void *> arrays;

/* q, k and v, or their gradients, in an array of packed heads. */
static void add_heads(arrays &of, const cudnn_shape &s, uid first, const void *packed) {
    char *q = static_cast<char *>(const_cast<void *>(packed)), *k = q + static_cast<int64_t>(s.H) * s.D * 2;
    of[first] = q;
    of[first + 1] = k;
    of[first + 2] = k + static_cast<int64_t>(s.K) * s.D * 2;
}

static int run(cudnn_plan *plan, arrays &of, void *workspace, error *err) {
    fe::error_t failed = plan->graph.execute(plan->handle, of, workspace);
    return failed.is_bad() ? refused(err, "cuDNN failed", failed.get_message()) : 0;
}

static int forward(cudnn_plan *plan, void *o, float *lse, const void *qkv, void *workspace, error *err) try {
    arrays of = {{O, o}, {LSE, lse}};
    add_heads(of, plan->shape, Q, qkv);
    return run(plan, of, workspace, err);
} catch (const std::exception &e) {
    return refused(err, "cuDNN failed", e.what());
}

static int backward(cudnn_plan *plan, void *dqkv, const void *d_o, const void *o, const float *lse, const void *qkv,
                    void *workspace, error *err) try {
    arrays of = {{O, const_cast<void *>(o)}, {LSE, const_cast<float *>(lse)}, {D_O, const_cast<void *>(d_o)}};
    add_heads(of, plan->shape, Q, qkv);
    add_heads(of, plan->shape, D_Q, dqkv);
    return run(plan, of, workspace, err);
} catch (const std::exception &e) {
    return refused(err, "cuDNN failed", e.what());
}

const cudnn_functions attention_by_cudnn = {open_cudnn,   open_described, close_cudnn, create_plan, destroy_plan,
                                            workspace_of, name_of,        forward,     backward};
