// Products on AMX, the int8 matrix unit: bits become bytes of +1 and -1.
//
// The order of the products in a sum is free, so bytes are taken in the order that is cheapest to
// make: 64 bits become 16 groups of 4 bytes, group 8 * j + q holding bits q, 8 + q, 16 + q and 24 +
// q of 32-bit word j. One shift and one mask make a group.
#include "binary/cpu/amx_tiles.h"

#include <cpuid.h>
#include <immintrin.h>

#include <algorithm>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nnkernels::binary {
namespace {

constexpr int64_t kTileBytes = kMatrixTile;
constexpr int64_t kTile = 16;
// Steps of the sum taken at once: two tiles of columns fill 32 kB, and stay in L1.
constexpr int64_t kSteps = 8;

// 1 - 2 * bit 1 of every byte.
__m512i to_signs(__m512i x) {
  return _mm512_sub_epi8(_mm512_set1_epi8(1), _mm512_and_si512(x, _mm512_set1_epi8(2)));
}

// Moves the bits of a step to bit 1 of its bytes.
__m512i spread_step(int64_t bits) {
  const __m512i words = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512i turns = _mm512_set_epi32(6, 5, 4, 3, 2, 1, 0, 31, 6, 5, 4, 3, 2, 1, 0, 31);
  const __m512i pair = _mm512_permutexvar_epi32(words, _mm512_set1_epi64(bits));
  return _mm512_rorv_epi32(pair, turns);
}

// out[row / 16][step][row % 16][64]
void spread_rows(const Rows& rows, int64_t n, uint64_t keep, int8_t* out) {
  for (int64_t first = 0; first < n; first += kTile) {
    const int64_t end = first + kTile < n ? first + kTile : n;
    for (int64_t at = 0; at < rows.bytes; at += 8, out += kTileBytes) {
      const __mmask64 kept =
          _mm512_test_epi8_mask(spread_step(static_cast<int64_t>(keep)), _mm512_set1_epi8(2));
      for (int64_t row = first; row < end; ++row) {
        int64_t bits;
        memcpy(&bits, rows[row] + at, 8);
        const __m512i signs = _mm512_maskz_mov_epi8(kept, to_signs(spread_step(bits)));
        _mm512_storeu_si512(out + (row - first) * 64, signs);
      }
    }
  }
}

// out[step][group][column][4] for up to 16 rows of the right operand, groups `pitch` apart.
void spread_columns(const Rows& rows, int64_t n, int8_t* out, int64_t pitch) {
  const __mmask16 real = n < kTile ? static_cast<__mmask16>((1u << n) - 1) : 0xFFFF;
  const __m512i places =
      _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                         _mm512_set1_epi32(static_cast<int>(rows.pitch)));
  for (int64_t at = 0; at < rows.bytes; at += 4) {
    const __m512i words =
        _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), real, places, rows.data + at, 1);
    for (int q = 0; q < 8; ++q, out += pitch) {
      const __m512i signs = to_signs(_mm512_rorv_epi32(words, _mm512_set1_epi32(q - 1)));
      _mm512_mask_storeu_epi32(out, real, signs);
    }
  }
}

// dot = bits - 2 * mismatches, for 32 rows and columns
void to_mismatches(int32_t* dots, __m512i bits) {
  for (int64_t row = 0; row < 2 * kTile; ++row, dots += kPanel) {
    for (int half = 0; half < 2; ++half) {
      const __m512i dot = _mm512_loadu_si512(dots + half * kTile);
      _mm512_storeu_si512(dots + half * kTile, _mm512_srli_epi32(_mm512_sub_epi32(bits, dot), 1));
    }
  }
}

void multiply(const int8_t* rows, int64_t n, const int8_t* columns, int64_t steps,
              int32_t* counts) {
  configure_tiles();
  const __m512i bits = _mm512_set1_epi32(static_cast<int>(steps * 64));
  const int64_t group = steps * kTileBytes;
  for (int64_t column = 0; column < kPanel; column += 2 * kTile) {
    const int8_t* right = columns + column / kTile * group;
    for (int64_t first = 0; first < steps; first += kSteps) {
      const int64_t end = std::min(steps, first + kSteps);
      for (int64_t row = 0; row < n; row += 2 * kTile) {
        const int8_t* left = rows + row / kTile * group;
        int32_t* out = counts + row * kPanel + column;
        if (first == 0) {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        } else {
          _tile_loadd(0, out, kPanel * 4);
          _tile_loadd(1, out + kTile, kPanel * 4);
          _tile_loadd(2, out + kTile * kPanel, kPanel * 4);
          _tile_loadd(3, out + kTile * kPanel + kTile, kPanel * 4);
        }
        for (int64_t step = first; step < end; ++step) {
          _tile_loadd(4, left + step * kTileBytes, 64);
          _tile_loadd(5, left + group + step * kTileBytes, 64);
          _tile_loadd(6, right + step * kTileBytes, 64);
          _tile_loadd(7, right + group + step * kTileBytes, 64);
          _tile_dpbssd(0, 4, 6);
          _tile_dpbssd(1, 4, 7);
          _tile_dpbssd(2, 5, 6);
          _tile_dpbssd(3, 5, 7);
        }
        _tile_stored(0, out, kPanel * 4);
        _tile_stored(1, out + kTile, kPanel * 4);
        _tile_stored(2, out + kTile * kPanel, kPanel * 4);
        _tile_stored(3, out + kTile * kPanel + kTile, kPanel * 4);
        if (end == steps) to_mismatches(out, bits);
      }
    }
  }
  _tile_release();
}

bool detect() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned tile = 1u << 24, int8 = 1u << 25;
  if ((d & tile) == 0 || (d & int8) == 0) return false;
  // A process has to ask for the tile registers.
  constexpr int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

constexpr MatrixKernels kKernels = {spread_rows, spread_columns, multiply, convolve_strips};

}  // namespace

const MatrixKernels* amx_kernels() {
  static const bool runnable = detect();
  return runnable ? &kKernels : nullptr;
}

}  // namespace nnkernels::binary
