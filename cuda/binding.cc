// Module _cuda: the lattice's stages as XLA FFI handlers for the CUDA platform.

#include <nanobind/nanobind.h>

#include "cuda/room.h"

namespace nb = nanobind;

namespace mbrnnt::cuda {
namespace {

template <ffi::ExecutionStage kStage>
auto BindXlasStream() {
  return ffi::Ffi::Bind<kStage>().template Ctx<ffi::PlatformStream<cudaStream_t>>();
}

// What a stage does is known from shapes and attributes: XLA may put it into a CUDA graph.
struct OnXlasStream : Cuda {
  static constexpr std::initializer_list<ffi::Traits> kTraits = {ffi::Traits::kCmdBufferCompatible};
  static auto Bind() { return BindXlasStream<ffi::ExecutionStage::kExecute>(); }
};

// Before the first kernel of a program runs: the stage's kernels are loaded. CUDA loads a kernel
// when it is first launched, otherwise, and may wait for the whole device then, which cannot be
// while a stream is captured and never ends while another device waits for this one.
struct BeforeExecution : Cuda {
  static constexpr std::initializer_list<ffi::Traits> kTraits = {};
  static auto Bind() { return BindXlasStream<ffi::ExecutionStage::kInitialize>(); }

  template <typename Stage>
  static ffi::Error Run(cudaStream_t, const Stage& stage) {
    return Cuda::Run(OnlyLoading(), stage);
  }
};

nb::capsule Capsule(XLA_FFI_Handler* handler) {
  return nb::capsule(reinterpret_cast<void*>(handler), "xla._CUSTOM_CALL_TARGET");
}

}  // namespace
}  // namespace mbrnnt::cuda

NB_MODULE(_cuda, m) {
  using namespace mbrnnt::cuda;
  m.attr("ffi_api_version") = nb::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  m.def("lattice_numbers_per_utterance", &OnXlasStream::Workspace::NumbersPerUtterance);
  m.attr("architectures") = MBRNNT_CUDA_ARCHITECTURES;
  m.attr("cuda_version") = CUDART_VERSION;  // 1000 major + 10 minor
  // The newest CUDA that the driver here is for, in the same way; 0 without a driver.
  m.def("driver_cuda_version", [] {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
  });
  m.def("handlers", [] {
    nb::dict capsules;
    for (const auto& [stage, handler] : mbrnnt::Handlers<OnXlasStream>()) {
      capsules[stage] = nb::dict();
      capsules[stage]["execute"] = Capsule(handler);
    }
    for (const auto& [stage, handler] : mbrnnt::Handlers<BeforeExecution>()) {
      capsules[stage]["initialize"] = Capsule(handler);
    }
    return capsules;
  });
}
