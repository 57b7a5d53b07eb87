//! Runs of the real command that are killed, and go on.

#![cfg(all(feature = "train", unix))]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use common::Place;
use fledgling::run::safetensors_contents;
use fledgling_core::{quant::DType, spec::Family};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

const STEPS: u64 = 30;

/// A run of a tiny model that writes a checkpoint after each step.
fn config(place: &Place, name: &str) -> String {
    let row = |i: u32| {
        let answer = i % 7;
        format!("{{\"prompt\":\"number {i}\",\"completion\":\"the hat {answer}\"}}\n")
    };
    let rows = (0..40).map(row).collect::<Vec<_>>().concat();
    let (base, rows) = (
        place.tiny("base.gguf", Family::Llama, DType::F32),
        place.write("rows.jsonl", rows),
    );
    place.write(
        &format!("{name}.toml"),
        format!(
            "name='{name}'\nmode='full'\nbase='{base}'\nthreads=1\n[data]\ntrain=['{rows}']\nvalid=['{rows}']\nmax_tokens=64\n\
             [train]\nbatch=4\naccumulate=2\nsteps={STEPS}\nlr=1e-3\neval_every=7\nsave_every=1\n"
        ),
    )
}

fn start(place: &Place, config: &str, resume: bool) -> Child {
    let mut command: Command = place.command();
    command.args(["train", config, "--quiet"]);
    if resume {
        command.arg("--resume");
    }
    command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn end_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if started.elapsed() >= limit {
            return None;
        }
        sleep(Duration::from_millis(2));
    }
}

fn whole(place: &Place, config: &str, resume: bool) {
    let output = start(place, config, resume).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
}

/// Tensors by name, in bits.
type Bits = BTreeMap<String, Vec<u32>>;

/// The bits of the weights and of the state at the end, and the losses of all steps and evaluations.
fn result(run: &Path) -> (Bits, Vec<(u64, String, u64)>) {
    let mut bits = BTreeMap::new();
    let end = run.join(format!("checkpoints/step-{STEPS}"));
    for path in [
        run.join("model.safetensors"),
        end.join("model.safetensors"),
        end.join("state.safetensors"),
    ] {
        let (tensors, _) = safetensors_contents(&std::fs::read(&path).unwrap()).unwrap();
        for (name, values) in tensors {
            let values = values.iter().map(|value| value.to_bits()).collect();
            bits.insert(
                format!("{} {name}", path.strip_prefix(run).unwrap().display()),
                values,
            );
        }
    }
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let mut losses: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|line| {
            let event = line["event"].as_str()?.to_owned();
            let loss = line["loss"].as_f64().or(line["valid_loss"].as_f64())?;
            Some((line["step"].as_u64()?, event, loss.to_bits()))
        })
        .collect();
    losses.sort_unstable();
    (bits, losses)
}

/// The times are drawn so that some kills fall into steps, some into the writing of a checkpoint, some into the start.
#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bits() {
    let place = Place::new();
    let (straight, killed) = (config(&place, "straight"), config(&place, "killed"));
    let began = Instant::now();
    whole(&place, &straight, false);
    let whole_ms = began.elapsed().as_millis() as u64;
    let run = place.path("runs/killed");
    let (mut n_killed, mut n_while_writing, mut seed) = (0, 0, 0x9E37_79B9_u64);
    loop {
        let mut child = start(&place, &killed, run.join("config.toml").exists());
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let ms = whole_ms / 8 + (seed >> 33) % (whole_ms / 4).max(1);
        match end_within(&mut child, Duration::from_millis(ms)) {
            Some(status) => {
                let text = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
                assert!(status.success(), "after {n_killed} kills: {text}");
                assert!(!text.contains("damaged"), "{text}");
                break;
            }
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                n_killed += 1;
                let names = std::fs::read_dir(run.join("checkpoints"))
                    .into_iter()
                    .flatten();
                let writing = names
                    .flatten()
                    .any(|entry| entry.file_name().to_string_lossy().starts_with('.'));
                n_while_writing += u32::from(writing);
                assert!(n_killed < 200, "it never comes to its end");
            }
        }
    }
    eprintln!("{n_killed} kills, {n_while_writing} of them while a checkpoint was written");
    assert!(n_killed >= 2, "{whole_ms} ms");
    assert_eq!(result(&place.path("runs/straight")), result(&run));
    let left = std::fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert_eq!(left, 2, "nothing half written is left");
}

#[test]
fn ctrl_c_leaves_a_checkpoint_and_status_130() {
    let place = Place::new();
    let (straight, stopped) = (config(&place, "straight"), config(&place, "stopped"));
    whole(&place, &straight, false);
    let mut child = start(&place, &stopped, false);
    let metrics = place.path("runs/stopped/metrics.jsonl");
    let began = Instant::now();
    while !std::fs::read_to_string(&metrics).is_ok_and(|text| text.contains("\"step\":3,")) {
        assert!(began.elapsed() < Duration::from_mins(1), "no step");
        sleep(Duration::from_millis(2));
    }
    let interrupted = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(interrupted.unwrap().success());
    let status = child.wait().unwrap();
    if !status.success() {
        assert_eq!(status.code(), Some(130));
        whole(&place, &stopped, true);
    }
    assert_eq!(
        result(&place.path("runs/straight")),
        result(&place.path("runs/stopped"))
    );
}
