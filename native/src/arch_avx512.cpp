#include "ints_avx512.hpp"
#include "simd_avx512.hpp"

#include "arch.inl"

namespace tenfold {

const Arch& avx512_arch() {
  static constexpr Arch arch = make_arch("AVX-512");
  return arch;
}

}  // namespace tenfold
