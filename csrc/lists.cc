#include "lists.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace cello {
namespace {

std::vector<int64_t> take_items(const std::vector<int64_t>& list, size_t from) {
  return std::vector<int64_t>(list.begin() + static_cast<std::ptrdiff_t>(from), list.end());
}

void expect(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(std::string("malformed program: ") + what);
}

Operand operand(const std::vector<int64_t>& list, size_t at) {
  return {list[at], list[at + 1], {list[at + 2], list[at + 3], list[at + 4]}};
}

}  // namespace

Schedule::Schedule(const Lists& lists)
    : numbers_(lists.numbers),
      before_(lists.before),
      after_(lists.after),
      sums_(lists.sums),
      tiles_(lists.tiles),
      bfloat16_statics_(lists.bfloat16.size()) {
  const auto in_bfloat16 = [&lists](int64_t index) {
    return index >= 0 && index < static_cast<int64_t>(lists.bfloat16.size()) &&
           lists.bfloat16[static_cast<size_t>(index)];
  };
  for (const auto& b : lists.buffers) {
    expect(b.size() == 6 && b[0] >= 0 && b[0] < kSpaceCount, "a buffer");
    buffers_.push_back({b[0], b[1], b[2], b[3], b[4], b[5]});
    if (b[0] == kChunk) chunk_width_ += b[1];
  }
  for (const auto& i : lists.instructions) {
    expect(i.size() >= 14 && i.size() <= 29 && (i.size() - 4) % 5 == 0, "an instruction");
    expect(i[0] >= 0 && i[0] < kOpCount, "an opcode");
    Instruction code{
        i[0], {i[1], i[2], i[3]}, static_cast<int64_t>(i.size() - 9) / 5, operand(i, 4), {}};
    for (int64_t k = 0; k < code.count; ++k) code.in[k] = operand(i, 9 + 5 * k);
    instructions_.push_back(code);
  }
  pieces_.reserve(lists.matrices.size());
  for (const auto& m : lists.matrices) {
    expect(m.size() >= 10 && (m.size() - 2) % 8 == 0, "a matrix");
    pieces_.emplace_back();
    for (size_t at = 2; at < m.size(); at += 8) {
      pieces_.back().push_back(
          {m[at], m[at + 1], m[at + 2], m[at + 3], m[at + 4], m[at + 5], m[at + 6], m[at + 7]});
    }
    const std::vector<Piece>& pieces = pieces_.back();
    for (const Piece& p : pieces) {
      if (!in_bfloat16(p.index)) continue;
      int64_t& read = bfloat16_statics_[static_cast<size_t>(p.index)];
      const int64_t last = (p.K - 1) * std::max<int64_t>(p.k_stride, 0) +
                           (p.N - 1) * std::max<int64_t>(p.n_stride, 0);
      read = std::max(read, p.offset + last + 1);
    }
    const bool is_bfloat16 = !pieces.empty() && in_bfloat16(pieces.front().index);
    for (const Piece& p : pieces) expect(in_bfloat16(p.index) == is_bfloat16, "a matrix");
    matrices_.push_back(
        {m[0], m[1], static_cast<int64_t>(pieces.size()), pieces.data(), is_bfloat16});
  }
  for (const auto& t : lists.terms) {
    expect(t.size() == 12 && t[9] > 0 && t[4] >= 0 && t[4] < static_cast<int64_t>(matrices_.size()),
           "a term");
    terms_.push_back({t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7], t[8], t[9], t[10], t[11]});
  }
  for (const auto& b : lists.biases) {
    expect(b.size() == 5 && b[0] >= 0 && b[0] < static_cast<int64_t>(terms_.size()), "a bias");
    biases_.push_back({b[0], b[1], b[2], b[3], b[4]});
  }
  items_.reserve(lists.stages.size());
  for (const auto& s : lists.stages) {
    expect(s.size() >= 2, "a stage");
    items_.push_back(take_items(s, 1));
    stages_.push_back({s[0], static_cast<int64_t>(items_.back().size()), items_.back().data()});
  }
  slices_.reserve(lists.outers.size());
  for (const auto& o : lists.outers) {
    expect(o.size() >= 15 && (o.size() - 9) % 6 == 0 && o[6] > 0, "an outer product");
    slices_.emplace_back();
    for (size_t at = 9; at < o.size(); at += 6) {
      slices_.back().push_back({o[at], o[at + 1], o[at + 2], o[at + 3], o[at + 4], o[at + 5]});
    }
    const std::vector<Slice>& slices = slices_.back();
    const bool is_bfloat16 = in_bfloat16(slices.front().index);
    for (const Slice& p : slices) expect(in_bfloat16(p.index) == is_bfloat16, "an outer product");
    outers_.push_back({o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7], o[8],
                       static_cast<int64_t>(slices.size()), slices.data(), is_bfloat16});
  }
  for (const auto& t : lists.targets) {
    expect(t.size() == 10, "a target");
    targets_.push_back({t[0], t[1], t[2], {t[3], t[4], t[5]}, t[6], {t[7], t[8], t[9]}});
  }
  for (const Term& term : terms_) {
    products_per_row_ += term.places * term.K * matrices_[term.matrix].N;
  }
  for (const Instruction& code : instructions_) {
    products_per_row_ += 4 * code.sizes[0] * code.sizes[1] * code.sizes[2];
  }
  for (const Stage& stage : stages_) {
    if (stage.is_fusion) continue;
    for (int64_t i = 0; i < stage.count; ++i) {
      const Term& term = terms_[stage.items[i]];
      loop_weights_ += term.K * matrices_[term.matrix].N;
      places_ = places_ ? std::min(places_, term.places) : term.places;
    }
  }
  loop_.buffer_count = static_cast<int64_t>(buffers_.size());
  loop_.instruction_count = static_cast<int64_t>(instructions_.size());
  loop_.matrix_count = static_cast<int64_t>(matrices_.size());
  loop_.term_count = static_cast<int64_t>(terms_.size());
  loop_.stage_count = static_cast<int64_t>(stages_.size());
  loop_.before_count = static_cast<int64_t>(before_.size());
  loop_.after_count = static_cast<int64_t>(after_.size());
  loop_.outer_count = static_cast<int64_t>(outers_.size());
  loop_.sum_count = static_cast<int64_t>(sums_.size());
  loop_.target_count = static_cast<int64_t>(targets_.size());
  loop_.tile_count = static_cast<int64_t>(tiles_.size());
  loop_.bias_count = static_cast<int64_t>(biases_.size());
  loop_.biases = biases_.data();
  loop_.buffers = buffers_.data();
  loop_.numbers = numbers_.data();
  loop_.instructions = instructions_.data();
  loop_.matrices = matrices_.data();
  loop_.terms = terms_.data();
  loop_.stages = stages_.data();
  loop_.before = before_.data();
  loop_.after = after_.data();
  loop_.outers = outers_.data();
  loop_.sums = sums_.data();
  loop_.targets = targets_.data();
  loop_.tiles = tiles_.data();
}

}  // namespace cello
