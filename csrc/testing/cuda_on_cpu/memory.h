// Memory between guard pages, for buffers that emulated kernels read and write. An access past the
// guarded side faults, and the fault becomes a C++ exception that names the buffer (block.h).
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace nnkernels::cuda_on_cpu {

// Which end of the buffer lies against a guard page.
enum class Flush { end, start };

class GuardedMemory {
 public:
  // Inaccessible bytes on each side; a kernel that strides further than this past a buffer may land
  // in another one.
  static constexpr size_t guard_bytes = 1 << 20;
  // Fresh memory: NaN as fp32, bf16, fp16 and fp8.
  static constexpr unsigned char poison = 0xFF;
  // Bytes of the accessible pages that are not part of the buffer.
  static constexpr unsigned char canary = 0xA5;

  // With Flush::end and an alignment above the element's, up to alignment - 1 bytes lie between the
  // buffer and the guard page: writes there are found by intact(), reads are not.
  GuardedMemory(std::string name, size_t bytes, size_t alignment, Flush flush = Flush::end)
      : name_(std::move(name)), bytes_(bytes) {
    constexpr size_t page = 4096;
    pages_bytes_ = (bytes + alignment + page - 1) / page * page;
    void* map = mmap(nullptr, pages_bytes_ + 2 * guard_bytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<unsigned char*>(map);
    mprotect(pages(), pages_bytes_, PROT_READ | PROT_WRITE);
    data_ =
        flush == Flush::start ? pages() : pages() + (pages_bytes_ - bytes) / alignment * alignment;
    std::memset(pages(), canary, pages_bytes_);
    fill_poison();
    all().push_back(this);
  }
  ~GuardedMemory() {
    all().erase(std::find(all().begin(), all().end(), this));
    munmap(map_, pages_bytes_ + 2 * guard_bytes);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void fill_poison() { std::memset(data_, poison, bytes_); }

  // False if anything was written to the accessible pages outside the buffer.
  bool intact() const {
    const auto whole = [](const unsigned char* from, const unsigned char* to) {
      return std::all_of(from, to, [](unsigned char byte) { return byte == canary; });
    };
    return whole(pages(), data_) && whole(data_ + bytes_, pages() + pages_bytes_);
  }

  // "4 bytes past the end of x (128 bytes)"; empty if the address is near no guarded memory.
  static std::string describe(const void* address) {
    const auto* byte = static_cast<const unsigned char*>(address);
    for (const GuardedMemory* memory : all()) {
      if (byte < memory->map_ || byte >= memory->pages() + memory->pages_bytes_ + guard_bytes)
        continue;
      std::ostringstream text;
      if (byte < memory->data_) {
        text << memory->data_ - byte << " bytes before the start of ";
      } else {
        text << byte - memory->data_ - memory->bytes_ << " bytes past the end of ";
      }
      text << memory->name_ << " (" << memory->bytes_ << " bytes)";
      return text.str();
    }
    return {};
  }

 private:
  static std::vector<const GuardedMemory*>& all() {
    static std::vector<const GuardedMemory*> list;
    return list;
  }
  unsigned char* pages() const { return map_ + guard_bytes; }

  std::string name_;
  size_t bytes_;
  size_t pages_bytes_;
  unsigned char* map_;
  unsigned char* data_;
};

// An array of T in guarded memory: what a test passes to a kernel instead of a device pointer.
template <typename T>
class DeviceBuffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  DeviceBuffer(std::string name, size_t size, Flush flush = Flush::end,
               size_t alignment = alignof(T))
      : memory_(std::move(name), size * sizeof(T), alignment, flush), size_(size) {}
  DeviceBuffer(std::string name, const std::vector<T>& values, Flush flush = Flush::end,
               size_t alignment = alignof(T))
      : DeviceBuffer(std::move(name), values.size(), flush, alignment) {
    std::copy(values.begin(), values.end(), data());
  }

  T* data() { return reinterpret_cast<T*>(memory_.data()); }
  const T* data() const { return reinterpret_cast<const T*>(memory_.data()); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return data()[i]; }
  const T& operator[](size_t i) const { return data()[i]; }
  std::vector<T> values() const { return std::vector<T>(data(), data() + size_); }
  bool intact() const { return memory_.intact(); }

 private:
  GuardedMemory memory_;
  size_t size_;
};

}  // namespace nnkernels::cuda_on_cpu
