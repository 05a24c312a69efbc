// Module _cuda: the lattice's stages as XLA FFI handlers for the CUDA platform.

#include <nanobind/nanobind.h>

#include "cuda/room.h"

namespace nb = nanobind;

namespace mbrnnt::cuda {
namespace {

struct OnXlasStream : Cuda {
  static auto Bind() { return ffi::Ffi::Bind().Ctx<ffi::PlatformStream<cudaStream_t>>(); }
};

}  // namespace
}  // namespace mbrnnt::cuda

NB_MODULE(_cuda, m) {
  using mbrnnt::cuda::OnXlasStream;
  m.attr("ffi_api_version") = nb::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  m.def("lattice_numbers_per_utterance", &OnXlasStream::Workspace::NumbersPerUtterance);
  m.def("handlers", [] {
    nb::dict capsules;
    for (const auto& [stage, handler] : mbrnnt::Handlers<OnXlasStream>()) {
      capsules[stage] = nb::capsule(reinterpret_cast<void*>(handler), "xla._CUSTOM_CALL_TARGET");
    }
    return capsules;
  });
}
