// The file of a compressed array, format version 1, little-endian: building and reading, without
// torch. Nothing read from a file is trusted: sizes are checked against the file before anything is
// allocated, and every fault names its place.
//
//   header   magic NNPC, u16 version, u8 arith, u8 precision, u32 D, u32 K, u64 N, u8 dtype,
//            u8 ndim, u32 dims[ndim], u32 block, u32 lanes, u8 model_id[16], u32 CRC of all before
//   block    u32 bytes (of the block, after this field), u32 samples, one LEB128 count of words for
//            each lane, the words, u32 CRC of the block, u32 CRC of the samples
//   trailer  u64 offset of every block, magic CPNN, u32 CRC of all before
//
// Block i holds samples i * block .. of N, in its first min(lanes, samples) lanes. The CRC of a
// block covers the header's CRC, u32 i and all its other bytes, so a block of another file or
// another place is refused; that of the samples covers them as [samples, D].
#pragma once

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "pc/pc.h"

namespace nnkernels::pc {

// CRC-32C (Castagnoli) of what `value` is the CRC of, followed by `size` bytes at `data`.
uint32_t crc32c(const void* data, int64_t size, uint32_t value = 0);
// The same without special instructions.
uint32_t crc32c_portable(const void* data, int64_t size, uint32_t value = 0);

// corrupt: every checksum fits, yet it is not the file of an encoder.
enum class Fault : int { format, truncated, checksum, limit, corrupt };
const char* fault_name(Fault fault);

struct ContainerError : std::runtime_error {
  // block -1: outside the blocks.
  ContainerError(Fault fault, const std::string& message, int64_t offset, int64_t block = -1);

  Fault fault;
  int64_t offset, block;
};

using Bytes = std::vector<uint8_t>;

struct ByteView {
  const uint8_t* data = nullptr;
  int64_t size = 0;
};

constexpr int64_t kContainerVersion = 1, kArith = 1;
// Symbols of an array that read_header lets pass.
constexpr int64_t kSymbolLimit = int64_t{1} << 40;

constexpr int64_t symbol_size(Symbol type) { return type == Symbol::uint8 ? 1 : 2; }
constexpr int64_t symbol_limit(Symbol type) { return type == Symbol::uint8 ? 256 : 4096; }

struct ContainerHeader {
  int64_t precision = 20, D = 0, K = 0, N = 0;
  Symbol type = Symbol::uint8;
  std::vector<int64_t> dims;  // of one sample, product D
  int64_t block = 0, lanes = 0;
  std::array<uint8_t, 16> model_id{};

  int64_t size() const { return 54 + 4 * static_cast<int64_t>(dims.size()); }
  int64_t blocks() const { return N / block + (N % block != 0); }
  int64_t samples(int64_t index) const;
  int64_t lanes_of(int64_t index) const;
  // Of the samples of a block.
  int64_t data_bytes(int64_t index) const;
};

// ---- building: throws std::invalid_argument ----
Bytes pack_header(const ContainerHeader& header);
// words [lanes_of(index)] rows, counts [lanes_of(index)] of them used; data: the samples.
Bytes pack_block(const ContainerHeader& header, int64_t index, const int32_t* words, int64_t row,
                 const int32_t* counts, const void* data);
Bytes pack_trailer(const std::vector<int64_t>& offsets);

// ---- reading: throws ContainerError ----
ContainerHeader read_header(ByteView file, int64_t limit = kSymbolLimit);
// Where each block starts, then where the trailer starts, as the trailer says.
std::vector<int64_t> read_offsets(const ContainerHeader& header, ByteView file);
// The same as the blocks say, up to the first that does not fit into the file.
std::vector<int64_t> scan_offsets(const ContainerHeader& header, ByteView file);

struct Block {
  std::vector<int32_t> counts;  // [lanes_of(index)], each at least 2
  int64_t longest = 0;          // of the counts
  const uint8_t* payload = nullptr;
  uint32_t data_crc = 0;
  int64_t end = 0;  // where it ends in the file

  // words [counts.size(), longest], zeros behind the words of a lane.
  void unpack(int32_t* words) const;
};
// The block that starts at `offset` and, unless that is negative, ends at `end`.
Block read_block(const ContainerHeader& header, ByteView file, int64_t index, int64_t offset,
                 int64_t end = -1);
// Whether these are the samples that were encoded.
void check_data(const ContainerHeader& header, int64_t index, const void* data, uint32_t crc);

}  // namespace nnkernels::pc
