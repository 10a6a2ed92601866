//! Devices of a backend, as given on the command line.

use anyhow::{Result, bail};
use burn::tensor::backend::{Backend, Device as _, DeviceId};
use clap::Args;

use crate::{BackendArgs, BackendChoice};

/// The choice of devices, as arguments of examples that can use several.
#[derive(Clone, Debug, Default, Args)]
pub struct DeviceArgs {
    /// Devices to share the work, by their numbers, as in 0,1, or, with `--backend remote`, by
    /// the addresses of their servers, as in ws://127.0.0.1:3000,ws://127.0.0.1:3001 [default: the
    /// backend's default device]
    #[arg(long = "device", value_delimiter = ',')]
    pub devices: Vec<String>,
}

impl DeviceArgs {
    /// Checks the backend, like [`BackendArgs::check`], and that the named devices exist.
    ///
    /// # Errors
    /// If they do not, listing what is available.
    pub fn check(&self, backend: &BackendArgs) -> Result<()> {
        #[cfg(feature = "remote")]
        if backend.backend == BackendChoice::Remote && !self.devices.is_empty() {
            return self
                .devices
                .iter()
                .try_for_each(|it| remote::check(it, backend));
        }
        backend.check()
    }

    /// The devices; the default one if none is named. A device named twice is returned twice.
    ///
    /// # Errors
    /// If a device is invalid, or the backend does not have that many.
    pub fn of<B: Backend>(&self, backend: BackendChoice) -> Result<Vec<B::Device>> {
        if self.devices.is_empty() {
            return Ok(vec![B::Device::default()]);
        }
        let devices = self.devices.iter();
        let devices = devices.map(|spelling| {
            #[cfg(feature = "remote")]
            if backend == BackendChoice::Remote {
                return Ok(B::Device::from_id(remote::id(spelling)?));
            }
            let Ok(number) = spelling.parse::<u16>() else {
                bail!("--device: expected a number such as 0, found `{spelling}`");
            };
            // Devices of the first available type: for wgpu discrete, integrated or virtual GPUs,
            // or the CPU. Other backends have one type.
            let kind = (0..4).find(|kind| B::device_count(*kind) > 0).unwrap_or(0);
            let count = B::device_count(kind);
            if usize::from(number) >= count {
                bail!(
                    "--device: backend `{backend}` has {count} device{} here; expected a number \
                     below that, found {number}",
                    if count == 1 { "" } else { "s" }
                );
            }
            Ok(B::Device::from_id(DeviceId::new(kind, number)))
        });
        devices.collect()
    }
}

/// Servers of Burn's remote backend.
#[cfg(feature = "remote")]
pub(crate) mod remote {
    use std::net::TcpStream;

    use anyhow::{Context, Result, ensure};
    use burn::backend::{RemoteBackend, remote::RemoteDevice};
    use burn::tensor::backend::{Backend, Device as _, DeviceId};

    use crate::BackendArgs;

    /// Checks that there is a server and that it supports the requested dtype. If there is none,
    /// Burn itself panics in another thread.
    pub(super) fn check(address: &str, backend: &BackendArgs) -> Result<()> {
        reach(address)?;
        let dtype = backend.dtype;
        ensure!(
            RemoteBackend::supports_dtype(&RemoteDevice::new(address), dtype.dtype()),
            "the server at {address} does not support {dtype}"
        );
        Ok(())
    }

    /// Checks that there is a server.
    pub(crate) fn reach(address: &str) -> Result<()> {
        TcpStream::connect(host(address)?).with_context(|| {
            format!(
                "no server at {address}; start one with `cargo run --release --features remote \
                 --example serve -- --port PORT`"
            )
        })?;
        Ok(())
    }

    /// The device's number in this process.
    pub(super) fn id(address: &str) -> Result<DeviceId> {
        host(address)?;
        Ok(RemoteDevice::new(address).to_id())
    }

    /// Host and port of an address. Burn only accepts them with the prefix `ws://`.
    fn host(address: &str) -> Result<&str> {
        let host = address.strip_prefix("ws://").filter(|it| it.contains(':'));
        host.with_context(|| {
            format!("--device: expected ws://HOST:PORT for a server, found `{address}`")
        })
    }
}
