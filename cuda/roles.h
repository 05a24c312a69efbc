// What each lane of a group does at a row's gradient: of which arc it has the posterior, and for
// which class it computes what the arcs make of it. Decided before the launch.
#pragma once

#include <cstdint>

#include "cuda/device.h"
#include "lattice/emission.h"

namespace mbrnnt::cuda {

// With one head, lane a has arc a, and the class that it reads.
//
// The arcs of a TDT read a class of both heads, no two of them the same two, and of the first head
// the next label or the one class of the blanks. Such arcs are laid out in halves, each of which
// has a lane for every class of the second head: the label arcs in the lower half, the blanks in
// the upper one. Then the arcs of a class are the lanes of a half, for the first head, or two
// lanes, for the second. The classes are laid out such that the lower half computes with what is
// the first head's, and the upper half with what is the second's.
//
// Of other arcs of two heads nothing is said.
struct Roles {
  bool shared = false;     // one head: some arcs read the same class in all columns
  bool in_halves = false;  // two heads
  int8_t arcs[kWarp];      // -1: none, or one that reads nothing
  int32_t classes[kWarp];  // by its number in the row; kNextLabel; kNothing

  Roles() {
    for (int8_t& arc : arcs) arc = -1;
    for (int32_t& v : classes) v = kNothing;
  }
  static Roles Of(const Emission& emission, int lanes) {
    return emission.num_heads == 1 ? OfOneHead(emission) : InHalves(emission, lanes / 2);
  }

 private:
  static Roles OfOneHead(const Emission& emission) {
    Roles roles;
    for (int a = 0; a < emission.num_arcs; ++a) {
      const int32_t v = emission.classes[0][a];
      if (v == kNothing) continue;
      for (int other = 0; other < a; ++other) roles.shared |= roles.classes[other] == v;
      roles.arcs[a] = static_cast<int8_t>(a);
      roles.classes[a] = v;
    }
    return roles;
  }
  static Roles InHalves(const Emission& emission, int half) {
    if (emission.sizes[1] > half) return Roles();
    Roles roles;
    roles.in_halves = true;
    roles.classes[0] = kNextLabel;
    int32_t& blank = roles.classes[1];
    for (int a = 0; a < emission.num_arcs; ++a) {
      const int32_t first = emission.classes[0][a], second = emission.classes[1][a];
      if (first == kNothing || second == kNothing) return Roles();
      if (first != kNextLabel) {
        if (blank != kNothing && blank != first) return Roles();
        blank = first;
      }
      int8_t& arc = roles.arcs[(first == kNextLabel ? 0 : half) + second];
      if (arc >= 0) return Roles();
      arc = static_cast<int8_t>(a);
    }
    for (int v = 0; v < emission.sizes[1]; ++v) {
      roles.classes[half + v] = static_cast<int32_t>(emission.sizes[0]) + v;
    }
    return roles;
  }
};

}  // namespace mbrnnt::cuda
