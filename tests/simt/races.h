// The race detector: do two threads touch a byte, one of them writing it, with nothing in between
// that orders them?
//
// Kernels are compiled with -fsanitize=thread: the compiler calls a __tsan_ function before every
// load and store. Those functions are ours (tsan.cc); ThreadSanitizer's library is not linked. For
// every byte of shared and of global memory we keep who has touched it, and hold each access
// against the earlier ones. What is compared is not the order in which the fibers happened to run,
// but what the kernel has asked for:
//
//   - __syncthreads orders all threads of the block (those that have exited have arrived);
//   - __syncwarp orders the lanes of its mask, one after another as often as it is called;
//   - the end of a kernel orders everything: launches are on one stream.
//
// Shuffles, votes and reductions order no memory, nor do fences alone. Two blocks of a launch are
// never ordered. Atomic accesses (simt.h) and those to `volatile` objects do not race with each
// other, but with plain ones they do; they order nothing else, for they are relaxed.
//
// Lanes of a warp may write one place by one instruction, as CUDA's programming guide has it: one
// of them is the last. Which is not said, and so they all have to write the same value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "simt.h"
#include "stack.h"

namespace simt {

enum class Touch : uint8_t { kRead, kAtomicRead, kAtomicWrite, kWrite };

// A launch's memory, seen by the OS thread that runs it.
class Races {
 public:
  Races();

  void StartLaunch();
  void StartBlock(size_t threads);
  void SyncBlock() { now_ = ++stamp_; }
  void SyncWarp(int first_thread, unsigned mask);
  void Resume(int thread, const Stack& stack);

  // The running thread touches memory at `pc`, the address that a call from there returns to.
  void Note(const void* at, size_t size, Touch how, const void* pc);
  // An asynchronous copy: until the wait for it, nobody may touch what is written, and nobody may
  // write what is read.
  void StartCopy(const void* to, size_t size, const void* from, size_t from_size, const void* pc);
  void FinishCopy(const void* to, size_t size, const void* from, size_t from_size, const void* pc);
  // Has what the running thread wrote last changed what another lane had written with it?
  void CheckRepeated() {
    if (!repeated_.empty()) CompareRepeated();
  }

 private:
  // An access, or the same one by several lanes of a warp. Stamps grow with every launch, block and
  // barrier of a block; a lane's clock with every barrier of its warp.
  struct Event {
    uint32_t stamp;
    int32_t pc;
    uint32_t clock;
    uint32_t lanes;
    uint8_t warp;
    Touch how;
    enum : uint8_t { kPlain, kCopyStarts, kCopyEnds } kind;

    bool IsSameOfOtherLanes(const Event& e) const {
      return stamp == e.stamp && pc == e.pc && clock == e.clock && warp == e.warp && how == e.how;
    }
  };

  // Of four bytes that have always been touched together, or of one. What is ordered before the
  // last write has been forgotten: an access that races with it races with the write, too.
  struct Cell {
    Event write;
    Event other;     // since the last write: a read, or an atomic access
    uint32_t more;   // others: 1 + their index in `lists_`, or 0
    uint32_t bytes;  // 1 + the index in `bytes_` where the four have been touched apart, or 0
  };
  static constexpr size_t kWord = 4, kPage = 4096;
  struct Page {
    Cell cells[kPage / kWord];
  };
  struct Bytes {
    Cell cells[kWord];
  };
  // A write of what another lane has just written: the value is known when it is done.
  struct Repeated {
    uintptr_t address;
    size_t size;
    unsigned char value[kWord];
    Event before, event;
  };
  // Where many of a kind come and go.
  template <typename T>
  struct Store {
    std::deque<T> all;
    std::vector<uint32_t> unused;

    uint32_t Take();
    void GiveBack(uint32_t& index);
    T& operator[](uint32_t index) { return all[index - 1]; }
  };

  void NoteEvent(const void* at, size_t size, const Event& event);
  Event Now(Touch how, const void* pc) const;
  Page& PageOf(uintptr_t address);
  Page& FindPage(uintptr_t number);
  void TouchWord(Cell& cell, uintptr_t address, size_t size, const Event& event, uint32_t since);
  void TouchBytes(Cell& cell, uintptr_t address, size_t size, const Event& event, uint32_t since);
  void TouchCell(Cell& cell, uintptr_t address, size_t size, const Event& event, uint32_t since);
  bool Repeats(const Cell& cell, uintptr_t address, size_t size, const Event& event);
  void CompareRepeated();
  void Keep(Cell& cell, const Event& event);
  bool Replaces(Event& before, const Event& event, int& warp) const;
  bool IsOrdered(const Event& before) const;
  uint32_t UnorderedLanes(const Event& of_own_warp) const;
  void Compare(const Event& before, const Event& event, uintptr_t address) const;
  [[noreturn]] void Report(const Event& before, const Event& event, uintptr_t address) const;

  int warp() const { return thread_ / kWarpSize; }
  const uint32_t* known() const { return &known_[thread_ * kWarpSize]; }

  // Addresses of this OS thread's `__shared__` variables, and of the running thread's own stack.
  uintptr_t shared_begin_ = 0, shared_size_ = 0;
  uintptr_t stack_begin_ = 0, stack_size_ = 0;

  uint32_t stamp_ = 0;                  // the largest one that has been given
  uint32_t launch_ = 0, block_ = 0;     // stamps of their beginnings
  uint32_t now_ = 0;                    // since the last barrier of the block
  std::vector<uint3> blocks_;           // of this launch,
  std::vector<uint32_t> block_stamps_;  // and when they began
  int thread_ = 0;                      // the running one
  std::vector<uint32_t> known_;         // [thread, lane]: the clock of the warp's lane up to
                                        // which everything is before the thread
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  struct Recent {
    uintptr_t number;
    Page* page;
  };
  Recent recent_[256] = {};
  std::vector<Repeated> repeated_;
  Store<Bytes> bytes_;
  Store<std::vector<Event>> lists_;
};

// Is some kernel compiled with -fsanitize=thread?
bool LooksForRaces();

// This OS thread's, while it runs a kernel of that kind.
extern __thread Races* races;

// "file:line" of the call that returns to `pc`; where it was inlined, of the calls around it, too.
// An address where there is no debug information or no addr2line to read it.
std::vector<std::string> PlacesOf(const void* pc);

}  // namespace simt
