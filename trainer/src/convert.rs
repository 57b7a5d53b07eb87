//! A folder as the Hugging Face hub has it (`config.json`, weights, `tokenizer.json`) to one GGUF file. The weights are
//! safetensors, or a state dict of PyTorch's; of a pickle only what makes up tensors is read, and nothing is run.
//!
//! Matrices keep the precision they are stored in (f32, f16, bf16); vectors become f32. Names, shapes and layouts come
//! from core's one table.

use crate::gguf_file;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use fledgling_core::{
    gguf::Metadata,
    quant::{self, DType},
    spec::{Family, ModelSpec, Position, Role, TensorEntry},
    tokenizer::Tokenizer,
};
use fledgling_data::encode::read_tokenizer;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value as Json;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

/// What stands before a name in some files of the same model and not in others: wrappers of checkpoints, of
/// `DistributedDataParallel` and `torch.compile`, and the base model's own.
const PREFIXES: &[&str] = &[
    "state_dict.",
    "model_state_dict.",
    "module.",
    "_orig_mod.",
    "model.",
    "transformer.",
];

/// Files of weights and their indexes in the order in which they are looked for.
const WEIGHT_FILES: &[(&str, &str)] = &[
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];

/// What else trainers leave beside a model.
const NO_WEIGHTS: &[&str] = &[
    "training_args",
    "optimizer",
    "scheduler",
    "scaler",
    "rng_state",
    "adapter_model",
];

/// Whether a folder looks like a model as the hub has it.
pub fn is_model_folder(folder: &Path) -> bool {
    folder.join("config.json").is_file() && !weight_files(folder).unwrap_or_default().is_empty()
}

/// Converts `folder` to `target`.
///
/// # Errors
/// When a file is missing or broken, the architecture is not one that we run, or a tensor has another shape than
/// `config.json` says; by name.
pub fn folder_to_gguf(folder: &Path, target: &Path, replace: bool) -> Result<()> {
    let config = read_json(&folder.join("config.json"))?;
    let spec = ModelSpec::from_hf_config(&config)
        .with_context(|| format!("{}: config.json", folder.display()))?;
    let mut metadata = spec.to_metadata();
    metadata.set("general.name", model_name(folder, &config));
    let (tokenizer, template) = read_tokenizer(&folder.join("tokenizer.json"))?;
    set_tokenizer(&tokenizer, template, spec.vocab_size, &mut metadata);
    let weights = Weights::open(folder)?;
    gguf_file::write_model(
        target,
        replace,
        &spec,
        metadata,
        |entry| weights.dtype_of(entry),
        |entry, dtype| weights.bytes_of(entry, dtype),
    )
}

pub(crate) fn model_name(folder: &Path, config: &Json) -> String {
    let from_config = config["_name_or_path"]
        .as_str()
        .filter(|name| !name.is_empty() && !name.starts_with(['/', '.']));
    let from_folder = || {
        folder.file_name().map_or_else(
            || "model".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        )
    };
    from_config.map_or_else(from_folder, |name| {
        name.rsplit('/').next().unwrap_or(name).to_owned()
    })
}

fn read_json(path: &Path) -> Result<Json> {
    let text = fs::read(path).with_context(|| {
        format!(
            "cannot read {}: the folder of a model has config.json, tokenizer.json and weights",
            path.display()
        )
    })?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

/// Writes a model that knows nothing, one block of zeros, around a `tokenizer.json`: the base of a run from scratch, which
/// takes no more of its base than the tokenizer.
///
/// # Errors
/// When the tokenizer is missing or of a kind that we do not run.
pub fn tokenizer_to_gguf(path: &Path, target: &Path) -> Result<()> {
    let (tokenizer, template) = read_tokenizer(path)?;
    let family = Family::Gpt2;
    let spec = ModelSpec {
        family,
        n_layer: 1,
        n_head: 1,
        n_kv_head: 1,
        head_dim: 2,
        n_embd: 2,
        n_ff: 2,
        n_ctx: 1,
        vocab_size: tokenizer.vocab_size(),
        norm: family.norm(),
        norm_eps: 1e-5,
        position: Position::Learned,
        mlp: family.mlp(),
        bias: family.bias(),
        qk_norm: false,
        tied_embedding: true,
    };
    let mut metadata = spec.to_metadata();
    metadata.set("general.name", path.display().to_string());
    set_tokenizer(&tokenizer, template, spec.vocab_size, &mut metadata);
    let zeros = |entry: &TensorEntry| vec![0; entry.shape.iter().product::<usize>() * 4];
    gguf_file::write_model(
        target,
        true,
        &spec,
        metadata,
        |_| Ok(DType::F32),
        |entry, _| Ok(zeros(entry)),
    )
}

/// The tokenizer's keys and the chat template.
fn set_tokenizer(
    tokenizer: &Tokenizer,
    template: Option<String>,
    n_rows: usize,
    metadata: &mut Metadata,
) {
    metadata.extend(tokenizer.to_metadata_with_rows(n_rows));
    if let Some(template) = template {
        metadata.set("tokenizer.chat_template", template);
    }
}

/// The file names that an index (`model.safetensors.index.json`, `pytorch_model.bin.index.json`) refers to.
///
/// # Errors
/// When it is no index, or refers to something outside its folder or to files of another kind than `ending`.
pub fn shards(index: &[u8], ending: &str) -> Result<Vec<String>> {
    let index: Json =
        serde_json::from_slice(index).context("the index of the weights is no JSON")?;
    let map = index["weight_map"]
        .as_object()
        .filter(|map| !map.is_empty())
        .context("the index of the weights has no `weight_map`")?;
    let mut names = BTreeSet::new();
    for (tensor, name) in map {
        let name = name.as_str().with_context(|| {
            format!("the index of the weights gives `{tensor}` no file name but {name}")
        })?;
        ensure!(
            name.ends_with(ending) && !name.contains(['/', '\\', ':']) && !name.starts_with('.'),
            "the index of the weights refers to `{name}`, which is no file beside it of the kind *{ending}"
        );
        names.insert(name.to_owned());
    }
    Ok(names.into_iter().collect())
}

/// The files of weights of a folder: one file, or those of an index; of PyTorch's, one of any name.
///
/// # Errors
/// When an index is broken, or it is unclear which file is meant.
pub(crate) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    for (file, index) in WEIGHT_FILES {
        let (single, index) = (folder.join(file), folder.join(index));
        if single.is_file() {
            return Ok(vec![single]);
        }
        if index.is_file() {
            let ending = file.rsplit_once('.').map_or("", |(_, ending)| ending);
            let names = shards(&fs::read(&index)?, &format!(".{ending}"))
                .with_context(|| index.display().to_string())?;
            return Ok(names.into_iter().map(|name| folder.join(name)).collect());
        }
    }
    let mut others: Vec<_> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_pytorch(path) && path.is_file() && !is_beside_weights(path))
        .collect();
    others.sort();
    ensure!(
        others.len() < 2,
        "{} holds several files of weights ({}): call the model's own pytorch_model.bin",
        folder.display(),
        others
            .iter()
            .filter_map(|path| path.file_name()?.to_str())
            .collect::<Vec<_>>()
            .join(", ")
    );
    Ok(others)
}

fn is_pytorch(path: &Path) -> bool {
    path.extension()
        .is_some_and(|ending| ["bin", "pt", "pth"].iter().any(|known| ending == *known))
}

fn is_beside_weights(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || NO_WEIGHTS.iter().any(|other| name.starts_with(other))
}

/// One file of weights.
enum WeightFile {
    /// Mapped.
    Safetensors(Bytes),
    /// Read tensor by tensor.
    PyTorch(HashMap<String, pytorch_reader::Tensor>),
}

impl WeightFile {
    fn open(path: &Path) -> Result<Self> {
        if !is_pytorch(path) {
            let bytes = fledgling_lambda::mapped_file(path)?;
            SafeTensors::deserialize(&bytes).with_context(|| {
                format!("{} is no safetensors file, or a broken one", path.display())
            })?;
            return Ok(Self::Safetensors(bytes));
        }
        let reader = pytorch_reader::PytorchReader::new(path).with_context(|| {
            format!(
                "{} is no file of torch.save, or a broken one",
                path.display()
            )
        })?;
        ensure!(
            !reader.is_empty(),
            "{} holds no tensors: save the model's state_dict()",
            path.display()
        );
        Ok(Self::PyTorch(reader.into_tensors()))
    }

    fn names(&self) -> Result<Vec<String>> {
        Ok(match self {
            Self::Safetensors(bytes) => SafeTensors::deserialize(bytes)?
                .names()
                .into_iter()
                .map(str::to_owned)
                .collect(),
            Self::PyTorch(tensors) => tensors.keys().cloned().collect(),
        })
    }
}

/// A tensor as it is stored.
enum Stored<'a> {
    Safetensors(TensorView<'a>),
    PyTorch(&'a pytorch_reader::Tensor),
}

impl Stored<'_> {
    fn shape(&self) -> &[usize] {
        match self {
            Self::Safetensors(view) => view.shape(),
            Self::PyTorch(tensor) => tensor.shape(),
        }
    }

    fn dtype(&self) -> Result<DType> {
        use pytorch_reader::DType as Torch;
        let found = match self {
            Self::Safetensors(view) => match view.dtype() {
                Dtype::F32 => return Ok(DType::F32),
                Dtype::F16 => return Ok(DType::F16),
                Dtype::BF16 => return Ok(DType::BF16),
                other => format!("{other:?}"),
            },
            Self::PyTorch(tensor) => match tensor.dtype() {
                Torch::F32 => return Ok(DType::F32),
                Torch::F16 => return Ok(DType::F16),
                Torch::BF16 => return Ok(DType::BF16),
                other => format!("{other:?}"),
            },
        };
        bail!("elements of type {found} are not read, only f32, f16 and bf16")
    }

    fn values(&self) -> Result<Vec<f32>> {
        match self {
            Self::Safetensors(view) => decode(self.dtype()?, view.data()),
            Self::PyTorch(tensor) => decode(self.dtype()?, &tensor.read()?),
        }
    }
}

/// The weights of a folder.
struct Weights {
    files: Vec<(PathBuf, WeightFile)>,
    /// File and name of a tensor, by its name without [`PREFIXES`].
    places: BTreeMap<String, (usize, String)>,
}

/// A name without what stands before it in some files.
pub(crate) fn bare(name: &str) -> &str {
    let shorter = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    shorter.map_or(name, bare)
}

impl Weights {
    fn open(folder: &Path) -> Result<Self> {
        let paths = weight_files(folder)?;
        ensure!(
            !paths.is_empty(),
            "{} has no weights: neither model.safetensors nor pytorch_model.bin, in one file or with an index",
            folder.display()
        );
        let (mut files, mut places) = (Vec::new(), BTreeMap::<String, (usize, String)>::new());
        for path in paths {
            let file = WeightFile::open(&path)?;
            for name in file.names()? {
                let place = places
                    .entry(bare(&name).to_owned())
                    .or_insert_with(|| (files.len(), name.clone()));
                // What has fewer wrappers is the model itself, and not a copy in a checkpoint.
                if name.len() < place.1.len() {
                    *place = (files.len(), name);
                }
            }
            files.push((path, file));
        }
        Ok(Self { files, places })
    }

    /// Runs `read` on a tensor of the table, under whichever prefix the file has it. Of a tied pair, either may be there.
    fn with<T>(
        &self,
        entry: &TensorEntry,
        read: impl FnOnce(&Stored<'_>) -> Result<T>,
    ) -> Result<T> {
        let tied = (entry.role == Role::TokenEmbd).then_some("lm_head.weight");
        let (file, name) = [Some(bare(&entry.hf)), tied]
            .into_iter()
            .flatten()
            .find_map(|name| self.places.get(name))
            .with_context(|| format!("the weights have no tensor `{}`", entry.hf))?;
        let (path, file) = &self.files[*file];
        let place = || format!("{}: tensor `{name}`", path.display());
        let tensors;
        let stored = match file {
            WeightFile::Safetensors(bytes) => {
                tensors = SafeTensors::deserialize(bytes).with_context(place)?;
                Stored::Safetensors(tensors.tensor(name).with_context(place)?)
            }
            WeightFile::PyTorch(tensors) => Stored::PyTorch(tensors.get(name).with_context(place)?),
        };
        let wanted = entry.hf_shape();
        ensure!(
            stored.shape() == wanted,
            "{}: its shape is {:?}, config.json makes it {wanted:?}",
            place(),
            stored.shape()
        );
        read(&stored).with_context(place)
    }

    /// Matrices stay as they are stored, vectors become f32.
    fn dtype_of(&self, entry: &TensorEntry) -> Result<DType> {
        self.with(entry, |stored| {
            let dtype = stored.dtype()?;
            Ok(if entry.quantizable { dtype } else { DType::F32 })
        })
    }

    fn bytes_of(&self, entry: &TensorEntry, dtype: DType) -> Result<Vec<u8>> {
        self.with(entry, |stored| {
            let values = entry.to_gguf_layout(stored.values()?);
            let mut bytes = Vec::new();
            quant::quantize(dtype, &values, &mut bytes);
            Ok(bytes)
        })
    }
}

/// The values of a tensor of safetensors.
pub(crate) fn values_of(view: &TensorView<'_>) -> Result<Vec<f32>> {
    let dtype = Stored::Safetensors(view.clone()).dtype()?;
    decode(dtype, view.data())
}

fn decode(dtype: DType, data: &[u8]) -> Result<Vec<f32>> {
    let pairs = || data.as_chunks::<2>().0.iter().copied();
    let values: Vec<f32> = match dtype {
        DType::F16 => pairs()
            .map(|bits| f16::from_le_bytes(bits).to_f32())
            .collect(),
        DType::BF16 => pairs()
            .map(|bits| bf16::from_le_bytes(bits).to_f32())
            .collect(),
        _ => data
            .as_chunks::<4>()
            .0
            .iter()
            .copied()
            .map(f32::from_le_bytes)
            .collect(),
    };
    if let Some(position) = values.iter().position(|value| !value.is_finite()) {
        bail!(
            "element {position} is {}: the weights are broken",
            values[position]
        );
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fledgling_core::spec::tensor_table;

    #[test]
    fn an_index_names_files_beside_it() {
        let index = br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors","c":"model-00001-of-00002.safetensors"}}"#;
        assert_eq!(
            shards(index, ".safetensors").unwrap(),
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors"
            ]
        );
        for hostile in [
            &br#"{"weight_map":{"a":"../x.safetensors"}}"#[..],
            br#"{"weight_map":{"a":"/etc/passwd"}}"#,
            br#"{"weight_map":{"a":"/etc/x.safetensors"}}"#,
            br#"{"weight_map":{"a":"c:x.safetensors"}}"#,
            br#"{"weight_map":{"a":"..\\x.safetensors"}}"#,
            br#"{"weight_map":{"a":".safetensors"}}"#,
            br#"{"weight_map":{"a":"x.bin"}}"#,
            br#"{"weight_map":{"a":7}}"#,
            br#"{"weight_map":{}}"#,
            br#"{"weight_map":[]}"#,
            b"{}",
            b"<html>",
        ] {
            assert!(shards(hostile, ".safetensors").is_err());
        }
    }

    #[test]
    fn names_lose_what_wraps_them() {
        for (name, expected) in [
            (
                "model.layers.0.mlp.up_proj.weight",
                "layers.0.mlp.up_proj.weight",
            ),
            ("model.model.norm.weight", "norm.weight"),
            (
                "state_dict.module._orig_mod.transformer.h.0.ln_1.bias",
                "h.0.ln_1.bias",
            ),
            ("lm_head.weight", "lm_head.weight"),
            ("models.x", "models.x"),
        ] {
            assert_eq!(bare(name), expected);
        }
    }

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/fixtures")
            .join(name)
    }

    fn rounded(dtype: DType, values: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        quant::quantize(dtype, values, &mut bytes);
        decode(dtype, &bytes).unwrap()
    }

    /// Files of torch.save hold what the safetensors hold, in f16 with names that lack `transformer.`, or in bf16 shards of which
    /// only the output matrix of a tied pair is left.
    #[test]
    #[expect(
        clippy::redundant_closure_for_method_calls,
        reason = "the method alone is not general enough in its lifetimes"
    )]
    fn state_dicts_of_pytorch_are_read() {
        for (pytorch, safetensors, dtype) in [
            ("pytorch-one", "gpt2", DType::F16),
            ("pytorch-shards", "llama-tied", DType::BF16),
        ] {
            let config = read_json(&fixture(pytorch).join("config.json")).unwrap();
            let spec = ModelSpec::from_hf_config(&config).unwrap();
            let (got, expected) = (fixture(pytorch), fixture(safetensors));
            let (got, expected) = (
                Weights::open(&got).unwrap(),
                Weights::open(&expected).unwrap(),
            );
            for entry in tensor_table(&spec) {
                let stored = if entry.quantizable { dtype } else { DType::F32 };
                assert_eq!(got.dtype_of(&entry).unwrap(), stored, "{}", entry.hf);
                let values = expected.with(&entry, |stored| stored.values()).unwrap();
                assert_eq!(
                    got.with(&entry, |stored| stored.values()).unwrap(),
                    rounded(dtype, &values),
                    "{}",
                    entry.hf
                );
            }
        }
    }

    #[test]
    fn broken_state_dicts_are_errors() {
        let place = tempfile::tempdir().unwrap();
        let whole = fs::read(fixture("pytorch-one/pytorch_model.bin")).unwrap();
        let refused = |bytes: &[u8]| {
            let path = place.path().join("pytorch_model.bin");
            fs::write(&path, bytes).unwrap();
            match Weights::open(place.path()) {
                Ok(weights) => {
                    weights
                        .places
                        .values()
                        .any(|(file, name)| match &weights.files[*file].1 {
                            WeightFile::PyTorch(tensors) => tensors[name].read().is_err(),
                            WeightFile::Safetensors(_) => false,
                        })
                }
                Err(error) => format!("{error:#}").contains("pytorch_model.bin"),
            }
        };
        assert!(refused(b""));
        assert!(refused(b"no pickle at all"));
        // A pickle that calls os.system instead of making tensors.
        assert!(refused(
            b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueq\x00\x85R."
        ));
        for len in (0..whole.len()).step_by(whole.len() / 23) {
            assert!(refused(&whole[..len]), "cut after {len} bytes");
        }
        // A tensor's bytes changed: the archive's checksum.
        let mut changed = whole.clone();
        changed[whole.len() / 2] ^= 0xff;
        assert!(refused(&changed));
        assert!(!refused(&whole));
    }

    #[test]
    fn other_files_beside_the_weights_are_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let put = |name: &str| fs::write(place.path().join(name), b"x").unwrap();
        put("training_args.bin");
        put("optimizer.pt");
        put("rng_state_0.pth");
        assert_eq!(weight_files(place.path()).unwrap(), [] as [PathBuf; 0]);
        put("mine.pt");
        assert_eq!(
            weight_files(place.path()).unwrap(),
            [place.path().join("mine.pt")]
        );
        put("other.pth");
        let error = weight_files(place.path()).unwrap_err().to_string();
        assert!(error.contains("mine.pt, other.pth"), "{error}");
        put("pytorch_model.bin");
        assert_eq!(
            weight_files(place.path()).unwrap(),
            [place.path().join("pytorch_model.bin")]
        );
        put("model.safetensors");
        assert_eq!(
            weight_files(place.path()).unwrap(),
            [place.path().join("model.safetensors")]
        );
    }
}
