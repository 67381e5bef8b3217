// A small pool of threads for loops of a few microseconds to a few milliseconds.
//
// The calling thread is worker 0 and works too. Items are claimed one by one, so a helper that the
// system has not scheduled yet delays nobody: the caller finishes alone, closes the job, and waits
// only for helpers that have joined. Helpers spin for about 50 us after a job, then sleep.
// Not thread-safe: one `each` at a time (Runtime holds a lock).
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace tenfold {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return threads_; }

  // Calls f(worker, item) once for every item in [0, items), in no fixed order. f must not throw.
  template <class F>
  void each(int64_t items, const F& f) {
    if (items <= 1 || threads_ == 1) {
      for (int64_t i = 0; i < items; ++i) f(0, i);
      return;
    }
    run(items, [](const void* context, int worker, int64_t item) {
      (*static_cast<const F*>(context))(worker, item);
    }, &f);
  }

 private:
  using Body = void (*)(const void*, int, int64_t);

  void run(int64_t items, Body body, const void* context);
  void work(int worker);
  void helper(int worker);
  uint32_t wait_for_change(uint32_t seen);

  // state_: epoch in the high bits, "closed" flag, count of joined helpers. The job's fields are
  // stable from the moment a helper has joined until it has left.
  static constexpr uint32_t kJoined = 0x3ff, kClosed = 0x400, kEpoch = 0x800;
  alignas(64) std::atomic<uint32_t> state_{kClosed};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<uint32_t> left_{0};
  std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
  int64_t items_ = 0;
  Body body_ = nullptr;
  const void* context_ = nullptr;
  int threads_;
  std::vector<std::thread> helpers_;
};

}  // namespace tenfold
