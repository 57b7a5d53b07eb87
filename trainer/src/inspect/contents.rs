//! What is in a model file or folder, whatever its format.

use crate::{convert, run};
use anyhow::{Context, Result, bail};
use fledgling_core::{
    gguf::{Gguf, Metadata},
    quant::DType,
    spec::{ModelSpec, Role, tensor_table},
    tokenizer::Tokenizer,
};
use fledgling_data::encode::read_tokenizer;
use safetensors::SafeTensors;
use serde::Serialize;
use serde_json::Value as Json;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// A file or folder.
#[derive(Debug)]
pub struct Contents {
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// Its files.
    pub files: Vec<PathBuf>,
    /// Their bytes together.
    pub len_bytes: u64,
    /// Bytes before the tensors.
    pub header_bytes: u64,
    /// As the file calls it.
    pub architecture: Option<String>,
    /// The model's name.
    pub name: Option<String>,
    /// The architecture, where it is one that we run.
    pub spec: Option<ModelSpec>,
    /// The tensors, in the order in which they lie.
    pub tensors: Vec<Tensor>,
    /// Keys of a GGUF file.
    pub gguf_metadata: Option<Metadata>,
    /// Keys of safetensors: those of the files' headers, and `config.json`.
    pub other_metadata: serde_json::Map<String, Json>,
    /// The tokenizer, where there is one that we read.
    pub tokenizer: Option<TokenizerInfo>,
}

/// A tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type, as the format calls it.
    pub dtype: String,
    /// Its shape: of GGUF the fastest axis first, of safetensors last.
    pub shape: Vec<u64>,
    /// Where it begins in the file, of several as if they lay one behind the other.
    pub offset_bytes: u64,
    /// Its size.
    pub len_bytes: u64,
    /// What part of a model it is.
    pub part: Part,
}

/// The parts of a model, in the order in which a token goes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Tokens to vectors, and where it is tied back.
    TokenEmbedding,
    /// Learned positions.
    PositionEmbedding,
    /// Queries, keys, values and what is made of them.
    Attention,
    /// The two or three matrices after attention.
    Mlp,
    /// Normalisations.
    Norms,
    /// Vectors to logits.
    Output,
    /// What is in no table of ours.
    Other,
}

impl Part {
    fn of(role: Role) -> Self {
        use Role as R;
        match role {
            R::TokenEmbd => Self::TokenEmbedding,
            R::PositionEmbd => Self::PositionEmbedding,
            R::FfnGate | R::FfnUp | R::FfnUpBias | R::FfnDown | R::FfnDownBias => Self::Mlp,
            R::Output => Self::Output,
            R::AttnNorm
            | R::AttnNormBias
            | R::AttnQNorm
            | R::AttnKNorm
            | R::FfnNorm
            | R::FfnNormBias
            | R::OutputNorm
            | R::OutputNormBias => Self::Norms,
            _ => Self::Attention,
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::TokenEmbedding => "token embedding",
            Self::PositionEmbedding => "positions",
            Self::Attention => "attention",
            Self::Mlp => "MLP",
            Self::Norms => "norms",
            Self::Output => "output",
            Self::Other => "other",
        }
    }
}

/// What a tokenizer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenizerInfo {
    /// `tokenizer.ggml.model`: `gpt2` is byte-level BPE, `llama` `SentencePiece`.
    pub kind: String,
    /// `tokenizer.ggml.pre`: how a text is cut before.
    pub pre: Option<String>,
    /// Ids.
    pub vocab_size: usize,
    /// Ids of special tokens (control and user-defined).
    pub n_special: usize,
    /// The tokens that have a role.
    pub special: BTreeMap<&'static str, Special>,
    /// Whether a text begins with BOS.
    pub adds_bos: bool,
    /// Whether there is a chat template.
    pub chat_template: bool,
    /// Whether the file carries the `tokenizer.json` of the Hugging Face hub.
    pub huggingface_json: bool,
}

/// A special token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Special {
    /// Its id.
    pub id: u64,
    /// Its text.
    pub text: String,
}

impl TokenizerInfo {
    fn of(tokenizer: &Tokenizer, metadata: &Metadata, has_template: bool) -> Self {
        const ROLES: [(&str, &str); 4] = [
            ("bos", "tokenizer.ggml.bos_token_id"),
            ("eos", "tokenizer.ggml.eos_token_id"),
            ("unknown", "tokenizer.ggml.unknown_token_id"),
            ("padding", "tokenizer.ggml.padding_token_id"),
        ];
        let special = ROLES.iter().filter_map(|&(role, key)| {
            let id = metadata.u64(key)?;
            let text = tokenizer.token_text(u32::try_from(id).ok()?)?.to_owned();
            Some((role, Special { id, text }))
        });
        // ggml's LLAMA_TOKEN_TYPE_CONTROL and LLAMA_TOKEN_TYPE_USER_DEFINED.
        let types = metadata.ints("tokenizer.ggml.token_type");
        let types = types.into_iter().flatten();
        Self {
            kind: metadata
                .str("tokenizer.ggml.model")
                .unwrap_or("unknown")
                .to_owned(),
            pre: metadata.str("tokenizer.ggml.pre").map(str::to_owned),
            vocab_size: tokenizer.vocab_size(),
            n_special: types.filter(|kind| [3, 4].contains(kind)).count(),
            special: special.collect(),
            adds_bos: tokenizer.adds_bos(),
            chat_template: has_template,
            huggingface_json: metadata.get("tokenizer.huggingface.json").is_some(),
        }
    }

    /// `byte-level BPE (smollm)`
    pub fn describe_kind(&self) -> String {
        let kind = match &self.kind[..] {
            "gpt2" => "byte-level BPE",
            "llama" => "SentencePiece",
            other => other,
        };
        match &self.pre {
            Some(pre) => format!("{kind} ({pre})"),
            None => kind.to_owned(),
        }
    }
}

/// Opens what `path` is: a GGUF file or a part of one, a safetensors file, or a folder as the hub has it.
///
/// # Errors
/// When it is none of these, or broken.
pub fn open(path: &Path) -> Result<Contents> {
    if path.is_dir() {
        return open_folder(path);
    }
    if path
        .extension()
        .is_some_and(|ending| ending == "safetensors")
    {
        let mut contents = of_safetensors(vec![path.to_owned()])?;
        // A file that lies in a model's folder is known by what lies beside it.
        let folder = crate::files::folder_of(path);
        if convert::weight_files(folder).is_ok_and(|files| files == [path]) {
            add_config(&mut contents, folder)?;
        }
        return Ok(contents);
    }
    of_gguf(path)
}

fn of_gguf(path: &Path) -> Result<Contents> {
    let mapped = fledgling_lambda::mapped_model(path)?;
    let len = |path: &PathBuf| anyhow::Ok(std::fs::metadata(path)?.len());
    let len_bytes = mapped.files.iter().map(len).sum::<Result<u64>>()?;
    let gguf: &Gguf = &mapped.gguf;
    let header = gguf.header();
    let spec = ModelSpec::from_gguf(gguf).ok();
    let parts = parts(spec.as_ref(), |entry| entry.gguf.clone());
    let tensor = |info: &fledgling_core::gguf::TensorInfo| Tensor {
        name: info.name.clone(),
        dtype: info.dtype.name().to_owned(),
        shape: info.shape.clone(),
        offset_bytes: header.file_range(info).start,
        len_bytes: info.len_bytes,
        part: parts.get(&info.name).copied().unwrap_or(Part::Other),
    };
    let metadata = &header.metadata;
    let has_template = metadata.get("tokenizer.chat_template").is_some();
    let tokenizer = Tokenizer::from_metadata(metadata).ok();
    Ok(Contents {
        format: "gguf",
        files: mapped.files,
        len_bytes,
        header_bytes: header.data_offset_bytes,
        architecture: metadata.str("general.architecture").map(str::to_owned),
        name: metadata.str("general.name").map(str::to_owned),
        tensors: header.tensors.iter().map(tensor).collect(),
        tokenizer: tokenizer.map(|tokenizer| TokenizerInfo::of(&tokenizer, metadata, has_template)),
        gguf_metadata: Some(metadata.clone()),
        other_metadata: serde_json::Map::new(),
        spec,
    })
}

fn open_folder(folder: &Path) -> Result<Contents> {
    if run::is_run_folder(folder) {
        bail!(
            "{} is a run's folder; `fledgling runs` shows runs, and `fledgling export {} --quant f16 -o model.gguf` makes a file to inspect",
            folder.display(),
            folder.display()
        );
    }
    let files = convert::weight_files(folder)?;
    let is_safetensors = |path: &PathBuf| {
        path.extension()
            .is_some_and(|ending| ending == "safetensors")
    };
    if files.is_empty() {
        bail!(
            "{} holds no model: inspect reads a GGUF file, a safetensors file, or a folder with model.safetensors and config.json",
            folder.display()
        );
    }
    if !files.iter().all(is_safetensors) {
        bail!(
            "{} holds PyTorch's pickles, which inspect does not list: `fledgling export {} --quant f16 -o model.gguf` makes a file that it does",
            folder.display(),
            folder.display()
        );
    }
    let mut contents = of_safetensors(files)?;
    add_config(&mut contents, folder)?;
    Ok(contents)
}

fn of_safetensors(files: Vec<PathBuf>) -> Result<Contents> {
    let (mut tensors, mut other_metadata) = (Vec::<Tensor>::new(), serde_json::Map::new());
    let (mut len_bytes, mut header_bytes) = (0, 0);
    for path in &files {
        let place = || path.display().to_string();
        let bytes = fledgling_lambda::mapped_file(path)?;
        let (header_len, header) = SafeTensors::read_metadata(&bytes).with_context(place)?;
        // All that `read_metadata` leaves to it: whether the tensors are there.
        SafeTensors::deserialize(&bytes).with_context(place)?;
        let data = 8 + header_len as u64;
        let first = tensors.len();
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            if tensors.iter().take(first).any(|other| other.name == name) {
                bail!("{}: tensor `{name}` stands in another file, too", place());
            }
            tensors.push(Tensor {
                dtype: format!("{:?}", info.dtype),
                shape: info.shape.iter().map(|n| *n as u64).collect(),
                offset_bytes: len_bytes + data + start as u64,
                len_bytes: (end - start) as u64,
                part: Part::Other,
                name,
            });
        }
        tensors[first..].sort_by(|a, b| (a.offset_bytes, &a.name).cmp(&(b.offset_bytes, &b.name)));
        for (key, value) in header.metadata().iter().flatten() {
            other_metadata.insert(key.clone(), value.as_str().into());
        }
        len_bytes += bytes.len() as u64;
        header_bytes += data;
    }
    Ok(Contents {
        format: "safetensors",
        files,
        len_bytes,
        header_bytes,
        architecture: None,
        name: None,
        spec: None,
        tensors,
        gguf_metadata: None,
        other_metadata,
        tokenizer: None,
    })
}

/// What `config.json` and `tokenizer.json` say.
fn add_config(contents: &mut Contents, folder: &Path) -> Result<()> {
    let path = folder.join("config.json");
    let Ok(text) = std::fs::read(&path) else {
        return Ok(());
    };
    let config: Json =
        serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))?;
    contents.architecture = config["model_type"].as_str().map(str::to_owned);
    contents.name = Some(convert::model_name(folder, &config));
    contents.spec = ModelSpec::from_hf_config(&config).ok();
    contents.other_metadata.insert("config".to_owned(), config);
    let parts = parts(contents.spec.as_ref(), |entry| {
        convert::bare(&entry.hf).to_owned()
    });
    for tensor in &mut contents.tensors {
        let part = parts.get(convert::bare(&tensor.name));
        tensor.part = part.copied().unwrap_or(Part::Other);
    }
    let path = folder.join("tokenizer.json");
    if path.is_file() {
        let (tokenizer, template) = read_tokenizer(&path)?;
        let metadata = tokenizer.to_metadata();
        contents.header_bytes += std::fs::metadata(&path).map_or(0, |file| file.len());
        contents.tokenizer = Some(TokenizerInfo::of(&tokenizer, &metadata, template.is_some()));
    }
    Ok(())
}

fn parts(
    spec: Option<&ModelSpec>,
    name: impl Fn(&fledgling_core::spec::TensorEntry) -> String,
) -> BTreeMap<String, Part> {
    let table = spec.map(tensor_table).unwrap_or_default();
    table
        .iter()
        .map(|entry| (name(entry), Part::of(entry.role)))
        .collect()
}

impl Contents {
    /// Values of all tensors.
    pub fn n_parameters(&self) -> u64 {
        self.tensors
            .iter()
            .map(|tensor| tensor.shape.iter().product::<u64>())
            .sum()
    }

    /// The element type of a tensor of the model's table.
    pub fn dtype_of(&self, entry: &fledgling_core::spec::TensorEntry) -> DType {
        let is = |name: &str| match self.format {
            "gguf" => name == entry.gguf,
            _ => convert::bare(name) == convert::bare(&entry.hf),
        };
        let found = self.tensors.iter().find(|tensor| is(&tensor.name));
        found
            .and_then(|tensor| DType::from_name(&tensor.dtype))
            .unwrap_or(DType::F32)
    }
}
