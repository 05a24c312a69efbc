#include "simt.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <numeric>
#include <unordered_map>
#include <vector>

#include "cuda_runtime_api.h"

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, size) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(begin, size) static_cast<void>(0)
#endif

__thread uint3 threadIdx, blockIdx;
__thread dim3 blockDim, gridDim;
alignas(16) thread_local unsigned char dynamic_shared[simt::kMaxDynamicShared];

// ---------------------------------------------------------------- Context switch

// Pushes the registers that a call has to preserve, keeps the stack pointer in *from, and does the
// reverse at `to`. A system call (as in ucontext's swapcontext) would take 20 times as long.
extern "C" void simt_switch(void** from, void* to) asm("simt_switch");

#if defined(__x86_64__)
asm(R"(
.text
.globl simt_switch
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl simt_switch
simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "simt_switch is written for x86-64 and aarch64"
#endif

namespace simt {
namespace {

// The stack pointer of a fiber that has not run yet, as simt_switch would have left it.
void* FirstFrame(char* top, void (*entry)()) {
  void** frame = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
  frame -= 8;  // 6 registers, the entry, and its return address: none
  std::fill(frame, frame + 8, nullptr);
  frame[6] = reinterpret_cast<void*>(entry);
#else
  frame -= 20;
  std::fill(frame, frame + 20, nullptr);
  frame[11] = reinterpret_cast<void*>(entry);  // x30
#endif
  return frame;
}

// ---------------------------------------------------------------- Fibers

#ifdef SIMT_ASAN
constexpr size_t kStackSize = 256 * 1024;
#else
constexpr size_t kStackSize = 64 * 1024;
#endif

// One of the two ends of a switch, for AddressSanitizer: it has to know the stack that it is on.
struct Stack {
  void* pointer = nullptr;  // while nobody runs on it
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake = nullptr;  // AddressSanitizer's
};

void Switch(Stack& from, const Stack& to) {
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.size);
#endif
  simt_switch(&from.pointer, to.pointer);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

struct Copy {
  unsigned char* to;
  const void* from;
  size_t size, zeros;
  size_t batch;
  unsigned char seen[16];  // the source when the copy was asked for
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

bool SameText(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }
bool SameSite(Site a, Site b) { return a.line == b.line && SameText(a.file, b.file); }

unsigned Bit(int i) { return 1u << i; }
int LowestBit(unsigned bits) { return __builtin_ctz(bits); }

// The blocks that one OS thread runs. Fibers live as long as it does, and run one kernel after
// another.
class Engine {
 public:
  Engine() : random_(Seed()), pool_(kMaxThreads) {}
  ~Engine();

  void Run(const Kernel& kernel, dim3 grid, dim3 block, size_t dynamic_shared_size);
  void SyncThreads(Site site);
  uint64_t Exchange(const char* collective, unsigned mask, uint64_t value, int source, Site site);
  void Yield(Site site);
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
  void Suspend() { Switch(running_->stack, scheduler_); }
  void WaitIn(const char* collective, unsigned mask, Site site);
  void Free(Warp& warp, unsigned lanes);
  void FreeBlock();
  void CheckCompany(const char* collective, unsigned mask, Site site) const;
  void Exit();
  [[noreturn]] void Deadlock() const;
  void DescribeWaiting() const;

  Random random_;
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
__thread Engine* engine = nullptr;

Engine& Running(const char* what, Site site) {
  if (!engine) Fail(site, "%s outside of a kernel", what);
  return *engine;
}

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
    int maximum = INT32_MIN;
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      const int i = LowestBit(rest);
      values[i] = warp_->fibers[i].value;
      if (values[i] != 0) ballot |= Bit(i);
      maximum = std::max(maximum, static_cast<int>(values[i]));
    }
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      Fiber& fiber = warp_->fibers[LowestBit(rest)];
      if (fiber.source == kBallot) {
        fiber.value = ballot;
      } else if (fiber.source == kMaximum) {
        fiber.value = static_cast<uint64_t>(maximum);
      } else {
        fiber.value = mask & Bit(fiber.source) ? values[fiber.source] : ~uint64_t{0};
      }
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

// ---------------------------------------------------------------- Messages

void Engine::Deadlock() const {
  Fail(kNowhere, "deadlock: %zu of %zu threads have not exited, and none of them can go on", live_,
       threads_);
}

// Every place where threads wait, how many, and the first of them.
void Engine::DescribeWaiting() const {
  std::vector<const Fiber*> seen;
  for (size_t i = 0; i < threads_; ++i) {
    const auto at_same_place = [&](const Fiber& a, const Fiber& b) {
      return b.waits_in && SameText(a.waits_in, b.waits_in) && a.mask == b.mask &&
             SameSite(a.site, b.site);
    };
    const Fiber& first = pool_[i];
    if (!first.waits_in) continue;
    if (std::any_of(seen.begin(), seen.end(),
                    [&](const Fiber* f) { return at_same_place(first, *f); })) {
      continue;
    }
    seen.push_back(&first);
    size_t count = 0;
    char names[256] = "";
    for (size_t k = i; k < threads_; ++k) {
      const Fiber& fiber = pool_[k];
      if (!at_same_place(first, fiber)) continue;
      if (++count > 8) continue;
      const size_t length = std::strlen(names);
      std::snprintf(names + length, sizeof(names) - length, " (%u, %u, %u)", fiber.index.x,
                    fiber.index.y, fiber.index.z);
    }
    std::fprintf(stderr, "  waiting in %s", first.waits_in);
    if (first.mask != 0) std::fprintf(stderr, " of the mask 0x%08x", first.mask);
    std::fprintf(stderr, " at %s:%d (%s): %zu threads:%s%s\n", first.site.file, first.site.line,
                 first.site.function, count, names, count > 8 ? " ..." : "");
  }
}

// A kernel has a name here if it is not local to its file, and, in a program, if that was linked
// with -rdynamic. The function of a place is always known.
void Engine::Describe() const {
  Dl_info info;
  if (dladdr(kernel_->address, &info) != 0 && info.dli_saddr == kernel_->address) {
    char* name = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, nullptr);
    std::fprintf(stderr, "  in kernel %s\n", name ? name : info.dli_sname);
    std::free(name);
  }
  std::fprintf(stderr, "  in block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z);
  if (running_) {
    std::fprintf(stderr, ", thread (%u, %u, %u)", threadIdx.x, threadIdx.y, threadIdx.z);
  }
  std::fprintf(stderr, "\n");
  DescribeWaiting();
}

}  // namespace

void Fail(Site site, const char* format, ...) {
  std::fflush(stdout);
  std::fprintf(stderr, "simt: ");
  if (site.file) std::fprintf(stderr, "%s:%d (%s): ", site.file, site.line, site.function);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fprintf(stderr, "\n");
  if (engine) engine->Describe();
  std::abort();
}

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

// ---------------------------------------------------------------- Asynchronous copies

void CopyLater(void* to, const void* from, size_t size, size_t zeros, Site site) {
  Fiber& fiber = Running("__pipeline_memcpy_async", site).running();
  if ((size != 4 && size != 8 && size != 16) || zeros > size) {
    Fail(site, "__pipeline_memcpy_async of %zu bytes, %zu of them zeros", size, zeros);
  }
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % size != 0) {
    Fail(site, "__pipeline_memcpy_async of %zu bytes from %p to %p: not aligned", size, from, to);
  }
  Copy copy{static_cast<unsigned char*>(to), from, size, zeros, fiber.batches, {}, site};
  if (zeros < size) std::memcpy(copy.seen, from, size - zeros);
  std::memset(to, 0xff, size);
  fiber.copies.push_back(copy);
}

void CommitCopies(Site site) { ++Running("__pipeline_commit", site).running().batches; }

void WaitForCopies(size_t batches_in_flight, Site site) {
  Fiber& fiber = Running("__pipeline_wait_prior", site).running();
  const auto is_due = [&](const Copy& copy) {
    return copy.batch + batches_in_flight < fiber.batches;
  };
  for (const Copy& copy : fiber.copies) {
    if (!is_due(copy)) continue;
    if (copy.zeros < copy.size && std::memcmp(copy.seen, copy.from, copy.size - copy.zeros) != 0) {
      Fail(copy.site, "the source of __pipeline_memcpy_async was changed before the copy was done");
    }
    std::memcpy(copy.to, copy.seen, copy.size - copy.zeros);
    std::memset(copy.to + copy.size - copy.zeros, 0, copy.zeros);
  }
  fiber.copies.erase(std::remove_if(fiber.copies.begin(), fiber.copies.end(), is_due),
                     fiber.copies.end());
}

// ---------------------------------------------------------------- Launch limits

namespace {

std::mutex limits_mutex;
std::unordered_map<const void*, size_t> dynamic_shared_limits;  // of kernels that raised theirs

}  // namespace

cudaError_t CheckLaunch(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (!kernel) return cudaErrorInvalidDeviceFunction;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  // Each factor is bounded before they are multiplied.
  if (block.x == 0 || block.y == 0 || block.z == 0 || block.x > 1024 || block.y > 1024 ||
      block.z > 64 || size_t{block.x} * block.y * block.z > kMaxThreads) {
    return cudaErrorInvalidConfiguration;
  }
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttributeID id = config.attrs[i].id;
    if (id != cudaLaunchAttributeIgnore &&
        id != cudaLaunchAttributeProgrammaticStreamSerialization) {
      return cudaErrorNotSupported;
    }
  }
  if (config.dynamicSmemBytes <= kDefaultDynamicShared) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(limits_mutex);
  const auto limit = dynamic_shared_limits.find(kernel);
  const bool raised =
      limit != dynamic_shared_limits.end() && config.dynamicSmemBytes <= limit->second;
  return raised ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace simt

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (!kernel) return simt::Answer(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      static_cast<size_t>(value) > simt::kMaxDynamicShared) {
    return simt::Answer(cudaErrorInvalidValue);
  }
  const std::lock_guard<std::mutex> lock(simt::limits_mutex);
  simt::dynamic_shared_limits[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}
