// Memory for the kernels.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>
#include <cstdlib>
#include <new>

namespace nnkernels::pc {

// Aligned to a cache line, not initialised.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // At least this many items; what was in the buffer is lost when it grows.
  T* get(int64_t count) {
    if (count > count_) {
      std::free(data_);
      data_ = nullptr;
      count_ = 0;
      const int64_t size = sizeof(T);
      const int64_t line = count * size >= kLarge ? kLarge : 64;
      const int64_t bytes = (count * size + line - 1) / line * line;
      data_ = static_cast<T*>(
          std::aligned_alloc(static_cast<size_t>(line), static_cast<size_t>(bytes)));
      if (data_ == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
      // Advice: where the system has no large pages, nothing changes.
      if (line == kLarge) (void)madvise(data_, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
      count_ = bytes / size;
    }
    return data_;
  }
  T* data() { return data_; }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }

 private:
  static constexpr int64_t kLarge = 2 << 20;
  T* data_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace nnkernels::pc
