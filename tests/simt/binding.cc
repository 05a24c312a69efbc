// The CUDA stages as FFI handlers of the host platform: the sources of cuda/, executed
// by the emulator, behind plain C names for ctypes.
#include <cstring>

#include "cuda/room.h"

namespace {

struct OnNoStream : mbrnnt::cuda::Cuda {
  static constexpr std::initializer_list<xla::ffi::Traits> kTraits = {};
  // XLA's thread pool is bound and not used: a binding needs something to bind.
  static auto Bind() { return xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>(); }

  template <typename Stage>
  static xla::ffi::Error Run(xla::ffi::ThreadPool, const Stage& stage) {
    return Cuda::Run(cudaStream_t{nullptr}, stage);
  }
};

}  // namespace

#define EXPORTED __attribute__((visibility("default")))

extern "C" {

EXPORTED int simt_ffi_api_version[2] = {XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR};

EXPORTED XLA_FFI_Handler* simt_handler(const char* stage) {
  for (const mbrnnt::NamedHandler& named : mbrnnt::Handlers<OnNoStream>()) {
    if (std::strcmp(named.stage, stage) == 0) return named.handler;
  }
  return nullptr;
}

EXPORTED int64_t simt_lattice_numbers_per_utterance(int64_t frames, int64_t columns,
                                                    int64_t num_arcs, bool with_posteriors) {
  return OnNoStream::Workspace::NumbersPerUtterance(frames, columns, num_arcs, with_posteriors);
}
}
