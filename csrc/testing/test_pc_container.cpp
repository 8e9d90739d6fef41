// The container: its bytes by hand, CRC-32C, every kind of damage, named, and 100,000 damaged files
// whose decoding must give an error or what was encoded.
#include <algorithm>
#include <cstring>
#include <random>

#include "pc/container.h"
#include "testing/check.h"
#include "testing/pc_codec_model.h"

namespace nnkernels::pc {
namespace {

ContainerHeader small_header() {
  ContainerHeader header;
  header.precision = 16;
  header.D = 6;
  header.K = 200;
  header.N = 5;
  header.dims = {2, 3};
  header.block = 3;
  header.lanes = 2;
  for (size_t i = 0; i < 16; ++i) header.model_id[i] = static_cast<uint8_t>(i);
  return header;
}

struct File {
  ContainerHeader header;
  Bytes bytes;
  std::vector<int64_t> offsets;
  std::vector<std::vector<int32_t>> counts, words;
  std::vector<Bytes> data;
};

void append(Bytes& bytes, const Bytes& more) {
  bytes.insert(bytes.end(), more.begin(), more.end());
}

// Blocks of random words: nothing here decodes them.
File file_of(const ContainerHeader& header, unsigned seed) {
  std::mt19937 random(seed);
  File file{header, pack_header(header), {}, {}, {}, {}};
  for (int64_t i = 0; i < header.blocks(); ++i) {
    const int64_t lanes = header.lanes_of(i), row = 8;
    std::vector<int32_t> words, counts;
    for (int64_t l = 0; l < lanes; ++l) {
      counts.push_back(2 + static_cast<int32_t>(random() % 6));
      for (int64_t w = 0; w < row; ++w) {
        words.push_back(w < counts.back() ? static_cast<int32_t>(random()) : 0);
      }
    }
    Bytes data(static_cast<size_t>(header.data_bytes(i)));
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
    file.offsets.push_back(static_cast<int64_t>(file.bytes.size()));
    append(file.bytes, pack_block(header, i, words.data(), row, counts.data(), data.data()));
    file.counts.push_back(counts);
    file.words.push_back(words);
    file.data.push_back(data);
  }
  append(file.bytes, pack_trailer(file.offsets));
  return file;
}

ByteView view(const Bytes& bytes) { return {bytes.data(), static_cast<int64_t>(bytes.size())}; }

// Reads the whole file; the fault, or "" when there is none.
std::string fault_of(const Bytes& bytes, const File* expected = nullptr) {
  try {
    const ContainerHeader header = read_header(view(bytes));
    const std::vector<int64_t> offsets = read_offsets(header, view(bytes));
    for (int64_t i = 0; i < header.blocks(); ++i) {
      const auto at = static_cast<size_t>(i);
      const Block block = read_block(header, view(bytes), i, offsets[at], offsets[at + 1]);
      std::vector<int32_t> words(block.counts.size() * static_cast<size_t>(block.longest));
      block.unpack(words.data());
      if (expected == nullptr) continue;
      CHECK(block.counts == expected->counts[at]);
      for (size_t l = 0; l < block.counts.size(); ++l) {
        const auto count = static_cast<size_t>(block.longest);
        CHECK(std::equal(words.begin() + static_cast<int64_t>(l * count),
                         words.begin() + static_cast<int64_t>((l + 1) * count),
                         expected->words[at].begin() + static_cast<int64_t>(8 * l)));
      }
      check_data(header, i, expected->data[at].data(), block.data_crc);
    }
    return "";
  } catch (const ContainerError& error) {
    return fault_name(error.fault);
  }
}

TEST(crc_of_known_texts) {
  CHECK_EQ(crc32c("123456789", 9), 0xE3069283u);
  CHECK_EQ(crc32c_portable("123456789", 9), 0xE3069283u);
  CHECK_EQ(crc32c("", 0), 0u);
  const Bytes zeros(32), ones(32, 0xFF);
  CHECK_EQ(crc32c(zeros.data(), 32), 0x8A9136AAu);
  CHECK_EQ(crc32c(ones.data(), 32), 0x62A8AB43u);
  std::mt19937 random(1);
  Bytes bytes(1000);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (int64_t from = 0; from < 20; ++from) {
    for (int64_t size : {0, 1, 7, 8, 9, 63, 64, 500}) {
      const uint32_t whole = crc32c(bytes.data() + from, size);
      CHECK_EQ(whole, crc32c_portable(bytes.data() + from, size));
      const int64_t half = size / 3;
      CHECK_EQ(whole,
               crc32c(bytes.data() + from + half, size - half, crc32c(bytes.data() + from, half)));
    }
  }
}

TEST(bytes_of_a_header) {
  const Bytes bytes = pack_header(small_header());
  const Bytes expected = {'N', 'N', 'P', 'C', 1, 0, 1, 16, 6, 0, 0, 0, 200, 0,  0,  0,  5,  0, 0, 0,
                          0,   0,   0,   0,   0, 2, 2, 0,  0, 0, 3, 0, 0,   0,  3,  0,  0,  0, 2, 0,
                          0,   0,   0,   1,   2, 3, 4, 5,  6, 7, 8, 9, 10,  11, 12, 13, 14, 15};
  CHECK_EQ(bytes.size(), expected.size() + 4);
  CHECK(std::equal(expected.begin(), expected.end(), bytes.begin()));
  const uint32_t crc = crc32c_portable(expected.data(), static_cast<int64_t>(expected.size()));
  for (size_t i = 0; i < 4; ++i) {
    CHECK_EQ(bytes[expected.size() + i], static_cast<uint8_t>(crc >> (8 * i)));
  }
  CHECK_EQ(small_header().size(), static_cast<int64_t>(bytes.size()));
}

TEST(bytes_of_a_block) {
  ContainerHeader header = small_header();
  header.lanes = 1;
  std::vector<int32_t> words(200);
  for (int32_t i = 0; i < 200; ++i) words[static_cast<size_t>(i)] = i << 16;
  // A count of two bytes. Only what is built from it counts here: the reader refuses so many words.
  const int32_t count = 200;
  const uint8_t data[18] = {1, 2, 3};
  const Bytes bytes = pack_block(header, 0, words.data(), 200, &count, data);
  CHECK_EQ(bytes.size(), 4u + 4 + 2 + 800 + 8);
  CHECK(Bytes(bytes.begin(), bytes.begin() + 10) ==
        Bytes({0x2E, 0x03, 0, 0, 3, 0, 0, 0, 0xC8, 0x01}));
  CHECK_EQ(bytes[10 + 4 * 199 + 2], 199);
  const uint32_t data_crc = crc32c(data, 18);
  uint32_t read = 0;
  std::memcpy(&read, bytes.data() + bytes.size() - 4, 4);
  CHECK_EQ(read, data_crc);
  std::memcpy(&read, bytes.data() + bytes.size() - 8, 4);
  const Bytes head = pack_header(header);
  const uint32_t index = 0, seed = crc32c(&index, 4, crc32c(head.data() + head.size() - 4, 4));
  CHECK_EQ(read, crc32c(&data_crc, 4, crc32c(bytes.data(), 810, seed)));
}

TEST(reads_what_it_wrote) {
  unsigned seed = 0;
  for (const int64_t N : {0, 1, 3, 5, 17}) {
    for (const int64_t lanes : {1, 2, 3, 64}) {
      ContainerHeader header = small_header();
      header.N = N;
      header.lanes = lanes;
      header.type = seed % 2 == 0 ? Symbol::uint8 : Symbol::int16;
      const File file = file_of(header, seed++);
      CHECK_EQ(fault_of(file.bytes, &file), "");
      const ContainerHeader read = read_header(view(file.bytes));
      CHECK(read.dims == header.dims && read.model_id == header.model_id);
      CHECK(read.N == N && read.D == 6 && read.K == 200 && read.precision == 16 &&
            read.type == header.type && read.block == 3 && read.lanes == lanes);
      CHECK(scan_offsets(read, view(file.bytes)) == read_offsets(read, view(file.bytes)));
    }
  }
}

TEST(every_cut_and_every_flipped_bit_is_seen) {
  const File file = file_of(small_header(), 3);
  for (size_t size = 0; size < file.bytes.size(); ++size) {
    CHECK(fault_of(Bytes(file.bytes.begin(), file.bytes.begin() + static_cast<int64_t>(size))) !=
          "");
  }
  Bytes longer = file.bytes;
  longer.push_back(0);
  CHECK(fault_of(longer) != "");
  for (size_t bit = 0; bit < 8 * file.bytes.size(); ++bit) {
    Bytes bytes = file.bytes;
    bytes[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    CHECK(fault_of(bytes) != "");
  }
}

TEST(damage_is_named) {
  const File file = file_of(small_header(), 4);
  const auto changed = [&](size_t index) {
    Bytes bytes = file.bytes;
    bytes[index] ^= 1;
    return bytes;
  };
  CHECK_THROWS(read_header(view(changed(0))), "the magic is 'ONPC', expected 'NNPC'");
  CHECK_THROWS(read_header(view(changed(4))), "the version is 0, this build reads 1");
  CHECK_THROWS(read_header(view(changed(6))), "arith is 0, this build decodes 1");
  CHECK_THROWS(read_header(view(changed(8))), "CRC of the header");
  CHECK_EQ(fault_of(changed(8)), "checksum");
  const ContainerHeader header = read_header(view(file.bytes));
  CHECK_THROWS(read_header(view(file.bytes), 29), "limit of 29");
  const auto first = static_cast<size_t>(file.offsets[0]);
  const Bytes broken = changed(first + 20);
  CHECK_THROWS(read_block(header, view(broken), 0, file.offsets[0]),
               "CRC of the block does not fit at byte 62 in block 0");
  // The other block is still there.
  CHECK_EQ(read_block(header, view(broken), 1, file.offsets[1]).counts.size(), 2u);
  CHECK_THROWS(check_data(header, 0, Bytes(18).data(), 1), "not those that were encoded");
  CHECK_THROWS(read_block(header, view(file.bytes), 2, 62), "no block 2");
  CHECK_THROWS(read_block(header, view(file.bytes), 0, 1 << 20), "outside the file");
  // A frame that claims more than the file holds ends the search for blocks.
  const Bytes endless = changed(first + 3);
  CHECK_THROWS(read_block(header, view(endless), 0, file.offsets[0]),
               "are left at byte 66 in block 0");
  CHECK_EQ(scan_offsets(header, view(endless)).size(), 1u);
}

TEST(wrong_values_are_refused_by_both_sides) {
  const auto refused = [](auto change, const std::string& part) {
    ContainerHeader header = small_header();
    change(header);
    CHECK_THROWS(pack_header(header), part);
  };
  refused([](ContainerHeader& h) { h.precision = 11; }, "12..24");
  refused([](ContainerHeader& h) { h.precision = 25; }, "12..24");
  refused([](ContainerHeader& h) { h.D = 0; }, "D is 0");
  refused([](ContainerHeader& h) { h.K = 0; }, "K is 0");
  refused([](ContainerHeader& h) { h.K = 257; }, "K is 257");
  refused([](ContainerHeader& h) { h.type = Symbol::int16, h.K = 4097; }, "K is 4097");
  refused([](ContainerHeader& h) { h.type = Symbol::int16, h.K = 4096, h.precision = 13; },
          "too small");
  refused([](ContainerHeader& h) { h.dims = {2, 2}; }, "[2, 2]");
  refused([](ContainerHeader& h) { h.dims = {int64_t{1} << 31, int64_t{1} << 31, 6}; }, "product");
  refused([](ContainerHeader& h) { h.block = 0; }, "block is 0");
  refused([](ContainerHeader& h) { h.lanes = 0; }, "lanes is 0");
  refused([](ContainerHeader& h) { h.N = -1; }, "N is -1");
  // What a header cannot be built with, a reader refuses although its CRC fits.
  Bytes bytes = file_of(small_header(), 5).bytes;
  const auto patch = [&](size_t index, uint8_t value, const std::string& part) {
    Bytes other = bytes;
    other[index] = value;
    const uint32_t crc = crc32c(other.data(), 58);
    std::memcpy(other.data() + 58, &crc, 4);
    CHECK_THROWS(read_header(view(other)), part);
  };
  patch(7, 11, "12..24");
  patch(8, 7, "product");
  patch(12, 0, "K is 0");
  patch(24, 2, "dtype is 2");
  patch(23, 255, "limit");
  patch(18, 255, "cannot lie in the");
  patch(34, 0, "block is 0");
  patch(38, 0, "lanes is 0");
}

// ---- damage to whole files, decoded by the codec ----

struct CodedFile {
  const RandomModel& model;
  std::vector<uint8_t> x;
  ContainerHeader header;
  Bytes bytes;
  std::vector<int64_t> offsets;

  CodedFile(const RandomModel& of, int64_t N, int64_t block, int64_t lanes, int64_t precision)
      : model(of), x(of.data<uint8_t>(N, 5)) {
    header.precision = precision;
    header.D = header.dims.emplace_back(of.D);
    header.K = of.K;
    header.N = N;
    header.block = block;
    header.lanes = lanes;
    header.model_id = {1, 2, 3};
    bytes = pack_header(header);
    const FrozenModel frozen = of.frozen(precision);
    for (int64_t i = 0; i < header.blocks(); ++i) {
      const uint8_t* data = x.data() + i * block * of.D;
      const int64_t rows = header.samples(i), used = header.lanes_of(i);
      const int64_t row = rans_capacity(rows, of.D, used);
      std::vector<int32_t> words(static_cast<size_t>(used * row)),
          counts(static_cast<size_t>(used));
      encode(frozen, {data, Symbol::uint8, rows}, used, static_cast<int>(precision), words.data(),
             counts.data(), {});
      offsets.push_back(static_cast<int64_t>(bytes.size()));
      append(bytes, pack_block(header, i, words.data(), row, counts.data(), data));
    }
    append(bytes, pack_trailer(offsets));
  }
};

enum class Outcome { refused, same, shorter };

// What a reader makes of a file: it refuses, or finds what was encoded, or, where the header says
// so, fewer samples of it. Everything else is wrong data.
Outcome read_file(const CodedFile& file, const Bytes& bytes, const RandomModel& model) {
  constexpr int64_t limit = 1 << 16;
  ContainerHeader header;
  std::vector<uint8_t> x;
  try {
    header = read_header(view(bytes), limit);
    if (header.model_id != file.header.model_id || header.D != model.D || header.K != model.K) {
      return Outcome::refused;
    }
    const std::vector<int64_t> offsets = read_offsets(header, view(bytes));
    const FrozenModel frozen = model.frozen(header.precision);
    for (int64_t i = 0; i < header.blocks(); ++i) {
      const auto at = static_cast<size_t>(i);
      const Block block = read_block(header, view(bytes), i, offsets[at], offsets[at + 1]);
      std::vector<int32_t> words(block.counts.size() * static_cast<size_t>(block.longest));
      block.unpack(words.data());
      DecodeArgs args;
      args.words = words.data();
      args.lanes = static_cast<int64_t>(block.counts.size());
      args.row = block.longest;
      args.counts = block.counts.data();
      args.N = header.samples(i);
      args.precision = static_cast<int>(header.precision);
      args.type = header.type;
      Bytes data(static_cast<size_t>(header.data_bytes(i)));
      args.x = data.data();
      decode(frozen, args, {});
      check_data(header, i, data.data(), block.data_crc);
      append(x, data);
    }
  } catch (const ContainerError&) {
    return Outcome::refused;
  } catch (const CorruptStream&) {
    return Outcome::refused;
  } catch (const std::invalid_argument&) {
    return Outcome::refused;
  }
  CHECK(header.type == Symbol::uint8 && x.size() <= file.x.size());
  CHECK(std::equal(x.begin(), x.end(), file.x.begin()));
  CHECK_EQ(static_cast<int64_t>(x.size()), header.N * header.D);
  return x.size() == file.x.size() ? Outcome::same : Outcome::shorter;
}

class Mutator {
 public:
  Mutator(const CodedFile& file, const CodedFile& other, unsigned seed)
      : file_(file), other_(other), random_(seed) {}

  Bytes operator()() {
    Bytes bytes = file_.bytes;
    // Half of the files carry checksums that fit; blocks in each other's place with checksums that
    // fit would be a proper file of other samples.
    const bool mended = below(2) == 0;
    for (uint32_t changes = 1 + below(3); changes > 0; --changes) change(bytes, mended ? 8 : 9);
    if (mended) mend(bytes);
    return bytes;
  }

 private:
  uint32_t below(size_t count) {
    return random_() % static_cast<uint32_t>(std::max<size_t>(count, 1));
  }
  static Bytes::iterator place(Bytes& bytes, size_t index) {
    return bytes.begin() + static_cast<int64_t>(index);
  }

  void change(Bytes& bytes, size_t kinds) {
    if (bytes.empty()) return;
    const size_t at = below(bytes.size()), length = std::min<size_t>(bytes.size() - at, below(20));
    switch (below(kinds)) {
      case 0: bytes[at] ^= static_cast<uint8_t>(1 << below(8)); break;
      case 1: bytes[at] = static_cast<uint8_t>(random_()); break;
      case 2: bytes.resize(at); break;
      case 3: bytes.erase(place(bytes, at), place(bytes, at + length)); break;
      case 4:
        for (size_t i = 0; i < length; ++i)
          bytes.insert(place(bytes, at), static_cast<uint8_t>(random_()));
        break;
      case 5: {
        const size_t from = below(bytes.size() - length + 1);
        const Bytes copy(place(bytes, from), place(bytes, from + length));
        std::copy(copy.begin(), copy.end(), place(bytes, at));
        break;
      }
      case 6: {
        // The rest of another file.
        const Bytes& other = other_.bytes;
        const size_t from = below(other.size());
        bytes.resize(at);
        bytes.insert(bytes.end(), other.begin() + static_cast<int64_t>(from), other.end());
        break;
      }
      case 7: {
        // A field of the header or of a block.
        const bool front = below(2) == 0;
        const size_t start =
            front ? 4 : static_cast<size_t>(file_.offsets[below(file_.offsets.size())]);
        const size_t where = start + below(front ? 54 : 12);
        if (where >= bytes.size()) break;
        const uint8_t values[] = {0, 1, 2, 3, 5, 127, 128, 255};
        bytes[where] = values[below(8)];
        break;
      }
      default: {
        // Blocks change places.
        if (file_.offsets.size() < 2) break;
        const auto first = static_cast<size_t>(file_.offsets[0]),
                   second = static_cast<size_t>(file_.offsets[1]);
        const size_t size = std::min(second - first, bytes.size() - std::min(bytes.size(), second));
        if (first + size > bytes.size()) break;
        std::swap_ranges(place(bytes, first), place(bytes, first + size), place(bytes, second));
      }
    }
  }

  static void set_crc(Bytes& bytes, size_t begin, size_t end) {
    const uint32_t crc = crc32c(bytes.data() + begin, static_cast<int64_t>(end - begin));
    std::memcpy(bytes.data() + end, &crc, 4);
  }

  // Writes the checksums that these bytes should have where the file had them.
  void mend(Bytes& bytes) {
    const auto size = static_cast<size_t>(file_.header.size());
    if (bytes.size() < size) return;
    set_crc(bytes, 0, size - 4);
    for (size_t i = 0; i < file_.offsets.size(); ++i) {
      const auto start = static_cast<size_t>(file_.offsets[i]);
      if (bytes.size() < start + 4) break;
      uint32_t length = 0;
      std::memcpy(&length, bytes.data() + start, 4);
      const size_t end = start + 4 + length;
      if (length < 16 || end > bytes.size()) continue;
      const auto index = static_cast<uint32_t>(i);
      uint32_t crc = crc32c(&index, 4, crc32c(bytes.data() + size - 4, 4));
      crc = crc32c(bytes.data() + start, static_cast<int64_t>(end - 8 - start), crc);
      crc = crc32c(bytes.data() + end - 4, 4, crc);
      std::memcpy(bytes.data() + end - 8, &crc, 4);
    }
    const size_t trailer = 8 * file_.offsets.size() + 8;
    if (bytes.size() >= size + trailer) set_crc(bytes, bytes.size() - trailer, bytes.size() - 4);
  }

  const CodedFile &file_, &other_;
  std::mt19937 random_;
};

TEST(mutations_never_give_wrong_data) {
  const RandomModel model(6, 4, 20, 1, Shape::random, 2), small(2, 3, 5, 2, Shape::random, 2),
      one(3, 2, 1, 3);
  const CodedFile files[] = {CodedFile(model, 7, 3, 2, 16), CodedFile(small, 12, 20, 5, 12),
                             CodedFile(model, 2, 1, 4, 24), CodedFile(one, 9, 4, 2, 12)};
  constexpr int count = 4, each = 25000;
  int outcomes[3] = {};
  for (int i = 0; i < count; ++i) {
    const CodedFile& file = files[i];
    CHECK(read_file(file, file.bytes, file.model) == Outcome::same);
    Mutator mutate(file, files[(i + 1) % count], static_cast<unsigned>(i));
    for (int n = 0; n < each; ++n) {
      ++outcomes[static_cast<int>(read_file(file, mutate(), file.model))];
    }
  }
  // Some changes undo each other, touch what means nothing, or leave a shorter whole file.
  CHECK(outcomes[0] > count * each / 2);
  std::printf("     %d refused, %d the same, %d shorter\n", outcomes[0], outcomes[1], outcomes[2]);
}

}  // namespace
}  // namespace nnkernels::pc
