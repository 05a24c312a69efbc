// The CPU kernels without Python and XLA, so that sanitizers see every access: the
// buffers are exact heap allocations, the loops run in pieces in a shuffled order.
// Exits with 1 and names the first expectation that does not hold.
#include "cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "cpu/exp.h"
#include "cpu/rows.h"

namespace {

using namespace mbrnnt;

#define EXPECT(condition)                                                          \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                \
    }                                                                              \
  } while (false)

std::mt19937 random_bits(20221107);

int64_t RandomInt(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_bits);
}

void InShuffledPieces(int64_t n, const cpu::LoopBody& body) {
  std::vector<int64_t> pieces(n);
  std::iota(pieces.begin(), pieces.end(), 0);
  std::shuffle(pieces.begin(), pieces.end(), random_bits);
  for (int64_t i : pieces) body(i, i + 1);
}

template <typename L>
struct Case {
  using T = Real<L>;
  int64_t batch = RandomInt(0, 4), frames = RandomInt(0, 7), columns = RandomInt(1, 5);
  int64_t num_classes = RandomInt(5, 40);
  ArcClasses classes{4, {kNextLabel, 4, 3, 2}};
  ArcTable table{4, {{0, 1}, {1, 0}, {3, 0}, {2, 0}}};
  std::vector<int32_t> logit_lengths, label_lengths, labels;
  std::vector<L> logits;

  // What may go wrong with an utterance in use.
  enum Fault { kNone, kBadLabel, kBadLength, kNan, kImpossible };
  std::vector<Fault> faults;

  int64_t nodes() const { return frames * columns; }
  Batch Lengths() const {
    return {batch, frames, columns, logit_lengths.data(), label_lengths.data()};
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

  void Run(bool in_place) {
    const int64_t all = batch * nodes();
    std::vector<T> arc_log_probs(all * 4), normalizers(all), losses(batch), posteriors(all * 4);
    cpu::ComputeArcLogProbs(
        ArcLogProbsStage<L>{Lengths(), num_classes, classes, T(0.05), logits.data(), labels.data(),
                            arc_log_probs.data(), normalizers.data()},
        InShuffledPieces);

    std::vector<Scaled<T>> alphas(all), betas(all), likelihoods(batch);
    std::vector<T> scores(batch);
    LatticeStage<T> lattice{Lengths(),     table,   arc_log_probs.data(), scores.data(), nullptr,
                            alphas.data(), nullptr, likelihoods.data()};
    cpu::ComputeLattice(lattice, InShuffledPieces);
    lattice.losses = losses.data();
    lattice.posteriors = in_place ? arc_log_probs.data() : posteriors.data();
    lattice.betas = betas.data();
    cpu::ComputeLattice(lattice, InShuffledPieces);

    std::vector<L> gradients(in_place ? logits : std::vector<L>(logits.size()));
    const std::vector<T> cotangents(batch, T(-2));
    cpu::ComputeLogitGradients(LogitGradientsStage<L>{Lengths(),
                                                      num_classes,
                                                      classes,
                                                      {T(1.5), T(0)},
                                                      in_place ? gradients.data() : logits.data(),
                                                      labels.data(),
                                                      normalizers.data(),
                                                      lattice.posteriors,
                                                      cotangents.data(),
                                                      gradients.data()},
                               InShuffledPieces);
    for (int64_t b = 0; b < batch; ++b) Check(b, losses, scores, lattice.posteriors, gradients);
  }

  void Check(int64_t b, const std::vector<T>& losses, const std::vector<T>& scores,
             const T* posteriors, const std::vector<L>& gradients) const {
    const bool poisoned = faults[b] == kBadLength || faults[b] == kBadLabel || faults[b] == kNan;
    EXPECT(std::isnan(losses[b]) == poisoned);
    EXPECT(poisoned || losses[b] == scores[b]);
    if (faults[b] == kImpossible) EXPECT(losses[b] == T(INFINITY));

    const Extent extent = Lengths().ExtentOf(b);
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

template <typename L>
void RunCases(int count) {
  for (int i = 0; i < count; ++i) Case<L>().Run(/*in_place=*/i % 2 == 0);
}

// The loops chosen for this processor and the baseline's agree.
template <typename L>
void CompareRowLoops() {
  using T = Real<L>;
  std::normal_distribution<float> normal(0, 3);
  for (int64_t n = 1; n < 70; ++n) {
    std::vector<L> row(n), expected(n), got(n);
    for (L& x : row) x = FromReal<L>(T(normal(random_bits)));
    const auto best = cpu::BestRowLoops<L>(), baseline = cpu::baseline::Loops<L>();
    const T normalizer = baseline.log_normalizer(row.data(), n);
    EXPECT(std::abs(best.log_normalizer(row.data(), n) - normalizer) <= T(1e-5));
    const GradientRule<T> rule{T(1), T(0.3)};
    baseline.gradient(row.data(), n, normalizer, T(0.7), rule, T(2), expected.data());
    best.gradient(row.data(), n, normalizer, T(0.7), rule, T(2), got.data());
    for (int64_t v = 0; v < n; ++v) {
      EXPECT(std::abs(ToReal(got[v]) - ToReal(expected[v])) <=
             (sizeof(L) == 2 ? T(0.01) : T(1e-6)));
    }
  }
}

// Every float16 and bfloat16 survives the way to float32 and back; between two
// neighbours float32 numbers round to the nearer one.
template <typename L>
void CheckHalf() {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const L half{static_cast<uint16_t>(bits)};
    const float real = ToReal(half);
    if (std::isnan(real)) {
      EXPECT(std::isnan(ToReal(FromReal<L>(real))));
      continue;
    }
    EXPECT(FromReal<L>(real).bits == half.bits);
    const float next = ToReal(L{static_cast<uint16_t>(bits + 1)});
    if (!std::isfinite(real) || !std::isfinite(next) || bits == 0x7fffu) continue;
    const float middle = real / 2 + next / 2;
    EXPECT(FromReal<L>(middle).bits == (bits + (bits & 1u)));  // a tie goes to the even one
    EXPECT(FromReal<L>(std::nextafter(middle, real)).bits == bits);
    EXPECT(FromReal<L>(std::nextafter(middle, next)).bits == bits + 1);
  }
  EXPECT(ToReal(FromReal<L>(INFINITY)) == INFINITY);
  EXPECT(ToReal(FromReal<L>(-3.4e38f)) == -INFINITY);
}

void CheckExp() {
  EXPECT(cpu::Exp(-INFINITY) == 0.0f && cpu::Exp(0.0f) == 1.0f && std::isnan(cpu::Exp(NAN)));
  EXPECT(cpu::Exp(-88.0f) == 0.0f && cpu::Exp(-1e30f) == 0.0f);
  for (float x = -87.0f; x <= 1e-3f; x += 1e-4f) {
    const double expected = std::exp(static_cast<double>(x));
    EXPECT(std::abs(cpu::Exp(x) - expected) <= 2.4e-7 * expected);  // 2 units in the last place
  }
}

}  // namespace

int main() {
  CheckExp();
  CheckHalf<BFloat16>();
  CheckHalf<Float16>();
  CompareRowLoops<float>();
  CompareRowLoops<double>();
  CompareRowLoops<BFloat16>();
  CompareRowLoops<Float16>();
  RunCases<float>(400);
  RunCases<double>(200);
  RunCases<BFloat16>(200);
  RunCases<Float16>(200);
  std::puts("all as expected");
}
