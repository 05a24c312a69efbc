// Module _cpu: the lattice's stages as XLA FFI handlers for the host platform.

#include <nanobind/nanobind.h>

#include "cpu/kernels.h"
#include "ffi/decode.h"
#include "ffi/thread_pool.h"

namespace nb = nanobind;

namespace mbrnnt::cpu {
namespace {

ParallelFor On(ffi::ThreadPool& pool) {
  return [&pool](int64_t n, const LoopBody& body) { mbrnnt::ParallelFor(pool, n, body); };
}

template <typename... Args>
ffi::Error ArcLogProbs(ffi::ThreadPool pool, Args... args) {
  return DecodeArcLogProbs(args..., [&](const auto& stage) {
    ComputeArcLogProbs(stage, On(pool));
    return ffi::Error::Success();
  });
}

template <typename... Args>
ffi::Error LatticeLosses(ffi::ThreadPool pool, Args... args) {
  return DecodeLattice(args..., [&](const auto& stage) {
    ComputeLattice(stage, On(pool));
    return ffi::Error::Success();
  });
}

template <typename... Args>
ffi::Error LogitGradients(ffi::ThreadPool pool, Args... args) {
  return DecodeLogitGradients(args..., [&](const auto& stage) {
    ComputeLogitGradients(stage, On(pool));
    return ffi::Error::Success();
  });
}

auto Bind() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(); }

XLA_FFI_DEFINE_HANDLER(
    kArcLogProbs, [](auto... args) { return ArcLogProbs(args...); }, BindArcLogProbs(Bind()));
XLA_FFI_DEFINE_HANDLER(
    kLattice, [](auto... args) { return LatticeLosses(args...); }, BindLattice(Bind()));
XLA_FFI_DEFINE_HANDLER(
    kLogitGradients, [](auto... args) { return LogitGradients(args...); },
    BindLogitGradients(Bind()));

nb::capsule Capsule(XLA_FFI_Handler* handler) {
  return nb::capsule(reinterpret_cast<void*>(handler), "xla._CUSTOM_CALL_TARGET");
}

}  // namespace
}  // namespace mbrnnt::cpu

NB_MODULE(_cpu, m) {
  using namespace mbrnnt::cpu;
  m.attr("ffi_api_version") = nb::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  m.def("handlers", [] {
    nb::dict handlers;
    handlers["arc_log_probs"] = Capsule(kArcLogProbs);
    handlers["lattice"] = Capsule(kLattice);
    handlers["lattice_score"] = Capsule(kLattice);
    handlers["logit_gradients"] = Capsule(kLogitGradients);
    return handlers;
  });
}
