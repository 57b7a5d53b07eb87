//! Training on a GPU through the command: on lavapipe, which counts as one where it is asked for by name.

#![cfg(all(feature = "gpu", target_os = "linux"))]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use common::{Place, Ran};
use fledgling_core::{quant::DType, spec::Family};
use fledgling_kernels::Precision;
use serde_json::Value;
use std::fs;

/// Relative: the order of sums differs. Measured on lavapipe: below 1e-6 over these steps.
const TOLERANCE: f64 = 1e-4;

fn prepare(place: &Place) {
    place.tiny("base.gguf", Family::Llama, DType::F32);
    // Rows of one length: every other shape is kernels to compile, and lavapipe takes seconds for each.
    let row = "{\"prompt\":\"the cat and the hat\",\"completion\":\"another thing\"}\n";
    place.write("rows.jsonl", row.repeat(8));
    place.write(
        "train.toml",
        "name='run'\nmode='scratch'\nbase='base.gguf'\n[data]\ntrain=['rows.jsonl']\nvalid=['rows.jsonl']\nmax_tokens=32\n\
         [train]\nbatch=4\nsteps=5\nwarmup=1\nlr=1e-2\n\
         [model]\nfamily='llama'\nlayers=2\nwidth=32\nheads=4\nkv_heads=2\nctx=32\n",
    );
}

/// The command where lavapipe is the only GPU, whatever this machine has.
fn run(place: &Place, args: &[&str]) -> Ran {
    let driver = fs::read_dir("/usr/share/vulkan/icd.d")
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|path| path.to_str().unwrap().contains("lvp_icd"))
        .expect("these tests run on lavapipe: install mesa-vulkan-drivers and libvulkan1, or run `cargo xtask setup`");
    Ran::of(place.command().env("VK_DRIVER_FILES", driver).args(args))
}

fn train(place: &Place, name: &str, device: &str, more: &[&str]) -> Ran {
    let (name, device) = (format!("name={name}"), format!("device={device}"));
    let args = [
        "train",
        "train.toml",
        "--json",
        "--set",
        &name,
        "--set",
        &device,
    ];
    run(place, &[&args[..], more].concat())
}

fn losses(place: &Place, run: &str) -> Vec<f64> {
    fs::read_to_string(place.path("runs").join(run).join("metrics.jsonl"))
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64())
        .collect()
}

/// One test, because the device is tested in it once.
#[test]
fn a_run_on_a_gpu_is_tested_agrees_with_the_cpu_and_is_refused_once_the_test_fails() {
    let place = Place::new();
    prepare(&place);
    let listed = run(&place, &["doctor", "--json"]).json()["devices"]["gpus"].clone();
    assert!(listed[0]["name"].is_string(), "{listed}");
    assert_eq!(listed[0]["self_test"], Value::Null);

    train(&place, "cpu", "cpu", &[]).ok();
    let first = train(&place, "gpu", "gpu", &[]);
    assert!(
        first.stderr.contains("once for this driver"),
        "{}",
        first.stderr
    );
    first.ok();
    let (cpu, gpu) = (losses(&place, "cpu"), losses(&place, "gpu"));
    assert_eq!((cpu.len(), gpu.len()), (5, 5));
    for (cpu, gpu) in cpu.iter().zip(&gpu) {
        assert!((cpu - gpu).abs() <= TOLERANCE * cpu, "{cpu} and {gpu}");
    }
    let record = fs::read_to_string(place.path("runs/gpu/run.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let told = record["device"].as_str().unwrap();
    assert!(
        told.contains(listed[0]["name"].as_str().unwrap()) && told.contains("agrees"),
        "{told}"
    );

    // Nothing of the driver's noise, and no second test.
    let again = train(&place, "again", "gpu:0", &["--dry-run", "--no-trial"]);
    assert!(!again.stderr.contains("testing"), "{}", again.stderr);
    for noise in ["EGL", "MESA", "XDG_RUNTIME_DIR", "panicked", "wgpu", "WARN"] {
        assert!(!again.stderr.contains(noise), "{}", again.stderr);
    }
    again.ok();

    // A driver that computes wrong, as its test would have left it.
    let devices = place.path("home/devices");
    let file = fs::read_dir(devices)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut found: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(found["outcome"], "passed");
    for (key, value) in [
        ("outcome", Value::from("disagrees")),
        ("what", Value::from("the loss before step 1")),
        ("cpu", Value::from(4.7712)),
        ("gpu", Value::from(4.7863)),
        ("difference", Value::from(3e-3)),
        ("tolerance", Value::from(1e-4)),
    ] {
        found[key] = value;
    }
    fs::write(&file, found.to_string()).unwrap();
    train(&place, "refused", "gpu", &[]).fails(1, &["4.786300", "4.771200", "--trust-device"]);
    assert!(!place.path("runs/refused").exists());
    let trusted = train(
        &place,
        "trusted",
        "gpu",
        &["--trust-device", "--dry-run", "--no-trial"],
    );
    assert!(trusted.stderr.contains("WARNING"), "{}", trusted.stderr);
    let plan = trusted.json();
    let told = plan["device"].as_str().unwrap();
    assert!(told.contains("trusted by --trust-device"), "{told}");
    assert!(run(&place, &["doctor"]).ok().contains("disagrees"));
}

#[test]
fn a_device_that_is_not_there_is_named_and_auto_never_takes_software() {
    let place = Place::new();
    prepare(&place);
    train(&place, "a", "gpu:7", &[]).fails(1, &["gpu:7", "gpu:0 is"]);
    train(&place, "a", "tpu", &[]).fails(1, &["tpu", "gpu:N"]);
    train(
        &place,
        "a",
        "gpu",
        &["--trust-device", "--set", "train.dtype=bf16"],
    )
    .fails(1, &["bf16", "f32"]);
    let ran = train(&place, "auto", "auto", &[]);
    assert!(ran.stderr.contains("device: CPU"), "{}", ran.stderr);
    ran.ok();
}

#[test]
fn a_cpu_trains_in_bf16_where_it_has_it_near_f32_and_resumes_to_the_bit() {
    let place = Place::new();
    prepare(&place);
    let bf16 = ["--set", "train.dtype=bf16"];
    let whole = train(&place, "whole", "cpu", &bf16);
    if !Precision::Bf16.is_native() {
        whole.fails(1, &["bf16", "AVX512-BF16", "f32"]);
        return;
    }
    assert!(whole.stderr.contains(", bf16: "), "{}", whole.stderr);
    whole.ok();
    train(&place, "f32", "cpu", &[]).ok();
    let (f32, whole) = (losses(&place, "f32"), losses(&place, "whole"));
    assert_ne!(f32, whole);
    let first = f32[0];
    for (f32, bf16) in f32.iter().zip(&whole) {
        // As the self-test allows.
        assert!((f32 - bf16).abs() < 3e-2 * first, "{bf16} instead of {f32}");
    }
    train(
        &place,
        "parts",
        "cpu",
        &[&bf16[..], &["--until", "2"]].concat(),
    );
    train(&place, "parts", "cpu", &[&bf16[..], &["--resume"]].concat()).ok();
    let weights =
        |run: &str| fs::read(place.path("runs").join(run).join("model.safetensors")).unwrap();
    assert!(weights("whole") == weights("parts"), "other bits");
}
