// Runs the kernels of engine/src/cuda/kernels on a CPU and says what is wrong.
//
//     kernels NOISE.json CASES [matmul|attention|sampling|model]
#include <ctime>

#include "attention_test.hpp"
#include "matmul_test.hpp"
#include "model_test.hpp"
#include "sampling_cases.hpp"

int main(int count, char** arguments) {
    std::string only = count > 3 ? arguments[3] : "";
    auto timed = [&](const std::string& name, auto test) {
        if (!only.empty() && only != name) return;
        std::clock_t begun = std::clock();
        long before = compared;
        test();
        double seconds = double(std::clock() - begun) / CLOCKS_PER_SEC;
        std::printf("%-10s %9ld comparisons, %5.1f s\n", name.c_str(), compared - before, seconds);
        std::fflush(stdout);
    };
    timed("matmul", test_matmul);
    timed("attention", test_attention);
    timed("sampling", [&] {
        test_sampling(count > 1 ? arguments[1] : nullptr);
        if (count > 2) test_cases(arguments[2]);
    });
    timed("model", test_model);
    if (compared == 0) emulator::broken("there is no such test");
    std::printf(failures ? "%d comparisons FAILED\n" : "all as it should be\n", failures);
    return failures ? 1 : 0;
}
