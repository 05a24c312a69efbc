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
  template <typename L>
  static void Run(const LogitGradientsStage<L>& stage) {
    Finish(cuda::ComputeLogitGradients(stage, nullptr));
  }
};

// What a block of this device may have.
int64_t SharedBytes() {
  int bytes = 0;
  ExpectSuccess(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
                "cudaDeviceGetAttribute");
  return bytes;
}

// A batch for the lattice alone, over one arc table.
template <typename T>
struct LatticeCase {
  template <typename X>
  using Buffer = CudaRoom::Buffer<X>;

  ArcTable table;
  int64_t batch, frames, columns, nodes;
  std::vector<int32_t> logit_lengths, label_lengths;
  Buffer<int32_t> device_logit_lengths, device_label_lengths;
  Buffer<T> arc_log_probs;

  LatticeCase(const ArcTable& table, int64_t batch, int64_t frames, int64_t columns)
      : table(table),
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
  // Some arcs are masked, and NaN stands where no arc is, which nobody may look at.
  std::vector<T> Weights(int64_t size) const {
    std::vector<T> weights(size);
    std::uniform_real_distribution<double> uniform(-8, 0);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t node = i / table.size, b = node / nodes;
      const int64_t t = node % nodes / columns, u = node % columns;
      const Extent extent{logit_lengths[b], label_lengths[b], true};
      const Lattice<T> lattice{extent, columns, table, nullptr};
      weights[i] = RandomInt(0, 19) == 0 ? -T(INFINITY) : T(uniform(random_bits));
      if (!lattice.HasArc(t, u, static_cast<int>(i % table.size))) weights[i] = T(NAN);
    }
    return weights;
  }

  struct Numbers {
    std::vector<Scaled<T>> alphas, betas, likelihoods;
    std::vector<T> losses;
  };
  template <typename Sweep>
  Numbers Run(bool with_posteriors, const Sweep& sweep) {
    const int64_t all = batch * nodes;
    Buffer<T> losses(batch), posteriors(1);
    // Fetched whole, and nobody writes what belongs to no node.
    const std::vector<Scaled<T>> written(all);
    Buffer<Scaled<T>> alphas(written), betas(written);
    Buffer<Scaled<T>> likelihoods(batch), weights(all * table.size);
    const LatticeStage<T> stage{
        {batch, frames, columns, device_logit_lengths.data(), device_label_lengths.data()},
        table,
        arc_log_probs.data(),
        losses.data(),
        with_posteriors ? posteriors.data() : nullptr,
        likelihoods.data(),
        alphas.data(),
        with_posteriors ? betas.data() : nullptr,
        weights.data()};
    CudaRoom::Finish(sweep(stage));
    return {alphas.Fetch(), with_posteriors ? betas.Fetch() : std::vector<Scaled<T>>(),
            likelihoods.Fetch(), losses.Fetch()};
  }

  static bool Close(Scaled<T> x, Scaled<T> y) {
    if (x.mantissa == T(0) || y.mantissa == T(0)) return x.mantissa == y.mantissa;
    const T tolerance = sizeof(T) == 4 ? T(1e-4) : T(1e-12);
    return std::abs(x.mantissa / y.mantissa * std::exp2(x.exponent - y.exponent) - T(1)) <=
           tolerance;
  }

  // The host's logarithm is not the device's, which moreover contracts.
  static bool WithinTwoUlps(T x, T y) {
    return x == y || std::abs(x - y) <= 2 * std::numeric_limits<T>::epsilon() * std::abs(y);
  }

  // The fast sweep and the simple one agree on every node. `threads`: the fast one's
  // width, less than there are columns for several tiles; 0 for its own plan.
  void CompareSweeps(int threads) {
    const int64_t shared_bytes = SharedBytes();
    const Numbers simple =
        Run(true, [](const LatticeStage<T>& s) { return cuda::SweepSimply(s, nullptr); });
    for (const bool with_posteriors : {true, false}) {
      const Numbers fast = Run(with_posteriors, [&](const LatticeStage<T>& s) {
        std::optional<cuda::SweepPlan> plan = cuda::PlanSweep(s, shared_bytes);
        EXPECT(plan.has_value());
        EXPECT(plan->shared_bytes <= shared_bytes);
        EXPECT(plan->threads >= threads);
        if (threads > 0) plan->threads = threads;
        return cuda::SweepFast(s, *plan, nullptr);
      });
      for (int64_t b = 0; b < batch; ++b) {
        EXPECT(Close(fast.likelihoods[b], simple.likelihoods[b]));
        EXPECT(WithinTwoUlps(fast.losses[b], Loss(fast.likelihoods[b])));
        Batch padded{batch, frames, columns, nullptr, nullptr};
        const cuda::DiagonalOrder order(padded);
        for (int64_t t = 0; t < logit_lengths[b]; ++t) {
          for (int64_t u = 0; u <= label_lengths[b]; ++u) {
            const int64_t i = b * nodes + order.RowOf(t, u) * columns + u;
            EXPECT(Close(fast.alphas[i], simple.alphas[i]));
            if (with_posteriors) EXPECT(Close(fast.betas[i], simple.betas[i]));
          }
        }
      }
    }
  }
};

template <typename T>
void CompareSweeps() {
  const ArcTable rnnt{2, {{0, 1}, {1, 0}}};
  const ArcTable usual{5, {{0, 1}, {1, 0}, {2, 0}, {4, 0}, {8, 0}}};
  const ArcTable odd{6, {{3, 0}, {1, 0}, {0, 1}, {1, 0}, {1000, 0}, {5, 0}}};
  for (const ArcTable& table : {rnnt, usual, odd}) {
    LatticeCase<T>(table, 3, 12, 5).CompareSweeps(0);
    LatticeCase<T>(table, 2, 40, 70).CompareSweeps(0);    // three warps
    LatticeCase<T>(table, 2, 7, 100).CompareSweeps(32);   // four tiles
    LatticeCase<T>(table, 2, 19, 150).CompareSweeps(64);  // three tiles of two warps
    LatticeCase<T>(table, 2, 1, 40).CompareSweeps(0);
    LatticeCase<T>(table, 2, 33, 1).CompareSweeps(0);
  }
  LatticeCase<T>(usual, 1, 300, 40).CompareSweeps(0);
}

// What the fast sweep leaves to the simple one, and what it fits itself to.
void CheckPlans() {
  const auto plan = [](const ArcTable& table, int64_t frames, int64_t columns, int64_t shared) {
    LatticeStage<float> stage{};
    stage.batch = {1, frames, columns, nullptr, nullptr};
    stage.table = table;
    return cuda::PlanSweep(stage, shared);
  };
  constexpr int64_t kShared = 227 << 10;
  const ArcTable usual{5, {{0, 1}, {1, 0}, {2, 0}, {4, 0}, {8, 0}}};
  EXPECT(plan(usual, 400, 101, kShared)->threads == 128);
  EXPECT(plan(usual, 400, 101, kShared)->num_planes == 5);
  EXPECT(plan(usual, 3, 101, kShared)->num_planes == 3);  // durations 4 and 8 never fit
  EXPECT(plan(usual, 400, 2000, kShared)->threads == 512);
  EXPECT(plan(usual, 400, 2000, 48 << 10)->threads == 96);
  EXPECT(plan(usual, 400, 2000, 48 << 10)->shared_bytes <= 48 << 10);
  const ArcTable long_jump{3, {{0, 1}, {1, 0}, {500, 0}}};
  EXPECT(plan(long_jump, 600, 2000, kShared)->threads == 32);
  const ArcTable longest{3, {{0, 1}, {1, 0}, {5000, 0}}};
  EXPECT(!plan(longest, 6000, 10, kShared));
  EXPECT(plan(longest, 4999, 10, kShared));
  const ArcTable tdt{4, {{0, 1}, {1, 1}, {1, 0}, {2, 0}}}, no_blank{2, {{0, 1}, {2, 0}}};
  EXPECT(!plan(tdt, 400, 101, kShared));
  EXPECT(!plan(no_blank, 400, 101, kShared));
}

// Nothing runs that could look at what is not there.
template <typename L>
void CheckLoading() {
  using T = Real<L>;
  const Batch batch{2, 40, 70, nullptr, nullptr};
  for (const int64_t num_classes : {8, 1024}) {
    ArcLogProbsStage<L> arc_log_probs{};
    arc_log_probs.batch = batch;
    arc_log_probs.num_classes = num_classes;
    CudaRoom::Finish(cuda::ComputeArcLogProbs(arc_log_probs, cuda::OnlyLoading()));
    LogitGradientsStage<L> logit_gradients{};
    logit_gradients.batch = batch;
    logit_gradients.num_classes = num_classes;
    CudaRoom::Finish(cuda::ComputeLogitGradients(logit_gradients, cuda::OnlyLoading()));
  }
  LatticeStage<T> lattice{};
  lattice.batch = batch;
  const ArcTable rnnt{2, {{0, 1}, {1, 0}}}, tdt{3, {{0, 1}, {1, 1}, {1, 0}}};
  for (const ArcTable& table : {rnnt, tdt}) {
    lattice.table = table;
    CudaRoom::Finish(cuda::ComputeLattice(lattice, cuda::OnlyLoading()));
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int scale = argc > 1 ? std::atoi(argv[1]) : 1;  // fewer cases for slow tools
  CheckPlans();
  CompareSweeps<float>();
  CompareSweeps<double>();
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
