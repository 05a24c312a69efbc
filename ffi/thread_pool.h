// A parallel loop over XLA's intra-op thread pool in which the caller takes part.
// The caller works on blocks until none is left and then waits only for those that
// a running thread has already taken, so a pool that is busy, or of which the
// caller is itself a thread, cannot deadlock.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "xla/ffi/api/ffi.h"

namespace mbrnnt {

using LoopBody = std::function<void(int64_t begin, int64_t end)>;

class Loop {
 public:
  Loop(int64_t n, int64_t block, const LoopBody& body)
      : n_(n), block_(block), num_blocks_((n + block - 1) / block), body_(body) {}

  int64_t num_blocks() const { return num_blocks_; }

  // Works on blocks until none is left. `body_` is touched only after taking a
  // block, and so only while the caller still waits in Finish.
  void Work() {
    int64_t mine = 0;
    for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < num_blocks_; ++mine) {
      body_(i * block_, std::min(n_, (i + 1) * block_));
    }
    if (mine > 0 && done_.fetch_add(mine, std::memory_order_acq_rel) + mine == num_blocks_) {
      std::lock_guard<std::mutex> lock(mutex_);
      all_done_.notify_all();
    }
  }

  void Finish() {
    Work();
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [&] { return done_.load(std::memory_order_acquire) == num_blocks_; });
  }

 private:
  const int64_t n_, block_, num_blocks_;
  const LoopBody& body_;
  std::atomic<int64_t> next_{0}, done_{0};
  std::mutex mutex_;
  std::condition_variable all_done_;
};

// Runs `body` over [0, n) in pieces.
inline void ParallelFor(xla::ffi::ThreadPool& pool, int64_t n, const LoopBody& body) {
  if (n <= 0) return;
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  // Several blocks a thread, since utterances differ in length.
  const auto loop = std::make_shared<Loop>(n, std::max<int64_t>(1, n / (8 * threads)), body);
  const int64_t helpers = std::min(threads, loop->num_blocks()) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([loop] { loop->Work(); });
  loop->Finish();
}

}  // namespace mbrnnt
