// What a node's arcs read of its row, and what their posteriors count for.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lattice/emission.h"
#include "lattice/stages.h"

namespace mbrnnt::cpu {

// What the arcs read of a head, each class once; of a head behind the first that has few, all.
struct HeadReads {
  static constexpr int kFew = 16;

  bool all;
  int size = 0;
  int32_t classes[kMaxArcs];
  int of_arc[kMaxArcs];  // which of them an arc reads, or -1
  int label_arc = -1;    // one that reads the next label
  bool is_read = false;  // by any arc

  HeadReads(const Emission& emission, int h) : all(h > 0 && emission.sizes[h] <= kFew) {
    for (; all && size < emission.sizes[h]; ++size) classes[size] = size;
    for (int a = 0; a < emission.num_arcs; ++a) {
      const int32_t v = emission.classes[h][a];
      of_arc[a] = -1;
      if (v == kNothing) continue;
      is_read = true;
      if (v == kNextLabel) label_arc = a;
      of_arc[a] = static_cast<int>(std::find(classes, classes + size, v) - classes);
      if (of_arc[a] == size) classes[size++] = v;
    }
  }

  // What kNextLabel stands for in a column, as Emission::TokenAt has it.
  int64_t LabelAt(const Emission& emission, const int32_t* labels, int64_t u,
                  int64_t num_labels) const {
    return label_arc < 0 ? kNothing : emission.TokenAt(label_arc, labels, u, num_labels);
  }
  int64_t ClassAt(int i, int64_t label) const {
    return classes[i] == kNextLabel ? label : classes[i];
  }
};

struct Reads {
  HeadReads heads[kMaxHeads];

  explicit Reads(const Emission& emission)
      : heads{{emission, 0}, {emission, emission.num_heads - 1}} {}
};

// An utterance's weighed posteriors are summed, in each head, for every class that is read and for
// all of them: the sums are the posteriors of a node times this matrix.
template <typename T>
struct Shares {
  static constexpr int kMaxSize = 80;  // whole registers
  static_assert(kMaxSize >= kMaxHeads * (kMaxArcs + 1));

  int size = 0;
  int begin[kMaxHeads];  // of a head's sums, the occupancy's behind those of its classes
  alignas(64) T weights[kMaxArcs][kMaxSize];

  // The last head's sums come first, and so are side by side in a register.
  template <typename L>
  Shares(const LogitGradientsStage<L>& s, const Reads& reads, int64_t b) {
    const Emission& emission = s.emission;
    for (int a = 0; a < emission.num_arcs; ++a) std::fill_n(weights[a], kMaxSize, T(0));
    for (int h = emission.num_heads - 1; h >= 0; --h) {
      const HeadReads& head = reads.heads[h];
      begin[h] = size;
      size += head.size + 1;
      for (int a = 0; a < emission.num_arcs; ++a) {
        const int i = head.of_arc[a];
        if (i < 0) continue;
        const T weight = s.RuleOf(b, h).Weigh(T(1), emission.IsLabel(a));
        weights[a][begin[h] + i] = weights[a][begin[h] + head.size] = weight;
      }
    }
  }
};

}  // namespace mbrnnt::cpu
