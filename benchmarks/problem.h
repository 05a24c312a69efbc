// A problem of one shape, its stages on either processor, and how they are checked.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "benchmarks/device.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"

namespace mbrnnt::benchmarks {

// A line of shapes.csv. Goals are for an H200, or 0: forward + backward in ms, the lattice alone
// in us.
struct Shape {
  std::string name, set;
  int64_t batch, frames, labels, classes;
  std::string dtypes, transducers;
  double goal_f32, goal_bf16, goal_lattice;

  int64_t columns() const { return labels + 1; }
  int64_t nodes() const { return batch * frames * columns(); }
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

struct OnDevice {
  template <typename T>
  using Array = DeviceArray<T>;
  using Workspace = cuda::Workspace;
};
struct OnHost {
  template <typename T>
  using Array = std::vector<T>;
  using Workspace = cpu::Workspace;
};

// All arrays of a batch of full-length utterances, in a room's memory, and the stages over them.
template <typename Room, typename L>
struct Arrays {
  using T = Real<L>;
  template <typename X>
  using Array = typename Room::template Array<X>;

  Shape shape;
  Transducer transducer;
  int64_t num_arcs = transducer.table.size, row_size = transducer.emission.RowSize();
  Array<L> logits, gradients;
  Array<int32_t> labels, logit_lengths, label_lengths;
  Array<T> sigmas, label_weights, clamps, cotangents;
  Array<T> arc_log_probs;
  Array<LogNormalizer<T>> log_normalizers;
  Array<T> losses, posteriors, workspace;

  Arrays(const Shape& shape, const Transducer& transducer, const std::vector<int32_t>& labels)
      : shape(shape),
        transducer(transducer),
        logits(shape.nodes() * row_size),
        gradients(shape.nodes() * row_size),
        labels(labels),
        logit_lengths(All(static_cast<int32_t>(shape.frames))),
        label_lengths(All(static_cast<int32_t>(shape.labels))),
        sigmas(All(T(0.05))),
        label_weights(All(T(1))),
        clamps(All(T(0))),
        cotangents(All(T(0.75))),
        arc_log_probs(shape.nodes() * num_arcs),
        log_normalizers(shape.nodes() * transducer.emission.num_heads),
        losses(shape.batch),
        posteriors(shape.nodes() * num_arcs),
        workspace(shape.batch * Room::Workspace::NumbersPerUtterance(shape.frames, shape.columns(),
                                                                     num_arcs, true)) {}

  template <typename X>
  std::vector<X> All(X x) const {
    return std::vector<X>(shape.batch, x);
  }
  Batch batch() const {
    return {shape.batch, shape.frames, shape.columns(), logit_lengths.data(), label_lengths.data()};
  }
  ArcLogProbsStage<L> ArcLogProbs(const L* from) {
    return {batch(),
            transducer.emission,
            from,
            labels.data(),
            sigmas.data(),
            arc_log_probs.data(),
            log_normalizers.data()};
  }
  LatticeStage<T> Lattice(bool with_posteriors) {
    LatticeStage<T> stage{batch(), transducer.table, arc_log_probs.data(), losses.data(),
                          with_posteriors ? posteriors.data() : nullptr};
    Room::Workspace::Place(workspace.data(), stage);
    return stage;
  }
  LogitGradientsStage<L> LogitGradients(const L* from) {
    return {batch(),       transducer.emission,    /*clamped=*/false, from,
            labels.data(), log_normalizers.data(), posteriors.data(), label_weights.data(),
            clamps.data(), cotangents.data(),      gradients.data()};
  }
};

// Random logits and labels on the device.
template <typename L>
class Problem {
 public:
  using T = Real<L>;

  Problem(const Shape& shape, const Transducer& transducer)
      : arrays_(shape, transducer, Labels(shape)) {
    Fill(arrays_.logits, RandomLogits<L>());
  }

  int64_t num_arcs() const { return arrays_.num_arcs; }
  size_t num_bytes() const { return arrays_.logits.Bytes(); }

  // Of the logits, or of the copy of them that the gradients' array holds.
  void ArcLogProbs(bool of_copy, cudaStream_t stream) {
    Check(cuda::ComputeArcLogProbs(arrays_.ArcLogProbs(Logits(of_copy)), stream));
  }
  void LatticeLosses(bool with_posteriors, cudaStream_t stream) {
    Check(cuda::ComputeLattice(arrays_.Lattice(with_posteriors), stream));
  }
  // In place: from the copy of the logits there.
  void LogitGradients(bool in_place, cudaStream_t stream) {
    Check(cuda::ComputeLogitGradients(arrays_.LogitGradients(Logits(in_place)), stream));
  }
  void CopyLogitsToGradients(cudaStream_t stream) {
    Check(cudaMemcpyAsync(arrays_.gradients.data(), arrays_.logits.data(), num_bytes(),
                          cudaMemcpyDeviceToDevice, stream),
          "copy");
  }

  // Largest difference from the CPU's kernels on the batch's last utterance, whose offsets
  // are the largest. The losses count relatively. NaN if anything was left unwritten.
  double Error(cudaStream_t stream) {
    for (auto* a : {&arrays_.arc_log_probs, &arrays_.losses, &arrays_.posteriors}) Poison(*a);
    Poison(arrays_.log_normalizers);
    Poison(arrays_.gradients);
    ArcLogProbs(/*of_copy=*/false, stream);
    LatticeLosses(/*with_posteriors=*/false, stream);
    Check(cudaStreamSynchronize(stream), "lattice_score");
    const std::vector<T> scores = arrays_.losses.Fetch();
    Poison(arrays_.losses);
    LatticeLosses(/*with_posteriors=*/true, stream);
    LogitGradients(/*in_place=*/false, stream);
    Check(cudaStreamSynchronize(stream), "logit_gradients");
    const std::vector<T> losses = arrays_.losses.Fetch();

    const Arrays<OnHost, L> expected = LastOnHost();
    double error = GradientError(expected.gradients);
    CopyLogitsToGradients(stream);
    LogitGradients(/*in_place=*/true, stream);
    Check(cudaStreamSynchronize(stream), "logit_gradients in place");
    error = Worse(error, GradientError(expected.gradients));
    error = Worse(error, std::abs(losses.back() / expected.losses[0] - 1));
    for (size_t b = 0; b < losses.size(); ++b) {
      error = Worse(error, std::abs(scores[b] / losses[b] - 1));
    }
    return error;
  }

 private:
  // A NaN is the worst.
  static double Worse(double a, double b) { return std::isnan(b) || b > a ? b : a; }

  static std::vector<int32_t> Labels(const Shape& shape) {
    std::mt19937 random_bits(7);
    std::vector<int32_t> labels(shape.batch * shape.labels);
    for (int32_t& v : labels) v = static_cast<int32_t>(random_bits() % (shape.classes - 4));
    return labels;
  }
  const L* Logits(bool of_copy) { return (of_copy ? arrays_.gradients : arrays_.logits).data(); }

  // The last of an array that has as much for every utterance.
  template <typename X>
  std::vector<X> OfLast(const DeviceArray<X>& array) const {
    return array.Fetch(array.size() - array.size() / arrays_.shape.batch, array.size());
  }

  // The last utterance, computed by the CPU's kernels.
  Arrays<OnHost, L> LastOnHost() const {
    Shape one = arrays_.shape;
    one.batch = 1;
    Arrays<OnHost, L> host(one, arrays_.transducer, OfLast(arrays_.labels));
    host.logits = OfLast(arrays_.logits);
    cpu::ComputeArcLogProbs(host.ArcLogProbs(host.logits.data()), InThreads);
    cpu::ComputeLattice(host.Lattice(/*with_posteriors=*/true), InThreads, /*num_threads=*/2);
    cpu::ComputeLogitGradients(host.LogitGradients(host.logits.data()), InThreads);
    return host;
  }

  double GradientError(const std::vector<L>& expected) const {
    const std::vector<L> got = OfLast(arrays_.gradients);
    const int64_t frames = arrays_.shape.frames, frame = expected.size() / frames;
    std::vector<double> worst(frames, 0);
    InThreads(frames, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        for (int64_t i = t * frame; i < (t + 1) * frame; ++i) {
          worst[t] = Worse(worst[t], std::abs(ToReal(got[i]) - ToReal(expected[i])));
        }
      }
    });
    return std::accumulate(worst.begin(), worst.end(), 0.0, Worse);
  }

  Arrays<OnDevice, L> arrays_;
};

}  // namespace mbrnnt::benchmarks
