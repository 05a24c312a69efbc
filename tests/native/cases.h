// Random utterances in every condition, and what must hold of what a room makes of
// them. Without Python and XLA, so that sanitizers see every access: buffers are
// exact allocations.
//
// A Room has `Buffer<T>`, which is made of a size or of a vector and gives `data()` for
// the kernels and `Fetch()` for the host, the lattice's `Workspace`, and `Run` for every stage.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "lattice/stages.h"
#include "tests/native/expect.h"

namespace mbrnnt::test {

inline std::mt19937 random_bits(20221107);

inline int64_t RandomInt(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_bits);
}

template <typename Room, typename L>
struct Case {
  using T = Real<L>;
  // Now and then many: anti-diagonals of several SIMD registers, or many that share a row.
  int64_t batch = RandomInt(0, 4), frames = RandomInt(0, 19) ? RandomInt(0, 7) : RandomInt(25, 60);
  int64_t columns = RandomInt(0, 9) ? RandomInt(1, 5) : RandomInt(25, 60);
  int64_t num_classes = RandomInt(5, 40);
  // A label may be a blank's class, and two blanks may share one.
  ArcClasses classes{4, {kNextLabel, 4, 3, static_cast<int32_t>(RandomInt(2, 3))}};
  ArcTable table{4, {{0, 1}, {1, 0}, {3, 0}, {2, 0}}};
  std::vector<int32_t> logit_lengths, label_lengths, labels;
  std::vector<L> logits;

  // What may go wrong with an utterance in use.
  enum Fault { kNone, kBadLabel, kBadLength, kNan, kImpossible };
  std::vector<Fault> faults;

  int64_t nodes() const { return frames * columns; }
  Batch BatchOf(const int32_t* logit_lengths, const int32_t* label_lengths) const {
    return {batch, frames, columns, logit_lengths, label_lengths};
  }

  Case() {
    std::normal_distribution<float> normal(0, 3);
    logits.resize(batch * nodes() * num_classes);
    for (L& x : logits) x = FromReal<L>(T(normal(random_bits)));
    labels.resize(batch * (columns - 1));
    for (int32_t& v : labels) v = static_cast<int32_t>(RandomInt(0, num_classes - 1));
    for (int64_t b = 0; b < batch; ++b) {
      logit_lengths.push_back(static_cast<int32_t>(RandomInt(0, frames)));
      label_lengths.push_back(static_cast<int32_t>(RandomInt(0, columns - 1)));
      faults.push_back(static_cast<Fault>(RandomInt(0, 4)));
      Break(b);
    }
  }

  void Break(int64_t b) {
    const bool has_node = logit_lengths[b] > 0;
    L* block = logits.data() + b * nodes() * num_classes;
    if (faults[b] == kBadLength) {
      (RandomInt(0, 1) ? logit_lengths : label_lengths)[b] = RandomInt(0, 1) ? -1 : INT32_MAX;
    } else if (faults[b] == kBadLabel && has_node && label_lengths[b] > 0) {
      labels[b * (columns - 1)] = RandomInt(0, 1) ? -1 : static_cast<int32_t>(num_classes);
    } else if (faults[b] == kNan && has_node) {
      block[RandomInt(0, num_classes - 1)] = FromReal<L>(RandomInt(0, 1) ? T(NAN) : T(INFINITY));
    } else if (faults[b] == kImpossible && has_node) {
      std::fill_n(block, num_classes, FromReal<L>(-T(INFINITY)));  // no way out of (0, 0)
    } else {
      faults[b] = kNone;
    }
  }

  template <typename X>
  using Buffer = typename Room::template Buffer<X>;

  void Run(bool in_place) const {
    const int64_t all = batch * nodes();
    const Buffer<int32_t> device_logit_lengths(logit_lengths), device_label_lengths(label_lengths),
        device_labels(labels);
    const Batch device = BatchOf(device_logit_lengths.data(), device_label_lengths.data());
    Buffer<L> device_logits(logits), other_gradients(logits.size());
    Buffer<T> arc_log_probs(all * 4), losses(batch), scores(batch);
    Buffer<LogNormalizer<T>> normalizers(all);
    Buffer<T> other_posteriors(all * 4), cotangents(std::vector<T>(batch, T(-2)));
    Room::Run(ArcLogProbsStage<L>{device, num_classes, classes, T(0.05), device_logits.data(),
                                  device_labels.data(), arc_log_probs.data(), normalizers.data()});

    Buffer<T>& posteriors = in_place ? arc_log_probs : other_posteriors;
    RunLattice({device, table, arc_log_probs.data(), scores.data(), nullptr});
    RunLattice({device, table, arc_log_probs.data(), losses.data(), posteriors.data()});

    Buffer<L>& gradients = in_place ? device_logits : other_gradients;
    Room::Run(LogitGradientsStage<L>{device,
                                     num_classes,
                                     classes,
                                     {T(1.5), T(0)},
                                     device_logits.data(),
                                     device_labels.data(),
                                     normalizers.data(),
                                     posteriors.data(),
                                     cotangents.data(),
                                     gradients.data()});
    const auto host_losses = losses.Fetch(), host_scores = scores.Fetch();
    const auto host_posteriors = posteriors.Fetch();
    const auto host_gradients = gradients.Fetch();
    for (int64_t b = 0; b < batch; ++b) {
      Check(b, host_losses, host_scores, host_posteriors.data(), host_gradients);
    }
  }

  void RunLattice(LatticeStage<T> stage) const {
    using Workspace = typename Room::Workspace;
    Buffer<T> workspace(batch * Workspace::NumbersPerUtterance(frames, columns, table.size,
                                                               stage.posteriors != nullptr));
    Workspace::Place(workspace.data(), stage);
    Room::Run(stage);
  }

  void Check(int64_t b, const std::vector<T>& losses, const std::vector<T>& scores,
             const T* posteriors, const std::vector<L>& gradients) const {
    const bool poisoned = faults[b] == kBadLength || faults[b] == kBadLabel || faults[b] == kNan;
    EXPECT(std::isnan(losses[b]) == poisoned);
    EXPECT(poisoned || losses[b] == scores[b]);
    if (faults[b] == kImpossible) EXPECT(losses[b] == T(INFINITY));

    const Extent extent = BatchOf(logit_lengths.data(), label_lengths.data()).ExtentOf(b);
    T emitted = 0, skipped = 0;
    for (int64_t t = 0; t < frames; ++t) {
      for (int64_t u = 0; u < columns; ++u) {
        const int64_t node = b * nodes() + t * columns + u;
        const T* posterior = posteriors + node * 4;
        T sum = 0;
        for (int64_t v = 0; v < num_classes; ++v) {
          const T g = ToReal(gradients[node * num_classes + v]);
          const bool is_nan = poisoned && (extent.Contains(t, u) || !extent.valid);
          EXPECT(std::isnan(g) == is_nan);
          if (!extent.Contains(t, u) && extent.valid) EXPECT(g == T(0));
          sum += g;
        }
        if (poisoned) continue;
        const T row = sizeof(L) == 2 ? T(0.05) : T(1e-4);  // 40 roundings of half precision
        EXPECT(std::abs(sum) <= row);
        if (u == 0) emitted += posterior[0];
        for (int a = 1; a < 4; ++a) skipped += T(table.arcs[a].duration) * posterior[a];
      }
    }
    if (poisoned || !std::isfinite(losses[b])) return;
    EXPECT(std::abs(emitted - T(extent.labels > 0)) <= T(1e-5));
    EXPECT(std::abs(skipped - T(extent.frames)) <= T(1e-4));
  }
};

template <typename Room, typename L>
void RunCases(int count) {
  for (int i = 0; i < count; ++i) Case<Room, L>().Run(/*in_place=*/i % 2 == 0);
}

}  // namespace mbrnnt::test
