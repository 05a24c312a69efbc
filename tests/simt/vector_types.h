// CUDA's vector types with CUDA's alignments: an access that is misaligned on the GPU
// is misaligned here too, and UndefinedBehaviorSanitizer says so.
//
// `may_alias`: kernels read buffers of floats and halves as uint4, as nvcc lets them.
#pragma once

#define SIMT_VECTOR_TYPES(T, name)                                                         \
  struct name##1 { T x; };                                                                 \
  struct __attribute__((may_alias, aligned(2 * sizeof(T)))) name##2 { T x, y; };           \
  struct __attribute__((may_alias)) name##3 { T x, y, z; };                                \
  struct __attribute__((may_alias, aligned(sizeof(T) < 4 ? 4 * sizeof(T) : 16))) name##4 { \
    T x, y, z, w;                                                                          \
  };                                                                                       \
  inline name##1 make_##name##1(T x) { return {x}; }                                       \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                               \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                       \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SIMT_VECTOR_TYPES(signed char, char)
SIMT_VECTOR_TYPES(unsigned char, uchar)
SIMT_VECTOR_TYPES(short, short)
SIMT_VECTOR_TYPES(unsigned short, ushort)
SIMT_VECTOR_TYPES(int, int)
SIMT_VECTOR_TYPES(unsigned int, uint)
SIMT_VECTOR_TYPES(long long, longlong)
SIMT_VECTOR_TYPES(unsigned long long, ulonglong)
SIMT_VECTOR_TYPES(float, float)
SIMT_VECTOR_TYPES(double, double)

#undef SIMT_VECTOR_TYPES

struct dim3 {
  unsigned int x, y, z;

  constexpr dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 d) : x(d.x), y(d.y), z(d.z) {}
};
