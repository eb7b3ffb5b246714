// Measures the functions of math.h against the scalar library at the next precision, prints the
// largest error of each in units in the last place, and fails where it exceeds its bound or where
// an infinity, a NaN or the sign of a zero is wrong. Build it as math.h is used, once for each
// instruction set: with the same flags, CELLO_ISA and CELLO_VECTOR_BYTES.
#include "../math.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "random.h"

namespace {

using namespace cello::CELLO_ISA;

bool failed = false;

struct Range {
  double low, high;
};

double uniform(Range range) {
  return range.low + (range.high - range.low) * ((double)(random_bits() >> 11) * 0x1p-53);
}

template <typename T>
struct Wider;
template <>
struct Wider<float> {
  using type = double;
  static constexpr const char* kName = "float";
};
template <>
struct Wider<double> {
  using type = long double;
  static constexpr const char* kName = "double";
};

// Any number of the type, each exponent equally likely; now and then a NaN or an infinity.
template <typename T>
T any_number() {
  const uint64_t bits = random_bits();
  T x;
  memcpy(&x, &bits, sizeof x);
  return std::isnan(x) ? std::numeric_limits<T>::quiet_NaN() : x;  // no signalling one
}

// What every function is tried at, besides.
template <typename T>
struct Specials {
  using L = std::numeric_limits<T>;
  static constexpr int kCount = 36;
  T values[kCount] = {0,
                      L::denorm_min(),
                      L::min(),
                      L::min() - L::denorm_min(),
                      T(1e-20),
                      L::epsilon() / 2,
                      T(0.25),
                      T(0.5),
                      T(0.7),
                      T(0.75),
                      1 - L::epsilon() / 2,
                      1,
                      1 + L::epsilon(),
                      T(1.5),
                      2,
                      T(2.5),
                      3,
                      4,
                      T(6.5),
                      10,
                      T(88.72),
                      T(103.9),
                      T(150),
                      T(709.7),
                      T(745.1),
                      T(1000),
                      T(8388607.5),
                      T(0x1p23f),
                      T(0x1p24f) - 1,
                      T(0x1p53),
                      T(0x1p20f),
                      T(0x1.8p20f),
                      T(1e30),
                      L::max(),
                      L::infinity(),
                      L::quiet_NaN()};
};

// The distance of `got` from `want` in units of the last place of the correctly rounded result;
// infinite where a NaN or a sign of zero is wrong. Beyond the largest number the scale goes on.
template <typename T, typename R>
double ulp_error(T got, R want) {
  using L = std::numeric_limits<T>;
  if (std::isnan(got) || std::isnan(want))
    return std::isnan(got) == std::isnan(want) ? 0 : INFINITY;
  if (got == 0 && std::signbit(got) != std::signbit(want)) return INFINITY;
  const R limit = std::ldexp(R(1), L::max_exponent);
  R a = got, b = want;
  if (std::fabs(a) > limit) a = std::copysign(limit, a);
  if (std::fabs(b) > limit) b = std::copysign(limit, b);
  if (a == b) return 0;
  int exponent = std::ilogb((T)b);
  if (exponent < L::min_exponent - 1) exponent = L::min_exponent - 1;
  if (exponent > L::max_exponent - 1) exponent = L::max_exponent - 1;
  return (double)(std::fabs(a - b) / std::ldexp(R(1), exponent - (L::digits - 1)));
}

template <typename T>
struct Worst {
  double error = 0;
  T x = 0, y = 0, got = 0;

  void see(double e, T x_, T y_, T got_) {
    if (e > error) {
      error = e;
      x = x_;
      y = y_;
      got = got_;
    }
  }

  void report(const char* name, double bound) const {
    printf("%s %s %.2f ulp", Wider<T>::kName, name, error);
    if (!(error <= bound)) {
      failed = true;
      printf("  WRONG: the bound is %.1f; f(%.17g, %.17g) gave %.17g", bound, (double)x, (double)y,
             (double)got);
    }
    printf("\n");
  }
};

constexpr int kBlock = 4096;

// One argument: `f` on vectors against `reference`, at the special values, at numbers of all sizes
// and evenly in each range.
template <typename T, typename F, typename G>
void check(const char* name, double bound, F f, G reference, std::initializer_list<Range> ranges) {
  using R = typename Wider<T>::type;
  alignas(64) T x[kBlock], y[kBlock];
  Worst<T> worst;
  const auto run = [&] {
    for (int i = 0; i < kBlock; i += kLanes<T>) store<T>(y + i, f(load<T>(x + i)));
    for (int i = 0; i < kBlock; ++i)
      worst.see(ulp_error<T, R>(y[i], reference(R(x[i]))), x[i], 0, y[i]);
  };
  const Specials<T> specials;
  for (int i = 0; i < kBlock; ++i) {
    x[i] = specials.values[i / 2 % specials.kCount] * (i % 2 ? -1 : 1);
  }
  run();
  for (int block = 0; block < 128; ++block) {
    for (T& v : x) v = any_number<T>();
    run();
  }
  const int blocks = 192 / (int)ranges.size();
  for (const Range& range : ranges) {
    for (int block = 0; block < blocks; ++block) {
      for (T& v : x) v = (T)uniform(range);
      run();
    }
  }
  worst.report(name, bound);
}

// Two arguments. `fill` gives random ones.
template <typename T, typename F, typename G, typename H>
void check2(const char* name, double bound, F f, G reference, H fill) {
  using R = typename Wider<T>::type;
  alignas(64) T x[kBlock], y[kBlock], z[kBlock];
  Worst<T> worst;
  const auto run = [&] {
    for (int i = 0; i < kBlock; i += kLanes<T>) store<T>(z + i, f(load<T>(x + i), load<T>(y + i)));
    for (int i = 0; i < kBlock; ++i) {
      worst.see(ulp_error<T, R>(z[i], reference(R(x[i]), R(y[i]))), x[i], y[i], z[i]);
    }
  };
  const Specials<T> specials;
  const int count = 2 * specials.kCount;
  const auto special = [&](int i) { return specials.values[i / 2] * (i % 2 ? -1 : 1); };
  for (int block = 0; block * kBlock < count * count; ++block) {
    for (int i = 0; i < kBlock; ++i) {
      const int pair = (block * kBlock + i) % (count * count);
      x[i] = special(pair / count);
      y[i] = special(pair % count);
    }
    run();
  }
  for (int block = 0; block < 256; ++block) {
    for (int i = 0; i < kBlock; ++i) fill(i, &x[i], &y[i]);
    run();
  }
  worst.report(name, bound);
}

// The values torch gives, whatever the scalar library does.
template <typename T, typename F>
void expect(const char* name, F f, T x, T want) {
  const T got = f(broadcast<T>(x))[0];
  const bool same =
      std::isnan(want) ? std::isnan(got) : got == want && std::signbit(got) == std::signbit(want);
  if (same) return;
  failed = true;
  printf("%s %s(%g) WRONG: %.9g instead of %g\n", Wider<T>::kName, name, (double)x, (double)got,
         (double)want);
}

template <typename R>
R reference_sigmoid(R x) {
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

template <typename R>
R reference_max(R x, R y) {
  return std::isnan(x) ? x : x > y ? x : y;
}

template <typename R>
R reference_min(R x, R y) {
  return std::isnan(x) ? x : x < y ? x : y;
}

#define VECTOR(f) [](auto... x) __attribute__((always_inline)) { return f(x...); }
#define SCALAR(f) [](auto... x) { return f(x...); }

struct Bounds {
  double exp, expm1, log, log1p, tanh, sigmoid, erf, sin, cos, pow;
  double atan, asinh, acosh, erfc, atan2, hypot;
};

// Measured with each instruction set and with GCC and Clang, rounded up to the next half.
template <typename T>
constexpr Bounds kBounds = {};
template <>
constexpr Bounds kBounds<float> = {1.5, 2, 1, 1.5, 1.5, 2, 1.5, 1, 1, 1, 1, 1, 1, 1, 1, 1};
template <>
constexpr Bounds kBounds<double> = {1.5, 2, 1, 1.5, 2, 2, 1.5, 1, 1, 1, 1, 2, 2, 4, 1, 1};

template <typename T>
void check_all() {
  constexpr Bounds b = kBounds<T>;
  constexpr bool kFloat = sizeof(T) == sizeof(float);
  const double low = kFloat ? -104 : -746, high = kFloat ? 89 : 710;

  check<T>("abs", 0, VECTOR(math::abs), SCALAR(std::fabs), {{-2, 2}});
  check<T>("sqrt", 0.51, VECTOR(math::sqrt), SCALAR(std::sqrt), {{0, 2}, {0, 1e6}});
  check<T>("floor", 0, VECTOR(math::floor), SCALAR(std::floor), {{-4, 4}, {-1e8, 1e8}});
  check<T>("ceil", 0, VECTOR(math::ceil), SCALAR(std::ceil), {{-4, 4}, {-1e8, 1e8}});
  check<T>("round", 0, VECTOR(math::round), SCALAR(std::nearbyint), {{-4, 4}, {-1e7, 1e7}});
  check<T>("trunc", 0, VECTOR(math::trunc), SCALAR(std::trunc), {{-4, 4}, {-1e8, 1e8}});
  check<T>("sign", 0, VECTOR(math::sign), [](auto x) { return decltype(x)((x > 0) - (x < 0)); },
           {{-1, 1}});
  check<T>("exp", b.exp, VECTOR(math::exp), SCALAR(std::exp), {{-1, 1}, {-20, 20}, {low, high}});
  check<T>("expm1", b.expm1, VECTOR(math::expm1), SCALAR(std::expm1),
           {{-1, 1}, {-4, 4}, {-40, high}});
  check<T>("log", b.log, VECTOR(math::log), SCALAR(std::log), {{0.6, 1.6}, {0, 10}, {0, 1e6}});
  check<T>("log1p", b.log1p, VECTOR(math::log1p), SCALAR(std::log1p),
           {{-1, 1}, {-0.5, 2}, {0, 1e6}});
  check<T>("tanh", b.tanh, VECTOR(math::tanh), SCALAR(std::tanh), {{-1, 1}, {-4, 4}, {-20, 20}});
  check<T>("sigmoid", b.sigmoid, VECTOR(math::sigmoid), SCALAR(reference_sigmoid),
           {{-4, 4}, {-20, 20}, {low, 40}});
  check<T>("erf", b.erf, VECTOR(math::erf), SCALAR(std::erf), {{-1, 1}, {-4, 4}, {0.9, 2}});
  check<T>("sin", b.sin, VECTOR(math::sin), SCALAR(std::sin),
           {{-4, 4}, {-1000, 1000}, {-2e6, 2e6}});
  check<T>("cos", b.cos, VECTOR(math::cos), SCALAR(std::cos),
           {{-4, 4}, {-1000, 1000}, {-2e6, 2e6}});
  check2<T>("pow", b.pow, VECTOR(math::pow), SCALAR(std::pow), [&](int i, T* x, T* y) {
    *x = any_number<T>();
    *y = any_number<T>();
    const double far =
        kFloat ? 155 : 1080;  // powers of 2, a little beyond the largest and smallest
    if (i % 4 == 0) *x = (T)uniform({0.5, 2});
    if (i % 4 == 1) *x = (T)uniform({-10, 10});
    if (i % 4 <= 2) *y = T(uniform({-far, far}) / std::log2(std::fabs((double)*x)));
    if (i % 8 >= 4) *y = std::nearbyint(*y);
  });
  const auto fill = [](int, T* x, T* y) {
    *x = any_number<T>();
    *y = any_number<T>();
  };
  check<T>("atan", b.atan, VECTOR(math::atan), SCALAR(std::atan), {{-2, 2}, {-1e3, 1e3}});
  check<T>("asinh", b.asinh, VECTOR(math::asinh), SCALAR(std::asinh), {{-2, 2}, {-1e3, 1e3}});
  check<T>("acosh", b.acosh, VECTOR(math::acosh), SCALAR(std::acosh), {{1, 2}, {0, 1e3}});
  check<T>("erfc", b.erfc, VECTOR(math::erfc), SCALAR(std::erfc), {{-2, 2}, {0, 6}, {0, 9}});
  check2<T>("atan2", b.atan2, VECTOR(math::atan2), SCALAR(std::atan2), fill);
  check2<T>("hypot", b.hypot, VECTOR(math::hypot), SCALAR(std::hypot), [&](int i, T* x, T* y) {
    *x = i % 2 ? any_number<T>() : (T)uniform({-10, 10});
    *y = i % 2 ? any_number<T>() : (T)uniform({-10, 10});
  });
  check2<T>("fmod", 0, VECTOR(math::fmod), SCALAR(std::fmod), fill);
  check2<T>("max", 0, VECTOR(math::max), SCALAR(reference_max), fill);
  check2<T>("min", 0, VECTOR(math::min), SCALAR(reference_min), fill);

  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const T zero = 0, one = 1;
  expect<T>("exp", VECTOR(math::exp), inf, inf);
  expect<T>("exp", VECTOR(math::exp), -inf, zero);
  expect<T>("exp", VECTOR(math::exp), -zero, one);
  expect<T>("expm1", VECTOR(math::expm1), inf, inf);
  expect<T>("expm1", VECTOR(math::expm1), -inf, -one);
  expect<T>("expm1", VECTOR(math::expm1), -zero, -zero);
  expect<T>("log", VECTOR(math::log), zero, -inf);
  expect<T>("log", VECTOR(math::log), -zero, -inf);
  expect<T>("log", VECTOR(math::log), -one, nan);
  expect<T>("log", VECTOR(math::log), -inf, nan);
  expect<T>("log", VECTOR(math::log), inf, inf);
  expect<T>("log", VECTOR(math::log), one, zero);
  expect<T>("log1p", VECTOR(math::log1p), -one, -inf);
  expect<T>("log1p", VECTOR(math::log1p), T(-2), nan);
  expect<T>("log1p", VECTOR(math::log1p), inf, inf);
  expect<T>("log1p", VECTOR(math::log1p), -zero, -zero);
  expect<T>("tanh", VECTOR(math::tanh), inf, one);
  expect<T>("tanh", VECTOR(math::tanh), -inf, -one);
  expect<T>("tanh", VECTOR(math::tanh), -zero, -zero);
  expect<T>("sigmoid", VECTOR(math::sigmoid), inf, one);
  expect<T>("sigmoid", VECTOR(math::sigmoid), -inf, zero);
  expect<T>("sigmoid", VECTOR(math::sigmoid), zero, T(0.5));
  expect<T>("erf", VECTOR(math::erf), inf, one);
  expect<T>("erf", VECTOR(math::erf), -inf, -one);
  expect<T>("erf", VECTOR(math::erf), -zero, -zero);
  expect<T>("sin", VECTOR(math::sin), inf, nan);
  expect<T>("sin", VECTOR(math::sin), -zero, -zero);
  expect<T>("cos", VECTOR(math::cos), -inf, nan);
  expect<T>("sqrt", VECTOR(math::sqrt), -one, nan);
  expect<T>("sqrt", VECTOR(math::sqrt), -zero, -zero);
  expect<T>("round", VECTOR(math::round), T(2.5), T(2));
  expect<T>("round", VECTOR(math::round), T(-0.5), -zero);
  expect<T>("sign", VECTOR(math::sign), nan, zero);
  expect<T>("sign", VECTOR(math::sign), -zero, zero);
  const auto both = [&](const char* name, auto f, T x, T y, T want) {
    expect<T>(name, [&](auto v) { return f(v, broadcast<T>(y)); }, x, want);
  };
  both("remainder", VECTOR(math::remainder), T(-5.5), T(2), T(0.5));
  both("remainder", VECTOR(math::remainder), T(5.5), T(-2), T(-0.5));
  both("remainder", VECTOR(math::remainder), T(-1), inf, inf);
  both("remainder", VECTOR(math::remainder), one, zero, nan);
  both("remainder", VECTOR(math::remainder), T(0x1p60f), T(3), one);
  both("floor_divide", VECTOR(math::floor_divide), T(-5.5), T(2), T(-3));
  both("floor_divide", VECTOR(math::floor_divide), one, T(0.1), T(9));
  both("floor_divide", VECTOR(math::floor_divide), one, zero, inf);
  both("floor_divide", VECTOR(math::floor_divide), T(-1), inf, T(-1));
  for (const T x : {-inf, -one, -zero, zero, one, inf, nan}) {
    expect<T>("max", [&](auto v) { return math::max(v, broadcast<T>(nan)); }, x, nan);
    expect<T>("min", [&](auto v) { return math::min(v, broadcast<T>(nan)); }, x, nan);
    expect<T>("pow", [&](auto v) { return math::pow(v, broadcast<T>(zero)); }, x, one);
    expect<T>("pow", [&](auto v) { return math::pow(broadcast<T>(one), v); }, x, one);
  }
}

}  // namespace

int main() {
  check_all<float>();
  check_all<double>();
  return failed ? 1 : 0;
}
