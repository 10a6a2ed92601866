//! Lends a device of this machine to programs elsewhere, over the network.
//!
//! Burn's remote backend sends each operation to a server, which runs it. Each of these lends one
//! device; a program takes as many as it is given addresses of.
//!
//! ```sh
//! cargo run --release --features remote --example serve -- --port 3000 &
//! cargo run --release --features remote --example serve -- --port 3001 &
//! cargo run --release --features remote --example capital_of_spain -- \
//!   --backend remote --device ws://127.0.0.1:3000,ws://127.0.0.1:3001
//! ```
//!
//! Whoever reaches the port may compute here, and what is sent is not encrypted: the server listens
//! on all of the machine's addresses and knows no password. Use it in a network of your own, or
//! through a tunnel such as that of `ssh -L`. Ends with Ctrl-C.

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
    workbench::run(|args: Args| {
        args.devices.check(&args.backend)?;
        on_backend!(
            args.backend.backend,
            |B, _device| serve::<B>(&args),
            remote: bail!("a device that is lent already cannot be lent on")
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
    // Burn's server does not tell when it cannot listen.
    let port = args.port;
    drop(TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("port {port}"))?);
    out!(
        "lending {} on port {port}, to everybody who can reach it",
        args.backend.backend
    )?;
    burn::server::start_websocket::<B>(device.clone(), port);
    Ok(())
}
