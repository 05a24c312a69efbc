// A problem of one shape on the device, its stages, and how they are checked and timed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cuda/kernels.h"

namespace mbrnnt::benchmarks {

// Goals of the design, for an H200: forward + backward in ms, the lattice alone in us.
struct Shape {
  int64_t batch, frames, columns, classes;
  double goal_f32, goal_bf16, goal_lattice;

  int64_t nodes() const { return batch * frames * columns; }
  int64_t logits() const { return nodes() * classes; }
};

// ---- The device ------------------------------------------------------------------

struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an allocation that failed is no reason to fail later
  if (error == cudaErrorMemoryAllocation) throw OutOfMemory("OOM");
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
inline void Check(cuda::Status status) {
  Check(status.error, status.kernel ? status.kernel : "launch");
  Check(cudaGetLastError(), "launch");
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(int64_t size) : size_(std::max<int64_t>(size, 1)) {
    Check(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()), "cudaMalloc");
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    Check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice),
          "copy to the device");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  size_t bytes() const { return size_ * sizeof(T); }
  void Poison() const { Check(cudaMemset(data_, 0xff, bytes()), "memset"); }  // NaN in any format
  std::vector<T> ToHost(int64_t begin, int64_t end) const {
    std::vector<T> host(end - begin);
    Check(cudaMemcpy(host.data(), data_ + begin, host.size() * sizeof(T), cudaMemcpyDeviceToHost),
          "copy to the host");
    return host;
  }
  // Repeats the values to the end of the array.
  void Fill(const std::vector<T>& values) const {
    int64_t filled = std::min<int64_t>(values.size(), size_);
    Check(cudaMemcpy(data_, values.data(), filled * sizeof(T), cudaMemcpyHostToDevice),
          "copy to the device");
    while (filled < size_) {
      const int64_t next = std::min(filled, size_ - filled);
      Check(cudaMemcpy(data_ + filled, data_, next * sizeof(T), cudaMemcpyDeviceToDevice), "copy");
      filled += next;
    }
  }

 private:
  int64_t size_;
  T* data_ = nullptr;
};

// 64 MB of float32: more than an L2 cache holds. Never zeros, they may run faster than real data.
template <typename L>
std::vector<L> RandomLogits() {
  static const std::vector<float> normals = [] {
    std::mt19937 random_bits(20221107);
    std::normal_distribution<float> normal(0, 2);
    std::vector<float> values(1 << 24);
    for (float& x : values) x = normal(random_bits);
    return values;
  }();
  std::vector<L> logits(normals.size());
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = FromReal<L>(Real<L>(normals[i]));
  return logits;
}

struct Times {
  double median, min, max;  // us
};

// Reads all of an array of zeros. What it would write if it found anything keeps the compiler from
// leaving the reading out.
static __global__ void ReadZerosKernel(const uint4* zeros, int64_t size, unsigned* found) {
  unsigned all = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < size;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint4 x = zeros[i];
    all |= x.x | x.y | x.z | x.w;
  }
  if (all != 0) *found = all;
}

// Times what a stream does between two events.
class Stopwatch {
 public:
  explicit Stopwatch(int repeats) : repeats_(repeats), others_((256 << 20) / sizeof(uint4)) {
    Check(cudaMemset(others_.data(), 0, others_.bytes()), "cudaMemset");
    Check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    Check(cudaEventCreate(&start_), "cudaEventCreate");
    Check(cudaEventCreate(&stop_), "cudaEventCreate");
  }
  ~Stopwatch() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
    cudaStreamDestroy(stream_);
  }
  cudaStream_t stream() const { return stream_; }

  // `prepare` is not timed. Then the L2 cache is full of something else, which was only read: lines
  // that were written would go to memory while `run` is timed. Reading takes long enough that all
  // of `run` is queued before the first event passes.
  Times Time(const std::function<void()>& prepare, const std::function<void()>& run) const {
    std::vector<double> us;
    for (int i = -3; i < repeats_; ++i) {
      prepare();
      ReadZerosKernel<<<2048, 512, 0, stream_>>>(others_.data(), others_.bytes() / sizeof(uint4),
                                                 &others_.data()->x);
      Check(cudaGetLastError(), "ReadZerosKernel");
      Check(cudaEventRecord(start_, stream_), "cudaEventRecord");
      run();
      Check(cudaEventRecord(stop_, stream_), "cudaEventRecord");
      Check(cudaStreamSynchronize(stream_), "run");
      float ms = 0;
      Check(cudaEventElapsedTime(&ms, start_, stop_), "cudaEventElapsedTime");
      if (i >= 0) us.push_back(1e3 * ms);  // the first three warm up
    }
    std::sort(us.begin(), us.end());
    return {us[us.size() / 2], us.front(), us.back()};
  }

 private:
  int repeats_;
  DeviceArray<uint4> others_;  // more than an L2 cache holds
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

// ---- A problem -------------------------------------------------------------------

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
  int64_t num_classes;
  int32_t num_arcs;  // the label's, the blank's and those of durations 2, 4, 8
  const int32_t* labels;
  T* arc_log_probs;
  LogNormalizer<T>* log_normalizers;
  T *losses, *posteriors;
  const T* cotangents;
  T* workspace;

  ArcClasses classes() const {
    const auto last = static_cast<int32_t>(num_classes - 1);
    return {num_arcs, {kNextLabel, last, last - 1, last - 2, last - 3}};
  }
  ArcLogProbsStage<L> ArcLogProbs(const L* logits) const {
    ArcLogProbsStage<L> s{};
    s.batch = batch;
    s.num_classes = num_classes;
    s.arc_classes = classes();
    s.sigma = T(0.05);
    s.logits = logits;
    s.labels = labels;
    s.arc_log_probs = arc_log_probs;
    s.log_normalizers = log_normalizers;
    return s;
  }
  // Without a place yet for what the room keeps.
  LatticeStage<T> Lattice(bool with_posteriors) const {
    LatticeStage<T> s{};
    s.batch = batch;
    s.table = {num_arcs, {{0, 1}, {1, 0}, {2, 0}, {4, 0}, {8, 0}}};
    s.arc_log_probs = arc_log_probs;
    s.losses = losses;
    s.posteriors = with_posteriors ? posteriors : nullptr;
    return s;
  }
  LatticeStage<T> LatticeLosses(bool with_posteriors) const {
    LatticeStage<T> s = Lattice(with_posteriors);
    cuda::Workspace::Place(workspace, s);
    return s;
  }
  LogitGradientsStage<L> LogitGradients(const L* logits, L* gradients) const {
    LogitGradientsStage<L> s{};
    s.batch = batch;
    s.num_classes = num_classes;
    s.arc_classes = classes();
    s.rule = {T(1), T(0)};
    s.logits = logits;
    s.labels = labels;
    s.log_normalizers = log_normalizers;
    s.posteriors = posteriors;
    s.cotangents = cotangents;
    s.logit_gradients = gradients;
    return s;
  }
};

// Full-length utterances with random logits and labels on the device.
template <typename L>
class Problem {
 public:
  using T = Real<L>;

  Problem(const Shape& shape, bool big_blanks)
      : shape_(shape),
        num_arcs_(big_blanks ? 5 : 2),
        logits_(shape.logits()),
        gradients_(shape.logits()),
        labels_(Labels()),
        logit_lengths_(std::vector<int32_t>(shape.batch, static_cast<int32_t>(shape.frames))),
        label_lengths_(std::vector<int32_t>(shape.batch, static_cast<int32_t>(shape.columns - 1))),
        arc_log_probs_(shape.nodes() * num_arcs_),
        log_normalizers_(shape.nodes()),
        losses_(shape.batch),
        posteriors_(shape.nodes() * num_arcs_),
        cotangents_(std::vector<T>(shape.batch, kCotangent)),
        workspace_(shape.batch * cuda::Workspace::NumbersPerUtterance(shape.frames, shape.columns,
                                                                      num_arcs_, true)) {
    logits_.Fill(RandomLogits<L>());
  }

  int64_t num_arcs() const { return num_arcs_; }

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
  static constexpr T kCotangent = T(0.75);
  struct Expected {
    T loss;
    std::vector<L> gradients;
  };

  // A NaN is the worst.
  static double Worse(double a, double b) { return std::isnan(b) || b > a ? b : a; }

  Buffers<L> buffers() const {
    return {
        {shape_.batch, shape_.frames, shape_.columns, logit_lengths_.data(), label_lengths_.data()},
        shape_.classes,
        num_arcs_,
        labels_.data(),
        arc_log_probs_.data(),
        log_normalizers_.data(),
        losses_.data(),
        posteriors_.data(),
        cotangents_.data(),
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
    const int64_t nodes = shape_.frames * shape_.columns, size = nodes * shape_.classes;
    const int64_t last = shape_.batch - 1, num_labels = shape_.columns - 1;
    const std::vector<L> logits = logits_.ToHost(last * size, last * size + size);
    const std::vector<int32_t> labels =
        labels_.ToHost(last * num_labels, last * num_labels + num_labels);
    const auto logit_length = static_cast<int32_t>(shape_.frames);
    const auto label_length = static_cast<int32_t>(num_labels);

    std::vector<T> arcs(nodes * num_arcs_), posteriors(arcs.size());
    std::vector<LogNormalizer<T>> normalizers(nodes);
    Expected expected{T(0), std::vector<L>(size)};
    const Buffers<L> host{{1, shape_.frames, shape_.columns, &logit_length, &label_length},
                          shape_.classes,
                          num_arcs_,
                          labels.data(),
                          arcs.data(),
                          normalizers.data(),
                          &expected.loss,
                          posteriors.data(),
                          &kCotangent,
                          nullptr};
    cpu::ComputeArcLogProbs(host.ArcLogProbs(logits.data()), InThreads);
    LatticeStage<T> lattice = host.Lattice(/*with_posteriors=*/true);
    std::vector<T> workspace(cpu::Workspace::NumbersPerUtterance(
        shape_.frames, shape_.columns, num_arcs_, /*with_posteriors=*/true));
    cpu::Workspace::Place(workspace.data(), lattice);
    cpu::ComputeLattice(lattice, InThreads, /*num_threads=*/2);
    cpu::ComputeLogitGradients(host.LogitGradients(logits.data(), expected.gradients.data()),
                               InThreads);
    return expected;
  }

  double GradientError(const std::vector<L>& expected) const {
    const int64_t size = expected.size(), end = shape_.logits(), frame = size / shape_.frames;
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
  int32_t num_arcs_;
  DeviceArray<L> logits_, gradients_;
  DeviceArray<int32_t> labels_, logit_lengths_, label_lengths_;
  DeviceArray<T> arc_log_probs_;
  DeviceArray<LogNormalizer<T>> log_normalizers_;
  DeviceArray<T> losses_, posteriors_, cotangents_;
  DeviceArray<T> workspace_;
};

}  // namespace mbrnnt::benchmarks
