// Threads that run the tasks of one operation after the other.
//
// Tasks are handed out one at a time, so that a thread that loses its core to another process holds up one task and no more.
// Who waits spins for some microseconds and then sleeps: other processes on the same cores are never starved.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace sgl {

class Pool {
public:
    explicit Pool(int threads);  // the calling thread is one of them; fewer where the system gives no more
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return (int)others_.size() + 1; }

    // Call f(task, thread) for every task in [0, tasks), any thread in any order; returns when all are done. Not to be nested.
    template <class F>
    void run(int tasks, F&& f) {
        if (tasks <= 1 || others_.empty()) {
            for (int task = 0; task < tasks; task++) f(task, 0);
            return;
        }
        start(tasks, [](void* context, int task, int thread) { (*(std::remove_reference_t<F>*)context)(task, thread); }, (void*)&f);
    }

private:
    using Call = void (*)(void*, int, int);
    void start(int tasks, Call call, void* context);
    void work(uint64_t generation, int thread);
    void serve(int thread);

    // generation (24 bits), tasks (20), next task (20) in one word: a claim can never mix two operations.
    std::atomic<uint64_t> ticket_{0};
    std::atomic<int> left_{0};
    std::atomic<bool> ended_{false};
    Call call_ = nullptr;
    void* context_ = nullptr;
    std::vector<std::thread> others_;
};

}  // namespace sgl
