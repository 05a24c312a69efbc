#include "races.h"

#include <link.h>

#include <algorithm>
#include <cstring>
#include <string>

namespace simt {
namespace {

// Program counters are kept as distances from here.
const char kOrigin = 0;

bool IsAtomic(Touch how) { return how == Touch::kAtomicRead || how == Touch::kAtomicWrite; }
bool IsWrite(Touch how) { return how == Touch::kWrite || how == Touch::kAtomicWrite; }
bool Conflict(Touch a, Touch b) {
  return (IsWrite(a) || IsWrite(b)) && !(IsAtomic(a) && IsAtomic(b));
}
// Does everything that conflicts with b conflict with a? (Neither is a plain write.)
bool Covers(Touch a, Touch b) { return a == b || b == Touch::kAtomicRead; }

struct Range {
  uintptr_t begin, size;
};

// The module's thread-local variables, of which ours is one: of the calling OS thread.
int FindThreadLocals(dl_phdr_info* info, size_t, void* data) {
  Range& range = *static_cast<Range*>(data);
  const auto begin = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
  for (int i = 0; begin != 0 && i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    if (header.p_type != PT_TLS || range.begin - begin >= header.p_memsz) continue;
    range = {begin, header.p_memsz};
    return 1;
  }
  return 0;
}

template <typename T>
bool IsIn(const T& variable, uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(&variable) < sizeof(T);
}

}  // namespace

__thread Races* races = nullptr;

Races::Races() : known_(kMaxThreads * kWarpSize) {
  Range range = {reinterpret_cast<uintptr_t>(dynamic_shared), kMaxDynamicShared};
  dl_iterate_phdr(FindThreadLocals, &range);
  shared_begin_ = range.begin;
  shared_size_ = range.size;
}

// ---------------------------------------------------------------- What orders

void Races::StartLaunch() {
  constexpr size_t kMostPages = 1024;
  if (pages_.size() > kMostPages || stamp_ > UINT32_MAX / 2) {
    pages_.clear();
    std::fill(std::begin(recent_), std::end(recent_), Recent{});
    bytes_ = {};
    lists_ = {};
    stamp_ = 0;
  }
  launch_ = ++stamp_;
  blocks_.clear();
  block_stamps_.clear();
}

void Races::StartBlock(size_t threads) {
  block_ = now_ = ++stamp_;
  blocks_.push_back(blockIdx);
  block_stamps_.push_back(block_);
  std::fill_n(known_.begin(), threads * kWarpSize, 0);
  for (size_t i = 0; i < threads; ++i) known_[i * kWarpSize + i % kWarpSize] = 1;
}

// Every lane learns what any of them knows. What each does from now on is news to the others.
void Races::SyncWarp(int first_thread, unsigned mask) {
  uint32_t* const of_warp = &known_[first_thread * kWarpSize];
  uint32_t joined[kWarpSize] = {};
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const uint32_t* const known = of_warp + __builtin_ctz(rest) * kWarpSize;
    for (int k = 0; k < kWarpSize; ++k) joined[k] = std::max(joined[k], known[k]);
  }
  for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    uint32_t* const known = of_warp + lane * kWarpSize;
    std::memcpy(known, joined, sizeof(joined));
    ++known[lane];
  }
}

void Races::Resume(int thread, const Stack& stack) {
  thread_ = thread;
  stack_begin_ = reinterpret_cast<uintptr_t>(stack.bottom);
  stack_size_ = stack.size;
}

// Is an access, which is not forgotten, before what the running thread does now?
bool Races::IsOrdered(const Event& before) const {
  if (before.kind == Event::kCopyStarts) return false;
  if (before.stamp != now_) return before.stamp >= block_;  // or by another block
  return before.warp == warp() && UnorderedLanes(before) == 0;
}

uint32_t Races::UnorderedLanes(const Event& of_own_warp) const {
  uint32_t unordered = 0;
  for (unsigned rest = of_own_warp.lanes; rest != 0; rest &= rest - 1) {
    if (known()[__builtin_ctz(rest)] < of_own_warp.clock) unordered |= rest & -rest;
  }
  return unordered;
}

// ---------------------------------------------------------------- Shadow memory

template <typename T>
uint32_t Races::Store<T>::Take() {
  if (unused.empty()) {
    all.emplace_back();
    return static_cast<uint32_t>(all.size());
  }
  const uint32_t index = unused.back();
  unused.pop_back();
  all[index - 1] = {};
  return index;
}

template <typename T>
void Races::Store<T>::GiveBack(uint32_t& index) {
  if (index != 0) unused.push_back(index);
  index = 0;
}

Races::Page& Races::PageOf(uintptr_t address) {
  const uintptr_t number = address / kPage;
  const Recent& recent = recent_[number % std::size(recent_)];
  return recent.page && recent.number == number ? *recent.page : FindPage(number);
}

Races::Page& Races::FindPage(uintptr_t number) {
  std::unique_ptr<Page>& page = pages_[number];
  if (!page) page = std::make_unique<Page>();
  recent_[number % std::size(recent_)] = {number, page.get()};
  return *page;
}

// ---------------------------------------------------------------- Accesses

Races::Event Races::Now(Touch how, const void* pc) const {
  const int lane = thread_ % kWarpSize;
  return {now_,
          static_cast<int32_t>(static_cast<const char*>(pc) - &kOrigin),
          known()[lane],
          1u << lane,
          static_cast<uint8_t>(warp()),
          how,
          Event::kPlain};
}

void Races::Note(const void* at, size_t size, Touch how, const void* pc) {
  if (reinterpret_cast<uintptr_t>(at) - stack_begin_ < stack_size_) return;
  NoteEvent(at, size, Now(how, pc));
}

void Races::StartCopy(const void* to, size_t size, const void* from, size_t from_size,
                      const void* pc) {
  Note(from, from_size, Touch::kRead, pc);
  Event event = Now(Touch::kWrite, pc);
  event.kind = Event::kCopyStarts;
  NoteEvent(to, size, event);
}

void Races::FinishCopy(const void* to, size_t size, const void* from, size_t from_size,
                       const void* pc) {
  Note(from, from_size, Touch::kRead, pc);
  Event event = Now(Touch::kWrite, pc);
  event.kind = Event::kCopyEnds;
  NoteEvent(to, size, event);
}

void Races::NoteEvent(const void* at, size_t size, const Event& event) {
  CheckRepeated();
  uintptr_t address = reinterpret_cast<uintptr_t>(at);
  const uintptr_t end = address + size;
  uint32_t since = launch_;
  if (address - shared_begin_ < shared_size_) {
    if (IsIn(threadIdx, address) || IsIn(blockIdx, address) || IsIn(blockDim, address) ||
        IsIn(gridDim, address)) {
      return;
    }
    since = block_;
  }
  while (address < end) {
    const uintptr_t next = std::min(end, (address | (kWord - 1)) + 1);
    Cell& cell = PageOf(address).cells[address % kPage / kWord];
    TouchWord(cell, address, next - address, event, since);
    address = next;
  }
}

inline void Races::TouchWord(Cell& cell, uintptr_t address, size_t size, const Event& event,
                             uint32_t since) {
  if (size == kWord && cell.bytes == 0) {
    TouchCell(cell, address, kWord, event, since);
  } else {
    TouchBytes(cell, address, size, event, since);
  }
}

// While a word is four bytes, its own `write` says when one of them was touched last.
void Races::TouchBytes(Cell& cell, uintptr_t address, size_t size, const Event& event,
                       uint32_t since) {
  if (cell.bytes != 0 && cell.write.stamp < since) {
    for (Cell& byte : bytes_[cell.bytes].cells) lists_.GiveBack(byte.more);
    bytes_.GiveBack(cell.bytes);
    cell.write = {};
    if (size == kWord) return TouchCell(cell, address, kWord, event, since);
  }
  if (cell.bytes == 0) {
    cell.bytes = bytes_.Take();
    for (Cell& byte : bytes_[cell.bytes].cells) {
      byte = {cell.write, cell.other, 0, 0};
      if (cell.more == 0) continue;
      byte.more = lists_.Take();
      lists_[byte.more] = lists_[cell.more];
    }
    lists_.GiveBack(cell.more);
    cell.other = {};
  }
  cell.write.stamp = event.stamp;
  for (size_t i = 0; i < size; ++i) {
    TouchCell(bytes_[cell.bytes].cells[(address + i) % kWord], address + i, 1, event, since);
  }
}

inline void Races::Compare(const Event& before, const Event& event, uintptr_t address) const {
  if (Conflict(before.how, event.how) && !IsOrdered(before)) Report(before, event, address);
}

// Is it a write that other lanes have made, too, by the same instruction?
bool Races::Repeats(const Cell& cell, uintptr_t address, size_t size, const Event& event) {
  const Event& before = cell.write;
  if (event.how != Touch::kWrite || event.kind != Event::kPlain || before.kind != Event::kPlain ||
      !before.IsSameOfOtherLanes(event) || IsOrdered(before)) {
    return false;
  }
  Repeated repeated = {address, size, {}, before, event};
  std::memcpy(repeated.value, reinterpret_cast<const void*>(address), size);
  repeated_.push_back(repeated);
  return true;
}

void Races::CompareRepeated() {
  for (const Repeated& r : repeated_) {
    if (std::memcmp(r.value, reinterpret_cast<const void*>(r.address), r.size) == 0) continue;
    Report(r.before, r.event, r.address);
  }
  repeated_.clear();
}

// since: what has an older stamp is of an earlier launch, or an earlier block's shared memory.
void Races::TouchCell(Cell& cell, uintptr_t address, size_t size, const Event& event,
                      uint32_t since) {
  const bool ends_copy = event.kind == Event::kCopyEnds && cell.write.kind == Event::kCopyStarts &&
                         cell.write.warp == event.warp && cell.write.lanes == event.lanes;
  const bool repeats = cell.write.stamp >= since && Repeats(cell, address, size, event);
  if (cell.write.stamp >= since && !ends_copy && !repeats) Compare(cell.write, event, address);
  if (cell.other.stamp >= since) {
    Compare(cell.other, event, address);
    if (cell.more != 0) {
      for (const Event& before : lists_[cell.more]) Compare(before, event, address);
    }
  } else {
    cell.other = {};
    lists_.GiveBack(cell.more);
  }
  if (event.how == Touch::kWrite) {
    const uint32_t others = repeats ? cell.write.lanes : 0;
    cell.write = event;
    cell.write.lanes |= others;
    cell.other = {};
    lists_.GiveBack(cell.more);
  } else if (cell.other.stamp == 0) {
    cell.other = event;
  } else if (cell.other.IsSameOfOtherLanes(event)) {
    cell.other.lanes |= event.lanes;
  } else if (cell.more == 0 && Covers(event.how, cell.other.how) && IsOrdered(cell.other)) {
    cell.other = event;
  } else {
    Keep(cell, event);
  }
}

// Does `event` have to be kept, besides `before`? Not where whoever conflicts with it, and is not
// after it, will be found to race with `before`, for that is of another block, or `before` and
// another one are of two warps. (`warp`: of such a one, or -1.)
bool Races::Replaces(Event& before, const Event& event, int& warp) const {
  if (before.IsSameOfOtherLanes(event)) {
    before.lanes |= event.lanes;
    return true;
  }
  if (!Covers(before.how, event.how)) return false;
  if (before.stamp < block_) return true;
  if (before.stamp != now_) return false;
  if (warp >= 0 && warp != before.warp) return true;
  warp = before.warp;
  return false;
}

// Among others. What is before `event`, and conflicts with no more, is not needed any longer.
void Races::Keep(Cell& cell, const Event& event) {
  int warp = -1;
  if (Replaces(cell.other, event, warp)) return;
  if (cell.more == 0) cell.more = lists_.Take();
  std::vector<Event>& more = lists_[cell.more];
  for (Event& before : more) {
    if (Replaces(before, event, warp)) return;
  }
  const auto is_past = [&](const Event& before) {
    return Covers(event.how, before.how) && IsOrdered(before);
  };
  more.push_back(cell.other);
  more.erase(std::remove_if(more.begin(), more.end(), is_past), more.end());
  cell.other = event;
  if (more.empty()) lists_.GiveBack(cell.more);
}

// ---------------------------------------------------------------- The message

void Races::Report(const Event& before, const Event& event, uintptr_t address) const {
  const auto describe = [&](const Event& e) {
    const size_t began = std::upper_bound(block_stamps_.begin(), block_stamps_.end(), e.stamp) -
                         block_stamps_.begin();
    const uint3 block = blocks_[began - 1];
    const bool some_are_ordered = &e == &before && e.stamp == now_ && e.warp == warp();
    const unsigned lanes = some_are_ordered ? UnorderedLanes(e) : e.lanes;
    const unsigned thread = e.warp * kWarpSize + __builtin_ctz(lanes ? lanes : e.lanes);
    const unsigned x = thread % blockDim.x, y = thread / blockDim.x % blockDim.y,
                   z = thread / blockDim.x / blockDim.y;
    std::string text = "\n    block (" + std::to_string(block.x) + ", " + std::to_string(block.y) +
                       ", " + std::to_string(block.z) + "), thread (" + std::to_string(x) + ", " +
                       std::to_string(y) + ", " + std::to_string(z) + "): ";
    text += IsAtomic(e.how) ? "an atomic " : e.kind != Event::kPlain ? "an asynchronous " : "a ";
    text += IsWrite(e.how) ? "write" : "read";
    const char* at = " at ";
    for (const std::string& place : PlacesOf(&kOrigin + e.pc)) {
      text += at + place;
      at = ", called at ";
    }
    return text;
  };
  const bool shared = address - shared_begin_ < shared_size_;
  const std::string both = describe(event) + describe(before);
  Fail(kNowhere, "race: nothing orders two accesses to %s memory at 0x%zx:%s",
       shared ? "shared" : "global", static_cast<size_t>(address), both.c_str());
}

}  // namespace simt
