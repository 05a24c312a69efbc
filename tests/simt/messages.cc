// What is printed before abort().
#include <cxxabi.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "engine.h"

namespace simt {

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

}  // namespace simt
