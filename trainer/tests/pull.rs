//! `fledgling pull` against a local server with the hub's layout, and against its faults.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set itself up has failed"
)]

mod common;

use common::{
    Place, Ran,
    server::{Answer, Server, sha256},
};
use fledgling_core::{quant::DType, spec::Family, testing::tiny_model};
use std::path::Path;

fn model() -> Vec<u8> {
    tiny_model(Family::Llama, DType::Q8_0, 7)
}

fn pull(place: &Place, server: &Server, args: &[&str]) -> Ran {
    Ran::of(
        place
            .command()
            .env("HF_ENDPOINT", &server.url)
            .arg("pull")
            .args(args),
    )
}

#[test]
fn a_gguf_of_the_hub_is_checked_and_kept() {
    let (place, server) = (Place::new(), Server::start());
    server.put_repo(
        "owner/repo",
        &[
            ("tiny-Q8_0.gguf", model()),
            ("README.md", b"hello".to_vec()),
        ],
    );
    let path = pull(&place, &server, &["hf:owner/repo/tiny-Q8_0.gguf"]).ok();
    assert_eq!(std::fs::read(path.trim()).unwrap(), model());
    let n_asked = server.asked().len();
    let again = pull(&place, &server, &["hf:owner/repo/tiny-Q8_0.gguf"]).ok();
    assert_eq!(
        (again, server.asked().len()),
        (path, n_asked),
        "what is here is not asked for again"
    );
    let json = pull(
        &place,
        &server,
        &["hf:owner/repo/tiny-Q8_0.gguf", "--force", "--json"],
    )
    .json();
    assert_eq!(json["sha256"], sha256(&model()));
    assert_eq!(json["origin"], "hf:owner/repo@c0ffee");
    assert_eq!(
        place.list("home/models/tiny-Q8_0"),
        ["fledgling.json", "tiny-Q8_0.gguf"]
    );
    place
        .run(&[
            "generate",
            "tiny-Q8_0",
            "--prompt",
            "Hi",
            "--max-tokens",
            "2",
        ])
        .ok();
}

#[test]
fn the_only_gguf_of_a_repository_needs_no_name() {
    let (place, server) = (Place::new(), Server::start());
    server.put_repo("owner/repo", &[("tiny.gguf", model())]);
    pull(&place, &server, &["hf:owner/repo"]).ok();
    place.run(&["inspect", "hf:owner/repo"]).ok();
    server.put_repo("owner/many", &[("a.gguf", model()), ("b.gguf", model())]);
    pull(&place, &server, &["hf:owner/many"]).fails(1, &["hf:owner/many/a.gguf", "b.gguf"]);
    server.put_repo("owner/none", &[("pytorch_model.bin", model())]);
    pull(&place, &server, &["hf:owner/none"]).fails(1, &["no `config.json`", "safetensors"]);
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let (place, hub, other) = (Place::new(), Server::start(), Server::start());
    hub.put_repo("owner/repo", &[("tiny.gguf", model())]);
    Ran::of(
        place
            .command()
            .env("HF_ENDPOINT", &hub.url)
            .env("HF_TOKEN", "t0ken")
            .args(["pull", "hf:owner/repo"]),
    )
    .ok();
    assert!(
        hub.asked()
            .iter()
            .all(|(_, _, token)| token.as_deref() == Some("Bearer t0ken"))
    );
    other.put("/tiny.gguf", Answer::file(model()));
    Ran::of(
        place
            .command()
            .env("HF_TOKEN", "t0ken")
            .args(["pull", &format!("{}/tiny.gguf", other.url)]),
    )
    .ok();
    assert!(other.asked().iter().all(|(_, _, token)| token.is_none()));
}

#[test]
fn a_download_that_breaks_off_continues_where_it_stopped() {
    let (place, server) = (Place::new(), Server::start());
    let half = model().len() / 2;
    server.put(
        "/tiny.gguf",
        Answer {
            breaks: Some((half, 1)),
            ..Answer::file(model())
        },
    );
    let url = format!("{}/tiny.gguf", server.url);
    let path = pull(&place, &server, &[&url]).ok();
    assert_eq!(std::fs::read(path.trim()).unwrap(), model());
    let ranges: Vec<_> = server
        .asked()
        .into_iter()
        .map(|(_, range, _)| range)
        .collect();
    assert_eq!(ranges, [None, Some(format!("bytes={half}-"))]);
}

#[test]
fn the_next_command_continues_too_unless_the_file_changed() {
    let (place, server) = (Place::new(), Server::start());
    let (url, part) = (format!("{}/tiny.gguf", server.url), 1000);
    // Each attempt of the first command brings nothing more after the first bytes.
    server.put(
        "/tiny.gguf",
        Answer {
            breaks: Some((part, 1)),
            ..Answer::file(model())
        },
    );
    let broken = Answer {
        breaks: Some((0, 99)),
        ..Answer::file(model())
    };
    let breaking = server.url.clone();
    let first = std::thread::scope(|scope| {
        scope.spawn(|| {
            while server.asked().is_empty() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            server.put("/tiny.gguf", broken);
        });
        pull(&place, &server, &[&url])
    });
    first.fails(
        1,
        &[
            "breaks off again and again",
            "run the same command to continue",
            &breaking,
        ],
    );
    assert_eq!(
        place.list("home/models/tiny/download"),
        ["file.gguf.part", "file.gguf.part.etag"]
    );
    let kept = std::fs::metadata(place.path("home/models/tiny/download/file.gguf.part"))
        .unwrap()
        .len();
    assert!(kept >= part as u64);
    let n_asked = server.asked().len();

    server.put("/tiny.gguf", Answer::file(model()));
    pull(&place, &server, &[&url]).ok();
    assert_eq!(server.asked()[n_asked].1, Some(format!("bytes={kept}-")));

    // A file that changed in between is fetched from its beginning.
    std::fs::create_dir_all(place.path("home/models/tiny/download")).unwrap();
    place.write("home/models/tiny/download/file.gguf.part", vec![0; 500]);
    place.write("home/models/tiny/download/file.gguf.part.etag", "\"v0\"");
    let path = pull(&place, &server, &[&url, "--force"]).ok();
    assert_eq!(std::fs::read(path.trim()).unwrap(), model());
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (place, server) = (Place::new(), Server::start());
    server.put(
        "/tiny.gguf",
        Answer {
            breaks: Some((2000, 1)),
            ranges: false,
            ..Answer::file(model())
        },
    );
    let path = pull(&place, &server, &[&format!("{}/tiny.gguf", server.url)]).ok();
    assert_eq!(std::fs::read(path.trim()).unwrap(), model());
}

#[test]
fn a_changed_file_is_refused_and_not_kept() {
    let (place, server) = (Place::new(), Server::start());
    server.put_repo("owner/repo", &[("tiny.gguf", model())]);
    let mut changed = model();
    *changed.last_mut().unwrap() ^= 1;
    server.put(
        "/owner/repo/resolve/c0ffee/tiny.gguf",
        Answer::file(changed.clone()),
    );
    pull(&place, &server, &["hf:owner/repo"])
        .fails(1, &["SHA-256", &sha256(&model()), &sha256(&changed)]);
    assert_eq!(
        place.list("home/models/owner--repo/download/c0ffee"),
        [""; 0]
    );
    place
        .run(&["inspect", "hf:owner/repo"])
        .fails(2, &["fledgling pull hf:owner/repo"]);
    let url = format!("{}/owner/repo/resolve/c0ffee/tiny.gguf", server.url);
    pull(&place, &server, &[&url, "--sha256", &sha256(&model())]).fails(1, &["SHA-256"]);
    pull(&place, &server, &[&url, "--sha256", &sha256(&changed)]).ok();
}

#[test]
fn what_is_no_model_is_refused() {
    let (place, server) = (Place::new(), Server::start());
    let at = |path: &str| format!("{}{path}", server.url);
    server.put(
        "/page.gguf",
        Answer {
            content_type: "text/html; charset=utf-8",
            ..Answer::file("<html>Log in</html>")
        },
    );
    pull(&place, &server, &[&at("/page.gguf")]).fails(1, &["/page.gguf", "a web page, not a file"]);
    server.put("/hidden-page.gguf", Answer::file("<html>Log in</html>"));
    pull(&place, &server, &[&at("/hidden-page.gguf")]).fails(1, &["not a GGUF file"]);
    server.put("/half.gguf", Answer::file(&model()[..3000]));
    pull(&place, &server, &[&at("/half.gguf")]).fails(1, &["truncated"]);
    pull(&place, &server, &[&at("/nothing.gguf")]).fails(1, &["not found (404)", "/nothing.gguf"]);
    server.put(
        "/private.gguf",
        Answer {
            status: 403,
            ..Answer::file("no")
        },
    );
    pull(&place, &server, &[&at("/private.gguf")]).fails(1, &["access denied", "HF_TOKEN"]);
    pull(&place, &server, &["hf:owner/missing"]).fails(1, &["not found (404)", "owner/missing"]);
    server.put(
        "/api/models/owner/odd/revision/main?blobs=true",
        Answer::file("<html>"),
    );
    pull(&place, &server, &["hf:owner/odd"]).fails(1, &["no JSON", "login page"]);
    for name in ["page", "hidden-page", "half", "nothing", "private"] {
        assert_eq!(
            place
                .list(&format!("home/models/{name}"))
                .iter()
                .filter(|file| Path::new(file).extension().is_some_and(|ext| ext == "gguf"))
                .count(),
            0,
            "{name}"
        );
        place
            .run(&["inspect", name])
            .fails(2, &["no file, folder or pulled model"]);
    }
}

#[test]
fn an_unreachable_host_costs_seconds() {
    let place = Place::new();
    // A port that nobody listens on: bound, and given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let started = std::time::Instant::now();
    let endpoint = format!("http://127.0.0.1:{port}");
    Ran::of(
        place
            .command()
            .env("HF_ENDPOINT", &endpoint)
            .args(["pull", "gpt2"]),
    )
    .fails(1, &["`gpt2` could not be had", "cannot be reached"]);
    Ran::of(
        place
            .command()
            .args(["pull", &format!("{endpoint}/x.gguf")]),
    )
    .fails(1, &["cannot be reached"]);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn a_file_here_is_copied_under_its_name() {
    let place = Place::new();
    let file = place.tiny("mine.gguf", Family::Gpt2, DType::F16);
    let path = place.run(&["pull", &file]).ok();
    std::fs::remove_file(&file).unwrap();
    assert!(Path::new(path.trim()).is_file());
    let other = place.tiny("elsewhere/mine.gguf", Family::Llama, DType::F16);
    place
        .run(&["pull", &other])
        .fails(1, &["`mine` is here already", "--name", "--force"]);
    place.run(&["pull", &other, "--name", "yours"]).ok();
    assert_eq!(
        place.run(&["doctor", "--json"]).json()["models"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    place
        .run(&["pull", &other, "--name", "../up"])
        .fails(1, &["cannot be a model's name"]);
}

#[test]
fn a_source_that_cannot_be_is_wrong_use() {
    let place = Place::new();
    place
        .run(&["pull", "nothing-like-it"])
        .fails(2, &["smollm2-135m-instruct", "gpt2"]);
    place
        .run(&["pull", "hf:only-an-owner"])
        .fails(2, &["hf:OWNER/REPO"]);
    place
        .run(&["pull", "s3://bucket/x.gguf"])
        .fails(2, &["only http and https"]);
}

#[test]
fn a_cache_that_cannot_be_written_is_told() {
    let place = Place::new();
    let file = place.tiny("mine.gguf", Family::Llama, DType::F16);
    let blocked = place.write("blocked", "a file where a folder must be");
    Ran::of(
        place
            .command()
            .env("FLEDGLING_HOME", &blocked)
            .args(["pull", &file]),
    )
    .fails(1, &["FLEDGLING_HOME"]);
}

#[test]
fn two_pulls_at_once_do_the_work_once() {
    let (place, server) = (Place::new(), Server::start());
    server.put("/tiny.gguf", Answer::file(model()));
    let url = format!("{}/tiny.gguf", server.url);
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| pull(&place, &server, &[&url]).ok()));
        let [a, b] = both.map(|pull| pull.join().unwrap());
        assert_eq!(a, b);
    });
    assert_eq!(server.asked().len(), 1);
}
