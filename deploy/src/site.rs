//! The page with its model as plain files, for a host without a program of its own: S3 behind `CloudFront`, Cloudflare Pages, Netlify.

use crate::bundle::{Bundle, resource_name};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{
    fmt::Write,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// A page may use shared memory, and with it threads, only when it is isolated by these.
const ISOLATION: [(&str, &str); 3] = [
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Embedder-Policy", "require-corp"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
];
/// A file whose name has its hash never changes.
const FOR_EVER: &str = "public, max-age=31536000, immutable";
/// Everything else is asked for anew when it changed.
const CHECKED: &str = "no-cache";

/// What is to be deployed.
#[derive(Debug, Clone)]
pub struct Options {
    /// The site's name; [`resource_name`] makes it one.
    pub name: String,
    /// The model's file.
    pub model: PathBuf,
    /// The folder of the built page, with `index.html`.
    pub page: PathBuf,
    /// Web origins whose pages may load the model.
    pub allow_origins: Vec<String>,
    /// Bytes that the host takes in one file (Cloudflare Pages: 25 MiB), where it has such a limit.
    pub max_file_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Template<'a> {
    name: &'a str,
    isolation: [(&'static str, &'static str); 3],
    for_ever: &'static str,
    checked: &'static str,
    model: &'a str,
    allow_origins: &'a [String],
    version: &'static str,
}

/// Makes the files: `site/` to be uploaded, and `cloudfront.json`, `cors.json` and `upload.sh` for S3.
///
/// # Errors
/// When the page is not built, the model cannot be read, or a file is too large for the host.
pub fn deploy(options: &Options) -> Result<Bundle> {
    let name = resource_name(&options.name);
    let mut bundle = Bundle::default();
    add_folder(&mut bundle, &options.page, "site")?;
    if !bundle.files.contains_key("site/index.html") {
        bail!(
            "there is no index.html in {}: build the page with `cargo xtask web`",
            options.page.display()
        );
    }
    let (hash, len_bytes) = hash(&options.model)?;
    if let Some(most) = options.max_file_bytes
        && len_bytes > most
    {
        bail!(
            "the model has {} MiB and the host takes files of {}: quantise it further, or put it on a host without that limit (the page loads a model in one file)",
            len_bytes >> 20,
            most >> 20
        );
    }
    let file = format!("{name}-{}.gguf", &hash[..12]);
    bundle.copy(&format!("site/models/{file}"), &options.model);
    let shelf = json!([{"name": format!("{name}.gguf"), "url": format!("models/{file}"), "sizeBytes": len_bytes, "sha256": hash}]);
    bundle.text(
        "site/models.json",
        serde_json::to_string_pretty(&shelf)? + "\n",
    );
    let template = Template {
        name: &name,
        isolation: ISOLATION,
        for_ever: FOR_EVER,
        checked: CHECKED,
        model: &file,
        allow_origins: &options.allow_origins,
        version: env!("CARGO_PKG_VERSION"),
    };
    bundle.template(
        "site/_headers",
        include_str!("templates/_headers"),
        &template,
    )?;
    bundle.text(
        "cloudfront.json",
        serde_json::to_string_pretty(&policy(&name, &options.allow_origins))? + "\n",
    );
    bundle.text(
        "cors.json",
        serde_json::to_string_pretty(&cors(&options.allow_origins))? + "\n",
    );
    bundle.template("upload.sh", include_str!("templates/upload.sh"), &template)?;
    bundle.executables.push("upload.sh".to_owned());
    Ok(bundle)
}

/// A response headers policy: `aws cloudfront create-response-headers-policy --response-headers-policy-config file://cloudfront.json`.
fn policy(name: &str, origins: &[String]) -> serde_json::Value {
    let items: Vec<_> = ISOLATION
        .iter()
        .map(|(header, value)| json!({"Header": header, "Value": value, "Override": true}))
        .collect();
    let mut policy = json!({
        "Name": format!("{name}-isolated"),
        "Comment": "Isolates the page, so that its model may run on several threads",
        "CustomHeadersConfig": {"Quantity": items.len(), "Items": items},
        "SecurityHeadersConfig": {
            "ContentTypeOptions": {"Override": true},
            "StrictTransportSecurity": {"Override": true, "AccessControlMaxAgeSec": 31_536_000, "IncludeSubdomains": false, "Preload": false},
        },
    });
    if !origins.is_empty() {
        policy["CorsConfig"] = json!({
            "AccessControlAllowOrigins": {"Quantity": origins.len(), "Items": origins},
            "AccessControlAllowMethods": {"Quantity": 2, "Items": ["GET", "HEAD"]},
            "AccessControlAllowHeaders": {"Quantity": 1, "Items": ["range"]},
            "AccessControlExposeHeaders": {"Quantity": 3, "Items": ["content-length", "content-range", "etag"]},
            "AccessControlAllowCredentials": false,
            "AccessControlMaxAgeSec": 86_400,
            "OriginOverride": true,
        });
    }
    policy
}

/// A bucket's CORS: `aws s3api put-bucket-cors --cors-configuration file://cors.json`. Without origins only the site's own pages load it.
fn cors(origins: &[String]) -> serde_json::Value {
    let rules: Vec<_> = (!origins.is_empty())
        .then(|| {
            json!({
                "AllowedOrigins": origins,
                "AllowedMethods": ["GET", "HEAD"],
                "AllowedHeaders": ["range"],
                "ExposeHeaders": ["Content-Length", "Content-Range", "ETag"],
                "MaxAgeSeconds": 86_400,
            })
        })
        .into_iter()
        .collect();
    json!({"CORSRules": rules})
}

fn add_folder(bundle: &mut Bundle, folder: &Path, to: &str) -> Result<()> {
    let entries = folder.read_dir().with_context(|| {
        format!(
            "cannot read {}: build the page with `cargo xtask web`",
            folder.display()
        )
    })?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            bail!("{} has a name that no URL can have", entry.path().display());
        };
        let path = format!("{to}/{name}");
        if entry.path().is_dir() {
            add_folder(bundle, &entry.path(), &path)?;
        } else {
            bundle.copy(&path, &entry.path());
        }
    }
    Ok(())
}

/// SHA-256 in hexadecimal, and the length.
fn hash(path: &Path) -> Result<(String, u64)> {
    let place = || format!("cannot read {}", path.display());
    let mut file = io::BufReader::with_capacity(1 << 20, File::open(path).with_context(place)?);
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut len_bytes = 0;
    loop {
        let n = file.read(&mut buffer).with_context(place)?;
        if n == 0 {
            let hex = sum.finalize().iter().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            });
            return Ok((hex, len_bytes));
        }
        sum.update(&buffer[..n]);
        len_bytes += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn page(folder: &Path) -> Options {
        fs::create_dir_all(folder.join("page/assets")).unwrap();
        fs::write(folder.join("page/index.html"), "<!doctype html>").unwrap();
        fs::write(folder.join("page/assets/a.wasm"), "w").unwrap();
        fs::write(folder.join("m.gguf"), "abc").unwrap();
        Options {
            name: "Rust docs".to_owned(),
            model: folder.join("m.gguf"),
            page: folder.join("page"),
            allow_origins: vec!["https://example.org".to_owned()],
            max_file_bytes: None,
        }
    }

    #[test]
    fn the_site_has_its_page_its_model_and_its_headers() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        deploy(&page(dir.path()))
            .unwrap()
            .write(&out, false)
            .unwrap();
        assert!(out.join("site/assets/a.wasm").is_file());
        let json = |name: &str| -> serde_json::Value {
            serde_json::from_str(&fs::read_to_string(out.join(name)).unwrap()).unwrap()
        };
        let shelf = json("site/models.json");
        // SHA-256 of "abc" (FIPS 180-2, appendix B.1).
        assert_eq!(
            shelf[0]["sha256"],
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(shelf[0]["url"], "models/rust-docs-ba7816bf8f01.gguf");
        assert!(
            out.join("site")
                .join(shelf[0]["url"].as_str().unwrap())
                .is_file()
        );
        let policy = json("cloudfront.json");
        assert_eq!(
            policy["CustomHeadersConfig"]["Quantity"],
            policy["CustomHeadersConfig"]["Items"]
                .as_array()
                .unwrap()
                .len()
        );
        assert_eq!(
            policy["CorsConfig"]["AccessControlAllowOrigins"]["Items"][0],
            "https://example.org"
        );
        assert_eq!(
            json("cors.json")["CORSRules"][0]["AllowedMethods"][0],
            "GET"
        );

        // A path in column 0, its headers below it as `Name: value`.
        let headers = fs::read_to_string(out.join("site/_headers")).unwrap();
        let mut paths = Vec::new();
        for line in headers
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            match line.strip_prefix("  ") {
                None => paths.push(line),
                Some(header) => assert!(
                    header
                        .split_once(": ")
                        .is_some_and(|(name, value)| !name.contains(' ') && !value.is_empty()),
                    "{line}"
                ),
            }
        }
        assert_eq!(paths, ["/*", "/models/*"]);
        assert!(headers.contains("Cross-Origin-Embedder-Policy: require-corp"));
        let script = fs::read_to_string(out.join("upload.sh")).unwrap();
        assert!(script.contains("immutable"));
        let checked = std::process::Command::new("bash")
            .arg("-n")
            .arg(out.join("upload.sh"))
            .status();
        assert!(checked.is_ok_and(|status| status.success()));
    }

    #[test]
    fn what_is_missing_or_too_large_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = page(dir.path());
        options.max_file_bytes = Some(2);
        assert!(
            deploy(&options)
                .unwrap_err()
                .to_string()
                .contains("quantise")
        );
        fs::remove_file(dir.path().join("page/index.html")).unwrap();
        assert!(
            deploy(&options)
                .unwrap_err()
                .to_string()
                .contains("cargo xtask web")
        );
    }
}
