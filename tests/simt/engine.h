// One OS thread's blocks: what a fiber is, who waits for whom, who runs next.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "races.h"
#include "simt.h"
#include "stack.h"

namespace simt {

struct Copy {
  unsigned char* to;
  const void* from;
  size_t size, zeros;
  size_t batch;
  unsigned char seen[16];  // the source when the copy was asked for
  const void* pc;
  Site site;
};

// A thread of a block.
struct Fiber {
  Stack stack;
  void* mapping = nullptr;
  uint3 index{};

  // What it waits in, if `waits_in` is not null.
  const char* waits_in = nullptr;
  unsigned mask = 0;
  Site site{};
  uint64_t value = 0;  // brought along, then received
  int source = 0;

  std::vector<Copy> copies;
  size_t batches = 0;
};

struct Warp {
  Fiber* fibers;
  unsigned live;     // lanes that have not exited
  unsigned ready;    // lanes that can go on
  unsigned waiting;  // lanes in a warp collective
  unsigned claimed;  // the masks of those collectives
};

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t n) { return Bits() % n; }

 private:
  uint64_t state_;
};

inline bool SameText(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
inline bool SameSite(Site a, Site b) { return a.line == b.line && SameText(a.file, b.file); }

inline unsigned Bit(int i) { return 1u << i; }
inline int LowestBit(unsigned bits) { return __builtin_ctz(bits); }

// The blocks that one OS thread runs. Fibers live as long as it does, and run one kernel after
// another.
class Engine {
 public:
  Engine()
      : random_(Seed()),
        races_(LooksForRaces() ? std::make_unique<Races>() : nullptr),
        pool_(kMaxThreads) {}
  ~Engine();

  void Run(const Kernel& kernel, dim3 grid, dim3 block, size_t dynamic_shared_size);
  void SyncThreads(Site site);
  uint64_t Exchange(const char* collective, unsigned mask, uint64_t value, int source, Site site);
  void Yield(Site site);
  void NoteProgress() { idle_ = 0; }
  Fiber& running() { return *running_; }
  int lane() const { return static_cast<int>(running_ - warp_->fibers); }
  void Describe() const;

 private:
  static uint64_t Seed() {
    const char* seed = std::getenv("SIMT_SEED");
    return seed ? std::strtoull(seed, nullptr, 10) : 20221107;
  }
  static void FiberMain();

  void MapStacks();
  void RunBlock();
  void RunBurst(Warp& warp);
  void Resume(Fiber& fiber);
  void Suspend() {
    if (races_) races_->CheckRepeated();
    Switch(running_->stack, scheduler_);
  }
  void WaitIn(const char* collective, unsigned mask, Site site);
  void Free(Warp& warp, unsigned lanes);
  void FreeBlock();
  void CheckCompany(const char* collective, unsigned mask, Site site) const;
  void Exit();
  [[noreturn]] void Deadlock() const;
  void DescribeWaiting() const;

  Random random_;
  std::unique_ptr<Races> races_;  // where it is looked for them
  Stack scheduler_;
  std::vector<Fiber> pool_;  // never grows: stacks hold pointers to it

  const Kernel* kernel_ = nullptr;
  size_t threads_ = 0;
  Warp warps_[kMaxThreads / kWarpSize];
  unsigned ready_warps_ = 0;
  size_t live_ = 0;     // threads that have not exited
  size_t arrived_ = 0;  // threads in __syncthreads
  Site barrier_{};      // where they are
  size_t idle_ = 0;     // yields since anything else has happened

  Warp* warp_ = nullptr;  // of the running thread
  Fiber* running_ = nullptr;
};

// This OS thread's, while it runs a kernel.
extern __thread Engine* engine;

inline Engine& Running(const char* what, Site site) {
  if (!engine) Fail(site, "%s outside of a kernel", what);
  return *engine;
}

}  // namespace simt
