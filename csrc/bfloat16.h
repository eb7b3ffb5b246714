// Pairs of bfloat16 numbers: what the products in bfloat16 are made of.
//
// The processor multiplies two neighbouring k at a time and sums in float32. A pair is then to a
// product what a float is to a product in float32: rows of A, read as they lie, are rows of pairs
// along k, and a packed W has pairs of its rows, k and k + 1, side by side.
#pragma once

#include "simd.h"

namespace cello {
namespace CELLO_ISA {

// The upper half of a float's bits.
struct Bfloat16 {
  uint16_t bits;
};

// Two numbers, the first in the lower half.
struct Pair {
  uint32_t bits;
};

template <>
struct VectorOf<Pair> {
  typedef uint32_t type __attribute__((vector_size(CELLO_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(CELLO_VECTOR_BYTES)));
};

template <>
CELLO_INLINE Vec<Pair> broadcast(Pair x) {
  return x.bits - Vec<Pair>{};
}

// To the nearest number, ties to even; NaN stays NaN.
CELLO_INLINE Bfloat16 to_bfloat16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

CELLO_INLINE Bfloat16 to_bfloat16(Bfloat16 x) { return x; }

CELLO_INLINE float widened(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  memcpy(&out, &bits, sizeof out);
  return out;
}

// `count` numbers of the type that is packed, 0 < count <= 2 * lanes, as pairs with zeros behind.
// Memory beyond is not touched.
template <typename S>
CELLO_INLINE Vec<Pair> load_pairs(const S* from, int count);

// Pairs of `count` columns of two rows, 0 < count <= lanes; without a second row it is zeros.
template <typename S>
CELLO_INLINE Vec<Pair> load_columns(const S* first, const S* second, int count);

#if defined(__AVX512BF16__)

CELLO_INLINE __m512 part_of_16(const float* from, int count) {
  return count >= 16
             ? _mm512_loadu_ps(from)
             : _mm512_maskz_loadu_ps((__mmask16)((1u << (count < 0 ? 0 : count)) - 1), from);
}

template <>
CELLO_INLINE Vec<Pair> load_pairs(const float* from, int count) {
  const __m512 low = part_of_16(from, count);
  const __m512 high = count > 16 ? part_of_16(from + 16, count - 16) : _mm512_setzero_ps();
  return (Vec<Pair>)_mm512_cvtne2ps_pbh(high, low);
}

template <>
CELLO_INLINE Vec<Pair> load_pairs(const Bfloat16* from, int count) {
  if (count >= 32) return (Vec<Pair>)_mm512_loadu_si512(from);
  return (Vec<Pair>)_mm512_maskz_loadu_epi16((__mmask32)((1u << count) - 1), from);
}

CELLO_INLINE Vec<Pair> halves(__m256i low, __m256i high) {
  typedef uint16_t Numbers __attribute__((vector_size(32)));
  return __builtin_convertvector((Numbers)low, Vec<Pair>) |
         __builtin_convertvector((Numbers)high, Vec<Pair>) << 16;
}

template <>
CELLO_INLINE Vec<Pair> load_columns(const float* first, const float* second, int count) {
  const __m512 high = second ? part_of_16(second, count) : _mm512_setzero_ps();
  return halves((__m256i)_mm512_cvtneps_pbh(part_of_16(first, count)),
                (__m256i)_mm512_cvtneps_pbh(high));
}

template <>
CELLO_INLINE Vec<Pair> load_columns(const Bfloat16* first, const Bfloat16* second, int count) {
  const __mmask16 mask = (__mmask16)(count >= 16 ? 0xffff : (1u << count) - 1);
  const __m256i high = second ? _mm256_maskz_loadu_epi16(mask, second) : _mm256_setzero_si256();
  return halves(_mm256_maskz_loadu_epi16(mask, first), high);
}

#else

template <typename S>
CELLO_INLINE Vec<Pair> load_pairs(const S* from, int count) {
  Vec<Pair> out{};
  for (int i = 0; i < count && i < 2 * kLanes<Pair>; ++i) {
    out[i / 2] |= static_cast<uint32_t>(to_bfloat16(from[i]).bits) << i % 2 * 16;
  }
  return out;
}

template <typename S>
CELLO_INLINE Vec<Pair> load_columns(const S* first, const S* second, int count) {
  Vec<Pair> out{};
  for (int i = 0; i < count && i < kLanes<Pair>; ++i) {
    out[i] = to_bfloat16(first[i]).bits;
    if (second) out[i] |= static_cast<uint32_t>(to_bfloat16(second[i]).bits) << 16;
  }
  return out;
}

#endif

// [rows][K] rounded to pairs, each row behind the one before by `to_stride` pairs, of which those
// beyond K are zeros.
CELLO_INLINE void round_rows(int64_t rows, const float* from, int64_t stride, int64_t K, Pair* to,
                             int64_t to_stride, int64_t width) {
  constexpr int64_t numbers = 2 * kLanes<Pair>;
  for (int64_t r = 0; r < rows; ++r, from += stride, to += to_stride) {
    int64_t k = 0;
    for (; k + numbers <= K; k += numbers) store(to + k / 2, load_pairs(from + k, numbers));
    if (k < K) {
      const Vec<Pair> last = load_pairs(from + k, static_cast<int>(K - k));
      memcpy(to + k / 2, &last, (K - k + 1) / 2 * sizeof(Pair));
    }
    const int64_t filled = (K + 1) / 2;
    if (filled < width) memset(to + filled, 0, (width - filled) * sizeof(Pair));
  }
}

}  // namespace CELLO_ISA
}  // namespace cello
