// The container: its bytes by hand, CRC-32C, and every kind of damage, named.
#include <algorithm>
#include <cstring>
#include <random>

#include "pc/container.h"
#include "testing/check.h"

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
    for (const uint8_t byte :
         pack_block(header, i, words.data(), row, counts.data(), data.data())) {
      file.bytes.push_back(byte);
    }
    file.counts.push_back(counts);
    file.words.push_back(words);
    file.data.push_back(data);
  }
  for (const uint8_t byte : pack_trailer(file.offsets)) file.bytes.push_back(byte);
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
  CHECK_EQ(read, crc32c(&data_crc, 4, crc32c(bytes.data(), 810)));
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

}  // namespace
}  // namespace nnkernels::pc
