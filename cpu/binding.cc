// Module _cpu: the lattice's stages as XLA FFI handlers for the host platform.

#include <nanobind/nanobind.h>

#include "cpu/kernels.h"
#include "ffi/handlers.h"
#include "ffi/thread_pool.h"

namespace nb = nanobind;

namespace mbrnnt::cpu {
namespace {

struct Cpu {
  using Workspace = cpu::Workspace;

  static constexpr std::initializer_list<ffi::Traits> kTraits = {};
  static auto Bind() { return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>(); }

  template <typename L>
  static ffi::Error Run(ffi::ThreadPool pool, const ArcLogProbsStage<L>& stage) {
    ComputeArcLogProbs(stage, On(pool));
    return ffi::Error::Success();
  }
  template <typename T>
  static ffi::Error Run(ffi::ThreadPool pool, const LatticeStage<T>& stage) {
    ComputeLattice(stage, On(pool), pool.num_threads());
    return ffi::Error::Success();
  }
  template <typename T>
  static ffi::Error Run(ffi::ThreadPool pool, const AlignmentStage<T>& stage) {
    ComputeAlignment(stage, On(pool));
    return ffi::Error::Success();
  }
  template <typename L>
  static ffi::Error Run(ffi::ThreadPool pool, const LogitGradientsStage<L>& stage) {
    ComputeLogitGradients(stage, On(pool));
    return ffi::Error::Success();
  }

  static ParallelFor On(ffi::ThreadPool& pool) {
    return [&pool](int64_t n, const LoopBody& body) { mbrnnt::ParallelFor(pool, n, body); };
  }
};

}  // namespace
}  // namespace mbrnnt::cpu

NB_MODULE(_cpu, m) {
  using mbrnnt::cpu::Cpu;
  m.attr("ffi_api_version") = nb::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  m.def("lattice_numbers_per_utterance", &Cpu::Workspace::NumbersPerUtterance);
  m.attr("commit") = MBRNNT_COMMIT;
  m.def("instruction_set", &mbrnnt::cpu::InstructionSet);
  m.def("handlers", [] {
    nb::dict capsules;
    for (const auto& [stage, handler] : mbrnnt::Handlers<Cpu>()) {
      capsules[stage] = nb::capsule(reinterpret_cast<void*>(handler), "xla._CUSTOM_CALL_TARGET");
    }
    return capsules;
  });
}
