#include "pool.h"

#include <algorithm>
#include <system_error>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define SGL_PAUSE() _mm_pause()
#else
#define SGL_PAUSE() std::this_thread::yield()
#endif

namespace sgl {

namespace {
constexpr int SPINS = 2000;  // about 25 us
constexpr uint64_t FIELD = (1u << 20) - 1;

uint64_t generation_of(uint64_t ticket) { return ticket >> 40; }
}  // namespace

Pool::Pool(int threads) {
    others_.reserve(std::max(0, threads - 1));
    try {
        for (int thread = 1; thread < threads; thread++) others_.emplace_back([this, thread] { serve(thread); });
    } catch (const std::system_error&) {  // the system gives no more: fewer do
    }
}

Pool::~Pool() {
    ended_ = true;
    ticket_.store((generation_of(ticket_.load()) + 1) << 40);
    ticket_.notify_all();
    for (auto& other : others_) other.join();
}

void Pool::start(int tasks, Call call, void* context) {
    call_ = call;
    context_ = context;
    left_.store(tasks, std::memory_order_relaxed);
    const uint64_t generation = (generation_of(ticket_.load(std::memory_order_relaxed)) + 1) & 0xffffff;
    // In one total order with the count of those who wait, which notify_all looks at: else it may miss one that is just falling asleep.
    ticket_.store(generation << 40 | (uint64_t)tasks << 20, std::memory_order_seq_cst);
    ticket_.notify_all();
    work(generation, 0);
    int spins = 0;
    for (int left; (left = left_.load(std::memory_order_acquire)) != 0;) {
        if (++spins < SPINS) SGL_PAUSE();
        else left_.wait(left, std::memory_order_acquire);
    }
}

void Pool::work(uint64_t generation, int thread) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (generation_of(ticket) == generation) {
        const uint64_t tasks = ticket >> 20 & FIELD, next = ticket & FIELD;
        if (next >= tasks) return;
        if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
        call_(context_, (int)next, thread);
        if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_one();
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

void Pool::serve(int thread) {
    uint64_t seen = 0;
    while (true) {
        int spins = 0;
        uint64_t ticket;
        while (generation_of(ticket = ticket_.load(std::memory_order_acquire)) == seen) {
            if (++spins < SPINS) SGL_PAUSE();
            else ticket_.wait(ticket, std::memory_order_acquire);
        }
        if (ended_) return;
        seen = generation_of(ticket);
        work(seen, thread);
    }
}

}  // namespace sgl
