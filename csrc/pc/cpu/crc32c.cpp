#include <array>
#include <cstring>

#include "pc/container.h"
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace nnkernels::pc {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;

// tables[t][b]: the CRC of byte b with t zero bytes after it.
constexpr auto kTables = [] {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (size_t t = 1; t < 8; ++t) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[t - 1][byte];
      tables[t][byte] = before >> 8 ^ tables[0][before & 255];
    }
  }
  return tables;
}();

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(const uint8_t* data, int64_t size,
                                                        uint32_t value) {
  uint64_t crc = ~value;
  for (; size >= 8; size -= 8, data += 8) {
    uint64_t word;
    memcpy(&word, data, 8);
    crc = _mm_crc32_u64(crc, word);
  }
  auto low = static_cast<uint32_t>(crc);
  for (; size > 0; --size) low = _mm_crc32_u8(low, *data++);
  return ~low;
}
#endif

}  // namespace

uint32_t crc32c_portable(const void* data, int64_t size, uint32_t value) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  uint32_t crc = ~value;
  for (; size >= 8; size -= 8, bytes += 8) {
    uint32_t next = 0;
    for (size_t i = 0; i < 8; ++i) {
      const uint32_t byte = i < 4 ? (crc >> (8 * i) & 255) ^ bytes[i] : bytes[i];
      next ^= kTables[7 - i][byte];
    }
    crc = next;
  }
  for (; size > 0; --size) crc = crc >> 8 ^ kTables[0][(crc ^ *bytes++) & 255];
  return ~crc;
}

uint32_t crc32c(const void* data, int64_t size, uint32_t value) {
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("sse4.2") != 0;
  if (fast) return crc32c_sse42(static_cast<const uint8_t*>(data), size, value);
#endif
  return crc32c_portable(data, size, value);
}

}  // namespace nnkernels::pc
