// What must hold of the most probable paths that a room finds, of a batch in any condition.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "lattice/stages.h"
#include "tests/native/expect.h"

namespace mbrnnt::test {

// Results of the stage, on the host. `device` is the batch, and the arcs, where the room's kernels
// see them.
template <typename Room, typename T>
struct Paths {
  ArcTable table;
  Batch host;
  std::vector<int32_t> frames, durations, arcs;
  std::vector<T> label_log_probs, log_probs;

  Paths(const Batch& host, const Batch& device, const ArcTable& table,
        const T* device_arc_log_probs)
      : table(table), host(host) {
    const int64_t labels = host.size * (host.columns - 1);
    typename Room::template Buffer<int32_t> room_frames(labels), room_durations(labels),
        room_arcs(host.size * (host.max_frames + host.columns - 1));
    typename Room::template Buffer<T> room_label_log_probs(labels), room_log_probs(host.size);
    typename Room::template Buffer<Best> betas(host.size * host.NodesPerUtterance());
    Room::Run(AlignmentStage<T>{device, table, device_arc_log_probs, room_frames.data(),
                                room_durations.data(), room_label_log_probs.data(),
                                room_arcs.data(), room_log_probs.data(), betas.data()});
    frames = room_frames.Fetch();
    durations = room_durations.Fetch();
    arcs = room_arcs.Fetch();
    label_log_probs = room_label_log_probs.Fetch();
    log_probs = room_log_probs.Fetch();
  }

  // Utterance b, by a recursion of the test's own, in which an arc weighs `arc_log_probs`.
  void Check(int64_t b, const T* arc_log_probs) const {
    const Extent extent = host.ExtentOf(b);
    const int64_t columns = host.columns, num_frames = extent.frames, num_labels = extent.labels;
    std::vector<double> betas((num_frames + 1) * columns, -INFINITY);
    bool poisoned = !extent.valid;
    if (extent.valid) betas[num_frames * columns + num_labels] = 0;
    const auto arc_beta = [&](int64_t t, int64_t u, int a) {
      const Arc arc = table.arcs[a];
      const int64_t to_t = t + arc.duration, to_u = u + arc.emits;
      const bool is_there = to_u <= num_labels && to_t <= num_frames &&
                            (to_t < num_frames || (!arc.emits && u == num_labels));
      if (!is_there) return -double{INFINITY};
      const T weight = arc_log_probs[(t * columns + u) * table.size + a];
      poisoned |= !(weight < T(INFINITY));
      return weight + betas[to_t * columns + to_u];
    };
    for (int64_t t = num_frames - 1; t >= 0; --t) {
      for (int64_t u = num_labels; u >= 0; --u) {
        double most = -INFINITY;
        for (int a = 0; a < table.size; ++a) most = std::fmax(most, arc_beta(t, u, a));
        betas[t * columns + u] = most;
      }
    }

    const T log_prob = log_probs[b];
    EXPECT(std::isnan(log_prob) == poisoned);
    if (!poisoned) EXPECT(log_prob == static_cast<T>(betas[0]));
    const int32_t* path = arcs.data() + b * (host.max_frames + columns - 1);
    const int32_t* const end = path + host.max_frames + columns - 1;
    const int64_t label = b * (columns - 1);
    int64_t t = 0, u = 0;
    while (!poisoned && log_prob > -T(INFINITY) && t < num_frames) {
      int first = 0;
      while (arc_beta(t, u, first) < betas[t * columns + u]) ++first;
      EXPECT(path < end && *path == first);
      const Arc arc = table.arcs[first];
      if (arc.emits) {
        EXPECT(frames[label + u] == t && durations[label + u] == arc.duration);
        EXPECT(label_log_probs[label + u] == arc_log_probs[(t * columns + u) * table.size + first]);
      }
      t += arc.duration;
      u += arc.emits;
      ++path;
    }
    for (; path < end; ++path) EXPECT(*path == -1);
    for (; u < columns - 1; ++u) {
      EXPECT(frames[label + u] == -1 && durations[label + u] == -1);
      EXPECT(label_log_probs[label + u] == 0);
    }
  }
};

}  // namespace mbrnnt::test
