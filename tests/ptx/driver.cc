// The CUDA room's entry points behind plain C names, for check.py beside this file.
#include "cuda/kernels.h"
#include "cuda/sweep.h"

using namespace mbrnnt;

struct Shape {
  int64_t batch, frames, columns, classes;
};

// What every call says of its lattice: where the lengths and the arcs are.
struct Arcs {
  const int32_t *frames, *labels;  // of each utterance, on the device
  int32_t size;
  const int32_t *classes, *durations, *emits;  // `size` each, on the host

  Batch BatchOf(const Shape& shape) const {
    return {shape.batch, shape.frames, shape.columns, frames, labels};
  }
  ArcClasses Classes() const {
    ArcClasses decoded{};
    for (int a = 0; a < size; ++a) decoded.classes[decoded.size++] = classes[a];
    return decoded;
  }
  ArcTable Table() const {
    ArcTable table{};
    for (int a = 0; a < size; ++a) table.arcs[table.size++] = {durations[a], emits[a]};
    return table;
  }
};

namespace {

// `simple`: the way that the room takes for what the fast one cannot do.
template <typename T>
int RunLattice(const LatticeStage<T>& stage, bool simple) {
  return (simple ? cuda::ComputeLatticeSimply(stage, nullptr)
                 : cuda::ComputeLattice(stage, nullptr))
      .error;
}

template <typename L>
struct Calls {
  using T = Real<L>;

  static int ArcLogProbs(const Shape& shape, const Arcs& arcs, double sigma, const void* logits,
                         const int32_t* labels, void* arc_log_probs, void* log_normalizers) {
    const ArcLogProbsStage<L> stage{arcs.BatchOf(shape),
                                    shape.classes,
                                    arcs.Classes(),
                                    static_cast<T>(sigma),
                                    static_cast<const L*>(logits),
                                    labels,
                                    static_cast<T*>(arc_log_probs),
                                    static_cast<LogNormalizer<T>*>(log_normalizers)};
    return cuda::ComputeArcLogProbs(stage, nullptr).error;
  }
  static int Lattice(const Shape& shape, const Arcs& arcs, bool simple, const void* arc_log_probs,
                     void* losses, void* posteriors, void* workspace) {
    LatticeStage<T> stage{arcs.BatchOf(shape), arcs.Table(), static_cast<const T*>(arc_log_probs),
                          static_cast<T*>(losses), static_cast<T*>(posteriors)};
    cuda::Workspace::Place(static_cast<T*>(workspace), stage);
    return RunLattice(stage, simple);
  }
  static int LogitGradients(const Shape& shape, const Arcs& arcs, double fastemit, double clamp,
                            const void* logits, const int32_t* labels, const void* log_normalizers,
                            const void* posteriors, const void* cotangents, void* gradients) {
    const LogitGradientsStage<L> stage{
        arcs.BatchOf(shape),
        shape.classes,
        arcs.Classes(),
        GradientRule<T>{static_cast<T>(1 + fastemit), static_cast<T>(clamp)},
        static_cast<const L*>(logits),
        labels,
        static_cast<const LogNormalizer<T>*>(log_normalizers),
        static_cast<const T*>(posteriors),
        static_cast<const T*>(cotangents),
        static_cast<L*>(gradients)};
    return cuda::ComputeLogitGradients(stage, nullptr).error;
  }
};

}  // namespace

// Each returns the cudaError_t of the launches.
#define CALLS(suffix, L)                                                                           \
  int arc_log_probs_##suffix(const Shape* shape, const Arcs* arcs, double sigma,                   \
                             const void* logits, const int32_t* labels, void* arc_log_probs,       \
                             void* log_normalizers) {                                              \
    return Calls<L>::ArcLogProbs(*shape, *arcs, sigma, logits, labels, arc_log_probs,              \
                                 log_normalizers);                                                 \
  }                                                                                                \
  int logit_gradients_##suffix(const Shape* shape, const Arcs* arcs, double fastemit,              \
                               double clamp, const void* logits, const int32_t* labels,            \
                               const void* log_normalizers, const void* posteriors,                \
                               const void* cotangents, void* gradients) {                          \
    return Calls<L>::LogitGradients(*shape, *arcs, fastemit, clamp, logits, labels,                \
                                    log_normalizers, posteriors, cotangents, gradients);           \
  }                                                                                                \
  int lattice_##suffix(const Shape* shape, const Arcs* arcs, int simple,                           \
                       const void* arc_log_probs, void* losses, void* posteriors, void* work) {    \
    return Calls<L>::Lattice(*shape, *arcs, simple != 0, arc_log_probs, losses, posteriors, work); \
  }

extern "C" {
CALLS(f32, float)
CALLS(f64, double)
CALLS(bf16, BFloat16)
CALLS(f16, Float16)
int64_t workspace_numbers(int64_t frames, int64_t columns, int64_t arcs, int with_posteriors) {
  return cuda::Workspace::NumbersPerUtterance(frames, columns, arcs, with_posteriors);
}
}
