//! Runs whose checkpoints are in an object store: in a local folder, and in S3 as moto's server has it.

#![cfg(all(feature = "train", feature = "cloud"))]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use common::{
    Place, Ran,
    s3::{BUCKET, S3},
};
use fledgling::run::safetensors_contents;
use fledgling_core::{quant::DType, spec::Family};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

const STEPS: u64 = 20;

fn rows() -> String {
    let row = |i: u32| {
        let answer = i % 7;
        format!("{{\"prompt\":\"number {i}\",\"completion\":\"the hat {answer}\"}}\n")
    };
    (0..40).map(row).collect::<Vec<_>>().concat()
}

/// A run of a tiny model that writes a checkpoint after each step.
fn config(place: &Place, name: &str, remote: Option<&str>) -> String {
    let (base, rows) = (
        place.tiny("base.gguf", Family::Llama, DType::F32),
        place.write("rows.jsonl", rows()),
    );
    let remote = remote.map_or(String::new(), |url| format!("remote='{url}'\n"));
    place.write(
        &format!("{name}.toml"),
        format!(
            "name='{name}'\nmode='full'\nbase='{base}'\nthreads=1\n{remote}[data]\ntrain=['{rows}']\nvalid=['{rows}']\nmax_tokens=64\n\
             [train]\nbatch=4\nsteps={STEPS}\nlr=1e-3\neval_every=7\nsave_every=1\n"
        ),
    )
}

fn train(place: &Place, config: &str, more: &[&str]) -> Ran {
    let mut args = vec!["train", config, "--quiet"];
    args.extend(more);
    place.run(&args)
}

/// Another machine: nothing of the run is there.
fn another_machine(place: &Place) {
    fs::remove_dir_all(place.path("runs")).unwrap();
}

fn bits(path: &Path) -> BTreeMap<String, Vec<u32>> {
    let (tensors, _) = safetensors_contents(&fs::read(path).unwrap()).unwrap();
    tensors
        .into_iter()
        .map(|(name, values)| (name, values.iter().map(|value| value.to_bits()).collect()))
        .collect()
}

/// The weights that were kept, and the weights and state at the end.
#[track_caller]
fn assert_same(place: &Place, a: &str, b: &str) {
    let end = format!("checkpoints/step-{STEPS}");
    for file in [
        "model.safetensors".to_owned(),
        format!("{end}/model.safetensors"),
        format!("{end}/state.safetensors"),
    ] {
        let of = |run: &str| bits(&place.path(&format!("runs/{run}/{file}")));
        assert!(of(a) == of(b), "{file} differs");
    }
}

#[test]
fn a_run_that_loses_its_machine_again_and_again_ends_with_the_same_bits() {
    let place = Place::new();
    let url = format!("file://{}", place.path("shelf").display());
    let straight = config(&place, "straight", None);
    let lost = config(&place, "lost", Some(&url));
    let began = Instant::now();
    train(&place, &straight, &[]).ok();
    fs::rename(place.path("runs"), place.path("kept")).unwrap();
    let whole_ms = began.elapsed().as_millis() as u64;
    let (mut n_lost, mut seed) = (0, 0x9E37_79B9_u64);
    loop {
        let mut child = place
            .command()
            .args(["train", &lost, "--quiet", "--resume"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let limit = Duration::from_millis(whole_ms / 4 + (seed >> 33) % (whole_ms / 3).max(1));
        let started = Instant::now();
        while child.try_wait().unwrap().is_none() && started.elapsed() < limit {
            sleep(Duration::from_millis(2));
        }
        if let Some(status) = child.try_wait().unwrap() {
            let text = std::io::read_to_string(child.stderr.take().unwrap()).unwrap();
            assert!(status.success(), "after {n_lost} machines: {text}");
            assert!(!text.contains("damaged"), "{text}");
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        n_lost += 1;
        assert!(n_lost < 100, "it never comes to its end");
        if place.path("runs").exists() {
            another_machine(&place);
        }
    }
    eprintln!("{n_lost} machines were lost");
    assert!(n_lost >= 1, "{whole_ms} ms");
    fs::rename(place.path("kept/straight"), place.path("runs/straight")).unwrap();
    assert_same(&place, "straight", "lost");
    assert_eq!(
        place.list("runs/lost/checkpoints"),
        ["step-19", "step-20"],
        "as without a store"
    );
    assert_eq!(place.list("shelf/lost/checkpoints"), ["step-19", "step-20"]);
    // A machine lost while object_store wrote a file leaves what it staged, `metrics.jsonl#1`; nothing reads that.
    let mut kept = place.list("shelf/lost");
    kept.retain(|name| !name.contains('#'));
    assert_eq!(
        kept,
        [
            "best",
            "checkpoints",
            "config.toml",
            "metrics.jsonl",
            "report.html"
        ]
    );
    let names = place.list("shelf/lost/checkpoints/step-20");
    assert_eq!(names, place.list("runs/lost/checkpoints/step-20"));
    assert!(!place.path("runs/lost/.upload").exists());
    let metrics = |folder: &str| fs::read(place.path(&format!("{folder}/metrics.jsonl"))).unwrap();
    assert_eq!(metrics("runs/lost"), metrics("shelf/lost"));
}

#[test]
fn what_is_not_whole_or_damaged_is_named_and_the_checkpoint_before_it_is_taken() {
    let place = Place::new();
    let url = format!("file://{}", place.path("shelf").display());
    let run = config(&place, "a", Some(&url));
    train(&place, &run, &["--until", "9"]);
    let shelf = |name: &str| place.path(&format!("shelf/a/checkpoints/{name}"));
    fs::remove_file(shelf("step-9/manifest.json")).unwrap();
    another_machine(&place);
    let ran = train(&place, &run, &["--resume", "--until", "9"]);
    assert_eq!(ran.status, 130, "{}", ran.stderr);
    let (passed, taken) = ("step-9 was not uploaded whole", "goes on from file://");
    assert!(ran.stderr.contains(passed), "{}", ran.stderr);
    assert!(ran.stderr.contains(taken), "{}", ran.stderr);
    assert!(
        shelf("step-9/manifest.json").is_file(),
        "it was uploaded again"
    );

    let damage = |name: &str| {
        let file = shelf(name).join("state.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] = bytes[last].wrapping_add(1);
        fs::write(&file, bytes).unwrap();
    };
    damage("step-9");
    another_machine(&place);
    let ran = train(&place, &run, &["--resume", "--until", "10"]);
    for part in [
        "step-9 is damaged: state.safetensors has the SHA-256",
        "/step-8",
    ] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
    assert_eq!(place.list("shelf/a/checkpoints"), ["step-10", "step-9"]);

    damage("step-9");
    damage("step-10");
    another_machine(&place);
    train(&place, &run, &["--resume"]).fails(1, &["no checkpoint is whole", "step-10", "step-9"]);
    train(&place, &run, &["--force"]).ok();
    assert_eq!(place.list("shelf/a/checkpoints"), ["step-19", "step-20"]);
}

#[test]
fn a_run_that_is_there_is_not_replaced_and_a_newer_one_here_is_gone_on_with() {
    let place = Place::new();
    let url = format!("file://{}", place.path("shelf").display());
    let run = config(&place, "a", Some(&url));
    assert_eq!(train(&place, &run, &["--until", "4"]).status, 130);
    let text = fs::read_to_string(place.path("shelf/a/checkpoints/step-4/manifest.json")).unwrap();
    assert!(text.contains("\"step\": 4"), "{text}");
    // Two steps without the store: what is here is newer, and goes there.
    let alone = config(&place, "a", None);
    assert_eq!(
        train(&place, &alone, &["--resume", "--until", "6"]).status,
        130
    );
    config(&place, "a", Some(&url));
    let ran = train(&place, &run, &["--resume", "--until", "6"]);
    assert!(
        ran.stderr.contains("no older than what file://"),
        "{}",
        ran.stderr
    );
    assert!(
        place
            .path("shelf/a/checkpoints/step-6/manifest.json")
            .is_file()
    );
    another_machine(&place);
    train(&place, &run, &[]).fails(1, &["file://", "is there already", "--resume"]);
    assert!(
        !place.path("runs").exists(),
        "refused before anything is written"
    );
    train(&place, &run, &["--force"]).ok();
}

#[test]
fn uploads_that_fail_do_not_stop_the_training_but_its_end_says_so() {
    let place = Place::new();
    let url = format!("file://{}", place.path("shelf").display());
    let run = config(&place, "a", Some(&url));
    place.write("shelf/a/checkpoints", "no folder");
    let ran = train(&place, &run, &["--set", "train.save_every=20"]);
    ran.fails(
        1,
        &[
            "warning: the checkpoint of step 20 was not uploaded",
            "training goes on",
            "the last upload to file://",
            "--resume uploads it",
        ],
    );
    assert!(place.path("runs/a/checkpoints/step-20").is_dir());
    assert!(!place.path("runs/a/.upload").exists());
    fs::remove_file(place.path("shelf/a/checkpoints")).unwrap();
    train(&place, &run, &["--resume"]).ok();
    assert!(
        place
            .path("shelf/a/checkpoints/step-20/manifest.json")
            .is_file()
    );
}

#[test]
fn a_wrong_address_is_an_error_before_the_first_step() {
    let place = Place::new();
    let check = |remote: &str, settings: &[(&str, String)], expect: &[&str]| {
        let run = config(&place, "a", Some(remote));
        let mut command = place.command();
        command.args(["train", &run, "--quiet"]);
        command.envs(settings.iter().map(|(name, value)| (*name, value)));
        let started = Instant::now();
        Ran::of(&mut command).fails(1, expect);
        let seconds = started.elapsed().as_secs();
        assert!(seconds < 60, "{remote}: told after {seconds} s");
        assert!(!place.path("runs").exists(), "{remote}");
    };
    check("ftp://shelf/runs", &[], &["remote", "ftp://shelf", "s3://"]);
    check("file://shelf/runs", &[], &["file:///FOLDER"]);
    check("s3:///runs", &[], &["names no bucket"]);
    let s3 = S3::start();
    let settings = s3.settings();
    check(
        "s3://another-shelf/runs",
        &settings,
        &["s3://another-shelf/runs/a", "no such bucket"],
    );
    let closed = |(name, value): &(&'static str, String)| match *name {
        "AWS_ENDPOINT_URL" => (*name, "http://127.0.0.1:9".to_owned()),
        name => (name, value.clone()),
    };
    let closed: Vec<_> = settings.iter().map(closed).collect();
    check(
        &format!("s3://{BUCKET}/runs"),
        &closed,
        &["cannot be reached", "AWS_ENDPOINT_URL"],
    );
    // Where the machine's own role would be asked for; nobody is there.
    let nobody = [
        settings[3].clone(),
        ("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9".to_owned()),
    ];
    check(
        &format!("s3://{BUCKET}/runs"),
        &nobody,
        &["no credentials", "AWS_ACCESS_KEY_ID"],
    );
}

/// With weights of 12 MB, which go up in parts.
#[test]
fn on_s3_a_run_goes_on_elsewhere_and_is_exported_from_there() {
    let (place, s3) = (Place::new(), S3::start());
    let base = fs::read(place.tiny("base.gguf", Family::Gpt2, DType::F32)).unwrap();
    s3.put("in/base.gguf", &base);
    s3.put("in/rows.jsonl", rows().as_bytes());
    let write = |name: &str, remote: &str| {
        place.write(
            &format!("{name}.toml"),
            format!(
                "name='{name}'\nmode='scratch'\nbase='s3://{BUCKET}/in/base.gguf'\nthreads=1\n{remote}\n\
                 [model]\nfamily='gpt2'\nlayers=4\nwidth=256\nheads=4\nctx=64\n\
                 [data]\ntrain=['s3://{BUCKET}/in/rows.jsonl']\nvalid=['s3://{BUCKET}/in/rows.jsonl']\nmax_tokens=64\n\
                 [train]\nbatch=2\nsteps=4\nlr=1e-3\neval_every=2\nsave_every=1\nkeep_last=1\n"
            ),
        )
    };
    let straight = write("straight", "");
    let moved = write("moved", &format!("remote='s3://{BUCKET}/runs'"));
    let run = |args: &[&str]| {
        let mut command = place.command();
        Ran::of(command.args(args).envs(s3.settings()))
    };
    run(&["train", &straight, "--quiet"]).ok();
    fs::rename(place.path("runs"), place.path("kept")).unwrap();
    assert_eq!(
        run(&["train", &moved, "--quiet", "--until", "2"]).status,
        130
    );
    assert!(s3.keys("runs/moved/checkpoints/step-2/").len() > 4);
    another_machine(&place);
    run(&["train", &moved, "--quiet", "--resume"]).ok();
    for file in [
        "model.safetensors",
        "checkpoints/step-4/model.safetensors",
        "checkpoints/step-4/state.safetensors",
    ] {
        let of = |run: &str| place.path(run).join(file);
        let len_bytes = of("kept/straight").metadata().unwrap().len();
        assert!(len_bytes > 8 << 20, "{file}: {len_bytes}");
        assert!(
            bits(&of("kept/straight")) == bits(&of("runs/moved")),
            "{file}"
        );
    }
    let keys = s3.keys("runs/");
    let old = |key: &&String| key.contains("step-2/") || key.contains("step-3/");
    assert_eq!(
        keys.iter().filter(old).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    assert_eq!(s3.unfinished(), Vec::<String>::new());

    another_machine(&place);
    let url = format!("s3://{BUCKET}/runs/moved");
    run(&["export", &url, "--quant", "f32", "-o", "best.gguf"]).ok();
    let here = place.path("kept/straight").to_str().unwrap().to_owned();
    run(&["export", &here, "--quant", "f32", "-o", "here.gguf"]).ok();
    let open = |file: &str| {
        let bytes = fs::read(place.path(file)).unwrap();
        fledgling_core::gguf::Gguf::parse(bytes.into()).unwrap()
    };
    let (best, kept) = (open("best.gguf"), open("here.gguf"));
    let tensor =
        |file: &fledgling_core::gguf::Gguf| file.tensor_f32("blk.3.ffn_down.weight").unwrap();
    assert_eq!(tensor(&best), tensor(&kept));
    let histogram = |file: &fledgling_core::gguf::Gguf| {
        file.header().metadata.ints("fledgling.data.histogram.ids")
    };
    assert!(histogram(&best).is_some() && histogram(&best) == histogram(&kept));
    let export = |url: &str| run(&["export", url, "--quant", "f32", "--force", "-o", "x.gguf"]);
    export(&format!("{url}@last")).ok();
    export(&format!("{url}@step-1")).fails(1, &["no whole `step-1`"]);

    // A damaged file of the best weights is named when they are fetched.
    let key = keys
        .iter()
        .find(|key| key.contains("best/") && key.ends_with("header.gguf"))
        .unwrap();
    s3.put(key, b"other");
    export(&url).fails(1, &["is damaged: header.gguf has 5 bytes instead of"]);
    s3.delete(key);
    export(&url).fails(1, &["is damaged: header.gguf is missing"]);
}

#[test]
fn data_by_url_is_fetched_once_and_anew_when_it_changes() {
    let (place, s3) = (Place::new(), S3::start());
    let base = place.tiny("base.gguf", Family::Llama, DType::F32);
    s3.put("rows.jsonl", rows().as_bytes());
    let prepare = place.write("docs.jsonl", rows());
    place
        .run(&[
            "data",
            "prepare",
            &prepare,
            "-t",
            &base,
            "-o",
            "prepared",
            "--set",
            "context=64",
        ])
        .ok();
    for name in place.list("prepared") {
        let path = place.path("prepared").join(&name);
        if path.is_file() && !name.starts_with('.') {
            s3.put(&format!("prepared/{name}"), &fs::read(path).unwrap());
        }
    }
    let plan = |data: &str| {
        let text = format!(
            "name='a'\nmode='full'\nbase='{base}'\nthreads=1\n[data]\ntrain=['{data}']\nmax_tokens=64\n[train]\nbatch=4\n"
        );
        let config = place.write("a.toml", text);
        let mut command = place.command();
        command.envs(s3.settings());
        Ran::of(command.args(["train", &config, "--dry-run", "--no-trial", "--json"]))
    };
    let url = format!("s3://{BUCKET}/rows.jsonl");
    let first = plan(&url);
    assert!(first.stderr.contains("fetching s3://"), "{}", first.stderr);
    let again = plan(&url);
    assert!(!again.stderr.contains("fetching"), "{}", again.stderr);
    assert_eq!(first.json(), again.json());
    s3.put("rows.jsonl", rows().repeat(2).as_bytes());
    let changed = plan(&url);
    assert!(
        changed.stderr.contains("fetching s3://"),
        "{}",
        changed.stderr
    );
    changed.ok();
    let versions = place.list("home/remote");
    assert_eq!(versions.len(), 1);
    assert_eq!(place.list(&format!("home/remote/{}", versions[0])).len(), 1);

    plan(&format!("s3://{BUCKET}/prepared")).ok();
    let local = format!("file://{}", place.path("prepared").display());
    plan(&local).ok();
    plan(&format!("s3://{BUCKET}/nothing")).fails(1, &["s3://shelf/nothing", "no such object"]);
    plan("file:///nothing/at/all.jsonl")
        .fails(1, &["file:///nothing/at/all.jsonl", "no such object"]);
}
