// What a compiler calls under -fsanitize=thread. It announces an access before it is made.
#include <cstddef>

#include "races.h"

namespace simt {
namespace {

bool looks_for_races = false;

inline void Note(const void* at, size_t size, Touch how, const void* pc) {
  if (races) races->Note(at, size, how, pc);
}

}  // namespace

bool LooksForRaces() { return looks_for_races; }

}  // namespace simt

#define SIMT_ACCESS(name, size, how)                                     \
  void __tsan_##name(void* at) {                                         \
    simt::Note(at, size, simt::Touch::how, __builtin_return_address(0)); \
  }
#define SIMT_ACCESSES(size)                                     \
  SIMT_ACCESS(read##size, size, kRead)                          \
  SIMT_ACCESS(write##size, size, kWrite)                        \
  SIMT_ACCESS(unaligned_read##size, size, kRead)                \
  SIMT_ACCESS(unaligned_write##size, size, kWrite)              \
  SIMT_ACCESS(volatile_read##size, size, kAtomicRead)           \
  SIMT_ACCESS(volatile_write##size, size, kAtomicWrite)         \
  SIMT_ACCESS(unaligned_volatile_read##size, size, kAtomicRead) \
  SIMT_ACCESS(unaligned_volatile_write##size, size, kAtomicWrite)

extern "C" {

// Called once by every file that is compiled so.
void __tsan_init() { simt::looks_for_races = true; }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

SIMT_ACCESSES(1)
SIMT_ACCESSES(2)
SIMT_ACCESSES(4)
SIMT_ACCESSES(8)
SIMT_ACCESSES(16)

void __tsan_read_range(void* at, size_t size) {
  simt::Note(at, size, simt::Touch::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* at, size_t size) {
  simt::Note(at, size, simt::Touch::kWrite, __builtin_return_address(0));
}
}
