//! Several devices of Burn's remote backend: servers on loopback, each lending NdArray.
//!
//! `cargo test --release --features remote,ndarray --test remote`

#[path = "suite/devices/agree.rs"]
mod agree;
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "shared with the suite, which uses more"
)]
#[path = "suite/support.rs"]
mod support;

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use burn::backend::{NdArray, RemoteBackend, remote::RemoteDevice};
use burn::tensor::Tensor;
use burn_align::engine::replicate;

use support::{load, values};

/// A server in this process, which ends with it.
fn server() -> RemoteDevice {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("some port is free");
    let port = listener.local_addr().expect("it is bound").port();
    drop(listener);
    std::thread::spawn(move || burn::server::start_websocket::<NdArray>(Default::default(), port));
    let started = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(started.elapsed() < Duration::from_secs(30), "no server");
        std::thread::sleep(Duration::from_millis(10));
    }
    RemoteDevice::new(&format!("ws://127.0.0.1:{port}"))
}

#[test]
fn sweeps_agree() {
    agree::a_sweep_agrees::<RemoteBackend>(&[server(), server()]);
}

#[test]
fn plans_agree() {
    agree::a_plan_agrees::<RemoteBackend>(&[server(), server(), server()]);
}

#[test]
fn training_agrees() {
    agree::a_run_agrees::<RemoteBackend>(&[server(), server()]);
}

#[test]
fn padded_positions_agree() {
    agree::a_padded_run_agrees::<RemoteBackend>(&[server(), server()]);
}

#[test]
fn a_server_computes_what_its_backend_does() {
    use burn_align_models::{AlignableTransformer, ModelInput};
    let tokens = support::tokens(&[&[3, 1, 4, 1, 5]]);
    let (local, remote) = (Default::default(), server());
    let expected = load::<NdArray>("llama_plain", &local);
    let expected = values(expected.forward(ModelInput::Tokens(tokens.to_tensor(&local))));
    let found = load::<RemoteBackend>("llama_plain", &remote);
    let found = values(found.forward(ModelInput::Tokens(tokens.to_tensor(&remote))));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
}

/// Between servers, Burn gives all transfers the same number: they arrive if made one at a time.
#[test]
fn copies_arrive_at_their_places() {
    use burn::module::Param;
    let devices = [server(), server()];
    let params: Vec<_> = (0..40)
        .map(|number| {
            let values = Tensor::<RemoteBackend, 1>::full([1000], number as f32, &devices[0]);
            Param::from_tensor(values)
        })
        .collect();
    let copies = replicate(&params, &devices);
    for (number, copy) in copies[1].iter().enumerate() {
        assert_eq!(copy.val().device(), devices[1]);
        assert_eq!(values(copy.val()), vec![number as f32; 1000]);
    }
}
