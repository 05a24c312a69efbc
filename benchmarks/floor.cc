// The least that a pass over the logits costs: a read, a copy, an exponential of each.
//
//   c++ -O3 -march=native -std=c++17 -shared -fPIC -pthread floor.cc -o floor.so
//
// Called through ctypes by floor.py.

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

// A group of independent sums, so that additions do not wait for each other.
constexpr std::size_t kLanes = 128;

std::uint64_t Read(const char* from, std::size_t bytes) {
  std::uint64_t sums[kLanes] = {};
  const std::size_t group = sizeof(sums);
  for (std::size_t i = 0; i + group <= bytes; i += group) {
    std::uint64_t words[kLanes];
    std::memcpy(words, from + i, group);
    for (std::size_t k = 0; k < kLanes; ++k) sums[k] += words[k];
  }
  std::uint64_t sum = 0;
  for (std::uint64_t s : sums) sum += s;
  return sum;
}

// 2^f on [-0.5, 0.5] by a polynomial, and the rest of x / log 2 into the exponent: about 1e-7 of
// relative error, enough for a floor. No branch, so that the compiler vectorises the loop.
float Exponential(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f) * 1.44269504f;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float rounded = (x + magic) - magic;
  const float f = x - rounded;
  float p = 1.540353e-4f;
  p = p * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  const std::int32_t bits = (static_cast<std::int32_t>(rounded) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

void Exponentials(const float* from, float* to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) to[i] = Exponential(from[i]);
}

using Clock = std::chrono::steady_clock;

// Milliseconds that `num_threads` threads take, which exist already when the clock starts: `begin`
// in one, then work(first, end) in each on its part of the bytes, then `finish` in one.
template <typename Begin, typename Work, typename Finish>
double Time(std::size_t bytes, int num_threads, Begin&& begin, Work&& work, Finish&& finish) {
  std::atomic<int> waiting{0};
  std::atomic<bool> go{false};
  const auto part = [&](int thread) {
    // Whole pages each; the last thread takes what is left.
    const std::size_t share = bytes / num_threads / 4096 * 4096;
    const bool last = thread == num_threads - 1;
    work(share * thread, last ? bytes : share * (thread + 1));
  };
  std::vector<std::thread> others;
  for (int i = 1; i < num_threads; ++i) {
    others.emplace_back([&, i] {
      waiting.fetch_add(1);
      while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
      part(i);
    });
  }
  while (waiting.load() != num_threads - 1) std::this_thread::yield();
  const auto start = Clock::now();
  begin();
  go.store(true, std::memory_order_release);
  part(0);
  for (auto& thread : others) thread.join();
  finish();
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

template <typename Work>
double Time(std::size_t bytes, int num_threads, Work&& work) {
  return Time(bytes, num_threads, [] {}, work, [] {});
}

}  // namespace

// Milliseconds of one pass over memory that has been touched before; `to_sink` gets what was read,
// so that it is not optimised away.
extern "C" {

double floor_read(const char* from, std::size_t bytes, int num_threads, std::uint64_t* to_sink) {
  std::atomic<std::uint64_t> total{0};
  const double ms = Time(bytes, num_threads, [&](std::size_t first, std::size_t end) {
    total.fetch_add(Read(from + first, end - first));
  });
  *to_sink += total.load();
  return ms;
}

double floor_copy(const char* from, char* to, std::size_t bytes, int num_threads) {
  return Time(bytes, num_threads, [&](std::size_t first, std::size_t end) {
    std::memcpy(to + first, from + first, end - first);
  });
}

// Of float32.
double floor_exponential(const char* from, char* to, std::size_t bytes, int num_threads) {
  return Time(bytes, num_threads, [&](std::size_t first, std::size_t end) {
    Exponentials(reinterpret_cast<const float*>(from + first), reinterpret_cast<float*>(to + first),
                 (end - first) / sizeof(float));
  });
}

// To memory that is asked of the operating system, in huge pages, and given back.
double floor_fresh_copy(const char* from, std::size_t bytes, int num_threads) {
  constexpr std::size_t kHugePage = std::size_t{1} << 21;
  const std::size_t all = bytes + kHugePage;
  void* fresh = nullptr;
  char* to = nullptr;
  return Time(
      bytes, num_threads,
      [&] {
        fresh = mmap(nullptr, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (fresh == MAP_FAILED) std::abort();
        const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(fresh);
        to = reinterpret_cast<char*>((address + kHugePage - 1) / kHugePage * kHugePage);
        madvise(to, bytes, MADV_HUGEPAGE);
      },
      [&](std::size_t first, std::size_t end) {
        std::memcpy(to + first, from + first, end - first);
      },
      [&] { munmap(fresh, all); });
}

}  // extern "C"
