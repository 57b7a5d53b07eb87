//! The API alone on a socket, for scripts that speak to it (`tests/peers/openai_client.py`); `fledgling serve` is the whole of it.
//!
//! ```sh
//! cargo run --release -p fledgling-lambda --example listen -- MODEL.gguf 127.0.0.1:8081 2
//! ```

use fledgling_core::{
    cpu::{CpuEngine, CpuOptions},
    model::ModelInfo,
};
use fledgling_lambda::{ApiOptions, ApiState, mapped_model, router};
use std::{error::Error, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, address, n_threads] = &args[..] else {
        return Err("give MODEL.gguf ADDRESS THREADS".into());
    };
    let options = CpuOptions {
        n_threads: n_threads.parse()?,
        ..CpuOptions::default()
    };
    let gguf = mapped_model(Path::new(path))?.gguf;
    let info = ModelInfo::from_header(gguf.header())?;
    let engine = CpuEngine::new(&gguf, &options)?;
    let state = ApiState::new(info, engine, ApiOptions::default())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address).await?;
        Ok(axum::serve(listener, router(state)).await?)
    })
}
