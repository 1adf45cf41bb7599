/* emu_host.h: what a test can ask of the emulated GPU beyond CUDA's API. C and C++. */
#ifndef MOBILELLM_EMU_HOST_H
#define MOBILELLM_EMU_HOST_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The most device memory that was allocated at a time, since the start or cuemu_forget_peak. */
size_t cuemu_memory_peak(void);
void cuemu_forget_peak(void);

/* ---- for the stand-ins for NVIDIA's libraries ---- */

/* Runs work(argument) as part of the stream, with device memory open to it. */
void cuemu_enqueue(cudaStream_t stream, void (*work)(void *), void *argument);

/* The stream does not go on, until the hold is released. */
void *cuemu_hold(cudaStream_t stream);
void cuemu_release(void *hold);

/* Bytes from p to the end of its allocation on the device; 0: it is not in one. */
size_t cuemu_room(const void *p);

#ifdef __cplusplus
}
#endif
#endif
