/* stream.cpp: streams and events. Work is queued, and run by the thread that queues it, waits for it or asks for it, as
 * CUEMU_STREAMS says.
 *
 * A GPU may run work at any time between. Eager is the earliest and lazy the latest time that is allowed: a program that
 * forgets to wait gets the old bytes when lazy, one that reuses memory before it was read gets the new bytes. */
#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <vector>

#include "tests/emu/emu_host.h"
#include "tests/emu/runtime.h"

namespace cuemu {

struct item {
    std::function<void()> work;
    cudaStream_t after;  // runs when this stream, if any, has done
    uint64_t count;      // so many items
};

}  // namespace cuemu

struct CUstream_st {
    std::deque<cuemu::item> queue;
    uint64_t issued, done;
    bool with_default;  // ordered with the default stream, as those made without cudaStreamNonBlocking are
    bool destroyed;
};

struct CUevent_st {
    cudaStream_t stream;  // NULL: not recorded
    uint64_t count;
    bool timed;
    std::shared_ptr<double> seconds;  // shared with the queue, which may outlive the event
};

namespace cuemu {

std::recursive_mutex &api_lock() {
    static auto *lock = new std::recursive_mutex;
    return *lock;
}

/* The first is the default stream. None is ever freed, because events name them. */
static std::vector<cudaStream_t> &streams() {
    static auto *all = new std::vector<cudaStream_t>{new CUstream_st{{}, 0, 0, true, false}};
    return *all;
}

static cudaStream_t known(cudaStream_t stream) {
    if (!stream) return streams()[0];
    if (std::find(streams().begin(), streams().end(), stream) == streams().end() || stream->destroyed)
        fatal("%p is not a stream, or one that was destroyed", static_cast<void *>(stream));
    return stream;
}

static random_numbers &draw() {
    static random_numbers numbers = {settings().stream_seed};
    return numbers;
}

static bool can_run(cudaStream_t s) {
    return !s->queue.empty() && (!s->queue.front().after || s->queue.front().after->done >= s->queue.front().count);
}

static void run_one(cudaStream_t s) {
    static uint64_t n_run;
    item next = std::move(s->queue.front());
    s->queue.pop_front();
    if (next.work && !unusable()) {
        if (++n_run == settings().fail) break_device(cudaErrorIllegalAddress);
        next.work();
    }
    s->done++;
}

/* Runs one item of any stream. False: there is none that can run. */
static bool run_any() {
    std::vector<cudaStream_t> able;
    std::copy_if(streams().begin(), streams().end(), std::back_inserter(able), can_run);
    if (able.empty()) return false;
    run_one(able[draw().below(static_cast<unsigned>(able.size()))]);
    return true;
}

/* Works until `count` items of s have run. False: what is left waits for something that nobody brings about (cuemu_hold). */
static bool progress(cudaStream_t s, uint64_t count) {
    while (s->done < count) {
        if (settings().streams == timing::random) {
            if (!run_any()) return false;
        } else if (can_run(s)) {
            run_one(s);
        } else if (s->queue.empty() || !progress(s->queue.front().after, s->queue.front().count)) {
            return false;
        }
    }
    return true;
}

/* One item on the way there, for a host that asks again and again: a GPU would have gone on meanwhile. */
static void progress_once(cudaStream_t s, uint64_t count) {
    if (s->done >= count || s->queue.empty()) return;
    if (settings().streams == timing::random) {
        (void)run_any();
    } else if (can_run(s)) {
        run_one(s);
    } else {
        progress_once(s->queue.front().after, s->queue.front().count);
    }
}

static void wait_for(cudaStream_t s, uint64_t count) {
    if (!progress(s, count)) fatal("the host waits for work that never ends");
}

void wait_for_all_streams() {
    for (size_t i = 0; i < streams().size(); i++) wait_for(streams()[i], streams()[i]->issued);
}

/* Eager: what can run runs now. */
static void run_eagerly() {
    for (bool some = true; some;) {
        some = false;
        for (size_t i = 0; i < streams().size(); i++)
            for (; can_run(streams()[i]); some = true) run_one(streams()[i]);
    }
}

static void push(cudaStream_t stream, item next) {
    cudaStream_t s = known(stream), standard = streams()[0];
    if (s == standard) {
        for (cudaStream_t other : streams())
            if (other != s && other->with_default) wait_for(other, other->issued);
    } else if (s->with_default) {
        wait_for(standard, standard->issued);
    }
    s->queue.push_back(std::move(next));
    s->issued++;
    if (settings().streams == timing::eager) run_eagerly();
    if (settings().streams == timing::random)
        for (unsigned k = draw().below(3); k && run_any(); k--) {
        }
}

void enqueue(cudaStream_t stream, std::function<void()> work) {
    push(stream, {[work] {
                      open_memory here;
                      work();
                  },
                  nullptr, 0});
}

static cudaError_t finish(cudaStream_t stream) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    wait_for(known(stream), known(stream)->issued);
    return unusable() ? failed(unusable()) : cudaSuccess;
}

static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace cuemu

using namespace cuemu;

void cuemu_enqueue(cudaStream_t stream, void (*work)(void *), void *argument) {
    locked lock(api_lock());
    enqueue(stream, [=] { work(argument); });
}

void *cuemu_hold(cudaStream_t stream) {
    locked lock(api_lock());
    cudaStream_t never = new CUstream_st{{}, 1, 0, false, true};
    push(stream, {nullptr, never, 1});
    return never;
}

void cuemu_release(void *held) {
    locked lock(api_lock());
    static_cast<cudaStream_t>(held)->done = 1;
    if (settings().streams == timing::eager) run_eagerly();
}

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    *stream = new CUstream_st{{}, 0, 0, !(flags & cudaStreamNonBlocking), false};
    streams().push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithFlags(stream, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return unusable();
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    cudaError_t status = finish(stream);
    stream->destroyed = true;
    return status;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return finish(stream); }

cudaError_t cudaStreamQuery(cudaStream_t stream) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    progress_once(known(stream), known(stream)->issued);
    return known(stream)->done == known(stream)->issued ? cudaSuccess : failed(cudaErrorNotReady);
}

cudaError_t cudaDeviceSynchronize() {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    wait_for_all_streams();
    return unusable() ? failed(unusable()) : cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    push(stream, {[=] { function(argument); }, nullptr, 0});
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return failed(cudaErrorNotSupported); }

/* ---- events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    if (unusable()) return failed(unusable());
    *event = new CUevent_st{nullptr, 0, !(flags & cudaEventDisableTiming), std::make_shared<double>(0)};
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    std::shared_ptr<double> seconds = event->seconds;
    push(stream, {[=] { *seconds = now(); }, nullptr, 0});
    event->stream = known(stream);
    event->count = event->stream->issued;
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    if (event->stream) push(stream, {nullptr, event->stream, event->count});
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    if (event->stream) wait_for(event->stream, event->count);
    return unusable() ? failed(unusable()) : cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    locked lock(api_lock());
    if (unusable()) return failed(unusable());
    if (!event->stream) return cudaSuccess;
    progress_once(event->stream, event->count);
    if (unusable()) return failed(unusable());
    return event->stream->done >= event->count ? cudaSuccess : failed(cudaErrorNotReady);  // which is kept, as on a GPU
}

static float drawn_time() {
    int device = 0;
    cudaGetDevice(&device);
    static random_numbers numbers = {(settings().time_seed + static_cast<uint64_t>(device) * 1000) * 0x9E3779B97F4A7C15ull | 1};
    return 1 + static_cast<float>(numbers.below(1000));
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    if (!start->timed || !end->timed || !start->stream || !end->stream) return failed(cudaErrorInvalidResourceHandle);
    if (cudaEventQuery(start) != cudaSuccess || cudaEventQuery(end) != cudaSuccess) return cudaErrorNotReady;
    *milliseconds = settings().time_seed ? drawn_time() : static_cast<float>((*end->seconds - *start->seconds) * 1e3);
    return cudaSuccess;
}
