#include "pc/container.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "pc/rans.h"

namespace nnkernels::pc {
namespace {

constexpr char kMagic[] = "NNPC", kTrailerMagic[] = "CPNN";
constexpr int64_t kBlockFrame = 8 + 8;  // bytes, samples and both CRCs
constexpr int64_t kTrailerEnd = 8;      // magic and CRC
constexpr int64_t kMost32 = UINT32_MAX;
// A lane's count and its first state.
constexpr int64_t kLeastLane = 1 + 4 * kStateWords;

std::string at(int64_t offset, int64_t block) {
  const std::string place = " at byte " + std::to_string(offset);
  return block < 0 ? place : place + " in block " + std::to_string(block);
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::string all;
  const auto add = [&](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::decay_t<decltype(part)>>)
      all += std::to_string(part);
    else
      all += part;
  };
  (add(parts), ...);
  return all;
}

// ---- numbers ----

template <class Number>
Number read_number(const uint8_t* data) {
  Number value = 0;
  for (size_t i = 0; i < sizeof value; ++i) {
    value = static_cast<Number>(value | static_cast<Number>(data[i]) << (8 * i));
  }
  return value;
}

template <class Number>
void append(Bytes& bytes, Number value) {
  for (size_t i = 0; i < sizeof value; ++i) bytes.push_back(static_cast<uint8_t>(value >> (8 * i)));
}

void append_text(Bytes& bytes, const char* text) {
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<uint8_t>(text[i]));
}

void append_crc(Bytes& bytes) {
  append(bytes, crc32c(bytes.data(), static_cast<int64_t>(bytes.size())));
}

// Words as they lie in a file.
void copy_words(const void* from, int64_t count, void* to) {
  std::memcpy(to, from, static_cast<size_t>(count) * 4);
  if constexpr (std::endian::native == std::endian::big) {
    auto* words = static_cast<uint32_t*>(to);
    for (int64_t i = 0; i < count; ++i) words[i] = __builtin_bswap32(words[i]);
  }
}

uint32_t data_crc(const ContainerHeader& header, int64_t index, const void* data) {
  const int64_t size = header.data_bytes(index);
  if (std::endian::native == std::endian::little || header.type == Symbol::uint8) {
    return crc32c(data, size);
  }
  uint32_t crc = 0;
  const auto* symbols = static_cast<const uint16_t*>(data);
  for (int64_t i = 0; i < size / 2; ++i) {
    const uint16_t symbol = __builtin_bswap16(symbols[i]);
    crc = crc32c(&symbol, 2, crc);
  }
  return crc;
}

// `bytes` up to its two CRCs, then that of the samples.
uint32_t block_crc(const ContainerHeader& header, int64_t index, const uint8_t* bytes, int64_t size,
                   uint32_t of_data) {
  const Bytes packed = pack_header(header);
  Bytes before(packed.end() - 4, packed.end()), after;
  append(before, static_cast<uint32_t>(index));
  append(after, of_data);
  const uint32_t crc = crc32c(bytes, size, crc32c(before.data(), 8));
  return crc32c(after.data(), 4, crc);
}

// What is wrong with these values, or nothing.
std::string wrong_values(const ContainerHeader& h) {
  if (h.precision < kMinPrecision || h.precision > kMaxPrecision) {
    return text("precision is ", h.precision, ", expected 12..24");
  }
  if (h.D < 1 || h.D > kMost32) return text("D is ", h.D, ", expected 1..2^32-1");
  const int64_t most = symbol_limit(h.type);
  if (h.K < 1 || h.K > most) return text("K is ", h.K, ", expected 1..", most, " for the dtype");
  if (int64_t{1} << h.precision < 4 * h.K) {
    return text("precision ", h.precision, " is too small for K = ", h.K);
  }
  if (h.N < 0) return text("N is ", h.N);
  int64_t product = 1;
  for (const int64_t dim : h.dims) {
    if (dim < 1 || dim > kMost32 || __builtin_mul_overflow(product, dim, &product)) {
      product = -1;
      break;
    }
  }
  if (product != h.D || h.dims.size() > 255) {
    std::string dims;
    for (const int64_t dim : h.dims) dims += (dims.empty() ? "" : ", ") + std::to_string(dim);
    return text("dims are [", dims, "], expected at most 255 of product D = ", h.D);
  }
  if (h.block < 1 || h.block > kMost32) return text("block is ", h.block, ", expected 1..2^32-1");
  if (h.lanes < 1 || h.lanes > kMost32) return text("lanes is ", h.lanes, ", expected 1..2^32-1");
  return {};
}

// Reads a file from front to back; every step is checked against its end.
class Reader {
 public:
  Reader(ByteView file, int64_t position, int64_t end, int64_t block)
      : data_(file.data), position_(position), end_(end), block_(block) {}

  int64_t position() const { return position_; }
  int64_t left() const { return end_ - position_; }
  const uint8_t* here() const { return data_ + position_; }

  // The next `size` bytes, called `what` where they are missing.
  const uint8_t* take(int64_t size, const char* what) {
    if (size > left()) {
      throw ContainerError(Fault::truncated,
                           text(what, " needs ", size, " bytes, but ", left(), " are left"),
                           position_, block_);
    }
    position_ += size;
    return data_ + position_ - size;
  }
  template <class Number>
  Number number(const char* what) {
    return read_number<Number>(take(sizeof(Number), what));
  }
  // LEB128, at most `most`.
  int64_t count(int64_t most) {
    const int64_t start = position_;
    int64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t byte = *take(1, "a lane count");
      // Past `most`, or with a needless last byte.
      const bool wrong = shift > 28 || (shift > 0 && byte == 0);
      value |= wrong ? 0 : int64_t{byte & 127} << shift;
      if (wrong || value > most) {
        throw ContainerError(Fault::format,
                             text("a lane count is not a minimal LEB128 of at most ", most), start,
                             block_);
      }
      if (byte < 128) return value;
    }
  }

 private:
  const uint8_t* data_;
  int64_t position_, end_, block_;
};

int64_t trailer_size(int64_t blocks) { return 8 * blocks + kTrailerEnd; }

// Where the trailer starts in a file of header.blocks() blocks; read_header saw that it fits.
int64_t trailer_start(const ContainerHeader& header, ByteView file) {
  return std::max(header.size(), file.size - trailer_size(header.blocks()));
}

int64_t least_block(const ContainerHeader& header, int64_t index) {
  return kBlockFrame + kLeastLane * header.lanes_of(index);
}

}  // namespace

const char* fault_name(Fault fault) {
  constexpr const char* kNames[] = {"format", "truncated", "checksum", "limit", "corrupt"};
  return kNames[static_cast<int>(fault)];
}

ContainerError::ContainerError(Fault fault, const std::string& message, int64_t offset,
                               int64_t block)
    : std::runtime_error(message + at(offset, block)), fault(fault), offset(offset), block(block) {}

int64_t ContainerHeader::samples(int64_t index) const {
  return std::clamp<int64_t>(N - index * block, 0, block);
}

int64_t ContainerHeader::lanes_of(int64_t index) const { return std::min(lanes, samples(index)); }

int64_t ContainerHeader::data_bytes(int64_t index) const {
  return samples(index) * D * symbol_size(type);
}

// ---- building ----

Bytes pack_header(const ContainerHeader& h) {
  if (const std::string wrong = wrong_values(h); !wrong.empty()) throw std::invalid_argument(wrong);
  Bytes bytes;
  append_text(bytes, kMagic);
  append(bytes, static_cast<uint16_t>(kContainerVersion));
  append(bytes, static_cast<uint8_t>(kArith));
  append(bytes, static_cast<uint8_t>(h.precision));
  append(bytes, static_cast<uint32_t>(h.D));
  append(bytes, static_cast<uint32_t>(h.K));
  append(bytes, static_cast<uint64_t>(h.N));
  append(bytes, static_cast<uint8_t>(h.type));
  append(bytes, static_cast<uint8_t>(h.dims.size()));
  for (const int64_t dim : h.dims) append(bytes, static_cast<uint32_t>(dim));
  append(bytes, static_cast<uint32_t>(h.block));
  append(bytes, static_cast<uint32_t>(h.lanes));
  for (const uint8_t byte : h.model_id) bytes.push_back(byte);
  append_crc(bytes);
  return bytes;
}

Bytes pack_block(const ContainerHeader& header, int64_t index, const int32_t* words, int64_t row,
                 const int32_t* counts, const void* data) {
  const int64_t lanes = header.lanes_of(index), samples = header.samples(index);
  int64_t total = 0;
  for (int64_t l = 0; l < lanes; ++l) {
    if (counts[l] < kStateWords || counts[l] > row) {
      throw std::invalid_argument(text("counts[", l, "] is ", counts[l], ", expected 2..", row));
    }
    total += counts[l];
  }
  Bytes bytes;
  bytes.reserve(static_cast<size_t>(kBlockFrame + 5 * lanes + 4 * total));
  append(bytes, uint32_t{0});
  append(bytes, static_cast<uint32_t>(samples));
  for (int64_t l = 0; l < lanes; ++l) {
    auto count = static_cast<uint32_t>(counts[l]);
    for (; count >= 128; count >>= 7) bytes.push_back(static_cast<uint8_t>(count | 128));
    bytes.push_back(static_cast<uint8_t>(count));
  }
  size_t position = bytes.size();
  bytes.resize(position + 4 * static_cast<size_t>(total));
  for (int64_t l = 0; l < lanes; ++l) {
    copy_words(words + l * row, counts[l], bytes.data() + position);
    position += 4 * static_cast<size_t>(counts[l]);
  }
  const auto size = static_cast<int64_t>(bytes.size()) + 8 - 4;
  if (size > kMost32) {
    throw std::invalid_argument(
        text("block ", index, " takes ", size, " bytes, more than 2^32-1; make blocks smaller"));
  }
  for (size_t i = 0; i < 4; ++i) bytes[i] = static_cast<uint8_t>(size >> (8 * i));
  const uint32_t of_data = data_crc(header, index, data);
  append(bytes,
         block_crc(header, index, bytes.data(), static_cast<int64_t>(bytes.size()), of_data));
  append(bytes, of_data);
  return bytes;
}

Bytes pack_trailer(const std::vector<int64_t>& offsets) {
  Bytes bytes;
  for (const int64_t offset : offsets) append(bytes, static_cast<uint64_t>(offset));
  append_text(bytes, kTrailerMagic);
  append_crc(bytes);
  return bytes;
}

// ---- reading ----

ContainerHeader read_header(ByteView file, int64_t limit) {
  Reader reader(file, 0, file.size, -1);
  const uint8_t* magic = reader.take(4, "the magic");
  if (std::memcmp(magic, kMagic, 4) != 0) {
    const std::string found(reinterpret_cast<const char*>(magic), 4);
    std::string shown;
    for (const char c : found) shown += c >= 32 && c < 127 ? c : '?';
    throw ContainerError(Fault::format, text("the magic is '", shown, "', expected 'NNPC'"), 0);
  }
  if (const int64_t version = reader.number<uint16_t>("the version");
      version != kContainerVersion) {
    throw ContainerError(Fault::format, text("the version is ", version, ", this build reads 1"),
                         4);
  }
  if (const int64_t arith = reader.number<uint8_t>("arith"); arith != kArith) {
    throw ContainerError(Fault::format, text("arith is ", arith, ", this build decodes 1"), 6);
  }
  ContainerHeader h;
  h.precision = reader.number<uint8_t>("the header");
  h.D = reader.number<uint32_t>("the header");
  h.K = reader.number<uint32_t>("the header");
  const auto N = reader.number<uint64_t>("the header");
  const int64_t dtype = reader.number<uint8_t>("the header");
  const int64_t ndim = reader.number<uint8_t>("the header");
  for (int64_t i = 0; i < ndim; ++i) h.dims.push_back(reader.number<uint32_t>("the header"));
  h.block = reader.number<uint32_t>("the header");
  h.lanes = reader.number<uint32_t>("the header");
  std::copy_n(reader.take(16, "the header"), 16, h.model_id.begin());
  const uint32_t crc = crc32c(file.data, reader.position());
  if (reader.number<uint32_t>("the header") != crc) {
    throw ContainerError(Fault::checksum, "the CRC of the header does not fit", 0);
  }
  if (dtype > 1) {
    throw ContainerError(Fault::format, text("dtype is ", dtype, ", expected 0 or 1"), 24);
  }
  h.type = static_cast<Symbol>(dtype);
  h.N = static_cast<int64_t>(std::min<uint64_t>(N, INT64_MAX));
  if (const std::string wrong = wrong_values(h); !wrong.empty()) {
    throw ContainerError(Fault::format, wrong, 7);
  }
  if (N > static_cast<uint64_t>(std::max<int64_t>(limit, 0)) / static_cast<uint64_t>(h.D)) {
    throw ContainerError(
        Fault::limit,
        text("the file holds N * D = ", N, " * ", h.D, " symbols, more than the limit of ", limit),
        16);
  }
  // Whatever the blocks hold, they take this much.
  const int64_t blocks = h.blocks(), whole = h.N / h.block;
  int64_t least = trailer_size(0), more = 0;
  const bool absurd =
      blocks > file.size ||
      __builtin_mul_overflow(whole, whole > 0 ? 8 + least_block(h, 0) : 0, &more) ||
      __builtin_add_overflow(least, more, &least) ||
      __builtin_add_overflow(least, blocks > whole ? 8 + least_block(h, whole) : 0, &least);
  if (absurd || least > reader.left()) {
    throw ContainerError(Fault::truncated,
                         text(blocks, " blocks of ", h.N, " samples cannot lie in the ",
                              reader.left(), " bytes left"),
                         reader.position());
  }
  return h;
}

std::vector<int64_t> read_offsets(const ContainerHeader& header, ByteView file) {
  const int64_t start = trailer_start(header, file), blocks = header.blocks();
  Reader reader(file, start, file.size, -1);
  std::vector<int64_t> offsets;
  const uint8_t* numbers = reader.take(8 * blocks, "the trailer");
  const int64_t magic_at = reader.position();
  if (std::memcmp(reader.take(4, "the trailer"), kTrailerMagic, 4) != 0) {
    throw ContainerError(Fault::truncated,
                         "the trailer's magic 'CPNN' is missing: the file is cut off, or has bytes "
                         "after its end",
                         magic_at);
  }
  const uint32_t crc = crc32c(file.data + start, reader.position() - start);
  if (reader.number<uint32_t>("the trailer") != crc) {
    throw ContainerError(Fault::checksum, "the CRC of the trailer does not fit", start);
  }
  offsets.reserve(static_cast<size_t>(blocks + 1));
  int64_t before = header.size();
  for (int64_t i = 0; i < blocks; ++i) {
    const auto offset = static_cast<int64_t>(read_number<uint64_t>(numbers + 8 * i));
    const bool fits = i == 0 ? offset == before : offset >= before && offset <= start;
    if (!fits) {
      throw ContainerError(
          Fault::format,
          text("the trailer puts block ", i, " at byte ", offset, ", where it cannot be"),
          start + 8 * i);
    }
    before = offset + least_block(header, i);
    offsets.push_back(offset);
  }
  if (before > start || (blocks == 0 && before != start)) {
    throw ContainerError(Fault::format, "the blocks do not end where the trailer starts", start);
  }
  offsets.push_back(start);
  return offsets;
}

std::vector<int64_t> scan_offsets(const ContainerHeader& header, ByteView file) {
  std::vector<int64_t> offsets{header.size()};
  for (int64_t i = 0; i < header.blocks(); ++i) {
    const int64_t offset = offsets.back();
    if (file.size - offset < 8) break;
    const int64_t size = read_number<uint32_t>(file.data + offset);
    const int64_t samples = read_number<uint32_t>(file.data + offset + 4);
    if (samples != header.samples(i) || size < least_block(header, i) - 4 ||
        size > file.size - offset - 4) {
      break;
    }
    offsets.push_back(offset + 4 + size);
  }
  return offsets;
}

Block read_block(const ContainerHeader& header, ByteView file, int64_t index, int64_t offset,
                 int64_t end) {
  if (index < 0 || index >= header.blocks()) {
    throw std::invalid_argument(
        text("there is no block ", index, ", the file has ", header.blocks()));
  }
  if (offset < 0 || offset > file.size || end > file.size) {
    throw std::invalid_argument(text("block ", index, " lies at bytes ", offset, "..", end,
                                     ", outside the file of ", file.size));
  }
  const auto wrong = [&](Fault fault, const std::string& message, int64_t where) {
    throw ContainerError(fault, message, where, index);
  };
  Reader frame(file, offset, file.size, index);
  const int64_t size = frame.number<uint32_t>("the block");
  if (size < least_block(header, index) - 4) {
    wrong(Fault::format, text("the block has ", size, " bytes, less than its lanes take"), offset);
  }
  frame.take(size, "the block");
  Block block;
  block.end = frame.position();
  if (end >= 0 && block.end != end) {
    wrong(Fault::format,
          text("the block ends at byte ", block.end, ", but what follows it starts at ", end),
          offset);
  }
  const int64_t crcs = block.end - 8;
  block.data_crc = read_number<uint32_t>(file.data + crcs + 4);
  const uint32_t crc = block_crc(header, index, file.data + offset, crcs - offset, block.data_crc);
  if (read_number<uint32_t>(file.data + crcs) != crc) {
    wrong(Fault::checksum, "the CRC of the block does not fit", offset);
  }
  Reader reader(file, offset + 4, crcs, index);
  const int64_t samples = reader.number<uint32_t>("the block"), expected = header.samples(index);
  if (samples != expected) {
    wrong(Fault::format, text("the block has ", samples, " samples, expected ", expected),
          offset + 4);
  }
  const int64_t lanes = header.lanes_of(index);
  const int64_t passes = (samples + lanes - 1) / lanes;
  int64_t most = 0;
  if (__builtin_mul_overflow(passes, header.D, &most)) most = INT32_MAX;
  most = std::min<int64_t>(most, INT32_MAX - kStateWords) + kStateWords;
  int64_t total = 0;
  block.counts.reserve(static_cast<size_t>(lanes));
  for (int64_t l = 0; l < lanes; ++l) {
    const int64_t where = reader.position(), count = reader.count(most);
    total += count;
    if (count < kStateWords || total > reader.left() / 4) {
      wrong(
          Fault::format,
          text("lane ", l, " has ", count, " words, expected at least 2 and at most what is left"),
          where);
    }
    block.counts.push_back(static_cast<int32_t>(count));
    block.longest = std::max(block.longest, count);
  }
  if (4 * total != reader.left()) {
    wrong(Fault::format,
          text("the lanes have ", total, " words, but ", reader.left(), " bytes follow"),
          reader.position());
  }
  block.payload = reader.here();
  return block;
}

void Block::unpack(int32_t* words) const {
  const uint8_t* from = payload;
  for (const int32_t count : counts) {
    copy_words(from, count, words);
    std::fill(words + count, words + longest, 0);
    from += 4 * int64_t{count};
    words += longest;
  }
}

void check_data(const ContainerHeader& header, int64_t index, const void* data, uint32_t crc) {
  if (data_crc(header, index, data) == crc) return;
  throw ContainerError(Fault::corrupt,
                       "the decoded samples are not those that were encoded, though the block is "
                       "intact: a mistake of the implementation, or the file was forged",
                       0, index);
}

}  // namespace nnkernels::pc
