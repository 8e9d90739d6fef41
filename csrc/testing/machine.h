// What the C++ tests of every core share: the instruction sets of this machine and a thread pool.
#pragma once

#include <algorithm>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"

namespace nnkernels {
namespace {

[[maybe_unused]] Parallel threads(int count) {
  static int asked;
  asked = count;
  Parallel parallel;
  parallel.threads = count;
  parallel.run = [](int64_t begin, int64_t end, int64_t grain, Parallel::Body body, void* context) {
    const int64_t parts = std::min<int64_t>(asked, (end - begin + grain - 1) / grain);
    const int64_t size = (end - begin + parts - 1) / parts;
    std::vector<std::thread> pool;
    for (int64_t from = begin; from < end; from += size) {
      pool.emplace_back([=] { body(context, from, std::min(from + size, end)); });
    }
    for (std::thread& thread : pool) thread.join();
  };
  return parallel;
}

// Runs `f` on every instruction set that this machine has.
[[maybe_unused]] void each_isa(const std::function<void(const std::string&)>& f) {
  const Isa before = active_isa();
  for (const std::string& name : isa_names()) {
    set_isa(name);
    f(name);
  }
  set_isa(isa_name(before));
}

}  // namespace
}  // namespace nnkernels
