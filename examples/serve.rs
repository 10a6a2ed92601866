//! Lends a device of this machine to programs elsewhere, over the network.
//!
//! Burn's remote backend sends each operation to a server, which runs it. Each server lends one
//! device; a program uses as many as it is given addresses.
//!
//! ```sh
//! cargo run --release --features remote --example serve -- --port 3000 &
//! cargo run --release --features remote --example serve -- --port 3001 &
//! cargo run --release --features remote --example capital_of_spain -- \
//!   --backend remote --device ws://127.0.0.1:3000,ws://127.0.0.1:3001
//! ```
//!
//! Anyone who can reach the port can compute here, and the traffic is not encrypted: the server
//! listens on all addresses of the machine and has no password. Use it in a private network, or
//! through a tunnel such as `ssh -L`. Stop it with Ctrl-C.

use std::net::TcpListener;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use burn::backend::ir::BackendIr;
use clap::Parser;
use workbench::{BackendArgs, DeviceArgs, on_backend, out};

/// Lends a device over the network.
#[derive(Parser)]
struct Args {
    /// The port to listen on.
    #[arg(long, default_value_t = 3000)]
    port: u16,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    devices: DeviceArgs,
}

fn main() -> ExitCode {
    workbench::run_waiting(|args: Args| {
        args.devices.check(&args.backend)?;
        on_backend!(
            args.backend.backend,
            |B, _device| serve::<B>(&args),
            remote: bail!("a remote device cannot be lent again")
        )
    })
}

fn serve<B: BackendIr>(args: &Args) -> Result<()> {
    let devices = args.devices.of::<B>(args.backend.backend)?;
    let [device] = &devices[..] else {
        bail!(
            "expected one device for one server, found {}; start a server for each",
            devices.len()
        );
    };
    // Burn's server does not report that it cannot listen.
    let port = args.port;
    drop(TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("port {port}"))?);
    out!(
        "lending {} on port {port} to anyone who can reach it",
        args.backend.backend
    )?;
    burn::server::start_websocket::<B>(device.clone(), port);
    Ok(())
}
