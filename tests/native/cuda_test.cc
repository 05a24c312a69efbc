// The CUDA kernels without Python and XLA: built by nvcc for a GPU, where
// compute-sanitizer sees every access, or by a host compiler over tests/simt/.
// Exits with 1 and names the first expectation that does not hold.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/sweep.h"
#include "tests/native/cases.h"
#include "tests/native/device_array.h"

namespace {

using namespace mbrnnt;
using test::ExpectSuccess;
using test::random_bits;
using test::RandomInt;

struct CudaRoom {
  using Workspace = cuda::Workspace;
  template <typename T>
  using Buffer = test::DeviceArray<T>;

  static void Finish(const cuda::Status& status) {
    ExpectSuccess(status.error, status.kernel);
    ExpectSuccess(cudaDeviceSynchronize(), status.kernel);
  }
  template <typename L>
  static void Run(const ArcLogProbsStage<L>& stage) {
    Finish(cuda::ComputeArcLogProbs(stage, nullptr));
  }
  template <typename T>
  static void Run(const LatticeStage<T>& stage) {
    Finish(cuda::ComputeLattice(stage, nullptr));
  }
  template <typename T>
  static void Run(const AlignmentStage<T>& stage) {
    Finish(cuda::ComputeAlignment(stage, nullptr));
  }
  template <typename L>
  static void Run(const LogitGradientsStage<L>& stage) {
    Finish(cuda::ComputeLogitGradients(stage, nullptr));
  }
};

// A batch for the lattice alone, over one arc table.
template <typename T>
struct LatticeCase {
  template <typename X>
  using Buffer = CudaRoom::Buffer<X>;

  ArcTable table;
  int rare;
  int64_t batch, frames, columns, nodes;
  std::vector<int32_t> logit_lengths, label_lengths;
  Buffer<int32_t> device_logit_lengths, device_label_lengths;
  Buffer<T> arc_log_probs;

  // rare: one of so many is so improbable that no float holds it; 0: none.
  LatticeCase(const ArcTable& table, int64_t batch, int64_t frames, int64_t columns, int rare = 0)
      : table(table),
        rare(rare),
        batch(batch),
        frames(frames),
        columns(columns),
        nodes(frames * columns),
        logit_lengths(Lengths(batch, frames)),
        label_lengths(Lengths(batch, columns - 1)),
        device_logit_lengths(logit_lengths),
        device_label_lengths(label_lengths),
        arc_log_probs(Weights(batch * nodes * table.size)) {}

  // The first utterance is full, the others are not.
  static std::vector<int32_t> Lengths(int64_t batch, int64_t most) {
    std::vector<int32_t> lengths(batch);
    for (int32_t& n : lengths) n = static_cast<int32_t>(RandomInt(0, most));
    if (batch > 0) lengths[0] = static_cast<int32_t>(most);
    return lengths;
  }
  // Some arcs are masked, some are as good as that, and NaN stands where no arc is, which nobody
  // may look at.
  std::vector<T> Weights(int64_t size) const {
    std::vector<T> weights(size);
    std::uniform_real_distribution<double> uniform(-8, 0);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t node = i / table.size, b = node / nodes;
      const int64_t t = node % nodes / columns, u = node % columns;
      const Extent extent{logit_lengths[b], label_lengths[b], true};
      const Lattice<T> lattice{extent, columns, table, nullptr};
      weights[i] = RandomInt(0, 19) == 0 ? -T(INFINITY) : T(uniform(random_bits));
      if (rare > 0 && RandomInt(0, rare) == 0) weights[i] -= T(100);
      if (!lattice.HasArc(t, u, static_cast<int>(i % table.size))) weights[i] = T(NAN);
    }
    return weights;
  }

  struct Results {
    std::vector<T> losses, posteriors;
    std::vector<Scaled<T>> likelihoods;
  };
  template <typename Compute>
  Results Run(bool with_posteriors, const Compute& compute) {
    Buffer<T> losses(batch), posteriors(batch * nodes * table.size);
    Buffer<T> workspace(
        batch * cuda::Workspace::NumbersPerUtterance(frames, columns, table.size, with_posteriors));
    LatticeStage<T> stage{
        {batch, frames, columns, device_logit_lengths.data(), device_label_lengths.data()},
        table,
        arc_log_probs.data(),
        losses.data(),
        with_posteriors ? posteriors.data() : nullptr};
    cuda::Workspace::Place(workspace.data(), stage);
    CudaRoom::Finish(compute(stage));
    std::vector<Scaled<T>> likelihoods(batch);
    ExpectSuccess(cudaMemcpy(likelihoods.data(), stage.likelihoods, batch * sizeof(Scaled<T>),
                             cudaMemcpyDeviceToHost),
                  "cudaMemcpy");
    return {losses.Fetch(), with_posteriors ? posteriors.Fetch() : std::vector<T>(), likelihoods};
  }

  // The host's logarithm is not the device's, which moreover contracts.
  static bool WithinTwoUlps(T x, T y) {
    return x == y || std::abs(x - y) <= 2 * std::numeric_limits<T>::epsilon() * std::abs(y);
  }

  // The two ways agree.
  void CompareWays() {
    const Results simple =
        Run(true, [](const LatticeStage<T>& s) { return cuda::ComputeLatticeSimply(s, nullptr); });
    const T tolerance = sizeof(T) == 4 ? T(2e-5) : T(1e-12);
    for (const bool with_posteriors : {true, false}) {
      const Results fast = Run(with_posteriors, [](const LatticeStage<T>& s) {
        return cuda::ComputeLattice(s, nullptr);
      });
      for (int64_t b = 0; b < batch; ++b) {
        const T loss = simple.losses[b];
        EXPECT(WithinTwoUlps(fast.losses[b], Loss(fast.likelihoods[b])));
        EXPECT(fast.losses[b] == loss || std::abs(fast.losses[b] - loss) <= tolerance * (1 + loss));
      }
      for (size_t i = 0; i < fast.posteriors.size(); ++i) {
        EXPECT(std::abs(fast.posteriors[i] - simple.posteriors[i]) <= tolerance);
      }
    }
  }
};

template <typename T>
void CompareWays() {
  const ArcTable rnnt{2, {{0, 1}, {1, 0}}};
  const ArcTable usual{5, {{0, 1}, {1, 0}, {2, 0}, {4, 0}, {8, 0}}};
  const ArcTable long_blanks{5, {{3, 0}, {1, 0}, {0, 1}, {1000, 0}, {20, 0}}};
  const ArcTable tdt{5, {{0, 1}, {2, 1}, {4, 1}, {1, 0}, {3, 0}}};
  const ArcTable odd{6, {{3, 0}, {9, 1}, {7, 1}, {1, 0}, {12, 0}, {5, 0}}};
  for (const ArcTable& table : {rnnt, usual, long_blanks, tdt, odd}) {
    LatticeCase<T>(table, 3, 12, 5).CompareWays();
    LatticeCase<T>(table, 2, 40, 70).CompareWays();  // three tiles
    LatticeCase<T>(table, 2, 7, 100, 30).CompareWays();
    LatticeCase<T>(table, 2, 19, 150).CompareWays();
    LatticeCase<T>(table, 2, 1, 40).CompareWays();
    LatticeCase<T>(table, 2, 33, 1).CompareWays();
    LatticeCase<T>(table, 2, 60, 40, 300).CompareWays();
  }
  LatticeCase<T>(usual, 1, 300, 40).CompareWays();
}

// What the fast sweep leaves to the simple one, and which of its builds takes what.
void CheckPlans() {
  const auto plan = [](const ArcTable& table, int64_t frames) {
    LatticeStage<float> stage{};
    stage.batch = {1, frames, 101, nullptr, nullptr};
    stage.table = table;
    return cuda::PlanSweep(stage);
  };
  const ArcTable rnnt{2, {{1, 0}, {0, 1}}}, usual{3, {{0, 1}, {1, 0}, {8, 0}}};
  EXPECT(plan(rnnt, 400)->build == 0);
  EXPECT(plan(usual, 400)->build == 1);
  EXPECT(plan(usual, 400)->long_blanks == 0);
  EXPECT(plan(usual, 7)->build == 0);  // the blank of 8 frames is never there
  const ArcTable long_blank{3, {{0, 1}, {1, 0}, {9, 0}}};
  EXPECT(plan(long_blank, 400)->build == 0);
  EXPECT(plan(long_blank, 400)->long_blanks == 4);
  EXPECT(plan({3, {{0, 1}, {1, 0}, {4, 0}}}, 400)->build == 1);
  EXPECT(plan({3, {{0, 1}, {1, 0}, {3, 0}}}, 400)->build == 2);
  EXPECT(plan({4, {{0, 1}, {1, 1}, {1, 0}, {2, 0}}}, 400)->build == 3);
  EXPECT(plan({2, {{6, 1}, {1, 0}}}, 400)->build == 4);
  EXPECT(plan({2, {{0, 1}, {2, 0}}}, 400)->build == 1);
  EXPECT(!plan({3, {{0, 1}, {1, 0}, {1, 0}}}, 400));  // twice the same
  EXPECT(!plan(rnnt, int64_t{1} << 30));
}

// Nothing runs that could look at what is not there.
template <typename L>
void CheckLoading() {
  using T = Real<L>;
  const Batch batch{2, 40, 70, nullptr, nullptr};
  for (const int64_t size : {8, 1024}) {
    for (const int32_t num_heads : {1, 2}) {
      const Emission emission{1, num_heads, {size, 5}, {{kNextLabel}, {0}}};
      ArcLogProbsStage<L> arc_log_probs{};
      arc_log_probs.batch = batch;
      arc_log_probs.emission = emission;
      CudaRoom::Finish(cuda::ComputeArcLogProbs(arc_log_probs, cuda::OnlyLoading()));
      LogitGradientsStage<L> logit_gradients{};
      logit_gradients.batch = batch;
      logit_gradients.emission = emission;
      CudaRoom::Finish(cuda::ComputeLogitGradients(logit_gradients, cuda::OnlyLoading()));
    }
  }
  LatticeStage<T> lattice{};
  lattice.batch = batch;
  const ArcTable rnnt{2, {{0, 1}, {1, 0}}}, tdt{3, {{0, 1}, {1, 1}, {1, 0}}};
  for (const ArcTable& table : {rnnt, tdt}) {
    lattice.table = table;
    CudaRoom::Finish(cuda::ComputeLattice(lattice, cuda::OnlyLoading()));
  }
  AlignmentStage<T> alignment{};
  alignment.batch = batch;
  CudaRoom::Finish(cuda::ComputeAlignment(alignment, cuda::OnlyLoading()));
}

}  // namespace

int main(int argc, char** argv) {
  const int scale = argc > 1 ? std::atoi(argv[1]) : 1;  // fewer cases for slow tools
  CheckPlans();
  CompareWays<float>();
  CompareWays<double>();
  test::RunCases<CudaRoom, float>(120 / scale);
  test::RunCases<CudaRoom, double>(60 / scale);
  test::RunCases<CudaRoom, BFloat16>(60 / scale);
  test::RunCases<CudaRoom, Float16>(60 / scale);
  CheckLoading<float>();
  CheckLoading<double>();
  CheckLoading<BFloat16>();
  CheckLoading<Float16>();
  std::puts("all as expected");
}
