#include "pc/cpu/pass.h"

namespace nnkernels::pc {
namespace {

// Derivatives of B larger than this are not read from a cache again.
constexpr int64_t kStreamBytes = 4 << 20;

template <class Real>
class Flows {
 public:
  Flows(const FlowsArgs& args, const Parallel& parallel, Workspace<Real>& space)
      : args_(args), pass_(args.model, args.evidence, parallel, true, space) {}

  void run() {
    const int64_t N = args_.evidence.N;
    Workspace<Real>& space = pass_.space;
    space.rows.prepare(args_.model.D, pass_.tile);
    std::vector<double> dpi(Tree::at(args_.model.h), 0.0);
    for (int64_t tile = 0; tile < pass_.tiles; ++tile) {
      const int64_t first = std::min(tile * pass_.tile, N);
      add_ = tile > 0;
      pass_.start(first, std::min(pass_.tile, N - first));
      pass_.up(false, [](auto&&...) {});
      if (args_.ll) pass_.finish(static_cast<Real*>(args_.ll));
      start_root(dpi);
      down();
    }
    const auto* pi = static_cast<const Real*>(args_.model.pi);
    for (int64_t a = 0; a < args_.model.h; ++a) {
      const double d = dpi[Tree::at(a)];
      static_cast<Real*>(args_.pi)[a] =
          static_cast<Real>(args_.counts ? d * static_cast<double>(pi[a]) : d);
    }
    const int64_t size = args_.model.h * args_.model.h;
    std::fill_n(static_cast<Real*>(args_.A) + pass_.plan.tree.root * size, size, Real{0});
  }

 private:
  // t of the root's rows, and the derivative of pi.
  void start_root(std::vector<double>& dpi) {
    const int64_t samples = pass_.samples, h = args_.model.h, width = pass_.width;
    Workspace<Real>& space = pass_.space;
    Real* weight = space.weight.get(samples);
    for (int64_t n = 0; n < samples; ++n) {
      const Real p = space.p.data()[n];
      const Real w =
          args_.weights ? static_cast<const Real*>(args_.weights)[pass_.first + n] : Real{1};
      weight[n] = p >= std::numeric_limits<Real>::min() ? w / p : Real{0};
    }
    space.dpi.assign(Tree::at(h), Real{0});
    space.root_t.get((samples + kSpareRows) * width);
    pass_.kernel.root_down(static_cast<const Real*>(args_.model.pi),
                           pass_.beta(pass_.plan.tree.root), weight, samples, h, width,
                           space.root_t.data(), space.dpi.data());
    for (int64_t a = 0; a < h; ++a) dpi[Tree::at(a)] += static_cast<double>(space.dpi[Tree::at(a)]);
  }

  void down() {
    const std::vector<Unit>& units = pass_.plan.units;
    const Ints& top = pass_.plan.top;
    const auto unit_down = [&](const Unit& unit, Scratch<Real>& scratch) {
      for (int64_t p = unit.begin; p < unit.end; ++p) {
        down_node(pass_.plan.tree.order[Tree::at(p)], scratch);
      }
    };
    const auto unit_count = static_cast<int64_t>(units.size());
    if (pass_.slices() == 1) {
      for (const int64_t node : top) down_node(node, *pass_.space.scratch[0]);
      pass_.each(unit_count, [&](int64_t i, Scratch<Real>& scratch) {
        unit_down(units[Tree::at(i)], scratch);
      });
      return;
    }
    // Threads share the rows of the nodes above the units, then the sums over rows by node: so the
    // sums do not depend on the number of threads.
    const int64_t room = (pass_.samples + kChunk) * pass_.width;
    const auto top_count = static_cast<int64_t>(top.size());
    Real* saved = pass_.space.saved.get((2 * top_count + unit_count) * room);
    std::vector<Real*> rows_of(Tree::at(args_.model.D), nullptr);
    for (const int64_t node : top) {
      rows_of[Tree::at(node)] = saved;
      saved += 2 * room;
    }
    for (const Unit& unit : units) {
      rows_of[Tree::at(pass_.plan.tree.order[Tree::at(unit.begin)])] = saved;
      saved += room;
    }
    pass_.each(pass_.slices(), [&](int64_t i, Scratch<Real>& scratch) {
      for (const int64_t node : top) {
        Downward<Real> work =
            node_work(node, pass_.slice_begin(i), pass_.slice_begin(i + 1), scratch);
        for (size_t c = 0; c < scratch.children.size(); ++c) {
          Child<Real>& child = scratch.children[c];
          child.q =
              child.below ? rows_of[Tree::at(child_of(node, c))] : pass_.beta(child_of(node, c));
        }
        work.count = false;
        work.u = rows_of[Tree::at(node)];
        work.ends = work.u + room;
        pass_.kernel.down(work, scratch);
      }
    });
    pass_.each(unit_count + top_count, [&](int64_t i, Scratch<Real>& scratch) {
      if (i >= unit_count) {
        const int64_t node = top[Tree::at(i - unit_count)];
        Downward<Real> work = node_work(node, 0, pass_.samples, scratch);
        work.spread = false;
        work.u = rows_of[Tree::at(node)];
        work.ends = work.u + room;
        pass_.kernel.down(work, scratch);
        return;
      }
      const Unit& unit = units[Tree::at(i)];
      const int64_t node = pass_.plan.tree.order[Tree::at(unit.begin)];
      const Rows& rows = pass_.space.rows;
      if (!rows.dense(node)) {
        std::fill_n(pass_.beta(node), rows.count(node) * pass_.width, Real{0});
        pass_.kernel.gather(rows_of[Tree::at(node)], rows.classes(node), pass_.samples, pass_.width,
                            pass_.beta(node));
      }
      unit_down(unit, scratch);
    });
  }

  // The work on rows [begin, end) of a node, but for where its children's q go.
  Downward<Real> node_work(int64_t node, int64_t begin, int64_t end, Scratch<Real>& scratch) {
    const int64_t h = args_.model.h, K = args_.model.K;
    Downward<Real> work;
    work.node = pass_.node_rows(node, begin, end, scratch);
    work.q = node == pass_.plan.tree.root ? pass_.space.root_t.data() : pass_.beta(node);
    work.times = args_.counts;
    work.add = add_;
    work.stream = args_.model.D * h * K * static_cast<int64_t>(sizeof(Real)) > kStreamBytes;
    work.dA = static_cast<Real*>(args_.A) + node * h * h;
    work.dB = static_cast<Real*>(args_.B) + node * h * K;
    return work;
  }

  void down_node(int64_t node, Scratch<Real>& scratch) {
    const Rows& rows = pass_.space.rows;
    const int64_t width = pass_.width;
    Downward<Real> work = node_work(node, 0, rows.count(node), scratch);
    std::vector<Child<Real>>& children = scratch.children;
    // Where rows of a child are shared its q is a sum, which may take the place of beta only at the
    // end.
    int64_t shared = 0;
    for (size_t i = 0; i < children.size(); ++i) {
      if (children[i].below) shared += rows.count(child_of(node, i));
    }
    Real* sums = scratch.q.get(shared * width);
    std::fill_n(sums, shared * width, Real{0});
    for (size_t i = 0; i < children.size(); ++i) {
      const int64_t child = child_of(node, i);
      children[i].q = pass_.beta(child);
      if (!children[i].below) continue;
      children[i].q = sums;
      children[i].q_below = children[i].below;
      sums += rows.count(child) * width;
    }
    pass_.kernel.down(work, scratch);
    for (size_t i = 0; i < children.size(); ++i) {
      if (!children[i].below) continue;
      const int64_t child = child_of(node, i);
      std::copy_n(children[i].q, rows.count(child) * width, pass_.beta(child));
    }
  }

  // Of Node::children, the last in coding order first.
  int64_t child_of(int64_t node, size_t i) const {
    const Tree& tree = pass_.plan.tree;
    return tree.child(node, tree.child_count(node) - 1 - static_cast<int64_t>(i));
  }

  const FlowsArgs& args_;
  Pass<Real> pass_;
  bool add_ = false;
};

template <class Real>
void run(const FlowsArgs& args, const Parallel& parallel) {
  Lease<Real> lease;
  Flows<Real>(args, parallel, *lease).run();
}

}  // namespace

void flows(const FlowsArgs& args, const Parallel& parallel) {
  args.model.type == Type::float32 ? run<float>(args, parallel) : run<double>(args, parallel);
}

}  // namespace nnkernels::pc
