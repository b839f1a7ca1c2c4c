// Threads that take turns: a stack each, changed by hand.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#ifdef __x86_64__
extern "C" void fiber_change(void** from, void* to);
// Keeps what a called function must keep, leaves the stack pointer behind, and goes on where the other one left.
asm(R"(
.text
.globl fiber_change
fiber_change:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#endif

/// A stack with something that runs on it; or, before it is started, a place to come back to.
class Fiber {
public:
    Fiber() = default;
    Fiber(const Fiber&) = delete;
    Fiber& operator=(const Fiber&) = delete;
    ~Fiber() {
        if (stack_) munmap(stack_, SIZE);
    }

    /// Will run `entry`, which never returns, when it is changed to.
    void start(void (*entry)()) {
        if (!stack_) {
            void* stack = mmap(nullptr, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (stack == MAP_FAILED) {
                std::fprintf(stderr, "no memory for a stack\n");
                std::exit(1);
            }
            stack_ = static_cast<char*>(stack);
        }
#ifdef __x86_64__
        auto* top = reinterpret_cast<uint64_t*>(stack_ + SIZE);
        // A function begins 8 bytes beyond a multiple of 16, where its return address is: there is none.
        *--top = 0;
        *--top = reinterpret_cast<uint64_t>(entry);
        for (int i = 0; i < 6; i++) *--top = 0;
        at_ = top;
#else
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack_;
        context_.uc_stack.ss_size = SIZE;
        context_.uc_link = nullptr;
        makecontext(&context_, entry, 0);
#endif
    }

    /// Leaves `from` and goes on with `to`.
    static void change(Fiber& from, Fiber& to) {
#ifdef __x86_64__
        fiber_change(&from.at_, to.at_);
#else
        swapcontext(&from.context_, &to.context_);
#endif
    }

private:
    static constexpr size_t SIZE = 64 * 1024;
    char* stack_ = nullptr;
#ifdef __x86_64__
    void* at_ = nullptr;
#else
    ucontext_t context_;
#endif
};
