#include "ints_avx2.hpp"

namespace tenfold {
namespace {
using Wide = Simd;
}
}  // namespace tenfold

#include "arch.inl"

namespace tenfold {

const Arch& avx2_arch() {
  static constexpr Arch arch = make_arch("AVX2");
  return arch;
}

}  // namespace tenfold
