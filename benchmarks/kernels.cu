// Times the CUDA kernels one by one, without XLA, beside the bytes that they cannot
// avoid moving: the forward pass reads the logits once, the backward pass reads them
// and writes their gradient. Each configuration is compared with the CPU's kernels
// before it is timed.
//
//   kernels [--repeats N] [--csv FILE] SHAPES.csv
//   kernels --profile SHAPES.csv      every kernel once at the first shapes, for a profiler
//
// The kernels are those of cuda/, and one of device.h that fills the L2 cache.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "benchmarks/problem.h"

namespace {

using namespace mbrnnt;
using namespace mbrnnt::benchmarks;

// Those of a GPU, and those of its lattice alone.
std::vector<Shape> ReadShapes(const char* path) {
  std::ifstream file(path);
  std::vector<Shape> shapes;
  for (std::string line; std::getline(file, line);) {
    char name[32], set[16], dtypes[16], transducers[32];
    long sizes[4];
    double goals[3];
    const int found =
        std::sscanf(line.c_str(), "%31[^,],%15[^,],%ld,%ld,%ld,%ld,%15[^,],%31[^,],%lf,%lf,%lf",
                    name, set, &sizes[0], &sizes[1], &sizes[2], &sizes[3], dtypes, transducers,
                    &goals[0], &goals[1], &goals[2]);
    if (found < 11) continue;
    const std::string of = set;
    if (of != "gpu" && of != "lattice") continue;
    shapes.push_back({name, of, sizes[0], sizes[1], sizes[2], sizes[3], dtypes, transducers,
                      goals[0], goals[1], goals[2]});
  }
  if (shapes.empty()) throw std::runtime_error(std::string("no shapes in ") + path);
  return shapes;
}

std::vector<Transducer> TransducersOf(const Shape& shape) {
  const auto has = [&](const char* name) {
    return shape.transducers.find(name) != std::string::npos;
  };
  std::vector<Transducer> found;
  if (has("multi-blank")) found.push_back(Multiblank(shape.classes, true));
  if (has("RNN-T")) found.push_back(Multiblank(shape.classes, false));
  if (has("TDT")) found.push_back(Tdt(shape.classes));
  return found;
}

// ---- The report ------------------------------------------------------------------

class Report {
 public:
  Report(const char* path, double bandwidth) : bandwidth_(bandwidth) {
    if (path && !(csv_ = std::fopen(path, "w"))) {
      throw std::runtime_error(std::string("cannot write ") + path);
    }
    Line(
        "stage,B,T,U,V,dtype,transducer,durations,median_us,min_us,max_us,floor_bytes,floor_us,"
        "times_floor,TB/s,max_error\n");
    Line("copy,,,,,,,,,,,,,," + std::to_string(bandwidth * 1e-12) + ",\n");
  }
  ~Report() {
    if (csv_) std::fclose(csv_);
  }
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  double FloorUs(double bytes) const { return 1e6 * bytes / bandwidth_; }
  double TimesFloor(Times times, double bytes) const { return times.median / FloorUs(bytes); }

  void Write(const char* stage, const Shape& s, const char* dtype, const Transducer& transducer,
             Times times, double bytes, double error) {
    char line[400];
    std::snprintf(line, sizeof(line),
                  "%s,%ld,%ld,%ld,%ld,%s,%s,%s,%.2f,%.2f,%.2f,%.0f,%.2f,%.3f,%.3f,%.1e\n", stage,
                  long(s.batch), long(s.frames), long(s.labels), long(s.classes), dtype,
                  transducer.name, transducer.durations, times.median, times.min, times.max, bytes,
                  FloorUs(bytes), TimesFloor(times, bytes), bytes / times.median * 1e-6, error);
    Line(line);
  }

 private:
  void Line(const std::string& line) {
    if (csv_) std::fputs(line.c_str(), csv_), std::fflush(csv_);
  }
  double bandwidth_;
  std::FILE* csv_ = nullptr;
};

// Bytes read plus bytes written by a copy within the device, per second.
double CopyBandwidth(Stopwatch& stopwatch) {
  size_t free = 0, total = 0;
  Check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  const int64_t size = std::min<int64_t>(int64_t{4} << 30, free / 4) / sizeof(float);
  DeviceArray<float> from(size), to(size);
  Fill(from, RandomLogits<float>());
  const Times times =
      stopwatch.Time([] {},
                     [&] {
                       Check(cudaMemcpyAsync(to.data(), from.data(), from.Bytes(),
                                             cudaMemcpyDeviceToDevice, stopwatch.stream()),
                             "copy");
                     });
  return 2e6 * from.Bytes() / times.median;
}

// False if a result was wrong or a kernel failed. Too little memory is data.
template <typename L>
bool Measure(const Shape& shape, const Transducer& transducer, Stopwatch& stopwatch,
             Report& report) {
  const bool is_f32 = std::is_same_v<L, float>;
  const char* dtype = is_f32 ? "f32" : "bf16";
  std::printf("%2ld,%4ld,%3ld,%4ld %-4s %-11s", long(shape.batch), long(shape.frames),
              long(shape.labels), long(shape.classes), dtype, transducer.name);
  bool right = true;
  try {
    Problem<L> problem(shape, transducer);
    const cudaStream_t stream = stopwatch.stream();
    const double error = problem.Error(stream);
    // A gradient is at most 1, and half precision rounds it by up to 2^-9.
    right = error <= (is_f32 ? 1e-4 : 8e-3);
    if (!right) std::printf(" WRONG: the CPU's kernels differ by %.1e;", error);

    const auto time = [&](const char* stage, double bytes, bool with_copy,
                          const std::function<void()>& run) {
      const auto prepare = [&] {
        if (with_copy) problem.CopyLogitsToGradients(stream);
      };
      const Times times = stopwatch.Time(prepare, run);
      report.Write(stage, shape, dtype, transducer, times, bytes, error);
      return times;
    };
    const auto print = [&](Times times, double bytes) {
      std::printf(" %8.3f %4.2f", times.median / 1e3, report.TimesFloor(times, bytes));
    };
    const auto forward = [&](bool of_copy) { problem.ArcLogProbs(of_copy, stream); };
    const auto lattice = [&](bool posteriors) { problem.LatticeLosses(posteriors, stream); };
    const auto backward = [&](bool in_place) { problem.LogitGradients(in_place, stream); };

    const double arcs = 4.0 * shape.nodes() * problem.num_arcs();
    const Times losses = time("lattice", 2 * arcs, false, [&] { lattice(true); });
    const Times score = time("lattice_score", arcs, false, [&] { lattice(false); });
    std::printf(" %8.1f %8.1f", losses.median, score.median);
    if (shape.goal_lattice > 0) std::printf(" %5.0f", shape.goal_lattice);
    if (shape.set != "lattice") {
      const auto logits = static_cast<double>(problem.num_bytes());
      if (!(shape.goal_lattice > 0)) std::printf("      ");
      print(time("arc_log_probs", logits, false, [&] { forward(false); }), logits);
      // The lattice's last call was for the losses alone; the posteriors are still there.
      print(time("logit_gradients", 2 * logits, false, [&] { backward(false); }), 2 * logits);
      print(time("logit_gradients_in_place", 2 * logits, true, [&] { backward(true); }),
            2 * logits);
      const auto all = [&] {
        forward(true);
        lattice(true);
        backward(true);
      };
      print(time("all_in_place", 3 * logits, true, all), 3 * logits);
      const double goal = is_f32 ? shape.goal_f32 : shape.goal_bf16;
      if (goal > 0) std::printf(" %5.2f", goal);
    }
  } catch (const test::CudaError& e) {
    right = e.error == cudaErrorMemoryAllocation;
    std::printf(" %s", right ? "OOM" : e.what());
  } catch (const std::runtime_error& e) {
    std::printf(" FAILED: %s", e.what());
    right = false;
  }
  std::printf("\n");
  std::fflush(stdout);
  return right;
}

template <typename L>
void RunOnce(const Shape& shape, const Transducer& transducer, cudaStream_t stream) {
  Problem<L> problem(shape, transducer);
  problem.ArcLogProbs(/*of_copy=*/false, stream);
  problem.LatticeLosses(/*with_posteriors=*/true, stream);
  problem.LatticeLosses(/*with_posteriors=*/false, stream);
  problem.LogitGradients(/*in_place=*/false, stream);
  Check(cudaStreamSynchronize(stream), "run");
}

int Main(int argc, char** argv) {
  int repeats = 25;
  const char *csv = nullptr, *path = nullptr;
  bool profile = false;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--profile") {
      profile = true;
    } else if (argument == "--repeats" && i + 1 < argc) {
      repeats = std::max(1, std::atoi(argv[++i]));
    } else if (argument == "--csv" && i + 1 < argc) {
      csv = argv[++i];
    } else {
      path = argv[i];
    }
  }
  if (!path) throw std::runtime_error("usage: kernels [--repeats N] [--csv FILE] SHAPES.csv");
  const std::vector<Shape> shapes = ReadShapes(path);
  Stopwatch stopwatch(repeats);
  if (profile) {
    const auto of_tdt = [](const Shape& shape) { return shape.transducers == "TDT"; };
    for (const Shape& shape :
         {shapes.front(), *std::find_if(shapes.begin(), shapes.end(), of_tdt)}) {
      const Transducer transducer = TransducersOf(shape).front();
      RunOnce<float>(shape, transducer, stopwatch.stream());
      RunOnce<BFloat16>(shape, transducer, stopwatch.stream());
    }
    return 0;
  }
  const double bandwidth = CopyBandwidth(stopwatch);
  Report report(csv, bandwidth);
  std::printf("Kernels, medians of %d, L2 flushed. Copy within the device: %.2f TB/s.\n", repeats,
              bandwidth * 1e-12);
  std::printf("ms, x: times the floor at that bandwidth. lattice, score: us. Goals: of an H200.\n");
  std::printf("%-31s %8s %8s %5s %8s %4s %8s %4s %8s %4s %8s %4s %5s\n", " B,   T,  U,   V",
              "lattice", "score", "goal", "arcs", "x", "gradient", "x", "in place", "x", "all", "x",
              "goal");
  bool right = true;
  for (const Shape& shape : shapes) {
    for (const Transducer& transducer : TransducersOf(shape)) {
      right &= Measure<float>(shape, transducer, stopwatch, report);
      if (shape.dtypes.find("bf16") == std::string::npos) continue;
      right &= Measure<BFloat16>(shape, transducer, stopwatch, report);
    }
  }
  return right ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return Main(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "kernels: %s\n", e.what());
    return 2;
  }
}
