// One emulated CUDA thread's stack and registers. Fibers are resumed by the scheduler, run until
// they suspend or return, and are restarted for the next block: the stack is allocated once.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define NNK_FIBER_ASAN 1
#else
#define NNK_FIBER_ASAN 0
#endif

namespace nnkernels::cuda_on_cpu {

class Fiber {
 public:
  static constexpr size_t stack_bytes = 256 * 1024;
  // Below the stack, so that an overflow faults instead of running into the neighbour.
  static constexpr size_t guard_bytes = 64 * 1024;

  Fiber() {
    void* map =
        mmap(nullptr, guard_bytes + stack_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = static_cast<char*>(map);
    mprotect(stack(), stack_bytes, PROT_READ | PROT_WRITE);
  }
  ~Fiber() { munmap(map_, guard_bytes + stack_bytes); }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next resume() calls body(argument) on the fiber's own stack. What the stack held is
  // dropped.
  void start(void (*body)(void*), void* argument) {
    body_ = body;
    argument_ = argument;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack();
    context_.uc_stack.ss_size = stack_bytes;
    context_.uc_link = nullptr;
    // makecontext passes ints only.
    const uint64_t self = reinterpret_cast<uint64_t>(this);
    makecontext(&context_, reinterpret_cast<void (*)()>(&enter), 2, static_cast<unsigned>(self),
                static_cast<unsigned>(self >> 32));
  }

  // Called by the scheduler; returns when the fiber suspends, ends or is left.
  void resume() {
#if NNK_FIBER_ASAN
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack(), stack_bytes);
#endif
    swapcontext(&scheduler_, &context_);
#if NNK_FIBER_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
  }

  // Called on the fiber; returns at the next resume().
  void suspend() {
#if NNK_FIBER_ASAN
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, scheduler_stack_, scheduler_stack_bytes_);
#endif
    swapcontext(&context_, &scheduler_);
#if NNK_FIBER_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#endif
  }

  // Called on the fiber, also from a signal handler that interrupted it: goes back to the scheduler
  // for good.
  [[noreturn]] void leave() {
#if NNK_FIBER_ASAN
    __sanitizer_start_switch_fiber(nullptr, scheduler_stack_, scheduler_stack_bytes_);
#endif
    setcontext(&scheduler_);
    __builtin_unreachable();
  }

  bool guards(const void* address) const { return address >= map_ && address < stack(); }

 private:
  char* stack() const { return map_ + guard_bytes; }

  static void enter(unsigned low, unsigned high) {
    auto* self = reinterpret_cast<Fiber*>(static_cast<uint64_t>(high) << 32 | low);
#if NNK_FIBER_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &self->scheduler_stack_,
                                    &self->scheduler_stack_bytes_);
#endif
    self->body_(self->argument_);
    self->leave();
  }

  char* map_;
  ucontext_t context_;
  ucontext_t scheduler_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
};

}  // namespace nnkernels::cuda_on_cpu
