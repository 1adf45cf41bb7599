/* fiber.cpp: the switch between stacks. 15 instructions, because a kernel switches at every shuffle of every thread: swapcontext
 * takes 238 ns for what takes 8 here. Registers that a call may change are saved by the compiler around the call. */
#include "tests/emu/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "tests/emu/runtime.h"

#ifdef CUEMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CUEMU_TSAN
extern "C" {
void *__tsan_get_current_fiber();
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
}
#endif

/* Saves the registers that a call must keep on the stack and the stack pointer in *save; then the same backwards from `to`. */
extern "C" void cuemu_switch_stack(void **save, void *to);
#if defined(__x86_64__)
enum { SAVED_WORDS = 6 };
__asm__(R"(
.text
.globl cuemu_switch_stack
.type cuemu_switch_stack,@function
cuemu_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuemu_switch_stack, .-cuemu_switch_stack
)");
#elif defined(__aarch64__)
enum { SAVED_WORDS = 22, LINK_REGISTER = 11 };
__asm__(R"(
.text
.globl cuemu_switch_stack
.type cuemu_switch_stack,%function
cuemu_switch_stack:
    sub sp, sp, #176
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #176
    ret x30
.size cuemu_switch_stack, .-cuemu_switch_stack
)");
#else
#error "cuemu_switch_stack is not written for this processor"
#endif

namespace cuemu {

enum { PAGE = 4096, LINE = 64, STAGGERED = 48 };

/* What cuemu_switch_stack pops when it first comes here: zeros for the registers, and entry to return to. */
static void *first_frame(uintptr_t top, void (*entry)()) {
#if defined(__x86_64__)
    void **sp = reinterpret_cast<void **>(top - LINE);  // 64 bytes = 6 registers, entry, and entry's return address
    memset(sp, 0, LINE);
    sp[SAVED_WORDS] = reinterpret_cast<void *>(entry);
#else
    void **sp = reinterpret_cast<void **>(top) - SAVED_WORDS;
    memset(sp, 0, SAVED_WORDS * sizeof *sp);
    sp[LINK_REGISTER] = reinterpret_cast<void *>(entry);
#endif
    return sp;
}

fiber *fiber_new(int index, void (*entry)()) {
    size_t bytes = settings().stack;
    char *memory = static_cast<char *>(
        mmap(nullptr, PAGE + bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE)) fatal("no memory for the stack of a CUDA thread");
    fiber *f = static_cast<fiber *>(calloc(1, sizeof *f));
    f->stack = memory + PAGE;  // below it the page that an overflow hits
    f->bytes = bytes;
    uintptr_t top = reinterpret_cast<uintptr_t>(memory + PAGE + bytes) - static_cast<size_t>(index * 7 % STAGGERED) * LINE;
    f->sp = first_frame(top, entry);
#ifdef CUEMU_TSAN
    f->tsan = __tsan_create_fiber(0);
#endif
    return f;
}

void fiber_adopt(fiber *first) {
#ifdef CUEMU_TSAN
    first->tsan = __tsan_get_current_fiber();
#else
    (void)first;
#endif
}

void fiber_begin(fiber *first) {
#ifdef CUEMU_ASAN
    const void *stack;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &stack, &bytes);
    if (!first->stack) {
        first->stack = stack;
        first->bytes = bytes;
    }
#else
    (void)first;
#endif
}

void fiber_switch(fiber *from, fiber *to) {
#ifdef CUEMU_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->bytes);
#endif
#ifdef CUEMU_TSAN
    enum { NO_SYNC = 1 };  // taking turns orders nothing
    __tsan_switch_to_fiber(to->tsan, NO_SYNC);
#endif
    cuemu_switch_stack(&from->sp, to->sp);
#ifdef CUEMU_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}

}  // namespace cuemu
