// From an address of the program to a line of its source.
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "races.h"

namespace simt {
namespace {

// What `command` prints.
std::vector<std::string> LinesOf(const std::string& command) {
  std::vector<std::string> lines;
  FILE* const pipe = popen(command.c_str(), "r");
  if (!pipe) return lines;
  char line[4096];
  while (std::fgets(line, sizeof(line), pipe)) {
    line[std::strcspn(line, "\n")] = 0;
    lines.push_back(line);
  }
  pclose(pipe);
  return lines;
}

bool IsOfStandIn(const std::string& place) {
  return place.find("/tests/simt/") != std::string::npos && place.find(".h:") != std::string::npos;
}

}  // namespace

std::vector<std::string> PlacesOf(const void* pc) {
  Dl_info info;
  if (dladdr(pc, &info) == 0) return {};
  const auto* header = static_cast<const ElfW(Ehdr)*>(info.dli_fbase);
  size_t address = reinterpret_cast<size_t>(pc) - 1;  // in the call
  if (header->e_type == ET_DYN) address -= reinterpret_cast<size_t>(info.dli_fbase);
  char hex[32];
  std::snprintf(hex, sizeof(hex), "0x%zx", address);
  const std::string command =
      std::string("addr2line -i -e '") + info.dli_fname + "' " + hex + " 2>/dev/null";

  std::vector<std::string> places;
  const std::vector<std::string> lines = LinesOf(command);
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string place = lines[i].substr(0, lines[i].find(" (discriminator"));
    const bool is_last = i + 1 == lines.size();
    if (place.find("??") == 0 || (IsOfStandIn(place) && !is_last)) continue;
    places.push_back(place);
  }
  if (places.empty()) places.push_back(std::string(info.dli_fname) + ", address " + hex);
  return places;
}

}  // namespace simt
