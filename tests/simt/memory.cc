// Accesses to memory that are no plain loads and stores.
#include <algorithm>
#include <cstring>

#include "engine.h"

namespace simt {

// ---------------------------------------------------------------- Atomics

uint64_t AtomicLoad(const uint64_t* p, Site site) {
  Running("an atomic load", site).Yield(site);
  if (races) races->Note(p, sizeof(*p), Touch::kAtomicRead, __builtin_return_address(0));
  return *p;
}

void AtomicStore(uint64_t* p, uint64_t x) {
  Running("an atomic store", kNowhere).NoteProgress();
  if (races) races->Note(p, sizeof(*p), Touch::kAtomicWrite, __builtin_return_address(0));
  *p = x;
}

unsigned AtomicAdd(unsigned* p, unsigned x) {
  Running("atomicAdd", kNowhere).NoteProgress();
  if (races) races->Note(p, sizeof(*p), Touch::kAtomicWrite, __builtin_return_address(0));
  const unsigned before = *p;
  *p = before + x;
  return before;
}

// ---------------------------------------------------------------- Asynchronous copies

void CopyLater(void* to, const void* from, size_t size, size_t zeros, Site site) {
  Fiber& fiber = Running("__pipeline_memcpy_async", site).running();
  if ((size != 4 && size != 8 && size != 16) || zeros > size) {
    Fail(site, "__pipeline_memcpy_async of %zu bytes, %zu of them zeros", size, zeros);
  }
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % size != 0) {
    Fail(site, "__pipeline_memcpy_async of %zu bytes from %p to %p: not aligned", size, from, to);
  }
  Copy copy{static_cast<unsigned char*>(to), from, size, zeros, fiber.batches, {},
            __builtin_return_address(0),     site};
  if (races) races->StartCopy(to, size, from, size - zeros, copy.pc);
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
    if (races) races->FinishCopy(copy.to, copy.size, copy.from, copy.size - copy.zeros, copy.pc);
    if (copy.zeros < copy.size && std::memcmp(copy.seen, copy.from, copy.size - copy.zeros) != 0) {
      Fail(copy.site, "the source of __pipeline_memcpy_async was changed before the copy was done");
    }
    std::memcpy(copy.to, copy.seen, copy.size - copy.zeros);
    std::memset(copy.to + copy.size - copy.zeros, 0, copy.zeros);
  }
  fiber.copies.erase(std::remove_if(fiber.copies.begin(), fiber.copies.end(), is_due),
                     fiber.copies.end());
}

}  // namespace simt
