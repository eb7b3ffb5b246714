// Vectors of the machine, with GCC's and Clang's vector types: the same source makes AVX-512, AVX2
// and baseline code, according to the flags and to CELLO_VECTOR_BYTES (64, 32 or 16).
//
// Every file that includes this one is compiled once for each instruction set. All of it lies in
// the namespace CELLO_ISA, so that the linker can never take one set's inline function for
// another's; for the same reason no templates of the standard library are used here.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef CELLO_VECTOR_BYTES
#define CELLO_VECTOR_BYTES 16
#endif
#ifndef CELLO_ISA
#define CELLO_ISA baseline
#endif

#define CELLO_INLINE inline __attribute__((always_inline))

namespace cello {
namespace CELLO_ISA {

template <typename T>
struct VectorOf;

template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(CELLO_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(CELLO_VECTOR_BYTES)));
};

template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(CELLO_VECTOR_BYTES)));
  typedef int64_t mask __attribute__((vector_size(CELLO_VECTOR_BYTES)));
};

template <typename T>
using Vec = typename VectorOf<T>::type;

// What comparing two vectors gives: all bits set where it holds. `m ? a : b` selects.
template <typename T>
using Mask = typename VectorOf<T>::mask;

template <typename T>
constexpr int kLanes = CELLO_VECTOR_BYTES / sizeof(T);

template <typename T>
CELLO_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0 and not x + 0, which would turn -0 into 0
}

template <typename T>
CELLO_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <typename T>
CELLO_INLINE void store(T* p, Vec<T> v) {
  memcpy(p, &v, sizeof v);
}

// The first `n` lanes, 0 < n < kLanes<T>; the others read as zero and are not written. Memory
// beyond is not touched.
template <typename T>
CELLO_INLINE Vec<T> load_part(const T* p, int n);
template <typename T>
CELLO_INLINE void store_part(T* p, Vec<T> v, int n);

#if defined(__AVX512F__)
template <>
CELLO_INLINE Vec<float> load_part(const float* p, int n) {
  return (Vec<float>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
template <>
CELLO_INLINE void store_part(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
template <>
CELLO_INLINE Vec<double> load_part(const double* p, int n) {
  return (Vec<double>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
template <>
CELLO_INLINE void store_part(double* p, Vec<double> v, int n) {
  _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
#else
template <typename T>
CELLO_INLINE Vec<T> load_part(const T* p, int n) {
  Vec<T> v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <typename T>
CELLO_INLINE void store_part(T* p, Vec<T> v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif

CELLO_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
CELLO_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
CELLO_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace CELLO_ISA
}  // namespace cello
