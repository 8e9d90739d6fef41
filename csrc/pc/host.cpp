#include "pc/host.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>

#include "pc/container.h"
#include "pc/rans.h"

namespace py = pybind11;

namespace nnkernels::pc {
namespace {

// Contiguous, and only cast where nothing is lost.
template <class Number>
using Array = py::array_t<Number, py::array::c_style>;

// A contiguous buffer of any kind, as bytes, for as long as this lives.
class Buffer {
 public:
  explicit Buffer(const py::buffer& object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS) != 0) {
      throw py::error_already_set();
    }
  }
  ~Buffer() { PyBuffer_Release(&view_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  ByteView bytes() const {
    return {static_cast<const uint8_t*>(view_.buf), static_cast<int64_t>(view_.len)};
  }
  int64_t item_size() const { return static_cast<int64_t>(view_.itemsize); }

 private:
  Py_buffer view_;
};

py::bytes to_python(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

py::array_t<int64_t> to_python(const std::vector<int64_t>& numbers) {
  return py::array_t<int64_t>(static_cast<py::ssize_t>(numbers.size()), numbers.data());
}

void expect(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

std::string shape(const py::array& array) {
  std::string text = "[";
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    text += (d > 0 ? ", " : "") + std::to_string(array.shape(d));
  }
  return text + "]";
}

// ---- container ----

Symbol symbol_type(const std::string& name) {
  expect(name == "uint8" || name == "int16",
         "ContainerHeader: dtype is '" + name + "', expected 'uint8' or 'int16'");
  return name == "uint8" ? Symbol::uint8 : Symbol::int16;
}

ContainerHeader make_header(int64_t precision, int64_t D, int64_t K, int64_t N,
                            const std::string& dtype, const std::vector<int64_t>& dims,
                            int64_t block, int64_t lanes, const py::bytes& model_id) {
  const auto id = static_cast<std::string>(model_id);
  expect(id.size() == 16,
         "ContainerHeader: model_id has " + std::to_string(id.size()) + " bytes, expected 16");
  ContainerHeader header;
  header.precision = precision;
  header.D = D;
  header.K = K;
  header.N = N;
  header.type = symbol_type(dtype);
  header.dims = dims;
  header.block = block;
  header.lanes = lanes;
  std::copy(id.begin(), id.end(), header.model_id.begin());
  pack_header(header);  // refuses wrong values
  return header;
}

void check_index(const char* function, const ContainerHeader& header, int64_t index) {
  expect(index >= 0 && index < header.blocks(), std::string(function) + ": there is no block " +
                                                    std::to_string(index) + ", the file has " +
                                                    std::to_string(header.blocks()));
}

// The samples of a block.
void check_samples(const char* function, const ContainerHeader& header, int64_t index,
                   const Buffer& data) {
  check_index(function, header, index);
  const int64_t size = data.bytes().size, expected = header.data_bytes(index);
  expect(
      size == expected && (data.item_size() == 1 || data.item_size() == symbol_size(header.type)),
      std::string(function) + ": data has " + std::to_string(size) + " bytes in items of " +
          std::to_string(data.item_size()) + ", expected " + std::to_string(expected) +
          " bytes: the samples of block " + std::to_string(index) + " in the header's dtype");
}

py::bytes container_block(const ContainerHeader& header, int64_t index, const py::array& words,
                          const Array<int32_t>& counts, const py::buffer& samples) {
  constexpr char name[] = "container_block";
  const Buffer data(samples);
  check_samples(name, header, index, data);
  const int64_t lanes = header.lanes_of(index);
  const char kind = words.dtype().kind();
  expect((kind == 'i' || kind == 'u') && words.itemsize() == 4,
         std::string(name) + ": words must be int32 or uint32");
  expect(words.ndim() == 2 && words.shape(0) == lanes && counts.ndim() == 1 &&
             counts.shape(0) == lanes,
         std::string(name) + ": words is " + shape(words) + " and counts is " + shape(counts) +
             ", expected " + std::to_string(lanes) + " lanes");
  const py::array rows = py::array::ensure(words, py::array::c_style);
  const auto* numbers = static_cast<const int32_t*>(rows.data());
  Bytes bytes;
  {
    const py::gil_scoped_release release;
    bytes = pack_block(header, index, numbers, rows.shape(1), counts.data(), data.bytes().data);
  }
  return to_python(bytes);
}

py::tuple container_read_block(const ContainerHeader& header, const py::buffer& file, int64_t index,
                               int64_t offset, std::optional<int64_t> end) {
  const Buffer data(file);
  Block block;
  {
    const py::gil_scoped_release release;
    block = read_block(header, data.bytes(), index, offset, end.value_or(-1));
  }
  const auto lanes = static_cast<py::ssize_t>(block.counts.size());
  Array<int32_t> words({lanes, static_cast<py::ssize_t>(block.longest)});
  block.unpack(words.mutable_data());
  return py::make_tuple(words, Array<int32_t>(lanes, block.counts.data()), block.data_crc,
                        block.end);
}

void add_container(py::module_& module) {
  static const py::handle error =
      py::exception<ContainerError>(module, "ContainerError", PyExc_ValueError).release();
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const ContainerError& fault) {
      const py::object value = error(fault.what());
      value.attr("kind") = fault_name(fault.fault);
      value.attr("offset") = fault.offset;
      value.attr("block") = fault.block < 0 ? py::object(py::none()) : py::int_(fault.block);
      PyErr_SetObject(error.ptr(), value.ptr());
    }
  });

  using Header = ContainerHeader;
  py::class_<Header>(module, "ContainerHeader", "What a container says before its blocks.")
      .def(py::init(&make_header), py::kw_only(), py::arg("precision"), py::arg("D"), py::arg("K"),
           py::arg("N"), py::arg("dtype"), py::arg("dims"), py::arg("block"), py::arg("lanes"),
           py::arg("model_id"))
      .def_readonly("precision", &Header::precision)
      .def_readonly("D", &Header::D)
      .def_readonly("K", &Header::K)
      .def_readonly("N", &Header::N)
      .def_readonly("dims", &Header::dims)
      .def_readonly("block", &Header::block)
      .def_readonly("lanes", &Header::lanes)
      .def_property_readonly(
          "dtype", [](const Header& h) { return h.type == Symbol::uint8 ? "uint8" : "int16"; })
      .def_property_readonly("model_id",
                             [](const Header& h) {
                               return py::bytes(reinterpret_cast<const char*>(h.model_id.data()),
                                                16);
                             })
      .def_property_readonly("version", [](const Header&) { return kContainerVersion; })
      .def_property_readonly("arith", [](const Header&) { return kArith; })
      .def_property_readonly("size", &Header::size)
      .def_property_readonly("blocks", &Header::blocks)
      .def(
          "samples",
          [](const Header& h, int64_t index) {
            check_index("samples", h, index);
            return h.samples(index);
          },
          py::arg("index"), "Samples of a block.")
      .def(
          "lanes_of",
          [](const Header& h, int64_t index) {
            check_index("lanes_of", h, index);
            return h.lanes_of(index);
          },
          py::arg("index"), "Lanes of a block: no more than its samples.")
      .def(
          "pack", [](const Header& h) { return to_python(pack_header(h)); }, "The header's bytes.")
      .def_static(
          "parse",
          [](const py::buffer& data, int64_t limit) {
            return read_header(Buffer(data).bytes(), limit);
          },
          py::arg("data"), py::arg("limit") = kSymbolLimit,
          "The header of a whole file; ContainerError, of kind 'limit' where N * D > limit.");

  module.def("container_block", &container_block, py::arg("header"), py::arg("index"),
             py::arg("words"), py::arg("counts"), py::arg("data"),
             "The bytes of block `index`: words int32 or uint32 [lanes, W], counts int32 [lanes]\n"
             "of them used, data: the samples in the header's dtype.");
  module.def(
      "container_trailer",
      [](const std::vector<int64_t>& offsets) { return to_python(pack_trailer(offsets)); },
      py::arg("offsets"), "The bytes of the trailer: `offsets` tells where each block starts.");
  module.def(
      "container_offsets",
      [](const Header& header, const py::buffer& data) {
        return to_python(read_offsets(header, Buffer(data).bytes()));
      },
      py::arg("header"), py::arg("data"),
      "int64 [blocks + 1]: where each block and the trailer start, as the trailer says.");
  module.def(
      "container_scan",
      [](const Header& header, const py::buffer& data) {
        return to_python(scan_offsets(header, Buffer(data).bytes()));
      },
      py::arg("header"), py::arg("data"),
      "int64 [found + 1]: the same from the blocks, up to the first that does not fit.");
  module.def("container_read_block", &container_read_block, py::arg("header"), py::arg("data"),
             py::arg("index"), py::arg("offset"), py::arg("end") = py::none(),
             "(words int32 [lanes, W], counts int32 [lanes], data_crc, end) of the block at "
             "`offset`.");
  module.def(
      "container_check_data",
      [](const Header& header, int64_t index, const py::buffer& samples, uint32_t crc) {
        const Buffer data(samples);
        check_samples("container_check_data", header, index, data);
        const py::gil_scoped_release release;
        check_data(header, index, data.bytes().data, crc);
      },
      py::arg("header"), py::arg("index"), py::arg("data"), py::arg("data_crc"),
      "ContainerError of kind 'corrupt' unless `data` are the samples of block `index`.");
  module.def(
      "crc32c",
      [](const py::buffer& object, uint32_t value) {
        const Buffer data(object);
        const py::gil_scoped_release release;
        return crc32c(data.bytes().data, data.bytes().size, value);
      },
      py::arg("data"), py::arg("value") = 0,
      "CRC-32C of what `value` is the CRC of, followed by `data`.");
}

// ---- rANS ----

py::tuple encode(const Array<int32_t>& low, const Array<int32_t>& width, int64_t lanes,
                 int64_t precision) {
  expect(low.ndim() == 2 && width.ndim() == 2 && low.shape(0) == width.shape(0) &&
             low.shape(1) == width.shape(1),
         "rans_encode: low is " + shape(low) + " and width is " + shape(width) +
             ", expected [N, D] both");
  const int64_t N = low.shape(0), D = low.shape(1);
  check_rans_sizes(N, D, lanes, precision);
  Array<int32_t> words({lanes, rans_capacity(N, D, lanes)}), counts(lanes);
  int32_t *rows = words.mutable_data(), *used = counts.mutable_data();
  const int32_t *from = low.data(), *size = width.data();
  {
    const py::gil_scoped_release release;
    RansEncoder encoder(N, D, lanes, static_cast<int>(precision), rows);
    encoder.push(from, size, 0, N, {});
    encoder.finish(used, {});
  }
  return py::make_tuple(words, counts);
}

Array<int32_t> decode(const Array<int32_t>& words, const Array<int32_t>& counts,
                      const Array<int32_t>& cdf, int64_t N, int64_t precision) {
  expect(words.ndim() == 2 && counts.ndim() == 1 && words.shape(0) == counts.shape(0),
         "rans_decode: words is " + shape(words) + " and counts is " + shape(counts) +
             ", expected [L, W] and [L]");
  const bool own = cdf.ndim() == 3;
  expect((own && cdf.shape(0) == N) || cdf.ndim() == 2,
         "rans_decode: cdf is " + shape(cdf) +
             ", expected [D, K + 1] or [N, D, K + 1] with N = " + std::to_string(N));
  const int64_t D = cdf.shape(cdf.ndim() - 2), columns = cdf.shape(cdf.ndim() - 1);
  expect(columns >= 2,
         "rans_decode: cdf has " + std::to_string(columns) + " columns, expected K + 1");
  check_rans_sizes(N, D, words.shape(0), precision);
  Array<int32_t> symbols({N, D});
  const RansDecodeArgs args{.words = words.data(),
                            .lanes = words.shape(0),
                            .row = words.shape(1),
                            .counts = counts.data(),
                            .cdf = cdf.data(),
                            .sample_stride = own ? D * columns : 0,
                            .N = N,
                            .D = D,
                            .K = columns - 1,
                            .precision = static_cast<int>(precision),
                            .symbols = symbols.mutable_data()};
  const py::gil_scoped_release release;
  rans_decode(args, {});
  return symbols;
}

void add_rans(py::module_& module) {
  py::register_exception<CorruptStream>(module, "CorruptStream", PyExc_ValueError);
  module.def("rans_encode", &encode, py::arg("low"), py::arg("width"), py::arg("lanes"),
             py::arg("precision") = 20,
             "(words int32 [L, ceil(N/L) D + 2], counts int32 [L]) of symbols whose intervals\n"
             "[low, low + width) out of 2^precision are int32 [N, D].");
  module.def("rans_decode", &decode, py::arg("words"), py::arg("counts"), py::arg("cdf"),
             py::arg("N"), py::arg("precision") = 20,
             "The symbols, int32 [N, D], by cumulative frequencies int32 [D, K + 1] or\n"
             "[N, D, K + 1]; CorruptStream (a ValueError) where the words are no encoder's.");
}

}  // namespace

void add_to_host(py::module_& module) {
  add_container(module);
  add_rans(module);
}

}  // namespace nnkernels::pc
