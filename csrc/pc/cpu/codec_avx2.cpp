// The codec's kernels on the vectors that this file is compiled for.
#include "pc/cpu/codec_table.h"

namespace nnkernels::pc {

extern const CodecKernels avx2_codec_kernels;
const CodecKernels avx2_codec_kernels = kCodecKernels;

}  // namespace nnkernels::pc
