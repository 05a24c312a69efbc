// Kernels with one planted bug each, and the same without it: `planted NAME`.
// A bug that shows in the result is told by the output; every other one has to end the program.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "cuda/ptx.h"
#include "launch.h"

extern __shared__ __align__(16) unsigned char dynamic_shared[];

namespace {

constexpr unsigned kAll = 0xffffffff;

// ---------------------------------------------------------------- Missing waits

// The sum of 0 .. 255 by halving. The bug: the halves do not wait for each other.
template <bool kBug>
__global__ void SumBlock(int* result) {
  int* const partial = reinterpret_cast<int*>(dynamic_shared);
  const int i = static_cast<int>(threadIdx.x);
  partial[i] = i;
  __syncthreads();
  for (int half = 128; half > 0; half /= 2) {
    if (i < half) partial[i] += partial[i + half];
    if (!kBug) __syncthreads();
  }
  if (kBug) __syncthreads();
  if (i == 0) result[blockIdx.x] = partial[0];
}

// Lane i gets the value of lane i + 1. The bug: it does not wait for it.
template <bool kBug>
__global__ void PassInWarp(int* result) {
  __shared__ volatile int values[32];
  const int lane = static_cast<int>(threadIdx.x);
  values[lane] = -1;
  __syncwarp();
  values[lane] = lane;
  if (!kBug) __syncwarp();
  const int sum = __ballot_sync(kAll, values[(lane + 1) % 32] == (lane + 1) % 32) == kAll;
  if (lane == 0) result[blockIdx.x] = sum;
}

// A producing warp hands 100 numbers to a consuming one through a ring of 4. The bug: the producer
// does not look whether there is room.
template <bool kBug>
__global__ void PassThroughRing(int* result) {
  __shared__ volatile int ring[4];
  __shared__ volatile int written, used;
  const bool first = threadIdx.x == 0;
  if (first && threadIdx.y == 0) written = used = 0;
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < 100; ++i) {
    if (threadIdx.y == 0) {
      while (!kBug && i - used >= 4) __nanosleep(20);
      if (first) ring[i % 4] = i;
      __syncwarp();
      if (first) written = i + 1;
    } else {
      while (written <= i) __nanosleep(20);
      sum += ring[i % 4];
      __syncwarp();
      if (first) used = i + 1;
    }
  }
  if (first && threadIdx.y == 1) result[blockIdx.x] = sum;
}

// The sum of 32 numbers that were copied asynchronously in two batches. The bugs: no wait; a wait
// for the first batch alone; no barrier after the wait; a ring whose slot is still being read.
enum class Copying { kRight, kNoWait, kShallowWait, kNoBarrier, kTooEarly };

template <Copying kHow>
__global__ void SumCopies(int* result, const int* numbers) {
  __shared__ int copies[32];
  const int lane = static_cast<int>(threadIdx.x);
  copies[lane] = 1000;
  __syncwarp();
  const int old = kHow == Copying::kTooEarly ? 0 : copies[(lane + 1) % 32];
  if (kHow != Copying::kTooEarly) __syncwarp();
  if (lane < 16) __pipeline_memcpy_async(&copies[lane], &numbers[lane], 4);
  __pipeline_commit();
  if (lane >= 16) __pipeline_memcpy_async(&copies[lane], &numbers[lane], 4);
  __pipeline_commit();
  const int late = kHow == Copying::kTooEarly ? copies[(lane + 1) % 32] : old;
  if (kHow != Copying::kNoWait) __pipeline_wait_prior(kHow == Copying::kShallowWait ? 1 : 0);
  if (kHow != Copying::kNoBarrier) __syncwarp();
  int sum = copies[(lane + 1) % 32] + late - 1000;
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(kAll, sum, i);
  if (lane == 0) result[blockIdx.x] = sum;
}

// What a lane has added up, step by step, goes to the next one through a ring of rows, `steps`
// steps later. The bugs: a ring one row too short, so that a step writes the row that is read; no
// barrier between one step and the next; a shuffle in its place, which orders no memory.
enum class Passing { kRight, kShortRing, kNoBarrier, kShuffle };

template <Passing kHow>
__global__ void PassThroughRows(int* result) {
  constexpr int kDelay = 4, kRows = kHow == Passing::kShortRing ? kDelay : kDelay + 1;
  __shared__ int rows[kRows][32];
  const int lane = static_cast<int>(threadIdx.x);
  for (int row = 0; row < kRows; ++row) rows[row][lane] = lane;
  __syncwarp();
  int sum = 0;
  for (int step = 0; step < 20; ++step) {
    sum += rows[step % kRows][(lane + 1) % 32];         // reads its row
    rows[(step + kDelay) % kRows][lane] = lane + step;  // writes its row
    if (kHow == Passing::kShuffle) {
      sum += __shfl_xor_sync(kAll, step, 1) - step;
    } else if (kHow != Passing::kNoBarrier) {
      __syncwarp();
    }
  }
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(kAll, sum, i);
  if (lane == 0) result[blockIdx.x] = sum;
}

// A warp hands a row of numbers to the next. The bugs: it is taken before the barrier; each warp
// waits for itself alone.
enum class HandingOver { kRight, kTooEarly, kBarrierOfWarps };

template <HandingOver kHow>
__global__ void HandOver(int* result) {
  __shared__ int row[32];
  const int lane = static_cast<int>(threadIdx.x);
  int sum = 0;
  if (threadIdx.y == 0) row[lane] = lane;                                         // hands over
  if (kHow == HandingOver::kTooEarly && threadIdx.y == 1) sum += row[31 - lane];  // takes too early
  if (kHow == HandingOver::kBarrierOfWarps) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  if (kHow != HandingOver::kTooEarly && threadIdx.y == 1) sum += row[31 - lane];  // takes
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(kAll, sum, i);
  if (lane == 0 && threadIdx.y == 1) result[blockIdx.x] = sum;
}

// Pairs of lanes wait for each other. The bug: then for another lane's sake, too.
template <bool kBug>
__global__ void PassInPairs(int* result) {
  __shared__ int values[32];
  const int lane = static_cast<int>(threadIdx.x);
  values[lane] = lane;  // writes in pairs
  __syncwarp(3u << (lane & ~1));
  const int other = values[kBug ? (lane + 2) % 32 : lane ^ 1];  // reads in pairs
  int sum = other;
  for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(kAll, sum, i);
  if (lane == 0) result[blockIdx.x] = sum;
}

// Each block writes its own result. The bug: one byte of the other's, too.
template <bool kBug>
__global__ void WriteOwnResult(int* result) {
  if (threadIdx.x == 0) result[blockIdx.x] = 7;  // writes its own
  if (kBug && threadIdx.x == 1) {
    reinterpret_cast<unsigned char*>(result)[4 * (1 - blockIdx.x) + 3] = 0;  // writes the other's
  }
}

// All blocks write the same word, atomically. The bug: one of them does not.
template <bool kBug>
__global__ void WriteTogether(int* result) {
  uint64_t* const word = reinterpret_cast<uint64_t*>(result);
  if (threadIdx.x != 0) return;
  if (kBug && blockIdx.x == 1) {
    *word = (uint64_t{7} << 32) + 7;  // a plain write
  } else {
    mbrnnt::cuda::ptx::StoreRelaxed(word, (uint64_t{7} << 32) + 7);  // a relaxed write
  }
}

// All lanes write one word. The bug: not the same value.
template <bool kBug>
__global__ void WriteOneWord(int* result) {
  __shared__ int word;
  word = kBug && threadIdx.x == 20 ? 8 : 7;  // by all lanes
  __syncwarp();
  if (threadIdx.x == 0) result[blockIdx.x] = word;
}

// Memory that nobody has written: neither 0 nor what the block before has left there.
__global__ void ReadShared(int* result) {
  int* const mine = reinterpret_cast<int*>(dynamic_shared);
  result[blockIdx.x] = mine[0];
  mine[0] = 7;
}

// ---------------------------------------------------------------- Waiting for nobody

__global__ void BarrierInBranch(int* result) {
  int x = 1;
  if (threadIdx.x % 32 < 16) __syncthreads();
  x += __shfl_xor_sync(kAll, x, 1);
  *result = x;
}

__global__ void BarrierOfTwoLines(int* result) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  *result = 1;
}

__global__ void ShuffleInBranch(int* result) {
  int x = static_cast<int>(threadIdx.x);
  if (x < 16) {
    x = __shfl_down_sync(kAll, x, 1);
  } else {
    x = 2 * x;
  }
  __syncthreads();
  *result = x;
}

__global__ void ShuffleAndVote(int* result) {
  int x = static_cast<int>(threadIdx.x);
  if (x < 16) {
    x = __shfl_down_sync(kAll, x, 1);
  } else {
    x = __any_sync(kAll, x);
  }
  *result = x;
}

__global__ void ShuffleOfTwoLines(int* result) {
  int x = static_cast<int>(threadIdx.x);
  if (x < 16) {
    x = __shfl_down_sync(kAll, x, 1);
  } else {
    x = __shfl_down_sync(kAll, x, 1);
  }
  *result = x;
}

__global__ void NotInOwnMask(int* result) {
  *result = __shfl_sync(0x0000ffffu, static_cast<int>(threadIdx.x), 0);
}

__global__ void TwoMasks(int* result) {
  const unsigned mask = threadIdx.x < 8 ? 0x000000ffu : 0xffffffffu;
  *result = __shfl_sync(mask, static_cast<int>(threadIdx.x), 0);
}

__global__ void ExitedLanes(int* result) {
  if (threadIdx.x >= 16) return;
  *result = __shfl_xor_sync(kAll, static_cast<int>(threadIdx.x), 1);
}

__global__ void LanesThatNeverWere(int* result) {  // Launched with 20 threads.
  *result = __shfl_xor_sync(kAll, static_cast<int>(threadIdx.x), 1);
}

__global__ void SpinForever(int* result) {
  volatile int* flag = result;
  *flag = 0;
  while (*flag == 0) __nanosleep(100);
}

__global__ void SpinOnAtomic(int* result) {
  uint64_t* const flag = reinterpret_cast<uint64_t*>(dynamic_shared);
  while (mbrnnt::cuda::ptx::LoadRelaxed(flag) == ~uint64_t{0}) {
  }
  *result = 1;
}

// ---------------------------------------------------------------- Wrong addresses

__global__ void BeyondDynamicShared(int* result) {
  reinterpret_cast<int*>(dynamic_shared)[threadIdx.x + 1] = 5;  // 32 were asked for.
  *result = 1;
}

__global__ void BeyondStaticShared(int* result) {
  __shared__ int values[32];
  values[threadIdx.x + 1] = 5;
  __syncwarp();
  *result = values[threadIdx.x];
}

__global__ void BeyondGlobal(int* result) { result[threadIdx.x] = 5; }  // It has 2 elements.

__global__ void CopyFromBeyondGlobal(int* result) {
  __shared__ int copy;
  __pipeline_memcpy_async(&copy, result + 2, 4);
}

__global__ void MisalignedLoad(int* result) {  // __ldg: found without a sanitizer too.
  const int4* at = reinterpret_cast<const int4*>(dynamic_shared + 4);
  *result = __ldg(at).x;
}

__global__ void MisalignedPlainLoad(int* result) {
  const volatile int2* at = reinterpret_cast<const volatile int2*>(dynamic_shared + 4);
  *result = at->x;
}

__global__ void MisalignedCopy(int* result) {
  __pipeline_memcpy_async(dynamic_shared + 4, result, 8);
}

__device__ int Recurse(int n, volatile char* caller) {
  volatile char frame[4096];
  frame[0] = *caller;
  return n == 0 ? frame[0] : Recurse(n - 1, frame) + frame[0];
}

__global__ void OverflowStack(int* result) {
  volatile char frame = 0;
  *result = Recurse(1000, &frame);
}

__global__ void ChangeSourceOfCopy(int* result) {
  __shared__ int copy;
  *result = 1;
  __pipeline_memcpy_async(&copy, result, 4);
  *result = 2;
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

// ---------------------------------------------------------------- The order of threads

__global__ void RecordOrder(int* order, int* count) {
  order[(*count)++] = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
  __syncthreads();
  order[(*count)++] = static_cast<int>(blockIdx.x * 64 + threadIdx.x);
}

void PrintOrder() {
  DeviceArray<int> order(size_t{2 * 64 * 8}), count(std::vector<int>{0});
  Launch(8, 64, 0, RecordOrder, order.data(), count.data());
  for (int i : order.Fetch()) std::printf("%d ", i);
}

// One number where the two blocks agree.
void Print(const std::vector<int>& results) {
  if (results[0] != results[1]) std::printf("%d ", results[0]);
  std::printf("%d\n", results[1]);
}

struct Program {
  const char* name;
  void (*kernel)(int*);
  dim3 block;
};

const Program kPrograms[] = {
    {"sum_block", SumBlock<false>, 256},
    {"sum_block_without_barrier", SumBlock<true>, 256},
    {"pass_in_warp", PassInWarp<false>, 32},
    {"pass_in_warp_without_syncwarp", PassInWarp<true>, 32},
    {"ring", PassThroughRing<false>, {32, 2}},
    {"ring_without_room", PassThroughRing<true>, {32, 2}},
    {"rows", PassThroughRows<Passing::kRight>, 32},
    {"rows_one_too_few", PassThroughRows<Passing::kShortRing>, 32},
    {"rows_without_barrier", PassThroughRows<Passing::kNoBarrier>, 32},
    {"rows_with_shuffle_for_barrier", PassThroughRows<Passing::kShuffle>, 32},
    {"hand_over", HandOver<HandingOver::kRight>, {32, 2}},
    {"hand_over_too_early", HandOver<HandingOver::kTooEarly>, {32, 2}},
    {"hand_over_with_barrier_of_warps", HandOver<HandingOver::kBarrierOfWarps>, {32, 2}},
    {"pairs", PassInPairs<false>, 32},
    {"pairs_and_another", PassInPairs<true>, 32},
    {"own_result", WriteOwnResult<false>, 32},
    {"own_result_and_a_byte", WriteOwnResult<true>, 32},
    {"together", WriteTogether<false>, 32},
    {"together_and_plain", WriteTogether<true>, 32},
    {"one_word", WriteOneWord<false>, 32},
    {"one_word_of_two_values", WriteOneWord<true>, 32},
    {"read_unwritten_shared", ReadShared, 1},
    {"barrier_in_branch", BarrierInBranch, 64},
    {"barrier_of_two_lines", BarrierOfTwoLines, 64},
    {"shuffle_in_branch", ShuffleInBranch, 32},
    {"shuffle_and_vote", ShuffleAndVote, 32},
    {"shuffle_of_two_lines", ShuffleOfTwoLines, 32},
    {"not_in_own_mask", NotInOwnMask, 32},
    {"two_masks", TwoMasks, 32},
    {"exited_lanes", ExitedLanes, 32},
    {"lanes_that_never_were", LanesThatNeverWere, 20},
    {"spin_forever", SpinForever, 64},
    {"spin_on_atomic", SpinOnAtomic, 64},
    {"beyond_dynamic_shared", BeyondDynamicShared, 32},
    {"beyond_static_shared", BeyondStaticShared, 32},
    {"beyond_global", BeyondGlobal, 32},
    {"copy_from_beyond_global", CopyFromBeyondGlobal, 1},
    {"misaligned_load", MisalignedLoad, 1},
    {"misaligned_plain_load", MisalignedPlainLoad, 1},
    {"misaligned_copy", MisalignedCopy, 1},
    {"overflow_stack", OverflowStack, 1},
    {"change_source_of_copy", ChangeSourceOfCopy, 1},
};

struct CopyingProgram {
  const char* name;
  void (*kernel)(int*, const int*);
};

const CopyingProgram kCopyingPrograms[] = {
    {"copies", SumCopies<Copying::kRight>},
    {"copies_without_wait", SumCopies<Copying::kNoWait>},
    {"copies_with_shallow_wait", SumCopies<Copying::kShallowWait>},
    {"copies_without_barrier", SumCopies<Copying::kNoBarrier>},
    {"copies_too_early", SumCopies<Copying::kTooEarly>},
};

}  // namespace

// Two blocks each.
int main(int argc, char** argv) {
  EXPECT(argc == 2);
  DeviceArray<int> result(2);
  for (const Program& program : kPrograms) {
    if (std::strcmp(program.name, argv[1]) != 0) continue;
    const size_t threads = size_t{program.block.x} * program.block.y;
    Launch(2, program.block, threads * sizeof(int), program.kernel, result.data());
    Print(result.Fetch());
    return 0;
  }
  std::vector<int> values(32);
  for (int i = 0; i < 32; ++i) values[i] = i;
  DeviceArray<int> numbers(values);
  for (const CopyingProgram& program : kCopyingPrograms) {
    if (std::strcmp(program.name, argv[1]) != 0) continue;
    Launch(2, 32, 0, program.kernel, result.data(), static_cast<const int*>(numbers.data()));
    Print(result.Fetch());
    return 0;
  }
  if (std::strcmp(argv[1], "order") == 0) return PrintOrder(), 0;
  std::fprintf(stderr, "no program %s\n", argv[1]);
  return 2;
}
