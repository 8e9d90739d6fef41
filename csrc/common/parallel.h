// The one way a kernel uses several threads: the caller lends a thread pool (torch's, from the
// binding), the kernel hands it ranges. A kernel's result never depends on how a range is split.
#pragma once

#include <cstdint>
#include <type_traits>

namespace nnkernels {

struct Parallel {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  using Run = void (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

  int threads = 1;
  Run run = nullptr;  // nullptr: the calling thread does all the work
};

// Calls f(begin, end) on disjoint ranges that cover [0, count), each of at least `grain` items
// where there are that many. Exceptions of f reach the caller.
template <class F>
void parallel_for(const Parallel& parallel, int64_t count, int64_t grain, F&& f) {
  if (count <= 0) return;
  if (parallel.run == nullptr || parallel.threads <= 1 || count <= grain) {
    f(int64_t{0}, count);
    return;
  }
  using Function = std::remove_reference_t<F>;
  parallel.run(
      0, count, grain,
      [](void* context, int64_t begin, int64_t end) {
        (*static_cast<Function*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace nnkernels
