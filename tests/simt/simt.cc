#include "simt.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "engine.h"

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;
alignas(16) thread_local unsigned char dynamic_shared[simt::kMaxDynamicShared];

namespace simt {

__thread Engine* engine = nullptr;

// ---------------------------------------------------------------- A launch

Engine::~Engine() {
  for (Fiber& fiber : pool_) {
    if (!fiber.mapping) continue;
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack.bottom, fiber.stack.size);
    munmap(fiber.mapping, kStackSize + sysconf(_SC_PAGESIZE));
  }
}

// Of the threads that have none yet. A stack begins with a page that must not be touched.
void Engine::MapStacks() {
  const size_t page = sysconf(_SC_PAGESIZE);
  for (size_t i = 0; i < threads_; ++i) {
    Fiber& fiber = pool_[i];
    if (fiber.mapping) continue;
    void* mapping = mmap(nullptr, kStackSize + page, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED || mprotect(mapping, page, PROT_NONE) != 0) {
      Fail(kNowhere, "no memory for the stacks of %zu threads", threads_);
    }
    char* bottom = static_cast<char*>(mapping) + page;
    // Stacks that all begin at the same offset of a page would fight for the same cache lines.
    const size_t colour = i * 7 % 32 * 64;
    fiber.stack = {FirstFrame(bottom + kStackSize - colour, FiberMain), bottom, kStackSize};
    fiber.mapping = mapping;
  }
}

void Engine::FiberMain() {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &engine->scheduler_.bottom, &engine->scheduler_.size);
#endif
  for (;;) {
    engine->kernel_->run(engine->kernel_->arguments);
    engine->Exit();
    engine->Suspend();
  }
}

void Engine::Run(const Kernel& kernel, dim3 grid, dim3 block, size_t dynamic_shared_size) {
  kernel_ = &kernel;
  gridDim = grid;
  blockDim = block;
  threads_ = size_t{block.x} * block.y * block.z;
  MapStacks();
  races = races_.get();
  if (races) races->StartLaunch();
  ASAN_POISON_MEMORY_REGION(dynamic_shared + dynamic_shared_size,
                            kMaxDynamicShared - dynamic_shared_size);

  // All blocks once: steps of a length that has no divisor in common with their number.
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  uint64_t stride = 1 + random_.Below(blocks), i = random_.Below(blocks);
  while (std::gcd(stride, blocks) != 1) stride = stride % blocks + 1;
  for (uint64_t n = 0; n < blocks; ++n) {
    blockIdx.x = static_cast<unsigned>(i % grid.x);
    blockIdx.y = static_cast<unsigned>(i / grid.x % grid.y);
    blockIdx.z = static_cast<unsigned>(i / grid.x / grid.y);
    std::memset(dynamic_shared, 0xff, dynamic_shared_size);
    RunBlock();
    i = (i + stride) % blocks;
  }
  ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, kMaxDynamicShared);
  races = nullptr;
  kernel_ = nullptr;
}

void Engine::RunBlock() {
  for (size_t i = 0; i < threads_; ++i) {
    Fiber& fiber = pool_[i];
    fiber.index.x = static_cast<unsigned>(i % blockDim.x);
    fiber.index.y = static_cast<unsigned>(i / blockDim.x % blockDim.y);
    fiber.index.z = static_cast<unsigned>(i / blockDim.x / blockDim.y);
    fiber.waits_in = nullptr;
    fiber.copies.clear();
    fiber.batches = 0;
  }
  if (races) races->StartBlock(threads_);
  live_ = threads_;
  arrived_ = idle_ = 0;
  for (size_t i = 0; i < threads_; i += kWarpSize) {
    Warp& warp = warps_[i / kWarpSize];
    const size_t lanes = std::min<size_t>(threads_ - i, kWarpSize);
    warp = {&pool_[i], lanes < 32 ? Bit(static_cast<int>(lanes)) - 1 : ~0u, 0, 0, 0};
    Free(warp, warp.live);
  }
  while (live_ > 0) {
    if (ready_warps_ == 0) Deadlock();
    unsigned bits = ready_warps_;
    for (uint64_t n = random_.Below(__builtin_popcount(bits)); n > 0; --n) bits &= bits - 1;
    RunBurst(warps_[LowestBit(bits)]);
  }
}

// Lets the lanes of a warp go on, once or many times: a warp that gets far ahead of the others
// finds the place where it had to wait for them. The lanes' order is another one each time.
void Engine::RunBurst(Warp& warp) {
  for (uint64_t left = uint64_t{1} << random_.Below(10); left > 0 && warp.ready != 0; --left) {
    const uint64_t order = random_.Bits();
    const unsigned factor = (order & 31) | 1, offset = order >> 5 & 31, flip = order >> 10 & 31;
    const unsigned ready = warp.ready;
    warp.ready = 0;
    const size_t idle = idle_;
    warp_ = &warp;
    for (unsigned i = 0; i < kWarpSize; ++i) {
      const int lane = static_cast<int>((i * factor + offset) % kWarpSize ^ flip);
      if (ready & Bit(lane)) Resume(warp.fibers[lane]);
    }
    if (idle_ == idle + __builtin_popcount(ready)) break;  // Nothing but yields.
  }
  if (warp.ready == 0) ready_warps_ &= ~Bit(static_cast<int>(&warp - warps_));
}

void Engine::Resume(Fiber& fiber) {
  running_ = &fiber;
  threadIdx = fiber.index;
  if (races) races->Resume(static_cast<int>(&fiber - pool_.data()), fiber.stack);
  Switch(scheduler_, fiber.stack);
  running_ = nullptr;
}

void Engine::Free(Warp& warp, unsigned lanes) {
  for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
    warp.fibers[LowestBit(rest)].waits_in = nullptr;
  }
  warp.ready |= lanes;
  ready_warps_ |= Bit(static_cast<int>(&warp - warps_));
}

void Engine::Exit() {
  const unsigned self = Bit(lane());
  if (warp_->claimed & self) Fail(kNowhere, "a thread exits while lanes of its warp wait for it");
  idle_ = 0;
  warp_->live &= ~self;
  --live_;
  if (arrived_ > 0 && arrived_ == live_) FreeBlock();
}

// ---------------------------------------------------------------- Collectives

void Engine::WaitIn(const char* collective, unsigned mask, Site site) {
  running_->waits_in = collective;
  running_->mask = mask;
  running_->site = site;
  idle_ = 0;
}

void Engine::FreeBlock() {
  arrived_ = 0;
  if (races) races->SyncBlock();
  const size_t warps = (threads_ + kWarpSize - 1) / kWarpSize;
  for (size_t i = 0; i < warps; ++i) Free(warps_[i], warps_[i].live);
}

void Engine::SyncThreads(Site site) {
  if (arrived_ > 0 && !SameSite(site, barrier_)) {
    Fail(site, "__syncthreads, while %zu threads of the block are in the one at %s:%d", arrived_,
         barrier_.file, barrier_.line);
  }
  barrier_ = site;
  WaitIn("__syncthreads", 0, site);
  if (++arrived_ == live_) FreeBlock();
  Suspend();
}

// Lanes that wait for each other have to mean the same collective. `claimed` is made of the masks
// of groups that have no lane in common, so that one look at one lane is enough.
void Engine::CheckCompany(const char* collective, unsigned mask, Site site) const {
  if (!(mask & Bit(lane()))) {
    Fail(site, "%s: lane %d is not in its own mask 0x%08x", collective, lane(), mask);
  }
  if (mask & ~warp_->live) {
    Fail(site, "%s: the mask 0x%08x names lanes that have exited or never were: 0x%08x", collective,
         mask, mask & ~warp_->live);
  }
  if (!(mask & warp_->claimed)) return;
  for (unsigned rest = warp_->waiting; rest != 0; rest &= rest - 1) {
    const Fiber& other = warp_->fibers[LowestBit(rest)];
    if (!(other.mask & mask)) continue;
    if (other.mask == mask && SameSite(other.site, site) && SameText(other.waits_in, collective)) {
      return;
    }
    Fail(site, "%s of the mask 0x%08x, while lane %d is in %s of the mask 0x%08x at %s:%d",
         collective, mask, LowestBit(rest), other.waits_in, other.mask, other.site.file,
         other.site.line);
  }
}

uint64_t Engine::Exchange(const char* collective, unsigned mask, uint64_t value, int source,
                          Site site) {
  CheckCompany(collective, mask, site);
  Fiber& self = *running_;
  self.value = value;
  self.source = source;
  WaitIn(collective, mask, site);
  warp_->waiting |= Bit(lane());
  warp_->claimed |= mask;
  if ((warp_->waiting & mask) == mask) {
    // The last one hands out the results: nobody can overwrite a value that is still to be read.
    uint64_t values[kWarpSize];
    unsigned ballot = 0;
    uint64_t maximum = 0, all_bits = 0;
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      const int i = LowestBit(rest);
      values[i] = warp_->fibers[i].value;
      if (values[i] != 0) ballot |= Bit(i);
      maximum = std::max(maximum, values[i]);
      all_bits |= values[i];
    }
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      Fiber& fiber = warp_->fibers[LowestBit(rest)];
      if (fiber.source == kBallot) {
        fiber.value = ballot;
      } else if (fiber.source == kMaximum) {
        fiber.value = maximum;
      } else if (fiber.source == kOr) {
        fiber.value = all_bits;
      } else {
        fiber.value = mask & Bit(fiber.source) ? values[fiber.source] : ~uint64_t{0};
      }
    }
    if (races && SameText(collective, "__syncwarp")) {
      races->SyncWarp(static_cast<int>(warp_->fibers - pool_.data()), mask);
    }
    warp_->waiting &= ~mask;
    warp_->claimed &= ~mask;
    Free(*warp_, mask);
  }
  Suspend();
  return self.value;
}

void Engine::Yield(Site site) {
  constexpr size_t kTooLong = 4'000'000;
  if (++idle_ > kTooLong) {
    Fail(site, "spins forever: %zu times in a row threads slept and nothing else happened", idle_);
  }
  Free(*warp_, Bit(lane()));
  Suspend();
}

// ---------------------------------------------------------------- The running thread asks

void Run(const Kernel& kernel, dim3 grid, dim3 block, size_t dynamic_shared_size) {
  static thread_local Engine this_threads_engine;
  if (engine) Fail(kNowhere, "a kernel launched from inside a kernel");
  engine = &this_threads_engine;
  engine->Run(kernel, grid, block, dynamic_shared_size);
  engine = nullptr;
}

void SyncThreads(Site site) { Running("__syncthreads", site).SyncThreads(site); }

uint64_t Exchange(const char* collective, unsigned mask, uint64_t value, int source, Site site) {
  return Running(collective, site).Exchange(collective, mask, value, source, site);
}

int Lane() { return engine ? engine->lane() : 0; }

void Yield(Site site) { Running("__nanosleep", site).Yield(site); }

}  // namespace simt
