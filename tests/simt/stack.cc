#include "stack.h"

#include <algorithm>

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

void Switch(Stack& from, const Stack& to) {
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.size);
#endif
  simt_switch(&from.pointer, to.pointer);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

}  // namespace simt
