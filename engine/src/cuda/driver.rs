//! The CUDA driver: one GPU, one stream, memory, modules and graphs. Every call is checked.
//!
//! The driver's library is loaded when a GPU is opened, so that a build needs no toolkit and a machine without a GPU runs the
//! same binary. Everything runs on one stream in the order in which it is called.
#![expect(
    unsafe_code,
    reason = "the driver is a C library, and kernels are handed addresses of device memory"
)]

use std::any::Any;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys;

/// A call of the driver failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {reason}")]
pub(super) struct CudaError {
    call: &'static str,
    reason: String,
}

impl CudaError {
    /// That a kernel cannot be had.
    pub(super) fn kernel(name: &str, reason: String) -> CudaError {
        CudaError {
            call: "a kernel",
            reason: format!("{name} {reason}"),
        }
    }
}

/// Calls the driver and gives its error, if there is one.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: pointers in the arguments are valid for the call, and handles are of this library; each is made in this file.
        check(stringify!($function), unsafe { sys::$function($($argument),*) })
    };
}

fn check(call: &'static str, status: sys::CUresult) -> Result<(), CudaError> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: the driver writes a pointer to a string of its own that lives as long as the library.
    let reason = unsafe {
        if sys::cuGetErrorString(status, &raw mut text) == sys::CUresult::CUDA_SUCCESS {
            CStr::from_ptr(text).to_string_lossy().into_owned()
        } else {
            format!("error {}", status as u32)
        }
    };
    Err(CudaError { call, reason })
}

/// The driver that the committed PTX needs: that of CUDA 12.0. Newer GPUs need newer ones anyway.
const OLDEST_DRIVER: c_int = 12000;
/// The oldest compute capability that the kernels are made for.
const OLDEST_COMPUTE: (c_int, c_int) = (8, 0);

/// The least memory that is reserved.
pub(super) const LEAST: usize = 16;

/// An open GPU, with a stream of its own.
pub(super) struct Gpu {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Compute capability.
    pub(super) compute: (i32, i32),
    /// What the manufacturer calls it.
    pub(super) name: String,
    /// Names this GPU among all there are.
    pub(super) uuid: String,
    /// Bytes of shared memory that a block may have.
    pub(super) block_bytes: u32,
    /// Bytes of all of its memory.
    pub(super) total_bytes: usize,
    /// What copies to the device read, until they are done.
    sent: Mutex<Vec<Box<dyn Any + Send>>>,
}

// SAFETY: contexts and streams may be used by any thread; whoever calls makes the context current first (`enter`), and the
// backend that owns all of this is used by one thread at a time.
unsafe impl Send for Gpu {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Gpu {}

impl Gpu {
    /// Opens a GPU by its number.
    ///
    /// # Errors
    /// One line that says what is missing.
    pub(super) fn open(number: u32) -> Result<Arc<Gpu>, String> {
        let count = Gpu::count()?;
        if number >= count {
            return Err(format!(
                "there is no GPU {number}; there are {count}, counted from 0"
            ));
        }
        // Below the count, which is one.
        let gpu = Gpu::begin(number as c_int).map_err(|error| error.to_string())?;
        if gpu.compute < OLDEST_COMPUTE {
            let (major, minor) = gpu.compute;
            return Err(format!(
                "GPU {number} ({}) has compute capability {major}.{minor}, and 8.0 is needed",
                gpu.name
            ));
        }
        Ok(Arc::new(gpu))
    }

    /// How many GPUs there are.
    ///
    /// # Errors
    /// One line that says what is missing.
    pub(super) fn count() -> Result<u32, String> {
        // SAFETY: loads the driver's library, whose initialisers are trusted as far as the system is.
        if !unsafe { sys::is_culib_present() } {
            return Err("there is no NVIDIA driver (libcuda.so.1 is not found)".to_owned());
        }
        let begin = || {
            call!(cuInit(0))?;
            let (mut version, mut count) = (0, 0);
            call!(cuDriverGetVersion(&raw mut version))?;
            call!(cuDeviceGetCount(&raw mut count))?;
            Ok((version, count))
        };
        let (version, count) = begin()
            .map_err(|error: CudaError| format!("the NVIDIA driver does not start ({error})"))?;
        if version < OLDEST_DRIVER {
            return Err(format!(
                "the NVIDIA driver is for CUDA {}.{}, and 12.0 is needed; install driver 525 or newer",
                version / 1000,
                version % 1000 / 10
            ));
        }
        Ok(u32::try_from(count).unwrap_or_default())
    }

    fn begin(number: c_int) -> Result<Gpu, CudaError> {
        let mut device = 0;
        call!(cuDeviceGet(&raw mut device, number))?;
        let attribute = |which| {
            let mut value = 0;
            call!(cuDeviceGetAttribute(&raw mut value, which, device)).map(|()| value)
        };
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as BLOCK,
        };
        let compute = (attribute(MAJOR)?, attribute(MINOR)?);
        let block_bytes = u32::try_from(attribute(BLOCK)?).unwrap_or_default();
        let mut name = [0; 128];
        call!(cuDeviceGetName(
            name.as_mut_ptr(),
            name.len() as c_int,
            device
        ))?;
        // Letters have a sign on some machines and none on others.
        let name = name.map(|letter| letter.to_ne_bytes()[0]);
        let name = CStr::from_bytes_until_nul(&name).map_or_else(
            |_| "a GPU".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
        let mut uuid = sys::CUuuid { bytes: [0; 16] };
        call!(cuDeviceGetUuid_v2(&raw mut uuid, device))?;
        let uuid = uuid
            .bytes
            .map(|byte| format!("{:02x}", byte.to_ne_bytes()[0]))
            .concat();
        let mut gpu = Gpu {
            device,
            context: ptr::null_mut(),
            stream: ptr::null_mut(),
            compute,
            name,
            uuid,
            block_bytes,
            total_bytes: 0,
            sent: Mutex::default(),
        };
        call!(cuDevicePrimaryCtxRetain(&raw mut gpu.context, device))?;
        gpu.enter()?;
        call!(cuStreamCreate(&raw mut gpu.stream, 1))?;
        gpu.total_bytes = gpu.memory_info()?.1;
        Ok(gpu)
    }

    /// Makes the GPU that of the calling thread, which has to be done before anything else.
    pub(super) fn enter(&self) -> Result<(), CudaError> {
        call!(cuCtxSetCurrent(self.context))
    }

    /// Bytes of memory that nobody uses.
    pub(super) fn free_bytes(&self) -> Result<usize, CudaError> {
        self.memory_info().map(|(free, _)| free)
    }

    /// Bytes of memory that nobody uses, and of all.
    fn memory_info(&self) -> Result<(usize, usize), CudaError> {
        let (mut free, mut total) = (0, 0);
        call!(cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
        Ok((free, total))
    }

    /// Memory of so many bytes, all zero.
    pub(super) fn memory(self: &Arc<Gpu>, bytes: usize) -> Result<Memory, CudaError> {
        let mut address = 0;
        let bytes = bytes.max(LEAST);
        call!(cuMemAlloc_v2(&raw mut address, bytes))?;
        let memory = Memory {
            gpu: self.clone(),
            address,
            bytes,
        };
        call!(cuMemsetD8Async(address, 0, bytes, self.stream))?;
        Ok(memory)
    }

    /// Waits for everything that was called.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        call!(cuStreamSynchronize(self.stream))?;
        self.sent
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        Ok(())
    }

    /// Loads PTX, a C string, which the driver compiles for this GPU. `early` says that its kernels wait themselves for the one
    /// before, so that they may be set up while that one ends.
    pub(super) fn module(self: &Arc<Gpu>, ptx: &CStr, early: bool) -> Result<Module, CudaError> {
        let mut module = ptr::null_mut();
        call!(cuModuleLoadDataEx(
            &raw mut module,
            ptx.as_ptr().cast::<c_void>(),
            0,
            ptr::null_mut(),
            ptr::null_mut(),
        ))?;
        Ok(Module {
            gpu: self.clone(),
            module,
            early,
        })
    }

    /// What `record` launches, to be launched again as one.
    pub(super) fn graph(
        self: &Arc<Gpu>,
        record: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        use sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        call!(cuStreamBeginCapture_v2(
            self.stream,
            CU_STREAM_CAPTURE_MODE_RELAXED
        ))?;
        let recorded = record();
        let (mut graph, mut executable) = (ptr::null_mut(), ptr::null_mut());
        let ended = call!(cuStreamEndCapture(self.stream, &raw mut graph));
        let made = recorded
            .and(ended)
            .and_then(|()| call!(cuGraphInstantiateWithFlags(&raw mut executable, graph, 0)));
        if !graph.is_null() {
            // What was made of it stays.
            let _ = call!(cuGraphDestroy(graph));
        }
        made.map(|()| Graph {
            gpu: self.clone(),
            executable,
        })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // An error has nobody to go to.
        let _ = self.enter();
        let _ = self.wait();
        if !self.stream.is_null() {
            let _ = call!(cuStreamDestroy_v2(self.stream));
        }
        if !self.context.is_null() {
            let _ = call!(cuDevicePrimaryCtxRelease_v2(self.device));
        }
    }
}

/// Device memory.
pub(super) struct Memory {
    gpu: Arc<Gpu>,
    address: u64,
    bytes: usize,
}

impl Memory {
    /// Where it begins.
    pub(super) fn at(&self) -> u64 {
        self.address
    }

    /// Copies to the beginning, in turn with what else is called. What is copied is kept until somebody waits: a GPU may read it
    /// where it lies.
    pub(super) fn send<T: Plain + Send + 'static>(&self, data: Vec<T>) -> Result<(), CudaError> {
        let copied = self.copy_from(0, &data);
        // Kept whatever came of it: a call that failed may have begun to copy.
        let mut sent = (self.gpu.sent.lock()).unwrap_or_else(PoisonError::into_inner);
        sent.push(Box::new(data));
        copied
    }

    /// Copies to the device, `offset` bytes behind the beginning, and waits.
    pub(super) fn write<T: Plain>(&self, offset: usize, data: &[T]) -> Result<(), CudaError> {
        let copied = self.copy_from(offset, data);
        let waited = self.gpu.wait();
        copied.and(waited)
    }

    /// Begins to copy; the source has to stay until somebody has waited.
    fn copy_from<T: Plain>(&self, offset: usize, data: &[T]) -> Result<(), CudaError> {
        let bytes = size_of_val(data);
        assert!(offset + bytes <= self.bytes, "what is written fits");
        if bytes == 0 {
            return Ok(());
        }
        call!(cuMemcpyHtoDAsync_v2(
            self.address + offset as u64,
            data.as_ptr().cast::<c_void>(),
            bytes,
            self.gpu.stream,
        ))
    }

    /// Copies from the device, `offset` bytes behind the beginning, once everything that was called is done.
    pub(super) fn read<T: Plain>(&self, offset: usize, data: &mut [T]) -> Result<(), CudaError> {
        let bytes = size_of_val(data);
        assert!(offset + bytes <= self.bytes, "what is read is there");
        if bytes > 0 {
            call!(cuMemcpyDtoHAsync_v2(
                data.as_mut_ptr().cast::<c_void>(),
                self.address + offset as u64,
                bytes,
                self.gpu.stream,
            ))?;
        }
        self.gpu.wait()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        let _ = call!(cuMemFree_v2(self.address));
    }
}

/// Numbers, and structures of numbers, that the device reads and writes as they lie in memory.
///
/// # Safety
/// `repr(C)` without padding, and every pattern of bits is a value.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: a plain number.
unsafe impl Plain for u16 {}
// SAFETY: a plain number.
unsafe impl Plain for i32 {}
// SAFETY: a plain number.
unsafe impl Plain for u32 {}
// SAFETY: a plain number.
unsafe impl Plain for f32 {}

/// Loaded PTX.
pub(super) struct Module {
    gpu: Arc<Gpu>,
    module: sys::CUmodule,
    /// Whether its kernels wait themselves for the one before.
    early: bool,
}

impl Module {
    /// A function, with the threads of its blocks and their bytes of shared memory.
    pub(super) fn kernel(
        self: &Arc<Module>,
        name: &str,
        threads: u32,
        shared: u32,
    ) -> Result<Kernel, CudaError> {
        let name = CString::new(name).map_err(|_| CudaError {
            call: "cuModuleGetFunction",
            reason: "the name holds a zero".to_owned(),
        })?;
        let mut function = ptr::null_mut();
        call!(cuModuleGetFunction(
            &raw mut function,
            self.module,
            name.as_ptr()
        ))?;
        if shared > 48 << 10 {
            use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
            call!(cuFuncSetAttribute(function, MOST, shared as c_int))?;
        }
        Ok(Kernel {
            module: self.clone(),
            function,
            threads,
            shared,
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        let _ = call!(cuModuleUnload(self.module));
    }
}

// SAFETY: as for `Gpu`.
unsafe impl Send for Module {}
// SAFETY: as for `Gpu`.
unsafe impl Sync for Module {}

/// A function of a module.
pub(super) struct Kernel {
    module: Arc<Module>,
    function: sys::CUfunction,
    threads: u32,
    shared: u32,
}

// SAFETY: as for `Gpu`.
unsafe impl Send for Kernel {}

impl Kernel {
    /// Launches it over a grid of blocks, early (programmatic dependent launch) if its module says so.
    pub(super) fn launch<P: Plain>(
        &self,
        grid: [usize; 3],
        parameters: &P,
    ) -> Result<(), CudaError> {
        let gpu = &self.module.gpu;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let [x, y, z] = grid.map(|blocks| blocks as u32);
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared,
            hStream: gpu.stream,
            attrs: &raw mut attribute,
            numAttrs: self.module.early.into(),
        };
        let mut pointers = [ptr::from_ref(parameters).cast_mut().cast::<c_void>()];
        call!(cuLaunchKernelEx(
            &raw const config,
            self.function,
            pointers.as_mut_ptr(),
            ptr::null_mut(),
        ))
    }
}

/// Recorded launches.
pub(super) struct Graph {
    gpu: Arc<Gpu>,
    executable: sys::CUgraphExec,
}

// SAFETY: as for `Gpu`.
unsafe impl Send for Graph {}

impl Graph {
    pub(super) fn launch(&self) -> Result<(), CudaError> {
        call!(cuGraphLaunch(self.executable, self.gpu.stream))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.gpu.enter();
        let _ = call!(cuGraphExecDestroy(self.executable));
    }
}
