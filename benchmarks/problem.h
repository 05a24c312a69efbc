// A problem of one shape on the device, its stages, and how they are checked.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "benchmarks/device.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"

namespace mbrnnt::benchmarks {

// Goals of the design, for an H200: forward + backward in ms, the lattice alone in us.
struct Shape {
  int64_t batch, frames, columns, classes;
  double goal_f32, goal_bf16, goal_lattice;

  int64_t nodes() const { return batch * frames * columns; }
};

// What is computed of a shape's classes, of which the blank is the last; a TDT has one score more
// for each of its durations.
struct Transducer {
  const char *name, *durations;
  ArcTable table;
  Emission emission;
};
inline Transducer Multiblank(int64_t classes, bool big_blanks) {
  const auto last = static_cast<int32_t>(classes - 1);
  const int32_t num_arcs = big_blanks ? 5 : 2;
  return {big_blanks ? "multi-blank" : "RNN-T",
          big_blanks ? "2 4 8" : "none",
          {num_arcs, {{0, 1}, {1, 0}, {2, 0}, {4, 0}, {8, 0}}},
          {num_arcs, 1, {classes, 0}, {{kNextLabel, last, last - 1, last - 2, last - 3}, {}}}};
}
inline Transducer Tdt(int64_t classes) {
  const auto last = static_cast<int32_t>(classes - 1);
  constexpr int32_t kDurations = 5;
  Transducer tdt{"TDT", "0 1 2 3 4", {}, {2 * kDurations - 1, 2, {classes, kDurations}, {}}};
  for (int32_t emits : {1, 0}) {
    for (int32_t d = 1 - emits; d < kDurations; ++d) {
      const int32_t a = tdt.table.size++;
      tdt.table.arcs[a] = {d, emits};
      tdt.emission.classes[0][a] = emits ? kNextLabel : last;
      tdt.emission.classes[1][a] = d;
    }
  }
  return tdt;
}

inline void InThreads(int64_t n, const cpu::LoopBody& body) {
  const int64_t pieces =
      std::max<int64_t>(1, std::min<int64_t>(n, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < pieces; ++i) {
    threads.emplace_back([&body, n, pieces, i] { body(n * i / pieces, n * (i + 1) / pieces); });
  }
  for (std::thread& thread : threads) thread.join();
}

// Pointers of one batch, in the memory of either processor, and the stages over them.
template <typename L>
struct Buffers {
  using T = Real<L>;

  Batch batch;
  const Transducer& transducer;
  const int32_t* labels;
  const T *sigmas, *label_weights, *clamps, *cotangents;
  T* arc_log_probs;
  LogNormalizer<T>* log_normalizers;
  T *losses, *posteriors;
  T* workspace;

  ArcLogProbsStage<L> ArcLogProbs(const L* logits) const {
    return {batch, transducer.emission, logits, labels, sigmas, arc_log_probs, log_normalizers};
  }
  // Without a place yet for what the room keeps.
  LatticeStage<T> Lattice(bool with_posteriors) const {
    return {batch, transducer.table, arc_log_probs, losses, with_posteriors ? posteriors : nullptr};
  }
  LatticeStage<T> LatticeLosses(bool with_posteriors) const {
    LatticeStage<T> s = Lattice(with_posteriors);
    cuda::Workspace::Place(workspace, s);
    return s;
  }
  LogitGradientsStage<L> LogitGradients(const L* logits, L* gradients) const {
    return {batch,  transducer.emission, /*clamped=*/false, logits,
            labels, log_normalizers,     posteriors,        label_weights,
            clamps, cotangents,          gradients};
  }
};

// Full-length utterances with random logits and labels on the device.
template <typename L>
class Problem {
 public:
  using T = Real<L>;

  Problem(const Shape& shape, const Transducer& transducer)
      : shape_(shape),
        transducer_(transducer),
        logits_(num_logits()),
        gradients_(num_logits()),
        labels_(Labels()),
        logit_lengths_(All(static_cast<int32_t>(shape.frames))),
        label_lengths_(All(static_cast<int32_t>(shape.columns - 1))),
        sigmas_(All(kSigma)),
        label_weights_(All(kLabelWeight)),
        clamps_(All(kClamp)),
        cotangents_(All(kCotangent)),
        arc_log_probs_(shape.nodes() * num_arcs()),
        log_normalizers_(shape.nodes() * transducer.emission.num_heads),
        losses_(shape.batch),
        posteriors_(shape.nodes() * num_arcs()),
        workspace_(shape.batch * cuda::Workspace::NumbersPerUtterance(shape.frames, shape.columns,
                                                                      num_arcs(), true)) {
    logits_.Fill(RandomLogits<L>());
  }

  int64_t num_arcs() const { return transducer_.table.size; }
  int64_t num_logits() const { return shape_.nodes() * transducer_.emission.RowSize(); }

  // Of the logits, or of the copy of them that `gradients_` holds.
  void ArcLogProbs(bool of_copy, cudaStream_t stream) const {
    const L* logits = of_copy ? gradients_.data() : logits_.data();
    Check(cuda::ComputeArcLogProbs(buffers().ArcLogProbs(logits), stream));
  }
  void LatticeLosses(bool with_posteriors, cudaStream_t stream) const {
    Check(cuda::ComputeLattice(buffers().LatticeLosses(with_posteriors), stream));
  }
  // Into `gradients_`; in place: from the copy of the logits there.
  void LogitGradients(bool in_place, cudaStream_t stream) const {
    const L* logits = in_place ? gradients_.data() : logits_.data();
    Check(cuda::ComputeLogitGradients(buffers().LogitGradients(logits, gradients_.data()), stream));
  }
  void CopyLogitsToGradients(cudaStream_t stream) const {
    Check(cudaMemcpyAsync(gradients_.data(), logits_.data(), logits_.bytes(),
                          cudaMemcpyDeviceToDevice, stream),
          "copy");
  }

  // Largest difference from the CPU's kernels on the batch's last utterance, whose offsets
  // are the largest. The losses count relatively. NaN if anything was left unwritten.
  double Error(cudaStream_t stream) const {
    for (const auto* a : {&arc_log_probs_, &losses_, &posteriors_}) a->Poison();
    log_normalizers_.Poison();
    gradients_.Poison();
    ArcLogProbs(/*of_copy=*/false, stream);
    LatticeLosses(/*with_posteriors=*/false, stream);
    Check(cudaStreamSynchronize(stream), "lattice_score");
    const std::vector<T> scores = losses_.ToHost(0, shape_.batch);
    losses_.Poison();
    LatticeLosses(/*with_posteriors=*/true, stream);
    LogitGradients(/*in_place=*/false, stream);
    Check(cudaStreamSynchronize(stream), "logit_gradients");
    const std::vector<T> losses = losses_.ToHost(0, shape_.batch);

    const Expected expected = OnCpu();
    double error = GradientError(expected.gradients);
    CopyLogitsToGradients(stream);
    LogitGradients(/*in_place=*/true, stream);
    Check(cudaStreamSynchronize(stream), "logit_gradients in place");
    error = Worse(error, GradientError(expected.gradients));
    error = Worse(error, std::abs(losses.back() / expected.loss - 1));
    for (int64_t b = 0; b < shape_.batch; ++b) {
      error = Worse(error, std::abs(scores[b] / losses[b] - 1));
    }
    return error;
  }

 private:
  // Of every utterance.
  static constexpr T kSigma = T(0.05), kLabelWeight = T(1), kClamp = T(0), kCotangent = T(0.75);
  struct Expected {
    T loss;
    std::vector<L> gradients;
  };

  // A NaN is the worst.
  static double Worse(double a, double b) { return std::isnan(b) || b > a ? b : a; }

  template <typename X>
  std::vector<X> All(X x) const {
    return std::vector<X>(shape_.batch, x);
  }
  Buffers<L> buffers() const {
    return {
        {shape_.batch, shape_.frames, shape_.columns, logit_lengths_.data(), label_lengths_.data()},
        transducer_,
        labels_.data(),
        sigmas_.data(),
        label_weights_.data(),
        clamps_.data(),
        cotangents_.data(),
        arc_log_probs_.data(),
        log_normalizers_.data(),
        losses_.data(),
        posteriors_.data(),
        workspace_.data()};
  }

  std::vector<int32_t> Labels() const {
    std::mt19937 random_bits(7);
    std::vector<int32_t> labels(shape_.batch * (shape_.columns - 1));
    for (int32_t& v : labels) v = static_cast<int32_t>(random_bits() % (shape_.classes - 4));
    return labels;
  }

  // Loss and gradient of the last utterance.
  Expected OnCpu() const {
    const int64_t nodes = shape_.frames * shape_.columns;
    const int64_t size = nodes * transducer_.emission.RowSize();
    const int64_t last = shape_.batch - 1, num_labels = shape_.columns - 1;
    const std::vector<L> logits = logits_.ToHost(last * size, last * size + size);
    const std::vector<int32_t> labels =
        labels_.ToHost(last * num_labels, last * num_labels + num_labels);
    const auto logit_length = static_cast<int32_t>(shape_.frames);
    const auto label_length = static_cast<int32_t>(num_labels);

    std::vector<T> arcs(nodes * num_arcs()), posteriors(arcs.size());
    std::vector<LogNormalizer<T>> normalizers(nodes * transducer_.emission.num_heads);
    Expected expected{T(0), std::vector<L>(size)};
    const Buffers<L> host{{1, shape_.frames, shape_.columns, &logit_length, &label_length},
                          transducer_,
                          labels.data(),
                          &kSigma,
                          &kLabelWeight,
                          &kClamp,
                          &kCotangent,
                          arcs.data(),
                          normalizers.data(),
                          &expected.loss,
                          posteriors.data(),
                          nullptr};
    cpu::ComputeArcLogProbs(host.ArcLogProbs(logits.data()), InThreads);
    LatticeStage<T> lattice = host.Lattice(/*with_posteriors=*/true);
    std::vector<T> workspace(cpu::Workspace::NumbersPerUtterance(
        shape_.frames, shape_.columns, num_arcs(), /*with_posteriors=*/true));
    cpu::Workspace::Place(workspace.data(), lattice);
    cpu::ComputeLattice(lattice, InThreads, /*num_threads=*/2);
    cpu::ComputeLogitGradients(host.LogitGradients(logits.data(), expected.gradients.data()),
                               InThreads);
    return expected;
  }

  double GradientError(const std::vector<L>& expected) const {
    const int64_t size = expected.size(), end = num_logits(), frame = size / shape_.frames;
    const std::vector<L> got = gradients_.ToHost(end - size, end);
    std::vector<double> worst(shape_.frames, 0);
    InThreads(shape_.frames, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        for (int64_t i = t * frame; i < (t + 1) * frame; ++i) {
          worst[t] = Worse(worst[t], std::abs(ToReal(got[i]) - ToReal(expected[i])));
        }
      }
    });
    return std::accumulate(worst.begin(), worst.end(), 0.0, Worse);
  }

  Shape shape_;
  Transducer transducer_;
  DeviceArray<L> logits_, gradients_;
  DeviceArray<int32_t> labels_, logit_lengths_, label_lengths_;
  DeviceArray<T> sigmas_, label_weights_, clamps_, cotangents_;
  DeviceArray<T> arc_log_probs_;
  DeviceArray<LogNormalizer<T>> log_normalizers_;
  DeviceArray<T> losses_, posteriors_;
  DeviceArray<T> workspace_;
};

}  // namespace mbrnnt::benchmarks
