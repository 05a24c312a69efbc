// Rows of scores, kRows at a time: what is one number a row then fills registers.
#pragma once

#include <cstdint>

#include "cpu/loops.h"
#include "lattice/emission.h"

namespace mbrnnt::cpu {

// What the arcs read of a head, each class once.
struct Reads {
  int size = 0;
  int arcs[kMaxArcs];    // the first arc that reads it
  int of_arc[kMaxArcs];  // which one an arc reads; -1: none

  Reads(const Emission& emission, int h) {
    const int32_t* classes = emission.classes[h];
    for (int a = 0; a < emission.num_arcs; ++a) {
      of_arc[a] = -1;
      if (classes[a] == kNothing) continue;
      for (int i = 0; i < size; ++i) {
        if (classes[arcs[i]] == classes[a]) of_arc[a] = i;
      }
      if (of_arc[a] >= 0) continue;
      of_arc[a] = size;
      arcs[size++] = a;
    }
  }
};

// A head behind the first of so few classes has them in columns.
inline bool HasFew(const Emission& emission, int h) { return h > 0 && emission.sizes[h] <= kRows; }

// columns[c][r] = rows[r][c]
template <typename L>
void ReadColumns(const L* rows, int64_t row_size, int num_rows, int64_t num_columns,
                 Column<Real<L>>* columns) {
  for (int r = 0; r < num_rows; ++r) {
    for (int64_t c = 0; c < num_columns; ++c) columns[c][r] = ToReal(rows[r * row_size + c]);
  }
}
// rows[r][c] = columns[c][r]
template <typename L>
void WriteColumns(const Column<Real<L>>* columns, int num_rows, int64_t num_columns, L* rows,
                  int64_t row_size) {
  for (int r = 0; r < num_rows; ++r) {
    for (int64_t c = 0; c < num_columns; ++c) rows[r * row_size + c] = FromReal<L>(columns[c][r]);
  }
}

}  // namespace mbrnnt::cpu
