// A loop as the engine runs it; `cello/engines/native/schedule.py` has the same parts.
//
// Notation for shapes: T time, B batch, N rows of all steps, K and N columns of a matrix.
#pragma once

#include <stdint.h>

namespace cello {

// Python looks up the number of an operation, and of a kind of memory, by these names.
#define CELLO_OPERATIONS(X)               \
  X(kCopy, "copy")                        \
  X(kNeg, "neg")                          \
  X(kAbs, "abs")                          \
  X(kSqrt, "sqrt")                        \
  X(kExp, "exp")                          \
  X(kExpm1, "expm1")                      \
  X(kLog, "log")                          \
  X(kLog1p, "log1p")                      \
  X(kTanh, "tanh")                        \
  X(kSigmoid, "sigmoid")                  \
  X(kErf, "erf")                          \
  X(kSin, "sin")                          \
  X(kCos, "cos")                          \
  X(kSign, "sign")                        \
  X(kFloor, "floor")                      \
  X(kCeil, "ceil")                        \
  X(kRound, "round")                      \
  X(kTrunc, "trunc")                      \
  X(kRelu, "relu")                        \
  X(kNot, "not")                          \
  X(kReciprocal, "reciprocal")            \
  X(kRsqrt, "rsqrt")                      \
  X(kStop, "stop")                        \
  X(kAtan, "atan")                        \
  X(kAsinh, "asinh")                      \
  X(kAcosh, "acosh")                      \
  X(kErfc, "erfc")                        \
  X(kAdd, "add")                          \
  X(kSub, "sub")                          \
  X(kMul, "mul")                          \
  X(kDiv, "div")                          \
  X(kPow, "pow")                          \
  X(kMaximum, "maximum")                  \
  X(kMinimum, "minimum")                  \
  X(kLt, "lt")                            \
  X(kLe, "le")                            \
  X(kGt, "gt")                            \
  X(kGe, "ge")                            \
  X(kEq, "eq")                            \
  X(kNe, "ne")                            \
  X(kTanhGradient, "tanh_gradient")       \
  X(kSigmoidGradient, "sigmoid_gradient") \
  X(kReplace, "replace")                  \
  X(kAtan2, "atan2")                      \
  X(kHypot, "hypot")                      \
  X(kFmod, "fmod")                        \
  X(kRemainder, "remainder")              \
  X(kFloorDivide, "floor_divide")         \
  X(kWhere, "where")                      \
  X(kMulAdd, "muladd")                    \
  X(kClamp, "clamp")                      \
  X(kHardtanh, "hardtanh")                \
  X(kInside, "inside")                    \
  X(kWithin, "within")                    \
  X(kSum, "sum")                          \
  X(kAmax, "amax")                        \
  X(kAmin, "amin")                        \
  X(kDot, "dot")                          \
  X(kRank, "rank")                        \
  X(kSelect, "select")                    \
  X(kAccumulate, "accumulate")

#define CELLO_SPACES(X)    \
  X(kStream, "stream")     \
  X(kChunk, "chunk")       \
  X(kState, "state")       \
  X(kWide, "wide")         \
  X(kStatic, "static")     \
  X(kTile, "tile")         \
  X(kConstant, "constant") \
  X(kPrevious, "previous")

#define CELLO_NUMBER(code, name) code,
#define CELLO_NAME(code, name) name,
enum Op : int64_t { CELLO_OPERATIONS(CELLO_NUMBER) kOpCount };
enum Space : int64_t { CELLO_SPACES(CELLO_NUMBER) kSpaceCount };
constexpr const char* kOpNames[] = {CELLO_OPERATIONS(CELLO_NAME)};
constexpr const char* kSpaceNames[] = {CELLO_SPACES(CELLO_NAME)};
#undef CELLO_NUMBER
#undef CELLO_NAME

struct Buffer {
  int64_t space, width, index, offset, stride, origin;
};

struct Operand {
  int64_t buffer, offset, strides[3];
};

struct Instruction {
  int64_t op, sizes[3], count;  // `count` operands
  Operand out, in[4];
};

struct Piece {
  int64_t index, offset, k_stride, n_stride, k0, n0, K, N;
};

// In bfloat16 are all weights of a matrix, or none. Where the processor multiplies in bfloat16,
// rows are then rounded for the product, and sums are float32 as everything else.
struct Matrix {
  int64_t K, N, piece_count;
  const Piece* pieces;
  bool is_bfloat16;
};

// out (+)= row W for the K rows from k0 on of a packed matrix. With a partner, a term of the
// products done ahead of the loop, both can be done as one: it has the rows of the matrix above
// this one's. All that is done at `places` places of each row, which lie row_step numbers apart in
// the row and out_step numbers apart in the result.
struct Term {
  int64_t row, row_offset, out, out_offset, matrix, k0, K, accumulate, partner;
  int64_t places, row_step, out_step;
};

// A part of what a term starts its result from in the place of zero: columns of a static vector.
struct Bias {
  int64_t term, column, width, index, offset;
};

struct Stage {
  int64_t is_fusion, count;
  const int64_t* items;  // instructions of a fusion, or terms
};

// Columns [first, first + N) of a gradient gathered over all rows, and the weight that they belong
// to.
struct Slice {
  int64_t first, N, index, offset, k_stride, n_stride;
};

// A gradient gathered over the places of all rows.
struct Outer {
  int64_t row, row_offset, K, gradient, gradient_offset, N;
  int64_t places, row_step, gradient_step, slice_count;
  const Slice* slices;
  bool is_bfloat16;  // likewise; the gradients are gathered in float32
};

// Where a sum over all rows goes: out[offset + i * strides[0] + ...] +=
// sum[skipped + ...].
struct Target {
  int64_t sum, skipped, index, sizes[3], offset, strides[3];
};

struct Loop {
  int64_t buffer_count, instruction_count, matrix_count, term_count, stage_count;
  int64_t before_count, after_count, outer_count, sum_count, target_count, tile_count;
  int64_t bias_count;
  const Buffer* buffers;
  const double* numbers;
  const Instruction* instructions;
  const Matrix* matrices;
  const Term* terms;
  const Bias* biases;
  const Stage* stages;
  const int64_t *before, *after;
  const Outer* outers;
  const int64_t* sums;  // widths
  const Target* targets;
  const int64_t* tiles;  // widths
};

// What the caller owns. All matrices are row-major and contiguous but for streams, whose
// rows are as far apart as the loop's buffers say; a null stream reads as zeros.
struct Tensors {
  void* const* streams;        // [N][...]
  const void* const* statics;  // contiguous; weights in bfloat16 as they are
  const void* const* states;   // [B][width]
  void* const* new_states;     // [B][width]; may be where the states are
  const void* const* origins;  // [B][width], initial states that kPrevious buffers start from
  void* const* gradients;      // of the statics, accumulated; null where not wanted
};

struct Sequence {
  int64_t steps, batch, rows;  // T, B, N
  const int64_t* batch_sizes;  // [T], falling; null if all are B
  const int64_t* starts;       // [T + 1], the first row of each step; null likewise
  bool descending;             // whether time runs from T - 1 to 0
};

// One thread's view of the threads that run a loop together.
struct Team {
  int64_t size;
  int32_t arrived, phase;  // of the barrier
  int32_t asleep;          // how many of those that wait there may sleep until the phase changes
  int32_t stopped;         // whether all are to leave: nobody waits for anybody then
};

struct Place {
  void* base;
  int64_t stride;  // from row to row, in numbers
  void* origin;    // of a kPrevious buffer, and its rows' distance
  int64_t origin_stride;
};

// Asked now and then; true asks to stop.
struct Poll {
  bool (*ask)(void*);
  void* context;
};

struct Job {
  const Loop* loop;
  Tensors tensors;
  Sequence sequence;
  Team* team;
  bool by_columns;        // products are split by columns, with barriers, and not by rows
  bool by_blocks;         // the rows of a thread lie next to each other
  bool joins_terms;       // terms are done together with their partners
  int64_t chunk_steps;    // how many steps make a chunk
  Place* places;          // [buffer_count], of all but tiles
  void** packed;          // [matrix_count]; null for weights that are read where they are
  const int64_t* depths;  // [matrix_count], rows of the packed matrix
  const int64_t* firsts;  // [term_count], the first of them that a term uses
  void** outers;  // [outer_count], zeros [N][K] to gather gradients of several weights, or null
  void** biases;  // [term_count], whole panels of numbers, or null
  void* scratch;  // [threads][scratch_bytes]
  int64_t scratch_bytes;
  double* sums;        // [threads][sum widths, each rounded up]
  int64_t sums_width;  // of one thread
  Poll poll;           // asked by thread 0
};

// What one instruction set offers, for float32 and float64.
struct Kernels {
  const char* name;
  int64_t vector_bytes;
  // What the K numbers of a product in bfloat16 are rounded up to a multiple of; 0 where there are
  // no such products.
  int64_t bfloat16_unit;
  int64_t (*packed_size)(int64_t K, int64_t N, bool is_double);  // in numbers
  int64_t (*scratch_bytes)(const Loop& loop, int64_t chunk_rows, bool is_double);
  void (*run)(const Job& job, int64_t thread, bool is_double);
};

const Kernels* baseline_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avx512_bf16_kernels();
const Kernels* amx_kernels();

}  // namespace cello
