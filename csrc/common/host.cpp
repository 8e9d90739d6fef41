// nnkernels._host: what can be asked of the kernels without torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common/isa.h"
#include "common/peak.h"
#include "pc/host.h"

namespace py = pybind11;

PYBIND11_MODULE(_host, module) {
  module.doc() =
      "Build information, instruction-set selection, and the entropy coder and container of pc, "
      "without torch.";
  module.attr("version") = NNKERNELS_VERSION;
  module.attr("compiler") =
#if defined(__clang__)
      "clang " __clang_version__;
#else
      "gcc " __VERSION__;
#endif
  module.def(
      "detected_isa", [] { return nnkernels::isa_name(nnkernels::detected_isa()); },
      "The best instruction set that this machine can run.");
  module.def(
      "active_isa", [] { return nnkernels::isa_name(nnkernels::active_isa()); },
      "The instruction set that the kernels use.");
  module.def("isa_names", &nnkernels::isa_names,
             "The instruction sets that this machine can run, ascending.");
  module.def("set_isa", &nnkernels::set_isa, py::arg("name"),
             "Makes every kernel use this instruction set; ValueError if it cannot run here.");
  module.def(
      "peak_rates",
      [] {
        nnkernels::PeakRates rates;
        {
          // Threads that probe at the same time must run at the same time.
          const py::gil_scoped_release release;
          rates = nnkernels::peak_rates(nnkernels::active_isa());
        }
        return py::dict(py::arg("fma") = rates.fma, py::arg("add_pair") = rates.add_pair);
      },
      "Measured ceilings of one thread with the active instruction set, per second: 'fma', fp32\n"
      "multiply-adds, and 'add_pair', an integer add with the fp32 add of its result.");
  nnkernels::pc::add_to_host(module);
}
