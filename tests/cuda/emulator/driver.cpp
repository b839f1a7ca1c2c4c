// A fake libcuda.so.1: the calls that the backend and tests/device make, over memory of this process and the emulator. No
// product uses it.
//
// What the driver may do late is done late: copies and kernels wait until somebody waits for the stream, and kernels that are
// allowed to begin early do. Memory ends at a page that must not be touched.
#include <cstddef>
#include <map>
#include <string>

#include "asks.cu"
#include "attention.cu"
#include "bench.cu"
#include "check.hpp"
#include "matmul.cu"
#include "rows.cu"

#define CALL extern "C" __attribute__((visibility("default"))) int

namespace {

enum Status { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_FOUND = 500 };
constexpr size_t TOTAL = size_t(2) << 30;
#ifdef OFFSHOOT_SMALL_BLOCKS
constexpr int COMPUTE[2] = {8, 6}, MOST_SHARED = 101376;
#else
constexpr int COMPUTE[2] = {9, 0}, MOST_SHARED = 232448;
#endif

/// A kernel by its name, which runs with what lies where its parameters are.
struct Function {
    const char* name;
    std::function<void()> (*bind)(const void* parameters);
    size_t shared_bytes;
};

template <typename P, void (*KERNEL_OF)(const P)>
std::function<void()> bound(const void* parameters) {
    P p;
    std::memcpy(static_cast<void*>(&p), parameters, sizeof p);
    return [p] { KERNEL_OF(p); };
}

#define FUNCTION(name, P) {#name, bound<P, name>, shared_bytes_of_##name}
const Function FUNCTIONS[] = {
    FUNCTION(matmul_8_by_16, Matmul), FUNCTION(matmul_8_by_32, Matmul), FUNCTION(matmul_16_by_16, Matmul),
    FUNCTION(matmul_16_by_32, Matmul), FUNCTION(matmul_32_by_32, Matmul), FUNCTION(matmul_64_by_32, Matmul),
    FUNCTION(matmul_64_by_64, Matmul), FUNCTION(matmul_64_by_128, Matmul), FUNCTION(matmul_128_by_128, Matmul),
    FUNCTION(rms_norm, Norm), FUNCTION(embed, Embed), FUNCTION(move_slots, Move), FUNCTION(place_heads, Heads),
    FUNCTION(attend_1_by_48, Attend), FUNCTION(attend_1_by_64, Attend), FUNCTION(attend_3_by_64, Attend),
    FUNCTION(attend_4_by_64, Attend), FUNCTION(attend_7_by_64, Attend), FUNCTION(attend_8_by_64, Attend),
    FUNCTION(attend_1_by_96, Attend), FUNCTION(attend_1_by_128, Attend), FUNCTION(attend_2_by_128, Attend),
    FUNCTION(attend_3_by_128, Attend), FUNCTION(attend_4_by_128, Attend), FUNCTION(attend_5_by_128, Attend),
    FUNCTION(attend_6_by_128, Attend), FUNCTION(attend_7_by_128, Attend), FUNCTION(attend_8_by_128, Attend),
    FUNCTION(join_pieces, Attend), FUNCTION(survey, Asks), FUNCTION(filter, Asks), FUNCTION(race, Asks),
    FUNCTION(answer, Asks), FUNCTION(score_tokens, Asks), FUNCTION(fill, Fill), FUNCTION(fill_float, FillFloat),
    FUNCTION(read_all, Read),
};

/// Threads of a block of a function, as its PTX says, and the shared memory that it may have.
struct Limits {
    unsigned threads, shared_bytes;
};
std::map<const Function*, Limits> limits;

/// What a stream is given: a launch, or a copy.
struct Work {
    emulator::Launch launch;
    bool is_early = false;
    std::function<void()> copy;
};

std::vector<Work> queue;
std::vector<Work>* recording = nullptr;

/// Does all that the stream was given.
void finish() {
    for (Work& work : queue) {
        if (work.copy || !work.is_early) emulator::wait();
        if (work.copy) work.copy();
        else emulator::launch_early(std::move(work.launch));
    }
    queue.clear();
    emulator::wait();
}

int copied(std::function<void()> copy) {
    if (recording) return INVALID_VALUE;
    queue.push_back({{}, false, std::move(copy)});
    return SUCCESS;
}

struct Allocation {
    size_t bytes;
    void* pages;
    size_t all;
};
std::map<uint64_t, Allocation> allocations;
size_t allocated = 0;

/// Whether memory was allocated where `bytes` bytes lie.
bool is_there(uint64_t at, size_t bytes) {
    auto found = allocations.upper_bound(at);
    if (found == allocations.begin()) return false;
    --found;
    return at + bytes <= found->first + found->second.bytes;
}

}  // namespace

CALL cuInit(unsigned) { return SUCCESS; }
CALL cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
/// A process may be told that it has several GPUs; what differs is their name.
CALL cuDeviceGetCount(int* count) {
    const char* told = std::getenv("FAKE_CUDA_GPUS");
    return *count = told ? std::atoi(told) : 1, SUCCESS;
}
CALL cuDeviceGet(int* device, int number) { return *device = number, SUCCESS; }
CALL cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, size_t(length), "an emulated GPU"), SUCCESS; }
CALL cuDeviceGetUuid_v2(unsigned char* uuid, int device) { return std::memset(uuid, 0xab + device, 16), SUCCESS; }
CALL cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 75: return *value = COMPUTE[0], SUCCESS;
        case 76: return *value = COMPUTE[1], SUCCESS;
        case 97: return *value = MOST_SHARED, SUCCESS;
        case 16: return *value = 1, SUCCESS;
        default: return INVALID_VALUE;
    }
}
CALL cuDevicePrimaryCtxRetain(void** context, int) { return *context = &queue, SUCCESS; }
CALL cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
CALL cuCtxSetCurrent(void*) { return SUCCESS; }
CALL cuStreamCreate(void** made, unsigned) { return *made = &queue, SUCCESS; }
CALL cuStreamDestroy_v2(void*) { return finish(), SUCCESS; }
CALL cuStreamSynchronize(void*) { return finish(), SUCCESS; }
CALL cuGetErrorName(int status, const char** text) { return *text = status == OUT_OF_MEMORY ? "OUT_OF_MEMORY" : "INVALID", SUCCESS; }
CALL cuGetErrorString(int status, const char** text) {
    *text = status == OUT_OF_MEMORY ? "out of memory" : status == NOT_FOUND ? "named symbol not found" : "invalid argument";
    return SUCCESS;
}

CALL cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = TOTAL - allocated, *total = TOTAL, SUCCESS; }
CALL cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    if (bytes == 0 || recording) return INVALID_VALUE;
    if (bytes > TOTAL - allocated) return OUT_OF_MEMORY;
    size_t page = emulator::page_bytes(), whole = (bytes + 15) / 16 * 16, room = (whole + page - 1) / page * page;
    void* pages = mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(static_cast<char*>(pages) + room, page, PROT_NONE)) emulator::broken("no memory");
    *address = reinterpret_cast<uint64_t>(pages) + room - whole;
    std::memset(reinterpret_cast<void*>(*address), 0xff, whole);
    allocations[*address] = {bytes, pages, room + page};
    allocated += bytes;
    return SUCCESS;
}
CALL cuMemFree_v2(uint64_t address) {
    finish();
    auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    munmap(found->second.pages, found->second.all);
    allocated -= found->second.bytes;
    allocations.erase(found);
    return SUCCESS;
}
CALL cuMemsetD8Async(uint64_t address, unsigned char byte, size_t bytes, void*) {
    if (!is_there(address, bytes)) return INVALID_VALUE;
    return copied([=] { std::memset(reinterpret_cast<void*>(address), byte, bytes); });
}
CALL cuMemcpyHtoDAsync_v2(uint64_t address, const void* source, size_t bytes, void*) {
    if (!is_there(address, bytes)) return INVALID_VALUE;
    return copied([=] { std::memcpy(reinterpret_cast<void*>(address), source, bytes); });
}
CALL cuMemcpyDtoHAsync_v2(void* target, uint64_t address, size_t bytes, void*) {
    if (!is_there(address, bytes)) return INVALID_VALUE;
    return copied([=] { std::memcpy(target, reinterpret_cast<void*>(address), bytes); });
}

// Calls that wait.
CALL cuMemsetD8_v2(uint64_t address, unsigned char byte, size_t bytes) {
    int status = cuMemsetD8Async(address, byte, bytes, nullptr);
    return finish(), status;
}
CALL cuMemcpyHtoD_v2(uint64_t address, const void* source, size_t bytes) {
    int status = cuMemcpyHtoDAsync_v2(address, source, bytes, nullptr);
    return finish(), status;
}
CALL cuMemcpyDtoH_v2(void* target, uint64_t address, size_t bytes) {
    int status = cuMemcpyDtoHAsync_v2(target, address, bytes, nullptr);
    return finish(), status;
}

CALL cuModuleLoadDataEx(void** module, const void* text, unsigned, void*, void*) {
    char target[24];
    std::snprintf(target, sizeof target, ".target sm_%d%d", COMPUTE[0], COMPUTE[1] == 6 ? 0 : COMPUTE[1]);
    if (!std::strstr(static_cast<const char*>(text), target)) return INVALID_VALUE;
    return *module = new std::string(static_cast<const char*>(text)), SUCCESS;
}
CALL cuModuleUnload(std::string* text) { return delete text, SUCCESS; }
CALL cuModuleGetFunction(const Function** function, const std::string* text, const char* name) {
    const char* entry = std::strstr(text->c_str(), (std::string(".entry ") + name + "(").c_str());
    const char* bound = entry ? std::strstr(entry, ".maxntid ") : nullptr;
    for (const Function& known : FUNCTIONS) {
        if (!bound || std::strcmp(known.name, name) != 0) continue;
        limits[&known] = {unsigned(std::atoi(bound + std::strlen(".maxntid "))), 48 << 10};
        return *function = &known, SUCCESS;
    }
    return NOT_FOUND;
}
CALL cuFuncSetAttribute(const Function* function, int attribute, int value) {
    if (attribute != 8 || value > MOST_SHARED) return INVALID_VALUE;
    return limits.at(function).shared_bytes = unsigned(value), SUCCESS;
}

struct Attribute {
    int id;
    char pad[4];
    int value;
    char rest[60];
};
struct Config {
    unsigned grid[3], block[3], shared;
    void* stream;
    Attribute* attributes;
    unsigned attribute_count;
};
CALL cuLaunchKernelEx(const Config* config, const Function* function, void** parameters, void**) {
    // What it says of itself, as the emulator was compiled.
    const Limits& limit = limits.at(function);
    if (config->shared != function->shared_bytes || config->shared > limit.shared_bytes) return INVALID_VALUE;
    if (config->block[0] != limit.threads || config->block[1] != 1 || config->block[2] != 1) return INVALID_VALUE;
    if (config->grid[0] == 0 || config->grid[1] - 1 >= 65535 || config->grid[2] - 1 >= 65535) return INVALID_VALUE;
    dim3 grid{config->grid[0], config->grid[1], config->grid[2]};
    bool is_early = config->attribute_count == 1;
    // Only from Hopper on do kernels wait for the one before.
    constexpr int EARLY_LAUNCH = 6;
    if (is_early && (COMPUTE[0] < 9 || config->attributes->id != EARLY_LAUNCH || config->attributes->value != 1)) return INVALID_VALUE;
    Work work{{function->bind(parameters[0]), grid, config->block[0], config->shared}, is_early, {}};
    (recording ? *recording : queue).push_back(std::move(work));
    return SUCCESS;
}

CALL cuStreamBeginCapture_v2(void*, int) {
    if (recording) return INVALID_VALUE;
    return recording = new std::vector<Work>, SUCCESS;
}
CALL cuStreamEndCapture(void*, void** graph) {
    if (!recording) return INVALID_VALUE;
    return *graph = recording, recording = nullptr, SUCCESS;
}
CALL cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    return *executable = new std::vector<Work>(*static_cast<std::vector<Work>*>(graph)), SUCCESS;
}
CALL cuGraphDestroy(void* graph) { return delete static_cast<std::vector<Work>*>(graph), SUCCESS; }
CALL cuGraphExecDestroy(void* graph) { return finish(), delete static_cast<std::vector<Work>*>(graph), SUCCESS; }
CALL cuGraphLaunch(void* graph, void*) {
    auto& recorded = *static_cast<std::vector<Work>*>(graph);
    // The first of a graph waits for all before it.
    for (size_t i = 0; i < recorded.size(); i++) {
        queue.push_back(recorded[i]);
        if (i == 0) queue.back().is_early = false;
    }
    return SUCCESS;
}
