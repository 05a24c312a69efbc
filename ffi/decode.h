// XLA's buffers and attributes -> the lattice's stages. Shared by the CPU's and
// the GPU's handlers, which add only their execution context.
//
// Python has checked shapes and types before; what is checked here guards the
// pointers against any other caller of the registered targets.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "lattice/stages.h"
#include "xla/ffi/api/ffi.h"

namespace mbrnnt {

namespace ffi = xla::ffi;

using Dims = std::vector<int64_t>;

inline int64_t Product(const Dims& dims) {
  int64_t product = 1;
  for (int64_t d : dims) product *= d;
  return product;
}

inline std::string ToString(const Dims& dims) {
  std::string text = "[";
  for (size_t i = 0; i < dims.size(); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

// Collects the first fault among a handler's operands.
class Checker {
 public:
  void Expect(const char* operand, ffi::AnyBuffer buffer, ffi::DataType dtype, const Dims& dims) {
    const Dims got(buffer.dimensions().begin(), buffer.dimensions().end());
    if (got != dims) {
      Fail(std::string(operand) + ": expected shape " + ToString(dims) + ", got " + ToString(got));
    }
    if (buffer.element_type() != dtype) {
      Fail(std::string(operand) + ": expected XLA data type " +
           std::to_string(static_cast<int>(dtype)) + ", got " +
           std::to_string(static_cast<int>(buffer.element_type())));
    }
  }
  void Require(bool condition, const char* message) {
    if (!condition) Fail(message);
  }
  bool ok() const { return fault_.empty(); }
  ffi::Error error() const { return ffi::Error::InvalidArgument("jax_mbrnnt: " + fault_); }

 private:
  void Fail(std::string fault) {
    if (fault_.empty()) fault_ = std::move(fault);
  }
  std::string fault_;
};

template <typename L>
struct Tag {
  using type = L;
};

template <typename Body>
ffi::Error SwitchReal(ffi::DataType dtype, Body&& body) {
  switch (dtype) {
    case ffi::DataType::F32:
      return body(Tag<float>());
    case ffi::DataType::F64:
      return body(Tag<double>());
    default:
      return ffi::Error::InvalidArgument("jax_mbrnnt: expected float32 or float64");
  }
}

template <typename Body>
ffi::Error SwitchLogits(ffi::DataType dtype, Body&& body) {
  switch (dtype) {
    case ffi::DataType::BF16:
      return body(Tag<BFloat16>());
    case ffi::DataType::F16:
      return body(Tag<Float16>());
    default:
      return SwitchReal(dtype, body);
  }
}

template <typename T>
constexpr ffi::DataType RealDataType() {
  return sizeof(T) == 8 ? ffi::DataType::F64 : ffi::DataType::F32;
}

template <typename T>
T* Data(ffi::AnyBuffer buffer) {
  return static_cast<T*>(buffer.untyped_data());
}

// The dimensions that all of a stage's buffers share, read off its first operand
// [batch_dims..., T, U+1, last].
struct Block {
  Dims batch_dims;
  int64_t frames = 0, columns = 0, last = 0;

  static Block Of(ffi::AnyBuffer buffer, Checker& check) {
    const auto dims = buffer.dimensions();
    Block block;
    check.Require(dims.size() >= 3, "the first operand needs the axes T, U+1 and one more");
    if (!check.ok()) return block;
    block.batch_dims.assign(dims.begin(), dims.end() - 3);
    block.frames = dims[dims.size() - 3];
    block.columns = dims[dims.size() - 2];
    block.last = dims[dims.size() - 1];
    check.Require(block.columns >= 1, "the axis U+1 of the first operand is empty");
    return block;
  }
  Dims With(const Dims& core) const {
    Dims dims = batch_dims;
    dims.insert(dims.end(), core.begin(), core.end());
    return dims;
  }
  Dims Nodes(int64_t last_axis) const { return With({frames, columns, last_axis}); }
  Batch WithLengths(ffi::AnyBuffer logit_lengths, ffi::AnyBuffer label_lengths,
                    Checker& check) const {
    check.Expect("logit_lengths", logit_lengths, ffi::DataType::S32, batch_dims);
    check.Expect("label_lengths", label_lengths, ffi::DataType::S32, batch_dims);
    return {Product(batch_dims), frames, columns, Data<const int32_t>(logit_lengths),
            Data<const int32_t>(label_lengths)};
  }
};

// `classes` holds, head after head, what each arc reads of it.
inline Emission DecodeEmission(ffi::Span<const int64_t> sizes, ffi::Span<const int32_t> classes,
                               int64_t row_size, Checker& check) {
  Emission emission{};
  check.Require(sizes.size() >= 1 && sizes.size() <= kMaxHeads, "number of heads out of range");
  if (!check.ok()) return emission;
  emission.num_heads = static_cast<int32_t>(sizes.size());
  const size_t num_arcs = classes.size() / sizes.size();
  check.Require(num_arcs >= 1 && num_arcs <= kMaxArcs && num_arcs * sizes.size() == classes.size(),
                "number of arcs out of range");
  check.Require(row_size < int64_t{1} << 31, "more classes than a label can name");
  if (!check.ok()) return emission;
  emission.num_arcs = static_cast<int32_t>(num_arcs);
  for (int h = 0; h < emission.num_heads; ++h) {
    emission.sizes[h] = sizes.begin()[h];
    check.Require(emission.sizes[h] >= 1, "a head without classes");
    for (size_t a = 0; a < num_arcs; ++a) {
      const int32_t v = classes.begin()[h * num_arcs + a];
      check.Require(
          v == kNothing || (v == kNextLabel && h == 0) || (v >= 0 && v < emission.sizes[h]),
          "an arc reads a class outside of its head");
      emission.classes[h][a] = v;
    }
  }
  check.Require(emission.RowSize() == row_size, "logits: the heads do not make up the last axis");
  return emission;
}

inline ArcTable DecodeArcTable(ffi::Span<const int32_t> durations, ffi::Span<const int32_t> emits,
                               Checker& check) {
  ArcTable table{};
  check.Require(
      durations.size() >= 1 && durations.size() <= kMaxArcs && durations.size() == emits.size(),
      "number of arcs out of range");
  if (!check.ok()) return table;
  for (size_t a = 0; a < durations.size(); ++a) {
    const int32_t duration = durations.begin()[a], emitted = emits.begin()[a];
    check.Require(duration >= 0 && (emitted == 1 || (emitted == 0 && duration >= 1)),
                  "an arc must emit or have a duration");
    table.arcs[table.size++] = {duration, emitted};
  }
  return table;
}

// ---- arc_log_probs -----------------------------------------------------------

template <typename Binding>
auto BindArcLogProbs(Binding binding) {
  return std::move(binding)
      .template Arg<ffi::AnyBuffer>()  // logits
      .template Arg<ffi::AnyBuffer>()  // labels
      .template Arg<ffi::AnyBuffer>()  // logit_lengths
      .template Arg<ffi::AnyBuffer>()  // label_lengths
      .template Arg<ffi::AnyBuffer>()  // sigmas
      .template Ret<ffi::AnyBuffer>()  // arc_log_probs
      .template Ret<ffi::AnyBuffer>()  // log_normalizers
      .template Attr<ffi::Span<const int64_t>>("head_sizes")
      .template Attr<ffi::Span<const int32_t>>("classes");
}

template <typename Run>
ffi::Error DecodeArcLogProbs(ffi::AnyBuffer logits, ffi::AnyBuffer labels,
                             ffi::AnyBuffer logit_lengths, ffi::AnyBuffer label_lengths,
                             ffi::AnyBuffer sigmas, ffi::Result<ffi::AnyBuffer> arc_log_probs,
                             ffi::Result<ffi::AnyBuffer> log_normalizers,
                             ffi::Span<const int64_t> head_sizes, ffi::Span<const int32_t> classes,
                             Run&& run) {
  return SwitchLogits(logits.element_type(), [&](auto tag) {
    using L = typename decltype(tag)::type;
    using T = Real<L>;
    Checker check;
    const Block block = Block::Of(logits, check);
    const Batch batch = block.WithLengths(logit_lengths, label_lengths, check);
    const Emission emission = DecodeEmission(head_sizes, classes, block.last, check);
    check.Expect("labels", labels, ffi::DataType::S32, block.With({block.columns - 1}));
    check.Expect("sigmas", sigmas, RealDataType<T>(), block.batch_dims);
    check.Expect("arc_log_probs", *arc_log_probs, RealDataType<T>(),
                 block.Nodes(emission.num_arcs));
    check.Expect("log_normalizers", *log_normalizers, RealDataType<T>(),
                 block.Nodes(2 * emission.num_heads));
    if (!check.ok()) return check.error();
    return run(ArcLogProbsStage<L>{
        batch, emission, Data<const L>(logits), Data<const int32_t>(labels), Data<const T>(sigmas),
        Data<T>(*arc_log_probs), Data<LogNormalizer<T>>(*log_normalizers)});
  });
}

// ---- lattice and lattice_score -------------------------------------------------

template <typename Binding>
auto BindLattice(Binding binding) {
  return std::move(binding)
      .template Arg<ffi::AnyBuffer>()  // arc_log_probs
      .template Arg<ffi::AnyBuffer>()  // logit_lengths
      .template Arg<ffi::AnyBuffer>()  // label_lengths
      .template Ret<ffi::AnyBuffer>()  // losses
      .RemainingRets()                 // [posteriors,] workspace
      .template Attr<ffi::Span<const int32_t>>("durations")
      .template Attr<ffi::Span<const int32_t>>("emits");
}

template <typename Room, typename Run>
ffi::Error DecodeLattice(ffi::AnyBuffer arc_log_probs, ffi::AnyBuffer logit_lengths,
                         ffi::AnyBuffer label_lengths, ffi::Result<ffi::AnyBuffer> losses,
                         ffi::RemainingRets rest, ffi::Span<const int32_t> durations,
                         ffi::Span<const int32_t> emits, Run&& run) {
  return SwitchReal(arc_log_probs.element_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    Checker check;
    const Block block = Block::Of(arc_log_probs, check);
    const Batch batch = block.WithLengths(logit_lengths, label_lengths, check);
    const ArcTable table = DecodeArcTable(durations, emits, check);
    check.Require(block.last == table.size, "arc_log_probs: last axis is not the number of arcs");
    check.Expect("losses", *losses, RealDataType<T>(), block.batch_dims);
    check.Require(rest.size() == 1 || rest.size() == 2,
                  "expected results losses, [posteriors,] workspace");
    if (!check.ok()) return check.error();

    const bool with_posteriors = rest.size() == 2;
    const ffi::AnyBuffer workspace = **rest.get<ffi::AnyBuffer>(rest.size() - 1);
    const int64_t numbers = Room::Workspace::NumbersPerUtterance(block.frames, block.columns,
                                                                 table.size, with_posteriors);
    check.Expect("workspace", workspace, RealDataType<T>(), block.With({numbers}));
    T* posteriors = nullptr;
    if (with_posteriors) {
      const ffi::AnyBuffer buffer = **rest.get<ffi::AnyBuffer>(0);
      check.Expect("posteriors", buffer, RealDataType<T>(), block.Nodes(table.size));
      posteriors = Data<T>(buffer);
    }
    if (!check.ok()) return check.error();
    LatticeStage<T> stage{batch, table, Data<const T>(arc_log_probs), Data<T>(*losses), posteriors};
    Room::Workspace::Place(Data<T>(workspace), stage);
    return run(stage);
  });
}

// ---- lattice_alignment ----------------------------------------------------------

template <typename Binding>
auto BindAlignment(Binding binding) {
  return std::move(binding)
      .template Arg<ffi::AnyBuffer>()  // arc_log_probs
      .template Arg<ffi::AnyBuffer>()  // logit_lengths
      .template Arg<ffi::AnyBuffer>()  // label_lengths
      .template Ret<ffi::AnyBuffer>()  // frames
      .template Ret<ffi::AnyBuffer>()  // durations
      .template Ret<ffi::AnyBuffer>()  // label_log_probs
      .template Ret<ffi::AnyBuffer>()  // arcs
      .template Ret<ffi::AnyBuffer>()  // log_probs
      .template Ret<ffi::AnyBuffer>()  // betas
      .template Attr<ffi::Span<const int32_t>>("durations")
      .template Attr<ffi::Span<const int32_t>>("emits");
}

template <typename Run>
ffi::Error DecodeAlignment(ffi::AnyBuffer arc_log_probs, ffi::AnyBuffer logit_lengths,
                           ffi::AnyBuffer label_lengths, ffi::Result<ffi::AnyBuffer> frames,
                           ffi::Result<ffi::AnyBuffer> durations,
                           ffi::Result<ffi::AnyBuffer> label_log_probs,
                           ffi::Result<ffi::AnyBuffer> arcs, ffi::Result<ffi::AnyBuffer> log_probs,
                           ffi::Result<ffi::AnyBuffer> betas,
                           ffi::Span<const int32_t> arc_durations, ffi::Span<const int32_t> emits,
                           Run&& run) {
  return SwitchReal(arc_log_probs.element_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    Checker check;
    const Block block = Block::Of(arc_log_probs, check);
    const Batch batch = block.WithLengths(logit_lengths, label_lengths, check);
    const ArcTable table = DecodeArcTable(arc_durations, emits, check);
    check.Require(block.last == table.size, "arc_log_probs: last axis is not the number of arcs");
    const Dims labels = block.With({block.columns - 1});
    check.Expect("frames", *frames, ffi::DataType::S32, labels);
    check.Expect("durations", *durations, ffi::DataType::S32, labels);
    check.Expect("label_log_probs", *label_log_probs, RealDataType<T>(), labels);
    check.Expect("log_probs", *log_probs, RealDataType<T>(), block.batch_dims);
    check.Expect("betas", *betas, ffi::DataType::F64, block.With({block.frames * block.columns}));
    AlignmentStage<T> stage{batch,
                            table,
                            Data<const T>(arc_log_probs),
                            Data<int32_t>(*frames),
                            Data<int32_t>(*durations),
                            Data<T>(*label_log_probs),
                            Data<int32_t>(*arcs),
                            Data<T>(*log_probs),
                            Data<Best>(*betas)};
    check.Expect("arcs", *arcs, ffi::DataType::S32, block.With({stage.MaxArcs()}));
    return check.ok() ? run(stage) : check.error();
  });
}

// ---- logit_gradients -----------------------------------------------------------

template <typename Binding>
auto BindLogitGradients(Binding binding) {
  return std::move(binding)
      .template Arg<ffi::AnyBuffer>()  // logits
      .template Arg<ffi::AnyBuffer>()  // labels
      .template Arg<ffi::AnyBuffer>()  // logit_lengths
      .template Arg<ffi::AnyBuffer>()  // label_lengths
      .template Arg<ffi::AnyBuffer>()  // log_normalizers
      .template Arg<ffi::AnyBuffer>()  // posteriors
      .template Arg<ffi::AnyBuffer>()  // label_weights
      .template Arg<ffi::AnyBuffer>()  // clamps
      .template Arg<ffi::AnyBuffer>()  // cotangents
      .template Ret<ffi::AnyBuffer>()  // logit_gradients
      .template Attr<ffi::Span<const int64_t>>("head_sizes")
      .template Attr<ffi::Span<const int32_t>>("classes")
      .template Attr<bool>("clamped");
}

template <typename Run>
ffi::Error DecodeLogitGradients(ffi::AnyBuffer logits, ffi::AnyBuffer labels,
                                ffi::AnyBuffer logit_lengths, ffi::AnyBuffer label_lengths,
                                ffi::AnyBuffer log_normalizers, ffi::AnyBuffer posteriors,
                                ffi::AnyBuffer label_weights, ffi::AnyBuffer clamps,
                                ffi::AnyBuffer cotangents,
                                ffi::Result<ffi::AnyBuffer> logit_gradients,
                                ffi::Span<const int64_t> head_sizes,
                                ffi::Span<const int32_t> classes, bool clamped, Run&& run) {
  return SwitchLogits(logits.element_type(), [&](auto tag) {
    using L = typename decltype(tag)::type;
    using T = Real<L>;
    Checker check;
    const Block block = Block::Of(logits, check);
    const Batch batch = block.WithLengths(logit_lengths, label_lengths, check);
    const Emission emission = DecodeEmission(head_sizes, classes, block.last, check);
    check.Expect("labels", labels, ffi::DataType::S32, block.With({block.columns - 1}));
    check.Expect("log_normalizers", log_normalizers, RealDataType<T>(),
                 block.Nodes(2 * emission.num_heads));
    check.Expect("posteriors", posteriors, RealDataType<T>(), block.Nodes(emission.num_arcs));
    check.Expect("label_weights", label_weights, RealDataType<T>(), block.batch_dims);
    check.Expect("clamps", clamps, RealDataType<T>(), block.batch_dims);
    check.Expect("cotangents", cotangents, RealDataType<T>(), block.batch_dims);
    check.Expect("logit_gradients", *logit_gradients, logits.element_type(),
                 block.Nodes(block.last));
    if (!check.ok()) return check.error();
    return run(LogitGradientsStage<L>{
        batch, emission, clamped, Data<const L>(logits), Data<const int32_t>(labels),
        Data<const LogNormalizer<T>>(log_normalizers), Data<const T>(posteriors),
        Data<const T>(label_weights), Data<const T>(clamps), Data<const T>(cotangents),
        Data<L>(*logit_gradients)});
  });
}

}  // namespace mbrnnt
