// Runs the blocks of a launch one after another, every thread of a block on its own fiber.
//
// A thread runs until it reaches a barrier or a warp operation that others have not reached yet.
// What cannot go on (a thread that left before a barrier, threads at different barriers, a warp
// operation whose mask names a thread that never comes) is an exception that says who waits where.
#pragma once

#include <signal.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "testing/cuda_on_cpu/fiber.h"
#include "testing/cuda_on_cpu/memory.h"

inline uint3 threadIdx;
inline uint3 blockIdx;
inline dim3 blockDim;
inline dim3 gridDim;
inline constexpr int warpSize = 32;

namespace nnkernels::cuda_on_cpu {

using Site = std::source_location;

// The order in which runnable threads and blocks run. A result that depends on it is a race: a
// missing barrier shows in at least one of the two.
enum class Order { forward, backward };

struct Thread {
  enum class State { ready, at_barrier, at_warp_operation, finished };

  Fiber fiber;
  uint3 index;
  int rank;
  State state;
  Site site;
  // Barrier: this thread's predicate, then the number of threads whose predicate holds.
  int predicate;
  // Warp operation: the lanes taking part, this lane's operand and the place for its result.
  unsigned mask;
  const void* operand;
  void* result;

  int lane() const { return rank % warpSize; }
};

class Machine {
 public:
  Order order = Order::forward;

  void launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
              const std::function<void()>& body) {
    kernel_ = kernel;
    check_limits(grid, block, shared_bytes);
    gridDim = grid;
    blockDim = block;
    thread_count_ = block.x * block.y * block.z;
    while (threads_.size() < thread_count_) threads_.push_back(std::make_unique<Thread>());
    GuardedMemory shared("dynamic shared memory", shared_bytes, 16);
    shared_ = &shared;
    body_ = &body;
    const FaultHandler handler;
    const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; ++i) {
      const uint64_t rank = order == Order::forward ? i : blocks - 1 - i;
      blockIdx =
          uint3{static_cast<unsigned>(rank % grid.x), static_cast<unsigned>(rank / grid.x % grid.y),
                static_cast<unsigned>(rank / grid.x / grid.y)};
      run_block();
    }
  }

  // The remaining functions are called on the fiber of a running thread.

  Thread& current() {
    if (!running_) throw std::logic_error("device function called outside a kernel");
    return *running_;
  }

  void* dynamic_shared() { return shared_->data(); }

  // Waits for all threads of the block; returns how many passed a nonzero predicate.
  int barrier(int predicate, Site site) {
    Thread& self = current();
    self.predicate = predicate != 0;
    self.site = site;
    self.state = Thread::State::at_barrier;
    self.fiber.suspend();
    return self.predicate;
  }

  // Waits for the lanes in `mask`, then gives every one of them combine(operands, lane), where
  // operands[i] points to lane i's operand, or is null if lane i takes no part.
  template <typename Result, typename Operand, typename Combine>
  Result warp_operation(unsigned mask, const Operand& operand, Site site, const Combine& combine) {
    Thread& self = current();
    if (!(mask >> self.lane() & 1)) fail(self, site, "calls a warp operation whose mask omits it");
    Result result{};
    self.mask = mask;
    self.operand = &operand;
    self.result = &result;
    self.site = site;
    self.state = Thread::State::at_warp_operation;
    const Operand* operands[warpSize] = {};
    if (!gather(self, operands)) {
      self.fiber.suspend();
      return result;
    }
    for (int lane = 0; lane < warpSize; ++lane) {
      if (!operands[lane]) continue;
      Thread& thread = lane_of(self, lane);
      *static_cast<Result*>(thread.result) = combine(operands, lane);
      thread.state = Thread::State::ready;
    }
    return result;
  }

  [[noreturn]] void fail(const Thread& thread, Site site, const std::string& what) {
    throw std::runtime_error(place() + " thread " + text(thread.index) + " at " + text(site) +
                             ": " + what);
  }

 private:
  // Turns SIGSEGV and SIGBUS of a running thread into an exception for the time of a launch.
  class FaultHandler {
   public:
    FaultHandler() {
      alternate_.resize(64 * 1024);
      stack_t stack = {};
      stack.ss_sp = alternate_.data();
      stack.ss_size = alternate_.size();
      sigaltstack(&stack, &previous_stack_);
      struct sigaction action = {};
      action.sa_sigaction = [](int signal, siginfo_t* info, void*) { on_fault(signal, info); };
      action.sa_flags = SA_SIGINFO | SA_ONSTACK;
      sigaction(SIGSEGV, &action, &previous_[0]);
      sigaction(SIGBUS, &action, &previous_[1]);
    }
    ~FaultHandler() {
      sigaction(SIGSEGV, &previous_[0], nullptr);
      sigaction(SIGBUS, &previous_[1], nullptr);
      sigaltstack(&previous_stack_, nullptr);
    }

   private:
    // The handler runs on this stack, since the fault may be an overflow of the thread's own.
    std::vector<char> alternate_;
    stack_t previous_stack_ = {};
    struct sigaction previous_[2] = {};
  };

  static void on_fault(int signal, siginfo_t* info);

  static std::string text(uint3 index) {
    std::ostringstream out;
    out << "(" << index.x << "," << index.y << "," << index.z << ")";
    return out.str();
  }
  static std::string text(Site site) {
    const char* slash = std::strrchr(site.file_name(), '/');
    return std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(site.line());
  }
  static bool same(Site a, Site b) {
    return a.line() == b.line() && a.column() == b.column() &&
           std::strcmp(a.file_name(), b.file_name()) == 0;
  }
  std::string place() const { return std::string(kernel_) + ": block " + text(blockIdx); }

  void check_limits(dim3 grid, dim3 block, size_t shared_bytes) const {
    const auto within = [](dim3 size, unsigned x, unsigned y, unsigned z) {
      return size.x - 1 < x && size.y - 1 < y && size.z - 1 < z;
    };
    if (!within(block, 1024, 1024, 64) || uint64_t{block.x} * block.y * block.z > 1024 ||
        !within(grid, 0x7FFFFFFF, 65535, 65535) || shared_bytes > 227 * 1024) {
      throw std::runtime_error(std::string(kernel_) + ": launch configuration out of range");
    }
  }

  static void run_thread(void* machine) {
    auto* self = static_cast<Machine*>(machine);
    try {
      (*self->body_)();
    } catch (...) {
      self->failure_ = std::current_exception();
    }
    self->running_->state = Thread::State::finished;
  }

  void run_block() {
    shared_->fill_poison();
    for (unsigned i = 0; i < thread_count_; ++i) {
      Thread& thread = *threads_[i];
      thread.rank = static_cast<int>(i);
      thread.index =
          uint3{i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
      thread.predicate = 0;
      thread.state = Thread::State::ready;
      thread.fiber.start(&run_thread, this);
    }
    while (run_ready_threads() || release_barrier()) {
    }
    if (!shared_->intact()) {
      throw std::runtime_error(place() + ": wrote past the end of dynamic shared memory");
    }
  }

  bool run_ready_threads() {
    bool any = false;
    for (unsigned i = 0; i < thread_count_; ++i) {
      Thread& thread = *threads_[order == Order::forward ? i : thread_count_ - 1 - i];
      if (thread.state != Thread::State::ready) continue;
      any = true;
      running_ = &thread;
      threadIdx = thread.index;
      thread.fiber.resume();
      running_ = nullptr;
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      if (faulted_) throw_fault(thread);
    }
    return any;
  }

  // Called when no thread can run. False if all have finished, true if they were at one barrier.
  bool release_barrier() {
    const Thread& first = *threads_[0];
    int count = 0;
    for (unsigned i = 0; i < thread_count_; ++i) {
      const Thread& thread = *threads_[i];
      if (thread.state != first.state || thread.state == Thread::State::at_warp_operation ||
          (thread.state == Thread::State::at_barrier && !same(thread.site, first.site))) {
        throw_stuck();
      }
      count += thread.predicate;
    }
    if (first.state == Thread::State::finished) return false;
    for (unsigned i = 0; i < thread_count_; ++i) {
      threads_[i]->predicate = count;
      threads_[i]->state = Thread::State::ready;
    }
    return true;
  }

  Thread& lane_of(const Thread& thread, int lane) {
    return *threads_[thread.rank - thread.lane() + lane];
  }

  // The operands of the lanes in self.mask; false if a lane has not arrived.
  template <typename Operand>
  bool gather(const Thread& self, const Operand** operands) {
    for (int lane = 0; lane < warpSize; ++lane) {
      if (!(self.mask >> lane & 1)) continue;
      if (self.rank - self.lane() + lane >= static_cast<int>(thread_count_)) {
        fail(self, self.site, "the mask names lane " + std::to_string(lane) + ", beyond the block");
      }
      const Thread& thread = lane_of(self, lane);
      if (thread.state != Thread::State::at_warp_operation || thread.mask != self.mask ||
          !same(thread.site, self.site)) {
        return false;
      }
      operands[lane] = static_cast<const Operand*>(thread.operand);
    }
    return true;
  }

  [[noreturn]] void throw_stuck() const {
    struct Group {
      int count = 0;
      uint3 first = {};
    };
    std::map<std::string, Group> groups;
    for (unsigned i = 0; i < thread_count_; ++i) {
      const Thread& thread = *threads_[i];
      std::ostringstream what;
      if (thread.state == Thread::State::finished) {
        what << "exited";
      } else if (thread.state == Thread::State::at_barrier) {
        what << "in __syncthreads at " << text(thread.site);
      } else {
        what << "in a warp operation at " << text(thread.site) << " with mask 0x" << std::hex
             << thread.mask;
      }
      Group& group = groups[what.str()];
      if (group.count++ == 0) group.first = thread.index;
    }
    std::ostringstream message;
    message << place() << " is stuck";
    const char* separator = ": ";
    for (const auto& [what, group] : groups) {
      message << separator << group.count << " threads " << what << " (first: " << text(group.first)
              << ")";
      separator = "; ";
    }
    throw std::runtime_error(message.str());
  }

  [[noreturn]] void throw_fault(const Thread& thread) {
    faulted_ = false;
    std::string what = GuardedMemory::describe(fault_address_);
    if (thread.fiber.guards(fault_address_)) {
      what = "stack overflow";
    } else if (what.empty()) {
      // x86 reports no address for a misaligned vector access.
      what = "address outside every buffer, or misaligned";
    }
    throw std::runtime_error(place() + " thread " + text(thread.index) +
                             ": bad memory access: " + what);
  }

  const char* kernel_ = "";
  const std::function<void()>* body_ = nullptr;
  GuardedMemory* shared_ = nullptr;
  unsigned thread_count_ = 0;
  std::vector<std::unique_ptr<Thread>> threads_;
  Thread* running_ = nullptr;
  std::exception_ptr failure_;
  bool faulted_ = false;
  const void* fault_address_ = nullptr;
};

inline Machine machine;

inline void Machine::on_fault(int signal, siginfo_t* info) {
  if (!machine.running_) {
    // Not a kernel's doing: fault again without this handler.
    ::signal(signal, SIG_DFL);
    return;
  }
  machine.faulted_ = true;
  machine.fault_address_ = info->si_addr;
  machine.running_->fiber.leave();
}

}  // namespace nnkernels::cuda_on_cpu
