// Which samples of a tile share the messages of a node.
//
// The messages of node i depend on the variables of its subtree alone. A row of node i is one
// configuration of those that occurs in the tile; where nearly all samples differ the node is
// `dense`, its rows are the samples, and so are those of its ancestors.
#pragma once

#include <vector>

#include "pc/cpu/tree.h"
#include "pc/pc.h"

namespace nnkernels::pc {

// Largest tile: rows and values are uint16.
constexpr int64_t kMaxTile = 2048;

// A subtree, as positions of the coding order, that one thread works on.
struct Unit {
  int64_t begin = 0, end = 0;
};

// How the tree is divided among threads: subtrees of limited size, and the nodes above them. The
// nodes of large subtrees are always dense, those above the units among them.
struct Plan {
  Tree tree;
  std::vector<Unit> units;
  Ints top;                 // nodes above the units in coding order, the root first
  std::vector<char> dense;  // [D]
};
Plan make_plan(const Model& model, int64_t threads);

// Scratch of one thread.
class Classifier {
 public:
  // Room for values below `count`.
  void values(int64_t count) {
    if (seen_.size() < Tree::at(count)) seen_.resize(Tree::at(count));
  }
  // Numbers equal values of x, or equal pairs of a and b, by 0, 1, ... in `ids`, in the order of
  // first occurrence. Returns how many there are, or more than `limit`.
  // `first` gets the value of each number.
  int64_t number(const uint16_t* x, int64_t T, uint16_t* ids, uint16_t* first);
  int64_t number(const uint16_t* a, const uint16_t* b, int64_t T, int64_t limit, uint16_t* ids);

 private:
  struct Slot {
    uint32_t key = 0, id = 0, generation = 0;
  };
  uint32_t next_generation();

  std::vector<Slot> seen_, slots_ = std::vector<Slot>(Tree::at(4 * kMaxTile));
  uint32_t generation_ = 0;
};

class Rows {
 public:
  // Room for tiles of up to `T` samples.
  void prepare(int64_t D, int64_t T);
  // Reads samples [first, first + T) by variable; `begin` to `end` of those T by this call.
  void start(int64_t T) { T_ = T; }
  void read(const Evidence& evidence, int64_t K, int64_t first, int64_t begin, int64_t end);
  // Finds the rows of a node after those of its children.
  void classify(const Plan& plan, int64_t node, Classifier& classifier);

  int64_t tile() const { return T_; }
  int64_t count(int64_t node) const { return dense(node) ? T_ : counts_[Tree::at(node)]; }
  bool dense(int64_t node) const { return counts_[Tree::at(node)] < 0; }
  // The values of x that occur at a node, K for missing ones, and [count] which of them a row has.
  int64_t distinct_count(int64_t node) const { return distinct_counts_[Tree::at(node)]; }
  const uint16_t* distinct(int64_t node) const { return distinct_.data() + node * T_; }
  const uint16_t* values(int64_t node) const { return values_.data() + node * T_; }
  // [T] row of a sample.
  const uint16_t* classes(int64_t node) const { return classes_.data() + node * T_; }
  // [count(parent)] row of `child` below each row of its parent; nullptr: the same.
  const uint16_t* below(const Tree& tree, int64_t child) const {
    if (dense(child)) return nullptr;
    const int64_t parent = tree.parent[Tree::at(child)];
    return (dense(parent) ? classes_ : below_).data() + child * T_;
  }

 private:
  int64_t D_ = 0, T_ = 0;
  Ints counts_, distinct_counts_;  // a count of -1: dense
  std::vector<uint16_t> x_, distinct_, classes_, values_, below_;
};

}  // namespace nnkernels::pc
