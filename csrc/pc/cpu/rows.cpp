#include "pc/cpu/rows.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace nnkernels::pc {
namespace {

// Subtrees of at most this share of the nodes are units: enough of them to keep threads even.
constexpr int64_t kShare = 12;

template <class Symbol>
void read_samples(const Evidence& evidence, int64_t D, int64_t K, int64_t first, int64_t begin,
                  int64_t end, int64_t T, uint16_t* to) {
  // Blocks of samples whose rows share the first cache with a block of the transposed rows.
  constexpr int64_t kBlock = 32;
  for (int64_t from = begin; from < end; from += kBlock) {
    const int64_t stop = std::min(from + kBlock, end);
    for (int64_t i = 0; i < D; ++i) {
      for (int64_t n = from; n < stop; ++n) {
        const int64_t v = static_cast<const Symbol*>(evidence.x)[(first + n) * evidence.row + i];
        const bool missing = evidence.mask && evidence.mask[(first + n) * evidence.mask_row + i];
        if (!missing && (v < 0 || v >= K)) {
          throw std::invalid_argument("x[" + std::to_string(first + n) + ", " + std::to_string(i) +
                                      "] is " + std::to_string(v) +
                                      ", expected at least 0 and below K=" + std::to_string(K));
        }
        to[i * T + n] = static_cast<uint16_t>(missing ? K : v);
      }
    }
  }
}

}  // namespace

Plan make_plan(const Model& model) {
  Plan plan;
  std::string error;
  plan.tree = make_tree(model.parent, model.order, model.D, &error);
  if (!error.empty()) throw std::invalid_argument(error);
  const Tree& tree = plan.tree;
  const int64_t limit = std::max<int64_t>(tree.D / kShare, 1);
  plan.above.assign(Tree::at(tree.D), 0);
  for (int64_t p = 0; p < tree.D;) {
    const int64_t node = tree.order[Tree::at(p)];
    if (p > 0 && tree.size(node) <= limit) {
      plan.units.push_back({p, tree.end[Tree::at(node)]});
      p = plan.units.back().end;
    } else {
      plan.top.push_back(node);
      plan.above[Tree::at(node)] = 1;
      ++p;
    }
  }
  return plan;
}

uint32_t Classifier::next_generation() {
  if (++generation_ == 0) {
    seen_.assign(seen_.size(), {});
    slots_.assign(slots_.size(), {});
    generation_ = 1;
  }
  return generation_;
}

int64_t Classifier::number(const uint16_t* x, int64_t T, uint16_t* ids) {
  const uint32_t generation = next_generation();
  uint32_t count = 0;
  for (int64_t n = 0; n < T; ++n) {
    Slot& slot = seen_[x[n]];
    if (slot.generation != generation) slot = {0, count++, generation};
    ids[n] = static_cast<uint16_t>(slot.id);
  }
  return count;
}

int64_t Classifier::number(const uint16_t* a, const uint16_t* b, int64_t T, int64_t limit,
                           uint16_t* ids) {
  const uint32_t generation = next_generation();
  // At most half of the slots are taken: at least twice as many as samples, and a power of two.
  uint32_t bits = 5;
  while ((int64_t{1} << bits) < 2 * T) ++bits;
  const uint32_t last = (1u << bits) - 1;
  uint32_t count = 0;
  for (int64_t n = 0; n < T; ++n) {
    const uint32_t key = static_cast<uint32_t>(a[n]) << 16 | b[n];
    uint32_t at = (key * 0x9E3779B1u) >> (32 - bits);
    while (slots_[at].generation == generation && slots_[at].key != key) at = (at + 1) & last;
    Slot& slot = slots_[at];
    if (slot.generation != generation) {
      slot = {key, count++, generation};
      if (count > limit) return count;
    }
    ids[n] = static_cast<uint16_t>(slot.id);
  }
  return count;
}

void Rows::prepare(int64_t D, int64_t T) {
  D_ = D;
  counts_.assign(Tree::at(D), 0);
  for (auto* of : {&x_, &classes_, &values_, &below_}) of->resize(Tree::at(D * T));
}

void Rows::read(const Evidence& evidence, int64_t K, int64_t first, int64_t begin, int64_t end) {
  if (evidence.type == Symbol::uint8) {
    read_samples<uint8_t>(evidence, D_, K, first, begin, end, T_, x_.data());
  } else {
    read_samples<int16_t>(evidence, D_, K, first, begin, end, T_, x_.data());
  }
}

void Rows::classify(const Plan& plan, int64_t node, Classifier& classifier) {
  const Tree& tree = plan.tree;
  const int64_t children = tree.child_count(node), limit = T_ * 3 / 4;
  int64_t& count = counts_[Tree::at(node)];
  count = -1;
  if (plan.above[Tree::at(node)]) return;
  for (int64_t i = 0; i < children; ++i) {
    if (dense(tree.child(node, i))) return;
  }
  uint16_t* ids = classes_.data() + node * T_;
  const uint16_t* x = x_.data() + node * T_;
  int64_t found = classifier.number(x, T_, ids);
  for (int64_t i = 0; i < children && found <= limit; ++i) {
    const int64_t child = tree.child(node, i);
    if (counts_[Tree::at(child)] == 1) continue;
    const uint16_t* of_child = classes(child);
    if (found == 1) {
      std::copy(of_child, of_child + T_, ids);
      found = counts_[Tree::at(child)];
    } else {
      found = classifier.number(ids, of_child, T_, limit, ids);
    }
  }
  if (found > limit && T_ > 1) return;
  count = found;
  // A sample of each row.
  uint16_t sample[kMaxTile];
  for (int64_t n = T_ - 1; n >= 0; --n) sample[ids[n]] = static_cast<uint16_t>(n);
  for (int64_t r = 0; r < count; ++r) values_[Tree::at(node * T_ + r)] = x[sample[r]];
  for (int64_t i = 0; i < children; ++i) {
    const int64_t child = tree.child(node, i);
    const uint16_t* of_child = classes(child);
    for (int64_t r = 0; r < count; ++r) {
      below_[Tree::at(child * T_ + r)] = of_child[sample[r]];
    }
  }
}

}  // namespace nnkernels::pc
