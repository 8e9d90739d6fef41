#include "pc/cpu/rows.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace nnkernels::pc {
namespace {

// The nodes of subtrees of more than this share of all nodes are dense.
constexpr int64_t kDenseShare = 12;
// Units for each thread, about: enough to keep them even.
constexpr int64_t kUnits = 3;

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

Plan make_plan(const Model& model, int64_t threads) {
  Plan plan;
  std::string error;
  plan.tree = make_tree(model.parent, model.order, model.D, &error);
  if (!error.empty()) throw std::invalid_argument(error);
  const Tree& tree = plan.tree;
  const int64_t dense_limit = std::max<int64_t>(tree.D / kDenseShare, 1);
  const int64_t limit = std::max(dense_limit, tree.D / (kUnits * threads));
  for (int64_t i = 0; i < tree.D; ++i) {
    plan.dense.push_back(i == tree.root || tree.size(i) > dense_limit);
  }
  for (int64_t p = 0; p < tree.D;) {
    const int64_t node = tree.order[Tree::at(p)];
    if (p > 0 && tree.size(node) <= limit) {
      plan.units.push_back({p, tree.end[Tree::at(node)]});
      p = plan.units.back().end;
    } else {
      plan.top.push_back(node);
      ++p;
    }
  }
  // The largest first, so that threads end together.
  std::stable_sort(plan.units.begin(), plan.units.end(),
                   [](const Unit& a, const Unit& b) { return a.end - a.begin > b.end - b.begin; });
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

int64_t Classifier::number(const uint16_t* x, int64_t T, uint16_t* ids, uint16_t* first) {
  const uint32_t generation = next_generation();
  uint32_t count = 0;
  for (int64_t n = 0; n < T; ++n) {
    Slot& slot = seen_[x[n]];
    if (slot.generation != generation) {
      slot = {0, count, generation};
      first[count++] = x[n];
    }
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
  distinct_counts_.assign(Tree::at(D), 0);
  for (auto* of : {&x_, &distinct_, &classes_, &values_, &below_}) of->resize(Tree::at(D * T));
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
  uint16_t* values = values_.data() + node * T_;
  int64_t found =
      classifier.number(x_.data() + node * T_, T_, values, distinct_.data() + node * T_);
  distinct_counts_[Tree::at(node)] = found;
  int64_t& count = counts_[Tree::at(node)];
  count = -1;
  if (plan.dense[Tree::at(node)]) return;
  for (int64_t i = 0; i < children; ++i) {
    if (dense(tree.child(node, i))) return;
  }
  uint16_t* ids = classes_.data() + node * T_;
  std::copy(values, values + T_, ids);
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
  // The first sample of each row. Rows are numbered in the order of these, so values can move in
  // place.
  uint16_t sample[kMaxTile];
  for (int64_t n = T_ - 1; n >= 0; --n) sample[ids[n]] = static_cast<uint16_t>(n);
  for (int64_t r = 0; r < count; ++r) values[r] = values[sample[r]];
  for (int64_t i = 0; i < children; ++i) {
    const int64_t child = tree.child(node, i);
    const uint16_t* of_child = classes(child);
    for (int64_t r = 0; r < count; ++r) {
      below_[Tree::at(child * T_ + r)] = of_child[sample[r]];
    }
  }
}

}  // namespace nnkernels::pc
