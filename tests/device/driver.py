"""The CUDA driver by ctypes: no package, no toolkit and no build is needed, only the driver's own library.

Every call is checked. Kernels take one structure by value; those that wait themselves for the one before are launched so that
they may be set up while that one ends (programmatic dependent launch). Threads and shared memory are what the PTX says.
"""

import ctypes
import re
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p


class Failed(RuntimeError):
    """A call of the driver failed."""


class _Attribute(ctypes.Structure):
    _fields_ = [("id", c_int), ("pad", c_int), ("value", c_int), ("rest", ctypes.c_char * 60)]


class _Config(ctypes.Structure):
    _fields_ = [
        ("grid", c_uint * 3),
        ("block", c_uint * 3),
        ("shared", c_uint),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", c_uint),
    ]


_EARLY_LAUNCH = 6
_MAX_SHARED = 8


class Kernel:
    """A function of a module, with its threads and bytes of shared memory, and whether it waits for the one before."""

    def __init__(self, gpu, function, threads, shared, early):
        self.gpu, self.function, self.threads, self.shared, self.early = gpu, function, threads, shared, early
        if shared > 48 * 1024:
            gpu.call("cuFuncSetAttribute", function, _MAX_SHARED, shared)

    def __call__(self, grid, parameters):
        gpu = self.gpu
        grid = tuple(grid) + (1,) * (3 - len(grid))
        config = _Config(
            grid=(c_uint * 3)(*grid),
            block=(c_uint * 3)(self.threads, 1, 1),
            shared=self.shared,
            stream=gpu.stream,
        )
        if self.early:
            attribute = _Attribute(id=_EARLY_LAUNCH, value=1)
            config.attributes = ctypes.pointer(attribute)
            config.attribute_count = 1
        pointers = (c_void_p * 1)(ctypes.cast(byref(parameters), c_void_p))
        gpu.call("cuLaunchKernelEx", byref(config), self.function, pointers, None)


class Module:
    """Loaded PTX."""

    def __init__(self, gpu, handle, text):
        self.gpu, self.handle, self.text = gpu, handle, text
        self.early = "griddepcontrol.wait" in text

    def kernel(self, name):
        function = c_void_p()
        self.gpu.call("cuModuleGetFunction", byref(function), self.handle, name.encode())
        entry = self.text.index(f".entry {name}(")
        threads = int(re.compile(r"\.maxntid (\d+)").search(self.text, entry)[1])
        shared = re.search(rf"shared_bytes_of_{name}(?: = (\d+))?;", self.text)[1]
        return Kernel(self.gpu, function, threads, int(shared or 0), self.early)


def most_shared_bytes(text):
    """The most shared memory that a block of the kernels of some PTX needs."""
    return max(int(bytes) for bytes in re.findall(r"shared_bytes_of_\w+ = (\d+);", text))


class Gpu:
    """The first GPU, one stream, and memory."""

    def __init__(self):
        try:
            self.library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise Failed(f"no NVIDIA driver: {error}") from error
        self.call("cuInit", 0)
        device = c_int()
        self.call("cuDeviceGet", byref(device), 0)
        self.device = device.value
        name = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", name, 100, device)
        self.name = name.value.decode()
        context = c_void_p()
        self.call("cuDevicePrimaryCtxRetain", byref(context), device)
        self.call("cuCtxSetCurrent", context)
        self.compute = (self.attribute(75), self.attribute(76))
        self.processors = self.attribute(16)
        # Bytes of shared memory that a block may have.
        self.block_bytes = self.attribute(97)
        stream = c_void_p()
        self.call("cuStreamCreate", byref(stream), 1)
        self.stream = stream
        self.held = []

    def call(self, name, *arguments):
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            text = c_char_p()
            self.library.cuGetErrorName(status, byref(text))
            raise Failed(f"{name}: {text.value.decode() if text.value else status}")

    def attribute(self, which):
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), which, self.device)
        return value.value

    def driver_version(self):
        value = c_int()
        self.call("cuDriverGetVersion", byref(value))
        return f"{value.value // 1000}.{value.value % 1000 // 10}"

    def module(self, text):
        """Loads PTX; the driver compiles it for this GPU."""
        ptx = text.encode() + b"\0"
        log = ctypes.create_string_buffer(16384)
        options = (c_int * 2)(5, 6)
        values = (c_void_p * 2)(ctypes.cast(log, c_void_p), c_void_p(16384))
        module = c_void_p()
        try:
            self.call("cuModuleLoadDataEx", byref(module), ptx, 2, options, values)
        except Failed as error:
            raise Failed(f"{error}\n{log.value.decode(errors='replace')}") from error
        return Module(self, module, text)

    # Memory

    def room(self, size, byte=0):
        """Device memory of so many bytes, every one of them `byte`; it lives as long as the process."""
        address = c_uint64()
        self.call("cuMemAlloc_v2", byref(address), c_size_t(max(size, 16)))
        self.call("cuMemsetD8_v2", address, ctypes.c_ubyte(byte), c_size_t(max(size, 16)))
        self.held.append(address.value)
        return address.value

    def free(self, address):
        self.held.remove(address)
        self.call("cuMemFree_v2", c_uint64(address))

    def set_bytes(self, address, byte, size):
        self.call("cuMemsetD8Async", c_uint64(address), ctypes.c_ubyte(byte), c_size_t(size), self.stream)

    def write(self, address, data):
        data = bytes(data)
        self.wait()
        self.call("cuMemcpyHtoD_v2", c_uint64(address), data, c_size_t(len(data)))

    def read(self, address, size):
        self.wait()
        data = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", data, c_uint64(address), c_size_t(size))
        return data.raw

    def free_bytes(self):
        free, total = c_size_t(), c_size_t()
        self.call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    # Time

    def wait(self):
        self.call("cuStreamSynchronize", self.stream)

    def graph(self, record):
        """What `record` launches, to be launched again as one."""
        self.call("cuStreamBeginCapture_v2", self.stream, 2)
        record()
        graph = c_void_p()
        self.call("cuStreamEndCapture", self.stream, byref(graph))
        executable = c_void_p()
        self.call("cuGraphInstantiateWithFlags", byref(executable), graph, c_uint64(0))
        self.call("cuGraphDestroy", graph)
        return executable

    def replay(self, graph):
        self.call("cuGraphLaunch", graph, self.stream)

    def seconds(self, run, times):
        """Seconds of one `run`, the median of `times` taken one after another without a pause."""
        events = []
        for _ in range(times + 1):
            event = c_void_p()
            self.call("cuEventCreate", byref(event), 0)
            events.append(event)
        self.call("cuEventRecord", events[0], self.stream)
        for event in events[1:]:
            run()
            self.call("cuEventRecord", event, self.stream)
        self.wait()
        # Drivers before that of CUDA 12.8 have the first.
        elapsed = "cuEventElapsedTime_v2" if hasattr(self.library, "cuEventElapsedTime_v2") else "cuEventElapsedTime"
        spans = []
        for begun, ended in zip(events, events[1:]):
            span = c_float()
            self.call(elapsed, byref(span), begun, ended)
            spans.append(span.value / 1e3)
        for event in events:
            self.call("cuEventDestroy_v2", event)
        return sorted(spans)[len(spans) // 2]
