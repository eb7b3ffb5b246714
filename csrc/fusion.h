// Fusions: pointwise and row instructions over a few rows at a time.
//
// Every operand of an instruction is a block of up to three axes in each row. The innermost axis is
// walked in vectors; its stride is nearly always 1 or 0 (broadcast), and anything else goes element
// by element.
#pragma once

#include "block.h"
#include "math.h"
#include "row_products.h"
#include "schedule.h"
#include "shuffle.h"
#include "simd.h"

namespace cello {
namespace CELLO_ISA {

// out[j] = f(in[0][j], ...) along the innermost axis. Strides of 1 and 0 are told apart outside the
// inner loop where that matters for speed: for one and two operands.
template <int count, typename T, typename F>
CELLO_INLINE void pointwise(int64_t rows, const int64_t* sizes, const Block<T>& out,
                            const Block<T>* in, const F& f) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t n = sizes[2];
  bool simple = out.inner == 1;
  for (int k = 0; k < count; ++k) simple = simple && (in[k].inner == 1 || in[k].inner == 0);
  if (!simple) {
    each_line<count>(rows, sizes, out, in, [&](T* to, const T** from) {
      for (int64_t j = 0; j < n; j += lanes) {
        Vec<T> v[4];
        for (int k = 0; k < count; ++k) {
          v[k] = load_any(from[k] + j * in[k].inner, in[k].inner, n - j);
        }
        store_any(to + j * out.inner, f(v), out.inner, n - j);
      }
    });
    return;
  }
  each_line<count>(rows, sizes, out, in, [&](T* to, const T** from) {
    Vec<T> fixed[4];
    for (int k = 0; k < count; ++k) fixed[k] = broadcast<T>(*from[k]);
    int64_t j = 0;
    for (; j + lanes <= n; j += lanes) {
      Vec<T> v[4];
      for (int k = 0; k < count; ++k) v[k] = in[k].inner ? load(from[k] + j) : fixed[k];
      store(to + j, f(v));
    }
    if (j < n) {
      const int rest = static_cast<int>(n - j);
      Vec<T> v[4];
      for (int k = 0; k < count; ++k) {
        v[k] = in[k].inner ? load_part(from[k] + j, rest) : fixed[k];
      }
      store_part(to + j, f(v), rest);
    }
  });
}

// The case without any loop but rows and columns, with all operands dense: nearly all instructions.
template <int count, typename T, typename F>
__attribute__((noinline)) void apply(int64_t rows, const int64_t* sizes, const Block<T>& out,
                                     const Block<T>* in, const F& f) {
  bool dense = sizes[0] == 1 && sizes[1] == 1 && out.inner == 1;
  for (int k = 0; k < count; ++k) dense = dense && in[k].inner == 1;
  if (!dense) {
    pointwise<count>(rows, sizes, out, in, f);
    return;
  }
  constexpr int64_t lanes = kLanes<T>;
  const int64_t n = sizes[2];
  for (int64_t r = 0; r < rows; ++r) {
    T* to = out.base + r * out.row;
    const T* from[4];
    for (int k = 0; k < count; ++k) from[k] = in[k].base + r * in[k].row;
    int64_t j = 0;
    for (; j + lanes <= n; j += lanes) {
      Vec<T> v[4];
      for (int k = 0; k < count; ++k) v[k] = load(from[k] + j);
      store(to + j, f(v));
    }
    if (j < n) {
      const int rest = static_cast<int>(n - j);
      Vec<T> v[4];
      for (int k = 0; k < count; ++k) v[k] = load_part(from[k] + j, rest);
      store_part(to + j, f(v), rest);
    }
  }
}

// How the numbers of a block are copied where neighbours of one side are none of the other: axis a
// has stride 1 in `in`, axis b in `out`, and the third one is walked.
struct Turned {
  int64_t count, from, to;                     // of the third axis
  int64_t a_size, a_stride, b_size, b_stride;  // a_stride of `out`, b_stride of `in`
};

template <typename T>
bool is_turned(const int64_t* sizes, const Block<T>& out, const Block<T>& in, Turned* found) {
  const int64_t to[3] = {out.outer, out.middle, out.inner};
  const int64_t from[3] = {in.outer, in.middle, in.inner};
  for (int a = 0; a < 3; ++a) {
    for (int b = 0; b < 3; ++b) {
      if (a == b || from[a] != 1 || to[b] != 1 || to[a] == 1 || from[b] == 1) continue;
      if (sizes[a] < 4 || sizes[b] < 4) continue;
      const int c = 3 - a - b;
      *found = {sizes[c], from[c], to[c], sizes[a], to[a], sizes[b], from[b]};
      return true;
    }
  }
  return false;
}

// A square of vectors at a time is read along one axis and written along the other.
template <typename T>
__attribute__((noinline)) void copy_turned(int64_t rows, const Turned& turned, const Block<T>& out,
                                           const Block<T>& in) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < turned.count; ++c) {
      const T* from = in.base + r * in.row + c * turned.from;
      T* to = out.base + r * out.row + c * turned.to;
      for (int64_t b = 0; b < turned.b_size; b += lanes) {
        const int64_t high = min_of(lanes, turned.b_size - b);
        for (int64_t a = 0; a < turned.a_size; a += lanes) {
          const int64_t wide = min_of(lanes, turned.a_size - a);
          Vec<T> square[lanes];
          for (int64_t j = 0; j < lanes; ++j) {
            const T* p = from + (b + j) * turned.b_stride + a;
            square[j] = j >= high       ? Vec<T>{}
                        : wide == lanes ? load(p)
                                        : load_part(p, static_cast<int>(wide));
          }
          transpose<T>(square);
          for (int64_t i = 0; i < wide; ++i) {
            T* p = to + (a + i) * turned.a_stride + b;
            if (high == lanes) {
              store(p, square[i]);
            } else {
              store_part(p, square[i], static_cast<int>(high));
            }
          }
        }
      }
    }
  }
}

template <typename T>
CELLO_INLINE Vec<T> truth(Mask<T> mask) {
  return mask ? broadcast<T>(1) : Vec<T>{};
}

// The sum over the innermost axis.
template <typename T>
__attribute__((noinline)) void sum(int64_t rows, const int64_t* sizes, const Block<T>& out,
                                   const Block<T>& in) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t n = sizes[2];
  each_line<1>(rows, sizes, out, &in, [&](T* to, const T** from) {
    const T* p = from[0];
    Vec<T> total{};
    for (int64_t j = 0; j < n; j += lanes) {
      Vec<T> v = load_any(p + j * in.inner, in.inner, n - j);
      if (in.inner == 0 && n - j < lanes) {  // a broadcast fills all lanes
        for (int64_t i = n - j; i < lanes; ++i) v[i] = 0;
      }
      total += v;
    }
    *to = fold_lanes<T>(total, [](Vec<T> a, Vec<T> b) { return a + b; })[0];
  });
}

// The extremum over the innermost axis, where NaN wins over any number.
template <typename T, typename F>
__attribute__((noinline)) void extremum(int64_t rows, const int64_t* sizes, const Block<T>& out,
                                        const Block<T>& in, const F& better) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t n = sizes[2];
  if (in.inner == 1 && n >= lanes) {
    each_line<1>(rows, sizes, out, &in, [&](T* to, const T** from) {
      const T* p = from[0];
      Vec<T> even = load(p), odd = load(p + n - lanes);  // some numbers may be looked at twice
      int64_t j = lanes;
      for (; j + 2 * lanes <= n; j += 2 * lanes) {
        even = better(even, load(p + j));
        odd = better(odd, load(p + j + lanes));
      }
      if (j + lanes <= n) even = better(even, load(p + j));
      *to = fold_lanes<T>(better(even, odd), better)[0];
    });
    return;
  }
  // For the numbers along the axis before it, in vectors.
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < sizes[0]; ++i) {
      for (int64_t m = 0; m < sizes[1]; m += lanes) {
        const T* p = in.base + r * in.row + i * in.outer + m * in.middle;
        const int64_t rest = sizes[1] - m;
        Vec<T> best = load_any(p, in.middle, rest);
        for (int64_t j = 1; j < n; ++j) {
          best = better(best, load_any(p + j * in.inner, in.middle, rest));
        }
        store_any(out.base + r * out.row + i * out.outer + m * out.middle, best, out.middle, rest);
      }
    }
  }
}

// The sum over the innermost axis of what `f` makes of the operands, for the numbers along the axis
// before it, in vectors. `kinds` says two bits of each operand: it is constant along the innermost
// axis (0), it has one number for a whole vector (`kSingle`), or it has a vector at each place
// (`kVector`).
constexpr unsigned kSingle = 1, kVector = 2, kAnyKind = ~0u;

constexpr unsigned kinds_of(unsigned a, unsigned b, unsigned c = 0, unsigned d = 0) {
  return a | b << 2 | c << 4 | d << 6;
}

template <int count, unsigned kinds, typename T, typename F>
CELLO_INLINE Vec<T> contract_line(int64_t n, int64_t rest, const T** from, const Block<T>* in,
                                  T start, const F& f) {
  Vec<T> fixed[count] = {};
  for (int k = 0; k < count; ++k) {
    if (!(kinds >> 2 * k & 3)) fixed[k] = load_any(from[k], in[k].middle, rest);
  }
  const auto at = [&](int64_t j) __attribute__((always_inline)) {
    Vec<T> v[count];
    for (int k = 0; k < count; ++k) {
      const T* p = from[k] + j * in[k].inner;
      const unsigned kind = kinds >> 2 * k & 3;
      v[k] = kind & kVector   ? load_any(p, in[k].middle, rest)
             : kind & kSingle ? broadcast<T>(*p)
                              : fixed[k];
    }
    return f(v);
  };
  Vec<T> even = broadcast<T>(start), odd = even;  // neither waits for the other
  int64_t j = 0;
  for (; j + 2 <= n; j += 2) {
    even += at(j);
    odd += at(j + 1);
  }
  if (j < n) even += at(j);
  return even + odd;
}

template <int count, unsigned kinds, typename T, typename F>
__attribute__((noinline)) void contract_as(int64_t rows, const int64_t* sizes, const Block<T>& out,
                                           const Block<T>* in, T start, const F& f) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < sizes[0]; ++i) {
      for (int64_t m = 0; m < sizes[1]; m += kLanes<T>) {
        const T* from[count];
        for (int k = 0; k < count; ++k) {
          from[k] = in[k].base + r * in[k].row + i * in[k].outer + m * in[k].middle;
        }
        const int64_t rest = sizes[1] - m;
        const Vec<T> total = contract_line<count, kinds>(sizes[2], rest, from, in, start, f);
        store_any(out.base + r * out.row + i * out.outer + m * out.middle, total, out.middle, rest);
      }
    }
  }
}

// There is code of its own for each of `known`.
template <int count, unsigned... known, typename T, typename F>
CELLO_INLINE void contract(int64_t rows, const int64_t* sizes, const Block<T>& out,
                           const Block<T>* in, T start, const F& f) {
  unsigned found = 0;
  for (int k = 0; k < count; ++k) {
    if (in[k].inner != 0) found |= (in[k].middle == 0 ? kSingle : kVector) << 2 * k;
  }
  const bool is_done =
      ((found == known && (contract_as<count, known>(rows, sizes, out, in, start, f), true)) ||
       ...);
  if (!is_done) contract_as<count, kAnyKind>(rows, sizes, out, in, start, f);
}

// Adds every row's block to a sum over all rows, in float64.
template <typename T>
__attribute__((noinline)) void accumulate(int64_t rows, const int64_t* sizes, double* sum,
                                          const int64_t* sum_strides, const Block<T>& in) {
  constexpr int64_t block = 64;  // numbers of the sum that stay in registers or near them
  const bool is_dense = sum_strides[2] == 1 && in.inner == 1;
  for (int64_t i = 0; i < sizes[0]; ++i) {
    for (int64_t j = 0; j < sizes[1]; ++j) {
      for (int64_t k = 0; k < sizes[2]; k += block) {
        const int64_t n = min_of(block, sizes[2] - k);
        double* to = sum + i * sum_strides[0] + j * sum_strides[1] + k * sum_strides[2];
        for (int64_t r = 0; r < rows; ++r) {
          const T* p = in.base + r * in.row + i * in.outer + j * in.middle + k * in.inner;
          if (is_dense) {
            for (int64_t m = 0; m < n; ++m) to[m] += static_cast<double>(p[m]);
          } else {
            for (int64_t m = 0; m < n; ++m) {
              to[m * sum_strides[2]] += static_cast<double>(p[m * in.inner]);
            }
          }
        }
      }
    }
  }
}

template <typename T>
void execute(int64_t op, int64_t rows, const int64_t* sizes, const Block<T>& out,
             const Block<T>* in) {
  typedef Vec<T> V;
  Turned turned;
  if ((op == kCopy || op == kStop) && is_turned(sizes, out, in[0], &turned)) {
    copy_turned(rows, turned, out, in[0]);
    return;
  }
#define CELLO_CASE(code, count, expression)                                                 \
  case code:                                                                                \
    apply<count>(rows, sizes, out, in, [](const V* v) CELLO_LAMBDA { return expression; }); \
    break;
#define CELLO_LAMBDA __attribute__((always_inline))->V
#define A v[0]
#define B v[1]
#define C v[2]
#define D v[3]
  switch (op) {
    CELLO_CASE(kCopy, 1, A)
    CELLO_CASE(kStop, 1, A)
    CELLO_CASE(kNeg, 1, -A)
    CELLO_CASE(kAbs, 1, math::abs(A))
    CELLO_CASE(kSqrt, 1, math::sqrt(A))
    CELLO_CASE(kExp, 1, math::exp(A))
    CELLO_CASE(kExpm1, 1, math::expm1(A))
    CELLO_CASE(kLog, 1, math::log(A))
    CELLO_CASE(kLog1p, 1, math::log1p(A))
    CELLO_CASE(kTanh, 1, math::tanh(A))
    CELLO_CASE(kSigmoid, 1, math::sigmoid(A))
    CELLO_CASE(kErf, 1, math::erf(A))
    CELLO_CASE(kSin, 1, math::sin(A))
    CELLO_CASE(kCos, 1, math::cos(A))
    CELLO_CASE(kSign, 1, math::sign(A))
    CELLO_CASE(kFloor, 1, math::floor(A))
    CELLO_CASE(kCeil, 1, math::ceil(A))
    CELLO_CASE(kRound, 1, math::round(A))
    CELLO_CASE(kTrunc, 1, math::trunc(A))
    CELLO_CASE(kRelu, 1, math::max(A, V{}))
    CELLO_CASE(kNot, 1, truth<T>(A == V{}))
    CELLO_CASE(kReciprocal, 1, broadcast<T>(1) / A)
    CELLO_CASE(kRsqrt, 1, broadcast<T>(1) / math::sqrt(A))
    CELLO_CASE(kAtan, 1, math::atan(A))
    CELLO_CASE(kAsinh, 1, math::asinh(A))
    CELLO_CASE(kAcosh, 1, math::acosh(A))
    CELLO_CASE(kErfc, 1, math::erfc(A))
    CELLO_CASE(kReplace, 2, B)
    CELLO_CASE(kAtan2, 2, math::atan2(A, B))
    CELLO_CASE(kHypot, 2, math::hypot(A, B))
    CELLO_CASE(kFmod, 2, math::fmod(A, B))
    CELLO_CASE(kRemainder, 2, math::remainder(A, B))
    CELLO_CASE(kFloorDivide, 2, math::floor_divide(A, B))
    CELLO_CASE(kAdd, 2, A + B)
    CELLO_CASE(kSub, 2, A - B)
    CELLO_CASE(kMul, 2, A * B)
    CELLO_CASE(kDiv, 2, A / B)
    CELLO_CASE(kPow, 2, math::pow(A, B))
    CELLO_CASE(kMaximum, 2, math::max(A, B))
    CELLO_CASE(kMinimum, 2, math::min(A, B))
    CELLO_CASE(kLt, 2, truth<T>(A < B))
    CELLO_CASE(kLe, 2, truth<T>(A <= B))
    CELLO_CASE(kGt, 2, truth<T>(A > B))
    CELLO_CASE(kGe, 2, truth<T>(A >= B))
    CELLO_CASE(kEq, 2, truth<T>(A == B))
    CELLO_CASE(kNe, 2, truth<T>(A != B))
    CELLO_CASE(kTanhGradient, 2, A * (broadcast<T>(1) - B * B))
    CELLO_CASE(kSigmoidGradient, 2, A * (broadcast<T>(1) - B) * B)
    CELLO_CASE(kWhere, 3, (A != V{}) ? B : C)
    CELLO_CASE(kMulAdd, 3, A * B + C)
    CELLO_CASE(kClamp, 3, math::min(math::max(A, B), C))
    CELLO_CASE(kHardtanh, 3, math::min(math::max(A, B), C))
    CELLO_CASE(kInside, 4, ((B > C) & (B < D)) ? A : V{})
    CELLO_CASE(kWithin, 4, ((B >= C) & (B <= D)) ? A : V{})
    case kDot:
      if (!multiply_rows(rows, sizes, out, in)) {
        contract<2, kinds_of(kSingle, kVector), kinds_of(kVector, kSingle)>(
            rows, sizes, out, in, T(0), [](const V* v) CELLO_LAMBDA { return A * B; });
      }
      break;
    case kRank:  // how many numbers B at places D come before A at C, where NaN is the largest
      contract<4, kinds_of(0, kSingle, 0, kSingle), kinds_of(kSingle, 0, 0, kSingle)>(
          rows, sizes, out, in, T(0), [](const V* v) CELLO_LAMBDA {
            return truth<T>((B < A) | ((B == A) & (D < C)) | ((A != A) & ((B == B) | (D < C))));
          });
      break;
    case kSelect:  // the sum of what is C where A is B; -0, to which adding changes nothing
      contract<3, kinds_of(kSingle, 0, kSingle), kinds_of(kSingle, 0),
               kinds_of(0, kSingle, kSingle), kinds_of(kSingle, 0, kVector)>(
          rows, sizes, out, in, T(-0.0),
          [](const V* v) CELLO_LAMBDA { return (A == B) ? C : broadcast<T>(T(-0.0)); });
      break;
    case kAmax:
      extremum(rows, sizes, out, in[0], [](V a, V b) CELLO_LAMBDA { return math::max(a, b); });
      break;
    case kAmin:
      extremum(rows, sizes, out, in[0], [](V a, V b) CELLO_LAMBDA { return math::min(a, b); });
      break;
    case kSum:
      if (in[0].middle == 1 && in[0].inner != 1 && sizes[1] > 1) {
        contract<1, kAnyKind>(rows, sizes, out, in, T(0),
                              [](const V* v) CELLO_LAMBDA { return A; });
      } else {
        sum(rows, sizes, out, in[0]);
      }
      break;
  }
#undef CELLO_CASE
#undef CELLO_LAMBDA
#undef A
#undef B
#undef C
#undef D
}

}  // namespace CELLO_ISA
}  // namespace cello
