// The engine under our stand-in for CUDA's headers: it runs a kernel on the CPU.
//
// The threads of a block are fibers on the calling OS thread. A fiber runs until it waits in a
// collective; the last one to arrive frees the others. Who runs next is drawn at random (from
// SIMT_SEED in the environment), so that a kernel which lacks a barrier gives a wrong result and
// not, by luck, the right one. Blocks run one after another, also in a shuffled order.
//
// What would be undefined behaviour on a GPU, or a hang, ends in a message and abort().
#pragma once

#include <cstddef>
#include <cstdint>

#include "vector_types.h"

// The running thread's coordinates. (`__thread`: read without thread_local's test for a
// constructor, which a kernel would make at every use.)
extern __thread uint3 threadIdx, blockIdx;
extern __thread dim3 blockDim, gridDim;

// The one array behind every `extern __shared__`. A kernel file repeats the declaration outside of
// all namespaces: `extern __shared__ unsigned char dynamic_shared[];`
extern thread_local unsigned char dynamic_shared[];

namespace simt {

inline constexpr int kWarpSize = 32;
inline constexpr size_t kMaxThreads = 1024;
inline constexpr size_t kDefaultDynamicShared = 48 * 1024;
inline constexpr size_t kMaxDynamicShared = 227 * 1024;

// A place in a kernel. As a default argument, Here() is the place of the caller.
struct Site {
  const char* file;
  int line;
  const char* function;

  static constexpr Site Here(const char* file = __builtin_FILE(), int line = __builtin_LINE(),
                             const char* function = __builtin_FUNCTION()) {
    return {file, line, function};
  }
};
inline constexpr Site kNowhere{nullptr, 0, nullptr};

// Prints the place, the message, the kernel, block and thread, who waits where, and aborts.
[[noreturn]] void Fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Waits for all threads of the block that have not exited.
void SyncThreads(Site site);

// Waits for all lanes of the mask. Every lane brings a value and gets the one of the lane `source`
// (all bits 1 if the mask does not hold that lane), or, with kBallot, a mask of the lanes whose
// value is not 0, or, with kMaximum, the largest value of the type int.
inline constexpr int kBallot = -1, kMaximum = -2;
uint64_t Exchange(const char* collective, unsigned mask, uint64_t value, int source, Site site);

// The running thread's place in its warp.
int Lane();

// Lets others run; fails when that alone is what all of them keep doing.
void Yield(Site site);

// Asynchronous copies of the running thread. Between a copy and the wait for it the destination
// holds NaN. Copies that no wait covers are dropped when the thread exits.
void CopyLater(void* to, const void* from, size_t size, size_t zeros, Site site);
void CommitCopies(Site site);
void WaitForCopies(size_t batches_in_flight, Site site);

struct Kernel {
  const void* address;  // for its name
  void (*run)(const void* arguments);
  const void* arguments;
};

// Runs every block to its end. The sizes have been checked.
void Run(const Kernel& kernel, dim3 grid, dim3 block, size_t dynamic_shared_size);

}  // namespace simt
