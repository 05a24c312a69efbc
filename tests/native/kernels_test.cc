// The CPU kernels without Python and XLA; the loops run in pieces in a shuffled order.
// Exits with 1 and names the first expectation that does not hold.
#include "cpu/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <vector>

#include "cpu/loops.h"
#include "lattice/exp.h"
#include "tests/native/cases.h"

namespace {

using namespace mbrnnt;
using test::random_bits;
using test::RandomInt;

void InShuffledPieces(int64_t n, const cpu::LoopBody& body) {
  std::vector<int64_t> pieces(n);
  std::iota(pieces.begin(), pieces.end(), 0);
  std::shuffle(pieces.begin(), pieces.end(), random_bits);
  for (int64_t i : pieces) body(i, i + 1);
}

struct CpuRoom {
  using Workspace = cpu::Workspace;
  template <typename T>
  struct Buffer : std::vector<T> {
    using std::vector<T>::vector;
    explicit Buffer(const std::vector<T>& host) : std::vector<T>(host) {}
    std::vector<T> Fetch() const { return *this; }
  };
  template <typename L>
  static void Run(const ArcLogProbsStage<L>& stage) {
    cpu::ComputeArcLogProbs(stage, InShuffledPieces);
  }
  template <typename T>
  static void Run(const LatticeStage<T>& stage) {
    cpu::ComputeLattice(stage, InShuffledPieces, /*num_threads=*/random_bits() % 2 ? 1 : 1000);
  }
  template <typename T>
  static void Run(const AlignmentStage<T>& stage) {
    cpu::ComputeAlignment(stage, InShuffledPieces);
  }
  template <typename L>
  static void Run(const LogitGradientsStage<L>& stage) {
    cpu::ComputeLogitGradients(stage, InShuffledPieces);
  }
};

// A frame of one utterance, whose rows have a head of any size, alone or beside one of `others`.
template <typename L>
struct Frame {
  using T = Real<L>;
  static constexpr int kColumns = 19;  // more than a register takes
  Emission emission;
  int64_t row_size;
  int32_t one = 1, num_labels = kColumns - 1;
  std::vector<int32_t> labels = std::vector<int32_t>(kColumns - 1);
  std::vector<L> logits;
  std::vector<T> posteriors;
  T sigma = T(0.05), label_weight = T(1.5), cotangent = 2, clamp;
  Batch batch{1, 1, kColumns, &one, &num_labels};

  // A label may be a class that a blank reads, too; two arcs read the same one.
  Frame(int64_t size, int64_t others, T clamp)
      : emission{4, others > 0 ? 2 : 1, {size, others}, {{kNextLabel}}},
        row_size(emission.RowSize()),
        logits(kColumns * row_size),
        posteriors(kColumns * 4),
        clamp(clamp) {
    const int64_t classes[] = {size - 1, size / 2, size - 1};
    for (int a = 0; a < 3; ++a) {
      emission.classes[0][a + 1] = static_cast<int32_t>(classes[a]);
      if (others > 0) emission.classes[1][a + 1] = static_cast<int32_t>(RandomInt(0, others - 1));
    }
    for (int32_t& v : labels) v = static_cast<int32_t>(RandomInt(0, size - 1));
    std::normal_distribution<float> normal(0, 3);
    for (L& x : logits) x = FromReal<L>(T(normal(random_bits)));
    for (T& x : posteriors) x = T(RandomInt(0, 30)) / T(100);
    posteriors[(kColumns - 1) * 4] = 0;  // no label is left
  }

  struct Results {
    std::vector<T> arc_log_probs = std::vector<T>(kColumns * 4);
    std::vector<LogNormalizer<T>> normalizers;
    std::vector<L> gradients;
  };
  Results Run(const cpu::RowLoops<L>& loops, bool in_place) const {
    Results results;
    results.normalizers.resize(kColumns * emission.num_heads);
    results.gradients = in_place ? logits : std::vector<L>(logits.size());
    const cpu::Reads reads(emission);
    const ArcLogProbsStage<L> forward{batch,
                                      emission,
                                      logits.data(),
                                      labels.data(),
                                      &sigma,
                                      results.arc_log_probs.data(),
                                      results.normalizers.data()};
    loops.arc_log_probs(forward, reads, 0, 0, 0, kColumns);
    const LogitGradientsStage<L> backward{batch,
                                          emission,
                                          clamp > 0,
                                          in_place ? results.gradients.data() : logits.data(),
                                          labels.data(),
                                          results.normalizers.data(),
                                          posteriors.data(),
                                          &label_weight,
                                          &clamp,
                                          &cotangent,
                                          results.gradients.data()};
    std::vector<T> scales;
    for (const LogNormalizer<T>& normalizer : results.normalizers) {
      scales.push_back(GradientRule<T>::Factor(T(1), normalizer));
    }
    const cpu::Shares<T> shares(backward, reads, 0);
    loops.logit_gradients(backward, reads, shares, scales.data(), 0, 0, 0, kColumns);
    return results;
  }

  void Check(const Results& results) const {
    for (int u = 0; u < kColumns; ++u) {
      std::vector<double> log_probs(4, -double{sigma});
      int64_t begin = u * row_size;
      for (int h = 0; h < emission.num_heads; ++h) {
        const int64_t size = emission.sizes[h];
        const L* head = logits.data() + begin;
        double shift = -INFINITY, sum = 0, occupancy = 0;
        for (int64_t v = 0; v < size; ++v) shift = std::max(shift, double{ToReal(head[v])});
        for (int64_t v = 0; v < size; ++v) sum += std::exp(ToReal(head[v]) - shift);
        const LogNormalizer<T> normalizer = results.normalizers[u * emission.num_heads + h];
        EXPECT(normalizer.shift == shift);
        EXPECT(std::abs(normalizer.log_sum - std::log(sum)) <= 1e-6);

        std::vector<double> own(size);
        for (int a = 0; a < 4; ++a) {
          int64_t v = emission.classes[h][a];
          if (v == kNextLabel && u == num_labels) log_probs[a] = -INFINITY;
          if (v == kNextLabel && u == num_labels) continue;
          if (v == kNextLabel) v = labels[u];
          const double weight = h == 0 && a == 0 ? label_weight : 1;
          const double posterior = weight * posteriors[u * 4 + a];
          log_probs[a] += ToReal(head[v]) - shift - std::log(sum);
          occupancy += posterior;
          own[v] += posterior;
        }
        for (int64_t v = 0; v < size; ++v) {
          const double p = std::exp(ToReal(head[v]) - shift) / sum;
          double expected = p * occupancy - own[v];
          if (h == 0 && clamp > 0) {
            expected = std::min(std::max(expected, -double{clamp}), double{clamp});
          }
          const double got = ToReal(results.gradients[begin + v]);
          EXPECT(std::abs(got - cotangent * expected) <= (sizeof(L) == 2 ? 0.01 : 2e-6));
        }
        begin += size;
      }
      for (int a = 0; a < 4; ++a) {
        const T got = results.arc_log_probs[u * 4 + a];
        EXPECT(got == log_probs[a] || std::abs(got - log_probs[a]) <= 1e-5);
      }
    }
  }
};

// All loops keep to the definition, over every number of classes; where they write does not matter.
template <typename L>
void CheckRowLoops(int64_t others) {
  using T = Real<L>;
  for (int64_t size = 1; size < 150; ++size) {
    const Frame<L> frame(size, others, size % 2 ? T(0) : T(0.3));
    const auto best = cpu::BestRowLoops<L>();
    const auto results = frame.Run(best, false), in_place = frame.Run(best, true);
    frame.Check(results);
    frame.Check(frame.Run(cpu::baseline::ForRows<L>(), false));
    EXPECT(std::memcmp(in_place.gradients.data(), results.gradients.data(),
                       results.gradients.size() * sizeof(L)) == 0);
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
  EXPECT(Exp(-INFINITY) == 0.0f && Exp(0.0f) == 1.0f && std::isnan(Exp(NAN)));
  EXPECT(Exp(-88.0f) == 0.0f && Exp(-1e30f) == 0.0f);
  for (float x = -87.0f; x <= 1e-3f; x += 1e-4f) {
    const double expected = std::exp(static_cast<double>(x));
    EXPECT(std::abs(Exp(x) - expected) <= 2.4e-7 * expected);  // 2 units in the last place
  }
}

}  // namespace

int main() {
  CheckExp();
  CheckHalf<BFloat16>();
  CheckHalf<Float16>();
  for (const int64_t others : {0, 1, 5, 21}) {
    CheckRowLoops<float>(others);
    CheckRowLoops<double>(others);
    CheckRowLoops<BFloat16>(others);
    CheckRowLoops<Float16>(others);
  }
  test::RunCases<CpuRoom, float>(400);
  test::RunCases<CpuRoom, double>(200);
  test::RunCases<CpuRoom, BFloat16>(200);
  test::RunCases<CpuRoom, Float16>(200);
  std::puts("all as expected");
}
