// Kernels without a bug: everything that the stand-in offers does what a GPU does.
// Exits with 1 and names the first expectation that does not hold.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>

#include "cuda/ptx.h"
#include "lattice/number.h"
#include "launch.h"

extern __shared__ __align__(16) unsigned char dynamic_shared[];

namespace {

constexpr unsigned kAll = 0xffffffff;

// Kernels that judge themselves leave the line of an expectation that does not hold.
#define EXPECT_IN_KERNEL(condition)       \
  do {                                    \
    if (!(condition)) *broken = __LINE__; \
  } while (false)

template <typename... Arguments>
void ExpectLaunch(dim3 grid, dim3 block, size_t dynamic_shared_size,
                  void (*kernel)(int*, Arguments...), Arguments... arguments) {
  DeviceArray<int> broken(std::vector<int>{0});
  Launch(grid, block, dynamic_shared_size, kernel, broken.data(), arguments...);
  const int line = broken.Fetch()[0];
  if (line != 0) {
    std::fprintf(stderr, "%s:%d: not so\n", __FILE__, line);
    std::exit(1);
  }
}

// ---------------------------------------------------------------- Threads and blocks

__global__ void CountVisits(int* visits) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  visits[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1;
}

void CheckVisits() {
  const std::vector<dim3> grids = {{1}, {7}, {64, 2}, {3, 4, 5}, {1, 1, 6}};
  const std::vector<dim3> blocks = {{1}, {33}, {32, 4}, {5, 3, 2}, {1024}};
  for (dim3 grid : grids) {
    for (dim3 block : blocks) {
      DeviceArray<int> visits(
          std::vector<int>(size_t{grid.x} * grid.y * grid.z * block.x * block.y * block.z));
      Launch(grid, block, 0, CountVisits, visits.data());
      for (int count : visits.Fetch()) EXPECT(count == 1);
    }
  }
}

struct Parameters {
  int64_t wide;
  float values[3];
};

// Every thread has its own copy of the parameters.
__global__ void ChangeParameters(int* broken, int64_t wide, Parameters parameters,
                                 const __grid_constant__ Parameters constant) {
  parameters.values[0] += static_cast<float>(++wide);
  __syncthreads();
  EXPECT_IN_KERNEL(wide == -1 && parameters.values[0] == 0.5f);
  EXPECT_IN_KERNEL(constant.wide == int64_t{1} << 40 && constant.values[2] == 3.5f);
}

void CheckParameters() {
  const Parameters parameters = {int64_t{1} << 40, {1.5f, 2.5f, 3.5f}};
  DeviceArray<int> broken(std::vector<int>{0});
  // An int for an int64_t: converted as in a call.
  Launch(2, 64, 0, ChangeParameters, broken.data(), -2, parameters, parameters);
  EXPECT(broken.Fetch()[0] == 0);
}

// ---------------------------------------------------------------- Warp collectives

template <typename T>
__device__ T Widened(int lane) {
  return static_cast<T>(lane) * static_cast<T>(sizeof(T) == 8 ? 1ll << 35 : 1000) + T(1);
}

template <typename T>
__device__ void CheckShuffles(int* broken) {
  const int lane = static_cast<int>(threadIdx.x);
  const T own = Widened<T>(lane);
  for (int width = 1; width <= 32; width *= 2) {
    const int first = lane / width * width, end = first + width;
    for (int n = 0; n < 32; ++n) {
      const T from = __shfl_sync(kAll, own, n, width);
      const T up = __shfl_up_sync(kAll, own, n, width);
      const T down = __shfl_down_sync(kAll, own, n, width);
      const T mirrored = __shfl_xor_sync(kAll, own, n, width);
      EXPECT_IN_KERNEL(from == Widened<T>(first + n % width));
      EXPECT_IN_KERNEL(up == Widened<T>(lane - n >= first ? lane - n : lane));
      EXPECT_IN_KERNEL(down == Widened<T>(lane + n < end ? lane + n : lane));
      EXPECT_IN_KERNEL(mirrored == Widened<T>((lane ^ n) < end ? lane ^ n : lane));
    }
  }
  // Each lane may name a source of its own.
  EXPECT_IN_KERNEL(__shfl_sync(kAll, own, 31 - lane) == Widened<T>(31 - lane));
}

__global__ void ShuffleEverything(int* broken) {
  CheckShuffles<int>(broken);
  CheckShuffles<unsigned>(broken);
  CheckShuffles<long long>(broken);
  CheckShuffles<unsigned long long>(broken);
  CheckShuffles<int64_t>(broken);
  CheckShuffles<float>(broken);
  CheckShuffles<double>(broken);
}

__global__ void Vote(int* broken) {
  const unsigned lane = threadIdx.x;
  EXPECT_IN_KERNEL(__ballot_sync(kAll, lane % 3 == 0) == 0x49249249u);
  EXPECT_IN_KERNEL(__any_sync(kAll, lane == 17) == 1 && __any_sync(kAll, 0) == 0);
  EXPECT_IN_KERNEL(__reduce_max_sync(kAll, lane * 3u) == 93u);
  EXPECT_IN_KERNEL(__reduce_max_sync(kAll, static_cast<int>(lane) - 40) == -9);
  EXPECT_IN_KERNEL(__reduce_or_sync(kAll, 1u << lane % 5) == 31u);
  EXPECT_IN_KERNEL(__all_sync(kAll, 5) == 1 && __all_sync(kAll, lane != 17) == 0);
  const int descending = 20 - static_cast<int>(lane);
  EXPECT_IN_KERNEL(__reduce_max_sync(kAll, descending) == 20);
  EXPECT_IN_KERNEL(__reduce_max_sync(kAll, descending - 100) == -80);

  // Two groups of the warp at different places at the same time, then one that exits.
  const unsigned mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  if (lane < 16) {
    for (int i = 0; i < 5; ++i) EXPECT_IN_KERNEL(__ballot_sync(mask, 1) == mask);
    EXPECT_IN_KERNEL(__reduce_max_sync(mask, descending % 7) == 6);
  } else {
    EXPECT_IN_KERNEL(__shfl_sync(mask, lane, 3, 16) == 19);
  }
  EXPECT_IN_KERNEL(__all_sync(mask, 1) == 1);
  __syncwarp(mask);
  if (lane >= 16) return;
  EXPECT_IN_KERNEL(__shfl_xor_sync(mask, lane, 8) == (lane ^ 8));
}

// Lanes hand values to each other through shared memory.
__global__ void RotateInWarp(int* broken, int steps) {
  __shared__ int ring[4][32];
  int* const own = ring[threadIdx.y];
  const int lane = static_cast<int>(threadIdx.x);
  own[lane] = lane;
  for (int i = 1; i <= steps; ++i) {
    __syncwarp();
    const int neighbour = own[(lane + 1) % 32];
    __syncwarp();
    own[lane] = neighbour;
    EXPECT_IN_KERNEL(neighbour == (lane + i) % 32);
  }
}

// ---------------------------------------------------------------- Shared memory and barriers

template <typename T>
__global__ void __launch_bounds__(1024) SumBlock(const T* values, T* sums) {
  T* const partial = reinterpret_cast<T*>(dynamic_shared);
  __shared__ T warps[32];
  const int n = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
  partial[i] = values[blockIdx.x * n + i];
  __syncthreads();
  for (int half = n / 2; half >= 32; half /= 2) {
    if (i < half) partial[i] += partial[i + half];
    __syncthreads();
  }
  if (i < 32) warps[i] = partial[i];
  __syncthreads();
  if (i == 0) {
    T sum = 0;
    for (int k = 0; k < 32; ++k) sum += warps[k];
    sums[blockIdx.x] = sum;
  }
}

template <typename T>
void CheckSums(int blocks, int threads) {
  std::vector<T> values(blocks * threads);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(i % 1000);
  DeviceArray<T> on_device(values), sums(static_cast<size_t>(blocks));
  Launch(blocks, threads, threads * sizeof(T), SumBlock<T>, on_device.data(), sums.data());
  const std::vector<T> got = sums.Fetch();
  for (int block = 0; block < blocks; ++block) {
    T expected = 0;
    for (int i = 0; i < threads; ++i) expected += values[block * threads + i];
    EXPECT(got[block] == expected);
  }
}

// A barrier is for the threads that have not exited.
__global__ void LeaveEarly(int* broken) {
  __shared__ int sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  if (threadIdx.x % 2 == 1) return;
  for (unsigned i = 0; i < blockDim.x; i += 2) {
    if (threadIdx.x == i) sum += static_cast<int>(i);
    __syncthreads();
  }
  EXPECT_IN_KERNEL(sum == 9900);  // 0 + 2 + ... + 198
}

// A warp spins until another one has written.
__global__ void PassBaton(int* broken) {
  __shared__ volatile int baton;
  if (threadIdx.x == 0 && threadIdx.y == 0) baton = 0;
  __syncthreads();
  const int rounds = 50, warps = static_cast<int>(blockDim.y), warp = static_cast<int>(threadIdx.y);
  for (int i = 0; i < rounds; ++i) {
    while (baton != i * warps + warp) __nanosleep(20);
    __threadfence_block();
    __syncwarp();
    if (threadIdx.x == 0) baton = baton + 1;
  }
  __syncthreads();
  EXPECT_IN_KERNEL(baton == rounds * warps);
}

// Blocks draw their work from a counter, and each waits for what the one before it has left.
__global__ void PassBetweenBlocks(int* broken, unsigned* counter, int* signed_counter,
                                  uint64_t* slots) {
  __shared__ unsigned drawn;
  if (threadIdx.x == 0) drawn = atomicAdd(counter, 2u) / 2;
  atomicAdd(signed_counter, -1);
  __syncthreads();
  const unsigned ticket = drawn, lane = threadIdx.x;
  uint64_t first = ticket, second = lane;
  uint64_t* const own = slots + 64 * ticket;
  if (ticket > 0) {
    do {
      mbrnnt::cuda::ptx::LoadRelaxed2(own - 64 + 2 * lane, first, second);
    } while (first != ticket || second != lane);
    EXPECT_IN_KERNEL(mbrnnt::cuda::ptx::LoadRelaxed(own - 64) == ticket);
  }
  mbrnnt::cuda::ptx::StoreRelaxed2(own + 2 * lane, ticket + 1, lane);
  if (ticket + 1 == gridDim.x)
    mbrnnt::cuda::ptx::StoreRelaxed(slots + 64 * gridDim.x + lane, first);
}

void CheckBetweenBlocks() {
  const unsigned blocks = 7;
  DeviceArray<unsigned> counter(std::vector<unsigned>{0});
  DeviceArray<int> signed_counter(std::vector<int>{1});
  DeviceArray<uint64_t> slots(size_t{64} * blocks + 32);
  ExpectLaunch(blocks, 32, 0, PassBetweenBlocks, counter.data(), signed_counter.data(),
               slots.data());
  EXPECT(counter.Fetch()[0] == 2 * blocks && signed_counter.Fetch()[0] == 1 - 32 * 7);
  EXPECT(slots.Fetch()[64 * blocks + 31] == blocks - 1);
}

// The largest dynamic shared memory: all of it is there.
__global__ void FillShared(int* broken, int size) {
  const int n = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
  for (int k = i; k < size; k += n) dynamic_shared[k] = static_cast<unsigned char>(k % 251);
  __syncthreads();
  for (int k = n - 1 - i; k < size; k += n) EXPECT_IN_KERNEL(dynamic_shared[k] == k % 251);
}

// ---------------------------------------------------------------- Memory and arithmetic

template <typename V>
__global__ void CopyVectors(const V* from, V* to, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const V plain = from[i], read_only = __ldg(from + i);
  __stcs(to + i, __ldcs(from + i));
  __stcg(to + n + i, __ldcg(from + i));
  to[2 * n + i] = plain;
  to[3 * n + i] = read_only;
}

template <typename V>
void CheckVectors(size_t size, size_t alignment) {
  static_assert(std::is_trivial<V>::value, "shared memory holds it");
  EXPECT(sizeof(V) == size && alignof(V) == alignment);
  const int n = 100;
  std::vector<V> values(n);
  auto* bytes = reinterpret_cast<unsigned char*>(values.data());
  for (size_t i = 0; i < n * sizeof(V); ++i) bytes[i] = static_cast<unsigned char>(i % 113);
  DeviceArray<V> from(values), to(size_t{4} * n);
  Launch(4, 32, 0, CopyVectors<V>, static_cast<const V*>(from.data()), to.data(), n);
  const std::vector<V> copies = to.Fetch();
  for (int i = 0; i < 4; ++i) {
    EXPECT(std::memcmp(copies.data() + i * n, values.data(), n * sizeof(V)) == 0);
  }
}

// Halves in pairs of eight through one 16-byte load, as our kernels read rows.
__global__ void PunRow(int* broken, const unsigned short* row) {
  const uint4 eight = *reinterpret_cast<const uint4*>(row + 8 * threadIdx.x);
  const unsigned words[4] = {eight.x, eight.y, eight.z, eight.w};
  for (int i = 0; i < 8; ++i) {
    EXPECT_IN_KERNEL((words[i / 2] >> (i % 2 * 16) & 0xffff) == row[8 * threadIdx.x + i]);
  }
}

__global__ void Calculate(int* broken) {
  EXPECT_IN_KERNEL(__bfloat16_as_ushort(__floats2bfloat162_rn(1.0f, 2.0f).x) == 0x3f80);
  EXPECT_IN_KERNEL(__bfloat16_as_ushort(__floats2bfloat162_rn(1.0f, 2.0f).y) == 0x4000);
  EXPECT_IN_KERNEL(__half_as_ushort(__floats2half2_rn(1.0f, 2.0f).x) == 0x3c00);
  EXPECT_IN_KERNEL(__half_as_ushort(__floats2half2_rn(1.0f, 2.0f).y) == 0x4000);
  EXPECT_IN_KERNEL(__float_as_uint(1.0f) == 0x3f800000u && __uint_as_float(0x40000000u) == 2.0f);
  EXPECT_IN_KERNEL(__float_as_int(-0.0f) == INT32_MIN && __int_as_float(0x3fc00000) == 1.5f);
  EXPECT_IN_KERNEL(__longlong_as_double(__double_as_longlong(0.1)) == 0.1);
  EXPECT_IN_KERNEL(__popc(0xf0f0u) == 8 && __ffs(0) == 0 && __ffs(8) == 4);
  EXPECT_IN_KERNEL(__clz(0) == 32 && __clz(1) == 31 && __clz(-1) == 0);
  EXPECT_IN_KERNEL(__hiloint2double(__double2hiint(-0.1), __double2loint(-0.1)) == -0.1);
  EXPECT_IN_KERNEL(__double2hiint(1.0) == 0x3ff00000 && __double2loint(1.0) == 0);
  EXPECT_IN_KERNEL(__viaddmin_u32(3, 4, 9) == 7 && __viaddmin_u32(3, 0xffffffffu, 1) == 1);
  EXPECT_IN_KERNEL(min(2, 3) == 2 && max(2u, 3u) == 3u && min(int64_t{-1}, int64_t{1}) == -1);
  EXPECT_IN_KERNEL(max(NAN, 1.0f) == 1.0f && min(2.0, 1.0) == 1.0 && fmaxf(1.0f, 2.0f) == 2.0f);
  EXPECT_IN_KERNEL(fminf(1.0f, -INFINITY) == -INFINITY && exp2f(3.0f) == 8.0f);
  // The product alone has no room for both of its ends.
  EXPECT_IN_KERNEL(__fmaf_rn(1.0f + 0x1p-20f, 1.0f - 0x1p-20f, -1.0f) == -0x1p-40f);
  EXPECT_IN_KERNEL(__fma_rn(1.0 + 0x1p-40, 1.0 - 0x1p-40, -1.0) == -0x1p-80);
  EXPECT_IN_KERNEL(__expf(-INFINITY) == 0.0f && __expf(0.0f) == 1.0f && __logf(1.0f) == 0.0f);
  for (int i = -80; i <= 80; ++i) {
    const float x = static_cast<float>(i);
    const double exact = exp(static_cast<double>(x));
    // CUDA's documented bound: 2 + floor(abs(1.173 * x)) units in the last place.
    const double bound = (2 + fabs(1.173 * x)) * 0x1p-23 * exact;
    EXPECT_IN_KERNEL(fabs(__expf(x) - exact) <= bound);
    EXPECT_IN_KERNEL(fabsf(__logf(static_cast<float>(exact)) - x) <= 1e-5f);
  }
}

// ---------------------------------------------------------------- Half precision

// to_float[i]: float of the pattern i, as bits. from_float[k][i]: of the float next below that (k =
// 0), of it, next above, and of the one in the middle between it and the next pattern.
template <typename Half>
__device__ float Float(unsigned short bits);
template <>
__device__ float Float<__half>(unsigned short bits) {
  return __half2float(__ushort_as_half(bits));
}
template <>
__device__ float Float<__nv_bfloat16>(unsigned short bits) {
  return __bfloat162float(__ushort_as_bfloat16(bits));
}
template <typename Half>
__device__ unsigned short Bits(float x);
template <>
__device__ unsigned short Bits<__half>(float x) {
  return __half_as_ushort(__float2half_rn(x));
}
template <>
__device__ unsigned short Bits<__nv_bfloat16>(float x) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

template <typename Half>
__global__ void ConvertAll(unsigned* to_float, float* from, unsigned short* to) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const float x = Float<Half>(static_cast<unsigned short>(i));
  const float next = Float<Half>(static_cast<unsigned short>(i + 1));
  to_float[i] = __float_as_uint(x);
  const float middle = x / 2 + next / 2;
  const float samples[4] = {x, middle, nextafterf(middle, x), nextafterf(middle, next)};
  for (int k = 0; k < 4; ++k) {
    from[4 * i + k] = samples[k];
    to[4 * i + k] = Bits<Half>(samples[k]);
  }
}

// The lattice's conversions, written another way, say the same.
template <typename Half, typename Ours>
void CheckHalves() {
  DeviceArray<unsigned> to_float(0x10000);
  DeviceArray<float> from(0x40000);
  DeviceArray<unsigned short> to(0x40000);
  Launch(64, 1024, 0, ConvertAll<Half>, to_float.data(), from.data(), to.data());
  const std::vector<unsigned> floats = to_float.Fetch();
  for (unsigned i = 0; i < 0x10000; ++i) {
    const float expected = mbrnnt::ToReal(Ours{static_cast<uint16_t>(i)});
    const float got = mbrnnt::BitCast<float>(floats[i]);
    EXPECT(std::isnan(expected) ? std::isnan(got)
                                : floats[i] == mbrnnt::BitCast<uint32_t>(expected));
  }
  const std::vector<float> samples = from.Fetch();
  const std::vector<unsigned short> halves = to.Fetch();
  for (size_t i = 0; i < samples.size(); ++i) {
    const unsigned expected =
        std::isnan(samples[i]) ? 0x7fff : mbrnnt::FromReal<Ours>(samples[i]).bits;
    EXPECT(halves[i] == expected);
  }
}

// ---------------------------------------------------------------- Asynchronous copies

// Each thread sums its column of a matrix, whose rows come through a ring of three rows: two are
// under way while one is used. The rows after the last are filled with zeros.
__global__ void SumColumns(const float* matrix, int rows, float* sums) {
  float* const ring = reinterpret_cast<float*>(dynamic_shared);
  const int columns = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
  const auto request = [&](int row) {
    const int source = row < rows ? row : 0;
    if (i % 4 == 0) {
      __pipeline_memcpy_async(&ring[row % 3 * columns + i], &matrix[source * columns + i], 16,
                              row < rows ? 0 : 16);
    }
    __pipeline_commit();
  };
  request(0);
  request(1);
  float sum = 0;
  for (int row = 0; row < rows + 2; ++row) {
    request(row + 2);
    __pipeline_wait_prior(2);
    __syncthreads();
    sum += ring[row % 3 * columns + (i + 1) % columns];
    __syncthreads();
  }
  sums[i] = sum;
}

void CheckColumns() {
  const int rows = 17, columns = 64;
  std::vector<float> matrix(rows * columns);
  for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<float>(i % 97);
  DeviceArray<float> on_device(matrix), sums(size_t{columns});
  Launch(1, columns, 3 * columns * sizeof(float), SumColumns,
         static_cast<const float*>(on_device.data()), rows, sums.data());
  const std::vector<float> got = sums.Fetch();
  for (int i = 0; i < columns; ++i) {
    float expected = 0;
    for (int row = 0; row < rows; ++row) expected += matrix[row * columns + (i + 1) % columns];
    EXPECT(got[i] == expected);
  }
}

__global__ void CopySizes(int* broken, const unsigned* from) {
  __shared__ __align__(16) unsigned to[12];
  __pipeline_memcpy_async(to, from, 4);
  __pipeline_memcpy_async(to + 2, from + 2, 8);
  __pipeline_memcpy_async(to + 4, from + 4, 16);
  __pipeline_memcpy_async(to + 8, from + 8, 16, 8);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  EXPECT_IN_KERNEL(to[0] == from[0] && to[3] == from[3] && to[7] == from[7]);
  EXPECT_IN_KERNEL(to[9] == from[9] && to[10] == 0 && to[11] == 0);
}

// ---------------------------------------------------------------- Launches

__global__ void DoNothing() {}

void CheckLimits() {
  const auto launch = [](dim3 grid, dim3 block, size_t shared) {
    const cudaError_t error = TryLaunch(grid, block, shared, DoNothing);
    EXPECT(cudaPeekAtLastError() == error && cudaGetLastError() == error);
    EXPECT(cudaGetLastError() == cudaSuccess);
    return error;
  };
  EXPECT(launch(1, 1024, 0) == cudaSuccess);
  EXPECT(launch(1, {32, 32}, 0) == cudaSuccess);
  EXPECT(launch({1, 65535}, 1, 0) == cudaSuccess);
  for (dim3 grid :
       {dim3(0), dim3(1, 0), dim3(1, 1, 0), dim3(0x80000000u), dim3(1, 65536), dim3(1, 1, 65536)}) {
    EXPECT(launch(grid, 32, 0) == cudaErrorInvalidConfiguration);
  }
  for (dim3 block : {dim3(0), dim3(32, 0), dim3(1, 1, 0), dim3(1025), dim3(32, 33), dim3(1, 1, 65),
                     dim3(0x10000, 0x10000)}) {
    EXPECT(launch(1, block, 0) == cudaErrorInvalidConfiguration);
  }

  int optin = 0;
  EXPECT(cudaDeviceGetAttribute(&optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess);
  const auto raise = [](int size) {
    return cudaFuncSetAttribute(DoNothing, cudaFuncAttributeMaxDynamicSharedMemorySize, size);
  };
  EXPECT(launch(1, 1, 48 * 1024) == cudaSuccess);
  EXPECT(launch(1, 1, 48 * 1024 + 1) == cudaErrorInvalidValue);
  EXPECT(raise(optin + 1) == cudaErrorInvalidValue && cudaGetLastError() == cudaErrorInvalidValue);
  EXPECT(raise(60000) == cudaSuccess && launch(1, 1, 60000) == cudaSuccess);
  EXPECT(launch(1, 1, 60001) == cudaErrorInvalidValue);
  EXPECT(raise(optin) == cudaSuccess && launch(1, 1, optin) == cudaSuccess);
  EXPECT(launch(1, 1, optin + 1) == cudaErrorInvalidValue);

  EXPECT(cudaFuncSetAttribute(FillShared, cudaFuncAttributeMaxDynamicSharedMemorySize, optin) ==
         cudaSuccess);
  for (int size : {1, 1000, optin}) ExpectLaunch(2, 96, size, FillShared, size);
}

void CheckHostSide() {
  int value = -1;
  EXPECT(cudaGetDevice(&value) == cudaSuccess && value == 0);
  EXPECT(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess);
  EXPECT(value >= 1);
  EXPECT(cudaDeviceGetAttribute(&value, cudaDevAttrMaxThreadsPerBlock, 0) == cudaSuccess);
  EXPECT(value == 1024);
  EXPECT(!std::strcmp(cudaGetErrorName(cudaErrorInvalidValue), "cudaErrorInvalidValue"));
  EXPECT(!std::strcmp(cudaGetErrorString(cudaErrorInvalidConfiguration),
                      "invalid configuration argument"));

  DeviceArray<int> array(std::vector<int>{1, 2, 3, 4});
  EXPECT(cudaMemset(array.data(), 0, 8) == cudaSuccess);
  EXPECT(cudaMemsetAsync(array.data() + 3, 0xff, 4, nullptr) == cudaSuccess);
  EXPECT(cudaMemcpyAsync(array.data(), array.data() + 2, 4, cudaMemcpyDeviceToDevice, nullptr) ==
         cudaSuccess);
  EXPECT(cudaStreamSynchronize(nullptr) == cudaSuccess);
  EXPECT(array.Fetch() == (std::vector<int>{3, 0, 3, -1}));
}

// Handlers are called from several OS threads at once.
void CheckOsThreads() {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([i] {
      for (int k = 0; k < 10; ++k) CheckSums<double>(1 + i, 64 << i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  CheckVisits();
  CheckParameters();
  ExpectLaunch(2, {32, 2}, 0, ShuffleEverything);
  ExpectLaunch(2, {32, 3}, 0, Vote);
  ExpectLaunch(3, {32, 4}, 0, RotateInWarp, 100);
  for (int threads : {32, 64, 512, 1024}) {
    CheckSums<float>(5, threads);
    CheckSums<double>(3, threads);
    CheckSums<int>(3, threads);
  }
  ExpectLaunch(2, 200, 0, LeaveEarly);
  ExpectLaunch(2, {32, 4}, 0, PassBaton);
  CheckBetweenBlocks();
  CheckVectors<int2>(8, 8);
  CheckVectors<int4>(16, 16);
  CheckVectors<uint2>(8, 8);
  CheckVectors<uint4>(16, 16);
  CheckVectors<float2>(8, 8);
  CheckVectors<float4>(16, 16);
  CheckVectors<double2>(16, 16);
  CheckVectors<ushort2>(4, 4);
  CheckVectors<ushort4>(8, 8);
  CheckVectors<uchar4>(4, 4);
  CheckVectors<longlong2>(16, 16);
  std::vector<unsigned short> row(8 * 32);
  for (size_t i = 0; i < row.size(); ++i) row[i] = static_cast<unsigned short>(i * 257);
  DeviceArray<unsigned short> row_on_device(row);
  ExpectLaunch(1, 32, 0, PunRow, static_cast<const unsigned short*>(row_on_device.data()));
  ExpectLaunch(1, 32, 0, Calculate);
  CheckHalves<__half, mbrnnt::Float16>();
  CheckHalves<__nv_bfloat16, mbrnnt::BFloat16>();
  CheckColumns();
  DeviceArray<unsigned> words(std::vector<unsigned>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  ExpectLaunch(1, 1, 0, CopySizes, static_cast<const unsigned*>(words.data()));
  CheckLimits();
  CheckHostSide();
  CheckOsThreads();
  std::puts("all as expected");
}
