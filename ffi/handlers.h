// The stages as XLA FFI handlers, for any room. A room says what XLA hands it and how
// it carries a stage out:
//
//   struct Room {
//     static auto Bind();  // the handlers' first argument, from XLA, and when they are called
//     static constexpr std::initializer_list<ffi::Traits> kTraits;
//     using Workspace = ...;  // the lattice's: its size, and where in it everything stands
//     static ffi::Error Run(Context, const ArcLogProbsStage<L>&);  // for every stage
//   };
#pragma once

#include <array>
#include <initializer_list>

#include "ffi/decode.h"

namespace mbrnnt {

struct NamedHandler {
  const char* stage;
  XLA_FFI_Handler* handler;
};

template <typename Room>
std::array<NamedHandler, 5> Handlers() {
  XLA_FFI_DEFINE_HANDLER(
      arc_log_probs,
      [](auto context, auto... args) {
        return DecodeArcLogProbs(args...,
                                 [&](const auto& stage) { return Room::Run(context, stage); });
      },
      BindArcLogProbs(Room::Bind()), Room::kTraits);
  XLA_FFI_DEFINE_HANDLER(
      lattice,
      [](auto context, auto... args) {
        return DecodeLattice<Room>(args...,
                                   [&](const auto& stage) { return Room::Run(context, stage); });
      },
      BindLattice(Room::Bind()), Room::kTraits);
  XLA_FFI_DEFINE_HANDLER(
      lattice_alignment,
      [](auto context, auto... args) {
        return DecodeAlignment(args...,
                               [&](const auto& stage) { return Room::Run(context, stage); });
      },
      BindAlignment(Room::Bind()), Room::kTraits);
  XLA_FFI_DEFINE_HANDLER(
      logit_gradients,
      [](auto context, auto... args) {
        return DecodeLogitGradients(args...,
                                    [&](const auto& stage) { return Room::Run(context, stage); });
      },
      BindLogitGradients(Room::Bind()), Room::kTraits);
  return {{{"arc_log_probs", arc_log_probs},
           {"lattice", lattice},
           {"lattice_score", lattice},  // the same, told apart by its results
           {"lattice_alignment", lattice_alignment},
           {"logit_gradients", logit_gradients}}};
}

}  // namespace mbrnnt
