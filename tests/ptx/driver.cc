// The CUDA room's entry points behind plain C names, for check.py beside this file.
#include "cuda/kernels.h"
#include "cuda/sweep.h"

using namespace mbrnnt;

// What every call says of its batch and its transducer; the lengths are on the device, what the
// arcs are and read on the host.
struct Case {
  int64_t batch, frames, columns;
  const int32_t *logit_lengths, *label_lengths;
  int32_t num_arcs, num_heads;
  const int32_t *durations, *emits;  // of each arc
  const int32_t* classes;            // of each head what each arc reads
  int64_t sizes[kMaxHeads];          // of the heads

  Batch TheBatch() const { return {batch, frames, columns, logit_lengths, label_lengths}; }
  Emission TheEmission() const {
    Emission emission{num_arcs, num_heads, {sizes[0], sizes[1]}, {}};
    for (int i = 0; i < num_heads * num_arcs; ++i) {
      emission.classes[i / num_arcs][i % num_arcs] = classes[i];
    }
    return emission;
  }
  ArcTable Table() const {
    ArcTable table{num_arcs, {}};
    for (int a = 0; a < num_arcs; ++a) table.arcs[a] = {durations[a], emits[a]};
    return table;
  }
};

namespace {

template <typename X>
X* As(void* pointer) {
  return static_cast<X*>(pointer);
}
template <typename X>
const X* As(const void* pointer) {
  return static_cast<const X*>(pointer);
}

template <typename L>
struct Calls {
  using T = Real<L>;

  static int ArcLogProbs(const Case& c, const void* logits, const int32_t* labels,
                         const void* sigmas, void* arc_log_probs, void* log_normalizers) {
    const ArcLogProbsStage<L> stage{c.TheBatch(),
                                    c.TheEmission(),
                                    As<L>(logits),
                                    labels,
                                    As<T>(sigmas),
                                    As<T>(arc_log_probs),
                                    As<LogNormalizer<T>>(log_normalizers)};
    return cuda::ComputeArcLogProbs(stage, nullptr).error;
  }
  // `simple`: the way that the room takes for what the fast one cannot do.
  static int Lattice(const Case& c, bool simple, const void* arc_log_probs, void* losses,
                     void* posteriors, void* workspace) {
    LatticeStage<T> stage{c.TheBatch(), c.Table(), As<T>(arc_log_probs), As<T>(losses),
                          As<T>(posteriors)};
    cuda::Workspace::Place(As<T>(workspace), stage);
    return (simple ? cuda::ComputeLatticeSimply(stage, nullptr)
                   : cuda::ComputeLattice(stage, nullptr))
        .error;
  }
  static int LogitGradients(const Case& c, bool clamped, const void* logits, const int32_t* labels,
                            const void* log_normalizers, const void* posteriors,
                            const void* label_weights, const void* clamps, const void* cotangents,
                            void* gradients) {
    const LogitGradientsStage<L> stage{c.TheBatch(),
                                       c.TheEmission(),
                                       clamped,
                                       As<L>(logits),
                                       labels,
                                       As<LogNormalizer<T>>(log_normalizers),
                                       As<T>(posteriors),
                                       As<T>(label_weights),
                                       As<T>(clamps),
                                       As<T>(cotangents),
                                       As<L>(gradients)};
    return cuda::ComputeLogitGradients(stage, nullptr).error;
  }
};

}  // namespace

// Each returns the cudaError_t of the launches.
#define CALLS(suffix, L)                                                                           \
  int arc_log_probs_##suffix(const Case* c, const void* logits, const int32_t* labels,             \
                             const void* sigmas, void* arc_log_probs, void* log_normalizers) {     \
    return Calls<L>::ArcLogProbs(*c, logits, labels, sigmas, arc_log_probs, log_normalizers);      \
  }                                                                                                \
  int logit_gradients_##suffix(const Case* c, int clamped, const void* logits,                     \
                               const int32_t* labels, const void* log_normalizers,                 \
                               const void* posteriors, const void* label_weights,                  \
                               const void* clamps, const void* cotangents, void* gradients) {      \
    return Calls<L>::LogitGradients(*c, clamped != 0, logits, labels, log_normalizers, posteriors, \
                                    label_weights, clamps, cotangents, gradients);                 \
  }                                                                                                \
  int lattice_##suffix(const Case* c, int simple, const void* arc_log_probs, void* losses,         \
                       void* posteriors, void* work) {                                             \
    return Calls<L>::Lattice(*c, simple != 0, arc_log_probs, losses, posteriors, work);            \
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
