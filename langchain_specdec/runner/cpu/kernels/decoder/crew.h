// Threads that work through the stages of a forward together, whichever of them the system lets run.
//
// Every thread walks through all stages by itself. What is large in a stage is cut into pieces, each of which is claimed
// by one thread, which writes to memory of its own and then says that the piece is its. All else is computed by every
// thread for itself. A thread that finds all pieces claimed, but one not done for a while, does that piece too: its
// owner may have been taken off its core for milliseconds, and a piece takes microseconds. So nothing ever waits for a
// thread that does not run, the calling one included. A thread that comes back late finds that the others are further,
// and joins them there.
//
// What a late thread reads meanwhile may be of a later stage. It computes nonsense from it then, within bounds, in its
// own memory, and nobody asks it for that piece any more: whoever reads of another thread looks afterwards whether that
// one can have gone on to write there.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
inline int64_t process_id() { return getpid(); }
#else
inline int64_t process_id() { return 0; }
#endif

constexpr int64_t kMaxThreads = 64;
constexpr int64_t kMaxPieces = 256;
// Stages whose outputs are kept. More than a layer has: a thread that lost its place can always go on from where the last
// layer was begun, even if whoever began it is off its core.
constexpr int64_t kRing = 8;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline int64_t nanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Raises a number that several threads raise.
inline void raise(std::atomic<int64_t>& number, int64_t value) {
  int64_t seen = number.load();
  while (seen < value && !number.compare_exchange_weak(seen, value)) {}
}

// The pieces of all stages. A stage has a number, its ticket, which grows over the whole life of a decoder.
class Stages {
 public:
  explicit Stages(int64_t threads) : threads_(threads) {}

  // Works on a stage until all its pieces are done, by whomever. False where other threads are further.
  template <class Run>
  bool share(int64_t ticket, int64_t pieces, int64_t thread, Run run) {
    Stage& stage = stages_[ticket % kRing];
    raise(front_, ticket);
    // Before anything that is written from here on, for those who look at it afterwards (`is_intact`).
    std::atomic_thread_fence(std::memory_order_release);
    int64_t longest = 0;
    const auto work = [&](int64_t piece) {
      const int64_t started = nanoseconds();
      run(piece);
      stage.own(piece, ticket, thread);
      longest = std::max(longest, nanoseconds() - started);
    };
    // Every thread goes forward through its own section, as memory likes best, then backward through those of others.
    for (int64_t turn = 0; turn < threads_; ++turn) {
      const int64_t section = (thread + turn) % threads_;
      const int64_t begin = pieces * section / threads_, end = pieces * (section + 1) / threads_;
      for (int64_t i = 0; i < end - begin; ++i) {
        const int64_t piece = turn == 0 ? begin + i : end - 1 - i;
        if (stage.claim(piece, ticket)) work(piece);
      }
    }
    for (int64_t piece = 0; piece < pieces; ++piece) {
      int64_t since = 0;
      for (int64_t spins = 0; stage.ticket(piece) < ticket; ++spins) {
        if (front_.load(std::memory_order_relaxed) >= ticket + kRing) return false;
        relax();
        if (spins % 64 != 63) continue;
        const int64_t now = nanoseconds();
        if (since == 0) since = now;
        if (now - since > kPatience + 2 * longest) work(piece);
      }
      if (stage.ticket(piece) > ticket) return false;
    }
    return true;
  }

  // Who did a piece.
  int64_t owner(int64_t ticket, int64_t piece) const {
    return stages_[ticket % kRing].owners[piece].load(std::memory_order_acquire) & 255;
  }

  // Whether what was read of a stage's outputs up to now was of this stage.
  bool is_intact(int64_t ticket) const {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return front_.load() < ticket + kRing;
  }

 private:
  // Nanoseconds that a piece which takes none is waited for before it is done again.
  static constexpr int64_t kPatience = 15000;

  struct alignas(64) Stage {
    std::atomic<int64_t> claims[kMaxPieces];  // ticket
    std::atomic<int64_t> owners[kMaxPieces];  // ticket, then the thread

    Stage() {
      for (auto& claim : claims) claim = 0;
      for (auto& owner : owners) owner = 0;
    }
    bool claim(int64_t piece, int64_t ticket) {
      int64_t seen = claims[piece].load(std::memory_order_relaxed);
      return seen < ticket && claims[piece].compare_exchange_strong(seen, ticket);
    }
    int64_t ticket(int64_t piece) const { return owners[piece].load(std::memory_order_acquire) >> 8; }
    void own(int64_t piece, int64_t ticket, int64_t thread) {
      int64_t seen = owners[piece].load(std::memory_order_relaxed);
      while (seen >> 8 < ticket && !owners[piece].compare_exchange_weak(seen, ticket << 8 | thread)) {}
    }
  };

  const int64_t threads_;
  Stage stages_[kRing];
  std::atomic<int64_t> front_{0};  // The last stage that any thread has begun
};

// What the threads of a crew take part in.
class Work {
 public:
  virtual void take_part(int64_t thread) = 0;

 protected:
  ~Work() = default;
};

// Threads that wait for forwards, of one decoder after the other. Waiting is spinning for a moment, then sleeping. Decoders
// that take turns share one: two crews would take each other's cores, and each would wake its own.
class Crew {
 public:
  // Threads 1 to threads - 1; the caller is thread 0.
  explicit Crew(int64_t threads) : process_(process_id()) {
    for (auto& work : busy_) work = nullptr;
    threads_.reserve(threads);
    try {
      for (int64_t t = 1; t < threads; ++t) threads_.emplace_back([this, t] { wait(t); });
    } catch (const std::exception&) {
      // With fewer, then: what there is for the others is done by these.
    }
  }

  ~Crew() {
    if (process_id() != process_) {
      // A forked child has none of them.
      for (auto& thread : threads_) thread.detach();
      return;
    }
    {
      const std::lock_guard<std::mutex> guard(lock_);
      is_over_ = true;
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  // Has the others take part in this from now on.
  void begin(Work& work) {
    work_.store(&work);
    begun_.fetch_add(1);
    if (sleeping_.load() == 0 || process_id() != process_) return;
    {
      const std::lock_guard<std::mutex> guard(lock_);
    }
    wake_.notify_all();
  }

  // Has none take part in this any more, and waits for those that do.
  void leave(Work& work) {
    Work* left = &work;
    work_.compare_exchange_strong(left, nullptr);
    if (process_id() != process_) return;
    for (const auto& busy : busy_)
      while (busy.load() == &work) std::this_thread::yield();
  }

  int64_t size() const { return static_cast<int64_t>(threads_.size()) + 1; }

 private:
  // Nanoseconds of spinning: the time between two steps of a text, mostly.
  static constexpr int64_t kSpin = 60000;

  void wait(int64_t thread) {
    int64_t last = 0;
    while (true) {
      const int64_t started = nanoseconds();
      for (int64_t spins = 1; begun_.load(std::memory_order_acquire) == last; ++spins) {
        relax();
        if (spins % 64 == 0 && nanoseconds() - started > kSpin) break;
      }
      if (begun_.load() == last) {
        std::unique_lock<std::mutex> guard(lock_);
        ++sleeping_;
        wake_.wait(guard, [&] { return is_over_ || begun_.load() != last; });
        --sleeping_;
        if (is_over_) return;
      }
      if (is_over_) return;
      last = begun_.load();
      Work* work = work_.load();
      busy_[thread].store(work);
      // Whoever leaves either has been seen to, or sees that this thread is with it.
      if (work && work_.load() == work) take_part(*work, thread);
      busy_[thread].store(nullptr);
    }
  }

  static void take_part(Work& work, int64_t thread) {
    try {
      work.take_part(thread);
    } catch (const std::exception&) {
      // Without memory it does nothing more of this forward: others do what it has claimed.
    }
  }

  int64_t process_;
  std::mutex lock_;
  std::condition_variable wake_;
  std::atomic<bool> is_over_{false};
  std::atomic<int64_t> begun_{0}, sleeping_{0};
  std::atomic<Work*> work_{nullptr};
  std::atomic<Work*> busy_[kMaxThreads];  // By thread: what it may be with
  std::vector<std::thread> threads_;
};
