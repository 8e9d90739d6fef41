// The tree of a hidden Chow-Liu tree model, as every kernel walks it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nnkernels::pc {

using Ints = std::vector<int64_t>;

// Nodes are the variables 0 .. D-1; positions count along the coding order, a depth-first preorder.
struct Tree {
  int64_t D = 0;
  int64_t root = 0;
  Ints parent;       // [D] of a node, -1 for the root
  Ints order;        // [D] node at a position
  Ints position;     // [D] of a node
  Ints end;          // [D] of a node: the position after the last of its subtree
  Ints depth;        // [D] of a node, 0 for the root
  Ints child_start;  // [D + 1] where a node's children start in `children`
  Ints children;     // [D - 1] of all nodes, each node's in coding order

  int64_t size(int64_t node) const { return end[at(node)] - position[at(node)]; }
  int64_t child_count(int64_t node) const { return child_start[at(node + 1)] - first(node); }
  // Child `i` of a node.
  int64_t child(int64_t node, int64_t i) const { return children[at(first(node) + i)]; }

  static size_t at(int64_t index) { return static_cast<size_t>(index); }

 private:
  int64_t first(int64_t node) const { return child_start[at(node)]; }
};

// Checks that `order` is a depth-first preorder of the tree that `parent` (-1 at the root)
// describes. Otherwise `error` says which node is wrong and the tree is empty.
Tree make_tree(const int64_t* parent, const int64_t* order, int64_t D, std::string* error);

}  // namespace nnkernels::pc
