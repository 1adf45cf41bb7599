/* host_device.h: marks small functions of headers that CUDA kernels call too. */
#ifndef MOBILELLM_UTIL_HOST_DEVICE_H
#define MOBILELLM_UTIL_HOST_DEVICE_H

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

#endif
