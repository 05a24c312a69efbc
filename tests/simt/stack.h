// The stacks that fibers run on, and the switch from one to another.
#pragma once

#include <cstddef>

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

namespace simt {

#ifdef SIMT_ASAN
inline constexpr size_t kStackSize = 256 * 1024;
#else
inline constexpr size_t kStackSize = 64 * 1024;
#endif

// One of the two ends of a switch, for AddressSanitizer: it has to know the stack that it is on.
struct Stack {
  void* pointer = nullptr;  // while nobody runs on it
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake = nullptr;  // AddressSanitizer's
};

// Leaves `from`, and returns when somebody switches back to it.
void Switch(Stack& from, const Stack& to);

// The stack pointer of a fiber that has not run yet, as Switch would have left it.
void* FirstFrame(char* top, void (*entry)());

}  // namespace simt
