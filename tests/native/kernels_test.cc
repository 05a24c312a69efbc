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
  template <typename L>
  static void Run(const LogitGradientsStage<L>& stage) {
    cpu::ComputeLogitGradients(stage, InShuffledPieces);
  }
};

// The loops chosen for this processor and the baseline's agree, over every number of classes, and
// beside a head of `others` classes or alone.
template <typename L>
void CompareRowLoops(int64_t others) {
  using T = Real<L>;
  constexpr int kRows = 19;  // more than a register takes
  std::normal_distribution<float> normal(0, 3);
  const auto best = cpu::BestRowLoops<L>(), baseline = cpu::baseline::ForRows<L>();
  for (int64_t n = 1; n < 150; ++n) {
    const Emission emission{0, others > 0 ? 2 : 1, {n, others}, {}};
    const int64_t row_size = emission.RowSize();
    std::vector<L> rows(kRows * row_size);
    for (L& x : rows) x = FromReal<L>(T(normal(random_bits)));
    LogNormalizer<T> normalizers[2][kRows * kMaxHeads];
    baseline.log_normalizers(rows.data(), kRows, emission, normalizers[0]);
    best.log_normalizers(rows.data(), kRows, emission, normalizers[1]);
    for (int i = 0; i < kRows * emission.num_heads; ++i) {
      const int h = i % emission.num_heads;
      const L* head = rows.data() + i / emission.num_heads * row_size + h * n;
      double shift = -INFINITY, sum = 0;
      for (int64_t v = 0; v < emission.sizes[h]; ++v) {
        shift = std::max(shift, double{ToReal(head[v])});
      }
      for (int64_t v = 0; v < emission.sizes[h]; ++v) sum += std::exp(ToReal(head[v]) - shift);
      for (const auto* of : {normalizers[0], normalizers[1]}) {
        EXPECT(of[i].shift == shift);
        EXPECT(std::abs(of[i].log_sum - std::log(sum)) <= 1e-6);
      }
    }
    const LogNormalizer<T> normalizer = normalizers[0][0];
    cpu::ReadClasses<T> read;  // arcs may share a class
    read.Add(n - 1, T(0.3));
    read.Add(n / 2, T(0.25));
    read.Add(n - 1, T(0.15));
    for (const T clamp : {T(0), T(0.3)}) {
      const GradientRule<T> rule{T(1), clamp};
      const T shift = normalizer.shift, factor = rule.Factor(T(0.7), normalizer);
      // What stands behind a head is another one's.
      std::vector<L> expected(rows), got(rows), in_place(rows);
      const auto gradient = [&](const cpu::RowLoops<L>& loops, const L* from, L* to) {
        loops.gradient(from, n, from + row_size, shift, factor, read, rule, T(2), to);
      };
      gradient(baseline, rows.data(), expected.data());
      gradient(best, rows.data(), got.data());
      for (int64_t v = 0; v < n; ++v) {
        double gradient = std::exp(ToReal(rows[v]) - shift - double{normalizer.log_sum}) * 0.7;
        for (int i = 0; i < read.size; ++i)
          gradient -= read.classes[i] == v ? read.posteriors[i] : 0;
        if (clamp > 0) gradient = std::min(std::max(gradient, -0.3), 0.3);
        const double tolerance = sizeof(L) == 2 ? 0.01 : 2e-6;
        EXPECT(std::abs(ToReal(got[v]) - ToReal(expected[v])) <=
               (sizeof(L) == 2 ? T(0.01) : T(1e-6)));
        EXPECT(std::abs(ToReal(expected[v]) - 2 * gradient) <= tolerance);
        EXPECT(std::abs(ToReal(got[v]) - 2 * gradient) <= tolerance);
      }
      EXPECT(std::memcmp(got.data() + n, rows.data() + n, (rows.size() - n) * sizeof(L)) == 0);
      gradient(best, in_place.data(), in_place.data());
      EXPECT(std::memcmp(in_place.data(), got.data(), rows.size() * sizeof(L)) == 0);
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
    CompareRowLoops<float>(others);
    CompareRowLoops<double>(others);
    CompareRowLoops<BFloat16>(others);
    CompareRowLoops<Float16>(others);
  }
  test::RunCases<CpuRoom, float>(400);
  test::RunCases<CpuRoom, double>(200);
  test::RunCases<CpuRoom, BFloat16>(200);
  test::RunCases<CpuRoom, Float16>(200);
  std::puts("all as expected");
}
