/* fiber.h: stacks that take turns on one OS thread. */
#ifndef MOBILELLM_EMU_FIBER_H
#define MOBILELLM_EMU_FIBER_H

#include <cstddef>

namespace cuemu {

struct fiber {
    void *sp;           // saved while another runs
    const void *stack;  // its lowest byte
    size_t bytes;
    int thread;        // the CUDA thread it runs, or will run
    void *fake_stack;  // AddressSanitizer's
    void *tsan;        // ThreadSanitizer's
};

/* A fiber that will run entry(), which never returns. index staggers the stacks over the sets of the cache. */
fiber *fiber_new(int index, void (*entry)());

/* Goes on in `to`, until another fiber switches back. */
void fiber_switch(fiber *from, fiber *to);

/* The first thing entry() calls: learns where the stack of `first` is, the fiber that is an ordinary thread. */
void fiber_begin(fiber *first);

/* The fiber that the calling OS thread is by itself. */
void fiber_adopt(fiber *first);

}  // namespace cuemu

#endif
