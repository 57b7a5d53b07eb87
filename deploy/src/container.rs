//! An image with the command and the model in it, and what runs it: Cloud Run, Azure Container Apps, Kubernetes.

use crate::bundle::{Bundle, resource_name};
use anyhow::{Result, ensure};
use serde::Serialize;
use std::path::PathBuf;

/// The port inside the container.
const PORT: u16 = 8080;

/// What is to be deployed.
#[derive(Debug, Clone)]
pub struct Options {
    /// The service's name; [`resource_name`] makes it one.
    pub name: String,
    /// The model's file.
    pub model: PathBuf,
    /// Its bytes.
    pub model_bytes: u64,
    /// The command `fledgling`, built for Linux.
    pub command: PathBuf,
    /// The image as the manifests name it.
    pub image: String,
    /// The image it is made on; it needs a C library at least as new as the one that the command was built with.
    pub base: String,
    /// CPUs of an instance.
    pub cpus: u64,
    /// Instances at most.
    pub max_instances: u64,
    /// A key, without which nobody is answered.
    pub has_key: bool,
}

#[derive(Debug, Serialize)]
struct Template<'a> {
    name: &'a str,
    image: &'a str,
    base: &'a str,
    cpus: u64,
    memory_mb: u64,
    /// Azure sells twice as many gigabytes as CPUs.
    azure_cpus: f64,
    azure_memory_gb: f64,
    max_instances: u64,
    has_key: bool,
    port: u16,
    arguments: Vec<String>,
    version: &'static str,
}

/// Makes the files: `Dockerfile` with its context, `cloud-run.yaml`, `azure-container-app.yaml`, `kubernetes.yaml`.
///
/// # Errors
/// When a figure makes no sense.
pub fn deploy(options: &Options) -> Result<Bundle> {
    ensure!(
        (1..=64).contains(&options.cpus),
        "--cpus {}: give 1 to 64",
        options.cpus
    );
    ensure!(
        options.max_instances > 0,
        "--max-instances 0 would answer nobody"
    );
    let is_plain = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic());
    ensure!(
        is_plain(&options.image),
        "--image {:?}: an image's name has no spaces",
        options.image
    );
    ensure!(
        is_plain(&options.base),
        "--base {:?}: an image's name has no spaces",
        options.base
    );
    let name = resource_name(&options.name);
    // Weights are mapped; beside them stand keys and values, and as many buffers.
    let memory_mb = ((options.model_bytes >> 20) * 3 / 2 + 512).next_multiple_of(512);
    let azure_cpus = (options.cpus as f64).max(memory_mb as f64 / 2048.0).ceil();
    let mut arguments: Vec<String> = [
        "serve",
        "/model.gguf",
        "--host",
        "0.0.0.0",
        "--no-page",
        "--log",
        "/dev/stdout",
        "--port",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(PORT.to_string());
    if options.has_key {
        arguments.extend(["--api-key-env".to_owned(), "FLEDGLING_API_KEY".to_owned()]);
    }
    let template = Template {
        name: &name,
        image: &options.image,
        base: &options.base,
        cpus: options.cpus,
        memory_mb,
        azure_cpus,
        azure_memory_gb: 2.0 * azure_cpus,
        max_instances: options.max_instances,
        has_key: options.has_key,
        port: PORT,
        arguments,
        version: env!("CARGO_PKG_VERSION"),
    };
    let mut bundle = Bundle::default();
    bundle.copy("fledgling", &options.command);
    bundle.executables.push("fledgling".to_owned());
    bundle.copy("model.gguf", &options.model);
    for (path, text) in [
        ("Dockerfile", include_str!("templates/Dockerfile")),
        ("cloud-run.yaml", include_str!("templates/cloud-run.yaml")),
        (
            "azure-container-app.yaml",
            include_str!("templates/azure.yaml"),
        ),
        ("kubernetes.yaml", include_str!("templates/kubernetes.yaml")),
        ("README.md", include_str!("templates/container.md")),
    ] {
        bundle.template(path, text, &template)?;
    }
    bundle.text(".dockerignore", "*\n!fledgling\n!model.gguf\n".to_owned());
    Ok(bundle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Source;
    use serde::Deserialize;
    use serde_yaml_ng::Value;

    fn options() -> Options {
        Options {
            name: "Rust Docs".to_owned(),
            model: PathBuf::from("m"),
            model_bytes: 800 << 20,
            command: PathBuf::from("c"),
            image: "registry.example.org/rust-docs:1".to_owned(),
            base: "debian:13-slim".to_owned(),
            cpus: 2,
            max_instances: 4,
            has_key: true,
        }
    }

    fn text<'a>(bundle: &'a Bundle, path: &str) -> &'a str {
        match &bundle.files[path] {
            Source::Text(text) => text,
            other => panic!("{other:?}"),
        }
    }

    fn documents(bundle: &Bundle, path: &str) -> Vec<Value> {
        let parsed = serde_yaml_ng::Deserializer::from_str(text(bundle, path))
            .map(|document| Value::deserialize(document).unwrap());
        parsed.collect()
    }

    #[test]
    fn kubernetes_runs_it_as_nobody_with_probes() {
        let bundle = deploy(&options()).unwrap();
        let all = documents(&bundle, "kubernetes.yaml");
        let kinds: Vec<_> = all
            .iter()
            .map(|document| document["kind"].as_str().unwrap())
            .collect();
        assert_eq!(kinds, ["Deployment", "Service", "HorizontalPodAutoscaler"]);
        let pod = &all[0]["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        let container = &pod["containers"][0];
        assert_eq!(container["image"], "registry.example.org/rust-docs:1");
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/healthz");
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["resources"]["limits"]["memory"], "2048Mi");
        assert_eq!(
            container["env"][0]["valueFrom"]["secretKeyRef"]["name"],
            "rust-docs"
        );
        assert_eq!(
            all[0]["spec"]["selector"]["matchLabels"],
            all[0]["spec"]["template"]["metadata"]["labels"]
        );
        assert_eq!(all[1]["spec"]["ports"][0]["targetPort"], PORT);
    }

    #[test]
    fn clouds_get_what_they_can_read() {
        let bundle = deploy(&options()).unwrap();
        let run = &documents(&bundle, "cloud-run.yaml")[0];
        assert_eq!(run["kind"], "Service");
        assert_eq!(
            run["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"],
            "2"
        );
        let azure = &documents(&bundle, "azure-container-app.yaml")[0];
        assert_eq!(
            azure["properties"]["configuration"]["ingress"]["targetPort"],
            PORT
        );
        assert_eq!(
            azure["properties"]["template"]["containers"][0]["resources"]["memory"],
            "4.0Gi"
        );
    }

    #[test]
    fn the_dockerfile_is_of_known_instructions() {
        let bundle = deploy(&options()).unwrap();
        let docker = text(&bundle, "Dockerfile").replace("\\\n", " ");
        let lines = docker
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let words: Vec<&str> = lines
            .map(|line| line.split(' ').next().unwrap_or_default())
            .collect();
        assert_eq!(
            words,
            [
                "FROM",
                "COPY",
                "COPY",
                "USER",
                "EXPOSE",
                "HEALTHCHECK",
                "ENTRYPOINT",
                "CMD"
            ]
        );
        let command = docker
            .lines()
            .find_map(|line| line.strip_prefix("CMD "))
            .unwrap();
        let command: Vec<String> = serde_json::from_str(command).unwrap();
        assert_eq!(command[0], "serve");
        assert!(command.contains(&"--api-key-env".to_owned()));
    }

    #[test]
    fn without_a_key_nothing_asks_for_one_and_nonsense_is_refused() {
        let open = deploy(&Options {
            has_key: false,
            ..options()
        })
        .unwrap();
        for path in [
            "Dockerfile",
            "kubernetes.yaml",
            "cloud-run.yaml",
            "azure-container-app.yaml",
        ] {
            assert!(!text(&open, path).contains("FLEDGLING_API_KEY"), "{path}");
        }
        documents(&open, "kubernetes.yaml");
        documents(&open, "azure-container-app.yaml");
        assert!(
            deploy(&Options {
                image: "a\nRUN x".to_owned(),
                ..options()
            })
            .is_err()
        );
        assert!(
            deploy(&Options {
                cpus: 0,
                ..options()
            })
            .is_err()
        );
    }
}
