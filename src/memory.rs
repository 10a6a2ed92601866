//! The memory of a backend's device.

use std::any::Any;

use burn::tensor::backend::Backend;
use burn_align::engine::RunOptions;
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use crate::{BackendArgs, BackendChoice};

/// What a device reports about its memory, in bytes.
#[derive(Clone, Copy, Debug)]
struct Device {
    /// Total memory; `None` if the backend does not report it.
    total: Option<u64>,
    /// What the backend's allocator holds.
    held: u64,
    /// How much of that is in use.
    used: u64,
}

impl BackendChoice {
    /// The device memory held by the allocator of a GPU backend, in bytes; `None` on the CPU.
    pub fn held_memory(self) -> Option<u64> {
        self.device_memory().map(|device| device.held)
    }

    /// Bytes available for tensors: on the CPU what the system can give, within the limits of the
    /// process's control group; on a GPU everything not used by tensors. `None` if the backend does
    /// not report its memory, as through wgpu.
    pub fn free_memory(self) -> Option<u64> {
        // Nothing is known about another machine.
        #[cfg(feature = "remote")]
        if self == Self::Remote {
            return None;
        }
        if let Some(device) = self.device_memory() {
            return Some(device.total?.saturating_sub(device.used));
        }
        let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(memory);
        let limit = system.cgroup_limits().map(|limits| limits.free_memory);
        let free = system.available_memory();
        (free > 0).then(|| limit.map_or(free, |limit| limit.min(free)))
    }

    fn device_memory(self) -> Option<Device> {
        match self {
            #[cfg(feature = "wgpu")]
            Self::Wgpu => cube_memory::<burn::backend::wgpu::WgpuRuntime>(false),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => cube_memory::<burn::backend::wgpu::WgpuRuntime>(false),
            #[cfg(feature = "metal")]
            Self::Metal => cube_memory::<burn::backend::wgpu::WgpuRuntime>(false),
            #[cfg(feature = "cuda")]
            Self::Cuda => cube_memory::<burn::cubecl::cuda::CudaRuntime>(true),
            #[cfg(feature = "rocm")]
            Self::Rocm => cube_memory::<burn::cubecl::hip::HipRuntime>(true),
            #[allow(unreachable_patterns, reason = "the backends depend on features")]
            _ => None,
        }
    }
}

/// Bytes of the largest tensor that a device can hold, if that is less than all of its memory:
/// through wgpu, what the adapter binds as one buffer, which on laptops can be as little as 128
/// MiB.
pub(crate) fn max_tensor_bytes<B: Backend>(device: &B::Device) -> Option<u64> {
    let device: &dyn Any = device;
    #[cfg(feature = "wgpu")]
    if let Some(device) = device.downcast_ref::<burn::backend::wgpu::WgpuDevice>() {
        use burn::cubecl::Runtime;
        let client = burn::backend::wgpu::WgpuRuntime::client(device);
        return Some(client.properties().memory.max_page_size);
    }
    #[cfg(not(feature = "wgpu"))]
    let _other = device;
    None
}

/// - of_total: whether the largest page is a quarter of all memory, as CubeCL 0.10 has it for CUDA
///   and ROCm; for wgpu it is a limit of buffers
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
fn cube_memory<R: burn::cubecl::Runtime>(of_total: bool) -> Option<Device> {
    let client = R::client(&R::Device::default());
    let usage = client.memory_usage().ok()?;
    Some(Device {
        total: of_total.then(|| 4 * client.properties().memory.max_page_size),
        held: usage.bytes_reserved,
        used: usage.bytes_in_use,
    })
}

impl BackendArgs {
    /// How to run a plan within the memory that is free now: call this once the model is loaded.
    pub fn run_options(&self) -> RunOptions {
        run_options(self.backend)
    }
}

/// Runs within three quarters of the memory that the backend reports as free.
pub fn run_options(backend: BackendChoice) -> RunOptions {
    let options = RunOptions::default();
    match backend.free_memory() {
        Some(bytes) => options.with_memory_budget(bytes / 4 * 3),
        None => options,
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_holds_tensors_of_any_size() {
        use burn::backend::{Autodiff, Flex};
        assert_eq!(
            max_tensor_bytes::<Autodiff<Flex>>(&Default::default()),
            None
        );
    }

    #[test]
    fn the_cpu_tells_its_memory() {
        let free = BackendChoice::Flex.free_memory().expect("known");
        assert!((1 << 24..1 << 50).contains(&free), "{free} bytes");
        let budget = run_options(BackendChoice::Flex).memory_budget;
        assert!(budget.is_some_and(|budget| budget > 0), "{budget:?}");
    }
}
