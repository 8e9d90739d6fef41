#include "pc/cpu/tree.h"

namespace nnkernels::pc {
namespace {

std::string text(int64_t number) { return std::to_string(number); }

// Empty where `parent` and `order` fit together so far: each node once, one root, in range.
std::string check_nodes(const int64_t* parent, const int64_t* order, int64_t D) {
  if (D < 1) return "the tree has no nodes";
  int64_t root = -1;
  for (int64_t i = 0; i < D; ++i) {
    if (parent[i] < -1 || parent[i] >= D || parent[i] == i) {
      return "parent of node " + text(i) + " is " + text(parent[i]) +
             ", expected -1 or another of " + text(D) + " nodes";
    }
    if (parent[i] != -1) continue;
    if (root >= 0) return "nodes " + text(root) + " and " + text(i) + " are both roots";
    root = i;
  }
  if (root < 0) return "no node is a root (parent -1)";
  std::vector<bool> seen(Tree::at(D), false);
  for (int64_t p = 0; p < D; ++p) {
    const int64_t node = order[p];
    if (node < 0 || node >= D) {
      return "order holds node " + text(node) + " at " + text(p) + ", expected one of " + text(D) +
             " nodes";
    }
    if (seen[Tree::at(node)]) return "order holds node " + text(node) + " twice";
    seen[Tree::at(node)] = true;
  }
  if (order[0] != root) {
    return "order starts at node " + text(order[0]) + ", expected the root " + text(root);
  }
  return {};
}

}  // namespace

Tree make_tree(const int64_t* parent, const int64_t* order, int64_t D, std::string* error) {
  *error = check_nodes(parent, order, D);
  if (!error->empty()) return {};
  Tree tree;
  tree.D = D;
  tree.root = order[0];
  tree.parent.assign(parent, parent + D);
  tree.order.assign(order, order + D);
  tree.position.resize(Tree::at(D));
  tree.end.resize(Tree::at(D));
  tree.depth.resize(Tree::at(D), 0);
  for (int64_t p = 0; p < D; ++p) tree.position[Tree::at(order[p])] = p;

  // The path from the root to the node before: in a preorder the next node hangs from one of it.
  Ints path;
  for (int64_t p = 0; p < D; ++p) {
    const int64_t node = order[p];
    while (!path.empty() && path.back() != parent[node]) {
      tree.end[Tree::at(path.back())] = p;
      path.pop_back();
    }
    if (path.empty() && p > 0) {
      *error = "order holds node " + text(node) + " outside the subtree of its parent " +
               text(parent[node]) + ", expected a depth-first preorder";
      return {};
    }
    tree.depth[Tree::at(node)] = static_cast<int64_t>(path.size());
    path.push_back(node);
  }
  for (const int64_t node : path) tree.end[Tree::at(node)] = D;

  tree.child_start.assign(Tree::at(D + 1), 0);
  for (int64_t i = 0; i < D; ++i) {
    if (parent[i] >= 0) ++tree.child_start[Tree::at(parent[i] + 1)];
  }
  for (int64_t i = 0; i < D; ++i) {
    tree.child_start[Tree::at(i + 1)] += tree.child_start[Tree::at(i)];
  }
  tree.children.resize(Tree::at(D - 1));
  Ints next(tree.child_start.begin(), tree.child_start.end() - 1);
  for (int64_t p = 1; p < D; ++p) {
    const int64_t node = order[p];
    tree.children[Tree::at(next[Tree::at(parent[node])]++)] = node;
  }
  return tree;
}

}  // namespace nnkernels::pc
