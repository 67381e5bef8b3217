#include "pool.hpp"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <system_error>

namespace tenfold {
namespace {

void futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation | FUTEX_PRIVATE_FLAG, value,
          nullptr, nullptr, 0);
}

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr auto kSpin = std::chrono::microseconds(50);

}  // namespace

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads) {
  helpers_.reserve(threads_ - 1);
  try {
    for (int i = 1; i < threads_; ++i) helpers_.emplace_back([this, i] { helper(i); });
  } catch (const std::system_error&) {
    threads_ = static_cast<int>(helpers_.size()) + 1;  // the system's limit: go on with what we have
  }
}

Pool::~Pool() {
  stop_.store(true);
  state_.fetch_add(kEpoch);
  futex(state_, FUTEX_WAKE, INT_MAX);
  for (auto& thread : helpers_) thread.join();
}

void Pool::work(int worker) {
  for (;;) {
    const int64_t item = next_.fetch_add(1, std::memory_order_relaxed);
    if (item >= items_) return;
    body_(context_, worker, item);
  }
}

void Pool::run(int64_t items, Body body, const void* context) {
  items_ = items;
  body_ = body;
  context_ = context;
  next_.store(0, std::memory_order_relaxed);
  left_.store(0, std::memory_order_relaxed);
  const uint32_t before = state_.load(std::memory_order_relaxed);
  state_.store((before & ~(kEpoch - 1)) + kEpoch);  // next epoch, open, nobody joined
  if (asleep_.load() > 0) futex(state_, FUTEX_WAKE, INT_MAX);

  work(0);

  const uint32_t joined = state_.fetch_or(kClosed, std::memory_order_acq_rel) & kJoined;
  for (int spins = 0; left_.load(std::memory_order_acquire) != joined; ++spins) {
    if (spins < 2000) pause();
    else sched_yield();  // a helper lost its core in the middle of an item
  }
}

uint32_t Pool::wait_for_change(uint32_t seen) {
  const auto epoch = [](uint32_t state) { return state & ~(kEpoch - 1); };
  const auto until = std::chrono::steady_clock::now() + kSpin;
  uint32_t now;
  do {
    for (int i = 0; i < 64; ++i) {
      now = state_.load(std::memory_order_acquire);
      if (epoch(now) != epoch(seen)) return now;
      pause();
    }
  } while (std::chrono::steady_clock::now() < until);
  asleep_.fetch_add(1);
  while (epoch(now = state_.load()) == epoch(seen)) futex(state_, FUTEX_WAIT, now);
  asleep_.fetch_sub(1);
  return now;
}

void Pool::helper(int worker) {
  uint32_t seen = kClosed;
  for (;;) {
    uint32_t now = wait_for_change(seen);
    if (stop_.load()) return;
    seen = now;
    while (!(now & kClosed) && (now & ~(kEpoch - 1)) == (seen & ~(kEpoch - 1))) {
      if (state_.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
        work(worker);
        left_.fetch_add(1, std::memory_order_release);
        break;
      }
    }
  }
}

}  // namespace tenfold
