// The lattice's only macro: a function that nvcc builds for both processors and
// a host compiler for its own. Always inlined: a translation unit that is compiled
// for a special instruction set must not leave its copy to the others.
#pragma once

#if defined(__CUDACC__)
#define MBRNNT_HD __host__ __device__ __forceinline__
#else
#define MBRNNT_HD inline __attribute__((always_inline))
#endif
