// Runs the kernels of engine/src/cuda/kernels on a CPU and says what is wrong. With -DONE_PART and, say, -DPART_MATMUL it is
// compiled for one part alone.
//
//     kernels NOISE.json CASES
#include <ctime>

#include "check.hpp"
#if !defined(ONE_PART) || defined(PART_MATMUL)
#include "matmul_test.hpp"
#define HAS_MATMUL
#endif
#if !defined(ONE_PART) || defined(PART_ATTENTION)
#include "attention_test.hpp"
#define HAS_ATTENTION
#endif
#if !defined(ONE_PART) || defined(PART_ROWS)
#include "rows_test.hpp"
#define HAS_ROWS
#endif
#if !defined(ONE_PART) || defined(PART_SAMPLING)
#include "sampling_cases.hpp"
#define HAS_SAMPLING
#endif
#if !defined(ONE_PART) || defined(PART_MODEL)
#include "model_test.hpp"
#define HAS_MODEL
#endif

int main(int count, char** arguments) {
    if (count != 3) emulator::broken("two files are wanted");
    [[maybe_unused]] const char *noise = arguments[1], *cases = arguments[2];
    auto timed = [](const char* name, auto test) {
        std::clock_t begun = std::clock();
        long before = compared;
        test();
        double seconds = double(std::clock() - begun) / CLOCKS_PER_SEC;
        std::printf("%-10s %9ld comparisons, %5.1f s\n", name, compared - before, seconds);
        std::fflush(stdout);
    };
#ifdef HAS_MATMUL
    timed("matmul", test_matmul);
#endif
#ifdef HAS_ATTENTION
    timed("attention", test_attention);
#endif
#ifdef HAS_ROWS
    timed("rows", test_rows);
#endif
#ifdef HAS_SAMPLING
    timed("sampling", [&] {
        test_sampling(noise);
        test_cases(cases);
    });
#endif
#ifdef HAS_MODEL
    timed("model", test_model);
#endif
    if (compared == 0) emulator::broken("there is no such test");
    std::printf(failures ? "%d comparisons FAILED\n" : "all as it should be\n", failures);
    return failures ? 1 : 0;
}
