//! Backends, chosen at run time among those compiled in.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use anyhow::{Context, Result, bail};
use burn::tensor::{DType, Tensor, backend::Backend};
use clap::{Args, ValueEnum};

use crate::self_check;

/// A backend that this program was compiled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// Pure Rust on the CPU, with SIMD and threads.
    #[cfg(feature = "flex")]
    Flex,
    /// Pure Rust on the CPU, through `ndarray`.
    #[cfg(feature = "ndarray")]
    Ndarray,
    /// GPU through wgpu, with the shader language of this build (WGSL, SPIR-V, MSL).
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// GPU through Vulkan, with SPIR-V shaders.
    #[cfg(feature = "vulkan")]
    Vulkan,
    /// GPU through Metal.
    #[cfg(feature = "metal")]
    Metal,
    /// NVIDIA GPU through CUDA.
    #[cfg(feature = "cuda")]
    Cuda,
    /// AMD GPU through ROCm.
    #[cfg(feature = "rocm")]
    Rocm,
    /// A device lent by a server over the network, such as the example `serve`.
    #[cfg(feature = "remote")]
    Remote,
}

#[cfg(not(any(
    feature = "flex",
    feature = "ndarray",
    feature = "wgpu",
    feature = "cuda",
    feature = "rocm",
    feature = "remote",
)))]
compile_error!(
    "no backend: enable at least one of the features flex, ndarray, wgpu, vulkan, metal, cuda, \
     rocm, remote"
);

/// Runs an expression with the backend type and the device of a [`BackendChoice`].
///
/// ```ignore
/// on_backend!(choice, |B, device| story::<B>(&args, &device))
/// ```
#[macro_export]
macro_rules! on_backend {
    (@run $backend:ty, $B:ident, $device:ident, $body:expr) => {{
        type $B = $backend;
        let $device = burn::tensor::Device::<$B>::default();
        $body
    }};
    ($choice:expr, |$B:ident, $device:ident| $body:expr) => {
        $crate::on_backend!($choice, |$B, $device| $body, remote: {
            $crate::on_backend!(@run burn::backend::RemoteBackend, $B, $device, $body)
        })
    };
    // With a substitute for the remote backend, which does not support everything that others do.
    ($choice:expr, |$B:ident, $device:ident| $body:expr, remote: $remote:expr) => {
        match $choice {
            #[cfg(feature = "flex")]
            $crate::BackendChoice::Flex => {
                $crate::on_backend!(@run burn::backend::Flex, $B, $device, $body)
            }
            #[cfg(feature = "ndarray")]
            $crate::BackendChoice::Ndarray => {
                $crate::on_backend!(@run burn::backend::NdArray, $B, $device, $body)
            }
            #[cfg(feature = "wgpu")]
            $crate::BackendChoice::Wgpu => {
                $crate::on_backend!(@run burn::backend::Wgpu, $B, $device, $body)
            }
            #[cfg(feature = "vulkan")]
            $crate::BackendChoice::Vulkan => {
                $crate::on_backend!(@run burn::backend::Vulkan, $B, $device, $body)
            }
            #[cfg(feature = "metal")]
            $crate::BackendChoice::Metal => {
                $crate::on_backend!(@run burn::backend::Metal, $B, $device, $body)
            }
            #[cfg(feature = "cuda")]
            $crate::BackendChoice::Cuda => {
                $crate::on_backend!(@run burn::backend::Cuda, $B, $device, $body)
            }
            #[cfg(feature = "rocm")]
            $crate::BackendChoice::Rocm => {
                $crate::on_backend!(@run burn::backend::Rocm, $B, $device, $body)
            }
            #[cfg(feature = "remote")]
            $crate::BackendChoice::Remote => $remote,
        }
    };
}

/// All backends, compiled in or not, by their names on the command line.
pub const ALL_BACKENDS: [&str; 8] = [
    "flex", "ndarray", "wgpu", "vulkan", "metal", "cuda", "rocm", "remote",
];

impl Default for BackendChoice {
    /// The first one that is compiled in, in the order of the list.
    fn default() -> Self {
        Self::value_variants()[0]
    }
}

impl BackendChoice {
    /// The backend's name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .expect("no backend is hidden")
    }

    /// The compiled backend with this name.
    pub fn compiled(name: &str) -> Option<Self> {
        Self::from_str(name, false).ok()
    }

    /// Whether the backend computes on the CPU, and so needs no driver that may be missing.
    pub fn is_cpu(self) -> bool {
        matches!(self.name().as_str(), "flex" | "ndarray")
    }

    /// Whether the backend computes on devices of other machines.
    pub fn is_remote(self) -> bool {
        self.name() == "remote"
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// A floating-point type for a model's parameters and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DTypeChoice {
    /// 32 bits.
    F32,
    /// 16 bits, with the range of f32.
    Bf16,
    /// 16 bits (IEEE half precision).
    F16,
}

impl DTypeChoice {
    /// The same as Burn's `DType`.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

impl fmt::Display for DTypeChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        })
    }
}

/// The choice of backend and dtype, as arguments of every example.
#[derive(Clone, Copy, Debug, Args)]
pub struct BackendArgs {
    /// Backend to use; only those in this build are listed.
    #[arg(long, value_enum, default_value_t)]
    pub backend: BackendChoice,
    /// Dtype of the model.
    #[arg(long, value_enum, default_value_t = DTypeChoice::F32)]
    pub dtype: DTypeChoice,
    /// Compute even if the backend has not passed its self-check on this device.
    #[arg(long)]
    pub unchecked: bool,
}

impl BackendArgs {
    /// Checks that the backend works on this machine, and computes in the dtype what it should: a
    /// GPU backend runs its [self-check](crate::self_check), once for each device, driver and
    /// build.
    ///
    /// # Errors
    /// If it does not, listing what it supports and what else is available, or what it computes
    /// wrongly.
    pub fn check(&self) -> Result<()> {
        let probe = probe(self.backend);
        let device = match probe {
            Ok(device) => device,
            Err(reason) => bail!(
                "backend `{}` cannot be used here: {reason}\n\
                 try one of: {} (see also `cargo run --release --example backends`)",
                self.backend,
                BackendChoice::value_variants()
                    .iter()
                    .filter(|other| **other != self.backend)
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        };
        if !device.dtypes.contains(&self.dtype.to_string()) {
            bail!(
                "backend `{}` on {} does not support {}; it supports {}",
                self.backend,
                device.name,
                self.dtype,
                device.dtypes.join(", ")
            );
        }
        match self.unchecked {
            true => Ok(()),
            false => self_check::require(self.backend, self.dtype, &device),
        }
    }
}

/// What a backend runs on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceInfo {
    /// The device's name.
    pub name: String,
    /// Whether it is a GPU emulated on the CPU, such as lavapipe.
    pub software: bool,
    /// The driver and its version, as far as known.
    pub driver: String,
    /// The dtypes it computes in, by their names on the command line.
    pub dtypes: Vec<String>,
}

/// The environment variable that tells a process to probe a backend and exit.
const PROBE_VARIABLE: &str = "BURN_ALIGN_PROBE";

/// Determines what a backend runs on, by using it.
///
/// A missing driver makes Burn panic in a worker thread, or ends the process. So a backend that
/// needs a driver is tried in a second process of this program, handled by [`answer_probe`].
///
/// # Errors
/// If the backend cannot be used, with the reason.
pub fn probe(backend: BackendChoice) -> Result<DeviceInfo, String> {
    if backend.is_cpu() {
        return Ok(on_backend!(backend, |B, device| use_device::<B>(
            backend, &device
        )));
    }
    #[cfg(feature = "remote")]
    if backend == BackendChoice::Remote {
        // Burn waits forever for a missing server.
        crate::devices::remote::reach(&remote_address()).map_err(|error| format!("{error:#}"))?;
    }
    let attempt = || -> Result<std::process::Output> {
        let program = std::env::current_exe().context("cannot find this program")?;
        std::process::Command::new(program)
            .env(PROBE_VARIABLE, backend.name())
            .output()
            .context("cannot start a second process")
    };
    let output = attempt().map_err(|error| format!("{error:#}"))?;
    if output.status.success()
        && let Ok(info) = serde_json::from_slice(&output.stdout)
    {
        return Ok(info);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(last_words(&stderr).unwrap_or_else(|| format!("it ended with {}", output.status)))
}

/// Probes or checks a backend and exits, if this process was started for that. Called first in
/// every program.
pub fn answer_probe() {
    self_check::answer();
    let Ok(name) = std::env::var(PROBE_VARIABLE) else {
        return;
    };
    let answer = panic::catch_unwind(AssertUnwindSafe(|| {
        let backend = BackendChoice::compiled(&name)?;
        Some(on_backend!(backend, |B, device| use_device::<B>(
            backend, &device
        )))
    }));
    if let Ok(Some(info)) = answer {
        let json = serde_json::to_string(&info).expect("plain data can be written");
        #[expect(clippy::print_stdout, reason = "the answer to the other process")]
        {
            println!("{json}");
        }
        std::process::exit(0);
    }
    std::process::exit(1);
}

/// Computes something small on the device and describes the device.
fn use_device<B: Backend>(backend: BackendChoice, device: &B::Device) -> DeviceInfo {
    let Device {
        name,
        software,
        driver,
    } = describe(backend);
    let x = Tensor::<B, 2>::ones([8, 8], device);
    let sum: f32 = x
        .clone()
        .matmul(x)
        .sum()
        .into_data()
        .convert::<f32>()
        .to_vec::<f32>()
        .expect("converted to f32")[0];
    assert_eq!(sum, 512.0, "a matrix product came out wrong");
    let dtypes = DTypeChoice::value_variants()
        .iter()
        .filter(|choice| B::supports_dtype(device, choice.dtype()))
        .map(ToString::to_string)
        .collect();
    DeviceInfo {
        name,
        software,
        driver,
        dtypes,
    }
}

/// A device, before it is used.
struct Device {
    name: String,
    software: bool,
    driver: String,
}

/// The device that the backend uses.
fn describe(backend: BackendChoice) -> Device {
    let hardware = |name: Option<String>, otherwise: &str| Device {
        name: name.unwrap_or_else(|| otherwise.to_owned()),
        software: false,
        driver: String::new(),
    };
    match backend {
        #[cfg(feature = "wgpu")]
        BackendChoice::Wgpu => wgpu_adapter(),
        #[cfg(feature = "vulkan")]
        BackendChoice::Vulkan => wgpu_adapter(),
        #[cfg(feature = "metal")]
        BackendChoice::Metal => wgpu_adapter(),
        #[cfg(feature = "cuda")]
        BackendChoice::Cuda => Device {
            driver: nvidia_driver().unwrap_or_default(),
            ..hardware(nvidia_name(), "CUDA device 0")
        },
        #[cfg(feature = "rocm")]
        BackendChoice::Rocm => hardware(None, "ROCm device 0"),
        #[cfg(feature = "remote")]
        BackendChoice::Remote => hardware(Some(remote_address()), "a server"),
        #[allow(unreachable_patterns, reason = "the backends depend on features")]
        _ => hardware(cpu_name(), std::env::consts::ARCH),
    }
}

/// The adapter that wgpu picks. Must be called before any other use of the device.
#[cfg(feature = "wgpu")]
fn wgpu_adapter() -> Device {
    use burn::backend::wgpu::{RuntimeOptions, graphics::AutoGraphicsApi, init_setup};
    let setup = init_setup::<AutoGraphicsApi>(&Default::default(), RuntimeOptions::default());
    let info = setup.adapter.get_info();
    Device {
        name: format!("{} ({:?})", info.name, info.backend),
        // The type of this field is from a crate that Burn does not re-export.
        software: format!("{:?}", info.device_type) == "Cpu",
        driver: format!("{} {}", info.driver, info.driver_info),
    }
}

/// The first NVIDIA GPU's name, from the Linux driver.
#[cfg(feature = "cuda")]
fn nvidia_name() -> Option<String> {
    let gpu = std::fs::read_dir("/proc/driver/nvidia/gpus")
        .ok()?
        .next()?
        .ok()?;
    let information = std::fs::read_to_string(gpu.path().join("information")).ok()?;
    field(&information, "Model")
}

/// The NVIDIA driver's version, from Linux.
#[cfg(feature = "cuda")]
fn nvidia_driver() -> Option<String> {
    let version = std::fs::read_to_string("/sys/module/nvidia/version")
        .or_else(|_| std::fs::read_to_string("/proc/driver/nvidia/version"));
    Some(version.ok()?.lines().next()?.trim().to_owned())
}

/// Burn's default address of a server.
#[cfg(feature = "remote")]
fn remote_address() -> String {
    std::env::var("BURN_REMOTE_ADDRESS").unwrap_or_else(|_| "ws://127.0.0.1:3000".to_owned())
}

/// The processor's name, from Linux; `None` elsewhere.
pub fn cpu_name() -> Option<String> {
    field(
        &std::fs::read_to_string("/proc/cpuinfo").ok()?,
        "model name",
    )
}

/// The value after `key:` in a text with one entry per line.
fn field(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == key).then(|| value.trim().to_owned())
    })
}

/// The most informative line of a failed process's output.
pub(crate) fn last_words(stderr: &str) -> Option<String> {
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    // In a panic, the line after `panicked at FILE:` is the message.
    let panic = lines.iter().position(|line| line.contains("panicked at"));
    let line = match panic {
        Some(index) => lines.get(index + 1),
        None => lines.last(),
    };
    line.map(|line| shortened(line))
}

/// The beginning of a long line.
fn shortened(line: &str) -> String {
    const LONGEST: usize = 90;
    match line.char_indices().nth(LONGEST) {
        None => line.to_owned(),
        Some((end, _)) => format!("{}…", &line[..end]),
    }
}
